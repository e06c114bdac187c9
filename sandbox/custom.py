"""Customer-service messages (客服消息): which kinds there are, and what the fan sees of each.

Knows the bodies of message/custom/send. It must not know HTTP, nor whether the account may still send.
https://developers.weixin.qq.com/doc/service/api/customer/message/api_sendcustommessage
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import PlatformError
from .media import Media

TEXT_BYTES = 2048
FindMedia = Callable[[str], Media | None]


@dataclass(frozen=True)
class Sent:
    """What the fan's chat shows. `choices` are the entries of a menu message: id and text."""

    type: str
    content: str | None = None
    media_id: str | None = None
    choices: tuple[tuple[str, str], ...] = ()


def read_message(body: Mapping[str, Any], find_media: FindMedia, own_video: bool) -> Sent:
    """Raises PlatformError for a message that the platform would not take.

    `own_video`: whether the MediaId of a fan's own video can be sent.
    """
    kind = body.get("msgtype")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise PlatformError(40008)
    part = body.get(kind)
    if not isinstance(part, dict):
        raise PlatformError(47001)
    sent = _KINDS[kind](part, find_media)
    media = None if sent.media_id is None else find_media(sent.media_id)
    if kind == "video" and media is not None and media.from_fan and not own_video:
        raise PlatformError(40007)  # a fan's own video is not kept for sending
    return sent


def _text(part: Mapping[str, Any], _: FindMedia) -> Sent:
    content = part.get("content")
    if not isinstance(content, str) or not content:
        raise PlatformError(44004)
    if len(content.encode(errors="replace")) > TEXT_BYTES:
        raise PlatformError(45002)
    return Sent("text", content)


def _image(part: Mapping[str, Any], find: FindMedia) -> Sent:
    return Sent("image", None, _living(part, "media_id", find, "image"))


def _voice(part: Mapping[str, Any], find: FindMedia) -> Sent:
    return Sent("voice", None, _living(part, "media_id", find, "voice"))


def _video(part: Mapping[str, Any], find: FindMedia) -> Sent:
    if part.get("thumb_media_id"):
        _living(part, "thumb_media_id", find, "thumb")
    return Sent("video", _lines(part, "title", "description"), _living(part, "media_id", find, "video"))


def _music(part: Mapping[str, Any], find: FindMedia) -> Sent:
    thumb = _living(part, "thumb_media_id", find, "thumb")
    return Sent("music", _lines(part, "title", "description", "musicurl"), thumb)


def _news(part: Mapping[str, Any], _: FindMedia) -> Sent:
    articles = part.get("articles")
    if not isinstance(articles, list) or not articles:
        raise PlatformError(44003)
    if len(articles) > 1:
        raise PlatformError(45008)
    if not isinstance(articles[0], dict):
        raise PlatformError(47001)
    return Sent("news", _lines(articles[0], "title", "description", "url"))


def _msgmenu(part: Mapping[str, Any], _: FindMedia) -> Sent:
    entries = part.get("list")
    if not isinstance(entries, list) or not entries or not all(isinstance(one, dict) for one in entries):
        raise PlatformError(47001)
    choices = tuple((str(one.get("id", "")), str(one.get("content", ""))) for one in entries)
    if not all(key and content for key, content in choices):
        raise PlatformError(44004)
    texts = [part.get("head_content"), *(content for _, content in choices), part.get("tail_content")]
    return Sent("msgmenu", "\n".join(str(text) for text in texts if text), None, choices)


def _mpnews(part: Mapping[str, Any], _: FindMedia) -> Sent:
    raise PlatformError(40007)  # its media_id is permanent material, which the sandbox does not play


def _mpnewsarticle(part: Mapping[str, Any], _: FindMedia) -> Sent:
    return Sent("mpnewsarticle", _required(part, "article_id"))


def _wxcard(part: Mapping[str, Any], _: FindMedia) -> Sent:
    return Sent("wxcard", _required(part, "card_id"))


def _miniprogrampage(part: Mapping[str, Any], find: FindMedia) -> Sent:
    for name in ("appid", "pagepath"):
        _required(part, name)
    return Sent(
        "miniprogrampage",
        _lines(part, "title", "pagepath"),
        _living(part, "thumb_media_id", find, "image", "thumb"),
    )


_KINDS: dict[str, Callable[[Mapping[str, Any], FindMedia], Sent]] = {
    "text": _text,
    "image": _image,
    "voice": _voice,
    "video": _video,
    "music": _music,
    "news": _news,
    "msgmenu": _msgmenu,
    "mpnews": _mpnews,
    "mpnewsarticle": _mpnewsarticle,
    "wxcard": _wxcard,
    "miniprogrampage": _miniprogrampage,
}


def _living(part: Mapping[str, Any], name: str, find_media: FindMedia, *kinds: str) -> str:
    media_id = part.get(name)
    media = find_media(media_id) if isinstance(media_id, str) else None
    if media is None or media.type not in kinds:
        raise PlatformError(40007)
    return media.media_id


def _required(part: Mapping[str, Any], name: str) -> str:
    value = part.get(name)
    if not isinstance(value, str) or not value:
        raise PlatformError(40035)
    return value


def _lines(part: Mapping[str, Any], *names: str) -> str | None:
    return "\n".join(str(part[name]) for name in names if part.get(name)) or None
