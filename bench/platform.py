"""`python -m bench.platform PORT PICTURE`: the few calls of the platform's API that a download needs, as fast as possible.

Any token request gets a token, any MediaId the one picture, from memory. `/times` tells when the first request for
a picture since the last `/times` came (unix seconds). Only for measuring what downloads cost on our side.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from pathlib import Path


class Platform:
    def __init__(self, picture: bytes) -> None:
        self._picture = picture
        self._first: float | None = None
        head = (
            "HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n"
            'Content-disposition: attachment; filename="picture.jpg"\r\n'
            f"Content-Length: {len(picture)}\r\n\r\n"
        )
        self._head = head.encode()

    def serve(self, port: int) -> None:
        with socket.create_server(("127.0.0.1", port), backlog=128) as listener:
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=self._answer_all, args=(connection,), daemon=True).start()

    def _answer_all(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, connection.makefile("rb") as lines:
            while request := lines.readline():
                length = 0
                while (line := lines.readline()).strip():
                    name, _, value = line.partition(b":")
                    if name.lower() == b"content-length":
                        length = int(value)
                lines.read(length)
                try:
                    self._answer(connection, request.split(b" ")[1])
                except OSError:
                    return

    def _answer(self, connection: socket.socket, target: bytes) -> None:
        if target.startswith(b"/cgi-bin/media/get"):
            if self._first is None:
                self._first = time.time()
            connection.sendall(self._head)
            connection.sendall(self._picture)
            return
        if target == b"/times":
            answer, self._first = {"first": self._first}, None
        else:
            answer = {"access_token": "a-token-of-the-bench", "expires_in": 7200}
        body = json.dumps(answer).encode()
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (len(body), body)
        )


if __name__ == "__main__":
    Platform(Path(sys.argv[2]).read_bytes()).serve(int(sys.argv[1]))
