"""Deletes rows, their files and thumbnails for good, in batches, while the bot goes on.

Knows the order: first the rows, whose commit notes the files to delete; then the files and thumbnails, until their
folders are synced; then the notes. After a crash or a power cut a deletion may be repeated, but none is forgotten.
`purge_index` finds the rows of a fan or of a time. Must not know why something is deleted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Connection,
    Table,
    Text,
    delete,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.sql import ColumnElement

from storage.database import Database
from storage.files import FileStore
from storage.models import (
    STORED,
    files_to_delete,
    lease_over,
    memories,
    messages,
    purge_index,
    purge_index_upto,
    works,
)
from storage.queue import file_stem
from storage.thumbnails import Thumbnails

# PostgreSQL assigns ids before it commits: a row may appear below the newest id, but not this far below.
UNSETTLED_IDS = 10_000
BLOCK = 20_000  # how many ids purge_index takes in at a time; what is indexed stays in its block

# A literal in the SQL, as the states are, for the partial index.
_UNSUBSCRIBE = literal_column("'unsubscribe'", Text)


@dataclass(frozen=True)
class Unsubscribed:
    """A fan who unsubscribed, the event's ledger id, and when it came in (unix seconds)."""

    openid: str
    id: int
    received_at: float


@dataclass(frozen=True)
class Purged:
    """How many rows were deleted, and how many files."""

    rows: int
    files: int


@dataclass(frozen=True)
class Purge:
    """Deletes rows of one account, and then their files. Ends after the batch in hand when `stopped()`.

    Every method raises `DatabaseUnavailableError` or `OSError`. After that, or a stop, the next call deletes the rest.
    """

    rows: PurgeRows
    files: FileStore
    thumbnails: Thumbnails
    stopped: Callable[[], bool] = lambda: False

    def purge(
        self, now: float, *, before: float | None = None, fan: str | None = None, upto: int = 0
    ) -> Purged:
        """Deletes all that came in before that time (unix seconds), or from that fan (OpenID), or both.

        What has at most the ledger id `upto` counts as before that time.

        A file that a worker is writing at this moment is deleted later, by `delete_files()`.
        """
        count = 0
        while not self.stopped() and not self.rows.index():
            pass
        while not self.stopped() and (deleted := self.rows.purge(now, before=before, fan=fan, upto=upto)):
            count += deleted
        return Purged(count, self.delete_files(now))

    def delete_files(self, now: float) -> int:
        """Deletes the files whose rows are gone, and their thumbnails; returns how many files there were.

        A file that cannot be deleted holds up no other one: its error is raised at the end.
        """
        deleted, last, fault = 0, "", None
        while not self.stopped() and (stems := self.rows.files_to_delete(now, after=last)):
            last = stems[-1]
            try:
                deleted += self._delete(stems)
            except OSError as error:
                self.files.check()  # if nothing can be kept, nothing can be deleted either: do not try the rest
                fault = error
            else:
                self.rows.mark_deleted(stems)
        if fault is not None:
            raise fault
        return deleted

    def _delete(self, stems: Sequence[str]) -> int:
        try:
            self.thumbnails.delete(*stems)
        finally:  # a fault of one thumbnail is none of the pictures
            deleted = self.files.delete_all(stems)
        return deleted

    def forget_unsubscribed(self, now: float) -> int:
        """Purges each fan who unsubscribed, up to and including that event; returns how many fans.

        What came in before it may have a later time, if a clock ran ahead or was set back: its id tells. The event's
        own row marks what is still to do, so that a crash or a stop loses no purge.
        """
        forgotten = 0
        for event in self.rows.unsubscribed():
            before = math.nextafter(event.received_at, math.inf)
            self.purge(now, before=before, fan=event.openid, upto=event.id)
            if self.stopped():
                break
            forgotten += 1
        return forgotten


class PurgeRows:
    """Deletes rows of one account. Every method raises DatabaseUnavailableError when the database is away."""

    def __init__(self, database: Database, appid: str) -> None:
        self._database = database
        self._appid = appid

    def purge(
        self,
        now: float,
        *,
        before: float | None = None,
        fan: str | None = None,
        upto: int = 0,
        limit: int = 500,
    ) -> int:
        """Delete up to `limit` rows that came in before that time, or from that fan, or both; returns how many.

        What has at most the id `upto` counts as before that time.
        Call it until it returns 0. A fan's oldest rows go first. It needs `index`, and sees to what is missing of it.
        The same commit notes the files to delete: `files_to_delete`. A pending download goes with its row; the
        worker's next mark returns False.
        """
        if before is None and fan is None:
            raise ValueError("purge needs a time or a fan")
        ids = self._ids_to_purge(before, fan, upto, limit)
        if not ids:
            self._database.write(lambda connection: _forget(self._appid, before, fan, connection))
            self._database.sync()  # otherwise a power cut could bring back what was said to be deleted
            return 0
        if fan is None:
            return self._delete(ids, now)

        def forget(connection: Connection, newest: float) -> None:
            # A memory has no id: what these rows changed came in when they did.
            until = max(before, math.nextafter(newest, math.inf)) if before is not None else None
            _forget(self._appid, until, fan, connection)

        # With the rows: the event that marks a fan as one to forget may be among them.
        return self._delete(ids, now, forget)

    def index(self) -> bool:
        """Index the next part of the ledger; True when all is indexed.

        Some seconds for the first million rows, in transactions short enough for pushes to go on.
        """
        return self._database.transact(_index_step) is not None

    def delete(self, ledger_id: int, now: float) -> bool:
        """Delete this row, as `purge` does; False if there is none."""
        deleted = self._delete([ledger_id], now) == 1
        self._database.sync()
        return deleted

    def unsubscribed(self) -> list[Unsubscribed]:
        """Fans who unsubscribed and whose event is still kept, the oldest first."""
        statement = (
            select(messages.c.sender, messages.c.id, messages.c.received_at)
            .where(messages.c.appid == self._appid, messages.c.event == _UNSUBSCRIBE)
            .order_by(messages.c.id)
            .limit(100)
        )
        rows = self._database.run(lambda connection: connection.execute(statement).all())
        return [Unsubscribed(row.sender, row.id, row.received_at) for row in rows]

    def files_to_delete(self, now: float, *, after: str = "") -> list[str]:
        """Stems of files whose rows are purged: delete everything under them from the stores. In order, the first ones
        after that stem."""
        statement = (
            select(files_to_delete.c.stem)
            .where(files_to_delete.c.appid == self._appid, lease_over(files_to_delete.c.due, now))
            .where(files_to_delete.c.stem > after)
            .order_by(files_to_delete.c.stem)
            .limit(500)
        )
        stems = self._database.run(lambda connection: list(connection.execute(statement).scalars()))
        if stems:
            self._database.sync()  # otherwise a power cut could bring back a row without its file
        return stems

    def mark_deleted(self, stems: Sequence[str]) -> None:
        """Forget these stems: their files are deleted, and a power cut would not bring them back."""
        statement = delete(files_to_delete).where(files_to_delete.c.stem.in_(stems))
        self._database.write(lambda connection: connection.execute(statement))

    def count(self, *, before: float | None = None, fan: str | None = None) -> tuple[int, int]:
        """How many rows, and how many stored files, `purge` would delete in all."""
        wanted = [messages.c.appid == self._appid]
        if before is not None:
            wanted.append(messages.c.received_at < before)
        if fan is not None:
            wanted.append(messages.c.sender == fan)
        stored = func.count().filter(messages.c.media_state == STORED)
        statement = select(func.count(), stored).where(*wanted)
        rows, files = self._database.run(lambda connection: connection.execute(statement).one())
        return int(rows), int(files)

    def _delete(
        self,
        ids: Sequence[int],
        now: float,
        forget: Callable[[Connection, float], None] = lambda connection, newest: None,
    ) -> int:
        """`forget` is told when the newest of the rows came in."""

        def remove(connection: Connection) -> int:
            _lock_index(connection)
            connection.execute(delete(purge_index).where(purge_index.c.id.in_(ids)))
            rows = connection.execute(
                delete(messages)
                .where(messages.c.id.in_(ids), messages.c.appid == self._appid)
                .returning(
                    messages.c.id,
                    messages.c.received_at,
                    messages.c.media_attempts,
                    messages.c.media_lease_until,
                    messages.c.thumbnail_due,
                )
            ).all()
            connection.execute(delete(works).where(works.c.id.in_(ids)))
            forget(connection, max((row.received_at for row in rows), default=0.0))
            files = [
                {
                    "stem": file_stem(self._appid, row.received_at, row.id),
                    "appid": self._appid,
                    # A worker may have it until its lease ends, and die after its file is in place.
                    "due": max(now, row.media_lease_until or 0.0, row.thumbnail_due or 0.0),
                }
                for row in rows
                if row.media_attempts
            ]
            if files:
                connection.execute(insert(files_to_delete), files)
            return len(rows)

        return self._database.transact(remove)

    def _ids_to_purge(self, before: float | None, fan: str | None, upto_id: int, limit: int) -> list[int]:
        """From the updated purge_index, and from the few rows that are too new for it."""
        while (upto := self._database.transact(_index_step)) is None:
            pass

        def of(table: Table) -> list[ColumnElement[bool]]:
            conditions = [table.c.appid == self._appid]
            if fan is not None:
                conditions.append(table.c.sender == fan)
            if before is not None:
                early = table.c.received_at < before
                conditions.append(or_(early, table.c.id <= upto_id) if upto_id else early)
            return conditions

        indexed = select(purge_index.c.id).where(*of(purge_index))
        if fan is not None:
            # The oldest first: the event that marks a fan as one to forget goes last.
            indexed = indexed.where(purge_index.c.block.in_(range(upto // BLOCK + 1))).order_by(
                purge_index.c.id
            )
        ids = self._ids(indexed.limit(limit))
        if len(ids) < limit:
            unsettled = (
                select(messages.c.id).where(messages.c.id > upto, *of(messages)).order_by(messages.c.id)
            )
            ids += self._ids(unsettled.limit(limit - len(ids)))
        return ids

    def _ids(self, statement: Any) -> list[int]:
        return self._database.run(lambda connection: list(connection.execute(statement).scalars()))


def _forget(appid: str, before: float | None, fan: str | None, connection: Connection) -> None:
    """Delete the memories of fans whose messages are purged."""
    conditions = [memories.c.appid == appid]
    if fan is not None:
        conditions.append(memories.c.sender == fan)
    if before is not None:
        conditions.append(memories.c.changed_at < before)
    connection.execute(delete(memories).where(*conditions))


def _lock_index(connection: Connection) -> int:
    """Lock purge_index against other processes; returns the last id in it."""
    statement = select(purge_index_upto.c.id).with_for_update()
    return int(connection.execute(statement).scalar_one())


def _index_step(connection: Connection) -> int | None:
    """Add one batch to purge_index; returns the last id in it, or None if more rows remain."""
    upto = _lock_index(connection)
    newest = connection.execute(select(func.max(messages.c.id))).scalar() or 0
    block = upto // BLOCK
    step_end = min((block + 1) * BLOCK, newest - UNSETTLED_IDS)
    if step_end <= upto:
        return upto
    columns = [messages.c.id, messages.c.appid, messages.c.sender, messages.c.received_at]
    rows = select(literal(block), *columns).where(messages.c.id > upto, messages.c.id <= step_end)
    # In the order of the index, whose pages are then each written once.
    rows = rows.order_by(messages.c.sender)
    names = ["block", *(column.name for column in columns)]
    connection.execute(insert(purge_index).from_select(names, rows))
    connection.execute(update(purge_index_upto).values(id=step_end))
    return None
