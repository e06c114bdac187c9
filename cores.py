"""On which core a thread runs (PIN_CORES), how many files a process may open, and how it ends at once.

Python runs one thread of a process at a time. Threads that move between cores lose their cache, and are
slower. Knows the system's scheduler and limits; must not know what the threads do. If the system lacks or forbids these
calls, threads run on any core.
https://man7.org/linux/man-pages/man7/sched.7.html
"""

from __future__ import annotations

import logging
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn


def _usable() -> list[int]:
    """The cores that this process may use. The current one comes first: the scheduler chose it because it was free."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):
        # The 39th field (https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html); the second may contain spaces.
        stat = Path("/proc/thread-self/stat").read_text(encoding="ascii", errors="replace")
        here = cores.index(int(stat.rpartition(")")[2].split()[36]))
        return cores[here:] + cores[:here]
    return cores


_CORES = _usable()
_place = 0


def never_pin() -> None:
    """PIN_CORES=0: from now on `pin_thread()` does nothing in this process."""
    _CORES.clear()


def choose(place: int) -> None:
    """Chooses this process's core. `place` numbers the processes of one server from 0, so that each gets another core
    as long as there are enough. Call it before `pin_thread()`."""
    global _place
    _place = place


def pin_thread() -> None:
    """From now on the calling thread, and the threads that it starts, run on the process's core only."""
    with suppress(OSError):
        if _CORES:
            os.sched_setaffinity(0, {_CORES[_place % len(_CORES)]})


def unpin_thread() -> None:
    """The calling thread may use every core again."""
    with suppress(OSError):
        if _CORES:
            os.sched_setaffinity(0, _CORES)


def raise_file_limit() -> int:
    """Raises the soft limit of open files to the hard one, and returns it. Each connection is an open file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return hard if hard != resource.RLIM_INFINITY else sys.maxsize
    return soft


def end_process() -> NoReturn:
    """Ends this process, after its work has stopped: with status 0, or 1 if an exception is ending it.

    Python by itself would first unload every module, which takes longer than the rest of a stop.
    """
    ending = sys.exc_info()[1]
    failed = ending is not None and not (isinstance(ending, SystemExit) and ending.code in (None, 0))
    logging.shutdown()
    os._exit(int(failed))
