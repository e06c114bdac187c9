"""`python -m bench.simulate`: simulates 50,000 pictures a second for a minute.

Takes the newest result of `make bench` for what a message costs (each round's figure, at random), and asks how many
cores the web processes and the databases need. The platform is as it is: it drops what takes 5 s and delivers it again,
three times in all, while the server still works on deliveries that were dropped. Knows queues; measures nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import statistics
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.__main__ import POSTGRESQL, REPEATED, RESULTS

STEP = 0.05  # seconds
PATIENCE = 5.0  # seconds
DELIVERIES = 3


@dataclass(frozen=True)
class Cost:
    """Microseconds of CPU of the web processes and of the database for one message, as each round measured it."""

    web: Sequence[float]
    database: Sequence[float]

    @classmethod
    def of(cls, turns: Sequence[Mapping[str, float]]) -> Cost:
        return cls(
            [turn["cpu_seconds"] / turn["messages"] * 1e6 for turn in turns],
            [turn["database_cpu_seconds"] / turn["messages"] * 1e6 for turn in turns],
        )


@dataclass(frozen=True)
class Outcome:
    """Shares are of the messages; `deliveries` are those of one message on average."""

    answered_at_once: float
    answered: float
    deliveries: float
    longest_wait: float


@dataclass
class _Delivery:
    """One delivery of all messages that came in the same step. A repeat stands behind the delivery before it, which is
    in the ledger by then."""

    at: float
    number: int
    messages: float
    answered: float = 0.0


class _Station:
    """Cores that work off what comes, in order."""

    def __init__(self, cores: float, first: Sequence[float], again: Sequence[float]) -> None:
        self._microseconds = cores * STEP * 1e6
        self._first, self._again = first, again
        self._queue: deque[tuple[_Delivery, float]] = deque()

    def __bool__(self) -> bool:
        return bool(self._queue)

    def put(self, delivery: _Delivery, messages: float) -> None:
        self._queue.append((delivery, messages))

    def step(self, chance: random.Random) -> Iterator[tuple[_Delivery, float]]:
        """What is finished in this step."""
        left = self._microseconds
        while self._queue and left > 0:
            delivery, messages = self._queue.popleft()
            cost = chance.choice(self._first if delivery.number == 1 else self._again)
            done = min(messages, left / cost)
            left -= done * cost
            if messages - done > 1e-6:
                self._queue.appendleft((delivery, messages - done))
            yield delivery, done


def simulate(
    rate: float,
    seconds: float,
    *,
    web_cores: float,
    database_cores: float,
    first: Cost,
    again: Cost,
    chance: random.Random,
) -> Outcome:
    """`rate` messages a second for `seconds`, and then until all is worked off."""
    web = _Station(web_cores, first.web, again.web)
    database = _Station(database_cores, first.database, again.database)
    within: deque[_Delivery] = deque()  # those that the platform still waits for
    total = delivered = at_once = answered = longest = 0.0
    for step in itertools.count():
        now = step * STEP
        coming = [_Delivery(now, 1, rate * STEP)] if now < seconds else []
        while within and now - within[0].at >= PATIENCE:
            late = within.popleft()
            if late.messages - late.answered > 1e-6 and late.number < DELIVERIES:
                coming.append(_Delivery(now, late.number + 1, late.messages - late.answered))
        for delivery in coming:
            total += delivery.messages if delivery.number == 1 else 0.0
            delivered += delivery.messages
            within.append(delivery)
            web.put(delivery, delivery.messages)
        for delivery, done in web.step(chance):
            database.put(delivery, done)
        for delivery, done in database.step(chance):
            waited = now + STEP - delivery.at
            longest = max(longest, waited)
            if waited < PATIENCE:
                delivery.answered += done
                answered += done
                at_once += done if delivery.number == 1 else 0.0
        if now >= seconds and not (web or database or within):
            return Outcome(at_once / total, answered / total, delivered / total, longest)
    raise AssertionError("the count does not end")


def report(turns: Mapping[str, Sequence[Mapping[str, float]]], rate: float, seconds: float) -> str:
    """The table; `turns` are those of a result of `make bench`."""
    first, again = Cost.of(turns[POSTGRESQL]), Cost.of(turns[f"{POSTGRESQL}: {REPEATED}"])
    lines = [
        f"{rate:,.0f} messages a second for {seconds:g} s. A message costs {statistics.median(first.web):.0f} µs of the "
        f"web processes and {statistics.median(first.database):.0f} µs of PostgreSQL, a repeat "
        f"{statistics.median(again.web):.0f} and {statistics.median(again.database):.0f} (medians).",
        "",
        "| cores, web | cores, databases | answered by the first delivery | answered at all | deliveries a message | "
        "longest wait |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    need_web = rate * statistics.mean(first.web) / 1e6
    need_database = rate * statistics.mean(first.database) / 1e6
    for share in (0.5, 0.8, 0.9, 1.0, 1.1, 1.5, 2.0):
        web_cores, database_cores = math.ceil(need_web * share), math.ceil(need_database * share)
        outcome = simulate(
            rate,
            seconds,
            web_cores=web_cores,
            database_cores=database_cores,
            first=first,
            again=again,
            chance=random.Random(1),
        )
        lines.append(
            f"| {web_cores} | {database_cores} | {outcome.answered_at_once:.1%} | {outcome.answered:.1%} "
            f"| {outcome.deliveries:.2f} | {outcome.longest_wait:.1f} s |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.simulate", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rate", type=float, default=50_000, help="messages a second (default 50,000)")
    parser.add_argument("--seconds", type=float, default=60, help="for so long (default 60)")
    parser.add_argument("--result", type=Path, help="a bench-*.json (default: the newest in bench/results)")
    options = parser.parse_args(arguments)
    results = sorted(RESULTS.glob("bench-*.json"))
    if not options.result and not results:
        parser.error("there is no result yet: make bench")
    result: dict[str, Any] = json.loads((options.result or results[-1]).read_text())
    print(report(result["turns"], options.rate, options.seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
