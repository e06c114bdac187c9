"""A ZIP of what fans sent: a table (CSV) and the files, made piece by piece while it is sent.

Knows ZIP and CSV. Must not know which entries are asked for, nor where their files are. Memory holds only one piece and
the list of names for the end of the ZIP.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from zoneinfo import ZoneInfo

from storage.files import FileStore
from storage.gallery import Shown
from web.gallery.entries import text_of
from web.gallery.times import local_time

PIECE_BYTES = 64 * 1024

COLUMNS = ("id", "received", "openid", "type", "text", "state", "code", "file", "bytes", "sha256")

# Some spreadsheets take the full-width signs for these too: https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


class _Unsent(io.RawIOBase):
    """A file for zipfile to write to. It keeps only what was written since the last `take()`."""

    def __init__(self) -> None:
        self._unsent = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._unsent += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self._unsent)
        self._unsent.clear()
        return taken


def export_zip(
    entries: Callable[[], Iterable[Shown]],
    files: FileStore,
    zone: ZoneInfo | None,
    accounts: Mapping[str, str],
) -> Iterator[bytes]:
    """The ZIP in pieces. `entries` is called twice; a file that was deleted meanwhile is left out. Times are of `zone`.
    `accounts` are the names by AppID if there are several: the table then has a column for them."""
    unsent = _Unsent()
    with zipfile.ZipFile(unsent, "w") as archive:
        with archive.open("messages.csv", "w", force_zip64=True) as table:
            table.write("\ufeff".encode())  # Excel reads a file without this mark in another encoding
            table.write(_line(("account", *COLUMNS) if accounts else COLUMNS))
            for entry in entries():
                name = [accounts[entry.appid]] if accounts else []
                table.write(_line([*name, *_row(entry, zone)]))
                if piece := unsent.take():
                    yield piece
        for entry in entries():
            if entry.media_key is None:
                continue
            try:
                file = files.open(entry.media_key)
            except FileNotFoundError:
                continue
            with file, archive.open(_name(entry, zone), "w", force_zip64=True) as member:
                while piece := file.read(PIECE_BYTES):
                    member.write(piece)
                    yield unsent.take()
    yield unsent.take()


def _name(entry: Shown, zone: ZoneInfo | None) -> str:
    day = local_time(entry.received_at, zone)[:10]
    return f"{day}/{entry.id}.{(entry.media_key or '').rpartition('.')[2]}"


def _row(entry: Shown, zone: ZoneInfo | None) -> list[object]:
    return [
        entry.id,
        local_time(entry.received_at, zone),
        entry.sender,
        entry.msg_type,
        text_of(entry) or "",
        entry.media_state or "",
        entry.media_code or "",
        _name(entry, zone) if entry.media_key else "",
        entry.media_size or "",
        entry.media_sha256 or "",
    ]


def _line(values: Iterable[object]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow(map(_harmless, values))
    return text.getvalue().encode("utf-8", "replace")


def _harmless(value: object) -> object:
    """Puts an apostrophe before a text that a spreadsheet would run as a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
