"""Judges a bot's answer: would the platform show it to the fan, and what would the fan see?

Knows the passive replies (被动回复), the sealed envelope around them, and which media a reply may name.
It must not know HTTP time-outs or repeats. An answer that the platform is known to show against its own documents
passes with a note. An unknown case is refused, so that a reply without a note is safe to send.
https://developers.weixin.qq.com/doc/subscription/guide/product/message/Passive_user_reply_message.html
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from lxml import etree

from .account import Account
from .cipher import CipherError, Envelope, sign
from .errors import ERRMSG, Words
from .media import Media

TEXT_BYTES = 2047
"""The platform cuts a longer text here; its documents say 2048."""
ARTICLES_AFTER_EVENT = 8
_COMMON = ("ToUserName", "FromUserName", "CreateTime", "MsgType")
_SEALED = ("Encrypt", "MsgSignature", "TimeStamp", "Nonce")
_KINDS = {"text": "文本", "image": "图片", "voice": "语音", "video": "视频", "music": "音乐", "news": "图文"}
_WHITE = b" \t\r\n"


@dataclass(frozen=True)
class Shown:
    """What the fan's chat shows."""

    type: str
    content: str | None = None
    media_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`verdict` is reply, silent or refused (timeout is the sender's word); `why` says it in words.

    `notes` say what is against the documents although the platform takes it. `opened` is the reply's plain XML, if
    there is one, even of a refused reply. `shown` is None when the fan sees nothing.
    """

    verdict: str
    why: Words
    notes: tuple[Words, ...] = ()
    opened: str | None = None
    shown: Shown | None = None


class _RefusedError(Exception):
    """Why the platform would not show this answer."""

    def __init__(self, en: str, zh: str) -> None:
        self.words = Words(en, zh)
        super().__init__(en)


class Judge:
    """Judges answers for one account; `find_media` gives valid media by id, or None."""

    def __init__(self, account: Account, find_media: Callable[[str], Media | None]) -> None:
        self._account = account
        self._envelope = None if account.aes_key is None else Envelope(account.aes_key, account.appid)
        self._find_media = find_media

    def judge(
        self,
        body: bytes,
        *,
        mode: str,
        openid: str,
        is_event: bool,
        nonce: str,
        own_video_reply: bool = False,
    ) -> Verdict:
        """The verdict on the body of an HTTP 200. `nonce` is the push's own.

        `own_video_reply`: whether the platform shows a video by the MediaId that a fan's own video came with.
        """
        if not body:
            return Verdict(verdict="silent", why=Words("empty answer", "空内容：不回复"))
        if body == b"success":
            return Verdict(verdict="silent", why=Words("success", "success：不回复"))
        opened: bytes | None = None
        notes: list[Words] = []
        try:
            root = _parse(body, notes)
            if root.find("Encrypt") is not None:
                opened = self._open(root, mode, nonce, notes)
                root = _parse(opened, notes)
            elif mode == "safe":
                raise _RefusedError(
                    "plain XML although the account is in safe mode: the reply must be encrypted",
                    "账号处于安全模式，回复必须加密，却收到了明文 XML",
                )
            else:
                opened = body
            kind, shown = self._read(root, openid, is_event, own_video_reply, notes)
        except _RefusedError as refusal:
            text = None if opened is None else opened.decode(errors="backslashreplace")
            return Verdict(verdict="refused", why=refusal.words, notes=tuple(notes), opened=text)
        why = Words(f"well-formed {kind} reply", f"格式正确的{_KINDS.get(kind, kind)}回复")
        return Verdict(verdict="reply", why=why, notes=tuple(notes), opened=opened.decode(), shown=shown)

    def _open(self, root: etree._Element, mode: str, nonce: str, notes: list[Words]) -> bytes:
        if mode == "plain" or self._envelope is None:
            raise _RefusedError("an encrypted reply to a plaintext push", "推送是明文，回复却加密了")
        parts = {name: _text(root, name) for name in _SEALED}
        _check_time("TimeStamp", parts["TimeStamp"], 18, notes)  # 18: .NET's ticks
        if parts["Nonce"] != nonce:
            notes.append(Words("Nonce is not the one of the push", "Nonce 不是推送里的那个"))
        expected = sign(self._account.token, parts["TimeStamp"], parts["Nonce"], parts["Encrypt"])
        if parts["MsgSignature"] != expected:
            raise _RefusedError("MsgSignature does not match", "MsgSignature 不正确")
        try:
            return self._envelope.decrypt(parts["Encrypt"])
        except CipherError as error:
            raise _RefusedError(
                f"the encrypted reply does not open: {error}", f"加密的回复无法解密：{error}"
            ) from None

    def _read(
        self, root: etree._Element, openid: str, is_event: bool, own_video_reply: bool, notes: list[Words]
    ) -> tuple[str, Shown | None]:
        values = {name: _text(root, name) for name in _COMMON}
        for name, expected, en, zh in (
            ("ToUserName", openid, "the fan's OpenID", "粉丝的 OpenID"),
            ("FromUserName", self._account.original_id, "the account's original ID", "公众号的原始 ID"),
        ):
            if values[name] != expected:
                raise _RefusedError(
                    f"{name} is not {en}: the two names must be swapped",
                    f"{name} 不是{zh}：两个名字须对调",
                )
        _check_time("CreateTime", values["CreateTime"], 13, notes)
        kind = values["MsgType"]
        match kind:
            case "text":
                return kind, Shown(kind, _cut(_text(root, "Content"), notes))
            case "image" | "voice" | "video":
                part = _part(root, kind.capitalize())
                media = self._living(part, "MediaId", kind)
                if kind == "video" and media.from_fan and not own_video_reply:
                    raise _RefusedError(
                        "MediaId is that of a fan's own video, which the platform does not show: "
                        "upload the video and reply with the new MediaId (rule own_video_reply)",
                        "MediaId 属于粉丝自己发来的视频，平台无法展示：请先上传该视频，"
                        "用新的 MediaId 回复（规则 own_video_reply）",
                    )
                return kind, Shown(kind, _joined(part, "Title", "Description"), media.media_id)
            case "music":
                part = _part(root, "Music")
                thumb = None
                if part.find("ThumbMediaId") is None:
                    notes.append(Words("music without ThumbMediaId", "音乐回复缺少 ThumbMediaId"))
                else:
                    thumb = self._living(part, "ThumbMediaId", "thumb").media_id
                return kind, Shown(kind, _joined(part, "Title", "Description", "MusicUrl"), thumb)
            case "news":
                return kind, Shown(kind, _articles(root, ARTICLES_AFTER_EVENT if is_event else 1, notes))
            case "transfer_customer_service":
                if root.find("TransInfo") is not None:
                    _text(_part(root, "TransInfo"), "KfAccount")
                return kind, None
            case "transfer_biz_ai_ivr":
                return kind, None
        raise _RefusedError(f"MsgType {kind[:40]!r} is not a reply", f"MsgType {kind[:40]!r} 不能用于回复")

    def _living(self, part: etree._Element, name: str, kind: str) -> Media:
        media = self._find_media(_text(part, name))
        if media is None:
            raise _RefusedError(
                f"{name} is unknown or older than three days: 40007 {ERRMSG[40007]} "
                "(the sandbox has no permanent material)",
                f"{name} 不存在或已超过三天：40007 {ERRMSG[40007]}（沙箱没有永久素材）",
            )
        if media.type != kind:
            raise _RefusedError(
                f"{name} is a {media.type}, not a {kind}", f"{name} 的类型是 {media.type}，应为 {kind}"
            )
        return media


def _parse(body: bytes, notes: list[Words]) -> etree._Element:
    xml = body.lstrip(_WHITE)
    if not xml.startswith(b"<xml"):
        beginning = _beginning(body)
        raise _RefusedError(
            f"not an XML reply: it begins with {beginning.en}", f"不是 XML 回复：开头是{beginning.zh}"
        )
    if len(xml) < len(body):
        notes.append(Words("white space before <xml>", "<xml> 之前有空白"))
    try:
        xml.decode()
        parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
        root = etree.fromstring(xml, parser)
    except UnicodeDecodeError:
        raise _RefusedError("not UTF-8", "不是 UTF-8") from None
    except etree.XMLSyntaxError as error:
        raise _RefusedError(f"malformed XML: {error.msg}", f"XML 格式错误：{error.msg}") from None
    if root.tag != "xml":
        raise _RefusedError("the root element is not xml", "根元素不是 xml")
    return root


def _beginning(body: bytes) -> Words:
    if body.startswith(b"\xef\xbb\xbf"):
        return Words("a byte order mark", "字节顺序标记（BOM）")
    if body.isspace():
        return Words("white space, and there is nothing else", "空白，且别无他物")
    if body.lstrip()[:1] in (b"{", b"["):
        return Words("JSON", " JSON")
    start = ascii(body[:20].decode(errors="replace"))
    return Words(start, f" {start}")


def _only(parent: etree._Element, name: str) -> etree._Element:
    found = parent.findall(name)
    if not found:
        raise _RefusedError(f"{name} is missing", f"缺少 {name}")
    if len(found) > 1:
        raise _RefusedError(f"{name} is there {len(found)} times", f"{name} 出现了 {len(found)} 次")
    return found[0]


def _part(parent: etree._Element, name: str) -> etree._Element:
    """An element that holds others and no text of its own."""
    element = _only(parent, name)
    if (element.text or "").strip() or not len(element):
        raise _RefusedError(f"{name} must hold elements", f"{name} 里必须是元素")
    return element


def _text(parent: etree._Element, name: str, *, may_be_empty: bool = False) -> str:
    element = _only(parent, name)
    if len(element):
        raise _RefusedError(f"{name} must hold text alone", f"{name} 里只能是文本")
    if not (element.text or "").strip() and not may_be_empty:
        raise _RefusedError(f"{name} is empty", f"{name} 为空")
    return element.text or ""


def _check_time(name: str, text: str, most_digits: int, notes: list[Words]) -> None:
    """Unix seconds have ten digits. Other lengths pass with a note if bots in production send them."""
    if not re.fullmatch("[0-9]+", text):
        raise _RefusedError(f"{name} is not a whole number", f"{name} 不是整数")
    if len(text) > most_digits:
        raise _RefusedError(
            f"{name} has {len(text)} digits: {most_digits} at most",
            f"{name} 有 {len(text)} 位，最多 {most_digits} 位",
        )
    if len(text) > 10:
        notes.append(
            Words(f"{name} has {len(text)} digits: no seconds", f"{name} 有 {len(text)} 位，不是秒数")
        )


def _cut(content: str, notes: list[Words]) -> str:
    """What the platform shows of a text: whole characters within its limit."""
    data = content.encode()
    if len(data) <= TEXT_BYTES:
        return content
    notes.append(
        Words(
            f"Content has {len(data)} bytes: cut at {TEXT_BYTES}",
            f"Content 有 {len(data)} 字节，在 {TEXT_BYTES} 字节处截断",
        )
    )
    return data[:TEXT_BYTES].decode(errors="ignore")


def _joined(part: etree._Element, *names: str) -> str | None:
    """The optional elements that are present, one on each line."""
    present = [_text(part, name, may_be_empty=True) for name in names if part.find(name) is not None]
    return "\n".join(filter(None, present)) or None


def _articles(root: etree._Element, most: int, notes: list[Words]) -> str:
    count = _text(root, "ArticleCount")
    articles = _part(root, "Articles")
    items = articles.findall("item")
    if len(items) != len(articles):
        raise _RefusedError("Articles holds something that is not an item", "Articles 里有不是 item 的元素")
    if count != str(len(items)):
        raise _RefusedError("ArticleCount is not the number of items", "ArticleCount 与 item 的数量不符")
    if len(items) > most:
        notes.append(
            Words(
                f"{len(items)} articles: only {most} shown here", f"{len(items)} 条图文，这里只显示 {most} 条"
            )
        )
    missing = dict.fromkeys(("Description", "PicUrl", "Url"), False)
    shown = []
    for item in items:
        texts = {"Title": _text(item, "Title")}
        for name in missing:
            if item.find(name) is None:
                missing[name] = True
            else:
                texts[name] = _text(item, name, may_be_empty=True)
        shown.append(f"{texts['Title']}\n{texts.get('Url', '')}".strip())
    absent = ", ".join(name for name, is_missing in missing.items() if is_missing)
    if absent:
        notes.append(Words(f"an item without {absent}", f"有 item 缺少 {absent}"))
    return "\n".join(shown[:most])
