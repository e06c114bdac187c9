"""What a check of `flask doctor` found, in English and in Chinese, with what to do about it.

Must not know any check. The texts contain our own words, names of settings, and errors without secrets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from logs import escaped


class Outcome(NamedTuple):
    """The result of a check. `ok` is None if it could not be checked; the texts say why."""

    ok: bool | None
    english: str
    chinese: str


@dataclass(frozen=True)
class Finding:
    """An outcome with the name of its check. Each text is one line."""

    check: str
    ok: bool | None
    english: str
    chinese: str

    @property
    def hint(self) -> str:
        """Both texts in one line."""
        return f"{self.english} / {self.chinese}"


def finding(check: str, outcome: Outcome) -> Finding:
    """The outcome with each text on one line. It is escaped, since it may quote the platform or a tunnel."""
    english, chinese = (escaped(" ".join(text.split())) for text in (outcome.english, outcome.chinese))
    return Finding(check, outcome.ok, english, chinese)
