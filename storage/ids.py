"""Ids of messages, never used twice, although a power cut may lose the newest rows (LEDGER_SYNC=normal).

An id names a file, which is on the disk at once; the row follows a second later. So ids are reserved in blocks: the end
of a block is on the disk before its first id is used, and after a power cut the next id comes after the block. A single
message costs nothing. If each commit is synced, nothing is reserved. Must not know what a message holds.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from sqlalchemy import Connection, column, func, insert, select, table, update

from storage.models import id_reserve, messages

if TYPE_CHECKING:
    from storage.database import Database

BLOCK = 1000
_AHEAD = BLOCK // 2  # ids left when the next block is reserved: other processes use some meanwhile

# SQLite's own table: the highest id that each table with AUTOINCREMENT ever gave.
_sequence = table("sqlite_sequence", column("name"), column("seq"))
_given = _sequence.c.name == messages.name


class IdReserve:
    """The ids that this process may use."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._newest, self._upto = 0, 0
        self._lock = threading.Lock()

    def before_insert(self) -> None:
        """Return when the next ids may be used. Raises DatabaseUnavailableError."""
        if self._database.loses_newest and self._newest + _AHEAD >= self._upto:
            self._reserve()

    def note(self, ledger_id: int) -> None:
        """Note that this id was used."""
        self._newest = max(self._newest, ledger_id)

    def _reserve(self) -> None:
        with self._lock:
            if self._newest + _AHEAD < self._upto:
                return  # another thread has
            newest = select(func.coalesce(func.max(_sequence.c.seq), 0)).where(_given).scalar_subquery()
            reserve = update(id_reserve).values(upto=newest + BLOCK).returning(id_reserve.c.upto)
            upto = int(self._database.write(lambda connection: connection.execute(reserve).scalar_one()))
            self._database.sync()
            self._newest, self._upto = upto - BLOCK, upto


_RESERVED = select(id_reserve.c.upto)
_NEWEST = select(func.max(_sequence.c.seq)).where(_given)


def skip_reserved(database: Database, connection: Connection) -> None:
    """Skip to an id that was never reserved. For a SQLite database that no other process has open."""
    (upto,) = database.prepared(_RESERVED)(connection).fetchone()
    (newest,) = database.prepared(_NEWEST)(connection).fetchone()
    if newest is None and upto:
        connection.execute(insert(_sequence).values(name=messages.name, seq=upto))
    elif upto > (newest or 0):
        connection.execute(update(_sequence).where(_given).values(seq=upto))
