"""How a message is answered: at once, when it is repeated, and (with `answers.late`) when its reply takes time.

Knows the order: look the message up, ask its handler, record message and reply in one commit; and what ECHO_VIA means
for a reply. Must not know HTTP, signatures or SQL. A handler's fault is logged with the ledger id, and the message is
answered `success`.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field

import handlers
from answers.failures import HANDLER_FAULTS
from answers.late import DeferredReplies, EchoVia, answered_with_copy
from answers.replies import ReplyLog
from handlers import Deferred, Memory, Remember
from handlers.memory import as_json
from storage.errors import DatabaseUnavailableError
from storage.ledger import Ledger, Recorded
from storage.memories import Change, Memories, MemoryChangedError, StoredMemory
from wechat.messages import Message
from wechat.replies import ImageReply, Reply, VideoReply, VoiceReply, render_reply

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What a handler's reply becomes: plain XML, or None for `success`.

    `by_copy`: the reply names the fan's own video. It is uploaded again, and the answer names that copy
    (ECHO_VIA=auto).
    `send_back`: the stored copy of the fan's own file is sent later (ECHO_VIA=upload).
    """

    xml: bytes | None = field(repr=False)
    by_copy: bool = False
    send_back: bool = False


class Answers:
    """One process's answers to the messages of one account."""

    def __init__(
        self,
        ledger: Ledger,
        memories: Memories,
        late: DeferredReplies,
        reply_log: ReplyLog,
        *,
        echo_via: EchoVia,
    ) -> None:
        self._ledger, self._memories, self._late = ledger, memories, late
        self._reply_log, self._echo_via = reply_log, echo_via

    def answer(self, message: Message, now: float, arrived: float) -> Recorded:
        """What to answer this delivery of `message`; it is in the ledger when this returns.

        `now` is in unix seconds. `arrived` is when the request came in, by `time.monotonic()`. Raises
        `DatabaseUnavailableError`, and `answers.late.HeldError` for a delivery that gets no answer.
        """
        recorded = self._ledger.find(message)
        if recorded is None:
            recorded = self._late.answer_with_kept_result(message, now)
        if recorded is None:
            recorded = self._answer_first(message, now, arrived)
        elif recorded.working:
            recorded = self._late.answer_again(recorded, arrived)
        return recorded

    def _answer_first(self, message: Message, now: float, arrived: float) -> Recorded:
        while True:
            try:
                return self._answer_as_of_now(message, now, arrived)
            except MemoryChangedError:
                pass  # another message of this fan changed it: ask the handler again with the new memory

    def _answer_as_of_now(self, message: Message, now: float, arrived: float) -> Recorded:
        memory = _FanMemory(self._memories, message.from_user_name)
        reply: Reply | None = None
        answer, fault, change = Answer(None), None, None
        try:
            outcome = handlers.dispatch(message, memory.recall)
            if isinstance(outcome, Remember):
                change = Change(memory.seen(), as_json(outcome.memory))
                reply = outcome.reply
            elif not isinstance(outcome, Deferred):
                reply = outcome
            answer = rendered(reply, message, now, echo_via=self._echo_via)
        except DatabaseUnavailableError:
            raise  # the memory could not be read: no fault of the handler
        except HANDLER_FAULTS as error:
            fault, change, outcome = error, None, None
        if isinstance(outcome, Deferred):
            return self._late.answer(message, outcome, now, arrived)
        if answer.by_copy and answer.xml is not None:
            return self._late.answer_with_copy(message, answer.xml, now, arrived, change)
        if change is None:
            recorded = self._ledger.record(message, answer.xml, now, send_back=answer.send_back)
        else:
            recorded = self._memories.record(message, answer.xml, now, change, send_back=answer.send_back)
        if fault is not None:
            log.error(
                "a handler failed; the fan was answered success",
                exc_info=fault,
                extra={"ledger_id": recorded.id, "msg_type": message.msg_type},
            )
        elif answer.xml is not None:
            self._reply_log.note(reply, message, recorded.id)
        return recorded


class _FanMemory:
    """The memory of one fan, read once, and only if the handler asks for it."""

    def __init__(self, memories: Memories, openid: str) -> None:
        self._memories, self._openid = memories, openid
        self._seen: StoredMemory | None = None

    def seen(self) -> StoredMemory:
        if self._seen is None:
            self._seen = self._memories.read(self._openid)
        return self._seen

    def recall(self) -> Memory:
        memory: Memory = json.loads(self.seen().json)
        return memory


def rendered(reply: Reply | None, message: Message, now: float, *, echo_via: EchoVia) -> Answer:
    """The answer that a handler's `reply` to `message` becomes. `now` (unix seconds) is its CreateTime.

    Raises `ReplyError` for a reply that the platform would not take.
    """
    own = isinstance(reply, ImageReply | VoiceReply | VideoReply) and reply.media_id == message.media_id
    if reply is None or (own and echo_via == "upload"):
        return Answer(None, send_back=reply is not None)
    by_copy = answered_with_copy(reply, message, echo_via)
    return Answer(render_reply(reply, message, int(now)), by_copy=by_copy)
