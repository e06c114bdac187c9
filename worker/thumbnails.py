"""Makes the thumbnails that are due in the ledger, one after the other.

Knows the order (claim, make, mark) and how the decoder's process is started, used and ended. If it dies, only its
picture gets no thumbnail, and the next picture starts another. Must not know how a picture is decoded (it imports no
Pillow: worker.decoder does), SQL, or threads.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import BinaryIO

from storage.files import FileStore
from storage.queue import Queue
from storage.thumbnails import Thumbnails

log = logging.getLogger(__name__)

UNREADABLE_SAID_SECONDS = 60.0  # between two lines in the log
CLAIM_SECONDS = 120.0  # much longer than a picture may take; the claim of a process that died is over then
CHUNK_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 1024 * 1024
ANSWER_SECONDS = 30.0  # the most until the decoder reads on or answers: twice its own limit for a picture
IDLE_SECONDS = 10.0  # after that the decoder ends, and its memory is free
CLOSE_SECONDS = 2.0
COMMAND = (sys.executable, "-m", "worker.decoder")
PROJECT = Path(__file__).resolve().parent.parent


class NoThumbnailError(Exception):
    """There is no thumbnail of this picture; the message says why."""


class UnreadableError(Exception):
    """The stored picture cannot be read now; the message says why."""


class Decoder:
    """The decoder's process, for one thread. It runs from the first picture until it has been idle for a while."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self._command = command
        self._running: tuple[subprocess.Popen[bytes], Connection] | None = None
        self._used_at = 0.0

    def thumbnail(self, picture: Iterable[bytes]) -> bytes:
        """The thumbnail, a JPEG, of a picture that comes in chunks. Raises NoThumbnailError, and what the chunks
        raise."""
        process, connection = self._running or self._start()
        try:
            for chunk in picture:
                self._send(process, connection, chunk)
            self._send(process, connection, b"")
            answer = self._receive(process, connection)
        except BaseException:
            self.close()  # half a picture may lie in the pipe
            raise
        self._used_at = time.monotonic()
        if answer[:1] == b"\1":
            return answer[1:]
        self.close()  # frees the memory that a broken picture took
        raise NoThumbnailError(answer[1:].decode("utf-8", "replace"))

    def _start(self) -> tuple[subprocess.Popen[bytes], Connection]:
        ours, its = Pipe()
        try:
            _set_timeouts(ours, ANSWER_SECONDS)
            process = subprocess.Popen(  # noqa: S603
                self._command,
                cwd=PROJECT,
                env={},  # a hostile picture may control the decoder: it must find no secret
                stdin=its.fileno(),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            its.close()
        self._running = process, ours
        return self._running

    # Only bytes go over the connection, never pickled objects: a hostile picture may control the decoder.

    def _send(self, process: subprocess.Popen[bytes], connection: Connection, data: bytes) -> None:
        try:
            connection.send_bytes(data)
        except OSError:
            raise _ended(process) from None

    def _receive(self, process: subprocess.Popen[bytes], connection: Connection) -> bytes:
        try:
            return connection.recv_bytes(MAX_ANSWER_BYTES)
        except (EOFError, OSError):
            raise _ended(process) from None

    def close_if_idle(self) -> None:
        """End the process when it has had no picture for a while."""
        if time.monotonic() - self._used_at > IDLE_SECONDS:
            self.close()

    def close(self) -> None:
        """End the process."""
        if self._running is None:
            return
        process, connection = self._running
        self._running = None
        connection.close()  # the decoder ends at the end of its input
        _wait(process)


def _set_timeouts(connection: Connection, seconds: float) -> None:
    """Reading and writing raise OSError when the other side does nothing for so long; Connection itself would wait for
    ever, also within a message that has begun."""
    timeval = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
    with socket.socket(fileno=os.dup(connection.fileno())) as end:
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            end.setsockopt(socket.SOL_SOCKET, option, timeval)


def _ended(process: subprocess.Popen[bytes]) -> NoThumbnailError:
    _wait(process)
    return NoThumbnailError(f"the decoder ended ({process.returncode}): it took too long, or too much memory")


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(CLOSE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class ThumbnailMaker:
    """For one thread of a process."""

    def __init__(
        self,
        queue: Queue,
        files: FileStore,
        thumbnails: Thumbnails,
        decoder: Decoder,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._queue, self._files, self._thumbnails = queue, files, thumbnails
        self._decoder, self._clock = decoder, clock
        self._said_at = 0.0

    def step(self) -> bool:
        """Makes one thumbnail. False if none is due. Raises DatabaseUnavailableError, and OSError when the thumbnails'
        store is full or cannot be reached: the claim then runs out by itself."""
        picture = self._queue.claim_picture(self._clock(), CLAIM_SECONDS)
        if picture is None:
            self._decoder.close_if_idle()
            return False
        made = True
        try:
            self._make(picture.media_key)
        except NoThumbnailError as error:
            log.warning("no thumbnail: %s", error, extra={"ledger_id": picture.id})
            made = False
        except UnreadableError as error:
            # Its claim runs out by itself too. It may be this file alone: the others do not wait.
            if abs(self._clock() - self._said_at) >= UNREADABLE_SAID_SECONDS:
                self._said_at = self._clock()
                log.error("no thumbnail yet: %s", error, extra={"ledger_id": picture.id})
            return True
        if not self._queue.mark_thumbnail(picture, made=made):  # purged meanwhile
            self._thumbnails.delete(picture.media_key.rpartition(".")[0])
        return True

    def _make(self, media_key: str) -> None:
        with _reading():
            file = self._files.open(media_key)
        with file:
            jpeg = self._decoder.thumbnail(_chunks(file))
        self._thumbnails.put(media_key, jpeg)

    def close(self) -> None:
        """Ends the decoder."""
        self._decoder.close()


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while True:
        with _reading():
            chunk = file.read(CHUNK_BYTES)
        if not chunk:
            return
        yield chunk


@contextmanager
def _reading() -> Iterator[None]:
    """Keeps a fault of the stored picture apart from one of the decoder, or of the thumbnails' store."""
    try:
        yield
    except FileNotFoundError:
        raise NoThumbnailError("the stored file is gone from MEDIA_STORE") from None
    except OSError as error:
        raise UnreadableError(f"MEDIA_STORE: {error.strerror or error}") from None
