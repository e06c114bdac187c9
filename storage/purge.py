"""Deletes what is no longer to be kept: rows, their files and thumbnails, in batches, while the rest goes on.

Knows the order: first the rows, whose commit keeps what is to be deleted; then the files and thumbnails, until their
folders are on the disk without them; then what was kept for that. A crash or a power cut in between repeats a deletion
and forgets none. Does not know why something is to go, nor SQL.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from storage.files import FileStore
from storage.ledger import Ledger
from storage.thumbnails import Thumbnails


@dataclass(frozen=True)
class Purged:
    """How many rows were deleted, and how many files."""

    rows: int
    files: int


def purge(
    ledger: Ledger,
    files: FileStore,
    thumbnails: Thumbnails,
    *,
    now: float,
    before: float | None = None,
    fan: str | None = None,
) -> Purged:
    """Deletes all that came in before that time (unix seconds), or from that fan (OpenID), or both.

    A file that a worker is writing at this moment is deleted later, by `delete_files()`. Raises
    `DatabaseUnavailableError` or `OSError`; what is left then goes with the next call.
    """
    rows = 0
    while deleted := ledger.purge(now, before=before, fan=fan):
        rows += deleted
    return Purged(rows, delete_files(ledger, files, thumbnails, now=now))


def delete_files(ledger: Ledger, files: FileStore, thumbnails: Thumbnails, *, now: float) -> int:
    """Deletes the files whose rows are gone, and their thumbnails; returns how many files there were."""
    deleted = 0
    while stems := ledger.files_to_delete(now):
        thumbnails.delete(*stems)
        deleted += files.delete_all(stems)
        ledger.mark_deleted(stems)
    return deleted


def forget_unsubscribed(ledger: Ledger, files: FileStore, thumbnails: Thumbnails, *, now: float) -> int:
    """Purges each fan who unsubscribed, up to and with that event; returns how many fans.

    The event's own row is what is still to be done, so that a crash in between loses no purge.
    """
    unsubscribed = ledger.unsubscribed()
    for event in unsubscribed:
        purge(
            ledger,
            files,
            thumbnails,
            now=now,
            before=math.nextafter(event.received_at, math.inf),
            fan=event.openid,
        )
    return len(unsubscribed)
