"""Opening, migrating and losing a database: SQLite and PostgreSQL, one process and ten."""

import fcntl
import itertools
import os
import re
import select
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import psycopg
import pytest
import sqlalchemy

from storage.database import MAX_CONNECTIONS, MIGRATIONS, SYNC_SECONDS, Database, connect
from storage.disk import DiskStore
from storage.errors import DatabaseUnavailableError, SchemaError
from storage.ledger import Ledger, insert_in_transaction
from storage.models import metadata
from storage.statements import driver_of
from tests import pushing
from tests.conftest import eventually
from tests.prepared import Talking
from wechat.messages import parse_message

pytestmark = pytest.mark.xdist_group("waits-1")

ROOT = Path(__file__).parent.parent
NEWEST = max(path.name[:4] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))

NEXT_REVISION = '''
"""A later version's schema."""

import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "NEWEST"


def upgrade():
    op.add_column("messages", sa.Column("mood", sa.Text, nullable=False, server_default="fine"))
'''

CONNECT = """
import sys, warnings
warnings.simplefilter("error")
import alembic.command, storage.database
print("ready", flush=True)
sys.stdin.readline()
database = storage.database.connect(sys.argv[1])
database.check(wait=30)
print("done", flush=True)
"""

INSERT = (
    "INSERT INTO messages (appid, sender, message_key, msg_type, create_time, received_at, xml) "
    "VALUES ('wx1', 'fan', 'm:1', 'text', 1, 1.0, '<xml/>')"
)


def later_migrations(folder):
    shutil.copytree(MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / "9999_mood.py").write_text(NEXT_REVISION.replace("NEWEST", NEWEST))
    return folder


def rows(database, sql):
    return [tuple(row) for row in database.run(lambda connection: connection.exec_driver_sql(sql).all())]


def execute(database, sql, **options):
    database.run(lambda connection: connection.exec_driver_sql(sql), **options)


@pytest.fixture
def opened():
    """connect(), with the closing done at the end."""
    databases = []

    def open_one(*arguments, **options):
        databases.append(connect(*arguments, **options))
        return databases[-1]

    yield open_one
    for database in databases:
        database.close()


class TestConnect:
    def test_makes_the_schema_of_the_models(self, empty_url, opened):
        from alembic.autogenerate import compare_metadata
        from alembic.migration import MigrationContext

        database = opened(empty_url)
        difference = database.run(
            lambda connection: compare_metadata(MigrationContext.configure(connection), metadata)
        )
        assert difference == []
        assert rows(database, "SELECT version_num FROM alembic_version") == [(NEWEST,)]

    def test_again_does_not_even_import_alembic(self, database_url):
        code = (
            "import sys; from storage.database import connect; connect(sys.argv[1]).close(); "
            "sys.exit('alembic' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code, database_url], cwd=ROOT).returncode == 0

    def test_ten_processes_at_once(self, empty_url):
        processes = [Talking([sys.executable, "-c", CONNECT, empty_url], os.environ) for _ in range(10)]
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            assert process.communicate()[0] == "done\n"
            assert process.returncode == 0

    def test_the_next_version_migrates_with_the_rows(self, empty_url, opened, tmp_path):
        execute(opened(empty_url), INSERT)
        later = opened(empty_url, migrations=later_migrations(tmp_path / "100% later"))
        assert rows(later, "SELECT sender, message_key, mood FROM messages") == [("fan", "m:1", "fine")]

    def test_a_migration_may_take_longer_than_a_statement(self, postgresql, opened, tmp_path):
        url = postgresql.new()
        opened(url)
        with postgresql.connection() as server:
            server.execute(
                f"ALTER DATABASE {url.partition('?')[0].rpartition('/')[2]} SET statement_timeout = 200"
            )
        folder = later_migrations(tmp_path / "later")
        with (folder / "versions" / "9999_mood.py").open("a") as file:
            file.write("    op.execute('SELECT pg_sleep(0.5)')\n")
        connect(url, migrations=folder, wait=1.0).close()
        postgresql.drop(url)

    def test_a_migration_that_fails_changes_nothing(self, empty_url, opened, tmp_path):
        database = opened(empty_url)
        folder = later_migrations(tmp_path / "later")
        with (folder / "versions" / "9999_mood.py").open("a") as file:
            file.write("    raise RuntimeError('half way')\n")
        with pytest.raises(RuntimeError, match="half way"):
            opened(empty_url, migrations=folder)
        columns = database.run(lambda connection: sqlalchemy.inspect(connection).get_columns("messages"))
        assert "mood" not in {column["name"] for column in columns}
        assert rows(opened(empty_url), "SELECT version_num FROM alembic_version") == [(NEWEST,)]

    def test_refuses_a_newer_schema(self, empty_url, opened, tmp_path):
        opened(empty_url, migrations=later_migrations(tmp_path / "later"))
        with pytest.raises(SchemaError, match=r"newer version .*schema 9999.*DATABASE_URL"):
            opened(empty_url)

    @pytest.mark.parametrize(
        "url",
        [
            "mysql://u:hush@h/d",
            "sqlite://",
            "sqlite:///:memory:",
            "no url hush",
            "postgresql//u:hush@h",
            "postgresql://u:hush@h:port/d",
            "postgresql://u:hush@h:1,h:port/d",
        ],
    )
    def test_refuses_other_urls_without_showing_them(self, url):
        with pytest.raises(ValueError, match="DATABASE_URL") as caught:
            connect(url)
        assert "hush" not in str(caught.value)
        assert caught.value.__context__ is None

    def test_refuses_an_old_sqlite(self, monkeypatch, tmp_path):
        monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
        with pytest.raises(SchemaError, match=r"3\.35 or newer"):
            connect(f"sqlite:///{tmp_path}/bot.db")

    def test_postgresql_with_a_driver_in_the_url(self, postgresql_url, opened):
        opened(postgresql_url.replace("postgresql://", "postgresql+psycopg://")).check()

    def test_of_several_servers_takes_one_that_is_there(self, silent_proxy, opened):
        opened(silent_proxy.url.replace("@127.0.0.1", "@127.0.0.1:1,127.0.0.1")).check()

    @pytest.mark.parametrize("others", ["", "127.0.0.1:1,"], ids=["alone", "one of several"])
    def test_takes_a_folder_of_a_socket(self, postgresql, postgresql_url, opened, others):
        name, host = urlsplit(postgresql_url).path, quote(postgresql.host, safe="")
        opened(f"postgresql://postgres@{others}{host}{name}").check()

    def test_names_each_of_several_servers_that_are_away(self):
        with pytest.raises(DatabaseUnavailableError, match=r"port 1 .*port 2 .*DATABASE_URL") as caught:
            connect("postgresql://bot:hush@127.0.0.1:1,127.0.0.1:2/bot", wait=0.1)
        assert "hush" not in str(caught.value)

    @pytest.mark.parametrize("servers", ["127.0.0.1:1", "127.0.0.1:1,127.0.0.1:2"])
    def test_names_an_option_that_postgresql_does_not_know(self, servers):
        with pytest.raises(DatabaseUnavailableError, match=r'"sslmod".*DATABASE_URL') as caught:
            connect(f"postgresql://bot:hush@{servers}/bot?sslmod=require", wait=0.1)
        assert "hush" not in str(caught.value)

    @pytest.mark.parametrize("name", ["db..example.com", "a" * 64], ids=["two dots", "too long"])
    def test_says_that_a_name_is_no_hosts(self, name):
        with pytest.raises(DatabaseUnavailableError, match=r"host .*DATABASE_URL") as caught:
            connect(f"postgresql://bot:hush@{name}/bot", wait=0.1)
        assert "hush" not in str(caught.value)

    def test_shows_nothing_of_a_password_with_a_comma(self):
        with pytest.raises(DatabaseUnavailableError, match="port 1 ") as caught:
            connect("postgresql://bot:hush,hush/x@127.0.0.1:1/bot", wait=0.1)
        assert "hush" not in str(caught.value)

    @pytest.mark.parametrize("right", ["CREATE", "USAGE"])
    def test_says_that_a_user_may_make_no_tables(self, postgresql, opened, right):
        """As since PostgreSQL 15 any user but the database's owner; once the right is there all is well."""
        url = postgresql.new()
        with (
            closing(postgresql.connection()) as server,
            closing(psycopg.connect(url, autocommit=True)) as there,
        ):
            server.execute("CREATE ROLE guest LOGIN")
            there.execute(f"REVOKE {right} ON SCHEMA public FROM public")
            as_guest = url.replace("postgres:@", "guest@")
            with pytest.raises(DatabaseUnavailableError, match="may the user of DATABASE_URL make and use"):
                connect(as_guest, wait=0.1)
            there.execute("GRANT ALL ON SCHEMA public TO guest")
            opened(as_guest).check()
            server.execute("ALTER ROLE guest SET default_transaction_read_only = on")
            with pytest.raises(
                DatabaseUnavailableError, match="a standby, or has its user default_transaction_read"
            ):
                opened(as_guest).check(wait=0.1)
            postgresql.drop(url)
            server.execute("DROP ROLE guest")

    @pytest.mark.parametrize("encoding", ["UTF8", "SQL_ASCII"])
    def test_keeps_any_character_whatever_encoding_the_client_is_told(
        self, postgresql, opened, monkeypatch, encoding
    ):
        monkeypatch.setenv("PGCLIENTENCODING", "SQL_ASCII")
        url = postgresql.new(encoding)
        database = opened(url)
        execute(database, INSERT.replace("fan", "爱丽丝 \N{GRINNING FACE}"))
        assert rows(database, "SELECT sender FROM messages") == [("爱丽丝 \N{GRINNING FACE}",)]
        postgresql.drop(url)

    @pytest.mark.parametrize("encoding", ["LATIN1", "EUC_CN"])
    def test_makes_no_schema_where_characters_are_missing(self, postgresql, encoding):
        url = postgresql.new(encoding)
        with pytest.raises(SchemaError, match=rf"encoding is {encoding}.*UTF8.*DATABASE_URL"):
            connect(url)
        postgresql.drop(url)

    def test_waits_for_a_server_and_then_says_so(self):
        with pytest.raises(DatabaseUnavailableError, match="DATABASE_URL") as caught:
            connect("postgresql://bot:hush@127.0.0.1:1/bot", wait=0.1)
        assert "hush" not in str(caught.value)
        assert caught.value.__context__ is None


class TestSqliteFile:
    def test_belongs_to_its_owner_alone(self, tmp_path, opened):
        old = os.umask(0)
        try:
            database = opened(f"sqlite:///{tmp_path}/a/b/bot.db")
            execute(database, INSERT)
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a/b").iterdir()}
            folders = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b")}
        finally:
            os.umask(old)
        assert set(modes) == {"bot.db", "bot.db-wal", "bot.db-shm", "bot.db-open", "bot.db-lock"}
        assert set(modes.values()) == {0o600}
        assert folders == {0o700}

    def test_is_closed_to_others_when_it_was_open(self, tmp_path, opened):
        first = opened(f"sqlite:///{tmp_path}/bot.db")
        for path in tmp_path.iterdir():
            path.chmod(0o644)
        opened(f"sqlite:///{tmp_path}/bot.db")
        assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
        execute(first, INSERT)

    def test_is_in_wal_mode_also_after_a_copy(self, tmp_path, opened):
        first = opened(f"sqlite:///{tmp_path}/bot.db")
        execute(first, f"VACUUM INTO '{tmp_path}/copy.db'")
        assert rows(opened(f"sqlite:///{tmp_path}/copy.db"), "PRAGMA journal_mode") == [("wal",)]

    @pytest.mark.parametrize(("sync", "value"), [("full", 2), ("normal", 1)])
    def test_syncs_as_set(self, tmp_path, opened, sync, value):
        database = opened(f"sqlite:///{tmp_path}/bot.db", sync=sync)
        assert rows(database, "PRAGMA synchronous") == [(value,)]

    def test_that_is_none(self, tmp_path):
        (tmp_path / "bot.db").write_bytes(b"no database, whatever its name says" * 100)
        with pytest.raises(DatabaseUnavailableError, match="not a SQLite database"):
            connect(f"sqlite:///{tmp_path}/bot.db", wait=0.0)


class TestRun:
    def test_waits_for_the_lock_and_gives_up_when_told(self, tmp_path, opened):
        database = opened(f"sqlite:///{tmp_path}/bot.db")
        other = sqlite3.connect(tmp_path / "bot.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        with pytest.raises(DatabaseUnavailableError, match="write lock") as caught:
            execute(database, INSERT, wait=0.3)
        assert 0.25 < time.monotonic() - started < 3
        assert caught.value.__context__ is None
        with pytest.raises(DatabaseUnavailableError):
            database.check(wait=0.0)
        other.execute("COMMIT")
        other.close()
        execute(database, INSERT, wait=0.3)

    def test_each_that_gives_up_says_why(self, tmp_path, opened):
        database = opened(f"sqlite:///{tmp_path}/bot.db")

        def reason(_):
            with pytest.raises(DatabaseUnavailableError) as caught:
                database.check(wait=0.5)
            return str(caught.value)

        with closing(sqlite3.connect(tmp_path / "bot.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with ThreadPoolExecutor(8) as threads:
                reasons = list(threads.map(reason, range(8)))
        assert ["another process holds the write lock" in said for said in reasons] == [True] * 8

    def test_goes_on_when_the_lock_is_given_back(self, tmp_path, opened):
        database = opened(f"sqlite:///{tmp_path}/bot.db")
        other = sqlite3.connect(tmp_path / "bot.db", isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        threading.Timer(0.3, other.execute, ["COMMIT"]).start()
        execute(database, INSERT)
        other.close()

    def test_goes_on_when_the_disk_can_be_written_again(self, tmp_path, opened):
        database = opened(f"sqlite:///{tmp_path}/bot.db")
        pages = rows(database, "PRAGMA page_count")[0][0]
        execute(database, f"PRAGMA max_page_count = {pages}")
        big = INSERT.replace("'<xml/>'", "zeroblob(1000000)")
        # The limit is the connection's own: the repeat, on a new one, has none.
        execute(database, big, wait=1.0)
        assert rows(database, "SELECT count(*) FROM messages") == [(1,)]

    def test_survives_a_crash_of_postgresql(self, postgresql, postgresql_url, opened):
        database = opened(postgresql_url)
        seven = threading.Barrier(7)

        def together(connection):
            seven.wait()
            return connection.exec_driver_sql("SELECT 1").scalar()

        threads = [threading.Thread(target=database.run, args=(together,)) for _ in range(7)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        postgresql.crash()
        with pytest.raises(DatabaseUnavailableError, match="PostgreSQL") as caught:
            execute(database, INSERT, wait=0.5)
        assert caught.value.__context__ is None
        starter = threading.Timer(0.3, postgresql.start)
        starter.start()
        execute(database, INSERT, wait=20)
        starter.join()
        postgresql.crash()
        postgresql.start()
        assert rows(database, "SELECT count(*) FROM messages") == [(1,)]

    def test_postgresql_that_may_only_be_read(self, postgresql_url, opened):
        database = opened(postgresql_url)
        execute(database, "SET default_transaction_read_only = on")
        # That was the connection's own setting: the repeat, on a new one, is let through.
        execute(database, INSERT)
        assert rows(database, "SELECT count(*) FROM messages") == [(1,)]

    def test_postgresql_behind_a_pooler_that_forgets_prepared_statements(self, postgresql_url, opened):
        """As one in transaction mode does. The driver prepares what is run often."""
        database = opened(postgresql_url)
        for _ in range(10):
            assert rows(database, "SELECT count(*) FROM messages") == [(0,)]
            execute(database, "DISCARD ALL")
        with pytest.raises(DatabaseUnavailableError, match=r"does not exist: .*session mode"):
            execute(database, "EXECUTE of_another", wait=0.1)

    def test_postgresql_whose_tables_are_away_for_a_while(self, postgresql_url, opened):
        """As in the middle of `pg_restore --clean`."""
        database = opened(postgresql_url)
        execute(database, "ALTER TABLE messages RENAME TO others")
        with pytest.raises(DatabaseUnavailableError, match=r'"messages" does not exist: .*restore'):
            execute(database, INSERT, wait=0.1)
        execute(database, "ALTER TABLE others RENAME TO messages")
        execute(database, INSERT)

    @pytest.mark.parametrize("code", ["XX001", "XX002"])
    def test_postgresql_with_a_damaged_table_or_index(self, postgresql_url, opened, code):
        damaged = f"DO $$ BEGIN RAISE EXCEPTION 'invalid page' USING ERRCODE = '{code}'; END $$"
        with pytest.raises(DatabaseUnavailableError, match="invalid page: stop all processes and restore"):
            execute(opened(postgresql_url), damaged, wait=0.1)

    @pytest.mark.parametrize("limit", ["idle_in_transaction_session_timeout", "transaction_timeout"])
    def test_postgresql_that_ends_a_transaction_for_its_time(self, postgresql_url, opened, limit):
        """As it does when this process was suspended in the middle of one: it is run again."""
        database, ended = opened(postgresql_url), []

        def operation(connection):
            if not ended:
                connection.exec_driver_sql(f"SET {limit} = '1ms'")
                ended.append(
                    select.select([driver_of(connection)], [], [], 10)[0]
                )  # until the server says so
            return connection.exec_driver_sql("SELECT 1").scalar()

        assert database.transact(operation) == 1

    def test_postgresql_that_makes_an_index_anew(self, postgresql_url, opened):
        """REINDEX CONCURRENTLY, while two processes write the same row: it is run again, and finds the other's."""
        violated = "DO $$ BEGIN RAISE EXCEPTION 'duplicate key' USING ERRCODE = '23505'; END $$"
        statements = iter([violated, "SELECT 1"])
        database = opened(postgresql_url)
        assert database.write(lambda one: one.exec_driver_sql(next(statements)).scalar()) == 1

    def test_postgresql_whose_row_another_process_left_locked(self, postgresql_url, opened):
        """As a machine does that is suspended or lost in the middle of a transaction: it holds up no other one."""
        ours, stopped = opened(postgresql_url), opened(postgresql_url)
        message, answers = parse_message(pushing.text(1).encode()), []

        def operation(connection):
            recorded, _ = insert_in_transaction(Ledger(stopped, "wx1"), connection, message, b"theirs", 1.0)
            if not answers:
                answers.append(Ledger(ours, "wx1").record(message, b"ours", 1.0).reply)
            return recorded.reply

        assert stopped.transact(operation) == b"ours"
        assert answers == [b"ours"]

    def test_postgresql_locked_by_another(self, postgresql_url, opened):
        one, other = opened(postgresql_url), opened(postgresql_url)

        def locked(connection):
            connection.exec_driver_sql("LOCK TABLE messages")
            execute(other, "SET lock_timeout = '50ms'")
            with pytest.raises(DatabaseUnavailableError, match="lock timeout: another session holds"):
                execute(other, INSERT, wait=0.0)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("storage.postgresql.SETUP", "SET lock_timeout = '50ms'")
            one.transact(locked)

    def test_postgresql_whose_statements_may_take_too_little_time(self, postgresql_url, opened):
        slow = "SET statement_timeout = '1ms'; SELECT pg_sleep(10)"
        with pytest.raises(DatabaseUnavailableError, match=r"timeout: is a statement_timeout too short"):
            execute(opened(postgresql_url), slow, wait=0.0)

    def test_other_errors_pass_through_without_the_values(self, database):
        statement = sqlalchemy.text("SELECT :secret FROM messages WHERE nothing_like_it")
        with pytest.raises(sqlalchemy.exc.DBAPIError) as caught:
            database.run(lambda connection: connection.execute(statement, {"secret": "hush"}))
        assert "hush" not in str(caught.value)
        database.check()

    def test_a_transaction_is_kept_whole_or_not_at_all(self, database):
        def half(connection):
            connection.exec_driver_sql(INSERT)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            database.transact(half)
        assert rows(database, "SELECT count(*) FROM messages") == [(0,)]

    def test_a_lost_connection_to_nobody_stays_lost_only_once(self, database):
        database.check()
        database.close()
        database.close()
        database.check()


def contents(database):
    """All rows, and which id comes next."""
    of = {name: rows(database, f"SELECT * FROM {name}") for name in metadata.tables}
    return of, rows(database, "SELECT sequencename, last_value FROM pg_sequences")


def test_a_database_of_the_tests_that_is_used_again_is_as_a_new_one(postgresql, opened):
    new = postgresql.new()
    url = postgresql.new_migrated()
    used = opened(url)
    execute(used, INSERT)
    for one_row in ("id_reserve SET upto", "purge_index_upto SET id"):
        execute(used, f"UPDATE {one_row} = 7")
    assert contents(used) != contents(opened(new))
    postgresql.give_back(url)
    assert postgresql.new_migrated() == url
    assert contents(used) == contents(opened(new))
    postgresql.give_back(url)
    postgresql.drop(new)


def test_a_burst_takes_no_more_connections_than_it_may(postgresql_url):
    database = connect(postgresql_url)
    count = sqlalchemy.text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")

    def one():
        database.run(lambda connection: connection.exec_driver_sql("SELECT pg_sleep(0.05)"))
        seen.append(database.run(lambda connection: connection.execute(count).scalar_one()))

    seen = []
    threads = [threading.Thread(target=one) for _ in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    database.close()
    assert len(seen) == 60
    assert 1 < max(seen) <= MAX_CONNECTIONS


def test_the_log_begins_anew_while_two_always_write(tmp_path):
    url = f"sqlite:///{tmp_path}/bot.db"
    row = INSERT.replace("'<xml/>'", "zeroblob(1000)").replace("'m:1'", "hex(randomblob(8))")

    def writes(database):
        for _ in range(5000):
            database.write(lambda connection: connection.exec_driver_sql(row))
        return database

    connect(url, sync="normal").close()
    with ThreadPoolExecutor(2) as pool:
        databases = list(pool.map(writes, [connect(url, sync="normal") for _ in range(2)]))
    assert rows(databases[0], "SELECT count(*) FROM messages") == [(10_000,)]
    assert (tmp_path / "bot.db-wal").stat().st_size < 40_000_000
    for database in databases:
        database.close()


def test_waiting_for_a_foreign_lock_delays_no_deadline_of_others(tmp_path):
    url = f"sqlite:///{tmp_path}/bot.db"
    patient, impatient = connect(url), connect(url)
    with closing(sqlite3.connect(tmp_path / "bot.db", isolation_level=None)) as foreign:
        foreign.execute("BEGIN IMMEDIATE")
        with ThreadPoolExecutor(1) as pool:
            waits = pool.submit(patient.check, wait=20)
            started = time.monotonic()
            with pytest.raises(DatabaseUnavailableError, match="another process holds the write lock"):
                impatient.check(wait=0.3)
            assert time.monotonic() - started < 5
            foreign.execute("ROLLBACK")
            waits.result(20)
    patient.close()
    impatient.close()


def test_a_stopped_process_that_has_the_turn_does_not_hold_up_others_for_long(tmp_path):
    database = connect(f"sqlite:///{tmp_path}/bot.db")
    stopped = os.open(tmp_path / "bot.db-lock", os.O_RDONLY)
    fcntl.flock(stopped, fcntl.LOCK_EX)
    started = time.monotonic()
    database.check()
    assert time.monotonic() - started < 4
    with pytest.raises(DatabaseUnavailableError, match=r"another process holds bot\.db-lock"):
        connect(f"sqlite:///{tmp_path}/bot.db", wait=0.1)
    os.close(stopped)  # as it is when a process dies
    connect(f"sqlite:///{tmp_path}/bot.db").close()
    database.close()


def test_a_stopped_process_in_the_middle_of_a_commit_is_waited_for_no_longer_than_that(tmp_path):
    database = connect(f"sqlite:///{tmp_path}/bot.db")
    stopped = os.open(tmp_path / "bot.db-lock", os.O_RDONLY)
    fcntl.flock(stopped, fcntl.LOCK_EX)
    with closing(sqlite3.connect(tmp_path / "bot.db", isolation_level=None)) as foreign:
        foreign.execute("BEGIN IMMEDIATE")
        with ThreadPoolExecutor(20) as pool:
            started = time.monotonic()
            pushes = [pool.submit(database.check, wait=0.5) for _ in range(20)]
            for push in pushes:
                with pytest.raises(DatabaseUnavailableError):
                    push.result(10)
            assert time.monotonic() - started < 8
    os.close(stopped)
    database.check()
    database.close()


def test_a_lock_on_the_data_folder_is_of_no_use_to_others(tmp_path):
    folder = tmp_path / "data"
    connect(f"sqlite:///{folder}/bot.db").close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700, "else any user of the machine could lock it"
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    connect(f"sqlite:///{folder}/bot.db", wait=0.5).close()
    os.close(handle)


class TestAFileThatIsTakenAway:
    @pytest.fixture
    def taken(self, tmp_path, caplog):
        database = connect(f"sqlite:///{tmp_path}/bot.db")
        yield database, tmp_path / "bot.db"
        lines = [line for line in caplog.get_records("call") if line.levelname == "ERROR"]
        assert [line.message for line in lines] == [
            "the database file was taken away; nothing is answered any more"
        ], "one loud line"
        database.close()

    def noticed(self, database, why):
        def refused():
            try:
                database.check(wait=0.0)
            except DatabaseUnavailableError as error:
                return str(error)

        assert re.search(rf"SQLite: the file {why}.*start again \(DATABASE_URL\)", eventually(refused, 3))
        for operation in (database.run, database.write, database.transact):
            with pytest.raises(DatabaseUnavailableError, match=why):
                operation(lambda connection: connection.exec_driver_sql("SELECT 1").scalar())

    def test_deleted(self, taken):
        database, path = taken
        path.unlink()
        self.noticed(database, "is gone")
        assert not path.exists(), "an empty one would hide that all is lost"

    def test_replaced(self, taken, tmp_path):
        database, path = taken
        connect(f"sqlite:///{tmp_path}/other.db").close()
        (tmp_path / "other.db").rename(path)
        self.noticed(database, "is another one than at the start")

    @pytest.mark.parametrize("end", ["wal", "shm"])
    def test_without_its_log(self, taken, end):
        """Other processes would make a new one, and none would see what the others write."""
        database, path = taken
        database.write(lambda connection: connection.exec_driver_sql(INSERT))
        path.with_name(f"bot.db-{end}").unlink()
        self.noticed(database, "has lost its -wal or -shm")
        database.close()
        after = connect(f"sqlite:///{path}")
        assert rows(after, "SELECT count(*) FROM messages") == [(1,)]
        after.close()

    def test_without_its_log_while_its_connection_is_in_use(self, taken):
        """Then the next one is a new one, and would begin a log of its own."""
        database, path = taken
        database.write(lambda connection: connection.exec_driver_sql(INSERT))

        def meanwhile(_):
            path.with_name("bot.db-wal").unlink()
            self.noticed(database, "has lost its -wal or -shm")

        database.run(meanwhile)
        assert not path.with_name("bot.db-wal").exists()

    def test_its_log_may_go_when_nobody_has_it_open(self, tmp_path, caplog):
        database = connect(f"sqlite:///{tmp_path}/bot.db")
        for _ in range(3):
            database.check()
            database.close()
            assert not (tmp_path / "bot.db-wal").exists()
        assert "taken away" not in caplog.text

    def test_and_put_back(self, taken, tmp_path, caplog):
        database, path = taken
        database.write(lambda connection: connection.exec_driver_sql(INSERT))
        path.rename(tmp_path / "away.db")
        self.noticed(database, "is gone")
        (tmp_path / "away.db").rename(path)
        database.check(wait=0.0)
        assert rows(database, "SELECT count(*) FROM messages") == [(1,)]
        assert "the database file is back" in caplog.messages


class TestFilesOfAnotherUser:
    def test_restored_by_root(self, tmp_path, opened):
        if os.geteuid() == 0:
            tmp_path.chmod(0o755)
            for parent in tmp_path.parents[:3]:  # pytest's own folders; with xdist one more
                parent.chmod(parent.stat().st_mode | 0o055)
        url = f"sqlite:///{tmp_path}/data/bot.db"
        connect(url).close()
        (tmp_path / "data/bot.db").chmod(0o000)
        mine = os.geteuid()
        if mine == 0:
            (tmp_path / "data").chmod(0o755)
            os.seteuid(65534)
        try:
            database = Database(url)
            for _ in range(2):  # each push
                with pytest.raises(DatabaseUnavailableError, match=r"SQLite.*DATABASE_URL") as caught:
                    database.check(wait=0.0)
                assert "belongs to root" in str(caught.value) or mine != 0
                assert "being prepared" not in str(caught.value)
        finally:
            os.seteuid(mine)

    @pytest.mark.skipif(os.geteuid() != 0, reason="the folder is closed by making it another user's")
    def test_a_folder_that_was_closed_while_the_bot_ran(self, tmp_path):
        for parent in (tmp_path, *tmp_path.parents[:3]):
            parent.chmod(parent.stat().st_mode | 0o055)
        folder = tmp_path / "data"
        folder.mkdir()
        os.chown(folder, 65534, -1)
        os.seteuid(65534)
        try:
            running, restarted = (Database(f"sqlite:///{folder}/bot.db") for _ in range(2))
            running.check()
            os.seteuid(0)
            os.chown(folder, 0, -1)
            folder.chmod(0o700)
            os.seteuid(65534)

            def refused(ask):
                try:
                    ask(wait=0.0)
                except DatabaseUnavailableError as error:
                    return str(error)

            for ask in (running.check, restarted.check, restarted.is_prepared):
                assert re.search("belongs to root.*chown -R", eventually(partial(refused, ask), 3))
        finally:
            os.seteuid(0)

    @pytest.mark.parametrize("place", ["database", "media", "a picture"])
    def test_root_makes_no_files_where_another_user_works(self, tmp_path, monkeypatch, place):
        folder = tmp_path / "data"
        folder.mkdir()
        if os.geteuid() == 0:
            os.chown(folder, 65534, 65534)
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        write = {
            "database": Database(f"sqlite:///{folder}/bot.db").check,
            "media": DiskStore(folder).check,
            "a picture": lambda: DiskStore(folder).put("a/1", [b"x"], extension=lambda _: "jpg", attempt=1),
        }[place]
        with pytest.raises(
            (DatabaseUnavailableError, PermissionError), match=r"runuser -u \w+ -- flask"
        ) as caught:
            write()
        assert "writable" not in str(caught.value)  # it is, for root
        assert list(folder.iterdir()) == []


def written_to_the_disk(monkeypatch):
    """The paths that are synced from now on."""
    synced, sync = [], os.fsync

    def noted(handle):
        sync(handle)
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")))

    monkeypatch.setattr(os, "fsync", noted)
    return synced


@pytest.mark.parametrize("sync", ["full", "normal"])
def test_new_folders_and_files_are_on_the_disk_before_the_first_answer(tmp_path, monkeypatch, sync):
    synced = written_to_the_disk(monkeypatch)
    connect(f"sqlite:///{tmp_path}/a/b/bot.db", sync=sync).close()
    assert {tmp_path, tmp_path / "a", tmp_path / "a/b"} <= set(synced)
    if sync == "normal":  # else SQLite syncs its log itself
        assert tmp_path / "a/b/bot.db-wal" in synced


def test_normal_has_each_commit_on_the_disk_in_time(tmp_path, monkeypatch):
    database = connect(f"sqlite:///{tmp_path}/bot.db", sync="normal")
    synced = written_to_the_disk(monkeypatch)
    for _ in range(2):
        database.write(lambda connection: connection.exec_driver_sql(INSERT))
        database.write(lambda connection: connection.exec_driver_sql("DELETE FROM messages"))
        written = time.monotonic()
        eventually(lambda: tmp_path / "bot.db-wal" in synced and tmp_path in synced, SYNC_SECONDS + 2)
        assert time.monotonic() - written > SYNC_SECONDS / 2, "one way to the disk for many messages"
        synced.clear()
    database.close()


@pytest.mark.parametrize("fault", [RuntimeError("can't start new thread"), MemoryError()])
def test_normal_has_a_commit_on_the_disk_though_there_is_no_thread_for_it(tmp_path, monkeypatch, fault):
    """Else the message that was kept is not answered, and nothing is brought to the disk in time any more."""
    database = connect(f"sqlite:///{tmp_path}/bot.db", sync="normal")
    synced, start = written_to_the_disk(monkeypatch), threading.Thread.start

    def none_left(thread):
        raise fault

    monkeypatch.setattr(threading.Thread, "start", none_left)
    database.write(lambda connection: connection.exec_driver_sql(INSERT))
    assert tmp_path / "bot.db-wal" in synced
    assert rows(database, "SELECT count(*) FROM messages") == [(1,)]
    monkeypatch.setattr(threading.Thread, "start", start)
    synced.clear()
    database.write(lambda connection: connection.exec_driver_sql("DELETE FROM messages"))
    eventually(lambda: tmp_path / "bot.db-wal" in synced, SYNC_SECONDS + 2)
    database.close()


@pytest.mark.parametrize("then", ["full", "normal"])
def test_an_id_is_never_given_again_after_a_power_cut(tmp_path, then):
    """What `normal` had not synced is lost; what it had is a copy of the files, made at that moment."""

    def record(database, count):
        ledger = Ledger(database, "wx1")
        messages = [parse_message(pushing.text(next(numbers)).encode()) for _ in range(count)]
        return [ledger.record(message, None, 1.0).id for message in messages]

    numbers, given = itertools.count(), []
    for cut in range(3):
        before, after = tmp_path / str(cut), tmp_path / str(cut + 1)
        database = connect(f"sqlite:///{before}/bot.db", sync="normal")
        given += record(database, 3 if cut else 0)
        database.sync()
        shutil.copytree(before, after)
        given += record(database, 700)  # more than a block before the next is reserved, and not on the disk
        database.sync()
        shutil.rmtree(after)
        shutil.copytree(before, after)
        given += record(database, 400)
        database.close()
    database = connect(f"sqlite:///{after}/bot.db", sync=then)
    given += record(database, 3)
    database.close()
    assert len(set(given)) == len(given)
    assert max(given) < 20_000, "and few are left out"


def test_ids_are_left_out_by_no_process_that_joins_others(tmp_path):
    url = f"sqlite:///{tmp_path}/bot.db"
    first = connect(url, sync="normal")
    Ledger(first, "wx1").record(parse_message(pushing.text(1).encode()), None, 1.0)
    second = connect(url, sync="normal")
    message = parse_message(pushing.text(2).encode())
    assert Ledger(second, "wx1").record(message, None, 1.0).id == 2
    first.close()
    second.close()


class Proxy:
    """Stands before a PostgreSQL server, and stops to forward anything while its connections stay."""

    def __init__(self, url):
        folder = parse_qs(urlsplit(url).query)["host"][0]
        self._server = next(str(path) for path in Path(folder).glob(".s.PGSQL.*") if path.suffix != ".lock")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = url.partition("?")[0].replace("@/", f"@127.0.0.1:{self._listener.getsockname()[1]}/")
        self.silent, self.silent_from_now_on = set(), False
        self._pairs = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def fall_silent(self, *, new_ones=False):
        self.silent.update(self._pairs)
        self.silent_from_now_on = new_ones

    def _accept(self):
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._server)
                pair = client, server
                self._pairs.append(pair)
                if self.silent_from_now_on:
                    self.silent.add(pair)
                for ends in (pair, pair[::-1]):
                    threading.Thread(target=self._forward, args=(pair, *ends), daemon=True).start()

    def _forward(self, pair, source, target):
        with suppress(OSError):
            while data := source.recv(65536):
                if pair not in self.silent:
                    target.sendall(data)

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)  # to close it would not end the accept that waits
        self._accepting.join()
        self._listener.close()
        for pair in self._pairs:
            for end in pair:
                end.close()


@pytest.fixture
def silent_proxy(postgresql_url):
    proxy = Proxy(postgresql_url)
    yield proxy
    proxy.close()


def test_a_connection_that_says_nothing_is_given_up_for_another(silent_proxy, opened):
    database = opened(silent_proxy.url)
    for operation in (database.run, database.write, database.transact):
        database.check()
        silent_proxy.fall_silent()
        started = time.monotonic()
        assert operation(lambda c: c.exec_driver_sql("SELECT 1").scalar(), wait=0.2) == 1
        assert 0.2 < time.monotonic() - started < 6


def test_a_server_that_says_nothing_is_waited_for_no_longer_than_that(silent_proxy, opened):
    database = opened(silent_proxy.url)
    silent_proxy.fall_silent(new_ones=True)
    started = time.monotonic()
    with pytest.raises(DatabaseUnavailableError, match="PostgreSQL"):
        database.check(wait=0.2)
    assert time.monotonic() - started < 12
    silent_proxy.silent_from_now_on = False
    database.check()
