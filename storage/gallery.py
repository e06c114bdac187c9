"""What the gallery shows of the ledger, newest first, and which pictures are still to be made small.

Knows the queries and the indexes behind them. Must not know pages, pictures or who looks at them. A page is found by
the place where the one before it ended, never by counting rows, so that the last page costs what the first does.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from sqlalchemy import (
    ColumnElement,
    Select,
    bindparam,
    desc,
    null,
    select,
    tuple_,
    union_all,
    update,
)

from storage.database import Database
from storage.models import FAILED, PENDING, STORED, messages
from wechat.messages import MediaKind

State: TypeAlias = Literal["pending", "stored", "failed"]

KINDS: tuple[MediaKind, ...] = get_args(MediaKind)
STATES: tuple[State, ...] = get_args(State)

_ENDED = {"stored": STORED, "failed": FAILED}


@dataclass(frozen=True)
class Filter:
    """Which entries a page shows; None lets all through. `since` <= received_at < `until`, unix seconds."""

    kind: MediaKind | None = None
    state: State | None = None
    fan: str | None = None
    since: float | None = None
    until: float | None = None


@dataclass(frozen=True)
class Shown:
    """One entry of a page. Its place is (`received_at`, `id`)."""

    id: int
    sender: str
    msg_type: str
    received_at: float
    media_kind: MediaKind
    media_state: State
    media_code: int | None
    media_reason: str | None
    thumbnail_state: str | None
    """"made", "failed", or None while there is none."""


@dataclass(frozen=True)
class Picture:
    """A stored picture that is to be made small."""

    id: int
    media_key: str


class GalleryRows:
    """The pages of one account. Every method raises DatabaseUnavailableError when the database is away."""

    def __init__(self, database: Database, appid: str) -> None:
        self._database = database
        self._appid = appid
        columns = messages.c
        due = (
            select(columns.id)
            .where(columns.appid == bindparam("of_appid"), columns.thumbnail_due <= bindparam("now"))
            .order_by(desc(columns.thumbnail_due))
            .limit(1)
            .with_for_update(skip_locked=True)
            .cte("due")
        )
        self._claim = (
            update(messages)
            .where(columns.id.in_(select(due.c.id)))
            .values({columns.thumbnail_due: bindparam("until")})
            .returning(columns.id, columns.media_key)
        )

    def page(self, which: Filter, *, before: tuple[float, int] | None, limit: int) -> list[Shown]:
        """Up to `limit` entries, newest first, from the place `before` on."""
        found = [
            stream.order_by(desc("received_at"), desc("id")).limit(limit).subquery()
            for stream in self._streams(which, before)
        ]
        ids = union_all(*(select(stream) for stream in found)).subquery()
        newest = select(ids.c.id).order_by(desc(ids.c.received_at), desc(ids.c.id)).limit(limit)
        columns = [messages.c[name] for name in Shown.__dataclass_fields__]
        statement = select(*columns).where(messages.c.id.in_(newest)).order_by(*_NEWEST)
        rows = self._database.run(lambda connection: connection.execute(statement).mappings().all())
        return [Shown(**row) for row in rows]

    def _streams(self, which: Filter, before: tuple[float, int] | None) -> Iterator[Select[int, float]]:
        """For each state and kind its own: each reads its index backwards and ends with the page."""
        columns = messages.c
        conditions: list[ColumnElement[bool]] = [columns.appid == self._appid]
        if which.fan is not None:
            conditions.append(columns.sender == which.fan)
        if which.since is not None:
            conditions.append(columns.received_at >= which.since)
        if which.until is not None:
            conditions.append(columns.received_at < which.until)
        if before is not None:
            conditions.append(tuple_(columns.received_at, columns.id) < before)
        stream = select(columns.id, columns.received_at).where(*conditions)
        for name, state in _ENDED.items():
            for kind in KINDS:
                if which.state in (None, name) and which.kind in (None, kind):
                    yield stream.where(
                        columns.media_done_at.is_not(None),
                        columns.media_state == state,
                        columns.media_kind == kind,
                    )
        if which.state in (None, "pending"):
            # The queue, which is short as a rule, is read through, in its index alone. When it is long the newest come
            # last in it: read from that end (the limit keeps SQLite to it), little is left to be sorted.
            pending = stream.where(columns.media_state == PENDING)
            if which.kind is not None:
                pending = pending.where(columns.media_kind == which.kind)
            backwards = pending.order_by(desc(columns.media_due)).limit(_ALL).subquery()
            yield select(backwards.c.id, backwards.c.received_at)

    def claim_picture(self, now: float, lease_seconds: float) -> Picture | None:
        """A picture to make small, the newest first; nobody else gets it for that long."""
        values = {"of_appid": self._appid, "now": now, "until": now + lease_seconds}
        rows = self._database.write(lambda connection: connection.execute(self._claim, values).all())
        return Picture(*rows[0]) if rows else None

    def mark_thumbnail(self, picture: Picture, *, made: bool) -> bool:
        """Its thumbnail is there, or cannot be made. False: the row is purged, so that nothing of it may stay."""
        values = {
            messages.c.thumbnail_due: null(),
            messages.c.thumbnail_state: "made" if made else "failed",
        }
        statement = update(messages).where(messages.c.id == picture.id).values(values)
        return self._database.write(lambda connection: connection.execute(statement).rowcount == 1)

    def miss_thumbnail(self, ledger_id: int, now: float) -> None:
        """The thumbnail that was made is gone: it is to be made again."""
        statement = (
            update(messages)
            .where(messages.c.id == ledger_id, messages.c.appid == self._appid)
            .where(messages.c.media_state == STORED, messages.c.thumbnail_due.is_(None))
            .values({messages.c.thumbnail_due: now, messages.c.thumbnail_state: null()})
        )
        self._database.write(lambda connection: connection.execute(statement))


_ALL = 2**31 - 1
_NEWEST = (desc(messages.c.received_at), desc(messages.c.id))
