"""Where the thumbnails lie, and how one gets there: beside the media store, under the same names.

Knows the store, and the process that decodes. Must not know the ledger, or which thumbnails are wanted. A decoder that
ended, for whatever reason, costs the picture it had in hand and is replaced.
"""

from __future__ import annotations

import errno
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import BinaryIO

from storage.files import FileStore, open_store
from thumbnails.wire import NoThumbnail, read_answer, send_picture

DECODER = (sys.executable, "-m", "thumbnails.decoder")
PROJECT = Path(__file__).resolve().parent.parent
CHUNK_BYTES = 64 * 1024
MIN_FREE_BYTES = 250 * 1024 * 1024  # thumbnails stop before downloads do
IDLE_SECONDS = 10.0  # then the decoder's memory is given back
CLOSE_SECONDS = 2.0


def beside(media_store: str) -> str:
    """Where the thumbnails of a MEDIA_STORE lie: `data/media-thumbnails`, `s3://bucket/prefix-thumbnails`."""
    if media_store.startswith("s3://"):
        bucket, _, prefix = media_store.removeprefix("s3://").rstrip("/").partition("/")
        return f"s3://{bucket}/{prefix}-thumbnails" if prefix else f"s3://{bucket}/thumbnails"
    folder = Path(media_store)
    return str(folder.with_name(f"{folder.name}-thumbnails"))


class Thumbnails:
    """All thumbnails of one media store. What goes wrong with the store is an OSError."""

    def __init__(self, media_store: str, files: FileStore, *, decoder: Sequence[str] = DECODER) -> None:
        self._media_store, self._files = media_store, files
        self._decoder = _Decoder(decoder)

    @cached_property
    def _place(self) -> FileStore:
        return open_store(beside(self._media_store))

    def make(self, media_key: str) -> None:
        """Make the thumbnail of this stored picture, by one thread at a time. Raises NoThumbnail."""
        free = self._place.free_bytes()
        if free is not None and free < MIN_FREE_BYTES:
            raise OSError(
                errno.ENOSPC, f"{free >> 20} MB are free, less than {MIN_FREE_BYTES >> 20}: make room"
            )
        try:
            with self._files.open(media_key) as file:
                small = self._decoder.ask(iter(partial(file.read, CHUNK_BYTES), b""))
        except FileNotFoundError:
            raise NoThumbnail("the stored file is gone from MEDIA_STORE") from None
        self._place.put(_stem(media_key), [small], extension=lambda head: "jpg", attempt=1)

    def open(self, media_key: str) -> BinaryIO:
        """The thumbnail of this stored picture, a JPEG. Raises FileNotFoundError."""
        return self._place.open(f"{_stem(media_key)}.jpg")

    def delete(self, *stems: str) -> None:
        """Delete the thumbnails of the pictures with these stems, if there are any: for a purge."""
        self._place.delete_all(stems)

    def rest(self) -> None:
        """There is nothing to make: ends the decoder when that has been so for a while."""
        self._decoder.rest()

    def close(self) -> None:
        """End the decoder; the next picture starts another."""
        self._decoder.close()


class _Decoder:
    """The process that is fed with pictures."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._used_at = 0.0

    def ask(self, picture: Iterable[bytes]) -> bytes:
        """The thumbnail. Raises NoThumbnail, and what the picture's chunks raise."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            send_picture(process.stdin, picture)
            answer = read_answer(process.stdout)
        except (BrokenPipeError, EOFError):
            self.close()
            reason = f"the decoder ended ({process.returncode}): it took too long, or too much memory"
            raise NoThumbnail(reason) from None
        except BaseException:
            # Half a picture may lie in the pipe; and memory that a broken one took is given back.
            self.close()
            raise
        self._used_at = time.monotonic()
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(  # noqa: S603
            self._command,
            cwd=PROJECT,
            env={},  # what a stranger's picture could take over must find no secret there
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        return self._process

    def rest(self) -> None:
        if time.monotonic() - self._used_at > IDLE_SECONDS:
            self.close()

    def close(self) -> None:
        if self._process is None:
            return
        try:
            self._process.communicate(timeout=CLOSE_SECONDS)  # the end of its input ends it
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._process = None


def _stem(media_key: str) -> str:
    return media_key.rpartition(".")[0]
