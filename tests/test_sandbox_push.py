"""Pushes: how the sandbox signs and repeats them, and how its judge takes good and bad answers."""

import base64
import hashlib
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from lxml import etree
from wechatpy.crypto import PrpCrypto, WeChatCrypto
from wechatpy.utils import check_signature

from sandbox import THROWAWAY, Account, running_sandbox
from sandbox.cipher import Envelope
from tests.conftest import eventually

PHOTO = (Path(__file__).parent.parent / "sandbox/photos/grace_hopper.jpg").read_bytes()
FAN = "oTest-AbCdEfGhIjKlMnOpQrSt_1"
FAILURE = "该公众号暂时无法提供服务，请稍后再试"
MODES = ["plain", "compat", "safe"]
ENVELOPE = Envelope(THROWAWAY.aes_key, THROWAWAY.appid)
CRYPTO = WeChatCrypto(THROWAWAY.token, THROWAWAY.aes_key, THROWAWAY.appid)


class Request:
    """What the bot was sent, read by other code than the sandbox's."""

    def __init__(self, handler):
        self.method, self.path, self.headers = handler.command, urlsplit(handler.path).path, handler.headers
        self.query = {name: values[0] for name, values in parse_qs(urlsplit(handler.path).query).items()}
        self.body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        self.connection = handler.connection

    @property
    def sealed(self):
        return "msg_signature" in self.query

    def opened(self):
        """The XML that counts, by wechatpy's decryption when there is a sealed part."""
        if not self.sealed:
            return self.body.decode()
        query = self.query
        return CRYPTO.decrypt_message(self.body, query["msg_signature"], query["timestamp"], query["nonce"])

    def value(self, name):
        return etree.fromstring(self.opened()).findtext(name)

    def reply(self, kind="text", inner="<Content>hi</Content>", **other):
        """A plain reply; `other` replaces one of the four common elements."""
        common = {
            "ToUserName": self.value("FromUserName"),
            "FromUserName": self.value("ToUserName"),
            "CreateTime": "1760000000",
            "MsgType": kind,
        } | other
        head = "".join(f"<{name}>{value}</{name}>" for name, value in common.items())
        return f"<xml>{head}{inner}</xml>"

    def seal(self, xml):
        return CRYPTO.encrypt_message(xml, self.query["nonce"], "1760000103")

    def answer(self, *args, **other):
        """The reply in the form of the mode."""
        reply = self.reply(*args, **other)
        return self.seal(reply) if self.sealed else reply


class Bot:
    """A callback server that answers as a test says: `answer(request)` gives body, or (status, body)."""

    def __init__(self):
        self.requests = []
        self.answer = lambda request: request.answer()
        bot = self

        class Handler(BaseHTTPRequestHandler):
            def handle_request(self):
                request = Request(self)
                bot.requests.append(request)
                answer = bot.answer(request)
                status, body = answer if isinstance(answer, tuple) else (200, answer)
                body = body.encode() if isinstance(body, str) else body
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    self.close_connection = True  # the sandbox has hung up

            do_GET = do_POST = handle_request  # noqa: N815

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.005,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/wechat"

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def bot():
    bot = Bot()
    yield bot
    bot.close()


@pytest.fixture(scope="module")
def running():
    with running_sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(running, bot):
    running.state.reset()
    running.callback = bot.url
    return running


def push(sandbox, openid=FAN, **fields):
    """One push by JSON, or with a `file` by multipart."""
    url = f"{sandbox.url}/sandbox/fans/{openid}/messages"
    file = fields.pop("file", None)
    fields = {"type": "text", "content": "hello"} | fields
    if file is None:
        answer = requests.post(url, json=fields, timeout=30)
    else:
        answer = requests.post(url, data=fields, files={"file": ("a.bin", file)}, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()


def chat(sandbox, openid=FAN):
    return requests.get(f"{sandbox.url}/sandbox/fans/{openid}/messages", timeout=10).json()


def verdicts(result):
    return [attempt["verdict"] for attempt in result["attempts"]]


# What crosses the wire


def test_a_plain_push_as_the_bot_sees_it(sandbox, bot):
    result = push(sandbox, mode="plain", content="你好 > 🚀 &lt;")
    (request,) = bot.requests
    assert list(request.query) == ["signature", "timestamp", "nonce", "openid"]
    assert request.query["openid"] == FAN
    assert request.headers["Content-Type"] == "text/xml"
    assert request.headers["User-Agent"] == "Mozilla/4.0"
    check_signature(THROWAWAY.token, *(request.query[name] for name in ("signature", "timestamp", "nonce")))
    assert request.value("Content") == "你好 > 🚀 &lt;"
    assert request.value("FromUserName") == FAN
    assert request.value("ToUserName") == THROWAWAY.original_id
    assert request.value("MsgId") == str(result["msg_id"])
    assert result["msg_id"] > 2**53
    assert abs(int(request.value("CreateTime")) - time.time()) < 5
    (attempt,) = result["attempts"]
    assert set(attempt) == {"query", "sent", "received", "opened", "seconds", "verdict", "why"}
    assert attempt["sent"] == request.body.decode()
    assert parse_qs(attempt["query"]) == {name: [value] for name, value in request.query.items()}
    assert attempt["received"] == {"status": 200, "body": request.reply()}
    assert attempt["opened"] == request.reply()
    assert attempt["verdict"] == "reply"
    assert 0 < attempt["seconds"] < 5


def test_compat_and_safe_bodies(sandbox, bot):
    push(sandbox, mode="compat")
    push(sandbox, mode="safe")
    compat, safe = bot.requests
    for request in (compat, safe):
        assert list(request.query)[4:] == ["encrypt_type", "msg_signature"]
        assert request.query["encrypt_type"] == "aes"
        check_signature(
            THROWAWAY.token, *(request.query[name] for name in ("signature", "timestamp", "nonce"))
        )
        assert request.value("Content") == "hello"
    assert [element.tag for element in etree.fromstring(safe.body)] == ["ToUserName", "Encrypt"]
    tags = [element.tag for element in etree.fromstring(compat.body)]
    assert tags == ["ToUserName", "FromUserName", "CreateTime", "MsgType", "Content", "MsgId", "Encrypt"]
    plain = etree.fromstring(compat.body)
    plain.remove(plain.find("Encrypt"))
    assert etree.tostring(plain) == etree.tostring(etree.fromstring(compat.opened()))


def test_the_mode_follows_the_account(bot):
    account = Account(appid="wx1", appsecret="s", token="t", aes_key=None, original_id="gh_1")
    with running_sandbox(account=account, callback=f"{bot.url}?tenant=一%2B") as sandbox:
        assert verdicts(push(sandbox)) == ["reply"]
        answer = requests.post(
            f"{sandbox.url}/sandbox/fans/{FAN}/messages",
            json={"type": "text", "content": "x", "mode": "safe"},
            timeout=10,
        )
    assert answer.status_code == 400
    assert "no AES key" in answer.json()["error"]
    assert "msg_signature" not in bot.requests[0].query
    assert bot.requests[0].query["tenant"] == "一+", "the callback's own query is kept"


@pytest.mark.parametrize("mode", MODES)
def test_a_photo_comes_back(sandbox, bot, mode):
    bot.answer = lambda request: request.answer(
        "image", f"<Image><MediaId>{request.value('MediaId')}</MediaId></Image>"
    )
    result = push(sandbox, type="image", mode=mode, file=PHOTO)
    assert verdicts(result) == ["reply"]
    assert result["media_id"] == bot.requests[0].value("MediaId")
    sha256 = hashlib.sha256(PHOTO).hexdigest()
    (shown,) = result["shown"]
    assert set(shown) == {"from", "by", "type", "content", "media_id", "sha256", "time"}
    assert (shown["from"], shown["by"], shown["type"], shown["sha256"]) == (
        "account",
        "passive",
        "image",
        sha256,
    )
    sent, seen = chat(sandbox)
    assert (sent["from"], sent["by"], sent["sha256"]) == ("fan", "push", sha256)
    assert seen == shown
    assert requests.get(bot.requests[0].value("PicUrl"), timeout=10).content == PHOTO
    assert result["attempts"][0]["opened"].startswith("<xml><ToUserName>oTest")


def elements(sandbox, bot, **fields):
    """The own elements of a push, in order, as a mapping of their text or their inner XML."""
    bot.answer = lambda request: "success"
    push(sandbox, mode="plain", **fields)
    root = etree.fromstring(bot.requests[-1].body)
    common = ("ToUserName", "FromUserName", "CreateTime", "MsgType", "MsgId", "Event")
    return {
        child.tag: child.text if not len(child) else [grandchild.tag for grandchild in child]
        for child in root
        if child.tag not in common
    }


def test_elements_of_messages(sandbox, bot):
    def sent(**fields):
        return elements(sandbox, bot, **fields)

    amr = sent(type="voice", file=b"#!AMR\n")
    assert list(amr) == ["MediaId", "Format", "MediaId16K"]
    assert amr["Format"] == "amr"
    assert sent(type="voice", file=b"ID3")["Format"] == "mp3"
    assert sent(type="voice", media_id="unknown") == {"MediaId": "unknown", "Format": "amr"}
    assert sent(type="image", media_id="unknown") == {"PicUrl": "", "MediaId": "unknown"}
    for kind in ("video", "shortvideo"):
        video = sent(type=kind, file=b"\0\0\0\x18ftypmp42")
        assert list(video) == ["MediaId", "ThumbMediaId"]
        assert sandbox.state.find_media(video["ThumbMediaId"]).extension == "jpg"
        assert sandbox.state.find_media(video["MediaId"]).type == "video"
    place = ["Location_X", "Location_Y", "Scale", "Label"]
    assert list(sent(type="location").keys()) == place
    assert list(sent(type="location", content="1.5,-2,12,Here, there").values()) == [
        "1.5",
        "-2",
        "12",
        "Here, there",
    ]
    assert sent(type="location", content="1,2")["Scale"] == "16"
    assert sent(type="location", content="At home")["Label"] == "At home"
    assert sent(type="link", content="Title\nText\nhttps://example.org/?a=1&b=2") == {
        "Title": "Title",
        "Description": "Text",
        "Url": "https://example.org/?a=1&b=2",
    }
    assert sent(type="link", content="Title") == {"Title": "Title", "Description": "", "Url": ""}


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"event": "subscribe"}, []),
        ({"event": "subscribe", "event_key": "qrscene_7"}, ["EventKey", "Ticket"]),
        ({"event": "unsubscribe"}, []),
        ({"event": "SCAN", "event_key": "7"}, ["EventKey", "Ticket"]),
        ({"event": "LOCATION"}, ["Latitude", "Longitude", "Precision"]),
        ({"event": "CLICK", "event_key": "K"}, ["EventKey"]),
        ({"event": "VIEW", "event_key": "https://example.org"}, ["EventKey", "MenuId"]),
        ({"event": "view_miniprogram", "event_key": "p"}, ["EventKey", "MenuId"]),
        ({"event": "scancode_push", "event_key": "K"}, ["EventKey", "ScanCodeInfo"]),
        ({"event": "pic_weixin", "event_key": "K"}, ["EventKey", "SendPicsInfo"]),
        ({"event": "location_select", "event_key": "K"}, ["EventKey", "SendLocationInfo"]),
        ({"event": "TEMPLATESENDJOBFINISH"}, ["MsgID", "Status"]),
        ({"event": "something_new"}, []),
        ({"event": "something_new", "event_key": "K"}, ["EventKey"]),
    ],
)
def test_elements_of_events(sandbox, bot, fields, names):
    assert list(elements(sandbox, bot, type="event", content=None, **fields)) == names
    request = bot.requests[-1]
    assert request.value("Event") == fields["event"]
    assert request.value("MsgType") == "event"
    assert request.value("MsgId") is None


def test_an_event_has_no_msg_id(sandbox):
    result = push(sandbox, type="event", event="CLICK", event_key="K", msg_id=7)
    assert result["msg_id"] is None
    assert result["media_id"] is None
    assert chat(sandbox)[0]["content"] == "CLICK K"


def test_msg_ids_are_new_or_as_given(sandbox, bot):
    given = 2**63 - 1
    assert push(sandbox, msg_id=given)["msg_id"] == given
    assert push(sandbox, msg_id=str(given))["msg_id"] == given
    assert bot.requests[-1].value("MsgId") == str(given)
    ids = [push(sandbox)["msg_id"] for _ in range(5)]
    assert ids == sorted(set(ids))


# Repeats


def test_a_slow_answer_is_not_waited_for_and_the_repeat_gets_it(sandbox, bot):
    done = threading.Event()

    def slow_at_first(request):
        if len(bot.requests) == 1:
            done.wait(10)
        return request.answer()

    bot.answer = slow_at_first
    started = time.monotonic()
    result = push(sandbox, timeout=0.3)
    assert time.monotonic() - started < 8
    done.set()
    assert verdicts(result) == ["timeout", "reply"]
    assert result["attempts"][0]["received"] is None
    assert 0.25 < result["attempts"][0]["seconds"] < 8
    assert [message["type"] for message in result["shown"]] == ["text"]
    assert result["shown"][0]["content"] == "hi"
    first, second = bot.requests
    assert first.opened() == second.opened(), "same MsgId, same CreateTime"
    assert first.query["nonce"] != second.query["nonce"]
    assert [message["by"] for message in chat(sandbox)] == ["push", "passive"]


@pytest.mark.parametrize(
    "head", ["HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n", ""]
)
def test_an_answer_that_trickles_is_cut_at_the_time_out(sandbox, bot, head):
    def trickle(request):
        request.connection.sendall(head.encode())
        try:
            for _ in range(500):
                request.connection.sendall(b"<")
                time.sleep(0.02)  # the slow bot itself
        except OSError:
            pass  # cut, as it should be
        return b""

    bot.answer = trickle
    started = time.monotonic()
    assert verdicts(push(sandbox, timeout=0.3, attempts=1)) == ["timeout"]
    assert time.monotonic() - started < 8


def test_the_socket_is_closed_at_the_time_out(sandbox, bot):
    closed = []

    def wait_for_the_end(request):
        request.connection.settimeout(5)
        closed.append(request.connection.recv(1))
        return "success"

    bot.answer = wait_for_the_end
    assert verdicts(push(sandbox, timeout=0.2, attempts=1)) == ["timeout"]
    assert eventually(lambda: closed, 5) == [b""]


def test_when_all_deliveries_time_out_the_fan_sees_the_failure_once(sandbox, bot):
    done = threading.Event()
    bot.answer = lambda request: "success" if done.wait(10) else ""
    result = push(sandbox, timeout=0.1)
    assert verdicts(result) == ["timeout"] * 3
    assert [(m["from"], m["by"], m["type"], m["content"]) for m in result["shown"]] == [
        ("system", "platform", "text", FAILURE)
    ]
    rules = {"deliveries": 4, "failure_text": "出现故障"}
    assert requests.put(f"{sandbox.url}/sandbox/rules", json=rules, timeout=10).json()["deliveries"] == 4
    result = push(sandbox, timeout=0.1)
    assert verdicts(result) == ["timeout"] * 4
    assert result["shown"][0]["content"] == "出现故障"
    assert verdicts(push(sandbox, timeout=0.1, attempts=2)) == ["timeout"] * 2
    done.set()


@pytest.mark.parametrize("answer", ["success", ""])
def test_silence_ends_the_deliveries(sandbox, bot, answer):
    bot.answer = lambda request: answer
    result = push(sandbox)
    assert verdicts(result) == ["silent"]
    assert result["attempts"][0]["opened"] is None
    assert result["shown"] == []
    assert len(chat(sandbox)) == 1


def test_force_delivers_all_of_them(sandbox, bot):
    result = push(sandbox, force=True)
    assert verdicts(result) == ["reply"] * 3
    assert len({attempt["opened"] for attempt in result["attempts"]}) == 1
    assert len(result["shown"]) == 1, "the fan sees the first"
    assert len(chat(sandbox)) == 2


def test_together_delivers_at_the_same_time(sandbox, bot):
    all_there = threading.Barrier(4)

    def answer(request):
        all_there.wait(10)
        return request.answer()

    bot.answer = answer
    result = push(sandbox, together=True, attempts=4)
    assert verdicts(result) == ["reply"] * 4
    assert len({request.query["nonce"] for request in bot.requests}) == 4
    assert len(result["shown"]) == 1


def test_without_wait_the_answer_comes_when_the_push_has_begun(sandbox, bot):
    go_on = threading.Event()
    bot.answer = lambda request: go_on.wait(5) and request.answer()
    first = push(sandbox, wait=False)
    again = resend(sandbox, first["msg_id"], wait=False).json()
    assert (first["attempts"], first["shown"]) == ([], [])
    assert (again["msg_id"], again["attempts"]) == (first["msg_id"], [])
    assert [message["from"] for message in chat(sandbox)] == ["fan"]
    go_on.set()
    eventually(lambda: [one["from"] for one in chat(sandbox)] == ["fan", "account", "account"])


def test_a_status_other_than_200_is_repeated(sandbox, bot):
    bot.answer = lambda request: request.answer() if len(bot.requests) == 2 else (503, "")
    result = push(sandbox, timeout=1)
    assert verdicts(result) == ["refused", "reply"]
    assert result["attempts"][0]["why"] == "HTTP 503 instead of 200"
    assert result["attempts"][0]["received"] == {"status": 503, "body": ""}
    assert [message["content"] for message in result["shown"]] == ["hi"]


def test_when_nobody_listens(sandbox):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        sandbox.callback = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        result = push(sandbox, timeout=0.1)
    assert verdicts(result) == ["refused"] * 3
    assert "connection refused" in result["attempts"][0]["why"]
    assert result["attempts"][0]["received"] is None
    assert [message["content"] for message in result["shown"]] == [FAILURE]


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "without an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsuccess", "in the middle"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nsuccess", "in the middle"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "no usable HTTP answer"),
    ],
)
def test_answers_that_are_no_http_answer(sandbox, bot, raw, why):
    def answer(request):
        request.connection.sendall(raw)
        request.connection.shutdown(socket.SHUT_RDWR)
        return b""

    bot.answer = answer
    result = push(sandbox, attempts=1)
    assert verdicts(result) == ["refused"]
    assert why in result["attempts"][0]["why"]


def test_without_a_callback_there_is_nothing_to_push_to(sandbox):
    sandbox.callback = None
    answer = requests.post(
        f"{sandbox.url}/sandbox/fans/{FAN}/messages", json={"type": "text", "content": "x"}, timeout=10
    )
    assert answer.status_code == 400
    assert "--callback" in answer.json()["error"]


def test_an_account_without_a_callback_token_has_no_callback(bot):
    account = Account(appid="wx1", appsecret="s", token="", aes_key=None, original_id="gh_1")
    with running_sandbox(account=account, callback=bot.url) as sandbox:
        assert "WECHAT_TOKEN" in refused(sandbox, type="text", content="x")
        assert "none: this account has no WECHAT_TOKEN" in requests.get(sandbox.url, timeout=10).text


def test_the_end_of_the_sandbox_ends_the_repeats(bot):
    started, results = threading.Event(), []
    bot.answer = lambda request: (503, "") if started.set() is None else ""
    with running_sandbox(callback=bot.url) as sandbox:
        thread = threading.Thread(target=lambda: results.append(push(sandbox, timeout=50)))
        thread.start()
        assert started.wait(10)
        before = time.monotonic()
    thread.join(10)
    assert time.monotonic() - before < 5
    assert verdicts(results[0]) == ["refused"]


# The judge


def good_replies():
    item = "<item><Title>t</Title><Description/><PicUrl/><Url>https://example.org</Url></item>"
    yield "text", "<Content><![CDATA[a ]]]]><![CDATA[> b]]></Content>"
    yield "text", f"<Content>{'字' * 682}a</Content>"
    yield "image", "<Image><MediaId>{image}</MediaId></Image>"
    yield "voice", "<Voice><MediaId>{voice}</MediaId></Voice>"
    yield "video", "<Video><MediaId>{video}</MediaId><Title>clip</Title><Description/></Video>"
    yield "music", "<Music><ThumbMediaId>{thumb}</ThumbMediaId><Title>song</Title></Music>"
    yield "news", f"<ArticleCount>1</ArticleCount><Articles>{item}</Articles>"
    yield "transfer_customer_service", ""
    yield "transfer_customer_service", "<TransInfo><KfAccount>kf2001@demo</KfAccount></TransInfo>"
    yield "transfer_biz_ai_ivr", ""
    yield "text", "<FuncFlag>0</FuncFlag><Content>an element that is not known</Content>\n"


def media(sandbox):
    data = {"image": PHOTO, "voice": b"#!AMR\n", "video": b"\0\0\0\x18ftyp", "thumb": PHOTO}
    return {kind: sandbox.state.store_media(kind, content).media_id for kind, content in data.items()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("kind", "inner"), list(good_replies()))
def test_good_replies(sandbox, bot, mode, kind, inner):
    inner = inner.format(**media(sandbox)) if "{" in inner else inner
    bot.answer = lambda request: request.answer(kind, inner)
    result = push(sandbox, mode=mode)
    assert verdicts(result) == ["reply"], result["attempts"][0]["why"]
    assert "notes" not in result["attempts"][0], "all by the book"
    if kind.startswith("transfer"):
        assert result["shown"] == []
    else:
        assert [message["type"] for message in result["shown"]] == [kind]
    if mode == "compat":
        bot.answer = lambda request: request.reply(kind, inner)
        assert verdicts(push(sandbox, mode=mode)) == ["reply"], "compat takes plain replies too"


def test_what_the_fan_sees_of_each(sandbox, bot):
    ids = media(sandbox)
    shown = []
    for kind, inner in good_replies():
        bot.answer = lambda request, kind=kind, inner=inner: request.answer(kind, inner.format(**ids))
        shown += [(m["type"], m["content"], m["media_id"]) for m in push(sandbox)["shown"]]
    assert shown == [
        ("text", "a ]]> b", None),
        ("text", "字" * 682 + "a", None),
        ("image", None, ids["image"]),
        ("voice", None, ids["voice"]),
        ("video", "clip", ids["video"]),
        ("music", "song", ids["thumb"]),
        ("news", "t\nhttps://example.org", None),
        ("text", "an element that is not known", None),
    ]


def articles(count, said=None, item=None):
    item = item or "<item><Title>t</Title><Description/><PicUrl/><Url>u</Url></item>"
    return f"<ArticleCount>{said or count}</ArticleCount><Articles>{item * count}</Articles>"


@pytest.mark.parametrize(
    ("kind", "inner", "other", "why"),
    [
        ("text", "", {}, "Content is missing"),
        ("text", "<Content></Content>", {}, "Content is empty"),
        ("text", "<Content> \n </Content>", {}, "Content is empty"),
        ("text", "<Content>a<b/></Content>", {}, "text alone"),
        ("text", "<Content>a</Content><Content>b</Content>", {}, "there 2 times"),
        ("text", "<Content>a</Content><MsgType>image</MsgType>", {}, "MsgType is there 2 times"),
        ("text", "<Content>hi</Content>", {"ToUserName": THROWAWAY.original_id}, "swapped"),
        ("text", "<Content>hi</Content>", {"FromUserName": FAN}, "swapped"),
        ("text", "<Content>hi</Content>", {"ToUserName": ""}, "ToUserName is empty"),
        ("text", "<Content>hi</Content>", {"CreateTime": "[1760000000]"}, "CreateTime is not a whole number"),
        ("text", "<Content>hi</Content>", {"CreateTime": "1760000000.5"}, "CreateTime is not a whole number"),
        ("text", "<Content>hi</Content>", {"CreateTime": "1" * 14}, "CreateTime has 14 digits: 13 at most"),
        ("hologram", "<Content>hi</Content>", {}, "'hologram' is not a reply"),
        ("", "<Content>hi</Content>", {}, "MsgType is empty"),
        ("image", "", {}, "Image is missing"),
        ("image", "<Image>{image}</Image>", {}, "must hold elements"),
        ("image", "<Image>x<MediaId>{image}</MediaId></Image>", {}, "must hold elements"),
        ("image", "<MediaId>{image}</MediaId>", {}, "Image is missing"),
        ("image", "<Image><MediaId>unknown</MediaId></Image>", {}, "40007 invalid media_id"),
        ("image", "<Image><MediaId>{voice}</MediaId></Image>", {}, "is a voice, not a image"),
        ("voice", "<Voice><MediaId>{image}</MediaId></Voice>", {}, "is a image, not a voice"),
        ("music", "<Music><Title>song</Title><ThumbMediaId/></Music>", {}, "ThumbMediaId is empty"),
        ("music", "<Music><ThumbMediaId>{image}</ThumbMediaId></Music>", {}, "is a image, not a thumb"),
        ("news", articles(1, said=2), {}, "not the number of items"),
        ("news", articles(1, item="<item><Url>u</Url></item>"), {}, "Title is missing"),
        ("news", articles(0), {}, "must hold elements"),
        ("news", articles(1, item="<article/>"), {}, "not an item"),
        ("transfer_customer_service", "<TransInfo/>", {}, "must hold elements"),
    ],
)
@pytest.mark.parametrize("mode", ["plain", "safe"])
def test_replies_that_are_refused(sandbox, bot, mode, kind, inner, other, why):
    inner = inner.format(**media(sandbox)) if "{" in inner else inner
    bot.answer = lambda request: request.answer(kind, inner, **other)
    result = push(sandbox, mode=mode)
    assert verdicts(result) == ["refused"], "a wrong answer is not asked for again"
    assert why in result["attempts"][0]["why"]
    assert result["attempts"][0]["opened"] == bot.requests[-1].reply(kind, inner, **other)
    assert [message["content"] for message in result["shown"]] == [FAILURE]


LOOSE = [
    ("text", f"<Content>{'字' * 682}ab</Content>", {}, "Content has 2048 bytes: cut at 2047"),
    ("text", f"<Content>{'字' * 683}</Content>", {}, "Content has 2049 bytes: cut at 2047"),
    (
        "text",
        "<Content>hi</Content>",
        {"CreateTime": "1760000000123"},
        "CreateTime has 13 digits: no seconds",
    ),
    ("music", "<Music><Title>song</Title></Music>", {}, "music without ThumbMediaId"),
    ("news", articles(2), {}, "2 articles: only 1 shown here"),
    (
        "news",
        articles(1, item="<item><Title>t</Title></item>"),
        {},
        "an item without Description, PicUrl, Url",
    ),
    (
        "news",
        articles(1, item="<item><Title>t</Title><PicUrl>p</PicUrl><Url>u</Url></item>"),
        {},
        "an item without Description",
    ),
]


@pytest.mark.parametrize(("kind", "inner", "other", "note"), LOOSE)
@pytest.mark.parametrize("mode", MODES)
def test_replies_that_are_taken_though_not_by_the_book(sandbox, bot, mode, kind, inner, other, note):
    bot.answer = lambda request: request.answer(kind, inner, **other)
    result = push(sandbox, mode=mode)
    assert verdicts(result) == ["reply"]
    assert result["attempts"][0]["notes"] == [note]
    assert [message["type"] for message in result["shown"]] == [kind]


def test_what_the_fan_sees_of_these(sandbox, bot):
    shown = []
    for kind, inner, other, _ in LOOSE:
        bot.answer = lambda request, kind=kind, inner=inner, other=other: request.answer(kind, inner, **other)
        shown += [message["content"] for message in push(sandbox)["shown"]]
    assert shown == ["字" * 682 + "a", "字" * 682, "hi", "song", "t\nu", "t", "t\nu"]


@pytest.mark.parametrize(
    ("answer", "note"),
    [
        (lambda request: "\n  " + request.answer(), "white space before <xml>"),
        (lambda request: request.seal("\r\n\t" + request.reply()), "white space before <xml>"),
        (
            lambda request: CRYPTO.encrypt_message(request.reply(), "mine", "1760000103"),
            "Nonce is not the one",
        ),
        (
            lambda request: CRYPTO.encrypt_message(request.reply(), request.query["nonce"], "1760000103123"),
            "TimeStamp has 13 digits",
        ),
        (
            lambda request: CRYPTO.encrypt_message(request.reply(), request.query["nonce"], "6" * 18),
            "TimeStamp has 18 digits",
        ),
    ],
)
@pytest.mark.parametrize("mode", ["compat", "safe"])
def test_envelopes_that_are_taken_though_not_by_the_book(sandbox, bot, mode, answer, note):
    bot.answer = answer
    result = push(sandbox, mode=mode)
    assert verdicts(result) == ["reply"]
    (said,) = result["attempts"][0]["notes"]
    assert said.startswith(note)
    assert [message["content"] for message in result["shown"]] == ["hi"]


def test_news_after_an_event_may_have_eight_articles(sandbox, bot):
    for count, notes in ((8, None), (9, ["9 articles: only 8 shown here"])):
        bot.answer = lambda request, count=count: request.answer("news", articles(count))
        result = push(sandbox, type="event", event="CLICK", event_key="K")
        assert verdicts(result) == ["reply"]
        assert result["attempts"][0].get("notes") == notes
        assert result["shown"][0]["content"] == "\n".join(["t\nu"] * 8)


@pytest.mark.parametrize("kind", ["video", "shortvideo"])
@pytest.mark.parametrize("mode", MODES)
def test_a_fans_own_video_is_not_shown(sandbox, bot, mode, kind):
    """https://github.com/w7corp/easywechat/issues/2124"""
    video = b"\0\0\0\x18ftypmp42" + bytes(100)

    def echo(request):
        return request.answer("video", f"<Video><MediaId>{request.value('MediaId')}</MediaId></Video>")

    bot.answer = echo
    result = push(sandbox, type=kind, mode=mode, file=video)
    assert verdicts(result) == ["refused"]
    assert "fan's own video" in result["attempts"][0]["why"]
    assert [message["content"] for message in result["shown"]] == [FAILURE]

    uploaded = sandbox.state.upload("video", video)["media_id"]
    bot.answer = lambda request: request.answer("video", f"<Video><MediaId>{uploaded}</MediaId></Video>")
    result = push(sandbox, type=kind, mode=mode, file=video)
    assert verdicts(result) == ["reply"]
    assert result["shown"][0]["media_id"] == uploaded

    rules = {"own_video_reply": True}
    assert (
        requests.put(f"{sandbox.url}/sandbox/rules", json=rules, timeout=10).json()["own_video_reply"] is True
    )
    bot.answer = echo
    assert verdicts(push(sandbox, type=kind, mode=mode, file=video)) == ["reply"]


def test_media_older_than_three_days_are_refused(sandbox, bot):
    ids = media(sandbox)
    bot.answer = lambda request: request.answer("image", f"<Image><MediaId>{ids['image']}</MediaId></Image>")
    assert verdicts(push(sandbox)) == ["reply"]
    requests.post(f"{sandbox.url}/sandbox/clock", json={"advance": 3 * 24 * 3600}, timeout=10)
    assert "older than three days" in push(sandbox)["attempts"][0]["why"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda xml: "\ufeff" + xml, "byte order mark"),
        (lambda xml: "debug" + xml, "begins with 'debug"),
        (lambda xml: xml + "debug", "malformed XML"),
        (lambda xml: xml[:-1], "malformed XML"),
        (lambda xml: xml.replace("<xml>", "<xmls>").replace("</xml>", "</xmls>"), "root element"),
        (lambda xml: "<!DOCTYPE xml [<!ENTITY a 'b'>]>" + xml, "not an XML reply"),
        (lambda xml: xml.replace("hi", "&unknown;"), "malformed XML"),
        (lambda xml: '{"Content": "hi"}', "JSON"),
        (lambda xml: "<html><body>Error</body></html>", "begins with '<html>"),
        (lambda xml: '"success"', "not an XML reply"),
        (lambda xml: "success\n", "not an XML reply"),
        (lambda xml: " ", "white space"),
        (lambda xml: xml.replace("hi", "\x01"), "malformed XML"),
        (lambda xml: xml.encode().replace(b"hi", b"\xff"), "not UTF-8"),
    ],
)
def test_answers_that_are_no_reply(sandbox, bot, mode, change, why):
    """As they are, and in compat and safe mode also inside a correct envelope."""
    answers = [lambda request: change(request.reply())]
    if mode != "plain":
        answers.append(lambda request: request.seal(change(request.reply())))
    for answer in answers:
        bot.answer = answer
        result = push(sandbox, mode=mode)
        assert verdicts(result) == ["refused"]
        assert why in result["attempts"][0]["why"]
        assert [message["content"] for message in result["shown"]] == [FAILURE]


def test_plain_xml_in_safe_mode_is_refused(sandbox, bot):
    bot.answer = lambda request: request.reply()
    result = push(sandbox, mode="safe")
    assert verdicts(result) == ["refused"]
    assert "must be encrypted" in result["attempts"][0]["why"]
    assert result["attempts"][0]["opened"] is None


def test_a_sealed_reply_to_a_plain_push_is_refused(sandbox, bot):
    bot.answer = lambda request: CRYPTO.encrypt_message(request.reply(), request.query["nonce"], "1")
    assert "plaintext push" in push(sandbox, mode="plain")["attempts"][0]["why"]


def seal_with(token=THROWAWAY.token, key=THROWAWAY.aes_key, appid=THROWAWAY.appid):
    def answer(request):
        crypto = WeChatCrypto(token, key, appid)
        return crypto.encrypt_message(request.reply(), request.query["nonce"], "1760000103")

    return answer


def seal_with_another_key(request):
    """One in 250 opens to a right padding by chance: not that one."""
    while True:
        answer = seal_with(key="A" * 43)(request)
        encrypted = base64.b64decode(etree.fromstring(answer).findtext("Encrypt"))
        if not 1 <= PrpCrypto(CRYPTO.key).cipher.decrypt(encrypted)[-1] <= 32:
            return answer


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (seal_with(token="another"), "MsgSignature does not match"),
        (seal_with_another_key, "padding"),
        (seal_with(appid="wxffffffffffffffff"), "another AppID"),
        (lambda request: request.answer().replace("<TimeStamp>1", "<TimeStamp>x"), "TimeStamp is not"),
        (
            lambda request: CRYPTO.encrypt_message(request.reply(), request.query["nonce"], "6" * 19),
            "TimeStamp has 19 digits: 18 at most",
        ),
        (lambda request: request.answer().replace("TimeStamp", "Timestamp"), "TimeStamp is missing"),
        (lambda request: re.sub("<Encrypt>.*</Encrypt>", "<Encrypt/>", request.answer()), "Encrypt is empty"),
        (lambda request: request.answer().replace("MsgSignature", "Signature"), "MsgSignature is missing"),
        (lambda request: request.seal("success"), "not an XML reply"),
        (lambda request: request.seal(request.answer()), "ToUserName is missing"),
    ],
)
def test_envelopes_that_are_refused(sandbox, bot, answer, why):
    bot.answer = answer
    result = push(sandbox, mode="safe")
    assert verdicts(result) == ["refused"]
    assert why in result["attempts"][0]["why"]
    assert [message["content"] for message in result["shown"]] == [FAILURE]


def refused(sandbox, **fields):
    """The error of a push that a fan cannot make."""
    answer = requests.post(f"{sandbox.url}/sandbox/fans/{FAN}/messages", json=fields, timeout=10)
    assert answer.status_code == 400
    return answer.json()["error"]


def test_a_fan_who_has_left_gets_no_reply_and_cannot_write(sandbox, bot):
    first = push(sandbox)
    result = push(sandbox, type="event", event="unsubscribe", content=None)
    assert verdicts(result) == ["reply"]
    assert result["shown"] == []
    assert "unsubscribed" in refused(sandbox, type="text", content="x")
    assert "unsubscribed" in refused(sandbox, type="event", event="CLICK", event_key="K")
    assert "unsubscribed" in refused(sandbox, raw="<xml><MsgType>text</MsgType></xml>")
    assert resend(sandbox, first["msg_id"], new=True).status_code == 400
    repeated = resend(sandbox, first["msg_id"])
    assert (verdicts(repeated.json()), repeated.json()["shown"]) == (["reply"], []), (
        "the platform still repeats"
    )
    assert [message["by"] for message in chat(sandbox)] == ["push", "passive", "push"]
    push(sandbox, openid="oAnother")
    push(sandbox, type="event", event="subscribe", content=None)
    push(sandbox)
    assert [message["by"] for message in chat(sandbox)][3:] == ["push", "passive"] * 2


# What fans type is not always XML


def crossed(request):
    """The inner XML, bytes, opened where it is sealed: no parser could read these."""
    found = re.search(rb"<Encrypt><!\[CDATA\[(.*?)]]></Encrypt>", request.body)
    return request.body if found is None else ENVELOPE.decrypt(found[1].decode())


def outside(request):
    """The bytes that are not sealed, without Encrypt."""
    return re.sub(rb"<Encrypt>.*?</Encrypt>", b"", request.body)


ODD = [
    "a\0\x02\x08\x0b\x10\x1d\ufffeb",
    "a]]>b",
    "<a><status><![CDATA[1]]></status></a>",
    "&#x1D; &#55357; <b>",
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("text", ODD)
def test_what_a_fan_types_is_put_raw_into_cdata(sandbox, bot, mode, text):
    bot.answer = lambda request: "success"
    typed = f"<Content><![CDATA[{text}]]></Content>".encode()
    result = push(sandbox, mode=mode, content=text)
    assert typed in crossed(bot.requests[-1])
    assert (typed in outside(bot.requests[-1])) == (mode != "safe"), "in compat mode also outside"
    assert verdicts(result) == ["silent"]
    assert chat(sandbox)[-1]["content"] == text
    for fields, name in (
        ({"type": "location", "content": f"1,2,3,{text}"}, "Label"),
        ({"type": "link", "content": f"{text}\nd\nu"}, "Title"),
        ({"type": "event", "event": "CLICK", "event_key": text}, "EventKey"),
    ):
        push(sandbox, mode=mode, **fields)
        assert f"<{name}><![CDATA[{text}]]></{name}>".encode() in crossed(bot.requests[-1])


def raw_text(content=b"hi", msg_id=b"<MsgId>77</MsgId>"):
    return (
        f"<xml><ToUserName><![CDATA[{THROWAWAY.original_id}]]></ToUserName><FromUserName><![CDATA[{FAN}]]>"
        "</FromUserName><CreateTime>1760000000</CreateTime><MsgType><![CDATA[text]]></MsgType>"
    ).encode() + b"<Content><![CDATA[%b]]></Content>%b</xml>" % (content, msg_id)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "xml",
    [raw_text("一条".encode()), raw_text("字".encode()[:2]), raw_text() + b"\n", b"<xml", b"\xff\0 no XML"],
)
def test_raw_xml_crosses_as_it_is(sandbox, bot, mode, xml):
    bot.answer = lambda request: "success"
    ways = [{"raw_base64": base64.b64encode(xml).decode()}]
    if xml.isascii():
        ways.append({"raw": xml.decode()})
    for way in ways:
        answer = requests.post(
            f"{sandbox.url}/sandbox/fans/{FAN}/messages", json={"mode": mode, **way}, timeout=10
        )
        assert verdicts(answer.json()) == ["silent"]
        assert crossed(bot.requests[-1]) == xml
        if mode == "compat":
            assert outside(bot.requests[-1]) == xml


def test_what_is_known_of_raw_xml_is_read_from_it(sandbox, bot):
    bot.answer = lambda request: request.reply()
    result = push(sandbox, mode="plain", type=None, content=None, raw=raw_text(b"odd").decode())
    assert result["msg_id"] == 77
    assert [(message["type"], message["content"]) for message in chat(sandbox)] == [
        ("text", "odd"),
        ("text", "hi"),
    ]
    media_id = sandbox.state.store_media("image", PHOTO).media_id
    bot.answer = lambda request: "success"
    push(sandbox, mode="plain", type="image", media_id=media_id, content=None, raw="<xml>")
    assert chat(sandbox)[-1]["sha256"] == hashlib.sha256(PHOTO).hexdigest()
    push(sandbox, type=None, content=None, raw="<xml>")
    assert (chat(sandbox)[-1]["type"], chat(sandbox)[-1]["content"]) == ("raw", None)
    push(sandbox, type=None, content=None, raw="<xml><MsgType>event</MsgType></xml>")
    assert (chat(sandbox)[-1]["type"], chat(sandbox)[-1]["content"]) == ("event", ""), "it has no name"


# Once more


def resend(sandbox, push_id, **fields):
    return requests.post(f"{sandbox.url}/sandbox/pushes/{push_id}/resend", json=fields, timeout=30)


@pytest.mark.parametrize("mode", MODES)
def test_a_push_again(sandbox, bot, mode):
    first = push(sandbox, mode=mode)
    again = resend(sandbox, first["msg_id"]).json()
    assert again["msg_id"] == first["msg_id"]
    assert set(again) == set(first)
    assert verdicts(again) == ["reply"]
    one, two = bot.requests
    assert crossed(one) == crossed(two), "also the same CreateTime"
    assert one.sealed == two.sealed
    assert [message["by"] for message in chat(sandbox)] == ["push", "passive", "passive"]
    other = resend(sandbox, str(first["msg_id"]), mode="plain", force=True, attempts=2).json()
    assert verdicts(other) == ["reply", "reply"]
    assert not bot.requests[-1].sealed


def test_a_push_again_under_a_new_msg_id(sandbox, bot):
    first = push(sandbox, mode="plain", content="one <MsgId>5</MsgId>")
    again = resend(sandbox, first["msg_id"], new=True).json()
    assert again["msg_id"] > first["msg_id"]
    one, two = (request.body.decode() for request in bot.requests)
    assert one != two
    assert "one <MsgId>5</MsgId>" in two
    old, new = f"<MsgId>{first['msg_id']}</MsgId></xml>", f"<MsgId>{again['msg_id']}</MsgId></xml>"
    assert re.sub("<CreateTime>[0-9]+", "", two).replace(new, old) == re.sub("<CreateTime>[0-9]+", "", one)
    assert [message["by"] for message in chat(sandbox)] == ["push", "passive"] * 2
    edited = bot.requests[0].body.decode().replace("one", "two")
    again = resend(sandbox, first["msg_id"], new=True, raw=edited).json()
    assert "<![CDATA[two " in bot.requests[-1].body.decode()
    assert f"<MsgId>{again['msg_id']}</MsgId>" in bot.requests[-1].body.decode()


def test_an_event_again(sandbox, bot):
    push(sandbox, type="event", event="CLICK", event_key="K", mode="plain")
    so_far, stop = sandbox.state.listen(lambda name, facts: None)
    stop()
    push_id = so_far["pushes"][-1]["id"]
    assert verdicts(resend(sandbox, push_id).json()) == ["reply"]
    one, two = bot.requests
    assert one.body == two.body
    assert resend(sandbox, push_id, new=True).json()["msg_id"] is None
    assert [message["by"] for message in chat(sandbox)] == ["push", "passive", "passive", "push", "passive"]


def test_pushes_that_cannot_be_sent_again(sandbox):
    msg_id = push(sandbox)["msg_id"]
    for push_id, fields, word in (
        (msg_id + 1, {}, "no push with MsgId"),
        ("nonsense", {}, "no push with MsgId"),
        (msg_id, {"new": "maybe"}, "new"),
        (msg_id, {"type": "text"}, "type"),
        (msg_id, {"attempts": 0}, "attempts"),
    ):
        answer = resend(sandbox, push_id, **fields)
        assert answer.status_code == 400
        assert word in answer.json()["error"]


def test_chats_are_kept_apart(sandbox):
    push(sandbox, content="one")
    push(sandbox, openid="oOther", content="two")
    assert [message["content"] for message in chat(sandbox)] == ["one", "hi"]
    assert [message["content"] for message in chat(sandbox, "oOther")] == ["two", "hi"]
    assert chat(sandbox, "oNobody") == []


# 验证URL有效性


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda request: request.query["echostr"], None),
        (lambda request: request.query["echostr"] + "\n", "white space"),
        (lambda request: "\ufeff" + request.query["echostr"], "byte order mark"),
        (lambda request: f'"{request.query["echostr"]}"', "quotes"),
        (lambda request: "success", "not echostr"),
        (lambda request: "", "empty answer"),
        (lambda request: (403, ""), "HTTP 403"),
    ],
)
def test_the_console_verifies_the_callback(sandbox, bot, answer, why):
    bot.answer = answer
    result = requests.post(f"{sandbox.url}/sandbox/verify", timeout=10).json()
    assert set(result) == {"ok", "why", "status", "body"}
    assert result["ok"] is (why is None)
    assert (why or "echostr came back") in result["why"]
    (request,) = bot.requests
    assert request.method == "GET"
    assert list(request.query) == ["signature", "timestamp", "nonce", "echostr"]
    check_signature(THROWAWAY.token, *(request.query[name] for name in ("signature", "timestamp", "nonce")))


def test_verification_of_a_callback_that_does_not_answer(sandbox):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        sandbox.callback = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        result = requests.post(f"{sandbox.url}/sandbox/verify", timeout=10).json()
        assert result["ok"] is False
        assert "connection refused" in result["why"]
        nobody.listen()  # now it connects, and nothing comes
        result = requests.post(f"{sandbox.url}/sandbox/verify", json={"timeout": 0.2}, timeout=10).json()
    assert "within 0.2 s" in result["why"]
