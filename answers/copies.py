"""Uploads stored copies of what fans sent: a file gets a MediaId of our own, by which the platform shows it.

Knows the media store and the platform's upload. Must not know who is to get the file, or whether the upload is to be
repeated when it fails. A few uploads run at once, so that a burst of videos does not slow them all down.
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
    """The ledger says that the file is stored, and MEDIA_STORE has it no more."""


class StoredCopies:
    """The stored files of one account, and how one of them is uploaded."""

    def __init__(self, client: ApiClient, files: FileStore) -> None:
        self._client, self._files = client, files
        self._uploading = threading.BoundedSemaphore(UPLOADS_AT_ONCE)

    def upload(self, media_key: str, media_kind: str) -> str:
        """The MediaId under which the platform now has this stored file. Valid for three days.

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
