"""The processes of `flask worker`: that they share the work, and that none ends, or goes on, alone."""

import os
import signal
import subprocess
import sys
from urllib.parse import urlsplit

import psutil
import pytest

from config import usable_cores
from tests.conftest import ROOT, eventually
from tests.test_flow import control, send, stored

# Says where each process is, and how it ended.
PROGRAM = """
import os, sys
from worker import processes as worker_processes

def say(line):
    os.write(1, f"{line}\\n".encode())  # in one piece

def work(place, wait_for_stop):
    say(f"{place} {os.getpid()}")
    wait_for_stop()
    say(f"{place} asked to stop")

worker_processes.run(int(sys.argv[1]), work)
say("all have ended")
"""


class Running:
    def __init__(self, count):
        self.popen = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(count)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        told = dict(self.popen.stdout.readline().split() for _ in range(count))
        self.pids = [int(told[str(place)]) for place in range(count)]

    def rest(self):
        """What they said until the last one had ended, a line each."""
        return sorted(self.popen.communicate(timeout=30)[0].splitlines())


@pytest.fixture
def start():
    started = []

    def begin(count):
        running = Running(count)
        started.append(running)
        return running

    yield begin
    for running in started:
        if running.popen.poll() is None:
            os.killpg(running.popen.pid, signal.SIGKILL)
            running.popen.wait()


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_they_end_together_when_the_first_is_asked(start, count, number):
    running = start(count)
    assert running.pids[0] == running.popen.pid
    assert len(set(running.pids)) == count
    os.kill(running.pids[0], number)
    assert running.rest() == sorted([*(f"{place} asked to stop" for place in range(count)), "all have ended"])
    assert running.popen.returncode == 0


def test_a_signal_to_the_whole_group_is_heard_once(start):
    running = start(2)
    os.killpg(running.popen.pid, signal.SIGINT)  # Ctrl-C in a terminal
    assert running.rest() == ["0 asked to stop", "1 asked to stop", "all have ended"]
    assert running.popen.returncode == 0


def test_when_one_dies_the_others_stop_and_the_exit_says_so(start):
    running = start(3)
    os.kill(running.pids[2], signal.SIGKILL)
    said = running.rest()
    assert said[:2] == ["0 asked to stop", "1 asked to stop"]
    assert "another process of this worker died" in said[2]
    assert len(said) == 3
    assert running.popen.returncode == 1


def test_when_the_first_is_killed_the_others_do_not_outlive_it(start):
    running = start(3)
    others = [psutil.Process(pid) for pid in running.pids[1:]]
    os.kill(running.pids[0], signal.SIGKILL)
    assert not psutil.wait_procs(others, timeout=20)[1]
    assert running.rest() == []  # not asked: no time is given to work in hand, its leases end


def test_work_that_fails_ends_all(start):
    failing = PROGRAM.replace("wait_for_stop()\n", "wait_for_stop() if place else 1 / 0\n", 1)
    done = subprocess.run(
        [sys.executable, "-c", failing, "2"], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "asked to stop" not in done.stdout


@pytest.fixture
def worker(sandbox, make_bot):
    """A `flask worker` with its second process; leases of 2 seconds."""
    if usable_cores() < 2:
        pytest.skip("the worker is one process on a machine with one core")
    bot = make_bot(sandbox, WORKER="external", LEASE_SECONDS="2")
    bot.web()
    process = bot.worker()
    eventually(lambda: psutil.Process(process.pid).children(), what="the second process")
    return bot, process


def test_each_process_of_the_worker_downloads(sandbox, worker):
    bot, process = worker
    first = psutil.Process(process.pid)
    (second,) = first.children()
    control(sandbox, "faults", [{"path": "/cgi-bin/media/get", "times": 12, "delay": 3}])
    pushes = [send(sandbox) for _ in range(12)]  # more than one of them takes at once

    def downloads(process):
        return [one for one in process.net_connections("tcp") if one.raddr.port == urlsplit(sandbox.url).port]

    eventually(lambda: downloads(first) and downloads(second), what="downloads of both")
    for push in pushes:
        assert stored(bot, push).media_attempts == 1
    assert process.stop() == 0
    assert not psutil.wait_procs([second], timeout=10)[1]


def test_a_worker_of_which_one_process_died_ends_and_the_next_one_does_its_work(sandbox, worker):
    bot, process = worker
    control(sandbox, "faults", [{"path": "/cgi-bin/media/get", "times": 8, "delay": 3}])
    pushes = [send(sandbox) for _ in range(8)]
    psutil.Process(process.pid).children()[0].kill()
    assert process.popen.wait(40) == 1
    assert "another process of this worker died" in process.text()
    bot.worker()
    for push in pushes:
        assert stored(bot, push, seconds=40).media_sha256


def test_a_worker_that_ends_takes_the_ledgers_log_into_the_file(sandbox, make_bot):
    bot = make_bot(sandbox)
    process = bot.worker()
    eventually((bot.folder / "bot.db-wal").exists, what="the log")
    assert process.stop() == 0
    left = {path.name for path in bot.folder.glob("bot.db*")}
    assert left == {"bot.db", "bot.db-lock", "bot.db-open"}
