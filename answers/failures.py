"""What a failed call means: the reason to show in the ledger, whether to retry, and when.

Knows the errors of `wechat` and of the media store, and how the pauses grow. Must not know what the call was for.
"""

from __future__ import annotations

from dataclasses import dataclass

from answers.copies import StoredFileGoneError
from config import explained
from wechat.errors import WeChatError

SEND_LIFE_SECONDS = 2 * 86400  # a fan's message gives the right to send for 48 hours
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 600.0

# What a handler, or its work, may raise. Not all of it is an Exception: sys.exit(), asyncio's CancelledError, the
# time-outs of gevent and func_timeout, a panic of a library in Rust. None of them must end the process.
HANDLER_FAULTS = BaseException

# The account may not send this message: a retry would not help.
SEND_REFUSALS = frozenset({48001, 48004, 48008, 50001, 50002})


@dataclass(frozen=True)
class Failure:
    """`code` is the platform's, `final` says that a retry is useless, `not_before` is in unix seconds."""

    code: int | None
    reason: str
    final: bool = False
    not_before: float = 0.0


def failure(error: WeChatError | OSError) -> Failure:
    """What an error of the platform or of the media store means."""
    if isinstance(error, WeChatError):
        return Failure(error.code, explained(error), final=error.final, not_before=error.retry_at or 0.0)
    if isinstance(error, StoredFileGoneError):
        return Failure(None, "the stored file is gone from MEDIA_STORE", final=True)
    what = error.strerror or str(error)
    where = error.filename2 or error.filename  # of a move its end: what is moved was just written
    return Failure(None, f"MEDIA_STORE: {where}: {what}" if where else f"MEDIA_STORE: {what}")


def pause(attempt: int, jitter: float) -> float:
    """Seconds to wait after attempt number `attempt` (from 1). Doubles up to ten minutes; `jitter`, in [0, 1), makes it
    up to a quarter shorter or longer."""
    grown = FIRST_PAUSE_SECONDS * 2.0 ** min(attempt - 1, 20)
    return min(grown, LONGEST_PAUSE_SECONDS) * (0.75 + 0.5 * jitter)
