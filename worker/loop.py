"""Works off the ledger, in threads of this process: claims what is due, does it, and keeps the claims alive.

Knows threads, leases and the order of a stop: nothing more is claimed, work in hand finishes within GRACE_SECONDS or is
given back. Does not know how a job is done, Flask, XML or SQL. A claim is a lease that a heartbeat renews; a worker
that lost it stops, and none of its marks changes anything.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import cores
from answers.steps import renew, repeat, survived
from storage.errors import DatabaseUnavailableError
from storage.queue import Download, Job, Queue
from worker.chores import Chores
from worker.downloads import Downloads
from worker.jobs import ClaimLostError, Failures, Held, StoppedError
from worker.sends import Sends

log = logging.getLogger(__name__)

IDLE_SECONDS = (0.05, 0.2)  # between looks at an empty ledger: the first, the longest
FAULT_SECONDS = 1.0  # until the next look at a ledger that could not be read
GATHER_SECONDS = 0.02  # for one thread more to come free, before a claim
GRACE_SECONDS = 20.0  # for work in hand when the process is asked to stop


class Worker:
    """One process's share of the work."""

    def __init__(
        self,
        queue: Queue,
        downloads: Downloads,
        sends: Sends,
        failures: Failures,
        chores: Chores,
        *,
        lease_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._queue, self._downloads, self._sends = queue, downloads, sends
        self._failures, self.chores = failures, chores
        self._lease, self._clock = lease_seconds, clock
        self._free = threading.Event()  # a thread came free
        self._stop = threading.Event()
        self._give_up = threading.Event()
        self._finished = threading.Event()
        self._held: dict[int, Held] = {}
        self._lock = threading.Lock()
        self._running: list[threading.Thread] = []

    def start(self, threads: int) -> None:
        """Works until `stop()`, on so many jobs at once; with 0 it only keeps the access_token fresh."""
        targets: list[Callable[[], None]] = [partial(self.chores.keep_token_fresh, self._stop)]
        if threads:
            targets += [
                partial(self._work_off, threads),
                self._keep_claims,
                partial(self.chores.keep_tidy, self._stop),
                partial(self.chores.keep_making_thumbnails, self._stop, lambda: bool(self._held)),
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
        """Claims one job and does it; False when nothing was due."""
        claimed = self._claim(1)
        for job in claimed:
            self._do(job)
        return bool(claimed)

    def _work_off(self, threads: int) -> None:
        idle = IDLE_SECONDS[0]
        cores.pin_thread()
        with ThreadPoolExecutor(threads, "work") as pool:
            while not self._stop.is_set():
                self._free.clear()
                room = threads - len(self._held)
                claimed = survived("the ledger cannot be read", partial(self._claim, room))
                if claimed is None:
                    self._stop.wait(FAULT_SECONDS)
                    continue
                for job in claimed:
                    pool.submit(self._do, job)
                if claimed:
                    idle = IDLE_SECONDS[0]
                else:
                    # All processes of a machine at the same moments: then they share work from its beginning.
                    self._free.wait(idle - time.monotonic() % idle)
                    idle = min(idle * 2, IDLE_SECONDS[1])
                # Of many busy threads one comes free after the other, and a claim for each costs a sixth of its work.
                while threads - len(self._held) < threads // 4 and self._free.wait(GATHER_SECONDS):
                    self._free.clear()
            deadline = time.monotonic() + GRACE_SECONDS
            while self._held and time.monotonic() < deadline:
                self._free.clear()
                self._free.wait(0.1)
            self._give_up.set()
        self._finished.set()

    def _claim(self, limit: int) -> list[Job]:
        if limit <= 0 or self._stop.is_set():
            return []
        now = self._clock()
        jobs: list[Job] = [*self._queue.claim_sends(now, self._lease, limit)]
        if limit > len(jobs):
            jobs += self._downloads.claim(now, self._lease, limit - len(jobs))
        with self._lock:
            for job in jobs:
                self._held[id(job)] = Held(job)
        return jobs

    def _do(self, job: Job) -> None:
        held = self._held[id(job)]
        try:
            if isinstance(job, Download):
                self._downloads.do(job, held, self._give_up.is_set)
            else:
                self._sends.do(job)
        except ClaimLostError:
            log.warning("another process took this work over", extra={"ledger_id": job.id})
        except StoppedError:
            survived("the ledger cannot be written", partial(self._queue.give_back, job), ledger_id=job.id)
        except DatabaseUnavailableError as error:
            # The lease runs out, and the first process that reaches the database goes on.
            log.error("the ledger cannot be written", extra={"ledger_id": job.id, "reason": str(error)})
        except Exception:
            log.exception("unexpected fault; the work is tried again", extra={"ledger_id": job.id})
            again = partial(
                self._failures.retry, job, None, "unexpected fault; see the log of this ledger id"
            )
            survived("the ledger cannot be written", again, ledger_id=job.id)
        finally:
            with self._lock:
                del self._held[id(job)]
            self._free.set()

    def _keep_claims(self) -> None:
        """Renews each held lease at a third of its length, for as long as work is in hand; as often it sees that
        nothing waits for a time that only a wrong clock has told."""

        def step() -> float:
            with self._lock:
                held = {one.job: one for one in self._held.values() if not one.lost}
            for job in renew(held, lambda job: self._queue.extend(job, self._clock(), self._lease)):
                held[job].lost = True
            self._bring_back()
            return self._lease / 3

        repeat(self._finished, step, "the ledger cannot be read", fault_seconds=self._lease / 3)

    def _bring_back(self) -> None:
        rows = self._queue.bring_back(self._clock())
        if rows:
            log.warning("the clock was set back: work that it had put off is due now", extra={"rows": rows})
