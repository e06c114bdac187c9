"""`make run`: what a newcomer sees, and how it ends."""

import hashlib
import json
import os
import re
import signal
import socket
import sqlite3
import sys
from contextlib import closing

import psutil
import pytest
import requests

from bench.servers import until
from sandbox import THROWAWAY
from tests.conftest import ACCOUNT, Process, clean_environ, eventually, free_port
from tests.project import copy, flask, sandbox_settings
from tests.test_flow import PHOTO

PREPARED = [sys.executable, "run.py"]
# As a script starts it in the background: with SIGINT ignored; and new files are open to all. From nothing, and so
# all that it starts.
IN_THE_BACKGROUND = ["sh", "-c", "umask 0; trap '' INT; exec \"$0\" run.py", sys.executable]
AND_CHILDREN_FROM_NOTHING = [sys.executable, "-m", "run"]  # they must see what a file has become
FROM_NOTHING = ["sh", "-c", 'exec "$0" run.py', sys.executable]


@pytest.fixture
def project(tmp_path):
    return copy(tmp_path / "project")


@pytest.fixture
def make_run(project, tmp_path):
    """make_run(command, SETTING=value, ...) -> the process of run.py in a copy of the project, on two free ports."""
    started, port = [], free_port(neighbours=1)

    def make(command=PREPARED, **environ):
        environ = {"PORT": str(port)} | environ
        log = tmp_path / f"run-{len(started)}.log"
        process = Process(command, clean_environ() | environ, log, folder=project)
        process.port = int(environ["PORT"])
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


PROXIES = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("command", "environ", "ending"),
    [
        (IN_THE_BACKGROUND, {}, signal.SIGINT),
        (PREPARED, {"ECHO_VIA": "upload", "WORKER": "external", **PROXIES}, signal.SIGHUP),
    ],
    ids=["Ctrl-C", "the terminal is closed"],
)
def test_a_newcomer_sees_a_photo_come_back(make_run, project, command, environ, ending):
    process = make_run(command, **environ)
    shown = said(process, "Ctrl-C ends it")
    digest = hashlib.sha256(PHOTO.read_bytes()).hexdigest()
    assert shown.count(digest) == 3
    assert f"http://127.0.0.1:{process.port}/wechat" in shown
    assert f"http://127.0.0.1:{process.port + 1}/" in shown
    assert "ADMIN_PASSWORD=" in shown
    (stored,) = (path for path in (project / "data/sandbox/media").rglob("*.jpg"))
    assert str(stored.relative_to(project)) in shown
    assert stored.read_bytes() == PHOTO.read_bytes()
    assert (project / "data").stat().st_mode & 0o777 == 0o700
    assert requests.get(f"http://127.0.0.1:{process.port}/readyz", timeout=5).json()["ready"]
    with closing(sqlite3.connect(project / "data/sandbox/bot.db")) as database:
        assert database.execute("SELECT count(*) FROM messages").fetchone() == (1,)
    children = psutil.Process(process.pid).children(recursive=True)
    process.popen.send_signal(ending)
    eventually(lambda: not all(child.is_running() for child in children), what="the end of the first")
    process.popen.send_signal(ending)  # in the middle of it
    assert process.popen.wait(30) == 0
    _, left = psutil.wait_procs(children, timeout=1)  # what has ended is there until the system looks at it
    assert not left
    assert "Traceback" not in process.text()


def test_a_locale_that_knows_neither_chinese_nor_the_name_of_the_folder(make_run, project):
    project.rename(project.with_name("图"))
    (project.parent / "project").symlink_to("图")
    shown = said(make_run(FROM_NOTHING, LC_ALL="C", PYTHONUTF8="0"), "Ctrl-C ends it")
    assert "all equal: \\u56fe\\u5c1a\\u5f80\\u6765" in shown
    assert "Traceback" not in shown


def test_a_failed_echo_exits_1(make_run):
    process = make_run(MAX_MEDIA_BYTES="1000")
    assert process.popen.wait(60) == 1
    assert "the picture was not stored" in process.text()


def test_the_end_of_the_sandbox_is_told_with_the_place_of_its_log(make_run, project):
    process = make_run()
    said(process, "Ctrl-C ends it")
    bot, sandbox = (
        child
        for port in (process.port, process.port + 1)
        for child in psutil.Process(process.pid).children()
        if any(one.laddr.port == port and one.status == "LISTEN" for one in child.net_connections("tcp"))
    )
    bot.suspend()  # so that its end takes as long as this test wants
    sandbox.kill()
    said(process, "Failed: the sandbox ended with exit code -9; see data/sandbox/sandbox.log\n")
    process.popen.send_signal(signal.SIGINT)  # in the middle of it
    bot.resume()
    assert process.popen.wait(60) == 1
    assert not bot.is_running()
    assert "Traceback" not in process.text()
    assert (project / "data/sandbox/sandbox.log").exists()


def test_a_port_in_use_is_said_plainly(make_run):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        process = make_run(PORT=str(other.getsockname()[1]))
        assert process.popen.wait(60) == 1
    assert "is in use: choose another" in process.text()


def test_where_it_cannot_start_it_says_why_in_one_line(make_run, project):
    (project / "data").write_text("a file in the place of the folder")
    process = make_run(PORT="65535")
    assert process.popen.wait(60) == 1
    assert "Failed: " in process.text()
    assert "Traceback" not in process.text()
    (project / "data").unlink()
    process = make_run(PORT="65535")
    assert process.popen.wait(60) == 1
    assert (
        process.text() == "Failed: PORT + 1 (the sandbox)=65536: there is no such port: PORT=8010 make run\n"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of another user")
def test_root_changes_nothing_in_the_data_of_another_user(make_run, project):
    folder = project / "data/sandbox"
    folder.mkdir(parents=True)
    (folder / "settings.env").write_text("WECHAT_APPID='wx0123456789abcdef'\n")
    os.chown(folder, 65534, 65534)
    process = make_run()
    assert process.popen.wait(60) == 1
    assert re.search(r"Failed: .*runuser -u", process.text())
    assert [path.name for path in folder.iterdir()] == ["settings.env"]
    assert (folder / "settings.env").read_text() == "WECHAT_APPID='wx0123456789abcdef'\n"


def test_a_database_that_is_away_is_said_in_one_line(make_run):
    process = make_run(DATABASE_URL="postgresql://nobody@127.0.0.1:9/none")
    assert process.popen.wait(60) == 1
    assert "Failed: PostgreSQL: " in process.text()
    assert "Traceback" not in process.text()


def test_with_an_account_the_bot_runs_alone(make_run):
    process = make_run(**ACCOUNT, WECHAT_API_BASE="http://127.0.0.1:9", PUBLIC_URL="https://bot.example")
    shown = said(process, "flask doctor\n")
    assert "https://bot.example/wechat" in shown
    assert "set ADMIN_PASSWORD" in shown
    assert "sandbox" not in shown
    assert process.stop() == 0


def test_faulty_settings_are_named_and_exit_2(make_run):
    process = make_run(WECHAT_APPID=ACCOUNT["WECHAT_APPID"], LEASE_SECONDS="x")
    assert process.popen.wait(60) == 2
    for name in ("WECHAT_APPSECRET", "WECHAT_TOKEN", "LEASE_SECONDS"):
        assert name in process.text()
    assert "Traceback" not in process.text()


def test_commands_beside_it_and_what_a_restart_keeps(make_run, project):
    first = make_run()
    shown = said(first, "Ctrl-C ends it")
    (password,) = re.findall(r"ADMIN_PASSWORD=(\S+)", shown)

    assert json.loads(flask(project, "ledger", "status").stdout)["stored"] == 1
    replayed = flask(project, "replay", "1")
    assert replayed.returncode == 0, replayed.stderr
    assert replayed.stdout.startswith("<xml>")
    assert "access_token" in flask(project, "token", "show").stdout
    doctor = flask(project, "doctor")
    assert doctor.returncode == 0, doctor.stdout
    kept = sandbox_settings(project)
    assert kept["WECHAT_APPID"] != THROWAWAY.appid, "it is this folder's own"
    assert (project / "data/sandbox/settings.env").stat().st_mode & 0o077 == 0

    second = make_run(PORT=str(free_port(neighbours=1)))
    assert second.popen.wait(60) == 1
    assert "make run already runs in this folder" in second.text()
    assert flask(project, "ledger", "status").returncode == 0, "the first goes on as before"
    assert first.stop() == 0

    alone = flask(project, "ledger", "status")
    assert alone.returncode == 2, "the sandbox's account is nobody's once it has ended"
    assert "WECHAT_APPID: is required" in alone.stderr

    shown = said(make_run(), "Ctrl-C ends it")
    assert f"ADMIN_PASSWORD={password} " in shown
    assert "sends" not in shown, "the photo is sent once"
    assert sandbox_settings(project) == kept
    assert json.loads(flask(project, "ledger", "status").stdout)["stored"] == 1


def test_a_password_of_ones_own_is_neither_shown_nor_kept(make_run, project):
    own = "a password of my own"
    process = make_run(ADMIN_PASSWORD=own)
    shown = said(process, "Ctrl-C ends it")
    assert "ADMIN_PASSWORD is the one that you set" in shown
    assert own not in shown
    assert "throw-away" not in shown
    bot = f"http://127.0.0.1:{sandbox_settings(project)['PORT']}"
    assert requests.post(f"{bot}/gallery/sign-in", data={"password": own}, timeout=10).url == f"{bot}/gallery"
    assert own not in sandbox_settings(project).values()
    assert process.stop() == 0


def test_an_edited_handler_answers_at_once(make_run, project):
    process = make_run(AND_CHILDREN_FROM_NOTHING, RELOAD="1")
    said(process, "Ctrl-C ends it")
    port = int(sandbox_settings(project)["PORT"])

    def answer():
        url = f"http://127.0.0.1:{port + 1}/sandbox/fans/oReload-AbCdEfGhIjKlMnOpQrS/messages"
        pushed = requests.post(url, json={"type": "text", "content": "hello"}, timeout=30).json()
        return [each["content"] for each in pushed["shown"]]

    assert answer() != ["new words"]
    handler = project / "handlers" / "text.py"
    source = handler.read_text(encoding="utf-8")
    handler.write_text(re.sub(r'HINT = ".*"', "HINT = nobody_knows_this", source), encoding="utf-8")
    said(process, "NameError")
    handler.write_text(re.sub(r'HINT = ".*"', 'HINT = "new words"', source), encoding="utf-8")
    assert until(lambda: answer() == ["new words"], 60, pause=0.5), "the new handler does not answer"
    assert process.stop() == 0
