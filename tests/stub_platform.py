"""A small HTTP server on 127.0.0.1 whose answers a test writes byte by byte: cut off, hanging, dripping, oddly headed.

The sandbox plays the platform well; this one plays a network that does not. It knows no rule of the platform.
"""

import contextlib
import json
import logging
import socket
import ssl
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]  # names in lower case
    body: bytes = field(repr=False)

    @property
    def json(self):
        return json.loads(self.body)


#: Writes an answer to the socket; False closes the connection.
Reply = Callable[[socket.socket, Request], bool]


def reply(
    body: bytes | str | dict = b"",
    *,
    status: int = 200,
    content_type: str | None = "application/json; encoding=utf-8",
    headers: dict[str, str] | None = None,
    length: int | None = None,
    keep: bool = True,
) -> Reply:
    """An ordinary answer; `length` is the Content-Length told (default: the true one), as in a cut-off body."""
    if isinstance(body, dict):
        body = json.dumps(body, ensure_ascii=False)
    if isinstance(body, str):
        body = body.encode()
    told = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {told}"]
    if content_type is not None:
        lines.append(f"Content-Type: {content_type}")
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    whole = "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    def write(sock, request):
        sock.sendall(whole)
        return keep and told == len(body)

    return write


def raw(data: bytes) -> Reply:
    """These bytes, then the end of the connection."""

    def write(sock, request):
        sock.sendall(data)
        return False

    return write


def hang(first: bytes = b"") -> Reply:
    """`first`, then nothing until the client gives up."""

    def write(sock, request):
        sock.sendall(first)
        sock.settimeout(20)
        sock.recv(1)
        return False

    return write


def drip(data: bytes, pause: float, *, first: bytes = b"") -> Reply:
    """`first`, then one byte of `data` after the other with `pause` seconds between."""

    def write(sock, request):
        sock.sendall(first)
        for byte in data:
            time.sleep(pause)  # the slow platform itself
            sock.sendall(bytes([byte]))
        return False

    return write


class StubPlatform:
    """Answers each path with the replies scripted for it, in order; the last one goes on for ever."""

    def __init__(self, tls: tuple[str, str] | None = None, port: int = 0) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self._replies: dict[str, list[Reply]] = defaultdict(list)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._tls = None
        if tls:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(*tls)
        self._listener = socket.create_server(("127.0.0.1", port), backlog=64)
        self.port = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.stop()

    def stop(self) -> None:
        """Nobody answers on this port any more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def on(self, path: str, *replies: Reply | dict) -> None:
        """Replaces what this path answers; a dict is a JSON answer."""
        with self._lock:
            self._replies[path] = [reply(one) if isinstance(one, dict) else one for one in replies]

    def calls(self, path: str) -> list[Request]:
        return [request for request in self.requests if request.path == path]

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with self._lock:
            self._open.add(sock)
        try:
            sock.settimeout(20)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls:
                wrapped = self._tls.wrap_socket(sock, server_side=True)
                with self._lock:
                    self._open.discard(sock)
                    self._open.add(wrapped)
                sock = wrapped
            while self._answer_one(sock):
                pass
        except OSError:
            pass
        finally:
            with self._lock:
                self._open.discard(sock)
            sock.close()

    def _answer_one(self, sock: socket.socket) -> bool:
        received = b""
        while b"\r\n\r\n" not in received:
            data = sock.recv(65536)
            if not data:
                return False
            received += data
        head, _, body = received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        parts = [body]
        missing = int(headers.get("content-length", 0)) - len(body)
        while missing > 0:
            data = sock.recv(min(65536, missing))
            if not data:
                return False
            parts.append(data)
            missing -= len(data)
        address = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(address.query, keep_blank_values=True).items()}
        request = Request(method, address.path, query, headers, b"".join(parts))
        with self._lock:
            self.requests.append(request)
            replies = self._replies[request.path]
            if not replies:
                answer = reply("no such path", status=404, content_type="text/plain")
            else:
                answer = replies.pop(0) if len(replies) > 1 else replies[0]
        return answer(sock, request)


def self_signed(folder: Path, name: str = "api.weixin.test") -> tuple[str, str]:
    """The files of a certificate for 127.0.0.1 and `name`, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    names = [x509.DNSName(name), x509.IPAddress(ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(certificate.public_bytes(pem))
    plain = serialization.NoEncryption()
    key_file.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return str(cert_file), str(key_file)


class Leaks:
    """Everything that is logged at DEBUG while it is open, and errors shown to it: no secret may be in any of it."""

    def __init__(self, *secrets: str) -> None:
        self._secrets = [*secrets, *(quote(secret, safe="") for secret in secrets)]
        self.records: list[logging.LogRecord] = []
        self._texts: list[str] = []
        self._handler = logging.Handler(logging.DEBUG)
        self._handler.emit = self.records.append

    def __enter__(self):
        root = logging.getLogger()
        self._level = root.level
        root.setLevel(logging.DEBUG)
        root.addHandler(self._handler)
        return self

    def __exit__(self, *exc):
        logging.getLogger().removeHandler(self._handler)
        logging.getLogger().setLevel(self._level)

    def show(self, thing: object) -> None:
        """An object of ours, or an error with all that hangs on it: its chain, its frames, what lies in them."""
        self._texts.append(repr(thing))
        if not isinstance(thing, BaseException):
            return
        self._texts += [str(thing), repr(vars(thing)), "".join(traceback.format_exception(thing))]
        assert thing.__cause__ is None or type(thing.__cause__).__module__.startswith("wechat")
        assert thing.__context__ is None or type(thing.__context__).__module__.startswith("wechat")
        for frame, _ in traceback.walk_tb(thing.__traceback__):
            for value in frame.f_locals.values():
                if type(value).__module__.startswith("wechat"):
                    self._texts.append(repr(value))
        if thing.__context__ is not None:
            self.show(thing.__context__)

    def check(self) -> None:
        formatter = logging.Formatter("%(message)s")
        for record in self.records:
            self._texts += [formatter.format(record), repr(record.args), str(record.msg), repr(vars(record))]
        assert self._texts
        for text in self._texts:
            for secret in self._secrets:
                assert secret not in text, text.replace(secret, "<SECRET>")
