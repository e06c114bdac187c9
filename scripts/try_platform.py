"""`make try-deploy`, fourth part: the Procfile as a PaaS runs it, and a table of what it did.

Knows honcho, which starts the Procfile's lines in the platform's place, and how such platforms stop and start: SIGTERM
to all processes, SIGKILL of what is left after 10 s, and then a new machine with nothing on its disk. The database is
the tests' PostgreSQL, the store is moto, the sandbox is WeChat. Runs the commit, as a platform does, from a copy in a
temporary folder. Needs no root.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from botocore.session import Session
from moto.server import ThreadedMotoServer

from bench import servers
from scripts import trying
from tests.postgresql import PostgreSQL

LIMIT_SECONDS = 240
HONCHO = "honcho==2.0.0"
# It would kill after 5 s by itself; here that is the platform's part.
START = "import honcho.manager, honcho.command; honcho.manager.KILL_WAIT = 3600; honcho.command.main()"
KILL_SECONDS = 10
BUCKET, PREFIX = "bot", "pictures"
KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIATRYING",
    "AWS_SECRET_ACCESS_KEY": "a-secret-of-this-script",
    "AWS_REGION": "us-east-1",
}
JSON = ("-H", "Content-Type: application/json", "-d")


def honcho(folder: Path) -> Path:
    """A python that has it. Raises subprocess.CalledProcessError when the package index is not reachable."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-qqq", HONCHO]
    subprocess.run(install, check=True)
    return python


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Machine:
    """One machine of the platform: the two processes, in a folder that is gone when it ends."""

    def __init__(self, folder: Path, python: Path, settings: dict[str, str]) -> None:
        self._folder, self._log = folder, folder / "log"
        folder.mkdir()
        self._tree = trying.copied("HEAD", folder / "app")
        self._deployed = self._files()
        (folder / "tmp").mkdir()
        environ = {
            "PATH": f"{self._tree}/.venv/bin:{os.environ['PATH']}",
            "LANG": "C.UTF-8",
            "HOME": str(folder),
            "TMPDIR": str(folder / "tmp"),
            "PYTHONUNBUFFERED": "1",
        }
        self._began = time.monotonic()
        with self._log.open("ab") as out:
            self._honcho = subprocess.Popen(
                [python, "-c", START, "start"],
                cwd=self._tree,
                env=environ | settings,
                stdout=out,
                stderr=out,
            )
        self._all: list[psutil.Process] = []
        self._bot = f"http://127.0.0.1:{settings['PORT']}"

    def _files(self) -> set[Path]:
        return {file for file in self._tree.rglob("*") if not {".venv", "__pycache__"} & {*file.parts}}

    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def answers(self) -> float:
        """Seconds from the start until the web process answers."""
        look = f"{self._bot}/healthz"
        trying.until(
            lambda: trying.fetched(look) or self._honcho.poll() is not None, 30, lambda: self.said()[-3000:]
        )
        if self._honcho.poll() is not None:
            raise trying.Failed(self.said()[-3000:])
        return time.monotonic() - self._began

    def until_media(self, **counts: int) -> None:
        """Until so many are in each of these states."""
        wanted = [f'wechat_media{{state="{state}"}} {count}.0\n' for state, count in counts.items()]

        def there() -> bool:
            metrics = self.metrics()
            return all(line in metrics for line in wanted)

        trying.until(there, 40, lambda: f"not {counts}: {self.metrics()[:2000]}\n{self.said()[-2000:]}")

    def metrics(self) -> str:
        return trying.fetched(f"{self._bot}/metrics")

    def stop(self) -> dict[str, float]:
        """As the platform does. When web and worker ended, in seconds after SIGTERM; without what had to be killed."""
        started = re.findall(r"system +\| (\w+)\.1 started \(pid=(\d+)\)", self.said())
        shells = {name: psutil.Process(int(pid)) for name, pid in started}
        trees = {name: [shell, *shell.children(recursive=True)] for name, shell in shells.items()}
        self._all = [process for tree in trees.values() for process in tree]
        ended: dict[str, float] = {}
        began = time.monotonic()
        self._honcho.terminate()

        def all_ended() -> bool:
            for name, tree in trees.items():
                if name not in ended and not any(map(lives, tree)):
                    ended[name] = time.monotonic() - began
            return len(ended) == len(trees)

        servers.until(all_ended, KILL_SECONDS, pause=0.02)
        self.kill()
        return ended

    def kill(self) -> None:
        """Everything that is left."""
        with suppress(psutil.NoSuchProcess):
            self._all += psutil.Process(self._honcho.pid).children(recursive=True)
        for process in self._all:
            with suppress(psutil.NoSuchProcess):
                process.kill()  # psutil sees to it that no other process has the number by now
        self._honcho.kill()
        self._honcho.wait(20)

    def forget(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def keeps_nothing(self) -> None:
        """Raises Failed for a file on this disk that is neither the program nor its compiled form."""
        if new := self._files() - self._deployed:
            raise trying.Failed(f"on the disk: {sorted(map(str, new))}")

    def log_lines(self) -> list[Any]:
        """What web and worker wrote. Raises Failed for a line that is no JSON."""
        lines = re.findall(r"^\S+ \w+\.1 +\| (.*)$", self.said(), re.M)
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise trying.Failed(f"{error} in {lines[-50:]}") from error


class Platform:
    """What lasts from one machine to the next: database, store, WeChat, and what was pushed."""

    def __init__(
        self,
        work: Path,
        python: Path,
        database_url: str,
        store: str,
        sandbox: str,
        wechat: trying.SlowPlatform,
        port: int,
    ) -> None:
        self._work, self._python, self._sandbox = work, python, sandbox
        session: Any = Session()  # its types know only clients of any kind
        self._s3 = session.create_client(
            "s3",
            endpoint_url=store,
            region_name=KEYS["AWS_REGION"],
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )
        self._s3.create_bucket(Bucket=BUCKET)
        self.wechat = wechat
        self._settings = trying.ACCOUNT | KEYS
        self._settings |= {
            "AWS_ENDPOINT_URL_S3": store,
            "AWS_EC2_METADATA_DISABLED": "true",
            "DATABASE_URL": database_url.replace("postgresql://", "postgres://"),  # as platforms write it
            "MEDIA_STORE": f"s3://{BUCKET}/{PREFIX}",
            "WORKER": "external",
            "PROXY_HOPS": "1",
            "LOG_FORMAT": "json",
            "PORT": str(port),
            "WECHAT_API_BASE": self.wechat.url,
        }
        self.machines: list[Machine] = []
        self._answers: dict[str, list[str]] = {}

    def close(self) -> None:
        for machine in self.machines:
            machine.kill()
        self._s3.close()

    def start(self) -> Machine:
        """A new machine; the disks of those before are gone."""
        for machine in self.machines:
            machine.forget()
        folder = self._work / f"machine-{len(self.machines) + 1}"
        self.machines.append(Machine(folder, self._python, self._settings))
        return self.machines[-1]

    def push(self) -> float:
        """Seconds until the picture is back with the fan."""
        began = time.monotonic()
        say = f"{self._sandbox}/sandbox/fans/{trying.FAN}/messages"
        push = trying.pushed(say, "-F", "type=image", "-F", f"file=@{trying.PHOTO}")
        answered = trying.replies(push)
        self._answers[push["msg_id"]] = answered
        return time.monotonic() - began

    def push_in_hand(self, seconds: float) -> None:
        """A picture that takes so long, until the worker has begun with it."""
        asked, self.wechat.seconds = self.wechat.asked, seconds
        self.push()
        trying.until(lambda: self.wechat.asked > asked, 10, lambda: "no picture is asked for")

    def push_all_again(self) -> int:
        """How many. Raises Failed unless each has the answer that it had."""
        for msg_id, before in self._answers.items():
            again = trying.replies(
                trying.pushed(f"{self._sandbox}/sandbox/pushes/{msg_id}/resend", *JSON, "{}")
            )
            if again != before:
                raise trying.Failed(f"{before} before, {again} after")
        return len(self._answers)

    def stored(self) -> int:
        """How many pictures are in the store. Raises Failed for one that is not as it was sent."""
        found = self._s3.list_objects_v2(Bucket=BUCKET, Prefix=f"{PREFIX}/").get("Contents", [])
        for one in found:
            if self._s3.get_object(Bucket=BUCKET, Key=one["Key"])["Body"].read() != trying.PHOTO.read_bytes():
                raise trying.Failed(f"not the picture: {one['Key']}")
        return len(found)


# -- what is tried ------------------------------------------------------------------------------------------------


def python_version(_: Platform) -> str:
    named = (trying.ROOT / ".python-version").read_text(encoding="utf-8").strip()
    (tested,) = re.findall(
        r"^for version in (.*); do$", (trying.ROOT / "scripts" / "test-all.sh").read_text(), re.M
    )
    if named not in tested.split():
        raise trying.Failed(f"{named}, but the tests run on {tested}")
    return f"{named}; the tests run on {tested}"


def echoes(platform: Platform) -> str:
    machine = platform.start()
    took = machine.answers()
    echoed = platform.push()
    machine.until_media(stored=1)
    if platform.stored() != 1:
        raise trying.Failed("the picture is not in the store")
    return f"answers after {took:.1f} s, the picture back after {echoed * 1000:.0f} ms, and in S3"


def stops(platform: Platform) -> str:
    machine = platform.machines[-1]
    platform.push_in_hand(KILL_SECONDS / 2)
    platform.push_in_hand(KILL_SECONDS * 6)
    ended = machine.stop()
    machine.keeps_nothing()
    if list(ended) != ["web"]:
        raise trying.Failed(f"{ended}\n{machine.said()[-3000:]}")
    if (stored := platform.stored()) != 2:
        raise trying.Failed(
            f"{stored} pictures: that of {KILL_SECONDS / 2:.0f} s is not there\n{machine.said()[-3000:]}"
        )
    return (
        f"web ends after {ended['web']:.1f} s; the worker stores the picture that took {KILL_SECONDS / 2:.0f} s, "
        f"and is killed at {KILL_SECONDS} s with the one of {KILL_SECONDS * 6} s in hand"
    )


def starts_again(platform: Platform) -> str:
    platform.wechat.seconds = 0
    began = time.monotonic()
    machine = platform.start()
    took = machine.answers()
    pushes = platform.push_all_again()
    machine.until_media(stored=3, pending=0)
    done = time.monotonic() - began
    metrics = machine.metrics()
    if f"wechat_duplicates_total {pushes}.0" not in metrics:
        raise trying.Failed(metrics)
    if (stored := platform.stored()) != pushes or platform.wechat.asked != pushes + 1:
        raise trying.Failed(f"{stored} pictures of {pushes}, fetched {platform.wechat.asked} times")
    return (
        f"answers after {took:.1f} s, the picture that was in hand is stored after {done:.0f} s; "
        f"{pushes} repeated pushes, the same answers; {stored} pictures, none lost or doubled"
    )


def stops_idle(platform: Platform) -> str:
    machine = platform.machines[-1]
    ended = machine.stop()
    machine.keeps_nothing()
    if len(ended) != 2 or "Traceback" in machine.said():
        raise trying.Failed(f"{ended}\n{machine.said()[-3000:]}")
    lines = machine.log_lines()
    return f"both end by themselves after {max(ended.values()):.1f} s; {len(lines)} lines of log, all JSON; no file"


STEPS = [
    (".python-version", python_version),
    ("the Procfile with PostgreSQL and S3", echoes),
    (f"SIGTERM, SIGKILL after {KILL_SECONDS} s", stops),
    ("a new machine", starts_again),
    ("SIGTERM with nothing in hand", stops_idle),
]


@contextmanager
def everything(work: Path, python: Path) -> Iterator[Platform]:
    with ExitStack() as stack:
        postgresql = PostgreSQL()
        stack.callback(postgresql.close)
        store = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        store.start()
        stack.callback(store.stop)
        host, store_port = store.get_host_and_port()
        port, sandbox_port = servers.free_port(), servers.free_port()
        sandbox = f"http://127.0.0.1:{sandbox_port}"
        command = [sys.executable, "-m", "sandbox", "--port", str(sandbox_port)]
        command += ["--callback", f"http://127.0.0.1:{port}/wechat"]
        stack.enter_context(
            trying.running(trying.ROOT, work / "sandbox.log", f"{sandbox}/sandbox/calls", *command)
        )
        wechat = stack.enter_context(trying.SlowPlatform(sandbox))
        store_url = f"http://{host}:{store_port}"
        platform = Platform(work, python, postgresql.new(), store_url, sandbox, wechat, port)
        stack.callback(platform.close)
        yield platform


def main() -> int:
    trying.limit(LIMIT_SECONDS)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # moto's line for each request
    table = trying.Table()
    with tempfile.TemporaryDirectory(prefix="try-platform-", dir="/var/tmp") as folder:
        work = Path(folder)
        try:
            python = honcho(work / "honcho")
        except subprocess.CalledProcessError:
            print(f"the PaaS is not tried; missing: {HONCHO} of the package index", file=sys.stderr)
            return 2
        with everything(work, python) as platform:
            table.steps(STEPS, platform, needed=(echoes, stops))
    return table.end("a PaaS")


if __name__ == "__main__":
    sys.exit(main())
