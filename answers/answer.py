"""What a message is answered: now, when it is repeated, and, with `answers.late`, when its reply takes time.

Knows the order: look the message up, ask its handler, record message and reply in one commit; and what ECHO_VIA means
for a reply. Does not know HTTP, signatures or SQL. A fault of a handler does not become the fan's: it is logged with
the ledger id, and the message is answered `success`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import handlers
from answers.late import DeferredReplies, EchoVia, answered_with_copy, tell_of_cut
from handlers import Deferred
from storage.ledger import Ledger, Recorded
from wechat.messages import Message
from wechat.replies import ImageReply, Reply, VideoReply, VoiceReply, render_reply

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What a handler's reply becomes: plain XML, or None for `success`.

    `by_copy`: instead, the fan's own video is answered with a copy of it that is uploaded first (ECHO_VIA=auto).
    `send_back`: the fan's own file is sent back later from the stored copy (ECHO_VIA=upload).
    """

    xml: bytes | None = field(repr=False)
    by_copy: bool = False
    send_back: bool = False


class Answers:
    """One process's answers to the messages of one account."""

    def __init__(
        self,
        ledger: Ledger,
        late: DeferredReplies,
        *,
        echo_via: EchoVia,
    ) -> None:
        self._ledger, self._late, self._echo_via = ledger, late, echo_via

    def answer(self, message: Message, now: float, arrived: float) -> Recorded:
        """What to answer this delivery of `message`; it is in the ledger when this returns.

        `now` is in unix seconds, `arrived` (when the request came in) in those of `time.monotonic()`. Raises
        `DatabaseUnavailableError`, and `answers.late.HeldError` for a delivery that gets no answer.
        """
        recorded = self._ledger.find(message)
        if recorded is None:
            recorded = self._late.hand_over(message, now)
        if recorded is None:
            recorded = self._answer_first(message, now, arrived)
        elif recorded.working:
            recorded = self._late.answer_again(recorded, arrived)
        return recorded

    def _answer_first(self, message: Message, now: float, arrived: float) -> Recorded:
        outcome: Reply | Deferred | None = None
        answer, fault = Answer(None), None
        try:
            outcome = handlers.dispatch(message)
            if not isinstance(outcome, Deferred):
                answer = rendered(outcome, message, now, echo_via=self._echo_via)
        except Exception as error:
            fault = error
        if isinstance(outcome, Deferred):
            return self._late.answer(message, outcome, now, arrived)
        if answer.by_copy:
            return self._late.answer_with_copy(message, now, arrived)
        recorded = self._ledger.record(message, answer.xml, now, send_back=answer.send_back)
        if fault is not None:
            log.error(
                "a handler failed; the fan was answered success",
                exc_info=fault,
                extra={"ledger_id": recorded.id, "msg_type": message.msg_type},
            )
        elif answer.xml is not None:
            tell_of_cut(outcome, recorded.id)
        return recorded


def rendered(reply: Reply | None, message: Message, now: float, *, echo_via: EchoVia) -> Answer:
    """The answer that a handler's `reply` to `message` becomes. `now` (unix seconds) is its CreateTime.

    Raises `ReplyError` for a reply that cannot be.
    """
    if answered_with_copy(reply, message, echo_via):
        return Answer(None, by_copy=True)
    own = isinstance(reply, ImageReply | VoiceReply | VideoReply) and reply.media_id == message.media_id
    if reply is None or (own and echo_via == "upload"):
        return Answer(None, send_back=reply is not None)
    return Answer(render_reply(reply, message, int(now)))
