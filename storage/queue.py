"""The queue: which work is due, which process has it, and how it ended. The rows of the ledger are the queue.

Work is claimed under a lease and never deleted: when a process dies, its lease ends and another takes the work. Every
mark names its claim. Knows the states of a row and the SQL that changes them. Must not know files, HTTP or the clock
(`now` is an argument, in unix seconds).

Lane `media` is the download, lane `send` what is sent back later; their states: storage.states. Thumbnails are made
from `thumbnail_due` on.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, ClassVar, NamedTuple, TypeAlias

from sqlalchemy import (
    Connection,
    Double,
    Update,
    and_,
    bindparam,
    case,
    desc,
    func,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.sql import ColumnElement

from storage.database import Database
from storage.files import StoredFile
from storage.models import (
    AHEAD_SECONDS,
    FAILED,
    PENDING,
    SENT,
    STORED,
    UNKNOWN,
    WAITING,
    failed_send,
    last_claims,
    lease_over,
    messages,
    works,
)
from storage.states import SendState

CLAIMS_NOTED_SECONDS = 10.0
"""The shortest time between two notes of a process that it could claim."""

BATCH = 1000  # most rows per transaction, so that pushes get their turn in between


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
        """The file's name in the store without its extension."""
        return file_stem(self.appid, self.received_at, self.id)


@dataclass(frozen=True)
class Send:
    """A claimed customer-service send: of the fan's own stored file, or of the result of deferred work.

    `sending`: an earlier attempt began the request, and its result is not known. Do not send; mark it unknown.
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
class Picture:
    """A stored picture that needs a thumbnail."""

    id: int
    media_key: str


@dataclass(frozen=True)
class Backlog:
    """Work that is due now: how many pieces are claimed, and how long (seconds) the oldest unclaimed one has waited."""

    held: int
    waiting_seconds: float


class _Claimed(NamedTuple):
    """The columns that a claim returns, in this order."""

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
        # evaluates a locking CTE exactly once; a plain subquery may run again, and lock more than the limit.
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


_LANES = {"media": _Lane("media"), "send": _Lane("send")}
_PUT_OFF = [
    *((lane.due, lane.state == PENDING) for lane in _LANES.values()),
    (messages.c.thumbnail_due, messages.c.thumbnail_due.is_not(None)),
]


class Queue:
    """The queue of one account. Every method raises DatabaseUnavailableError when the database is away."""

    def __init__(self, database: Database, appid: str) -> None:
        self._database = database
        self._appid = appid
        self._claim_due = {name: database.prepared(lane.claim_due) for name, lane in _LANES.items()}
        self._mark_stored = database.prepared(_MARK_STORED)
        self._claim_picture = _claim_picture()
        self._claim_noted_at = 0.0

    def claim_downloads(self, now: float, lease_seconds: float, limit: int = 1) -> list[Download]:
        """Claim up to `limit` downloads that are due, oldest first; no other process gets them for so many seconds."""
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
        """The same for sends."""
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
        """When any process last successfully asked for work, give or take CLAIMS_NOTED_SECONDS; None if never."""
        statement = select(last_claims.c.at).where(last_claims.c.appid == self._appid)
        at: float | None = self._database.run(lambda connection: connection.execute(statement).scalar())
        return at

    def bring_back(self, now: float) -> int:
        """Make work due now that a wrong clock put off by more than AHEAD_SECONDS; returns how many rows."""
        brought = 0
        for due, waiting in _PUT_OFF:
            late = waiting & (messages.c.appid == self._appid) & (due > now + AHEAD_SECONDS)
            while ids := self._ids(select(messages.c.id).where(late).limit(BATCH)):
                change = update(messages).where(messages.c.id.in_(ids), late).values({due: now})
                brought += self._database.write(lambda connection: connection.execute(change).rowcount)  # noqa: B023
        return brought

    def extend(self, job: Job, now: float, lease_seconds: float) -> bool:
        """Hold the job for that long from now. False: the claim was lost, and another worker may have the job."""
        lane = _LANES[job.lane]
        return self._mark(job, [PENDING], {lane.lease_until: now + lease_seconds})

    def mark_stored(self, job: Download, stored: StoredFile, now: float) -> bool:
        """The file is in the store. The same commit makes a send that waited for it due, and a picture's thumbnail.

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

        if job.media_kind == "video":  # work waits only for videos
            return self._database.transact(mark_and_release)
        return self._database.write(mark)

    def mark_retry(self, job: Job, due: float, code: int | None, reason: str) -> bool:
        """This attempt failed, with the platform's code if there was one; the next is due then. False: claim lost.

        For a send it means that the platform answered, so that the request may be repeated.
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
        """There will be no further attempt before a `retry`. False: the claim was lost.

        A send, or work, that waited for a failed download fails with it, for the same reason.
        """
        values = _done(_LANES[job.lane], FAILED, code, reason, now)
        if not isinstance(job, Download):
            return self._mark(job, [PENDING, FAILED], values)
        waiting = messages.c.send_state == WAITING
        for column, value in _done(_LANES["send"], FAILED, code, reason, now).items():
            values[column] = case((waiting, value), else_=column)
        mark = _update_of_claimed(_LANES["media"], [PENDING, FAILED]).values(values)
        claimed = {"job_id": job.id, "job_claim": job.claim}

        def fail(connection: Connection) -> bool:
            if connection.execute(mark, claimed).rowcount != 1:
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
        """The send request leaves next: after a crash or a power cut it is not sent again. False: claim lost, do not
        send."""
        marked = self._mark(send, [PENDING], {messages.c.send_sending: True})
        self._database.sync()
        return marked

    def mark_sent(self, send: Send, now: float) -> bool:
        """The platform accepted it. False: the claim was lost."""
        return self._mark(send, [PENDING, SENT], _done(_LANES["send"], SENT, None, None, now))

    def mark_unknown(self, send: Send, reason: str, now: float) -> bool:
        """The request left and no answer came: it is never repeated by itself. False: the claim was lost."""
        return self._mark(send, [PENDING, UNKNOWN], _done(_LANES["send"], UNKNOWN, None, reason, now))

    def give_back(self, job: Job, due: float | None = None, reason: str | None = None) -> bool:
        """Any process may claim the job: at once, or from `due` on, and `reason` says why. This attempt does not count.
        False: the claim was lost."""
        lane = _LANES[job.lane]
        values: dict[Any, Any] = {lane.lease_until: None, lane.claim: None, lane.attempts: lane.attempts - 1}
        if due is not None:
            values |= {lane.due: due, lane.code: None, lane.reason: reason}
        return self._mark(job, [PENDING], values)

    def claim_picture(self, now: float, lease_seconds: float) -> Picture | None:
        """Claim a picture for a thumbnail, the newest first; no other process gets it for that long (seconds)."""
        values = {"of_appid": self._appid, "now": now, "until": now + lease_seconds}
        rows = self._database.write(lambda connection: connection.execute(self._claim_picture, values).all())
        return Picture(*rows[0]) if rows else None

    def mark_thumbnail(self, picture: Picture, *, made: bool) -> bool:
        """Its thumbnail is made, or cannot be. False: the row is purged, so delete the thumbnail."""
        values = {
            messages.c.thumbnail_due: null(),
            messages.c.thumbnail_state: "made" if made else "failed",
        }
        statement = update(messages).where(messages.c.id == picture.id).values(values)
        return self._database.write(lambda connection: connection.execute(statement).rowcount == 1)

    def miss_thumbnail(self, ledger_id: int, now: float) -> None:
        """The thumbnail is gone: make it again."""
        statement = (
            update(messages)
            .where(messages.c.id == ledger_id, messages.c.appid == self._appid)
            .where(messages.c.media_state == STORED, messages.c.thumbnail_due.is_(None))
            .values({messages.c.thumbnail_due: now, messages.c.thumbnail_state: null()})
        )
        self._database.write(lambda connection: connection.execute(statement))

    def retry(self, ids: Sequence[int] | None, now: float) -> int:
        """Make failed downloads due again, and failed sends whose file is stored; returns how many rows that were.

        `ids` None: all of them. A send in state unknown may have arrived, so it becomes due only by its id.
        """
        if ids is not None:
            pages = [ids[start : start + BATCH] for start in range(0, len(ids), BATCH)]
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
                    .limit(BATCH)
                )
                found = self._ids(page)
                if not found:
                    break
                rows += self._database.transact(partial(_retry, self._appid, found, now, False))
                last = found[-1]
        return rows

    def backlog(self, now: float) -> Backlog:
        """How much of the work that is due is claimed, and how long the rest has waited."""
        held, waiting = 0, 0.0
        for lane in _LANES.values():
            is_held = lane.lease_until > now
            # Work whose process died can be claimed from the end of its lease.
            since = case((lane.lease_until > lane.due, lane.lease_until), else_=lane.due)
            statement = select(
                func.count(case((is_held, 1))), func.min(case((is_held, null()), else_=since))
            ).where(messages.c.appid == self._appid, lane.state == PENDING)
            count, oldest = self._one(statement)
            held += count
            waiting = max(waiting, 0.0 if oldest is None else now - oldest)
        return Backlog(held, waiting)

    def _claim(self, name: str, now: float, lease_seconds: float, limit: int) -> tuple[int, list[_Claimed]]:
        if abs(now - self._claim_noted_at) >= CLAIMS_NOTED_SECONDS:
            # Before the claim: if this failed after it, nobody would know what was claimed.
            note = (
                self._database.insert(last_claims)
                .values(appid=self._appid, at=now)
                .on_conflict_do_update(index_elements=[last_claims.c.appid], set_={"at": now})
            )
            self._database.write(lambda connection: connection.execute(note))
            self._claim_noted_at = now
        claim = secrets.randbits(63)  # a new fencing token for each claim
        values = {
            "of_appid": self._appid,
            "now": now,
            "at_most": limit,
            "until": now + lease_seconds,
            "new_claim": claim,
        }
        claim_due = self._claim_due[name]
        rows = self._database.write(lambda connection: claim_due(connection, **values).fetchall())
        return claim, sorted(map(_Claimed._make, rows), key=lambda row: (row.due, row.id))

    def _mark(self, job: Job, states: Sequence[ColumnElement[str]], values: dict[Any, Any]) -> bool:
        """Change the row if the claim still holds. A row that already has the new state passes too: the first commit
        of the same mark may have succeeded although its answer was lost."""
        mark = _update_of_claimed(_LANES[job.lane], states).values(values)
        claimed = {"job_id": job.id, "job_claim": job.claim}
        return self._database.write(lambda connection: connection.execute(mark, claimed).rowcount == 1)

    def _one(self, statement: Any) -> Any:
        return self._database.run(lambda connection: connection.execute(statement).one())

    def _ids(self, statement: Any) -> list[int]:
        return self._database.run(lambda connection: list(connection.execute(statement).scalars()))


def file_stem(appid: str, received_at: float, ledger_id: int) -> str:
    """A file's name in the store without its extension; `received_at` in unix seconds."""
    return f"{appid}/{datetime.fromtimestamp(received_at, UTC):%Y/%m/%d}/{ledger_id}"


def _claim_picture() -> Update:
    columns = messages.c
    due = (
        select(columns.id)
        .where(columns.appid == bindparam("of_appid"), columns.thumbnail_due <= bindparam("now"))
        .order_by(desc(columns.thumbnail_due))
        .limit(1)
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    return (
        update(messages)
        .where(columns.id.in_(select(due.c.id)))
        .values({columns.thumbnail_due: bindparam("until")})
        .returning(columns.id, columns.media_key)
    )


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


_MARK_STORED = _mark_stored()


def _retry(appid: str, ids: Sequence[int], now: float, named: bool, connection: Connection) -> int:
    """Make these rows' failed work due again, in a transaction; returns how many rows."""
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

    # The same for work that failed, or waited for a file that did not come: its result will be sent. Locked when it is
    # read, so that of two retries at once only one starts it again.
    wanting = and_(messages.c.media_kind == "video", messages.c.media_state != STORED)
    failed_work = (
        select(works.c.id, case((wanting, WAITING), else_=PENDING).label("state"))
        .join_from(works, messages, messages.c.id == works.c.id)
        .where(*here, send_failed, works.c.state == FAILED)
        .order_by(messages.c.id)
        .with_for_update(of=messages)
    )
    restarted = connection.execute(failed_work).all()
    for row in restarted:
        later = {"send_state": SendState.LATER, "send_code": None, "send_reason": None, "send_done_at": None}
        connection.execute(update(messages).where(messages.c.id == row.id).values(later))
        values = {"state": row.state, "due": now, "lease_until": None, "claim": None, "attempts": 0}
        connection.execute(update(works).where(works.c.id == row.id).values(values))
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
        # Upload the file again: the platform may have deleted the earlier upload.
        .values(
            due_again(_LANES["send"])
            | {messages.c.send_uploaded_media_id: None, messages.c.send_sending: False}
        )
        .returning(messages.c.id)
    )
    changed = {row.id for row in restarted}
    changed.update(connection.execute(downloads).scalars(), connection.execute(sends).scalars())
    return len(changed)
