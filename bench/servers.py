"""Starts a server for a measurement, reads what its processes have used, and ends exactly those.

Knows process trees. Must not know what is measured.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil

T = TypeVar("T")

START_SECONDS = 30.0
STOP_SECONDS = 20.0
PYTHON = (sys.executable, "-m")


class ServerError(Exception):
    """A server did not start; the text holds the end of its log."""


def until(look: Callable[[], T], seconds: float, *, pause: float = 0.05) -> T:
    """What `look` returns, as soon as that is true, or when so many seconds are over; asked every `pause` seconds."""
    give_up = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < give_up:
        time.sleep(pause)  # it happens in another process, which cannot wake this one
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Server:
    """One command and its children, mostly on a port of their own; as a context manager it is stopped at the end."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: Path,
        environ: Mapping[str, str],
        port: int | None,
        log: Path,
        program: Sequence[str] = PYTHON,
    ) -> None:
        """`program` runs `command`. Returns when the port, if there is one, answers. Raises ServerError."""
        self.port = port or 0
        self._log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [*program, *command],
                cwd=folder,
                env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"} | dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        self.root = psutil.Process(self._process.pid)
        try:
            if port is not None:
                self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _wait_until_it_answers(self) -> None:
        until(lambda: self._process.poll() is not None or self._listens(), START_SECONDS)
        if not self._listens():
            raise ServerError(f"not started: {self._log.read_text(errors='replace')[-2000:]}")

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def processes(self) -> list[psutil.Process]:
        return [self.root, *self.root.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """User and system time of all its processes since they began."""
        return cpu_seconds(self.root)

    def memory(self) -> int:
        """Bytes that its processes hold alone (USS), together."""
        total = 0
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):  # it has just ended
                total += process.memory_full_info().uss
        return total

    def proportional_memory(self) -> int:
        """Bytes that its processes hold together, what several share counted once (PSS)."""
        total = 0
        for process in self.processes():
            with suppress(OSError):  # it has just ended
                told = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
                total += int(told.partition("\nPss:")[2].split()[0]) * 1024
        return total

    def stop(self) -> None:
        """Asks it to end, and ends what has not done so in time."""
        if self._process.poll() is not None:
            return
        tree = self.processes()
        self._process.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs(tree, timeout=STOP_SECONDS)
        for process in left:
            with suppress(psutil.NoSuchProcess):  # it has just ended
                process.kill()
        self._process.wait()


def cpu_seconds(root: psutil.Process) -> float:
    """User and system time of a process and all below it since they began, of those that have ended too."""
    total = 0.0
    for process in root.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has just ended: its parent has its time
            total += _seconds(process.cpu_times())
    return total + _seconds(root.cpu_times())


def _seconds(times: Any) -> float:
    return float(times.user + times.system + times.children_user + times.children_system)
