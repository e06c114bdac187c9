"""How gunicorn runs the web processes. Faults in the settings end it here, before a process is started.

Knows processes and threads. A worker is given its background work after the fork, and gives it back before it exits.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from typing import Any

import logs
from config import Settings, SettingsError

try:
    _settings = Settings.from_env(os.environ)
except SettingsError as error:
    sys.exit(str(error))

bind = f"127.0.0.1:{_settings.port}"  # the Procfile's --bind opens it to a platform's router
workers = _settings.web_concurrency
worker_class = "gthread"
threads = 512  # deliveries that wait for a deferred reply, and slow clients, must not hold up the others
keepalive = 75
graceful_timeout = 30
forwarded_allow_ips = ""  # PROXY_HOPS alone says whether X-Forwarded-* are believed
control_socket_disable = True  # one machine may run several bots; signals are enough
logconfig_dict = logs.config(_settings.log_format)

# All web processes count into one folder, which the scrape of any of them adds up.
_own_metrics_folder = "PROMETHEUS_MULTIPROC_DIR" not in os.environ
if _own_metrics_folder:
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="wechat-metrics-")

EMBEDDED_THREADS = 4  # downloads at once in each web process


def post_worker_init(worker: Any) -> None:
    embedded = _settings.worker == "embedded"
    worker.parts = worker.wsgi.extensions["parts"]
    worker.parts.worker.start(EMBEDDED_THREADS if embedded else 0)
    worker.parts.deferred.start(orphans=embedded)


def worker_exit(server: Any, worker: Any) -> None:
    if hasattr(worker, "parts"):
        worker.parts.deferred.stop()
        worker.parts.worker.stop()


def child_exit(server: Any, worker: Any) -> None:
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def on_exit(server: Any) -> None:
    if _own_metrics_folder:
        shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"], ignore_errors=True)
