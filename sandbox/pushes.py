"""The XML of what a fan does, element by element as the platform pushes it.

Knows the message and event kinds and their elements. It must not know signatures, encryption or HTTP.
Kinds that are not known here are pushed with the common elements alone: a bot must bear them.
https://developers.weixin.qq.com/doc/service/guide/product/message/Receiving_standard_messages.html
"""

import re
from dataclasses import dataclass
from typing import Final

from .errors import ControlError
from .media import Media

MEDIA_TYPES: Final[dict[str, str]] = {
    "image": "image",
    "voice": "voice",
    "video": "video",
    "shortvideo": "video",
}
"""Message type -> the type of the media that it carries."""

_ILLEGAL: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_LOCATION: Final = re.compile(
    r"\s*(-?\d+(?:\.\d+)?)\s*,\s*(-?\d+(?:\.\d+)?)\s*(?:,\s*(\d+)\s*)?(?:,(.*))?", re.S
)
_PLACE: Final = "上海市黄浦区测试路 1 号"


@dataclass(frozen=True, kw_only=True)
class Action:
    """What a fan does. Which fields count depends on `type`; for an event `event` is its name.

    `content` is the text; for a location "LATITUDE,LONGITUDE,SCALE,LABEL" or the label alone; for a link
    its title, description and address on a line each; for an event its result (what was scanned, a status).
    """

    openid: str
    type: str
    content: str | None = None
    event: str | None = None
    event_key: str | None = None
    media_id: str | None = None
    thumb_media_id: str | None = None
    media: Media | None = None
    picture_url: str = ""
    msg_id: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z_]{1,64}", self.type):
            raise ControlError(
                "type: text, image, voice, video, shortvideo, location, link, event or the like"
            )
        if self.type == "event" and not self.event:
            raise ControlError("event: the name of the event, like subscribe or CLICK")
        if self.type in MEDIA_TYPES and not self.media_id:
            raise ControlError(f"{self.type}: needs a file (a multipart part with a filename) or a media_id")
        if self.type == "text" and self.content is None:
            raise ControlError("content: the text that the fan sends")
        for name in ("openid", "content", "event", "event_key", "media_id"):
            if _ILLEGAL.search(getattr(self, name) or ""):
                raise ControlError(f"{name}: holds characters that XML 1.0 does not allow")

    @property
    def summary(self) -> str | None:
        """What a chat shows of it."""
        if self.type == "event":
            return f"{self.event} {self.event_key or ''}".strip()
        return self.content


def plain_elements(action: Action, to_user_name: str, create_time: int) -> str:
    """The elements of the push, without the `<xml>` around them."""
    parts = [
        cdata("ToUserName", to_user_name),
        cdata("FromUserName", action.openid),
        element("CreateTime", create_time),
        cdata("MsgType", action.type),
    ]
    if action.type == "event":
        parts += _event(action)
    else:
        parts += _message(action)
        parts.append(element("MsgId", action.msg_id))
        if action.type == "voice" and action.media is not None and action.media.extension == "amr":
            parts.append(
                cdata("MediaId16K", action.media.media_id)
            )  # the same file: nothing is resampled here
    return "".join(parts)


def cdata(name: str, value: str | None) -> str:
    """An element with a text, whatever is in it."""
    escaped = (value or "").replace("]]>", "]]]]><![CDATA[>")
    return f"<{name}><![CDATA[{escaped}]]></{name}>"


def element(name: str, inner: object) -> str:
    """An element with a number, or with elements that are XML already."""
    return f"<{name}>{inner}</{name}>"


def _message(action: Action) -> list[str]:
    media_id = cdata("MediaId", action.media_id)
    match action.type:
        case "image":
            return [cdata("PicUrl", action.picture_url), media_id]
        case "voice":
            found = action.media.extension if action.media is not None else "amr"
            return [media_id, cdata("Format", found if found in ("speex", "mp3") else "amr")]
        case "video" | "shortvideo":
            return [media_id, cdata("ThumbMediaId", action.thumb_media_id)]
        case "location":
            latitude, longitude, scale, label = _place(action.content)
            return [
                element("Location_X", latitude),
                element("Location_Y", longitude),
                element("Scale", scale),
                cdata("Label", label),
            ]
        case "link":
            title, description, url = [*(action.content or "").split("\n", 2), "", ""][:3]
            return [cdata("Title", title), cdata("Description", description), cdata("Url", url)]
        case _:
            return [] if action.content is None else [cdata("Content", action.content)]


def _event(action: Action) -> list[str]:
    event = cdata("Event", action.event)
    key = cdata("EventKey", action.event_key)
    ticket = cdata("Ticket", "gQSandboxTicket==")
    match (action.event or "").lower():
        case "subscribe":
            return [event, key, ticket] if action.event_key else [event]
        case "scan":
            return [event, key, ticket]
        case "location":
            latitude, longitude, _, _ = _place(action.content)
            place = [element("Latitude", latitude), element("Longitude", longitude)]
            return [event, *place, element("Precision", "35.000000")]
        case "view" | "view_miniprogram":
            return [event, key, element("MenuId", 410000001)]
        case "scancode_push" | "scancode_waitmsg":
            result = cdata("ScanType", "qrcode") + cdata("ScanResult", action.content or "ORDER-0007")
            return [event, key, element("ScanCodeInfo", result)]
        case "pic_sysphoto" | "pic_photo_or_album" | "pic_weixin":
            item = element("item", cdata("PicMd5Sum", "0cc175b9c0f1b6a831c399e269772661"))
            return [event, key, element("SendPicsInfo", element("Count", 1) + element("PicList", item))]
        case "location_select":
            latitude, longitude, scale, label = _place(action.content)
            place = [cdata("Location_X", latitude), cdata("Location_Y", longitude), cdata("Scale", scale)]
            info = "".join([*place, cdata("Label", label), cdata("Poiname", "")])
            return [event, key, element("SendLocationInfo", info)]
        case "templatesendjobfinish":
            return [event, element("MsgID", 2000000007), cdata("Status", action.content or "success")]
        case _:
            return [event] if action.event_key is None else [event, key]


def _place(content: str | None) -> tuple[str, str, str, str]:
    found = _LOCATION.fullmatch(content or "")
    if found is None:
        return "31.230416", "121.473701", "16", content or _PLACE
    return found[1], found[2], found[3] or "16", found[4] or _PLACE
