"""GET and POST /wechat through the application: what is answered, what is refused, what is kept."""

import itertools
import logging
import sqlite3
import threading
import time
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

import handlers
from app import create_app
from config import Settings
from handlers import Deferred
from sandbox import THROWAWAY
from sandbox.cipher import Envelope
from tests import pushing
from tests.conftest import ACCOUNT
from tests.databases import sqlite_url
from wechat.elements import legal
from wechat.messages import TextMessage, parse_message
from wechat.replies import Article, ImageReply, NewsReply, TextReply

AES = {"WECHAT_AES_KEY": THROWAWAY.aes_key}
OTHER_KEY = "Zt4mQ9sVb2LxK7eWc1RyU8nHj5PaDf3GoI6TqSkXwEM"


@pytest.fixture
def make_app(tmp_path):
    def make(**environ):
        given_environ = ACCOUNT | {
            "DATABASE_URL": sqlite_url(tmp_path / "bot.db"),
            "MEDIA_STORE": f"{tmp_path}/media",
        }
        return create_app(Settings.from_env(given_environ | environ, tmp_path))

    return make


@pytest.fixture
def plain_app(make_app):
    return make_app()


def post(app, push, **kwargs):
    path, body = push
    return app.test_client().post(path, data=body, content_type="text/xml", **kwargs)


def rows(app):
    ledger = app.extensions["accounts"].of[""].ledger
    found = []
    while (entry := ledger.get(len(found) + 1)) is not None:
        found.append(entry)
    return found


def reply_of(response):
    root = ET.fromstring(response.data)
    return {child.tag: child.text if not len(child) else child[0].text for child in root}


# -- verification -----------------------------------------------------------------------------------------------


def test_echostr_comes_back_byte_for_byte(plain_app):
    response = plain_app.test_client().get(
        "/wechat", query_string=pushing.query() | {"echostr": "4375120948345356249"}
    )
    assert (response.status_code, response.data) == (200, b"4375120948345356249")
    assert response.content_type == "text/plain; charset=utf-8"


@pytest.mark.parametrize(
    "change", [{"signature": "0" * 40}, {"signature": None}, {"timestamp": "1"}, {"nonce": "é"}]
)
def test_a_wrong_verification_is_refused(plain_app, change):
    query = pushing.query() | {"echostr": "<script>alert(1)</script>"} | change
    response = plain_app.test_client().get(
        "/wechat", query_string={k: v for k, v in query.items() if v is not None}
    )
    assert (response.status_code, response.data) == (403, b"")


def test_each_answered_push_is_one_line(plain_app, caplog):
    caplog.set_level(logging.INFO)
    pushes = [
        pushing.plain(pushing.image(7)),
        pushing.plain(pushing.message(MsgType="event", Event="unsubscribe")),
    ]
    for push in (pushes[0], *pushes):
        post(plain_app, push)
    lines = [record for record in caplog.records if record.getMessage() == "answered"]
    assert [(line.ledger_id, line.type, line.reply) for line in lines] == [
        (1, "image", "image"),
        (1, "image", "image"),
        (2, "event", "success"),
    ]
    assert all(0 < line.milliseconds < 5000 for line in lines)
    assert pushing.FAN not in caplog.text


def test_the_url_may_end_in_a_slash(plain_app):
    client = plain_app.test_client()
    query = pushing.query() | {"echostr": "4375120948345356249"}
    assert client.get("/wechat/", query_string=query).data == b"4375120948345356249"
    path, body = pushing.plain(pushing.text(7))
    response = client.post(path.replace("/wechat?", "/wechat/?"), data=body)
    assert (response.status_code, reply_of(response)["MsgType"]) == (200, "text")
    assert client.put("/wechat/").status_code == 405


@pytest.mark.parametrize("path", ["/weixin", "/wechat/x", "/api/wechat", "/api//wechat"])
def test_a_url_that_is_not_the_callbacks_is_told_in_the_log(plain_app, caplog, path):
    caplog.clear()
    client = plain_app.test_client()
    assert client.get(path, query_string=pushing.query() | {"echostr": "1"}).status_code == 404
    assert client.post(path, query_string=pushing.query()).status_code == 404
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "the callback is at /wechat"
    ] * 2
    assert client.get(path, query_string={"x": "signature"}).status_code == 404
    assert len(caplog.records) == 2


# -- answers ----------------------------------------------------------------------------------------------------


def test_a_picture_is_answered_with_its_own_media_id(plain_app):
    response = post(plain_app, pushing.plain(pushing.image(7)))
    assert (
        response.content_type == "application/xml; charset=utf-8"
        or response.content_type == "application/xml"
    )
    reply = reply_of(response)
    assert (reply["ToUserName"], reply["FromUserName"]) == (pushing.FAN, THROWAWAY.original_id)
    assert (reply["MsgType"], reply["Image"]) == ("image", "fakeImg-MediaId_0001AbCdEf")
    (entry,) = rows(plain_app)
    assert (entry.msg_type, entry.sender, entry.media_state) == ("image", pushing.FAN, "pending")
    assert entry.reply == response.data


def test_a_voice_comes_back_too(plain_app):
    xml = pushing.message(MsgType="voice", MediaId="V", Format="amr", MsgId=1)
    reply = reply_of(post(plain_app, pushing.plain(xml)))
    assert (reply["MsgType"], reply["Voice"]) == ("voice", "V")


@pytest.mark.parametrize(
    "elements", [{"MsgType": "text", "Content": "hi", "MsgId": 1}, {"MsgType": "event", "Event": "subscribe"}]
)
def test_words_and_a_new_fan_get_a_hint_in_two_languages(plain_app, elements):
    reply = reply_of(post(plain_app, pushing.plain(pushing.message(**elements))))
    assert reply["MsgType"] == "text"
    assert "picture" in reply["Content"]
    assert "图片" in reply["Content"]


@pytest.mark.parametrize(
    "elements",
    [
        {"MsgType": "event", "Event": "unsubscribe"},
        {"MsgType": "event", "Event": "LOCATION", "Latitude": "1", "Longitude": "2", "Precision": "3"},
        {"MsgType": "event", "Event": "never_heard_of", "EventKey": "x"},
        {"MsgType": "hologram", "MsgId": 3},
        {
            "MsgType": "location",
            "Location_X": "abc",
            "Location_Y": "2",
            "Scale": "3",
            "Label": "",
            "MsgId": 4,
        },
    ],
)
def test_everything_else_is_answered_success_and_kept(plain_app, elements):
    response = post(plain_app, pushing.plain(pushing.message(**elements)))
    assert (response.status_code, response.data) == (200, b"success")
    assert len(rows(plain_app)) == 1


@pytest.mark.parametrize("compat", [False, True])
def test_a_sealed_push_gets_a_sealed_answer(make_app, compat):
    app = make_app(**AES)
    response = post(app, pushing.safe(pushing.image(7), compat=compat))
    outer = ET.fromstring(response.data)
    opened = ET.fromstring(pushing.ENVELOPE.decrypt(outer.findtext("Encrypt")))
    assert opened.findtext("Image/MediaId") == "fakeImg-MediaId_0001AbCdEf"
    assert b"fakeImg" not in response.data


def test_success_is_never_sealed(make_app):
    response = post(make_app(**AES), pushing.safe(pushing.message(MsgType="event", Event="unsubscribe")))
    assert response.data == b"success"


def test_a_rotation_loses_nothing(make_app):
    app = make_app(
        WECHAT_TOKEN="NewCallbackToken",
        WECHAT_TOKEN_PREVIOUS=THROWAWAY.token,
        WECHAT_AES_KEY=OTHER_KEY,
        WECHAT_AES_KEY_PREVIOUS=THROWAWAY.aes_key,
    )
    new = Envelope(OTHER_KEY, THROWAWAY.appid)
    for number, (token, envelope) in enumerate(
        [
            (THROWAWAY.token, pushing.ENVELOPE),
            ("NewCallbackToken", new),
            ("NewCallbackToken", pushing.ENVELOPE),
        ]
    ):
        response = post(app, pushing.safe(pushing.image(number), envelope=envelope, token=token))
        assert b"fakeImg" in envelope.decrypt(ET.fromstring(response.data).findtext("Encrypt"))


def test_a_repeated_push_gets_the_same_bytes_and_runs_no_handler(make_app, monkeypatch):
    app = make_app()
    first = post(app, pushing.plain(pushing.image(7, create_time=1760000000)))
    monkeypatch.setattr(handlers, "dispatch", lambda *_: pytest.fail("a handler ran"))
    again = post(make_app(), pushing.plain(pushing.image(7, create_time=1760000000), nonce="1"))
    assert again.data == first.data
    assert len(rows(app)) == 1


def test_two_senders_may_share_a_msg_id(plain_app):
    for fan in (pushing.FAN, "oTest-ZyXwVuTsRqPoNmLkJiHg_2"):
        assert reply_of(post(plain_app, pushing.plain(pushing.image(7, fan=fan))))["ToUserName"] == fan
    assert len(rows(plain_app)) == 2


def test_repeats_at_the_same_instant_get_one_answer(plain_app):
    pushes = [pushing.plain(pushing.image(7, create_time=1760000000), nonce=str(n)) for n in range(8)]
    answers = []
    threads = [
        threading.Thread(target=lambda push=push: answers.append(post(plain_app, push).data))
        for push in pushes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8
    assert len(set(answers)) == 1
    assert len(rows(plain_app)) == 1


ONE_SECOND = [
    {"MsgType": "event", "Event": "CLICK", "EventKey": "{}"},
    {"MsgType": "event", "Event": "user_get_card", "CardId": "p", "UserCardCode": "{}"},
    {"MsgType": "event", "Event": "subscribe_msg_sent_event", "TemplateId": "{}"},
    {"MsgType": "text", "Content": "{}"},
    {"MsgType": "image", "MediaId": "{}"},
]


def test_messages_of_one_second_are_told_apart(plain_app):
    for elements in ONE_SECOND:
        for value in "ABA":
            filled = {name: text.format(value) for name, text in elements.items()}
            post(plain_app, pushing.plain(pushing.message(create_time=5, **filled)))
    assert len(rows(plain_app)) == 2 * len(ONE_SECOND)


@pytest.mark.parametrize(
    "handler",
    [lambda message: 1 // 0, lambda message: NewsReply((Article("1"), Article("2"))), lambda message: "text"],
)
def test_a_crash_of_a_handler_is_answered_success_and_logged_with_the_ledger_id(
    plain_app, monkeypatch, caplog, handler
):
    monkeypatch.setattr(handlers, "HANDLERS", {TextMessage: handler})
    response = post(plain_app, pushing.plain(pushing.text(9, "my private words")))
    assert (response.status_code, response.data) == (200, b"success")
    (entry,) = rows(plain_app)
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.ledger_id == entry.id
    assert record.exc_info is not None


@pytest.mark.parametrize("slow", [False, True])
def test_a_media_id_that_is_not_known_is_told_once_with_the_ledger_id(plain_app, monkeypatch, caplog, slow):
    def answer(message):
        return ImageReply(message.content)

    monkeypatch.setattr(
        handlers,
        "HANDLERS",
        {TextMessage: lambda message: Deferred(lambda: answer(message)) if slow else answer(message)},
    )

    def say(number, content):
        caplog.clear()
        assert reply_of(post(plain_app, pushing.plain(pushing.text(number, content))))["MsgType"] == "image"
        return [record.ledger_id for record in caplog.records if "names a MediaId" in record.message]

    (told,) = say(1, "somebody-elses")
    assert [entry.msg_id for entry in rows(plain_app) if entry.id == told] == ["1"]
    assert say(2, "somebody-elses") == [], "once is enough"
    built, now = plain_app.extensions["accounts"].of[""], time.time()
    built.ledger.record(parse_message(pushing.image(3, media_id="the-fans").encode()), None, now)
    (job,) = built.queue.claim_downloads(now, 60, 10)
    built.queue.mark_failed(job, None, "any reason", now)
    assert say(4, "the-fans") == []


# -- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slow", [False, True])
def test_a_text_that_is_cut_is_told_once_with_the_ledger_id(plain_app, monkeypatch, caplog, slow):
    long = TextReply("好" * 700)
    monkeypatch.setattr(
        handlers, "HANDLERS", {TextMessage: lambda message: Deferred(lambda: long) if slow else long}
    )
    push = pushing.plain(pushing.text(9))
    reply = reply_of(post(plain_app, push))
    assert reply["Content"] == "好" * 682
    post(plain_app, push)
    (entry,) = rows(plain_app)
    (record,) = [record for record in caplog.records if "was cut" in record.message]
    assert record.levelno == logging.WARNING
    assert (record.message, record.ledger_id) == ("a reply was cut to 2047 bytes, from 2100", entry.id)


def refusals(reason):
    return REGISTRY.get_sample_value("wechat_refusals_total", {"account": "", "reason": reason}) or 0.0


def check_refused(app, caplog, response, status, reason):
    assert (response.status_code, response.data) == (status, b"")
    assert [record.reason for record in caplog.records if hasattr(record, "reason")] == [reason]
    assert rows(app) == []


REFUSED_PLAIN = {
    "no signature": (lambda: ("/wechat", pushing.image(1).encode()), 403, "signature"),
    "a wrong token": (lambda: pushing.plain(pushing.image(1), token="guess"), 403, "signature"),
    "an empty token": (lambda: pushing.plain(pushing.image(1), token=""), 403, "signature"),
    "too old": (lambda: pushing.plain(pushing.image(1), timestamp=1760000000), 403, "timestamp"),
    "no number as time": (lambda: pushing.plain(pushing.image(1), timestamp="soon"), 403, "timestamp"),
    "a safe body without a key": (lambda: pushing.safe(pushing.image(1)), 403, "envelope"),
    "a DOCTYPE": (lambda: pushing.plain(f"<!DOCTYPE xml>{pushing.image(1)}"), 400, "doctype"),
    "too large": (lambda: pushing.plain(pushing.text(1, "x" * 1024 * 1024)), 413, "size"),
}


@pytest.mark.parametrize("case", REFUSED_PLAIN)
def test_refused_in_plaintext_mode(plain_app, caplog, case):
    push, status, reason = REFUSED_PLAIN[case]
    before = refusals(reason)
    check_refused(plain_app, caplog, post(plain_app, push()), status, reason)
    assert refusals(reason) == before + 1


@pytest.mark.parametrize(
    "xml",
    [
        "{}",
        "",
        "success",
        "<xml/>",
        "<xml><action>CheckContainerPath</action></xml>",
        pushing.message(),
        pushing.message("", MsgType="text", Content="x"),
        "\x00" + pushing.message("o" * 129, MsgType="text", Content="x"),
    ],
    ids=["JSON", "nothing", "words", "empty", "a probe", "no MsgType", "no FromUserName", "no OpenID"],
)
@pytest.mark.parametrize("mode", ["plain", "safe"])
def test_what_is_signed_and_unreadable_is_answered_success_and_not_kept(make_app, caplog, mode, xml):
    app = make_app(**({} if mode == "plain" else AES))
    before = refusals("xml")
    response = post(app, pushing.plain(xml) if mode == "plain" else pushing.safe(xml))
    assert (response.status_code, response.data) == (200, b"success")
    assert refusals("xml") == before + 1
    assert [record.reason for record in caplog.records if record.name == "web.callback"] == ["xml"]
    assert rows(app) == []


REFUSED_SAFE = {
    "plaintext": (lambda: pushing.plain(pushing.image(1)), 403, "envelope"),
    "plaintext, unsigned": (
        lambda: ("/wechat?encrypt_type=aes&signature=x", pushing.image(1).encode()),
        403,
        "signature",
    ),
    "a compat body without msg_signature": (
        lambda: (pushing.plain("")[0], pushing.safe(pushing.image(1), compat=True)[1]),
        403,
        "envelope",
    ),
    "another account's envelope": (
        lambda: pushing.safe(pushing.image(1), envelope=Envelope(THROWAWAY.aes_key, "wxffffffffffffffff")),
        403,
        "appid",
    ),
    "another key's envelope": (
        lambda: pushing.safe(pushing.image(1), envelope=Envelope(OTHER_KEY, THROWAWAY.appid)),
        403,
        "envelope",
    ),
    "too old": (lambda: pushing.safe(pushing.image(1), timestamp=1760000000), 403, "timestamp"),
    "a DOCTYPE inside": (lambda: pushing.safe(f"<!DOCTYPE xml>{pushing.image(1)}"), 400, "doctype"),
}


@pytest.mark.parametrize("case", REFUSED_SAFE)
def test_refused_in_safe_mode(make_app, caplog, case):
    push, status, reason = REFUSED_SAFE[case]
    app = make_app(**AES)
    check_refused(app, caplog, post(app, push()), status, reason)


def test_the_log_names_the_setting_that_helps(make_app, caplog):
    post(make_app(), pushing.safe(pushing.image(1)))
    post(make_app(), pushing.plain(pushing.image(1), timestamp=1760000000))
    assert "WECHAT_AES_KEY" in caplog.messages[0]
    assert "WECHAT_TIMESTAMP_WINDOW" in caplog.messages[1]


def test_plaintext_is_accepted_during_a_change_over(make_app):
    app = make_app(**AES, WECHAT_ACCEPT_PLAINTEXT="1")
    assert reply_of(post(app, pushing.plain(pushing.image(1))))["MsgType"] == "image"


def test_the_window_can_be_turned_off(make_app):
    app = make_app(WECHAT_TIMESTAMP_WINDOW="0")
    assert post(app, pushing.plain(pushing.image(1), timestamp=1760000000)).status_code == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_are_refused(plain_app, caplog, method):
    response = plain_app.test_client().open("/wechat", method=method)
    check_refused(plain_app, caplog, response, 405, "method")


def test_a_push_waits_for_a_busy_ledger_and_gets_503_when_that_takes_too_long(plain_app, tmp_path, caplog):
    def misses():
        return REGISTRY.get_sample_value("wechat_deadline_misses_total", {"account": ""})

    post(plain_app, pushing.plain(pushing.image(1)))
    before = misses()
    other = sqlite3.connect(tmp_path / "bot.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    refused = post(plain_app, pushing.plain(pushing.image(2)))
    assert (refused.status_code, refused.data) == (503, b"")
    assert time.monotonic() - started > 5, "the platform gives up after 5 s; only then may it see an error"
    assert "platform will repeat" in caplog.text
    assert misses() == before + 1
    threading.Timer(0.5, other.rollback).start()
    assert reply_of(post(plain_app, pushing.plain(pushing.image(2))))["MsgType"] == "image"
    assert len(rows(plain_app)) == 2
    other.close()


class Cut:
    """A body that breaks off: by its end, or by an error."""

    def __init__(self, start, error=None):
        self.rest, self.error = start, error

    def read(self, size=-1):
        data, self.rest = self.rest, b""
        if not data and self.error:
            raise self.error
        return data


@pytest.mark.parametrize(
    "body", [Cut(b""), Cut(b"<xml>"), Cut(b"", ConnectionResetError()), Cut(b"", TimeoutError())]
)
def test_a_body_that_breaks_off_is_refused_and_not_kept(plain_app, caplog, body):
    path, whole = pushing.plain(pushing.text(1))
    environ = {"wsgi.input": body, "CONTENT_LENGTH": str(len(whole))}
    response = plain_app.test_client().post(path, environ_overrides=environ)
    check_refused(plain_app, caplog, response, 400, "xml")


# -- whatever comes ---------------------------------------------------------------------------------------------

MSG_IDS = itertools.count(1)


@pytest.fixture
def apps(make_app):
    """One in plaintext mode and one in safe mode, for all examples."""
    return make_app(), make_app(**AES)


@pytest.fixture
def echo(make_app, monkeypatch):
    """Says each text again."""
    monkeypatch.setattr(handlers, "HANDLERS", {TextMessage: lambda message: TextReply(message.content)})
    return make_app()


@given(
    body=st.binary(max_size=2000),
    query=st.dictionaries(st.text(max_size=12), st.text(max_size=40), max_size=6),
)
def test_any_bytes_get_a_4xx(apps, body, query):
    for app in apps:
        assert app.test_client().post("/wechat", query_string=query, data=body).status_code in (400, 403)


@given(body=st.one_of(st.binary(max_size=2000), st.text(max_size=500).map(str.encode)))
def test_any_signed_bytes_get_an_answer_or_a_4xx(apps, body):
    for app, push in zip(apps, (pushing.plain(body), pushing.safe(body)), strict=True):
        assert post(app, push).status_code in (200, 400, 403)


@given(content=st.text(max_size=3000))
def test_whatever_a_fan_writes_the_echo_is_one_reply(echo, content):
    sent = legal(content)  # what the platform could push at all
    escaped = sent.replace("]]>", "]]]]><![CDATA[>")
    push = pushing.plain(pushing.message(MsgType="text", MsgId=next(MSG_IDS), Content=escaped))
    response = post(echo, push)
    assert response.status_code == 200
    if response.data == b"success":
        assert not sent.strip(), "nothing to say"
        return
    root = ET.fromstring(response.data)
    tags = [child.tag for child in root]
    assert tags == ["ToUserName", "FromUserName", "CreateTime", "MsgType", "Content"]
    shown = root.findtext("Content")
    assert sent.startswith(shown)
    assert shown == sent or 2047 - 4 < len(shown.encode()) <= 2047
