"""The `flask ...` commands as an operator runs them: processes, exit codes, last lines, hints."""

import contextlib
import json
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import requests
from flask import Flask, request

import parts
from tests.conftest import ACCOUNT, FAN, ROOT, clean_environ, eventually
from tests.project import copy, flask
from tests.serving import serving
from tests.test_flow import PHOTO, calls, control, send, stored


def last(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def failed(done, status=1):
    assert done.returncode == status, done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture
def bot(sandbox, make_bot):
    return make_bot(sandbox)


def test_token_show_and_refresh(sandbox, bot):
    shown = last(bot.flask("token", "show"))
    assert set(shown) == {"access_token", "expires_in"}
    assert 7190 <= shown["expires_in"] <= 7200
    assert last(bot.flask("token", "show"))["access_token"] == shown["access_token"]
    assert calls(sandbox, "/cgi-bin/stable_token") == {"ok": 1}
    control(sandbox, "token/expire", {}, "POST")
    assert last(bot.flask("token", "refresh"))["access_token"] != shown["access_token"]


def test_a_refused_token_is_one_line_with_its_hint(sandbox, bot):
    control(
        sandbox,
        "faults",
        [
            {
                "path": "/cgi-bin/stable_token",
                "times": None,
                "errcode": 40164,
                "errmsg": "invalid ip 203.0.113.7, not in whitelist",
            }
        ],
    )
    trouble = failed(bot.flask("token", "show"))
    assert "203.0.113.7" in trouble
    assert "白名单" in trouble


def test_media_up_and_down_again(sandbox, bot, tmp_path):
    answer = last(bot.flask("media", "upload", str(PHOTO)))
    assert answer["type"] == "image"
    target = tmp_path / "again.jpg"
    done = bot.flask("media", "get", answer["media_id"], "-o", str(target))
    assert done.stdout.splitlines()[-1] == str(target)
    assert target.read_bytes() == PHOTO.read_bytes()


def test_media_get_names_the_file_by_its_content(sandbox, bot, tmp_path):
    media_id = last(bot.flask("media", "upload", str(PHOTO)))["media_id"]
    done = subprocess.run(
        [sys.executable, "-m", "flask", "--app", str(ROOT / "app.py"), "media", "get", media_id],
        cwd=tmp_path,
        env={**clean_environ(), **bot.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"{media_id}.jpg").read_bytes() == PHOTO.read_bytes()


def test_what_may_not_be_uploaded_is_refused_before_the_network(sandbox, bot, tmp_path):
    page = tmp_path / "page.jpg"
    page.write_text("<html></html>")
    assert "image" in failed(bot.flask("media", "upload", str(page)))
    assert "voice" in failed(bot.flask("media", "upload", str(PHOTO), "--type", "voice"))
    assert calls(sandbox, "/cgi-bin/media/upload") == {}


def test_a_failed_download_leaves_no_file(sandbox, bot, tmp_path):
    trouble = failed(bot.flask("media", "get", "no-such-media", "-o", str(tmp_path / "x.jpg")))
    assert "40007" in trouble
    assert "素材" in trouble
    assert not list(tmp_path.glob("x.*"))


def test_an_upload_shows_a_progress_bar_on_a_terminal(sandbox, bot):
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 80))
    done = subprocess.run(
        [sys.executable, "-m", "flask", "media", "upload", str(PHOTO)],
        cwd=ROOT,
        env={**clean_environ(), **bot.environ, "TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=follower,
        timeout=60,
    )
    os.close(follower)
    shown = b""
    with contextlib.suppress(OSError):  # what Linux says at the end of a terminal
        while chunk := os.read(leader, 100_000):
            shown += chunk
    os.close(leader)
    assert done.returncode == 0
    assert b"100%" in shown


def test_ledger_status_and_retry(sandbox, bot):
    bot.web()
    control(
        sandbox,
        "faults",
        [{"path": "/cgi-bin/media/get", "times": 1, "errcode": 40007, "errmsg": "invalid media_id"}],
    )
    push = send(sandbox)

    def status():
        return last(bot.flask("ledger", "status"))

    eventually(lambda: not status()["pending"], what="the download")
    assert status() == {
        "pending": 0,
        "stored": 0,
        "failed": 1,
        "replies_pending": 0,
        "oldest_pending_seconds": 0,
    }
    assert last(bot.flask("ledger", "retry")) == {"rows": 1}
    entry = stored(bot, push)
    assert last(bot.flask("ledger", "retry", str(entry.id))) == {"rows": 0}


def test_faulty_settings_exit_2_and_name_the_faults(bot):
    bot.environ["WECHAT_APPID"] = ""
    for command in (["ledger", "status"], ["token", "show"], ["worker"]):
        assert "WECHAT_APPID: is required" in failed(bot.flask(*command), 2)
    helped = bot.flask("--help")
    assert helped.returncode == 0
    for command in ("ledger", "media", "token", "worker"):
        assert command in helped.stdout


def test_wrong_use_exits_2(bot):
    assert "No such command" in failed(bot.flask("token", "eat"), 2)
    assert "does not exist" in failed(bot.flask("media", "upload", "/no/such/file"), 2)


def test_a_database_that_is_away_is_one_line(bot, tmp_path):
    (tmp_path / "bot.db").write_text("this is no database, " * 100)
    assert "DATABASE_URL" in failed(bot.flask("ledger", "status"))


def test_commands_reach_what_the_bot_wrote(sandbox, bot):
    bot.web()
    push = send(sandbox)
    entry = stored(bot, push)
    assert parts.build(bot.settings).ledger.get(entry.id).sender == FAN
    assert requests.get(f"{bot.url}/readyz", timeout=5).json()["checks"] == {
        "database": "ok",
        "media": "ok",
        "token": "ok",
    }


def test_what_lies_in_a_folder_above_is_neither_run_nor_read(tmp_path):
    """Flask's command line would look for .flaskenv and .env there, and import the program that they name."""
    project = copy(tmp_path / "project")
    (tmp_path / "others.py").write_text("open('others-was-run', 'w')\n")
    (tmp_path / ".flaskenv").write_text(f"FLASK_APP={tmp_path}/others.py\nPYTHONPATH={tmp_path}\n")
    account = "".join(f"{name}={value}\n" for name, value in ACCOUNT.items())
    (tmp_path / ".env").write_text(f"FLASK_APP={tmp_path}/others.py\n{account}")
    for name in (".flaskenv", ".env"):
        (project / name).write_text("PORT=http\n")
    for start in ([sys.executable, "-m", "flask"], [Path(sys.executable).with_name("flask")]):
        done = subprocess.run(
            [*start, "ledger", "status"],
            cwd=project,
            env=clean_environ(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        trouble = failed(done, 2)
        assert "WECHAT_APPID: is required" in trouble
        assert "PORT: must be a whole number" in trouble, "the project's own .env is read"
    assert not list(tmp_path.rglob("others-was-run"))


def test_what_env_says_to_libraries_reaches_them(tmp_path):
    asked, store = [], Flask("store", static_folder=None)

    @store.route("/<path:path>", methods=["GET", "PUT"])
    def refuse(path):
        asked.append((path, request.headers["Authorization"]))
        return "", 403

    project = copy(tmp_path / "project")
    with serving(store) as url:
        lines = {
            **ACCOUNT,
            "DATABASE_URL": "mysql://the-media-store-alone-is-looked-at",
            "WECHAT_API_BASE": "http://127.0.0.1:9",
            "MEDIA_STORE": "s3://bucket/prefix",
            "AWS_ENDPOINT_URL_S3": url,
            "AWS_REGION": "nowhere-1",
            "AWS_ACCESS_KEY_ID": "key-of-this-test",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }
        (project / ".env").write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
        flask(project, "doctor")
    assert asked
    assert all(path.startswith("bucket/prefix/") for path, _ in asked)
    assert all("key-of-this-test" in key for _, key in asked)


def test_help_begins_with_our_commands(bot):
    listed = bot.flask("--help").stdout.partition("Commands:\n")[2]
    names = [line.split()[0] for line in listed.splitlines() if line.startswith("  ") and line[2] != " "]
    assert names == ["doctor", "ledger", "media", "replay", "token", "worker"]


def test_flasks_own_server_says_that_settings_are_missing(bot):
    bot.environ["WECHAT_APPID"] = ""
    for command in ("run", "routes"):
        assert "WECHAT_APPID: is required" in failed(bot.flask(command), 2)
