"""Counts of recently refused requests, by minute and reason, over all processes; for `flask doctor`.

Knows counters that are deleted after an hour. A process writes them at most once a second, so that a stranger's
many requests cost few writes. Must not know what a request is, or why it was refused.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, select

from storage.database import Database
from storage.errors import DatabaseUnavailableError
from storage.models import messages, refusals

KEPT_SECONDS = 3600.0
WRITE_SECONDS = 1.0
"""A process writes its counts at most this often. What comes meanwhile goes with the next write. One that takes longer
than this is given up."""


@dataclass(frozen=True)
class Refused:
    """`count` requests for one `reason`, the last of them at `last_at` (unix seconds)."""

    reason: str
    count: int
    last_at: float


class Refusals:
    """The counts of one account."""

    def __init__(self, database: Database, appid: str) -> None:
        self._database, self._appid = database, appid
        self._lock = threading.Lock()  # for the next two
        self._counted: Counter[str] = Counter()
        self._written_at = 0.0

    def count(self, reason: str, now: float) -> None:
        """One more request was refused. Never fails: counts that cannot be written in time are dropped."""
        with self._lock:
            self._counted[reason] += 1
            if abs(now - self._written_at) < WRITE_SECONDS:
                return
            counted, self._counted, self._written_at = self._counted, Counter(), now

        def add(connection: Connection) -> None:
            connection.execute(delete(refusals).where(refusals.c.minute < (now - KEPT_SECONDS) // 60))
            # The same order in every process, or two could deadlock.
            for reason, more in sorted(counted.items()):
                row = {"appid": self._appid, "minute": now // 60, "reason": reason}
                connection.execute(
                    self._database.insert(refusals)
                    .values(**row, count=more, last_at=now)
                    .on_conflict_do_update(
                        index_elements=[refusals.c.appid, refusals.c.minute, refusals.c.reason],
                        set_={"count": refusals.c.count + more, "last_at": now},
                    )
                )

        try:
            self._database.transact(add, wait=WRITE_SECONDS)
        except DatabaseUnavailableError:
            return

    def lately(self, now: float, seconds: float) -> list[Refused]:
        """What was refused within so many seconds, the most frequent reason first."""
        count = func.sum(refusals.c.count)
        statement = (
            select(refusals.c.reason, count, func.max(refusals.c.last_at))
            .where(refusals.c.appid == self._appid, refusals.c.minute >= (now - seconds) // 60)
            .group_by(refusals.c.reason)
            .order_by(count.desc(), refusals.c.reason)
        )
        rows = self._database.run(lambda connection: connection.execute(statement).all())
        return [Refused(reason, int(number), float(last_at)) for reason, number, last_at in rows]

    def last_message_at(self) -> float | None:
        """When the newest message was accepted (unix seconds)."""
        statement = (
            select(messages.c.received_at)
            .where(messages.c.appid == self._appid)
            .order_by(messages.c.id.desc())
            .limit(1)
        )
        return self._database.run(lambda connection: connection.execute(statement).scalar())
