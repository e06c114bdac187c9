"""The sandbox's own signature and envelope against the official vectors, and against others that wechatpy reads too."""

import base64

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from wechatpy.crypto import WeChatCrypto
from wechatpy.exceptions import InvalidAppIdException

from sandbox.cipher import CipherError, Envelope, sign

TOKEN = "FactSheetToken7"
KEY = "Zt4mQ9sVb2LxK7eWc1RyU8nHj5PaDf3GoI6TqSkXwEM"
APPID = "wx0a1b2c3d4e5f6789"
OFFICIAL = Envelope("A" * 43, "wxba5fad812f8e6fb9")

W1_MESSAGE = (
    "<xml><ToUserName><![CDATA[gh_5e7a9c1b3d2f]]></ToUserName><FromUserName><![CDATA[oTest-AbCdEfGhIjKlMnOpQrSt_1]]>"
    "</FromUserName><CreateTime>1760000100</CreateTime><MsgType><![CDATA[text]]></MsgType><Content><![CDATA[你好, world"
    " 🚀]]></Content><MsgId>24601000000000001</MsgId></xml>"
).encode()
W1 = (
    "HshHKolVseJhrVDNtT6WSV++RbTQs/kgOGTIIQzExn7E2fcg5t/awArB5q5101Wl40l6d0/V7HjYcsDHNTdQPV61sQwYuV/3wkqA7N9a3cCU9s3h"
    "/Fk8z0bnlWalYtTZ+7Qk3pFwNWqgRY/Yo6BcSQE0lrzh3I1H0MNExEM0I+kdhpclNx8wPEO8gwimYWt3Gxr4Rz6rji7fRn790TsgbKIDtMhwQNsB"
    "qz7SF5x1tqdiE7qoZ7eCxBcmSnDipX+rMF5l4LEdPUWwL9de7BrfqgixwhEb5x89Z9fcNdCT3jbCcyeKIjzKuM5aBeoIdge4wBFCkbb2cBKyQG9h"
    "0Xj4TvmioJLMJ+bR8QMzs5KLgnCio7m4bjAULZeVyyP8Ap3J2cMxhU3bkamtmkz3HieuNl7lvB/KAk77MDOxFZFIzWo3vwOeIbHqdn1A1fh+t9N8"
    "U62kB0pz3HeOfCrTQt/74w=="
)
W2_MESSAGE = (
    "<xml><ToUserName><![CDATA[oTest-AbCdEfGhIjKlMnOpQrSt_1]]></ToUserName><FromUserName><![CDATA[gh_5e7a9c1b3d2f]]>"
    "</FromUserName><CreateTime>1760000102</CreateTime><MsgType><![CDATA[text]]></MsgType><Content>"
    "<![CDATA[pong 收到]]></Content></xml>"
).encode()
W2 = (
    "gBRTrRgs6J0M6FmVEk0lf2GeK4Hyqxk3wIKGiMpI7MMffIimQ/Yoz3uWfvhx8ziDo/OrzzAVL7NLZs5erwIwhovxhknSMUdcKJshWa++3mDf4MCd"
    "2srMSUESZNvmKkvLzUjoF3Osi9RDA0PP1QxCQ5xYMildpMlzFmTyJ4n41FOzJZQxs6WKrDTneJF9wUNonRDBt94KFgTvuhTBMQw6aPluZTzp934Q"
    "xFq4KwtCPg4rL8kE7jKE4qYx5rNMakmHrLIth2p1Cc7YlvLLvksiKNY3HFTyLlo8S+YHA50KPhYotB+Sbpvx446nLWg7YKhnLUNL+2CdiofVU//C"
    "caxhTOipa3/6na/P+J8xCdseqKHDAsNwb5WwWHafoiq+LGMR"
)
W3 = (
    "wCW+9AMUbD/UAAd5QtNqvgZqn4GPTvfB7TcGlTTGrX1gyCSxRGxyZFxChoIkWbOIHhgyAJdN0YA5Kpket4w4KBot8vr5NFa/J9keUbkRy0sMaemJ"
    "GQ1gf/m8N8SVxmv/"
)


@pytest.mark.parametrize(
    ("token", "timestamp", "nonce", "signature"),
    [
        ("AAAAA", "1714036504", "1514711492", "f464b24fc39322e44b38aa78f5edd27bd1441696"),
        ("AAAAA", "1714037059", "486452656", "899cf89e464efb63f54ddac96b0a0a235f53aa78"),
        ("AAAAA", "1714112445", "415670741", "6c5c811b55cc85e0e1b54100749188c20beb3f5d"),
        (TOKEN, "1760000000", "1234567890", "125a311142aa883c382d90628ad989da4ec2cbd1"),
        (TOKEN, "1760000101", "998877665", "13e371a054c6cb50e98a4b7f3616e8c70fe6ef5e"),
    ],
)
def test_signatures(token, timestamp, nonce, signature):
    assert sign(token, timestamp, nonce) == sign(nonce, token, timestamp) == signature


def test_the_official_push():
    encrypted = (
        "+qdx1OKCy+5JPCBFWw70tm0fJGb2Jmeia4FCB7kao+/Q5c/ohsOzQHi8khUOb05JCpj0JB4RvQMkUyus8TPxLKJGQqcvZqzDpVzazhZv6JsXUnn"
        "R8XGT740XgXZUXQ7vJVnAG+tE8NUd4yFyjPy7GgiaviNrlCTj+l5kdfMuFUPpRSrfMZuMcp3Fn2Pede2IuQrKEYwKSqFIZoNqJ4M8EajAsjLY2k"
        "m32IIjdf8YL/P50F7mStwntrA2cPDrM1kb6mOcfBgRtWygb3VIYnSeOBrebufAlr7F9mFUPAJGj04="
    )
    message = OFFICIAL.decrypt(encrypted)
    assert len(message) == 167
    assert b'"Event":"debug_demo"' in message
    assert OFFICIAL.encrypt(message, b"a8eedb185eb2fecf") == encrypted
    signature = sign("AAAAA", "1714112445", "415670741", encrypted)
    assert signature == "046e02f8204d34f8ba5fa3b1db94908f3df2e9b3"


def test_the_official_reply():
    encrypted = "ELGduP2YcVatjqIS+eZbp80MNLoAUWvzzyJxgGzxZO/5sAvd070Bs6qrLARC9nVHm48Y4hyRbtzve1L32tmxSQ=="
    assert OFFICIAL.encrypt(b'{"demo_resp":"good luck"}', b"707722b803182950") == encrypted
    signature = sign("AAAAA", "1713424427", "415670741", encrypted)
    assert signature == "1b9339964ed2e271e7c7b6ff2b0ef902fc94dea1"


@pytest.mark.parametrize(
    ("message", "random", "encrypted", "timestamp", "nonce", "signature"),
    [
        (
            W1_MESSAGE,
            b"0123456789abcdef",
            W1,
            "1760000101",
            "998877665",
            "edd4c648a7211e6dcb0081e0033f9207f4ee712c",
        ),
        (
            W2_MESSAGE,
            b"fedcba9876543210",
            W2,
            "1760000103",
            "998877665",
            "8ffa01bde376ca4a8128e5aaca2a486db3420d0a",
        ),
        (
            b"ping" + b"." * 22,
            b"A" * 16,
            W3,
            "1760000000",
            "1234567890",
            "b7c80694e325cb30c17028046dc5e8f6436d2618",
        ),
    ],
    ids=["W1", "W2", "W3"],
)
def test_the_computed_vectors(message, random, encrypted, timestamp, nonce, signature):
    envelope = Envelope(KEY, APPID)
    assert envelope.encrypt(message, random) == encrypted
    assert envelope.decrypt(encrypted) == message
    assert sign(TOKEN, timestamp, nonce, encrypted) == signature


def test_wechatpy_opens_what_we_seal_and_we_open_what_it_seals():
    envelope, other = Envelope(KEY, APPID), WeChatCrypto(TOKEN, KEY, APPID)
    for length in range(70):
        message = "<xml>" + "字" * length + "</xml>"
        encrypted = envelope.encrypt(message.encode(), bytes(16))
        body = f"<xml><Encrypt>{encrypted}</Encrypt></xml>"
        assert other.decrypt_message(body, sign(TOKEN, "1", "2", encrypted), "1", "2") == message
        sealed = other.encrypt_message(message, "2", "1")
        inner = sealed.split("<Encrypt><![CDATA[")[1].split("]]>")[0]
        assert envelope.decrypt(inner).decode() == message
    body = f"<xml><Encrypt>{W1}</Encrypt></xml>"
    with pytest.raises(InvalidAppIdException):
        WeChatCrypto(TOKEN, KEY, "wxffffffffffffffff").decrypt_message(
            body, "edd4c648a7211e6dcb0081e0033f9207f4ee712c", "1760000101", "998877665"
        )


def test_a_key_with_other_spare_bits_opens_the_same():
    assert Envelope(KEY[:-1] + "P", APPID).decrypt(W1) == W1_MESSAGE


def _encrypt_as_is(plain):
    """Seals bytes that are padded already, whatever they say."""
    key = base64.b64decode(KEY + "=")
    encryptor = Cipher(algorithms.AES(key), modes.CBC(key[:16])).encryptor()
    return base64.b64encode(encryptor.update(plain) + encryptor.finalize()).decode()


@pytest.mark.parametrize(
    ("encrypted", "why"),
    [
        ("not base64!", "Base64"),
        ("ä", "Base64"),
        ("", "multiple of 32"),
        (base64.b64encode(bytes(16)).decode(), "multiple of 32"),
        (_encrypt_as_is(bytes(32)), "padding"),
        (_encrypt_as_is(b"\x21" * 64), "padding"),
        (_encrypt_as_is(bytes(15) + b"\x11" * 17), "too short"),
        (_encrypt_as_is(bytes(16) + b"\0\0\xff\xff" + APPID.encode()[:11] + b"\x01"), "shorter"),
        (Envelope(KEY, "wxffffffffffffffff").encrypt(b"hello", bytes(16)), "another AppID"),
        (Envelope("A" * 43, APPID).encrypt(b"hello", bytes(16)), "padding"),
    ],
)
def test_what_does_not_open_says_why(encrypted, why):
    with pytest.raises(CipherError, match=why):
        Envelope(KEY, APPID).decrypt(encrypted)
