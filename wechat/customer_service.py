"""Customer-service messages (客服消息): say something to a fan outside the answer to a push.

It knows the JSON of the kinds we send. It must not know when a fan may be written to: the platform decides
(45015, 45047, 48001). A message that may have gone out is never sent a second time.
https://developers.weixin.qq.com/doc/service/api/customer/message/api_sendcustommessage
"""

from __future__ import annotations

from typing import Any

from wechat.client import ApiClient
from wechat.errors import ReplyError
from wechat.replies import (
    ImageReply,
    MusicReply,
    NewsReply,
    Reply,
    TextReply,
    VideoReply,
    VoiceReply,
)


def send(client: ApiClient, openid: str, reply: Reply) -> None:
    """Send `reply` to the fan `openid`, once.

    Raises ReplyError for a reply that is no customer-service message (a transfer), ApiError (nothing was sent),
    TransportError (look at its `sent`: True means that the fan may have got it) and
    TokenUnavailableError (nothing was sent).
    """
    kind, content = _content(reply)
    client.call(
        "POST",
        "/cgi-bin/message/custom/send",
        json={"touser": openid, "msgtype": kind, kind: content},
        repeatable=False,
    )


def _content(reply: Reply) -> tuple[str, dict[str, Any]]:
    match reply:
        case TextReply():
            return "text", {"content": reply.content}
        case ImageReply():
            return "image", {"media_id": reply.media_id}
        case VoiceReply():
            return "voice", {"media_id": reply.media_id}
        case VideoReply():
            return "video", _without_none(
                media_id=reply.media_id, title=reply.title, description=reply.description
            )
        case MusicReply():
            return "music", _without_none(
                title=reply.title,
                description=reply.description,
                musicurl=reply.music_url,
                hqmusicurl=reply.hq_music_url,
                thumb_media_id=reply.thumb_media_id,
            )
        case NewsReply():
            articles = [
                {
                    "title": each.title,
                    "description": each.description,
                    "url": each.url,
                    "picurl": each.pic_url,
                }
                for each in reply.articles
            ]
            return "news", {"articles": articles}
        case _:
            write = ": write TextReply(...)" if isinstance(reply, str) else ""
            raise ReplyError(f"{type(reply).__name__} cannot be sent as a customer-service message{write}")


def _without_none(**values: str | None) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
