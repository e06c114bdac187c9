"""The counters of the web processes, with their names in Prometheus.

Knows names and buckets. Must not know when something is counted, nor the figures in the database: web/ops.py reads
those at each scrape. Under gunicorn all processes share one folder (PROMETHEUS_MULTIPROC_DIR, metrics_folder.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import cache, partial

from prometheus_client import REGISTRY, Counter, Histogram, values
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

LOOK_SECONDS = 1.0


class _Identity:
    """The name of this process in prometheus_client's file names. If the files are gone (something may have cleaned the
    temporary directory), another name, so that it makes new ones.

    https://prometheus.github.io/client_python/multiprocess/
    """

    def __init__(self, folder: str) -> None:
        self._folder, self._made, self._next_look = folder, 0, 0.0

    def __call__(self) -> str:
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            if not os.path.exists(f"{self._folder}/counter_{self._name()}.db"):
                with suppress(OSError):
                    os.makedirs(self._folder, mode=0o700, exist_ok=True)
                    self._made += 1
        return self._name()

    def _name(self) -> str:
        return f"{os.getpid()}-{self._made}"


FOLDER = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
if FOLDER:
    values.ValueClass = values.MultiProcessValue(_Identity(FOLDER))  # type: ignore[no-untyped-call]

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
