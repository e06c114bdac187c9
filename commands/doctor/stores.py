"""The checks of the database, the media store, the disk and the queue.

Leaves nothing behind: no ledger row, no file. Must not know the platform or the callback.
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
from worker.downloads import MIN_FREE_BYTES

DATABASE_SECONDS = 2.0
IDLE_QUEUE_SECONDS = 10.0  # a living worker looks once a second
SLOW_QUEUE_SECONDS = 300.0


def check_database(parts: Parts) -> Outcome:
    kind = "SQLite" if parts.database.is_sqlite else "PostgreSQL"
    try:
        if parts.database.is_prepared(wait=DATABASE_SECONDS):
            # A write that changes nothing fails if the database is read-only.
            parts.tokens.release(f"doctor-{secrets.token_hex(8)}")
            return Outcome(
                True, f"{kind} can be written, its schema is up to date", f"{kind} 可写，表结构为最新"
            )
        if not parts.database.is_sqlite:
            parts.database.try_to_make_a_table(wait=DATABASE_SECONDS)
    except DatabaseUnavailableError as error:
        return Outcome(False, str(error), f"数据库不可用，请检查 DATABASE_URL（{error}）")
    path = _sqlite_path(parts.settings)
    if path is not None and (why := _not_writable(path.parent)):
        return Outcome(
            False,
            f"the database of DATABASE_URL cannot be made: {why[0]}",
            f"无法建立 DATABASE_URL 的数据库：{why[1]}",
        )
    return Outcome(
        True,
        f"{kind}: the schema will be created or updated at the next start",
        f"{kind}：下次启动时建立或更新表结构",
    )


def check_media(parts: Parts) -> Outcome:
    files, store = parts.files, parts.settings.media_store
    if not store.startswith("s3://") and not os.path.isdir(store):
        if why := _not_writable(Path(store)):
            return Outcome(
                False,
                f"nothing can be kept in MEDIA_STORE: {why[0]}",
                f"无法写入 MEDIA_STORE：{why[1]}",
            )
        return Outcome(
            True,
            f"{store} will be created when the first picture arrives",
            f"{store} 将在收到第一张图片时建立",
        )
    try:
        stored = files.put(f"doctor-{secrets.token_hex(8)}", [b"?"], extension=lambda head: "bin", attempt=1)
        files.delete(stored.key)
    except OSError as error:
        return Outcome(
            False,
            f"nothing can be kept in MEDIA_STORE: {error}",
            f"无法写入 MEDIA_STORE，请检查路径、权限或 S3 设置（{error}）",
        )
    return Outcome(True, f"{store} can be written", f"{store} 可写")


def _sqlite_path(settings: Settings) -> Path | None:
    scheme, _, path = settings.database_url.get_secret_value().partition(":///")
    return Path(path) if scheme == "sqlite" else None


def _not_writable(folder: Path) -> tuple[str, str] | None:
    """Why we cannot write in the folder, or in the nearest existing one above it, in English and Chinese; or None."""
    nearest = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
    if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
        return None
    if nearest.is_symlink() and not nearest.exists():
        there = os.readlink(nearest)
        return (
            f"{nearest} leads to {there}, which is not there: is its disk mounted?",
            f"{nearest} 指向的 {there} 不存在，请检查磁盘是否已挂载",
        )
    return f"{nearest} is not writable: correct its owner or mode", f"{nearest} 不可写，请修改其属主或权限"


def check_disk(settings: Settings) -> Outcome:
    # A file for S3 is in the temporary folder until it is complete.
    in_bucket = settings.media_store.startswith("s3://")
    places = {"MEDIA_STORE": Path(tempfile.gettempdir() if in_bucket else settings.media_store)}
    if (database := _sqlite_path(settings)) is not None:
        places["DATABASE_URL"] = database
    free = {name: _free_bytes(path) for name, path in places.items()}
    name = min(free, key=lambda each: free[each])
    megabytes, least = free[name] >> 20, MIN_FREE_BYTES >> 20
    if free[name] < MIN_FREE_BYTES:
        if name == "DATABASE_URL":
            effect, effect_zh = "before pushes get 503", "写满后将无法接收推送"
        elif in_bucket:
            effect, effect_zh = "before downloads fail", "写满后下载会失败"
        else:
            effect, effect_zh = "downloads wait for it", "下载已暂停"
        return Outcome(
            False,
            f"{megabytes} MB are free on the disk of {name}, less than {least}: free some space, {effect}",
            f"{name} 所在磁盘仅剩 {megabytes} MB，{effect_zh}，请清理空间",
        )
    return Outcome(True, f"{megabytes} MB free", f"剩余 {megabytes} MB")


def check_queue(parts: Parts, now: float) -> Outcome:
    try:
        status, backlog = parts.ledger.status(now), parts.queue.backlog(now)
    except DatabaseUnavailableError as error:
        return Outcome(False, str(error), f"数据库不可用，请检查 DATABASE_URL（{error}）")
    seconds = f"{status.oldest_pending_seconds:.0f}"
    english = f"{status.pending} downloads and {status.replies_pending} sends are pending, the oldest for {seconds} s"
    chinese = f"{status.pending} 个下载、{status.replies_pending} 个发送待处理，最早的已等待 {seconds} 秒"
    if backlog.waiting_seconds > IDLE_QUEUE_SECONDS and not backlog.held:
        external = parts.settings.worker == "external"
        what = (
            "start `flask worker` (WORKER=external)"
            if external
            else "start the bot (WORKER=embedded), or restart it"
        )
        was = (
            "请启动 flask worker（WORKER=external）" if external else "请启动或重启机器人（WORKER=embedded）"
        )
        return Outcome(
            False, f"{english}, and no worker takes them: {what}", f"{chinese}，没有 worker 在处理：{was}"
        )
    if backlog.waiting_seconds > SLOW_QUEUE_SECONDS:
        return Outcome(
            False,
            f"{english}: the workers do not keep up, start more `flask worker` processes",
            f"{chinese}：worker 来不及处理，请增加 flask worker 进程",
        )
    if not status.pending and not status.replies_pending:
        return Outcome(
            True,
            "nothing is pending, so this does not show whether a worker is running",
            "没有待处理的任务，因此看不出 worker 是否在运行",
        )
    return Outcome(True, f"{english}, {backlog.held} in hand", f"{chinese}，{backlog.held} 个正在处理")


def _free_bytes(path: Path) -> int:
    """Free bytes of the disk where `path` is or will be."""
    return shutil.disk_usage(next(each for each in (path, *path.parents) if os.path.isdir(each))).free
