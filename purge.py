"""Deletes what is no longer to be kept: rows of the ledger and their files, in batches, while the rest goes on.

Knows the order: rows first, whose commit keeps the files' names; then the files; then the names. A crash in between
repeats a deletion and forgets none. Does not know why something is to go, nor SQL.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from storage.files import FileStore
from storage.ledger import Ledger


@dataclass(frozen=True)
class Purged:
    """How many rows were deleted, and how many files."""

    rows: int
    files: int


def purge(
    ledger: Ledger, files: FileStore, *, now: float, before: float | None = None, fan: str | None = None
) -> Purged:
    """Deletes all that came in before that time (unix seconds), or from that fan (OpenID), or both.

    A file that a worker is writing at this moment is deleted later, by `delete_files()`. Raises
    `LedgerUnavailableError` or `OSError`; what is left then goes with the next call.
    """
    rows = 0
    while deleted := ledger.purge(now, before=before, fan=fan):
        rows += deleted
    return Purged(rows, delete_files(ledger, files, now=now))


def delete_files(ledger: Ledger, files: FileStore, *, now: float) -> int:
    """Deletes the files whose rows are gone; returns how many there were."""
    deleted = 0
    while doomed := ledger.doomed(now):
        for file in doomed:
            if file.key is None:
                files.delete_all(file.stem)
            else:
                files.delete(file.key)
                deleted += 1
        ledger.forget(doomed)
    return deleted


def forget_unsubscribed(ledger: Ledger, files: FileStore, *, now: float) -> int:
    """Purges each fan who unsubscribed, up to and with that event; returns how many fans.

    The event's own row is what is still to be done, so that a crash in between loses no purge.
    """
    unsubscribed = ledger.unsubscribed()
    for event in unsubscribed:
        purge(ledger, files, now=now, before=math.nextafter(event.received_at, math.inf), fan=event.openid)
    return len(unsubscribed)
