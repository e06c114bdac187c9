"""The background loops: do a step, wait, survive any error; the renewal of leases; and the end of the threads.

Knows threads' events and the log. Must not know what a step does. Each fault is one log line, and the loop then waits
before its next step, so that a lasting fault does not fill the log.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol, TypeVar

from storage.errors import DatabaseUnavailableError

log = logging.getLogger(__name__)

GRACE_SECONDS = 20.0  # for running work when the process is told to stop
LOOK_ENDS_SECONDS = 1.0  # after the request to stop, for a thread that looks for work
ENDING_SECONDS = 0.1  # after the last work, for the background threads to end

T = TypeVar("T")


class Claimed(Protocol):
    """Work that this process has claimed; `id` is its message's in the ledger."""

    @property
    def id(self) -> int: ...


Held = TypeVar("Held", bound=Claimed)


def rarer(seconds: float, accounts: int) -> float:
    """The pause between checks for work, in seconds, for one of several accounts: many idle accounts cost little, and
    none waits long."""
    return seconds * min(accounts, 5)


def repeat(stop: threading.Event, step: Callable[[], float], otherwise: str, *, fault_seconds: float) -> None:
    """Repeats the step until `stop` is set. The step returns the seconds to wait. A fault is logged as `otherwise`, and
    the next step follows after `fault_seconds`."""
    while not stop.is_set():
        seconds = try_step(otherwise, step)
        stop.wait(fault_seconds if seconds is None else seconds)


def try_step(otherwise: str, step: Callable[[], T], **facts: object) -> T | None:
    """What the step returns; None after any error, which is logged as `otherwise`. So no error ends a loop."""
    try:
        return step()
    except (DatabaseUnavailableError, OSError) as error:
        log.error(otherwise, extra={**facts, "reason": str(error)})
    except Exception:
        log.exception("unexpected fault; the loop goes on", extra=facts)
    return None


def let_end(threads: Iterable[threading.Thread], asked_at: float) -> None:
    """Waits for background threads when the work in hand is over; `asked_at`: when the stop was asked for (monotonic).
    One that only looks for work may be waiting for the database: the process ends without it."""
    until = max(asked_at + LOOK_ENDS_SECONDS, time.monotonic() + ENDING_SECONDS)
    for thread in threads:
        thread.join(max(until - time.monotonic(), 0.0))


def renew(held: Iterable[Held], extend: Callable[[Held], bool]) -> list[Held]:
    """Renews the lease of each piece of work. Returns the pieces that another process has taken. Call it three times
    per lease. A fault with one lease does not stop the others."""
    say = "a lease cannot be renewed"
    return [work for work in held if try_step(say, partial(extend, work), ledger_id=work.id) is False]
