"""The folder into which all web processes of one server count. A scrape of any of them adds the counts up.

Knows where the folder is, how it is locked, and when it is deleted. It is in the temporary directory. The first process
locks it and its children share the lock. So the next start can delete the folders of killed servers, and
systemd-tmpfiles leaves alone those in use (https://man7.org/linux/man-pages/man5/tmpfiles.d.5.html).
Must not know what is counted, or import prometheus_client, which looks for the folder when it is imported.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

NAME = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client reads it
_PREFIX = "wechat-counters-"  # earlier versions used another prefix, and no lock


class MetricsFolder:
    """Makes the folder and names it in the environment. A folder named there already is used, and never deleted."""

    def __init__(self) -> None:
        self._own = NAME not in os.environ
        if self._own:
            _remove_abandoned()
            os.environ[NAME] = tempfile.mkdtemp(prefix=_PREFIX)
        self._path = Path(os.environ[NAME])
        self._lock: int | None = None
        self.make()

    def make(self) -> None:
        """Makes the folder again if something deleted it: a process that starts needs it."""
        if self._own and (self._lock is None or not self._path.is_dir()):
            self._path.mkdir(mode=0o700, exist_ok=True)
            self._lock = _lock(self._path)

    def remove(self) -> None:
        if self._own:
            shutil.rmtree(self._path, ignore_errors=True)


@cache
def of_this_server() -> MetricsFolder:
    """The same folder also when gunicorn reads its configuration again."""
    return MetricsFolder()


def _lock(folder: Path) -> int | None:
    """The lock's file descriptor, None when another process holds it. It is held until the last process closes it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_abandoned() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # it belongs to another user
            if folder.lstat().st_uid == os.geteuid() and (descriptor := _lock(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(descriptor)
