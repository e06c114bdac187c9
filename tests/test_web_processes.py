"""How gunicorn.conf.py runs the web processes: who takes a connection, where a thread runs, how an answer is sent."""

import contextlib
import importlib.util
import os
import socket

import psutil
import pytest
import requests
from gunicorn.config import Config
from gunicorn.glogging import Logger

import cores
from tests.conftest import ACCOUNT, ROOT, eventually
from tests.test_deferred import Slow, verdicts

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: bot\r\n\r\n"


# -- who takes a connection ---------------------------------------------------------------------------------------


@pytest.fixture
def workers(tmp_path, monkeypatch):
    """Two web processes' workers, not forked: each notes the connections that it took."""
    for name, value in {**ACCOUNT, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    spec = importlib.util.spec_from_file_location("gunicorn_conf", ROOT / "gunicorn.conf.py")
    conf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conf)
    config = Config()
    made = [conf.PushWorker(age, os.getpid(), [], None, 30, config, Logger(config)) for age in (1, 2)]
    for worker in made:
        worker.taken = []
        worker.enqueue_req = worker.taken.append
    yield made
    for worker in made:
        worker.tmp.close()
        for connection in worker.taken:
            connection.close()


@pytest.fixture
def listener():
    """A listening socket where somebody waits to be accepted."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        with socket.create_connection(server.getsockname(), timeout=10):
            yield server


@pytest.mark.parametrize("more", [3, 4, 500])
def test_a_process_with_more_connections_leaves_a_new_one_to_one_with_fewer(
    workers, listener, monkeypatch, more
):
    busy, idle = workers
    busy.nr_conns = more
    pauses = []

    def meanwhile(seconds):
        pauses.append(seconds)
        idle.accept(listener)

    monkeypatch.setattr("time.sleep", meanwhile)
    busy.accept(listener)
    assert (len(busy.taken), len(idle.taken)) == (0, 1)
    assert (busy.nr_conns, idle.nr_conns) == (more, 1)
    assert len(pauses) == 1
    assert 0 < pauses[0] <= 0.005


def test_a_connection_that_nobody_else_takes_is_taken(workers, listener, monkeypatch):
    busy, _ = workers
    busy.nr_conns = 100
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    busy.accept(listener)
    assert (len(busy.taken), busy.nr_conns) == (1, 101)


@pytest.mark.parametrize("counts", [(0, 0), (7, 5), (5, 7), (0, 100)])
def test_among_equals_the_first_takes_it_at_once(workers, listener, monkeypatch, counts):
    for worker, count in zip(workers, counts, strict=True):
        worker.nr_conns = count
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it waited"))
    workers[0].accept(listener)
    assert len(workers[0].taken) == 1


def test_a_process_that_ended_has_no_say(workers, listener, monkeypatch):
    busy, gone = workers
    busy.nr_conns = 100
    gone.leave()
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it waited"))
    busy.accept(listener)
    assert len(busy.taken) == 1


def test_all_of_many_connections_at_once_are_taken_by_some_process_and_by_each_its_share(sandbox, make_bot):
    bot = make_bot(sandbox, WEB_CONCURRENCY="2")
    master = psutil.Process(bot.web().pid)
    # A busy machine may leave one process no time to take its half: but not each time.
    eventually(lambda: min(spread(bot, master)) >= 15, what="a share for each of two processes")


def spread(bot, master):
    """How many of 40 connections that are opened at once each process takes. None is left over from before."""
    address = ("127.0.0.1", bot.settings.port)

    def taken():
        return [
            len([one for one in process.net_connections("tcp") if one.raddr and one.laddr.port == address[1]])
            for process in master.children()
        ]

    eventually(lambda: not any(taken()), what="the end of the connections before")
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(socket.create_connection(address, timeout=10)) for _ in range(40)]
        for connection in kept:
            connection.sendall(HEALTH)
        for connection in kept:
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        counts = taken()
    assert sum(counts) == 40
    return [*counts, 0] if len(counts) < 2 else counts


# -- where threads run --------------------------------------------------------------------------------------------


def test_the_threads_that_answer_stay_on_one_core_and_all_else_goes_where_it_likes(sandbox, make_bot):
    slow = Slow(make_bot(sandbox), sandbox)
    all_cores = len(os.sched_getaffinity(0))
    slow.bot.web()
    for content in ("core", "cores"):
        assert verdicts(slow.push(content)) == ["reply"]
    answering, working = (words.split() for _, words in slow.said())
    assert answering == ["1", str(os.SCHED_BATCH)]
    assert working == [str(all_cores), str(os.SCHED_OTHER)]


def test_each_process_of_the_worker_downloads_on_a_core_of_its_own(sandbox, make_bot):
    worker = psutil.Process(make_bot(sandbox).worker().pid)
    processes = min(len(os.sched_getaffinity(0)), 2)

    def cores_of(process):
        """Those that a thread of it is held to."""
        held = [os.sched_getaffinity(thread.id) for thread in process.threads()]
        return {min(cores) for cores in held if len(cores) == 1}

    def found():
        each = [cores_of(process) for process in (worker, *worker.children())]
        return len(each) == processes and all(len(cores) == 1 for cores in each) and each

    each = eventually(found, what="the worker's processes, each on one core")
    assert len(set.union(*each)) == processes


def test_where_the_system_forbids_it_threads_run_as_they_like(monkeypatch):
    def forbidden(*arguments):
        raise PermissionError

    monkeypatch.setattr("os.sched_setaffinity", forbidden)
    cores.stay_on_one()
    cores.roam()


# -- how an answer is sent ----------------------------------------------------------------------------------------


def test_an_answer_is_sent_in_one_piece(sandbox, make_bot):
    bot = make_bot(sandbox)
    bot.web()
    with socket.create_connection(("127.0.0.1", bot.settings.port), timeout=10) as connection:
        for _ in range(5):
            connection.sendall(HEALTH)
            head, _, body = connection.recv(10_000).partition(b"\r\n\r\n")
            assert f"content-length: {len(body)}".encode() in head.lower()
            assert body


# -- how one ends -------------------------------------------------------------------------------------------------


def test_a_process_that_ends_takes_the_ledgers_log_into_the_file(sandbox, make_bot):
    bot = make_bot(sandbox)
    web = bot.web()
    assert requests.get(f"{bot.url}/readyz", timeout=10).ok
    assert (bot.folder / "bot.db-wal").exists()
    assert web.stop() == 0
    assert [path.name for path in bot.folder.glob("bot.db*")] == ["bot.db"]
