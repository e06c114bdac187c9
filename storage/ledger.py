"""The ledger: one row per message, with what it was answered, and with what is still to be done for it.

A message, its reply and its pending download come in by one statement. Knows how a row is recorded, found and listed;
what is done for it later is in storage.queue, and how it is deleted in storage.purge. No files, no HTTP, no clock
(`now` is an argument, in unix seconds) and no XML.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from sqlalchemy import (
    Connection,
    Executable,
    Table,
    case,
    false,
    func,
    or_,
    select,
)
from sqlalchemy.sql import ColumnElement

from storage.database import WAIT_SECONDS, Database
from storage.ids import IdReserve
from storage.models import (
    FAILED,
    PENDING,
    STORED,
    WAITING,
    WORKING,
    messages,
    works,
)
from storage.statements import Row, find_each, value
from storage.states import SendState
from wechat.messages import Message, UnsubscribeEvent


@dataclass(frozen=True)
class Recorded:
    """What a message is answered, now and whenever it is repeated: plain XML, or None for `success`."""

    id: int
    reply: bytes | None = field(repr=False)
    working: bool = False
    """Not answered yet: its deferred reply is being worked on, see storage.deferred."""
    repeated: bool = field(default=False, compare=False)
    """The message was there before this delivery of it."""


@dataclass(frozen=True)
class Status:
    """How many downloads are in which state (pending includes claimed), and how many sends are to be done.

    `flask ledger status` prints these names.
    """

    pending: int
    stored: int
    failed: int
    replies_pending: int
    oldest_pending_seconds: float
    """Since the oldest message whose download is pending came in; 0 when there is none."""


@dataclass(frozen=True)
class Entry:
    """A whole row, by the columns' names. `msg_id` is text: a 64-bit number without a sign."""

    id: int
    appid: str
    sender: str
    message_key: str
    msg_type: str
    event: str | None
    msg_id: str | None
    create_time: int
    received_at: float
    xml: bytes = field(repr=False)
    reply: bytes | None = field(repr=False)
    media_state: str | None
    media_due: float | None
    media_lease_until: float | None
    media_claim: int | None
    media_attempts: int
    media_code: int | None
    media_reason: str | None
    media_done_at: float | None
    media_id: str | None
    media_kind: str | None
    media_key: str | None
    media_size: int | None
    media_sha256: str | None
    thumbnail_due: float | None
    thumbnail_state: str | None
    send_state: str | None
    send_due: float | None
    send_lease_until: float | None
    send_claim: int | None
    send_attempts: int
    send_code: int | None
    send_reason: str | None
    send_done_at: float | None
    send_uploaded_media_id: str | None
    send_sending: bool


class Ledger:
    """The ledger of one account.

    Every method raises DatabaseUnavailableError when the database stays busy or away for `wait` seconds (where there is
    no such argument, for storage.database.WAIT_SECONDS).
    """

    def __init__(self, database: Database, appid: str, ids: IdReserve | None = None) -> None:
        """`ids`: those of this process, where it has several ledgers in one database."""
        self._database = database
        self._appid = appid
        self.ids = IdReserve(database) if ids is None else ids
        self._find = database.row_statement(_find, _KEY)
        self._insert = database.row_statement(_insert_by(database.insert), _KEY)

    def find(self, message: Message, *, wait: float = WAIT_SECONDS) -> Recorded | None:
        """What this message was answered when it came in before; None when it is new."""
        for values in _keys(self, message):
            row = self._database.find_row(self._find, values, wait=wait)
            if row is not None:
                return _repeated(row)
        return None

    def record(
        self,
        message: Message,
        reply: bytes | None,
        now: float,
        *,
        send_back: bool = False,
        wait: float = WAIT_SECONDS,
    ) -> Recorded:
        """Keep the message, its reply (plain XML, None for `success`) and its pending download, in one commit.

        When the message is already there, what was recorded first is returned and nothing changes.
        `send_back`: the file is also sent back later; the send becomes due with `mark_stored`.
        """
        self.ids.before_insert()
        values = _values(self, message, reply, now, send_back=send_back)
        while True:
            row = self._database.write_row(self._insert, values, wait=wait)
            if row is not None:
                return _new(self, row, reply)
            recorded = self.find(message, wait=wait)
            if recorded is not None:
                return recorded
            # Purged between the two statements: then it is new again.

    def status(self, now: float) -> Status:
        """Counts and age of the queue. Cheap: every count is one partial index; only `stored` grows for ever."""
        mine = messages.c.appid == self._appid

        def count(state: ColumnElement[bool]) -> ColumnElement[int]:
            return select(func.count()).select_from(messages).where(mine, state).scalar_subquery()

        statement = select(
            func.count(),
            func.min(messages.c.received_at),
            func.count(case((messages.c.send_state == WAITING, 1))),
            count(messages.c.send_state == PENDING),
            select(func.count())
            .select_from(works)
            .where(works.c.appid == self._appid, or_(works.c.state == PENDING, works.c.state == WAITING))
            .scalar_subquery(),
            count(messages.c.media_state == STORED),
            count(messages.c.media_state == FAILED),
        ).where(mine, messages.c.media_state == PENDING)
        row = self._database.run(lambda connection: connection.execute(statement).one())
        pending, oldest, waiting, sends, working, stored, failed = row
        age = 0.0 if oldest is None else max(now - oldest, 0.0)
        return Status(
            pending=pending,
            stored=stored,
            failed=failed,
            replies_pending=waiting + sends + working,
            oldest_pending_seconds=age,
        )

    def get(self, ledger_id: int) -> Entry | None:
        """The row of that id."""
        found = self._entries(messages.c.id == ledger_id)
        return found[0] if found else None

    def find_by_msg_id(self, msg_id: int) -> list[Entry]:
        """The messages with the platform's MsgId, which two senders can share."""
        return self._entries(messages.c.message_key == f"m:{msg_id}")

    def has_media(self, fan: str, media_id: str) -> bool:
        """Whether the fan has sent that file, and its download is over."""
        statement = select(messages.c.id).where(
            messages.c.appid == self._appid,
            messages.c.sender == fan,
            messages.c.media_done_at.is_not(None),
            messages.c.media_id == media_id,
        )
        return bool(self._database.run(lambda connection: connection.execute(statement.limit(1)).all()))

    def newest(self, limit: int, *, failed: bool = False, fan: str | None = None) -> list[Entry]:
        """The newest rows, the newest last; of those that failed alone, or of that fan."""
        wanted = [messages.c.appid == self._appid]
        if failed:
            wanted.append(or_(messages.c.media_state == FAILED, messages.c.send_state == FAILED))
        if fan is not None:
            wanted.append(messages.c.sender == fan)
        statement = select(messages).where(*wanted).order_by(messages.c.id.desc()).limit(limit)
        rows = self._database.run(lambda connection: connection.execute(statement).mappings().all())
        return [Entry(**row) for row in reversed(rows)]

    def _entries(self, condition: ColumnElement[bool]) -> list[Entry]:
        statement = select(messages).where(condition, messages.c.appid == self._appid).order_by(messages.c.id)
        rows = self._database.run(lambda connection: connection.execute(statement).mappings().all())
        return [Entry(**row) for row in rows]


def find_in_transaction(ledger: Ledger, connection: Connection, message: Message) -> Recorded | None:
    """As `Ledger.find()`, inside the caller's transaction."""
    for values in _keys(ledger, message):
        row = ledger._find.row(connection, values)
        if row is not None:
            return _repeated(row)
    return None


def insert_in_transaction(
    ledger: Ledger,
    connection: Connection,
    message: Message,
    reply: bytes | None,
    now: float,
    *,
    send_back: bool = False,
    working: bool = False,
) -> tuple[Recorded, bool]:
    """As `Ledger.record()`, inside the caller's transaction; True when the message was new, else what was recorded
    first, and False. `working`: it is not answered yet. Call `ledger.ids.before_insert()` before the transaction."""
    values = _values(ledger, message, reply, now, send_back=send_back, working=working)
    while True:
        row = ledger._insert.row(connection, values)
        if row is not None:
            return _new(ledger, row, reply, working), True
        recorded = find_in_transaction(ledger, connection, message)
        if recorded is not None:
            return recorded, False
        # Purged between the two statements: then it is new again.


def _keys(ledger: Ledger, message: Message) -> list[dict[str, str]]:
    """The keys to look a message up by: one, or several for a message without MsgId, which earlier versions recorded
    under another key."""
    keys = (message.dedupe_key, *message.former_dedupe_keys)
    return [{"message_key": key, "sender": message.from_user_name, "appid": ledger._appid} for key in keys]


def _values(
    ledger: Ledger,
    message: Message,
    reply: bytes | None,
    now: float,
    *,
    send_back: bool,
    working: bool = False,
) -> dict[str, Any]:
    """A new row."""
    media_id = message.media_id
    return {
        "message_key": message.dedupe_key,
        "sender": message.from_user_name,
        "appid": ledger._appid,
        "msg_type": message.msg_type,
        # One spelling, by which the fans who left are found: the names of events may be written in any case.
        "event": "unsubscribe" if isinstance(message, UnsubscribeEvent) else getattr(message, "event", None),
        "msg_id": None if message.msg_id is None else str(message.msg_id),
        "create_time": message.create_time or int(now),
        "received_at": now,
        "xml": message.raw,
        "reply": reply,
        "media_state": None if media_id is None else "pending",
        "media_due": None if media_id is None else now,
        "media_id": media_id,
        "media_kind": message.media_kind,
        "send_state": SendState.WORKING if working else SendState.WAITING if media_id and send_back else None,
    }


def _new(ledger: Ledger, inserted: Row, reply: bytes | None, working: bool = False) -> Recorded:
    (ledger_id,) = inserted
    ledger.ids.note(ledger_id)
    return Recorded(ledger_id, reply, working)


def _repeated(found: Row) -> Recorded:
    ledger_id, reply, working = found
    return Recorded(ledger_id, reply, bool(working), repeated=True)


# For every push.
_KEY = (messages.c.message_key, messages.c.sender, messages.c.appid)
_NEW = (
    "message_key", "sender", "appid", "msg_type", "event", "msg_id", "create_time", "received_at", "xml", "reply",
    "media_state", "media_due", "media_id", "media_kind", "send_state",
)  # fmt: skip


def _find(count: int) -> Executable:
    """What so many messages were answered."""
    working = func.coalesce(messages.c.send_state == WORKING, false())
    return find_each(select(*_KEY, messages.c.id, messages.c.reply, working), _KEY, count)


@cache
def _insert_by(insert: Callable[[Table], Any]) -> Callable[[int], Executable]:
    """The INSERT for so many new pushes."""

    def make(count: int) -> Executable:
        rows = [{name: value(name, place) for name in _NEW} for place in range(count)]
        new = insert(messages).values(rows).on_conflict_do_nothing(index_elements=_KEY)
        returning: Executable = new.returning(*_KEY, messages.c.id)
        return returning

    return make
