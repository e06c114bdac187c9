"""What the bot says to events: a welcome to a new fan; every other event is answered `success`.

Must not know what is kept or deleted when a fan comes or leaves.
"""

from __future__ import annotations

from handlers.text import HINT
from wechat.messages import SubscribeEvent
from wechat.replies import TextReply


def welcome(message: SubscribeEvent) -> TextReply:
    return TextReply(f"Welcome! 欢迎关注！\n{HINT}")
