"""The counters of the web processes, with their names in Prometheus.

Knows names and buckets. Must not know when something is counted, nor the figures in the database: web/ops.py reads
those at each scrape. Under gunicorn all processes share one folder (PROMETHEUS_MULTIPROC_DIR, metrics_folder.py).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

from prometheus_client import REGISTRY, Counter, Histogram, values
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
FILE_BYTES = 1 << 17  # the counters of some forty accounts


class _Identity:
    """The name of this process in prometheus_client's file names. If the files are gone (something may have cleaned the
    temporary directory), another name, with new ones.

    https://prometheus.github.io/client_python/multiprocess/
    """

    def __init__(self, folder: str) -> None:
        """Raises OSError when the folder has no room."""
        self._folder, self._made, self._next_look = folder, 0, 0.0
        self._name = self._new_files()

    def __call__(self) -> str:
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            forked = not self._name.startswith(f"{os.getpid()}-")
            if forked or not os.path.exists(f"{self._folder}/counter_{self._name}.db"):
                with suppress(OSError):
                    self._name = self._new_files()
        return self._name

    def _new_files(self) -> str:
        # Of zeros, not of holes: a process that counts in a hole is killed (SIGBUS) when the disk is full.
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        self._made += 1
        name = f"{os.getpid()}-{self._made}"
        files = [Path(self._folder, f"{kind}_{name}.db") for kind in ("histogram", "counter")]
        try:
            for file in files:
                file.write_bytes(bytes(FILE_BYTES))
        except OSError:
            for file in files:
                file.unlink(missing_ok=True)
            raise
        return name


FOLDER = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
if FOLDER:
    try:
        values.ValueClass = values.MultiProcessValue(_Identity(FOLDER))  # type: ignore[no-untyped-call]
    except OSError as error:
        log.error("this process counts for itself until it is started again", extra={"reason": str(error)})
        FOLDER, values.ValueClass = None, values.MutexValue

_DELIVERIES = Counter("wechat_deliveries", "Authentic pushes, repeats included", ["account", "type"])
_DUPLICATES = Counter("wechat_duplicates", "Pushes that were answered from the ledger", ["account"])
REASONS = ("signature", "timestamp", "envelope", "doctype", "xml", "method", "size", "key")
_REFUSALS = Counter("wechat_refusals", "Requests to the callback that were refused", ["account", "reason"])
FAULTS = Counter(
    "wechat_faults", "Requests that a fault of ours ended: answered 500, its traceback is in the log"
)
_DEADLINE_MISSES = Counter(
    "wechat_deadline_misses",
    "Pushes answered later than the platform's 5 seconds, or with 503 since the ledger could not be written",
    ["account"],
)
_REPLY_SECONDS = Histogram(
    "wechat_reply_seconds",
    "Seconds from a push's arrival to its answer",
    ["account"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 4.5, 5, 10),
)


class Counts:
    """The counters of one account, by its name in ACCOUNTS. '' is the only account, or what belongs to no account."""

    def __init__(self, account: str = "") -> None:
        self.deliveries = cache(partial(_DELIVERIES.labels, account))
        self.duplicates = _DUPLICATES.labels(account)
        self.deadline_misses = _DEADLINE_MISSES.labels(account)
        self.reply_seconds = _REPLY_SECONDS.labels(account)
        self.refusals = partial(_REFUSALS.labels, account)
        # Each counter exists from the start with 0: Prometheus's rate() misses the first increment of a new one.
        for reason in REASONS:
            self.refusals(reason)


class Counted(Collector):
    """What all web processes have counted. The label `account` is only there if there are several accounts."""

    def collect(self) -> Iterable[Metric]:
        for metric in _of_all_processes(FOLDER) if FOLDER else REGISTRY.collect():
            metric.samples = [
                sample._replace(
                    labels={name: text for name, text in sample.labels.items() if name != "account"}
                )
                if sample.labels.get("account") == ""
                else sample
                for sample in metric.samples
            ]
            yield metric


def _of_all_processes(folder: str) -> Iterable[Metric]:
    os.makedirs(folder, mode=0o700, exist_ok=True)
    with os.scandir(folder) as found:
        # A file that a process has only just made is still empty, and prometheus_client fails at it.
        files = [one.path for one in found if one.name.endswith(".db") and one.stat().st_size]
    merged: Iterable[Metric] = MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
    return merged
