"""wechat.client against a real server that answers, breaks off, hangs and drips as told."""

import gzip
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.stub_platform import Leaks, StubPlatform, drip, hang, raw, reply, self_signed
from wechat.client import ApiClient, Timeouts
from wechat.errors import ApiError, InvalidTokenError, TransportError

pytestmark = pytest.mark.xdist_group("waits-3")

TOKEN = "57_secretAccessToken-of-realistic_look" * 4
SECRET = "0123456789abcdef0123456789abcdef"
QUICK = Timeouts(connect=0.5, read=0.3, host=0.6, call=5)
OK = {"errcode": 0, "errmsg": "ok"}


@pytest.fixture
def platform():
    with StubPlatform() as one:
        yield one


@pytest.fixture
def second():
    with StubPlatform() as one:
        yield one


@pytest.fixture
def refused():
    """The address of a host that nobody listens on."""
    one = StubPlatform()
    one.stop()
    return one.url


class Clock:
    def __init__(self):
        self.now = 1000.0
        self.pauses = []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds


class Tokens:
    """A token source that counts."""

    def __init__(self):
        self.stale = []

    def get(self):
        return "first"

    def replace(self, stale):
        self.stale.append(stale)
        return "second"


def client(*bases, token=None, clock=None):
    clock = clock or Clock()
    return ApiClient([getattr(base, "url", base) for base in bases], token, clock=clock, sleep=clock.sleep)


# -- answers ------------------------------------------------------------------------------------------------


def test_the_answer_is_the_json_object(platform):
    platform.on("/cgi-bin/x", {"ip_list": ["127.0.0.1"]})
    answer = client(platform.url + "/").call(
        "GET", "/cgi-bin/x", params={"a": "1&2", "b": "中"}, repeatable=True
    )
    assert answer == {"ip_list": ["127.0.0.1"]}
    assert platform.requests[0].query == {"a": "1&2", "b": "中"}
    assert "cookie" not in platform.requests[0].headers


def test_json_is_sent_as_raw_utf8(platform):
    platform.on("/x", OK)
    client(platform).call("POST", "/x", json={"text": {"content": "你好😀\n"}}, repeatable=False)
    request = platform.requests[0]
    assert request.body == '{"text":{"content":"你好😀\\n"}}'.encode()
    assert request.headers["content-length"] == str(len(request.body))
    assert "transfer-encoding" not in request.headers
    assert request.headers["content-type"].startswith("application/json")


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/json; encoding=utf-8", "text/plain", "text/html", "image/jpeg", None],
)
def test_an_errcode_is_an_error_whatever_the_content_type(platform, content_type):
    body = '{"errcode":40003,"errmsg":"invalid openid rid: 5f3ded7d-22929d02-4ba1f5f6"}'
    platform.on("/x", reply(body, content_type=content_type))
    with pytest.raises(ApiError) as caught:
        client(platform).call("GET", "/x", repeatable=True)
    assert (caught.value.code, caught.value.path) == (40003, "/x")
    assert caught.value.rid == "5f3ded7d-22929d02-4ba1f5f6"
    assert len(platform.requests) == 1


@pytest.mark.parametrize("code", [40001, 40014, 42001, "40001"])
def test_a_refused_token_is_a_type_of_its_own(platform, code):
    platform.on("/x", {"errcode": code, "errmsg": "invalid credential"})
    with pytest.raises(InvalidTokenError) as caught:
        client(platform).call("GET", "/x", repeatable=True)
    assert caught.value.code == int(code)


@pytest.mark.parametrize("code", [0, "0", "", None])
def test_errcode_zero_is_success_in_any_spelling(platform, code):
    platform.on("/x", {"errcode": code, "media_id": "m"})
    assert client(platform).call("GET", "/x", repeatable=True)["media_id"] == "m"


@pytest.mark.parametrize(
    "answer",
    [
        reply("<html>502 Bad Gateway</html>", content_type="text/html"),
        reply(""),
        reply("[1]"),
        reply("[" * 100_000),
        reply(b"\xff\xfe\xfa"),
        reply('{"a": "' + "x" * (1024 * 1024 + 200_000) + '"}'),
    ],
    ids=["html", "empty", "array", "deep", "bytes", "huge"],
)
def test_what_is_no_json_object_is_no_usable_answer(platform, second, answer):
    platform.on("/x", answer)
    with pytest.raises(TransportError) as caught:
        client(platform, second).call("GET", "/x", repeatable=True)
    assert (caught.value.sent, caught.value.status) == (True, 200)
    assert len(platform.requests) == 1
    assert not second.requests


@pytest.mark.parametrize("status", [302, 403, 404])
def test_other_statuses_are_no_answers_and_redirects_are_not_followed(platform, second, status):
    platform.on("/x", reply("{}", status=status, headers={"Location": second.url + "/x"}))
    second.on("/x", OK)
    with pytest.raises(TransportError) as caught:
        client(platform).call("GET", "/x", params={"access_token": TOKEN}, repeatable=True)
    assert caught.value.status == status
    assert not second.requests


def test_an_encoded_answer_is_decoded(platform):
    platform.on("/x", reply(gzip.compress(b'{"a":1}'), headers={"Content-Encoding": "gzip"}))
    assert client(platform).call("GET", "/x", repeatable=True) == {"a": 1}
    assert platform.requests[0].headers["accept-encoding"] == "identity"


# -- hosts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repeatable", [True, False])
def test_a_host_that_cannot_be_reached_is_passed_over(platform, refused, repeatable):
    platform.on("/x", OK)
    assert client(refused, platform).call("POST", "/x", json={}, repeatable=repeatable) == OK
    assert len(platform.requests) == 1


def test_nobody_can_be_reached(refused):
    clock = Clock()
    with pytest.raises(TransportError) as caught:
        client(refused, refused + "/other", clock=clock).call("POST", "/x", json={}, repeatable=True)
    assert caught.value.sent is False
    assert "cannot connect" in str(caught.value)
    assert clock.pauses == []


def test_a_name_without_an_address_is_passed_over(platform):
    platform.on("/x", OK)
    long_label = "http://" + "a" * 70 + ".invalid"
    assert (
        client("http://nowhere.invalid", long_label, platform).call("POST", "/x", json={}, repeatable=False)
        == OK
    )


@pytest.mark.parametrize("base", ["", "api.weixin.test", "http://", "gopher://api.weixin.test"])
def test_a_base_that_is_no_address_is_passed_over(platform, base):
    platform.on("/x", OK)
    assert client(base, platform).call("POST", "/x", json={}, repeatable=False) == OK
    with pytest.raises(TransportError) as caught:
        client(base).call("POST", "/x", params={"secret": SECRET}, json={}, repeatable=False)
    assert caught.value.sent is False
    assert SECRET not in str(caught.value)


def test_a_tls_failure_is_passed_over_and_nothing_was_sent(platform, tmp_path):
    certificate = self_signed(tmp_path)
    platform.on("/x", OK)
    with StubPlatform(tls=certificate) as strange:
        assert client(strange, platform).call("POST", "/x", json={"a": 1}, repeatable=False) == OK
        assert not strange.requests
        with pytest.raises(TransportError) as caught:
            client(strange).call("POST", "/x", json={"a": 1}, repeatable=False)
    assert caught.value.sent is False


def test_tls_with_a_certificate_authority_of_ones_own(tmp_path, monkeypatch):
    certificate = self_signed(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate[0])
    with StubPlatform(tls=certificate) as platform:
        platform.on("/x", OK)
        assert client(platform).call("GET", "/x", repeatable=True) == OK


def test_the_preferred_host_is_tried_again_after_a_minute(platform, second, refused):
    clock = Clock()
    second.on("/x", OK)
    api = client(platform, second, clock=clock)
    platform.on("/x", reply(status=502), OK)

    def call():
        before = len(platform.requests), len(second.requests)
        assert api.call("GET", "/x", repeatable=True) == OK
        return len(platform.requests) - before[0], len(second.requests) - before[1]

    assert call() == (1, 1)  # failed over
    clock.now += 59
    assert call() == (0, 1)  # stays there
    clock.now += 1
    assert call() == (1, 0)  # switched back
    assert call() == (1, 0)


def test_a_silent_host_is_passed_over_if_the_call_is_repeatable(platform, second):
    platform.on("/x", hang())
    second.on("/x", OK)
    assert client(platform, second).call("POST", "/x", json={}, repeatable=True, timeout=QUICK) == OK


@pytest.mark.parametrize(
    "answer",
    [
        hang(),
        hang(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"),
        raw(b""),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"),
        raw(b"no HTTP at all\r\n\r\n"),
        reply("{}", status=502),
    ],
    ids=["hang", "hang in the body", "closed", "cut off", "noise", "502"],
)
def test_a_call_that_must_not_be_repeated_is_not(platform, second, answer):
    platform.on("/x", answer)
    second.on("/x", OK)
    with pytest.raises(TransportError) as caught:
        client(platform, second).call("POST", "/x", json={}, repeatable=False, timeout=QUICK)
    assert caught.value.sent is True
    assert len(platform.requests) == 1
    assert not second.requests


@pytest.mark.parametrize(
    "answer",
    [
        raw(b""),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n{"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n{}\r\n0\r\n\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
        reply(b"no gzip", headers={"Content-Encoding": "gzip"}),
    ],
    ids=["closed", "cut off", "cut off in a chunk", "negative chunk", "two lengths", "not decodable"],
)
def test_a_broken_answer_is_asked_of_the_next_host_if_the_call_is_repeatable(platform, second, answer):
    platform.on("/x", answer)
    second.on("/x", OK)
    assert client(platform, second).call("GET", "/x", repeatable=True) == OK


def test_no_fail_over_for_an_errcode(platform, second):
    platform.on("/x", {"errcode": 45009, "errmsg": "reach max api daily quota limit"})
    second.on("/x", OK)
    with pytest.raises(ApiError):
        client(platform, second).call("GET", "/x", repeatable=True)
    assert not second.requests


# -- repeats ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repeatable", [True, False])
def test_system_busy_is_repeated_with_pauses_even_where_a_repeat_is_unsafe(platform, second, repeatable):
    clock = Clock()
    busy = {"errcode": -1, "errmsg": "system error"}
    platform.on("/x", busy, busy, OK)
    assert client(platform, second, clock=clock).call("POST", "/x", json={}, repeatable=repeatable) == OK
    assert clock.pauses == [1.0, 2.0]
    assert not second.requests


def test_system_busy_three_times_is_an_error(platform):
    platform.on("/x", {"errcode": -1, "errmsg": "system error"})
    with pytest.raises(ApiError) as caught:
        client(platform).call("GET", "/x", repeatable=True)
    assert caught.value.code == -1
    assert len(platform.requests) == 3


def test_a_server_error_is_repeated_with_pauses(platform):
    clock = Clock()
    platform.on("/x", reply("<html>", status=502), reply("<html>", status=503), OK)
    assert client(platform, clock=clock).call("GET", "/x", repeatable=True) == OK
    assert clock.pauses == [1.0, 2.0]


def test_three_server_errors_of_all_hosts_together_are_an_error(platform, second):
    clock = Clock()
    platform.on("/x", reply(status=502))
    second.on("/x", reply(status=502))
    with pytest.raises(TransportError) as caught:
        client(platform, second, clock=clock).call("GET", "/x", repeatable=True)
    assert (caught.value.status, caught.value.sent) == (502, True)
    assert len(platform.requests) + len(second.requests) == 3
    assert clock.pauses == [1.0]


def test_no_pause_leads_past_the_end_of_the_call(platform):
    clock = Clock()
    platform.on("/x", reply(status=502))
    with pytest.raises(TransportError):
        client(platform, clock=clock).call("GET", "/x", repeatable=True, timeout=Timeouts(call=2.5))
    assert clock.pauses == [1.0]


# -- time-outs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        hang(),
        hang(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"),
        drip(b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 500, 0.05),
        drip(b" " * 500, 0.05, first=b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
        drip(b"1\r\n \r\n" * 100, 0.05, first=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ],
    ids=["silence", "silence in the body", "dripping head", "dripping body", "dripping chunks"],
)
def test_no_server_holds_a_call_longer_than_its_time(platform, answer):
    platform.on("/x", answer)
    started = time.monotonic()
    with pytest.raises(TransportError) as caught:
        client(platform).call("GET", "/x", repeatable=True, timeout=QUICK)
    assert time.monotonic() - started < 3
    assert caught.value.sent is True


def test_a_server_that_does_not_read_does_not_hold_a_call(platform):
    class Endless:
        content_type = "application/octet-stream"

        def __len__(self):
            return 1 << 40

        def __iter__(self):
            while True:
                yield bytes(1 << 20)

    with socket.create_server(("127.0.0.1", 0)) as deaf:
        deaf.listen()
        base = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(TransportError) as caught:
            client(base).call("POST", "/x", body=Endless(), repeatable=False, timeout=QUICK)
    assert time.monotonic() - started < 3
    assert caught.value.sent is True


@pytest.fixture
def blackhole():
    """An address that does not answer a connection attempt: a listener whose queue is full."""
    with socket.create_server(("127.0.0.3", 0), backlog=0) as full:
        address = full.getsockname()
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(address)
            fillers.append(filler)
        yield address[1]
        for filler in fillers:
            filler.close()


@pytest.fixture
def api_test_is_at(monkeypatch):
    """Gives the name api.test these addresses."""
    real = socket.getaddrinfo

    def set_addresses(*addresses):
        def look_up(host, port, *args, **kwargs):
            if host != "api.test":
                return real(host, port, *args, **kwargs)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

        monkeypatch.setattr(socket, "getaddrinfo", look_up)

    return set_addresses


def test_a_dead_address_of_a_name_leaves_time_for_the_next(blackhole, api_test_is_at):
    api_test_is_at("127.0.0.3", "127.0.0.1")
    with StubPlatform(port=blackhole) as platform:
        platform.on("/x", OK)
        assert client(f"http://api.test:{blackhole}").call("GET", "/x", repeatable=True, timeout=QUICK) == OK


def test_all_addresses_of_a_name_share_one_connect_time_out(blackhole, api_test_is_at):
    api_test_is_at(*["127.0.0.3"] * 6)
    started = time.monotonic()
    with pytest.raises(TransportError) as caught:
        client(f"http://api.test:{blackhole}").call("POST", "/x", json={}, repeatable=True, timeout=QUICK)
    assert time.monotonic() - started < 3
    assert caught.value.sent is False


def test_nothing_is_sent_after_the_time_is_over(platform, monkeypatch):
    platform.on("/x", OK)
    real = socket.getaddrinfo

    def slow(*args, **kwargs):
        time.sleep(0.1)  # the slow name server itself
        return real(*args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with pytest.raises(TransportError) as caught:
        client(platform).call("POST", "/x", json={}, repeatable=False, timeout=Timeouts(host=0.05))
    assert caught.value.sent is False
    assert not platform.requests


# -- proxies, threads ---------------------------------------------------------------------------------------


def test_a_proxy_of_the_environment_is_used(platform, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", platform.url)
    monkeypatch.setenv("http_proxy", platform.url)
    platform.on("/x", OK)
    assert client("http://api.weixin.test").call("GET", "/x", repeatable=True) == OK
    assert platform.requests[0].headers["host"] == "api.weixin.test"


def test_a_proxy_that_refuses_the_tunnel_is_no_connection(platform, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", platform.url)
    monkeypatch.setenv("https_proxy", platform.url)
    with pytest.raises(TransportError) as caught:
        client("https://api.weixin.test").call("POST", "/x", json={"a": 1}, repeatable=False)
    assert platform.requests[0].method == "CONNECT"
    assert caught.value.sent is False


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_proxy_stands_before_this_machine(platform, refused, monkeypatch, host):
    monkeypatch.setenv("HTTP_PROXY", refused)
    monkeypatch.setenv("http_proxy", refused)
    platform.on("/x", OK)
    assert client(f"http://{host}:{platform.port}").call("GET", "/x", repeatable=True) == OK


def test_a_cookie_is_not_kept(platform):
    platform.on("/x", reply(OK, headers={"Set-Cookie": "a=b"}))
    api = client(platform)
    assert api.call("GET", "/x", repeatable=True) == OK
    assert api.call("GET", "/x", repeatable=True) == OK
    assert "cookie" not in platform.requests[1].headers


def test_sixteen_threads_share_the_connections(platform):
    api = client(platform)
    gate = threading.Barrier(16)
    platform.on("/x", OK)

    def work(number):
        gate.wait()
        for turn in range(10):
            assert api.call("POST", "/x", json={"n": f"{number}-{turn}"}, repeatable=True) == OK

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    assert {json.loads(request.body)["n"] for request in platform.requests} == {
        f"{number}-{turn}" for number in range(16) for turn in range(10)
    }
    assert platform.connections <= 16


# -- the token ----------------------------------------------------------------------------------------------


def test_the_token_goes_with_each_call(platform):
    platform.on("/x", OK)
    assert client(platform, token=Tokens()).call("GET", "/x", params={"a": "b"}, repeatable=True) == OK
    assert platform.requests[0].query == {"access_token": "first", "a": "b"}


def test_a_refused_token_is_renewed_once_and_the_call_repeated_whole(platform):
    tokens = Tokens()
    platform.on("/x", {"errcode": 40001, "errmsg": "not latest"}, OK)
    assert client(platform, token=tokens).call("POST", "/x", json={"a": "中"}, repeatable=False) == OK
    assert [request.query["access_token"] for request in platform.requests] == ["first", "second"]
    assert platform.requests[0].body == platform.requests[1].body
    assert tokens.stale == ["first"]


def test_a_token_that_stays_refused_is_an_error_after_one_renewal(platform):
    tokens = Tokens()
    platform.on("/x", {"errcode": 42001, "errmsg": "access_token expired"})
    with pytest.raises(InvalidTokenError):
        client(platform, token=tokens).call("GET", "/x", repeatable=True)
    assert len(platform.requests) == 2
    assert tokens.stale == ["first"]


# -- secrets ------------------------------------------------------------------------------------------------

FAULTS = [
    hang(),
    hang(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"),
    raw(b""),
    raw(b"noise"),
    raw(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"),
    raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nbad header\r\n : x\r\n\r\n{}"),
    raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}"),
    reply(status=302, headers={"Location": f"/y?access_token={TOKEN}"}),
    reply(status=502),
    reply("<html>"),
    reply({"errcode": 40003, "errmsg": f"invalid secret={SECRET} {TOKEN}"}),
    reply({"errcode": 40001, "errmsg": "not latest"}),
    reply(b"x", headers={"Content-Encoding": "gzip"}),
]


def test_no_secret_in_any_record_or_error(platform, refused, tmp_path):
    class Source:
        def get(self):
            return TOKEN

        def replace(self, stale):
            return TOKEN

    with StubPlatform(tls=self_signed(tmp_path)) as strange, Leaks(TOKEN, SECRET) as leaks:
        bases = [refused, strange.url, "http://nowhere.invalid", f"http://user:{SECRET}@127.0.0.1:1"]
        calls = [(base, None) for base in bases] + [(platform.url, fault) for fault in FAULTS]
        for base, fault in calls:
            if fault:
                platform.on("/x", fault)
            api = client(base)
            with_token = api.with_token(Source())
            leaks.show(api)
            leaks.show(with_token)
            for ask in (
                lambda api=api: api.call(
                    "GET", "/x", params={"secret": SECRET}, repeatable=True, timeout=QUICK
                ),
                lambda api=api: api.call(
                    "POST", "/x", json={"secret": SECRET}, repeatable=False, timeout=QUICK
                ),
                lambda with_token=with_token: with_token.call("GET", "/x", repeatable=False, timeout=QUICK),
            ):
                try:
                    ask()
                except (ApiError, TransportError) as error:
                    caught = error
                    leaks.show(caught)
    assert any("GET /x?..." in record.getMessage() for record in leaks.records)
    leaks.check()


# -- what a programmer gets wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize("bases", [[], (), None, "https://api.weixin.qq.com"])
def test_bases_that_are_no_list_say_what_to_write(bases):
    with pytest.raises(TypeError, match=r"write ApiClient\(\[url\]\)"):
        ApiClient(bases)


def test_the_text_of_a_token_is_no_token(platform):
    for make in (lambda: ApiClient([platform.url], TOKEN), lambda: client(platform).with_token(TOKEN)):
        with pytest.raises(TypeError, match="AccessToken") as caught:
            make()
        assert TOKEN not in str(caught.value)


def test_a_path_without_its_slash_is_not_sent_to_another_host(platform):
    with pytest.raises(ValueError, match="must begin with /"):
        client(platform, token=Tokens()).call("GET", "cgi-bin/menu/get", repeatable=True)


def test_half_a_character_in_json_is_named_and_not_shown(platform):
    with pytest.raises(ValueError, match="half a character") as caught:
        client(platform).call("POST", "/x", json={"name": "\ud83d", "secret": SECRET}, repeatable=True)
    assert SECRET not in repr(vars(caught.value)) + str(caught.value)
    assert caught.value.__context__ is None
    assert not platform.requests
