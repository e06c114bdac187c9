"""A group commit: one thread does the work that many threads bring at the same time.

A commit and its sync cost the same for twenty rows as for one. Knows threads. Must not know what the work is, or what
its errors mean.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from copy import copy
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST = 64
"""The most items in a batch: the first of them waits for the last."""


class Batches(Generic[Item, Result]):
    """The first thread leads a batch and does its items. Threads that come meanwhile wait; when the batch is done the
    first of them leads the next one, with the items of all that wait."""

    def __init__(
        self,
        do: Callable[[Callable[[], Sequence[Item]], float], Sequence[Result]],
        unavailable: type[Exception],
    ) -> None:
        """`do(items, wait)` returns a result for each, or raises and has done none. It ends within `wait` seconds.

        `items()` is asked again before each new try: there may be more, and those that gave up are gone.
        `unavailable` is what it raises when nothing can be done now, whichever the items are.
        """
        self._do, self._unavailable = do, unavailable
        self._lock = threading.Lock()  # for the next two
        self._led = False
        self._waiting: list[_Waiting[Item, Result]] = []

    def __call__(self, item: Item, wait: float) -> Result:
        """The item's result, or what `do` raises for it alone. Raises `unavailable` when nothing could be done within
        `wait` seconds, and TimeoutError when its turn does not come within them; then it may still be done."""
        give_up = time.monotonic() + wait
        mine: _Waiting[Item, Result] = _Waiting(item)
        with self._lock:
            leads, self._led = not self._led, True
            if not leads:
                self._waiting.append(mine)
        if not leads:
            leads = self._wait_for_turn(mine, wait)
        if leads:
            self._lead(mine, give_up)
        if mine.result is not None:
            return mine.result[0]
        left = max(give_up - time.monotonic(), 0.0)
        if mine.unavailable is None:
            # The batch failed, and it is not known which item caused that: now this one alone.
            return self._do(lambda: [item], left)[0]
        if not left:
            raise copy(mine.unavailable)  # each thread adds its own traceback
        return self(item, left)

    @property
    def waiting(self) -> int:
        """How many items no batch has taken yet."""
        return len(self._waiting)

    def _wait_for_turn(self, mine: _Waiting[Item, Result], wait: float) -> bool:
        """Waits until this item's batch is over, or this thread is to lead the next one. Returns whether it is to lead.

        Raises TimeoutError when neither happens within `wait` seconds."""
        if not mine.call.acquire(timeout=wait):
            with self._lock:
                if mine in self._waiting:
                    self._waiting.remove(mine)
                if not mine.leads and mine.result is None:
                    mine.gave_up = True
                    raise TimeoutError
        return mine.leads

    def _lead(self, mine: _Waiting[Item, Result], give_up: float) -> None:
        # A thread that is about to bring its item need not wait for the next batch.
        os.sched_yield()
        batch = [mine]

        def items() -> Sequence[Item]:
            with self._lock:
                batch[1:] = [each for each in batch[1:] if not each.gave_up]
                room = MOST - len(batch)
                batch.extend(self._waiting[:room])
                del self._waiting[:room]
            return [each.item for each in batch]

        try:
            results = self._do(items, max(give_up - time.monotonic(), 0.0))
            for each, result in zip(batch, results, strict=True):
                each.result = (result,)
        except self._unavailable as error:
            for each in batch[1:]:
                each.unavailable = error
            raise
        except Exception:
            if len(batch) == 1:
                raise
        finally:
            with self._lock:
                self._led = bool(self._waiting)
                if self._led:  # called first, so that the next batch begins while these wake up
                    following = self._waiting.pop(0)
                    following.leads = True
                    following.call.release()
            for each in batch[1:]:
                each.call.release()


class _Waiting(Generic[Item, Result]):
    def __init__(self, item: Item) -> None:
        self.item = item
        self.result: tuple[Result] | None = None
        self.unavailable: Exception | None = None
        self.gave_up = False
        self.leads = False
        self.call = threading.Lock()
        self.call.acquire()
