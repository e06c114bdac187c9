"""Deferred replies: runs the work of slow handlers, lets deliveries wait for it, and gives the fan one answer.

Knows how long a delivery may wait, what LATE_REPLY does after that, and that another process takes over the work of a
process that died. Must not know Flask or SQL. Decisions are in the ledger (storage.deferred), so that every process
gives a repeated push the same answer. Each piece of work has its own thread, since it mostly waits for other servers.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Literal, TypeAlias, TypeGuard

import cores
import handlers
import logs
from answers.account import FanAccount
from answers.copies import StoredCopies
from answers.failures import (
    FIRST_PAUSE_SECONDS,
    HANDLER_FAULTS,
    LONGEST_PAUSE_SECONDS,
    SEND_LIFE_SECONDS,
    SEND_REFUSALS,
    failure,
)
from answers.replies import ReplyLog
from answers.steps import GRACE_SECONDS, let_end, renew, repeat, try_step
from handlers import Account, Deferred, HandlerError, Memory, Outcome, Remember
from handlers.calls import checked, name_of
from handlers.memory import as_json
from storage.deferred import DeferredWork, Work
from storage.errors import DatabaseUnavailableError
from storage.ledger import Recorded
from storage.memories import Change
from storage.states import SendState
from wechat.client import ApiClient
from wechat.errors import WeChatError
from wechat.messages import Message, TextMessage, parse_message
from wechat.replies import Reply, TextReply, VideoReply, parse_reply, render_reply

log = logging.getLogger(__name__)

DELIVERIES = 3  # the platform's; the last one gets an answer in any case
HOLD_SECONDS = 6.5  # the platform hangs up after 5, and repeats only what was not answered at all
TAKE_SECONDS = 4.8  # a later result waits for the next delivery
AT_ONCE = 256  # pieces of work in this process
# Deliveries; each keeps a thread of the web server.
WAITING_AT_ONCE = {"customer_service": 400, "redelivery": 64}
LOOK_SECONDS = 0.25  # between checks of work that runs in another process
ORPHANS_SECONDS = 0.5  # between checks for work that no process runs
ATTEMPTS = 3  # work that kills its process is not retried for ever
STILL_WORKING = (
    "Still working on it. Send any text in a moment to get the answer.\n"
    "还在处理中，请稍后发送任意文字获取回复。"
)


EchoVia: TypeAlias = Literal["auto", "passive", "upload"]


class HeldError(Exception):
    """This delivery is not answered, so that the platform repeats it (LATE_REPLY=redelivery).

    `repeated`: it is not the message's first.
    """

    def __init__(self, *, repeated: bool) -> None:
        super().__init__("not answered, so that it is repeated")
        self.repeated = repeated


class DeferredReplies:
    """One process's share: the work that it runs, and the deliveries that wait here."""

    def __init__(
        self,
        works: DeferredWork,
        copies: StoredCopies,
        client: ApiClient,
        reply_log: ReplyLog,
        *,
        echo_via: EchoVia,
        reply_seconds: float,
        late_reply: Literal["customer_service", "redelivery"],
        lease_seconds: float,
        account: str = "",
        orphans_seconds: float = ORPHANS_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._works, self._copies, self._client = works, copies, client
        self._reply_log = reply_log
        self._echo_via, self._account, self._clock = echo_via, account, clock
        self._reply_seconds, self._late_reply, self._lease = reply_seconds, late_reply, lease_seconds
        self._orphans_seconds = orphans_seconds
        self._waiting = threading.BoundedSemaphore(WAITING_AT_ONCE[late_reply])
        self._running: dict[int, tuple[Work, Future[None]]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._asked_at: float | None = None
        self._threads: list[threading.Thread] = []

    # -- the web's side: deliveries ------------------------------------------------------------------------------

    def answer(self, message: Message, deferred: Deferred, now: float, arrived: float) -> Recorded:
        """Records a new message, starts its work, and waits for it as long as the delivery may (`arrived`: monotonic).

        Raises `HeldError`, and `DatabaseUnavailableError`.
        """
        room = len(self._running) < AT_ONCE
        recorded, work = self._works.record(message, now, self._lease if room else None)
        if work is not None:
            self._begin(work, message, deferred)
            return self._wait(recorded.id, 1, arrived)
        return self.answer_again(recorded, arrived) if recorded.working else recorded

    def answer_with_copy(
        self, message: Message, reply: bytes, now: float, arrived: float, change: Change | None
    ) -> Recorded:
        """Records a new message whose `reply` (plain XML) names its own file, and waits as `answer()` does until the
        file is downloaded and uploaded again. `change` is the change of the fan's memory. Raises as `answer()` does,
        and `MemoryChangedError`."""
        recorded, _ = self._works.record(message, now, None, reply=reply, change=change)
        if recorded.repeated:
            return self.answer_again(recorded, arrived) if recorded.working else recorded
        return self._wait(recorded.id, 1, arrived)

    def answer_again(self, recorded: Recorded, arrived: float) -> Recorded:
        """Lets a repeated delivery wait for work that is not done. Raises as `answer()` does."""
        answered = self._wait(recorded.id, self._works.count_delivery(recorded.id), arrived)
        return replace(answered, repeated=True)

    def answer_with_kept_result(self, message: Message, now: float) -> Recorded | None:
        """Answers a new text with the result of an earlier message that is kept for this fan, and records it. Returns
        None, and writes nothing, if no result is kept. Raises `DatabaseUnavailableError`."""
        if self._late_reply != "redelivery" or not isinstance(message, TextMessage):
            return None
        return self._works.record_with_kept_result(message, now)

    def _wait(self, ledger_id: int, delivery: int, arrived: float) -> Recorded:
        if not self._waiting.acquire(blocking=False):
            return self._decide(ledger_id, SendState.LATER)
        try:
            if self._late_reply == "customer_service":
                recorded = self._result(ledger_id, arrived + self._reply_seconds)
                return recorded or self._decide(ledger_id, SendState.LATER)
            if delivery >= DELIVERIES:
                recorded = self._result(ledger_id, arrived + self._reply_seconds)
                return recorded or self._decide(ledger_id, SendState.KEPT)
            recorded = self._result(ledger_id, arrived + TAKE_SECONDS)
            if recorded is None:
                self._stop.wait(arrived + HOLD_SECONDS - time.monotonic())
                raise HeldError(repeated=delivery != 1)
            return recorded
        finally:
            self._waiting.release()

    def _result(self, ledger_id: int, until: float) -> Recorded | None:
        """Waits for the answer; None if there is none by `until` (monotonic)."""
        while (left := until - time.monotonic()) > 0:
            held = self._running.get(ledger_id)
            if held is None:
                self._stop.wait(min(left, LOOK_SECONDS))
            else:
                _wait_for(held[1], min(left, 4 * LOOK_SECONDS))
            recorded = self._works.answer(ledger_id)
            if recorded is not None:
                return recorded
        return None

    def _decide(self, ledger_id: int, otherwise: Literal[SendState.LATER, SendState.KEPT]) -> Recorded:
        text = None
        if otherwise is SendState.KEPT:
            push = self._works.push(ledger_id)
            if push is not None:
                message = parse_message(push, self._account)
                text = render_reply(TextReply(STILL_WORKING), message, int(self._clock()))
        recorded = self._works.answer(ledger_id, otherwise, text)
        assert recorded is not None, "with `otherwise` it is always decided"
        return recorded

    # -- the work --------------------------------------------------------------------------------------------------

    def _begin(self, work: Work, message: Message, outcome: Outcome) -> None:
        done: Future[None] = Future()
        with self._lock:
            self._running[work.id] = (work, done)
        try:
            threading.Thread(target=self._run, args=(work, message, outcome, done), daemon=True).start()
        except (RuntimeError, MemoryError) as error:  # the system gives no more threads
            log.error(
                "deferred work cannot be started",
                extra={"ledger_id": work.id, "reason": str(error)},
            )
            self._ended(work, done)
            self._give_back([work])

    def _run(self, work: Work, message: Message, outcome: Outcome, done: Future[None]) -> None:
        logs.ACCOUNT.set(self._account)
        cores.unpin_thread()  # the work may use every core
        try:
            result, memory, code, reason = None, None, None, None
            try:
                account = FanAccount(self._client, message.from_user_name)
                reply, memory = carry_out(outcome, account)
                self._reply_log.note(reply, message, work.id, account.uploaded)
                if reply is not None:
                    result = render_reply(reply, message, int(self._clock()))
                if answered_with_copy(reply, message, self._echo_via):
                    copy = self._reply_with_copy(work, reply)
                    result = render_reply(copy, message, int(self._clock()))
            except _UploadFailed as failed:
                code, reason = failed.code, failed.reason
                if failed.try_at is not None and result is not None:
                    log.warning(
                        "a stored copy cannot be uploaded yet",
                        extra={"ledger_id": work.id, "code": code, "reason": reason},
                    )
                    self._works.put_off(work, failed.try_at, code, reason, reply=result, memory=memory)
                    return
                result = None
                log.error(
                    "a stored copy cannot be uploaded; the fan gets no reply",
                    extra={"ledger_id": work.id, "code": code, "reason": reason},
                )
            except DatabaseUnavailableError:
                raise  # the access_token could not be read: no fault of the work
            except HANDLER_FAULTS as fault:
                result, memory, reason = None, None, f"the deferred work failed: {type(fault).__name__}"
                if isinstance(fault, WeChatError):
                    code, reason = fault.code, f"the deferred work failed: {failure(fault).reason}"
                log.exception("deferred work failed; the fan gets no reply", extra={"ledger_id": work.id})
            if not self._works.finish(work, result, self._clock(), reason=reason, code=code, memory=memory):
                log.warning("another process took this work over", extra={"ledger_id": work.id})
        except DatabaseUnavailableError as error:
            # The lease runs out, and the first process that reaches the database runs the work again.
            log.error("a result cannot be kept", extra={"ledger_id": work.id, "reason": str(error)})
        finally:
            self._ended(work, done)

    def _ended(self, work: Work, done: Future[None]) -> None:
        with self._lock:
            del self._running[work.id]
        done.set_result(None)

    # -- in the background -----------------------------------------------------------------------------------------

    def start(self, *, orphans: bool) -> None:
        """Renews the leases of running work until `stop()`; with `orphans` also runs work whose process is gone."""
        targets = [self._keep_leases, self._keep_adopting] if orphans else [self._keep_leases]
        self._threads = [threading.Thread(target=target, daemon=True) for target in targets]
        for thread in self._threads:
            thread.start()

    def ask_to_stop(self) -> None:
        """Stops taking over the work of other processes. Returns at once."""
        if self._asked_at is None:
            self._asked_at = time.monotonic()

    def stop(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """Waits for running work, until `grace_seconds` after the request to stop; then gives the rest back."""
        self.ask_to_stop()
        assert self._asked_at is not None
        deadline = self._asked_at + grace_seconds
        for _, done in list(self._running.values()):
            _wait_for(done, deadline - time.monotonic())
        self._stop.set()
        let_end(self._threads, self._asked_at)
        self._give_back([work for work, _ in list(self._running.values())])

    def _give_back(self, works: Sequence[Work]) -> None:
        """So that another process may take it at once, and not when its lease is over. Ends at the first fault: a
        database that is away would make each of them wait."""
        for work in works:
            step = partial(self._works.give_back, work)
            if try_step("deferred work cannot be given back", step, ledger_id=work.id) is None:
                return

    def _keep_leases(self) -> None:
        logs.ACCOUNT.set(self._account)

        def step() -> float:
            held = [work for work, _ in list(self._running.values())]
            renew(held, lambda work: self._works.extend(work, self._clock(), self._lease))
            return self._lease / 3

        repeat(self._stop, step, "a lease cannot be renewed", fault_seconds=self._lease / 3)

    def _keep_adopting(self) -> None:
        logs.ACCOUNT.set(self._account)

        def step() -> float:
            if self._asked_at is None:
                self.adopt()
            return self._orphans_seconds

        repeat(self._stop, step, "deferred work cannot be looked after", fault_seconds=ORPHANS_SECONDS)

    def adopt(self) -> int:
        """Takes over work whose process is gone, and settles results that no delivery fetched. Returns how much work
        it took over."""
        now = self._clock()
        # On a busy machine a lease may run out before it is renewed: do not take over our own running work.
        running = list(self._running)
        adopted = self._works.claim(now, self._lease, max(AT_ONCE - len(running), 0), running=running)
        for number, work in enumerate(adopted):
            try:
                self._run_again(work)
            except DatabaseUnavailableError:
                # None of them was run: none of these attempts counts.
                self._give_back(adopted[number:])
                raise
        by_message = self._late_reply == "customer_service"
        self._works.settle(now, SendState.PENDING if by_message else SendState.KEPT)
        return len(adopted)

    def _run_again(self, work: Work) -> None:
        message, reason = parse_message(work.xml, self._account), "the work ended its process three times"
        if work.attempt <= ATTEMPTS:
            try:
                self._begin(work, message, self._outcome(work, message))
                return
            except DatabaseUnavailableError:
                raise  # the memory could not be read: no fault of the handler
            except HANDLER_FAULTS:
                log.exception("a handler failed", extra={"ledger_id": work.id})
                reason = "the handler failed when the work was to be run again"
        log.error("deferred work is given up", extra={"ledger_id": work.id, "reason": reason})
        self._works.finish(work, None, self._clock(), reason=reason)

    def _outcome(self, work: Work, message: Message) -> Outcome:
        """The reply that was recorded with the work, or else what the handler says. Raises what the handler raises."""
        if work.reply is not None:
            return parse_reply(work.reply)
        return handlers.dispatch(message, partial(self._recall, message.from_user_name))

    def _recall(self, openid: str) -> Memory:
        memory: Memory = json.loads(self._works.memory(openid))
        return memory

    def _reply_with_copy(self, work: Work, reply: VideoReply) -> VideoReply:
        """Uploads the fan's video; the reply with its new MediaId. Raises `_UploadFailed`."""
        now = self._clock()
        # A pause as long as the message's age: so pauses double.
        age = max(now - work.received_at, FIRST_PAUSE_SECONDS)
        try_at = now + min(age, LONGEST_PAUSE_SECONDS)
        if work.media_reason is not None:
            raise _UploadFailed(work.media_code, f"its download failed: {work.media_reason}", None)
        if work.media_key is None:
            raise _UploadFailed(None, "the file is not stored yet", try_at)
        try:
            return replace(reply, media_id=self._copies.upload(work.media_key, "video"))
        except (WeChatError, OSError) as error:
            failed = failure(error)
        try_at = max(try_at, failed.not_before)
        over = try_at > work.received_at + SEND_LIFE_SECONDS
        final = failed.final or failed.code in SEND_REFUSALS or over
        raise _UploadFailed(failed.code, failed.reason, None if final else try_at)


def carry_out(outcome: Outcome, account: Account) -> tuple[Reply | None, str | None]:
    """The reply of a handler's outcome, and the fan's new memory as JSON (None: unchanged).

    Runs the work of a Deferred. Raises `HandlerError`, and what the work raises.
    """
    if isinstance(outcome, Deferred):
        work = outcome.work
        outcome = checked(work, outcome.run(account))
        if isinstance(outcome, Deferred):
            raise HandlerError(f"{name_of(work)} returned Deferred: write return TextReply(...)")
    if isinstance(outcome, Remember):
        return outcome.reply, as_json(outcome.memory)
    return outcome, None


class _UploadFailed(Exception):
    """`try_at` is when to try again, in unix seconds; None: never."""

    def __init__(self, code: int | None, reason: str, try_at: float | None) -> None:
        super().__init__(reason)
        self.code, self.reason, self.try_at = code, reason, try_at


def answered_with_copy(reply: Reply | None, message: Message, echo_via: EchoVia) -> TypeGuard[VideoReply]:
    """Whether the reply is the fan's own video. The platform does not show it, so a copy has to be uploaded first.

    Not documented; reported by users of another library: https://github.com/w7corp/easywechat/issues/2124
    """
    return (
        echo_via == "auto"
        and isinstance(reply, VideoReply)
        and message.media_id is not None
        and reply.media_id == message.media_id
    )


def _wait_for(done: Future[None], seconds: float) -> None:
    try:
        done.result(max(seconds, 0))
    except TimeoutError:
        return
