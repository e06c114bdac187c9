"""The media in a folder.

Knows how a file survives a crash: it is written to `.tmp/`, synced, moved to its key, and its folder is synced. Must
not know what the files are.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from storage.files import StoredFile, check_key, check_stem, copy
from storage.folders import make_folder, private, refuse_root, sync_folder, sync_parents


class DiskStore:
    """A folder. Unfinished files lie in `.tmp/` inside it, so that the move to their key stays on one file system."""

    def __init__(self, folder: Path) -> None:
        # Text: a download's five paths as Path objects would cost as much as its checks.
        self._folder = str(folder)
        self._unfinished = os.path.join(self._folder, ".tmp")
        self._lasting: set[str] = set()
        self._is_ours = False

    def put(
        self, stem: str, chunks: Iterable[bytes], *, extension: Callable[[bytes], str], attempt: int
    ) -> StoredFile:
        check_stem(stem)
        try:
            stored = self._write(stem, chunks, extension, attempt)
        except BaseException:
            self.discard(stem, attempt)
            raise
        # Earlier attempts may have been killed half-way. So may the first: a power cut can make the ledger forget it.
        self.discard(stem, attempt)
        return stored

    def _write(
        self, stem: str, chunks: Iterable[bytes], extension: Callable[[bytes], str], attempt: int
    ) -> StoredFile:
        # The random part: two workers may have the same attempt, if one has lost its claim.
        name = f"{_flat(stem)}.{attempt}.{secrets.token_hex(4)}"
        unfinished = os.path.join(self._unfinished, name)
        with self._begun(unfinished) as file:
            head, size, digest = copy(chunks, file)
            file.flush()
            os.fsync(file.fileno())
        key = f"{stem}.{extension(head)}"
        path = self._path(key)
        folder = os.path.dirname(path)
        try:
            _move(unfinished, path)
        except FileNotFoundError:  # a new day
            make_folder(Path(folder))
            _move(unfinished, path)
        sync_folder(folder)
        if folder not in self._lasting:  # once for each
            sync_parents(folder)
            self._lasting.add(folder)
        return StoredFile(key, size, digest)

    def _begun(self, unfinished: str) -> BinaryIO:
        if not self._is_ours:
            refuse_root(Path(self._folder))
            self._is_ours = True
        try:
            return open(unfinished, "xb", opener=private)
        except FileNotFoundError:  # the first file of all
            make_folder(Path(self._unfinished))
            return open(unfinished, "xb", opener=private)

    def open(self, key: str) -> BinaryIO:
        return open(self._path(key), "rb")

    def size(self, key: str) -> int | None:
        try:
            return os.stat(self._path(key)).st_size
        except FileNotFoundError:
            return None

    def delete(self, key: str) -> None:
        path = self._path(key)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
            sync_folder(os.path.dirname(path))

    def delete_all(self, stems: Sequence[str]) -> int:
        by_folder: dict[str, set[str]] = {}
        for stem in stems:
            check_stem(stem)
            folder, name = os.path.split(os.path.join(self._folder, stem))
            by_folder.setdefault(folder, set()).add(name)
        faults: list[OSError] = []
        _delete_from(self._unfinished, set(map(_flat, stems)), faults)
        deleted = sum(_delete_from(folder, names, faults) for folder, names in by_folder.items())
        if faults:
            raise faults[0]
        return deleted

    def discard(self, stem: str, attempt: int) -> None:
        check_stem(stem)
        beginning = f"{_flat(stem)}."
        with contextlib.suppress(FileNotFoundError):  # nothing was ever begun
            for name in os.listdir(self._unfinished):
                if name.startswith(beginning) and int(name.split(".")[1]) <= attempt:
                    Path(self._unfinished, name).unlink(missing_ok=True)

    def free_bytes(self) -> int | None:
        make_folder(Path(self._folder))
        return shutil.disk_usage(self._folder).free

    def check(self) -> None:
        refuse_root(Path(self._folder))
        make_folder(Path(self._unfinished))
        with tempfile.TemporaryFile(dir=self._unfinished) as file:
            file.write(b"?")

    def _path(self, key: str) -> str:
        check_key(key)
        return os.path.join(self._folder, key)


def _flat(stem: str) -> str:
    return stem.replace("/", "-")


def _move(unfinished: str, path: str) -> None:
    try:
        os.replace(unfinished, path)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        folder, ours = os.path.dirname(path), os.path.dirname(unfinished)
        reason = f"{folder} is on another disk than {ours}: put all of MEDIA_STORE on one disk"
        raise OSError(errno.EXDEV, reason) from None


def _delete_from(folder: str, stems: set[str], faults: list[OSError]) -> int:
    """Delete the files of these names in one folder, whatever their extension; returns how many there were. An error is
    added to `faults`, and holds up no other file: one day's folder may be read-only."""
    names: list[str] = []
    with _noted(faults):
        names = [name for name in os.listdir(folder) if name.partition(".")[0] in stems]
        for name in names:
            with _noted(faults):
                os.unlink(os.path.join(folder, name))
        # Even if nothing was found: the process that deleted it may have died before its sync.
        sync_folder(folder)
    return len(names)


@contextlib.contextmanager
def _noted(faults: list[OSError]) -> Iterator[None]:
    """Adds an error to `faults`, unless it is that the file or folder is not there."""
    try:
        yield
    except FileNotFoundError:
        pass
    except OSError as error:
        faults.append(error)
