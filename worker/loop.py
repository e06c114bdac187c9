"""Works off the ledger, in threads of this process: claims what is due, does it, and keeps the claims alive.

Knows threads, leases and the order of a stop: nothing more is claimed, work in hand finishes within GRACE_SECONDS or is
given back. Does not know how a job is done, Flask, XML or SQL. A claim is a lease that a heartbeat renews; a worker
that lost it stops, and none of its marks changes anything. Each account has threads of its own, so that one
whose jobs hang or pile up does not hold up the others.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import cores
import logs
from answers.steps import rarer, renew, repeat, survived
from storage.errors import DatabaseUnavailableError
from storage.queue import Download, Job, Queue
from worker.chores import Chores, keep_making_thumbnails, keep_tidy
from worker.downloads import Downloads
from worker.jobs import ClaimLostError, Failures, Held, StoppedError
from worker.sends import Sends

log = logging.getLogger(__name__)

IDLE_SECONDS = (0.05, 0.2)  # between looks at an empty ledger: the first, the longest
FAULT_SECONDS = 1.0  # until the next look at a ledger that could not be read
GATHER_SECONDS = 0.02  # for one thread more to come free, before a claim
GRACE_SECONDS = 20.0  # for work in hand when the process is asked to stop


class AccountWork:
    """What there is to do for one account, and what of it this process has in hand."""

    def __init__(
        self, queue: Queue, downloads: Downloads, sends: Sends, failures: Failures, chores: Chores
    ) -> None:
        self.queue, self.downloads, self.sends, self.failures = queue, downloads, sends, failures
        self.chores = chores
        self.held: dict[int, Held] = {}
        self.idle, self.look_at = IDLE_SECONDS[0], 0.0  # the next pause, and when it is over (monotonic)

    def claim(self, now: float, lease_seconds: float, limit: int) -> list[Job]:
        """Up to `limit` jobs that are due; sends come first, since a fan waits for them."""
        jobs: list[Job] = [*self.queue.claim_sends(now, lease_seconds, limit)]
        if limit > len(jobs):
            jobs += self.downloads.claim(now, lease_seconds, limit - len(jobs))
        return jobs


class Worker:
    """One process's share of the work."""

    def __init__(
        self,
        accounts: Sequence[AccountWork],
        *,
        lease_seconds: float,
        clock: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        self._accounts, self._chores = accounts, [work.chores for work in accounts]
        self._lease, self._clock, self._jitter = lease_seconds, clock, jitter
        self._free = threading.Event()  # a thread came free
        self._stop = threading.Event()
        self._give_up = threading.Event()
        self._finished = threading.Event()
        self._lock = threading.Lock()
        self._running: list[threading.Thread] = []

    def start(self, threads: int) -> None:
        """Works until `stop()`, on so many jobs of each account at once; with 0 it only keeps access_tokens fresh."""
        targets: list[Callable[[], None]] = [
            partial(chores.keep_token_fresh, self._stop) for chores in self._chores
        ]
        if threads:
            targets += [
                partial(self._work_off, threads),
                self._keep_claims,
                partial(keep_tidy, self._chores, self._stop, self._jitter),
                partial(keep_making_thumbnails, self._chores, self._stop, self._is_busy),
            ]
        self._running = [threading.Thread(target=target, daemon=True) for target in targets]
        for thread in self._running:
            thread.start()

    def stop(self) -> None:
        """Returns when the work in hand is finished or given back."""
        self.ask_to_stop()
        for thread in self._running:
            thread.join()

    def ask_to_stop(self) -> None:
        """As `stop()`, but returns at once."""
        self._stop.set()
        self._free.set()

    def run_once(self) -> bool:
        """Claims one job of each account and does it; False when nothing was due."""
        claimed = [(work, job) for work in self._accounts for job in self._claim(work, 1)]
        for work, job in claimed:
            self._do(work, job)
        return bool(claimed)

    def tidy_once(self) -> None:
        """Deletes what is over."""
        for chores in self._chores:
            chores.tidy_once()

    def _is_busy(self) -> bool:
        return any(work.held for work in self._accounts)

    def _work_off(self, threads: int) -> None:
        cores.pin_thread()
        with ThreadPoolExecutor(threads * len(self._accounts), "work") as pool:
            while not self._stop.is_set():
                self._free.clear()
                for work in self._accounts:
                    if work.look_at <= time.monotonic():
                        self._look(work, threads, pool)
                self._free.wait(max(min(work.look_at for work in self._accounts) - time.monotonic(), 0.0))
                # Of many busy threads one comes free after the other, and a claim for each costs a sixth of its work.
                while self._most_held() > threads - threads // 4 and self._free.wait(GATHER_SECONDS):
                    self._free.clear()
            deadline = time.monotonic() + GRACE_SECONDS
            while self._is_busy() and time.monotonic() < deadline:
                self._free.clear()
                self._free.wait(0.1)
            self._give_up.set()
        self._finished.set()

    def _look(self, work: AccountWork, threads: int, pool: ThreadPoolExecutor) -> None:
        # Set before the claim: a job that ends meanwhile asks for another look at once.
        # All processes of a machine look at the same moments: then they share work from its beginning.
        now = time.monotonic()
        work.look_at = now + work.idle - now % work.idle
        jobs = survived("the ledger cannot be read", partial(self._claim, work, threads))
        if jobs is None:
            work.look_at = now + FAULT_SECONDS
        elif jobs:
            work.idle, work.look_at = IDLE_SECONDS[0], 0.0
        else:
            work.idle = min(work.idle * 2, rarer(IDLE_SECONDS[1], len(self._accounts)))
        for job in jobs or ():
            pool.submit(self._do, work, job)

    def _most_held(self) -> int:
        return max(len(work.held) for work in self._accounts)

    def _claim(self, work: AccountWork, threads: int) -> list[Job]:
        room = threads - len(work.held)
        if room <= 0 or self._stop.is_set():
            return []
        logs.ACCOUNT.set(work.chores.account)
        jobs = work.claim(self._clock(), self._lease, room)
        with self._lock:
            work.held.update({id(job): Held(job) for job in jobs})
        return jobs

    def _do(self, work: AccountWork, job: Job) -> None:
        logs.ACCOUNT.set(work.chores.account)
        held = work.held[id(job)]
        try:
            if isinstance(job, Download):
                work.downloads.do(job, held, self._give_up.is_set)
            else:
                work.sends.do(job)
        except ClaimLostError:
            log.warning("another process took this work over", extra={"ledger_id": job.id})
        except StoppedError:
            survived("the ledger cannot be written", partial(work.queue.give_back, job), ledger_id=job.id)
        except DatabaseUnavailableError as error:
            # The lease runs out, and the first process that reaches the database goes on.
            log.error("the ledger cannot be written", extra={"ledger_id": job.id, "reason": str(error)})
        except Exception:
            log.exception("unexpected fault; the work is tried again", extra={"ledger_id": job.id})
            again = partial(work.failures.retry, job, None, "unexpected fault; see the log of this ledger id")
            survived("the ledger cannot be written", again, ledger_id=job.id)
        finally:
            with self._lock:
                del work.held[id(job)]
            work.look_at = 0.0
            self._free.set()

    def _keep_claims(self) -> None:
        """Renews each held lease at a third of its length, for as long as work is in hand; as often it sees that
        nothing waits for a time that only a wrong clock has told."""

        def step() -> float:
            for work in self._accounts:
                logs.ACCOUNT.set(work.chores.account)
                self._renew(work)
            for work in self._accounts:
                logs.ACCOUNT.set(work.chores.account)
                if rows := work.queue.bring_back(self._clock()):
                    log.warning(
                        "the clock was set back: work that it had put off is due now", extra={"rows": rows}
                    )
            return self._lease / 3

        repeat(self._finished, step, "the ledger cannot be read", fault_seconds=self._lease / 3)

    def _renew(self, work: AccountWork) -> None:
        with self._lock:
            held = {one.job: one for one in work.held.values() if not one.lost}
        for job in renew(held, lambda job: work.queue.extend(job, self._clock(), self._lease)):
            held[job].lost = True
