"""The sandbox as an HTTP server on 127.0.0.1: who may ask, faults, counting, and starting it.

Knows sockets, since some faults are about them. It must not know any rule of the platform. Faults are
carried out here, around whatever the routes would answer. No log line shows a query string: tokens and
signatures are in it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException
from werkzeug.serving import WSGIRequestHandler, make_server

from .account import THROWAWAY, Account
from .api import JSON, answer_error, answer_unplayed, create_api
from .calls import describe
from .control import create_control
from .errors import ERRMSG, Words
from .faults import Fault
from .feed import Feed
from .history import History
from .page import create_page
from .sender import Sender
from .state import State

log = logging.getLogger("sandbox")

_LOCAL = ("127.0.0.1", "localhost", "::1")
_OTHER_HOST = Words(
    "the sandbox answers only to 127.0.0.1 and localhost", "沙箱只接受以 127.0.0.1 或 localhost 访问"
)
_OTHER_SITE = Words("the sandbox does not answer to other sites' pages", "沙箱不回应其他网站的页面")


class Sandbox:
    """A running sandbox. `callback` may be set later, once the bot's address is known."""

    def __init__(self, state: State, url: str) -> None:
        self.state = state
        self.url = url

    @property
    def account(self) -> Account:
        return self.state.account

    @property
    def callback(self) -> str | None:
        return self.state.callback

    @callback.setter
    def callback(self, url: str | None) -> None:
        self.state.callback = url


@contextlib.contextmanager
def running_sandbox(
    *,
    account: Account = THROWAWAY,
    callback: str | None = None,
    port: int = 0,
    data: Path | None = None,
    clock: Callable[[], float] = time.time,
) -> Iterator[Sandbox]:
    """A sandbox on 127.0.0.1 in threads of this process; `port` 0 takes a free one.

    `data` is a folder in which the chats, pushes, calls, media and the menu outlive this run; None keeps
    nothing. On leaving, waits (a fault's delay, the pause before a repeat) and pages' feeds end at once.
    """
    stop = threading.Event()
    with contextlib.ExitStack() as stack:
        if data is None:
            temporary = tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True)
            state = State(account, Path(stack.enter_context(temporary)), clock)
        else:
            data.mkdir(mode=0o700, parents=True, exist_ok=True)
            (data / "media").mkdir(exist_ok=True)
            state = State(account, data / "media", clock)
            history = History(data, state.snapshot)
            state.restore(history.read())
            history.rewrite()
            state.listen(history.hear)
        state.callback = callback
        feed = Feed(state)
        server = make_server(
            "127.0.0.1", port, create_app(state, feed, stop), threaded=True, request_handler=_Handler
        )
        state.base_url = f"http://127.0.0.1:{server.port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="sandbox")
        thread.start()
        try:
            yield Sandbox(state, state.base_url)
        finally:
            stop.set()
            feed.close()
            server.shutdown()
            thread.join()


def create_app(state: State, feed: Feed, stop: threading.Event) -> Flask:
    """The platform's API, the control routes and the page for one state."""
    app = Flask(__name__, static_folder=None)
    app.url_map.merge_slashes = False  # werkzeug's redirect fails with an encoded line break in the path
    app.json.ensure_ascii = False  # type: ignore[attr-defined]
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.register_blueprint(create_api(state))
    sender = Sender(state, stop)
    app.register_blueprint(create_control(state, sender))
    app.register_blueprint(create_page(state, feed, sender.modes))

    @app.before_request
    def guard() -> tuple[Response, int] | None:
        """Only programs of this machine; a page of another site may do no more than link to ours."""
        if urlsplit(f"//{request.host}").hostname not in _LOCAL:  # a malformed host is empty here
            return jsonify(_OTHER_HOST.as_error()), 403
        own = request.host_url.rstrip("/")
        foreign = request.headers.get("Origin", own) != own
        if request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site"):
            foreign = True  # same-site is another port of this machine
        if foreign and (request.method != "GET" or request.path != "/"):
            return jsonify(_OTHER_SITE.as_error()), 403
        return None

    @app.before_request
    def strike() -> Response | None:
        """The fault's answer instead of the real one, if there is a fault."""
        if _is_own(request.path):
            return None
        request.environ["sandbox.began"] = time.monotonic()
        fault = state.take_fault(request.path)
        if fault is None:
            return None
        request.environ["sandbox.fault"] = fault
        request.get_data(cache=True, parse_form_data=False)  # the call has arrived whole, whatever comes next
        if fault.delay and fault.truncate is None:
            stop.wait(fault.delay)
        return _instead(fault, state.real_time())

    @app.after_request
    def finish(response: Response) -> Response:
        if _is_own(request.path):
            response.headers["X-Content-Type-Options"] = "nosniff"
            response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
            return response
        fault: Fault | None = request.environ.get("sandbox.fault")
        outcome = _outcome(response)
        details = describe(request, response, state.secrets())
        if fault is not None and fault.content_type is not None:
            response.headers["Content-Type"] = fault.content_type
        if fault is not None and fault.disconnect:
            outcome = "disconnect"
            _hang_up(request.environ["werkzeug.socket"])
        elif fault is not None and fault.truncate is not None:
            outcome = "truncated"
            response = _truncated(response, fault, request.environ["werkzeug.socket"], stop)
        began = request.environ.get("sandbox.began")
        details["seconds"] = 0 if began is None else round(time.monotonic() - began, 4)
        state.count_call(request.path, outcome, details)
        return response

    @app.errorhandler(HTTPException)
    def refuse(error: HTTPException) -> Response:
        if not _is_own(request.path):
            return answer_unplayed(state, request.path, request.args.get("access_token", ""))
        status = error.code or 500
        response = jsonify(Words(error.name, f"沙箱无法处理此请求：HTTP {status} {error.name}").as_error())
        response.status_code = status
        return response

    return app


def _is_own(path: str) -> bool:
    return path == "/" or path.startswith("/sandbox")


def _instead(fault: Fault, now: float) -> Response | None:
    """The fault's own answer; None when it only changes the real one."""
    if fault.disconnect:
        return Response()
    if fault.body is not None:
        kind = JSON if fault.body.lstrip().startswith("{") else "text/html; charset=utf-8"
        return Response(fault.body, fault.status or 200, content_type=kind)
    if fault.errcode is not None:
        errmsg = ERRMSG.get(fault.errcode, "error") if fault.errmsg is None else fault.errmsg
        response = answer_error(fault.errcode, errmsg, now)
        response.status_code = fault.status or 200
        return response
    if fault.status is not None:
        page = f"<html><body><center><h1>{fault.status}</h1></center></body></html>"
        return Response(page, fault.status, content_type="text/html; charset=utf-8")
    return None


def _outcome(response: Response) -> str:
    """How a call is counted: "HTTP 502", the errcode, or "ok"."""
    if response.status_code != 200:
        return f"HTTP {response.status_code}"
    if response.is_sequence:
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(response.get_data())
            if isinstance(value, dict) and value.get("errcode"):
                return str(value["errcode"])
    return "ok"


def _truncated(
    response: Response, fault: Fault, connection: socket.socket, stop: threading.Event
) -> Response:
    """The same headers, Content-Length whole, and only the first bytes; a delay comes before the cut."""
    pieces = response.iter_encoded()

    def cut() -> Iterator[bytes]:
        left = fault.truncate or 0
        yield b""  # the headers leave, even if nothing else does
        for piece in pieces:
            yield piece[:left]
            left -= len(piece)
            if left <= 0:
                break
        if fault.delay:
            stop.wait(fault.delay)
        _hang_up(connection)

    shorter = Response(cut(), response.status_code, headers=response.headers)
    shorter.call_on_close(response.close)
    return shorter


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(WSGIRequestHandler):
    """Logs method, path and status, never the query, also for requests that are not understood."""

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        log.info(
            "%s %s %s", getattr(self, "command", "-"), getattr(self, "path", "-").partition("?")[0], code
        )

    def log(self, type: str, message: str, *args: Any) -> None:
        log.info("a request that is not HTTP")  # the message would quote it


def log_to(stream: Any) -> None:
    """Sends the log lines to `stream`."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s sandbox %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
