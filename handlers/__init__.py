"""What the bot says: the HANDLERS table shows the whole bot.

A handler is a function from one message to a reply, to None for no reply (`success`), to `Deferred(work)` for a reply
that takes time, or to `Remember(reply, memory)`. It is pure: no database, no HTTP, no clock, no Flask. To add a
behaviour of your own, write `handlers/own.py` with a table HANDLERS of its own: git leaves that file alone.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping

from handlers.calls import Handler, HandlerError, Outcome, Recall, call, takes_memory
from handlers.deferred import Account, Deferred
from handlers.memory import Memory, Remember
from handlers.router import Router, exact, pattern, prefix

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

__all__ = [
    "HANDLERS",
    "STOCK_HANDLERS",
    "Account",
    "Deferred",
    "HandlerError",
    "Memory",
    "Outcome",
    "Remember",
    "Router",
    "check",
    "dispatch",
    "exact",
    "pattern",
    "prefix",
]

STOCK_HANDLERS: Mapping[type[Message], Handler | Router] = {
    ImageMessage: media.image,
    VoiceMessage: media.voice,
    VideoMessage: media.video,
    ShortVideoMessage: media.video,
    TextMessage: text.hint,
    SubscribeEvent: event.welcome,
}


def _own_handlers() -> Mapping[type[Message], Handler | Router]:
    """The table of handlers/own.py, where somebody wrote one."""
    if importlib.util.find_spec("handlers.own") is None:
        return {}
    own: Mapping[type[Message], Handler | Router] = importlib.import_module("handlers.own").HANDLERS
    return own


HANDLERS: Mapping[type[Message], Handler | Router] = {**STOCK_HANDLERS, **_own_handlers()}


def check() -> None:
    """Looks the whole table through, for the start. Raises HandlerError."""
    for kind, handler in HANDLERS.items():
        if not (isinstance(kind, type) and issubclass(kind, Message)):
            raise HandlerError(
                f"HANDLERS has {kind!r:.80} for a kind of message: write TextMessage, for example"
            )
        if not isinstance(handler, Router):
            takes_memory(handler)


def dispatch(message: Message, recall: Recall = dict) -> Outcome:
    """Returns what `message` is answered; None, also for a kind that no handler is named for, means `success`.

    `recall` looks the fan's memory up. Raises HandlerError, and what the handler raises.
    """
    handler = HANDLERS.get(type(message))
    if handler is None:
        return None
    return handler.answer(message, recall) if isinstance(handler, Router) else call(handler, message, recall)
