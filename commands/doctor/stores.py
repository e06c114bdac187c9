"""What the bot stands on, for `flask doctor`: the database, the media store, the disk and the queue.

Leaves nothing behind: no ledger row, no file. Does not know the platform or the callback.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from pathlib import Path

from commands.doctor.findings import Outcome
from config import Settings
from parts import Parts
from storage.errors import DatabaseUnavailableError
from worker.loop import MIN_FREE_BYTES

DATABASE_SECONDS = 2.0
IDLE_QUEUE_SECONDS = 10.0  # a living worker looks once a second
SLOW_QUEUE_SECONDS = 300.0


def check_database(parts: Parts) -> Outcome:
    try:
        parts.database.prepare(wait=DATABASE_SECONDS)
        # A write that changes nothing: a read-only database says so.
        parts.tokens.release(f"doctor-{secrets.token_hex(8)}")
    except DatabaseUnavailableError as error:
        return Outcome(False, str(error), "数据库不可用，请检查 DATABASE_URL")
    kind = "SQLite" if parts.database.is_sqlite else "PostgreSQL"
    return Outcome(True, f"{kind} can be written, its schema is up to date", "数据库可写，结构为最新")


def check_media(parts: Parts) -> Outcome:
    files = parts.files
    try:
        stored = files.put(f"doctor-{secrets.token_hex(8)}", [b"?"], extension=lambda head: "bin", attempt=1)
        files.delete(stored.key)
    except OSError as error:
        return Outcome(
            False,
            f"nothing can be kept in MEDIA_STORE: {error}",
            "无法写入 MEDIA_STORE，请检查路径、权限或 S3 配置",
        )
    return Outcome(True, f"{parts.settings.media_store} can be written", "媒体存储可写")


def check_disk(settings: Settings) -> Outcome:
    # What an S3 store is given lies in the temporary folder until it is whole.
    in_bucket = settings.media_store.startswith("s3://")
    places = {"MEDIA_STORE": Path(tempfile.gettempdir() if in_bucket else settings.media_store)}
    scheme, _, path = settings.database_url.get_secret_value().partition(":///")
    if scheme == "sqlite":
        places["DATABASE_URL"] = Path(path)
    free = {name: _free_bytes(path) for name, path in places.items()}
    name = min(free, key=lambda each: free[each])
    megabytes, least = free[name] >> 20, MIN_FREE_BYTES >> 20
    if free[name] < MIN_FREE_BYTES:
        return Outcome(
            False,
            f"{megabytes} MB are free on the disk of {name}, less than {least}: make room, downloads pause",
            f"{name} 所在磁盘仅剩 {megabytes} MB，下载已暂停，请清理空间",
        )
    return Outcome(True, f"{megabytes} MB free", "磁盘空间充足")


def check_queue(parts: Parts, now: float) -> Outcome:
    try:
        status, backlog = parts.ledger.status(now), parts.ledger.backlog(now)
    except DatabaseUnavailableError as error:
        return Outcome(False, str(error), "数据库不可用，请检查 DATABASE_URL")
    queue = (
        f"{status.pending} downloads and {status.replies_pending} sends are pending, the oldest "
        f"for {status.oldest_pending_seconds:.0f} s"
    )
    if backlog.waiting_seconds > IDLE_QUEUE_SECONDS and not backlog.held:
        start = (
            "start `flask worker` (WORKER=external)"
            if parts.settings.worker == "external"
            else "start the bot (WORKER=embedded), or restart it"
        )
        return Outcome(False, f"{queue}, and no worker takes them: {start}", "没有 worker 在处理队列，请启动")
    if backlog.waiting_seconds > SLOW_QUEUE_SECONDS:
        return Outcome(
            False,
            f"{queue}: the workers do not keep up, start more `flask worker` processes",
            "队列积压，请增加 worker 进程",
        )
    if not status.pending and not status.replies_pending:
        return Outcome(True, "nothing is pending, so a worker shows no sign of life", "队列为空")
    return Outcome(True, f"{queue}, {backlog.held} in hand", "队列处理中")


def _free_bytes(path: Path) -> int:
    """Of the disk where `path` is or will be."""
    return shutil.disk_usage(next(each for each in (path, *path.parents) if os.path.isdir(each))).free
