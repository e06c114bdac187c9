"""The load: requests prepared in memory, sent over kept connections; every answer is kept and checked later.

Knows sockets and HTTP's outer form; nothing is parsed, signed or checked while the time runs, so that one process uses
a small part of what the server does for the same request (`Outcome.cpu_seconds` tells). Only 127.0.0.1 is called.
"""

from __future__ import annotations

import gc
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

LIMIT_SECONDS = 60.0  # for one call; then it ends with an error


class LoadError(Exception):
    """The server did not answer as HTTP, or not in time."""


@dataclass(frozen=True)
class Outcome:
    """The bodies in the order of the requests; `seconds` of the wall; `cpu_seconds` of this process."""

    bodies: list[bytes] = field(repr=False)
    seconds: float
    cpu_seconds: float


def drive(
    port: int, requests: Sequence[bytes], connections: int, limit_seconds: float = LIMIT_SECONDS
) -> Outcome:
    """Send each request once, `connections` at a time, each as soon as its connection's last one is answered.

    A connection that the server closes after an answer is opened anew. Raises LoadError for any status but 200.
    """
    waiting = deque(enumerate(requests))
    bodies = [b""] * len(requests)
    poll = select.epoll()
    open_now: dict[int, _Connection] = {}
    gc.collect()
    gc.disable()
    wall, cpu = time.perf_counter(), time.process_time()
    deadline = wall + limit_seconds
    try:
        for _ in range(min(connections, len(requests))):
            connection = _Connection(port)
            open_now[connection.number] = connection
            poll.register(connection.number, select.EPOLLIN)
            connection.send(*waiting.popleft())
        left = len(requests)
        while left:
            ready = poll.poll(1.0)
            if time.perf_counter() > deadline:
                raise LoadError(f"{left} of {len(requests)} requests not answered in {limit_seconds:g} s")
            for number, _ in ready:
                connection = open_now[number]
                body = connection.receive()
                if body is None:
                    continue
                bodies[connection.index] = body
                left -= 1
                if connection.ended:
                    poll.unregister(number)
                    del open_now[number]
                    connection.close()
                    if not waiting:
                        continue
                    connection = _Connection(port)
                    open_now[connection.number] = connection
                    poll.register(connection.number, select.EPOLLIN)
                if waiting:
                    connection.send(*waiting.popleft())
        return Outcome(bodies, time.perf_counter() - wall, time.process_time() - cpu)
    finally:
        gc.enable()
        poll.close()
        for connection in open_now.values():
            connection.close()


class _Connection:
    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=LIMIT_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.number = self._socket.fileno()
        self.close = self._socket.close
        self.index = 0
        self.ended = False
        self._received = b""

    def send(self, index: int, request: bytes) -> None:
        self.index = index
        self._socket.sendall(request)

    def receive(self) -> bytes | None:
        """What has come so far; the body when it is whole."""
        data = self._socket.recv(65536)
        if not data:
            raise LoadError("the server closed the connection without an answer")
        received = self._received + data
        head, end, body = received.partition(b"\r\n\r\n")
        if end:
            head = head.lower()
            if head[8:13] != b" 200 ":
                raise LoadError(f"answered {head[:100]!r}")
            if b"\r\ntransfer-encoding: chunked" in head:
                whole = _unchunked(body)
            else:
                length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0] or b"-1")
                whole = body if len(body) == length else None
            if whole is not None:
                self.ended = b"connection: close" in head
                self._received = b""
                return whole
        self._received = received
        return None


def _unchunked(body: bytes) -> bytes | None:
    """What the chunks hold; None until the last one, which is empty, has come."""
    held = b""
    while True:
        size, _, rest = body.partition(b"\r\n")
        length = int(size or b"0", 16)
        chunk, end, body = rest[:length], rest[length : length + 2], rest[length + 2 :]
        if not end.endswith(b"\n"):
            return None
        if not length:
            return held
        held += chunk
