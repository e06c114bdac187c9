"""The folder into which all web processes of one server count; a scrape of any of them adds it up.

Knows where it is, who holds it, and how it goes. Each server has one of its own in the temporary directory. The first
process holds a lock on it, which its children share: so a later start finds what a killed server has left, and
systemd-tmpfiles leaves it alone while it is used (https://man7.org/linux/man-pages/man5/tmpfiles.d.5.html). Must not
know what is counted, nor import prometheus_client: that one looks for the folder when it is imported.
"""

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

NAME = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's own
_PREFIX = "wechat-counters-"  # not as before: a server of an earlier version holds no lock


class MetricsFolder:
    """Made at once, and named in the environment. One that is named there already is used, and never removed."""

    def __init__(self) -> None:
        self._own = NAME not in os.environ
        if self._own:
            _remove_left_ones()
            os.environ[NAME] = tempfile.mkdtemp(prefix=_PREFIX)
        self._path = Path(os.environ[NAME])
        self._lock: int | None = None
        self.make()

    def make(self) -> None:
        """Makes the folder again if it was cleaned away, or a process that starts could not count."""
        if self._own and (self._lock is None or not self._path.is_dir()):
            self._path.mkdir(mode=0o700, exist_ok=True)
            self._lock = _lock(self._path)

    def remove(self) -> None:
        if self._own:
            shutil.rmtree(self._path, ignore_errors=True)


@cache
def of_this_server() -> MetricsFolder:
    """The same one when gunicorn reads its configuration again."""
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


def _remove_left_ones() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another user's
            if folder.lstat().st_uid == os.geteuid() and (descriptor := _lock(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(descriptor)
