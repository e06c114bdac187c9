"""One HTTP request, with one deadline for all of it: `Transport.open`.

It knows proxies, certificates, pools of connections, and which addresses are public. It must not know the platform's
API, its tokens, which host is tried next, or what an answer's body means.
URLs hold tokens and the AppSecret, so no URL leaves this module: errors have our own words and no foreign exception as
context, and urllib3's log lines lose their query strings when this module is imported.
"""

from __future__ import annotations

import io
import ipaddress
import logging
import re
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import SplitResult, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError
from urllib3.poolmanager import PoolManager
from urllib3.response import BaseHTTPResponse
from urllib3.util.connection import create_connection
from urllib3.util.timeout import Timeout

from wechat.addresses import is_public
from wechat.errors import TransportError, UnsafeMediaUrlError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CHUNK_BYTES = 256 * 1024  # smaller chunks cost too many switches between the downloading threads
_BUFFER_BYTES = 16 * 1024
_POOLS = 100  # more than the API has hosts: their pools are never dropped
_POOLED_CONNECTIONS = 32  # per host: enough for 16 downloads and the web threads


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a request must be over, from connecting to the last byte of its answer (`time.monotonic()`), and two
    shorter times in seconds: `connect` for all addresses of the host together, `silence` for each wait."""

    at: float
    connect: float
    silence: float


class Body(Protocol):
    """A request body. Each iteration starts at its beginning, so that a repeat sends all of it again."""

    content_type: str

    def __iter__(self) -> Iterator[bytes]: ...
    def __len__(self) -> int: ...


class Answer:
    """An answer whose headers have come and whose body is still on the wire. The caller closes it."""

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


class Transport:
    """Opens requests. Any number of threads may share one.

    Proxies and certificates are those of the environment (HTTPS_PROXY, NO_PROXY, REQUESTS_CA_BUNDLE). `public_only`
    is for URLs from strangers: public addresses only, and no proxy. The address is checked while connecting, so
    that no second look-up can change it.

    Threads share urllib3's connection pools, which are made for that. What requests.Session keeps between
    calls (cookies, redirects, the .netrc that would replace our Authorization) is not used at all.
    """

    def __init__(self, *, public_only: bool = False) -> None:
        self._session = requests.Session()  # only to read the environment
        self._public_only = public_only
        self._adapter = _Adapter()
        # Kept, since finding the proxy at each call, as requests does, is a third of its cost.
        self._routes: dict[str, _Route] = {}

    def open(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Body | None,
        deadline: Deadline,
        *,
        path: str,
    ) -> Answer:
        """The answer as soon as its headers are there, whatever its status. Nothing is repeated, no redirect followed.

        `url` is a `web_address`; `path` names it in errors. Raises TransportError, and UnsafeMediaUrlError
        if only public addresses are allowed.
        """
        parts = urlsplit(url)
        attempt = _Attempt(deadline, self._public_only)
        unsafe = False
        trouble = None
        try:
            raw = self._route(parts).open(method, parts, headers, body, attempt)
        except _NotPublicError:
            unsafe = True
        # requests' own errors are OSErrors; a header that cannot be sent is a ValueError, which holds it.
        except (OSError, HTTPError, ValueError) as error:
            trouble = type(error).__name__
        # Outside the except block: the foreign exception, which holds the URL, is not even our __context__.
        if unsafe:
            raise UnsafeMediaUrlError
        host = shown_host(url)
        if trouble is not None:
            what = "no answer from" if attempt.sent else "cannot connect to"
            raise TransportError(path, sent=attempt.sent, detail=f"{what} {host} ({trouble})")
        return Answer(raw, path, host)

    def _route(self, parts: SplitResult) -> _Route:
        """The route to the URL's host."""
        origin = f"{parts.scheme}://{parts.netloc}/"
        route = self._routes.get(origin)
        if route is None:
            route = self._find_route(origin)
            if not self._public_only:  # there are only a few others
                self._routes[origin] = route
        return route

    def _find_route(self, origin: str) -> _Route:
        """The route to `origin`, by the environment's proxies and certificates."""
        found = self._session.merge_environment_settings(origin, {}, True, None, None)
        # A proxy elsewhere cannot reach this machine.
        proxied = not self._public_only and not is_loopback(origin)
        proxies = dict(found["proxies"] or {}) if proxied else {}
        verify, cert = found["verify"] or False, found["cert"]
        request = requests.Request("GET", origin, headers={"User-Agent": "tushangwanglai"}).prepare()
        pool = self._adapter.get_connection_with_tls_context(request, verify, proxies=proxies, cert=cert)
        if not isinstance(pool, _Pool):
            raise requests.exceptions.InvalidProxyURL("a SOCKS proxy would keep no deadline")
        self._adapter.cert_verify(pool, origin, verify, cert)  # type: ignore[no-untyped-call]
        root = self._adapter.request_url(request, proxies)
        return _Route(pool, root.rstrip("/"), dict(request.headers))


def web_address(url: str) -> str | None:
    """The address as it will be requested: quoted, its name in ASCII. None if `url` is no http or https address."""
    try:
        address = requests.Request("GET", url).prepare().url or ""
    except (requests.RequestException, ValueError):
        return None  # requests' own error would hold the URL
    return address if place(address) else None


def place(url: str) -> tuple[str, int] | None:
    """The host and port that an http or https address leads to; None for anything else."""
    try:
        parts = urlsplit(url)
        usual_port = _USUAL_PORTS[parts.scheme]
        port = parts.port or usual_port
    except (ValueError, KeyError):
        return None
    return (parts.hostname, port) if parts.hostname else None


_USUAL_PORTS = {"http": 80, "https": 443}


def shown_host(url: str) -> str:
    """Host and port to show: the rest may hold a password or a token."""
    return urlsplit(url).netloc.rpartition("@")[2]


def is_loopback(url: str) -> bool:
    """Whether the URL leads to this machine itself."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Route(NamedTuple):
    """How requests reach one host, directly or through a proxy: `pool` has the connections; `root` stands before the
    path in a request's first line (empty, or the host's whole address where a proxy wants it); `headers` are those of
    each request."""

    pool: _Pool
    root: str
    headers: dict[str, str]

    def open(
        self,
        method: str,
        parts: SplitResult,
        headers: Mapping[str, str],
        body: Body | None,
        attempt: _Attempt,
    ) -> BaseHTTPResponse:
        """Raises OSError, HTTPError."""
        sent = {**self.headers, **headers}
        if body is not None:
            sent |= {"Content-Type": body.content_type, "Content-Length": str(len(body))}
        return self.pool.urlopen(
            method,
            self.root + (parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
            body=body,
            headers=sent,
            timeout=Timeout(connect=attempt.deadline.connect, read=attempt.deadline.silence),
            retries=False,
            redirect=False,
            assert_same_host=False,
            preload_content=False,
            decode_content=False,
            attempt=attempt,
        )


# -- what lies under urllib3: one deadline for a whole request, and the check of an address ------------------


@dataclass(slots=True)
class _Attempt:
    """One request under way: its deadline, its target, and whether any of it was sent."""

    deadline: Deadline
    public_only: bool
    sent: bool = False


class _NotPublicError(Exception):
    """Not one of the errors that urllib3 or requests would wrap."""


class _TimedReader(io.RawIOBase):
    """A socket's bytes, each wait cut to the silence allowed and to the deadline: neither headers nor a
    body that arrive byte by byte can hold a thread longer."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, deadline: Deadline) -> None:
        self._raw = raw
        self._sock = sock
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        left = self._deadline.at - time.monotonic()
        if left <= 0:
            raise TimeoutError
        wait = min(self._deadline.silence, left)
        if wait != self._sock.gettimeout():  # setting it again costs a system call
            self._sock.settimeout(wait)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _BoundedReader(io.BufferedReader):
    """Refuses to read without a bound. http.client asks for that when a chunk's size is negative, and would then read
    on past the limit of the body."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            raise OSError("a chunk of a negative size")
        return super().read(size)


class _Connection(HTTPConnection):
    """One connect time-out for all addresses of a name together, and no request after the deadline."""

    attempt: _Attempt  # set by the pool before each request

    def response_class(self, sock: socket.socket, *args: Any, **kwargs: Any) -> HTTPResponse:  # type: ignore[override]
        response = HTTPResponse(sock, *args, **kwargs)
        reader = _TimedReader(response.fp.detach(), sock, self.attempt.deadline)
        response.fp = _BoundedReader(reader, _BUFFER_BYTES)
        return response

    def _new_conn(self) -> socket.socket:
        try:
            found = socket.getaddrinfo(self._dns_host.strip("[]"), self.port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError):
            raise NewConnectionError(self, "this name has no address") from None
        addresses = [str(entry[4][0]) for entry in found]
        if self.attempt.public_only:
            addresses = [address for address in addresses if is_public(address)]
            if not addresses:
                raise _NotPublicError
        deadline = self.attempt.deadline
        give_up_at = min(time.monotonic() + deadline.connect, deadline.at)
        for number, address in enumerate(addresses, 1):
            left = max(give_up_at - time.monotonic(), 0.001)
            # A dead address must leave time for the others.
            wait = left if number == len(addresses) else left / 2
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
        if time.monotonic() > self.attempt.deadline.at:
            raise ConnectTimeoutError(self, "connected too late")
        self.sock.settimeout(self.attempt.deadline.silence)
        self.attempt.sent = True
        super().endheaders(*args, **kwargs)


class _TlsConnection(_Connection, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    """urllib3's pool. Arguments that its `urlopen` does not know go on to `_make_request`, the attempt among them."""

    ConnectionCls = _Connection

    def _make_request(self, conn: Any, *args: Any, attempt: Any = None, **kwargs: Any) -> BaseHTTPResponse:
        conn.attempt = attempt
        return super()._make_request(conn, *args, **kwargs)


class _TlsPool(_Pool, HTTPSConnectionPool):
    ConnectionCls = _TlsConnection

    def _prepare_proxy(self, conn: HTTPSConnection) -> None:  # type: ignore[override]
        """Note which tunnel to open. urllib3's own method also opens it, before the attempt is known."""
        scheme = "https" if self.proxy and self.proxy.scheme == "https" else "http"
        conn.set_tunnel(self._tunnel_host, self.port, self.proxy_headers, scheme)


class _Adapter(HTTPAdapter):
    """requests' adapter over our connections, through proxies too."""

    def __init__(self) -> None:
        super().__init__(pool_connections=_POOLS, pool_maxsize=_POOLED_CONNECTIONS)
        _use_our_pools(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **proxy_kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **proxy_kwargs)
        _use_our_pools(manager)
        return manager


def _use_our_pools(manager: PoolManager) -> None:
    ours = {HTTPConnectionPool: _Pool, HTTPSConnectionPool: _TlsPool}
    manager.pool_classes_by_scheme = {
        scheme: ours.get(pool, pool) for scheme, pool in manager.pool_classes_by_scheme.items()
    }


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
