"""Log lines about a handler's reply: it was cut, or it names a file that is not known here.

Knows the ledger's rows of the fan, and what the work itself has uploaded. Must not change the reply: only the platform
knows all files of an account, such as its permanent material.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from contextlib import suppress

from storage.errors import DatabaseUnavailableError
from storage.ledger import Ledger
from wechat.messages import Message
from wechat.replies import (
    MAX_TEXT_BYTES,
    ImageReply,
    MusicReply,
    Reply,
    TextReply,
    VideoReply,
    VoiceReply,
)

log = logging.getLogger(__name__)

LOGGED_AT_MOST = 1000


class ReplyLog:
    """One process's lines about the replies of one account."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._logged: set[str] = set()

    def note(
        self, reply: Reply | None, message: Message, ledger_id: int, uploaded: Collection[str] = ()
    ) -> None:
        """Checks a new reply to `message`; `uploaded` are the MediaIds that its work got.

        Each MediaId is logged once: permanent material looks unknown, and a handler may use it in every reply.
        """
        if isinstance(reply, TextReply) and reply.cut_from is not None:
            log.warning(
                "a reply was cut to %d bytes, from %d",
                MAX_TEXT_BYTES,
                reply.cut_from,
                extra={"ledger_id": ledger_id},
            )
        media_id = _media_id(reply)
        if media_id is None or media_id in (message.media_id, *uploaded) or media_id in self._logged:
            return
        with suppress(DatabaseUnavailableError):
            if self._ledger.has_media(message.from_user_name, media_id):
                return
            if len(self._logged) >= LOGGED_AT_MOST:
                self._logged.clear()
            self._logged.add(media_id)
            log.warning(
                "a reply names a MediaId that is neither the fan's nor uploaded by its work: "
                "the platform takes it only if it is the account's own",
                extra={"ledger_id": ledger_id},
            )


def _media_id(reply: Reply | None) -> str | None:
    if isinstance(reply, ImageReply | VoiceReply | VideoReply):
        return reply.media_id
    return reply.thumb_media_id if isinstance(reply, MusicReply) else None
