"""What the platform pushes, as values: messages and events, complete and converted when they are built.

`parse_message` turns XML bytes into one of these classes; it tolerates what is missing, refuses what is no
message, and keeps what it does not know. It must not know encryption, storage or HTTP.

https://developers.weixin.qq.com/doc/offiaccount/Message_Management/Receiving_standard_messages.html
https://developers.weixin.qq.com/doc/offiaccount/Message_Management/Receiving_event_pushes.html
https://developers.weixin.qq.com/doc/offiaccount/Custom_Menus/Custom_Menu_Push.html
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Literal, TypeAlias, TypedDict

from lxml import etree

from wechat.elements import read
from wechat.errors import UnreadablePushError

MediaKind: TypeAlias = Literal["image", "voice", "video"]

#: An element's text, or its child elements by name. A name that repeats has a tuple of all its values, in order.
ElementValue: TypeAlias = "str | Mapping[str, ElementValue] | tuple[str | Mapping[str, ElementValue], ...]"

_MAX_OPENID = 128  # characters; real ones have 28
_MAX_TIME = 253402300799  # the end of the year 9999, the last second that datetime can show
_MILLISECONDS = 10**12  # as seconds that would be the year 33658
_MAX_ID_DIGITS = 20  # what 64 bits need
_MAX_DEPTH = 32  # the platform nests five deep


# Slots let a subclass have a field where its base has a property (media_id).
@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """What every push has. `create_time` is in unix seconds, 0 if the push has no time. `raw` is the push as it came:
    `parse_message` makes the same message of it again. `account` is the name given to `parse_message`."""

    to_user_name: str
    from_user_name: str
    create_time: int
    msg_type: str
    msg_id: int | None = None  # unsigned 64 bits
    msg_data_id: str | None = None
    idx: int | None = None
    account: str = ""
    raw: bytes = field(default=b"", repr=False)
    #: Hash of all its own elements, for a push without a MsgId.
    elements_hash: str = field(default="", repr=False)

    media_kind: ClassVar[MediaKind | None] = None

    @property
    def media_id(self) -> str | None:
        """The MediaId under which the fan's file can be fetched, if the message has one."""
        return None

    @property
    def dedupe_key(self) -> str:
        """Equal for repeated deliveries of one message, short and ASCII. Unique for one sender of one account.

        The platform tells messages apart by MsgId, and events by their second. Different events may share
        a second, and a repeat has the same elements: so the elements count too.
        https://developers.weixin.qq.com/doc/offiaccount/Message_Management/Receiving_standard_messages.html
        """
        return self._elements_key() if self.msg_id is None else f"m:{self.msg_id}"

    @property
    def former_dedupe_keys(self) -> tuple[str, ...]:
        """The keys under which earlier versions may have recorded this message."""
        return (self._time_key("", ""),) if self.msg_id is None else ()

    def _elements_key(self) -> str:
        return f"h:{self.create_time}:{self.elements_hash}"

    def _time_key(self, event: str, event_key: str) -> str:
        parts = f"{event}\0{event_key}\0{'' if self.msg_id is None else self.msg_id}"
        digest = hashlib.sha256(parts.encode("utf-8", "surrogatepass")).hexdigest()
        return f"e:{self.create_time}:{digest[:16]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class TextMessage(Message):
    """Text. `biz_msg_menu_id` is set when the fan tapped an entry of a menu message."""

    content: str
    biz_msg_menu_id: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageMessage(Message):
    """A picture. `pic_url` is its address at the platform."""

    media_kind: ClassVar[MediaKind | None] = "image"

    media_id: str = field()
    pic_url: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class VoiceMessage(Message):
    """Speech. `media_id` is the 8 kHz file, `media_id_16k` the better one; `recognition` its text, if any."""

    media_kind: ClassVar[MediaKind | None] = "voice"

    media_id: str = field()
    format: str = ""
    media_id_16k: str | None = None
    recognition: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoMessage(Message):
    """A video."""

    media_kind: ClassVar[MediaKind | None] = "video"

    media_id: str = field()
    thumb_media_id: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ShortVideoMessage(Message):
    """A short video (小视频). Its file is a video like any other."""

    media_kind: ClassVar[MediaKind | None] = "video"

    media_id: str = field()
    thumb_media_id: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LocationMessage(Message):
    """A place: `location_x` is the latitude, `location_y` the longitude, in degrees."""

    location_x: float
    location_y: float
    scale: int | None = None
    label: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkMessage(Message):
    """A shared page."""

    title: str = ""
    description: str = ""
    url: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileMessage(Message):
    """A file. It has no MediaId: there is no documented way to fetch it. `file_total_len` is in bytes."""

    title: str = ""
    description: str = ""
    file_key: str = ""
    file_md5: str = ""
    file_total_len: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MiniProgramPageMessage(Message):
    """A page of a mini program. Its thumbnail is not the fan's file, so there is no `media_id`."""

    title: str = ""
    app_id: str = ""
    page_path: str = ""
    thumb_url: str = ""
    thumb_media_id: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class UnknownMessage(Message):
    """A MsgType that is not known, or a known one whose elements do not fit it. `raw` has all of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event(Message):
    """What every event has: its name as sent, and the EventKey, empty where there is none."""

    event: str
    event_key: str = ""

    @property
    def dedupe_key(self) -> str:
        """As of every message. `msg_id` is not an event's id: result events name another message by it."""
        return self._elements_key()

    @property
    def former_dedupe_keys(self) -> tuple[str, ...]:
        """As of every message."""
        return (self._time_key(self.event, self.event_key),)


@dataclass(frozen=True, kw_only=True, slots=True)
class SubscribeEvent(Event):
    """A user follows the account. Via a QR code with a parameter: `event_key` is `qrscene_` and the scene's value."""

    ticket: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class UnsubscribeEvent(Event):
    """A fan no longer follows. A reply cannot reach them; the platform asks to delete their data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanEvent(Event):
    """A fan scanned a QR code with a parameter: `event_key` is the scene's value."""

    ticket: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LocationEvent(Event):
    """Where a fan is (degrees, and metres), reported by the client."""

    latitude: float
    longitude: float
    precision: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ClickEvent(Event):
    """A menu button was pressed: `event_key` is the button's key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewEvent(Event):
    """A menu button opened a page: `event_key` is its URL."""

    menu_id: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanCodeEvent(Event):
    """scancode_push and scancode_waitmsg: a menu button scanned a code."""

    scan_type: str
    scan_result: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PicEvent(Event):
    """pic_sysphoto, pic_photo_or_album and pic_weixin: the pictures follow as messages, these are their MD5s."""

    count: int
    pic_md5_sums: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class LocationSelectEvent(Event):
    """A menu button picked a place: `location_x` is the latitude, `location_y` the longitude, in degrees."""

    location_x: float
    location_y: float
    scale: int | None = None
    label: str = ""
    poi_name: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewMiniProgramEvent(Event):
    """A menu button opened a mini program: `event_key` is the page's path."""

    menu_id: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class OtherEvent(Event):
    """Any other event. `elements` holds what it has beside ToUserName, FromUserName, CreateTime, MsgType, Event.

    Nested elements are mappings, a name that repeats is a tuple. An element that repeats on some pushes only
    (`List`) is therefore a tuple on those only, as in the platform's own JSON.
    """

    elements: Mapping[str, ElementValue] = field(default_factory=dict, hash=False)


def parse_message(xml: bytes, account: str = "") -> Message:
    """The message or event in a push's XML, UTF-8. Only for pushes whose signature was checked.

    `account` is the caller's name for the receiving account, if it has several.

    White space around values and the order of elements do not matter. If an element repeats that should not, the
    first counts. XML that is not well-formed is read leniently. Raises DoctypeError,
    and UnreadablePushError for what cannot be read even so, or lacks a sender or a type.
    """
    if isinstance(xml, str):
        raise TypeError("a push is parsed from its bytes as they came, and not from text")
    elements = _Elements(read(xml))
    sender = elements.name("FromUserName")
    if not sender or len(sender) > _MAX_OPENID:
        raise UnreadablePushError("FromUserName is missing, or longer than an OpenID can be")
    msg_type = elements.name("MsgType")
    if not msg_type:
        raise UnreadablePushError("MsgType is missing")
    head = _Head(
        to_user_name=elements.name("ToUserName"),
        from_user_name=sender,
        create_time=_time(elements.name("CreateTime")),
        msg_type=msg_type,
        account=account,
        raw=xml,
    )
    if msg_type == "event":
        return _event(elements, head)
    return _ordinary(elements, head)


class _Head(TypedDict, total=False):
    to_user_name: str
    from_user_name: str
    create_time: int
    msg_type: str
    account: str
    msg_id: int | None
    msg_data_id: str | None
    idx: int | None
    raw: bytes
    elements_hash: str


class _EventHead(_Head, total=False):
    event: str
    event_key: str


class _Misfit(Exception):
    """An element of a known kind is missing or cannot be converted, so the message is not of that kind."""


def _whole(text: str) -> int | None:
    # Not int(): that accepts signs, underscores and any length.
    if text.isascii() and text.isdigit() and len(text) <= _MAX_ID_DIGITS:
        return int(text)
    return None


def _time(text: str) -> int:
    """Unix seconds, 0 for anything that is not a time. Thirteen digits are milliseconds."""
    number = _whole(text) or 0
    time = number // 1000 if number >= _MILLISECONDS else number
    return time if time <= _MAX_TIME else 0


def _id(text: str) -> int | None:
    """A MsgId, None for anything that is not a 64-bit number."""
    number = _whole(text)
    return number if number is not None and number < 2**64 else None


class _Elements:
    """The texts of an element's children, read once. Of several with the same name the first counts."""

    def __init__(self, parent: etree._Element) -> None:
        self.parent = parent
        self._texts: dict[str, str] = {}
        for child in parent:
            self._texts.setdefault(str(child.tag), child.text or "")

    def text(self, tag: str) -> str:
        """What people wrote, unchanged; empty if there is none."""
        return self._texts.get(tag, "")

    def name(self, tag: str) -> str:
        """A name, key or number: the white space around it is layout."""
        return self._texts.get(tag, "").strip()

    def inside(self, tag: str) -> _Elements:
        """The elements of a child that holds others."""
        child = self.parent.find(tag)
        if child is None:
            raise _Misfit(tag)
        return _Elements(child)

    def optional(self, tag: str) -> str | None:
        return self.name(tag) or None

    def needed(self, tag: str) -> str:
        name = self.name(tag)
        if not name:
            raise _Misfit(tag)
        return name

    def whole(self, tag: str) -> int | None:
        name = self.name(tag)
        if not name:
            return None
        number = _whole(name)
        if number is None:
            raise _Misfit(tag)
        return number

    def decimal(self, tag: str) -> float:
        try:
            number = float(self.name(tag))
        except ValueError:
            raise _Misfit(tag) from None
        if not math.isfinite(number):
            raise _Misfit(tag)
        return number


def _ordinary(elements: _Elements, head: _Head) -> Message:
    head["msg_id"] = _id(elements.name("MsgId"))
    if head["msg_id"] is None:
        head["elements_hash"] = _hash(elements.parent)
    head["msg_data_id"] = elements.optional("MsgDataId")
    head["idx"] = _whole(elements.name("Idx"))
    build = _MESSAGES.get(head["msg_type"])
    if build is None:
        return UnknownMessage(**head)
    try:
        return build(elements, head)
    except _Misfit:
        return UnknownMessage(**head)


def _text(elements: _Elements, head: _Head) -> Message:
    return TextMessage(
        content=elements.text("Content"), biz_msg_menu_id=elements.optional("bizmsgmenuid"), **head
    )


def _image(elements: _Elements, head: _Head) -> Message:
    return ImageMessage(media_id=elements.needed("MediaId"), pic_url=elements.name("PicUrl"), **head)


def _voice(elements: _Elements, head: _Head) -> Message:
    return VoiceMessage(
        media_id=elements.needed("MediaId"),
        format=elements.name("Format"),
        media_id_16k=elements.optional("MediaId16K"),
        recognition=elements.text("Recognition") or None,
        **head,
    )


def _video(elements: _Elements, head: _Head) -> Message:
    return VideoMessage(
        media_id=elements.needed("MediaId"), thumb_media_id=elements.optional("ThumbMediaId"), **head
    )


def _short_video(elements: _Elements, head: _Head) -> Message:
    return ShortVideoMessage(
        media_id=elements.needed("MediaId"), thumb_media_id=elements.optional("ThumbMediaId"), **head
    )


def _location(elements: _Elements, head: _Head) -> Message:
    return LocationMessage(
        location_x=elements.decimal("Location_X"),
        location_y=elements.decimal("Location_Y"),
        scale=elements.whole("Scale"),
        label=elements.text("Label"),
        **head,
    )


def _link(elements: _Elements, head: _Head) -> Message:
    return LinkMessage(
        title=elements.text("Title"),
        description=elements.text("Description"),
        url=elements.name("Url"),
        **head,
    )


def _file(elements: _Elements, head: _Head) -> Message:
    return FileMessage(
        title=elements.text("Title"),
        description=elements.text("Description"),
        file_key=elements.name("FileKey"),
        file_md5=elements.name("FileMd5"),
        file_total_len=elements.whole("FileTotalLen"),
        **head,
    )


def _mini_program_page(elements: _Elements, head: _Head) -> Message:
    return MiniProgramPageMessage(
        title=elements.text("Title"),
        app_id=elements.name("AppId"),
        page_path=elements.name("PagePath"),
        thumb_url=elements.name("ThumbUrl"),
        thumb_media_id=elements.optional("ThumbMediaId"),
        **head,
    )


_MESSAGES: Mapping[str, Callable[[_Elements, _Head], Message]] = {
    "text": _text,
    "image": _image,
    "voice": _voice,
    "video": _video,
    "shortvideo": _short_video,
    "location": _location,
    "link": _link,
    "file": _file,
    "miniprogrampage": _mini_program_page,
}


def _event(elements: _Elements, head: _Head) -> Message:
    name = elements.name("Event")
    # Result events spell it MsgID. An event is not refused if that is no number.
    head["msg_id"] = _whole(elements.name("MsgID") or elements.name("MsgId"))
    head["elements_hash"] = _hash(elements.parent)
    event_head = _EventHead(event=name, event_key=elements.name("EventKey"), **head)
    build = _EVENTS.get(name.lower())
    if build is not None:
        try:
            return build(elements, event_head)
        except _Misfit:
            pass
    own = {tag: value for tag, value in _nested(elements.parent, 1).items() if tag not in _COMMON}
    return OtherEvent(elements=MappingProxyType(own), **event_head)


# A compat body that is read without a key contains Encrypt.
_COMMON = frozenset({"ToUserName", "FromUserName", "CreateTime", "MsgType", "Event", "Encrypt"})


def _nested(parent: etree._Element, depth: int) -> dict[str, ElementValue]:
    if depth > _MAX_DEPTH:
        raise UnreadablePushError("the XML is nested too deeply")
    found: dict[str, list[str | Mapping[str, ElementValue]]] = {}
    for child in parent:
        value = MappingProxyType(_nested(child, depth + 1)) if len(child) else (child.text or "")
        found.setdefault(str(child.tag), []).append(value)
    return {tag: values[0] if len(values) == 1 else tuple(values) for tag, values in found.items()}


# Left out of the hash: `dedupe_key` has them already, or they differ between deliveries of one message.
_NOT_HASHED = frozenset({"ToUserName", "FromUserName", "CreateTime", "Encrypt"})


def _hash(root: etree._Element) -> str:
    """A hash of the content, 32 hex digits: independent of order, layout and empty elements."""
    return _combined(b"", [child for child in root if child.tag not in _NOT_HASHED]).hex()[:32]


def _combined(name: bytes, children: Iterable[etree._Element]) -> bytes:
    parts = []
    for child in children:
        tag = str(child.tag).encode()
        if len(child):
            parts.append(_combined(tag, child))
        elif text := (child.text or "").strip():
            parts.append(hashlib.sha256(b"%b\0%b" % (tag, text.encode())).digest())
    return hashlib.sha256(b"%b\1%b" % (name, b"".join(sorted(parts)))).digest()


def _subscribe(elements: _Elements, head: _EventHead) -> Event:
    return SubscribeEvent(ticket=elements.optional("Ticket"), **head)


def _unsubscribe(_: _Elements, head: _EventHead) -> Event:
    return UnsubscribeEvent(**head)


def _scan(elements: _Elements, head: _EventHead) -> Event:
    return ScanEvent(ticket=elements.optional("Ticket"), **head)


def _location_report(elements: _Elements, head: _EventHead) -> Event:
    return LocationEvent(
        latitude=elements.decimal("Latitude"),
        longitude=elements.decimal("Longitude"),
        precision=elements.decimal("Precision") if elements.name("Precision") else None,
        **head,
    )


def _click(_: _Elements, head: _EventHead) -> Event:
    return ClickEvent(**head)


def _view(elements: _Elements, head: _EventHead) -> Event:
    return ViewEvent(menu_id=elements.whole("MenuId"), **head)


def _scan_code(elements: _Elements, head: _EventHead) -> Event:
    info = elements.inside("ScanCodeInfo")
    return ScanCodeEvent(scan_type=info.name("ScanType"), scan_result=info.text("ScanResult"), **head)


def _pic(elements: _Elements, head: _EventHead) -> Event:
    pictures = elements.inside("SendPicsInfo")
    sums = tuple((found.text or "").strip() for found in pictures.parent.iterfind("PicList/item/PicMd5Sum"))
    count = pictures.whole("Count")
    return PicEvent(count=len(sums) if count is None else count, pic_md5_sums=sums, **head)


def _location_select(elements: _Elements, head: _EventHead) -> Event:
    place = elements.inside("SendLocationInfo")
    return LocationSelectEvent(
        location_x=place.decimal("Location_X"),
        location_y=place.decimal("Location_Y"),
        scale=place.whole("Scale"),
        label=place.text("Label"),
        poi_name=place.text("Poiname"),
        **head,
    )


def _view_mini_program(elements: _Elements, head: _EventHead) -> Event:
    return ViewMiniProgramEvent(menu_id=elements.whole("MenuId"), **head)


# By lower-case name: the platform mixes its styles (SCAN, scancode_push).
_EVENTS: Mapping[str, Callable[[_Elements, _EventHead], Event]] = {
    "subscribe": _subscribe,
    "unsubscribe": _unsubscribe,
    "scan": _scan,
    "location": _location_report,
    "click": _click,
    "view": _view,
    "scancode_push": _scan_code,
    "scancode_waitmsg": _scan_code,
    "pic_sysphoto": _pic,
    "pic_photo_or_album": _pic,
    "pic_weixin": _pic,
    "location_select": _location_select,
    "view_miniprogram": _view_mini_program,
}
