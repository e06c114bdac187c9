"""The processes of `flask worker`: forked from one that does nothing but look after them.

Python runs one thread of a process at a time, so that a process fills one core and no more. Knows forks and signals: a
process that dies is followed by another, and none outlives the one that began it, whichever way that ends. Must not
know what they work on. What they have in common lies in memory once.
"""

import gc
import logging
import os
import signal
import time
from collections.abc import Callable

import cores

log = logging.getLogger(__name__)

PAUSE_SECONDS = 1.0  # before another process follows one that died


def run(count: int, work: Callable[[int, Callable[[], object]], None]) -> None:
    """Calls `work(place, wait_for_stop)` in `count` processes, place 0 and so on, until SIGTERM or Ctrl-C; returns
    when the last one has ended.

    `wait_for_stop()` returns when the process is to end, because this one was asked to, or is gone. To be called
    before any thread is started: a fork does not take threads along.
    """
    asked, ours = (
        os.pipe()
    )  # nothing is written: the end of the last `ours`, with its process, is what is heard
    held = [ours]

    def stop(*_: object) -> None:
        while held:
            os.close(held.pop())

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)

    def start(place: int) -> int:
        pid = os.fork()
        if pid == 0:
            stop()  # a signal to a whole group reaches this process too, and is harmless from here on
            cores.choose(place)
            work(place, lambda: os.read(asked, 1))
            raise SystemExit(0)
        return pid

    gc.collect()
    gc.freeze()  # a collection would write into what is shared
    places = {start(place): place for place in range(count)}
    while places:
        pid, status = os.wait()
        place = places.pop(pid)
        if not held:
            continue
        log.error(
            "a process of this worker died; another one follows",
            extra={"place": place, "exit_code": os.waitstatus_to_exitcode(status)},
        )
        time.sleep(PAUSE_SECONDS)
        if held:
            places[start(place)] = place
