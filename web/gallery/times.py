"""Times as the gallery's pages show them, and a day as its filter takes it.

Knows time zones. Must not know what happened at a time. A zone of None is the machine's own. A push may carry any
number as its time, so that none of them may fail here.
"""

from __future__ import annotations

from datetime import date, datetime
from zoneinfo import ZoneInfo


def local_time(seconds: float, zone: ZoneInfo | None) -> str:
    """A time (unix seconds) like "2026-01-31 23:59:59"; a number that is no time as it is."""
    try:
        return datetime.fromtimestamp(seconds, zone).astimezone(zone).isoformat(" ", "seconds")[:19]
    except (ValueError, OverflowError, OSError):
        return str(seconds)


def utc_offset(seconds: float, zone: ZoneInfo | None) -> str:
    """The zone's offset from UTC at that time, like "+01:00"; empty for a number that is no time."""
    try:
        offset = datetime.fromtimestamp(seconds, zone).astimezone(zone).strftime("%z")
    except (ValueError, OverflowError, OSError):
        return ""
    return f"{offset[:3]}:{offset[3:5]}"


def midnight(day: date, zone: ZoneInfo | None) -> float:
    """When that day begins, in unix seconds. Raises ValueError, OverflowError or OSError for a day too far away."""
    return datetime.combine(day, datetime.min.time(), zone).timestamp()
