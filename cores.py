"""On which core of the machine a thread runs, and how many files a process may open.

Python runs one thread of a process at a time. Threads that may use every core move from one to another, where nothing
that they need is in the cache, and are slower for it. Knows the system's scheduler and limits; must not know who calls,
nor why. Where the system has no such calls, or forbids them, threads run on any core.
https://man7.org/linux/man-pages/man7/sched.7.html
"""

import os
import resource
import sys
from contextlib import suppress
from pathlib import Path


def _usable() -> list[int]:
    """First the one that this process runs on now: there the system saw room for it."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):
        # The 39th field (https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html); the second one may hold anything.
        stat = Path("/proc/thread-self/stat").read_text(encoding="ascii", errors="replace")
        here = cores.index(int(stat.rpartition(")")[2].split()[36]))
        return cores[here:] + cores[:here]
    return cores


_CORES = _usable()
_place = 0


def leave_alone() -> None:
    """From now on this process's threads run where the system likes."""
    _CORES.clear()


def choose(place: int) -> None:
    """This process is the `place`th of several that were forked from one: each has another core, as far as there are
    enough. To be called before `stay_on_one()`."""
    global _place
    _place = place


def stay_on_one() -> None:
    """The thread that calls stays on the process's one core, as do those that it starts. When another one wakes it, it
    waits until that one has come to its end, which it would have to do in any case."""
    with suppress(OSError):
        if _CORES:
            os.sched_setaffinity(0, {_CORES[_place % len(_CORES)]})


def roam() -> None:
    """The thread that calls runs on any core again."""
    with suppress(OSError):
        if _CORES:
            os.sched_setaffinity(0, _CORES)


def raise_file_limit() -> int:
    """As many open files as the system allows this process; returns how many. Each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return hard if hard != resource.RLIM_INFINITY else sys.maxsize
    return soft
