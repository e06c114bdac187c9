"""What the URL of a page of the gallery asks for: the filter, and the place in the list where the page begins.

Knows the names of the parameters and what each may be, and writes the links that carry them on. Must not know what is
found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, cast
from zoneinfo import ZoneInfo

from flask import abort, url_for

from storage.gallery import KINDS, STATES, Filter, Place
from web.gallery.times import midnight


@dataclass(frozen=True)
class Query:
    """`before` and `after` are places between two entries; at most one of them matters. `words` are the parameters of
    the filter, as they were written."""

    filter: Filter
    before: Place | None
    after: Place | None
    words: dict[str, Any]

    def link(self, **places: Place) -> str:
        """The list with the same filter, from another place on."""
        parameters: dict[str, Any] = {name: _place_text(place) for name, place in places.items()}
        return url_for("gallery.index", **self.words, **parameters)

    @property
    def here(self) -> dict[str, Any]:
        """The parameters of a link back to this page."""
        places = (("before", self.before), ("after", self.after))
        return self.words | {name: _place_text(place) for name, place in places if place}


def read_query(parameters: Mapping[str, str], zone: ZoneInfo | None, accounts: Mapping[str, str]) -> Query:
    """Reads the parameters; `accounts` are the names by AppID. Aborts with 400 if one is invalid."""
    words = {
        name: parameters[name].strip()
        for name in ("account", "kind", "state", "fan", "day")
        if parameters.get(name, "").strip()
    }
    account, kind, state, fan, day = (words.get(name) for name in ("account", "kind", "state", "fan", "day"))
    appid = next((appid for appid, name in accounts.items() if name == account), None)
    if account and appid is None:
        abort(400)
    if kind not in (None, *KINDS, "text") or state not in (None, *STATES) or "\0" in (fan or ""):
        abort(400)
    since = until = None
    if day is not None:
        try:
            since, until = (midnight(date.fromisoformat(day) + timedelta(days=days), zone) for days in (0, 1))
        except (ValueError, OverflowError, OSError):
            abort(400)
    chosen = Filter(cast(Any, kind), cast(Any, state), fan, since, until, appid)
    return Query(chosen, _place(parameters.get("before")), _place(parameters.get("after")), words)


def _place_text(place: Place) -> str:
    """For a link; `_place` reads it."""
    return f"{place[0]!r}_{place[1]}"


def _place(text: str | None) -> Place | None:
    if not text:
        return None
    place = re.fullmatch(r"([0-9]{1,11}(?:\.[0-9]{1,9})?)_([0-9]{1,18})", text)
    if place is None:
        abort(400)
    return float(place[1]), int(place[2])
