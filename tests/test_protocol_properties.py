"""What holds for every input: a value or a PushError comes out, and a text stays a text.

Nothing else than PushError may escape, however the bytes look and even when they are rightly signed and sealed.
"""

import base64
import random
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CBC
from hypothesis import given
from hypothesis import strategies as st

from tests.vectors import ACCOUNT, NOW, W1_BODY, W1_MESSAGE, W1_QUERY, safe_push, signed
from wechat.elements import cdata, parse
from wechat.envelope import Envelope, decode_aes_key
from wechat.errors import EnvelopeError, PushError
from wechat.messages import Message, SubscribeEvent, TextMessage, parse_message
from wechat.receiver import Receiver
from wechat.replies import TextReply, render_reply
from wechat.signature import sign, verify

PLAIN = Receiver(appid=ACCOUNT.appid, token=ACCOUNT.token)
SAFE = Receiver(appid=ACCOUNT.appid, token=ACCOUNT.token, aes_key=ACCOUNT.aes_key, previous_aes_key="A" * 43)
CHANGING = Receiver(
    appid=ACCOUNT.appid,
    token=ACCOUNT.token,
    previous_token="old",
    aes_key=ACCOUNT.aes_key,
    accept_plaintext=True,
)
RECEIVERS = (PLAIN, SAFE, CHANGING)
EVENT = SubscribeEvent(
    to_user_name="gh", from_user_name="o", create_time=1, msg_type="event", event="subscribe"
)

# With surrogates: a query or a handler may hold them.
any_text = st.text(st.characters())
names = ["signature", "timestamp", "nonce", "echostr", "msg_signature", "encrypt_type", "openid"]
queries = st.dictionaries(st.sampled_from(names), any_text)
TAGS = (
    "ToUserName FromUserName CreateTime MsgType MsgId MsgID Event EventKey Encrypt Content MediaId Idx raw xml item "
    "Location_X Location_Y Scale Latitude Longitude MenuId SendPicsInfo PicList Count ScanCodeInfo SendLocationInfo"
)
tags = st.sampled_from(TAGS.split())
known = st.sampled_from(
    ["", "text", "image", "event", "location", "LOCATION", "VIEW", "pic_weixin", "1", "9" * 30]
)
leaves = st.builds(lambda tag, value: f"<{tag}>{cdata(value)}</{tag}>", tags, known | any_text)
trees = st.recursive(
    leaves,
    lambda inner: st.builds(
        lambda tag, parts: f"<{tag}>{''.join(parts)}</{tag}>", tags, st.lists(inner, max_size=3)
    ),
    max_leaves=4,
)
bodies = st.binary() | st.lists(trees, max_size=12).map(lambda parts: f"<xml>{''.join(parts)}</xml>".encode())


def outcome(receiver, query, body):
    """What the web edge would have: a message, or the refusal."""
    try:
        message = parse_message(receiver.open(query, body, NOW).xml)
    except PushError as refusal:
        return refusal
    assert isinstance(message, Message)
    assert 0 < len(message.from_user_name) <= 128
    assert message.msg_type
    assert message.dedupe_key.isascii()
    assert len(message.dedupe_key) < 48
    hash(message)
    return message


@given(queries, bodies)
def test_whatever_comes_unsigned_is_refused(query, body):
    for receiver in RECEIVERS:
        assert isinstance(outcome(receiver, query, body), PushError)
        with pytest.raises(PushError):
            receiver.verify_url(query, NOW)


@given(bodies)
def test_whatever_comes_signed_gives_a_message_or_a_refusal(body):
    for receiver in RECEIVERS:
        outcome(receiver, signed(), body)
        outcome(receiver, signed(encrypt="x"), body)


@given(bodies)
def test_whatever_comes_sealed_gives_a_message_or_a_refusal(xml):
    query, body = safe_push(xml)
    assert SAFE.open(query, body, NOW).xml == xml
    for receiver in RECEIVERS:
        outcome(receiver, query, body)


@given(any_text)
def test_whatever_stands_in_a_signed_envelope_is_refused(encrypt):
    body = f"<xml><Encrypt>{cdata(encrypt)}</Encrypt></xml>".encode()
    read = (parse(body).findtext("Encrypt") or "").strip(" \t\r\n")
    assert isinstance(outcome(SAFE, signed(encrypt=read), body), EnvelopeError)


@given(any_text, any_text, any_text, any_text)
def test_strange_parameters_are_refused_or_right(timestamp, nonce, echostr, signature):
    query = {"timestamp": timestamp, "nonce": nonce, "echostr": echostr}
    for given_signature in (signature, sign(ACCOUNT.token, timestamp, nonce)):
        try:
            assert PLAIN.verify_url(query | {"signature": given_signature}, NOW) == echostr
        except PushError:
            assert not (timestamp == str(NOW) and nonce and echostr and given_signature != signature)


@given(any_text.filter(bool), any_text, any_text)
def test_a_signature_is_right_for_its_parts_only(token, one, other):
    verify(sign(token, one, other), token, other, one)
    assert (sign(token, one) == sign(token, other)) == (
        "".join(sorted((token, one))) == "".join(sorted((token, other)))
    )


@pytest.fixture
def mutations(full):
    return 3000 if full else 500


def mutated(data, chance):
    """One to four small accidents: a flipped, lost, doubled, moved or foreign piece."""
    data = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at, size = chance.randrange(len(data) + 1), chance.randint(1, 24)
        match chance.randrange(5):
            case 0:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del data[at : at + size]
            case 2:
                data[at:at] = data[at : at + size]
            case 3:
                to = chance.randrange(len(data) + 1)
                data[to:to] = data[at : at + size]
            case 4:
                data[at:at] = chance.choice(
                    [
                        b"]]>",
                        b"<",
                        b"&",
                        b"<a>",
                        b"<!--",
                        b"<![CDATA[",
                        b"<!DOCTYPE a>",
                        b"\x00",
                        b"\xff",
                        b"&#x0;",
                        b"9" * 99,
                    ]
                )
    return bytes(data)


def test_mutations_of_w1(mutations):
    chance = random.Random(1)
    opened = 0
    for _ in range(mutations):
        body = mutated(W1_BODY, chance)
        for receiver in RECEIVERS:
            found = outcome(receiver, W1_QUERY, body)
            # What msg_signature covers is whole, or nothing is taken.
            if receiver is not PLAIN and isinstance(found, Message):
                assert found.raw == W1_MESSAGE
                opened += 1
    assert opened


def test_mutations_signed_again(mutations):
    chance = random.Random(2)
    for _ in range(mutations):
        body = mutated(W1_BODY, chance)
        try:
            encrypt = (parse(body).findtext("Encrypt") or "").strip(" \t\r\n")
        except PushError:
            encrypt = "x"
        outcome(SAFE, signed(encrypt=encrypt), body)


def test_mutations_of_the_envelopes_inside(mutations):
    key = decode_aes_key(ACCOUNT.aes_key)
    plain = b"0123456789abcdef" + len(W1_MESSAGE).to_bytes(4, "big") + W1_MESSAGE + ACCOUNT.appid.encode()
    pad = 32 - len(plain) % 32
    chance = random.Random(3)
    for _ in range(mutations):
        content = mutated(plain + bytes([pad]) * pad, chance)
        content += bytes([chance.randrange(40)]) * (-len(content) % 16)
        encryptor = Cipher(AES256(key), CBC(key[:16])).encryptor()
        encrypt = base64.b64encode(encryptor.update(content) + encryptor.finalize()).decode()
        outcome(SAFE, signed(encrypt=encrypt), f"<xml><Encrypt>{encrypt}</Encrypt></xml>".encode())


@pytest.mark.parametrize("seed", range(3))
def test_mutations_of_the_samples(seed, mutations):
    chance = random.Random(seed)
    samples = [path.read_bytes() for path in sorted((Path(__file__).parent / "samples").glob("*.xml"))]
    messages = sum(
        isinstance(outcome(PLAIN, signed(), mutated(chance.choice(samples), chance)), Message)
        for _ in range(mutations)
    )
    assert messages > mutations / 20


@given(st.binary(), st.binary(min_size=16, max_size=16))
def test_what_is_sealed_is_opened(message, fresh):
    envelope = Envelope(ACCOUNT.aes_key, ACCOUNT.appid)
    assert envelope.open(envelope.seal(message, fresh)) == message


def carried(text):
    """What is left of a text in XML 1.0, written down a second time as the standard's table of characters."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(
        one
        for one in text
        if one in "\t\n" or " " <= one <= "\ud7ff" or "\ue000" <= one <= "\ufffd" or one > "\uffff"
    )


@given(
    any_text
    | st.text(alphabet="]]>><&![CDATA\r\n\x00a")
    | st.text(alphabet="好🚀a]>", min_size=600, max_size=2100)
)
def test_whatever_a_fan_writes_echoes_as_one_reply(text):
    sent = carried(text)
    head = "<FromUserName>o</FromUserName><CreateTime>1</CreateTime><MsgType>text</MsgType>"
    xml = f"<xml>{head}<Content>{cdata(text)}</Content></xml>"
    message = parse_message(xml.encode())
    assert isinstance(message, TextMessage)
    assert message.content == sent
    if not sent.strip():
        return  # a reply must say something
    root = parse(render_reply(TextReply(message.content), message, 2))
    assert [child.tag for child in root] == ["ToUserName", "FromUserName", "CreateTime", "MsgType", "Content"]
    assert root.findtext("MsgType") == "text"
    said = root.findtext("Content")
    assert sent.startswith(said)
    assert said == sent or 2043 < len(said.encode()) <= 2047


@given(any_text, any_text)
def test_a_reply_from_any_names_is_one_reply(fan, account):
    message = TextMessage(
        to_user_name=account, from_user_name=fan, create_time=1, msg_type="text", content="", raw=b""
    )
    root = parse(render_reply(TextReply("x"), message, 1))
    assert (root.findtext("ToUserName"), root.findtext("FromUserName")) == (carried(fan), carried(account))


@given(any_text.filter(lambda text: carried(text).strip()))
def test_a_sealed_reply_comes_back_whole(text):
    push = SAFE.open(W1_QUERY, W1_BODY, NOW)
    reply = render_reply(TextReply(text), EVENT, 1)
    root = parse(push.seal(reply, NOW))
    assert Envelope(ACCOUNT.aes_key, ACCOUNT.appid).open(root.findtext("Encrypt")) == reply
    verify(
        root.findtext("MsgSignature"), ACCOUNT.token, str(NOW), W1_QUERY["nonce"], root.findtext("Encrypt")
    )
