"""What the bot says to text: a short hint what to send instead.

Must not know what happens to a picture.
"""

from __future__ import annotations

from wechat.messages import TextMessage
from wechat.replies import TextReply

HINT = "Send me a picture, and I will send it back.\n发我一张图片，我就把它还给你。"


def hint(message: TextMessage) -> TextReply:
    return TextReply(HINT)
