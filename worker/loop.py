"""Works off the ledger: downloads what fans sent, and sends what they are still owed.

Knows the order of a download and of a send, and what each failure means for the row. Does not know Flask, XML or SQL.
A claim is a lease that a heartbeat renews; whoever lost it stops, and no mark of his changes anything. A signal only
sets a flag: work in hand finishes within GRACE_SECONDS or is given back.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import cores
from answers.copies import StoredCopies
from answers.failures import FIRST_PAUSE_SECONDS, SEND_LIFE_SECONDS, SEND_REFUSALS, failure, pause
from storage import purge
from storage.deferred import Works
from storage.errors import DatabaseUnavailableError
from storage.files import FileStore
from storage.ledger import Download, Ledger, Send
from thumbnails.maker import ThumbnailMaker
from thumbnails.shelf import Thumbnails
from wechat import customer_service, media
from wechat.access_token import AccessToken
from wechat.client import ApiClient
from wechat.errors import (
    TransportError,
    WeChatError,
)
from wechat.replies import ImageReply, Reply, VideoReply, VoiceReply, parse_reply

log = logging.getLogger(__name__)

T = TypeVar("T")

MEDIA_LIFE_SECONDS = 3 * 86400  # the platform keeps temporary media for three days
MIN_FREE_BYTES = 200 * 1024 * 1024
LOW_DISK_PAUSE_SECONDS = 10.0
IDLE_SECONDS = (0.05, 0.2)  # between looks at an empty ledger: the first, the longest
GATHER_SECONDS = 0.02  # for one thread more to come free, before a claim
TIDY_SECONDS = 10.0  # between looks for what is to be deleted
THUMBNAIL_IDLE_SECONDS, THUMBNAIL_FAULT_SECONDS = 1.0, 60.0  # until the next look
THUMBNAIL_GIVES_WAY_SECONDS = 1.0  # at most, to downloads in hand
THUMBNAIL_BURST_SECONDS = 0.25  # after a first picture: others may come in with it
GRACE_SECONDS = 20.0  # for work in hand when the process is asked to stop


class _Stopped(Exception):
    """The process is asked to stop: give the work back."""


class _ClaimLost(Exception):
    """Another process holds this work now."""


class Worker:
    """One process's share of the work."""

    def __init__(
        self,
        ledger: Ledger,
        client: ApiClient,
        files: FileStore,
        token: AccessToken,
        works: Works,
        copies: StoredCopies,
        *,
        lease_seconds: float,
        max_media_bytes: int,
        retention_days: int = 0,
        purge_on_unsubscribe: bool = False,
        thumbnails: Thumbnails,
        thumbnail_maker: ThumbnailMaker,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self._ledger, self._client, self._files = ledger, client, files
        self._token, self._works, self._copies = token, works, copies
        self._lease, self._max_media_bytes = lease_seconds, max_media_bytes
        self._retention_days, self._purge_on_unsubscribe = retention_days, purge_on_unsubscribe
        self._thumbnails, self._thumbnail_maker = thumbnails, thumbnail_maker
        self._clock, self._jitter, self._grace = clock, jitter, grace_seconds
        self._wake = threading.Event()
        self._stored = threading.Event()
        self._stop = threading.Event()
        self._abandon = threading.Event()
        self._finished = threading.Event()
        self._held: dict[int, _Held] = {}
        self._lock = threading.Lock()
        self._running: list[threading.Thread] = []

    def wake(self) -> None:
        """Says that there is work: the next look comes at once."""
        self._wake.set()

    def start(self, threads: int, *, chores: bool = True) -> None:
        """Works in threads of this process until `stop()`; with `threads` 0 it only keeps the token fresh.

        Without `chores` it only downloads and sends: the rest is done by another process of this machine.
        """
        targets: list[Callable[[], None]] = [self.keep_token_fresh] if chores else []
        if threads:
            targets.append(lambda: self.run_forever(threads, thumbnails=chores))
        if threads and chores:
            targets.append(self.keep_tidy)
        self._running = [threading.Thread(target=target, daemon=True) for target in targets]
        for thread in self._running:
            thread.start()

    def stop(self) -> None:
        """Ends `run_forever()`; returns when the work in hand is finished or given back."""
        self.ask_to_stop()
        for thread in self._running:
            thread.join()

    def ask_to_stop(self) -> None:
        """As `stop()`, but returns at once."""
        self._stop.set()
        self._wake.set()
        self._stored.set()

    def keep_token_fresh(self) -> None:
        """Renews the access_token while the old one still serves, until `stop()`."""
        while not self._stop.is_set():
            seconds = _survived("the token row cannot be read", self._token.keep_fresh)
            self._stop.wait(FIRST_PAUSE_SECONDS if seconds is None else seconds)

    def keep_tidy(self) -> None:
        """Deletes what RETENTION_DAYS and PURGE_ON_UNSUBSCRIBE say, and files of purged rows, until `stop()`."""
        while not self._stop.wait(TIDY_SECONDS * (0.5 + self._jitter())):
            _survived("what is to be deleted has to wait", self.tidy_once)

    def tidy_once(self) -> None:
        now = self._clock()
        kept = self._ledger, self._files, self._thumbnails
        if self._purge_on_unsubscribe and (fans := purge.forget_unsubscribed(*kept, now=now)):
            log.info("purged fans who unsubscribed", extra={"fans": fans})
        if self._retention_days:
            before = now - self._retention_days * 86400
            gone = purge.purge(*kept, now=now, before=before)
            if gone.rows:
                log.info("purged by RETENTION_DAYS", extra={"rows": gone.rows, "files": gone.files})
        purge.delete_files(*kept, now=now)

    def run_forever(self, threads: int, *, thumbnails: bool = True) -> None:
        """Claims and works, `threads` pieces at once, until `stop()`; an unreachable database is waited for."""
        helpers = [threading.Thread(target=self._keep_claims, name="keep_claims", daemon=True)]
        if thumbnails:
            helpers.append(threading.Thread(target=self._make_thumbnails, name="thumbnails", daemon=True))
        for helper in helpers:
            helper.start()
        idle = IDLE_SECONDS[0]
        cores.stay_on_one()
        with ThreadPoolExecutor(threads, "work") as pool:
            while not self._stop.is_set():
                self._wake.clear()
                room = threads - len(self._held)
                claimed = _survived("the ledger cannot be read", partial(self._claim, room))
                if claimed is None:
                    self._stop.wait(FIRST_PAUSE_SECONDS)
                    continue
                for job in claimed:
                    pool.submit(self._work, job)
                if claimed:
                    idle = IDLE_SECONDS[0]
                else:
                    # All processes of a machine at the same moments: then they share work from its beginning.
                    self._wake.wait(idle - time.monotonic() % idle)
                    idle = min(idle * 2, IDLE_SECONDS[1])
                # Of many busy threads one comes free after the other, and a claim for each costs a sixth of its work.
                while threads - len(self._held) < threads // 4 and self._wake.wait(GATHER_SECONDS):
                    self._wake.clear()
            deadline = time.monotonic() + self._grace
            while self._held and time.monotonic() < deadline:
                self._wake.clear()
                self._wake.wait(0.1)
            self._abandon.set()
        self._finished.set()
        for helper in helpers:
            helper.join(self._grace)

    def _make_thumbnails(self) -> None:
        """One after the other, giving way to downloads in hand, until `stop()`."""
        maker = self._thumbnail_maker
        while True:
            give_way = time.monotonic() + THUMBNAIL_GIVES_WAY_SECONDS
            while self._held and time.monotonic() < give_way and not self._stop.wait(0.05):
                pass
            self._stored.clear()
            if self._stop.is_set():
                maker.close()
                return
            made = _survived("thumbnails have to wait", maker.step)
            if made is None:
                self._stop.wait(THUMBNAIL_FAULT_SECONDS)
            elif not made and self._stored.wait(THUMBNAIL_IDLE_SECONDS):
                self._stop.wait(THUMBNAIL_BURST_SECONDS)

    def run_once(self) -> bool:
        """Claims one piece of work and does it; False when nothing was due."""
        claimed = self._claim(1)
        for job in claimed:
            self._work(job)
        return bool(claimed)

    # -- claims ------------------------------------------------------------------------------------------------

    def _claim(self, limit: int) -> list[Download | Send]:
        if limit <= 0:
            return []
        now = self._clock()
        jobs: list[Download | Send] = [*self._ledger.claim_sends(now, self._lease, limit)]
        if limit > len(jobs):
            jobs += self._claim_downloads(now, limit - len(jobs))
        with self._lock:
            for job in jobs:
                self._held[id(job)] = _Held(job)
        return jobs

    def _claim_downloads(self, now: float, limit: int) -> list[Download]:
        free = self._files.free_bytes()
        if free is None or free >= MIN_FREE_BYTES:
            return self._ledger.claim_downloads(now, self._lease, limit)
        reason = (
            f"the disk of MEDIA_STORE has {free >> 20} MB free, less than {MIN_FREE_BYTES >> 20}: make room"
        )
        for download in self._ledger.claim_downloads(now, self._lease, 1):
            log.error(reason, extra={"ledger_id": download.id})
            self._ledger.mark_retry(download, now + LOW_DISK_PAUSE_SECONDS, None, reason)
        return []

    def _keep_claims(self) -> None:
        """Renews each held lease at a third of its length, for as long as work is in hand; as often it sees that
        nothing waits for a time that only a wrong clock has told."""
        while not self._finished.wait(self._lease / 3):
            with self._lock:
                held = list(self._held.values())
            for one in held:
                _survived("a lease cannot be renewed", partial(self._renew, one), ledger_id=one.job.id)
            _survived("the ledger cannot be read", self._bring_back)

    def _renew(self, one: _Held) -> None:
        one.lost = one.lost or not self._ledger.extend(one.job, self._clock(), self._lease)

    def _bring_back(self) -> None:
        rows = self._ledger.bring_back(self._clock())
        if rows:
            log.warning("the clock was set back: work that it had put off is due now", extra={"rows": rows})
            self.wake()

    # -- work --------------------------------------------------------------------------------------------------

    def _work(self, job: Download | Send) -> None:
        held = self._held[id(job)]
        try:
            if isinstance(job, Download):
                self._download(job, held)
            else:
                self._send(job)
        except _ClaimLost:
            log.warning("another process took this work over", extra={"ledger_id": job.id})
        except _Stopped:
            self._ledger.give_back(job)
        except DatabaseUnavailableError as error:
            # The lease runs out, and whoever reaches the database first goes on.
            log.error("the ledger cannot be written", extra={"ledger_id": job.id, "reason": str(error)})
        except Exception:
            log.exception("unexpected fault; the work is tried again", extra={"ledger_id": job.id})
            self._retry(job, None, "unexpected fault; see the log of this ledger id")
        finally:
            with self._lock:
                del self._held[id(job)]
            self._wake.set()

    def _download(self, job: Download, held: _Held) -> None:
        try:
            with media.open_media(self._client, job.media_id, max_bytes=self._max_media_bytes) as chunks:
                stored = self._files.put(
                    job.stem, self._watched(chunks, held), extension=media.extension, attempt=job.attempt
                )
        except (WeChatError, OSError) as error:
            failed = failure(error)
            if failed.final:
                self._fail(job, failed.code, failed.reason)
            else:
                self._retry(job, failed.code, failed.reason, failed.not_before)
            return
        if self._ledger.mark_stored(job, stored, self._clock()):
            self._stored.set()
            log.info("stored", extra={"ledger_id": job.id, "key": stored.key, "size": stored.size})
            return
        entry = self._ledger.get(job.id)
        if entry is None or entry.media_state == "failed":  # purged or given up meanwhile; nobody else's file
            self._files.delete(stored.key)

    def _watched(self, chunks: Iterable[bytes], held: _Held) -> Iterator[bytes]:
        for chunk in chunks:
            if held.lost:
                raise _ClaimLost
            if self._abandon.is_set():
                raise _Stopped
            yield chunk

    def _send(self, job: Send) -> None:
        if job.sending:
            self._ledger.mark_unknown(
                job, "the process ended while the message was on its way", self._clock()
            )
            return
        try:
            reply = self._owed(job)
            if not self._ledger.mark_sending(job):
                raise _ClaimLost
            try:
                customer_service.send(self._client, job.openid, reply)
            except TransportError as error:
                if not error.sent:
                    raise
                reason = f"the message may have arrived, so it is not sent again: {error}"
                log.warning("a message's fate is unknown", extra={"ledger_id": job.id, "reason": str(error)})
                self._ledger.mark_unknown(job, reason, self._clock())
                return
        except (WeChatError, OSError) as error:
            failed = failure(error)
            if failed.final or failed.code in SEND_REFUSALS:
                self._fail(job, failed.code, failed.reason)
            else:
                self._retry(job, failed.code, failed.reason, failed.not_before)
        else:
            self._ledger.mark_sent(job, self._clock())
            log.info("sent back", extra={"ledger_id": job.id})

    def _owed(self, job: Send) -> Reply:
        """What the fan is to get: the result of deferred work, or the stored copy of what he sent."""
        result = self._works.result(job.id)
        if result is not None:
            return parse_reply(result)
        return _reply(job.media_kind, job.uploaded_media_id or self._upload(job))

    def _upload(self, job: Send) -> str:
        media_id = self._copies.upload(job.media_key, job.media_kind)
        if not self._ledger.mark_uploaded(job, media_id):
            raise _ClaimLost
        return media_id

    # -- marks -------------------------------------------------------------------------------------------------

    def _retry(self, job: Download | Send, code: int | None, reason: str, not_before: float = 0.0) -> None:
        now = self._clock()
        due = max(now + pause(job.attempt, self._jitter()), not_before)
        life = MEDIA_LIFE_SECONDS if isinstance(job, Download) else SEND_LIFE_SECONDS
        if due > min(job.create_time, job.received_at) + life:
            self._fail(job, code, f"{reason} (given up: the platform's {life // 3600} hours are over)")
            return
        log.warning("failed, tried again later", extra={"ledger_id": job.id, "code": code, "reason": reason})
        self._ledger.mark_retry(job, due, code, reason)

    def _fail(self, job: Download | Send, code: int | None, reason: str) -> None:
        log.error("failed for good", extra={"ledger_id": job.id, "code": code, "reason": reason})
        self._ledger.mark_failed(job, code, reason, self._clock())


def _survived(otherwise: str, step: Callable[[], T], **facts: object) -> T | None:
    """What the step returns. Whatever goes wrong is logged as `otherwise`, and None: no loop ends of it."""
    try:
        return step()
    except (DatabaseUnavailableError, OSError) as error:
        log.error(otherwise, extra={**facts, "reason": str(error)})
    except Exception:
        log.exception("unexpected fault; the loop goes on", extra=facts)
    return None


class _Held:
    """Work in hand; `lost` is set by the heartbeat when another process took the claim."""

    def __init__(self, job: Download | Send) -> None:
        self.job = job
        self.lost = False


def _reply(media_kind: str, media_id: str) -> ImageReply | VoiceReply | VideoReply:
    if media_kind == "image":
        return ImageReply(media_id)
    return VoiceReply(media_id) if media_kind == "voice" else VideoReply(media_id)
