"""Several `flask worker` processes of one machine: they share the work, and none needs another."""

from urllib.parse import urlsplit

import psutil
import pytest

from tests.conftest import eventually
from tests.test_flow import control, send, stored


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
