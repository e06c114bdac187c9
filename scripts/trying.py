"""What the parts of `make try-deploy` share: a step that shows something or fails, waiting, the time limit, the table.

Knows curl, git, apt's options, the sandbox's account and routes, and how to make its pictures slow. Must not know what
is tried.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from bench import servers

ROOT = Path(__file__).resolve().parent.parent
T = TypeVar("T")
S = TypeVar("S")

PHOTO = ROOT / "sandbox" / "photos" / "grace_hopper.jpg"
FAN = "oDeploy-AFan0000000000000001"
ACCOUNT = {
    "WECHAT_APPID": "wx00000000deadbeef",
    "WECHAT_APPSECRET": "0123456789abcdef0123456789abcdef",
    "WECHAT_TOKEN": "tryDeployToken01",
}
PIECE_SECONDS = 0.25  # between two pieces of a slow picture


class Failed(Exception):
    """A step did not show what it must show."""


def fetched(url: str, *options: str) -> str:
    """The body; empty while nobody answers."""
    return subprocess.run(["curl", "-fsS", *options, url], capture_output=True, text=True).stdout


def until(look: Callable[[], T], seconds: float, otherwise: Callable[[], str]) -> T:
    """What `look` returns as soon as that is true. Raises Failed with what `otherwise` says after so many seconds."""
    found = servers.until(look, seconds)
    if not found:
        raise Failed(otherwise())
    return found


def until_stored(bot: str, count: int, said: Callable[[], str]) -> None:
    """Until the bot at this address has stored so many pictures. Raises Failed with what it `said`."""
    stored, metrics = f'wechat_media{{state="stored"}} {count}.0', f"{bot}/metrics"
    until(
        lambda: stored in fetched(metrics),
        40,
        lambda: f"not {count} stored: {fetched(metrics)}\n{said()[-2000:]}",
    )


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


def git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True
    ).stdout


def copied(commit: str, folder: Path) -> Path:
    """The commit's files, and a python with its packages: this one's own where it wants the same."""
    folder.mkdir()
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", commit], check=True, capture_output=True
    ).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    bin_folder = folder / ".venv" / "bin"
    if (folder / "requirements.txt").read_bytes() == (ROOT / "requirements.txt").read_bytes():
        (folder / ".venv").symlink_to(sys.prefix)
    else:
        subprocess.run([sys.executable, "-m", "venv", str(folder / ".venv")], check=True)
        install = [str(bin_folder / "python"), "-m", "pip", "install", "-qqq", "--no-compile", "-r"]
        subprocess.run([*install, str(folder / "requirements.txt")], check=True)
    return folder


def pushed(url: str, *options: str) -> Any:
    """What the sandbox says of a push."""
    return json.loads(fetched(url, "-X", "POST", *options) or "null")


@contextmanager
def running(folder: Path, log: Path, url: str, *command: str, **settings: str) -> Iterator[None]:
    """The program, from when `url` answers until it has ended by SIGTERM."""
    environ = {"PATH": f"{folder}/.venv/bin:{os.environ['PATH']}", "LANG": "C.UTF-8"} | ACCOUNT | settings
    with log.open("ab") as out:
        process = subprocess.Popen(command, cwd=folder, env=environ, stdout=out, stderr=out)
    try:
        until(lambda: fetched(url) or process.poll() is not None, 30, lambda: log.read_text()[-3000:])
        if process.poll() is not None:
            raise Failed(log.read_text()[-3000:])
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
    if code != 0:
        raise Failed(f"ended with {code}: {log.read_text()[-2000:]}")


def replies(push: Any) -> list[str]:
    """The bodies of the deliveries' answers."""
    if not push or [one["verdict"] for one in push["attempts"]] != ["reply"]:
        raise Failed(f"no reply: {push}")
    return [one["received"]["body"] for one in push["attempts"]]


class SlowPlatform:
    """Stands before the sandbox on 127.0.0.1. A picture that is asked for now takes `seconds`: it is in hand."""

    def __init__(self, sandbox: str) -> None:
        self.seconds = 0.0
        self.asked = 0  # so many pictures, until now
        self._sandbox = sandbox
        self._end = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer._pass_on(self)

            do_POST = do_GET  # noqa: N815, the name that http.server calls

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> SlowPlatform:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._server.shutdown()
        self._server.server_close()

    def _pass_on(self, call: BaseHTTPRequestHandler) -> None:
        body = call.rfile.read(int(call.headers["Content-Length"] or 0)) or None
        kind = {"Content-Type": call.headers["Content-Type"]} if body else {}
        request = urllib.request.Request(self._sandbox + call.path, body, kind, method=call.command)
        with urllib.request.urlopen(request, timeout=10) as answer:
            data = answer.read()
            call.send_response(answer.status)
            for name in ("Content-Type", "Content-Disposition", "Content-Length"):
                if name in answer.headers:
                    call.send_header(name, answer.headers[name])
        pieces = 1
        if call.path.startswith("/cgi-bin/media/get"):
            pieces += int(self.seconds / PIECE_SECONDS)
            self.asked += 1
        size = len(data) // pieces + 1
        with suppress(OSError):  # who asked may have been killed
            call.end_headers()
            for start in range(0, len(data), size):
                call.wfile.write(data[start : start + size])
                if start + size < len(data):
                    self._end.wait(PIECE_SECONDS)


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
