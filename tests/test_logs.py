"""Log lines: one a record, with the fields of `extra`, as text and as JSON."""

import json
import logging
import socket
import subprocess
import sys

import pytest
import requests
from hypothesis import example, given
from hypothesis import strategies as st

import logs
from tests.conftest import ROOT, eventually
from tests.test_flow import control


@pytest.fixture
def record():
    try:
        raise ValueError("broken")
    except ValueError:
        trouble = sys.exc_info()
    made = logging.makeLogRecord(
        {
            "name": "web",
            "levelname": "WARNING",
            "msg": "refused: %s\n2",
            "args": ("why",),
            "created": 0.25,
            "msecs": 250,
        }
    )
    made.reason, made.exc_info = "signature", trouble
    return made


def test_text_keeps_a_message_on_one_line(record):
    first, *traceback = logs.Formatter(as_json=False).format(record).split("\n")
    assert first == "1970-01-01T00:00:00.250Z WARNING web: refused: why\\n2 reason='signature'"
    assert traceback[-1] == " ValueError: broken"


def test_json_is_one_object_a_line(record):
    line = logs.Formatter(as_json=True).format(record)
    assert "\n" not in line
    shown = json.loads(line)
    assert shown["reason"] == "signature"
    assert shown["message"] == "refused: why\n2"
    assert shown["time"] == "1970-01-01T00:00:00.250Z"
    assert "ValueError: broken" in shown["traceback"]


def test_the_time_is_each_lines_own():
    form = logs.Formatter(as_json=False)
    made = [logging.makeLogRecord({"created": at, "msecs": at % 1 * 1000}) for at in (59.9996, 60.0, 59.25)]
    assert [form.format(each).partition("Z")[0] for each in made] == [
        "1970-01-01T00:00:59.999",
        "1970-01-01T00:01:00.000",
        "1970-01-01T00:00:59.250",
    ]


# CR, LF, ESC, BEL, DEL, C1, line separators, marks of direction, what has no width, half of a character.
ACTS = "\r\n\x1b[2J\x07\x7f\x85\x9b31m\u2028\u2029\u200e\u202e\u2066\u061c\ufeff\ud800"


@pytest.mark.parametrize("as_json", [False, True])
def test_nothing_in_a_line_acts_on_a_terminal_or_looks_like_a_line(as_json):
    try:
        raise ValueError(f"x{ACTS}2026-01-01T00:00:00.000Z INFO web: forged")
    except ValueError:
        trouble = sys.exc_info()
    made = logging.makeLogRecord({"name": "web", "msg": f"坏{ACTS}了", "exc_info": trouble})
    made.reason, made.errors = f"r{ACTS}", {"errmsg": f"e{ACTS}"}
    line = logs.Formatter(as_json).format(made)
    assert all(one.isprintable() for one in line.replace("\n", ""))
    assert "坏" in line
    line.encode()
    if as_json:
        assert "\n" not in line
        shown = json.loads(line)
        assert (shown["message"], shown["reason"]) == (f"坏{ACTS}了", f"r{ACTS}")
    else:
        _, *rest = line.split("\n")
        assert all(each.startswith(" ") for each in rest)


@given(st.text())
@example(ACTS)
def test_any_text_stays_one_line_that_says_it(text):
    assert logs.escaped(text).isprintable()
    shown = logs.json_line({"a": text})
    assert shown.isprintable()
    assert json.loads(shown) == {"a": text}


def test_the_command_line_shows_what_the_platform_said_without_its_control_characters(sandbox, make_bot):
    faults = [{"path": "/cgi-bin/stable_token", "times": None, "errcode": 99999, "errmsg": f"no{ACTS[:-1]}"}]
    control(sandbox, "faults", faults)
    done = make_bot(sandbox).flask("token", "show")
    assert done.returncode == 1
    assert "99999" in done.stderr
    assert all(one.isprintable() for one in done.stderr.replace("\n", ""))


SECRET = "the-secret-of-a-query"
ODD_REQUESTS = [
    f"GET /wechat?signature={SECRET} HTTP/9.9\r\n\r\n",
    f"GET /wechat?signature={SECRET} and more HTTP/1.1\r\n\r\n",
    f"GET /token HTTP/1.1\r\nAuthorization\x00: Bearer {SECRET}\r\n\r\n",
    f"GET /token HTTP/1.1\r\nAuthorization : Bearer {SECRET}\r\n\r\n",
    f"GET /token HTTP/1.1\r\nA: b\r\n Authorization: Bearer {SECRET}\r\n\r\n",
    f"ge{SECRET}t / HTTP/1.1\r\n\r\n",
    f"\x1b[2J\u2028{SECRET} / HTTP/1.1\r\n\r\n",
    f"POST /wechat?secret={SECRET} HTTP/1.1\r\nTransfer-Encoding: {SECRET}\r\n\r\n",
    f"POST /wechat?secret={SECRET} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{SECRET}\r\n",
    f"POST /wechat?secret={SECRET} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n{SECRET}\r\n\r\n",
    f"POST /wechat?secret={SECRET} HTTP/1.1\r\nContent-Length: -1{SECRET}\r\n\r\n",
    f"POST /wechat?secret={SECRET} HTTP/1.1\r\nExpect: {SECRET}\r\nContent-Length: 1\r\n\r\nx",
    f"GET /wechat?signature={SECRET}{'x' * 9000} HTTP/1.1\r\n\r\n",
    f"GET /wechat HTTP/1.1\r\nX-Long: {SECRET}{'x' * 9000}\r\n\r\n",
    f"GET http://[{SECRET}/wechat HTTP/1.1\r\nHost: [\r\n\r\n",
    f"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{SECRET}",
    f"PROXY TCP4 {SECRET}\r\n",
]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_what_gunicorn_says_of_a_request_is_one_line_without_the_request(sandbox, make_bot, log_format):
    bot = make_bot(sandbox, LOG_FORMAT=log_format, TOKEN_SERVER_KEY="a key of sixteen letters")
    web = bot.web()
    for request in ODD_REQUESTS:
        before = len(web.text().splitlines())
        with socket.create_connection(("127.0.0.1", int(bot.environ["PORT"])), timeout=20) as sock:
            sock.sendall(request.encode())
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
        eventually(lambda: requests.get(f"{bot.url}/healthz", timeout=5).ok)
        new = web.text().splitlines()[before:]
        assert len(new) <= 1, (request, new)
    assert SECRET not in web.text()
    assert SECRET.upper() not in web.text()
    assert "Invalid request from ip=127.0.0.1: " in web.text()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_process_logs_once_however_often_it_is_configured(log_format):
    code = f"""
import logging, logs
logs.configure({log_format!r}); logs.configure("text")
logging.getLogger("web").warning("hello", extra={{"reason": "xml"}})
logging.getLogger("gunicorn.access").info("GET /wechat?signature=secret")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    (line,) = done.stderr.splitlines()
    assert "hello" in line
    assert line.startswith("{") == (log_format == "json")
