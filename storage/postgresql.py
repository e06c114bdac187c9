"""PostgreSQL as a server: how a URL names it, how it is connected to and found to be away, and what a migration needs.

The system notices a server that is gone. It does not notice one that is there and says nothing, as a hung process
behind a pooler does: such a connection ends here, and the operation is tried again on a new one. Knows the driver. Must
not know our tables. Loads the driver: import it only where the database is PostgreSQL.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import unquote

import psycopg
from psycopg.abc import PQGen
from psycopg.conninfo import make_conninfo
from sqlalchemy import URL, make_url

from storage.errors import SchemaError

T = TypeVar("T")

_CONNECT_SECONDS = 3
_SILENCE_SECONDS = 2  # one statement may take this much longer than its operation may wait
_LOCK_SECONDS = 5
_IDLE_SECONDS = 2
_MIGRATION_LOCK = 7221045829410061312  # any number, but the same one in every process

_OPTIONS: dict[str, Any] = {
    "client_encoding": "UTF8",  # whatever PGCLIENTENCODING, the role or the database says
    "connect_timeout": _CONNECT_SECONDS,
    # A server that vanished without a word is noticed in seconds, not after the system's two hours.
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": _LOCK_SECONDS * 1000,
}
SETUP = f"SET lock_timeout = '{_LOCK_SECONDS}s'; SET idle_in_transaction_session_timeout = '{_IDLE_SECONDS}s'"
"""Run on each new connection: nothing waits longer for a lock that another holds. And a transaction that does not go
on is ended: a machine that is suspended, or lost without a word, would keep its locks, by default for two hours."""

_SERVER_HINT = "is the server up, and DATABASE_URL right?"
_LOCK_HINT = "another session holds a lock: look for it in pg_stat_activity (DATABASE_URL)"
_TIME_HINT = "is a statement_timeout too short, of the database or of its user (DATABASE_URL)?"
_RIGHTS_HINT = "may the user of DATABASE_URL make and use tables there?"
_READ_ONLY_HINT = "does DATABASE_URL name a standby, or has its user default_transaction_read_only?"
_POOLER_HINT = "a pooler between must be in session mode (DATABASE_URL)"
_RESTORE_HINT = "stop all processes and restore the database from a backup (DATABASE_URL)"
# What it says when the database cannot be used now, by class of SQLSTATE
# (https://www.postgresql.org/docs/current/errcodes-appendix.html), and what to do about it: lock not available; a
# statement ended for its time; connection, transaction ended for its time, authorization, no such database, rolled back
# by others, resources, shut down, system; read-only; no right, no schema; a prepared statement is gone, or another's is
# there; no such table, corrupted.
_UNAVAILABLE = {
    "55P03": _LOCK_HINT,
    "57014": _TIME_HINT,
    **dict.fromkeys(("08", "25P03", "25P04", "28", "3D", "40", "53", "57", "58"), _SERVER_HINT),
    "25006": _READ_ONLY_HINT,
    **dict.fromkeys(("42501", "3F"), _RIGHTS_HINT),
    **dict.fromkeys(("26000", "42P05"), _POOLER_HINT),
    **dict.fromkeys(("42P01", "XX001", "XX002"), _RESTORE_HINT),
    # Where a row may be there its INSERT says ON CONFLICT; but REINDEX CONCURRENTLY has a new index that is not asked.
    "23505": _RESTORE_HINT,
}
# The names of the encodings that keep any character; the second one looks at none.
_ENCODINGS = ("UTF8", "SQL_ASCII")


class Connection(psycopg.Connection[Any]):
    """psycopg's own, with an end to each statement."""

    _patience: float | None = 10.0

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        return super().wait(gen, interval, self._patience if timeout is None else timeout)

    def be_patient(self, wait: float) -> None:
        """From now on a statement of an operation that may wait so many seconds raises psycopg.OperationalError if it
        takes much longer."""
        self._patience = wait + _SILENCE_SECONDS

    def check_encoding(self) -> None:
        """Raises SchemaError if the database cannot keep all characters."""
        encoding = self.info.parameter_status("server_encoding")
        if encoding not in _ENCODINGS:
            raise SchemaError(
                f"the database's encoding is {encoding}, which has not all characters: "
                "make one with ENCODING 'UTF8' TEMPLATE template0 (DATABASE_URL)"
            )

    def begin_migration(self) -> None:
        """In a transaction: it may take as long as it takes, and others that migrate wait for its end."""
        self._patience = None
        # The second is the role's or the database's.
        for limit in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
            self.execute(f"SET LOCAL {limit} = 0")
        self.execute(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")

    def rows(self, sql: bytes, values: Sequence[object]) -> list[tuple[Any, ...]]:
        """The rows that a statement with $1, $2 and so on returns."""
        # The columns decide the types: one prepared statement fits, whatever is NULL.
        texts = [_without_type(value) for value in values]
        return psycopg.RawCursor(self).execute(sql, texts, prepare=True).fetchall()


def _without_type(value: object) -> str | None:
    """As PostgreSQL reads it for a column of any type: https://www.postgresql.org/docs/current/datatype-binary.html"""
    if value is None:
        return None
    return f"\\x{value.hex()}" if isinstance(value, bytes) else str(value)


def connect(address: URL, options: Mapping[str, Any]) -> Connection:
    """A connection in autocommit mode. `options` are the driver's, made of the URL without its query. Raises
    psycopg.Error."""
    # Only PostgreSQL's own library knows which options there are. They win over the rest of the URL.
    own: dict[str, Any] = {
        name: value if isinstance(value, str) else ",".join(value) for name, value in address.query.items()
    }
    others = {name: value for name, value in options.items() if name not in own}
    try:
        connection = Connection.connect(make_conninfo(**own), autocommit=True, **others | _OPTIONS)
    except UnicodeError:  # Python looks names up, and refuses one with an empty or a too long part
        raise psycopg.OperationalError("a host has a name that no host can have") from None
    try:
        connection.execute(SETUP)
    except BaseException:
        connection.close()
        raise
    return connection


def why_unavailable(error: BaseException, *, connecting: bool) -> str | None:
    """Why the database cannot be used now; None when the error means something else."""
    if not isinstance(error, psycopg.Error):
        return None
    state = error.sqlstate
    lost = state is None and (
        connecting or isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    )
    hints = (hint for kind, hint in _UNAVAILABLE.items() if (state or "").startswith(kind))
    hint = _SERVER_HINT if lost else next(hints, None)
    if hint is None:
        return None
    lines = str(error).splitlines() or [""]
    # The first says it all, and the others may hold values. But where several servers were tried each has its line.
    said = "; ".join(line for line in lines if lost and line.startswith("- host: ")) or lines[0]
    return f"PostgreSQL: {said}: {hint}"


# As config.py reads it: a password may hold anything but @.
_URL = re.compile(r"([^:/]+://(?:[^:/]*(?::[^@]*)?@)?)([^/?]*)(.*)", re.DOTALL)
_SERVER = re.compile(r"(?:\[(?P<address>[^\[\]]+)\]|(?P<name>[^:\[\]]*))(?::(?P<port>[0-9]{1,5}))?")


def address_of(url: str) -> URL:
    """Its servers are options of the connection: a primary and its standbys, as PostgreSQL's own programs take them.

    Of several, unless the URL says otherwise, the one that can be written is looked for. Raises ValueError.
    """
    found = _URL.fullmatch(url)
    servers = [_SERVER.fullmatch(server) for server in found[2].split(",")] if found else [None]
    if found is None or None in servers:
        raise ValueError
    options = {
        # A socket's folder is written with %2F.
        "host": ",".join(unquote(one["address"] or one["name"]) for one in servers if one),
        "port": ",".join(one["port"] or "" for one in servers if one),
        "target_session_attrs": "read-write" if len(servers) > 1 else "",
    }
    address = make_url(found[1] + found[3])
    return address.set(query={name: value for name, value in options.items() if value} | address.query)
