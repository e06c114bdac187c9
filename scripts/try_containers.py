"""`make try-deploy`, second part: builds deploy/Containerfile with podman, runs it, and shows a table of what it did.

Knows podman, and how to do without a registry: the base image is a small Debian of its own with the Python that the
Containerfile names, under the name that it uses. The sandbox is WeChat, on this machine. Nothing outside of a temporary
folder is changed: images, containers and volumes lie in it, and every container is removed. Needs root.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts import trying

LIMIT_SECONDS = 900
NEEDED = {"podman": "podman", "crun": "crun", "mmdebstrap": "mmdebstrap", "unshare": "util-linux"}
SUITE = "forky"  # the Debian with the Containerfile's Python
IMAGE = "tushangwanglai"
SHORT_STOP = 10  # seconds that docker and podman give when nobody says more
PORT = 8460
BOT, SANDBOX = f"http://127.0.0.1:{PORT}", f"http://127.0.0.1:{PORT + 1}"
SAY = f"{SANDBOX}/sandbox/fans/{trying.FAN}/messages"
SETTINGS = trying.ACCOUNT | {"WECHAT_API_BASE": SANDBOX, "PORT": str(PORT), "WEB_CONCURRENCY": "2"}
FIX = """\
FROM base
RUN ln -sf python3 /usr/bin/python && rm -f /usr/lib/python3*/EXTERNALLY-MANAGED \\
 && printf "[global]\\nno-index = true\\nfind-links = /wheels\\n[install]\\nignore-installed = true\\n" > /etc/pip.conf
"""
PRIVATE = "--in-a-mount-namespace-of-its-own"


class Podman:
    """podman with everything it keeps in one folder."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self._command = ["podman", "--root", f"{work}/store", "--runroot", f"{work}/run"]
        self._command += ["--storage-driver", "vfs", "--runtime", "crun", "--cgroup-manager", "cgroupfs"]
        self._command += ["--events-backend", "file"]
        limits = '[containers]\ndefault_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]\n'
        (work / "containers.conf").write_text(limits)

    def run(self, *arguments: str, exits: int = 0, seconds: float = 120) -> str:
        """What it prints, stderr too. Raises Failed for another exit status."""
        done = subprocess.run(
            [*self._command, *arguments],
            env=os.environ | {"CONTAINERS_CONF": str(self.work / "containers.conf")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            text=True,
            errors="replace",
        )
        if done.returncode != exits:
            raise trying.Failed(
                f"exit {done.returncode} of: podman {' '.join(arguments)}\n{done.stdout[-3000:]}"
            )
        return done.stdout

    def bot(
        self,
        *options: str,
        command: tuple[str, ...] = (),
        exits: int = 0,
        settings: Mapping[str, str] | None = None,
    ) -> str:
        """One container with the account's settings; `options` are those of podman run."""
        all_settings = {**SETTINGS, **(settings or {})}
        environ = [f"--env={name}={value}" for name, value in all_settings.items()]
        return self.run("run", "--network=host", *environ, *options, IMAGE, *command, exits=exits)

    @contextmanager
    def running(
        self,
        name: str,
        *options: str,
        command: tuple[str, ...] = (),
        settings: Mapping[str, str] | None = None,
    ) -> Iterator[None]:
        """The container runs in the background, and is removed in the end."""
        self.bot("--detach", f"--name={name}", *options, command=command, settings=settings)
        try:
            yield
        finally:
            self.run("rm", "--force", "--time=5", name)

    def answers(self, name: str) -> float:
        """Seconds until the web container answers."""
        began = time.monotonic()
        trying.until(lambda: trying.fetched(f"{BOT}/healthz"), 30, lambda: self.run("logs", name))
        return time.monotonic() - began


def has_said(said: str, *texts: str) -> None:
    for text in texts:
        if text not in said:
            raise trying.Failed(f"no {text!r} in: {said[-1500:]}")


def echo() -> str:
    began = time.monotonic()
    trying.replies(trying.pushed(SAY, "-F", "type=image", "-F", f"file=@{trying.PHOTO}"))
    return f"the picture back after {(time.monotonic() - began) * 1000:.0f} ms"


# -- what is tried ------------------------------------------------------------------------------------------------


def build(podman: Podman) -> str:
    (wanted,) = re.findall(r"^FROM (docker.io/library/python:(?:[\d.]+)-slim)$", containerfile(), re.M)
    podman.run("import", "-q", str(podman.work / "base.tar"), "base", seconds=300)
    folder = podman.work / "fix"
    folder.mkdir()
    (folder / "Containerfile").write_text(FIX)
    quiet = ["build", "-q", "--isolation=chroot", "--network=host", "--pull=never"]
    podman.run(*quiet, "-t", wanted, str(folder), seconds=300)
    version = podman.run(
        "run", "--rm", "--network=host", wanted, "python", "-c", "import sys; print(*sys.version_info[:2])"
    )
    version = ".".join(version.split())
    trying.wheels(podman.work / "wheels", "--python-version", version)
    began = time.monotonic()
    podman.run(
        *quiet, f"--volume={podman.work}/wheels:/wheels:ro", "--format=docker", f"--tag={IMAGE}",
        f"--file={trying.ROOT}/deploy/Containerfile", str(trying.ROOT), seconds=300,
    )  # fmt: skip
    took = time.monotonic() - began
    size, base = (int(podman.run("image", "inspect", "--format={{.Size}}", name)) for name in (IMAGE, wanted))
    return f"Python {version}, {took:.0f} s; {(size - base) / 1e6:.0f} MB on top of the base image"


def containerfile() -> str:
    return (trying.ROOT / "deploy" / "Containerfile").read_text(encoding="utf-8")


def contents(podman: Podman) -> str:
    there = set(podman.bot("--rm", command=("ls", "-A")).split())
    if wrong := there & {".env", ".git", "tests", "docs", "bench", "sandbox", "scripts"}:
        raise trying.Failed(f"in the image: {wrong}")
    podman.bot("--rm", command=("python", "-c", "import pytest"), exits=1)
    podman.bot("--rm", command=("python", "-c", "import app, psycopg, botocore, PIL"))
    return "no .env, no tests, no pytest"


def echoes(podman: Podman) -> str:
    with podman.running("bot", "--volume=bot-data:/app/data"):
        took = podman.answers("bot")
        podman.run("healthcheck", "run", "bot")
        echoed = echo()
        stop = stopped(podman, "--time=45", status=0)
        podman.run("healthcheck", "run", "bot", exits=125)  # it is down
        if stop > 5:
            raise trying.Failed(f"stopped after {stop:.1f} s")
    return f"answers after {took:.1f} s, healthy, {echoed}; stop {stop:.1f} s"


def volumes(podman: Podman) -> str:
    if (left := podman.run("volume", "ls", "-q").split()) != ["bot-data"]:
        raise trying.Failed(f"volumes: {left}")
    said = podman.bot("--rm", "--volume=bot-data:/app/data", command=("flask", "ledger", "status"))
    status = json.loads(said.splitlines()[-1])
    if status["stored"] + status["pending"] != 1:
        raise trying.Failed(said)
    return "what the named volume holds is there for the next container; no other volume is left behind"


def workers(podman: Podman) -> str:
    volume = "--volume=bot-data:/app/data"
    with (
        podman.running("web", volume, settings={"WORKER": "external"}),
        podman.running("worker", volume, command=("flask", "worker")),
    ):
        podman.answers("web")
        echoed = echo()
        trying.until_stored(BOT, 2, lambda: podman.run("logs", "worker"))
        podman.run("kill", "--signal=KILL", "web")
        podman.run("start", "web")
        podman.answers("web")
        echo()
    return f"{echoed}, stored by the worker; after kill -9 the same container goes on"


def push_in_hand(podman: Podman, wechat: trying.SlowPlatform, seconds: float) -> Any:
    """A picture that takes so long, until the bot has begun with it. Returns what the sandbox says of the push."""
    asked, wechat.seconds = wechat.asked, seconds
    push = trying.pushed(SAY, "-F", "type=image", "-F", f"file=@{trying.PHOTO}")
    trying.until(lambda: wechat.asked > asked, 10, lambda: podman.run("logs", "bot"))
    return push


def stopped(podman: Podman, *options: str, status: int) -> float:
    """Seconds. Raises Failed when it ended with another status."""
    began = time.monotonic()
    podman.run("stop", *options, "bot")
    took = time.monotonic() - began
    if (code := podman.run("inspect", "--format={{.State.ExitCode}}", "bot").strip()) != str(status):
        raise trying.Failed(f"stopped after {took:.1f} s with {code}\n{podman.run('logs', 'bot')[-2000:]}")
    return took


def short_stop(podman: Podman) -> str:
    with (
        trying.SlowPlatform(SANDBOX) as wechat,
        podman.running("bot", "--volume=stop-data:/app/data", settings={"WECHAT_API_BASE": wechat.url}),
    ):
        podman.answers("bot")
        pushes = [push_in_hand(podman, wechat, seconds) for seconds in (SHORT_STOP / 2, SHORT_STOP * 6)]
        before = [trying.replies(push) for push in pushes]
        stop = stopped(podman, f"--time={SHORT_STOP}", status=137)
        wechat.seconds = 0
        began = time.monotonic()
        podman.run("start", "bot")
        podman.answers("bot")
        resend = f"{SANDBOX}/sandbox/pushes/{{}}/resend"
        if (
            again := [trying.replies(trying.pushed(resend.format(push["msg_id"]))) for push in pushes]
        ) != before:
            raise trying.Failed(f"{before} before, {again} after")
        trying.until_stored(BOT, len(pushes), lambda: podman.run("logs", "bot"))
        done = time.monotonic() - began
        if wechat.asked != len(pushes) + 1:
            raise trying.Failed(f"pictures fetched {wechat.asked} times")
    return (
        f"stop {stop:.1f} s, status 137: the picture that took {SHORT_STOP / 2:.0f} s is stored, that of "
        f"{SHORT_STOP * 6} s {done:.0f} s after the next start; repeated pushes get the same answers"
    )


def patient_stop(podman: Podman) -> str:
    volume, seconds = "--volume=patient-data:/app/data", SHORT_STOP * 1.5
    with (
        trying.SlowPlatform(SANDBOX) as wechat,
        podman.running("bot", volume, "--stop-timeout=45", settings={"WECHAT_API_BASE": wechat.url}),
    ):
        podman.answers("bot")
        push_in_hand(podman, wechat, seconds)
        stop = stopped(podman, status=0)
    status = json.loads(podman.bot("--rm", volume, command=("flask", "ledger", "status")).splitlines()[-1])
    if status["stored"] != 1 or wechat.asked != 1:
        raise trying.Failed(f"{status}, fetched {wechat.asked} times")
    return f"stop {stop:.1f} s, status 0: the picture that took {seconds:.0f} s is stored"


def closed_mount(podman: Podman) -> str:
    folder = podman.work / "closed"
    folder.mkdir(mode=0o755)
    mount = f"--volume={folder}:/app/data"
    for command in ((), ("flask", "worker")):
        said = podman.bot("--rm", mount, command=command, exits=2)
        has_said(said, "chown -R 10001 /app/data")
    subprocess.run(["chown", "-R", "10001", str(folder)], check=True)
    with podman.running("bot", mount):
        podman.answers("bot")
        echo()
    return "web and worker end with status 2 and the chown line; after it they run"


def read_only(podman: Podman) -> str:
    options = ["--read-only", "--read-only-tmpfs=false", "--volume=bot-data:/app/data"]
    has_said(podman.bot("--rm", *options, exits=2), "--tmpfs /tmp")
    options += ["--tmpfs=/tmp", "--cap-drop=all", "--security-opt=no-new-privileges"]
    with podman.running("bot", *options):
        podman.answers("bot")
        echoed = echo()
    return f"without /tmp: status 2 and what is needed; with --tmpfs /tmp, no capabilities: {echoed}"


def low_port(podman: Podman) -> str:
    has_said(
        podman.bot("--rm", exits=2, settings={"PORT": "80"}), "PORT: 80: only root may listen below 1024"
    )
    return "PORT=80: status 2, says to publish a higher one"


def faulty_settings(podman: Podman) -> str:
    has_said(podman.bot("--rm", exits=2, settings={"WECHAT_TOKEN": ""}), "WECHAT_TOKEN")
    return "status 2, names the setting"


def quota(podman: Podman) -> str:
    command = ("python", "-c", "import config; print(config.usable_cores())")
    # podman itself says before that it has no systemd to run health checks with.
    free = podman.bot("--rm", command=command).split()[-1]
    bound = podman.bot("--rm", "--cpus=0.5", command=command).split()[-1]
    if bound != "1":
        raise trying.Failed(f"--cpus=0.5: {bound} cores")
    return f"--cpus=0.5 counts as 1 core; without it {free}"


def logs(podman: Podman) -> str:
    options = ["--log-driver=json-file", "--log-opt=max-size=10m", "--log-opt=max-file=5"]
    podman.bot("--rm", *options, command=("true",))
    return "compose's options for rotated logs are taken"


STEPS: list[tuple[str, Callable[[Podman], str]]] = [
    ("the image", build),
    ("what is in it", contents),
    ("runs with SQLite in a named volume", echoes),
    ("volumes", volumes),
    ("web and worker, kill -9", workers),
    (f"docker's stop: SIGKILL after {SHORT_STOP} s", short_stop),
    ("--stop-timeout 45", patient_stop),
    ("a mount that belongs to root", closed_mount),
    ("read-only", read_only),
    ("PORT below 1024", low_port),
    ("faulty settings", faulty_settings),
    ("a CPU quota", quota),
    ("log rotation", logs),
]


def main() -> int:
    if os.geteuid() != 0:
        print("the containers need root here: podman runs with everything in one folder.", file=sys.stderr)
        return 2
    if missing := trying.lacking(NEEDED):
        print(f"the containers are not tried; missing: apt-get install {' '.join(missing)}", file=sys.stderr)
        return 2
    if PRIVATE not in sys.argv:
        # podman looks into a cgroup hierarchy that a machine with both versions has, and that cannot be used there.
        os.execvp(
            "unshare",
            ["unshare", "--mount", sys.executable, "-m", "scripts.try_containers", PRIVATE, *sys.argv[1:]],
        )
    subprocess.run(["umount", "/sys/fs/cgroup/unified"], stderr=subprocess.DEVNULL)
    trying.limit(LIMIT_SECONDS)
    table = trying.Table()
    with tempfile.TemporaryDirectory(prefix="try-containers-", dir="/var/tmp") as folder:
        work = Path(folder)
        packages = "python3,python3-pip,ca-certificates"
        trying.debian(SUITE, f"deb http://deb.debian.org/debian {SUITE} main\n", packages, work / "base.tar")
        sandbox = [sys.executable, "-m", "sandbox", "--port", SANDBOX.rpartition(":")[2]]
        sandbox += ["--callback", f"{BOT}/wechat"]
        with trying.running(trying.ROOT, work / "sandbox.log", f"{SANDBOX}/sandbox/calls", *sandbox):
            table.steps(STEPS, Podman(work), needed=(build,))
    return table.end("containers")


if __name__ == "__main__":
    sys.exit(main())
