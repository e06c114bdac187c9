"""Deferred: what a handler returns whose reply takes longer than a moment.

Knows only the value itself. Who runs the work, for how long a delivery waits for it, and how a late reply gets to the
fan is not known here: `answers/late.py`. It stands apart from the HANDLERS table, which imports the handlers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from handlers.memory import Remember
from wechat.replies import Reply


@dataclass(frozen=True)
class Deferred:
    """A reply that takes longer than a moment. Only `work` may call services; it returns a reply, `Remember`, or None.

    It runs in a thread of its own. After a crash it is run again, so that it should bear to be begun twice. Raises
    TypeError for work that cannot be called.
    """

    work: Callable[[], Reply | Remember | None]

    def __post_init__(self) -> None:
        if not callable(self.work):
            raise TypeError(
                f"Deferred takes a function without arguments, not {self.work!r:.80}: "
                "write Deferred(work), not Deferred(work())"
            )
