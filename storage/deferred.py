"""Deferred replies: work that takes longer than a push may wait, its result, and how the fan gets it.

A deferred message has a row in `works` beside its row in the ledger. The ledger row's send lane says what the fan still
has to get. The states of both: storage.states. Each step is one transaction, so that the fan is answered once however
many processes there are. What locks both rows locks the ledger's first: PostgreSQL ends a deadlock only after a second.
Must not know handlers, HTTP or the clock.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import Connection, and_, bindparam, case, insert, null, or_, select, update

from storage.database import Database
from storage.ledger import Ledger, Recorded, insert_in_transaction
from storage.memories import (
    Change,
    Memories,
    MemoryChangedError,
    change_in_transaction,
    replace_in_transaction,
)
from storage.models import (
    AHEAD_SECONDS,
    FAILED,
    KEPT,
    PENDING,
    UNFINISHED,
    WORKING,
    failed_send,
    lease_over,
    messages,
    works,
)
from storage.states import SendState, WorkState
from wechat.messages import Message

# This long after the last delivery no other comes: a result that none fetched is then sent or kept.
DELIVERIES_OVER_SECONDS = 20.0


@dataclass(frozen=True)
class Work:
    """Claimed work. `xml` is the push; `attempt` counts from 1; `received_at` is in unix seconds.

    `media_key`: where the message's file is stored, None while it is not. `media_reason`: why its download failed for
    good, with the platform's `media_code` if it gave one. `reply`: what the handler answered, plain XML with the fan's
    own MediaId, where only the upload of that file is still to be done.
    """

    id: int
    xml: bytes = field(repr=False)
    attempt: int
    claim: int
    received_at: float
    media_key: str | None = None
    media_code: int | None = None
    media_reason: str | None = None
    reply: bytes | None = field(default=None, repr=False)


class DeferredWork:
    """The deferred replies of one account. Every method raises DatabaseUnavailableError as the ledger's do."""

    def __init__(self, database: Database, ledger: Ledger, appid: str) -> None:
        self._database, self._ledger, self._appid = database, ledger, appid
        self._memories = Memories(database, ledger, appid)
        here = messages.c
        self._mine = (works.c.appid == appid, works.c.state == PENDING)
        self._running = (
            select(and_(here.send_state == WORKING, works.c.state.in_(UNFINISHED)))
            .join_from(messages, works, works.c.id == here.id)
            .where(here.id == bindparam("an_id"))
        )
        self._look = (
            select(here.reply, here.send_state, here.send_reason, here.sender, works.c.state, works.c.result)
            .join_from(messages, works, works.c.id == here.id)
            .where(here.id == bindparam("an_id"))
            .with_for_update()
        )

    def record(
        self,
        message: Message,
        now: float,
        lease_seconds: float | None,
        *,
        reply: bytes | None = None,
        change: Change | None = None,
    ) -> tuple[Recorded, Work | None]:
        """Keep the message and its work, claimed for that long (None: for the first process that claims it).

        `reply`: the handler's, plain XML, that names the message's own file: the work is to upload that file, and
        nobody can claim it before the file is stored (`lease_seconds` is None).
        The work is None if the message was already there (what was recorded is returned), or if it is not claimed.
        `change`: of the fan's memory, in the same commit; raises MemoryChangedError as `Memories.record()` does.
        """
        claim = None if lease_seconds is None else secrets.randbits(63)

        def both(connection: Connection) -> tuple[Recorded, Work | None]:
            if change is not None:
                found = change_in_transaction(self._memories, connection, message, change, now)
                if found is not None:
                    return found, None
            recorded, new = insert_in_transaction(self._ledger, connection, message, None, now, working=True)
            if not new:
                if change is not None:
                    raise MemoryChangedError
                return recorded, None
            connection.execute(
                insert(works).values(
                    id=recorded.id,
                    appid=self._appid,
                    state=WorkState.PENDING if reply is None else WorkState.WAITING,
                    due=now,
                    lease_until=None if lease_seconds is None else now + lease_seconds,
                    claim=claim,
                    attempts=0 if claim is None else 1,
                    deliveries=1,
                    reply=reply,
                )
            )
            return recorded, None if claim is None else Work(recorded.id, message.raw, 1, claim, now)

        self._ledger.ids.before_insert()
        return self._database.transact(both)

    def count_delivery(self, ledger_id: int) -> int:
        """Count one more delivery of this message. Returns its number, from 1; 0 if the message was deleted."""
        statement = (
            update(works)
            .where(works.c.id == ledger_id)
            .values(deliveries=works.c.deliveries + 1)
            .returning(works.c.deliveries)
        )
        return self._database.write(lambda connection: connection.execute(statement).scalar()) or 0

    def answer(
        self,
        ledger_id: int,
        otherwise: Literal[SendState.LATER, SendState.KEPT] | None = None,
        text: bytes | None = None,
    ) -> Recorded | None:
        """What this delivery is to be answered: the result, or what was decided before; None while the work runs.

        `otherwise` decides if it still runs. LATER: `success` now, the result by customer-service message. KEPT: `text`
        (plain XML) now, the result in answer to the fan's next text. A message that was deleted is answered `success`.
        """

        if otherwise is None:  # a waiting delivery asks often, and must not lock the row each time
            running = self._database.run(
                lambda connection: connection.execute(self._running, {"an_id": ledger_id}).scalar()
            )
            if running:
                return None

        def decide(connection: Connection) -> Recorded | None:
            row = connection.execute(self._look, {"an_id": ledger_id}).one_or_none()
            if row is None:
                return Recorded(ledger_id, None)
            if row.send_state != SendState.WORKING:
                return Recorded(ledger_id, row.reply)
            unfinished = row.state in UNFINISHED
            if unfinished and otherwise is None:
                return None
            reply, state = (text, otherwise) if unfinished else (row.result, None)
            connection.execute(
                update(messages).where(messages.c.id == ledger_id).values(reply=reply, send_state=state)
            )
            return Recorded(ledger_id, reply)

        return self._database.transact(decide)

    def finish(
        self,
        work: Work,
        result: bytes | None,
        now: float,
        *,
        reason: str | None = None,
        code: int | None = None,
        memory: str | None = None,
    ) -> bool:
        """The work is done; `result` is the reply's plain XML, None for none. `reason` says that it failed, for the
        platform's `code` if it gave one: then both are in the message's send lane, and `retry` starts again.

        `memory` (JSON) is the fan's new memory, in the same commit. False: the claim was lost.
        """

        def end(connection: Connection) -> bool:
            row = connection.execute(self._look, {"an_id": work.id}).one_or_none()
            done = connection.execute(
                update(works)
                .where(works.c.id == work.id, works.c.claim == work.claim, works.c.state == WorkState.PENDING)
                .values(
                    state=WorkState.DONE if reason is None else WorkState.FAILED,
                    result=result,
                    reason=reason,
                    done_at=now,
                    lease_until=None,
                )
            )
            if row is None or done.rowcount != 1:
                return False
            if memory is not None:
                replace_in_transaction(self._memories, connection, row.sender, memory, work.received_at)
            values: dict[str, Any] = {}
            if reason is not None:
                values = failed_send(code, reason, now)
            else:
                if row.send_reason is not None:  # of an attempt that was put off
                    values = {"send_code": None, "send_reason": None}
                if row.send_state != SendState.WORKING:
                    next_state = {SendState.LATER: SendState.PENDING, SendState.KEPT: SendState.KEPT}.get(
                        row.send_state
                    )
                    values |= {"send_state": next_state if result is not None else None, "send_due": now}
            if values:
                connection.execute(update(messages).where(messages.c.id == work.id).values(values))
            return True

        return self._database.transact(end)

    def claim(
        self, now: float, lease_seconds: float, limit: int, *, running: Collection[int] = ()
    ) -> list[Work]:
        """Claim work whose process is gone, or that no process has started; not what is `running` here (ids)."""
        claim = secrets.randbits(63)
        due = (
            select(works.c.id)
            .where(
                *self._mine,
                works.c.id.not_in(running),
                lease_over(works.c.lease_until, now),
                or_(works.c.due <= now, works.c.due > now + AHEAD_SECONDS),
            )
            .order_by(works.c.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
            .cte("due")
        )
        take = (
            update(works)
            .where(works.c.id.in_(select(due.c.id)))
            .values(lease_until=now + lease_seconds, claim=claim, attempts=works.c.attempts + 1)
            .returning(works.c.id, works.c.attempts, works.c.reply)
        )

        def both(connection: Connection) -> list[Work]:
            taken = {row.id: row for row in connection.execute(take)}
            here = messages.c
            lost = here.media_state == FAILED
            rows = connection.execute(
                select(
                    here.id,
                    here.xml,
                    here.received_at,
                    here.media_key,
                    case((lost, here.media_code)).label("media_code"),
                    case((lost, here.media_reason)).label("media_reason"),
                ).where(here.id.in_(list(taken)))
            )
            return [
                Work(
                    row.id,
                    row.xml,
                    taken[row.id].attempts,
                    claim,
                    row.received_at,
                    row.media_key,
                    row.media_code,
                    row.media_reason,
                    taken[row.id].reply,
                )
                for row in rows
            ]

        return self._database.transact(both)

    def extend(self, work: Work, now: float, lease_seconds: float) -> bool:
        """Hold the work for that long from now. False: the claim was lost."""
        return self._mark(work, lease_until=now + lease_seconds)

    def give_back(self, work: Work) -> bool:
        """Give the work back: another process may claim it at once. False: the claim was lost."""
        return self._mark(work, lease_until=None, claim=None, attempts=works.c.attempts - 1)

    def put_off(
        self,
        work: Work,
        due: float,
        code: int | None,
        reason: str,
        *,
        reply: bytes,
        memory: str | None = None,
    ) -> bool:
        """The file that the `reply` (plain XML) names cannot be uploaded yet: no process claims the work before `due`.

        What the work has answered is kept, and the fan's new `memory` (JSON): then only the upload is tried again. The
        reason is visible meanwhile; this attempt does not count. False: the claim was lost.
        """

        def keep(connection: Connection) -> bool:
            values = {
                "lease_until": None,
                "claim": None,
                "attempts": works.c.attempts - 1,
                "due": due,
                "reply": reply,
            }
            row = connection.execute(self._look, {"an_id": work.id}).one_or_none()
            if row is None or not self._change(connection, work, values):
                return False
            connection.execute(
                update(messages).where(messages.c.id == work.id).values(send_code=code, send_reason=reason)
            )
            if memory is not None:
                replace_in_transaction(self._memories, connection, row.sender, memory, work.received_at)
            return True

        return self._database.transact(keep)

    def result(self, ledger_id: int) -> bytes | None:
        """The plain XML of the result of this message's work; None when there is none."""
        statement = select(works.c.result).where(works.c.id == ledger_id)
        found: bytes | None = self._database.run(lambda connection: connection.execute(statement).scalar())
        return found

    def memory(self, openid: str) -> str:
        """This fan's memory, JSON."""
        return self._memories.read(openid).json

    def push(self, ledger_id: int) -> bytes | None:
        """The push that the work is for, XML; None if the message was deleted."""
        statement = select(messages.c.xml).where(messages.c.id == ledger_id)
        found: bytes | None = self._database.run(lambda connection: connection.execute(statement).scalar())
        return found

    def record_with_kept_result(self, message: Message, now: float) -> Recorded | None:
        """The fan's next text: record it with the oldest result that is kept for the fan as its reply.

        Returns None, and writes nothing, if there is none.
        """
        oldest = (
            select(messages.c.id, works.c.result)
            .join_from(messages, works, works.c.id == messages.c.id)
            .where(
                messages.c.appid == self._appid,
                messages.c.sender == message.from_user_name,
                messages.c.send_state == KEPT,
                works.c.state == WorkState.DONE,
            )
            .order_by(messages.c.id)
            .limit(1)
        )
        if self._database.run(lambda connection: connection.execute(oldest).first()) is None:
            return None

        def record(connection: Connection) -> Recorded | None:
            row = connection.execute(oldest.with_for_update()).one_or_none()
            if row is None:  # another text of this fan took it since we looked
                return None
            recorded, new = insert_in_transaction(self._ledger, connection, message, row.result, now)
            if new:  # otherwise another delivery of this text came at the same time and got it
                connection.execute(
                    update(messages).where(messages.c.id == row.id).values(send_state=SendState.FETCHED)
                )
            return recorded

        self._ledger.ids.before_insert()
        return self._database.transact(record)

    def settle(self, now: float, state: Literal[SendState.PENDING, SendState.KEPT]) -> int:
        """Send results that no delivery fetched in time (their process died), or keep each for its fan's next text."""
        over = (
            select(works.c.id)
            .join_from(messages, works, works.c.id == messages.c.id)
            .where(
                messages.c.appid == self._appid,
                messages.c.send_state == WORKING,
                works.c.state.not_in(UNFINISHED),
                or_(
                    works.c.done_at < now - DELIVERIES_OVER_SECONDS,
                    works.c.done_at > now + AHEAD_SECONDS,
                ),
            )
        )

        def step(connection: Connection) -> int:
            ids = list(connection.execute(over).scalars())
            for ledger_id in ids:
                row = connection.execute(self._look, {"an_id": ledger_id}).one_or_none()
                if row is not None and row.send_state == SendState.WORKING:
                    next_state: Any = null() if row.result is None else state
                    values = {"send_state": next_state, "send_due": now}
                    connection.execute(update(messages).where(messages.c.id == ledger_id).values(values))
            return len(ids)

        return self._database.transact(step)

    def _mark(self, work: Work, **values: Any) -> bool:
        return self._database.write(lambda connection: self._change(connection, work, values))

    def _change(self, connection: Connection, work: Work, values: dict[str, Any]) -> bool:
        """False: the claim was lost."""
        here = works.c.id == work.id, works.c.claim == work.claim, *self._mine
        return connection.execute(update(works).where(*here).values(values)).rowcount == 1
