"""Fixtures of what is kept: a fresh SQLite file or a fresh PostgreSQL database, and a fresh folder or S3 bucket.

PostgreSQL comes from a wheel and S3 from moto over real HTTP, one of each for a test process, both on this machine
alone and started when the first test asks.
"""

import uuid
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import requests

from storage.database import connect
from storage.disk import DiskStore
from storage.ledger import Ledger
from storage.purge import PurgeRows
from storage.queue import Queue
from storage.s3 import S3Store
from storage.states import MEDIA_STEPS, SEND_STEPS, WORK_STEPS
from tests.postgresql import PostgreSQL

APPID = "wx0123456789abcdef"


@pytest.fixture(scope="session")
def postgresql():
    server = PostgreSQL()
    with server.connection() as connection:
        # A crash of this machine may lose the tests' rows, and no plan may depend on the rows of earlier tests.
        for name in ("fsync", "full_page_writes", "autovacuum"):
            connection.execute(f"ALTER SYSTEM SET {name} = off")
        connection.execute("SELECT pg_reload_conf()")
    yield server
    server.close()


def sqlite_url(path):
    """A DATABASE_URL of a file with its schema; where there is none it is copied, which is quicker than made."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_bytes(_migrated_sqlite())
    return f"sqlite:///{path}"


@pytest.fixture
def sqlite_file_url(tmp_path):
    """The same, of the file bot.db in the test's folder."""
    return sqlite_url(tmp_path / "bot.db")


@cache
def _migrated_sqlite():
    with TemporaryDirectory() as folder:
        path = Path(folder) / "bot.db"
        connect(f"sqlite:///{path}").close()
        return path.read_bytes()


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request, tmp_path):
    """A DATABASE_URL of a database without any tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/data/bot.db"
        return
    server = request.getfixturevalue("postgresql")
    url = server.new()
    yield url
    server.drop(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request, tmp_path):
    """A DATABASE_URL of a database with its schema and no rows."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "data" / "bot.db")
    return request.getfixturevalue("postgresql_url")


@pytest.fixture
def postgresql_url(postgresql):
    """The same, of a PostgreSQL database."""
    url = postgresql.new_migrated()
    yield url
    postgresql.give_back(url)


def refuse_other_steps(database):
    """From now on a SQLite database takes no UPDATE of a state that is not a step of storage.states."""
    for table, column, following in (
        ("messages", "media_state", MEDIA_STEPS),
        ("messages", "send_state", SEND_STEPS),
        ("works", "state", WORK_STEPS),
    ):
        steps = [f"({quoted(old)}, {quoted(new)})" for old, states in following.items() for new in states]
        trigger = f"""
            CREATE TRIGGER steps_of_{table}_{column} BEFORE UPDATE OF {column} ON {table}
            WHEN OLD.{column} IS NOT NEW.{column}
            AND NOT EXISTS (
                SELECT 1 FROM (VALUES {", ".join(steps)}) AS step
                WHERE step.column1 IS OLD.{column} AND step.column2 IS NEW.{column}
            )
            BEGIN SELECT RAISE(ABORT, 'not a step of storage.states'); END
        """
        database.transact(partial(execute, trigger))


def execute(statement, connection):
    connection.exec_driver_sql(statement)


def quoted(state):
    return "NULL" if state is None else f"'{state}'"


@pytest.fixture
def database(database_url):
    database = connect(database_url, sync="normal")
    if database.is_sqlite:
        refuse_other_steps(database)
    yield database
    database.close()


@pytest.fixture
def ledger(database):
    return Ledger(database, APPID)


@pytest.fixture
def queue(database):
    return Queue(database, APPID)


@pytest.fixture
def purge_rows(database):
    return PurgeRows(database, APPID)


@pytest.fixture(scope="session")
def s3_endpoint():
    """The root URL of an S3 server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_settings(monkeypatch, s3_endpoint):
    """boto3's own settings, for this process and those that it starts."""
    settings = {
        "AWS_ENDPOINT_URL_S3": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "AKIATEST",
        "AWS_SECRET_ACCESS_KEY": "a-secret-of-this-test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return settings


@pytest.fixture
def s3_url(s3_settings, s3_endpoint):
    """A MEDIA_STORE: a prefix in a fresh bucket."""
    bucket = f"test-{uuid.uuid4().hex}"
    requests.put(f"{s3_endpoint}/{bucket}", timeout=10).raise_for_status()
    return f"s3://{bucket}/some/prefix"


@pytest.fixture(params=["disk", "s3"])
def store(request, tmp_path):
    """A file store without any files."""
    if request.param == "disk":
        return DiskStore(tmp_path / "media")
    return S3Store(request.getfixturevalue("s3_url"))
