"""The receiver: which requests are the platform's, in each mode, during a rotation, and how each reply is sealed."""

import base64
import contextlib
import re
import traceback
import warnings

import pytest
from lxml import etree

from config import explained
from tests.vectors import (
    ACCOUNT,
    NOW,
    W1_BODY,
    W1_MESSAGE,
    W1_QUERY,
    W2_BODY,
    W2_MESSAGE,
    Account,
    safe_push,
    signed,
)
from wechat.elements import parse
from wechat.envelope import Envelope
from wechat.errors import AppIdError, DoctypeError, EnvelopeError, PushError, SignatureError, TimestampError
from wechat.receiver import Receiver
from wechat.signature import sign

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from wechatpy.crypto import WeChatCrypto

PLAIN = b"<xml><FromUserName>o</FromUserName><CreateTime>1</CreateTime><MsgType>text</MsgType></xml>"
W1_COMPAT = W1_BODY.replace(
    b"<Encrypt>", W1_MESSAGE.removeprefix(b"<xml>").removesuffix(b"</xml>") + b"<Encrypt>"
)
NEW_TOKEN, NEW_KEY = "BrandNewToken9", "QwErTyUiOpAsDfGhJkLzXcVbNm1234567890abcdeF0"


def receiver(**settings):
    return Receiver(**{"appid": ACCOUNT.appid, "token": ACCOUNT.token, **settings})


@pytest.fixture
def plain():
    return receiver()


@pytest.fixture
def safe():
    return receiver(aes_key=ACCOUNT.aes_key)


@pytest.fixture
def changing():
    return receiver(aes_key=ACCOUNT.aes_key, accept_plaintext=True)


# --- the console's check (GET) ---


@pytest.mark.parametrize(
    ("token", "query"),
    [
        (
            "AAAAA",
            {
                "signature": "f464b24fc39322e44b38aa78f5edd27bd1441696",
                "timestamp": "1714036504",
                "nonce": "1514711492",
                "echostr": "4375120948345356249",
            },
        ),
        (
            "FactSheetToken7",
            {
                "signature": "125a311142aa883c382d90628ad989da4ec2cbd1",
                "timestamp": "1760000000",
                "nonce": "1234567890",
                "echostr": "5839274610293847561",
            },
        ),
    ],
)
@pytest.mark.parametrize("aes_key", [None, ACCOUNT.aes_key])
def test_echostr_comes_back(token, query, aes_key):
    url = receiver(token=token, aes_key=aes_key)
    assert url.verify_url(query, float(query["timestamp"])) == query["echostr"]


@pytest.mark.parametrize("missing", ["signature", "timestamp", "nonce", "echostr"])
@pytest.mark.parametrize("how", ["absent", "empty"])
def test_a_check_lacking_something_is_refused(plain, missing, how):
    query = signed(echostr="123")
    assert plain.verify_url(query, NOW) == "123"
    if how == "empty":
        query[missing] = ""
    else:
        del query[missing]
    with pytest.raises(SignatureError, match=missing):
        plain.verify_url(query, NOW)


def test_a_wrong_check_is_refused(plain):
    with pytest.raises(SignatureError):
        plain.verify_url(signed(token="another", echostr="<script>"), NOW)
    with pytest.raises(TimestampError):
        plain.verify_url(signed(echostr="1"), NOW + 601)


# --- plaintext mode ---


def test_a_plain_push_is_taken_and_answered_plain(plain):
    push = plain.open(signed(), PLAIN, NOW)
    assert push.xml == PLAIN
    assert push.seal(b"<xml>reply</xml>", NOW) == b"<xml>reply</xml>"


def test_the_platforms_own_plain_push():
    query = {
        "signature": "899cf89e464efb63f54ddac96b0a0a235f53aa78",
        "timestamp": "1714037059",
        "nonce": "486452656",
    }
    assert receiver(token="AAAAA").open(query, PLAIN, 1714037059).xml == PLAIN


@pytest.mark.parametrize("missing", ["signature", "timestamp", "nonce"])
def test_a_plain_push_lacking_something_is_refused(plain, missing):
    query = signed()
    del query[missing]
    with pytest.raises(SignatureError, match=missing):
        plain.open(query, PLAIN, NOW)


@pytest.mark.parametrize("name", ["signature", "timestamp", "nonce"])
@pytest.mark.parametrize("value", ["1", "é", "🚀", "\ud800", "\x00", "9" * 100_000, "１７６０００００１０１"])
def test_a_changed_parameter_is_refused(plain, safe, name, value):
    with pytest.raises(SignatureError):
        plain.open(signed() | {name: value}, PLAIN, NOW)
    with pytest.raises(SignatureError):
        plain.verify_url(signed(echostr="1") | {name: value}, NOW)
    with pytest.raises(SignatureError):
        safe.open(W1_QUERY | {name if name != "signature" else "msg_signature": value}, W1_BODY, NOW)


def test_a_compat_body_without_a_key_is_read_and_answered_plain(plain):
    push = plain.open(W1_QUERY, W1_COMPAT, NOW)
    assert push.xml == W1_COMPAT
    assert push.seal(b"<xml/>", NOW) == b"<xml/>"


def test_a_safe_body_without_a_key_names_the_setting(plain):
    with pytest.raises(EnvelopeError) as refused:
        plain.open(W1_QUERY, W1_BODY, NOW)
    assert "set WECHAT_AES_KEY" in explained(refused.value)


def test_without_a_key_msg_signature_does_not_help(plain):
    with pytest.raises(SignatureError):
        plain.open(W1_QUERY | {"signature": W1_QUERY["msg_signature"]}, W1_COMPAT, NOW)


def test_a_doctype_is_refused_once_it_is_signed(plain, safe, changing):
    body = b"<!DOCTYPE xml><xml><Encrypt>x</Encrypt></xml>"
    for each, query in ((plain, signed()), (safe, signed(encrypt="x")), (changing, signed(encrypt="x"))):
        with pytest.raises(DoctypeError):
            each.open(query, body, NOW)
        with pytest.raises(SignatureError):
            each.open(query | {"signature": "x", "msg_signature": "x"}, body, NOW)


def test_a_json_push_says_what_to_choose(safe, changing):
    for each in (safe, changing):
        with pytest.raises(EnvelopeError, match="choose XML as the data format"):
            each.open(signed(encrypt="x"), b'{"ToUserName": "gh", "Encrypt": "x"}', NOW)


def test_no_parser_sees_a_body_that_is_not_opened_yet(plain, safe, changing, monkeypatch):
    parsed = []
    monkeypatch.setattr(etree, "fromstring", lambda *arguments: parsed.append(arguments))
    for each in (plain, safe, changing):
        for query in ({}, signed(), signed(encrypt="x"), W1_QUERY):
            for body in (PLAIN, W1_BODY, W1_COMPAT, b"<xml><Encrypt>", b"<a/>" * 1000, b"\xff", b""):
                with contextlib.suppress(PushError):
                    each.open(query, body, NOW)
    assert parsed == []


def test_a_text_about_encryption_is_no_envelope(plain):
    body = PLAIN.replace(b"</xml>", b"<Content><![CDATA[<Encrypt>]]></Content></xml>")
    assert plain.open(signed(), body, NOW).xml == body


# --- safe and compat mode ---


@pytest.mark.parametrize(
    "body", [W1_BODY, W1_COMPAT, b"\xef\xbb\xbf" + W1_BODY], ids=["safe", "compat", "BOM"]
)
def test_w1_is_opened_and_w2_is_its_answer(safe, body):
    push = safe.open(W1_QUERY, body, NOW)
    assert push.xml == W1_MESSAGE
    sealed = push.seal(W2_MESSAGE, 1760000103, random=lambda size: b"fedcba9876543210"[:size])
    assert sealed == W2_BODY


def test_the_plain_part_of_a_compat_body_is_never_read(safe, changing):
    forged = W1_COMPAT.replace(b"oTest-AbCdEfGhIjKlMnOpQrSt_1", b"oForged").replace(
        "你好".encode(), b"forged"
    )
    for each in (safe, changing):
        assert each.open(W1_QUERY, forged, NOW).xml == W1_MESSAGE


def test_white_space_around_encrypt_is_layout(safe):
    body = W1_BODY.replace(b"<![CDATA[", b"\n  <![CDATA[").replace(b"]]>", b"]]>\n")
    assert safe.open(W1_QUERY, body, NOW).xml == W1_MESSAGE


def test_msg_signature_alone_decides(safe):
    query = {name: W1_QUERY[name] for name in ("timestamp", "nonce", "msg_signature")}
    assert safe.open(query, W1_BODY, NOW).xml == W1_MESSAGE
    assert safe.open(query | {"signature": "wrong", "encrypt_type": "raw"}, W1_BODY, NOW).xml == W1_MESSAGE


def test_the_url_signature_in_place_of_msg_signature_is_refused(safe):
    with pytest.raises(SignatureError):
        safe.open(W1_QUERY | {"msg_signature": W1_QUERY["signature"]}, W1_BODY, NOW)


def test_a_changed_envelope_is_refused(safe):
    with pytest.raises(SignatureError):
        safe.open(W1_QUERY, W1_BODY.replace(b"HshHKo", b"HshHKp"), NOW)


def test_another_appid_is_refused():
    with pytest.raises(AppIdError):
        receiver(appid="wxffffffffffffffff", aes_key=ACCOUNT.aes_key).open(W1_QUERY, W1_BODY, NOW)


def test_another_key_is_refused():
    with pytest.raises(EnvelopeError):
        receiver(aes_key=NEW_KEY).open(W1_QUERY, W1_BODY, NOW)


def test_a_plain_body_is_refused_naming_both_settings(safe):
    for query in (signed(), signed(encrypt="x")):
        with pytest.raises(EnvelopeError) as refused:
            safe.open(query, PLAIN, NOW)
        assert re.search(r"WECHAT_AES_KEY.*WECHAT_ACCEPT_PLAINTEXT", explained(refused.value))


@pytest.mark.parametrize("body", [PLAIN, W1_BODY, b"", b"\xff", b"<!DOCTYPE xml><xml/>"])
def test_an_unsigned_request_is_refused_for_its_signature(safe, changing, plain, body):
    for each in (safe, changing, plain):
        for query in ({}, {"signature": "x", "timestamp": str(NOW), "nonce": "1"}, {"msg_signature": "x"}):
            with pytest.raises(SignatureError):
                each.open(query, body, NOW)


@pytest.mark.parametrize("missing", ["timestamp", "nonce"])
def test_a_safe_push_lacking_something_is_refused(safe, missing):
    query = dict(W1_QUERY)
    del query[missing]
    with pytest.raises(SignatureError, match=missing):
        safe.open(query, W1_BODY, NOW)


def test_two_envelopes_are_refused(safe):
    with pytest.raises(EnvelopeError, match="more than one"):
        safe.open(W1_QUERY, W1_BODY.replace(b"<Encrypt>", b"<Encrypt>a</Encrypt><Encrypt>", 1), NOW)


@pytest.mark.parametrize("encrypt", ["", "a", "****", "é"])
def test_signed_nonsense_is_refused(safe, encrypt):
    body = f"<xml><Encrypt>{encrypt}</Encrypt></xml>".encode()
    with pytest.raises(EnvelopeError):
        safe.open(signed(encrypt=encrypt), body, NOW)


# --- the change-over from plaintext to safe mode ---


def test_during_the_change_over_both_are_taken(changing):
    push = changing.open(signed(), PLAIN, NOW)
    assert (push.xml, push.seal(b"<xml/>", NOW)) == (PLAIN, b"<xml/>")
    assert changing.open(signed(encrypt="x"), PLAIN, NOW).xml == PLAIN
    assert changing.open(W1_QUERY, W1_BODY, NOW).xml == W1_MESSAGE


def test_during_the_change_over_an_envelope_still_needs_msg_signature(changing):
    query = dict(W1_QUERY)
    del query["msg_signature"]
    for body in (W1_BODY, W1_COMPAT):
        with pytest.raises(SignatureError, match="msg_signature"):
            changing.open(query, body, NOW)
        with pytest.raises(SignatureError):
            changing.open(query | {"msg_signature": "x"}, body, NOW)


# --- time ---


@pytest.mark.parametrize("off", [-600, 0, 599.9, 600, 600.9])
def test_inside_the_window(plain, safe, off):
    assert plain.open(signed(), PLAIN, NOW + off).xml == PLAIN
    assert safe.open(W1_QUERY, W1_BODY, NOW + off).xml == W1_MESSAGE
    assert plain.verify_url(signed(echostr="1"), NOW + off) == "1"


@pytest.mark.parametrize(("off", "said"), [(-601, 601), (601, -601), (86400, -86400), (601.9, -601)])
def test_outside_the_window(plain, safe, changing, off, said):
    for each, query, body in (
        (plain, signed(), PLAIN),
        (safe, W1_QUERY, W1_BODY),
        (changing, signed(), PLAIN),
    ):
        with pytest.raises(TimestampError) as refused:
            each.open(query, body, NOW + off)
        assert "WECHAT_TIMESTAMP_WINDOW" in explained(refused.value)
        assert refused.value.seconds_off == said
        assert f"{said:+d} seconds" in str(refused.value)
        assert (refused.value.status, refused.value.reason) == (403, "timestamp")


def test_a_window_of_zero_is_no_check():
    each = receiver(timestamp_window=0)
    assert each.open(signed(timestamp="1"), PLAIN, NOW).xml == PLAIN
    assert each.open(signed(timestamp="soon"), PLAIN, NOW).xml == PLAIN
    assert receiver(timestamp_window=5).open(signed(), PLAIN, NOW + 5).xml == PLAIN


@pytest.mark.parametrize(
    "timestamp",
    [
        "soon",
        "１７６０００００１０１",
        "+1760000101",
        " 1760000101",
        "-1",
        "1760000101.0",
        "1_760_000_101",
        "0x1",
        "²",
        "9" * 16,
        "9" * 5000,
    ],
)
def test_a_timestamp_that_is_no_number_is_refused_after_its_signature(plain, timestamp):
    for refused_by in (
        lambda query: plain.open(query, PLAIN, NOW),
        lambda query: plain.verify_url(query | {"echostr": "1"}, NOW),
    ):
        with pytest.raises(TimestampError) as refused:
            refused_by(signed(timestamp=timestamp))
        assert refused.value.seconds_off is None
        with pytest.raises(SignatureError):
            refused_by(signed(timestamp=timestamp) | {"nonce": "2"})


def test_the_signature_comes_before_the_time(plain):
    with pytest.raises(SignatureError):
        plain.open(signed(token="wrong", timestamp="1"), PLAIN, NOW)


# --- rotation ---


@pytest.mark.parametrize("token", [ACCOUNT.token, NEW_TOKEN])
@pytest.mark.parametrize("key", [ACCOUNT.aes_key, NEW_KEY])
def test_old_and_new_are_taken_and_answered_in_kind(token, key):
    both = receiver(
        token=NEW_TOKEN, previous_token=ACCOUNT.token, aes_key=NEW_KEY, previous_aes_key=ACCOUNT.aes_key
    )
    query, body = safe_push(PLAIN, account=Account(ACCOUNT.appid, token, key))
    push = both.open(query, body, NOW)
    assert push.xml == PLAIN
    answer = parse(push.seal(b"<xml>reply</xml>", NOW + 1))
    texts = {child.tag: child.text for child in answer}
    assert texts["MsgSignature"] == sign(token, str(NOW + 1), query["nonce"], texts["Encrypt"])
    assert Envelope(key, ACCOUNT.appid).open(texts["Encrypt"]) == b"<xml>reply</xml>"
    assert both.verify_url(signed(token=token, echostr="1"), NOW) == "1"
    assert (
        receiver(token=NEW_TOKEN, previous_token=ACCOUNT.token).open(signed(token=token), PLAIN, NOW).xml
        == PLAIN
    )


def test_a_third_token_or_key_is_refused():
    both = receiver(previous_token=NEW_TOKEN, aes_key=ACCOUNT.aes_key, previous_aes_key=NEW_KEY)
    query, body = safe_push(PLAIN, account=Account(ACCOUNT.appid, "third", ACCOUNT.aes_key))
    with pytest.raises(SignatureError):
        both.open(query, body, NOW)
    query, body = safe_push(PLAIN, account=Account(ACCOUNT.appid, ACCOUNT.token, "A" * 43))
    with pytest.raises(EnvelopeError):
        both.open(query, body, NOW)


@pytest.mark.parametrize("key", [ACCOUNT.aes_key, NEW_KEY])
def test_another_appid_is_told_apart_during_a_rotation(key):
    both = receiver(aes_key=ACCOUNT.aes_key, previous_aes_key=NEW_KEY)
    query, body = safe_push(PLAIN, account=Account("wxffffffffffffffff", ACCOUNT.token, key))
    with pytest.raises(AppIdError):
        both.open(query, body, NOW)


# --- sealing ---


def test_wechatpy_opens_our_answer(safe):
    push = safe.open(W1_QUERY, W1_BODY, NOW)
    theirs = WeChatCrypto(ACCOUNT.token, ACCOUNT.aes_key, ACCOUNT.appid)
    answer = push.seal(W2_MESSAGE, NOW)
    texts = {child.tag: child.text for child in parse(answer)}
    assert texts["Nonce"] == W1_QUERY["nonce"]
    assert texts["TimeStamp"] == str(NOW)
    opened = theirs.decrypt_message(
        answer.decode(), texts["MsgSignature"], texts["TimeStamp"], texts["Nonce"]
    )
    assert opened.encode() == W2_MESSAGE


def test_we_open_what_wechatpy_sealed(safe):
    theirs = WeChatCrypto(ACCOUNT.token, ACCOUNT.aes_key, ACCOUNT.appid)
    body = theirs.encrypt_message(PLAIN.decode(), "42", str(NOW))
    query = {
        "timestamp": str(NOW),
        "nonce": "42",
        "msg_signature": parse(body.encode()).findtext("MsgSignature"),
    }
    assert safe.open(query, body.encode(), NOW).xml == PLAIN


def test_no_two_envelopes_are_alike(safe):
    push = safe.open(W1_QUERY, W1_BODY, NOW)
    assert push.seal(W2_MESSAGE, NOW) != push.seal(W2_MESSAGE, NOW)


@pytest.mark.parametrize("nonce", ["1", "]]><evil/>", "a\x00b\rc", "\ud800é🚀"])
def test_a_strange_nonce_stays_a_nonce(safe, nonce):
    query, body = safe_push(PLAIN, nonce=nonce)
    push = safe.open(query, body, NOW)
    for answer in (push.seal(b"<xml/>", NOW), push.seal(b"<xml/>", NOW, nonce=nonce)):
        root = parse(answer)
        assert [child.tag for child in root] == ["Encrypt", "MsgSignature", "TimeStamp", "Nonce"]
        signature = sign(ACCOUNT.token, str(NOW), root.findtext("Nonce"), root.findtext("Encrypt"))
        assert root.findtext("MsgSignature") == signature


# --- construction and secrets ---


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"token": ""}, "token"),
        ({"appid": ""}, "AppID"),
        ({"aes_key": "short"}, "43 characters"),
        ({"aes_key": ACCOUNT.aes_key, "previous_aes_key": "short"}, "43 characters"),
        ({"previous_aes_key": ACCOUNT.aes_key}, "a previous AES key"),
    ],
)
def test_wrong_settings(settings, named):
    with pytest.raises(ValueError, match=named) as refused:
        receiver(**settings)
    assert ACCOUNT.aes_key not in str(refused.value)


def test_empty_previous_settings_are_none():
    each = receiver(aes_key=ACCOUNT.aes_key, previous_token="", previous_aes_key="")
    assert each.open(W1_QUERY, W1_BODY, NOW).xml == W1_MESSAGE
    signed_with_nothing = "40bd001563085fc35165329ea1ff5c5ecbdbbeef"  # SHA-1 of "123"
    with pytest.raises(SignatureError):
        each.verify_url(
            {"signature": signed_with_nothing, "timestamp": "12", "nonce": "3", "echostr": "1"}, 12
        )


def test_nothing_shows_a_secret(safe, plain):
    push = safe.open(W1_QUERY, W1_BODY, NOW)
    shown = [repr(push), str(push), repr(safe), repr(plain)]
    for each, query, body in (
        (safe, W1_QUERY | {"nonce": "1"}, W1_BODY),
        (safe, signed(), PLAIN),
        (safe, *safe_push(PLAIN, account=Account("other", ACCOUNT.token, ACCOUNT.aes_key))),
        (safe, *safe_push(PLAIN, account=Account(ACCOUNT.appid, ACCOUNT.token, NEW_KEY))),
        (plain, signed(timestamp="1"), PLAIN),
    ):
        with pytest.raises(PushError) as refused:
            each.open(query, body, NOW)
        shown += ["".join(traceback.format_exception(refused.value)), repr(refused.value)]
        assert refused.value.__context__ is None
    secrets = [ACCOUNT.token, ACCOUNT.aes_key, base64.b64decode(ACCOUNT.aes_key + "=").hex()]
    assert not [secret for secret in secrets for text in shown if secret in text]
    assert "你好" not in "".join(shown)


# --- what a programmer gets wrong ---


@pytest.mark.parametrize(
    "wrong",
    [
        {"appid": ACCOUNT.appid.encode()},
        {"token": ACCOUNT.token.encode()},
        {"aes_key": ACCOUNT.aes_key.encode()},
        {"previous_token": 5},
        {"timestamp_window": "600"},
    ],
)
def test_a_setting_of_another_type_is_refused_at_the_start(wrong):
    with pytest.raises(TypeError, match=r"text|seconds") as caught:
        receiver(**wrong)
    assert ACCOUNT.token not in str(caught.value)


def test_text_is_no_body_and_a_list_is_no_parameter(plain, safe):
    for one, query, body in ((plain, signed(), PLAIN), (safe, W1_QUERY, W1_BODY)):
        with pytest.raises(TypeError, match="bytes as they came"):
            one.open(query, body.decode(), NOW)
        lists = {name: [value] for name, value in query.items()}
        with pytest.raises(TypeError, match="one text for each name"):
            one.open(lists, body, NOW)


def test_the_time_of_a_sealed_answer_may_be_that_of_the_clock(safe):
    push = safe.open(W1_QUERY, W1_BODY, NOW)
    assert push.seal(b"<xml/>", 9.9, random=bytes) == push.seal(b"<xml/>", 9, random=bytes)
