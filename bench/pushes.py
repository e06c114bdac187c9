"""Pushes as the platform sends them, made before anything is measured, and the check of what comes back.

Knows the platform's side: signatures, envelopes and the form of an echo. Written with the sandbox's cipher, not with
the server's own. Every push is a picture from a fan; its MsgId, OpenID and MediaId occur once in a run.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from lxml import etree

from bench.account import AES_KEY, APPID, ORIGINAL_ID, TOKEN
from sandbox.cipher import CipherError, Envelope, sign

Mode = Literal["plain", "safe"]

_ENVELOPE = Envelope(AES_KEY, APPID)
_NUMBERS = itertools.count(1)
_FIRST_MSG_ID = time.time_ns() & ~0xFFFFFFFF  # 64 bits, as the platform's; two runs do not meet


@dataclass(frozen=True)
class Push:
    """One request, ready for the socket, and what it asks."""

    msg_id: str
    sender: str
    media_id: str
    create_time: int
    mode: Mode
    request: bytes = field(repr=False)


def new(mode: Mode = "plain") -> Push:
    """A push that was not sent before."""
    number = next(_NUMBERS)
    return _made(
        str(_FIRST_MSG_ID + number), f"oBench{number:022d}", f"MEDIA-{number:058d}", int(time.time()), mode
    )


def again(push: Push) -> Push:
    """The same message delivered once more: signed anew, as a repeat is."""
    return _made(push.msg_id, push.sender, push.media_id, push.create_time, push.mode)


def _made(msg_id: str, sender: str, media_id: str, create_time: int, mode: Mode) -> Push:
    xml = (
        f"<xml><ToUserName><![CDATA[{ORIGINAL_ID}]]></ToUserName>"
        f"<FromUserName><![CDATA[{sender}]]></FromUserName><CreateTime>{create_time}</CreateTime>"
        "<MsgType><![CDATA[image]]></MsgType>"
        f"<PicUrl><![CDATA[http://mmbiz.qpic.cn/mmbiz_jpg/{media_id}/0]]></PicUrl>"
        f"<MediaId><![CDATA[{media_id}]]></MediaId><MsgId>{msg_id}</MsgId></xml>"
    ).encode()
    timestamp, nonce = str(int(time.time())), str(secrets.randbelow(10**10))
    query = f"signature={sign(TOKEN, timestamp, nonce)}&timestamp={timestamp}&nonce={nonce}&openid={sender}"
    if mode == "safe":
        encrypted = _ENVELOPE.encrypt(xml, secrets.token_bytes(16))
        query += f"&encrypt_type=aes&msg_signature={sign(TOKEN, timestamp, nonce, encrypted)}"
        xml = (
            f"<xml><ToUserName><![CDATA[{ORIGINAL_ID}]]></ToUserName>"
            f"<Encrypt><![CDATA[{encrypted}]]></Encrypt></xml>"
        ).encode()
    head = (
        f"POST /wechat?{query} HTTP/1.1\r\nHost: bot.example\r\nUser-Agent: Mozilla/4.0\r\nAccept: */*\r\n"
        f"Content-Type: text/xml\r\nContent-Length: {len(xml)}\r\n\r\n"
    )
    return Push(msg_id, sender, media_id, create_time, mode, head.encode() + xml)


def fault(push: Push, body: bytes) -> str | None:
    """What is wrong with this answer to the push; None when it echoes the picture to its sender."""
    try:
        root = etree.fromstring(body)
        if push.mode == "safe":
            encrypted, timestamp, nonce = (_text(root, tag) for tag in ("Encrypt", "TimeStamp", "Nonce"))
            if _text(root, "MsgSignature") != sign(TOKEN, timestamp, nonce, encrypted):
                return "the envelope's signature is wrong"
            root = etree.fromstring(_ENVELOPE.decrypt(encrypted))
    except (etree.XMLSyntaxError, CipherError) as error:
        return f"not a reply: {error}"
    found = [_text(root, tag) for tag in ("ToUserName", "FromUserName", "MsgType", "Image/MediaId")]
    if found != [push.sender, ORIGINAL_ID, "image", push.media_id]:
        return f"not this picture to this fan: {found}"
    return None


def faults(pushes: Sequence[Push], bodies: Sequence[bytes], constant: bytes | None) -> list[str]:
    """The same for many; `constant` is what a contestant that does not look at the push answers."""
    if constant is not None:
        return ["not the constant" for body in bodies if body != constant]
    pairs = zip(pushes, bodies, strict=True)
    return [wrong for push, body in pairs if (wrong := fault(push, body)) is not None]


def _text(root: etree._Element, path: str) -> str:
    return (root.findtext(path) or "").strip()
