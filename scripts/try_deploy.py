"""`make try-deploy`: runs docs/deploy.md for real, in a small Debian of its own, and prints a table of what it showed.

Knows systemd-nspawn and the blocks of docs/deploy.md that say "make try-deploy runs it (NAME)". Each is run as it is
written, but for the clone's address, and for apt-get, which has no network there. Nothing outside of a temporary folder
is changed, every process is ended by its pid, and the whole ends within ten minutes. Needs root.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts import trying

LIMIT_SECONDS = 600
PACKAGES = (
    "systemd systemd-sysv dbus git make python3 python3-venv python3-pip nginx-light curl openssl ca-certificates "
    "procps util-linux"
)
NEEDED = {"mmdebstrap": "mmdebstrap", "systemd-nspawn": "systemd-container", "nsenter": "util-linux"}
SANDBOX = "http://127.0.0.1:8001"
CERTIFICATE = "/etc/letsencrypt/live/bot.example.com"
SETTINGS = (
    "".join(f"{name}={value}\n" for name, value in trying.ACCOUNT.items())
    + """\
WECHAT_API_BASE=http://127.0.0.1:8001
DATABASE_URL=sqlite:////var/lib/tushangwanglai/bot.db
MEDIA_STORE=/var/lib/tushangwanglai/media
PUBLIC_URL=https://bot.example.com
PROXY_HOPS=1
"""
)


def document(name: str) -> str:
    """The block of docs/deploy.md that is marked with this name."""
    text = (trying.ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    found = re.search(rf"make try-deploy runs it \({re.escape(name)}\) -->\n```sh\n(.*?)```", text, re.S)
    if found is None:
        raise trying.Failed(f"docs/deploy.md has no block {name!r}")
    return found[1]


class Machine:
    """A booted Debian: commands run in its namespaces, as root."""

    def __init__(self, folder: Path, leader: int) -> None:
        self.root, self._leader = folder, leader

    def run(self, script: str, *, fails: bool = False, seconds: float = 120) -> str:
        """What the shell script prints, stderr too. Raises Failed for an exit status that `fails` does not expect."""
        inside = ["nsenter", "-t", str(self._leader), "-m", "-u", "-i", "-n", "-p", "-r", "-w"]
        environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"}
        environ |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/srv/wheels"}
        done = subprocess.run(
            [*inside, "sh", "-euc", script],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            text=True,
            errors="replace",
        )
        if (done.returncode != 0) is not fails:
            raise trying.Failed(f"exit {done.returncode} of: {script.strip()}\n{done.stdout[-3000:]}")
        return done.stdout

    def until(self, script: str, seconds: float = 30) -> float:
        """Seconds until the script exits 0."""
        began, said = time.monotonic(), ""

        def done() -> bool:
            nonlocal said
            try:
                self.run(script)
            except trying.Failed as error:
                said = str(error)
                return False
            return True

        trying.until(done, seconds, lambda: said)
        return time.monotonic() - began

    def seconds(self, script: str) -> float:
        began = time.monotonic()
        self.run(script)
        return time.monotonic() - began

    def main_pid(self, unit: str) -> int:
        return int(self.run(f"systemctl show --property MainPID --value {unit}"))


@contextmanager
def machine(folder: Path) -> Iterator[Machine]:
    """Boots the file system in `folder`, without a network, and ends it again."""
    command = ["systemd-nspawn", "-q", "-D", str(folder), "--boot", "--register=no", "--keep-unit"]
    command += ["--private-network", "--console=pipe", "--setenv=container_no_network=1"]
    with (folder.parent / "boot.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            log_file = folder.parent / "boot.log"
            trying.until(
                lambda: children.read_text() or process.poll() is not None,
                60,
                lambda: log_file.read_text()[-2000:],
            )
            if process.poll() is not None:
                raise trying.Failed(log_file.read_text()[-2000:])
            booted = Machine(folder, int(children.read_text().split()[0]))
            booted.until("systemctl is-system-running | grep -E 'running|degraded'", 60)
            yield booted
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def prepare(work: Path) -> Path:
    """A Debian with what docs/deploy.md installs, a clone of this version, and the packages as wheels."""
    root = work / "root"
    sources = "\n".join(
        path.read_text()
        for path in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
        if path.exists() and path.suffix in (".list", ".sources")
    )
    trying.debian("bookworm", sources, PACKAGES, root)
    subprocess.run(
        ["git", "clone", "-q", "--bare", str(trying.ROOT), str(root / "srv" / "clone.git")], check=True
    )
    trying.wheels(root / "srv" / "wheels")
    return root


# -- what is tried under systemd ----------------------------------------------------------------------------------


def install(box: Machine) -> str:
    block = document("install").replace("YOUR-CLONE-URL", "/srv/clone.git")
    wanted = re.findall(r"^apt-get install (.*)$", block, re.M)[0].split()
    box.run("dpkg -s " + " ".join(wanted))
    block = re.sub(r"^apt-get install .*$", "", block, flags=re.M)
    took = box.seconds(block)
    (box.root / "opt/tushangwanglai/.env").write_text(SETTINGS)
    box.run("echo '127.0.0.1 bot.example.com' >> /etc/hosts")
    return f"{took:.0f} s, packages from wheels"


def start(box: Machine) -> str:
    box.run(
        "systemd-run --unit=platform --working-directory=/opt/tushangwanglai "
        "--property=EnvironmentFile=/opt/tushangwanglai/.env "
        "/opt/tushangwanglai/.venv/bin/python -m sandbox --port 8001 --callback https://bot.example.com/wechat"
    )
    box.until(f"curl -fsS {SANDBOX}/sandbox/calls")
    lines = document("start").splitlines()
    box.run("\n".join(["cd /opt/tushangwanglai", *(line for line in lines if "flask doctor" not in line)]))
    took = box.until("curl -fsS http://127.0.0.1:8000/healthz")
    box.until(f"curl -fsS --cacert {CERTIFICATE}/fullchain.pem https://bot.example.com/healthz")
    return f"answers {took:.1f} s after the unit was started"


def proxy(box: Machine) -> str:
    box.run(
        f"install -d {CERTIFICATE} && openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=bot.example.com "
        f"-addext subjectAltName=DNS:bot.example.com "
        f"-keyout {CERTIFICATE}/privkey.pem -out {CERTIFICATE}/fullchain.pem "
        "&& cp /opt/tushangwanglai/deploy/nginx.conf /etc/nginx/conf.d/tushangwanglai.conf "
        "&& rm -f /etc/nginx/sites-enabled/default && nginx -t && systemctl restart nginx "
        # The sandbox and the doctor are to trust this certificate as they trust those of the world.
        f"&& cat {CERTIFICATE}/fullchain.pem >> $(/opt/tushangwanglai/.venv/bin/python -m certifi) "
        f"&& cp {CERTIFICATE}/fullchain.pem /usr/local/share/ca-certificates/bot.crt && update-ca-certificates"
    )
    return "deploy/nginx.conf, unchanged, is accepted"


def echo(box: Machine) -> str:
    photo = "/opt/tushangwanglai/sandbox/photos/grace_hopper.jpg"
    push = f"curl -fsS -F type=image -F file=@{photo} {SANDBOX}/sandbox/fans/{trying.FAN}/messages"
    began = time.monotonic()
    answer = json.loads(box.run(push))
    took = time.monotonic() - began
    if [one["verdict"] for one in answer["attempts"]] != ["reply"]:
        raise trying.Failed(f"no reply: {[one['why'] for one in answer['attempts']]}")
    sent = box.run(f"sha256sum {photo}").split()[0]
    box.until(f"find /var/lib/tushangwanglai/media -name '*.jpg' | xargs -r sha256sum | grep -q {sent}")
    return f"the picture back after {took * 1000:.0f} ms, and stored"


def doctor(box: Machine) -> str:
    line = next(line for line in document("start").splitlines() if "flask doctor" in line)
    # Its address is this machine's own: the doctor rightly says that the platform could not call it.
    said = box.run(f"cd /opt/tushangwanglai; {line} --json || true")
    findings = json.loads(said.strip().splitlines()[-1])
    wrong = {one["check"]: one["hint"] for one in findings if not one["ok"]}
    if set(wrong) - {"callback"}:
        raise trying.Failed(f"the doctor found: {wrong}")
    return f"{len(findings)} findings; not ok: {wrong or 'none'}"


def closed(box: Machine) -> str:
    loose = box.run("find /var/lib/tushangwanglai -perm /077 -printf '%m %p\\n'")
    if loose.strip():
        raise trying.Failed(f"others may read: {loose}")
    score = box.run("systemd-analyze security --no-pager tushangwanglai-web | tail -n 1")
    denied = box.run(
        "journalctl -u tushangwanglai-web | grep -icE 'traceback|operation not permitted' || true"
    )
    if denied.strip() != "0":
        raise trying.Failed(box.run("journalctl -u tushangwanglai-web | tail -n 40"))
    return re.sub(r"\s+", " ", score).strip("→ \n")


def workers(box: Machine) -> str:
    box.run("echo WORKER=external >> /opt/tushangwanglai/.env")
    box.run("\n".join(["cd /opt/tushangwanglai", document("workers")]))
    box.until("curl -fsS http://127.0.0.1:8000/healthz")
    return echo(box)


def killed(box: Machine) -> str:
    told = []
    for unit in ("tushangwanglai-web", "tushangwanglai-worker@1"):
        before = box.main_pid(unit)
        box.run(f"systemctl kill --kill-whom=main --signal=KILL {unit}")
        took = box.until(
            f"test $(systemctl show --property MainPID --value {unit}) -gt 0 && "
            f"test $(systemctl show --property MainPID --value {unit}) != {before} && systemctl is-active {unit}"
        )
        told.append(f"{unit.removeprefix('tushangwanglai-')} back after {took:.1f} s")
    box.until("curl -fsS http://127.0.0.1:8000/healthz")
    child = box.run(f"pgrep -P {box.main_pid('tushangwanglai-web')} | head -n 1").strip()
    box.run(f"kill -9 {child}")
    box.until("curl -fsS http://127.0.0.1:8000/healthz")
    echo(box)
    return "; ".join(told)


def stopped(box: Machine) -> str:
    stop = box.seconds("systemctl stop tushangwanglai-web 'tushangwanglai-worker@*'")
    box.run("systemctl start tushangwanglai-web tushangwanglai-worker@1 tushangwanglai-worker@2")
    first = box.until("curl -fsS http://127.0.0.1:8000/healthz")
    restart = box.seconds(
        "systemctl restart tushangwanglai-web; until curl -fsS http://127.0.0.1:8000/healthz; do :; done"
    )
    if stop > 5:
        raise trying.Failed(f"the units took {stop:.1f} s to stop")
    return f"stop {stop:.1f} s, start {first:.1f} s, restart {restart:.1f} s until it answers"


def faulty_settings(box: Machine) -> str:
    box.run("cd /opt/tushangwanglai; cp -p .env .env.right; sed -i /^WECHAT_TOKEN=/d .env")
    try:
        box.run("systemctl restart tushangwanglai-web || true")
        box.until("test $(systemctl show --property ActiveState --value tushangwanglai-web) = failed")
        shown = box.run("systemctl show --property ExecMainStatus tushangwanglai-web")
        if "ExecMainStatus=2" not in shown:
            raise trying.Failed(shown + box.run("journalctl -u tushangwanglai-web | tail -n 20"))
        box.run("journalctl -u tushangwanglai-web | tail -n 20 | grep -q WECHAT_TOKEN")
    finally:
        box.run("cd /opt/tushangwanglai; mv .env.right .env; systemctl restart tushangwanglai-web")
    box.until("curl -fsS http://127.0.0.1:8000/healthz")
    return "exit status 2, stays down and names the setting; mended: one restart is enough"


def root_commands(box: Machine) -> str:
    said = box.run("cd /opt/tushangwanglai; .venv/bin/flask ledger status", fails=True)
    if "runuser -u tushangwanglai" not in said:
        raise trying.Failed(said)
    box.run("cd /opt/tushangwanglai; runuser -u tushangwanglai -- .venv/bin/flask ledger status")
    return "refused, with the command to use"


def backup_and_restore(box: Machine) -> str:
    counted = "cd /opt/tushangwanglai; runuser -u tushangwanglai -- .venv/bin/flask ledger status"
    before = json.loads(box.run(counted).splitlines()[-1])
    box.run(document("backup"))
    echo(box)
    box.run(document("restore"))
    box.until("curl -fsS http://127.0.0.1:8000/healthz")
    after = json.loads(box.run(counted).splitlines()[-1])
    if after["stored"] != before["stored"]:
        raise trying.Failed(f"{before} was backed up, {after} is there")
    box.run("systemctl start tushangwanglai-worker@1")
    echo(box)
    return f"{after['stored']} pictures, while pushes came in; the restored bot echoes"


def upgrade(box: Machine) -> str:
    box.run("systemctl disable --now tushangwanglai-worker@2")
    box.run(
        "cd /tmp; rm -rf next; git clone -q /srv/clone.git next; cd next; "
        "git -c user.name=n -c user.email=n@example.com commit -q --allow-empty -m next; git push -q origin HEAD"
    )
    box.run(document("upgrade"), seconds=300)
    box.until("curl -fsS http://127.0.0.1:8000/healthz")
    box.run("systemctl is-active tushangwanglai-worker@2", fails=True)
    return echo(box) + "; a disabled worker stays stopped"


UNDER_SYSTEMD: list[tuple[str, Callable[[Machine], str]]] = [
    ("install", install),
    ("nginx with a certificate", proxy),
    ("the web unit starts", start),
    ("echo through nginx over https", echo),
    ("flask doctor as the bot's user", doctor),
    ("hardening", closed),
    ("two workers of their own", workers),
    ("kill -9 of master, worker, web process", killed),
    ("stop and restart", stopped),
    ("faulty settings, then mended", faulty_settings),
    ("flask commands of root", root_commands),
    ("backup and restore", backup_and_restore),
    ("upgrade", upgrade),
]


def main() -> int:
    if os.geteuid() != 0:
        print("make try-deploy needs root: it boots a Debian of its own.", file=sys.stderr)
        return 2
    if missing := trying.lacking(NEEDED):
        print(f"missing: apt-get install {' '.join(missing)}", file=sys.stderr)
        return 2
    trying.limit(LIMIT_SECONDS)
    table = trying.Table()
    with (
        tempfile.TemporaryDirectory(prefix="try-deploy-", dir="/var/tmp") as work,
        machine(prepare(Path(work))) as box,
    ):
        table.steps(UNDER_SYSTEMD, box, needed=(install, start))
    return table.end("under systemd")


if __name__ == "__main__":
    sys.exit(main())
