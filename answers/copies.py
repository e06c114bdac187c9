"""Uploads stored copies of what fans sent, so that each gets a MediaId of our own.

Knows the media store and the platform's upload. Must not know who gets the file, or whether a failed upload is
retried. Only a few uploads run at once: in a burst of videos, each would otherwise be slow.
"""

from __future__ import annotations

import threading
from typing import cast

from storage.files import FileStore
from wechat import media
from wechat.client import ApiClient
from wechat.messages import MediaKind

UPLOADS_AT_ONCE = 8


class StoredFileGoneError(OSError):
    """The ledger says that the file is stored, but MEDIA_STORE no longer has it."""


class StoredCopies:
    """The stored files of one account, to be uploaded."""

    def __init__(self, client: ApiClient, files: FileStore) -> None:
        self._client, self._files = client, files
        self._uploading = threading.BoundedSemaphore(UPLOADS_AT_ONCE)

    def upload(self, media_key: str, media_kind: str) -> str:
        """Uploads the stored file. Returns its new MediaId, valid for three days.

        Raises StoredFileGoneError, MediaRefusedError when the platform would not take it (type, size), other OSErrors
        of the store, and WeChatError.
        """
        with self._uploading:
            size = self._files.size(media_key)
            if size is None:
                raise StoredFileGoneError(media_key)
            with self._files.open(media_key) as file:
                answer = media.upload(
                    self._client,
                    kind=cast(MediaKind, media_kind),
                    file=file,
                    filename=media_key,
                    size=size,
                )
            return media.uploaded_media_id(answer)
