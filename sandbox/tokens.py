"""access_tokens as the platform gives them out: two slots that do not affect each other.

Knows lifetimes, the five minutes in which old and new both work, and the limits of force_refresh. It must
not know HTTP, quotas of other calls, or the real clock: `now` is an argument (Unix seconds).
https://developers.weixin.qq.com/doc/service/api/base/api_getstableaccesstoken
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from .errors import PlatformError

OVERLAP = 300
"""Seconds in which a replaced token still works, and in which stable_token already gives a new one."""
FORCED_APART = 30
FORCED_A_DAY = 20


def day(now: float) -> str:
    """The day that counters belong to: midnight in Beijing is the common assumption."""
    return (datetime.fromtimestamp(now, UTC) + timedelta(hours=8)).strftime("%Y-%m-%d")


@dataclass(frozen=True)
class Token:
    value: str = field(repr=False)
    expires_at: float
    works_until: float
    killed: bool = False

    def works(self, now: float) -> bool:
        return not self.killed and now < self.works_until


class Slot:
    """The current token and the one before it, of either /cgi-bin/token or /cgi-bin/stable_token."""

    def __init__(self) -> None:
        self.current: Token | None = None
        self._previous: Token | None = None

    def replace(self, now: float, life: float, overlap: float = OVERLAP) -> Token:
        """A new token. The replaced one still works for at most `overlap` seconds."""
        if self.current is not None:
            works_until = min(self.current.works_until, now + overlap)
            self._previous = replace(self.current, works_until=works_until)
        # A realistic look: digits, an underline, then URL-safe characters, over 130 in all.
        value = f"{secrets.randbelow(90) + 10}_{secrets.token_urlsafe(108)}"
        self.current = Token(value, now + life, now + life)
        return self.current

    def find(self, value: str) -> Token | None:
        known = (self.current, self._previous)
        return next((token for token in known if token is not None and token.value == value), None)

    def values(self) -> list[str]:
        return [token.value for token in (self.current, self._previous) if token is not None]

    def kill(self) -> None:
        self.current = self.current and replace(self.current, killed=True)
        self._previous = self._previous and replace(self._previous, killed=True)


class Tokens:
    """Both slots of the account."""

    def __init__(self) -> None:
        self._classic = Slot()
        self._stable = Slot()
        self._stuck = False
        self._forced_at = float("-inf")
        self._forced: tuple[str, int] = ("", 0)

    def classic(self, now: float, life: int) -> tuple[str, int]:
        """GET /cgi-bin/token: always a new token. Returns it with its expires_in (seconds)."""
        return self._classic.replace(now, life).value, life

    def stable(self, now: float, life: int, force: bool) -> tuple[str, int]:
        """POST /cgi-bin/stable_token: the same token until its last five minutes, or a forced new one."""
        if force and self._may_force(now):
            self._stuck = False
            return self._stable.replace(now, life, overlap=0).value, life
        current = self._stable.current
        if current is not None:
            left = current.expires_at - now
            if self._stuck:
                return current.value, max(int(left), OVERLAP)
            if current.works(now) and left > OVERLAP:
                return current.value, int(left)
        return self._stable.replace(now, life).value, life

    def _may_force(self, now: float) -> bool:
        today, count = day(now), self._forced[1] if self._forced[0] == day(now) else 0
        if now - self._forced_at < FORCED_APART or count >= FORCED_A_DAY:
            return False
        self._forced_at, self._forced = now, (today, count + 1)
        return True

    def check(self, value: str, now: float) -> None:
        """Raises PlatformError unless the token works: 41001 none, 42001 expired, 40001 unknown or replaced."""
        if not value:
            raise PlatformError(41001)
        token = self._stable.find(value) or self._classic.find(value)
        if token is None:
            raise PlatformError(40001)
        if token.works(now):
            return
        stuck = self._stuck and token is self._stable.current
        expired = token.killed or now >= token.expires_at
        raise PlatformError(42001 if expired and not stuck else 40001)

    def knows(self, value: str) -> bool:
        """Whether it is one of these tokens, valid or not."""
        return value in self.values()

    def values(self) -> list[str]:
        """All known tokens, including invalid ones."""
        return self._classic.values() + self._stable.values()

    def expire(self, stuck: bool) -> None:
        """Ends all tokens at once. `stuck`: normal mode goes on giving the dead one until a forced refresh."""
        self._classic.kill()
        self._stable.kill()
        self._stuck = stuck and self._stable.current is not None
