"""What the bot says: the HANDLERS table shows the whole bot.

A handler is a function from one message to a reply, to None for no reply (`success`), to `Deferred(work)` for a reply
that takes time, or to `Remember(reply, memory)`. It is pure: no database, no HTTP, no clock, no Flask. To add a
behaviour of your own, write `handlers/own.py` with a table HANDLERS of its own: git leaves that file alone. A table
ACCOUNT_HANDLERS there gives one of several accounts handlers of its own: {"shop": {TextMessage: answer}}.
"""

from __future__ import annotations

import importlib
import importlib.util
import traceback
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from handlers.calls import Handler, HandlerError, Outcome, Recall, call, takes_memory
from handlers.deferred import Account, Deferred
from handlers.memory import Memory, Remember
from handlers.router import Router, exact, pattern, prefix

# First, so that the modules below can use `from handlers import Deferred`.
# isort: split
from handlers import event, media, text
from wechat.messages import (
    Event,
    ImageMessage,
    Message,
    ShortVideoMessage,
    SubscribeEvent,
    TextMessage,
    VideoMessage,
    VoiceMessage,
)

__all__ = [
    "ACCOUNT_HANDLERS",
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

Table: TypeAlias = Mapping[type[Message], Handler | Router]

STOCK_HANDLERS: Table = {
    ImageMessage: media.image,
    VoiceMessage: media.voice,
    VideoMessage: media.video,
    ShortVideoMessage: media.video,
    TextMessage: text.hint,
    SubscribeEvent: event.welcome,
}


HANDLERS = STOCK_HANDLERS
ACCOUNT_HANDLERS: Mapping[str, Table] = {}
OWN_FAULT: HandlerError | None = None
"""Why handlers/own.py is not used; `check` raises it, so that the commands can tell it."""


def check(accounts: Collection[str] = ()) -> None:
    """Checks all tables, at the start. Raises HandlerError, also for an account that is not in `accounts` (empty if the
    only account has no name)."""
    if OWN_FAULT is not None:
        raise OWN_FAULT
    for account, table in ACCOUNT_HANDLERS.items():
        if accounts and account not in accounts:
            raise HandlerError(f"ACCOUNT_HANDLERS has {account!r:.80}: write a name of the setting ACCOUNTS")
        _mapping(table, f"ACCOUNT_HANDLERS[{account!r}]")
        _check(table, f"ACCOUNT_HANDLERS[{account!r}]")
    _check(HANDLERS, "HANDLERS")


def _check(table: Table, name: str) -> None:
    for kind, handler in table.items():
        if not (isinstance(kind, type) and issubclass(kind, Message)):
            raise HandlerError(
                f"{name} has {kind!r:.80} for a kind of message: write TextMessage, for example"
            )
        if kind in (Message, Event):
            raise HandlerError(
                f"{name} has {kind.__name__}, which no message is: write TextMessage, OtherEvent or another kind of "
                "its own, one line for each"
            )
        if not isinstance(handler, Router):
            takes_memory(handler)


def dispatch(message: Message, recall: Recall = dict) -> Outcome:
    """The outcome of the handler for `message`. None, also for a kind without a handler, means `success`.

    `recall` reads the fan's memory. Raises HandlerError, and what the handler raises.
    """
    kind = type(message)
    handler = ACCOUNT_HANDLERS.get(message.account, {}).get(kind) or HANDLERS.get(kind)
    if handler is None:
        return None
    return handler.answer(message, recall) if isinstance(handler, Router) else call(handler, message, recall)


def _own(table: str) -> Any:
    """A table of handlers/own.py; empty if there is none. Raises HandlerError if the module cannot be read, has no
    table at all, or this one is none."""
    if importlib.util.find_spec("handlers.own") is None:
        return {}
    try:
        module = importlib.import_module("handlers.own")
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [str(frame.lineno) for frame in frames if Path(frame.filename).name == "own.py"]
        where = f", line {lines[-1]}" if lines else ""
        raise HandlerError(
            f"handlers/own.py cannot be read{where}: {type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, "HANDLERS") and not hasattr(module, "ACCOUNT_HANDLERS"):
        raise HandlerError("handlers/own.py has no table HANDLERS: write HANDLERS = {TextMessage: answer}")
    return _mapping(getattr(module, table, {}), f"{table} of handlers/own.py")


def _mapping(table: object, name: str) -> object:
    if not isinstance(table, Mapping):
        raise HandlerError(f"{name} is {table!r:.80}: write a table, such as {{TextMessage: answer}}")
    return table


# Last, so that handlers/own.py can import every name of this module.
try:
    HANDLERS = {**STOCK_HANDLERS, **_own("HANDLERS")}
    ACCOUNT_HANDLERS = _own("ACCOUNT_HANDLERS")
except HandlerError as _fault:
    OWN_FAULT = _fault
