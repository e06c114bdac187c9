"""How gunicorn runs the web processes: its settings and hooks.

Knows gunicorn's names. Changes to gunicorn itself are in web/server.py. Faulty settings and folders that cannot be
written end gunicorn here, before it starts a process. Must not know what is answered.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

chdir = str(Path(__file__).resolve().parent)  # gunicorn may be started from any folder
sys.path.insert(0, chdir)

import cores  # noqa: E402
import logs  # noqa: E402
from web import metrics_folder, server  # noqa: E402

try:
    _settings = server.settings()
except server.FAULTS as error:
    sys.stderr.write(f"{error}\n")
    sys.exit(2)  # systemd's RestartPreventExitStatus: a restart would fail in the same way

EMBEDDED_THREADS = 4  # jobs (downloads and sends) of each account at once, in each web process
_metrics = metrics_folder.of_this_server()
_files = cores.raise_file_limit()
bind = f"127.0.0.1:{_settings.port}"  # the Procfile's --bind opens it to a platform's router
workers = _settings.web_concurrency
worker_class = server.worker_class()
worker_connections = min(_files - min(256, _files // 2), 10_000)  # the ledger and downloads need files too
threads = min(512, worker_connections // 2)  # so that waiting deliveries and slow clients do not block others
keepalive = 75
graceful_timeout = 25  # 20 s for running work, 5 s to give the rest back
forwarded_allow_ips = ""  # PROXY_HOPS alone says whether X-Forwarded-* are believed
control_socket_disable = True  # one machine may run several bots; signals are enough
logconfig_dict = logs.config(_settings.log_format, _settings.log_level)
logger_class = server.QuietLogger


def on_starting(master: Any) -> None:
    server.tell_what_is_missing(master)
    server.reload_without_faults_only(master)


def pre_fork(master: Any, worker: Any) -> None:
    _metrics.make()
    taken = {other.place for other in master.WORKERS.values()}
    worker.place = next(place for place in range(len(taken) + 1) if place not in taken)


def post_worker_init(worker: Any) -> None:
    worker.accounts = worker.wsgi.extensions["accounts"]
    worker.when_stopping = worker.accounts.ask_to_stop
    worker.accounts.start(EMBEDDED_THREADS if _settings.worker == "embedded" else 0)


def worker_exit(master: Any, worker: Any) -> None:
    if hasattr(worker, "accounts"):
        worker.accounts.stop()
        cores.end_process()


def on_exit(master: Any) -> None:
    _metrics.remove()
