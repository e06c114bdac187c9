"""What a handler remembers of each fan: one JSON text for a fan, kept together with the message that it came from.

Knows that message, reply and memory are one commit, and how two messages of one fan at the same instant are kept from
overwriting each other: a memory has a version, and a change to an older version is not written.
Must not know what a memory holds, or the clock. The functions at the end are for storage.deferred.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import Connection, Executable, case, select, update

from storage.database import Database
from storage.ledger import Ledger, Recorded, find_in_transaction, insert_in_transaction
from storage.models import memories
from storage.statements import find_each
from wechat.messages import Message

_KEY = (memories.c.appid, memories.c.sender)


def _read(count: int) -> Executable:
    """What is remembered of so many fans."""
    return find_each(select(*_KEY, memories.c.memory, memories.c.version), _KEY, count)


@dataclass(frozen=True)
class StoredMemory:
    """The JSON text, and which version of it this is; version 0 has never been written."""

    json: str = field(default="{}", repr=False)
    version: int = 0


@dataclass(frozen=True)
class Change:
    """`memory` (JSON) takes the place of what was `seen`."""

    seen: StoredMemory
    memory: str = field(repr=False)


class MemoryChangedError(Exception):
    """Another message of this fan changed the memory since it was read; nothing is written. Read it again."""


class Memories:
    """The memories of one account's fans. Every method raises DatabaseUnavailableError as the ledger's do."""

    def __init__(self, database: Database, ledger: Ledger, appid: str) -> None:
        self._database, self._ledger, self._appid = database, ledger, appid
        self._read = database.row_statement(_read, _KEY)

    def read(self, openid: str) -> StoredMemory:
        """What is remembered of this fan."""
        row = self._database.find_row(self._read, {"appid": self._appid, "sender": openid})
        return StoredMemory() if row is None else StoredMemory(*row)

    def record(
        self,
        message: Message,
        reply: bytes | None,
        now: float,
        change: Change,
        *,
        send_back: bool,
    ) -> Recorded:
        """As `Ledger.record()`, and the fan's memory is changed; all in one commit.

        A message that was there already is returned as it was recorded, and the memory stays. Raises
        MemoryChangedError.
        """

        def both(connection: Connection) -> Recorded:
            found = change_in_transaction(self, connection, message, change, now)
            if found is not None:
                return found
            recorded, new = insert_in_transaction(
                self._ledger, connection, message, reply, now, send_back=send_back
            )
            if not new:  # by another process whose handler remembered nothing: then the change must not stay
                raise MemoryChangedError
            return recorded

        self._ledger.ids.before_insert()
        return self._database.transact(both)


def change_in_transaction(
    kept: Memories, connection: Connection, message: Message, change: Change, now: float
) -> Recorded | None:
    """Change the memory, inside the caller's transaction and before this new message is recorded in it. A message that
    was there already is returned instead. Raises MemoryChangedError."""
    found = find_in_transaction(kept._ledger, connection, message)
    if found is None and not _replace(kept, connection, message.from_user_name, change, now):
        raise MemoryChangedError
    return found


def replace_in_transaction(
    kept: Memories, connection: Connection, openid: str, memory: str, received_at: float
) -> None:
    """What is known of the fan from now on, whatever it was before; inside the caller's transaction. `received_at` is
    the message's: a purge of that message takes the memory along, however late the work ended."""
    new = kept._database.insert(memories).values(
        appid=kept._appid, sender=openid, memory=memory, version=1, changed_at=received_at
    )
    changed_at = memories.c.changed_at
    # One statement: with two, another piece of work of this fan could write its first memory in between.
    connection.execute(
        new.on_conflict_do_update(
            index_elements=[memories.c.appid, memories.c.sender],
            set_={
                "memory": memory,
                "version": memories.c.version + 1,
                "changed_at": case((changed_at > received_at, changed_at), else_=received_at),
            },
        )
    )


def _replace(kept: Memories, connection: Connection, openid: str, change: Change, now: float) -> bool:
    """False: what was seen is not the newest."""
    seen = change.seen.version
    values = {"memory": change.memory, "version": seen + 1, "changed_at": now}
    if seen == 0:
        new = kept._database.insert(memories).values(appid=kept._appid, sender=openid, **values)
        inserted = connection.execute(new.on_conflict_do_nothing().returning(memories.c.version))
        return inserted.first() is not None
    here = (memories.c.appid == kept._appid, memories.c.sender == openid, memories.c.version == seen)
    return connection.execute(update(memories).where(*here).values(values)).rowcount == 1
