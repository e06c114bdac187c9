"""Passive replies: what a handler may answer, and the XML of each.

A reply is checked when it is built (ReplyError), so that rendering only has to check the message. Every value is
text without what XML cannot carry, and passes the one escaping function. It must not know handlers, encryption or
HTTP. No reply at all, the platform's `success`, is None and has no class here.

https://developers.weixin.qq.com/doc/subscription/guide/product/message/Passive_user_reply_message.html
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TypeAlias

from wechat.elements import cdata, legal, parse
from wechat.errors import ReplyError
from wechat.messages import Event, Message

#: Bytes of UTF-8. The platform's page says 2048, but only one byte less arrives whole.
MAX_TEXT_BYTES = 2047
_MAX_ARTICLES_AFTER_EVENT = 8
_MAX_ARTICLES_AFTER_MESSAGE = 1


@dataclass(frozen=True, slots=True)
class TextReply:
    """Text. `content` becomes what XML can carry (line ends as \\n) and at most 2047 bytes, cut on a character.

    `cut_from` is its length in bytes before the cut, None if it was not cut.
    """

    content: str
    cut_from: int | None = field(default=None, init=False, compare=False)

    def __post_init__(self) -> None:
        _clean_texts(self)
        _need(self.content, "a text reply needs content: answer None to say nothing")
        data = self.content.encode()
        if len(data) > MAX_TEXT_BYTES:
            object.__setattr__(self, "content", data[:MAX_TEXT_BYTES].decode(errors="ignore"))
            object.__setattr__(self, "cut_from", len(data))

    def _xml(self) -> str:
        return f"<MsgType><![CDATA[text]]></MsgType><Content>{cdata(self.content)}</Content>"


@dataclass(frozen=True, slots=True)
class ImageReply:
    """A picture, by its MediaId: an uploaded one, a permanent one, or the fan's own."""

    media_id: str

    def __post_init__(self) -> None:
        _clean_texts(self)
        _need(self.media_id, "an image reply needs a media_id")

    def _xml(self) -> str:
        return f"<MsgType><![CDATA[image]]></MsgType><Image><MediaId>{cdata(self.media_id)}</MediaId></Image>"


@dataclass(frozen=True, slots=True)
class VoiceReply:
    """Speech, by its MediaId."""

    media_id: str

    def __post_init__(self) -> None:
        _clean_texts(self)
        _need(self.media_id, "a voice reply needs a media_id")

    def _xml(self) -> str:
        return f"<MsgType><![CDATA[voice]]></MsgType><Voice><MediaId>{cdata(self.media_id)}</MediaId></Voice>"


@dataclass(frozen=True, slots=True)
class VideoReply:
    """A video, by its MediaId."""

    media_id: str
    title: str | None = None
    description: str | None = None

    def __post_init__(self) -> None:
        _clean_texts(self)
        _need(self.media_id, "a video reply needs a media_id")

    def _xml(self) -> str:
        return (
            "<MsgType><![CDATA[video]]></MsgType>"
            f"<Video><MediaId>{cdata(self.media_id)}</MediaId>"
            f"{_optional('Title', self.title)}{_optional('Description', self.description)}</Video>"
        )


@dataclass(frozen=True, slots=True)
class MusicReply:
    """A piece of music. `thumb_media_id` is the picture shown, if any; `hq_music_url` is used on Wi-Fi."""

    thumb_media_id: str | None = None
    title: str | None = None
    description: str | None = None
    music_url: str | None = None
    hq_music_url: str | None = None

    def __post_init__(self) -> None:
        _clean_texts(self)
        if self.thumb_media_id is not None:  # the platform refuses an empty one
            _need(self.thumb_media_id, "an empty thumb_media_id cannot be sent: leave it out")
        elif all(each is None for each in (self.title, self.description, self.music_url, self.hq_music_url)):
            raise ReplyError("a music reply needs one of its values")

    def _xml(self) -> str:
        return (
            "<MsgType><![CDATA[music]]></MsgType>"
            f"<Music>{_optional('Title', self.title)}{_optional('Description', self.description)}"
            f"{_optional('MusicUrl', self.music_url)}{_optional('HQMusicUrl', self.hq_music_url)}"
            f"{_optional('ThumbMediaId', self.thumb_media_id)}</Music>"
        )


@dataclass(frozen=True, slots=True)
class Article:
    """One item of a news reply. `pic_url` is a JPG or PNG, about 360x200."""

    title: str
    description: str = ""
    pic_url: str = ""
    url: str = ""

    def __post_init__(self) -> None:
        _clean_texts(self)
        _need(self.title, "an article needs a title")

    def _xml(self) -> str:
        return (
            f"<item><Title>{cdata(self.title)}</Title><Description>{cdata(self.description)}</Description>"
            f"<PicUrl>{cdata(self.pic_url)}</PicUrl><Url>{cdata(self.url)}</Url></item>"
        )


@dataclass(frozen=True, slots=True)
class NewsReply:
    """Articles: at most one in answer to a message, eight in answer to an event."""

    articles: tuple[Article, ...]

    def __post_init__(self) -> None:
        articles: object = self.articles
        if not isinstance(articles, tuple | list) or not all(isinstance(one, Article) for one in articles):
            raise ReplyError(f"a news reply needs a tuple of Article, not {articles!r:.80}")
        if not 1 <= len(self.articles) <= _MAX_ARTICLES_AFTER_EVENT:
            raise ReplyError(f"a news reply needs 1 to {_MAX_ARTICLES_AFTER_EVENT} articles")

    def _xml(self) -> str:
        items = "".join(article._xml() for article in self.articles)
        return (
            "<MsgType><![CDATA[news]]></MsgType>"
            f"<ArticleCount>{len(self.articles)}</ArticleCount><Articles>{items}</Articles>"
        )


@dataclass(frozen=True, slots=True)
class TransferReply:
    """Hands the message to the customer-service client, to the agent `kf_account` if one is named."""

    kf_account: str | None = None

    def __post_init__(self) -> None:
        _clean_texts(self)
        if self.kf_account is not None:
            _need(self.kf_account, "an empty kf_account cannot be sent: leave it out")

    def _xml(self) -> str:
        account = _optional("KfAccount", self.kf_account)
        return (
            "<MsgType><![CDATA[transfer_customer_service]]></MsgType>"
            f"{account and f'<TransInfo>{account}</TransInfo>'}"
        )


@dataclass(frozen=True, slots=True)
class AiTransferReply:
    """Hands the message to the account's own AI reply, which must be switched on in the console."""

    def _xml(self) -> str:
        return "<MsgType><![CDATA[transfer_biz_ai_ivr]]></MsgType>"


Reply: TypeAlias = (
    TextReply
    | ImageReply
    | VoiceReply
    | VideoReply
    | MusicReply
    | NewsReply
    | TransferReply
    | AiTransferReply
)


def render_reply(reply: Reply, message: Message, now: float) -> bytes:
    """The reply to `message` as plain XML, UTF-8, sender and receiver swapped. `now` is in unix seconds.

    Raises ReplyError for what is no reply, and for more than one article in answer to a message that is no event.
    """
    if not isinstance(reply, Reply):
        raise ReplyError(f"{type(reply).__name__} is no reply: write TextReply(...), or answer success")
    if isinstance(reply, NewsReply) and not isinstance(message, Event):
        surplus = len(reply.articles) - _MAX_ARTICLES_AFTER_MESSAGE
        if surplus > 0:
            raise ReplyError(f"a message is answered with one article: leave out {surplus}")
    return (
        f"<xml><ToUserName>{cdata(message.from_user_name)}</ToUserName>"
        f"<FromUserName>{cdata(message.to_user_name)}</FromUserName>"
        f"<CreateTime>{int(now)}</CreateTime>{reply._xml()}</xml>"
    ).encode()


def parse_reply(xml: bytes) -> Reply:
    """The reply from which `render_reply` made this XML. Raises ReplyError for other XML, and UnreadablePushError for
    anything that is not XML."""
    root = parse(xml)

    def text(path: str) -> str | None:
        return root.findtext(path)

    match text("MsgType"):
        case "text":
            return TextReply(text("Content") or "")
        case "image":
            return ImageReply(text("Image/MediaId") or "")
        case "voice":
            return VoiceReply(text("Voice/MediaId") or "")
        case "video":
            return VideoReply(text("Video/MediaId") or "", text("Video/Title"), text("Video/Description"))
        case "music":
            return MusicReply(
                text("Music/ThumbMediaId"),
                text("Music/Title"),
                text("Music/Description"),
                text("Music/MusicUrl"),
                text("Music/HQMusicUrl"),
            )
        case "news":
            fields = ("Title", "Description", "PicUrl", "Url")
            items = [
                [item.findtext(field) or "" for field in fields] for item in root.iterfind("Articles/item")
            ]
            return NewsReply(tuple(Article(*item) for item in items))
        case "transfer_customer_service":
            return TransferReply(text("TransInfo/KfAccount"))
        case "transfer_biz_ai_ivr":
            return AiTransferReply()
    raise ReplyError("the XML is no reply")


def _clean_texts(reply: Reply | Article) -> None:
    """Leaves out of each field what XML cannot carry. Raises ReplyError for one that is no text."""
    for one in fields(reply):
        value: object = getattr(reply, one.name)
        if value is None and not isinstance(one.default, str):
            continue  # it may be left out, or `_need` says what to write
        if not isinstance(value, str):
            raise ReplyError(f"{type(reply).__name__} needs text for {one.name}, not {value!r:.80}")
        object.__setattr__(reply, one.name, legal(value))


def _need(value: str | None, problem: str) -> None:
    # A message's media_id may be None. White space alone is not sent: a Content that counts as empty makes the platform
    # show its failure text.
    if not value or value.isspace():
        raise ReplyError(problem)


def _optional(tag: str, value: str | None) -> str:
    return "" if value is None else f"<{tag}>{cdata(value)}</{tag}>"
