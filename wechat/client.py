"""Calls to the platform's API: hosts in order, fail-over and switch-back, time-outs, repeats, return codes.

It knows HTTP, and that an answer with an errcode is an error whatever its content type says. It must not know
what a single API means, where the access_token comes from (a TokenSource brings it) or what is stored.
Tokens and the AppSecret travel in query strings here, so nothing that quotes a URL may leave: errors are built
from our own words and raised where no foreign exception is being handled, and urllib3's loggers lose their
query strings when this module is imported.
https://developers.weixin.qq.com/doc/service/Basic_Information/Interface_field_description.html (hosts)
https://developers.weixin.qq.com/doc/service/en/Getting_Started/Global_Return_Code.html (codes)
"""

from __future__ import annotations

import io
import ipaddress
import json as jsonlib
import logging
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, cast
from urllib.parse import urlencode, urlsplit

import requests
from requests.adapters import DEFAULT_POOLSIZE, HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError
from urllib3.poolmanager import PoolManager
from urllib3.response import BaseHTTPResponse
from urllib3.util.connection import create_connection
from urllib3.util.timeout import Timeout

from wechat.addresses import is_public
from wechat.errors import (
    ApiError,
    Cause,
    InvalidTokenError,
    TransportError,
    UnsafeMediaUrlError,
    api_error,
    printable,
    whole_code,
)

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Result = TypeVar("Result")

CHUNK_BYTES = 256 * 1024  # smaller ones cost the threads that download more turns than bytes
_BUFFER_BYTES = 16 * 1024
_JSON_BYTES = 1024 * 1024
_SYSTEM_BUSY = -1
_BUSY_ANSWERS = 3
_FIRST_PAUSE = 1.0
_SWITCH_BACK_SECONDS = 60.0
_POOLED_CONNECTIONS = 32  # per host: 16 downloads and the web threads, without throwing any away


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds: `connect` for all addresses of a host together, `read` of silence, `host` for all that one
    host gets (from connecting to the last byte), `call` after which no host is tried again. The system's
    look-up of a name takes its own time; nothing is sent if it took too long."""

    connect: float = 3.0
    read: float = 5.0
    host: float = 8.0
    call: float = 25.0


ORDINARY = Timeouts()


class TokenSource(Protocol):
    """Where the access_token comes from (see `wechat.access_token.AccessToken`)."""

    def get(self) -> str:
        """The token to use now."""

    def renew(self, stale: str) -> str:
        """A token other than `stale`, which the platform refused."""


class Body(Protocol):
    """A request body. Each iteration starts at its beginning, so that a repeat sends all of it again."""

    content_type: str

    def __iter__(self) -> Iterator[bytes]: ...
    def __len__(self) -> int: ...


class ApiHosts:
    """The API's hosts, called without knowing any token. Any number of threads may share one.

    `bases` are root URLs in order of preference. `session` brings proxies and certificates of your own; it is
    only read, here. Without it those of the environment count (HTTPS_PROXY, NO_PROXY, REQUESTS_CA_BUNDLE).
    `clock` is monotonic seconds and `sleep` the pause between repeats; sockets keep real time.

    Threads share urllib3's connection pools, which are made for that. What requests.Session keeps between
    calls (cookies, redirects, the .netrc that would replace our Authorization) is not used at all.
    """

    def __init__(
        self,
        bases: Sequence[str],
        *,
        session: requests.Session | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.bases = tuple(base.rstrip("/") for base in bases)
        self._session = session or requests.Session()
        self._clock = clock
        self._sleep = sleep
        pools = {HTTPConnectionPool: _TimedPool, HTTPSConnectionPool: _TimedTlsPool}
        self._adapter = _Adapter(pools, hosts=len(self.bases))
        self._public = _Adapter({HTTPConnectionPool: _PublicPool, HTTPSConnectionPool: _PublicTlsPool})
        self._routes = {base: _Route(self._adapter, self._session, base) for base in self.bases}
        # Single reads and writes of a dict are atomic, and a mark lost to a race costs one connection.
        self._down_until: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"ApiHosts({', '.join(_host_of(base) for base in self.bases)})"

    def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        json: Mapping[str, Any] | None = None,
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool,
        timeout: Timeouts = ORDINARY,
    ) -> dict[str, Any]:
        """The answer's JSON object. `json` or `body` is sent; `exchange` says what is raised and repeated."""
        return self.exchange(
            method,
            path,
            read=_read_json,
            params=params,
            body=body if json is None else _JsonBody(json),
            headers=headers,
            repeatable=repeatable,
            timeout=timeout,
        )

    def exchange(
        self,
        method: str,
        path: str,
        *,
        read: Callable[[Answer], Result],
        params: Mapping[str, str] | None = None,
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool,
        timeout: Timeouts = ORDINARY,
    ) -> Result:
        """What `read` makes of the first usable answer; the answer stays open unless `read` raises.

        Raises ApiError (InvalidTokenError among them) for an errcode and TransportError without a usable
        answer. The next host is tried where nothing was sent; after a read time-out or an HTTP 5xx only if
        the call is `repeatable`; never for an errcode. HTTP 5xx (if repeatable) and errcode -1 (which says
        that nothing was done) are repeated with pauses, up to three such answers.
        """
        target = f"{path}?{urlencode(params)}" if params else path
        give_up = self._clock() + timeout.call
        pause = _FIRST_PAUSE
        busy = 0
        while True:
            failure: ApiError | TransportError
            for base in self._in_order():
                left = give_up - self._clock()
                try:
                    answer = self._send(
                        self._routes[base],
                        method,
                        target,
                        headers=headers,
                        body=body,
                        path=path,
                        timeout=timeout,
                        seconds=min(timeout.host, left),
                    )
                    result = _judge(answer, read)
                except ApiError as error:
                    self._down_until.pop(base, None)
                    if error.code != _SYSTEM_BUSY:
                        raise
                    failure = error
                    busy += 1
                    break
                except TransportError as error:
                    server_error = error.status is not None and error.status >= 500
                    silent = error.status is None
                    if server_error or silent:
                        self._down_until[base] = self._clock() + _SWITCH_BACK_SECONDS
                    busy += server_error
                    may_repeat = not error.sent or (repeatable and (server_error or silent))
                    if not may_repeat or busy == _BUSY_ANSWERS:
                        raise
                    failure = error
                else:
                    self._down_until.pop(base, None)
                    return result
            if busy in (0, _BUSY_ANSWERS) or self._clock() + pause >= give_up:
                raise failure
            self._sleep(pause)
            pause *= 2

    def get_url(self, url: str, *, path: str, timeout: Timeouts) -> Answer:
        """One GET of a URL that an answer named: no token, no proxy, no redirect, any status.

        It goes to the API's own hosts or to public addresses only; the address is checked in the very act of
        connecting to it, so no second look-up can change it. `path` names the URL in errors. Raises
        UnsafeMediaUrlError or TransportError.
        """
        # What is judged is the very address that will be used, not the text it was made from.
        url = _prepared(url).url or ""
        place = _place_of(url)
        if place is None:
            raise UnsafeMediaUrlError("video_url is no plain http or https address")
        adapter = self._adapter if place in map(_place_of, self.bases) else self._public
        route = _Route(adapter, self._session, url, proxied=False)
        return self._send(route, "GET", "", path=path, timeout=timeout, seconds=timeout.host)

    def _in_order(self) -> list[str]:
        """The preferred host first again, once its minute as a failed one is over."""
        now = self._clock()
        return sorted(self.bases, key=lambda base: self._down_until.get(base, now) > now)

    def _send(
        self,
        route: _Route,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        path: str,
        timeout: Timeouts,
        seconds: float,
    ) -> Answer:
        """The answer as soon as its headers are there."""
        if not route.host:
            raise TransportError(path, sent=False, detail="no web address", cause=Cause.API_BASE)
        attempt = _Attempt(time.monotonic() + seconds, timeout.read)
        context = _ATTEMPT.set(attempt)
        unsafe = False
        trouble = None
        try:
            raw = route.open(method, target, headers or {}, body, timeout)
        except _NotPublicError:
            unsafe = True
        except (OSError, HTTPError) as error:  # requests' own errors are OSErrors
            trouble = type(error).__name__
        finally:
            _ATTEMPT.reset(context)
        # Outside the except block: the foreign exception, which holds the URL, is not even our __context__.
        if unsafe:
            raise UnsafeMediaUrlError
        if trouble is not None:
            what = "no answer from" if attempt.sent else "cannot connect to"
            raise TransportError(path, sent=attempt.sent, detail=f"{what} {route.host} ({trouble})")
        return Answer(raw, path, route.host)


class ApiClient:
    """`ApiHosts` with an access_token. An answer that the token is invalid leads to one renewal and one
    repeat; a second one is the caller's InvalidTokenError. Any number of threads may share one."""

    def __init__(self, hosts: ApiHosts, token: TokenSource) -> None:
        self.hosts = hosts
        self._token = token

    def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        json: Mapping[str, Any] | None = None,
        body: Body | None = None,
        repeatable: bool,
        timeout: Timeouts = ORDINARY,
    ) -> dict[str, Any]:
        """`ApiHosts.call` with the token. Raises TokenUnavailableError too."""
        return self.exchange(
            method,
            path,
            read=_read_json,
            params=params,
            body=body if json is None else _JsonBody(json),
            repeatable=repeatable,
            timeout=timeout,
        )

    def exchange(
        self,
        method: str,
        path: str,
        *,
        read: Callable[[Answer], Result],
        params: Mapping[str, str] | None = None,
        body: Body | None = None,
        repeatable: bool,
        timeout: Timeouts = ORDINARY,
    ) -> Result:
        """`ApiHosts.exchange` with the token. Raises TokenUnavailableError too."""

        def once(token: str) -> Result:
            return self.hosts.exchange(
                method,
                path,
                read=read,
                params={"access_token": token, **(params or {})},
                body=body,
                repeatable=repeatable,
                timeout=timeout,
            )

        token = self._token.get()
        try:
            return once(token)
        except InvalidTokenError:
            pass  # the platform did nothing with the call, so even custom/send may be repeated
        return once(self._token.renew(token))


class Answer:
    """An answer whose headers have come and whose body is still on the wire. Whoever holds it closes it."""

    def __init__(self, raw: BaseHTTPResponse, path: str, host: str) -> None:
        self.status = raw.status
        self.path = path
        self.host = host
        self.length = raw.length_remaining  # bytes on the wire, as announced; None too if that is no number
        self.chunked = "chunked" in raw.headers.get("Transfer-Encoding", "").lower()
        self._raw = raw
        self._head = b""

    def header(self, name: str) -> str:
        """The header's value, or an empty string."""
        return self._raw.headers.get(name, "")

    def read(self) -> bytes:
        """The next bytes of the body (decoded), at most CHUNK_BYTES or what `peek` left; empty at its end.

        Raises TransportError if the body breaks off, stalls or cannot be decoded.
        """
        head, self._head = self._head, b""
        return head or self._receive()

    def peek(self, limit: int) -> tuple[bytes, bool]:
        """The body's beginning, which `read` will give again, and whether it is all of the body.

        It ends at the first chunk border after `limit` bytes. Raises as `read` does.
        """
        while len(self._head) <= limit:
            chunk = self._receive()
            if not chunk:
                return self._head, True
            self._head += chunk
        return self._head, False

    def close(self) -> None:
        """Give the connection back, or cut it if the body was not read to its end."""
        self._raw.close()

    def _receive(self) -> bytes:
        try:
            return self._raw.read(CHUNK_BYTES, decode_content=True)
        except (OSError, HTTPError) as error:
            trouble = type(error).__name__
        raise TransportError(self.path, sent=True, detail=f"the answer of {self.host} broke off ({trouble})")


def json_object(body: bytes) -> dict[str, Any] | None:
    """The JSON object that `body` begins with, or None if it begins with anything else, or ends too early.

    Read leniently, as the platform's answers want it: control characters inside texts, GBK, UTF-16, a byte order
    mark, undecodable bytes (U+FFFD), a page after the object. A number of more than 20 digits is a float.
    """
    try:
        value, _ = _JSON.raw_decode(decoded(body).lstrip("\ufeff \t\r\n"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


_LONGEST_NUMBER = 20  # digits; Python refuses to read some thousands of them
_JSON = jsonlib.JSONDecoder(
    strict=False, parse_int=lambda text: int(text) if len(text) <= _LONGEST_NUMBER else float(text)
)


def decoded(body: bytes) -> str:
    """The text of an answer that names no encoding one can believe: UTF-8, UTF-16, else GBK where that fits."""
    encoding = jsonlib.detect_encoding(body)
    if encoding.startswith("utf-8"):
        for each in (encoding, "gb18030"):
            try:
                return body.decode(each)
            except UnicodeDecodeError:
                continue
    return body.decode(encoding, "replace")


def raise_errcode(answer: Mapping[str, Any], path: str) -> None:
    """Raise ApiError unless errcode is absent, empty or 0 (some APIs send it as text)."""
    code = answer.get("errcode")
    if code is not None and code != "" and whole_code(code) != 0:
        raise api_error(code, answer.get("errmsg"), path)


def _judge(answer: Answer, read: Callable[[Answer], Result]) -> Result:
    try:
        if answer.status != 200:
            raise TransportError(
                answer.path, sent=True, status=answer.status, detail=f"no usable answer from {answer.host}"
            )
        return read(answer)
    except BaseException:
        answer.close()
        raise


def _read_json(answer: Answer) -> dict[str, Any]:
    body, complete = answer.peek(_JSON_BYTES)
    answer.close()
    value = json_object(body) if complete else None
    if value is None:
        raise TransportError(
            answer.path,
            sent=True,
            status=200,
            detail=f"{answer.host} sent no JSON object, but {beginning(body)}",
        )
    raise_errcode(value, answer.path)
    return value


def beginning(body: bytes) -> str:
    """What an answer begins with, for the reason of an error: printable, short, and without secrets."""
    start = body[:_SHOWN_BYTES]
    return repr(printable(decoded(start), _SHOWN_CHARACTERS)) if start else "nothing"


_SHOWN_BYTES = 512
_SHOWN_CHARACTERS = 80


class _JsonBody:
    """UTF-8 as it is: the platform refuses \\uXXXX (40033)."""

    content_type = "application/json; charset=utf-8"

    def __init__(self, value: Mapping[str, Any]) -> None:
        self._bytes = jsonlib.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()

    def __iter__(self) -> Iterator[bytes]:
        yield self._bytes

    def __len__(self) -> int:
        return len(self._bytes)


# -- what lies under requests: one deadline for a whole attempt, and the check of an address -----------------


class _Attempt:
    """How long this attempt may last (monotonic seconds), how long its peer may keep it waiting (seconds),
    and whether any of the request has left."""

    def __init__(self, give_up_at: float, silence: float) -> None:
        self.give_up_at = give_up_at
        self.silence = silence
        self.sent = False


# requests has no place for an overall deadline: it is handed past it, to the connection used in this thread.
_ATTEMPT: ContextVar[_Attempt] = ContextVar("attempt")


class _NotPublicError(Exception):
    """Not one of the errors that urllib3 or requests would wrap."""


class _TimedReader(io.RawIOBase):
    """A socket's bytes, each wait cut to the silence allowed and to the attempt's end: neither headers nor a
    body that drip in byte by byte can hold a thread longer."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, attempt: _Attempt) -> None:
        self._raw = raw
        self._sock = sock
        self._attempt = attempt

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        left = self._attempt.give_up_at - time.monotonic()
        if left <= 0:
            raise TimeoutError
        wait = min(self._attempt.silence, left)
        if wait != self._sock.gettimeout():  # to set it anew is a call of the system
            self._sock.settimeout(wait)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _TimedResponse(HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_TimedReader(self.fp.detach(), sock, _ATTEMPT.get()), _BUFFER_BYTES)


class _TimedConnection(HTTPConnection):
    """One connect time-out for all addresses of a name together, and no request after the deadline."""

    response_class = _TimedResponse
    public_only: ClassVar[bool] = False

    def _new_conn(self) -> socket.socket:
        try:
            found = socket.getaddrinfo(self._dns_host.strip("[]"), self.port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError):
            raise NewConnectionError(self, "this name has no address") from None
        addresses = [str(entry[4][0]) for entry in found]
        if self.public_only:
            addresses = [address for address in addresses if is_public(address)]
            if not addresses:
                raise _NotPublicError
        give_up_at = min(time.monotonic() + float(self.timeout or 0), _ATTEMPT.get().give_up_at)
        for place, address in enumerate(addresses, 1):
            left = max(give_up_at - time.monotonic(), 0.001)
            wait = left if place == len(addresses) else left / 2  # a dead address leaves time for the others
            try:
                sock = create_connection((address, self.port), wait, socket_options=self.socket_options)
            except OSError:
                continue
            sock.settimeout(left)  # for the TLS handshake
            return sock
        raise NewConnectionError(self, "no address of this name could be reached")

    def endheaders(self, *args: Any, **kwargs: Any) -> None:
        if self.sock is None:
            self.connect()
        attempt = _ATTEMPT.get()
        if time.monotonic() > attempt.give_up_at:
            raise ConnectTimeoutError(self, "connected too late")
        self.sock.settimeout(attempt.silence)
        attempt.sent = True
        super().endheaders(*args, **kwargs)


class _TimedTlsConnection(_TimedConnection, HTTPSConnection):
    pass


class _PublicConnection(_TimedConnection):
    public_only = True


class _PublicTlsConnection(_TimedTlsConnection):
    public_only = True


class _TimedPool(HTTPConnectionPool):
    ConnectionCls = _TimedConnection


class _TimedTlsPool(HTTPSConnectionPool):
    ConnectionCls = _TimedTlsConnection


class _PublicPool(HTTPConnectionPool):
    ConnectionCls = _PublicConnection


class _PublicTlsPool(HTTPSConnectionPool):
    ConnectionCls = _PublicTlsConnection


class _Adapter(HTTPAdapter):
    """requests' adapter over our connections, through proxies too (a SOCKS proxy keeps its own)."""

    def __init__(self, pools: Mapping[type, type], hosts: int = 0) -> None:
        """`hosts`: of how many the pools are kept by routes, so that none of these may be thrown out."""
        self._pools = pools
        super().__init__(pool_connections=DEFAULT_POOLSIZE + hosts, pool_maxsize=_POOLED_CONNECTIONS)
        self._use_pools(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **proxy_kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **proxy_kwargs)
        self._use_pools(manager)
        return manager

    def _use_pools(self, manager: PoolManager) -> None:
        manager.pool_classes_by_scheme = {
            scheme: self._pools.get(pool, pool) for scheme, pool in manager.pool_classes_by_scheme.items()
        }


class _Route:
    """The way to one address: requests' connections for it, by the proxies and with the certificates that count there.
    To look for them at each call, as requests does, would be a third of its cost.
    """

    def __init__(
        self, adapter: _Adapter, session: requests.Session, url: str, *, proxied: bool = True
    ) -> None:
        self._adapter = adapter
        self._request = _prepared(url)
        self.host = _host_of(self._request.url or "")
        found = session.merge_environment_settings(url, {}, True, None, None)
        # Nobody else's proxy leads to this machine.
        self._proxies = dict(found["proxies"] or {}) if proxied and not _is_loopback(url) else {}
        self._verify, self._cert = found["verify"] or False, found["cert"]
        self._found: tuple[HTTPConnectionPool, str] | None = None

    def open(
        self, method: str, target: str, headers: Mapping[str, str], body: Body | None, timeout: Timeouts
    ) -> BaseHTTPResponse:
        """The answer to a request for the address with `target` after it. Raises OSError, HTTPError."""
        pool, root = self._found = self._found or self._find()
        sent = {**self._request.headers, **headers}
        if body is not None:
            sent |= {"Content-Type": body.content_type, "Content-Length": str(len(body))}
        return pool.urlopen(
            method,
            root.rstrip("/") + target if target else root,
            body=body,
            headers=sent,
            timeout=Timeout(connect=timeout.connect, read=timeout.read),
            retries=False,
            redirect=False,
            assert_same_host=False,
            preload_content=False,
            decode_content=False,
        )

    def _find(self) -> tuple[HTTPConnectionPool, str]:
        """The connections, and the address as the first line of a request names it."""
        pool = self._adapter.get_connection_with_tls_context(
            self._request, self._verify, proxies=self._proxies, cert=self._cert
        )
        self._adapter.cert_verify(pool, self._request.url, self._verify, self._cert)  # type: ignore[no-untyped-call]
        return cast(HTTPConnectionPool, pool), self._adapter.request_url(self._request, self._proxies)


def _prepared(url: str) -> requests.PreparedRequest:
    """Without an address if `url` is no web address. (requests' own error would hold the URL.)"""
    try:
        request = requests.Request("GET", url).prepare()
    except (requests.RequestException, ValueError):
        return requests.PreparedRequest()
    request.headers["User-Agent"] = "tushangwanglai"
    return request


_DEFAULT_PORTS = {"http": 80, "https": 443}


def _host_of(url: str) -> str:
    """Host and port to show: the rest may hold a password or a token."""
    return urlsplit(url).netloc.rpartition("@")[2]


def _place_of(url: str) -> tuple[str, int] | None:
    """Host and port of an http or https address without user and password; None for anything else."""
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORTS[parts.scheme]
    except (ValueError, KeyError):
        return None
    return (parts.hostname, port) if parts.hostname and parts.username is None else None


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _WithoutQuery(logging.Filter):
    """Cuts query strings out of urllib3's records: request lines hold the token at DEBUG."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = _QUERY.sub("?...", record.getMessage())
        record.args = None
        record.exc_info = None
        return True


_QUERY = re.compile(r"\?\S*")

for _name in ("connection", "connectionpool", "poolmanager", "response", "util.retry"):
    logging.getLogger(f"urllib3.{_name}").addFilter(_WithoutQuery())
