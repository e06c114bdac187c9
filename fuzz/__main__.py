"""`python -m fuzz`: all targets, each in a process of its own, for a given time; then a table of what was tried.

Knows how to share out the time, and what to print. Must not know what an input is and what is promised of it
(`fuzz.targets` does), or how inputs are made (`fuzz.loop` does).
"""

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from config import usable_cores

# The doors that strangers reach get most of the time.
SHARES = {"callback": 6, "routes": 3, "xml": 2, "media": 2, "json": 1, "envelope": 1, "text": 1}
_TO_START_AND_END = 60  # seconds
ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=360, help="for all targets together, default 360")
    parser.add_argument("--jobs", type=int, default=usable_cores(), help="processes at a time")
    given = parser.parse_args()
    print(
        f"Fuzzing {len(SHARES)} targets, {given.jobs} at a time, {given.seconds} s in all; "
        "nothing outside of this machine is called.",
        flush=True,
    )
    shares = sorted(SHARES.items(), key=lambda share: -share[1])
    runs = [
        (name, round(given.seconds * given.jobs * share / sum(SHARES.values()))) for name, share in shares
    ]
    started = time.monotonic()
    with ThreadPoolExecutor(given.jobs) as pool:
        results = [figures for figures in pool.map(lambda run: fuzz(*run), runs) if figures]
    print("\n| target | inputs | seconds | inputs/s | slowest input, ms of CPU | peak MB |")
    print("|---|---|---|---|---|---|")
    for one in results:
        print(
            f"| {one['target']} | {one['inputs']:,} | {one['seconds']:.0f} | "
            f"{one['inputs'] / one['seconds']:,.0f} | {one['slowest_cpu_ms']} | {one['peak_mb']} |"
        )
    total, seconds = sum(one["inputs"] for one in results), time.monotonic() - started
    broken = len(runs) - len(results)
    print(f"\n{total:,} inputs in {seconds:.0f} s; promises broken in {broken} of {len(runs)} targets")
    return 1 if broken else 0


def fuzz(name: str, seconds: int) -> dict[str, Any] | None:
    """The figures of one run; None when it found something, which is then shown."""
    seconds = max(seconds, 1)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "fuzz.loop", name, str(seconds)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=seconds + _TO_START_AND_END,
        )
    except subprocess.TimeoutExpired:
        print(f"{name}: BROKEN (no end after {seconds + _TO_START_AND_END} s)", flush=True)
        return None
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        figures: dict[str, Any] = json.loads(lines[-1])
        print(f"{name}: {figures['inputs']:,} inputs, nothing found", flush=True)
        return figures
    print(f"{name}: BROKEN (exit {done.returncode})\n{done.stderr[-6000:]}", flush=True)
    return None


if __name__ == "__main__":
    sys.exit(main())
