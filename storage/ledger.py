"""The ledger: one row per message, with what it was answered, and with what is still to be done for it.

The rows are the queue. A message, its reply and its pending download come in by one statement; work is claimed under
a lease and never deleted, so that whoever dies gives it back by itself; every mark names the claim that it belongs
to. Knows the rows' states and the SQL that moves them; no files, no HTTP, no clock (`now` is an argument, in unix
seconds) and no XML.

Lane `media` (the download): pending -> stored | failed. Lane `send` (what is sent back later): storage.states.
"""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, ClassVar, NamedTuple, TypeAlias

from sqlalchemy import (
    Connection,
    Double,
    Select,
    Table,
    Text,
    Update,
    and_,
    bindparam,
    case,
    delete,
    false,
    func,
    insert,
    literal,
    literal_column,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.sql import ColumnElement

from storage.database import WAIT_SECONDS, Database
from storage.files import StoredFile
from storage.ids import IdReserve
from storage.models import (
    AHEAD_SECONDS,
    FAILED,
    PENDING,
    SENT,
    STORED,
    UNKNOWN,
    WAITING,
    WORKING,
    failed_send,
    files_to_delete,
    last_claims,
    lease_over,
    memories,
    messages,
    purge_index,
    purge_index_upto,
    works,
)
from storage.states import SendState
from wechat.messages import Message

__all__ = [
    "Backlog",
    "Download",
    "Entry",
    "Job",
    "Ledger",
    "Recorded",
    "Send",
    "Status",
    "Unsubscribed",
]

CLAIMS_NOTED_SECONDS = 10.0
"""How often each process notes at most that it could claim."""

_BATCH = 1000  # rows that one transaction changes at most, so that pushes get their turn in between

# PostgreSQL gives ids before it commits: a row may appear below the newest id, but not this far below it.
_UNSETTLED_IDS = 10_000
_BLOCK = 20_000  # how many ids purge_index takes in at a time; what is indexed stays in its block


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
class Download:
    """A claimed download. `attempt` counts from 1. Times are unix seconds."""

    lane: ClassVar[str] = "media"

    id: int
    appid: str
    media_id: str
    media_kind: str
    create_time: int
    received_at: float
    attempt: int
    claim: int

    @property
    def stem(self) -> str:
        """The file's name in the store, but for its extension."""
        return _stem(self.appid, self.received_at, self.id)


@dataclass(frozen=True)
class Send:
    """A claimed customer-service send of a stored file.

    `sending`: an earlier attempt began the send request and nobody knows how it ended, so that this one must not send:
    mark it unknown.
    """

    lane: ClassVar[str] = "send"

    id: int
    appid: str
    openid: str
    media_kind: str
    media_key: str
    create_time: int
    received_at: float
    attempt: int
    claim: int
    uploaded_media_id: str | None
    sending: bool


Job: TypeAlias = Download | Send


@dataclass(frozen=True)
class Status:
    """How many downloads are in which state (pending includes claimed), and how many sends are to be done."""

    pending: int
    stored: int
    failed: int
    replies_pending: int
    oldest_pending_seconds: float
    """Since the oldest message whose download is pending came in; 0 when there is none."""


@dataclass(frozen=True)
class Backlog:
    """Work that is due now: how many pieces somebody holds, and for how long the oldest has lain that nobody holds."""

    held: int
    waiting_seconds: float


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


@dataclass(frozen=True)
class Unsubscribed:
    """A fan who unsubscribed, and when (unix seconds)."""

    openid: str
    received_at: float


class _Claimed(NamedTuple):
    """What a claim returns of a row, in this order."""

    id: int
    sender: str
    create_time: int
    received_at: float
    media_id: str
    media_kind: str
    media_key: str
    send_uploaded_media_id: str | None
    send_sending: bool
    due: float
    attempt: int


class _Lane:
    """The columns of one queue, and the statement that claims from it."""

    def __init__(self, name: str) -> None:
        columns = messages.c
        self.state = columns[f"{name}_state"]
        self.due = columns[f"{name}_due"]
        self.lease_until = columns[f"{name}_lease_until"]
        self.claim = columns[f"{name}_claim"]
        self.attempts = columns[f"{name}_attempts"]
        self.code = columns[f"{name}_code"]
        self.reason = columns[f"{name}_reason"]
        self.done_at = columns[f"{name}_done_at"]
        now: ColumnElement[float] = bindparam("now", type_=Double)
        # SQLAlchemy leaves FOR UPDATE SKIP LOCKED out on SQLite, where the one writer needs no row locks. PostgreSQL
        # evaluates a CTE that locks exactly once; a plain subquery may be run again, and lock more than the limit.
        due = (
            select(columns.id)
            .where(
                columns.appid == bindparam("of_appid"),
                self.state == PENDING,
                self.due <= now,
                lease_over(self.lease_until, now),
            )
            .order_by(self.due)
            .limit(bindparam("at_most"))
            .with_for_update(skip_locked=True)
            .cte("due")
        )
        self.claim_due = (
            update(messages)
            .where(columns.id.in_(select(due.c.id)))
            .values(
                {
                    self.lease_until: bindparam("until"),
                    self.claim: bindparam("new_claim"),
                    self.attempts: self.attempts + 1,
                }
            )
            .returning(
                columns.id,
                columns.sender,
                columns.create_time,
                columns.received_at,
                columns.media_id,
                columns.media_kind,
                columns.media_key,
                columns.send_uploaded_media_id,
                columns.send_sending,
                self.due.label("due"),
                self.attempts.label("attempt"),
            )
        )


# Stands in the SQL as it is, as the states do: for the partial index.
_UNSUBSCRIBE = literal_column("'unsubscribe'", Text)

_LANES = {"media": _Lane("media"), "send": _Lane("send")}
_PUT_OFF = [
    *((lane.due, lane.state == PENDING) for lane in _LANES.values()),
    (messages.c.thumbnail_due, messages.c.thumbnail_due.is_not(None)),
]


class Ledger:
    """The ledger of one account.

    Every method raises DatabaseUnavailableError when the database stays busy or away for `wait` seconds (where there is
    no such argument, for storage.database.WAIT_SECONDS).
    """

    def __init__(self, database: Database, appid: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", appid):
            raise ValueError("WECHAT_APPID may hold letters, digits, - and _ only: it names a folder")
        self._database = database
        self._appid = appid
        self.ids = IdReserve(database)
        self._select = database.prepared(_find())
        self._insert = database.prepared(_record(database))
        self._claim_due = {name: database.prepared(lane.claim_due) for name, lane in _LANES.items()}
        self._mark_stored = database.prepared(_mark_stored())
        self._claim_noted_at = 0.0

    def find(self, message: Message, *, wait: float = WAIT_SECONDS) -> Recorded | None:
        """What this message was answered when it came in before; None when it is new."""
        return self._database.run(lambda connection: self.find_in(connection, message), wait=wait)

    def find_in(self, connection: Connection, message: Message) -> Recorded | None:
        """As `find()`, for storage.memories in its transaction."""
        # One key, but for messages without MsgId, which earlier versions recorded under another.
        for key in (message.dedupe_key, *message.former_dedupe_keys):
            recorded = self._look(connection, key, message.from_user_name)
            if recorded is not None:
                return recorded
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
        recorded, _ = self._database.write(
            lambda connection: self.record_in(connection, message, reply, now, send_back=send_back), wait=wait
        )
        return recorded

    def record_in(
        self, connection: Connection, message: Message, reply: bytes | None, now: float, *, send_back: bool
    ) -> tuple[Recorded, bool]:
        """As `record()`, for storage.memories in its transaction; True when the message was new."""
        waits = SendState.WAITING if message.media_id and send_back else None
        return self._keep(connection, self._values(message, reply, now, waits))

    def record_working(self, connection: Connection, message: Message, now: float) -> tuple[Recorded, bool]:
        """For storage.deferred, in its transaction: keep a message that is not answered yet; True when it was new."""
        return self._keep(connection, self._values(message, None, now, SendState.WORKING))

    def record_given(
        self, connection: Connection, message: Message, reply: bytes, now: float
    ) -> tuple[Recorded, bool]:
        """For storage.deferred, in its transaction: keep a message that is answered with an earlier one's result; True
        when it was new."""
        return self._keep(connection, self._values(message, reply, now, None))

    def _values(
        self, message: Message, reply: bytes | None, now: float, send_state: SendState | None
    ) -> dict[str, Any]:
        """A new row."""
        media_id = message.media_id
        return {
            "message_key": message.dedupe_key,
            "sender": message.from_user_name,
            "appid": self._appid,
            "msg_type": message.msg_type,
            "event": getattr(message, "event", None),
            "msg_id": None if message.msg_id is None else str(message.msg_id),
            "create_time": message.create_time or int(now),
            "received_at": now,
            "xml": message.raw,
            "reply": reply,
            "media_state": None if media_id is None else "pending",
            "media_due": None if media_id is None else now,
            "media_id": media_id,
            "media_kind": message.media_kind,
            "send_state": send_state,
        }

    def _look(self, connection: Connection, key: str, sender: str) -> Recorded | None:
        row = self._select(connection, message_key=key, sender=sender, appid=self._appid).fetchone()
        if row is None:
            return None
        ledger_id, reply, working = row
        return Recorded(ledger_id, reply, bool(working), repeated=True)

    def _keep(self, connection: Connection, values: dict[str, Any]) -> tuple[Recorded, bool]:
        """The new row's, and True; or what was recorded first, and False."""
        while True:
            row = self._insert(connection, **values).fetchone()
            if row is not None:
                (ledger_id,) = row
                self.ids.given(ledger_id)
                return Recorded(ledger_id, values["reply"], values["send_state"] == SendState.WORKING), True
            recorded = self._look(connection, values["message_key"], values["sender"])
            if recorded is not None:
                return recorded, False
            # Purged between the two statements: then it is new again.

    def claim_downloads(self, now: float, lease_seconds: float, limit: int = 1) -> list[Download]:
        """Take up to `limit` downloads that are due, oldest first, so that nobody else gets them for that long."""
        claim, rows = self._claim("media", now, lease_seconds, limit)
        return [
            Download(
                id=row.id,
                appid=self._appid,
                media_id=row.media_id,
                media_kind=row.media_kind,
                create_time=row.create_time,
                received_at=float(row.received_at),  # SQLite's RETURNING makes a whole one an int
                attempt=row.attempt,
                claim=claim,
            )
            for row in rows
        ]

    def claim_sends(self, now: float, lease_seconds: float, limit: int = 1) -> list[Send]:
        """The same for sends whose file is stored."""
        claim, rows = self._claim("send", now, lease_seconds, limit)
        return [
            Send(
                id=row.id,
                appid=self._appid,
                openid=row.sender,
                media_kind=row.media_kind,
                media_key=row.media_key,
                create_time=row.create_time,
                received_at=float(row.received_at),
                attempt=row.attempt,
                claim=claim,
                uploaded_media_id=row.send_uploaded_media_id,
                sending=bool(row.send_sending),
            )
            for row in rows
        ]

    def last_claim_at(self) -> float | None:
        """When any process last asked for work and was answered, to CLAIMS_NOTED_SECONDS; None when none ever did."""
        statement = select(last_claims.c.at).where(last_claims.c.appid == self._appid)
        at: float | None = self._database.run(lambda connection: connection.execute(statement).scalar())
        return at

    def bring_back(self, now: float) -> int:
        """What a clock that ran ahead has put off by more than AHEAD_SECONDS is due now; returns how much it was."""
        brought = 0
        for due, waiting in _PUT_OFF:
            late = waiting & (messages.c.appid == self._appid) & (due > now + AHEAD_SECONDS)
            while ids := self._ids(select(messages.c.id).where(late).limit(1000)):
                change = update(messages).where(messages.c.id.in_(ids), late).values({due: now})
                brought += self._database.write(lambda connection: connection.execute(change).rowcount)  # noqa: B023
        return brought

    def extend(self, job: Job, now: float, lease_seconds: float) -> bool:
        """Hold the job for that long from now. False: the claim was lost, and another worker may have the job."""
        lane = _LANES[job.lane]
        return self._mark(job, [PENDING], {lane.lease_until: now + lease_seconds})

    def mark_stored(self, job: Download, stored: StoredFile, now: float) -> bool:
        """The file is in the store; a send that waited for it is due, and so is a picture's thumbnail, in the same
        commit.

        False: the claim was lost. The file may be another attempt's by then: delete it only if `get(job.id)` is None
        (purged) or has `media_state` "failed".
        """
        values = {
            "job_id": job.id,
            "job_claim": job.claim,
            "now": now,
            "key": stored.key,
            "size": stored.size,
            "sha256": stored.sha256,
        }

        def mark(connection: Connection) -> bool:
            return bool(self._mark_stored(connection, **values).rowcount == 1)

        def mark_and_release(connection: Connection) -> bool:
            if not mark(connection):
                return False
            waits = works.c.id == job.id, works.c.state == WAITING
            connection.execute(update(works).where(*waits).values(state=PENDING, due=now))
            return True

        if job.media_kind == "video":  # the one kind that work waits for
            return self._database.transact(mark_and_release)
        return self._database.write(mark)

    def mark_retry(self, job: Job, due: float, code: int | None, reason: str) -> bool:
        """This attempt failed, for the platform's code if it gave one; the next is due then. False: claim lost.

        Of a send it says that the platform's answer came, so that the request may be repeated.
        """
        lane = _LANES[job.lane]
        values = {
            lane.due: due,
            lane.lease_until: None,
            lane.claim: None,
            lane.code: code,
            lane.reason: reason,
        }
        if isinstance(job, Send):
            values[messages.c.send_sending] = False
        return self._mark(job, [PENDING], values)

    def mark_failed(self, job: Job, code: int | None, reason: str, now: float) -> bool:
        """There will be no further attempt, unless `retry` is asked for. False: the claim was lost.

        A send, or work, that waited for a failed download fails with it, for the same reason.
        """
        values = _done(_LANES[job.lane], FAILED, code, reason, now)
        if not isinstance(job, Download):
            return self._mark(job, [PENDING, FAILED], values)
        waiting = messages.c.send_state == WAITING
        for column, value in _done(_LANES["send"], FAILED, code, reason, now).items():
            values[column] = case((waiting, value), else_=column)
        mark = _update_of_claimed(_LANES["media"], [PENDING, FAILED]).values(values)
        given = {"job_id": job.id, "job_claim": job.claim}

        def fail(connection: Connection) -> bool:
            if connection.execute(mark, given).rowcount != 1:
                return False
            waits = works.c.id == job.id, works.c.state == WAITING
            over = {"state": FAILED, "reason": reason, "done_at": now}
            if connection.execute(update(works).where(*waits).values(over)).rowcount:
                here = messages.c.id == job.id
                connection.execute(update(messages).where(here).values(failed_send(code, reason, now)))
            return True

        return self._database.transact(fail)

    def mark_uploaded(self, send: Send, media_id: str) -> bool:
        """The file is on the platform under this MediaId: a later attempt need not upload it. False: claim lost."""
        return self._mark(send, [PENDING], {messages.c.send_uploaded_media_id: media_id})

    def mark_sending(self, send: Send) -> bool:
        """The send request leaves next: after a crash nobody may send again. False: claim lost, do not send."""
        return self._mark(send, [PENDING], {messages.c.send_sending: True})

    def mark_sent(self, send: Send, now: float) -> bool:
        """The platform took it. False: the claim was lost."""
        return self._mark(send, [PENDING, SENT], _done(_LANES["send"], SENT, None, None, now))

    def mark_unknown(self, send: Send, reason: str, now: float) -> bool:
        """The request left and no answer came: it is never repeated by itself. False: the claim was lost."""
        return self._mark(send, [PENDING, UNKNOWN], _done(_LANES["send"], UNKNOWN, None, reason, now))

    def give_back(self, job: Job) -> bool:
        """Somebody else may have the job at once, and this attempt does not count. False: the claim was lost."""
        lane = _LANES[job.lane]
        return self._mark(
            job, [PENDING], {lane.lease_until: None, lane.claim: None, lane.attempts: lane.attempts - 1}
        )

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

    def backlog(self, now: float) -> Backlog:
        """Whether somebody works off what is due."""
        held, waiting = 0, 0.0
        for lane in _LANES.values():
            is_held = lane.lease_until > now
            # Work whose holder died is there to be taken from the end of his lease.
            since = case((lane.lease_until > lane.due, lane.lease_until), else_=lane.due)
            statement = select(
                func.count(case((is_held, 1))), func.min(case((is_held, null()), else_=since))
            ).where(messages.c.appid == self._appid, lane.state == PENDING)
            count, oldest = self._database.run(partial(_one, statement))
            held += count
            waiting = max(waiting, 0.0 if oldest is None else now - oldest)
        return Backlog(held, waiting)

    def retry(self, ids: Sequence[int] | None, now: float) -> int:
        """Make failed downloads due again, and failed sends whose file is stored; returns how many rows that were.

        `ids` None: all of them. A send in state unknown may have arrived, so that only its id given makes it due.
        """
        if ids is not None:
            pages = [ids[start : start + _BATCH] for start in range(0, len(ids), _BATCH)]
            return sum(
                self._database.transact(partial(_retry, self._appid, page, now, True)) for page in pages
            )
        rows = 0
        for state in (messages.c.media_state, messages.c.send_state):
            last = 0
            while True:
                page = (
                    select(messages.c.id)
                    .where(messages.c.appid == self._appid, state == FAILED, messages.c.id > last)
                    .order_by(messages.c.id)
                    .limit(_BATCH)
                )
                found = self._ids(page)
                if not found:
                    break
                rows += self._database.transact(partial(_retry, self._appid, found, now, False))
                last = found[-1]
        return rows

    def get(self, ledger_id: int) -> Entry | None:
        """The row of that id."""
        found = self._entries(messages.c.id == ledger_id)
        return found[0] if found else None

    def find_by_msg_id(self, msg_id: int) -> list[Entry]:
        """The messages with the platform's MsgId, which two senders can share."""
        return self._entries(messages.c.message_key == f"m:{msg_id}")

    def purge(
        self, now: float, *, before: float | None = None, fan: str | None = None, limit: int = 500
    ) -> int:
        """Delete up to `limit` rows that came in before that time, or from that fan, or both; returns how many.

        Call it until it returns 0. (The first call indexes the ledger, some seconds for a million rows, in
        transactions short enough for pushes to go on.) The same commit keeps what is then to be deleted from the
        store: `files_to_delete`. A pending download goes with its row; a worker that has it sees that its mark returns
        False.
        """
        if before is None and fan is None:
            raise ValueError("purge needs a time or a fan")
        ids = self._ids_to_purge(before, fan, limit)
        if not ids:
            self._database.write(partial(_forget, self._appid, before, fan))
            return 0
        return self._delete(ids, now)

    def delete(self, ledger_id: int, now: float) -> bool:
        """Delete this row, as `purge` does; False where there is none."""
        return self._delete([ledger_id], now) == 1

    def _delete(self, ids: Sequence[int], now: float) -> int:
        def remove(connection: Connection) -> int:
            _lock_index(connection)
            connection.execute(delete(purge_index).where(purge_index.c.id.in_(ids)))
            connection.execute(delete(works).where(works.c.id.in_(ids)))
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
            files = [
                {
                    "stem": _stem(self._appid, row.received_at, row.id),
                    "appid": self._appid,
                    # A worker may be at it until its lease is over, and die after its file is in place.
                    "due": max(now, row.media_lease_until or 0.0, row.thumbnail_due or 0.0),
                }
                for row in rows
                if row.media_attempts
            ]
            if files:
                connection.execute(insert(files_to_delete), files)
            return len(rows)

        return self._database.transact(remove)

    def unsubscribed(self, limit: int = 100) -> list[Unsubscribed]:
        """Fans who unsubscribed and whose event is still kept, the oldest first."""
        statement = (
            select(messages.c.sender, messages.c.received_at)
            .where(messages.c.appid == self._appid, messages.c.event == _UNSUBSCRIBE)
            .order_by(messages.c.id)
            .limit(limit)
        )
        rows = self._database.run(lambda connection: connection.execute(statement).all())
        return [Unsubscribed(row.sender, row.received_at) for row in rows]

    def files_to_delete(self, now: float, limit: int = 500) -> list[str]:
        """Stems of files whose rows are purged: delete from the stores now whatever lies under them."""
        statement = (
            select(files_to_delete.c.stem)
            .where(files_to_delete.c.appid == self._appid, files_to_delete.c.due <= now)
            .limit(limit)
        )
        stems = self._database.run(lambda connection: list(connection.execute(statement).scalars()))
        if stems:
            self._database.sync()  # else a power cut could bring back a row whose file is deleted
        return stems

    def mark_deleted(self, stems: Sequence[str]) -> None:
        """Nothing lies under these stems any more, and a power cut would not bring it back."""
        statement = delete(files_to_delete).where(files_to_delete.c.stem.in_(stems))
        self._database.write(lambda connection: connection.execute(statement))

    def _claim(self, name: str, now: float, lease_seconds: float, limit: int) -> tuple[int, list["_Claimed"]]:
        claim = secrets.randbits(63)  # a fencing value that nobody had before
        values = {
            "of_appid": self._appid,
            "now": now,
            "at_most": limit,
            "until": now + lease_seconds,
            "new_claim": claim,
        }
        claim_due = self._claim_due[name]
        rows = self._database.write(lambda connection: claim_due(connection, **values).fetchall())
        if abs(now - self._claim_noted_at) >= CLAIMS_NOTED_SECONDS:
            self._claim_noted_at = now
            note = (
                self._database.insert(last_claims)
                .values(appid=self._appid, at=now)
                .on_conflict_do_update(index_elements=[last_claims.c.appid], set_={"at": now})
            )
            self._database.write(lambda connection: connection.execute(note))
        return claim, sorted(map(_Claimed._make, rows), key=lambda row: (row.due, row.id))

    def _mark(self, job: Job, states: Sequence[ColumnElement[str]], values: dict[Any, Any]) -> bool:
        """Change the row if the claim still holds. The state aimed at is among the states that are let through, so
        that a mark whose first commit lost only its answer finds itself done."""
        mark = _update_of_claimed(_LANES[job.lane], states).values(values)
        given = {"job_id": job.id, "job_claim": job.claim}
        return self._database.write(lambda connection: connection.execute(mark, given).rowcount == 1)

    def _ids(self, statement: Any) -> list[int]:
        return self._database.run(lambda connection: list(connection.execute(statement).scalars()))

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

    def count_to_purge(self, *, before: float | None = None, fan: str | None = None) -> tuple[int, int]:
        """How many rows, and how many stored files, `purge` would delete by and by."""
        wanted = [messages.c.appid == self._appid]
        if before is not None:
            wanted.append(messages.c.received_at < before)
        if fan is not None:
            wanted.append(messages.c.sender == fan)
        stored = func.count().filter(messages.c.media_state == STORED)
        statement = select(func.count(), stored).where(*wanted)
        rows, files = self._database.run(lambda connection: connection.execute(statement).one())
        return int(rows), int(files)

    def _entries(self, condition: ColumnElement[bool]) -> list[Entry]:
        statement = select(messages).where(condition, messages.c.appid == self._appid).order_by(messages.c.id)
        rows = self._database.run(lambda connection: connection.execute(statement).mappings().all())
        return [Entry(**row) for row in rows]

    def _ids_to_purge(self, before: float | None, fan: str | None, limit: int) -> list[int]:
        """By purge_index, brought up to date, and by a look through the few rows that are too new for it."""
        while (upto := self._database.transact(_index_step)) is None:
            pass

        def of(table: Table) -> list[ColumnElement[bool]]:
            conditions = [table.c.appid == self._appid]
            if fan is not None:
                conditions.append(table.c.sender == fan)
            if before is not None:
                conditions.append(table.c.received_at < before)
            return conditions

        indexed = select(purge_index.c.id).where(*of(purge_index))
        if fan is not None:
            indexed = indexed.where(purge_index.c.block.in_(range(upto // _BLOCK + 1)))
        ids = self._ids(indexed.limit(limit))
        if len(ids) < limit:
            unsettled = select(messages.c.id).where(messages.c.id > upto, *of(messages))
            ids += self._ids(unsettled.limit(limit - len(ids)))
        return ids


def _stem(appid: str, received_at: float, ledger_id: int) -> str:
    return f"{appid}/{datetime.fromtimestamp(received_at, UTC):%Y/%m/%d}/{ledger_id}"


def _find() -> Select[int, bytes, bool]:
    """For every push."""
    columns = messages.c
    working = func.coalesce(columns.send_state == WORKING, false())
    return select(columns.id, columns.reply, working).where(
        columns.message_key == bindparam("message_key"),
        columns.sender == bindparam("sender"),
        columns.appid == bindparam("appid"),
    )


def _record(database: Database) -> Any:
    """For every push that is new."""
    return (
        database.insert(messages)
        .values({name: bindparam(name) for name in _NEW})
        .on_conflict_do_nothing(index_elements=[messages.c.message_key, messages.c.sender, messages.c.appid])
        .returning(messages.c.id)
    )


_NEW = (
    "message_key", "sender", "appid", "msg_type", "event", "msg_id", "create_time", "received_at", "xml", "reply",
    "media_state", "media_due", "media_id", "media_kind", "send_state",
)  # fmt: skip


def _one(statement: Any, connection: Connection) -> Any:
    return connection.execute(statement).one()


def _update_of_claimed(lane: _Lane, states: Sequence[ColumnElement[str]]) -> Update:
    """For the parameters job_id and job_claim."""
    return update(messages).where(
        messages.c.id == bindparam("job_id"),
        lane.claim == bindparam("job_claim"),
        or_(*(lane.state == state for state in states)),
    )


def _done(
    lane: _Lane, state: ColumnElement[str], code: int | None, reason: str | None, now: Any
) -> dict[Any, Any]:
    return {
        lane.state: state,
        lane.code: code,
        lane.reason: reason,
        lane.done_at: now,
        lane.lease_until: None,
    }


def _mark_stored() -> Update:
    waiting = messages.c.send_state == WAITING
    now: ColumnElement[Any] = bindparam("now", type_=Double)
    return _update_of_claimed(_LANES["media"], [PENDING, STORED]).values(
        _done(_LANES["media"], STORED, None, None, now)
        | {
            messages.c.media_key: bindparam("key"),
            messages.c.media_size: bindparam("size"),
            messages.c.media_sha256: bindparam("sha256"),
            messages.c.send_state: case((waiting, PENDING), else_=messages.c.send_state),
            messages.c.send_due: case((waiting, now), else_=messages.c.send_due),
            messages.c.thumbnail_due: case((messages.c.media_kind == "image", now)),
        }
    )


def _forget(appid: str, before: float | None, fan: str | None, connection: Connection) -> None:
    """Delete what is remembered of the fans whose messages are purged."""
    conditions = [memories.c.appid == appid]
    if fan is not None:
        conditions.append(memories.c.sender == fan)
    if before is not None:
        conditions.append(memories.c.changed_at < before)
    connection.execute(delete(memories).where(*conditions))


def _lock_index(connection: Connection) -> int:
    """Keep others from filling or emptying purge_index; returns the last id that it knows."""
    statement = select(purge_index_upto.c.id).with_for_update()
    return int(connection.execute(statement).scalar_one())


def _index_step(connection: Connection) -> int | None:
    """Bring purge_index a step further; returns the last id that it knows, or None when there are more to come."""
    upto = _lock_index(connection)
    newest = connection.execute(select(func.max(messages.c.id))).scalar() or 0
    block = upto // _BLOCK
    step_end = min((block + 1) * _BLOCK, newest - _UNSETTLED_IDS)
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


def _retry(appid: str, ids: Sequence[int], now: float, named: bool, connection: Connection) -> int:
    """Make these rows' failed work due again, in a transaction; returns how many rows it was."""
    here = [messages.c.appid == appid, messages.c.id.in_(ids)]
    send_failed = messages.c.send_state == FAILED
    again = or_(send_failed, messages.c.send_state == UNKNOWN) if named else send_failed

    def due_again(lane: _Lane) -> dict[Any, Any]:
        # Attempts go on counting, so that no two of a row have the same number.
        return {
            lane.state: PENDING,
            lane.due: now,
            lane.lease_until: None,
            lane.claim: None,
            lane.code: None,
            lane.reason: None,
            lane.done_at: None,
        }

    # The same for work that failed, or waited for a file that did not come: its result will be sent.
    wanting = and_(messages.c.media_kind == "video", messages.c.media_state != STORED)
    begun_anew = (
        select(works.c.id, case((wanting, WAITING), else_=PENDING).label("state"))
        .join_from(works, messages, messages.c.id == works.c.id)
        .where(*here, send_failed, works.c.state == FAILED)
    )
    work_anew = connection.execute(begun_anew).all()
    for row in work_anew:
        values = {"state": row.state, "due": now, "lease_until": None, "claim": None, "attempts": 0}
        connection.execute(update(works).where(works.c.id == row.id).values(values))
        later = {"send_state": SendState.LATER, "send_code": None, "send_reason": None, "send_done_at": None}
        connection.execute(update(messages).where(messages.c.id == row.id).values(later))
    downloads = (
        update(messages)
        .where(*here, messages.c.media_state == FAILED)
        .values(
            due_again(_LANES["media"])
            | {
                messages.c.send_state: case((send_failed, WAITING), else_=messages.c.send_state),
                messages.c.send_done_at: case((send_failed, null()), else_=messages.c.send_done_at),
            }
        )
        .returning(messages.c.id)
    )
    has_result = messages.c.id.in_(select(works.c.id).where(works.c.result.is_not(None)))
    is_copy = and_(messages.c.media_state == STORED, messages.c.id.not_in(select(works.c.id)))
    sends = (
        update(messages)
        .where(*here, or_(is_copy, has_result), again)
        # The file is uploaded anew: what was uploaded may be older than the platform keeps it.
        .values(
            due_again(_LANES["send"])
            | {messages.c.send_uploaded_media_id: None, messages.c.send_sending: False}
        )
        .returning(messages.c.id)
    )
    changed = {row.id for row in work_anew}
    changed.update(connection.execute(downloads).scalars(), connection.execute(sends).scalars())
    return len(changed)
