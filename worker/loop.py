"""Runs the jobs in the ledger in threads of this process: claims what is due, does it, and renews the claims.

Knows threads, leases and the order of a stop: nothing more is claimed, and running jobs finish within GRACE_SECONDS or
are given back; what does neither is left to its lease. Must not know how a job is done, Flask, XML or SQL. A claim is a
lease that a heartbeat renews; a worker that lost it stops, and none of its marks changes anything. Each account has
its own threads, so that an account with slow or many jobs does not delay the others.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import cores
import logs
from answers.steps import GRACE_SECONDS, let_end, rarer, renew, repeat, try_step
from storage.errors import DatabaseUnavailableError
from storage.queue import Download, Job, Queue
from worker.chores import Chores, keep_making_thumbnails, keep_tidy
from worker.downloads import Downloads
from worker.jobs import ClaimLostError, Failures, Held, StoppedError
from worker.sends import Sends

log = logging.getLogger(__name__)

IDLE_SECONDS = (0.05, 0.2)  # between checks of an empty ledger: the first pause, the longest pause
FAULT_SECONDS = 1.0  # until the next claim after an error
GATHER_SECONDS = 0.02  # before a claim, for one more thread to become free
GIVE_BACK_SECONDS = 4.0  # for jobs that give up after GRACE_SECONDS: gunicorn kills 25 s after its signal

# Claims due jobs: at this time (unix seconds), for so many seconds, at most so many.
Claim: TypeAlias = Callable[[float, float, int], Sequence[Job]]


class AccountWork:
    """The jobs of one account, and those that this process is doing."""

    def __init__(
        self, queue: Queue, downloads: Downloads, sends: Sends, failures: Failures, chores: Chores
    ) -> None:
        self.queue, self.downloads, self.sends, self.failures = queue, downloads, sends, failures
        self.chores = chores
        # Sends come first, since a fan waits for them.
        self.claims: Sequence[Claim] = (queue.claim_sends, downloads.claim)
        self.held: dict[int, Held] = {}
        self.idle, self.next_look = IDLE_SECONDS[0], 0.0  # the next pause, and when it is over (monotonic)


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
        self._free = threading.Event()  # a thread became free
        self._stop = threading.Event()
        self._give_up = threading.Event()
        self._finished = threading.Event()
        self._asked_at = 0.0  # monotonic, set by the stop
        self._lock = threading.Lock()
        self._running: list[threading.Thread] = []

    def start(self, threads: int) -> None:
        """Works until `stop()`, on `threads` jobs of each account at once. With 0 it only keeps access_tokens fresh."""
        targets: list[Callable[[], None]] = [
            partial(chores.keep_token_fresh, self._stop) for chores in self._chores
        ]
        if threads:
            targets += [
                partial(self._run_jobs, threads),
                self._keep_claims,
                partial(keep_tidy, self._chores, self._stop, self._jitter),
                partial(keep_making_thumbnails, self._chores, self._stop, self._is_busy),
            ]
        self._running = [threading.Thread(target=target, daemon=True) for target in targets]
        for thread in self._running:
            thread.start()

    def stop(self) -> None:
        """Stops. Returns when running jobs are finished or given back. One that does neither in time (an upload that
        takes minutes) is left to its lease, as if the process had been killed: end the process then. A thread that
        only looks for work, and waits for the database, is left too."""
        self.ask_to_stop()
        self._wait_for_jobs(self._asked_at + GRACE_SECONDS + GIVE_BACK_SECONDS)
        let_end(self._running, self._asked_at)

    def ask_to_stop(self) -> None:
        """As `stop()`, but returns at once."""
        if not self._stop.is_set():
            self._asked_at = time.monotonic()
        self._stop.set()
        self._free.set()

    def run_once(self) -> bool:
        """Claims one job of each account and does it. False if nothing was due."""
        done = [self._do_one(work) for work in self._accounts]
        return any(done)

    def _do_one(self, work: AccountWork) -> bool:
        for claim in work.claims:
            for job in self._claim(work, claim, 1):
                self._do(work, job)
                return True
        return False

    def tidy_once(self) -> None:
        """Deletes what has expired."""
        for chores in self._chores:
            chores.tidy_once()

    def _is_busy(self) -> bool:
        return any(work.held for work in self._accounts)

    def _run_jobs(self, threads: int) -> None:
        cores.pin_thread()
        try:
            while not self._stop.is_set():
                self._free.clear()
                for work in self._accounts:
                    if work.next_look <= time.monotonic():
                        self._look(work, threads)
                self._free.wait(max(min(work.next_look for work in self._accounts) - time.monotonic(), 0.0))
                # Busy threads become free one by one. A claim for each costs a sixth of its time: claim for several.
                while self._most_held() > threads - threads // 4 and self._free.wait(GATHER_SECONDS):
                    self._free.clear()
            self._wait_for_jobs(self._asked_at + GRACE_SECONDS)
            self._give_up.set()
            self._wait_for_jobs(self._asked_at + GRACE_SECONDS + GIVE_BACK_SECONDS)
        finally:
            # However this ends: claims that are renewed although nobody does the work would be held for ever.
            self._finished.set()

    def _look(self, work: AccountWork, threads: int) -> None:
        # Set before the claim, so that a job that ends meanwhile can ask for another look at once.
        # All processes of a machine look at the same moments, so that they share new work from the start.
        now = time.monotonic()
        work.next_look = now + work.idle - now % work.idle
        found = False
        for claim in work.claims:
            jobs = try_step("the ledger cannot be read", partial(self._claim, work, claim, threads))
            # What is claimed is begun before anything else can fail.
            if jobs is None or not self._begin(work, jobs):
                work.next_look = now + FAULT_SECONDS
                return
            found = found or bool(jobs)
        if found:
            work.idle, work.next_look = IDLE_SECONDS[0], 0.0
        else:
            work.idle = min(work.idle * 2, rarer(IDLE_SECONDS[1], len(self._accounts)))

    def _begin(self, work: AccountWork, jobs: Sequence[Job]) -> bool:
        """Does each job in a thread of its own. False if it cannot: the others are given back."""
        left = list(jobs)
        while left and not self._stop.is_set():  # the stop may have come during the claim
            try:
                threading.Thread(target=self._do, args=(work, left[0]), name="work", daemon=True).start()
            except (RuntimeError, MemoryError) as error:  # the system gives no more threads
                log.error("no thread can be started: work is given back", extra={"reason": str(error)})
                break
            del left[0]
        for job in left:
            self._give_back(work, job)
            self._let_go(work, job)
        return not left

    def _wait_for_jobs(self, until: float) -> None:
        while self._is_busy() and time.monotonic() < until:
            self._free.clear()
            self._free.wait(0.1)

    def _most_held(self) -> int:
        return max(len(work.held) for work in self._accounts)

    def _claim(self, work: AccountWork, claim: Claim, threads: int) -> Sequence[Job]:
        room = threads - len(work.held)
        if room <= 0 or self._stop.is_set():
            return []
        logs.ACCOUNT.set(work.chores.account)
        jobs = claim(self._clock(), self._lease, room)
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
            self._give_back(work, job)
        except DatabaseUnavailableError as error:
            # The lease runs out, and the first process that reaches the database takes the job over.
            log.error("the ledger cannot be written", extra={"ledger_id": job.id, "reason": str(error)})
        except Exception:
            log.exception("unexpected fault; the work is tried again", extra={"ledger_id": job.id})
            again = partial(work.failures.retry, job, None, "unexpected fault; see the log of this ledger id")
            try_step("the ledger cannot be written", again, ledger_id=job.id)
        finally:
            self._let_go(work, job)
            work.next_look = 0.0
            self._free.set()

    def _give_back(self, work: AccountWork, job: Job) -> None:
        try_step("the ledger cannot be written", partial(work.queue.give_back, job), ledger_id=job.id)

    def _let_go(self, work: AccountWork, job: Job) -> None:
        with self._lock:
            del work.held[id(job)]

    def _keep_claims(self) -> None:
        """Renews each lease three times in its length, while jobs run. Also makes work due again that a wrong clock had
        put off into the far future."""

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
