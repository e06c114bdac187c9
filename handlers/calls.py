"""How a handler is called, and what it may return: one place for the table, for routes and for their checks.

Knows Python's signatures and the values that a handler may return. Must not know any handler, or its caller.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

from handlers.deferred import Deferred, async_or_yield
from handlers.memory import Memory, Remember
from wechat.messages import Message
from wechat.replies import Reply

Outcome: TypeAlias = Reply | Deferred | Remember | None
Handler: TypeAlias = Callable[..., Outcome]
Recall: TypeAlias = Callable[[], Memory]
"""Reads the fan's memory; called only for a handler that asks for it."""


class HandlerError(TypeError):
    """A handler has the wrong parameters, or returned something that is no answer. The message says what to write."""


def call(handler: Handler, message: Message, recall: Recall, *arguments: str) -> Outcome:
    """What the handler returns. It gets the message, a route's arguments, and the memory if it takes one more.

    Raises `HandlerError`, and what the handler raises.
    """
    if takes_memory(handler, len(arguments)):
        return checked(handler, handler(message, *arguments, recall()))
    return checked(handler, handler(message, *arguments))


def checked(handler: Handler, outcome: Any) -> Outcome:
    """Returns `outcome`. Raises `HandlerError` for a value that is no outcome."""
    if outcome is None or isinstance(outcome, Reply | Deferred | Remember):
        return outcome
    write = "return TextReply(...)" if isinstance(outcome, str) else "return a reply, Deferred(...) or None"
    raise HandlerError(
        f"{name_of(handler)} returned {outcome!r:.80} ({type(outcome).__name__}): write {write}"
    )


@lru_cache(maxsize=1000)
def takes_memory(handler: Handler, arguments: int = 0) -> bool:
    """Whether it takes one more than the message and `arguments` further ones. Raises `HandlerError` if it takes
    neither number, or is no plain function."""
    if not callable(handler):
        raise HandlerError(f"{handler!r:.80} is no function: name one that takes a message")
    if (fault := async_or_yield(handler)) is not None:
        raise HandlerError(f"{name_of(handler)} {fault}")
    signature = inspect.signature(handler)
    for more in (0, 1):
        try:
            signature.bind(*[None] * (1 + arguments + more))
        except TypeError:
            continue
        return more == 1
    wanted = ", ".join(("message", *(f"argument_{number + 1}" for number in range(arguments))))
    raise HandlerError(
        f"{name_of(handler)}{signature} cannot be called: write def {name_of(handler).rpartition('.')[2]}({wanted}), "
        "or with the fan's memory as one more"
    )


def name_of(handler: Any) -> str:
    """`handlers.text.hint`, for messages."""
    return f"{getattr(handler, '__module__', '?')}.{getattr(handler, '__qualname__', type(handler).__name__)}"
