"""The seam to gunicorn: checks the settings before it starts or reloads, and changes how a web process takes
connections, sends answers, and ends.

Knows gunicorn 27's threaded worker, and changes a few of its methods. It checks at import that all are there: if not,
the plain worker runs instead, and `MISSING` says why. Must not know what is answered.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from gunicorn.glogging import Logger  # type: ignore[import-untyped]
from gunicorn.http.errors import ParseException  # type: ignore[import-untyped]
from gunicorn.workers import gthread  # type: ignore[import-untyped]

import config
import cores
from config import Settings, SettingsError
from storage import writable

WORK_SECONDS = 20.0  # for running requests, after the signal
LINGER_SECONDS = 0.3  # after the signal: a request may be on its way on a kept connection, and is answered
REQUEST_SECONDS = 30.0  # for a whole request to arrive: an unfinished one would hold a thread for ever
STAY_MILLISECONDS = 20  # a thread waits for its connection's next request; then it leaves that to the poller
PAUSE_SECONDS = 0.5  # without new connections, when the process has too many open files
FIRST_FREE_PORT = 1024
LOG_AGAIN_SECONDS = 60.0
_USED_UP = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_NEEDED = {
    "": ("_DEFER", "TConn", "ThreadWorker"),
    "TConn": ("close",),
    "TConn.__init__": ("sock", "parser", "initialized", "data_ready"),
    "ThreadWorker": (
        "accept",
        "enqueue_req",
        "finish_request",
        "handle",
        "handle_exit",
        "handle_quit",
        "handle_request",
        "run",
        "set_accept_enabled",
        "wait_for_and_dispatch_events",
    ),
    "ThreadWorker.__init__": ("nr_conns",),
}


def _missing() -> list[str]:
    """The names that are needed here and that this gunicorn does not have."""
    missing = []
    for path, names in _NEEDED.items():
        found: Any = gthread
        for part in path.split(".") if path else ():
            found = getattr(found, part, None)
        code = getattr(found, "__code__", None)
        there = set(code.co_names) if code else set(dir(found))
        missing += [f"gthread.{path}.{name}".replace("..", ".") for name in names if name not in there]
    return missing


MISSING = _missing()


def worker_class() -> Any:
    """The value for gunicorn's `worker_class`: ours, or the plain worker if names are `MISSING`."""
    return "gthread" if MISSING else PushWorker


def tell_what_is_missing(master: Any) -> None:
    """Logs one warning if the plain worker runs."""
    if MISSING:
        master.log.warning("this gunicorn has no %s: its plain worker runs, slower", ", ".join(MISSING))


FAULTS = (SettingsError, writable.NotWritableError, PermissionError)
"""What `settings` raises. Each message says what to do."""
HANDLERS_SECONDS = 20.0


def settings() -> Settings:
    """The settings of this server. The folders and the port are checked too. Raises one of `FAULTS`.

    All processes that the master starts from now on use them.
    """
    accounts = Settings.of_accounts(os.environ)
    found = accounts[0]  # what is used here is the same for all accounts
    writable.check(found.database_url.get_secret_value(), found.media_store)
    check_port(found.port)
    config.of_this_server = accounts
    return found


def reload_without_faults_only(master: Any) -> None:
    """HUP with faulty settings or handlers changes nothing but logs it. gunicorn itself would end the whole server."""
    reload = master.handle_hup

    def handle_hup() -> None:
        try:
            # Before `settings`, which later processes use even if nothing is reloaded.
            check_handlers([one.account for one in Settings.of_accounts(os.environ) if one.account])
            settings()
        except (*FAULTS, FaultyHandlersError) as error:
            master.log.error(
                "not reloaded, the processes go on with the settings they have (未重新加载，继续使用原来的设置): %s",
                error,
            )
        else:
            reload()

    master.handle_hup = handle_hup


class FaultyHandlersError(Exception):
    """The new processes could not read handlers/own.py."""


def check_handlers(accounts: list[str]) -> None:
    """Raises FaultyHandlersError. A process of its own reads them: what this one has read stays as it is."""
    look = [sys.executable, "-c", "import sys, handlers; handlers.check(sys.argv[1:])", *accounts]
    try:
        read = subprocess.run(look, cwd=config.FOLDER, capture_output=True, timeout=HANDLERS_SECONDS)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise FaultyHandlersError(
            f"handlers/own.py is not read after {HANDLERS_SECONDS:.0f} s (读取超时)"
        ) from None
    if read.returncode != 0:
        said = read.stderr.decode(errors="replace").strip() or f"exit code {read.returncode}"
        raise FaultyHandlersError(said.splitlines()[-1].removeprefix("handlers.calls.HandlerError: "))


def check_port(port: int) -> None:
    """Raises PermissionError, with what to do, if this process may not use the port. gunicorn would retry for 5 s."""
    if port >= FIRST_FREE_PORT:
        return
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError:
            raise PermissionError(
                f"PORT: {port}: only root may listen below {FIRST_FREE_PORT}: take a higher one, and let the proxy "
                f"in front of the bot (or a container's --publish {port}:8000) listen there "
                f"({FIRST_FREE_PORT} 以下的端口只有 root 能用：请改用更大的 PORT，由反向代理或容器端口映射监听该端口)",
            ) from None
        except OSError:
            return  # in use: gunicorn says so


class QuietLogger(Logger):  # type: ignore[misc]
    """gunicorn's own, without its access lines: with a logconfig_dict it logs one for each request, wanted or not."""

    access_log_enabled = False


class PushWorker(gthread.ThreadWorker):  # type: ignore[misc]
    """gunicorn's threaded worker, for few connections that carry many pushes, as a proxy keeps them.

    `place` counts the processes of this server, from 0; `when_stopping` is called once when the process is told to end.
    """

    place = 0
    when_stopping: Callable[[], None] | None = None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._connections: WeakSet[Any] = WeakSet()
        self._began: dict[Any, float] = {}  # when each running request began, by connection
        self._next_look = 0.0
        self._stopping_since: float | None = None
        self._accept_after = 0.0
        self._logged_at = -LOG_AGAIN_SECONDS

    def run(self) -> None:
        cores.choose(self.place)
        cores.pin_thread()  # the threads that answer start from this one, and stay there too
        super().run()

    # -- taking connections --------------------------------------------------------------------------------------------

    def accept(self, listener: Any) -> None:
        try:
            super().accept(listener)
        except OSError as error:
            if error.errno not in _USED_UP:
                raise
            self._pause(error)

    def _pause(self, error: OSError) -> None:
        """Takes no new connections for a moment: open ones go on, and some of them end."""
        now = time.monotonic()
        self._accept_after = now + PAUSE_SECONDS
        self.set_accept_enabled(False)
        if now - self._logged_at >= LOG_AGAIN_SECONDS:
            self._logged_at = now
            self.log.error("no new connection can be taken for a moment: %s", error.strerror)

    def set_accept_enabled(self, enabled: bool) -> None:
        if not enabled or time.monotonic() >= self._accept_after:
            super().set_accept_enabled(enabled)

    def enqueue_req(self, conn: Any) -> None:
        self._connections.add(conn)
        super().enqueue_req(conn)

    # -- answering -----------------------------------------------------------------------------------------------------

    def handle(self, conn: Any) -> Any:
        """In a thread: one request, and those that follow at once. gunicorn itself hands the connection back to the
        poller after each request, and from there to another thread."""
        poll = select.poll()
        poll.register(conn.sock, select.POLLIN)
        if not (conn.initialized or conn.data_ready):
            if not poll.poll(STAY_MILLISECONDS):
                return gthread._DEFER  # it holds no thread until it sends something
            conn.data_ready = True
        while (kept := self._handle_one(conn)) is True and self.alive:
            if not conn.parser.unreader.buf.getvalue() and not poll.poll(STAY_MILLISECONDS):
                break
        if not kept:
            # gunicorn would do it in the accepting thread, and wait there 2 s for a peer that does not hang up.
            with suppress(OSError):
                conn.close(graceful=True)
        return kept

    def _handle_one(self, conn: Any) -> Any:
        self._began[conn] = time.monotonic()
        try:
            return super().handle(conn)
        finally:
            del self._began[conn]

    def _end_half_requests(self, now: float) -> None:
        """Reads no more of requests older than REQUEST_SECONDS. One that has arrived whole is still answered."""
        self._next_look = now + 1.0
        for conn, began in list(self._began.items()):
            if now - began >= REQUEST_SECONDS:
                _shut(conn, socket.SHUT_RD)

    def finish_request(self, conn: Any, fs: Any) -> None:
        if conn.sock.fileno() < 0:
            self.nr_conns -= 1  # closed by handle(); here it would be counted twice
        else:
            super().finish_request(conn, fs)

    def handle_request(self, req: Any, conn: Any) -> Any:
        req.body.reader = _Reader(req.body.reader)
        return super().handle_request(req, conn)

    # -- ending --------------------------------------------------------------------------------------------------------

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        now = time.monotonic()
        if now >= self._next_look:
            self._end_half_requests(now)
        if not self.alive:
            timeout = min(timeout, 0.1)
            if self._stopping_since is None:
                self._stopping_since = now
                if self.when_stopping is not None:
                    self.when_stopping()
            if now - self._stopping_since >= WORK_SECONDS:
                self._hang_up(socket.SHUT_RDWR)
            elif now - self._stopping_since >= LINGER_SECONDS:
                self._hang_up(socket.SHUT_RD)
        super().wait_for_and_dispatch_events(timeout)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """Ctrl-C ends it as SIGTERM does. gunicorn would wait for a lock that the interrupted thread may hold."""
        self.handle_exit(sig, frame)

    def _hang_up(self, how: int) -> None:
        for conn in list(self._connections):
            _shut(conn, how)


def _shut(conn: Any, how: int) -> None:
    """With SHUT_RD nothing more is read, but answers are still sent. A thread or the poller that waits for a request
    sees the end of the connection."""
    with suppress(OSError):
        conn.sock.shutdown(how)


class _Reader:
    """A body's reader that reports bad chunks and trailers as a broken connection, which the application handles."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def read(self, size: int) -> bytes:
        try:
            data: bytes = self._reader.read(size)
        except ParseException as error:
            raise BrokenPipeError(errno.EPIPE, f"the body is malformed: {type(error).__name__}") from None
        return data
