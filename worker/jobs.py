"""A claimed job, and what happens if it does not succeed: it is given back, tried again, or failed for good.

Knows the platform's limits: three days for a file, 48 hours for a message to a fan. Must not know how a download or a
send is done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from answers.failures import SEND_LIFE_SECONDS, pause
from answers.steps import try_step
from storage.files import FileStore
from storage.queue import Download, Job, Queue
from wechat import media

log = logging.getLogger(__name__)

# For what a failed download left, or the lease if that is longer. If it takes longer, the heartbeat renews the claim.
DELETION_SECONDS = 60.0


class StoppedError(Exception):
    """The process was told to stop: give the work back."""


class ClaimLostError(Exception):
    """Another process holds this work now."""


class Held:
    """A running job. `lost` is set by the heartbeat when another process took the claim."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.lost = False


class Failures:
    """Notes in the ledger that a job did not succeed."""

    def __init__(
        self,
        queue: Queue,
        files: FileStore,
        *,
        lease_seconds: float,
        clock: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        self._queue, self._files = queue, files
        self._deletion_seconds = max(DELETION_SECONDS, lease_seconds)
        self._clock, self._jitter = clock, jitter

    def retry(self, job: Job, code: int | None, reason: str, not_before: float = 0.0) -> None:
        """Tries the job again after a pause, not before `not_before` (unix seconds); too late means failed."""
        due = max(self._clock() + pause(job.attempt, self._jitter()), not_before)
        if self._is_too_late(job, due, code, reason):
            return
        log.warning(
            "failed; it will be tried again", extra={"ledger_id": job.id, "code": code, "reason": reason}
        )
        self._queue.mark_retry(job, due, code, reason)

    def put_off(self, job: Job, seconds: float, reason: str) -> None:
        """Does the job so many seconds later: it was not tried, so the attempt does not count; too late means
        failed."""
        due = self._clock() + seconds
        if not self._is_too_late(job, due, None, reason):
            self._queue.give_back(job, due, reason)

    def _is_too_late(self, job: Job, due: float, code: int | None, reason: str) -> bool:
        life = media.LIFE_SECONDS if isinstance(job, Download) else SEND_LIFE_SECONDS
        if due <= min(job.create_time, job.received_at) + life:
            return False
        self.fail(job, code, f"{reason} (given up: the platform's {life // 3600} hours are over)")
        return True

    def fail(self, job: Job, code: int | None, reason: str) -> None:
        """Deletes what killed attempts at a download left in the store, and marks the job as failed for good."""
        log.error("failed for good", extra={"ledger_id": job.id, "code": code, "reason": reason})
        # While the claim is held: a failed row may be retried, and then another attempt's file may be the stored one.
        # An older attempt that still writes cannot finish without its unfinished file.
        if isinstance(job, Download) and self._queue.extend(job, self._clock(), self._deletion_seconds):
            delete = partial(self._files.delete_all, [job.stem])
            try_step("what a failed download left cannot be deleted", delete, ledger_id=job.id)
        self._queue.mark_failed(job, code, reason, self._clock())
