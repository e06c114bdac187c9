"""Steering the sandbox: faults, rules, clock, counts, reset, who may ask, and running it as a program."""

import ast
import hashlib
import http.client
import json
import logging
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlencode

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from sandbox import THROWAWAY, Account, control, running_sandbox
from sandbox.faults import Fault, Rules
from tests import prepared
from tests.conftest import clean_environ
from tests.serving import serving

ROOT = Path(__file__).parent.parent
PHOTO = (ROOT / "sandbox/photos/china.jpg").read_bytes()
FAN = "oTest-AbCdEfGhIjKlMnOpQrSt_1"
TOKEN = "/cgi-bin/token"
CREDENTIALS = {"grant_type": "client_credential", "appid": THROWAWAY.appid, "secret": THROWAWAY.appsecret}


@pytest.fixture(scope="module")
def running():
    with socket.socket() as nobody, running_sandbox() as sandbox:
        nobody.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        yield sandbox, f"http://127.0.0.1:{nobody.getsockname()[1]}/wechat?tenant=7"


@pytest.fixture
def sandbox(running):
    sandbox, sandbox.callback = running
    sandbox.state.reset()
    return sandbox


def faults(sandbox, *given):
    answer = requests.put(f"{sandbox.url}/sandbox/faults", json=list(given), timeout=10)
    assert answer.status_code == 200, answer.text
    return answer.json()


def assert_refusal(answer):
    """The words in both languages of the page."""
    assert set(answer.json()) == {"error", "error_zh"}
    assert re.search(r"[\u4e00-\u9fff]", answer.json()["error_zh"])


def fetch(sandbox, path=TOKEN, **more):
    return requests.get(sandbox.url + path, params=CREDENTIALS | more, timeout=10)


def calls(sandbox):
    return requests.get(f"{sandbox.url}/sandbox/calls", timeout=10).json()


def picture(sandbox, data=PHOTO):
    """The address of a picture and the query that gets it."""
    media_id = sandbox.state.store_media("image", data).media_id
    token = fetch(sandbox).json()["access_token"]
    return {"path": "/cgi-bin/media/get", "access_token": token, "media_id": media_id}


# Faults


def test_an_errcode_strikes_as_often_as_it_says(sandbox):
    (fault,) = faults(sandbox, {"path": TOKEN, "times": 2, "errcode": -1})
    assert fault["times"] == 2
    codes = [fetch(sandbox).json().get("errcode") for _ in range(3)]
    assert codes == [-1, -1, None]
    assert calls(sandbox) == {TOKEN: {"-1": 2, "ok": 1}}


def test_without_times_a_fault_strikes_for_ever(sandbox):
    faults(sandbox, {"path": TOKEN, "times": None, "errcode": 45009})
    assert [fetch(sandbox).json()["errcode"] for _ in range(5)] == [45009] * 5
    assert fetch(sandbox, "/cgi-bin/getcallbackip").json()["errcode"] == 41001, "another path is not touched"
    assert faults(sandbox) == []
    assert "access_token" in fetch(sandbox).json()


def test_faults_of_one_path_strike_in_order(sandbox):
    faults(sandbox, {"path": TOKEN, "times": 1, "errcode": 89503}, {"path": TOKEN, "times": 1, "status": 502})
    assert fetch(sandbox).json()["errcode"] == 89503
    assert fetch(sandbox).status_code == 502
    assert "access_token" in fetch(sandbox).json()


def test_errmsg_status_and_content_type(sandbox):
    faults(
        sandbox,
        {"path": TOKEN, "times": 1, "errcode": 40164, "errmsg": "invalid ip 198.51.100.3, not in whitelist"},
        {"path": TOKEN, "times": 1, "errcode": 40001, "content_type": "text/plain", "status": 500},
        {"path": TOKEN, "times": 1, "errcode": 99999},
        {"path": TOKEN, "times": 1, "content_type": "text/plain"},
    )
    assert fetch(sandbox).json()["errmsg"].startswith("invalid ip 198.51.100.3, not in whitelist rid: ")
    second = fetch(sandbox)
    assert (second.status_code, second.headers["Content-Type"]) == (500, "text/plain")
    assert second.json()["errcode"] == 40001
    assert fetch(sandbox).json()["errcode"] == 99999
    last = fetch(sandbox)
    assert last.headers["Content-Type"] == "text/plain"
    assert "access_token" in last.json(), "the real answer, bent"
    assert calls(sandbox)[TOKEN] == {"40164": 1, "HTTP 500": 1, "99999": 1, "ok": 1}


def test_bodies(sandbox):
    faults(
        sandbox,
        {"path": TOKEN, "times": 1, "status": 502, "body": "<html>Bad Gateway</html>"},
        {"path": TOKEN, "times": 1, "body": '{"errcode": "40001"}'},
        {"path": TOKEN, "times": 1, "body": "[1]"},
        {"path": TOKEN, "times": 1, "body": "not JSON", "content_type": "application/json"},
        {"path": TOKEN, "times": 1, "status": 503},
    )
    first = fetch(sandbox)
    assert (first.status_code, first.text) == (502, "<html>Bad Gateway</html>")
    assert first.headers["Content-Type"] == "text/html; charset=utf-8"
    assert fetch(sandbox).headers["Content-Type"] == "application/json; encoding=utf-8"
    assert fetch(sandbox).text == "[1]"
    assert fetch(sandbox).headers["Content-Type"] == "application/json"
    assert "<h1>503</h1>" in fetch(sandbox).text
    assert calls(sandbox)[TOKEN] == {"HTTP 502": 1, "40001": 1, "ok": 2, "HTTP 503": 1}


def test_delay(sandbox):
    faults(sandbox, {"path": TOKEN, "times": 1, "delay": 0.3})
    started = time.monotonic()
    assert "access_token" in fetch(sandbox).json()
    assert time.monotonic() - started >= 0.3


def test_a_delay_ends_with_the_sandbox():
    with running_sandbox() as sandbox:
        faults(sandbox, {"path": TOKEN, "delay": 60})
        connection = http.client.HTTPConnection(sandbox.url.removeprefix("http://"), timeout=30)
        connection.request("GET", TOKEN)
        started = time.monotonic()
    try:
        with connection.getresponse() as answer:
            assert answer.status == 200
    except ConnectionError:
        pass  # it ended before the call was taken up
    finally:
        connection.close()
    assert time.monotonic() - started < 20


def test_disconnect(sandbox):
    faults(sandbox, {"path": TOKEN, "times": 1, "disconnect": True})
    with pytest.raises(requests.ConnectionError):
        fetch(sandbox)
    assert "access_token" in fetch(sandbox).json()
    assert calls(sandbox)[TOKEN] == {"disconnect": 1, "ok": 1}


def opened(sandbox, query):
    """The answer to a call of which the headers are there."""
    return urllib.request.urlopen(f"{sandbox.url}{query['path']}?{urlencode(query)}", timeout=30)


@pytest.mark.parametrize("cut", [0, 1, 1000, 300_000])
def test_truncate_keeps_the_length_and_closes(sandbox, cut):
    data = PHOTO * 4
    query = picture(sandbox, data)
    faults(sandbox, {"path": query["path"], "times": 1, "truncate": cut})
    with opened(sandbox, query) as answer:
        assert answer.headers["Content-Length"] == str(len(data))
        assert answer.headers["Content-Type"] == "image/jpeg"
        with pytest.raises(http.client.IncompleteRead) as error:
            answer.read()
    assert error.value.partial == data[:cut]
    whole = requests.get(sandbox.url + query["path"], params=query, timeout=10)
    assert hashlib.sha256(whole.content).digest() == hashlib.sha256(data).digest()
    assert calls(sandbox)[query["path"]] == {"truncated": 1, "ok": 1}


def test_truncating_beyond_the_end_is_the_whole_answer(sandbox):
    query = picture(sandbox)
    faults(sandbox, {"path": query["path"], "times": 1, "truncate": len(PHOTO) + 1})
    assert requests.get(sandbox.url + query["path"], params=query, timeout=10).content == PHOTO


def test_truncate_with_delay_hangs_in_the_middle():
    with running_sandbox() as sandbox:
        query = picture(sandbox)
        faults(sandbox, {"path": query["path"], "truncate": 1000, "delay": 60})
        answer = opened(sandbox, query)
        assert answer.read(1000) == PHOTO[:1000], "the first bytes come at once"
    with answer:
        assert answer.read(1) == b"", "the hanging ends with the sandbox"


def test_an_upload_is_whole_although_a_fault_bends_its_answer(sandbox):
    query = {"access_token": fetch(sandbox).json()["access_token"], "type": "image"}
    path = "/cgi-bin/media/upload"
    faults(sandbox, {"path": path, "times": 1, "delay": 0.05, "content_type": "text/plain"})
    form = {"media": ("a.jpg", PHOTO)}
    answer = requests.post(sandbox.url + path, params=query, files=form, timeout=10)
    assert answer.headers["Content-Type"] == "text/plain"
    assert sandbox.state.find_media(answer.json()["media_id"]).sha256 == hashlib.sha256(PHOTO).hexdigest()


def test_truncate_an_error_of_its_own(sandbox):
    faults(sandbox, {"path": TOKEN, "errcode": 40001, "truncate": 5})
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        fetch(sandbox)


def test_a_client_that_hangs_up_early_harms_nobody(sandbox):
    query = picture(sandbox, PHOTO * 40)
    faults(sandbox, {"path": query["path"], "times": 1, "truncate": len(PHOTO) * 39})
    for _ in range(2):
        with requests.get(sandbox.url + query["path"], params=query, stream=True, timeout=10) as answer:
            assert answer.raw.read(10) == PHOTO[:10]
    assert len(requests.get(sandbox.url + query["path"], params=query, timeout=10).content) == len(PHOTO) * 40


def test_a_fault_on_the_address_of_a_video(sandbox):
    media = sandbox.state.store_media("video", b"\0\0\0\x18ftyp")
    faults(sandbox, {"path": "/video", "times": 1, "status": 502})
    assert requests.get(f"{sandbox.url}/video", params={"key": media.key}, timeout=10).status_code == 502
    assert requests.get(f"{sandbox.url}/video", params={"key": media.key}, timeout=10).ok


@pytest.mark.parametrize(
    "given",
    [
        {"path": TOKEN},
        ["x"],
        [{}],
        [{"path": 7}],
        [{"path": "cgi-bin/token"}],
        [{"path": "/"}],
        [{"path": "/sandbox/calls", "errcode": 1}],
        [{"path": TOKEN, "unknown": 1}],
        [{"path": TOKEN, "times": 0}],
        [{"path": TOKEN, "times": True}],
        [{"path": TOKEN, "times": "1"}],
        [{"path": TOKEN, "errcode": "40001"}],
        [{"path": TOKEN, "errmsg": 7}],
        [{"path": TOKEN, "status": 99}],
        [{"path": TOKEN, "status": 600}],
        [{"path": TOKEN, "body": {}}],
        [{"path": TOKEN, "delay": -1}],
        [{"path": TOKEN, "delay": "1"}],
        [{"path": TOKEN, "truncate": -1}],
        [{"path": TOKEN, "disconnect": 1}],
        [{"path": TOKEN, "content_type": "a\r\nb"}],
        [{"path": TOKEN, "content_type": "文/本"}],
        [{"path": "/\ud800"}],
        [{"path": TOKEN, "body": "\ud800"}],
        [{"path": TOKEN, "\ud800": 1}],
    ],
)
def test_faults_that_are_none(sandbox, given):
    answer = requests.put(f"{sandbox.url}/sandbox/faults", json=given, timeout=10)
    assert answer.status_code == 400
    assert_refusal(answer)
    assert "access_token" in fetch(sandbox).json(), "it is not in force"


# Rules, clock, counts, reset


def test_rules_change_one_by_one(sandbox):
    url = f"{sandbox.url}/sandbox/rules"
    default = {
        "token_life": 7200,
        "deliveries": 3,
        "failure_text": "该公众号暂时无法提供服务，请稍后再试",
        "own_video_reply": False,
    }
    assert requests.put(url, json={}, timeout=10).json() == default
    assert requests.put(url, json={"deliveries": 4}, timeout=10).json() == default | {"deliveries": 4}
    assert requests.put(url, json={"token_life": 310}, timeout=10).json()["deliveries"] == 4
    for wrong in (
        [],
        {"unknown": 1},
        {"token_life": 0},
        {"token_life": "7200"},
        {"deliveries": 11},
        {"deliveries": True},
        {"failure_text": ""},
        {"failure_text": 7},
        {"failure_text": "\ud800"},
        {"own_video_reply": 1},
    ):
        assert requests.put(url, json=wrong, timeout=10).status_code == 400
    assert requests.put(url, data=b"{", timeout=10).status_code == 400
    kept = default | {"deliveries": 4, "token_life": 310}
    assert requests.put(url, json={}, timeout=10).json() == kept, "a wrong rule changes none"


def test_the_clock_moves_forward_only(sandbox):
    url = f"{sandbox.url}/sandbox/clock"
    before = requests.post(url, json={"advance": 0}, timeout=10).json()["now"]
    after = requests.post(url, json={"advance": 1000.5}, timeout=10).json()["now"]
    assert 1000 < after - before < 1010
    for wrong in ({}, {"advance": -1}, {"advance": "1"}, {"advance": True}, []):
        assert requests.post(url, json=wrong, timeout=10).status_code == 400


def test_the_clock_ends_before_the_days_do():
    with running_sandbox(clock=lambda: datetime(9998, 12, 31, tzinfo=UTC).timestamp()) as sandbox:
        answer = requests.post(f"{sandbox.url}/sandbox/clock", json={"advance": 2 * 86400}, timeout=10)
        assert answer.status_code == 400
        assert_refusal(answer)
        assert requests.post(f"{sandbox.url}/sandbox/clock", json={"advance": 86400}, timeout=10).ok
        assert "access_token" in fetch(sandbox).json()


def test_pushed_timestamps_stay_real(sandbox):
    requests.post(f"{sandbox.url}/sandbox/clock", json={"advance": 10_000}, timeout=10)
    result = send(sandbox, type="text", content="x", attempts=1, mode="plain").json()
    sent = int(result["attempts"][0]["sent"].split("<CreateTime>")[1].split("<")[0])
    assert abs(sent - time.time()) < 10
    assert abs(result["shown"][0]["time"] - time.time()) < 10


def test_stuck_is_a_yes_or_no(sandbox):
    url = f"{sandbox.url}/sandbox/token/expire"
    assert requests.post(url, timeout=10).json() == {"ok": True}
    assert requests.post(url, json={"stuck": "yes"}, timeout=10).status_code == 400


def test_reset_forgets_all_but_account_and_callback(sandbox):
    query = picture(sandbox)
    callback = sandbox.callback
    send(sandbox, type="text", content="x", attempts=1)
    faults(sandbox, {"path": TOKEN, "errcode": -1})
    requests.put(f"{sandbox.url}/sandbox/rules", json={"token_life": 310}, timeout=10)
    requests.post(f"{sandbox.url}/sandbox/clock", json={"advance": 10_000}, timeout=10)
    assert requests.post(f"{sandbox.url}/sandbox/reset", timeout=10).json() == {"ok": True}
    assert calls(sandbox) == {}
    assert requests.get(f"{sandbox.url}/sandbox/fans/{FAN}/messages", timeout=10).json() == []
    assert abs(sandbox.state.now() - time.time()) < 10
    assert requests.get(sandbox.url + query["path"], params=query, timeout=10).json()["errcode"] == 40001
    assert fetch(sandbox).json()["expires_in"] == 7200
    query["access_token"] = fetch(sandbox).json()["access_token"]
    assert requests.get(sandbox.url + query["path"], params=query, timeout=10).json()["errcode"] == 40007
    assert sandbox.callback == callback
    assert sandbox.account == THROWAWAY


def test_a_push_that_ends_after_a_reset_leaves_no_trace(sandbox):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sandbox.callback = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        results = []
        arguments = {"type": "text", "content": "x", "attempts": 1, "timeout": 1}
        thread = threading.Thread(target=lambda: results.append(send(sandbox, **arguments).json()))
        thread.start()
        silent.accept()[0].close()
        requests.post(f"{sandbox.url}/sandbox/reset", timeout=10)
        thread.join(10)
    assert len(results[0]["attempts"]) == 1
    assert requests.get(f"{sandbox.url}/sandbox/fans/{FAN}/messages", timeout=10).json() == []


def test_who_listens_hears_what_happens(sandbox):
    heard = []
    so_far, stop = sandbox.state.listen(lambda name, facts: heard.append((name, facts)))
    nothing = {"fans": {}, "following": {}, "pushes": [], "calls": [], "menu": None, "faults": []}
    assert so_far == nothing | {"made_for": sandbox.state.made_for}
    send(sandbox, type="text", content="x", attempts=1)
    fetch(sandbox)
    requests.post(f"{sandbox.url}/sandbox/reset", timeout=10)
    stop()
    fetch(sandbox)
    names = [name for name, _ in heard]
    assert names == ["push", "message", "push", "push", "message", "push", "call", "reset"]
    pushes = [facts for name, facts in heard if name == "push"]
    assert [len(push["attempts"]) for push in pushes] == [0, 1, 1, 1]
    assert [len(push["shown"]) for push in pushes] == [0, 0, 1, 1]
    assert [push["ended"] for push in pushes] == [False, False, False, True]
    assert pushes[1]["attempts"][0]["verdict"] == "refused"
    assert {push["openid"] for push in pushes} == {heard[1][1]["openid"]} == {FAN}
    assert (heard[6][1]["path"], heard[6][1]["outcome"]) == (TOKEN, "ok")


def test_who_listens_late_is_told_what_there_is(sandbox):
    faults(sandbox, {"path": TOKEN, "times": 1, "errcode": -1}, {"path": TOKEN, "delay": 0})
    fetch(sandbox)
    send(sandbox, type="text", content="x", attempts=1)
    so_far, stop = sandbox.state.listen(lambda name, facts: None)
    stop()
    assert [message["by"] for message in so_far["fans"][FAN]] == ["push", "platform"]
    assert [push["attempts"][0]["verdict"] for push in so_far["pushes"]] == ["refused"]
    assert [call["outcome"] for call in so_far["calls"]] == ["-1"]
    assert [fault["errcode"] for fault in so_far["faults"]] == [None], "those that may still strike"


# Refusals in both languages


def _control_errors():
    """Each place in the sandbox's source that makes a ControlError: where, and the words given to it."""
    for path in sorted((ROOT / "sandbox").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "ControlError":
                yield pytest.param(node.args, id=f"{path.name}:{node.lineno}")


@pytest.mark.parametrize("words", list(_control_errors()))
def test_every_control_error_has_its_words_in_chinese(words):
    english, chinese = words
    assert not re.search(r"[\u4e00-\u9fff]", ast.unparse(english))
    assert re.search(r"[\u4e00-\u9fff]", ast.unparse(chinese))


def test_no_error_is_written_beside_them():
    """`Words.as_error` alone makes the JSON of a refusal, so that none is in English only."""
    places = [
        path.name
        for path in sorted((ROOT / "sandbox").glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.keyword) and node.arg == "error")
        or (isinstance(node, ast.Dict) and "error" in [getattr(key, "value", None) for key in node.keys])
    ]
    assert places == ["errors.py"]


# Pushing: wrong use


def send(sandbox, openid=FAN, **fields):
    return requests.post(f"{sandbox.url}/sandbox/fans/{openid}/messages", json=fields, timeout=30)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({}, "type"),
        ({"type": "text"}, "content"),
        ({"type": "text", "content": 7}, "content"),
        ({"type": "text", "content": "\ud800"}, "raw_base64"),
        ({"type": "hologram", "content": "x"}, "raw XML"),
        ({"type": "text", "raw": "<xml/>", "raw_base64": "eA=="}, "one of them"),
        ({"raw_base64": "no Base64!"}, "Base64"),
        ({"raw": 7}, "raw"),
        ({"raw": "\ud800"}, "raw_base64"),
        ({"type": "text", "content": "x", "unknown": 1}, "unknown"),
        ({"type": "text", "content": "x", "file": "a.jpg"}, "multipart"),
        ({"type": "text", "content": "x", "media_id": "m"}, "media_id"),
        ({"type": "te xt", "content": "x"}, "type"),
        ({"type": "image"}, "needs a file"),
        ({"type": "event"}, "event"),
        ({"type": "text", "content": "x", "mode": "raw"}, "mode"),
        ({"type": "text", "content": "x", "attempts": 0}, "attempts"),
        ({"type": "text", "content": "x", "attempts": 1.5}, "attempts"),
        ({"type": "text", "content": "x", "attempts": "many"}, "attempts"),
        ({"type": "text", "content": "x", "attempts": True}, "attempts"),
        ({"type": "text", "content": "x", "attempts": 10**400}, "attempts"),
        ({"type": "text", "content": "x", "timeout": 61}, "timeout"),
        ({"type": "text", "content": "x", "timeout": []}, "timeout"),
        ({"type": "text", "content": "x", "timeout": 10**400}, "timeout"),
        ({"type": "text", "content": "x", "force": "maybe"}, "force"),
        ({"type": "text", "content": "x", "msg_id": "x"}, "msg_id"),
        ({"type": "text", "content": "x", "msg_id": -1}, "msg_id"),
        ({"type": "text", "content": "x", "msg_id": True}, "msg_id"),
        ({"type": "text", "content": "x", "msg_id": 2**63}, "msg_id"),
        ({"type": "text", "content": "x", "msg_id": "1" * 5000}, "msg_id"),
        ({"type": "text", "content": "x", "\ud800": 1}, "surrogate"),
    ],
)
def test_pushes_that_are_none(sandbox, fields, word):
    answer = send(sandbox, **fields)
    assert answer.status_code == 400
    assert_refusal(answer)
    assert word in answer.json()["error"]
    assert requests.get(f"{sandbox.url}/sandbox/fans/{FAN}/messages", timeout=10).json() == []


def test_bodies_that_are_no_push(sandbox):
    url = f"{sandbox.url}/sandbox/fans/{FAN}/messages"
    assert requests.post(url, data=b"{", timeout=10).status_code == 400
    assert requests.post(url, json=[1], timeout=10).status_code == 400
    assert requests.post(url, data=b"[" * 100_000, timeout=10).status_code == 400
    form = {"type": (None, "text"), "content": (None, "x"), "file": ("a.jpg", PHOTO)}
    answer = requests.post(url, files=form, timeout=10)
    assert answer.status_code == 400
    assert "neither file" in answer.json()["error"]


def test_words_of_a_form(sandbox):
    url = f"{sandbox.url}/sandbox/fans/{FAN}/messages"
    form = {
        "type": "image",
        "attempts": "2",
        "timeout": "0.1",
        "msg_id": "7",
        "force": "true",
        "together": "false",
    }
    answer = requests.post(url, data=form, files={"file": ("a.jpg", PHOTO)}, timeout=10).json()
    assert answer["msg_id"] == 7
    assert [attempt["verdict"] for attempt in answer["attempts"]] == ["refused"] * 2


# Any JSON at all

ODD_TEXT = st.text(st.characters(), max_size=8) | st.sampled_from(
    ["\ud800", "1" * 5000, "文/本", "event", "safe"]
)
ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.just(10**400) | ODD_TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(ODD_TEXT, inner, max_size=2),
    max_leaves=3,
)


@pytest.fixture(scope="module")
def patient():
    """A sandbox for many requests: its bot answers at once, and push 1 can be sent again."""

    def bot(environ, start_response):
        start_response("200 OK", [("Content-Length", "7")])
        return [b"success"]

    with serving(bot) as url, running_sandbox(callback=url) as sandbox:
        assert send(sandbox, type="text", content="x", msg_id=1).ok
        yield sandbox


@pytest.mark.parametrize(
    ("method", "path", "good", "names"),
    [
        ("POST", f"/sandbox/fans/{FAN}/messages", {"type": "text", "content": "x"}, control.MESSAGE_FIELDS),
        ("POST", "/sandbox/pushes/1/resend", {}, control.RESEND_FIELDS),
        ("PUT", "/sandbox/faults", {"path": TOKEN}, Fault.__dataclass_fields__),
        ("PUT", "/sandbox/rules", {}, Rules.__dataclass_fields__),
        ("POST", "/sandbox/clock", {"advance": 0}, ["advance"]),
        ("POST", "/sandbox/token/expire", {}, ["stuck"]),
        ("POST", "/sandbox/verify", {}, ["timeout"]),
    ],
)
@given(data=st.data())
def test_no_json_makes_a_control_route_crash(patient, method, path, good, names, data):
    fields = st.dictionaries(st.sampled_from(sorted(names)) | ODD_TEXT, ODD, max_size=3)
    body = data.draw(ODD | fields.map(lambda odd: good | odd))
    if path == "/sandbox/faults":
        body = [body]
    answer = requests.request(method, patient.url + path, data=json.dumps(body), timeout=30)
    if answer.status_code != 200:
        assert answer.status_code == 400, answer.text
        assert_refusal(answer)
        return
    for shown in (f"/sandbox/fans/{FAN}/messages", "/sandbox/calls"):
        assert requests.get(patient.url + shown, timeout=10).status_code == 200


# Faults of the callback: the bot's answer is bent on its way back


@pytest.mark.parametrize(
    ("fault", "verdict", "why"),
    [
        ({"delay": 30}, "timeout", "no whole answer within 0.5 s"),
        ({"disconnect": True}, "refused", "the connection closed without an answer"),
        ({"truncate": 3}, "refused", "the connection closed in the middle of the answer"),
        ({"status": 502}, "refused", "HTTP 502 instead of 200"),
        ({"body": "<html>"}, "refused", "not an XML reply: it begins with '<html>'"),
        ({"body": "", "delay": 0.01}, "silent", "empty answer"),
        ({"truncate": 7}, "silent", "success"),
    ],
)
def test_a_fault_of_the_callback(sandbox, fault, verdict, why):
    asked = []

    def bot(environ, start_response):
        asked.append(environ["PATH_INFO"])
        start_response("200 OK", [("Content-Length", "7")])
        return [b"success"]

    with serving(bot) as url:
        sandbox.callback = f"{url}/wechat"
        faults(sandbox, {"path": "/wechat", "times": 1, **fault})
        bent = send(sandbox, type="text", content="x", timeout=0.5, attempts=1).json()
        again = send(sandbox, type="text", content="x", timeout=5).json()
    assert [(one["verdict"], one["why"]) for one in bent["attempts"]] == [(verdict, why)]
    assert [one["why"] for one in again["attempts"]] == ["success"]
    assert asked == ["/wechat"] * 2, "the bot was asked, whatever became of its answer"
    assert calls(sandbox) == {}


# Who may ask


def test_it_listens_on_the_loopback_alone(sandbox):
    host, port = sandbox.url.removeprefix("http://").split(":")
    assert host == "127.0.0.1"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", int(port)), timeout=5)


@pytest.mark.parametrize("path", ["/", "/sandbox/calls", "/cgi-bin/getcallbackip"])
@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "[bad", "[::zz]"])
def test_another_host_name_is_refused(sandbox, path, host):
    answer = requests.get(sandbox.url + path, headers={"Host": host}, timeout=10)
    assert answer.status_code == 403
    assert_refusal(answer)


@pytest.mark.parametrize("host", ["localhost", "localhost:8001", "127.0.0.1", "[::1]:80"])
def test_names_of_this_machine_are_taken(sandbox, host):
    assert requests.get(f"{sandbox.url}/sandbox/calls", headers={"Host": host}, timeout=10).status_code == 200


@pytest.mark.parametrize(
    "headers", [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "same-site"}]
)
def test_other_sites_pages_are_refused(sandbox, headers):
    url = f"{sandbox.url}/sandbox/reset"
    assert requests.post(url, headers=headers, timeout=10).status_code == 403
    assert requests.get(sandbox.url, headers=headers, timeout=10).status_code == 200, "a link to the page"
    assert requests.get(f"{sandbox.url}/sandbox/calls", headers=headers, timeout=10).status_code == 403
    own = {"Origin": sandbox.url, "Sec-Fetch-Site": "same-origin"}
    assert requests.post(url, headers=own, timeout=10).status_code == 200


def test_unknown_control_routes(sandbox):
    answer = requests.get(f"{sandbox.url}/sandbox/unknown", timeout=10)
    assert answer.status_code == 404
    assert_refusal(answer)
    answer = requests.get(f"{sandbox.url}/sandbox/reset", timeout=10)
    assert answer.status_code == 405
    assert_refusal(answer)
    assert calls(sandbox) == {}, "control routes are not counted"


def test_the_page_shows_the_account_without_its_secrets(sandbox):
    sandbox.callback = "http://name:password@127.0.0.1:1/wechat?tenant=7"
    page = requests.get(sandbox.url, timeout=10)
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert THROWAWAY.appid in page.text
    assert "http://127.0.0.1:1/wechat<" in page.text
    for secret in (THROWAWAY.appsecret, THROWAWAY.token, THROWAWAY.aes_key, "tenant", "password"):
        assert secret not in page.text
    assert "<script>" not in page.text, "none inline"
    sandbox.callback = None
    assert "none: start with --callback" in requests.get(sandbox.url, timeout=10).text


def test_no_log_line_shows_a_query(sandbox, caplog):
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.INFO, logger="urllib3")
    fetch(sandbox)
    fetch(sandbox, "/unknown")
    send(sandbox, type="text", content="x", attempts=1)
    for garbage in ("GARBAGE /?secret=%s", "GET /?secret=%s a HTTP/1.1", "GET / HTTP/%s", "?%s"):
        with socket.create_connection(sandbox.url.removeprefix("http://").split(":"), timeout=10) as raw:
            raw.sendall(garbage.replace("%s", THROWAWAY.appsecret).encode() + b"\r\n\r\n")
            while raw.recv(1000):
                pass
    lines = "\n".join(record.getMessage() for record in caplog.records if record.name != "urllib3")
    assert "GET /cgi-bin/token 200" in lines
    assert "GET /unknown 200" in lines
    assert lines.count("a request that is not HTTP") == 4
    for secret in (THROWAWAY.appsecret, "signature", "?"):
        assert secret not in lines


# The account


def test_the_account_of_the_environment():
    assert Account.from_env({}) == Account.from_env({"WECHAT_APPID": ""}) == THROWAWAY
    assert Account.from_env({"WECHAT_APPID": " "}) == THROWAWAY
    environ = {
        "WECHAT_APPID": "wx1",
        "WECHAT_APPSECRET": "secret",
        "WECHAT_TOKEN": "token",
        "WECHAT_AES_KEY": "",
    }
    account = Account.from_env(environ)
    assert (account.appid, account.appsecret, account.token, account.aes_key) == (
        "wx1",
        "secret",
        "token",
        None,
    )
    assert account.original_id == Account.from_env(environ).original_id
    windows = {name: f"{text}\r" for name, text in environ.items()}
    assert Account.from_env(windows) == account, "the bot trims its settings too"
    assert account.original_id.startswith("gh_")
    assert Account.from_env(environ | {"WECHAT_AES_KEY": "A" * 43}).aes_key == "A" * 43
    assert "secret" not in repr(account)
    with pytest.raises(ValueError, match="WECHAT_APPSECRET and WECHAT_TOKEN"):
        Account.from_env({"WECHAT_APPID": "wx1"})
    with pytest.raises(ValueError, match="WECHAT_AES_KEY"):
        Account.from_env(environ | {"WECHAT_AES_KEY": "short"})


# As a program


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_program_says_where_it_is_and_ends_cleanly(number, tmp_path):
    environ = {"WECHAT_APPID": "wx1", "WECHAT_APPSECRET": "topsecret", "WECHAT_TOKEN": "token"}
    folder = tmp_path / "kept"
    callback = "http://127.0.0.1:1/wechat"
    process = subprocess.Popen(
        [sys.executable, "-m", "sandbox", "--port", "0", "--callback", callback, "--data", str(folder)],
        cwd=ROOT,
        env=clean_environ() | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        first = process.stdout.readline()
        assert first.startswith("sandbox on http://127.0.0.1:")
        url = first.split()[-1]
        query = {"grant_type": "client_credential", "appid": "wx1", "secret": "topsecret"}
        assert "access_token" in requests.get(url + TOKEN, params=query, timeout=10).json()
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert out == ""
    assert "GET /cgi-bin/token 200" in err
    assert "topsecret" not in err
    assert "Traceback" not in err
    assert "/cgi-bin/token" in (folder / "history.jsonl").read_text(encoding="utf-8")
    assert "topsecret" not in (folder / "history.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "environ", "word"),
    [
        (["--port", "0"], {}, "--callback"),
        *(
            (["--port", "0", "--callback", address], {}, "--callback")
            for address in (
                "127.0.0.1:8000",
                "http://127.0.0.1:99999/wechat",
                f"http://{'a' * 64}.example/wechat",
                "http://[::1/wechat",
            )
        ),
        (["--port", "65536", "--callback", "http://127.0.0.1:1"], {}, "--port"),
        (["--port", "-1", "--callback", "http://127.0.0.1:1"], {}, "--port"),
        (["--port", "0", "--callback", "http://127.0.0.1:1", "--data", "README.md"], {}, "--data"),
        (["--port", "0", "--callback", "http://127.0.0.1:1", "--data", "README.md/a"], {}, "--data"),
        (["--port", "0", "--callback", "http://127.0.0.1:1"], {"WECHAT_APPID": "wx1"}, "WECHAT_APPSECRET"),
    ],
)
def test_wrong_use_of_the_program(arguments, environ, word):
    done = prepared.run([sys.executable, "-m", "sandbox", *arguments], clean_environ() | environ)
    assert done.returncode == 2
    assert word in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
