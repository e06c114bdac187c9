"""How gunicorn runs the web processes. Faults in the settings end it here, before a process is started.

Knows processes and threads. A worker is given its background work after the fork, and gives it back before it exits.
"""

from __future__ import annotations

import gc
import mmap
import os
import select
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gunicorn.glogging import Logger  # type: ignore[import-untyped]
from gunicorn.http.body import LengthReader  # type: ignore[import-untyped]
from gunicorn.workers.gthread import TConn, ThreadWorker  # type: ignore[import-untyped]

chdir = str(Path(__file__).resolve().parent)  # gunicorn may be started in any folder
sys.path.insert(0, chdir)

import cores  # noqa: E402
import logs  # noqa: E402
from config import Settings, SettingsError  # noqa: E402

try:
    _settings = Settings.from_env(os.environ)
except SettingsError as error:
    sys.stderr.write(f"{error}\n")
    sys.exit(2)  # what systemd's RestartPreventExitStatus names: another start would find the same

LINGER_MILLISECONDS = 20
GATHERED_BYTES = 65536

# How many connections each process has, told by itself, for all to see; NOBODY where there is no process.
NOBODY = -1
_places = memoryview(mmap.mmap(-1, 4 * (2 * _settings.web_concurrency + 64))).cast("i")
for _place in range(len(_places)):
    _places[_place] = NOBODY


class PushWorker(ThreadWorker):  # type: ignore[misc]
    """gthread for few connections that carry many pushes, as a proxy keeps them.

    A thread stays a moment with its connection: under load the next push comes at once, and the way back to the
    process's one poller, and from there to another thread, costs a fifth of an answer. A new connection is left to a
    process that has fewer: it stays where it is taken, and chance gives one process three times as many as another.
    """

    def __init__(self, *arguments: Any) -> None:
        self._places = _places  # a reload makes new ones
        self._place = _places.tolist().index(NOBODY)
        super().__init__(*arguments)

    def leave(self) -> None:
        """The process has ended."""
        self._places[self._place] = NOBODY

    @property
    def nr_conns(self) -> int:
        return self._places[self._place]

    @nr_conns.setter
    def nr_conns(self, count: int) -> None:
        self._places[self._place] = count

    def init_process(self) -> None:
        cores.choose(self._place)
        # A dozen are looked up for each request, each by a search and a call. From here on they stay as they are.
        self.cfg.__dict__.update({name: setting.get() for name, setting in self.cfg.settings.items()})
        super().init_process()

    def run(self) -> None:
        cores.stay_on_one()  # and the threads that answer, which begin here; those in the background have begun before
        super().run()

    def accept(self, listener: Any) -> None:
        more = self.nr_conns - min(count for count in self._places if count != NOBODY)
        if more > 2:
            # Whoever has fewer was woken as well, and nothing tells when he has taken it. If he is too busy, or does
            # not run any more, it is taken here.
            time.sleep(min(more / 1000, 0.005))
        super().accept(listener)

    def handle(self, conn: TConn) -> Any:
        poll = select.poll()
        poll.register(conn.sock, select.POLLIN)
        # A push comes with its connection: gunicorn would make a selector to look for it.
        conn.data_ready = conn.data_ready or bool(poll.poll(0))
        while (kept := super().handle(conn)) is True and self.alive:
            # Whether the next request is there, or begins to come in a moment.
            if not conn.parser.unreader.buf.getvalue() and not poll.poll(LINGER_MILLISECONDS):
                break
        return kept

    def handle_request(self, req: Any, conn: TConn) -> Any:
        sock = conn.sock
        conn.sock = _Gathered(sock)
        try:
            kept = super().handle_request(req, conn)
            conn.sock.flush()
            return kept
        finally:
            conn.sock = sock


class _Gathered:
    """A socket that sends at once what gunicorn writes in pieces: the head of an answer and its body. The receiver is
    woken once instead of twice, which costs as much as to parse the request."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._unsent = bytearray()

    def sendall(self, data: bytes) -> None:
        self._unsent += data
        if len(self._unsent) > GATHERED_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._unsent:
            self._sock.sendall(self._unsent)
            self._unsent.clear()

    def __getattr__(self, name: str) -> Any:
        """Everything else is the socket's own, once what came before has been sent."""
        self.flush()
        return getattr(self._sock, name)


class LoggerWithoutAccess(Logger):  # type: ignore[misc]
    """gunicorn's own, without its access lines: given a logconfig_dict it makes one for each request, wanted or not."""

    access_log_enabled = False


bind = f"127.0.0.1:{_settings.port}"  # the Procfile's --bind opens it to a platform's router
workers = _settings.web_concurrency

worker_class = PushWorker
threads = 512  # deliveries that wait for a deferred reply, and slow clients, must not hold up the others
keepalive = 75
graceful_timeout = 30
forwarded_allow_ips = ""  # PROXY_HOPS alone says whether X-Forwarded-* are believed
control_socket_disable = True  # one machine may run several bots; signals are enough
logconfig_dict = logs.config(_settings.log_format, _settings.log_level)
logger_class = LoggerWithoutAccess

# All web processes count into one folder, which the scrape of any of them adds up.
_own_metrics_folder = "PROMETHEUS_MULTIPROC_DIR" not in os.environ
if _own_metrics_folder:
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="wechat-metrics-")

EMBEDDED_THREADS = 4  # downloads at once in each web process


def pre_request(worker: Any, req: Any) -> None:
    """A body over the cap, or of no told length, is the last of its connection: to get to a next request gunicorn
    would read it to its end. (A `Connection` header of the application it drops.)"""
    body = req.body.reader
    if not isinstance(body, LengthReader):
        req.force_close()
        # Lines between the chunks gunicorn reads however long they are.
        _bound(req.unreader, 2 * _settings.max_push_bytes)
    elif body.length > _settings.max_push_bytes:
        req.force_close()


def _bound(unreader: Any, left: int) -> None:
    """From now on this connection ends after so many bytes more."""
    receive = unreader.chunk

    def chunk() -> bytes:
        nonlocal left
        data: bytes = receive() if left > 0 else b""
        left -= len(data)
        return data

    unreader.chunk = chunk


def post_worker_init(worker: Any) -> None:
    embedded = _settings.worker == "embedded"
    worker.parts = worker.wsgi.extensions["parts"]
    worker.parts.worker.start(EMBEDDED_THREADS if embedded else 0)
    worker.parts.deferred.start(orphans=embedded)
    # What is there by now stays: the collector need not look at it again, and comes for thousands of new objects only.
    gc.freeze()
    gc.set_threshold(10_000)


def worker_exit(server: Any, worker: Any) -> None:
    if hasattr(worker, "parts"):
        worker.parts.stop()


def child_exit(server: Any, worker: Any) -> None:
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]
    worker.leave()


def on_exit(server: Any) -> None:
    if _own_metrics_folder:
        shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"], ignore_errors=True)
