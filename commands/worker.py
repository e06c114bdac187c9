"""`flask worker`: downloads and sends what the ledger says is due, until it is asked to end."""

from __future__ import annotations

from collections.abc import Callable

import click

import cores
from commands.common import app_parts, fail
from config import usable_cores
from storage import writable
from worker import processes as worker_processes

WORKER_THREADS = 16  # downloads at once
# To share them, at most: two fill a line of 4 Gbit/s, and each one more costs 20 MB of memory.
WORKER_PROCESSES = 2


@click.command()
def worker() -> None:
    """Download what fans sent (下载素材), until Ctrl-C or SIGTERM."""
    cores.raise_file_limit()
    parts = app_parts()
    try:
        writable.check(parts.settings.database_url.get_secret_value(), parts.settings.media_store)
    except writable.NotWritableError as error:
        fail(error, status=2)
    processes = min(usable_cores(), WORKER_PROCESSES)

    def work(place: int, wait_for_stop: Callable[[], None]) -> None:
        first = place == 0
        parts.worker.start(WORKER_THREADS // processes, chores=first)
        parts.deferred.start(orphans=first)
        wait_for_stop()
        parts.stop()

    worker_processes.run(processes, work)
