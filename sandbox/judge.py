"""The strict reader of a bot's answer: would the platform show it to the fan, and what?

Knows the passive replies (被动回复), the sealed envelope around them, and which media a reply may name.
It must not know HTTP time-outs or repeats. Where the platform's own strictness is unknown the judge
refuses: an answer that passes here is safe to send.
https://developers.weixin.qq.com/doc/subscription/guide/product/message/Passive_user_reply_message.html
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from lxml import etree

from .account import Account
from .cipher import CipherError, Envelope, sign
from .media import Media

TEXT_BYTES: Final = 2048
NEWS_AFTER_EVENT: Final = 8
_COMMON: Final = ("ToUserName", "FromUserName", "CreateTime", "MsgType")
_SEALED: Final = ("Encrypt", "MsgSignature", "TimeStamp", "Nonce")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`verdict` is reply, silent or refused (timeout is the sender's word); `why` says it in words.

    `opened` is the reply's plain XML when there is one, also when it was refused. `shown` is None when
    the fan sees nothing, else the type, text and media_id of what appears in the chat.
    """

    verdict: str
    why: str
    opened: str | None = None
    shown: tuple[str, str | None, str | None] | None = None


class _Refused(Exception):
    """Why the platform would not show this answer."""


class Judge:
    """Judges answers for one account; `find_media` gives living media by id, or None."""

    def __init__(self, account: Account, find_media: Callable[[str], Media | None]) -> None:
        self._account = account
        self._envelope = account.aes_key and Envelope(account.aes_key, account.appid)
        self._find_media = find_media

    def judge(self, body: bytes, *, mode: str, openid: str, is_event: bool, nonce: str) -> Verdict:
        """The verdict on the body of an HTTP 200. `nonce` is the push's own."""
        if not body:
            return Verdict(verdict="silent", why="empty answer")
        if body == b"success":
            return Verdict(verdict="silent", why="success")
        opened: bytes | None = None
        try:
            root = _parse(body)
            if root.find("Encrypt") is not None:
                opened = self._open(root, mode, nonce)
                root = _parse(opened)
            elif mode == "safe":
                raise _Refused("plain XML although the account is in safe mode: the reply must be encrypted")
            else:
                opened = body
            kind, shown = self._read(root, openid, is_event)
        except _Refused as refusal:
            text = None if opened is None else opened.decode(errors="backslashreplace")
            return Verdict(verdict="refused", why=str(refusal), opened=text)
        return Verdict(verdict="reply", why=f"well-formed {kind} reply", opened=opened.decode(), shown=shown)

    def _open(self, root: etree._Element, mode: str, nonce: str) -> bytes:
        if mode == "plain" or not isinstance(self._envelope, Envelope):
            raise _Refused("an encrypted reply to a plaintext push")
        parts = {name: _text(root, name) for name in _SEALED}
        if not _whole(parts["TimeStamp"]):
            raise _Refused("TimeStamp is not a whole number")
        if parts["Nonce"] != nonce:
            raise _Refused("Nonce is not the one of the push")
        expected = sign(self._account.token, parts["TimeStamp"], parts["Nonce"], parts["Encrypt"])
        if parts["MsgSignature"] != expected:
            raise _Refused("MsgSignature does not match")
        try:
            return self._envelope.decrypt(parts["Encrypt"])
        except CipherError as error:
            raise _Refused(f"the encrypted reply does not open: {error}") from None

    def _read(
        self, root: etree._Element, openid: str, is_event: bool
    ) -> tuple[str, tuple[str, str | None, str | None] | None]:
        values = {name: _text(root, name) for name in _COMMON}
        if values["ToUserName"] != openid:
            raise _Refused("ToUserName is not the fan's OpenID: the two names must be swapped")
        if values["FromUserName"] != self._account.original_id:
            raise _Refused("FromUserName is not the account's original ID: the two names must be swapped")
        if not _whole(values["CreateTime"]):
            raise _Refused("CreateTime is not a whole number")
        kind = values["MsgType"]
        match kind:
            case "text":
                content = _text(root, "Content")
                if len(content.encode()) > TEXT_BYTES:
                    raise _Refused(f"Content is longer than {TEXT_BYTES} bytes")
                return kind, (kind, content, None)
            case "image" | "voice" | "video":
                part = _part(root, kind.capitalize())
                media_id = self._living(part, "MediaId", kind)
                return kind, (kind, _joined(part, "Title", "Description"), media_id)
            case "music":
                part = _part(root, "Music")
                thumb = self._living(part, "ThumbMediaId", "thumb")
                return kind, (kind, _joined(part, "Title", "Description", "MusicUrl"), thumb)
            case "news":
                return kind, (kind, _articles(root, NEWS_AFTER_EVENT if is_event else 1), None)
            case "transfer_customer_service":
                if root.find("TransInfo") is not None:
                    _text(_part(root, "TransInfo"), "KfAccount")
                return kind, None
            case "transfer_biz_ai_ivr":
                return kind, None
        raise _Refused(f"MsgType {kind[:40]!r} is not a reply")

    def _living(self, part: etree._Element, name: str, kind: str) -> str:
        media_id = _text(part, name)
        media = self._find_media(media_id)
        if media is None:
            raise _Refused(f"{name} is unknown or older than three days")
        if media.type != kind:
            raise _Refused(f"{name} is a {media.type}, not a {kind}")
        return media_id


def _parse(body: bytes) -> etree._Element:
    if not body.startswith(b"<xml"):
        raise _Refused(f"not an XML reply: it begins with {_beginning(body)}")
    try:
        body.decode()
        parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
        root = etree.fromstring(body, parser)
    except UnicodeDecodeError:
        raise _Refused("not UTF-8") from None
    except etree.XMLSyntaxError as error:
        raise _Refused(f"malformed XML: {error.msg}") from None
    if root.tag != "xml":
        raise _Refused("the root element is not xml")
    return root


def _beginning(body: bytes) -> str:
    if body.startswith(b"\xef\xbb\xbf"):
        return "a byte order mark"
    if body.isspace() or body[:1].isspace():
        return "white space"
    if body.lstrip()[:1] in (b"{", b"["):
        return "JSON"
    return ascii(body[:20].decode(errors="replace"))


def _only(parent: etree._Element, name: str) -> etree._Element:
    found = parent.findall(name)
    if len(found) != 1:
        raise _Refused(f"{name} is missing" if not found else f"{name} is there {len(found)} times")
    return found[0]


def _part(parent: etree._Element, name: str) -> etree._Element:
    """An element that holds others and no text of its own."""
    element = _only(parent, name)
    if (element.text or "").strip() or not len(element):
        raise _Refused(f"{name} must hold elements")
    return element


def _text(parent: etree._Element, name: str, *, may_be_empty: bool = False) -> str:
    element = _only(parent, name)
    if len(element):
        raise _Refused(f"{name} must hold text alone")
    if not (element.text or "").strip() and not may_be_empty:
        raise _Refused(f"{name} is empty")
    return element.text or ""


def _whole(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,12}", text) is not None


def _joined(part: etree._Element, *names: str) -> str | None:
    """The optional elements that are there, on a line each."""
    present = [_text(part, name, may_be_empty=True) for name in names if part.find(name) is not None]
    return "\n".join(filter(None, present)) or None


def _articles(root: etree._Element, most: int) -> str:
    count = _text(root, "ArticleCount")
    articles = _part(root, "Articles")
    items = articles.findall("item")
    if len(items) != len(articles):
        raise _Refused("Articles holds something that is not an item")
    if count != str(len(items)):
        raise _Refused("ArticleCount is not the number of items")
    if len(items) > most:
        raise _Refused(f"{len(items)} articles; {most} at most here")
    shown = []
    for item in items:
        texts: Mapping[str, str] = {
            name: _text(item, name, may_be_empty=name != "Title")
            for name in ("Title", "Description", "PicUrl", "Url")
        }
        shown.append(f"{texts['Title']}\n{texts['Url']}".strip())
    return "\n".join(shown)
