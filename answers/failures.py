"""What a failed call means: the reason that a person reads in the ledger, whether to try again, and when.

Knows the errors of `wechat` and of the media store, and how the pauses grow. Must not know what was being done.
"""

from __future__ import annotations

from dataclasses import dataclass

from answers.copies import StoredFileGoneError
from config import explained
from wechat.errors import WeChatError

SEND_LIFE_SECONDS = 2 * 86400  # a fan's message gives the right to send for 48 hours
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 600.0

# The account may not send this, or not now: neither waiting nor repeating helps this message.
SEND_REFUSALS = frozenset({48001, 48004, 48008, 50001, 50002})


@dataclass(frozen=True)
class Failure:
    """`code` is the platform's, `final` says that repeating is useless, `not_before` is in unix seconds."""

    code: int | None
    reason: str
    final: bool = False
    not_before: float = 0.0


def failure(error: WeChatError | OSError) -> Failure:
    """What the error of a call to the platform, or of the media store, means."""
    if isinstance(error, WeChatError):
        return Failure(error.code, explained(error), final=error.final, not_before=error.retry_at or 0.0)
    if isinstance(error, StoredFileGoneError):
        return Failure(None, "the stored file is gone from MEDIA_STORE", final=True)
    return Failure(None, f"MEDIA_STORE: {error.strerror or error}")


def pause(attempt: int, jitter: float) -> float:
    """Seconds until the next try after the `attempt`-th (from 1): doubling to ten minutes, a quarter more or less by
    `jitter`, which is in [0, 1)."""
    grown = FIRST_PAUSE_SECONDS * 2.0 ** min(attempt - 1, 20)
    return min(grown, LONGEST_PAUSE_SECONDS) * (0.75 + 0.5 * jitter)
