"""`python -m bench.scale`: what the size of the ledger, time and many pictures cost.

Ledgers of up to ten million rows beside an empty one, a soak of a million pushes, downloads beside curl, the worker's
memory, claims, gallery pages, token reads, start-up, an answer on a busy machine. What is compared takes turns in the
same run. A table here and in bench/results/. Each part can be run alone: `python -m bench.scale --only soak`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import func, select, update

from bench import ledgers, pushes
from bench.__main__ import CONNECTIONS, RESULTS, machine
from bench.account import APPID, APPSECRET
from bench.contestants import ROOT, copy_of, gunicorn_of_ours, settings
from bench.load import drive
from bench.servers import Server, free_port, until
from storage.database import Database, connect
from storage.files import StoredFile
from storage.gallery import Filter, GalleryRows
from storage.ledger import Ledger
from storage.models import AHEAD_SECONDS, messages
from storage.queue import Queue
from storage.tokens import SqlTokenStore
from wechat.access_token import AccessToken
from wechat.client import ApiClient
from wechat.messages import Message, parse_message
from wechat.token_sources import StableTokenSource

T = TypeVar("T")

LIMIT_SECONDS = 28 * 60.0
SOAK_STEPS = 10
DOWNLOADS, AT_ONCE = 200, 16
MB = 1 << 20


@dataclass(frozen=True)
class Size:
    """How much is done. `--small` proves that everything works, and its figures prove nothing."""

    rows: tuple[int, ...] = (0, 1_000_000, 10_000_000)
    records: int = 300
    rounds: int = 15
    soak: int = 1_000_000
    downloads: int = DOWNLOADS
    account_pushes: int = 10_000
    small_picture: int = MB
    large_picture: int = 10 * MB
    download_rounds: int = 9
    account_rounds: int = 3


SMALL = Size(
    rows=(0, 20_000),
    records=30,
    rounds=3,
    soak=2_000,
    downloads=20,
    account_pushes=500,
    download_rounds=1,
    account_rounds=1,
)


@dataclass(frozen=True)
class Line:
    """One measured figure, and what was promised for it."""

    what: str
    measured: str
    must: str = ""
    values: Any = None


class Incomplete(Exception):
    """Work was not finished in time, or not as it should be: its figures would mean nothing."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.scale", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--small", action="store_true", help="a minute's worth: does it still work?")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder for the results")
    options = parser.parse_args(arguments)
    size = SMALL if options.small else Size()
    takes = "a minute and 1 GB" if options.small else "at most 30 minutes, both cores and 12 GB"
    print(f"This takes {takes} of disk below {options.results}, on 127.0.0.1 only.", flush=True)
    options.results.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="work-", dir=options.results))
    lines: list[Line] = []
    give_up = time.monotonic() + LIMIT_SECONDS
    try:
        tree = copy_of(ROOT, work / "tree")
        for name in [options.only] if options.only else PARTS:
            print(f"{name} ...", flush=True)
            folder = work / name
            folder.mkdir()
            lines += PARTS[name](tree, folder, size, give_up)
            shutil.rmtree(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    table = report(lines, small=options.small)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    values = [{"what": line.what, "measured": line.measured, "values": line.values} for line in lines]
    (options.results / f"scale-{stamp}.json").write_text(json.dumps({"machine": machine(), "lines": values}))
    (options.results / f"scale-{stamp}.md").write_text(table)
    print(f"\n{table}\nAlso in {options.results}/scale-{stamp}.md and .json")
    return 0


def report(lines: Sequence[Line], *, small: bool) -> str:
    head = [machine() + (" (--small: these figures prove nothing)" if small else ""), ""]
    table = ["| what | measured | must |", "|---|---:|---:|"]
    return "\n".join(head + table + [f"| {one.what} | {one.measured} | {one.must} |" for one in lines]) + "\n"


# -- the ledger's size -------------------------------------------------------------------------------------------


def rows(tree: Path, folder: Path, size: Size, give_up: float) -> list[Line]:
    """record(), find(), claims and gallery pages on ledgers of different size, in interleaved rounds."""
    lines = []
    opened: dict[int, Database] = {}
    for count in size.rows:
        file = folder / f"{count}.db"
        began = time.monotonic()
        ledgers.make(file, count)
        if count:
            print(f"  {count:,} rows made in {time.monotonic() - began:.0f} s", flush=True)
        began = time.monotonic()
        # With `normal` no wait for the disk hides what the trees cost.
        opened[count] = connect(f"sqlite:///{file}", sync="normal")
        opened[count].check()
        lines.append(Line(f"open a ledger of {count:,} rows", f"{(time.monotonic() - began) * 1e3:.0f} ms"))
    steps: dict[str, Callable[[Database, int], float]] = {
        "record()": _record,
        "find() of what is absent": _find,
        "claim, one at a time, and mark_stored()": _claim,
        "gallery, first page of 50": lambda database, count: _page(database, None),
        "gallery, a page in the middle": lambda database, count: _page(database, 0.5),
    }
    for name, step in steps.items():
        taken: dict[int, list[float]] = {count: [] for count in size.rows}
        for _ in range(size.rounds):
            for count in size.rows:
                if time.monotonic() > give_up:
                    raise Incomplete("the time is over")
                taken[count].append(step(opened[count], size.records))
        empty = statistics.median(taken[0])
        for count in size.rows:
            median = statistics.median(taken[count])
            ratio = f" ({median / empty:.2f} × an empty one)" if count else ""
            must = "≤ 1.50, better 1.20" if name == "record()" and count == size.rows[-1] else ""
            lines.append(Line(f"{name}, {count:,} rows", f"{median * 1e6:.0f} µs{ratio}", must, taken[count]))
    for database in opened.values():
        database.close()
    return lines


def _messages(count: int) -> list[Message]:
    return [parse_message(pushes.new().request.partition(b"\r\n\r\n")[2]) for _ in range(count)]


def _record(database: Database, count: int) -> float:
    ledger, reply = Ledger(database, APPID), b"<xml>" + b"x" * 300 + b"</xml>"
    return _seconds_each(_messages(count), lambda message: ledger.record(message, reply, time.time()))


def _find(database: Database, count: int) -> float:
    return _seconds_each(_messages(count), Ledger(database, APPID).find)


def _claim(database: Database, count: int) -> float:
    queue = Queue(database, APPID)
    stored = StoredFile(key=f"{APPID}/2026/01/01/0.jpg", size=1, sha256="0" * 64)

    def work_one_off(_: int) -> None:
        (job,) = queue.claim_downloads(time.time(), 15)
        if not queue.mark_stored(job, stored, time.time()):
            raise Incomplete("a claim was lost")

    return _seconds_each(range(count), work_one_off)


def _page(database: Database, place: float | None) -> float:
    """`place`: how far down in the ledger's time, 0 the newest, 1 the oldest."""
    gallery = GalleryRows(database, APPID)
    before = None
    if place is not None:
        oldest = database.run(
            lambda connection: connection.exec_driver_sql(
                "SELECT min(received_at) FROM messages WHERE id < 3"
            )
        ).scalar()
        before = (time.time() + ((oldest or 0.0) - time.time()) * place, 0)
    return _seconds_each(range(5), lambda _: gallery.page(Filter(), before=before, limit=50))


def _seconds_each(items: Sequence[T], do: Callable[[T], object]) -> float:
    began = time.perf_counter()
    for item in items:
        do(item)
    return (time.perf_counter() - began) / len(items)


# -- time --------------------------------------------------------------------------------------------------------


def soak(tree: Path, folder: Path, size: Size, give_up: float) -> list[Line]:
    """Many pushes, one after the other: the web processes' memory at ten points of the way."""
    memory: list[int] = []
    with gunicorn_of_ours(tree, folder, f"sqlite:///{folder}/bot.db", LEDGER_SYNC="normal") as server:
        began, answered = time.monotonic(), 0
        for step in range(SOAK_STEPS):
            left = size.soak // SOAK_STEPS
            while left and time.monotonic() < give_up:
                now = min(left, 10_000)
                sent = [pushes.new() for _ in range(now)]
                outcome = drive(server.port, [push.request for push in sent], CONNECTIONS, 120)
                if pushes.faults(sent, outcome.bodies, None):
                    raise Incomplete("a wrong answer")
                left, answered = left - now, answered + now
            memory.append(server.memory())
            print(f"  {answered:,} pushes, {memory[-1] / MB:.0f} MB ({step + 1} of {SOAK_STEPS})", flush=True)
        seconds = time.monotonic() - began
    file = sum(path.stat().st_size for path in folder.glob("bot.db*"))
    points = " ".join(f"{one / MB:.0f}" for one in memory)
    return [
        Line(
            f"memory of all web processes over {answered:,} pushes, MB at ten points", points, "flat", memory
        ),
        Line("the last point × the second", f"{memory[-1] / memory[1]:.3f}"),
        Line("pushes a second, made and checked meanwhile", f"{answered / seconds:.0f}"),
        Line("bytes of disk for a message", f"{file / answered:.0f}"),
    ]


# -- accounts ----------------------------------------------------------------------------------------------------

MANY_ACCOUNTS = 20
IDLE_SECONDS = 10.0


def accounts(tree: Path, folder: Path, size: Size, give_up: float) -> list[Line]:
    """Pushes to one account and to many, in turns; then a worker that has nothing to do."""
    lines: list[Line] = []
    cpu: dict[int, list[float]] = {1: [], MANY_ACCOUNTS: []}
    memory, idle, worker_memory = {}, {}, {}
    for number in range(size.account_rounds):
        for count in cpu:
            place = folder / f"{count}-{number}"
            place.mkdir()
            url = f"sqlite:///{place}/bot.db"
            with gunicorn_of_ours(tree, place, url, **_accounts(count)) as server:
                _push_to_each(server, count, CONNECTIONS * count)  # imports, caches
                used = server.cpu_seconds()
                _push_to_each(server, count, size.account_pushes)
                cpu[count].append((server.cpu_seconds() - used) / size.account_pushes)
                memory[count] = server.memory()
    for count in cpu:
        place = folder / f"{count}-0"
        environ = settings(free_port(), f"sqlite:///{folder}/idle-{count}.db", place / "media")
        command = ["flask", "worker"]
        environ |= _accounts(count)
        with Server(command, folder=tree, environ=environ, port=None, log=place / "worker.log") as worker:
            database = connect(f"sqlite:///{folder}/idle-{count}.db")
            queues = [Queue(database, appid) for appid in _appids(count)]
            if not until(lambda: all(queue.last_claim_at() for queue in queues), 30):  # noqa: B023
                raise Incomplete("the worker did not look at each account")
            database.close()
            idle[count] = worker.root.cpu_percent(IDLE_SECONDS) / 100
            worker_memory[count] = worker.memory()
    for count in cpu:
        what = f"{count} account{'s' * (count > 1)}"
        median = statistics.median(cpu[count])
        ratio = f" ({median / statistics.median(cpu[1]):.2f} × one)" if count > 1 else ""
        lines += [
            Line(f"{what}: web processes' CPU a push", f"{median * 1e6:.0f} µs{ratio}", values=cpu[count]),
            Line(f"{what}: memory of all web processes after that", f"{memory[count] / MB:.0f} MB"),
            Line(f"{what}: an idle worker's CPU", f"{idle[count]:.1%} of a core"),
            Line(f"{what}: an idle worker's memory", f"{worker_memory[count] / MB:.0f} MB"),
        ]
    return lines


def _appids(count: int) -> list[str]:
    return [f"{APPID}{number}" for number in range(count)]


def _accounts(count: int) -> dict[str, str]:
    """The settings: the secrets are those for all."""
    names = [f"a{number}" for number in range(count)]
    appids = zip(names, _appids(count), strict=True)
    return {"ACCOUNTS": ",".join(names)} | {f"{name.upper()}_WECHAT_APPID": appid for name, appid in appids}


def _push_to_each(server: Server, accounts: int, count: int) -> None:
    sent = [pushes.new() for _ in range(count)]
    requests = [
        push.request.replace(b"/wechat?", b"/wechat/a%d?" % (number % accounts), 1)
        for number, push in enumerate(sent)
    ]
    outcome = drive(server.port, requests, CONNECTIONS, 120)
    if pushes.faults(sent, outcome.bodies, None):
        raise Incomplete("a wrong answer")


# -- pictures ----------------------------------------------------------------------------------------------------


def downloads(tree: Path, folder: Path, size: Size, give_up: float) -> list[Line]:
    """Pictures through two workers, as they are installed: sixteen at a time in each. Beside curl, sixteen at a time,
    from the same server to the same disk."""
    ours, theirs, used = [], [], []
    with (
        _platform(folder, size.small_picture) as platform,
        _worker(tree, folder, platform.port) as one,
        _worker(tree, folder, platform.port) as another,
    ):
        _download(folder, platform.port, [one, another], AT_ONCE)
        for number in range(size.download_rounds):
            took = _download(folder, platform.port, [one, another], size.downloads)
            ours.append(took.seconds)
            used.append(took.cpu_seconds)
            theirs.append(_curl(folder / f"curl-{number}", platform.port, size.downloads))
    cpu = statistics.median(used) / size.downloads
    megabytes = size.downloads * size.small_picture / MB
    ratio = statistics.median(their / our for our, their in zip(ours, theirs, strict=True))
    with (
        _platform(folder, size.large_picture) as platform,
        _worker(tree, folder, platform.port) as worker,
    ):
        peak = _download(folder, platform.port, [worker], AT_ONCE, look_at_memory=True).peak_memory
    what = f"{size.downloads} pictures of 1 MB"
    return [
        Line(
            f"{what}: two workers, {AT_ONCE} at a time in each",
            f"{megabytes / statistics.median(ours):.0f} MB/s",
            values=ours,
        ),
        Line(f"{what}: the workers' CPU a picture", f"{cpu * 1e3:.1f} ms"),
        Line(
            f"{what}: curl, {AT_ONCE} at a time",
            f"{megabytes / statistics.median(theirs):.0f} MB/s",
            values=theirs,
        ),
        Line(f"{what}: of curl's rate", f"{ratio:.2f}", "≥ 0.70, better 0.90"),
        Line(
            f"one worker's peak memory, all its processes, while {AT_ONCE} pictures of 10 MB come in",
            f"{peak / MB:.0f} MB",
            "< 120 MB, better 80",
        ),
    ]


@contextmanager
def _platform(folder: Path, picture_bytes: int) -> Iterator[Server]:
    """Serves one real photograph, made longer: what stands behind a JPEG's end is not looked at."""
    photo = (ROOT / "sandbox" / "photos" / "grace_hopper.jpg").read_bytes()
    file = folder / "picture.jpg"
    file.write_bytes(photo.ljust(picture_bytes, b"\0"))
    port = free_port()
    command = ["bench.platform", str(port), str(file)]
    with Server(command, folder=ROOT, environ={}, port=port, log=folder / "platform.log") as server:
        yield server


@contextmanager
def _worker(tree: Path, folder: Path, platform_port: int) -> Iterator[Server]:
    url = f"sqlite:///{folder}/bot.db"
    connect(url).close()
    environ = settings(free_port(), url, folder / "media")
    environ["WECHAT_API_BASE"] = f"http://127.0.0.1:{platform_port}"
    command = ["flask", "worker"]
    with Server(command, folder=tree, environ=environ, port=None, log=folder / "worker.log") as server:
        yield server


@dataclass(frozen=True)
class Took:
    seconds: float
    cpu_seconds: float
    peak_memory: int


def _download(
    folder: Path, platform_port: int, workers: Sequence[Server], count: int, *, look_at_memory: bool = False
) -> Took:
    """Of all processes of the workers, from the first request to the last picture stored and marked.

    The files are deleted, so that each round, ours as curl's, finds the memory for them as the one before it did.
    """
    _first_request_at(platform_port)
    database = connect(f"sqlite:///{folder}/bot.db")
    ledger = Ledger(database, APPID)
    for message in _messages(count):
        ledger.record(message, None, time.time() + AHEAD_SECONDS / 2)
    used, peak = sum(worker.cpu_seconds() for worker in workers), 0
    all_due = update(messages).where(messages.c.media_state == "pending").values(media_due=time.time())
    database.write(lambda connection: connection.execute(all_due))

    def done() -> bool:
        nonlocal peak
        if look_at_memory:  # costs time
            peak = max(peak, sum(worker.proportional_memory() for worker in workers))
        return not ledger.status(time.time()).pending

    if not until(done, 120, pause=0.005 if look_at_memory else 0.05) or ledger.status(time.time()).failed:
        raise Incomplete(f"not downloaded: {ledger.status(time.time())}")
    used = sum(worker.cpu_seconds() for worker in workers) - used
    last = database.run(
        lambda connection: connection.exec_driver_sql("SELECT max(media_done_at) FROM messages").scalar()
    )
    for file in (folder / "media" / APPID).rglob("*.jpg"):
        file.unlink()
    # Not to be counted in the next round: what is left to do for these pictures.
    left = select(func.count()).where(messages.c.thumbnail_due.is_not(None))
    if not until(lambda: database.run(lambda connection: connection.execute(left).scalar()) == 0, 120):
        raise Incomplete("not all thumbnails were made")
    database.close()
    return Took(last - _first_request_at(platform_port), used, peak)


def _curl(folder: Path, platform_port: int, count: int) -> float:
    url = f"http://127.0.0.1:{platform_port}/cgi-bin/media/get?access_token=x&media_id=[1-{count}]"
    command = [
        "curl",
        "--silent",
        "--no-progress-meter",
        "--fail",
        "--parallel",
        "--parallel-immediate",
        "--create-dirs",
    ]
    command += ["--parallel-max", str(AT_ONCE), "--output", f"{folder}/#1.jpg", url]
    began = time.perf_counter()
    subprocess.run(command, check=True, timeout=120, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    shutil.rmtree(folder)
    return seconds


# -- the rest ----------------------------------------------------------------------------------------------------


def tokens(tree: Path, folder: Path, size: Size, give_up: float) -> list[Line]:
    """What it costs to read the access_token while it is valid: in a process, and from the central server."""
    url = f"sqlite:///{folder}/bot.db"
    with _platform(folder, 1000) as platform:
        base = f"http://127.0.0.1:{platform.port}"
        database = connect(url)
        source = StableTokenSource(ApiClient([base]), APPID, APPSECRET)
        token = AccessToken(SqlTokenStore(database, APPID), source)
        token.get()
        reads = [_seconds_each(range(size.records), lambda _: token.get()) for _ in range(size.rounds)]
        database.close()
        request = (
            b"GET /token HTTP/1.1\r\nHost: bot.example\r\nAuthorization: Bearer a-key-for-the-bench\r\n\r\n"
        )
        more = {"WECHAT_API_BASE": base, "TOKEN_SERVER_KEY": "a-key-for-the-bench"}
        with gunicorn_of_ours(tree, folder, url, **more) as server:
            drive(server.port, [request] * 100, CONNECTIONS)
            used, count = server.cpu_seconds(), size.records * 10
            outcome = drive(server.port, [request] * count, CONNECTIONS)
            used = server.cpu_seconds() - used
    return [
        Line("access_token read in a process", f"{statistics.median(reads) * 1e6:.0f} µs", values=reads),
        Line("GET /token", f"{count / outcome.seconds:.0f}/s, {used / count * 1e6:.0f} µs of CPU"),
    ]


def start(tree: Path, folder: Path, size: Size, give_up: float) -> list[Line]:
    """From the command to the first answer."""
    taken = []
    request = b"GET /healthz HTTP/1.1\r\nHost: bot.example\r\n\r\n"
    for _ in range(3):
        began = time.perf_counter()
        with gunicorn_of_ours(tree, folder, f"sqlite:///{folder}/bot.db") as server:
            drive(server.port, [request], 1)
            taken.append(time.perf_counter() - began)
    return [Line("gunicorn's command to the first answer", f"{statistics.median(taken):.2f} s", values=taken)]


def busy(tree: Path, folder: Path, size: Size, give_up: float) -> list[Line]:
    """One push at a time, each on a connection of its own: alone, and beside a program that computes on each core."""
    cores = len(os.sched_getaffinity(0))
    with gunicorn_of_ours(tree, folder, f"sqlite:///{folder}/bot.db") as server:

        def seconds() -> list[float]:
            sent = [pushes.new() for _ in range(size.records)]
            return [drive(server.port, [push.request], 1).seconds for push in sent]

        seconds()  # imports, caches
        alone = seconds()
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
        try:
            beside = seconds()
        finally:
            for other in others:
                other.kill()
                other.wait()
    return [
        Line("one push at a time: median", f"{statistics.median(alone) * 1e3:.1f} ms"),
        Line(
            f"one push at a time beside {cores} busy programs: median",
            f"{statistics.median(beside) * 1e3:.1f} ms",
            "≤ 5 ms, better 2",
        ),
        Line(
            f"one push at a time beside {cores} busy programs: slowest of 100",
            f"{statistics.quantiles(beside, n=100)[-1] * 1e3:.1f} ms",
        ),
    ]


PARTS = {
    "rows": rows,
    "soak": soak,
    "accounts": accounts,
    "downloads": downloads,
    "tokens": tokens,
    "start": start,
    "busy": busy,
}


def _first_request_at(platform_port: int) -> Any:
    """When the first request for a picture since the last call of this came, in unix seconds; None without one."""
    request = b"GET /times HTTP/1.1\r\nHost: platform.example\r\n\r\n"
    return json.loads(drive(platform_port, [request], 1).bodies[0])["first"]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it too ends the servers that were started
    sys.exit(main(sys.argv[1:]))
