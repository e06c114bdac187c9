"""`flask worker`: one process that downloads and sends what is due, until a signal ends it.

Knows signals and the number of threads. Must not know what the threads do.
"""

from __future__ import annotations

import signal
import socket

import click

import cores
from commands.common import app_accounts, fail
from storage import writable

WORKER_THREADS = 16  # jobs (downloads and sends) of each account at once


@click.command()
def worker() -> None:
    """Download what fans sent (下载素材), until Ctrl-C or SIGTERM.

    One process uses one core; to use more, start more of them (要用更多 CPU 核心就多启动几个).
    """
    cores.raise_file_limit()
    accounts = app_accounts()
    common = next(iter(accounts.of.values())).settings
    try:
        writable.check(common.database_url.get_secret_value(), common.media_store)
    except writable.NotWritableError as error:
        fail(error, status=2)
    # A lock or a queue would not do: a signal that another thread gets does not wake what waits for it here.
    told, tells = socket.socketpair()
    tells.setblocking(False)
    signal.set_wakeup_fd(tells.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    accounts.start(WORKER_THREADS)
    told.recv(1)
    accounts.stop()
    cores.end_process()
