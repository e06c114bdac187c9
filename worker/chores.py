"""What a process does beside its jobs: it keeps access_tokens fresh, deletes what has expired, and makes thumbnails.

Knows when each is due. Must not know how a token is fetched, in which order things are deleted, or how a picture is
made small. Every process may do all of it: leases in the database keep two from doing the same. Each account's token
has its own thread; the rest is done for one account after the other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import logs
from answers.steps import rarer, repeat, try_step
from storage.purge import Purge
from wechat.access_token import AccessToken
from worker.thumbnails import ThumbnailMaker

log = logging.getLogger(__name__)

TOKEN_FAULT_SECONDS = 1.0
TIDY_SECONDS = 10.0  # between checks for what to delete
THUMBNAIL_IDLE_SECONDS, THUMBNAIL_FAULT_SECONDS = 1.0, 60.0  # until the next check
THUMBNAIL_GIVES_WAY_SECONDS = 1.0  # at most, to running jobs


class Chores:
    """The chores of one account."""

    def __init__(
        self,
        account: str,
        purge: Purge,
        token: AccessToken,
        maker: ThumbnailMaker,
        *,
        retention_days: int,
        purge_on_unsubscribe: bool,
        clock: Callable[[], float],
    ) -> None:
        self.account, self.maker = account, maker
        self._purge, self._token = purge, token
        self._retention_days, self._purge_on_unsubscribe = retention_days, purge_on_unsubscribe
        self._clock = clock

    def keep_token_fresh(self, stop: threading.Event) -> None:
        """Renews the access_token before the old one expires, until `stop` is set."""
        logs.ACCOUNT.set(self.account)
        repeat(
            stop,
            self._token.keep_fresh,
            "the token row cannot be read",
            fault_seconds=TOKEN_FAULT_SECONDS,
        )

    def tidy_once(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Deletes what RETENTION_DAYS and PURGE_ON_UNSUBSCRIBE ask for, and the files of purged rows. Ends after the
        batch in hand when `stopped()`."""
        now, purge = self._clock(), replace(self._purge, stopped=stopped)
        if self._purge_on_unsubscribe and (fans := purge.forget_unsubscribed(now)):
            log.info("purged fans who unsubscribed", extra={"fans": fans})
        if self._retention_days:
            before = now - self._retention_days * 86400
            gone = purge.purge(now, before=before)
            if gone.rows:
                log.info("purged by RETENTION_DAYS", extra={"rows": gone.rows, "files": gone.files})
        purge.delete_files(now)


def keep_tidy(accounts: Sequence[Chores], stop: threading.Event, jitter: Callable[[], float]) -> None:
    """Deletes what has expired, for all accounts, until `stop` is set."""

    def step() -> float:
        for chores in accounts:
            if stop.is_set():
                break
            logs.ACCOUNT.set(chores.account)
            try_step("what is to be deleted has to wait", partial(chores.tidy_once, stop.is_set))
        return TIDY_SECONDS * (0.5 + jitter())

    stop.wait(TIDY_SECONDS * jitter())  # not all processes at once
    repeat(stop, step, "what is to be deleted has to wait", fault_seconds=TIDY_SECONDS)


def keep_making_thumbnails(
    accounts: Sequence[Chores], stop: threading.Event, busy: Callable[[], bool]
) -> None:
    """Makes thumbnails, one for each account in turn, until `stop` is set. Pauses for running jobs while `busy()`."""

    def step() -> float:
        made = False
        for chores in accounts:
            give_way = time.monotonic() + THUMBNAIL_GIVES_WAY_SECONDS
            while busy() and time.monotonic() < give_way and not stop.wait(0.05):
                pass
            logs.ACCOUNT.set(chores.account)
            made = stop.is_set() or chores.maker.step() or made
        return 0.0 if made else rarer(THUMBNAIL_IDLE_SECONDS, len(accounts))

    try:
        repeat(stop, step, "thumbnails have to wait", fault_seconds=THUMBNAIL_FAULT_SECONDS)
    finally:
        for chores in accounts:
            chores.maker.close()
