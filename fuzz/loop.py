"""One target, fuzzed for so many seconds, in a process of its own: `python -m fuzz.loop TARGET SECONDS`.

Inputs are mutations of the seeds, and of inputs whose outcome was new. The run stops at the first input that breaks a
promise or takes longer than a second of the processor; that input is written to fuzz/found. A process that takes too
much memory fails at its end. The last line of output is JSON.
"""

import argparse
import hashlib
import json
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, Final

from fuzz import targets
from fuzz.words import WORDS

MAX_INPUT_BYTES: Final = 16 * 1024
MAX_CPU_SECONDS: Final = 1.0  # for one input
MAX_WALL_SECONDS: Final = 5  # for one input: a busy machine is no hang
MAX_MEGABYTES: Final = 512  # for the process


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz.loop")
    parser.add_argument("target")
    parser.add_argument("seconds", type=int)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        return run(given.target, given.seconds, Path(folder))


class Hang(BaseException):
    """Not an Exception, so that nothing on the way can take it for its own."""


def run(name: str, seconds: int, folder: Path) -> int:
    corpus = targets.seeds(name)
    seen: set[object] = set()
    slowest, count, started, data = 0.0, 0, time.monotonic(), b""

    def hang(*_: Any) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, hang)
    with targets.quiet_logs():
        try_one = targets.target(name, folder)
        waiting = list(corpus)
        try:
            while time.monotonic() - started < seconds:
                data = waiting.pop() if waiting else mutated(random.choice(corpus), corpus)
                signal.alarm(MAX_WALL_SECONDS)
                cpu = time.thread_time()
                outcome = try_one(data)
                cpu = time.thread_time() - cpu
                signal.alarm(0)
                if cpu > MAX_CPU_SECONDS:
                    raise Hang
                slowest = max(slowest, cpu)
                count += 1
                if outcome not in seen:
                    seen.add(outcome)
                    corpus.append(data)
        except (Exception, Hang):
            signal.alarm(0)
            traceback.print_exc()
            print(f"found: {keep(name, data)}", file=sys.stderr)
            return 1
    return report(name, count, time.monotonic() - started, slowest)


def mutated(data: bytes, corpus: list[bytes]) -> bytes:
    """The input with one to eight changes."""
    made = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 2, 4, 8))):
        place, end = random.randint(0, len(made)), random.randint(0, len(made))
        match random.randrange(8):
            case 0 if made:
                made[place - 1] ^= 1 << random.randrange(8)
            case 1 if made:
                made[place - 1] = random.choice((0, 255, random.randrange(256)))
            case 2:
                made[place:place] = random.choice(WORDS)
            case 3:
                del made[place : place + random.choice((1, 4, 30))]
            case 4:
                made[place:place] = made[place : place + random.choice((1, 8, 100))] * random.choice(
                    (1, 2, 50)
                )
            case 5:
                made[place:end] = random.choice(WORDS)
            case 6:
                other = random.choice(corpus)
                made[place:] = other[random.randint(0, len(other)) :]
            case _:
                made[place:place] = random.randbytes(random.choice((1, 2, 8)))
    return bytes(made[:MAX_INPUT_BYTES])


def keep(name: str, data: bytes) -> Path:
    targets.FOUND.mkdir(exist_ok=True)
    path = targets.FOUND / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return path


def report(name: str, count: int, seconds: float, slowest: float) -> int:
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    figures = {
        "target": name,
        "inputs": count,
        "seconds": round(seconds, 1),
        "slowest_cpu_ms": round(slowest * 1000, 1),
        "peak_mb": megabytes,
    }
    print(json.dumps(figures), flush=True)
    return int(megabytes > MAX_MEGABYTES)


if __name__ == "__main__":
    sys.exit(main())
