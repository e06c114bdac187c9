"""Customer-service messages (客服消息): say something to a fan outside the answer to a push.

It knows the JSON of the kinds we send. It must not know when a fan may be written to: the platform says so
with 45015, 45047 and 48001. A message that may have gone out is never sent a second time.
https://developers.weixin.qq.com/doc/service/api/customer/message/api_sendcustommessage
"""

from typing import Any

from wechat.client import ApiClient
from wechat.replies import ImageReply, TextReply, VideoReply, VoiceReply

__all__ = ["send"]


def send(client: ApiClient, openid: str, reply: TextReply | ImageReply | VoiceReply | VideoReply) -> None:
    """Send `reply` to the fan `openid`, once.

    Raises ApiError (nothing was sent), TransportError (look at its `sent`: True means that nobody knows
    whether the fan got it) and TokenUnavailableError (nothing was sent).
    """
    kind, content = _content(reply)
    client.call(
        "POST",
        "/cgi-bin/message/custom/send",
        json={"touser": openid, "msgtype": kind, kind: content},
        repeatable=False,
    )


def _content(reply: TextReply | ImageReply | VoiceReply | VideoReply) -> tuple[str, dict[str, Any]]:
    match reply:
        case TextReply():
            return "text", {"content": reply.content}
        case ImageReply():
            return "image", {"media_id": reply.media_id}
        case VoiceReply():
            return "voice", {"media_id": reply.media_id}
    video = {"media_id": reply.media_id, "title": reply.title, "description": reply.description}
    return "video", {name: value for name, value in video.items() if value is not None}
