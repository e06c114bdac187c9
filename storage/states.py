"""What a message's send lane says: what the fan is still to get, and how that ended. All states and all steps.

A message without anything to be sent has no state (None). Every UPDATE of `send_state` in this package is one of
SEND_STEPS; the tests' databases refuse any other. Knows names; no tables and no SQL.
"""

from __future__ import annotations

from enum import StrEnum


class SendState(StrEnum):
    """The values of `messages.send_state`."""

    WAITING = "waiting"  # for the stored copy, which is to be sent back
    PENDING = "pending"  # to be sent by customer-service message
    SENT = "sent"
    FAILED = "failed"  # until `flask ledger retry`
    UNKNOWN = "unknown"  # the request left and no answer came: never repeated by itself
    WORKING = "working"  # deferred work: deliveries of the message wait for its result
    LATER = "later"  # deferred work: its result will be sent by customer-service message
    OWED = "owed"  # deferred work: the fan's next text is answered with its result
    GIVEN = "given"  # and that has happened


_S = SendState
SEND_STEPS: dict[SendState | None, frozenset[SendState | None]] = {
    None: frozenset(),
    _S.WAITING: frozenset({_S.PENDING, _S.FAILED}),
    _S.PENDING: frozenset({_S.SENT, _S.FAILED, _S.UNKNOWN}),
    _S.SENT: frozenset(),
    _S.FAILED: frozenset({_S.WAITING, _S.PENDING, _S.LATER}),
    _S.UNKNOWN: frozenset({_S.PENDING}),
    _S.WORKING: frozenset({None, _S.LATER, _S.OWED, _S.PENDING, _S.FAILED}),
    _S.LATER: frozenset({None, _S.PENDING, _S.FAILED}),
    _S.OWED: frozenset({None, _S.GIVEN, _S.FAILED}),
    _S.GIVEN: frozenset(),
}
