"""The processes of `flask worker`: the one that was started, and those that it forks.

Python runs one thread of a process at a time, so that a process fills one core and no more. Forked ones share the
memory of what was loaded before. Knows forks and signals: they end together, when they are asked to or when one of
them dies, so that whoever started them can start all anew. Must not know what they work on.
"""

import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

import cores

log = logging.getLogger(__name__)


def run(count: int, work: Callable[[int, Callable[[], object]], None]) -> None:
    """Calls `work(place, wait_for_stop)` in `count` processes, place 0 in this one; returns here when all have ended.

    `wait_for_stop()` returns at SIGTERM, at Ctrl-C, and when one of the others has ended before its time; that is an
    exit with status 1. To be called before any thread is started: a fork does not take threads along.
    """
    asked, ours = os.pipe()  # nothing is written: all hear when this process closes `ours`, or is gone
    held = [ours]

    def stop(*_: object) -> None:
        with suppress(IndexError):
            os.close(held.pop())

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    gc.collect()
    gc.freeze()  # a collection would write into what is shared
    others = []
    for place in range(1, count):
        pid = os.fork()
        if pid == 0:
            stop()  # a signal that reaches the whole group is harmless from here on
            cores.choose(place)
            work(place, lambda: os.read(asked, 1))
            sys.exit()
        others.append(pid)
    codes: list[int] = []

    def watch(pid: int) -> None:
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        stop()

    watchers = [threading.Thread(target=watch, args=(pid,), daemon=True) for pid in others]
    for watcher in watchers:
        watcher.start()
    work(0, lambda: os.read(asked, 1))
    stop()
    for watcher in watchers:
        watcher.join()
    if any(codes):
        log.error("another process of this worker died, so this one ended too", extra={"exit_codes": codes})
        sys.exit(1)
