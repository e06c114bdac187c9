"""Temporary media (临时素材): kept for three days, and which uploads are accepted.

Knows types, sizes, formats by content, and lifetimes. It must not know HTTP or fans. The bytes are in
files, so that many large pictures need no memory.
https://developers.weixin.qq.com/doc/service/api/material/temporary/api_uploadtempmedia
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import PlatformError

LIFE = 3 * 24 * 3600
"""Seconds that temporary media live."""
VOICE_SECONDS = 60
UPLOAD_BYTES = 20 * 1024 * 1024
"""Larger files of any type are refused with 45001."""

# type -> most bytes, the code for more, formats
_LIMITS = {
    "image": (10 * 1024 * 1024, 40009, frozenset({"jpg", "png", "gif"})),
    "voice": (2 * 1024 * 1024, 40010, frozenset({"amr", "mp3"})),
    "video": (10 * 1024 * 1024, 40011, frozenset({"mp4"})),
    "thumb": (64 * 1024, 40012, frozenset({"jpg"})),
}

CONTENT_TYPES = {
    "jpg": "image/jpeg",
    "png": "image/png",
    "gif": "image/gif",
    "amr": "audio/amr",
    "mp3": "audio/mpeg",
    "speex": "voice/speex",
    "mp4": "video/mpeg4",
    "bin": "application/octet-stream",
}
"""Extension -> content type in the platform's API."""
SHOWN_TYPES = {name: CONTENT_TYPES[name] for name in ("jpg", "png", "gif", "mp3")} | {"mp4": "video/mp4"}
"""Extension -> content type for a browser, if it can show the format. All others are downloads."""

THUMBNAIL = base64.b64decode(
    "/9j/4AAQSkZJRgABAQEASABIAAD/2wBDAAMCAgICAgMCAgIDAwMDBAYEBAQEBAgGBgUGCQgKCgkICQkKDA8MCgsOCwkJDRENDg8Q"
    "EBEQCgwSExIQEw8QEBD/yQALCAABAAEBAREA/8wABgAQEAX/2gAIAQEAAD8A0s8g/9k="
)
"""One grey pixel: the sandbox makes no real previews of a fan's video."""


@dataclass(frozen=True, kw_only=True)
class Media:
    """One stored file. `key` names it in addresses that need no token; `expires_at` is sandbox time.

    `seconds` is how long a voice plays, None for everything else and for a format that is not known.
    `from_fan`: it came with a fan's message and was not uploaded by the account.
    """

    media_id: str
    key: str
    type: str
    extension: str
    size: int
    sha256: str
    expires_at: float
    path: Path
    seconds: float | None
    from_fan: bool

    @property
    def content_type(self) -> str:
        return CONTENT_TYPES[self.extension]

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "path"}


class MediaStore:
    """The media of the account, in `folder`; unknown and too old ids are both not found."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_id: dict[str, Media] = {}
        self._by_key: dict[str, Media] = {}

    def write(self, kind: str, data: bytes, now: float, *, from_fan: bool) -> Media:
        """Writes the bytes and returns a value for `add`; needs no lock."""
        key = secrets.token_hex(16)
        path = self._folder / key
        path.write_bytes(data)
        sha256 = hashlib.sha256(data).hexdigest()
        found = extension(data)
        seconds = round(voice_seconds(data), 2) if kind == "voice" and found in ("amr", "mp3") else None
        return Media(
            media_id=_new_media_id(),
            key=key,
            type=kind,
            extension=found,
            size=len(data),
            sha256=sha256,
            expires_at=now + LIFE,
            path=path,
            seconds=seconds,
            from_fan=from_fan,
        )

    def restore(self, facts: dict[str, Any]) -> None:
        """What `Media.to_json` gave in an earlier run, if the file is still there."""
        media = Media(path=self._folder / facts["key"], **facts)
        if media.path.exists():
            self.add(media)

    def living(self, now: float) -> list[Media]:
        """The media that are not too old. Deletes the files of the others."""
        for media in list(self._by_id.values()):
            if now >= media.expires_at:
                media.path.unlink(missing_ok=True)
                del self._by_id[media.media_id], self._by_key[media.key]
        return list(self._by_id.values())

    def add(self, media: Media) -> None:
        self._by_id[media.media_id] = self._by_key[media.key] = media

    def find(self, media_id: str, now: float) -> Media | None:
        media = self._by_id.get(media_id)
        return media if media is not None and now < media.expires_at else None

    def find_key(self, key: str, now: float) -> Media | None:
        media = self._by_key.get(key)
        return media if media is not None and now < media.expires_at else None

    def clear(self) -> None:
        for media in self._by_id.values():
            media.path.unlink(missing_ok=True)
        self._by_id.clear()
        self._by_key.clear()


def _new_media_id() -> str:
    """64 URL-safe characters, both '-' and '_' among them, a letter or digit first as in real ones."""
    while True:
        media_id = secrets.token_urlsafe(48)
        if media_id[0].isalnum() and "-" in media_id and "_" in media_id:
            return media_id


def extension(data: bytes) -> str:
    """The format by the first bytes, whatever the sender called the file."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if data.startswith(b"#!AMR"):
        return "amr"
    if data.startswith(b"ID3") or (data[:1] == b"\xff" and len(data) > 1 and data[1] & 0xE6 == 0xE2):
        return "mp3"
    if data.startswith(b"Speex   ") or (data.startswith(b"OggS") and b"Speex   " in data[:64]):
        return "speex"
    if data[4:8] == b"ftyp":
        return "mp4"
    return "bin"


def check_upload(kind: str, data: bytes) -> None:
    """Raises PlatformError for a file that the platform would not take as temporary media."""
    if kind not in _LIMITS:
        raise PlatformError(40004)
    if not data:
        raise PlatformError(44001)
    most, code, formats = _LIMITS[kind]
    if len(data) > UPLOAD_BYTES:
        raise PlatformError(45001)
    if len(data) > most:
        raise PlatformError(code)
    if extension(data) not in formats:
        raise PlatformError(40005)
    if kind == "voice" and voice_seconds(data) > VOICE_SECONDS:
        raise PlatformError(45007)


def voice_seconds(data: bytes) -> float:
    """How long an AMR or MP3 file plays in seconds, by its frames up to the first invalid one."""
    if data.startswith(b"#!AMR-WB\n"):
        return _amr_seconds(data[9:], _AMR_WB)
    if data.startswith(b"#!AMR\n"):
        return _amr_seconds(data[6:], _AMR_NB)
    return _mp3_seconds(data)


# Bytes of a frame, its header included, by frame type; each plays 20 ms (RFC 4867, section 5.3).
_AMR_NB = {0: 13, 1: 14, 2: 16, 3: 18, 4: 20, 5: 21, 6: 27, 7: 32, 8: 6, 15: 1}
_AMR_WB = {0: 18, 1: 24, 2: 33, 3: 37, 4: 41, 5: 47, 6: 51, 7: 59, 8: 61, 9: 6, 14: 1, 15: 1}


def _amr_seconds(data: bytes, sizes: dict[int, int]) -> float:
    at = frames = 0
    while at < len(data) and (size := sizes.get(data[at] >> 3 & 15)) is not None:
        at += size
        frames += 1
    return frames * 0.02


_KBPS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0)
_KBPS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0)
_HERTZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def _mp3_seconds(data: bytes) -> float:
    at, seconds = 0, 0.0
    if data.startswith(b"ID3") and len(data) >= 10:
        at = 10 + (data[6] << 21 | data[7] << 14 | data[8] << 7 | data[9])
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] & 0xE6 == 0xE2:
        version, rate = data[at + 1] >> 3 & 3, data[at + 2] >> 2 & 3
        kbps = (_KBPS_1 if version == 3 else _KBPS_2)[data[at + 2] >> 4]
        if version == 1 or rate == 3 or kbps == 0:
            break
        samples, hertz = (1152 if version == 3 else 576), _HERTZ[version][rate]
        at += samples * kbps * 125 // hertz + (data[at + 2] >> 1 & 1)
        seconds += samples / hertz
    return seconds
