"""wechat.customer_service: what crosses the wire, and that it crosses it once."""

import pytest

from tests.stub_platform import StubPlatform, hang, raw, reply
from wechat.client import ApiClient
from wechat.customer_service import send
from wechat.errors import ApiError, ReplyError, TransportError
from wechat.replies import (
    Article,
    ImageReply,
    MusicReply,
    NewsReply,
    TextReply,
    TransferReply,
    VideoReply,
    VoiceReply,
)

PATH = "/cgi-bin/message/custom/send"
OPENID = "oTest-AbCdEfGhIjKlMnOpQrSt_1"
OK = {"errcode": 0, "errmsg": "ok"}


class Tokens:
    def get(self):
        return "first"

    def replace(self, stale):
        return "second"


@pytest.fixture
def platform():
    with StubPlatform() as one:
        yield one


@pytest.fixture
def second():
    with StubPlatform() as one:
        one.on(PATH, OK)
        yield one


@pytest.fixture
def client(platform, second):
    return ApiClient([platform.url, second.url], Tokens(), sleep=lambda seconds: None)


@pytest.mark.parametrize(
    ("message", "sent"),
    [
        (TextReply("你好 😀 ]]> \\u4f60"), {"msgtype": "text", "text": {"content": "你好 😀 ]]> \\u4f60"}}),
        (ImageReply("M"), {"msgtype": "image", "image": {"media_id": "M"}}),
        (VoiceReply("M"), {"msgtype": "voice", "voice": {"media_id": "M"}}),
        (VideoReply("M"), {"msgtype": "video", "video": {"media_id": "M"}}),
        (
            VideoReply("M", title="t", description="d"),
            {"msgtype": "video", "video": {"media_id": "M", "title": "t", "description": "d"}},
        ),
        (
            MusicReply("T", "t", "d", "https://example.org/a.mp3"),
            {
                "msgtype": "music",
                "music": {
                    "title": "t",
                    "description": "d",
                    "musicurl": "https://example.org/a.mp3",
                    "thumb_media_id": "T",
                },
            },
        ),
        (
            NewsReply((Article("t", "d", "https://example.org/p.jpg", "https://example.org"),)),
            {
                "msgtype": "news",
                "news": {
                    "articles": [
                        {
                            "title": "t",
                            "description": "d",
                            "url": "https://example.org",
                            "picurl": "https://example.org/p.jpg",
                        }
                    ]
                },
            },
        ),
    ],
)
def test_a_message_is_sent(platform, client, message, sent):
    platform.on(PATH, OK)
    send(client, OPENID, message)
    (request,) = platform.requests
    assert request.json == {"touser": OPENID, **sent}
    assert request.query == {"access_token": "first"}


def test_characters_go_raw(platform, client):
    platform.on(PATH, OK)
    send(client, OPENID, TextReply("你好"))
    assert "你好".encode() in platform.requests[0].body


def test_half_a_character_of_a_title_is_left_out_as_in_replies(platform, client):
    platform.on(PATH, OK)
    send(client, OPENID, NewsReply((Article("a\ud83db", "c\x00d"),)))
    (article,) = platform.requests[0].json["news"]["articles"]
    assert (article["title"], article["description"]) == ("ab", "cd")


def test_a_long_text_is_cut_as_replies_are(platform, client):
    platform.on(PATH, OK)
    send(client, OPENID, TextReply("中" * 1000))
    assert platform.requests[0].json["text"]["content"] == "中" * 682


@pytest.mark.parametrize(
    "answer", [raw(b""), reply(status=502), reply("<html>")], ids=["closed", "502", "html"]
)
def test_what_may_have_been_sent_is_not_sent_again(platform, second, client, answer):
    platform.on(PATH, answer)
    with pytest.raises(TransportError) as caught:
        send(client, OPENID, ImageReply("M"))
    assert caught.value.sent is True
    assert len(platform.requests) == 1
    assert not second.requests


def test_a_silent_platform_may_have_sent_it(platform, second, client):
    platform.on(PATH, hang())
    with pytest.raises(TransportError) as caught:
        send(client, OPENID, ImageReply("M"))  # waits the read time-out of 5 s
    assert caught.value.sent is True
    assert not second.requests


def test_a_host_that_was_never_reached_is_passed_over(platform, second, client):
    platform.stop()
    send(client, OPENID, ImageReply("M"))
    assert len(second.requests) == 1


def test_an_answer_that_proves_that_nothing_was_sent_allows_a_repeat(platform, client):
    platform.on(PATH, {"errcode": -1, "errmsg": "busy"}, {"errcode": 40001, "errmsg": "not latest"}, OK)
    send(client, OPENID, ImageReply("M"))
    assert [request.query["access_token"] for request in platform.requests] == ["first", "first", "second"]


@pytest.mark.parametrize("code", [45015, 45047, 48001])
def test_a_refusal_is_an_error_with_its_code(platform, second, client, code):
    platform.on(PATH, {"errcode": code, "errmsg": "no"})
    with pytest.raises(ApiError) as caught:
        send(client, OPENID, TextReply("x"))
    assert caught.value.code == code
    assert len(platform.requests) == 1
    assert not second.requests


def test_a_transfer_is_no_message(platform, client):
    with pytest.raises(ReplyError):
        send(client, OPENID, TransferReply())
    assert platform.requests == []


def test_a_text_alone_says_what_to_write(platform, client):
    with pytest.raises(ReplyError, match=r"write TextReply\(...\)"):
        send(client, OPENID, "hello")
    assert platform.requests == []
