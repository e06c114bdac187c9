"""Where the thumbnails of stored pictures lie: beside the media store, under the same names.

Knows the place, and how much room must stay free there. Must not know how a thumbnail is made, or which ones are
wanted.
"""

from __future__ import annotations

import errno
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from storage.files import FileStore, open_store

MIN_FREE_BYTES = 250 * 1024 * 1024  # thumbnails stop before downloads do


def thumbnail_store(media_store: str) -> str:
    """The place for the thumbnails of a MEDIA_STORE: `data/media-thumbnails`, `s3://bucket/prefix-thumbnails`."""
    if media_store.startswith("s3://"):
        bucket, _, prefix = media_store.removeprefix("s3://").rstrip("/").partition("/")
        return f"s3://{bucket}/{prefix}-thumbnails" if prefix else f"s3://{bucket}/thumbnails"
    folder = Path(media_store)
    return str(folder.with_name(f"{folder.name}-thumbnails"))


class Thumbnails:
    """All thumbnails of one media store. A fault of the place is an OSError."""

    def __init__(self, media_store: str) -> None:
        self._media_store = media_store

    @cached_property
    def _store(self) -> FileStore:
        return open_store(thumbnail_store(self._media_store))

    def put(self, media_key: str, jpeg: bytes) -> None:
        """Keep the thumbnail of this stored picture."""
        free = self._store.free_bytes()
        if free is not None and free < MIN_FREE_BYTES:
            raise OSError(
                errno.ENOSPC, f"{free >> 20} MB are free, less than {MIN_FREE_BYTES >> 20}: make room"
            )
        self._store.put(_stem(media_key), [jpeg], extension=lambda head: "jpg", attempt=1)

    def open(self, media_key: str) -> BinaryIO:
        """The thumbnail of this stored picture, a JPEG. Raises FileNotFoundError."""
        return self._store.open(f"{_stem(media_key)}.jpg")

    def delete(self, *stems: str) -> None:
        """Delete the thumbnails of the pictures with these stems, if there are any."""
        self._store.delete_all(stems)


def _stem(media_key: str) -> str:
    return media_key.rpartition(".")[0]
