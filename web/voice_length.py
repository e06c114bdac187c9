"""How many seconds a voice lasts that no browser plays: AMR by counting its frames, Speex by its last page's time.

Knows the two formats' frames. Must not know where the bytes come from. What cannot be told is None, whatever the bytes.
https://www.rfc-editor.org/rfc/rfc4867 (section 5), https://www.rfc-editor.org/rfc/rfc3533, https://www.speex.org/docs/
"""

import struct

# Bytes of a frame after its first one, by the frame's type; None is reserved. A frame is 20 ms.
_NARROW = (12, 13, 15, 17, 19, 20, 26, 31, 5, None, None, None, None, None, None, 0)
_WIDE = (17, 23, 32, 36, 40, 46, 50, 58, 60, 5, None, None, None, None, 0, 0)
_FRAMES_A_SECOND = 50

_PAGE = struct.Struct("<4sBBqIIIB")
_RATE_AT = 36  # of the Speex header, which is the first packet


def voice_seconds(data: bytes) -> float | None:
    """The length of a whole AMR or Ogg Speex file; None where it cannot be told."""
    if data.startswith(b"#!AMR-WB\n"):
        return _amr_seconds(data, 9, _WIDE)
    if data.startswith(b"#!AMR\n"):
        return _amr_seconds(data, 6, _NARROW)
    if data.startswith(b"OggS"):
        return _speex_seconds(data)
    return None


def _amr_seconds(data: bytes, place: int, sizes: tuple[int | None, ...]) -> float | None:
    frames = 0
    while place < len(data):
        size = sizes[data[place] >> 3 & 15]
        if size is None:
            return None
        place += 1 + size
        frames += 1
    return frames / _FRAMES_A_SECOND


def _speex_seconds(data: bytes) -> float | None:
    place, rate, samples = 0, 0, 0
    while place + _PAGE.size <= len(data):
        mark, _, _, granule, _, _, _, segments = _PAGE.unpack_from(data, place)
        if mark != b"OggS":
            return None
        start = place + _PAGE.size + segments
        if not rate:
            if data[start : start + 8] != b"Speex   " or len(data) < start + _RATE_AT + 4:
                return None
            (rate,) = struct.unpack_from("<I", data, start + _RATE_AT)
            if not rate:
                return None
        samples = max(samples, granule)
        place = start + sum(data[place + _PAGE.size : start])
    return samples / rate if rate else None
