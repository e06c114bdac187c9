"""The `flask ...` commands as an operator runs them: processes, exit codes, last lines, hints."""

import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryFile

import pytest
import requests
from flask import Flask, request

import parts
from storage.files import StoredFile
from tests import prepared, pushing
from tests.conftest import ACCOUNT, FAN, ROOT, clean_environ, eventually
from tests.project import copy, flask
from tests.serving import serving
from tests.terminal import on_a_terminal
from tests.test_flow import PHOTO, calls, control, send, stored
from wechat.messages import parse_message


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
    assert len(trouble.splitlines()) == 1


def test_media_up_and_down_again(sandbox, bot, tmp_path):
    answer = last(bot.flask("media", "upload", str(PHOTO)))
    assert answer["type"] == "image"
    target = tmp_path / "again.jpg"
    done = bot.flask("media", "get", answer["media_id"], "-o", str(target))
    assert done.stdout.splitlines()[-1] == str(target)
    assert target.read_bytes() == PHOTO.read_bytes()


def test_media_get_names_the_file_by_its_content(sandbox, bot, tmp_path):
    media_id = last(bot.flask("media", "upload", str(PHOTO)))["media_id"]
    command = [sys.executable, "-m", "flask", "--app", str(ROOT / "app.py"), "media", "get", media_id]
    environ = clean_environ() | bot.environ | {"PYTHONPATH": str(ROOT)}
    done = prepared.run(command, environ, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"{media_id}.jpg").read_bytes() == PHOTO.read_bytes()


def test_what_may_not_be_uploaded_is_refused_before_the_network(sandbox, bot, tmp_path):
    page = tmp_path / "page.jpg"
    page.write_text("<html></html>")
    assert "image" in failed(bot.flask("media", "upload", str(page)))
    assert "voice" in failed(bot.flask("media", "upload", str(PHOTO), "--type", "voice"))
    assert calls(sandbox, "/cgi-bin/media/upload") == {}


@pytest.mark.parametrize("folder", ["missing/deep", "file"])
def test_a_folder_that_takes_no_file_is_named_before_the_network(sandbox, bot, tmp_path, folder):
    (tmp_path / "file").write_bytes(b"")
    done = bot.flask("media", "get", "any", "-o", str(tmp_path / folder / "x.jpg"))
    assert done.returncode == 2
    assert f"{tmp_path / folder} is not a folder" in done.stderr
    assert calls(sandbox, "/cgi-bin/media/get") == {}


def test_a_failed_download_leaves_no_file(sandbox, bot, tmp_path):
    trouble = failed(bot.flask("media", "get", "no-such-media", "-o", str(tmp_path / "x.jpg")))
    assert "40007" in trouble
    assert "素材" in trouble
    assert not list(tmp_path.glob("x.*"))


def test_a_download_touches_nothing_of_the_users(sandbox, bot, tmp_path):
    media_id = last(bot.flask("media", "upload", str(PHOTO)))["media_id"]
    part, target = tmp_path / "x.part", tmp_path / "x.jpg"
    part.write_text("the user's")
    target.write_text("the user's too")
    assert "--force" in failed(bot.flask("media", "get", media_id, "-o", str(target)))
    assert target.read_text() == "the user's too"
    assert bot.flask("media", "get", media_id, "-o", str(target), "--force").returncode == 0
    assert target.read_bytes() == PHOTO.read_bytes()
    assert part.read_text() == "the user's"
    part.unlink()
    assert bot.flask("media", "get", media_id, "-o", str(part)).returncode == 0
    assert part.read_bytes() == PHOTO.read_bytes()
    assert {each.name for each in tmp_path.iterdir() if each.name.startswith(("x", "."))} == {
        "x.part",
        "x.jpg",
    }


def test_an_upload_shows_a_progress_bar_on_a_terminal(sandbox, bot):
    with TemporaryFile() as file:
        shown, status = on_a_terminal(bot.environ, "media", "upload", str(PHOTO), columns=80, stdout=file)
    assert status == 0
    assert "100%" in shown


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


@pytest.fixture
def three(bot):
    """A stored picture, a failed one, and a text, in the ledger of a bot that does not run."""
    built = parts.build(bot.settings).of[""]
    ledger, queue = built.ledger, built.queue
    now = time.time()
    for xml in (pushing.image(1), pushing.image(2, fan="oAnother-fan"), pushing.text(3, "hello\x1b[2J")):
        ledger.record(parse_message(xml.encode()), None, now)
    first, second = queue.claim_downloads(now, 60, 2)
    queue.mark_stored(first, StoredFile(f"{first.stem}.jpg", 5, "0" * 64), now)
    queue.mark_failed(second, 40007, "invalid media_id", now)
    return bot


def listed(bot, *options):
    done = bot.flask("ledger", "list", *options)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_ledger_list_and_show(three):
    assert [entry["id"] for entry in listed(three)] == [1, 2, 3]
    assert [entry["id"] for entry in listed(three, "--last", "2")] == [2, 3]
    (entry,) = listed(three, "--failed")
    assert entry | {"received_at": ""} == {
        "id": 2,
        "received_at": "",
        "type": "image",
        "fan": "oAnother-fan",
        "media": "failed",
        "send": None,
        "code": 40007,
        "reason": "invalid media_id",
    }
    assert [entry["id"] for entry in listed(three, "--fan", FAN)] == [1, 3]
    done = three.flask("ledger", "show", "3")
    assert "<Content><![CDATA[hello" in done.stdout
    assert "\x1b" not in done.stdout
    assert last(done)["fan"] == FAN
    assert "no row 99" in failed(three.flask("ledger", "show", "99"))
    shown, _ = on_a_terminal(three.environ, "ledger", "list")
    assert "40007" in shown
    assert "{" not in shown


def test_retry_says_which_rows_there_are_not(three):
    assert "no row 98, 99" in failed(three.flask("ledger", "retry", "2", "98", "99"))
    assert last(three.flask("ledger", "retry", "2")) == {"rows": 1}
    assert last(three.flask("ledger", "retry", "1")) == {"rows": 0}


def test_replay_the_newest(three, tmp_path):
    assert "CDATA[text]" in three.flask("replay", "--last").stdout
    assert "no row 99" in failed(three.flask("replay", "99"))
    for arguments in ([], ["1", "--last"]):
        assert "--last" in failed(three.flask("replay", *arguments), 2)
    three.environ["DATABASE_URL"] = f"sqlite:///{tmp_path}/empty.db"
    assert "the ledger is empty" in failed(three.flask("replay", "--last"))


def test_purge_asks_on_a_terminal_and_can_only_say(three):
    assert last(three.flask("ledger", "purge", "--before", "0", "--dry-run")) == {"rows": 3, "files": 1}
    assert last(three.flask("ledger", "purge", "--fan", "oAnother-fan", "--dry-run")) == {
        "rows": 1,
        "files": 0,
    }
    shown, status = on_a_terminal(three.environ, "ledger", "purge", "--before", "0", typed="n\n")
    assert "Delete 3 messages and 1 files for good?" in shown
    assert status == 1
    assert len(listed(three)) == 3
    shown, status = on_a_terminal(three.environ, "ledger", "purge", "--fan", FAN, typed="y\n")
    assert status == 0
    assert [entry["id"] for entry in listed(three)] == [2]
    shown, status = on_a_terminal(three.environ, "ledger", "purge", "--before", "0", "--yes")
    assert status == 0
    assert listed(three) == []


def test_a_menu_is_set_shown_and_deleted(sandbox, bot, tmp_path):
    assert "no menu" in failed(bot.flask("menu", "show"))
    menu = {"button": [{"type": "click", "name": "天气", "key": "weather"}]}
    file = tmp_path / "menu.json"
    file.write_text(json.dumps(menu), encoding="utf-8")
    assert last(bot.flask("menu", "set", str(file))) == {"buttons": 1}
    shown = bot.flask("menu", "show")
    assert last(shown)["button"][0]["name"] == "天气"
    file.write_text(shown.stdout, encoding="utf-8")
    assert last(bot.flask("menu", "set", str(file))) == {"buttons": 1}, "what is shown can be set"
    assert last(bot.flask("menu", "delete")) == {"buttons": 0}
    assert "no menu" in failed(bot.flask("menu", "show"))
    nested = "[" * 100_000
    for wrong in (
        "{",
        "[]",
        '{"button": 1}',
        '{"button": ["weather"]}',
        '{"button": ["\\ud800"]}',
        '{"button": [NaN]}',
        nested,
    ):
        file.write_text(wrong)
        failed(bot.flask("menu", "set", str(file)), 2)
    file.write_text(json.dumps({"button": menu["button"] * 4}), encoding="utf-8")
    assert "A menu has 1 to 3 buttons" in failed(bot.flask("menu", "set", str(file)))


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


@pytest.mark.parametrize(
    "arguments",
    [
        ["ledger", "list", "--fan", "\udcff"],
        ["ledger", "purge", "--fan", "\udcff"],
        ["ledger", "purge", "--fan", ""],
        ["ledger", "purge", "--before", "9" * 320],
        ["ledger", "show", "9" * 5000],
        ["media", "get", "\udcff"],
        ["media", "get", ""],
        ["media", "get", "x", "-o", ""],
        ["menu", "set", "\udcff"],
        ["token", "show", "--account", "\udcff"],
        ["doctor", "--account", "\udcff"],
        ["\udcff"],
    ],
    ids=ascii,
)
def test_odd_bytes_and_huge_numbers_are_wrong_use(bot, arguments):
    assert "Error: " in failed(bot.flask(*arguments), 2)


def test_a_database_that_is_away_is_one_line(bot, tmp_path):
    (tmp_path / "bot.db").write_text("this is no database, " * 100)
    assert "DATABASE_URL" in failed(bot.flask("ledger", "status"))


def test_a_store_that_cannot_be_used_is_one_line_and_stops_only_what_needs_it(three, s3_settings):
    three.environ |= {"MEDIA_STORE": "s3://bucket/prefix", "AWS_PROFILE": "nope"}
    assert three.flask("--help").returncode == 0
    assert last(three.flask("ledger", "status"))["stored"] == 1
    assert "AWS_PROFILE" in failed(three.flask("ledger", "purge", "--before", "0"))


def test_commands_reach_what_the_bot_wrote(sandbox, bot):
    bot.web()
    push = send(sandbox)
    entry = stored(bot, push)
    assert parts.build(bot.settings).of[""].ledger.get(entry.id).sender == FAN
    assert requests.get(f"{bot.url}/readyz", timeout=5).json()["checks"] == {
        "database": "ok",
        "media": "ok",
        "token": "ok",
    }


def test_a_file_of_settings_that_is_not_utf8_is_named(tmp_path):
    project = copy(tmp_path / "project")
    account = "".join(f"{name}={value}\n" for name, value in ACCOUNT.items())
    stores = f"DATABASE_URL=sqlite:///{tmp_path}/bot.db\nMEDIA_STORE={tmp_path}/media\n"
    (project / ".env").write_bytes(
        f"# 公众号\n{account}{stores}WECHAT_API_BASE=http://127.0.0.1:9\n".encode("gbk")
    )
    told = ".env: is not UTF-8: save it as UTF-8"
    trouble = failed(flask(project, "token", "show"), 2)
    assert told in trouble
    assert "is required" not in trouble
    assert flask(project, "--help").returncode == 0
    doctor = flask(project, "doctor")
    failed(doctor, 2)
    assert "FAIL settings: .env is not UTF-8" in doctor.stdout
    assert "OK   database" in doctor.stdout
    check = ["gunicorn", "-c", "gunicorn.conf.py", "--check-config", "app:create_app()"]
    server = prepared.run([sys.executable, "-m", *check], clean_environ(), folder=project)
    assert told in failed(server, 2)


def test_what_lies_in_a_folder_above_is_neither_run_nor_read(tmp_path):
    """Flask's command line would look for .flaskenv and .env there, and import the program that they name."""
    project = copy(tmp_path / "project")
    (tmp_path / "others.py").write_text("open('others-was-run', 'w')\n")
    (tmp_path / ".flaskenv").write_text(f"FLASK_APP={tmp_path}/others.py\nPYTHONPATH={tmp_path}\n")
    account = "".join(f"{name}={value}\n" for name, value in ACCOUNT.items())
    (tmp_path / ".env").write_text(f"FLASK_APP={tmp_path}/others.py\n{account}")
    for name in (".flaskenv", ".env"):
        (project / name).write_text("PORT=http\n")
    script = [Path(sys.executable).with_name("flask"), "ledger", "status"]
    for done in (
        flask(project, "ledger", "status"),
        subprocess.run(script, cwd=project, env=clean_environ(), capture_output=True, text=True, timeout=60),
    ):
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
    assert names == ["doctor", "ledger", "media", "menu", "replay", "token", "worker"]


# As with PYTHONIOENCODING=latin-1, which Python reads when it starts from nothing.
WITHOUT_CHINESE = """
import runpy, sys
sys.stdout.reconfigure(encoding="latin-1")
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    "arguments", [["flask", "--help"], ["flask", "doctor"], ["sandbox", "--help"]], ids=" ".join
)
def test_a_terminal_without_chinese_gets_escapes(arguments):
    done = prepared.run([sys.executable, "-c", WITHOUT_CHINESE, *arguments], clean_environ())
    assert "Traceback" not in done.stderr
    assert "\\u" in done.stdout


# One after the other in one process, for it starts from nothing.
EACH = """
import json, runpy, sys
for sys.argv in json.loads(sys.argv[1]):
    try:
        runpy.run_module("flask", run_name="__main__")
    except SystemExit as end:
        print(end.code, file=sys.stderr)
"""


def test_closed_files_are_no_terminal(three):
    commands = ["doctor"], ["ledger", "list"], ["ledger", "purge", "--before", "9"]
    given = json.dumps([["flask", *command] for command in commands])
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$@" <&- >&-', sys.executable, EACH, given],
        env=three.environ,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import requsts\n", "handlers/own.py cannot be read, line 1: ModuleNotFoundError: "),
        ("\n\ndef answer(message)\n", "handlers/own.py cannot be read: SyntaxError: "),
        ("HANDLERS = {'text': print}\n", "HANDLERS has 'text' for a kind of message: write "),
    ],
)
def test_faulty_handlers_are_one_line_of_each_command_and_a_finding(tmp_path, text, said):
    folder = copy(tmp_path / "project")
    (folder / "handlers" / "own.py").write_text(text)
    assert said in failed(flask(folder, "ledger", "status", **ACCOUNT), 1)
    found = flask(folder, "doctor", WECHAT_API_BASE="http://127.0.0.1:9", **ACCOUNT)
    assert f"FAIL handlers: {said}" in found.stdout
    assert "Traceback" not in found.stderr


def test_the_doctor_of_one_account_knows_the_handlers_of_the_others(tmp_path):
    folder = copy(tmp_path / "project")
    (folder / "handlers" / "own.py").write_text("ACCOUNT_HANDLERS = {'shop': {}, 'club': {}}\n")
    several = {
        "ACCOUNTS": "shop,club",
        **{f"SHOP_{name}": value for name, value in ACCOUNT.items()},
        **{f"CLUB_{name}": value for name, value in ACCOUNT.items()},
        "CLUB_WECHAT_APPID": "wx0000000000000002",
        "WECHAT_API_BASE": "http://127.0.0.1:9",
    }
    found = flask(folder, "doctor", "--account", "shop", **several)
    assert "settings: " in found.stdout
    assert "handlers" not in found.stdout + found.stderr


def test_flasks_own_server_says_that_settings_are_missing(bot):
    bot.environ["WECHAT_APPID"] = ""
    for command in ("run", "routes"):
        assert "WECHAT_APPID: is required" in failed(bot.flask(command), 2)
