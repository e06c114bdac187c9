"""`python -m bench`: this server beside servers that keep nothing, in one run; a table here and in bench/results/.

All contestants run all the time and work in turns. The turns are interleaved, so that other load of the machine
affects all alike. Server CPU per message is the user and system time of all the server's processes, divided by its
messages. Every answer is checked, and every answered message must be a row, once.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import pushes
from bench.contestants import (
    PEERS,
    PROCESSES,
    ROOT,
    WECHATPY,
    WECHATPY_SAFE,
    Contestant,
    copy_of,
    express,
    express_lacks,
    ours,
    ours_on_postgresql,
    peer,
)
from bench.load import drive
from bench.servers import cpu_seconds

RESULTS = ROOT / "bench" / "results"
CONNECTIONS = 32
LIMIT_SECONDS = 540.0  # no new round after that
WORKER_CLASSES = ("gthread", "sync")

FULL = "ours, as installed (LEDGER_SYNC=full)"
NORMAL = "ours, LEDGER_SYNC=normal"
SAFE = "ours, safe mode, normal"
POSTGRESQL = "ours, PostgreSQL"
REPEATED = "repeated deliveries"
EXPRESS = "npm wechat + express, keeps nothing"


@dataclass(frozen=True)
class Turn:
    """What one contestant did in one round."""

    messages: int
    seconds: float
    cpu_seconds: float
    database_cpu_seconds: float
    load_cpu_seconds: float

    @property
    def cpu_us(self) -> float:
        return self.cpu_seconds / self.messages * 1e6

    @property
    def with_database_us(self) -> float:
        return (self.cpu_seconds + self.database_cpu_seconds) / self.messages * 1e6

    @property
    def per_second(self) -> float:
        return self.messages / self.seconds


class WrongAnswerError(Exception):
    """A contestant did not do its work: its figures would mean nothing."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contestant (default 9)")
    parser.add_argument("--messages", type=int, default=2000, help="messages in a turn (default 2000)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder for the results")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        help="only contestants whose name holds this, or one of several such; wechatpy always",
    )
    parser.add_argument(
        "--also",
        type=Path,
        action="append",
        default=[],
        help="another copy of this tree to measure beside it",
    )
    options = parser.parse_args(arguments)
    print(
        f"{options.rounds} rounds of {options.messages} messages to each contestant, on 127.0.0.1 only: at most 10 "
        f"minutes, both cores, under 1 GB of memory and of disk below {options.results}.",
        flush=True,
    )
    options.results.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="work-", dir=options.results))
    try:
        turns = measure(work, options.rounds, options.messages, options.only, options.also)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    table = report(turns)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    figures = {name: [asdict(turn) for turn in taken] for name, taken in turns.items()}
    (options.results / f"bench-{stamp}.json").write_text(json.dumps({"machine": machine(), "turns": figures}))
    (options.results / f"bench-{stamp}.md").write_text(table)
    print(f"\n{table}\nAlso in {options.results}/bench-{stamp}.md and .json")
    return 0


def machine() -> str:
    return (
        f"{platform.machine()}, Python {platform.python_version()}, {platform.system()} {platform.release()}"
    )


def measure(
    work: Path, rounds: int, messages: int, only: Sequence[str], also: Sequence[Path]
) -> dict[str, list[Turn]]:
    """The turns of each contestant. Raises WrongAnswerError when one answers wrongly or loses a message."""
    give_up = time.monotonic() + LIMIT_SECONDS
    turns: dict[str, list[Turn]] = defaultdict(list)
    with ExitStack() as running:
        contestants = start(running, work, only, also)
        for contestant in contestants:  # the table's order
            turns[contestant.name] = []
        kept: dict[str, set[str]] = defaultdict(set)
        for contestant in contestants:  # imports, caches, compilers
            count = max(int(messages * contestant.warm_up), CONNECTIONS)
            warm = [pushes.new(contestant.mode) for _ in range(count)]
            take_turn(contestant, warm, kept[contestant.name])
        for number in range(1, rounds + 1):
            if time.monotonic() > give_up:
                print(f"the time is over after {number - 1} rounds", flush=True)
                break
            print(f"round {number} of {rounds}", flush=True)
            # The order changes, so that none always comes after the same one.
            shift = number % len(contestants)
            for contestant in contestants[shift:] + contestants[:shift]:
                fresh = [pushes.new(contestant.mode) for _ in range(messages)]
                turn, bodies = take_turn(contestant, fresh, kept[contestant.name])
                turns[contestant.name].append(turn)
                if contestant.name in (FULL, POSTGRESQL):
                    repeated = [pushes.again(push) for push in fresh]
                    turn, repeats = take_turn(contestant, repeated, kept[contestant.name])
                    turns[f"{contestant.name}: {REPEATED}"].append(turn)
                    if repeats != bodies:
                        raise WrongAnswerError(f"{contestant.name}: a repeat was answered otherwise")
    return dict(turns)


def start(running: ExitStack, work: Path, only: Sequence[str], also: Sequence[Path]) -> list[Contestant]:
    """Ours first; the others once for each worker class; express where it can run, and a line says where it cannot."""

    def is_wanted(name: str) -> bool:
        return not only or any(part in name for part in only) or name.startswith((WECHATPY, WECHATPY_SAFE))

    found: list[tuple[str, AbstractContextManager[Contestant]]] = []
    for number, source in enumerate([ROOT, *also]):
        mark = f" [{source.name}]" if number else ""
        folder = work / f"ours-{number}"
        tree = copy_of(source, folder / "tree")
        found += [
            (FULL + mark, ours(FULL + mark, tree, folder / "full")),
            (NORMAL + mark, ours(NORMAL + mark, tree, folder / "normal", sync="normal")),
            (SAFE + mark, ours(SAFE + mark, tree, folder / "safe", mode="safe", sync="normal")),
            (POSTGRESQL + mark, ours_on_postgresql(POSTGRESQL + mark, tree, folder / "postgresql")),
        ]
    for of in PEERS:
        for worker_class in WORKER_CLASSES:
            name = f"{of.name} ({worker_class})"
            found.append((name, peer(name, of, worker_class, work / of.module / worker_class)))
    if lacks := express_lacks():
        if is_wanted(EXPRESS):
            print(f"{EXPRESS}: left out, {lacks}", flush=True)
    else:
        found.append((EXPRESS, express(EXPRESS, work / "express")))
    return [running.enter_context(contestant) for name, contestant in found if is_wanted(name)]


def take_turn(
    contestant: Contestant, sent: Sequence[pushes.Push], kept: set[str]
) -> tuple[Turn, list[bytes]]:
    """Send these; check every answer, and that the ledger holds each answered message once. `kept` grows by them."""

    def database_seconds() -> float:
        return cpu_seconds(contestant.database) if contestant.database else 0.0

    before, database_before = contestant.server.cpu_seconds(), database_seconds()
    outcome = drive(contestant.server.port, [push.request for push in sent], CONNECTIONS)
    used = contestant.server.cpu_seconds() - before
    database_used = database_seconds() - database_before
    if faults := pushes.faults(sent, outcome.bodies, contestant.constant):
        raise WrongAnswerError(f"{contestant.name}: {len(faults)} wrong answers, the first: {faults[0]}")
    if contestant.msg_ids is not None:
        kept.update(push.msg_id for push in sent)
        rows = contestant.msg_ids()
        if len(rows) != len(kept) or set(rows) != kept:
            raise WrongAnswerError(f"{contestant.name}: {len(kept)} messages answered, {len(rows)} rows")
    return Turn(len(sent), outcome.seconds, used, database_used, outcome.cpu_seconds), outcome.bodies


def report(turns: Mapping[str, Sequence[Turn]]) -> str:
    """The table, and how the promised figures are met."""
    plain, sealed = (References.of(turns, name) for name in (WECHATPY, WECHATPY_SAFE))
    lines = [
        f"{machine()}; gunicorn (express: node's cluster), {PROCESSES} processes; {CONNECTIONS} connections; "
        f"{min(map(len, turns.values()))} rounds of {max(turn.messages for turn in next(iter(turns.values())))}.",
        "Medians (least to most of the rounds); ratios are medians of the rounds' own, to wechatpy's better worker class "
        "in that column, for safe mode to its safe mode.",
        "",
        "| contestant | messages/s | × wechatpy | server CPU µs/message | × wechatpy | with the database's |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, taken in turns.items():
        reference = sealed if "safe mode" in name else plain
        with_database = (
            _spread([turn.with_database_us for turn in taken]) if taken[0].database_cpu_seconds else ""
        )
        lines.append(
            f"| {name} | {_spread([turn.per_second for turn in taken])} | {reference.rate(taken):.2f} "
            f"| {_spread([turn.cpu_us for turn in taken])} | {reference.cpu(taken):.2f} | {with_database} |"
        )
    load = [turn.load_cpu_seconds / turn.messages * 1e6 for taken in turns.values() for turn in taken]
    lines += ["", f"The load's own CPU: {statistics.median(load):.0f} µs/message.", ""]
    return "\n".join(lines + promises(turns, plain, sealed) + beside_express(turns)) + "\n"


def promises(turns: Mapping[str, Sequence[Turn]], plain: References, sealed: References) -> list[str]:
    """Each promised figure, with the measured one."""
    lines = ["| figure | measured | must | reach for |", "|---|---:|---:|---:|"]
    for name, measured, must, reach in (
        (FULL, plain.cpu, "≤ 1.30", "1.10"),
        (FULL, plain.rate, "≥ 0.70", "0.90"),
        (NORMAL, plain.cpu, "≤ 1.20", "0.72"),
        (NORMAL, plain.rate, "≥ 1.00", "1.35"),
        (SAFE, sealed.cpu, "≤ 1.00", "0.85"),
        (POSTGRESQL, plain.cpu, "≤ 1.30", "1.15"),
        (POSTGRESQL, plain.rate, "≥ 0.75", "0.90"),
    ):
        if name in turns:
            what = "CPU" if must.startswith("≤") else "messages/s"
            lines.append(f"| {name}: {what} × wechatpy | {measured(turns[name]):.2f} | {must} | {reach} |")
    if FULL in turns:
        first, repeated = (
            statistics.median(turn.cpu_us for turn in turns[name]) for name in (FULL, f"{FULL}: {REPEATED}")
        )
        lines.append(f"| a repeated delivery: CPU × a first one | {repeated / first:.2f} | < 1 | |")
    return lines


def beside_express(turns: Mapping[str, Sequence[Turn]]) -> list[str]:
    """Where ours stands beside the fastest of the others; nothing when that did not run."""
    if EXPRESS not in turns:
        return []
    reference = References(turns[EXPRESS], turns[EXPRESS])
    return ["", f"| × {EXPRESS} | messages/s | server CPU |", "|---|---:|---:|"] + [
        f"| {name} | {reference.rate(taken):.2f} | {reference.cpu(taken):.2f} |"
        for name, taken in turns.items()
        if name.startswith("ours") and "safe mode" not in name
    ]


@dataclass(frozen=True)
class References:
    """A contestant's turns: those in the worker class that uses the least CPU, and those in the fastest."""

    least_cpu: Sequence[Turn]
    fastest: Sequence[Turn]

    @classmethod
    def of(cls, turns: Mapping[str, Sequence[Turn]], name: str) -> References:
        classes = [turns[f"{name} ({worker_class})"] for worker_class in WORKER_CLASSES]
        return cls(
            min(classes, key=lambda taken: statistics.median(turn.cpu_us for turn in taken)),
            max(classes, key=lambda taken: statistics.median(turn.per_second for turn in taken)),
        )

    def cpu(self, taken: Sequence[Turn]) -> float:
        return _ratio([turn.cpu_us for turn in taken], [turn.cpu_us for turn in self.least_cpu])

    def rate(self, taken: Sequence[Turn]) -> float:
        return _ratio([turn.per_second for turn in taken], [turn.per_second for turn in self.fastest])


def _ratio(these: Sequence[float], those: Sequence[float]) -> float:
    """The median over the rounds of a round's own ratio."""
    return statistics.median(this / that for this, that in zip(these, those, strict=True))


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it too ends the servers that were started
    sys.exit(main(sys.argv[1:]))
