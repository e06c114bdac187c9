"""The AES envelope: the vectors byte for byte, wechatpy's opinion, and one refusal for all that is wrong."""

import base64
import warnings

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CBC

from tests.vectors import (
    ACCOUNT,
    OFFICIAL,
    OFFICIAL_ENCRYPT,
    OFFICIAL_MESSAGE,
    OFFICIAL_REPLY,
    OFFICIAL_REPLY_ENCRYPT,
    OFFICIAL_REPLY_SIGNATURE,
    W1_BODY,
    W1_MESSAGE,
    W2_BODY,
    W2_MESSAGE,
    W3_ENCRYPT,
    W3_MESSAGE,
    W3_SIGNATURE,
)
from wechat.elements import parse
from wechat.envelope import Envelope, decode_aes_key
from wechat.errors import AppIdError, EnvelopeError
from wechat.signature import sign

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from wechatpy.crypto import PrpCrypto

RANDOM = b"0123456789abcdef"
KEY = bytes.fromhex("66de2643db156f62f12bb79673547253c9c78f93da0dfdc6a08e93a92917c043")


@pytest.fixture
def envelope():
    return Envelope(ACCOUNT.aes_key, ACCOUNT.appid)


def sealed(content):
    """What the platform would send for this padded content."""
    encryptor = Cipher(AES256(KEY), CBC(KEY[:16])).encryptor()
    return base64.b64encode(encryptor.update(content) + encryptor.finalize()).decode()


def content(message=b"<xml/>", *, appid=b"wx0a1b2c3d4e5f6789", length=None):
    return RANDOM + (len(message) if length is None else length).to_bytes(4, "big") + message + appid


def padded(plain):
    pad = 32 - len(plain) % 32
    return plain + bytes([pad]) * pad


def test_official_vectors_in_the_json_form():
    official = Envelope(OFFICIAL.aes_key, OFFICIAL.appid)
    assert official.open(OFFICIAL_ENCRYPT) == OFFICIAL_MESSAGE.encode()
    assert official.seal(OFFICIAL_MESSAGE.encode(), b"a8eedb185eb2fecf") == OFFICIAL_ENCRYPT
    signature = sign(OFFICIAL.token, "1714112445", "415670741", OFFICIAL_ENCRYPT)
    assert signature == "046e02f8204d34f8ba5fa3b1db94908f3df2e9b3"

    assert official.seal(OFFICIAL_REPLY.encode(), b"707722b803182950") == OFFICIAL_REPLY_ENCRYPT
    assert official.open(OFFICIAL_REPLY_ENCRYPT) == OFFICIAL_REPLY.encode()
    assert sign(OFFICIAL.token, "1713424427", "415670741", OFFICIAL_REPLY_ENCRYPT) == OFFICIAL_REPLY_SIGNATURE


@pytest.mark.parametrize(
    ("message", "random", "encrypt"),
    [
        (W1_MESSAGE, RANDOM, parse(W1_BODY).findtext("Encrypt")),
        (W2_MESSAGE, b"fedcba9876543210", parse(W2_BODY).findtext("Encrypt")),
        (W3_MESSAGE, b"A" * 16, W3_ENCRYPT),
    ],
    ids=["W1", "W2", "W3"],
)
def test_own_vectors(envelope, message, random, encrypt):
    assert envelope.open(encrypt) == message
    assert envelope.seal(message, random) == encrypt


def test_w3_signature():
    assert sign(ACCOUNT.token, "1760000000", "1234567890", W3_ENCRYPT) == W3_SIGNATURE


@pytest.mark.parametrize("size", [0, 1, 9, 10, 25, 26, 27, 1000])
def test_wechatpy_opens_what_we_seal_and_seals_what_we_open(envelope, size):
    theirs = PrpCrypto(decode_aes_key(ACCOUNT.aes_key))
    message = ("é" * size).encode()
    assert theirs.decrypt(envelope.seal(message, RANDOM), ACCOUNT.appid).encode() == message
    assert envelope.open(theirs.encrypt(message, ACCOUNT.appid).decode()) == message


def test_every_last_character_of_a_key_is_taken():
    keys = {decode_aes_key(ACCOUNT.aes_key[:-1] + last) for last in "MNOP"}
    assert keys == {KEY}
    for last in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789":
        assert len(decode_aes_key("A" * 42 + last)) == 32


@pytest.mark.parametrize(
    "key", ["", "A" * 42, "A" * 44, "A" * 42 + "=", "A" * 42 + "+", "A" * 42 + "é", "A" * 43 + "\n"]
)
def test_a_wrong_key_is_refused_without_being_shown(key):
    with pytest.raises(ValueError, match="43 characters") as refused:
        Envelope(key, ACCOUNT.appid)
    assert not key or key not in str(refused.value)


@pytest.mark.parametrize(
    "encrypt",
    {
        "nothing": "",
        "not Base64": "****",
        "not ASCII": "é" * 64,
        "a lone surrogate": "\ud800",
        "loose Base64": sealed(padded(content()))[:20] + "\n" + sealed(padded(content()))[20:],
        "data after the padding": sealed(padded(content()) + bytes(16)) + "AAAA",
        "half a block": base64.b64encode(b"12345678").decode(),
        "one block of nothing": sealed(b"\x20" * 16),
        "only padding": sealed(b"\x20" * 32),
        "pad 0": sealed(padded(content())[:-1] + b"\x00"),
        "pad 33": sealed(padded(content())[:-1] + b"\x21"),
        "pad bytes differ": sealed(padded(content(b"1234"))[:-2] + b"\x00\x16"),
        "too short for a length": sealed(padded(RANDOM + b"\x00\x00\x00")),
        "length beyond the end": sealed(padded(content(length=200))),
        "a huge length": sealed(padded(content(length=2**32 - 1))),
        "random blocks": base64.b64encode(bytes(range(96))).decode(),
    }.items(),
    ids=lambda case: case[0],
)
def test_everything_wrong_is_one_refusal(envelope, encrypt):
    with pytest.raises(EnvelopeError) as refused:
        envelope.open(encrypt[1])
    assert (refused.value.status, refused.value.reason) == (403, "envelope")
    assert str(refused.value) == "the envelope cannot be opened"
    assert refused.value.__context__ is None


@pytest.mark.parametrize(
    "appid", [b"", b"wx0a1b2c3d4e5f678", b"wx0a1b2c3d4e5f67890", b"wxffffffffffffffff", b"\xff"]
)
def test_another_appid_is_refused(envelope, appid):
    with pytest.raises(AppIdError) as refused:
        envelope.open(sealed(padded(content(appid=appid))))
    assert (refused.value.status, refused.value.reason) == (403, "appid")


def test_the_length_counts_bytes(envelope):
    assert envelope.open(sealed(padded(content("你好".encode())))) == "你好".encode()


def test_nothing_shows_the_key(envelope):
    assert ACCOUNT.aes_key not in repr(envelope)
    assert repr(KEY) not in repr(envelope)
