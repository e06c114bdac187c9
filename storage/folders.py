"""Folders that are ours alone, and that outlast a power cut.

A file's name lives in its folder, and a folder's name in the folder above: each is on the disk only after an fsync of
the folder that holds it. Knows the file system. Must not know what lies in the folders.
"""

from __future__ import annotations

import os
from pathlib import Path


def make_folder(folder: Path) -> None:
    """Make the folder, and those above it that are missing, each open to its owner alone. Raises OSError."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)


def sync_folder(folder: str | Path) -> None:
    """Returns when the names in this folder would survive a power cut. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_parents(folder: str | Path) -> None:
    """Sync every folder above this one, as far up as this process may: who made them may have died before that."""
    for parent in Path(folder).absolute().parents:
        try:
            sync_folder(parent)
        except OSError:  # closed to us, or on a medium that is only read: none of us made what is in it
            return
