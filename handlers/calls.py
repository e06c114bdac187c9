"""How a handler is called, and what it may return: one place for the table, for routes and for their checks.

Knows Python's signatures and the values that a handler may return. Must not know any handler, or its caller.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
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


def takes_memory(handler: Handler, arguments: int = 0) -> bool:
    """Whether it takes one more than the message and `arguments` further ones. Raises `HandlerError` if it takes
    neither number, or is no plain function."""
    try:
        hash(handler)
    except TypeError:  # as of an instance of most dataclasses
        return _takes_memory.__wrapped__(handler, arguments)
    return _takes_memory(handler, arguments)


@lru_cache(maxsize=1000)
def _takes_memory(handler: Handler, arguments: int) -> bool:
    if not callable(handler):
        raise HandlerError(f"{handler!r:.80} is no function: name one that takes a message")
    if (fault := async_or_yield(handler)) is not None:
        raise HandlerError(f"{name_of(handler)} {fault}")
    try:
        signature = inspect.signature(handler)
    except ValueError:  # of some functions written in C
        raise HandlerError(
            f"{name_of(handler)} does not say its parameters: write def answer(message) that calls it"
        ) from None
    for more in (0, 1):
        try:
            signature.bind(*[None] * (1 + arguments + more))
        except TypeError:
            continue
        return more == 1
    wanted = ", ".join(("message", *(f"argument_{number + 1}" for number in range(arguments))))
    name = getattr(handler, "__name__", type(handler).__name__)
    raise HandlerError(
        f"{name_of(handler)} takes {signature} and cannot be called: write "
        f"def {name if name.isidentifier() else 'answer'}({wanted}), or with the fan's memory as one more"
    )


def name_of(handler: Any) -> str:
    """`handlers.text.hint (text.py, line 14)`, for messages."""
    while isinstance(handler, partial):
        handler = handler.func
    name = f"{getattr(handler, '__module__', '?')}.{getattr(handler, '__qualname__', type(handler).__name__)}"
    for function in (inspect.unwrap(handler), type(handler).__call__):
        if (code := getattr(function, "__code__", None)) is not None:
            return f"{name} ({Path(code.co_filename).name}, line {code.co_firstlineno})"
    return name
