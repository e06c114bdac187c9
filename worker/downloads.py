"""Downloads what fans sent: asks the platform, writes the file, marks it in the ledger.

Knows this order, and that a store that is away or full stops it. Must not know threads, leases, SQL, or how a file is
written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

from answers.failures import failure
from storage.files import FileStore
from storage.ledger import Ledger
from storage.queue import Download, Queue
from wechat import media
from wechat.client import ApiClient
from wechat.errors import WeChatError
from wechat.formats import extension
from worker.jobs import ClaimLostError, Failures, Held, StoppedError

log = logging.getLogger(__name__)

MIN_FREE_BYTES = 200 * 1024 * 1024
NO_ROOM_PAUSE_SECONDS = 10.0
NO_ROOM_SAID_SECONDS = 60.0  # between two lines in the log: every download that is due meets the same


class Downloads:
    """How one process downloads."""

    def __init__(
        self,
        queue: Queue,
        ledger: Ledger,
        client: ApiClient,
        files: FileStore,
        failures: Failures,
        *,
        max_media_bytes: int,
        clock: Callable[[], float],
    ) -> None:
        self._queue, self._ledger = queue, ledger
        self._client, self._files, self._failures = client, files, failures
        self._max_media_bytes, self._clock = max_media_bytes, clock
        self._said_at = 0.0

    def claim(self, now: float, lease_seconds: float, limit: int) -> list[Download]:
        """Claims up to `limit` due downloads; none while the store is away or nearly full: the ledger then says so."""
        reason = self._no_room()
        if reason is None:
            return self._queue.claim_downloads(now, lease_seconds, limit)
        for download in self._queue.claim_downloads(now, lease_seconds, 1):
            if abs(now - self._said_at) >= NO_ROOM_SAID_SECONDS:
                self._said_at = now
                log.error("downloads have to wait", extra={"reason": reason})
            self._failures.put_off(download, NO_ROOM_PAUSE_SECONDS, reason)
        return []

    def _no_room(self) -> str | None:
        """Why nothing can be stored now, if so."""
        try:
            free = self._files.free_bytes()
        except OSError as error:
            return failure(error).reason
        if free is None or free >= MIN_FREE_BYTES:
            return None
        return (
            f"the disk of MEDIA_STORE has {free >> 20} MB free, less than {MIN_FREE_BYTES >> 20}: make room"
        )

    def do(self, job: Download, held: Held, given_up: Callable[[], bool]) -> None:
        """Downloads it. Raises ClaimLostError, StoppedError when `given_up()` is true, and DatabaseUnavailableError."""
        try:
            with media.open_media(self._client, job.media_id, max_bytes=self._max_media_bytes) as chunks:
                stored = self._files.put(
                    job.stem,
                    _watched(chunks, held, given_up),
                    extension=extension,
                    attempt=job.attempt,
                )
        except (WeChatError, OSError) as error:
            failed = failure(error)
            if failed.final:
                self._failures.fail(job, failed.code, failed.reason)
            else:
                self._failures.retry(job, failed.code, failed.reason, failed.not_before)
            return
        if self._queue.mark_stored(job, stored, self._clock()):
            log.info("stored", extra={"ledger_id": job.id, "key": stored.key, "size": stored.size})
            return
        entry = self._ledger.get(job.id)
        if entry is None or entry.media_state == "failed":  # purged or given up meanwhile: a stray file
            self._files.delete(stored.key)


def _watched(chunks: Iterable[bytes], held: Held, given_up: Callable[[], bool]) -> Iterator[bytes]:
    for chunk in chunks:
        if held.lost:
            raise ClaimLostError
        if given_up():
            raise StoppedError
        yield chunk
