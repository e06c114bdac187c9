"""One database for the ledger and the token: opens it, brings its schema up to date, and runs operations on it.

Knows how many connections there are, what shares a commit, and that an operation is repeated until its wait is over.
Every operation, and every statement that writes a row, must be safe to repeat: a commit may have happened although its
answer was lost. How a database is opened and found to be away is in storage.sqlite and storage.postgresql. Must not
know what the operations do.

Make one Database per process, after a fork: connections do not survive one.
"""

from __future__ import annotations

import logging
import math
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import count
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal, TypeVar

from sqlalchemy import URL, Column, Connection, Executable, Table, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import NullPool

from storage.batches import Batches
from storage.errors import DatabaseUnavailableError, SchemaError
from storage.ids import skip_reserved
from storage.sqlite import SqliteFile, checkpoint
from storage.statements import Prepared, Row, RowStatement, driver_of

log = logging.getLogger(__name__)

T = TypeVar("T")
# A write: how it is run with others in one transaction, and how alone.
_Write = tuple[Callable[[Connection], Any], Callable[[Connection], Any]]

MAX_CONNECTIONS = 16
"""Of one process at once: a burst of pushes must not take all of the hundred that PostgreSQL gives by default."""

WAIT_SECONDS = 6.0
"""How long an operation waits for a database that is busy or away: past the platform's 5 s."""

SYNC_SECONDS = 1.0
"""With LEDGER_SYNC=normal: seconds from a commit to the start of its sync."""

MIGRATIONS = Path(__file__).parent / "migrations"

_PAUSES = (0.0, 0.05, 0.1, 0.2, 0.4)  # seconds before a repeat; the first is at once, the last for all others
_CHECKPOINT_WRITES = 1000


class _NotNow(Exception):
    """Why an attempt failed, when another one may not."""


class Database:
    """Connections to one database, each used by one thread at a time and kept open in between.

    Making it costs no I/O: the schema is made or migrated, and the database opened, by the first operation, so that a
    process can start while the database is away.
    """

    def __init__(
        self, url: str, *, sync: Literal["full", "normal"] = "full", migrations: Path = MIGRATIONS
    ) -> None:
        """`url` is a DATABASE_URL. Raises ValueError for one of another kind, SchemaError for a SQLite too old."""
        self._address = _address(url)
        self._migrations = migrations
        self._ready = False
        self._preparing = threading.Lock()
        self.is_sqlite = self._address.get_backend_name() == "sqlite"
        self.insert: Callable[[Table], Any] = sqlite.insert if self.is_sqlite else postgresql.insert
        """An INSERT that knows ON CONFLICT: both dialects have one, SQLAlchemy's common one has not."""
        self._begin = "BEGIN IMMEDIATE" if self.is_sqlite else "BEGIN"
        self._idle: deque[Connection] = deque()
        # SQLite's, apart: a connection keeps the statements for many rows that it has run, about 1 MB of them.
        self._writing: deque[Connection] = deque()
        self._room: SimpleQueue[None] = SimpleQueue()  # as a semaphore, at a tenth of its price
        for _ in range(MAX_CONNECTIONS):
            self._room.put(None)
        self._batches = Batches(self._write_all, DatabaseUnavailableError)
        self._row_batches: dict[RowStatement, Batches[Mapping[str, Any], Row | None]] = {}
        self._file = SqliteFile(Path(str(self._address.database)), sync) if self.is_sqlite else None
        self.loses_newest = self.is_sqlite and sync == "normal"
        """Whether a power cut may take the newest commits: those after the last `sync()`."""
        self._sync_is_due = False
        self._trouble = "the database is still being prepared"  # or why it cannot be
        self._failed_at = -math.inf  # when an attempt failed last
        self._written = 0  # since this process's last checkpoint
        # The drivers are in autocommit mode, so that one statement is one transaction and one round trip; where more
        # belong together BEGIN IMMEDIATE takes the write lock first: a lock that is upgraded later can deadlock.
        self._engine = create_engine(
            self._address.set(query={}),  # they are given below
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,
        )

        @event.listens_for(self._engine, "do_connect")
        def connect(_dialect: Any, _record: object, _arguments: object, options: Any) -> Any:
            if self._file is not None:
                return self._file.connect()
            from storage.postgresql import connect as connect_to_postgresql

            return connect_to_postgresql(self._address, options)

    def run(self, operation: Callable[[Connection], T], *, wait: float = WAIT_SECONDS) -> T:
        """Run an operation that reads, and return its result.

        While the database is busy, away or not writable, the operation is tried again, for `wait` seconds.
        Raises DatabaseUnavailableError when they are over.
        """
        if not self._ready:
            self.prepare(wait=wait)
        return self._admitted(operation, wait)

    def write(self, operation: Callable[[Connection], T], *, wait: float = WAIT_SECONDS) -> T:
        """Run an operation that writes by one statement. Waits and raises as `run` does."""
        return self._write(operation, operation, wait)

    def transact(self, operation: Callable[[Connection], T], *, wait: float = WAIT_SECONDS) -> T:
        """Run the operation as one transaction: all of it is kept, or nothing. Waits and raises as `run` does."""
        return self._write(operation, self._transaction(operation), wait)

    def find_row(
        self, statement: RowStatement, values: Mapping[str, Any], *, wait: float = WAIT_SECONDS
    ) -> Row | None:
        """The row that a statement finds, or None. Waits and raises as `run` does."""
        if self.is_sqlite:
            return self.run(lambda connection: statement.row(connection, values), wait=wait)
        return self._row(statement, values, wait)

    def write_row(
        self, statement: RowStatement, values: Mapping[str, Any], *, wait: float = WAIT_SECONDS
    ) -> Row | None:
        """The row that one inserting or updating statement returns, or None; it is committed. Waits and raises as `run`
        does."""
        if self.is_sqlite:
            return self.write(_RowWrite(statement, values), wait=wait)
        return self._row(statement, values, wait)

    def _row(self, statement: RowStatement, values: Mapping[str, Any], wait: float) -> Row | None:
        """Threads that come with one statement at the same time share a round trip to PostgreSQL, and a commit."""
        if not self._ready:
            self.prepare(wait=wait)
        batches = self._row_batches.get(statement)
        if batches is None:
            new = Batches(partial(self._rows, statement), DatabaseUnavailableError)
            batches = self._row_batches.setdefault(statement, new)
        try:
            return batches(values, wait)
        except TimeoutError:
            raise self._no_turn(wait) from None

    def _rows(
        self, statement: RowStatement, many: Callable[[], Sequence[Mapping[str, Any]]], wait: float
    ) -> Sequence[Row | None]:
        return self._admitted(lambda connection: statement.rows(connection, many()), wait)

    def _write(
        self, operation: Callable[[Connection], T], alone: Callable[[Connection], T], wait: float
    ) -> T:
        """`alone` is how the operation is run when no other comes along."""
        if not self._ready:
            self.prepare(wait=wait)
        if self._file is None:  # PostgreSQL has many writers
            return self._admitted(alone, wait)
        try:
            result: T = self._batches((operation, alone), wait)
        except TimeoutError:
            raise self._no_turn(wait) from None
        return result

    def _write_all(self, writes: Callable[[], Sequence[_Write]], wait: float) -> Sequence[Any]:
        """A single write runs as its `alone` form, several run in one transaction, rows for one statement by one."""
        assert self._file is not None
        turn = self._file.turn

        def write(connection: Connection) -> Sequence[Any]:
            with turn():
                now = writes()
                if len(now) == 1:
                    return [now[0][1](connection)]
                rows = [each for each, _ in now if isinstance(each, _RowWrite)]
                statements = {row.statement for row in rows}
                if len(rows) == len(now) and len(statements) == 1:
                    return statements.pop().rows(connection, [row.values for row in rows])
                return self._transaction(lambda connection: [each(connection) for each, _ in now])(connection)

        def make_checkpoint(connection: Connection) -> None:
            with turn():
                checkpoint(driver_of(connection))

        results = self._admitted(write, wait, self._writing)
        if self.loses_newest and not self._sync_is_due:
            self._sync_is_due = True
            timer = threading.Timer(SYNC_SECONDS, self._sync_in_time)
            timer.daemon = True
            try:
                timer.start()
            except (RuntimeError, MemoryError):  # the system gives no more threads
                self._sync_in_time()
        self._written += len(results)
        if self._written >= _CHECKPOINT_WRITES:
            self._written = 0
            with suppress(DatabaseUnavailableError):  # the rows are safe where they are
                self._admitted(make_checkpoint, 0.0, self._writing)
        return results

    def _admitted(
        self, operation: Callable[[Connection], T], wait: float, idle: deque[Connection] | None = None
    ) -> T:
        try:
            self._room.get_nowait()
        except Empty:
            began = time.monotonic()
            try:
                self._room.get(timeout=wait)
            except Empty:
                raise self._no_turn(wait) from None
            wait -= time.monotonic() - began
        try:
            return self._run(operation, wait=wait, idle=idle)
        finally:
            self._room.put(None)

    def _run(
        self, operation: Callable[[Connection], T], *, wait: float, idle: deque[Connection] | None = None
    ) -> T:
        idle = self._idle if idle is None else idle
        return self._until_available(lambda: self._try(operation, wait, idle), wait)

    def _try(self, operation: Callable[[Connection], T], wait: float, idle: deque[Connection]) -> T:
        connection = None
        try:
            connection = self._take(idle)
            if self._file is not None:
                self._file.look()
            else:
                driver_of(connection).be_patient(wait)
            result = operation(connection)
        except BaseException as error:
            if connection is not None:
                _drop(connection)
            reason = self._unavailable(error, connecting=connection is None)
            if reason is None:
                raise
        else:
            idle.append(connection)
            return result
        # Outside of the handler, so that the driver's error, which may hold values, is not this one's context.
        self._close_idle()  # what broke one connection has mostly broken the idle ones too
        raise _NotNow(reason)

    def _until_available(self, attempt: Callable[[], T], wait: float) -> T:
        """Tries again while it raises _NotNow, until `wait` is over; at least twice."""
        give_up = time.monotonic() + wait
        for tries in count():
            try:
                return attempt()
            except _NotNow as error:
                self._trouble, self._failed_at = str(error), time.monotonic()
            left = max(give_up - time.monotonic(), 0.0)
            if tries and not left:
                break
            pause = _PAUSES[min(tries, len(_PAUSES) - 1)]
            time.sleep(min(pause, left))  # no server, disk or holder of a lock tells when it is there again
        raise DatabaseUnavailableError(f"{self._trouble} (waited {wait:.1f} s)")

    def _no_turn(self, wait: float) -> DatabaseUnavailableError:
        # Most of those that wait do so for one that tries again and again: its reason is theirs.
        failing = time.monotonic() - self._failed_at <= wait
        reason = self._trouble if failing else "this process's other operations take too long"
        return DatabaseUnavailableError(f"{reason} (waited {wait:.1f} s)")

    def _transaction(self, operation: Callable[[Connection], T]) -> Callable[[Connection], T]:
        def transaction(connection: Connection) -> T:
            driver = driver_of(connection)
            driver.execute(self._begin)
            # When it fails the connection is rolled back or dropped.
            result = operation(connection)
            driver.execute("COMMIT")
            return result

        return transaction

    def prepared(self, statement: Executable) -> Prepared:
        """The statement made ready for this database. Compiled once per process and statement object, so pass the same
        object for every account."""
        return _prepared(statement, self._address.drivername)

    def row_statement(self, make: Callable[[int], Executable], key: Sequence[Column[Any]]) -> RowStatement:
        """The same for a statement about several rows, see storage.statements: pass the same function."""
        return _row_statement(make, tuple(column.name for column in key), self.is_sqlite)

    def prepare(self, *, wait: float = WAIT_SECONDS) -> None:
        """Make or migrate the schema if that is still to be done.

        A SQLite file and its folder are made when absent; the file is readable by its owner alone. Any number of
        processes may do this at once: one migrates, the others wait for it.

        Raises SchemaError for a schema newer than this program, DatabaseUnavailableError when the database is away for
        `wait` seconds.
        """
        if not self._preparing.acquire(timeout=wait):
            raise DatabaseUnavailableError(f"{self._trouble} (waited {wait:.1f} s)")
        try:
            if not self._ready:
                self._prepare(wait)
                self._ready = True
        finally:
            self._preparing.release()

    def is_prepared(self, *, wait: float = WAIT_SECONDS) -> bool:
        """Whether the schema is there and up to date. Changes nothing. Raises as `prepare` does."""
        if self._ready:
            return True
        if self._file is not None and not self._file.is_there():
            return False
        return self._run(self._is_newest, wait=wait)

    def try_to_make_a_table(self, *, wait: float = WAIT_SECONDS) -> None:
        """On PostgreSQL: make one and take it back. Raises DatabaseUnavailableError, also when this user may not."""

        def make(connection: Connection) -> None:
            driver = driver_of(connection)
            for statement in (self._begin, "CREATE TABLE nothing_yet ()", "ROLLBACK"):
                driver.execute(statement)

        self._run(make, wait=wait)

    def _is_newest(self, connection: Connection) -> bool:
        return _is_newest(connection, self._newest())

    def _newest(self) -> str:
        versions = (self._migrations / "versions").glob("[0-9]*.py")
        return max(version.name.partition("_")[0] for version in versions)

    def _prepare(self, wait: float) -> None:
        if self._file is None:
            self._bring_up_to_date(wait)
            return
        try:
            self._until_available(self._make_file, wait)
            with self._file.alone(wait):
                self._bring_up_to_date(wait)
                if self._file.open_as_first():  # it may be that the power was cut
                    self._run(self._transaction(partial(skip_reserved, self)), wait=wait)
        except DatabaseUnavailableError as error:
            self._trouble = str(error)
            raise
        # The process that made the file, its folder or the schema may have died before it came to this.
        self.sync()
        self._file.sync_folders()

    def _make_file(self) -> None:
        assert self._file is not None
        try:
            self._file.make()
        except DatabaseUnavailableError as error:
            raise _NotNow(str(error)) from None

    def _bring_up_to_date(self, wait: float) -> None:
        # The quick way, for every start but the first: alembic alone would take longer than all the rest.
        if self._run(self._is_newest, wait=wait):
            return
        if self.is_sqlite:
            wal = "PRAGMA journal_mode = WAL"
            self._run(lambda connection: connection.exec_driver_sql(wal).scalar(), wait=wait)
            self._close_idle()  # it was opened without a log
        self._run(self._transaction(lambda one: _migrate(one, self._migrations, self._newest())), wait=wait)

    def sync(self) -> None:
        """Return when all that was committed would survive a power cut. Raises DatabaseUnavailableError.

        Unless the database `loses_newest` each commit sees to that by itself.
        """
        if self._file is not None and self.loses_newest:
            self._file.sync()

    def _sync_in_time(self) -> None:
        self._sync_is_due = False
        try:
            self.sync()
        except DatabaseUnavailableError as error:
            log.error("the newest messages are not on the disk yet", extra={"reason": str(error)})

    def check(self, *, wait: float = 1.0) -> None:
        """Return when the database can be written. Raises DatabaseUnavailableError."""
        # Changes nothing. To begin a transaction would prove less: SQLite does that on a read-only file too.
        nothing = "UPDATE alembic_version SET version_num = version_num WHERE 1 = 0"
        self.write(lambda connection: connection.exec_driver_sql(nothing).rowcount, wait=wait)

    def close(self) -> None:
        """Close what is not in use. The next operation opens the database anew."""
        if self._sync_is_due:
            self._sync_in_time()
        self._ready = False
        self._close_idle()
        if self._file is not None:
            self._file.close()

    def _close_idle(self) -> None:
        for idle in (self._idle, self._writing):
            with suppress(IndexError):
                while True:
                    _drop(idle.pop())

    def _take(self, idle: deque[Connection]) -> Connection:
        try:
            return idle.pop()
        except IndexError:
            return self._engine.connect()

    def _unavailable(self, error: BaseException, *, connecting: bool) -> str | None:
        """Why the database cannot be used now; None when the error means something else."""
        driver_error = getattr(error, "orig", error)  # what SQLAlchemy wrapped
        if self._file is not None:
            return self._file.why_unavailable(driver_error)
        from storage.postgresql import why_unavailable

        return why_unavailable(driver_error, connecting=connecting)


@dataclass(frozen=True)
class _RowWrite:
    """A write of one row."""

    statement: RowStatement
    values: Mapping[str, Any]

    def __call__(self, connection: Connection) -> Row | None:
        return self.statement.row(connection, self.values)


@cache
def _prepared(statement: Executable, driver: str) -> Prepared:
    return Prepared(statement, URL.create(driver).get_dialect()())


@cache
def _row_statement(make: Callable[[int], Executable], key: Sequence[str], is_sqlite: bool) -> RowStatement:
    kind: Any = sqlite.dialect if is_sqlite else postgresql.dialect
    return RowStatement(make, key, kind(paramstyle="qmark" if is_sqlite else "numeric_dollar"))


def connect(
    url: str,
    *,
    sync: Literal["full", "normal"] = "full",
    wait: float = 30.0,
    migrations: Path = MIGRATIONS,
) -> Database:
    """A Database whose schema is there. Raises what Database() and prepare() raise.

    For tests and measurements: elsewhere the first operation prepares it.
    """
    database = Database(url, sync=sync, migrations=migrations)
    database.prepare(wait=wait)
    return database


def _address(url: str) -> URL:
    """The URL with the driver that is installed. A message never shows the URL: it may hold a password."""
    try:
        if url.startswith("postgresql"):
            from storage.postgresql import address_of

            address: URL | None = address_of(url)
        else:
            address = make_url(url)
    except (ArgumentError, ValueError):
        address = None
    kind = address.get_backend_name() if address is not None else ""
    if address is None or kind not in ("sqlite", "postgresql"):
        raise ValueError(
            "DATABASE_URL must be like sqlite:///data/bot.db or postgresql://user:password@host/name"
        )
    if kind == "postgresql":
        return address.set(drivername="postgresql+psycopg")
    if address.database in (None, "", ":memory:"):
        raise ValueError("DATABASE_URL must name a file, like sqlite:///data/bot.db")
    if sqlite3.sqlite_version_info < (3, 35):
        raise SchemaError(
            f"SQLite 3.35 or newer is needed, this Python has {sqlite3.sqlite_version}: use a newer one"
        )
    return address.set(drivername="sqlite")


def _revision(connection: Connection) -> str | None:
    """The schema's revision; None when there is none, or when the SQLite file is still to be switched to WAL."""
    if (
        connection.dialect.name == "sqlite"
        and connection.exec_driver_sql("PRAGMA journal_mode").scalar() != "wal"
    ):
        return None
    if not connection.dialect.has_table(connection, "alembic_version"):
        return None
    revision: str | None = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return revision


def _is_newest(connection: Connection, newest: str) -> bool:
    revision = _revision(connection)
    if revision is None and connection.dialect.name == "postgresql":
        driver_of(connection).check_encoding()
    if revision is not None and revision > newest:
        raise SchemaError(
            f"the database was made by a newer version of this program (schema {revision}, this one knows {newest}): "
            "update the program, or name another database by DATABASE_URL"
        )
    return revision == newest


def _migrate(connection: Connection, migrations: Path, newest: str) -> None:
    if connection.dialect.name == "postgresql":
        driver_of(connection).begin_migration()
    if _is_newest(connection, newest):
        return
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, newest)


def _drop(connection: Connection) -> None:
    """Close without a word to the server, which may be away, and without a COMMIT or ROLLBACK: closing rolls back."""
    if not connection.invalidated:
        connection.invalidate()
    connection.close()
