"""The events of the state as server-sent events (text/event-stream), for the open pages.

Knows that format, and that a browser may be slow or gone. It must not know what the events mean. A page that is too
slow is disconnected: it connects again by itself and gets the whole state.
https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from .state import State

CONNECTIONS = 4
"""The most pages with a feed. Another one disconnects the oldest, which comes back when somebody looks at it: a browser
makes six connections to a server, and pages need some of them for all else."""
_BEHIND = 1000
"""Events that may wait for a slow page."""
_HEARTBEAT = 5
"""Seconds without events after which a comment is sent, to find out whether the browser is still there."""


class Feed:
    """All open pages, of all accounts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connections: list[Connection] = []
        self._closed = False

    def connect(self, state: State) -> Connection:
        with self._lock:
            connection = Connection(self, state)
            self._connections.append(connection)
            if self._closed or len(self._connections) > CONNECTIONS:
                self._connections.pop(0).end()
            return connection

    def forget(self, connection: Connection) -> None:
        with self._lock, contextlib.suppress(ValueError):
            self._connections.remove(connection)

    def close(self) -> None:
        """Ends all connections. A later one gets the state, and ends too."""
        with self._lock:
            self._closed = True
            for connection in self._connections:
                connection.end()
            self._connections.clear()


class Connection(Iterator[bytes]):
    """The events for one page. Not a generator: the server calls `close` also when nothing was read yet."""

    def __init__(self, feed: Feed, state: State) -> None:
        self._feed = feed
        self._waiting: queue.Queue[bytes | None] = queue.Queue(_BEHIND)
        self._open = True
        so_far, self._stop = state.listen(self._hear)
        self._first: bytes | None = b"retry: 1000\n" + _event("state", so_far)

    def _hear(self, name: str, facts: Mapping[str, Any]) -> None:
        try:
            self._waiting.put_nowait(_event(name, facts))
        except queue.Full:
            self.end()

    def end(self) -> None:
        """Ends the connection. May be called from any thread."""
        self._open = False
        with contextlib.suppress(queue.Full):  # then it is not waiting for anything
            self._waiting.put_nowait(None)

    def __next__(self) -> bytes:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        try:
            event = self._waiting.get(timeout=_HEARTBEAT)
        except queue.Empty:
            event = b":\n\n"
        if event is None or not self._open:
            raise StopIteration
        return event

    def close(self) -> None:
        self._stop()
        self._feed.forget(self)


def _event(name: str, facts: Mapping[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(facts, ensure_ascii=False)}\n\n".encode()
