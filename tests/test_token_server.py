"""The central token server: our face and the platform's, keys, and clients that never fetch themselves."""

import json
import threading
import time
from dataclasses import replace

import pytest
import requests
from prometheus_client import REGISTRY

import parts
from app import create_app
from config import Settings
from sandbox import running_sandbox
from storage import sign_ins
from tests.conftest import ACCOUNT, eventually
from tests.databases import sqlite_url
from tests.serving import serving
from tests.test_flow import calls, control

KEY = "central-key-3e1f"
BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def running():
    with running_sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(running):
    running.state.reset()
    return running


@pytest.fixture
def make_app(sandbox, tmp_path):
    def make(name="central", **environ):
        given = ACCOUNT | {
            "DATABASE_URL": sqlite_url(tmp_path / f"{name}.db"),
            "MEDIA_STORE": f"{tmp_path}/media",
            "WECHAT_API_BASE": sandbox.url,
        }
        return create_app(Settings.from_env(given | environ, tmp_path))

    return make


@pytest.fixture
def central(make_app):
    return make_app(TOKEN_SERVER_KEY=KEY).test_client()


def refused_keys():
    return REGISTRY.get_sample_value("wechat_refusals_total", {"account": "", "reason": "key"}) or 0.0


def test_the_key_holders_get_the_token_and_its_true_life(sandbox, central, caplog):
    answer = central.get("/token", headers=BEARER)
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert set(answer.json) == {"access_token", "expires_in"}
    assert 7195 <= answer.json["expires_in"] <= 7200
    again = central.get("/token", headers=BEARER).json
    assert again["access_token"] == answer.json["access_token"]
    assert calls(sandbox, "/cgi-bin/stable_token") == {"ok": 1}
    handed = [record for record in caplog.records if record.message == "token handed out"]
    assert [record.to for record in handed] == ["127.0.0.1"] * 2
    assert answer.json["access_token"] not in caplog.text


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": KEY},
        {"Authorization": "Bearer schlüssel"},
        {"Authorization": "Basic \xc3\xa9"},
        {"Authorization": "Bearer a*=x''%ff"},
        {"Authorization": "Bearer"},
    ],
)
def test_others_are_refused_and_counted(sandbox, central, headers):
    before = refused_keys()
    for answer in (
        central.get("/token", headers=headers),
        central.post("/token/refresh", headers=headers, json={"access_token": "x"}),
    ):
        assert answer.status_code == 401
        assert answer.headers["Cache-Control"] == "no-store"
        assert KEY not in answer.text
    assert refused_keys() == before + 2
    assert calls(sandbox, "/cgi-bin/stable_token") == {}


@pytest.mark.parametrize(
    "key",
    [
        "Kz=8v3Qw7Lp2Xn5Tb",
        "a=b=c=d-0123456789",
        "ends-with-equals==",
        "the key of this test",
        '"comma,in;key"%=1!~',
    ],
)
def test_a_key_may_have_any_characters_of_a_header(make_app, key):
    client = make_app(TOKEN_SERVER_KEY=key).test_client()
    for scheme in ("Bearer", "bearer", "BEARER "):
        assert client.get("/token", headers={"Authorization": f"{scheme} {key}"}).status_code == 200
        assert client.get("/token", headers={"Authorization": f"{scheme} {key}="}).status_code == 401


def test_wrong_keys_are_slowed_down_by_address_and_the_right_one_is_always_taken(sandbox, make_app, caplog):
    clients = [make_app(TOKEN_SERVER_KEY=KEY).test_client() for _ in range(2)]
    query = {"appid": ACCOUNT["WECHAT_APPID"], "secret": "wrong"}
    for number in range(sign_ins.PER_ADDRESS):
        client = clients[number % 2]
        if number % 3:
            assert client.get("/token", headers={"Authorization": "Bearer wrong"}).status_code == 401
        else:
            assert client.get("/cgi-bin/token", query_string=query).json["errcode"] == 40125
    for client in clients:
        for answer in (
            client.get("/token", headers={"Authorization": "Bearer wrong"}),
            client.post("/token/refresh", json={"access_token": "x"}),
            client.get("/cgi-bin/token", query_string=query),
            client.post("/cgi-bin/stable_token", json=query),
        ):
            assert answer.status_code == 429
            assert 0 < int(answer.headers["Retry-After"]) <= 901
        assert client.get("/token", headers=BEARER).status_code == 200
        assert client.get("/cgi-bin/token", query_string=query | {"secret": KEY}).json["access_token"]
        elsewhere = {"REMOTE_ADDR": "198.51.100.7"}
        assert client.get("/token", environ_overrides=elsewhere).status_code == 401
    assert caplog.text.count("wrong TOKEN_SERVER_KEY") == sign_ins.PER_ADDRESS + 2


def test_without_a_key_there_is_no_token_server(make_app):
    client = make_app().test_client()
    for path in ("/token", "/cgi-bin/token"):
        assert client.get(path, headers=BEARER).status_code == 404
    for path in ("/token/refresh", "/cgi-bin/stable_token"):
        assert client.post(path, headers=BEARER).status_code == 404


def test_many_reports_of_one_dead_token_cost_one_fetch(sandbox, central):
    dead = central.get("/token", headers=BEARER).json["access_token"]
    control(sandbox, "token/expire", {}, "POST")
    answers = []

    def report():
        client = central.application.test_client()
        answers.append(client.post("/token/refresh", headers=BEARER, json={"access_token": dead}).json)

    threads = [threading.Thread(target=report) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({answer["access_token"] for answer in answers}) == 1
    assert answers[0]["access_token"] != dead
    assert calls(sandbox, "/cgi-bin/stable_token") == {"ok": 2}


ODD_BODIES = [
    b"",
    b"{",
    b"[]",
    b"5",
    b'"access_token"',
    b"[" * 60_000,
    b'{"a":' * 10_000,
    b"[" * 30_000 + b"]" * 30_000,
    b"\xff\xfe{\x00",
    b"\x80{}",
    b"\x00" * 100,
    b"1" * 5000,
    b'{"access_token": "cut',
]


@pytest.mark.parametrize("body", ODD_BODIES, ids=range(len(ODD_BODIES)))
def test_a_body_that_is_no_json_object_is_a_bad_request(sandbox, central, body):
    for path, code in (("/token/refresh", None), ("/cgi-bin/stable_token", 47001)):
        answer = central.post(path, headers=BEARER, data=body)
        assert (answer.status_code, answer.json.get("errcode")) == (400, code)
    assert calls(sandbox, "/cgi-bin/stable_token") == {}


@pytest.mark.parametrize(
    "value", ["{}", '{"access_token": 5}', '{"access_token": ""}', '{"access_token": [1]}']
)
def test_a_report_without_a_token_is_a_bad_request(central, value):
    assert central.post("/token/refresh", headers=BEARER, data=value).status_code == 400
    assert central.post("/token/refresh", data=value).status_code == 401, "before the body is looked at"


@pytest.mark.parametrize("value", [r'"\ud800"', r'"\u0000"', "1e999", "NaN", "true", "{}", "[]", "null"])
def test_odd_values_are_no_key_and_no_appid(central, value):
    right = json.dumps(ACCOUNT["WECHAT_APPID"])
    for body, code in (
        (f'{{"appid": {value}, "secret": "{KEY}"}}', 40013),
        (f'{{"appid": {right}, "secret": {value}}}', 40125),
    ):
        assert central.post("/cgi-bin/stable_token", data=body).json["errcode"] == code
    assert central.post(
        "/token/refresh", headers=BEARER, data=f'{{"access_token": {value}}}'
    ).status_code in (
        200,
        400,
    )


def test_the_platforms_face(sandbox, central):
    query = {"grant_type": "client_credential", "appid": ACCOUNT["WECHAT_APPID"], "secret": KEY}
    classic = central.get("/cgi-bin/token", query_string=query).json
    stable = central.post("/cgi-bin/stable_token", json=query | {"force_refresh": True}).json
    assert classic["access_token"] == stable["access_token"]
    assert calls(sandbox, "/cgi-bin/stable_token") == {"ok": 1}, "a token that lives is not given up"
    assert central.get("/cgi-bin/token", query_string=query | {"appid": "wxother"}).json["errcode"] == 40013
    before = refused_keys()
    assert central.get("/cgi-bin/token", query_string=query | {"secret": "x"}).json["errcode"] == 40125
    assert central.post("/cgi-bin/stable_token", json=query | {"secret": None}).json["errcode"] == 40125
    assert refused_keys() == before + 2


def test_json_ends_without_a_line_break(central):
    """co-wechat-api (npm) escapes all control characters before it parses, so a line break at the end breaks it."""
    assert central.get("/token", headers={"Authorization": f"Bearer {KEY}"}).data.endswith(b"}")
    query = {"appid": ACCOUNT["WECHAT_APPID"], "secret": KEY}
    for secret in (KEY, *["wrong"] * 20):
        answer = central.get("/cgi-bin/token", query_string=query | {"secret": secret})
        assert answer.data.endswith(b"}")
    assert answer.status_code == 429
    assert central.post("/cgi-bin/stable_token", json=query).data.endswith(b"}")
    assert central.post("/cgi-bin/stable_token", data=b"{").data.endswith(b"}")


def test_a_platform_that_refuses_is_503_with_the_reason(sandbox, central):
    text = "invalid ip 203.0.113.7 ipv6 ::ffff:203.0.113.7, not in whitelist rid: 64f4444a-5f19e663-62c00404"
    control(
        sandbox,
        "faults",
        [{"path": "/cgi-bin/stable_token", "times": None, "errcode": 40164, "errmsg": text}],
    )
    answer = central.get("/token", headers=BEARER)
    assert answer.status_code == 503
    assert "203.0.113.7" in answer.json["error"]
    assert central.post("/token/refresh", headers=BEARER, json={"access_token": "x"}).status_code == 503
    query = {"appid": ACCOUNT["WECHAT_APPID"], "secret": KEY}
    assert central.get("/cgi-bin/token", query_string=query).json["errcode"] == 40164
    ready = central.get("/readyz")
    assert ready.status_code == 200, "the token's trouble is shown, and does not take the bot down"
    assert "203.0.113.7" in ready.json["checks"]["token"]
    assert calls(sandbox, "/cgi-bin/stable_token") == {"40164": 1}, "nobody asks again at once"


def test_a_client_of_the_central_server_never_fetches_itself(sandbox, make_app):
    with serving(make_app(TOKEN_SERVER_KEY=KEY)) as url:
        environ = {"WECHAT_TOKEN_SOURCE": url, "WECHAT_TOKEN_SOURCE_KEY": KEY, "WECHAT_APPSECRET": ""}
        branch = make_app("branch", **environ).extensions["accounts"].of[""]
        first = branch.token.get()
        assert calls(sandbox, "/cgi-bin/stable_token") == {"ok": 1}
        control(sandbox, "token/expire", {}, "POST")
        branch.client.call("GET", "/cgi-bin/getcallbackip", repeatable=True)
        second = branch.token.get()
        assert second != first
        assert calls(sandbox, "/cgi-bin/stable_token") == {"ok": 2}
        # The branch's own call, the central server's look whether the report is true, and the repeated call.
        assert calls(sandbox, "/cgi-bin/getcallbackip") == {"42001": 2, "ok": 1}
    assert branch.token.get() == second, "the server's absence does no harm while the token lives"
    branch.client.call("GET", "/cgi-bin/getcallbackip", repeatable=True)


def test_a_client_with_a_wrong_key_is_told_which_setting(sandbox, make_app):
    with serving(make_app(TOKEN_SERVER_KEY=KEY)) as url:
        environ = {"WECHAT_TOKEN_SOURCE": url, "WECHAT_TOKEN_SOURCE_KEY": "wrong"}
        client = make_app("branch", TOKEN_SERVER_KEY="a-key-of-its-own", **environ).test_client()
        answer = client.get("/token", headers={"Authorization": "Bearer a-key-of-its-own"})
    assert answer.status_code == 503
    assert "WECHAT_TOKEN_SOURCE_KEY" in answer.json["error"]


@pytest.fixture
def wechatpy_client(sandbox, make_app):
    """wechatpy as it is, but for the hosts: the token from the central server, the rest from the platform."""
    from wechatpy import WeChatClient

    with serving(make_app(TOKEN_SERVER_KEY=KEY)) as url:

        class Client(WeChatClient):
            API_BASE_URL = f"{sandbox.url}/cgi-bin/"

            def fetch_access_token(self):
                return self._fetch_access_token(
                    url=f"{url}/cgi-bin/token",
                    params={"grant_type": "client_credential", "appid": self.appid, "secret": self.secret},
                )

        client = Client(ACCOUNT["WECHAT_APPID"], KEY)
        client.central = lambda: requests.get(f"{url}/token", headers=BEARER, timeout=5).json()
        yield client


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wechatpys_client_takes_the_central_token_and_uses_it(sandbox, wechatpy_client):
    assert wechatpy_client.access_token == wechatpy_client.central()["access_token"]
    assert wechatpy_client.misc.get_wechat_ips() == ["127.0.0.1"]
    assert calls(sandbox, "/cgi-bin/stable_token") == {"ok": 1}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("stuck", [False, True])
def test_wechatpys_client_goes_on_after_a_revocation(sandbox, wechatpy_client, stuck):
    assert wechatpy_client.misc.get_wechat_ips() == ["127.0.0.1"]
    for _ in range(3):
        wechatpy_client.central()
    control(sandbox, "token/expire", {"stuck": stuck}, "POST")
    assert wechatpy_client.misc.get_wechat_ips() == ["127.0.0.1"]
    # Refused: the client's own call and the look whether the token lives (a second look at the same one again).
    asked = {"ok": 2, "40001": 3} if stuck else {"ok": 2, "42001": 2}
    assert calls(sandbox, "/cgi-bin/getcallbackip") == asked
    assert calls(sandbox, "/cgi-bin/stable_token") == {"ok": 3 if stuck else 2}


def test_an_sdk_that_asks_for_ever_costs_a_few_cheap_calls(sandbox, central):
    query = {"grant_type": "client_credential", "appid": ACCOUNT["WECHAT_APPID"], "secret": KEY}
    given = {central.get("/cgi-bin/token", query_string=query).json["access_token"] for _ in range(100)} | {
        central.post("/cgi-bin/stable_token", json=query | {"force_refresh": True}).json["access_token"]
        for _ in range(100)
    }
    assert len(given) == 1
    assert calls(sandbox, "/cgi-bin/stable_token") == {"ok": 1}
    assert calls(sandbox, "/cgi-bin/getcallbackip")["ok"] <= 6


def test_eight_cold_processes_make_one_classic_fetch(sandbox, make_bot):  # a stable one: tests/test_many.py
    bot = make_bot(sandbox, TOKEN_SERVER_KEY=KEY, WECHAT_TOKEN_SOURCE="classic")
    shows = [bot.start("flask", "token", "show") for _ in range(8)]
    for show in shows:
        assert show.popen.wait(60) == 0, show.text()
    tokens = {json.loads(show.text().splitlines()[-1])["access_token"] for show in shows}
    assert len(tokens) == 1
    assert calls(sandbox, "/cgi-bin/token") == {"ok": 1}


def test_processes_renew_by_themselves_and_once(sandbox, make_bot):
    control(sandbox, "rules", {"token_life": 400})
    bot = make_bot(sandbox, TOKEN_SERVER_KEY=KEY, WEB_CONCURRENCY="3")
    kept = parts.build(bot.settings).of[""]
    first = kept.token.get()
    row = kept.tokens.load()
    assert 395 <= row.expires_at - row.fetched_at <= 400
    # As if its last 240 seconds had begun: it is then due, and still serves.
    control(sandbox, "clock", {"advance": 201}, "POST")
    age(kept.tokens, row, 201)
    bot.web()
    eventually(lambda: kept.tokens.load().value != first, what="the renewal, that nobody asked for")
    assert kept.tokens.load().fetched_at < row.expires_at - 201, "while the old one still served"
    answer = requests.get(f"{bot.url}/token", headers=BEARER, timeout=5).json()
    assert answer["access_token"] == kept.tokens.load().value
    assert 390 <= answer["expires_in"] <= 400
    assert calls(sandbox, "/cgi-bin/stable_token") == {"ok": 2}
    kept.database.close()


def age(tokens, row, seconds):
    older = replace(row, fetched_at=row.fetched_at - seconds, expires_at=row.expires_at - seconds)
    assert tokens.lease("a test", time.time(), 15)
    assert tokens.save("a test", older, time.time())
    tokens.release("a test")


@pytest.mark.parametrize("path", ["/token/refresh", "/cgi-bin/stable_token"])
def test_a_body_that_nobody_asked_for_is_not_read(central, path):
    body = json.dumps({"appid": ACCOUNT["WECHAT_APPID"], "secret": KEY, "access_token": "x" * 100_000})
    assert central.post(path, data=body, content_type="application/json", headers=BEARER).status_code == 413
