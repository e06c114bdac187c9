"""Checks at the start that the process may write to its folders. If not, the error names the command that helps.

Knows owners of folders, and where temporary files go. A store that is merely unreachable stops no start, since it
comes back by itself; a folder of another user does not. Must not know what is written.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from storage.folders import instead_of_chown, refuse_root, user_name


class NotWritableError(Exception):
    """Says what cannot be written, and what to do."""


def check(database_url: str, media_store: str) -> None:
    """For DATABASE_URL and MEDIA_STORE as the settings hold them. Raises NotWritableError."""
    for setting, path in _places(database_url, media_store):
        if fault := fault_of(path):
            raise NotWritableError(f"{setting}: {fault}")
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        raise NotWritableError(
            "no temporary file can be made: mount a writable folder at /tmp (in a container: --tmpfs /tmp), "
            "or name one in TMPDIR. (无法创建临时文件：请挂载可写的 /tmp，或用 TMPDIR 指定)",
        ) from None


def _places(database_url: str, media_store: str) -> Iterator[tuple[str, Path]]:
    if database_url.startswith("sqlite:///"):
        file = Path(database_url.removeprefix("sqlite:///"))
        yield "DATABASE_URL", file.parent
        if os.path.exists(file):  # Path.exists() raises where this user may not look
            yield "DATABASE_URL", file
    if not media_store.startswith("s3://"):
        yield "MEDIA_STORE", Path(media_store)


def fault_of(path: Path) -> str | None:
    """What to do if this, or the nearest existing folder above it, belongs to another user and is not writable; or if
    this is root, and the folder another user's."""
    path = there = path.absolute()
    if os.path.isdir(path):
        try:
            refuse_root(path)
        except PermissionError as error:
            return f"{error.strerror} (目录属于其他用户：请以该用户的身份运行)"
    while not os.path.exists(there):  # or this user may not look
        there = there.parent
    need = os.W_OK | os.X_OK if there.is_dir() else os.R_OK | os.W_OK
    owner, me = there.stat().st_uid, os.geteuid()
    if owner == me or os.access(there, need, effective_ids=True):
        return None
    mine = user_name(me)
    if there == path:
        command = f"{instead_of_chown(owner)}chown -R {mine} {path if path.is_dir() else path.parent}"
    elif os.access(there, os.X_OK, effective_ids=True):
        command = f"install -d -m 700 -o {mine} {path}"
    else:  # what is below cannot be seen
        command = f"chmod o+x {there}"
    return (
        f"{there} belongs to {user_name(owner)}, and this process runs as {mine}, so that it cannot write there. "
        f"As root: {command} (in a container: on the host, on the folder or volume that is mounted there). "
        "(目录属于其他用户，无法写入：请以 root 执行上述命令；容器则在宿主机上，对挂载的目录或卷执行)"
    )
