"""wechat.media against a real server: what a download may look like, and what an upload must look like."""

import gzip
import io
import json
import re
import socket
import struct
import threading
import time
import tracemalloc
from email import message_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.stub_platform import Leaks, StubPlatform, drip, hang, raw, reply, self_signed
from wechat import media, transport
from wechat.client import ApiClient, Timeouts
from wechat.errors import (
    ApiError,
    InvalidTokenError,
    MediaError,
    MediaRefusedError,
    MediaTooLargeError,
    TransportError,
    TruncatedMediaError,
    UnsafeMediaUrlError,
)
from wechat.formats import extension
from wechat.media import open_media, upload, uploaded_media_id

GET, UPLOAD = "/cgi-bin/media/get", "/cgi-bin/media/upload"
TOKEN = "57_secretAccessToken-of-realistic_look" * 4
JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(range(256)) * 300
FILE_HEADERS = {"Content-disposition": 'attachment; filename="MEDIA_ID.jpg"'}
MB = 1024 * 1024


class Tokens:
    def __init__(self):
        self.stale = []

    def get(self):
        return TOKEN

    def replace(self, stale):
        self.stale.append(stale)
        return f"{TOKEN}-2"


@pytest.fixture
def platform():
    with StubPlatform() as one:
        yield one


@pytest.fixture
def elsewhere():
    with StubPlatform() as one:
        yield one


@pytest.fixture
def tokens():
    return Tokens()


@pytest.fixture
def client(platform, tokens):
    return ApiClient([platform.url], tokens, sleep=lambda seconds: None)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(media, "DOWNLOAD_TIMEOUT", Timeouts(connect=0.3, read=0.3, host=0.8, call=0.8))
    monkeypatch.setattr(media, "UPLOAD_TIMEOUT", Timeouts(connect=0.3, read=0.3, host=0.8, call=0.8))


def fetch(client, media_id="MEDIA_ID", max_bytes=30 * MB):
    with open_media(client, media_id, max_bytes=max_bytes) as chunks:
        return b"".join(chunks)


def picture(body=JPEG, **kwargs):
    return reply(body, content_type="image/jpeg", headers=FILE_HEADERS, **kwargs)


# -- downloads that work ------------------------------------------------------------------------------------


def test_a_picture_comes_in_chunks(platform, client):
    platform.on(GET, picture(JPEG * 3))
    with open_media(client, "a/b?c&d=中", max_bytes=30 * MB) as chunks:
        received = list(chunks)
    assert b"".join(received) == JPEG * 3
    assert max(map(len, received)) <= 256 * 1024
    assert platform.requests[0].query == {"access_token": TOKEN, "media_id": "a/b?c&d=中"}


@pytest.mark.parametrize(
    ("content_type", "headers"),
    [
        ("image/jpeg", FILE_HEADERS),
        ("text/plain", FILE_HEADERS),
        ("application/json", FILE_HEADERS),
        ("text/html", FILE_HEADERS),
        ("image/jpeg", {}),
        ("text/plain", {}),
        (None, {}),
        ("image/jpeg", {"Content-disposition": "attachment; filename=../../x"}),
        ("image/jpeg", {"Content-disposition": "attachment; filename*=utf-8''%2e%2e%2fx"}),
        ("voice/speex", {"Content-disposition": 'attachment; filename="noextension"'}),
    ],
)
def test_headers_do_not_decide_what_a_file_is(platform, client, content_type, headers):
    platform.on(GET, reply(JPEG, content_type=content_type, headers=headers))
    assert fetch(client) == JPEG


@pytest.mark.parametrize(
    "body", [b"{" + bytes(100_000), b"<\x00\x01", b"[\xff", b"\x02#!SILK_V3\x00", b"{\x01\x02\x03"]
)
def test_unknown_bytes_are_a_file(platform, client, body):
    platform.on(GET, reply(body, content_type="image/jpeg"))
    assert fetch(client) == body


def test_a_body_in_http_chunks(platform, client):
    body = b"4\r\n" + JPEG[:4] + b"\r\n" + b"%x\r\n" % len(JPEG[4:]) + JPEG[4:] + b"\r\n0\r\n\r\n"
    platform.on(GET, raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body))
    assert fetch(client) == JPEG


def test_a_body_without_a_length_ends_with_the_connection(platform, client):
    platform.on(GET, raw(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n\r\n" + JPEG))
    assert fetch(client) == JPEG


def test_an_encoded_body_is_decoded(platform, client):
    headers = {**FILE_HEADERS, "Content-Encoding": "gzip"}
    platform.on(GET, reply(gzip.compress(JPEG), content_type="image/jpeg", headers=headers))
    assert fetch(client) == JPEG
    assert platform.requests[0].headers["accept-encoding"] == "identity"


def test_a_refused_token_is_renewed_and_the_download_repeated(platform, client, tokens):
    refusal = reply({"errcode": 40001, "errmsg": "not latest"}, content_type="text/plain")
    platform.on(GET, refusal, picture())
    assert fetch(client) == JPEG
    assert tokens.stale == [TOKEN]
    assert [request.query["access_token"] for request in platform.requests] == [TOKEN, f"{TOKEN}-2"]


def test_a_token_that_stays_refused_ends_the_download(platform, client, tokens):
    platform.on(GET, {"errcode": 42001, "errmsg": "expired"})
    with pytest.raises(InvalidTokenError):
        fetch(client)
    assert len(platform.requests) == 2


def test_system_busy_and_server_errors_are_repeated(platform, client):
    platform.on(GET, {"errcode": -1, "errmsg": "system error"}, reply("<html>", status=502), picture())
    assert fetch(client) == JPEG


def test_memory_is_bounded_and_the_connection_is_used_again(platform, client):
    platform.on(GET, picture(JPEG + bytes(10 * MB)))
    fetch_size(client)
    tracemalloc.start()
    assert fetch_size(client) == len(JPEG) + 10 * MB
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MB
    assert platform.connections == 1


def fetch_size(client):
    with open_media(client, "m", max_bytes=30 * MB) as chunks:
        return sum(map(len, chunks))


# -- downloads that fail ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; encoding=utf-8", "text/plain", "image/jpeg", None]
)
@pytest.mark.parametrize("headers", [{}, FILE_HEADERS])
@pytest.mark.parametrize("space", ["", "\ufeff", " \r\n"])
def test_an_errcode_is_an_error_under_any_headers(platform, client, content_type, headers, space):
    body = space + '{"errcode":40007,"errmsg":"invalid media_id"}'
    platform.on(GET, reply(body, content_type=content_type, headers=headers))
    with pytest.raises(ApiError) as caught:
        fetch(client)
    assert (caught.value.code, caught.value.path) == (40007, GET)


INVALID = '{"errcode":40007,"errmsg":"无效的 media_id"}'
# Error bodies that are not perfect JSON, and say their code.
READABLE = {
    "a control character": INVALID.replace("无", "\x08\x1d\n").encode(),
    "GBK": INVALID.encode("gbk"),
    "UTF-16": INVALID.encode("utf-16"),
    "UTF-16 without a mark": INVALID.encode("utf-16-le"),
    "UTF-16, the other way": b"\xfe\xff" + INVALID.encode("utf-16-be"),
    "a byte order mark": INVALID.encode("utf-8-sig"),
    "cut inside a character": INVALID.replace("无", "\udce6\udc97").encode("utf-8", "surrogateescape"),
    "JSON and then HTML": INVALID.encode() + b"\n<html><body>502</body></html>",
    "a code as text": b'{"errcode":"40007","errmsg":"x"}',
}
# Bodies that say nothing usable, and what the reason quotes of them.
UNREADABLE = {
    "cut JSON": (b'{"errcode":40007,"errmsg":"inva', '{"errcode":40007,"errmsg":"inva'),
    "an array": (b'[{"errcode":40007}]', '[{"errcode":40007}]'),
    "JSONP": (b'callback({"errcode":40007})', 'callback({"errcode":40007})'),
    "deep JSON": (b'{"a":' * 10_000, '{"a":{"a":'),
    "a page": (b"<html><head>\r\n<title>502\x1b[31m Bad Gateway", "<html><head> <title>502 [31m Bad Gateway"),
    "a document": (b"<?xml version='1.0'?><xml/>", "<?xml version="),
    "an object without a code": (b'{"errcode":0,"errmsg":"ok"}', '{"errcode":0,"errmsg":"ok"}'),
    "no address": (b'{"video_url":null,"down_url":5}', '{"video_url":null'),
    "a token": (b'{"url":"/cgi-bin/media/get?access_token=%b"}' % TOKEN.encode(), "access_token=***"),
    "much": (b'{"a":"' + b"x " * 40_000, '{"a":"x x x'),
}
TYPES = ["application/json", "text/plain", "image/jpeg", None]


@pytest.mark.parametrize("case", READABLE)
@pytest.mark.parametrize("content_type", TYPES)
@pytest.mark.parametrize("headers", [{}, FILE_HEADERS])
def test_an_error_is_read_in_any_shape(platform, client, case, content_type, headers):
    platform.on(GET, reply(READABLE[case], content_type=content_type, headers=headers))
    with pytest.raises(ApiError) as caught:
        fetch(client)
    assert caught.value.code == 40007
    if case in ("GBK", "UTF-16"):
        assert caught.value.errmsg == "无效的 media_id"


@pytest.mark.parametrize("case", UNREADABLE)
@pytest.mark.parametrize("content_type", TYPES)
@pytest.mark.parametrize("headers", [{}, FILE_HEADERS])
def test_what_begins_like_text_is_never_a_file(platform, client, case, content_type, headers):
    body, quoted = UNREADABLE[case]
    platform.on(GET, reply(body, content_type=content_type, headers=headers))
    with pytest.raises(TransportError) as caught:
        fetch(client)
    said = str(caught.value)
    assert quoted in said
    assert said.isprintable()
    assert len(said) < 200
    assert TOKEN[:20] not in said


@pytest.mark.parametrize("content_type", ["text/plain", "application/json; charset=utf-8", "text/html"])
@pytest.mark.parametrize("body", ["system busy", "系统繁忙"])
def test_words_that_are_called_text_are_never_a_file(platform, client, content_type, body):
    for encoded in (body.encode(), body.encode("gbk")):
        platform.on(GET, reply(encoded, content_type=content_type, headers=FILE_HEADERS))
        with pytest.raises(TransportError, match=body):
            fetch(client)


def test_an_empty_body_is_no_file(platform, client):
    for content_type in TYPES:
        platform.on(GET, reply(b"", content_type=content_type))
        with pytest.raises(TruncatedMediaError):
            fetch(client)


@pytest.mark.parametrize("name", ["video_url", "down_url"])
@pytest.mark.parametrize("headers", [{}, FILE_HEADERS])
def test_an_address_beside_a_file_name_is_followed(platform, client, name, headers):
    platform.on(
        GET, reply(json.dumps({name: platform.url + "/v"}), content_type="text/plain", headers=headers)
    )
    platform.on("/v", reply(MP4, content_type="video/mp4"))
    assert fetch(client) == MP4


@pytest.mark.parametrize(
    "answer",
    [
        reply("<html>gateway</html>", content_type="text/html"),
        reply("gateway", content_type="text/html; charset=utf-8"),
        reply("<html>gateway</html>", content_type="text/plain"),
        reply('{"errcode":0,"errmsg":"ok"}'),
        reply('{"video_url":5}'),
        reply('{"errco', content_type="application/json"),
        reply("<html>", status=502, content_type="text/html"),
        reply("", status=404),
        raw(b""),
    ],
    ids=["html", "html by type", "html as text", "json", "odd url", "half json", "502", "404", "closed"],
)
def test_what_is_neither_a_file_nor_an_error_may_be_tried_later(platform, client, answer):
    platform.on(GET, answer)
    with pytest.raises(TransportError):
        fetch(client)


@pytest.mark.parametrize(
    "answer",
    [
        picture(JPEG[:20_000], length=len(JPEG)),
        picture(JPEG[:70_000], length=len(JPEG)),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n" + JPEG[:100]),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n" + JPEG[:3] + b"\r\n"),
        reply(gzip.compress(JPEG)[:500], headers={"Content-Encoding": "gzip", **FILE_HEADERS}, length=800),
        picture(b""),
        reply(b"", content_type=None),
        raw(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: ten\r\n\r\n" + JPEG[:100]),
    ],
    ids=[
        *("20 kB of it", "70 kB of it", "half a chunk", "no last chunk", "half a gzip", "empty", "nothing"),
        "a length that is no number",
    ],
)
def test_a_body_that_is_not_whole_is_no_file(platform, client, answer):
    platform.on(GET, answer)
    with pytest.raises((TruncatedMediaError, TransportError)) as caught:
        fetch(client)
    assert not caught.value.final


def test_a_body_over_the_cap_is_not_even_read(platform, client):
    platform.on(GET, picture(JPEG))
    assert fetch(client, max_bytes=len(JPEG)) == JPEG
    with pytest.raises(MediaTooLargeError) as caught, open_media(client, "m", max_bytes=len(JPEG) - 1):
        pytest.fail("too late")
    assert (caught.value.limit, caught.value.final) == (len(JPEG) - 1, True)


@pytest.mark.parametrize("encoding", ["chunked", "gzip"])
def test_the_cap_holds_for_bodies_without_a_length_and_for_decoded_bytes(platform, client, encoding):
    if encoding == "gzip":
        body = gzip.compress(bytes(20 * MB))
        platform.on(GET, reply(body, headers={**FILE_HEADERS, "Content-Encoding": "gzip"}))
    else:
        chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
        platform.on(GET, raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 40))
    received = []
    with open_media(client, "m", max_bytes=MB) as chunks, pytest.raises(MediaTooLargeError):
        received.extend(map(len, chunks))
    assert sum(received) <= MB


def test_a_chunk_of_a_negative_size_is_not_read_to_the_end_of_the_connection(platform, client):
    sent = []

    def endless(sock, request):
        sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n" + JPEG)
        for _ in range(50):
            sock.sendall(bytes(MB))
            sent.append(MB)

    platform.on(GET, endless)
    with pytest.raises(TransportError):
        fetch(client)
    assert sum(sent) < 25 * MB  # what the sockets hold


@pytest.mark.parametrize(
    "answer",
    [
        hang(),
        hang(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + JPEG[:70_000]),
        drip(JPEG, 0.05, first=b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + JPEG[:66_000]),
        drip(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 500, 0.05),
    ],
    ids=["silence", "silence in the body", "dripping body", "dripping head"],
)
def test_no_server_holds_a_download(platform, client, quick, answer):
    platform.on(GET, answer)
    started = time.monotonic()
    with pytest.raises((TransportError, TruncatedMediaError)):
        fetch(client)
    assert time.monotonic() - started < 3


def test_a_reader_that_takes_too_long_does_not_hold_the_connection(platform, client, quick):
    platform.on(GET, picture(JPEG * 100))
    started = time.monotonic()
    with open_media(client, "m", max_bytes=30 * MB) as chunks:
        next(chunks)
        while time.monotonic() < started + 0.9:
            time.sleep(0.05)  # the slow reader itself
        with pytest.raises(TruncatedMediaError):
            list(chunks)


def test_leaving_early_closes_the_connection(platform, client):
    closed = threading.Event()

    def endless(sock, request):
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        try:
            while True:
                sock.sendall(bytes(65536))
        except OSError:
            closed.set()
            raise

    platform.on(GET, endless)
    with open_media(client, "m", max_bytes=1 << 40) as chunks:
        next(chunks)
    assert closed.wait(5)


# -- video_url ----------------------------------------------------------------------------------------------

MP4 = b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom" + bytes(1000)


def video(url):
    return reply(json.dumps({"video_url": url}), content_type="text/plain")  # in ASCII: some are no UTF-8


def movie():
    return reply(MP4, content_type="video/mp4")


def test_a_video_url_on_the_apis_own_host_is_followed_without_the_token(platform, client, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    platform.on(GET, video(platform.url + "/video?sig=1"))
    platform.on("/video", movie())
    assert fetch(client) == MP4
    assert platform.requests[1].query == {"sig": "1"}
    assert "authorization" not in platform.requests[1].headers


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:{port}/video",
        "http://127.0.0.1:{port}/video",
        "http://127.1:{port}/video",
        "http://2130706433:{port}/video",
        "http://[::1]:{port}/video",
        "http://[::ffff:127.0.0.1]:{port}/video",
        "http://[::ffff:10.0.0.1]/video",
        "http://[64:ff9b::7f00:1]/video",
        "http://[2002:7f00:1::]/video",
        "http://[2001:0:7f00:1::]/video",
        "http://[fe80::1]/video",
        "http://0.0.0.0:{port}/video",
        "http://10.0.0.1/video",
        "http://172.16.0.1/video",
        "http://192.168.1.1/video",
        "http://169.254.169.254/latest/meta-data",
        "http://100.64.0.1/video",
        "http://224.0.0.1/video",
        "ftp://93.184.216.34/video",
        "file:///etc/passwd",
        "//127.0.0.1:{port}/video",
        "http://[::1",
        "http://127.0.0.1:99999/video",
        "http://user:password@93.184.216.34/video",
    ],
)
@pytest.mark.parametrize("redirected", [False, True])
def test_a_video_url_never_leads_inside(platform, elsewhere, client, url, redirected):
    url = url.format(port=elsewhere.port)
    elsewhere.on("/video", movie())
    if redirected:
        platform.on(GET, video(platform.url + "/first"))
        platform.on("/first", reply(status=302, headers={"Location": url}))
    else:
        platform.on(GET, video(url))
    with pytest.raises(UnsafeMediaUrlError) as caught:
        fetch(client)
    assert not caught.value.final
    assert not elsewhere.requests
    assert "sig" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["", "nonsense", "/path", "http:", "http:///video", "http://", "://", "\ud800", "http://[", "http://a]/"],
)
def test_what_is_no_address_is_refused(platform, client, url):
    platform.on(GET, video(url))
    with pytest.raises(UnsafeMediaUrlError):
        fetch(client)


@given(
    text=st.text(st.characters(blacklist_categories=["Nd"]), max_size=30),
    place=st.sampled_from(["host", "path"]),
)
def test_any_text_as_a_video_url_is_a_file_or_one_of_our_errors(platform, client, text, place):
    platform.on(GET, video(f"http://{text}.invalid/" if place == "host" else f"{platform.url}{text}"))
    with pytest.raises((MediaError, TransportError)):
        fetch(client)


@pytest.mark.parametrize("path", ["\\[", "\\]", "\\[::1]", "/[", "?[", "#]"])
def test_brackets_after_an_address_are_no_fault_of_ours(platform, client, path):
    platform.on(GET, video(platform.url + path))
    with pytest.raises((MediaError, TransportError)):
        fetch(client)


def test_a_name_that_is_no_name_is_no_answer(platform, client):
    platform.on(GET, video("http://" + "a" * 300 + ".example/video"))
    with pytest.raises(TransportError) as caught:
        fetch(client)
    assert caught.value.path == "video_url"


@pytest.fixture
def public_name(monkeypatch):
    """The name video.example has these addresses; connections to the first public one end at `port` here."""

    def publish(*addresses, port):
        real_look_up, real_connect = socket.getaddrinfo, transport.create_connection
        asked, connected = [], []

        def look_up(host, wanted, *args, **kwargs):
            if host != "video.example":
                return real_look_up(host, wanted, *args, **kwargs)
            asked.append(host)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, wanted)) for address in addresses]

        def connect(address, *args, **kwargs):
            connected.append(address[0])
            if address[0] == "93.184.216.34":
                address = ("127.0.0.1", port)
            return real_connect(address, *args, **kwargs)

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        monkeypatch.setattr(transport, "create_connection", connect)
        return asked, connected

    return publish


def test_a_public_video_is_fetched_from_the_very_address_that_was_checked(
    platform, elsewhere, client, public_name
):
    asked, connected = public_name("10.0.0.1", "93.184.216.34", port=elsewhere.port)
    platform.on(GET, video("http://video.example/v?sig=1"))
    elsewhere.on("/v", movie())
    assert fetch(client) == MP4
    assert elsewhere.requests[0].headers["host"] == "video.example"
    assert len(asked) == 1
    assert "10.0.0.1" not in connected
    assert "93.184.216.34" in connected


def test_a_public_video_over_tls(platform, client, public_name, tmp_path, monkeypatch):
    certificate = self_signed(tmp_path, "video.example")
    platform.on(GET, video("https://video.example/v"))
    with StubPlatform(tls=certificate) as elsewhere:
        public_name("93.184.216.34", port=elsewhere.port)
        elsewhere.on("/v", movie())
        with pytest.raises(TransportError):
            fetch(client)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate[0])
        trusting = ApiClient([platform.url], Tokens())
        assert fetch(trusting) == MP4


def test_a_name_that_only_leads_inside_is_refused(platform, elsewhere, client, public_name):
    public_name("10.0.0.1", "127.0.0.1", port=elsewhere.port)
    platform.on(GET, video("http://video.example/v"))
    with pytest.raises(UnsafeMediaUrlError):
        fetch(client)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_of_a_video_are_followed(platform, client, status):
    platform.on(GET, video(platform.url + "/1"))
    platform.on("/1", reply(status=status, headers={"Location": "/2"}))
    platform.on("/2", reply(status=status, headers={"Location": platform.url + "/3"}))
    platform.on("/3", movie())
    assert fetch(client) == MP4


def test_redirects_end(platform, client):
    platform.on(GET, video(platform.url + "/1"))
    platform.on("/1", reply(status=302, headers={"Location": "/1"}))
    with pytest.raises(UnsafeMediaUrlError, match="again and again"):
        fetch(client)
    assert len(platform.calls("/1")) == 6


@pytest.mark.parametrize(
    "answer",
    [
        reply("gone", status=404),
        reply("<html>", content_type="text/html"),
        video("http://video.example/next"),
        raw(b""),
    ],
    ids=["404", "page", "another video_url", "closed"],
)
def test_a_video_that_is_none_may_be_tried_later(platform, client, answer):
    platform.on(GET, video(platform.url + "/v"))
    platform.on("/v", answer)
    with pytest.raises(TransportError) as caught:
        fetch(client)
    assert caught.value.path == "video_url"


def test_an_error_instead_of_a_video(platform, client, tokens):
    platform.on(GET, video(platform.url + "/v"))
    platform.on("/v", {"errcode": 40007, "errmsg": "invalid media_id"})
    with pytest.raises(ApiError):
        fetch(client)


# -- what a file is -----------------------------------------------------------------------------------------


def box(brand, *compatible, size=None):
    length = 16 + 4 * len(compatible) if size is None else size
    return struct.pack(">I", length) + b"ftyp" + brand + b"\0\0\2\0" + b"".join(compatible) + bytes(64)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (JPEG, "jpg"),
        (b"\xff\xd8\xff\xdb", "jpg"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(500), "png"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(17) + struct.pack(">I", 8) + b"acTL" + bytes(400), "png"),
        (b"GIF89a" + bytes(20), "gif"),
        (b"GIF87a", "gif"),
        (b"#!AMR\n" + bytes(20), "amr"),
        (b"#!AMR\n", "amr"),
        (b"#!AMR-WB\n" + bytes(20), "amr"),
        (b"OggS" + bytes(24) + b"Speex   1.2" + bytes(60), "speex"),
        (b"OggS" + bytes(24) + b"\x01vorbis" + bytes(60), "bin"),
        (b"ID3\x03" + bytes(40), "mp3"),
        (b"\xff\xfb\x90\x64" + bytes(40), "mp3"),
        (b"\xff\xfa\x90\x64" + bytes(40), "mp3"),
        (b"\xff\xe3\x18\xc4" + bytes(40), "mp3"),
        (b"\xff\xf3\x18\xc4" + bytes(40), "mp3"),
        (b"\xff\xea\x90\x64" + bytes(40), "bin"),
        (b"\xff\xe3\xf0\xc4" + bytes(40), "bin"),
        (b"\xff\xf1\x50\x80" + bytes(40), "bin"),
        (b"\xff\xfe<\0h\0", "bin"),
        (box(b"isom", b"isom", b"mp41"), "mp4"),
        (box(b"mp42"), "mp4"),
        (box(b"avc1"), "mp4"),
        (box(b"isom", size=4000), "mp4"),
        (b"\0\0\0\x18ftyp", "mp4"),
        (box(b"M4A "), "bin"),
        (box(b"heic", b"mif1"), "bin"),
        (b"RIFF\x24\0\0\0WEBPVP8 " + bytes(40), "bin"),
        (b"<!DOCTYPE html><html>", "bin"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "bin"),
        (b'{"errcode":0}', "bin"),
        (b"%PDF-1.7", "bin"),
        (b"\xff", "bin"),
        (b"", "bin"),
    ],
)
def test_the_extension_by_content(head, expected):
    assert extension(head) == expected
    assert extension(head[:512]) == expected


@given(
    st.one_of(
        st.binary(max_size=600),
        st.builds(
            bytes.__add__,
            st.sampled_from(
                [JPEG[:20], MP4[:20], b"\x89PNG\r\n\x1a\n", b"ID3", b"\0\0\xff\xffftyp", b"PK\x03\x04"]
            ),
            st.binary(max_size=500),
        ),
    )
)
def test_any_bytes_have_an_extension(head):
    assert extension(head) in {"jpg", "png", "gif", "amr", "speex", "mp3", "mp4", "bin"}


# -- uploads ------------------------------------------------------------------------------------------------

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(500)
AMR = b"#!AMR\n" + bytes(500)
MP3 = b"ID3\x03" + bytes(500)
ANSWER = {"type": "image", "media_id": "MEDIA_ID", "created_at": 1760000000}


def send(client, body, kind="image", filename="照片.jpg", size=None, **kwargs):
    size = len(body) if size is None else size
    return upload(client, kind=kind, file=io.BytesIO(body), filename=filename, size=size, **kwargs)


def form_of(request):
    """The form's only part."""
    parsed = message_from_bytes(
        b"Content-Type: " + request.headers["content-type"].encode() + b"\r\n\r\n" + request.body
    )
    (part,) = parsed.get_payload()
    return part


@pytest.mark.parametrize(
    ("kind", "body", "name", "content_type"),
    [
        ("image", JPEG, "image.jpg", "image/jpeg"),
        ("image", PNG, "image.png", "image/png"),
        ("image", b"GIF89a" + bytes(50), "image.gif", "image/gif"),
        ("voice", AMR, "voice.amr", "audio/amr"),
        ("voice", MP3, "voice.mp3", "audio/mpeg"),
        ("video", MP4, "video.mp4", "video/mp4"),
        ("thumb", JPEG[:60000], "thumb.jpg", "image/jpeg"),
    ],
)
def test_an_upload_is_one_form_of_a_known_length(platform, client, kind, body, name, content_type):
    platform.on(UPLOAD, ANSWER)
    assert send(client, body, kind) == ANSWER
    request = platform.requests[0]
    assert request.query == {"access_token": TOKEN, "type": kind}
    assert request.headers["content-length"] == str(len(request.body))
    assert "transfer-encoding" not in request.headers
    part = form_of(request)
    assert part.get_param("name", header="Content-Disposition") == "media"
    assert part.get_filename() == name
    assert part.get_content_type() == content_type
    assert request.body.count(body) == 1


@pytest.mark.parametrize(
    "filename", ["图片.jpg", 'a".jpg', "a\r\nX: y.jpg", "../../etc/passwd", "", "a.html", "\0"]
)
def test_the_platform_gets_a_plain_name_whatever_the_file_is_called(platform, client, filename):
    platform.on(UPLOAD, ANSWER)
    send(client, JPEG, filename=filename)
    head = platform.requests[0].body.split(b"\r\n\r\n")[0]
    assert head.isascii()
    assert b'filename="image.jpg"' in head
    assert head.count(b"\r\n") == 2


def test_an_upload_repeated_after_40001_arrives_with_all_its_bytes(platform, client, tokens):
    platform.on(UPLOAD, {"errcode": 40001, "errmsg": "not latest"}, ANSWER)
    steps = []
    assert send(client, JPEG, progress=steps.append) == ANSWER
    first, second = platform.requests
    assert first.body == second.body
    assert JPEG in second.body
    assert tokens.stale == [TOKEN]
    assert sum(steps) == len(JPEG)
    assert [step for step in steps if step < 0] == [-len(JPEG)]


def test_an_upload_fails_over_and_is_repeated(platform, client):
    platform.on(UPLOAD, reply(status=502), {"errcode": -1, "errmsg": "busy"}, ANSWER)
    assert send(client, JPEG) == ANSWER
    assert {request.body for request in platform.requests} == {platform.requests[0].body}


def test_a_file_is_sent_from_where_it_stands(platform, client):
    platform.on(UPLOAD, ANSWER)
    file = io.BytesIO(b"before" + JPEG)
    file.seek(6)
    upload(client, kind="image", file=file, filename="a.jpg", size=len(JPEG))
    assert form_of(platform.requests[0]).get_payload(decode=True).startswith(JPEG[:4])


def test_a_file_that_cannot_be_read_twice_is_copied_first(platform, client):
    class Once(io.RawIOBase):
        """What a remote store hands out: it can be read, once."""

        source = io.BytesIO(JPEG)

        def readable(self):
            return True

        def readinto(self, buffer):
            return self.source.readinto(buffer)

    platform.on(UPLOAD, {"errcode": 40001, "errmsg": "not latest"}, ANSWER)
    file = io.BufferedReader(Once())
    assert upload(client, kind="image", file=file, filename="a.jpg", size=len(JPEG)) == ANSWER
    assert all(JPEG in request.body for request in platform.requests)


def test_a_large_file_is_streamed(platform, client, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(JPEG + bytes(9 * MB))
    size = path.stat().st_size
    received = []

    def drain(sock, request):
        received.append(len(request.body))
        return reply(ANSWER)(sock, request)

    platform.on(UPLOAD, drain)
    largest = 0

    def step(sent):
        nonlocal largest
        largest = max(largest, sent)

    with path.open("rb") as file:
        upload(client, kind="image", file=file, filename="a.jpg", size=size, progress=step)
    assert largest <= 64 * 1024
    assert received[0] > size


@pytest.mark.parametrize(
    ("kind", "body", "size", "code"),
    [
        ("document", JPEG, None, 40004),
        ("image", b"", None, 40006),
        ("image", JPEG, -1, 40006),
        ("image", JPEG, len(JPEG) + 1, 40006),
        ("image", JPEG, len(JPEG) - 1, 40006),
        ("image", JPEG, 10 * MB + 1, 40009),
        ("voice", AMR, 2 * MB + 1, 40010),
        ("video", MP4, 10 * MB + 1, 40011),
        ("thumb", JPEG, 64 * 1024 + 1, 40012),
        ("image", b"RIFF\x24\0\0\0WEBPVP8 " + bytes(40), None, 40005),
        ("image", MP4, None, 40005),
        ("voice", b"OggS" + bytes(24) + b"Speex   1.2" + bytes(60), None, 40005),
        ("video", JPEG, None, 40005),
        ("thumb", PNG, None, 40005),
    ],
)
def test_what_the_platform_would_refuse_is_refused_before_the_network(
    platform, client, kind, body, size, code
):
    with pytest.raises(MediaRefusedError) as caught:
        send(client, body, kind, filename="a\nb照.jpg", size=size)
    assert caught.value.code == code
    assert "a\\nb" in str(caught.value)
    assert not platform.requests


@pytest.mark.parametrize(
    ("kind", "size"), [("image", 10 * MB), ("voice", 2 * MB), ("video", 10 * MB), ("thumb", 64 * 1024)]
)
def test_the_limits_themselves_are_allowed(platform, client, kind, size):
    platform.on(UPLOAD, ANSWER)
    head = {"image": JPEG, "voice": AMR, "video": MP4, "thumb": JPEG[:100]}[kind]
    assert send(client, head + bytes(size - len(head)), kind) == ANSWER


@pytest.mark.parametrize("file", ["a.jpg", JPEG, None, io.StringIO("text")])
def test_a_file_that_is_not_open_for_bytes_says_what_to_write(platform, client, file):
    with pytest.raises(TypeError, match=r'open\(path, "rb"\)'):
        upload(client, kind="image", file=file, filename="a.jpg", size=9)
    assert not platform.requests


def test_a_path_may_be_the_name_of_a_file(platform, client, tmp_path):
    platform.on(UPLOAD, ANSWER)
    path = tmp_path / "照片.jpg"
    path.write_bytes(JPEG)
    with path.open("rb") as file:
        assert upload(client, kind="image", file=file, filename=path, size=len(JPEG)) == ANSWER


def test_the_platforms_refusal_of_an_upload(platform, client):
    platform.on(UPLOAD, {"errcode": 40009, "errmsg": "invalid image size"})
    with pytest.raises(ApiError) as caught:
        send(client, JPEG)
    assert caught.value.code == 40009


def test_an_upload_without_an_answer_is_bounded(platform, client, quick):
    platform.on(UPLOAD, hang())
    with pytest.raises(TransportError) as caught:
        send(client, JPEG)
    assert caught.value.sent


@pytest.mark.parametrize(
    ("answer", "media_id"),
    [
        (ANSWER, "MEDIA_ID"),
        ({**ANSWER, "errcode": 0, "errmsg": "ok"}, "MEDIA_ID"),
        ({"type": "thumb", "thumb_media_id": "THUMB", "created_at": "1760000000"}, "THUMB"),
    ],
)
def test_the_id_of_an_upload(answer, media_id):
    assert uploaded_media_id(answer) == media_id


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"media_id": ""},
        {"media_id": 5},
        {"media_id": "a\0"},
        {"media_id": "\ud800"},
        {"media_id": "x" * 10_000},
    ],
)
def test_an_upload_without_an_id_is_no_usable_answer(answer):
    with pytest.raises(TransportError):
        uploaded_media_id(answer)


# -- secrets ------------------------------------------------------------------------------------------------


def test_no_secret_in_any_record_or_error(platform, client, quick):
    secret_url = platform.url + "/v?sig=signatureOfTheVideoUrl"
    downloads = [
        hang(),
        picture(JPEG[:20_000], length=len(JPEG)),
        raw(b""),
        reply(status=302, headers={"Location": f"/y?access_token={TOKEN}"}),
        reply(status=502),
        reply({"errcode": 40001, "errmsg": f"access_token={TOKEN}"}),
        video(secret_url),
        video("http://10.0.0.1/?sig=signatureOfTheVideoUrl"),
        picture(),
    ]
    with Leaks(TOKEN, "signatureOfTheVideoUrl") as leaks:
        for answer in downloads:
            platform.on(GET, answer)
            platform.on(UPLOAD, answer)
            platform.on("/v", *[reply(status=302, headers={"Location": secret_url})] * 2, raw(b""))
            for ask in (
                lambda: fetch(client),
                lambda: fetch(client, max_bytes=5),
                lambda: send(client, JPEG),
            ):
                try:
                    ask()
                except (ApiError, TransportError, MediaError) as error:
                    caught = error
                    leaks.show(caught)
    assert any(re.search(r"media/get\?\.\.\.", record.getMessage()) for record in leaks.records)
    leaks.check()
