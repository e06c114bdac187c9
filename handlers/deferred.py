"""Deferred: what a handler returns if its reply takes longer than a moment; and Account, what its work may do.

Knows only the values. Must not know what runs the work, how long a delivery waits for it, or how a late reply reaches
the fan: `answers/late.py` does. It is not in `__init__.py`, which imports the handlers, since they import this.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from handlers.memory import Remember
from wechat.replies import Reply


class Account(Protocol):
    """What work may do for its fan before it returns. Neither call is recorded: work that runs again repeats it.

    Both raise an error of `wechat.errors` when the platform refuses. An error that the work does not catch ends it.
    """

    def send(self, reply: Reply) -> None:
        """Send this now, as a customer-service message."""

    def upload(self, path: str | os.PathLike[str]) -> str:
        """Upload a picture, voice or video file; its MediaId, for three days. Raises OSError too."""


@dataclass(frozen=True)
class Deferred:
    """A reply that takes longer than a moment. Only `work` may call services; it returns a reply, `Remember`, or None.
    Work with an argument gets an `Account`.

    It runs in a thread of its own. After a crash it runs again, so it must be safe to start twice. Raises
    TypeError for work that cannot be called.
    """

    work: Callable[[], Reply | Remember | None] | Callable[[Account], Reply | Remember | None]

    def __post_init__(self) -> None:
        if not callable(self.work):
            raise TypeError(
                f"Deferred takes a function, not {self.work!r:.80}: write Deferred(work), not Deferred(work())"
            )
        if (fault := async_or_yield(self.work)) is not None:
            raise TypeError(f"{self.work!r:.80} {fault}")
        if not (_takes(self.work) or _takes(self.work, None)):
            raise TypeError(f"{self.work!r:.80} cannot be called: write def work(), or def work(account)")

    def run(self, account: Account) -> Reply | Remember | None:
        """Runs the work, and returns what it returns. Raises what it raises."""
        work: Callable[..., Reply | Remember | None] = self.work
        return work() if _takes(work) else work(account)


def async_or_yield(function: Any) -> str | None:
    """What to write instead of a function whose call only begins it; None for a plain one."""
    for each in (function, function.__call__):
        if inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each):
            return "is async def: write def, and asyncio.run(...) in the work of a Deferred"
        if inspect.isgeneratorfunction(each):
            return "has yield: write return"
    return None


def _takes(work: Callable[..., object], *arguments: object) -> bool:
    try:
        inspect.signature(work).bind(*arguments)
    except (TypeError, ValueError):  # ValueError: some functions written in C do not say their parameters
        return False
    return True
