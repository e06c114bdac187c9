"""Several `flask worker` processes of one machine: they share the work, and none needs another."""

import sys
from urllib.parse import urlsplit

import psutil
import pytest

from tests import prepared
from tests.conftest import clean_environ, eventually
from tests.test_flow import control, send, stored

pytestmark = pytest.mark.xdist_group("waits-1")


@pytest.fixture
def workers(sandbox, make_bot):
    """A bot, and two of its workers; leases of 2 seconds."""
    bot = make_bot(sandbox, WORKER="external", LEASE_SECONDS="2")
    bot.web()
    return bot, [bot.worker() for _ in range(2)]


def test_two_workers_share_the_work_and_end_by_themselves(sandbox, workers):
    bot, processes = workers
    control(sandbox, "faults", [{"path": "/cgi-bin/media/get", "times": 24, "delay": 3}])
    pushes = [send(sandbox) for _ in range(24)]  # more than one of them takes at once

    def downloads(process):
        port = urlsplit(sandbox.url).port
        return [
            one
            for one in psutil.Process(process.pid).net_connections("tcp")
            if one.raddr and one.raddr.port == port
        ]

    eventually(lambda: all(map(downloads, processes)), what="downloads of both")
    for push in pushes:
        assert stored(bot, push).media_attempts == 1
    assert [process.stop() for process in processes] == [0, 0]


def test_what_a_killed_worker_had_in_hand_another_does(sandbox, workers):
    bot, (first, second) = workers
    control(sandbox, "faults", [{"path": "/cgi-bin/media/get", "times": 8, "delay": 3}])
    pushes = [send(sandbox) for _ in range(8)]
    first.kill()
    for push in pushes:
        assert stored(bot, push, seconds=40).media_sha256
    assert second.stop() == 0


def test_a_worker_that_ends_takes_the_ledgers_log_into_the_file(sandbox, make_bot):
    bot = make_bot(sandbox)
    process = bot.worker()
    eventually((bot.folder / "bot.db-wal").exists, what="the log")
    assert process.stop() == 0
    left = {path.name for path in bot.folder.glob("bot.db*")}
    assert left == {"bot.db", "bot.db-lock", "bot.db-open"}


SIGNAL_ITSELF = """
import os, runpy, signal, sys, threading

_, moment, after, module, *arguments = sys.argv
calls = None  # of the main thread, since the function `after` returned

def end():
    os.kill(os.getpid(), signal.SIGTERM)

def look(frame, event, _):
    global calls
    if calls is None:
        if event == "return" and frame.f_code.co_qualname == after:
            calls = 0
            later = threading.Timer(0.5, end)  # it waits already, and makes no more calls
            later.daemon = True
            later.start()
            if moment == "other":  # the system gives the signal to a thread that does not block it
                signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    elif event in ("call", "c_call"):
        calls += 1
        if str(calls) == moment:
            sys.setprofile(None)
            end()

sys.argv = [module, *arguments]
sys.setprofile(look)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("moment", ["1", "2", "other"])
@pytest.mark.parametrize(
    ("after", "arguments"),
    [
        ("Accounts.start", ["flask", "worker"]),
        (
            "_GeneratorContextManager.__enter__",
            ["sandbox", "--port", "0", "--callback", "http://127.0.0.1:9/wechat"],
        ),
    ],
    ids=["worker", "sandbox"],
)
def test_a_signal_ends_it_whenever_it_comes_and_whichever_thread_gets_it(
    sandbox, make_bot, after, arguments, moment
):
    """In the middle of an Event's wait() the handler's set() would wait for the lock of its own thread, for ever; and
    no handler runs while the main thread waits for a lock, and another one gets the signal."""
    bot = make_bot(sandbox)
    command = [sys.executable, "-c", SIGNAL_ITSELF, moment, after, *arguments]
    ended = prepared.run(command, clean_environ() | bot.environ, timeout=20)
    assert ended.returncode == 0, ended.stderr
