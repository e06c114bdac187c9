"""Signed pushes for tests that talk to the callback themselves; signed and sealed by the sandbox's own code."""

import secrets
import time
from urllib.parse import urlencode

from sandbox import THROWAWAY
from sandbox.cipher import Envelope, sign

FAN = "oTest-AbCdEfGhIjKlMnOpQrSt_1"
ENVELOPE = Envelope(THROWAWAY.aes_key, THROWAWAY.appid)


def element(name, value):
    return f"<{name}>{value}</{name}>" if isinstance(value, int) else f"<{name}><![CDATA[{value}]]></{name}>"


def message(fan=FAN, create_time=None, **elements):
    """The plain XML of a push, str; keyword arguments are its elements."""
    common = {
        "ToUserName": THROWAWAY.original_id,
        "FromUserName": fan,
        "CreateTime": int(time.time()) if create_time is None else create_time,
    }
    return f"<xml>{''.join(element(name, value) for name, value in (common | elements).items())}</xml>"


def image(msg_id, fan=FAN, media_id="fakeImg-MediaId_0001AbCdEf", **elements):
    return message(
        fan, MsgType="image", PicUrl="http://mmbiz.qpic.cn/x/0", MediaId=media_id, MsgId=msg_id, **elements
    )


def text(msg_id, content="hello", fan=FAN):
    return message(fan, MsgType="text", Content=content, MsgId=msg_id)


def query(*encrypt, token=THROWAWAY.token, timestamp=None, nonce="998877665"):
    """The query of a push, dict; with the Encrypt text also msg_signature."""
    timestamp = str(int(time.time()) if timestamp is None else timestamp)
    signed = {"signature": sign(token, timestamp, nonce), "timestamp": timestamp, "nonce": nonce}
    if encrypt:
        signed |= {"encrypt_type": "aes", "msg_signature": sign(token, timestamp, nonce, *encrypt)}
    return signed


def plain(xml, **signed):
    """(path with query, body) of a push in plaintext mode; `xml` str or bytes."""
    return f"/wechat?{urlencode(query(**signed))}", xml.encode() if isinstance(xml, str) else xml


def safe(xml, envelope=ENVELOPE, compat=False, **signed):
    """The same in safe mode, or in compat mode."""
    data = xml.encode() if isinstance(xml, str) else xml
    encrypt = envelope.encrypt(data, secrets.token_bytes(16))
    inner = (
        data.removeprefix(b"<xml>").removesuffix(b"</xml>")
        if compat
        else element("ToUserName", THROWAWAY.original_id).encode()
    )
    return (
        f"/wechat?{urlencode(query(encrypt, **signed))}",
        b"<xml>%b%b</xml>" % (inner, element("Encrypt", encrypt).encode()),
    )
