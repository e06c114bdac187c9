"""图尚往来: whoever sends a picture, a voice or a video gets it back by the very MediaId it came with.

The official start guide's second exercise answers an image with its own MediaId; that voice and video may be answered
alike is unconfirmed, and `ECHO_VIA=upload` is the other way for them.
https://developers.weixin.qq.com/doc/service/guide/dev/start.html
"""

from __future__ import annotations

from wechat.messages import ImageMessage, ShortVideoMessage, VideoMessage, VoiceMessage
from wechat.replies import ImageReply, VideoReply, VoiceReply


def image(message: ImageMessage) -> ImageReply:
    return ImageReply(message.media_id)


def voice(message: VoiceMessage) -> VoiceReply:
    return VoiceReply(message.media_id)


def video(message: VideoMessage | ShortVideoMessage) -> VideoReply:
    return VideoReply(message.media_id)
