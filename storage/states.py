"""The states of a download, of what a fan is still to get, and of deferred work; and every step between them.

A message without a file has no `media_state` (None), one without anything to be sent no `send_state`. Every UPDATE of a
state in this package is one of these steps; the tests' databases refuse any other. Knows names; no tables and no SQL.
"""

from __future__ import annotations

from enum import StrEnum


class MediaState(StrEnum):
    """The values of `messages.media_state`: the download of the message's file."""

    PENDING = "pending"
    STORED = "stored"
    FAILED = "failed"  # until `flask ledger retry`


class SendState(StrEnum):
    """The values of `messages.send_state`."""

    WAITING = "waiting"  # for the stored copy, which is to be sent back
    PENDING = "pending"  # to be sent by customer-service message
    SENT = "sent"
    FAILED = "failed"  # until `flask ledger retry`
    UNKNOWN = "unknown"  # the request left and no answer came: never repeated by itself
    WORKING = "working"  # deferred work: deliveries of the message wait for its result
    LATER = "later"  # deferred work: its result will be sent by customer-service message
    # The next two names are newer than their values. A value stands in rows and in an index, so that changing it needs
    # a migration.
    KEPT = "owed"  # deferred work: its result is kept, and the fan's next text is answered with it
    FETCHED = "given"  # deferred work: that text was answered with it


class WorkState(StrEnum):
    """The values of `works.state`: the deferred work itself."""

    WAITING = "waiting"  # for the message's file
    PENDING = "pending"  # a process runs it, or can claim it
    DONE = "done"
    FAILED = "failed"  # until `flask ledger retry`


_M = MediaState
MEDIA_STEPS: dict[MediaState | None, frozenset[MediaState | None]] = {
    None: frozenset(),
    _M.PENDING: frozenset({_M.STORED, _M.FAILED}),
    _M.STORED: frozenset(),
    _M.FAILED: frozenset({_M.PENDING}),
}

_S = SendState
SEND_STEPS: dict[SendState | None, frozenset[SendState | None]] = {
    None: frozenset(),
    _S.WAITING: frozenset({_S.PENDING, _S.FAILED}),
    _S.PENDING: frozenset({_S.SENT, _S.FAILED, _S.UNKNOWN}),
    _S.SENT: frozenset(),
    _S.FAILED: frozenset({_S.WAITING, _S.PENDING, _S.LATER}),
    _S.UNKNOWN: frozenset({_S.PENDING}),
    _S.WORKING: frozenset({None, _S.LATER, _S.KEPT, _S.PENDING, _S.FAILED}),
    _S.LATER: frozenset({None, _S.PENDING, _S.FAILED}),
    _S.KEPT: frozenset({None, _S.FETCHED, _S.FAILED}),
    _S.FETCHED: frozenset(),
}

_W = WorkState
WORK_STEPS: dict[WorkState, frozenset[WorkState]] = {
    _W.WAITING: frozenset({_W.PENDING, _W.FAILED}),
    _W.PENDING: frozenset({_W.DONE, _W.FAILED}),
    _W.DONE: frozenset(),
    _W.FAILED: frozenset({_W.WAITING, _W.PENDING}),
}
