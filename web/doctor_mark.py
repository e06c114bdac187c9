"""The header by which the callback recognises `flask doctor`, whose requests are answered but not counted.

Knows how the header's value is made and checked. It takes the callback Token to make one, so that no stranger can hide
from the counters. Must not know requests or probes.
"""

from __future__ import annotations

import hashlib
import hmac

HEADER = "X-Flask-Doctor"
VALID_SECONDS = 300


def mark(token: str, now: int) -> str:
    """The header's value. `now` is in unix seconds."""
    return f"{now:d}-{_digest(token, now)}"


def is_marked(value: str, token: str, now: float) -> bool:
    """Whether `value` was made with this token, within VALID_SECONDS of `now`."""
    moment, _, digest = value.partition("-")
    if not (moment.isascii() and moment.isdecimal() and len(moment) < 16):
        return False
    return abs(now - int(moment)) < VALID_SECONDS and hmac.compare_digest(
        digest.encode(), _digest(token, int(moment)).encode()
    )


def _digest(token: str, now: int) -> str:
    return hmac.new(token.encode(), f"flask doctor {now:d}".encode(), hashlib.sha256).hexdigest()
