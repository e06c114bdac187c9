"""The shared access_token: one row per account beside the ledger, and the lease of the process that fetches a new one.

Knows how the row is kept and that only the lease's holder may write it, on both databases and over all processes.
Must not know when a token is renewed, or where from: that is wechat.access_token.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from sqlalchemy import Connection, bindparam, or_, select, update

from storage.database import Database
from storage.models import lease_over, token_fetches, tokens
from wechat.access_token import EMPTY, TokenRow

_NAMES = [field.name for field in fields(TokenRow)]
_LOAD = select(*(tokens.c[name] for name in _NAMES)).where(tokens.c.appid == bindparam("of_appid"))


class SqlTokenStore:
    """A wechat.access_token.TokenStore. Every method raises DatabaseUnavailableError while the database is away."""

    def __init__(self, database: Database, appid: str) -> None:
        self._database = database
        self._appid = appid
        self._mine = tokens.c.appid == appid
        self._load = database.prepared(_LOAD)  # for every call of the platform

    def load(self) -> TokenRow:
        rows = self._database.run(lambda connection: self._load(connection, of_appid=self._appid).fetchall())
        return TokenRow(**dict(zip(_NAMES, rows[0], strict=True))) if rows else EMPTY

    def lease(self, holder: str, now: float, seconds: float) -> bool:
        # One statement, so that the condition fails for the second process.
        mine_now = {"lease_holder": holder, "lease_until": now + seconds}
        statement = (
            self._database.insert(tokens)
            .values(appid=self._appid, **asdict(EMPTY), **mine_now)
            .on_conflict_do_update(
                index_elements=[tokens.c.appid],
                set_=mine_now,
                where=or_(
                    tokens.c.lease_holder.is_(None),
                    tokens.c.lease_holder == holder,
                    lease_over(tokens.c.lease_until, now),
                ),
            )
            .returning(tokens.c.appid)
        )
        return self._database.write(lambda connection: connection.execute(statement).first()) is not None

    def save(self, holder: str, row: TokenRow, now: float) -> bool:
        return self._changes_a_row(
            update(tokens)
            .where(self._mine, tokens.c.lease_holder == holder, tokens.c.lease_until > now)
            .values(asdict(row))
        )

    def release(self, holder: str) -> None:
        self._changes_a_row(
            update(tokens)
            .where(self._mine, tokens.c.lease_holder == holder)
            .values(lease_holder=None, lease_until=None)
        )

    def count_fetch(self, result: str) -> None:
        """Count a fetch that ended with `result`, for `fetches()`."""
        statement = (
            self._database.insert(token_fetches)
            .values(appid=self._appid, result=result, count=1)
            .on_conflict_do_update(
                index_elements=[token_fetches.c.appid, token_fetches.c.result],
                set_={"count": token_fetches.c.count + 1},
            )
        )
        self._database.write(lambda connection: connection.execute(statement))

    def fetches(self) -> dict[str, int]:
        """How many fetches all processes have made, by result."""
        statement = select(token_fetches).where(token_fetches.c.appid == self._appid)
        rows = self._database.run(lambda connection: connection.execute(statement).all())
        return {row.result: row[2] for row in rows}

    def _changes_a_row(self, statement: Any) -> bool:
        def execute(connection: Connection) -> bool:
            return bool(connection.execute(statement).rowcount == 1)

        return self._database.write(execute)
