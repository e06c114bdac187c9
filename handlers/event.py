"""What the bot says to events: a welcome to a new fan; every other event is answered `success`."""

from __future__ import annotations

from handlers.text import HINT
from wechat.messages import SubscribeEvent
from wechat.replies import TextReply


def welcome(message: SubscribeEvent) -> TextReply:
    return TextReply(f"Welcome! 欢迎关注！\n{HINT}")
