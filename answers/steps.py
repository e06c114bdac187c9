"""How the loops in the background go on: do a step, wait, survive what goes wrong in it; and how leases are renewed.

Knows threads' events and the log. Must not know what a step does. A fault is said once for each time that it happens,
and the loop waits before its next step, so that a lasting one does not fill the log.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol, TypeVar

from storage.errors import DatabaseUnavailableError

log = logging.getLogger(__name__)

T = TypeVar("T")


class Claimed(Protocol):
    """Work that this process has claimed; `id` is its message's in the ledger."""

    @property
    def id(self) -> int: ...


Held = TypeVar("Held", bound=Claimed)


def rarer(seconds: float, accounts: int) -> float:
    """How long to wait between looks for work where the account is one of several: many idle ones are to cost little,
    and none is to wait long."""
    return seconds * min(accounts, 5)


def repeat(stop: threading.Event, step: Callable[[], float], otherwise: str, *, fault_seconds: float) -> None:
    """Does the step, and again as many seconds later as it returns, until `stop` is set. After a fault, which is logged
    as `otherwise`, it waits for `fault_seconds`."""
    while not stop.is_set():
        seconds = survived(otherwise, step)
        stop.wait(fault_seconds if seconds is None else seconds)


def survived(otherwise: str, step: Callable[[], T], **facts: object) -> T | None:
    """What the step returns. Whatever goes wrong is logged as `otherwise`, and None: no loop ends of it."""
    try:
        return step()
    except (DatabaseUnavailableError, OSError) as error:
        log.error(otherwise, extra={**facts, "reason": str(error)})
    except Exception:
        log.exception("unexpected fault; the loop goes on", extra=facts)
    return None


def renew(held: Iterable[Held], extend: Callable[[Held], bool]) -> list[Held]:
    """Renews the lease of each piece of work in hand; returns those that another process has taken. To be called at a
    third of a lease's length. One that cannot be renewed for a fault does not keep the others from it."""
    say = "a lease cannot be renewed"
    return [work for work in held if survived(say, partial(extend, work), ledger_id=work.id) is False]
