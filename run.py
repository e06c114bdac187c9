"""`make run`: runs the bot until Ctrl-C; without an account also the sandbox, with one photo sent through both.

Knows processes, ports and what to print. Must not know what the bot does with a message. Without WECHAT_APPID the
first start makes up an account and keeps it, with all its data, in data/sandbox/. If the photo is not echoed,
everything ends with exit code 1. With RELOAD=1 the bot is restarted when a file changes.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import secrets
import signal
import socket
import string
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import requests

import parts
from config import FOLDER, SANDBOX_SETTINGS, Settings, SettingsError, file_texts, is_locked, names_an_account
from storage import writable
from storage.errors import DatabaseUnavailableError
from storage.folders import make_folder, private
from storage.ledger import Entry

PHOTO = FOLDER / "sandbox" / "photos" / "grace_hopper.jpg"
FAN = "oSandbox-FirstFan00000000001"
START_SECONDS, ECHO_SECONDS = 30.0, 30.0
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # the last when the terminal is closed
GUNICORN = ["gunicorn", "-c", "gunicorn.conf.py", "app:create_app()"]

T = TypeVar("T")

_here = requests.Session()
_here.trust_env = False  # a proxy from the environment cannot reach this machine
_here.headers["Connection"] = "close"


class Failed(Exception):
    """`make run` could not do its work; the message says what to do."""


class Process:
    """`python -m command`. Its output goes to our own stdout and stderr, or to the file `log`. `ended` is set when it
    ends, by itself or not."""

    def __init__(
        self, name: str, command: list[str], environ: dict[str, str], log: Path | None, ended: threading.Event
    ) -> None:
        self.name, self._ended = name, ended
        self._command, self._environ, self._log = [sys.executable, "-m", *command], environ, log
        self.start()

    def start(self) -> None:
        with open(self._log or os.devnull, "wb") as file:
            output = file if self._log else None
            self._process = subprocess.Popen(
                self._command, cwd=FOLDER, env=self._environ, stdout=output, stderr=output
            )
        threading.Thread(target=self._tell_of_the_end, args=(self._process,), daemon=True).start()

    def _tell_of_the_end(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        self._ended.set()

    @property
    def output(self) -> str:
        """Where its output is to be read."""
        return str(self._log.relative_to(FOLDER)) if self._log else "the lines above"

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def ask_to_end(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()

    def wait(self) -> None:
        self._process.wait()


class Processes:
    """The processes started here. Each is ended by its pid, also when this process gets a signal."""

    def __init__(self) -> None:
        self._started: list[Process] = []
        self._one_ended = threading.Event()

    def start(self, name: str, command: list[str], environ: dict[str, str], log: Path | None = None) -> None:
        self._started.append(Process(name, command, environ, log, self._one_ended))

    def pause(self, seconds: float) -> None:
        """Waits for `seconds`, or until a process ends."""
        self._one_ended.wait(seconds)
        self._one_ended.clear()

    def check(self) -> None:
        for process in self._started:
            if process.exit_code is not None:
                raise Failed(
                    f"the {process.name} ended with exit code {process.exit_code}; see {process.output}"
                )

    @property
    def outputs(self) -> str:
        """Where the output of all of them is to be read."""
        return " and ".join(dict.fromkeys(process.output for process in self._started))

    def end(self) -> None:
        _end(list(reversed(self._started)))

    def wait(self, environ: dict[str, str]) -> NoReturn:
        """Waits for Ctrl-C. Without RELOAD=1 a process that ends is a failure. With it, bot and worker are restarted at
        each change of a file, and may be down until then: a file that is being edited may be faulty."""
        reload, seen = environ.get("RELOAD", "") not in ("", "0"), _sources()
        while True:
            if not reload:
                self.check()
            self.pause(0.5)  # not for ever: a signal that another thread gets does not wake this one
            if reload and (now := _sources()) != seen:
                seen = now
                ours = [process for process in self._started if process.name in ("bot", "worker")]
                print("A file has changed: the bot is restarted.", flush=True)
                _end(ours)
                for process in ours:
                    process.start()


def _end(processes: list[Process]) -> None:
    for process in processes:
        process.ask_to_end()
    for process in processes:
        process.wait()


def _sources() -> dict[Path, int]:
    """The time of the last change of each of our modules."""
    packages = [path.parent for path in FOLDER.glob("*/__init__.py")]
    paths = [*FOLDER.glob("*.py"), *(path for package in packages for path in package.rglob("*.py"))]
    return {path: path.stat().st_mtime_ns for path in paths if path.exists()}


def main() -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a terminal may know no Chinese
    for number in ENDING:
        # A script's background process starts with SIGINT ignored; nohup's with SIGHUP, and that is meant.
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    processes = Processes()
    try:
        environ = dict(os.environ)
        values = Settings.unchecked(environ)
        if names_an_account(values):
            _run_bot(processes, environ, Settings.of_accounts(environ))
            processes.wait(environ)
        _run_with_sandbox(processes, environ, values)
    except KeyboardInterrupt:
        return 0
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    except (Failed, DatabaseUnavailableError, OSError) as error:
        _ignore_signals()
        print(f"Failed: {error}", file=sys.stderr)
        return 1
    finally:
        _ignore_signals()
        processes.end()


def _interrupt(*_: object) -> NoReturn:
    _ignore_signals()
    raise KeyboardInterrupt


def _ignore_signals() -> None:
    """Once all is to end, no Ctrl-C breaks off what ends the processes."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


def _run_bot(processes: Processes, environ: dict[str, str], accounts: Sequence[Settings]) -> None:
    settings = accounts[0]
    _claim_port(settings.port, "PORT")
    _start_bot(processes, environ, settings)
    address = settings.public_url or "https://YOUR-HOST"
    gallery = (
        f"{address}/gallery" if settings.admin_password else "set ADMIN_PASSWORD to have it (设置后启用)"
    )
    for path in filter(None, (one.callback_path for one in accounts)):
        print(f"The callback (URL, 服务器地址): {address}{path}")
        print(f"   on this machine (本机): http://127.0.0.1:{settings.port}{path}")
    print(f"   the gallery (图库): {gallery}")
    print("   if something is wrong (检查): .venv/bin/flask doctor", flush=True)


def _run_with_sandbox(processes: Processes, environ: dict[str, str], values: dict[str, str]) -> NoReturn:
    path = FOLDER / SANDBOX_SETTINGS
    log = path.with_name("sandbox.log")
    if fault := writable.fault_of(path.parent):
        raise Failed(fault)
    make_folder(path.parent)
    if is_locked(path):
        raise Failed(
            "make run already runs in this folder: end that one first (此目录中已有 make run 在运行)"
        )
    made_up = _account(path)
    environ |= {
        **made_up,
        "WECHAT_ACCEPT_PLAINTEXT": "1",
        "WECHAT_TOKEN_SOURCE": "stable",
        "DATABASE_URL": environ.get("DATABASE_URL") or "sqlite:///data/sandbox/bot.db",
        "MEDIA_STORE": environ.get("MEDIA_STORE") or "data/sandbox/media",
    }
    how_to_sign_in = f"ADMIN_PASSWORD={made_up['ADMIN_PASSWORD']}   (throw-away; set your own in .env)"
    if "ADMIN_PASSWORD" in values:
        environ["ADMIN_PASSWORD"] = values["ADMIN_PASSWORD"]
        how_to_sign_in = "ADMIN_PASSWORD is the one that you set (使用你设置的密码)"
    port = Settings.from_env(environ).port
    _claim_port(port, "PORT")
    _claim_port(port + 1, "PORT + 1 (the sandbox)")
    environ["WECHAT_API_BASE"] = f"http://127.0.0.1:{port + 1}"
    settings = Settings.from_env(environ)
    bot, sandbox = f"http://127.0.0.1:{port}", environ["WECHAT_API_BASE"]
    with _shown_to_commands(path, environ | made_up):  # no command needs a password of one's own
        seen = str(path.with_name("platform"))
        command = ["sandbox", "--port", str(port + 1), "--callback", f"{bot}/wechat", "--data", seen]
        processes.start("sandbox", command, environ, log)
        _start_bot(processes, environ, settings)
        _until(
            lambda: _answers(f"{sandbox}/sandbox/calls"),
            START_SECONDS,
            "the sandbox did not start",
            processes,
        )
        print(
            "\n图尚往来 is running. No account is set, so the sandbox plays WeChat (未配置账号，由沙箱模拟微信平台)."
        )
        print(f"   the bot      {bot}/wechat")
        print(f"   the sandbox  {sandbox}/   (its log: {log.relative_to(FOLDER)})")
        print(f"   the gallery  {bot}/gallery")
        print(f"   {how_to_sign_in}\n", flush=True)
        if parts.build(settings).of[""].ledger.status(time.time()).stored:
            print("The photo went through at the first start; what came in since then is in the gallery.")
        else:
            _echo_one_photo(sandbox, settings, processes)
        print("\nCtrl-C ends it. For a real account copy .env.example to .env.", flush=True)
        processes.wait(environ)


def _account(path: Path) -> dict[str, str]:
    """The account and the password of an earlier start; made up at the first one."""

    def random(characters: str, length: int) -> str:
        return "".join(secrets.choice(characters) for _ in range(length))

    made_up = {
        "WECHAT_APPID": f"wx{secrets.token_hex(8)}",
        "WECHAT_APPSECRET": secrets.token_hex(16),
        "WECHAT_TOKEN": random(string.ascii_letters + string.digits, 24),
        "WECHAT_AES_KEY": random(string.ascii_letters + string.digits, 43),
        "ADMIN_PASSWORD": random(string.ascii_letters + string.digits, 12),
    }
    kept = file_texts(path)
    return {name: kept.get(name) or value for name, value in made_up.items()}


@contextmanager
def _shown_to_commands(path: Path, environ: dict[str, str]) -> Iterator[None]:
    """Writes the settings to a file of mode 0600 and locks it; while it is locked, commands read it."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    with open(partial, "w", encoding="utf-8", opener=private) as file:
        for name, value in Settings.unchecked(environ).items():
            quoted = value.replace("\\", "\\\\").replace("'", "\\'")
            file.write(f"{name}='{quoted}'\n")
        fcntl.flock(file, fcntl.LOCK_EX)
        file.flush()
        os.replace(partial, path)
        yield


def _start_bot(processes: Processes, environ: dict[str, str], settings: Settings) -> None:
    processes.start("bot", GUNICORN, environ)
    if settings.worker == "external":
        processes.start("worker", ["flask", "worker"], environ)
    bot = f"http://127.0.0.1:{settings.port}/healthz"
    _until(lambda: _answers(bot), START_SECONDS, "the bot did not start", processes)


def _echo_one_photo(sandbox: str, settings: Settings, processes: Processes) -> None:
    sent = hashlib.sha256(PHOTO.read_bytes()).hexdigest()
    began = time.time()  # the chat may hold pictures of earlier runs
    with PHOTO.open("rb") as file:
        answer = _here.post(
            f"{sandbox}/sandbox/fans/{FAN}/messages",
            data={"type": "image"},
            files={"file": (PHOTO.name, file, "image/jpeg")},
            timeout=60,
        )
    if answer.status_code != 200:
        raise Failed(f"the sandbox refused the photo: {answer.text}")
    push = answer.json()
    print(f"A fan sends {PHOTO.name} ({PHOTO.stat().st_size} bytes):")
    for number, attempt in enumerate(push["attempts"], 1):
        why = f" ({attempt['why']})" if attempt["why"] else ""
        print(
            f"   attempt {number}: {attempt['verdict']}{why} after {attempt['seconds'] * 1000:.0f} ms",
            flush=True,
        )
    ledger = parts.build(settings).of[""].ledger

    def stored() -> Entry | None:
        found = ledger.find_by_msg_id(int(push["msg_id"]))
        return next((entry for entry in found if entry.media_state in ("stored", "failed")), None)

    def shown() -> dict[str, Any] | None:
        chat = _here.get(f"{sandbox}/sandbox/fans/{FAN}/messages", timeout=5).json()
        pictures = [one for one in chat if one["from"] == "account" and one["type"] == "image"]
        return pictures[-1] if pictures and pictures[-1]["time"] >= began else None

    picture = _until(shown, ECHO_SECONDS, "the fan did not get the picture back", processes)
    print(f"   what came back: {picture['type']} {picture['media_id']}")
    entry = _until(stored, ECHO_SECONDS, "the picture was not stored", processes)
    if entry.media_state != "stored" or entry.media_key is None:
        raise Failed(f"the picture was not stored: {entry.media_reason}")
    print(f"   stored: {_where(settings, entry.media_key)}")
    print(
        f"   sha256 sent      {sent}\n   sha256 came back {picture['sha256']}\n   sha256 stored    {entry.media_sha256}"
    )
    if not sent == picture["sha256"] == entry.media_sha256:
        raise Failed("what was sent, stored and given back are not the same bytes")
    print("   all equal: 图尚往来", flush=True)


def _where(settings: Settings, key: str) -> str:
    path = Path(settings.media_store) / key
    return str(path.relative_to(FOLDER)) if path.is_relative_to(FOLDER) else f"{settings.media_store}/{key}"


def _answers(url: str) -> bool:
    try:
        return _here.get(url, timeout=2).status_code == 200
    except requests.RequestException:
        return False


def _claim_port(port: int, setting: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError:
            raise Failed(f"{setting}={port}: only root may listen there: PORT=8010 make run") from None
        except OverflowError:
            raise Failed(f"{setting}={port}: there is no such port: PORT=8010 make run") from None
        except OSError:
            raise Failed(f"{setting}={port} is in use: choose another, such as PORT=8010 make run") from None


def _until(look: Callable[[], T | None], seconds: float, problem: str, processes: Processes) -> T:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        processes.check()
        found = look()
        if found:
            return found
        processes.pause(0.05)  # polled, since the event is in another process
    raise Failed(f"{problem} within {seconds:.0f} s; see {processes.outputs}")


if __name__ == "__main__":
    sys.exit(main())
