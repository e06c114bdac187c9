"""The attacks that the server has to stand, one after the other, through the doors that strangers can reach.

Many are also tested piece by piece beside the code that stands them; here each meets the whole application, and a real
gunicorn where the server itself matters. "Refused" means: an empty answer, one log line, no row, no handler run.
"""

import contextlib
import gzip
import hashlib
import hmac
import itertools
import re
import socket
import struct
import threading
import time
import zlib
from urllib.parse import urlencode

import psutil
import pytest
import requests

import handlers
import logs
from app import create_app
from config import Settings, SettingsError
from sandbox import THROWAWAY
from sandbox.cipher import Envelope, sign
from storage.database import Database
from storage.errors import DatabaseUnavailableError
from tests import pushing
from tests.conftest import ACCOUNT, Bot, eventually, free_port
from tests.databases import sqlite_url
from tests.stub_platform import Leaks, StubPlatform, raw, reply
from wechat.errors import MediaTooLargeError, TransportError, UnsafeMediaUrlError
from wechat.media import open_media
from wechat.messages import TextMessage
from worker.thumbnails import Decoder, NoThumbnailError

AES = {"WECHAT_AES_KEY": THROWAWAY.aes_key}
PASSWORD = "correct horse battery"
SERVER_KEY = "a-server-key-of-this-test"
TOKEN = "an-access-token-of-this-test"
SCRIPT = "<script>alert(1)</script>"
PATHS = [
    "../../etc/passwd",
    "..\\..\\x",
    "/etc/passwd",
    "a/../../b",
    "%2e%2e%2fx",
    ".ssh",
    "x\x85y",
    "C:x",
    "～/x",
]
RAW_QUERY = {"QUERY_STRING": "signature=\xff&appid=\xff"}  # as WSGI shows raw bytes
NUMBERS = itertools.count(5_000_000)
HEAD = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00"


@pytest.fixture
def platform():
    with StubPlatform() as stub:
        stub.on("/cgi-bin/stable_token", {"access_token": TOKEN, "expires_in": 7200})
        yield stub


def application(folder, platform, environ):
    given = ACCOUNT | {
        "WECHAT_API_BASE": platform.url,
        "DATABASE_URL": sqlite_url(folder / "bot.db"),
        "MEDIA_STORE": f"{folder}/media",
        "ADMIN_PASSWORD": PASSWORD,
        "TOKEN_SERVER_KEY": SERVER_KEY,
    }
    return create_app(Settings.from_env(given | environ, folder))


@pytest.fixture
def make_app(tmp_path, platform):
    return lambda **environ: application(tmp_path, platform, environ)


@pytest.fixture(scope="module")
def apps(tmp_path_factory):
    """Of the whole module, in plaintext and in safe mode: what strangers send changes nothing for the next one."""
    with StubPlatform() as stub:
        yield [application(tmp_path_factory.mktemp("bot"), stub, environ) for environ in ({}, AES)]


@pytest.fixture
def safe_app(make_app):
    return make_app(**AES)


def post(app, push):
    path, body = push
    return app.test_client().post(path, data=body, content_type="text/xml")


def rows(app):
    return (
        app.extensions["accounts"]
        .of[""]
        .database.run(lambda connection: connection.exec_driver_sql("SELECT count(*) FROM messages").scalar())
    )


@pytest.fixture
def refused(caplog, monkeypatch):
    """refused(app, push, status, word): nothing comes of it but one log line with that word."""
    ran = []
    monkeypatch.setattr(handlers, "HANDLERS", {TextMessage: ran.append})

    def check(app, push, status=403, word="signature"):
        before = rows(app)
        caplog.clear()
        response = post(app, push)
        assert (response.status_code, response.data) == (status, b"")
        assert rows(app) == before
        assert ran == []
        (record,) = caplog.records
        assert record.reason == word

    return check


# -- who may push -----------------------------------------------------------------------------------------------


def forged(xml, **change):
    """A plain push whose query was changed; None leaves a parameter out."""
    query = pushing.query() | change
    return f"/wechat?{urlencode({k: v for k, v in query.items() if v is not None})}", xml.encode()


@pytest.mark.parametrize(
    "change",
    [
        {"signature": "0" * 40},
        {"signature": ""},
        {"signature": None},
        {"nonce": "other"},
        {"timestamp": None},
        {"signature": pushing.query(token="guess")["signature"]},
        {"signature": pushing.query()["signature"].upper()},
        {"signature": pushing.query()["signature"] + "0"},
        {"signature": "签名"},
    ],
)
def test_forged_signatures(apps, refused, change):
    refused(apps[0], forged(pushing.text(next(NUMBERS)), **change))


@pytest.mark.parametrize("method", ["get", "post"])
def test_raw_bytes_in_the_query_are_one_refusal(apps, caplog, method):
    """werkzeug raises for a query that is no UTF-8: that must not become a traceback for each stranger's request."""
    caplog.clear()
    response = getattr(apps[0].test_client(), method)("/wechat", environ_overrides=RAW_QUERY)
    assert (response.status_code, response.data) == (403, b"")
    (record,) = caplog.records
    assert (record.reason, record.exc_info) == ("signature", None)


@pytest.mark.parametrize("path", ["/cgi-bin/token", "/gallery", "/token", "/readyz"])
def test_raw_bytes_in_other_queries_are_no_fault_of_ours(apps, path):
    assert apps[0].test_client().get(path, environ_overrides=RAW_QUERY).status_code < 500


def test_a_replay_is_answered_alike_and_does_nothing_twice(safe_app):
    push = pushing.safe(pushing.text(next(NUMBERS)))
    first, second = post(safe_app, push), post(safe_app, push)
    assert (first.status_code, second.status_code) == (200, 200)
    assert rows(safe_app) == 1
    opened = {
        pushing.ENVELOPE.decrypt(re.search(b"Encrypt><!.CDATA.(.*?)]", one.data)[1].decode())
        for one in (first, second)
    }
    assert len(opened) == 1


@pytest.mark.parametrize("off", [-601, 660, -(10**9), 10**12])  # 660: it may be a while on its way
def test_stale_pushes(apps, refused, off):
    refused(
        apps[0],
        pushing.plain(pushing.text(next(NUMBERS)), timestamp=int(time.time()) + off),
        word="timestamp",
    )


def test_an_empty_token_is_nobodys(tmp_path, make_app, refused):
    with pytest.raises(SettingsError, match="WECHAT_TOKEN"):
        Settings.from_env(ACCOUNT | {"WECHAT_TOKEN": " "}, tmp_path)
    now = str(int(time.time()))
    empty = {"timestamp": now, "nonce": "7", "signature": sign("", now, "7")}
    refused(make_app(WECHAT_TOKEN_PREVIOUS=""), forged(pushing.text(next(NUMBERS)), **empty))


def test_a_plaintext_downgrade(safe_app, refused):
    """The URL's signature is right, for it covers no body; the envelope is what proves the body."""
    refused(safe_app, pushing.plain(pushing.text(next(NUMBERS))), word="envelope")
    path, body = pushing.safe(pushing.text(next(NUMBERS)), compat=True)
    forged_plain_part = re.sub(rb"<Encrypt>.*</Encrypt>", b"", body)
    refused(safe_app, (path, forged_plain_part), word="envelope")


def test_the_plain_part_beside_an_envelope_is_never_read(safe_app):
    number = next(NUMBERS)
    path, body = pushing.safe(pushing.text(number, "true"), compat=True)
    response = post(safe_app, (path, body.replace(b"true", b"lies").replace(str(number).encode(), b"1")))
    assert response.status_code == 200
    (entry,) = safe_app.extensions["accounts"].of[""].ledger.find_by_msg_id(number)
    assert b"true" in entry.xml


def test_another_accounts_envelope(safe_app, refused):
    other = Envelope(THROWAWAY.aes_key, "wx00000000other000")
    refused(safe_app, pushing.safe(pushing.text(next(NUMBERS)), envelope=other), word="appid")
    key = Envelope("Zt4mQ9sVb2LxK7eWc1RyU8nHj5PaDf3GoI6TqSkXwEM", THROWAWAY.appid)
    refused(safe_app, pushing.safe(pushing.text(next(NUMBERS)), envelope=key), word="envelope")


def test_an_envelope_under_another_ones_signature(safe_app, refused):
    (path, _), (_, body) = (pushing.safe(pushing.text(next(NUMBERS))) for _ in range(2))
    refused(safe_app, (path, body))


# -- XML --------------------------------------------------------------------------------------------------------


def wrapped(inside, before=""):
    return f"{before}{pushing.text(next(NUMBERS)).replace('<xml>', f'<xml>{inside}')}"


BOMBS = {
    "a file": ('<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/hostname">]>', "<A>&e;</A>", "doctype"),
    "an address": ('<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd">', "", "doctype"),
    "a billion laughs": (
        "<!DOCTYPE x ["
        + "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "ha"}">' for n in range(9))
        + "]>",
        "<A>&l8;</A>",
        "doctype",
    ),
    "behind what XML cannot carry": ("\x00<!DOCTYPE xml>", "", "doctype"),
}


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("case", BOMBS)
def test_a_doctype_is_refused_at_once(apps, refused, case, sealed):
    before, inside, word = BOMBS[case]
    xml = wrapped(inside, before)
    started = time.thread_time()
    refused(apps[sealed], pushing.safe(xml) if sealed else pushing.plain(xml), 400, word)
    assert time.thread_time() - started < 1


BROKEN = {
    "an unknown entity": ("", "<A>&nobody;</A>"),
    "a stylesheet": ('<?xml-stylesheet href="http://127.0.0.1:9/x.xsl"?>', "<A>"),
    "25,000 levels": ("", "<a>" * 25_000 + "</a>" * 25_000),
    "40,000 elements, not closed": ("", "<a/>" * 40_000 + "<b>"),
    "15,000 attributes": ("", "<a " + " ".join(f"a{n}='1'" for n in range(15_000)) + "/><b>"),
    "a long prolog": ("<!-- -->" * 20_000, "<b>"),
    "a comment without end": ("<!--" + "-<" * 80_000, ""),
    "closing tags": ("", "<a>" + "]]></b>" * 25_000),
    "openings": ("", "<![CDATA[<a><![CDATA[" * 8_000),
}


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_xml_is_answered_at_once_and_without_a_fault(apps, case, sealed):
    before, inside = BROKEN[case]
    xml = wrapped(inside, before)
    started = time.thread_time()
    assert post(apps[sealed], pushing.safe(xml) if sealed else pushing.plain(xml)).status_code == 200
    assert time.thread_time() - started < 1


def test_strange_elements_are_kept_and_answered(make_app):
    app = make_app()
    for inside in (
        "<a/>" * 60_000,
        "<xi:include xmlns:xi='http://www.w3.org/2001/XInclude' href='/etc/hostname'/>",
    ):
        assert post(app, pushing.plain(wrapped(inside))).status_code == 200


def test_a_bad_padding_and_another_appid_are_counted_alike(safe_app):
    """One who could tell them apart could open an envelope byte by byte."""
    other = Envelope(THROWAWAY.aes_key, "wx00000000other000")
    key = Envelope("Zt4mQ9sVb2LxK7eWc1RyU8nHj5PaDf3GoI6TqSkXwEM", THROWAWAY.appid)

    def counted():
        text = safe_app.test_client().get("/metrics").text
        return {
            line: float(value)
            for line, value in re.findall(r"^(wechat_refusals_total\S+) (\S+)$", text, re.M)
        }

    changes = []
    for envelope in (other, key):
        before = counted()
        assert post(safe_app, pushing.safe(pushing.text(next(NUMBERS)), envelope=envelope)).status_code == 403
        after = counted()
        changes.append({line: after[line] - before[line] for line in after if after[line] != before[line]})
    assert changes == [{'wechat_refusals_total{reason="envelope"}': 1}] * 2


def test_a_fault_of_ours_is_no_refusal(make_app, monkeypatch, caplog):
    app = make_app()

    def broken(*arguments):
        raise ZeroDivisionError("a fault of this test")

    monkeypatch.setattr(app.extensions["accounts"].of[""].answers, "answer", broken)
    caplog.clear()
    response = post(app, pushing.plain(pushing.text(next(NUMBERS))))
    assert (response.status_code, response.data) == (500, b"")
    (record,) = caplog.records
    assert "a fault of this test" in logs.Formatter(as_json=False).format(record)
    assert not re.search(r"reason=|signature=", logs.Formatter(as_json=False).format(record))
    assert re.search(r"^wechat_faults_total [1-9]", app.test_client().get("/metrics").text, re.M)


# -- size and time, against the real server -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_server(tmp_path_factory):
    """A real gunicorn with one process, for all of this module."""
    folder = tmp_path_factory.mktemp("server")
    with StubPlatform() as stub:
        stub.on("/cgi-bin/stable_token", {"access_token": TOKEN, "expires_in": 7200})
        given = {
            **ACCOUNT,
            **AES,
            "WECHAT_API_BASE": stub.url,
            "DATABASE_URL": f"sqlite:///{folder}/bot.db",
            "MEDIA_STORE": f"{folder}/media",
            "PORT": str(free_port()),
            "WEB_CONCURRENCY": "1",
        }
        bot = Bot(folder, given)
        try:
            web = bot.web()
            (bot.process,) = psutil.Process(web.pid).children()
            yield bot
        finally:
            for process in bot.processes:
                process.kill()


@pytest.fixture
def server(one_server):
    """The same; its RSS in MB by `rss()`, what it logged during this test by `news()`."""
    before = len(one_server.logs())
    one_server.news = lambda: one_server.logs()[before:]
    one_server.rss = lambda: one_server.process.memory_info().rss >> 20
    return one_server


def connect(bot):
    return socket.create_connection(("127.0.0.1", int(bot.environ["PORT"])), timeout=20)


def answered(bot):
    """The seconds that a fan waits for an answer."""
    path, body = pushing.safe(pushing.text(next(NUMBERS)))
    started = time.perf_counter()
    assert requests.post(f"{bot.url}{path}", data=body, timeout=20).status_code == 200
    return time.perf_counter() - started


def status_of(sock):
    """The answer's status; None when the connection was closed without one."""
    try:
        head = sock.recv(65536)
    except ConnectionError:
        return None
    return int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/1.1 ") else None


def test_a_body_of_30_mb(server):
    answered(server)
    before = server.rss()
    path, _ = pushing.safe(pushing.text(next(NUMBERS)))
    most = before
    for _ in range(3):
        with connect(server) as sock:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {30 << 20}\r\n\r\n"
            sock.sendall(head.encode())
            with contextlib.suppress(OSError):  # the server has said no and closed
                for _ in range(30):
                    sock.sendall(bytes(1 << 20))
                    most = max(most, server.rss())
    answered(server)
    assert most - before < 20
    assert "MAX_PUSH_BYTES" in server.news()


ENDLESS = {
    "chunks": ("POST", "", b"10000\r\n" + bytes(1 << 16) + b"\r\n"),
    "a chunk's size": ("POST", "5;", b"a" * (1 << 16)),
    "trailers": ("POST", "0\r\n", b"a: " + b"b" * (1 << 16) + b"\r\n"),
    "chunks that nobody reads": ("GET", "", b"10000\r\n" + bytes(1 << 16) + b"\r\n"),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_chunked_body_without_end(server, kind):
    method, first, then = ENDLESS[kind]
    answered(server)
    before = server.rss()
    path, _ = pushing.safe(pushing.text(next(NUMBERS)))
    with connect(server) as sock:
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{first}"
        sock.sendall(head.encode())
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 1000:  # 64 MB
                sock.sendall(then)
                sent += 1
        assert sent < 1000, "the connection is closed, not read for ever"
    assert server.rss() - before < 20
    answered(server)
    assert ("MAX_PUSH_BYTES" in server.news()) is (kind == "chunks")
    assert "Traceback" not in server.news()


MALFORMED = {
    "a chunk's size": b"xyz\r\n",
    "an end of a chunk": b"5\r\nhelloXX0\r\n\r\n",
    "a trailer": b"0\r\nno trailer\r\n\r\n",
    "a line's end": b"0\r\na: b\n\n",
    "10,000 trailers": b"0\r\n" + b"a: b\r\n" * 10_000 + b"\r\n",
    "no end": b"5\r\nhel",
}


@pytest.mark.parametrize("path", ["/wechat", "/token/refresh", "/healthz", "/nowhere"])
@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_chunked_body_is_no_fault_of_ours(server, kind, path):
    path += "?" + pushing.safe(pushing.text(next(NUMBERS)))[0].partition("?")[2]
    with connect(server) as sock:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        with contextlib.suppress(OSError):  # closed before all was said
            sock.sendall(head.encode() + MALFORMED[kind])
            sock.shutdown(socket.SHUT_WR)
        assert status_of(sock) in (None, 400, 401, 403, 404, 405, 431)
    answered(server)
    assert "Traceback" not in server.news()


def test_unsigned_bodies_cost_no_memory(server):
    """20 at once, then 60 one after the other, each as large as it may be and with names that nobody has seen."""
    limit = server.settings.max_push_bytes

    def unsigned(number):
        body = f"<xml>{''.join(f'<n{number}x{place}/>' for place in range(limit // 14))}".encode()
        path = pushing.safe(pushing.text(number))[0].replace("signature=", "signature=0")
        return f"{server.url}{path}", body[:limit]

    def push(number):
        url, body = unsigned(number)
        assert len(body) > limit - 20_000
        assert requests.post(url, data=body, timeout=30).status_code == 403

    answered(server)
    before = most = server.rss()
    threads = [threading.Thread(target=push, args=(next(NUMBERS),)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            most = max(most, server.rss())
            thread.join(0.005)
    assert most - before < 60
    before = server.rss()
    for _ in range(60):
        push(next(NUMBERS))
    assert server.rss() - before < 40


def test_fewer_slow_clients_than_threads_leave_the_others_answered(server):
    """Half a request line, half a header, half a body: 300 connections that say no more, of 512 threads."""
    path, body = pushing.safe(pushing.text(next(NUMBERS)))
    whole = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    before = sorted(answered(server) for _ in range(20))
    slow = []
    try:
        for number in range(300):
            slow.append(sock := connect(server))
            sock.sendall(whole[: (5, 200, len(whole) - 20)[number % 3]])
        during = sorted(answered(server) for _ in range(20))
        assert during[10] < max(1.0, 10 * before[10])
        slow[2].sendall(whole[-20:])
        assert status_of(slow[2]) == 200, "a slow one that goes on is answered"
    finally:
        for sock in slow:
            sock.close()
    eventually(lambda: server.process.num_threads() > 0 and answered(server) < 1, what="the others")


def test_what_is_no_http(server):
    for request in (
        b"\x16\x03\x01" + bytes(200),
        b"GET /" + b"a" * 100_000,
        b"\r\n" * 1000,
        b"GET / HTTP/9.9\r\n\r\n",
    ):
        with connect(server) as sock:
            with contextlib.suppress(OSError):  # closed before all was said
                sock.sendall(request)
                sock.shutdown(socket.SHUT_WR)
            assert status_of(sock) in (None, 400, 404, 405, 414, 505)
    answered(server)
    assert "Traceback" not in server.news()


def test_two_lengths_are_no_way_in(server):
    """Request smuggling: a length that two servers could read in two ways ends the connection."""
    path, _ = pushing.safe(pushing.text(next(NUMBERS)))
    for headers in (
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked, identity",
        b"Content-Length: +5",
        b"Content-Length : 5",
    ):
        with connect(server) as sock:
            with contextlib.suppress(OSError):
                sock.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n0\r\n\r\n" % (path.encode(), headers))
                sock.shutdown(socket.SHUT_WR)
            assert status_of(sock) in (None, 400, 403, 501)
    answered(server)


# -- names, addresses and files -----------------------------------------------------------------------------------


def test_header_injection(make_app):
    app = make_app()
    echostr = "x\r\nSet-Cookie: a=b\r\n\r\n<script>"
    query = pushing.query() | {"echostr": echostr}
    response = app.test_client().get("/wechat", query_string=query)
    assert (response.status_code, response.text) == (200, echostr)
    assert "Set-Cookie" not in response.headers
    assert response.mimetype == "text/plain"
    injected = pushing.message(
        f"{pushing.FAN}\r\nX-A: b", MsgType="image", MediaId="m\r\nX-A: b", PicUrl="x", MsgId=next(NUMBERS)
    )
    response = post(app, pushing.plain(injected))
    assert "X-A" not in response.headers


def run_worker(app):
    worker = app.extensions["accounts"].worker
    while worker.run_once():
        pass


@pytest.mark.parametrize("trick", PATHS)
def test_path_tricks(make_app, platform, tmp_path, trick):
    """Whatever a fan's or the platform's names say, the file lies under its ledger id."""
    disposition = f'attachment; filename="{trick}"'.encode().decode("latin-1")
    platform.on(
        "/cgi-bin/media/get",
        reply(HEAD + b"x", content_type="image/jpeg", headers={"Content-disposition": disposition}),
    )
    app = make_app()
    number = next(NUMBERS)
    assert post(app, pushing.plain(pushing.image(number, fan=trick, media_id=trick))).status_code == 200
    run_worker(app)
    (entry,) = app.extensions["accounts"].of[""].ledger.find_by_msg_id(number)
    assert re.fullmatch(rf"{THROWAWAY.appid}/\d{{4}}/\d\d/\d\d/{entry.id}\.jpg", entry.media_key)
    media = tmp_path / "media"
    found = [path.relative_to(media).as_posix() for path in media.rglob("*") if path.is_file()]
    assert found == [entry.media_key]


@pytest.mark.parametrize(
    "trick", [*PATHS, "..", "a", "a.jpg/..", "\0.jpg", "wx/2026/01/01/1.jpg/../../../../../../x.jpg"]
)
def test_a_store_takes_no_other_names(apps, trick):
    files = apps[0].extensions["accounts"].of[""].files
    for use in (files.open, files.size, files.delete):
        with pytest.raises(ValueError, match="not a key"):
            use(trick)


@pytest.mark.parametrize(
    "path", ["/gallery/../../etc/passwd", "/gallery/static/../../config.py", "/gallery/1/../file"]
)
def test_paths_out_of_the_gallery(apps, path):
    for shown in (path, path.replace("..", "%2e%2e"), path.replace("/..", "/..%2f..")):
        response = apps[0].test_client().get(shown, follow_redirects=True)
        assert response.status_code in (200, 404)
        assert b"SecretStr" not in response.data
        assert b"root:" not in response.data


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:{port}/latest/meta-data",
        "http://localhost:{port}/",
        "http://[::1]:{port}/",
        "http://0.0.0.0:{port}/",
        "http://2130706433:{port}/",
        "http://0x7f.1:{port}/",
        "http://127.0.0.1.:{port}/",
        "http://user@127.0.0.1:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "gopher://127.0.0.1:{port}/",
        "http://10.0.0.1/",
    ],
)
def test_ssrf_through_a_video_url(make_app, platform, address):
    """The platform's answer names where the video lies: never a place inside, and never with the token."""
    with StubPlatform() as inside:
        inside.on("/", reply(b"secret"))
        platform.on("/cgi-bin/media/get", {"video_url": address.format(port=inside.port)})
        client = make_app().extensions["accounts"].of[""].client
        with (
            pytest.raises((UnsafeMediaUrlError, TransportError)),
            open_media(client, "v", max_bytes=1000) as chunks,
        ):
            list(chunks)
        assert inside.connections == 0


def test_a_redirect_of_a_video_leads_inside_neither(make_app, platform):
    with StubPlatform() as inside:
        platform.on("/cgi-bin/media/get", {"video_url": f"{platform.url}/video"})
        platform.on("/video", reply(b"", status=302, headers={"Location": inside.url}))
        client = make_app().extensions["accounts"].of[""].client
        with pytest.raises(UnsafeMediaUrlError), open_media(client, "v", max_bytes=1000) as chunks:
            list(chunks)
        assert inside.connections == 0
    (asked,) = platform.calls("/video")
    assert "access_token" not in asked.query


# -- bombs that decode ----------------------------------------------------------------------------------------------


def test_a_download_that_unpacks_to_a_gigabyte(make_app, platform, tmp_path):
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    first, again = (packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    bomb = gzip.compress(HEAD) + first + again * 999
    assert len(bomb) < 1 << 20
    platform.on(
        "/cgi-bin/media/get",
        reply(bomb, content_type="image/jpeg", headers={"Content-Encoding": "gzip"}),
    )
    before = psutil.Process().memory_info().rss
    client = make_app().extensions["accounts"].of[""].client
    with pytest.raises(MediaTooLargeError), open_media(client, "v", max_bytes=30 << 20) as chunks:
        any(not chunk for chunk in chunks)  # reads them, keeps none
    assert psutil.Process().memory_info().rss - before < 40 << 20


def test_a_picture_of_billions_of_pixels():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 6, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(10_000_000)))
    bomb = b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")
    decoder = Decoder()
    before = psutil.Process().memory_info().rss
    with pytest.raises(NoThumbnailError):
        decoder.thumbnail([bomb])
    decoder.close()
    assert psutil.Process().memory_info().rss - before < 40 << 20


# -- comparisons, pages and secrets ---------------------------------------------------------------------------------


def test_secrets_are_compared_in_constant_time(make_app, monkeypatch):
    compared = []
    real = hmac.compare_digest

    def recording(one, other):
        compared.append((bytes(one, "ascii") if isinstance(one, str) else one, other))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", recording)
    app = make_app(**AES, WECHAT_ACCEPT_PLAINTEXT="1")
    client = app.test_client()

    def used(secret):
        found = [pair for pair in compared if secret in pair]
        compared.clear()
        return bool(found)

    client.get("/wechat", query_string=pushing.query() | {"signature": "0" * 40, "echostr": "x"})
    assert used(b"0" * 40)
    path, body = pushing.safe(pushing.text(next(NUMBERS)))
    client.post(re.sub("msg_signature=[0-9a-f]+", "msg_signature=" + "1" * 40, path), data=body)
    assert used(b"1" * 40)
    client.get("/token", headers={"Authorization": "Bearer guess"})
    assert used(hashlib.sha256(b"guess").digest())
    client.get("/cgi-bin/token", query_string={"appid": THROWAWAY.appid, "secret": "guess2"})
    assert used(hashlib.sha256(b"guess2").digest())
    client.post("/gallery/sign-in", data={"password": "guess3"})
    assert used(hashlib.sha256(b"guess3").digest())


def test_html_in_every_field_that_the_gallery_shows(make_app, platform):
    error = {"errcode": 40007, "errmsg": f"invalid {SCRIPT} rid: {SCRIPT}"}
    platform.on("/cgi-bin/media/get", error)
    app = make_app()
    number = next(NUMBERS)
    push = pushing.image(number, fan=f"o{SCRIPT}", media_id=f"m{SCRIPT}", Strange=SCRIPT)
    assert post(app, pushing.plain(push)).status_code == 200
    run_worker(app)
    client = app.test_client()
    assert client.post("/gallery/sign-in", data={"password": PASSWORD}).status_code == 303
    (entry,) = app.extensions["accounts"].of[""].ledger.find_by_msg_id(number)
    assert SCRIPT in entry.media_reason
    for path in ("", f"/{entry.id}", "?fan=" + "%22%3E%3Cscript%3E", "?state=failed"):
        page = client.get(f"/gallery{path}")
        assert page.status_code == 200
        assert re.findall("<script[^>]*>", page.text.lower()) == [
            '<script src="/gallery/static/gallery.js" defer>'
        ]
        assert " script-src 'self'; " in page.headers["Content-Security-Policy"]


def test_no_secret_in_logs_exceptions_repr_and_metrics(make_app, platform, tmp_path):
    """Everything that is logged at DEBUG, by any library, while all goes well and while all goes wrong."""
    secrets = [
        THROWAWAY.appsecret,
        THROWAWAY.token,
        THROWAWAY.aes_key,
        "Zt4mQ9sVb2LxK7eWc1RyU8nHj5PaDf3GoI6TqSkXwEM",
        TOKEN,
        SERVER_KEY,
        PASSWORD,
        "a-database-password",
    ]
    secrets += [secret.encode().hex() for secret in secrets]
    with Leaks(*secrets) as leaks:
        app = make_app(**AES, WECHAT_AES_KEY_PREVIOUS=secrets[3])
        everything = app.extensions["accounts"].of[""]
        for thing in (everything, everything.settings, *vars(everything).values()):
            leaks.show(thing)
        platform.on(
            "/cgi-bin/media/get",
            {"errcode": 40001, "errmsg": f"invalid credential {TOKEN}, access_token is invalid"},
            reply(b"x", status=502),
            raw(b""),
            reply(HEAD, content_type="image/jpeg"),
        )
        client = app.test_client()
        post(app, pushing.safe(pushing.image(next(NUMBERS))))
        post(app, pushing.plain(pushing.text(next(NUMBERS))))
        post(app, forged(pushing.text(next(NUMBERS)), signature=THROWAWAY.token))
        for method, path in (
            ("GET", f"/token?x={SERVER_KEY}"),
            ("GET", f"/cgi-bin/token?appid={THROWAWAY.appid}&secret={SERVER_KEY}"),
            ("GET", f"/cgi-bin/token?appid={THROWAWAY.appid}&secret={THROWAWAY.appsecret}"),
            ("POST", f"/gallery/sign-in?password={PASSWORD}"),
        ):
            client.open(path, method=method, headers={"Authorization": f"Bearer {SERVER_KEY}"})
        app.extensions["accounts"].worker.run_once()
        entry = everything.ledger.get(1)
        assert entry.media_attempts == 1
        leaks.show(entry.media_reason)
        leaks.show(client.get("/metrics").text)
        leaks.show(client.get("/readyz").text)
        leaks.show(everything.tokens.load())
        with pytest.raises(DatabaseUnavailableError) as caught:
            Database("postgresql://bot:a-database-password@127.0.0.1:1/bot").check(wait=0.1)
        leaks.show(str(caught.value))
        with pytest.raises(SettingsError) as faulty:
            Settings.from_env({**ACCOUNT, "WECHAT_AES_KEY": THROWAWAY.aes_key + "x", "PORT": "x"}, tmp_path)
        leaks.show(str(faulty.value))
    leaks.check()
