"""Files and folders that only our user may open, and folders that survive a power cut.

A file's name lives in its folder, and a folder's name in the folder above: each is on the disk only after an fsync of
the folder that holds it. Knows the file system. Must not know what lies in the folders.
"""

from __future__ import annotations

import errno
import os
import pwd
from pathlib import Path


def make_folder(folder: Path) -> None:
    """Make the folder, and those above it that are missing, each open to its owner alone. Raises OSError."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError:
        what = "is not a folder"
        if folder.is_symlink():
            what = f"leads to {os.readlink(folder)}, which is not there: is its disk mounted?"
        raise NotADirectoryError(errno.ENOTDIR, f"{folder.absolute()} {what}") from None


def private(path: str, flags: int) -> int:
    """An `opener` for open(): a file that it makes is its owner's alone."""
    return os.open(path, flags, 0o600)


def sync_folder(folder: str | Path) -> None:
    """Returns when the names in this folder would survive a power cut. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_parents(folder: str | Path) -> None:
    """Sync every folder above this one, as far up as allowed: their maker may have died before its own sync."""
    for parent in Path(folder).absolute().parents:
        try:
            sync_folder(parent)
        except OSError:  # no permission, or read-only: then no process of ours made what is in it
            return


def belongs_to_another(path: Path) -> str | None:
    """What to do when this file or folder belongs to another user than this process; else None."""
    try:
        owner = path.stat().st_uid
    except OSError:
        return None
    if os.geteuid() in (0, owner):
        return None
    mine, folder = user_name(os.geteuid()), path.absolute() if path.is_dir() else path.absolute().parent
    return (
        f"it belongs to {user_name(owner)}, and this process runs as {mine}: "
        f"{instead_of_chown(owner)}chown -R {mine} {folder}"
    )


def instead_of_chown(owner: int) -> str:
    """To be read before a chown: it would take the files of a user from the bot that runs as this user. Empty for root,
    and for a user without a name here, as in a container."""
    user = user_name(owner)
    if owner == 0 or user == str(owner):
        return ""
    return f"run the same as {user}, with runuser -u {user} -- ...; or, if no bot runs as {user}, "


def refuse_root(folder: Path) -> None:
    """Raise PermissionError if this is root and the folder another user's, who could not open what root makes."""
    try:
        owner = folder.stat().st_uid
    except OSError:
        return
    if os.geteuid() == 0 and owner != 0:
        user = user_name(owner)
        raise PermissionError(
            errno.EPERM,
            f"{folder.absolute()} belongs to {user}, who could not open what root writes there: run the same as "
            f"{user}, with runuser -u {user} -- flask ...",
        )


def user_name(uid: int) -> str:
    """For chown: the user's name, or the number of a user without a name here, as in a container."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
