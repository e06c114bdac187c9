"""How often a secret was tried, which key signs the gallery's sessions, and which sessions were signed out.

Shared by all processes. Knows counters that restart when their window is over, and the addresses that once sent the
right password. Must not know passwords or cookies: an address is only a name to count under.
"""

from __future__ import annotations

import secrets

from sqlalchemy import ColumnElement, Connection, Double, bindparam, case, delete, not_, or_, select, update

from storage.database import Database
from storage.models import ended_sessions, gallery_key, known_addresses, sign_in_attempts

WINDOW_SECONDS = 900.0
PER_ADDRESS, IN_ALL = 10, 100
"""Tries within a window: for one address, and for all addresses together without an earlier sign-in."""

KNOWN_SECONDS = 90 * 86400.0
"""How long an address is remembered after a sign-in."""

_columns = sign_in_attempts.c


class Attempts:
    """Tries of one secret, `what`. Every method raises DatabaseUnavailableError when the database is away."""

    def __init__(self, database: Database, what: str) -> None:
        self._database = database
        self._what = what
        now: ColumnElement[float] = bindparam("now", type_=Double)
        over = _over(now)
        counted = database.insert(sign_in_attempts).values(address=bindparam("who"), first_at=now, count=1)
        self._count = counted.on_conflict_do_update(
            index_elements=[_columns.address],
            set_={
                "first_at": case((over, now), else_=_columns.first_at),
                "count": case((over, 1), else_=_columns.count + 1),
            },
        ).returning(_columns.count)
        seen = database.insert(known_addresses).values(address=bindparam("who"), until=bindparam("until"))
        self._remember = seen.on_conflict_do_update(
            index_elements=[known_addresses.c.address], set_={"until": seen.excluded.until}
        )

    def try_one(self, address: str, now: float) -> float:
        """Count a try before it is made. Returns 0 if it is allowed, otherwise the seconds until the next one.

        A refused try is not counted and writes nothing, so that an attack costs the database no work. Strangers cannot
        use up the tries of an address with an earlier sign-in.
        """
        if seconds := self._database.run(lambda connection: self._wait(connection, address, now)):
            return seconds

        def count(connection: Connection) -> float:
            connection.execute(delete(sign_in_attempts).where(_over(now)))
            # The common counter first in every process, or two could deadlock.
            limits = self._limits(connection, address, now)
            tries = {
                who: connection.execute(self._count, {"who": who, "now": now}).scalar_one() for who in limits
            }
            # Others may have counted in between: then the first ones up to the limit are allowed.
            return 0.0 if all(tries[who] <= limits[who] for who in limits) else WINDOW_SECONDS

        return self._database.transact(count)

    def forgive(self, address: str, now: float) -> None:
        """The secret was right: reset and remember this address, and take its try off the common counter."""

        def forget(connection: Connection) -> None:
            counted = _columns.address.in_(self._limits(connection, address, now))
            one_less = {_columns.count: _columns.count - 1}
            connection.execute(update(sign_in_attempts).where(counted).values(one_less))
            own = f"{self._what} {address}"
            connection.execute(delete(sign_in_attempts).where(_columns.address == own))
            connection.execute(delete(known_addresses).where(known_addresses.c.until <= now))
            connection.execute(self._remember, {"who": address, "until": now + KNOWN_SECONDS})

        self._database.transact(forget)

    def _limits(self, connection: Connection, address: str, now: float) -> dict[str, int]:
        """The names under which a try of this address is counted, with their limits."""
        known = select(known_addresses.c.until).where(
            known_addresses.c.address == address, known_addresses.c.until > now
        )
        own = {f"{self._what} {address}": PER_ADDRESS}
        return own if connection.execute(known).first() else {f"{self._what} *": IN_ALL} | own

    def _wait(self, connection: Connection, address: str, now: float) -> float:
        """Seconds until the next allowed try; 0 for now."""
        limits = self._limits(connection, address, now)
        statement = select(_columns.address, _columns.first_at, _columns.count).where(
            _columns.address.in_(limits), not_(_over(now))
        )
        return max(
            (
                first_at + WINDOW_SECONDS - now
                for who, first_at, tries in connection.execute(statement)
                if tries >= limits[who]
            ),
            default=0.0,
        )


class Sessions:
    """The key that signs the gallery's sessions, and the sessions that were signed out.

    Every method raises DatabaseUnavailableError when the database is away.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._end = database.insert(ended_sessions).on_conflict_do_nothing()

    def key(self) -> bytes:
        """32 random bytes, the same ones for all processes, for ever."""
        made = self._database.insert(gallery_key).on_conflict_do_nothing()
        values = {"id": 1, "key": secrets.token_bytes(32)}

        def find(connection: Connection) -> bytes:
            connection.execute(made, values)
            return bytes(connection.execute(select(gallery_key.c.key)).scalar_one())

        return self._database.transact(find)

    def end(self, session: str, until: float, now: float) -> None:
        """Sign this session out. It is remembered until it would have ended by itself."""

        def remember(connection: Connection) -> None:
            connection.execute(delete(ended_sessions).where(ended_sessions.c.until <= now))
            connection.execute(self._end, {"session": session, "until": until})

        self._database.transact(remember)

    def has_ended(self, session: str) -> bool:
        """Whether this session was signed out."""
        statement = select(ended_sessions.c.session).where(ended_sessions.c.session == session)
        return self._database.run(lambda connection: connection.execute(statement).first() is not None)


def _over(now: float | ColumnElement[float]) -> ColumnElement[bool]:
    """Whether the window has ended. A window that a wrong clock started in the future counts as ended."""
    return or_(_columns.first_at <= now - WINDOW_SECONDS, _columns.first_at > now + WINDOW_SECONDS)
