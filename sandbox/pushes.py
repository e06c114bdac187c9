"""The XML of what a fan does, element by element as the platform pushes it, or the XML in `raw`.

Knows the message and event kinds and their elements. It must not know signatures, encryption or HTTP.
What fans type is put raw into CDATA, as the platform is reported to do: control characters and `]]>` too.
https://developers.weixin.qq.com/doc/service/guide/product/message/Receiving_standard_messages.html
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass

from .errors import ControlError
from .media import Media

MEDIA_TYPES = {"image": "image", "voice": "voice", "video": "video", "shortvideo": "video"}
"""Message type -> the type of the media that it carries."""
TYPES = ("text", *MEDIA_TYPES, "location", "link", "event")

_LOCATION = re.compile(r"\s*(-?\d+(?:\.\d+)?)\s*,\s*(-?\d+(?:\.\d+)?)\s*(?:,\s*(\d+)\s*)?(?:,(.*))?", re.S)
_PLACE = "上海市黄浦区测试路 1 号"


@dataclass(frozen=True, kw_only=True)
class Action:
    """What a fan does. Which fields count depends on `type`; for an event `event` is its name.

    `content` is the text; for a location "LATITUDE,LONGITUDE,SCALE,LABEL" or the label alone; for a link
    its title, description and address on a line each; for an event its result (what was scanned, a status).
    A text with `event_key` is a tap on the entry of a menu message with that id.
    With `raw`, the whole XML, the other fields only say what the chat shows and which send rights follow.
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
    raw: bytes | None = None

    def __post_init__(self) -> None:
        if self.raw is not None:
            return
        if self.type not in TYPES:
            types = ", ".join(TYPES[:-1])
            raise ControlError(
                f"type: {types} or event; anything else as raw XML",
                f"type：{types} 或 event；其他类型请用 raw 发送 XML",
            )
        if self.type == "event" and not self.event:
            raise ControlError(
                "event: the name of the event, like subscribe or CLICK",
                "event：事件名，例如 subscribe 或 CLICK",
            )
        if self.type in MEDIA_TYPES and not self.media_id:
            raise ControlError(
                f"{self.type}: needs a file (a multipart part with a filename) or a media_id",
                f"{self.type}：需要文件（带 filename 的 multipart 部分）或 media_id",
            )
        if self.type == "text" and self.content is None:
            raise ControlError("content: the text that the fan sends", "content：粉丝发送的文本")

    @property
    def summary(self) -> str | None:
        """The text that the chat shows for it."""
        if self.type == "event":
            return f"{self.event or ''} {self.event_key or ''}".strip()
        return self.content


def to_xml(action: Action, to_user_name: str, create_time: int) -> bytes:
    """The push before any encryption."""
    if action.raw is not None:
        return action.raw
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
        if action.type == "text" and action.event_key:
            parts.append(cdata("bizmsgmenuid", action.event_key))
        if action.type == "voice" and action.media is not None and action.media.extension == "amr":
            # The platform resamples a voice for this; the sandbox gives the same file.
            parts.append(cdata("MediaId16K", action.media.media_id))
    return f"<xml>{''.join(parts)}</xml>".encode()


def as_base64(xml: bytes) -> str | None:
    """The bytes as Base64 if they are not UTF-8, so that JSON can hold them; otherwise None."""
    try:
        xml.decode()
    except UnicodeDecodeError:
        return base64.b64encode(xml).decode()
    return None


def as_editable(xml: bytes) -> str:
    """The XML for a text field in which \\xNN stands for a byte: for one that is not UTF-8, for a CR, which the field
    would make a line feed, and for the backslash of a literal \\xNN."""
    escaped = re.sub(rb"\r|\\(?=x[0-9a-fA-F]{2})", lambda found: b"\\x%02x" % found[0][0], xml)
    return escaped.decode(errors="backslashreplace")


def read(xml: bytes, name: str) -> str | None:
    """The text of the first element of that name, also in XML that no parser accepts; None if there is none."""
    found = re.search(rb"<%b>(.*?)</%b>" % (name.encode(), name.encode()), xml, re.DOTALL)
    if found is None:
        return None
    text = found[1].strip()
    if text.startswith(b"<![CDATA["):
        text = text.removeprefix(b"<![CDATA[").removesuffix(b"]]>")
    return text.decode(errors="replace")


# The last MsgId, since a fan may type such an element. CreateTime comes before that text.
_MSG_ID = re.compile(rb"(.*<MsgId>(?:<!\[CDATA\[)?)([0-9]{1,19})((?:]]>)?</MsgId>.*)", re.DOTALL)
_CREATE_TIME = re.compile(rb"(.*?<CreateTime>(?:<!\[CDATA\[)?)([0-9]+)((?:]]>)?</CreateTime>.*)", re.DOTALL)


def read_msg_id(xml: bytes) -> int | None:
    found = _MSG_ID.fullmatch(xml)
    return None if found is None else int(found[2])


def renewed(xml: bytes, msg_id: int, create_time: int) -> bytes:
    """The same message again, as if the fan had sent it once more: its MsgId and CreateTime are new."""
    for pattern, number in ((_MSG_ID, msg_id), (_CREATE_TIME, create_time)):
        xml = pattern.sub(rb"\g<1>%d\g<3>" % number, xml)
    return xml


def cdata(name: str, value: str | None) -> str:
    """An element with a text, put in raw."""
    return f"<{name}><![CDATA[{value or ''}]]></{name}>"


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
            return [cdata("Content", action.content)]


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
