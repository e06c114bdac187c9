"""What the parts of `make try-deploy` share: a step that shows something or fails, waiting, the time limit, the table.

Knows curl, apt's options and the sandbox's account. Must not know what is tried.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

T = TypeVar("T")
S = TypeVar("S")

ROOT = Path(__file__).resolve().parent.parent
PHOTO = ROOT / "sandbox" / "photos" / "grace_hopper.jpg"
FAN = "oDeploy-AFan0000000000000001"
ACCOUNT = {
    "WECHAT_APPID": "wx00000000deadbeef",
    "WECHAT_APPSECRET": "0123456789abcdef0123456789abcdef",
    "WECHAT_TOKEN": "tryDeployToken01",
}


class Failed(Exception):
    """A step did not show what it must show."""


def fetched(url: str, *options: str) -> str:
    """The body; empty while nobody answers."""
    return subprocess.run(["curl", "-fsS", *options, url], capture_output=True, text=True).stdout


def until(look: Callable[[], T], seconds: float, otherwise: Callable[[], str]) -> T:
    """What `look` returns as soon as that is true. Raises Failed with what `otherwise` says after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            raise Failed(otherwise())
        time.sleep(0.05)  # it happens in another process or machine, which cannot wake this one
    return found


def limit(seconds: int) -> None:
    """Ends this process after so many seconds. What it started ends as after any other exit."""

    def over(*_: object) -> NoReturn:
        sys.exit(f"not done within {seconds} s")

    signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)


def lacking(needed: Mapping[str, str]) -> list[str]:
    """The packages of those commands that are not there."""
    return [package for command, package in needed.items() if shutil.which(command) is None]


def debian(suite: str, sources: str, packages: str, target: Path) -> None:
    """Makes a small Debian, as a folder or as a .tar, from where this machine's apt gets its packages."""
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}"]
    for option in sorted(Path("/etc/apt/apt.conf.d").glob("*")):
        if re.search(r"Acquire::(https?|Check)", option.read_text(errors="replace")):
            command += [f"--aptopt={option}"]
    subprocess.run([*command, suite, str(target), "-"], input=sources, text=True, check=True)


def wheels(folder: Path, *options: str) -> None:
    """Downloads what requirements.txt names, as wheels."""
    command = [sys.executable, "-m", "pip", "download", "-qqq", "--only-binary=:all:", *options]
    subprocess.run([*command, "-d", str(folder), "-r", str(ROOT / "requirements.txt")], check=True)


class Table:
    """What each step showed, printed as it comes and once more as a table."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._rows: list[tuple[str, str]] = []

    def step(self, name: str, step: Callable[[S], str], subject: S) -> bool:
        """Whether it showed what it must show."""
        try:
            shown = step(subject)
        except (Failed, subprocess.SubprocessError) as error:
            shown = f"FAILED: {error}"
        print(f"{name}: {shown}", flush=True)
        self._rows.append((name, shown))
        return not shown.startswith("FAILED")

    def steps(
        self,
        steps: Sequence[tuple[str, Callable[[S], str]]],
        subject: S,
        needed: Sequence[Callable[[S], str]],
    ) -> None:
        """All of them, but nothing after one of the `needed` ones has failed."""
        for name, step in steps:
            if not self.step(name, step, subject) and step in needed:
                return

    def end(self, title: str) -> int:
        """Prints the table. Returns the exit status."""
        print(f"\n| {title}, tried in {time.monotonic() - self._began:.0f} s | what it showed |\n|---|---|")
        for name, shown in self._rows:
            print(f"| {name} | {shown.splitlines()[0]} |")
        return int(any(shown.startswith("FAILED") for _, shown in self._rows))
