"""The shared token row and its lease, on SQLite and on PostgreSQL, over threads and processes."""

import dataclasses
import os
import sys
import threading

import pytest

from storage.database import connect
from storage.models import tokens
from storage.tokens import SqlTokenStore
from tests.databases import APPID
from tests.prepared import Talking
from wechat.access_token import EMPTY, TokenRow

T0 = 1_700_000_000.0

ROW = TokenRow(
    value="75_a-token",
    expires_at=T0 + 7200,
    fetched_at=T0,
    retry_at=T0 + 1,
    failures=2,
    reason="40164: add 192.0.2.1 to the whitelist",
    code=40164,
    forced_at=T0 - 60,
    forced_day=19675,
    forced_count=3,
)


@pytest.fixture
def store(database):
    return SqlTokenStore(database, APPID)


def test_the_table_mirrors_the_row():
    names = [field.name for field in dataclasses.fields(TokenRow)]
    assert [column.name for column in tokens.c] == ["appid", *names, "lease_holder", "lease_until"]


def test_empty_at_first(store):
    assert store.load() == EMPTY


def test_saved_by_the_holder_and_seen_by_all(store, database_url):
    assert store.lease("one", T0, 30)
    assert store.load() == EMPTY
    assert store.save("one", ROW, T0 + 29)
    elsewhere = connect(database_url)
    assert SqlTokenStore(elsewhere, APPID).load() == ROW
    assert SqlTokenStore(elsewhere, "wxother").load() == EMPTY
    elsewhere.close()
    later = dataclasses.replace(ROW, value="75_newer", reason=None, code=None)
    assert store.save("one", later, T0 + 29)
    assert store.load() == later


def test_one_holder_at_a_time(store):
    assert store.lease("one", T0, 30)
    assert not store.lease("other", T0 + 29.9, 30)
    assert store.lease("one", T0 + 29.9, 30)
    assert not store.lease("other", T0 + 30, 30)
    assert store.lease("other", T0 + 60, 30)
    assert not store.save("one", ROW, T0 + 60)
    assert store.load() == EMPTY


def test_a_lease_of_a_clock_that_ran_ahead_keeps_nobody_out(store):
    assert store.lease("one", T0 + 86400, 30)
    assert store.lease("other", T0, 30)
    assert not store.lease("one", T0 + 29, 30)


def test_nobody_saves_without_the_lease(store):
    assert not store.save("one", ROW, T0)
    store.lease("one", T0, 30)
    assert not store.save("one", ROW, T0 + 30)
    assert store.load() == EMPTY


def test_released_by_its_holder_only(store):
    store.lease("one", T0, 30)
    store.release("other")
    assert not store.lease("other", T0, 30)
    store.release("one")
    assert not store.save("one", ROW, T0)
    assert store.lease("other", T0, 30)


def test_a_lease_keeps_the_row(store):
    store.lease("one", T0, 30)
    store.save("one", ROW, T0)
    store.release("one")
    assert store.lease("other", T0, 30)
    assert store.load() == ROW


def test_accounts_have_their_own_lease(store, database):
    assert store.lease("one", T0, 30)
    assert SqlTokenStore(database, "wxother").lease("other", T0, 30)


def test_of_many_threads_one_gets_it(store):
    barrier = threading.Barrier(8)
    got = []

    def ask(name):
        barrier.wait()
        got.append(store.lease(name, T0, 30))

    threads = [threading.Thread(target=ask, args=(f"holder-{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 7 + [True]


ASK = """
import sys
from storage.database import connect
from storage.tokens import SqlTokenStore
store = SqlTokenStore(connect(sys.argv[1]), sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
print(store.lease(sys.argv[3], float(sys.argv[4]), 30), flush=True)
"""


def test_of_many_processes_one_gets_it(database_url):
    processes = [
        Talking([sys.executable, "-c", ASK, database_url, APPID, f"holder-{number}", str(T0)], os.environ)
        for number in range(4)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert sorted(process.communicate()[0] for process in processes) == ["False\n"] * 3 + ["True\n"]


def test_fetches_of_all_processes_are_counted_by_result(database, database_url):
    ours, theirs = (SqlTokenStore(each, APPID) for each in (database, connect(database_url)))
    for store, result in ((ours, "ok"), (theirs, "ok"), (theirs, "40164")):
        store.count_fetch(result)
    assert ours.fetches() == {"ok": 2, "40164": 1}
    assert SqlTokenStore(database, "wxother").fetches() == {}
