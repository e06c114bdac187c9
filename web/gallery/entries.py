"""What an entry says: the fan's words, and why a download or a send of it failed.

Knows kinds of messages, states and the platform's codes. Must not know pages nor where entries are kept.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from storage.gallery import Shown
from storage.ledger import Entry
from wechat.codes import explain
from wechat.media import LIFE_SECONDS
from wechat.messages import LinkMessage, LocationMessage, TextMessage, parse_message

SHOWN_CHARACTERS = 300  # of a text in the list


def text_of(entry: Entry | Shown) -> str | None:
    """The text of a text, location or link message; None for others."""
    if entry.media_kind is not None:
        return None
    message = parse_message(entry.xml)
    if isinstance(message, TextMessage):
        return message.content
    if isinstance(message, LocationMessage):
        return f"{message.label} ({message.location_x}, {message.location_y})"
    if isinstance(message, LinkMessage):
        return f"{message.title}\n{message.description}\n{message.url}"
    return None


def excerpt(entry: Shown) -> str | None:
    """The beginning of its text; None if nothing of that can be seen."""
    text = (text_of(entry) or "")[:SHOWN_CHARACTERS]
    return text if _is_visible(text) else None


def _is_visible(text: str) -> bool:
    """Whether anything of it can be seen: no spaces, controls, marks of width zero, or letters that are blank."""
    return any(
        unicodedata.category(character) not in _UNSEEN and character not in _BLANK for character in text
    )


_UNSEEN = {"Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Mn", "Me"}
_BLANK = "\u115f\u1160\u2800\u3164\uffa0"  # Hangul fillers, and the Braille cell without dots


@dataclass(frozen=True)
class Problem:
    """Why a download or a send failed."""

    of_send: bool
    state: str | None
    reason: str
    """The platform's own words, or ours."""
    code: int | None
    hint_en: str
    hint_zh: str
    fan_en: str
    fan_zh: str


_AGAIN = ("The fan has to send it again.", "需请粉丝重新发送。")
_FOLLOW = ("The fan has to follow the account first.", "需粉丝先关注公众号。")
_WRITE = ("The fan has to write to the account first; then retry.", "需粉丝先给公众号发一条消息，然后重试。")
_FAN_HAS_TO = {
    40007: _AGAIN,
    43004: _FOLLOW,
    45015: _WRITE,
    45047: _WRITE,
    48002: ("The fan has to allow messages of the account again.", "需粉丝重新允许接收公众号消息。"),
    50005: _FOLLOW,
}


def problems(entry: Entry | Shown, now: float) -> list[Problem]:
    """Of its download and of its send; `now` in unix seconds."""
    over = now > entry.create_time + LIFE_SECONDS  # then the platform has deleted the file
    media = _problem(False, entry.media_state, entry.media_code, entry.media_reason, over=over)
    send = _problem(True, entry.send_state, entry.send_code, entry.send_reason)
    return [problem for problem in (media, send) if problem is not None]


def _problem(
    of_send: bool, state: str | None, code: int | None, reason: str | None, *, over: bool = False
) -> Problem | None:
    if not reason or state in ("stored", "sent"):
        return None
    known = explain(code) if code else None
    own = reason.partition(known.hint_en)[0].rstrip(" .:") if known else reason
    hints = (known.hint_en, known.hint_zh) if known else ("", "")
    fan = ("", "")
    if state == "failed":
        fan = _AGAIN if over else _FAN_HAS_TO.get(code or 0, fan)
    return Problem(of_send, state, own, code, *hints, *fan)
