"""What the work of a Deferred may do beside its reply: send messages to its fan at once, and upload files.

Knows one fan and the platform's two calls for it. Must not know the ledger: what is sent here is not recorded, so
work that runs again sends again.
"""

from __future__ import annotations

import os
from pathlib import Path

from wechat import customer_service, media
from wechat.client import ApiClient
from wechat.formats import HEAD_BYTES
from wechat.replies import Reply


class FanAccount:
    """The account, as seen from the work for one of its fans: a `handlers.Account`."""

    def __init__(self, client: ApiClient, openid: str) -> None:
        self._client, self._openid = client, openid
        self.uploaded: list[str] = []
        """The MediaIds that `upload` gave."""

    def send(self, reply: Reply) -> None:
        """As `handlers.Account.send`. Raises as `customer_service.send` does."""
        customer_service.send(self._client, self._openid, reply)

    def upload(self, path: str | os.PathLike[str]) -> str:
        """As `handlers.Account.upload`. Raises OSError, MediaRefusedError, and WeChatError."""
        with Path(path).open("rb") as file:
            kind = media.kind_of(file.read(HEAD_BYTES))
            file.seek(0)
            answer = media.upload(
                self._client,
                kind=kind,
                file=file,
                filename=Path(path).name,
                size=os.fstat(file.fileno()).st_size,
            )
        self.uploaded.append(media.uploaded_media_id(answer))
        return self.uploaded[-1]
