"""图尚往来: a fan who sends a picture, a voice or a video gets it back.

A handler answers with the MediaId that the message came with. Must not know how that reaches the fan: with
`ECHO_VIA=auto` a video is uploaded again first, since the platform is said not to show it under that id (`answers/`).
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
