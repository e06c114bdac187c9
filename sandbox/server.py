"""The sandbox as an HTTP server on 127.0.0.1: who may ask, faults, counting, and starting it.

Knows sockets, since some faults are about them. It must not know any rule of the platform. Faults are
carried out here, around whatever the routes would answer. No log line shows a query string: tokens and
signatures are in it.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flask import Flask, Request, Response, jsonify, request
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

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = logging.getLogger("sandbox")

_LOCAL = ("127.0.0.1", "localhost", "::1")
_OTHER_HOST = Words(
    "the sandbox answers only to 127.0.0.1 and localhost", "沙箱只接受以 127.0.0.1 或 localhost 访问"
)
_OTHER_SITE = Words("the sandbox does not answer to other sites' pages", "沙箱不回应其他网站的页面")


_NO_SUCH_ACCOUNT = Words("appid: there is no such account here", "appid：这里没有这个账号")


class Sandbox:
    """A running sandbox. `callback` may be set later, once the bot's address is known; with several accounts the
    name of each follows it. `state` and `account` are the first one's."""

    def __init__(self, states: Sequence[State], url: str) -> None:
        self.states, self.state = states, states[0]
        self.url = url

    @property
    def account(self) -> Account:
        return self.state.account

    @property
    def callback(self) -> str | None:
        return self.state.callback

    @callback.setter
    def callback(self, url: str | None) -> None:
        for state in self.states:
            state.callback = _callback_of(state.account, url)


def _callback_of(account: Account, url: str | None) -> str | None:
    if url is None or not account.token:
        return None
    return f"{url}/{account.name}" if account.name else url


@contextlib.contextmanager
def running_sandbox(
    *,
    account: Account = THROWAWAY,
    others: Sequence[Account] = (),
    callback: str | None = None,
    port: int = 0,
    data: Path | None = None,
    clock: Callable[[], float] = time.time,
) -> Iterator[Sandbox]:
    """A sandbox on 127.0.0.1 in threads of this process; `port` 0 takes a free one.

    `others` are further accounts: each has its own fans, media, tokens and faults. The control routes and the page
    take `?appid=`, by default the first account's. `data` is a folder in which the chats, pushes, calls, media and
    the menu outlive this run; None keeps nothing. On leaving, waits (a fault's delay, the pause before a repeat) and
    pages' feeds end at once.
    """
    stop = threading.Event()
    with contextlib.ExitStack() as stack:
        if data is None:
            temporary = tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True)
            folder = Path(stack.enter_context(temporary))
        else:
            folder = data
        states = [_state(account, folder, data is not None, clock)]
        states += [_state(one, folder / one.appid, data is not None, clock) for one in others]
        feed = Feed()
        accounts = [state.account for state in states]
        apps = [create_app(state, feed, stop, accounts) for state in states]
        app = apps[0] if len(apps) == 1 else _ByAccount(states, apps)
        server = make_server("127.0.0.1", port, app, threaded=True, request_handler=_Handler)
        sandbox = Sandbox(states, f"http://127.0.0.1:{server.port}")
        sandbox.callback = callback
        for state in states:
            state.base_url = sandbox.url
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="sandbox")
        thread.start()
        try:
            yield sandbox
        finally:
            stop.set()
            feed.close()
            server.shutdown()
            thread.join()


def _state(account: Account, folder: Path, keeps: bool, clock: Callable[[], float]) -> State:
    """The account's state, with what `folder` has of an earlier run where it `keeps` that."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / "media").mkdir(exist_ok=True)
    state = State(account, folder / "media", clock)
    if keeps:
        history = History(folder, state.snapshot)
        state.restore(history.read())
        history.rewrite()
        state.listen(history.hear)
    return state


class _ByAccount:
    """Passes each request to the application of its account: by access_token, by a file's key, or by `appid`. The first
    account answers requests that name none or an unknown one."""

    def __init__(self, states: Sequence[State], apps: Sequence[Flask]) -> None:
        self._states, self._apps = states, apps

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        appid, token, key = (request.args.get(name) for name in ("appid", "access_token", "key"))
        if (token or key) and not _is_own(request.path):
            appid = None  # it is the token's account that makes the call
        if appid is None and request.path == "/cgi-bin/stable_token":
            body = request.get_data()
            environ["wsgi.input"] = io.BytesIO(body)
            with contextlib.suppress(ValueError, AttributeError, RecursionError):
                appid = json.loads(body).get("appid")
        known = [
            state.account.appid == appid or state.knows(token or "", key or "") for state in self._states
        ]
        # The page says it itself, in words for a person.
        if request.path != "/" and _is_own(request.path) and appid is not None and True not in known:
            said = json.dumps(_NO_SUCH_ACCOUNT.as_error(), ensure_ascii=False)
            return Response(said, 404, mimetype="application/json")(environ, start_response)
        return self._apps[known.index(True) if True in known else 0](environ, start_response)


def create_app(state: State, feed: Feed, stop: threading.Event, accounts: Sequence[Account]) -> Flask:
    """The platform's API, the control routes and the page for one state. `accounts` are all that there are."""
    app = Flask(__name__, static_folder=None)
    app.url_map.merge_slashes = False  # werkzeug's redirect fails with an encoded line break in the path
    app.json.ensure_ascii = False  # type: ignore[attr-defined]
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.register_blueprint(create_api(state))
    sender = Sender(state, stop)
    app.register_blueprint(create_control(state, sender))
    app.register_blueprint(create_page(state, feed, sender.modes, accounts))

    @app.before_request
    def guard() -> tuple[Response, int] | None:
        """Only programs on this machine may call. A page of another site may only link to ours."""
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
        # So that the call has arrived whole, whatever the fault does.
        request.get_data(cache=True, parse_form_data=False)
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
        status = error.code or 500
        if status in (404, 405) and not _is_own(request.path):
            return answer_unplayed(state, request.path, request.args.get("access_token", ""))
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
    """The same headers with the full Content-Length, but only the first bytes. A delay comes before the cut."""
    pieces = response.iter_encoded()

    def cut() -> Iterator[bytes]:
        left = fault.truncate or 0
        yield b""  # sends the headers, even if nothing else follows
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
    """Logs method, path and status, never the query, not even for malformed requests."""

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
