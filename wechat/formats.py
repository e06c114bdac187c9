"""The formats of media files, found by their first bytes, and the content type of each.

It knows the formats that the platform sends and takes. It must not know where a file comes from or goes to. File names
and headers are not trusted.
"""

from __future__ import annotations

from collections.abc import Mapping

import filetype

#: How much of a file's beginning `extension` looks at.
HEAD_BYTES = 512

#: By the extension that a file gets here. Any other format is "bin".
CONTENT_TYPES: Mapping[str, str] = {
    "jpg": "image/jpeg",
    "png": "image/png",
    "gif": "image/gif",
    "amr": "audio/amr",
    "speex": "audio/x-speex",
    "mp3": "audio/mpeg",
    "mp4": "video/mp4",
}


def extension(head: bytes) -> str:
    """jpg, png, gif, amr, speex, mp3, mp4 or bin, by the first bytes of a file (HEAD_BYTES are enough)."""
    if head.startswith(b"#!AMR"):  # filetype does not know AMR-WB
        return "amr"
    if head.startswith(b"OggS"):
        return "speex" if b"Speex   " in head else "bin"
    if head[4:8] == b"ftyp":
        # An ftyp box with an unknown brand, or longer than HEAD_BYTES, is an mp4 too.
        return _BY_FILETYPE.get(filetype.guess_extension(head), "bin") if filetype.guess(head) else "mp4"
    found = _BY_FILETYPE.get(filetype.guess_extension(head), "bin")
    return "mp3" if found == "bin" and _is_mp3_frame(head) else found


_BY_FILETYPE: Mapping[str | None, str] = {
    "jpg": "jpg",
    "png": "png",
    "apng": "png",
    "gif": "gif",
    "mp3": "mp3",
    "mp4": "mp4",
    "m4v": "mp4",
}


def _is_mp3_frame(head: bytes) -> bool:
    """An MPEG audio frame of layer III, whatever its version; filetype knows three of the possible headers."""
    return (
        len(head) > 2
        and head[0] == 0xFF
        and head[1] & 0xE6 == 0xE2
        and head[1] & 0x18 != 0x08  # no such version
        and head[2] & 0xF0 != 0xF0  # no such bit rate
    )
