"""How the loops of a worker go on: do a step, wait, and survive whatever goes wrong in it.

Knows threads' events and the log. Must not know what a step does. A fault is said once for each time that it happens,
and the loop waits before its next step, so that a lasting one does not fill the log.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from storage.errors import DatabaseUnavailableError

log = logging.getLogger(__name__)

T = TypeVar("T")


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
