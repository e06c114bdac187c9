"""`flask doctor`: each test breaks one thing and sees that finding, and no other.

The bot is a real process and the platform the sandbox; a tunnel, a central server or a clock that is off are small
servers on this machine.
"""

import contextlib
import json
import re
import socket
import sqlite3
import time
from email.utils import formatdate
from tempfile import TemporaryFile

import pytest
import requests
from flask import Flask, Response, redirect, request
from werkzeug.serving import WSGIRequestHandler

import parts
from commands.doctor import examination, stores
from commands.doctor.console import console_entry
from sandbox import THROWAWAY, running_sandbox
from tests import pushing
from tests.conftest import ACCOUNT, Bot, eventually, free_port
from tests.serving import serving
from tests.terminal import on_a_terminal
from tests.test_flow import calls, control, send
from web import doctor_mark
from wechat.access_token import EMPTY
from wechat.messages import parse_message
from wechat.signature import sign

pytestmark = pytest.mark.xdist_group("waits-2")

CHECKS = ["settings", "database", "media", "token", "platform", "callback", "clock", "worker", "disk"]
OTHER_KEY = "Zt4mQ9sVb2LxK7eWc1RyU8nHj5PaDf3GoI6TqSkXwEM"
SECRETS = [THROWAWAY.appsecret, THROWAWAY.token, THROWAWAY.aes_key, OTHER_KEY]
CHINESE = re.compile("[\u4e00-\u9fff]")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A sandbox and a bot, whose web process runs while this module is tested; nobody works off its ledger."""
    folder = tmp_path_factory.mktemp("doctor")
    with running_sandbox() as sandbox:
        environ = {
            **ACCOUNT,
            "WECHAT_AES_KEY": THROWAWAY.aes_key,
            "WECHAT_API_BASE": sandbox.url,
            "DATABASE_URL": f"sqlite:///{folder}/bot.db",
            "MEDIA_STORE": f"{folder}/media",
            "PORT": str(free_port()),
            "WEB_CONCURRENCY": "1",
            "WORKER": "external",
        }
        bot = Bot(folder, environ)
        bot.web()
        yield sandbox, bot
        for process in bot.processes:
            process.kill()


@pytest.fixture
def sandbox(place):
    sandbox, bot = place
    control(sandbox, "reset", {}, "POST")
    sandbox.callback = f"{bot.url}/wechat"
    return sandbox


@pytest.fixture
def bot(place, sandbox):
    return place[1]


def examined(bot, **changed):
    """Every finding, by the bot's settings with some of them changed."""
    findings = list(examination.examine(bot.environ | changed, bot.folder))
    checks = dict.fromkeys(finding.check for finding in findings)
    assert [check for check in checks if check not in examination.ONLY_WHEN_WRONG] == CHECKS
    for finding in findings:
        assert "\n" not in finding.hint
        assert not CHINESE.search(re.sub(r"\(.*?\)", "", finding.english)), finding
        assert CHINESE.search(finding.chinese), finding
        assert finding.hint == f"{finding.english} / {finding.chinese}"
        assert not [secret for secret in SECRETS if secret in finding.hint]
    return findings


def the_only_one(check, findings, unchecked=()):
    """The hint of the one check that fails; all others are OK but for those that cannot be checked because of it."""
    assert [finding.check for finding in findings if finding.ok is False] == [check], findings
    assert [finding.check for finding in findings if finding.ok is None] == list(unchecked), findings
    return next(finding.hint for finding in findings if finding.ok is False)


def all_well(findings, unchecked=()):
    assert [finding for finding in findings if finding.ok is False] == []
    assert [finding.check for finding in findings if finding.ok is None] == list(unchecked), findings
    return {finding.check: finding.hint for finding in findings}


def fault(sandbox, path, **how):
    control(sandbox, "faults", [{"path": path, "times": None, **how}])


@contextlib.contextmanager
def silence():
    """The port of a server that takes connections and never says a word."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        yield silent.getsockname()[1]


def passing_on(target, more=None):
    """A WSGI application that passes everything on to `target`, with `more` headers, as a tunnel does."""
    app = Flask("passing_on", static_folder=None)

    @app.route("/<path:path>", methods=["GET", "POST"])
    def pass_on(path):
        answer = requests.request(
            request.method,
            f"{target}/{path}?{request.query_string.decode()}",
            data=request.get_data(),
            headers={
                "Content-Type": request.content_type or "text/plain",
                doctor_mark.HEADER: request.headers.get(doctor_mark.HEADER),
                **(more or {}),
            },
            timeout=10,
        )
        kept = {
            name: answer.headers[name]
            for name in ("Content-Type", doctor_mark.HEADER)
            if name in answer.headers
        }
        return Response(answer.content, answer.status_code, kept)

    return app


def at(date):
    """A request handler for a server whose answers bear that Date."""
    return type("At", (WSGIRequestHandler,), {"date_time_string": lambda self, timestamp=None: date})


def saying(answer):
    """A WSGI application that gives that to every request."""
    app = Flask("saying", static_folder=None)
    app.add_url_rule("/<path:path>", view_func=lambda path: answer(), methods=["GET", "POST"])
    return app


# -- all is well ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "modes"),
    [
        ({"WECHAT_AES_KEY": ""}, "(GET, plain, compat)"),
        ({}, "(GET, safe, compat)"),
        ({"WECHAT_ACCEPT_PLAINTEXT": "1"}, "(GET, safe, compat, plain)"),
    ],
)
def test_a_healthy_bot_in_each_mode_and_nothing_left_behind(sandbox, make_bot, environ, modes):
    bot = make_bot(sandbox, **environ)
    bot.web()
    assert modes in all_well(examined(bot))["callback"]
    assert parts.build(bot.settings).of[""].ledger.get(1) is None
    assert parts.build(bot.settings).of[""].tokens.load() == EMPTY
    assert not [path for path in (bot.folder / "media").rglob("*") if path.is_file()]
    assert calls(sandbox, "/cgi-bin/stable_token") == {"ok": 1}
    assert calls(sandbox, "/cgi-bin/callback/check") == {"ok": 1}
    assert calls(sandbox, "/cgi-bin/token") == {}


def test_during_a_rotation_and_through_a_tunnel(bot):
    with serving(passing_on(bot.url)) as tunnel:
        well = all_well(
            examined(bot, PUBLIC_URL=tunnel, WECHAT_TOKEN_PREVIOUS="old", WECHAT_AES_KEY_PREVIOUS=OTHER_KEY)
        )
    assert tunnel in well["callback"]


# -- settings ---------------------------------------------------------------------------------------------------


def test_each_fault_of_the_settings_is_a_finding_and_the_rest_is_checked(bot):
    findings = examined(bot, LEDGER_SYNC="sometimes", REPLY_SECONDS="9")
    wrong = [finding for finding in findings if finding.ok is False]
    assert [finding.check for finding in wrong] == ["settings", "settings"]
    for name, finding in zip(["REPLY_SECONDS", "LEDGER_SYNC"], wrong, strict=True):
        assert name in finding.hint
    assert [finding.check for finding in findings if finding.ok is None] == ["callback"]


@pytest.mark.parametrize(
    ("environ", "unchecked"),
    [
        ({"WECHAT_APPID": ""}, ["token", "platform", "callback", "worker"]),
        ({"WECHAT_APPSECRET": ""}, ["token", "platform", "callback"]),
        ({"WECHAT_TOKEN": ""}, ["callback"]),
        ({"WECHAT_AES_KEY": "short", "WECHAT_AES_KEY_PREVIOUS": OTHER_KEY}, ["callback"]),
        ({"DATABASE_URL": "mysql://x"}, ["database", "token", "platform", "callback", "worker", "disk"]),
        ({"MEDIA_STORE": "s3://"}, ["media", "callback", "disk"]),
        ({"MEDIA_STORE": "s3://Bucket/a prefix"}, ["media", "callback", "disk"]),
        ({"WECHAT_AES_KEY": "+" * 43}, ["callback"]),
        ({"WECHAT_API_BASE": "x"}, ["token", "platform", "callback", "clock"]),
        ({"WECHAT_TOKEN_SOURCE": "http://127.0.0.1:9"}, ["token", "platform", "callback"]),
    ],
)
def test_what_needs_a_faulty_setting_says_so(bot, environ, unchecked):
    hint = the_only_one("settings", examined(bot, **environ), unchecked)
    assert next(iter(environ)) in hint


# -- database, media, disk, worker ------------------------------------------------------------------------------


def test_a_file_that_is_no_database(bot, tmp_path):
    (tmp_path / "bot.db").write_text("this is no database, " * 100)
    findings = examined(bot, DATABASE_URL=f"sqlite:///{tmp_path}/bot.db")
    assert "DATABASE_URL" in the_only_one("database", findings, ["worker"])


def test_a_schema_from_the_future(bot, tmp_path):
    url = f"sqlite:///{tmp_path}/bot.db"
    parts.build(Bot(bot.folder, bot.environ | {"DATABASE_URL": url}).settings).of[""].database.prepare()
    all_well(examined(bot, DATABASE_URL=url))
    with contextlib.closing(sqlite3.connect(tmp_path / "bot.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    assert "newer version" in the_only_one("database", examined(bot, DATABASE_URL=url), ["worker"])


def test_a_postgresql_that_is_well_and_then_read_only(bot, postgresql):
    url = postgresql.new_migrated()
    all_well(examined(bot, DATABASE_URL=url))
    name = url.partition("?")[0].rpartition("/")[2]
    with postgresql.connection() as connection:
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    assert "read-only" in the_only_one("database", examined(bot, DATABASE_URL=url), ["worker"])
    postgresql.drop(url)


def test_a_postgresql_without_tables_and_without_the_right_to_make_them(bot, postgresql):
    url = postgresql.new()
    all_well(examined(bot, DATABASE_URL=url))
    with postgresql.connection() as connection:
        connection.execute("CREATE ROLE visitor LOGIN")
        as_visitor = url.replace("postgres:@", "visitor@")
        hint = the_only_one("database", examined(bot, DATABASE_URL=as_visitor), ["worker"])
        assert "permission denied for schema public: may the user of DATABASE_URL make and use tables" in hint
        postgresql.drop(url)
        connection.execute("DROP ROLE visitor")


def test_a_media_store_that_cannot_be_written(bot, tmp_path):
    (tmp_path / "media").write_text("a file where a folder should be")
    assert "MEDIA_STORE" in the_only_one("media", examined(bot, MEDIA_STORE=f"{tmp_path}/media"))


def test_a_name_does_not_act_on_a_terminal(bot, tmp_path):
    hint = all_well(examined(bot, MEDIA_STORE=f"{tmp_path}/me\x1b[2J\u202edia"))["media"]
    assert "me\\x1b[2J\\u202edia" in hint
    assert hint.isprintable()


def test_a_bucket_that_is_there_and_one_that_is_not(bot, s3_url):
    assert s3_url in all_well(examined(bot, MEDIA_STORE=s3_url))["media"]
    hint = the_only_one("media", examined(bot, MEDIA_STORE="s3://no-such-bucket-here/prefix"))
    assert "NoSuchBucket" in hint
    assert "AWS_*" in hint


def test_a_store_whose_address_is_none(bot, s3_settings, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "minio:9000")
    hint = the_only_one("media", examined(bot, MEDIA_STORE="s3://bucket/prefix"))
    assert "AWS_ENDPOINT_URL_S3 must be a whole address" in hint


@pytest.mark.parametrize(("store", "name"), [("media", "MEDIA_STORE"), ("s3", "DATABASE_URL")])
def test_a_full_disk(bot, tmp_path, monkeypatch, request, store, name):
    (tmp_path / "full").mkdir()
    full = str(tmp_path / "full")
    usage = stores.shutil.disk_usage("/")

    def disk_usage(path):
        return usage._replace(free=199 * 2**20 if str(path).startswith(full) else 2**40)

    monkeypatch.setattr(stores.shutil, "disk_usage", disk_usage)
    if store == "s3":
        changed = {
            "MEDIA_STORE": request.getfixturevalue("s3_url"),
            "DATABASE_URL": f"sqlite:///{full}/bot.db",
        }
    else:
        changed = {"MEDIA_STORE": f"{full}/not/yet/there"}
    hint = the_only_one("disk", examined(bot, **changed))
    assert name in hint
    assert "199 MB" in hint
    # Only the room for pictures is kept: a worker does not look at the database's disk.
    assert ("downloads wait" in hint) is (name == "MEDIA_STORE")


def waiting(bot, tmp_path, seconds, number=1):
    """Settings whose ledger has pictures that came in so many seconds ago."""
    changed = {"DATABASE_URL": f"sqlite:///{tmp_path}/bot.db"}
    built = parts.build(Bot(bot.folder, bot.environ | changed).settings).of[""]
    for each in range(number):
        built.ledger.record(parse_message(pushing.image(each).encode()), None, time.time() - seconds)
    return changed, built.queue


@pytest.mark.parametrize(
    ("setting", "remedy"), [("external", "flask worker"), ("embedded", "WORKER=embedded")]
)
def test_no_worker_lives(bot, tmp_path, setting, remedy):
    changed, _ = waiting(bot, tmp_path, 60)
    hint = the_only_one("worker", examined(bot, WORKER=setting, **changed))
    assert remedy in hint
    assert re.search(r"oldest for [67]\d s", hint)


def test_a_bot_that_does_not_run_is_one_fault(bot, tmp_path):
    changed, _ = waiting(bot, tmp_path, 60)
    the_only_one("callback", examined(bot, WORKER="embedded", PORT="9", **changed), ["worker"])


def test_a_worker_that_died_with_its_claims(bot, tmp_path):
    changed, queue = waiting(bot, tmp_path, 60)
    queue.claim_downloads(time.time() - 20, 5)
    the_only_one("worker", examined(bot, **changed))
    # A lease that ended a moment ago: another worker may still take it.
    queue.claim_downloads(time.time() - 14, 12)
    all_well(examined(bot, **changed))


def test_workers_at_work_and_workers_that_do_not_keep_up(bot, tmp_path):
    changed, queue = waiting(bot, tmp_path, 60, number=2)
    queue.claim_downloads(time.time(), 600)
    assert "1 in hand" in all_well(examined(bot, **changed))["worker"]
    (tmp_path / "more").mkdir()
    changed, queue = waiting(bot, tmp_path / "more", 400, number=2)
    queue.claim_downloads(time.time(), 600)
    assert "start more" in the_only_one("worker", examined(bot, **changed))


# -- the access_token -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (40164, ["203.0.113.7", "whitelist", "白名单"]),
        (40125, ["AppSecret wrong", "WECHAT_APPSECRET"]),
        (40013, ["Check the AppID", "WECHAT_APPID"]),
        (40243, ["Thaw the AppSecret"]),
        (89503, ["Administrator must confirm this IP"]),
    ],
)
def test_a_refused_fetch(sandbox, bot, code, words):
    fault(sandbox, "/cgi-bin/stable_token", errcode=code)
    hint = the_only_one("token", examined(bot), ["platform"])
    for word in [str(code), *words]:
        assert word in hint
    assert calls(sandbox, "/cgi-bin/token") == {}


def test_a_wrong_secret(bot):
    assert "40125" in the_only_one("token", examined(bot, WECHAT_APPSECRET="f" * 32), ["platform"])


def test_stable_token_refused_and_classic_tried_without_harm(sandbox, bot, tmp_path):
    changed = {"DATABASE_URL": f"sqlite:///{tmp_path}/bot.db"}
    token = parts.build(Bot(bot.folder, bot.environ | changed).settings).of[""].token
    shared, row = token.get(), token.row()
    fault(sandbox, "/cgi-bin/stable_token", errcode=48001)
    hint = the_only_one("token", examined(bot, **changed), ["platform"])
    assert "set WECHAT_TOKEN_SOURCE=classic" in hint
    assert "48001" in hint
    assert calls(sandbox, "/cgi-bin/token") == {"ok": 1}
    assert token.row() == row
    url = f"{sandbox.url}/cgi-bin/getcallbackip"
    assert "ip_list" in requests.get(url, params={"access_token": shared}, timeout=5).json()


def test_both_ways_to_a_token_refused(sandbox, bot):
    control(
        sandbox,
        "faults",
        [
            {"path": "/cgi-bin/stable_token", "times": None, "errcode": 48001},
            {"path": "/cgi-bin/token", "times": None, "errcode": 40164},
        ],
    )
    hint = the_only_one("token", examined(bot), ["platform"])
    assert "48001" in hint
    assert "classic" not in hint


def test_the_platform_is_away(bot):
    findings = examined(bot, WECHAT_API_BASE=f"http://127.0.0.1:{free_port()}")
    assert "WECHAT_API_BASE" in the_only_one("token", findings, ["platform", "clock"])


def test_a_classic_token_is_fetched_once_and_shared(sandbox, bot, tmp_path):
    changed = {"WECHAT_TOKEN_SOURCE": "classic", "DATABASE_URL": f"sqlite:///{tmp_path}/bot.db"}
    assert "was fetched" in all_well(examined(bot, **changed))["token"]
    assert "is kept" in all_well(examined(bot, **changed))["token"]
    assert calls(sandbox, "/cgi-bin/token") == {"ok": 1}
    control(sandbox, "token/expire", {}, "POST")
    all_well(examined(bot, **changed))
    assert calls(sandbox, "/cgi-bin/token") == {"ok": 2}


def test_a_classic_token_refused_or_without_its_database(sandbox, bot, tmp_path):
    changed = {"WECHAT_TOKEN_SOURCE": "classic", "DATABASE_URL": f"sqlite:///{tmp_path}/bot.db"}
    fault(sandbox, "/cgi-bin/token", errcode=40164)
    assert "203.0.113.7" in the_only_one("token", examined(bot, **changed), ["platform"])
    (tmp_path / "bot.db-wal").unlink(missing_ok=True)
    (tmp_path / "bot.db").write_text("this is no database, " * 100)
    the_only_one("database", examined(bot, **changed), ["token", "platform", "worker"])


def test_a_central_token_server_and_a_wrong_key_for_it(sandbox, make_bot):
    central = make_bot(sandbox, TOKEN_SERVER_KEY="the key of this test")
    central.web()
    source = {"WECHAT_TOKEN_SOURCE": central.url, "WECHAT_APPSECRET": ""}
    all_well(examined(central, **source, WECHAT_TOKEN_SOURCE_KEY="the key of this test"))
    findings = examined(central, **source, WECHAT_TOKEN_SOURCE_KEY="another")
    assert "WECHAT_TOKEN_SOURCE_KEY" in the_only_one("token", findings, ["platform"])


# -- the platform's view ----------------------------------------------------------------------------------------


def test_a_token_that_the_platform_itself_refuses(sandbox, bot):
    all_well(examined(bot))
    control(sandbox, "token/expire", {"stuck": True}, "POST")
    assert "has just handed out" in the_only_one("platform", examined(bot))


def test_no_callback_url_in_the_console(sandbox, bot):
    sandbox.callback = None
    hint = the_only_one("platform", examined(bot))
    assert "40201" in hint
    assert "https://YOUR-HOST/wechat" in hint


def test_a_callback_that_the_platform_cannot_reach(sandbox, bot):
    sandbox.callback = f"http://127.0.0.1:{free_port()}/wechat"
    assert "cannot reach 127.0.0.1" in the_only_one("platform", examined(bot))


@pytest.mark.parametrize("body", ['{"dns": [], "ping": []}', '{"dns": "none", "ping": [1]}'])
def test_a_callback_whose_name_the_platform_cannot_look_up(sandbox, bot, body):
    fault(sandbox, "/cgi-bin/callback/check", body=body)
    assert "no address" in the_only_one("platform", examined(bot))


def test_a_callback_elsewhere_is_said(sandbox, bot):
    fault(sandbox, "/cgi-bin/callback/check", body='{"dns": [{"ip": "203.0.113.9", "real_operator": "CAP"}]}')
    hint = all_well(examined(bot, PUBLIC_URL=bot.url))["platform"]
    assert "203.0.113.9" in hint
    assert "127.0.0.1" in hint
    assert "127.0.0.1" not in all_well(examined(bot))["platform"]


@pytest.mark.parametrize("code", [48001, 45009])
def test_an_account_that_may_not_ask_is_no_fault(sandbox, bot, code):
    fault(sandbox, "/cgi-bin/callback/check", errcode=code)
    findings = examined(bot)
    all_well(findings, ["platform"])
    assert str(code) in findings[CHECKS.index("platform")].hint


@pytest.mark.parametrize(
    ("how", "words"), [({"errcode": 48004}, "mp.weixin.qq.com"), ({"disconnect": True}, "WECHAT_API_BASE")]
)
def test_the_platform_does_not_say(sandbox, bot, how, words):
    fault(sandbox, "/cgi-bin/callback/check", **how)
    assert words in the_only_one("platform", examined(bot))


# -- the callback -----------------------------------------------------------------------------------------------


def test_a_bot_that_does_not_run(bot):
    assert "start the bot" in the_only_one("callback", examined(bot, PORT=str(free_port())))


@pytest.mark.parametrize(
    ("environ", "name", "status"),
    [
        ({"WECHAT_TOKEN": "AnotherToken"}, "GET", 403),
        ({"WECHAT_AES_KEY": OTHER_KEY}, "safe", 403),
        ({"WECHAT_AES_KEY": ""}, "plain", 403),
        ({"WECHAT_ACCEPT_PLAINTEXT": "1"}, "plain", 403),
    ],
)
def test_a_bot_that_runs_with_other_settings(bot, environ, name, status):
    hint = the_only_one("callback", examined(bot, **environ))
    assert f"answers HTTP {status} to the doctor's request ({name})" in hint
    assert "restart" in hint


def test_something_that_answers_every_request(bot):
    with serving(
        saying(lambda: Response(request.args.get("echostr", "success"), mimetype="text/plain"))
    ) as it:
        hint = the_only_one("callback", examined(bot, PUBLIC_URL=it))
    assert "GET with a wrong signature" in hint
    assert f"the bot answers correctly at {bot.url}/wechat" in hint


NGROK = '<!DOCTYPE html><html class="h-full"><title>ngrok</title><noscript>You are about to visit: it. (%s)</noscript>'


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (lambda: Response(NGROK % "ERR_NGROK_6024"), ["warning page", "ERR_NGROK_6024"]),
        (lambda: Response("", 511, {"Ngrok-Error-Code": "ERR_NGROK_6024"}), ["warning page"]),
        (lambda: Response(NGROK % "ERR_NGROK_3200", 404), ["/errors/err_ngrok_3200"]),
        (
            lambda: Response("<html><head><title>Careful\x1b[2J, friend!</title></head>"),
            ["(Careful[2J, friend!)"],
        ),
        (lambda: Response("<!doctype html>", mimetype="text/plain"), ["HTML page came"]),
        (lambda: Response("<h1>Not found</h1>", 404), ["without /wechat"]),
        (
            lambda: redirect("https://elsewhere.example/wechat?signature=x", 301),
            ["redirects to https://elsewhere.example/wechat,"],
        ),
        (
            lambda: Response("", 302, {"Location": "/sign-in?next=1"}),
            ["redirects to http://127.0.0.1:", "/sign-in, and"],
        ),
        (lambda: Response("<h1>Bad Gateway</h1>", 502), ["HTTP 502", "does not reach the bot"]),
        (lambda: Response("x" * 200_000, mimetype="text/plain"), ["HTTP 200 to the doctor's request (GET)"]),
    ],
)
def test_a_tunnel_that_answers_instead_of_the_bot(bot, page, words):
    with serving(saying(page)) as tunnel:
        hint = the_only_one("callback", examined(bot, PUBLIC_URL=tunnel))
    for word in words:
        assert word in hint
    assert f"the bot answers correctly at {bot.url}/wechat" in hint
    assert "signature=" not in hint


@pytest.mark.parametrize("location", ["http://[elsewhere", "http://a\\b:c:d/", "/\x1b[2J"])
def test_a_redirect_to_an_odd_address(bot, location):
    def tunnel(environ, start_response):
        start_response("302 Found", [("Location", location), ("Content-Length", "0")])
        return []

    with serving(tunnel) as url:
        hint = the_only_one("callback", examined(bot, PUBLIC_URL=url))
    assert "redirects to " in hint
    assert hint.isprintable()


def test_https_without_a_certificate(bot):
    with serving(passing_on(bot.url)) as tunnel:
        hint = the_only_one("callback", examined(bot, PUBLIC_URL=tunnel.replace("http:", "https:")))
    assert "TLS" in hint


def test_a_port_that_the_platform_does_not_call(bot):
    hint = the_only_one("callback", examined(bot, PUBLIC_URL="https://bot.example:8443"))
    assert "8443" in hint


# -- the clock --------------------------------------------------------------------------------------------------


def test_a_clock_that_is_off(sandbox, bot):
    then = time.strftime(
        "%a, %d-%b-%Y %H:%M:%S GMT", time.gmtime(time.time() - 1000)
    )  # as the platform wrote it
    with serving(passing_on(sandbox.url), at(then)) as platform:
        hint = the_only_one("clock", examined(bot, WECHAT_API_BASE=platform))
        assert re.search(r"\+10[0-5]\d s off", hint)
        assert "WECHAT_TIMESTAMP_WINDOW=600" in hint
        for window in ("0", "1100"):
            all_well(examined(bot, WECHAT_API_BASE=platform, WECHAT_TIMESTAMP_WINDOW=window))


def test_a_clock_that_is_off_by_more_than_a_lease(sandbox, bot, postgresql_url):
    """On PostgreSQL there may be other machines."""
    then = formatdate(time.time() - 61, usegmt=True)
    with serving(passing_on(sandbox.url), at(then)) as platform:
        findings = examined(bot, WECHAT_API_BASE=platform, DATABASE_URL=postgresql_url)
        assert re.search(r"\+6\d s off .*LEASE_SECONDS=15:", the_only_one("clock", findings))
        of_a_longer_lease = {"DATABASE_URL": postgresql_url, "LEASE_SECONDS": "120"}
        all_well(examined(bot, WECHAT_API_BASE=platform, **of_a_longer_lease))
        all_well(examined(bot, WECHAT_API_BASE=platform))


@pytest.mark.parametrize("date", ["soon", "Mon, 01 Jan 99999 00:00:00 GMT"])
def test_a_platform_that_tells_no_time(sandbox, bot, date):
    with serving(passing_on(sandbox.url), at(date)) as platform:
        all_well(examined(bot, WECHAT_API_BASE=platform), ["clock"])


# -- bounds -----------------------------------------------------------------------------------------------------


def test_what_hangs_is_a_finding_when_the_time_is_over(bot, s3_settings, monkeypatch):
    monkeypatch.setattr(examination, "DEADLINE_SECONDS", 3.0)
    with silence() as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
        started = time.monotonic()
        hint = the_only_one("media", examined(bot, MEDIA_STORE="s3://bucket/prefix"))
        assert time.monotonic() - started < 20
    assert "no result within 3 s" in hint


def test_everything_dead_is_told_within_30_seconds(bot):
    with silence() as port:
        dead = f"127.0.0.1:{port}"
        started = time.monotonic()
        findings = examined(
            bot,
            WECHAT_API_BASE=f"http://{dead}",
            DATABASE_URL=f"postgresql://bot:hush@{dead}/bot",
            MEDIA_STORE="/dev/null/media",
            PUBLIC_URL=f"http://{dead}",
            PORT=str(port),
        )
        assert time.monotonic() - started < 30
    wrong = [finding.check for finding in findings if finding.ok is False]
    assert wrong == ["database", "media", "token", "callback"]
    assert "within 5 s" in findings[CHECKS.index("callback")].hint
    assert "hush" not in str(findings)


# -- what was refused lately --------------------------------------------------------------------------------------


def refused(bot, **changed):
    return [finding.hint for finding in examined(bot, **changed) if finding.check == "refused"]


def ask(bot, token, now=None, **headers):
    """A request as the console makes it on 提交, signed with that Token."""
    timestamp, nonce = str(int(now or time.time())), "7"
    query = {
        "signature": sign(token, timestamp, nonce),
        "timestamp": timestamp,
        "nonce": nonce,
        "echostr": "1",
    }
    return requests.get(f"{bot.url}/wechat", params=query, headers=headers, timeout=10).status_code


def test_the_token_in_the_console_is_another(sandbox, make_bot):
    bot = make_bot(sandbox, WEB_CONCURRENCY="2")
    bot.web()
    assert refused(bot) == []
    assert ask(bot, "TokenOfTheConsole") == 403
    (hint,) = refused(bot)
    assert hint.startswith(
        "1 requests in the last 10 minutes had a wrong signature: the Token in the console is not WECHAT_TOKEN"
    )
    assert "公众平台的令牌(Token)与 WECHAT_TOKEN 不一致" in hint
    assert bot.flask("doctor").returncode == 1
    # Corrected, and the first push comes in.
    send(sandbox)
    assert refused(bot) == []


def test_what_strangers_and_doctors_ask_is_no_sign_of_a_wrong_token(sandbox, make_bot):
    bot = make_bot(sandbox)
    bot.web()
    assert requests.get(f"{bot.url}/wechat", timeout=5).status_code == 403
    assert requests.get(f"{bot.url}/wechat?signature=x&timestamp=1&nonce=1", timeout=5).status_code == 403
    examined(bot)
    examined(bot, WECHAT_TOKEN="AnotherToken")
    assert refused(bot) == []


def test_a_clock_that_was_off_and_a_push_that_was_not_encrypted(sandbox, make_bot):
    bot = make_bot(sandbox)
    bot.web()
    assert ask(bot, THROWAWAY.token, time.time() - 5000) == 403
    (hint,) = refused(bot)
    assert "WECHAT_TIMESTAMP_WINDOW" in hint
    send(sandbox, mode="plain")
    assert any("WECHAT_AES_KEY" in hint for hint in refused(bot))


def test_the_bots_log_has_one_line_of_the_doctor_and_its_figures_have_none(sandbox, make_bot):
    bot = make_bot(sandbox, LOG_FORMAT="json")
    bot.web()
    all_well(examined(bot))
    lines = [json.loads(line) for line in bot.logs().splitlines() if line.startswith("{")]
    of_the_callback = [line for line in lines if line["logger"] == "web.callback"]
    assert [(line["level"], line["message"]) for line in of_the_callback] == [
        ("INFO", "flask doctor looks at the callback")
    ]
    shown = requests.get(f"{bot.url}/metrics", timeout=5).text
    assert not re.search(r"^wechat_(refusals|deliveries)_total\{.*\} [1-9]", shown, re.M)


def test_a_mark_is_good_for_its_token_and_for_minutes_only():
    mark = doctor_mark.mark("token", 1000)
    assert doctor_mark.is_marked(mark, "token", 1100)
    assert not doctor_mark.is_marked(mark, "another", 1100)
    assert not doctor_mark.is_marked(mark, "token", 1400)
    for value in ("", "-", "x", "1000", "1000-x", "٣-x", "9" * 5000 + "-x", "1000-令牌"):
        assert not doctor_mark.is_marked(value, "token", 1100)


# -- proxies and secrets ------------------------------------------------------------------------------------------


def test_a_proxy_that_the_settings_do_not_know(sandbox, bot):
    with serving(passing_on(bot.url, {"X-Forwarded-For": "203.0.113.7, 10.0.0.1"})) as proxy:
        hint = the_only_one("proxy", examined(bot, PUBLIC_URL=proxy))
        assert "set PROXY_HOPS=2" in hint
        all_well(examined(bot, PUBLIC_URL=proxy, PROXY_HOPS="2"))


def test_an_unknown_setting(bot, tmp_path):
    hint = the_only_one("settings", examined(bot, WECHAT_APPSECERT="x"))
    assert "did you mean WECHAT_APPSECRET?" in hint
    (tmp_path / ".env").write_text("PUBLIC_ULR=https://bot.example\nAWS_REGION=x\nPOSTGRES_PASSWORD=x\n")
    (tmp_path / ".env").chmod(0o600)
    findings = list(examination.examine(bot.environ, tmp_path))
    assert "did you mean PUBLIC_URL?" in the_only_one("settings", findings)


@pytest.mark.parametrize(
    "line", ["WECHAT_APPSECRET＝hush", "WECHAT_APPSECRET:hush", "WECHAT_APPSECRET：hush="]
)
def test_a_secret_after_a_wrong_sign_is_not_shown(bot, tmp_path, line):
    (tmp_path / ".env").write_text(f"{line}\n", encoding="utf-8")
    (tmp_path / ".env").chmod(0o600)
    hint = the_only_one("settings", list(examination.examine(bot.environ, tmp_path)))
    assert "line 1 is not NAME=value" in hint
    assert "hush" not in hint


def test_secrets_that_others_can_read(bot, tmp_path):
    (tmp_path / ".env").write_text("PORT=1\n")
    (tmp_path / ".env").chmod(0o644)
    assert "chmod 600 .env" in the_only_one("secrets", list(examination.examine(bot.environ, tmp_path)))
    (tmp_path / ".env").chmod(0o640)
    all_well(list(examination.examine(bot.environ, tmp_path)))


@pytest.mark.parametrize(
    ("source", "exposed"),
    [
        ("http://token.example", True),
        ("https://token.example", False),
        ("http://127.0.0.1:9", False),
        ("http://localhost:9", False),
        ("http://[::1]:9", False),
    ],
)
def test_a_token_server_without_tls(bot, source, exposed):
    findings = examined(
        bot, WECHAT_TOKEN_SOURCE=source, WECHAT_TOKEN_SOURCE_KEY="key", WECHAT_API_BASE="http://127.0.0.1:9"
    )
    secrets = [finding.hint for finding in findings if finding.check == "secrets"]
    assert len(secrets) == exposed
    assert all("https://" in hint for hint in secrets)


@pytest.mark.parametrize(
    ("proxy", "said"),
    [
        ("http://user:hush@127.0.0.1:9", "HTTPS_PROXY leads to 127.0.0.1:9"),
        ("user:hush@127.0.0.1:9", "HTTPS_PROXY leads to 127.0.0.1:9"),
        ("http://user:hush@127.0.0.1:port", "HTTPS_PROXY must be like http://host:port"),
        ("http://user:hush@[::1", "HTTPS_PROXY must be like http://host:port"),
    ],
)
def test_a_proxy_of_this_machine_may_be_in_the_way(bot, monkeypatch, proxy, said):
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with silence() as port:
        hint = the_only_one(
            "token", examined(bot, WECHAT_API_BASE=f"http://127.0.0.1:{port}"), ["platform", "clock"]
        )
    assert said in hint
    assert "hush" not in hint


def test_nothing_is_made_where_nothing_is(bot, tmp_path):
    well = all_well(
        examined(bot, DATABASE_URL=f"sqlite:///{tmp_path}/new/bot.db", MEDIA_STORE=f"{tmp_path}/new/media")
    )
    assert "at the next start" in well["database"]
    assert list(tmp_path.iterdir()) == []


def test_a_place_where_nothing_can_be_made(bot, tmp_path):
    (tmp_path / "file").write_text("")
    changed = {"DATABASE_URL": f"sqlite:///{tmp_path}/file/bot.db", "MEDIA_STORE": f"{tmp_path}/file/media"}
    findings = examined(bot, **changed)
    assert [finding.check for finding in findings if finding.ok is False] == ["database", "media"]
    for finding in findings:
        if finding.ok is False:
            assert f"{tmp_path}/file is not writable" in finding.hint


@pytest.mark.parametrize("below", ["", "/data"])
def test_a_link_to_a_disk_that_is_not_mounted(bot, tmp_path, below):
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    store = {"MEDIA_STORE": f"{tmp_path}/link{below}"}
    findings = examined(bot, **store, DATABASE_URL=f"sqlite:///{tmp_path}/link/bot.db")
    assert [finding.check for finding in findings if finding.ok is False] == ["database", "media"]
    for finding in findings:
        if finding.ok is False:
            assert f"{tmp_path}/link leads to {tmp_path}/disk, which is not there" in finding.hint


# -- the command ------------------------------------------------------------------------------------------------


def test_the_command_prints_a_line_a_check_and_exits_0(bot):
    done = bot.flask("doctor")
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["OK", f"{check}:"] for check in CHECKS]
    assert not [secret for secret in SECRETS if secret in done.stdout + done.stderr]


def test_a_failed_check_exits_1_and_json_is_the_last_line(sandbox, bot):
    fault(sandbox, "/cgi-bin/stable_token", errcode=40164)
    done = bot.flask("doctor", "--json")
    assert done.returncode == 1
    shown = json.loads(done.stdout.splitlines()[-1])
    assert all(set(each) == {"check", "ok", "hint"} for each in shown)
    assert [each["check"] for each in shown if not each["ok"]] == ["token"]
    assert "platform" not in [each["check"] for each in shown], "it could not be checked"
    text = bot.flask("doctor")
    assert text.returncode == 1
    assert "\nFAIL token: 40164" in text.stdout
    assert "\n-    platform: not checked" in text.stdout


def test_faulty_settings_are_the_first_findings_and_exit_2(bot):
    environ = {**bot.environ, "WECHAT_AES_KEY": "short", "WECHAT_TOKEN": ""}
    faulty = Bot.__new__(Bot)
    faulty.environ = environ
    done = faulty.flask("doctor")
    assert done.returncode == 2
    first, second = done.stdout.splitlines()[:2]
    assert first.startswith("FAIL settings: WECHAT_TOKEN")
    assert second.startswith("FAIL settings: WECHAT_AES_KEY")
    assert "OK   database" in done.stdout
    assert "Traceback" not in done.stderr
    shown = json.loads(faulty.flask("doctor", "--json").stdout.splitlines()[-1])
    assert [each["ok"] for each in shown[:2]] == [False, False]


def examined_on_a_terminal(environ, *options, columns=300):
    """The exit code, what is shown, and the log lines."""
    environ = {"LANG": "C.UTF-8", "COLUMNS": str(columns), **environ}
    with TemporaryFile() as file:
        shown, status = on_a_terminal(environ, "doctor", *options, columns=columns, stderr=file)
        file.seek(0)
        return status, shown, file.read()


def test_url_and_token_to_paste_are_shown_on_a_terminal_alone(bot):
    environ = bot.environ | {"PUBLIC_URL": bot.url}
    status, shown, _ = examined_on_a_terminal(environ)
    assert status == 0
    assert f"URL    {bot.url}/wechat\r\n" in shown
    assert f"Token  {THROWAWAY.token}\r\n" in shown
    assert THROWAWAY.aes_key not in shown
    assert THROWAWAY.appsecret not in shown
    _, shown, _ = examined_on_a_terminal(environ, "--json")
    assert THROWAWAY.token not in shown
    assert console_entry(environ | {"WECHAT_APPSECRET": ""}, bot.folder) == ""


def plain(shown):
    return re.sub(r"\x1b\[[0-9;]*m", "", shown).replace("\r\n", "\n")


def test_the_look_on_a_terminal(sandbox, bot):
    _, shown, _ = examined_on_a_terminal(bot.environ, columns=80)
    assert "\x1b[32m" in shown
    lines = plain(shown).splitlines()
    assert lines[0].split()[:2] == ["OK", "settings"]
    assert not CHINESE.search(lines[0])
    assert CHINESE.search("".join(lines[1:6]))
    assert "Nothing is wrong." in lines
    assert "INFO" not in plain(shown)
    before_the_entry = plain(shown).partition("\nNothing is wrong")[0].splitlines()
    assert all(sum(2 if CHINESE.match(letter) else 1 for letter in line) <= 82 for line in before_the_entry)


def test_the_look_in_chinese(sandbox, bot):
    _, shown, _ = examined_on_a_terminal(bot.environ | {"LANG": "zh_CN.UTF-8"})
    findings = plain(shown).partition("\nNothing is wrong")[0].splitlines()
    assert len(findings) == len(CHECKS)
    assert all(CHINESE.search(line) for line in findings)


def test_the_last_line_says_what_to_do_first(sandbox, bot):
    environ = bot.environ | {"PORT": "9", "MEDIA_STORE": "/dev/null/media"}
    status, shown, logged = examined_on_a_terminal(environ)
    assert status == 1
    assert logged == b"", "no log lines in between"
    assert "\x1b[31m" in shown
    assert "Begin with media, then run flask doctor again: it may explain the 1 after it." in plain(shown)
    other = Bot.__new__(Bot)
    other.environ = environ
    assert other.flask("doctor").stdout.splitlines()[-1].startswith("Begin with media")
    assert other.flask("doctor").stderr == ""


def test_without_public_url_the_address_is_left_to_fill_in(bot):
    shown = console_entry(bot.environ | {"WECHAT_AES_KEY": ""}, bot.folder)
    assert "https://YOUR-HOST/wechat" in shown
    assert "PUBLIC_URL is not set" in shown
    assert "EncodingAESKey" not in shown


def test_what_the_console_does_on_submit_agrees_with_the_doctor(sandbox, bot):
    """提交 in the console, played by the sandbox."""

    def submit():
        return requests.post(f"{sandbox.url}/sandbox/verify", json={}, timeout=10).json()

    assert submit()["ok"]
    all_well(examined(bot, PUBLIC_URL=bot.url))
    with serving(saying(lambda: Response(NGROK % "ERR_NGROK_6024"))) as tunnel:
        sandbox.callback = f"{tunnel}/wechat"
        assert not submit()["ok"]
        the_only_one("callback", examined(bot, PUBLIC_URL=tunnel))
    eventually(lambda: requests.get(f"{bot.url}/healthz", timeout=5).ok)
