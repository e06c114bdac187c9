"""`python -m fuzz`: all targets, each in a process of its own, for a given time; then a table of what was tried.

With atheris in the environment (`pip install -r requirements-fuzz.txt`) the runs are guided by coverage, and the plain
loop has the last fifth of the time; without it the plain loop has all of it.
"""

import argparse
import importlib.util
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
PLAIN_SHARE = 0.2
ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=360, help="for all targets together, default 360")
    parser.add_argument("--jobs", type=int, default=usable_cores(), help="processes at a time")
    parser.add_argument("--plain", action="store_true", help="without atheris, also where it is installed")
    given = parser.parse_args()
    guided = not given.plain and importlib.util.find_spec("atheris") is not None
    print(
        f"Fuzzing {len(SHARES)} targets, {given.jobs} at a time, {given.seconds} s in all, "
        f"{'guided by coverage (atheris)' if guided else 'by plain mutations (atheris is not installed)'}; "
        "nothing outside of this machine is called.",
        flush=True,
    )
    runs = []
    for name, share in SHARES.items():
        seconds = given.seconds * given.jobs * share / sum(SHARES.values())
        if guided:
            runs.append((name, round(seconds * (1 - PLAIN_SHARE)), True))
            seconds *= PLAIN_SHARE
        runs.append((name, round(seconds), False))
    runs.sort(key=lambda run: -run[1])
    started = time.monotonic()
    with ThreadPoolExecutor(given.jobs) as pool:
        results = [figures for figures in pool.map(lambda run: fuzz(*run), runs) if figures]
    print("\n| target | guided | inputs | seconds | inputs/s | slowest input, ms of CPU | peak MB |")
    print("|---|---|---|---|---|---|---|")
    for one in results:
        print(
            f"| {one['target']} | {'yes' if one['guided'] else 'no'} | {one['inputs']:,} | {one['seconds']:.0f} | "
            f"{one['inputs'] / one['seconds']:,.0f} | {one['slowest_cpu_ms']} | {one['peak_mb']} |"
        )
    total, seconds = sum(one["inputs"] for one in results), time.monotonic() - started
    broken = len(runs) - len(results)
    print(f"\n{total:,} inputs in {seconds:.0f} s; promises broken in {broken} of {len(runs)} runs")
    return 1 if broken else 0


def fuzz(name: str, seconds: int, guided: bool) -> dict[str, Any] | None:
    """The figures of one run; None when it found something, which is then shown."""
    command = [sys.executable, "-m", "fuzz.loop", name, str(max(seconds, 1))]
    done = subprocess.run(
        command + ["--guided"] * guided,
        cwd=ROOT,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        figures: dict[str, Any] = json.loads(lines[-1])
        print(f"{name}: {figures['inputs']:,} inputs, nothing found", flush=True)
        return figures
    print(f"{name}: BROKEN (exit {done.returncode})\n{done.stderr[-6000:]}", flush=True)
    return None


if __name__ == "__main__":
    sys.exit(main())
