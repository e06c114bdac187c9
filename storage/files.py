"""Where the media lie: a folder, or a bucket of an S3-compatible store, behind the same few verbs.

A key is `APPID/YYYY/MM/DD/ID.ext`; a stem is a key without its extension, which the content decides. A file appears
under its key whole or not at all, and writing the same key twice is harmless. Knows bytes, keys and what a store
promises; storage.disk and storage.s3 keep the promises. Must not know messages, the ledger or the platform.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from wechat.formats import HEAD_BYTES

_PART = r"[A-Za-z0-9_-]+"
STEM = re.compile(rf"{_PART}(?:/{_PART})*")
_KEY = re.compile(rf"{STEM.pattern}\.[a-z0-9]{{1,8}}")


class StoreError(OSError):
    """The store could not be reached, or a call failed. Nothing half done is left in it."""


@dataclass(frozen=True)
class StoredFile:
    """What was written: `size` in bytes, `sha256` in hex."""

    key: str
    size: int
    sha256: str


class FileStore(Protocol):
    """A place for media. A fault of the place is an OSError, a malformed key or stem a ValueError."""

    def put(
        self, stem: str, chunks: Iterable[bytes], *, extension: Callable[[bytes], str], attempt: int
    ) -> StoredFile:
        """Keep the bytes under `stem`, with the extension that `extension` gives for the first 512 of them. Returns
        when they would survive a crash of the machine. Raises what the chunks raise, and then leaves nothing of this
        attempt."""

    def open(self, key: str) -> BinaryIO:
        """The file, to be read and closed. Raises FileNotFoundError."""

    def size(self, key: str) -> int | None:
        """The file's size in bytes; None when there is none."""

    def delete(self, key: str) -> None:
        """Delete the file; one that is not there is no error. It does not come back after a crash of the machine."""

    def delete_all(self, stems: Sequence[str]) -> int:
        """Delete everything under these stems, with any extension, whole or not; returns how many whole files there
        were. Nothing of it comes back after a crash of the machine. After an error some of it may be left."""

    def discard(self, stem: str, attempt: int) -> None:
        """Delete what this attempt and those before it left unfinished."""

    def free_bytes(self) -> int | None:
        """How many bytes can still be written; None when the store has no such limit."""

    def check(self) -> None:
        """Return when files can be kept."""


def open_store(media_store: str) -> FileStore:
    """The store of a MEDIA_STORE: `s3://bucket/prefix`, or a folder."""
    if media_store.startswith("s3://"):
        from storage.s3 import S3Store

        return S3Store(media_store)
    from storage.disk import DiskStore

    return DiskStore(Path(media_store))


def copy(chunks: Iterable[bytes], file: Any, *also: Any) -> tuple[bytes, int, str]:
    """Write the chunks, and pass them to the digests in `also`. Returns their first HEAD_BYTES, their size in bytes,
    and their SHA-256 in hex."""
    sha256 = hashlib.sha256()
    head = b""
    size = 0
    for chunk in chunks:
        if len(head) < HEAD_BYTES:
            head += chunk[: HEAD_BYTES - len(head)]
        size += len(chunk)
        for digest in (sha256, *also):
            digest.update(chunk)
        file.write(chunk)
    return head, size, sha256.hexdigest()


def check_stem(stem: str) -> None:
    """Raise ValueError for a malformed stem: it could lead out of the store."""
    _check(STEM, stem)


def check_key(key: str) -> None:
    """Raise ValueError for a malformed key: it could lead out of the store."""
    _check(_KEY, key)


def _check(form: re.Pattern[str], name: str) -> None:
    if form.fullmatch(name) is None:
        raise ValueError("not a key of the media store")
