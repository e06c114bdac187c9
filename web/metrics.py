"""The counters that the web processes keep themselves; names as Prometheus shows them.

Knows names and buckets. Must not know what is counted when, nor the figures in the database: web/ops.py reads those
at each scrape. Under gunicorn all processes count into one folder (PROMETHEUS_MULTIPROC_DIR, see metrics_folder.py).
"""

from __future__ import annotations

from functools import cache

from prometheus_client import Counter, Histogram

_DELIVERIES = Counter("wechat_deliveries", "Authentic pushes, repeats included", ["type"])
deliveries = cache(_DELIVERIES.labels)
DUPLICATES = Counter("wechat_duplicates", "Pushes that were answered from the ledger")
REFUSALS = Counter("wechat_refusals", "Requests to the callback that were refused", ["reason"])
FAULTS = Counter(
    "wechat_faults", "Requests that a fault of ours ended: answered 500, its traceback is in the log"
)
DEADLINE_MISSES = Counter("wechat_deadline_misses", "Pushes answered later than the platform's 5 seconds")
REPLY_SECONDS = Histogram(
    "wechat_reply_seconds",
    "Seconds from a push's arrival to its answer",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 4.5, 5, 10),
)

# Each counter exists from the start with 0: Prometheus's rate() misses the first increment of a new one.
for reason in ("signature", "timestamp", "envelope", "doctype", "xml", "method", "size", "key"):
    REFUSALS.labels(reason)
