"""What the bot says: the HANDLERS table shows the whole bot.

A handler is a function from one message to a reply, to None for no reply (`success`), or to `Deferred(work)` for a
reply that takes time. It is pure: no database, no HTTP, no clock, no Flask. To add a behaviour, write one function and
name it here beside the message it answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from handlers.deferred import Deferred

# First, so that a handler may say `from handlers import Deferred`.
# isort: split
from handlers import event, media, text
from wechat.messages import (
    ImageMessage,
    Message,
    ShortVideoMessage,
    SubscribeEvent,
    TextMessage,
    VideoMessage,
    VoiceMessage,
)
from wechat.replies import Reply

__all__ = ["HANDLERS", "Deferred", "dispatch"]

# Any: each handler takes the one message type that stands beside it.
HANDLERS: Mapping[type[Message], Callable[[Any], Reply | Deferred | None]] = {
    ImageMessage: media.image,
    VoiceMessage: media.voice,
    VideoMessage: media.video,
    ShortVideoMessage: media.video,
    TextMessage: text.hint,
    SubscribeEvent: event.welcome,
}


def dispatch(message: Message) -> Reply | Deferred | None:
    """Returns what `message` is answered; None, also for a kind that no handler is named for, means `success`."""
    handler = HANDLERS.get(type(message))
    return handler(message) if handler else None
