"""A SQLite database as a file: made, locked, brought to the disk, and watched for being taken away.

Knows the file, the lock files beside it, and SQLite's set-up. A process that uses the database holds `-open`, the one
that may write holds `-lock`. Only their owner can open them, so that no other user of the machine can hold a lock. Must
not know tables.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from storage.errors import DatabaseUnavailableError
from storage.folders import belongs_to_another, make_folder, refuse_root, sync_folder, sync_parents

log = logging.getLogger(__name__)

TURN_SECONDS = 1.0
"""How long a process waits for its turn to write. Then it goes on without: the holder may be suspended."""

LOOK_SECONDS = 1.0
"""Between checks that the file is still there."""

# What SQLite says when the file cannot be used now: BUSY LOCKED READONLY IOERR CORRUPT FULL CANTOPEN PROTOCOL NOTADB
# (https://sqlite.org/rescode.html), and what to do about it.
_UNAVAILABLE = {
    sqlite3.SQLITE_BUSY: "another process holds the write lock",
    sqlite3.SQLITE_LOCKED: "another process holds the write lock",
    sqlite3.SQLITE_IOERR: "look at the disk",
    sqlite3.SQLITE_CORRUPT: "stop all processes and restore the file from a backup",
    sqlite3.SQLITE_FULL: "free some disk space",
    sqlite3.SQLITE_PROTOCOL: "another process holds the write lock",
    sqlite3.SQLITE_NOTADB: "the file is not a SQLite database: name another one",
}
# An owner or a mode keeps this process out.
_CLOSED = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}

_TURN_PAUSE = 0.0005  # seconds between two tries to get the turn
_LOCK_PAUSE = 0.02
_FILE_TIME_SECONDS = 0.1
_CHECKPOINT_MILLISECONDS = 100  # for running reads to finish


class _Connection(sqlite3.Connection):
    wal_files: tuple[object, ...] = ()
    """The -wal and the -shm that it has open. SQLite leaves them alone until the last connection is closed."""

    def close(self) -> None:
        self.wal_files = ()
        super().close()


class SqliteFile:
    """The file of one database, as one process uses it."""

    def __init__(self, path: Path, sync: Literal["full", "normal"]) -> None:
        self._path, self._sync = path, sync
        self._lock: int | None = None
        self._open: int | None = None
        self._identity: tuple[int, int] | None = None
        self._next_look = 0.0
        self._connections: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._adding = threading.Lock()
        self._wal_files: set[tuple[object, ...]] = set()
        self._gone = False
        self._synced: tuple[int, int] | None = None  # size and time of the log as it was then

    def make(self) -> None:
        """Make the file before SQLite does, with the mode that SQLite then gives the files beside it too.

        Raises DatabaseUnavailableError that says what to do.
        """
        try:
            refuse_root(self._path.parent)
        except PermissionError as error:  # its own way out is the only one
            raise DatabaseUnavailableError(f"SQLite: {error.strerror} (DATABASE_URL)") from None
        try:
            make_folder(self._path.parent)
            try:
                os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            except FileExistsError:
                self._make_private()
            if self._lock is None:
                self._lock = self._open_beside("lock")
            if self._open is None:
                self._open = self._open_beside("open")
            self._identity = self._now_there()
            self._gone = False
        except OSError as error:
            raise DatabaseUnavailableError(self.explain(f"SQLite: {error}")) from None

    def is_there(self) -> bool:
        """Whether there is a file. Nothing is made or changed. Raises DatabaseUnavailableError."""
        self._identity = self._now_there()
        return self._identity is not None

    def _make_private(self) -> None:
        # The file is never opened here: closing it would drop the locks of connections that this process already has.
        for name in (self._path, *(Path(f"{self._path}-{end}") for end in ("wal", "shm", "lock", "open"))):
            if name.exists() and stat.S_IMODE(name.stat().st_mode) & 0o077:
                name.chmod(0o600)

    def _open_beside(self, end: str) -> int:
        handle = os.open(f"{self._path}-{end}", os.O_CREAT | os.O_RDWR, 0o600)
        weakref.finalize(self, os.close, handle)
        return handle

    def connect(self) -> _Connection:
        """A connection in autocommit mode. Raises sqlite3.Error, and what `look` raises."""
        self._next_look = 0.0
        self.look()
        connection: _Connection = sqlite3.connect(
            f"file:{quote(os.fsencode(self._path))}?mode=rw",  # never creates it: an empty file would hide the loss
            uri=True,
            isolation_level=None,
            check_same_thread=False,  # one thread at a time, but not always the same
            timeout=0,  # the Database waits
            factory=_Connection,
        )
        try:
            for statement in (
                f"PRAGMA synchronous = {self._sync}",
                "PRAGMA foreign_keys = ON",
                # 64 MB, for large transactions: usually Database makes the checkpoint first.
                "PRAGMA wal_autocheckpoint = 16384",
                # The log shrinks again after a burst.
                "PRAGMA journal_size_limit = 67108864",
            ):
                connection.execute(statement)
            connection.execute("PRAGMA schema_version")  # opens the log
            connection.wal_files = self._wal_files_there()
            with self._adding:
                self._connections.add(connection)
            self._next_look = 0.0
            self.look()
        except BaseException:
            connection.close()
            raise
        return connection

    def look(self) -> None:
        """Raise DatabaseUnavailableError when the file was deleted or cannot be reached, or another one lies in its
        place; or the log that a connection of this process has open. A new connection would begin another log.

        Looks once in LOOK_SECONDS. If the same file comes back, all is well. A running process never uses another
        file: the old file's log, which other processes still write, would be merged into it.
        """
        now = time.monotonic()
        if now < self._next_look:
            return
        if not self._gone:
            with self._adding:
                self._wal_files = {connection.wal_files for connection in self._connections} - {()}
        found = self._now_there()
        if found == self._identity and self._wal_files <= {self._wal_files_there()}:
            self._next_look = now + LOOK_SECONDS
            if self._gone:
                log.warning("the database file is back")
            self._gone = False
            return
        what = "is gone" if found is None else "is another one than at the start"
        if found == self._identity:
            what = "has lost its -wal or -shm"
        reason = f"SQLite: the file {what}: stop all processes, put the right one there, start again (DATABASE_URL)"
        if not self._gone:
            self._gone = True
            log.error(
                "the database file was taken away; nothing is answered any more", extra={"reason": reason}
            )
        raise DatabaseUnavailableError(reason)

    def _now_there(self) -> tuple[int, int] | None:
        try:
            return _identity_of(self._path)
        except OSError as error:  # a folder that this user may not look into
            raise DatabaseUnavailableError(self.explain(f"SQLite: {error}")) from None

    def _wal_files_there(self) -> tuple[object, ...]:
        """Empty before the database is switched to WAL."""
        found = tuple(_identity_of(Path(f"{self._path}-{end}")) for end in ("wal", "shm"))
        return found if any(found) else ()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One process after the other writes. SQLite's own lock stays what protects the file, but has no queue: a
        waiting process has to poll it, and to start its transaction again."""
        assert self._lock is not None
        held = _locked_within(self._lock, TURN_SECONDS, _TURN_PAUSE)
        try:
            yield
        finally:
            if held:
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    @contextmanager
    def alone(self, wait: float) -> Iterator[None]:
        """While one process prepares the database the others wait. SQLite's own locks are not enough: the switch to WAL
        needs the file alone. Raises DatabaseUnavailableError after `wait` seconds."""
        assert self._lock is not None
        if not _locked_within(self._lock, wait, _LOCK_PAUSE):
            raise DatabaseUnavailableError(
                f"SQLite: another process holds {self._path.name}-lock (waited {wait:.1f} s): is it stopped?"
            )
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def open_as_first(self) -> bool:
        """Marks the database as open. Returns whether no other process had it open. Call it while `alone`."""
        assert self._open is not None
        first = _locked(self._open)
        with suppress(BlockingIOError):
            fcntl.flock(self._open, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return first

    def sync(self) -> None:
        """Return when all that was committed would survive a power cut. Raises DatabaseUnavailableError."""
        try:
            # A commit that is no longer in the log is in the file, which SQLite has synced.
            with suppress(FileNotFoundError), open(f"{self._path}-wal", "rb") as wal:
                state = os.fstat(wal.fileno())
                written = state.st_size, state.st_mtime_ns
                if written != self._synced:
                    os.fsync(wal.fileno())
                    sync_folder(self._path.parent)
                    # A file's time moves on in steps: within one, a change would not show.
                    self._synced = written if time.time() - state.st_mtime > _FILE_TIME_SECONDS else None
        except OSError as error:
            raise DatabaseUnavailableError(self.explain(f"SQLite: {error}: look at the disk")) from None

    def sync_folders(self) -> None:
        """Return when the file's name would survive a power cut."""
        sync_parents(self._path)

    def why_unavailable(self, error: BaseException) -> str | None:
        """Why the database cannot be used now; None when the error means something else."""
        if not isinstance(error, sqlite3.Error):
            return None
        # The lowest byte is the kind, the rest says more about it.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _CLOSED:
            return self.explain(f"SQLite: {error}")
        hint = _UNAVAILABLE.get(code)
        return hint and f"SQLite: {error}: {hint} (DATABASE_URL)"

    def explain(self, error: str) -> str:
        """The error, and what to do when it is that the file belongs to another user."""
        whose = belongs_to_another(self._path) or belongs_to_another(self._path.parent)
        hint = whose or "make the file, those beside it (-wal, -shm) and the folder writable"
        return f"{error}: {hint} (DATABASE_URL)"

    def close(self) -> None:
        """Notes that this process no longer has the database open, until the next `make`."""
        if self._open is not None:
            fcntl.flock(self._open, fcntl.LOCK_UN)


def checkpoint(connection: sqlite3.Connection) -> None:
    """Makes a checkpoint: merges the log into the file, and lets the log restart.

    SQLite's own checkpoint lets others read and write meanwhile. Under load the log then never restarts, and once it is
    long enough every commit ends in a checkpoint.
    """
    connection.execute(f"PRAGMA busy_timeout = {_CHECKPOINT_MILLISECONDS}")
    # What a longer read needs stays for the next checkpoint.
    connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
    connection.execute("PRAGMA busy_timeout = 0")


def _identity_of(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _locked_within(descriptor: int, seconds: float, pause: float) -> bool:
    """Whether it is locked now; tried every `pause` seconds."""
    give_up = time.monotonic() + seconds
    while not (held := _locked(descriptor)) and time.monotonic() < give_up:
        time.sleep(pause)  # flock itself waits for ever or not at all
    return held
