"""How the decoder's process is talked to: what is asked, what is answered, and the error that stands for "no".

Knows the bytes alone; imports neither Pillow nor the store, so that either side can have it without the other.
A picture comes in chunks, each after its length in four bytes; length 0 ends it. The answer is one byte, 1 or 0, then
length and bytes of the thumbnail, or of the reason why there is none.
"""

import struct
from collections.abc import Iterable
from typing import IO

MAX_ANSWER_BYTES = 1024 * 1024

_LENGTH = struct.Struct(">I")


class NoThumbnail(Exception):
    """There is none of this picture; the message says why."""


def send_picture(to: IO[bytes], picture: Iterable[bytes]) -> None:
    for chunk in picture:
        to.write(_LENGTH.pack(len(chunk)) + chunk)
    to.write(_LENGTH.pack(0))
    to.flush()


def read_picture(source: IO[bytes]) -> bytes | None:
    """The next picture; None at the end of the input, also where it comes in the middle of one."""
    picture = bytearray()
    try:
        while length := _read_length(source):
            picture += _read(source, length)
    except EOFError:
        return None
    return bytes(picture)


def send_answer(to: IO[bytes], answer: bytes | NoThumbnail) -> None:
    made = isinstance(answer, bytes)
    data = answer if isinstance(answer, bytes) else str(answer).encode()
    to.write(bytes([made]) + _LENGTH.pack(len(data)) + data)
    to.flush()


def read_answer(source: IO[bytes]) -> bytes:
    """The thumbnail. Raises NoThumbnail, or EOFError where no whole answer came."""
    made = _read(source, 1) == b"\1"
    length = _read_length(source)
    if length > MAX_ANSWER_BYTES:
        raise EOFError
    answer = _read(source, length)
    if not made:
        raise NoThumbnail(answer.decode("utf-8", "replace"))
    return answer


def _read_length(source: IO[bytes]) -> int:
    return int(_LENGTH.unpack(_read(source, _LENGTH.size))[0])


def _read(source: IO[bytes], size: int) -> bytes:
    data = source.read(size)
    if len(data) < size:
        raise EOFError
    return data
