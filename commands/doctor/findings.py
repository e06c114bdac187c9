"""What a check of `flask doctor` found: in English and in Chinese, each with what to do about it.

Knows no check. Texts hold our own words, settings' names, and errors that hold no secret.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from logs import escaped


class Outcome(NamedTuple):
    """What one check found. `ok` None: it could not be checked, and the texts say why."""

    ok: bool | None
    english: str
    chinese: str


@dataclass(frozen=True)
class Finding:
    """An outcome with the name of its check, each text on one line."""

    check: str
    ok: bool | None
    english: str
    chinese: str

    @property
    def hint(self) -> str:
        """Both texts in one line."""
        return f"{self.english} / {self.chinese}"


def finding(check: str, outcome: Outcome) -> Finding:
    """The outcome on one line, and nothing in it that acts on a terminal: it may quote the platform or a tunnel."""
    english, chinese = (escaped(" ".join(text.split())) for text in (outcome.english, outcome.chinese))
    return Finding(check, outcome.ok, english, chinese)


def two_texts(reason: str, chinese: str = "") -> tuple[str, str]:
    """English and Chinese of a reason that has both, or with the Chinese given."""
    english, _, rest = reason.partition(" / ")
    return english, rest or chinese
