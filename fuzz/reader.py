"""Turns the bytes of one input into choices and values, the same ones each time.

Knows bytes alone, so that a found input can be kept as a file and be a test.
"""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Reader:
    """Reads an input from its beginning; what lies past its end is zeros and empty."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    def byte(self) -> int:
        """The next byte, 0 to 255."""
        taken = self.take(1)
        return taken[0] if taken else 0

    def pick(self, choices: Sequence[T]) -> T:
        """One of the choices."""
        return choices[self.byte() % len(choices)]

    def take(self, length: int) -> bytes:
        """At most so many bytes."""
        taken = self._data[self._place : self._place + length]
        self._place += length
        return taken

    def line(self) -> bytes:
        """Up to the next line end, without it."""
        line, _, _ = self._data[self._place :].partition(b"\n")
        self._place += len(line) + 1
        return line

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data))
