"""Sends what fans still have to get, by customer-service message: the result of deferred work, or a stored copy.

Knows the order: upload, read the access_token, mark as sending, send, mark the result. A request that may have arrived
is never repeated. Must not know threads, leases or SQL.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from answers.copies import StoredCopies
from answers.failures import SEND_REFUSALS, failure
from storage.deferred import DeferredWork
from storage.errors import DatabaseUnavailableError
from storage.queue import Queue, Send
from wechat import customer_service
from wechat.client import ApiClient
from wechat.errors import TransportError, WeChatError
from wechat.replies import ImageReply, Reply, VideoReply, VoiceReply, parse_reply
from worker.jobs import ClaimLostError, Failures

log = logging.getLogger(__name__)


class Sends:
    """How one process sends."""

    def __init__(
        self,
        queue: Queue,
        client: ApiClient,
        works: DeferredWork,
        copies: StoredCopies,
        failures: Failures,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._queue, self._client, self._works = queue, client, works
        self._copies, self._failures, self._clock = copies, failures, clock

    def do(self, job: Send) -> None:
        """Sends it. Raises ClaimLostError and DatabaseUnavailableError."""
        if job.sending:
            self._queue.mark_unknown(job, "the process ended while the message was on its way", self._clock())
            return
        try:
            reply = self._message_for(job)
            # Before the mark: this may take long, and a process that dies meanwhile has sent nothing.
            client = self._client.with_token_read()
            if not self._queue.mark_sending(job):
                raise ClaimLostError
            try:
                customer_service.send(client, job.openid, reply)
            except DatabaseUnavailableError as error:
                # The platform refused the access_token, and no other could be read: nothing was sent.
                self._failures.retry(job, None, str(error))
                return
            except TransportError as error:
                if not error.sent:
                    raise
                reason = f"the message may have arrived, so it is not sent again: {error}"
                log.warning("a message's fate is unknown", extra={"ledger_id": job.id, "reason": str(error)})
                self._queue.mark_unknown(job, reason, self._clock())
                return
        except (WeChatError, OSError) as error:
            failed = failure(error)
            if failed.final or failed.code in SEND_REFUSALS:
                self._failures.fail(job, failed.code, failed.reason)
            else:
                self._failures.retry(job, failed.code, failed.reason, failed.not_before)
        else:
            self._queue.mark_sent(job, self._clock())
            log.info("sent back", extra={"ledger_id": job.id})

    def _message_for(self, job: Send) -> Reply:
        result = self._works.result(job.id)
        if result is not None:
            return parse_reply(result)
        media_id = job.uploaded_media_id or self._upload(job)
        if job.media_kind == "image":
            return ImageReply(media_id)
        return VoiceReply(media_id) if job.media_kind == "voice" else VideoReply(media_id)

    def _upload(self, job: Send) -> str:
        media_id = self._copies.upload(job.media_key, job.media_kind)
        if not self._queue.mark_uploaded(job, media_id):
            raise ClaimLostError
        return media_id
