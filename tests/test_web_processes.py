"""The web processes as gunicorn.conf.py and web/server.py run them: connections, cores, and how they end."""

import contextlib
import os
import re
import resource
import signal
import socket
import sys
import time

import psutil
import pytest
import requests

import cores
from tests import project, pushing
from tests.conftest import ROOT, Process, clean_environ, eventually, free_port
from tests.test_deferred import Slow, verdicts
from tests.test_flow import control, entries, send, stored

pytestmark = pytest.mark.xdist_group("waits-3")

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: bot\r\n\r\n"


def connect(bot):
    return socket.create_connection(("127.0.0.1", bot.settings.port), timeout=20)


@pytest.fixture
def kept():
    """kept(bot, count): so many connections that were answered once and stay open, as a proxy keeps them."""
    with contextlib.ExitStack() as stack:

        def opened(bot, count, say=HEALTH):
            found = [stack.enter_context(connect(bot)) for _ in range(count)]
            for connection in found:
                connection.sendall(say)
            if say == HEALTH:
                assert all(connection.recv(1000).startswith(b"HTTP/1.1 200") for connection in found)
            return found

        yield opened


# -- connections --------------------------------------------------------------------------------------------------


def test_one_that_does_not_hang_up_holds_nobody_up(sandbox, make_bot, kept):
    """gunicorn waits up to 2 s for the other side to hang up: not where connections are accepted."""
    bot = make_bot(sandbox)
    bot.web()
    ending = b"GET /healthz HTTP/1.1\r\nHost: bot\r\nConnection: close\r\n\r\n"
    for connection in kept(bot, 40, ending):
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    started = time.monotonic()
    assert requests.get(f"{bot.url}/healthz", timeout=10).ok
    assert time.monotonic() - started < 1


def test_each_connection_is_counted_once(sandbox, make_bot, kept):
    """A process that counts an end twice, or never, takes too many connections, or none, after a while."""
    bot = make_bot(sandbox)
    web = bot.web()
    for say in (HEALTH, b"no http\r\n\r\n", b"GET /healthz HTTP/1.0\r\n\r\n"):
        for connection in kept(bot, 5, say):
            connection.close()
    # Asked to end it waits for those that it counts: with one too many for 25 s.
    started = time.monotonic()
    assert web.stop() == 0
    assert time.monotonic() - started < 5


def test_a_request_that_comes_in_pieces_is_answered(sandbox, make_bot):
    bot = make_bot(sandbox)
    bot.web()
    path, body = pushing.safe(pushing.text(1))
    request = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    with connect(bot) as connection:
        for piece in (request[:10], request[10:-20], request[-20:] + request):
            connection.sendall(piece)
            time.sleep(0.1)  # longer than a thread stays with its connection
        received = b""
        while received.count(b"</xml>") < 2:
            received += (piece := connection.recv(10_000))
            assert piece, received


def test_a_request_that_is_never_finished_holds_no_thread_for_ever(sandbox, make_bot, kept):
    """And one that is there, but whose answer takes longer than a request may, is answered."""
    slow = Slow(make_bot(sandbox), sandbox)
    bot = slow.bot
    conf = bot.folder / "impatient.conf.py"
    conf.write_text(
        f"import runpy\nglobals().update(runpy.run_path({str(ROOT / 'gunicorn.conf.py')!r}))\n"
        "server.REQUEST_SECONDS = 1.0\n"
    )
    web = bot.start("gunicorn", "-c", str(conf), bot.app)
    bot.answers(web)
    path, body = pushing.safe(pushing.text(1))
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    halves = kept(bot, 2, b"POST /wechat HTTP/1.1\r\nHos") + kept(bot, 2, head + body[:-1])
    started = time.monotonic()
    for half in halves:
        while half.recv(1000):
            pass
    assert 0.9 < time.monotonic() - started < 5
    assert verdicts(slow.push("slow 2.5 words")) == ["reply"]
    assert "Traceback" not in web.text()


def test_the_configuration_is_settings_and_hooks():
    lines = (ROOT / "gunicorn.conf.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 70, "what gunicorn does otherwise than we need belongs into web/server.py"


@pytest.fixture
def many_files():
    """This process opens as many as the tests' connections need."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(("option", "files"), [("-Sn", 1024), ("-n", 300)])
def test_more_idle_connections_than_open_files(sandbox, make_bot, kept, many_files, option, files):
    """1,024 is what a login shell and most services are given, to be raised; 300 is all that there is."""
    bot = make_bot(sandbox)
    start = f'ulimit {option} {files} && exec "$0" -m gunicorn -c gunicorn.conf.py "app:create_app()"'
    web = bot.run(["sh", "-c", start, sys.executable], "gunicorn")
    bot.answers(web)
    idle = kept(bot, 550, b"") + (kept(bot, 550) if option == "-Sn" else [])
    if option == "-n":
        for connection in idle:
            connection.close()
    assert send(sandbox)["attempts"][-1]["verdict"] == "reply"
    assert not re.search("Traceback|no new connection", web.text())
    assert web.stop() == 0


def test_when_the_open_files_are_used_up_new_connections_wait(sandbox, make_bot, kept):
    bot = make_bot(sandbox)
    web = bot.web()
    stored(bot, send(sandbox))
    (process,) = psutil.Process(web.pid).children()
    limit = process.rlimit(psutil.RLIMIT_NOFILE)
    process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds() + 3, limit[1]))
    kept(bot, 20, b"")
    eventually(lambda: "no new connection" in web.text(), what="the limit")
    time.sleep(1.2)  # for two more pauses, of which nothing is said
    process.rlimit(psutil.RLIMIT_NOFILE, limit)
    assert send(sandbox)["attempts"][-1]["verdict"] == "reply"
    assert process.is_running()
    assert web.text().count("no new connection") == 1


# -- with another gunicorn ----------------------------------------------------------------------------------------


def test_with_a_gunicorn_that_lacks_a_name_the_plain_worker_runs_and_it_is_said_once(sandbox, make_bot):
    bot = make_bot(sandbox, WEB_CONCURRENCY="2")
    other = bot.folder / "other"
    other.mkdir()
    (other / "sitecustomize.py").write_text(
        "from gunicorn.workers import gthread\n"
        "gthread._DEFERRED = gthread.__dict__.pop('_DEFER')\n"
        "gthread.ThreadWorker.finish_request.__globals__['_DEFER'] = gthread._DEFERRED\n"
        "gthread.__class__ = type('Module', (type(gthread),), {'__dir__': lambda self: []})\n"
    )
    bot.environ["PYTHONPATH"] = str(other)
    web = bot.web()
    assert send(sandbox)["attempts"][0]["verdict"] == "reply"
    assert web.stop() == 0
    (line,) = re.findall(r".*plain worker.*", web.text())
    assert "WARNING" in line
    assert "gthread._DEFER" in line
    assert "Using worker: gthread" in web.text()


# -- where threads run --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pinned", [True, False])
def test_the_threads_that_answer_stay_on_one_core_and_all_else_goes_where_it_likes(sandbox, make_bot, pinned):
    slow = Slow(make_bot(sandbox, PIN_CORES=str(int(pinned))), sandbox)
    all_cores = str(len(os.sched_getaffinity(0)))
    slow.bot.web()
    for content in ("core", "cores"):
        assert verdicts(slow.push(content)) == ["reply"]
    answering, working = (words for _, words in slow.said())
    assert answering == ("1" if pinned else all_cores)
    assert working == all_cores


def test_the_worker_downloads_on_one_core(sandbox, make_bot):
    worker = psutil.Process(make_bot(sandbox, WORKER="external").worker().pid)

    def cores_of_its_threads():
        """Those that a thread is held to; the others go where they like."""
        held = [os.sched_getaffinity(thread.id) for thread in worker.threads()]
        return {min(cores) for cores in held if len(cores) == 1}

    assert len(eventually(cores_of_its_threads, what="a thread that is held to a core")) == 1


def test_each_web_process_has_a_core_of_its_own_also_after_one_died(sandbox, make_bot):
    if (count := len(os.sched_getaffinity(0))) < 2:
        pytest.skip("one core")
    bot = make_bot(sandbox, WEB_CONCURRENCY="2")
    master = psutil.Process(bot.web().pid)

    def apart():
        held = [os.sched_getaffinity(process.pid) for process in master.children()]
        return len(held) == 2 and all(len(each) == 1 for each in held) and held[0] != held[1]

    for _ in range(count):
        eventually(apart, what="two processes on two cores")
        victim = master.children()[0]
        victim.kill()
        eventually(lambda gone=victim: gone not in master.children(), what="its end")
    eventually(apart, what="two processes on two cores")


def test_where_the_system_forbids_it_threads_run_as_they_like(monkeypatch):
    def forbidden(*arguments):
        raise PermissionError

    monkeypatch.setattr("os.sched_setaffinity", forbidden)
    cores.pin_thread()
    cores.unpin_thread()


# -- how one ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_idle_connections_do_not_hold_up_the_end(sandbox, make_bot, kept, number):
    """Kept ones, as nginx has 32 of; one that has said nothing yet, or half a request; and an answered push."""
    bot = make_bot(sandbox, WEB_CONCURRENCY="2")
    web = bot.web()
    assert send(sandbox)["attempts"][0]["verdict"] == "reply"
    kept(bot, 32)
    kept(bot, 3, b"")
    kept(bot, 3, b"POST /wechat HTTP/1.1\r\nHos")
    started = time.monotonic()
    web.popen.send_signal(number)
    assert web.popen.wait(20) == 0
    assert time.monotonic() - started < 2
    assert "Traceback" not in web.text()


@pytest.mark.parametrize("kind", ["web", "worker"])
def test_a_download_in_hand_is_finished_and_nothing_more_is_claimed(sandbox, make_bot, kept, kind):
    """Idle connections are there as well: the time that they may still speak is no time for more work."""
    bot = make_bot(sandbox, WORKER="embedded" if kind == "web" else "external")
    web = bot.web()
    process = web if kind == "web" else bot.worker()
    stored(bot, send(sandbox))
    control(sandbox, "faults", [{"path": "/cgi-bin/media/get", "times": None, "delay": 3}])
    kept(bot, 5)
    pushes = [send(sandbox, msg_id=9_000 + number) for number in range(30)]  # more than a process has in hand

    def pictures():
        return [entry for push in pushes for entry in entries(bot, push)]

    eventually(lambda: any(entry.media_attempts for entry in pictures()), what="a download in hand")
    started = time.monotonic()
    process.popen.terminate()
    assert process.popen.wait(20) == 0
    assert time.monotonic() - started < 6
    begun = [entry.media_state for entry in pictures() if entry.media_attempts]
    assert set(begun) == {"stored"}, "what was in hand is finished"
    assert len(begun) < len(pushes), "and the rest waits for another process"


def test_an_idle_worker_ends_at_once(sandbox, make_bot):
    bot = make_bot(sandbox, WORKER="external")
    bot.web()
    process = bot.worker()
    stored(bot, send(sandbox))
    started = time.monotonic()
    assert process.stop() == 0
    assert time.monotonic() - started < 2


def test_a_reload_ends_the_old_processes_at_once_and_pushes_go_on(sandbox, make_bot, kept):
    bot = make_bot(sandbox)
    web = bot.web()
    (old,) = psutil.Process(web.pid).children()
    kept(bot, 5)
    kept(bot, 2, b"POST /wechat HTTP/1.1\r\nHos")
    started = time.monotonic()
    web.popen.send_signal(signal.SIGHUP)
    while old.is_running() and old.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() - started < 5
        assert send(sandbox)["attempts"][-1]["verdict"] == "reply"
    assert web.stop() == 0
    assert "Traceback" not in web.text()


def test_a_reload_with_faulty_settings_or_handlers_changes_nothing(tmp_path):
    folder = project.copy(tmp_path / "bot")
    port = free_port()
    right = f"WECHAT_APPID=wx1\nWECHAT_APPSECRET=secret\nWECHAT_TOKEN=token\nPORT={port}\nWEB_CONCURRENCY=2\n"
    (folder / ".env").write_text(right)
    web = Process(
        [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "app:create_app()"],
        clean_environ(),
        tmp_path / "gunicorn.log",
        folder,
    )

    def healthy():
        with contextlib.suppress(requests.ConnectionError):
            return requests.get(f"http://127.0.0.1:{port}/healthz", timeout=10).ok

    def processes():
        return {child.pid for child in psutil.Process(web.pid).children()}

    try:
        before = eventually(
            lambda: len(found := processes()) == 2 and healthy() and found, what="two processes"
        )
        (folder / ".env").write_text(right.replace("WECHAT_TOKEN=token", "WECHAT_TOKEN=a b"))
        web.popen.send_signal(signal.SIGHUP)
        eventually(lambda: "not reloaded" in web.text(), what="the reason")
        assert "WECHAT_TOKEN" in web.text()
        assert (healthy(), processes()) == (True, before)
        # One that dies now is replaced by one with the settings that the others have.
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: processes() and not before & processes() and healthy(), 30, what="new processes")
        path, body = pushing.plain(pushing.text(1), token="token")
        answer = requests.post(f"http://127.0.0.1:{port}{path}", data=body, timeout=10)
        assert "Send me a picture" in answer.text
        before = processes()
        (folder / ".env").write_text(right)
        (folder / "handlers" / "own.py").write_text("HANDLERS = {\n")
        web.popen.send_signal(signal.SIGHUP)
        eventually(lambda: "handlers/own.py cannot be read: SyntaxError" in web.text(), what="the reason")
        assert (healthy(), processes()) == (True, before)
        (folder / "handlers" / "own.py").write_text("HANDLERS = {}\n")
        web.popen.send_signal(signal.SIGHUP)
        eventually(lambda: not before & processes(), 30, what="new processes")
        assert healthy()
    finally:
        assert web.stop() == 0


def test_a_process_that_ends_takes_the_ledgers_log_into_the_file(sandbox, make_bot):
    bot = make_bot(sandbox)
    web = bot.web()
    assert requests.get(f"{bot.url}/readyz", timeout=10).ok
    assert (bot.folder / "bot.db-wal").exists()
    assert web.stop() == 0
    assert not (bot.folder / "bot.db-wal").exists()
