"""The account's one access_token: kept in a shared row, renewed early, fetched by one caller at a time.

It knows when a token is due, how a lease and a back-off keep all threads, processes and machines to one
fetch, and how a refused token is replaced without a loop. It must not know where the row is kept (a
TokenStore), how a token is asked for (a TokenSource) or who uses it.
"""

from __future__ import annotations

import logging
import random as randomness
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from wechat.errors import ApiError, TokenUnavailableError, TransportError, WeChatError
from wechat.token_sources import Grant, TokenSource

log = logging.getLogger(__name__)

#: A lease is longer than any request of a source (10 s; the last connect may overrun by 3 s), and is renewed before
#: each request.
FETCH_LEASE_SECONDS = 15.0
#: How long a caller waits for another thread's renewal, and then for another process's.
WAIT_SECONDS = 20.0

_MARGIN_SECONDS = 10.0  # a token must live long enough for the call that uses it
_FETCHES_APART = 60.0  # however short a token's life is said to be
_EARLIEST_RENEWAL = 300.0  # earlier, stable_token gives the same token again, with what is left of its life
_LATEST_RENEWAL = 240.0
_CLOCK_ERROR = 60.0
_FIRST_BACKOFF = 1.0
_LONGEST_BACKOFF = 60.0
_POLL_SECONDS = 0.1
_LOOK_SECONDS = 30.0
_CHECKS = 5  # of one token, at once
_CHECKS_APART = 20.0  # in the long run
_FORCED_APART = 30.0
_FORCED_PER_DAY = 20
_DAY = 86400
_BEIJING = 8 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """What all processes share about the token. All times are unix seconds, wall clock; 0 is never.

    `expires_at` 0 beside a value means that the platform refuses this value. `retry_at`, `failures`, `reason`,
    `reason_zh` and `code` describe the failed fetches since the last good one. `checked_at` says when the source was
    last asked whether this value is valid, `checks` how many recent checks count. `forced_*` count the force_refresh
    calls, `forced_day` in days since 1970, Beijing time.
    """

    value: str | None = field(default=None, repr=False)
    expires_at: float = 0.0
    fetched_at: float = 0.0
    retry_at: float = 0.0
    failures: int = 0
    reason: str | None = None
    reason_zh: str | None = None
    code: int | None = None
    checked_at: float = 0.0
    checks: float = 0.0
    forced_at: float = 0.0
    forced_day: int = 0
    forced_count: int = 0

    def unavailable(self) -> TokenUnavailableError:
        """The error of the last failed fetch."""
        return TokenUnavailableError(
            self.reason or "", self.reason_zh or "", code=self.code, retry_at=self.retry_at
        )


EMPTY = TokenRow()


class TokenStore(Protocol):
    """The row and its lease, shared by all processes of the account."""

    def load(self) -> TokenRow:
        """The row, or EMPTY if there is none."""

    def lease(self, holder: str, now: float, seconds: float) -> bool:
        """Take the lease, or extend our own. False while another holds it."""

    def save(self, holder: str, row: TokenRow, now: float) -> bool:
        """Write the row if `holder` holds the lease, and keep the lease."""

    def release(self, holder: str) -> None:
        """Give the lease back if `holder` holds it."""


class MemoryTokenStore:
    """A TokenStore for one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._row = EMPTY
        self._holder: str | None = None
        self._until = 0.0

    def load(self) -> TokenRow:
        return self._row

    def lease(self, holder: str, now: float, seconds: float) -> bool:
        with self._lock:
            if self._holder not in (None, holder) and now < self._until:
                return False
            self._holder, self._until = holder, now + seconds
            return True

    def save(self, holder: str, row: TokenRow, now: float) -> bool:
        with self._lock:
            if self._holder != holder or now >= self._until:
                return False
            self._row = row
            return True

    def release(self, holder: str) -> None:
        with self._lock:
            if self._holder == holder:
                self._holder = None


class AccessToken:
    """The account's token for any number of threads; with a shared store, of processes and machines.

    `clock` is wall-clock seconds, `sleep` the pause while another process fetches, `random` a number in
    [0, 1). `on_fetch` is called with each fetch's result: "ok", the platform's code, or "failed". `explained` turns a
    failed fetch into a reason for people, in English and in Chinese.
    """

    def __init__(
        self,
        store: TokenStore,
        source: TokenSource,
        *,
        clock: Callable[[], float] = time.time,
        random: Callable[[], float] = randomness.random,
        sleep: Callable[[float], None] = time.sleep,
        on_fetch: Callable[[str], None] = lambda result: None,
        explained: Callable[[WeChatError], tuple[str, str]] = lambda error: (error.what, error.what_zh),
    ) -> None:
        self._store = store
        self._source = source
        self._clock = clock
        self._random = random
        self._sleep = sleep
        self._on_fetch = on_fetch
        self._explained = explained
        self._lock = threading.Lock()
        self._jitter: tuple[str | None, float] = (None, 0.0)

    def get(self) -> str:
        """The token. It never waits while there is a valid one.

        Raises TokenUnavailableError: at once during the pause after a failed fetch, or when the fetch fails, or
        when another process has not fetched a token within 20 s.
        """
        return self._usable(self._store.load()) or self._alone(self._usable, self._renew)

    def replace(self, stale: str | None, *, reported: bool = False, at_once: bool = False) -> str:
        """The token after `stale`, which the platform refused. Many reports of one token cost one fetch.

        If the normal fetch gives `stale` again, the source is asked whether it is really invalid. Only then a
        forced renewal follows, within the platform's limits. A token that the source calls valid is returned:
        the caller's one repeat then shows what is wrong.

        `reported`: another program says so, and may be wrong. Nothing is fetched before the source confirms that
        `stale` is invalid. All processes together check one token at most five times at once, and once in 20 s
        in the long run. Without a check `stale` is returned.
        `at_once`: an operator asks, after a correction. It does not wait for the back-off.

        Raises TokenUnavailableError.
        """
        began = self._clock()

        def newer(row: TokenRow) -> str | None:
            if row.value == stale and (not reported or _may_check(row, self._clock())):
                return None
            return self._usable(row)

        def act(holder: str) -> str:
            return self._renew_if_invalid(holder, stale, began) if reported else self._renew(holder, stale)

        return newer(self._store.load()) or self._alone(newer, act, patient=not at_once)

    def get_checked(self) -> str:
        """The token; unless it was just fetched, checked as in `replace` with `reported`."""
        began = self._clock()
        value = self.get()
        return value if self._store.load().fetched_at >= began else self.replace(value, reported=True)

    def keep_fresh(self) -> float:
        """Renew the token if it is due. Returns the seconds until the next call. For a loop in each process.

        The first token is fetched only when it is needed. A failed fetch is in the row and in the log.
        """
        pause = self._until_due()
        if pause > 0:
            return min(pause, _LOOK_SECONDS)
        if self._lock.acquire(blocking=False):
            try:
                self._renew_if_due()
            finally:
                self._lock.release()
        return min(max(self._until_due(), 1.0), _LOOK_SECONDS)

    def row(self) -> TokenRow:
        """The shared row, to show its state."""
        return self._store.load()

    def _usable(self, row: TokenRow) -> str | None:
        return row.value if row.expires_at - self._clock() > _MARGIN_SECONDS else None

    def _until_due(self) -> float:
        """Seconds until the token is to be renewed, 0 or less when it is due."""
        row = self._store.load()
        now = self._clock()
        if row.value is None:
            return _LOOK_SECONDS
        if self._jitter[0] != row.value:
            self._jitter = (row.value, self._random())
        life = row.expires_at - row.fetched_at
        if now < row.fetched_at - _CLOCK_ERROR:
            due = now  # the clock was set back: the row's times mean nothing
        elif life < _EARLIEST_RENEWAL:
            due = row.fetched_at + max(life / 2, _FETCHES_APART)
        else:
            early = _LATEST_RENEWAL + (_EARLIEST_RENEWAL - _LATEST_RENEWAL) * self._jitter[1]
            due = max(row.expires_at - early, row.fetched_at + _FETCHES_APART)
        return max(due - now, _back_off_left(row, now))

    def _renew_if_due(self) -> None:
        holder = secrets.token_hex(8)
        if not self._store.lease(holder, self._clock(), FETCH_LEASE_SECONDS):
            return
        try:
            if self._until_due() <= 0:
                self._renew(holder)
        except (TokenUnavailableError, _LeaseLostError):
            pass  # it is in the row and in the log; the loop tries again
        finally:
            self._store.release(holder)

    def _alone(
        self, found: Callable[[TokenRow], str | None], act: Callable[[str], str], *, patient: bool = True
    ) -> str:
        """The token `found` in the row, or else the result of `act`, which one thread of one process runs at a time."""

        def look() -> str | None:
            row = self._store.load()
            value = found(row)
            if value is None and patient and _back_off_left(row, self._clock()) > 0:
                raise row.unavailable()
            return value

        holder = secrets.token_hex(8)  # new for each call, so that a forked process never shares it
        if self._lock.acquire(timeout=WAIT_SECONDS):
            try:
                for _ in range(int(WAIT_SECONDS / _POLL_SECONDS)):
                    value = look()
                    if value is not None:
                        return value
                    if self._store.lease(holder, self._clock(), FETCH_LEASE_SECONDS):
                        try:
                            return look() or act(holder)
                        except _LeaseLostError:
                            pass  # another process has it, and fetches the token
                        finally:
                            self._store.release(holder)
                    self._sleep(_POLL_SECONDS)
            finally:
                self._lock.release()
        raise TokenUnavailableError(
            f"another thread or process has been fetching the token for {WAIT_SECONDS:.0f} s: try again / "
            f"其他进程正在获取 token，请稍后重试"
        )

    def _renew_if_invalid(self, holder: str, suspect: str | None, began: float) -> str:
        row = self._store.load()
        if suspect is not None and row.value == suspect and self._usable(row):
            now = self._clock()
            # Only under the lease: without it, a check may still be running elsewhere.
            if began < row.checked_at <= now:
                return suspect
            row = replace(row, checked_at=now, checks=_recent_checks(row, now) + 1)
            self._save(holder, row)  # before the call: one that is cut off counts too
            try:
                invalid = self._is_invalid(holder, suspect)
            except WeChatError as error:
                log.warning("access_token not checked: %s", error)
                invalid = False
            if not invalid:
                return suspect
            # The platform itself refused it: never hand out this token again.
            if self._source.force_is_limited:
                self._save(holder, replace(row, expires_at=0.0))
        return self._renew(holder, suspect)

    def _renew(self, holder: str, stale: str | None = None) -> str:
        """One renewal under the lease. A failure goes into the row; the old token stays."""
        failure: WeChatError
        try:
            return self._fetch_and_save(holder, stale)
        except (ApiError, TransportError, TokenUnavailableError) as error:
            failure = error
        row = self._store.load()
        retry_at = self._clock() + min(_FIRST_BACKOFF * 2.0 ** min(row.failures, 10), _LONGEST_BACKOFF)
        reason, reason_zh = self._explained(failure)
        row = replace(
            row,
            retry_at=retry_at,
            failures=row.failures + 1,
            reason=reason,
            reason_zh=reason_zh,
            code=failure.code,
        )
        self._save(holder, row)
        unavailable = row.unavailable()
        log.warning(
            "access_token not renewed: %s", unavailable, extra={"code": row.code, "failures": row.failures}
        )
        raise unavailable

    def _fetch_and_save(self, holder: str, stale: str | None) -> str:
        """The next token, kept in the row. By force_refresh if the normal fetch gives `stale`, and that is invalid."""
        row = self._store.load()
        if row.value is not None and row.expires_at == 0:
            stale = row.value
        asked_at = self._clock()
        grant = self._fetch(holder, self._source.fetch)
        if grant.value == stale and self._is_invalid(holder, grant.value):
            if self._source.force_is_limited:
                row = replace(row, value=stale, expires_at=0.0)
                self._save(holder, row)
                row = self._count_forced(row)
                self._save(holder, row)  # before the call: one that is cut off counts too
            asked_at = self._clock()
            grant = self._fetch(holder, lambda: self._source.force(stale))
            if grant.value == stale and self._source.force_is_limited:
                raise TokenUnavailableError(
                    "the platform refuses its own token and gives no other, even by force_refresh",
                    "平台拒绝该 token，强制刷新后仍返回同一个",
                )
        kept = TokenRow(
            value=grant.value,
            expires_at=asked_at + grant.life,
            fetched_at=asked_at,
            checked_at=row.checked_at if grant.value == row.value else 0.0,
            checks=row.checks if grant.value == row.value else 0.0,
            forced_at=row.forced_at,
            forced_day=row.forced_day,
            forced_count=row.forced_count,
        )
        self._save(holder, kept)
        log.info("access_token renewed", extra={"expires_in": round(grant.life)})
        return grant.value

    def _fetch(self, holder: str, ask: Callable[[], Grant]) -> Grant:
        self._hold(holder)
        result = "failed"
        try:
            grant = ask()
            result = "ok"
        except ApiError as error:
            result = str(error.code)
            raise
        finally:
            self._on_fetch(result)
        return grant

    def _is_invalid(self, holder: str, token: str) -> bool:
        self._hold(holder)
        return self._source.is_invalid(token)

    def _count_forced(self, row: TokenRow) -> TokenRow:
        now = self._clock()
        day = int((now + _BEIJING) // _DAY)
        count = row.forced_count if row.forced_day == day else 0
        if count >= _FORCED_PER_DAY:
            raise TokenUnavailableError(
                f"the token is dead and force_refresh was used {count} times today, which is all the platform "
                "allows: find out what kills the tokens",
                f"token 已失效，今日强制刷新次数（{count} 次）已用尽",
            )
        if 0 <= now - row.forced_at < _FORCED_APART:
            raise TokenUnavailableError(
                "the token is dead and force_refresh was used less than 30 s ago: wait",
                "token 已失效，距上次强制刷新不足 30 秒，请稍候",
            )
        return replace(row, forced_at=now, forced_day=day, forced_count=count + 1)

    def _hold(self, holder: str) -> None:
        if not self._store.lease(holder, self._clock(), FETCH_LEASE_SECONDS):
            raise _LeaseLostError

    def _save(self, holder: str, row: TokenRow) -> None:
        if not self._store.save(holder, row, self._clock()):
            raise _LeaseLostError


class _LeaseLostError(Exception):
    """Another process took over the lease; our copy of the row is out of date."""


def _back_off_left(row: TokenRow, now: float) -> float:
    """Seconds until the next fetch may be tried. A time too far ahead is ignored: the clock was changed."""
    left = row.retry_at - now
    return left if left <= _LONGEST_BACKOFF + _CLOCK_ERROR else 0.0


def _recent_checks(row: TokenRow, now: float) -> float:
    """How many recent checks of the current token count: one expires every 20 s, all if the clock was set back."""
    since = now - row.checked_at
    return max(row.checks - max(since, 0.0) / _CHECKS_APART, 0.0) if since > -_CLOCK_ERROR else 0.0


def _may_check(row: TokenRow, now: float) -> bool:
    """Whether the source may be asked now about the current token. Not during the back-off."""
    return _recent_checks(row, now) <= _CHECKS - 1 and _back_off_left(row, now) <= 0
