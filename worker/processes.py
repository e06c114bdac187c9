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

import cores

log = logging.getLogger(__name__)


def run(count: int, work: Callable[[int, Callable[[], None]], None]) -> None:
    """Calls `work(place, wait_for_stop)` in `count` processes, place 0 in this one; returns here when all have ended.

    `wait_for_stop()` returns at SIGTERM, at Ctrl-C, and when one of the others has ended before its time; that is an
    exit with status 1. When this process is gone without a word they end at once, as it did. To be called before any
    thread is started: a fork does not take threads along.
    """
    asked, ask = os.pipe()

    def stop(*_: object) -> None:
        os.write(ask, b"." * count)  # each process reads one

    def wait_for_stop() -> None:
        if not os.read(asked, 1):  # nobody is left who could write
            os._exit(1)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    gc.collect()
    gc.freeze()  # a collection would write into what is shared
    others = []
    for place in range(1, count):
        pid = os.fork()
        if pid == 0:
            for number in (
                signal.SIGTERM,
                signal.SIGINT,
            ):  # to the whole group: the first process says what it means
                signal.signal(number, lambda *_: None)
            os.close(ask)
            cores.choose(place)
            work(place, wait_for_stop)
            sys.exit()
        others.append(pid)
    codes: list[int] = []

    def watch(pid: int) -> None:
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        stop()

    watchers = [threading.Thread(target=watch, args=(pid,), daemon=True) for pid in others]
    for watcher in watchers:
        watcher.start()
    work(0, wait_for_stop)
    for watcher in watchers:
        watcher.join()
    if any(codes):
        log.error("another process of this worker died, so this one ended too", extra={"exit_codes": codes})
        sys.exit(1)
