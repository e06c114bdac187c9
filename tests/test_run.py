"""`make run`: what a newcomer sees, and how it ends."""

import hashlib
import signal
import socket
import sqlite3
import sys
from contextlib import closing

import psutil
import pytest
import requests

from tests.conftest import ACCOUNT, Process, clean_environ, eventually, free_port
from tests.test_flow import PHOTO


@pytest.fixture
def make_run(tmp_path):
    """make_run(SETTING=value, ...) -> the process of run.py, on two free ports of its own."""
    started = []

    def make(**environ):
        port = free_port(neighbours=1)
        given = {
            "PORT": str(port),
            "DATABASE_URL": f"sqlite:///{tmp_path}/bot.db",
            "MEDIA_STORE": f"{tmp_path}/media",
        }
        process = Process([sys.executable, "run.py"], clean_environ() | given | environ, tmp_path / "run.log")
        process.port = int((given | environ)["PORT"])
        started.append(process)
        return process

    yield make
    for process in started:
        process.kill()


def said(process, words, seconds=60):
    def look():
        assert process.popen.poll() is None or words in process.text(), process.text()
        return words in process.text()

    eventually(look, seconds, f"{words!r}")
    return process.text()


@pytest.mark.parametrize("environ", [{}, {"ECHO_VIA": "upload", "WORKER": "external"}])
def test_a_newcomer_sees_a_photo_come_back(make_run, tmp_path, environ):
    process = make_run(**environ)
    shown = said(process, "Ctrl-C ends it")
    digest = hashlib.sha256(PHOTO.read_bytes()).hexdigest()
    assert shown.count(digest) == 3
    assert f"http://127.0.0.1:{process.port}/wechat" in shown
    assert f"http://127.0.0.1:{process.port + 1}/" in shown
    assert "ADMIN_PASSWORD=" in shown
    (stored,) = (path for path in (tmp_path / "media").rglob("*.jpg"))
    assert str(stored) in shown
    assert stored.read_bytes() == PHOTO.read_bytes()
    assert requests.get(f"http://127.0.0.1:{process.port}/readyz", timeout=5).json()["ready"]
    with closing(sqlite3.connect(tmp_path / "bot.db")) as database:
        assert database.execute("SELECT count(*) FROM messages").fetchone() == (1,)
    children = psutil.Process(process.pid).children(recursive=True)
    process.popen.send_signal(signal.SIGINT)
    assert process.popen.wait(30) == 0
    assert not [child for child in children if child.is_running()]
    assert "Traceback" not in process.text()


def test_a_failed_echo_exits_1(make_run):
    process = make_run(MAX_MEDIA_BYTES="1000")
    assert process.popen.wait(60) == 1
    assert "the picture was not stored" in process.text()


def test_a_port_in_use_is_said_plainly(make_run):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        process = make_run(PORT=str(other.getsockname()[1]))
        assert process.popen.wait(60) == 1
    assert "is in use: choose another" in process.text()


def test_with_an_account_the_bot_runs_alone(make_run):
    process = make_run(**ACCOUNT, WECHAT_API_BASE="http://127.0.0.1:9", PUBLIC_URL="https://bot.example")
    shown = said(process, "/wechat\n")
    assert "https://bot.example/wechat" in shown
    assert "sandbox" not in shown
    assert process.stop() == 0


def test_faulty_settings_are_named_and_exit_2(make_run):
    process = make_run(WECHAT_APPID=ACCOUNT["WECHAT_APPID"], LEASE_SECONDS="x")
    assert process.popen.wait(60) == 2
    for name in ("WECHAT_APPSECRET", "WECHAT_TOKEN", "LEASE_SECONDS"):
        assert name in process.text()
    assert "Traceback" not in process.text()
