"""What the gallery shows of the ledger, newest first.

Knows the queries and their indexes. Must not know how a page looks. A page begins where the one before it ended, so
that the last page costs what the first does; pages have numbers only among the entries that are counted. A search
without an index (texts, a part of an OpenID) reads row by row, for a limited time; the page says how far it got.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias, get_args

from sqlalchemy import (
    ColumnElement,
    Select,
    asc,
    desc,
    func,
    or_,
    select,
    tuple_,
    union,
    union_all,
)

from storage.database import Database
from storage.ledger import Entry
from storage.models import FAILED, PENDING, STORED, messages
from wechat.messages import MediaKind

State: TypeAlias = Literal["pending", "stored", "failed"]

KINDS: tuple[MediaKind, ...] = get_args(MediaKind)
STATES: tuple[State, ...] = get_args(State)

_ENDED = {"stored": STORED, "failed": FAILED}


Place: TypeAlias = tuple[float, int]
"""Where an entry stands: (`received_at`, `id`)."""

SCAN_IDS, SCAN_SECONDS = 5000, 0.3
"""How many ids one search step reads, and how long a search takes at most."""

_SLACK_SECONDS = 3600.0  # how far the order of ids may differ from that of times: processes reserve ids
_OPENID_LENGTH = 28


@dataclass(frozen=True)
class Filter:
    """Which entries a page shows; None lets all through. `since` <= received_at < `until`, unix seconds.

    `state` is the download's, and "failed" also a failed send, as for `flask ledger list`. `fan` is an OpenID or a part
    of one, `appid` one account's. Events are never entries.
    """

    kind: MediaKind | Literal["text"] | None = None
    state: State | None = None
    fan: str | None = None
    since: float | None = None
    until: float | None = None
    appid: str | None = None


@dataclass(frozen=True)
class Shown:
    """One entry of a page. The media columns are None for a message without a file."""

    id: int
    appid: str
    sender: str
    msg_type: str
    create_time: int
    received_at: float
    media_kind: MediaKind | None
    media_state: State | None
    media_code: int | None
    media_reason: str | None
    media_key: str | None
    media_size: int | None
    media_sha256: str | None
    thumbnail_state: str | None
    """"made", "failed", or None while there is none."""
    send_state: str | None
    send_code: int | None
    send_reason: str | None
    xml: bytes = field(repr=False)

    @property
    def place(self) -> Place:
        return self.received_at, self.id


@dataclass(frozen=True)
class Page:
    """Entries, newest first. `searched_to`: where the search stopped because its time was over."""

    entries: list[Shown]
    searched_to: Place | None = None


class GalleryRows:
    """The pages of these accounts. Every method raises DatabaseUnavailableError when the database is away."""

    def __init__(self, database: Database, *appids: str) -> None:
        self._database = database
        self._appids = appids

    def page(
        self, which: Filter, *, before: Place | None = None, after: Place | None = None, limit: int
    ) -> Page:
        """Up to `limit` entries: the next ones older than `before`, or newer than `after`, or the newest ones."""
        rows, searched_to = self._find(which, before, after, limit, _SHOWN)
        return Page([Shown(**row) for row in rows], searched_to)

    def entry(self, ledger_id: int) -> Entry | None:
        """The whole row of that id; None for an event or another account's row."""
        statement = select(messages).where(
            messages.c.id == ledger_id, messages.c.appid.in_(self._appids), messages.c.event.is_(None)
        )
        rows = self._rows(statement)
        return Entry(**rows[0]) if rows else None

    def count(self, which: Filter, most: int) -> tuple[int, bool]:
        """How many entries there are, up to `most`; and whether that is all of them."""
        rows, searched_to = self._find(which, None, None, most + 1, [messages.c.id])
        return min(len(rows), most), len(rows) <= most and searched_to is None

    def failed(self, which: Filter, most: int) -> int:
        """How many messages of the filter's accounts, whatever else it says, have a download or a send that failed: up
        to `most`. These are what `Queue.retry` of all makes due again, events too."""
        failed = [
            select(messages.c.id)
            .where(messages.c.appid.in_(self._of(which)), state == FAILED)
            .limit(most)
            .subquery()
            for state in (messages.c.media_state, messages.c.send_state)
        ]
        ids = union(*(select(one) for one in failed)).subquery()  # a message counts once if both failed
        statement = select(func.count()).select_from(ids)
        return min(
            int(self._database.run(lambda connection: connection.execute(statement).scalar_one())), most
        )

    def place(self, which: Filter, number: int) -> Place | None:
        """The place of the entry of that number, from 1, the newest; the last entry's place if there are fewer."""
        rows, _ = self._find(which, None, None, number, [messages.c.received_at, messages.c.id])
        return (rows[-1]["received_at"], rows[-1]["id"]) if rows else None

    def _find(
        self, which: Filter, before: Place | None, after: Place | None, limit: int, columns: Sequence[Any]
    ) -> tuple[list[Any], Place | None]:
        whole = which.fan is None or len(which.fan) == _OPENID_LENGTH
        if whole and (which.kind in KINDS or (which.state and which.kind is None)):
            return self._indexed(which, before, after, limit, columns), None
        return self._scanned(which, before, after, limit, columns)

    def _indexed(
        self, which: Filter, before: Place | None, after: Place | None, limit: int, columns: Sequence[Any]
    ) -> list[Any]:
        direction = desc if after is None else asc
        found = [
            stream.order_by(direction("received_at"), direction("id")).limit(limit).subquery()
            for appid in self._of(which)
            for stream in self._streams(appid, which, before, after)
        ]
        ids = union_all(*(select(stream) for stream in found)).subquery()
        nearest = select(ids.c.id).order_by(direction(ids.c.received_at), direction(ids.c.id)).limit(limit)
        return self._rows(select(*columns).where(messages.c.id.in_(nearest)).order_by(*_NEWEST))

    def _scanned(
        self, which: Filter, before: Place | None, after: Place | None, limit: int, columns: Sequence[Any]
    ) -> tuple[list[Any], Place | None]:
        ids = messages.c.id
        conditions = [*self._conditions(which), messages.c.event.is_(None)]
        conditions.append(or_(*(messages.c.appid == appid for appid in self._of(which))))
        if which.kind == "text":
            conditions.append(messages.c.msg_type == "text")
        elif which.kind is not None:
            conditions.append(messages.c.media_kind == which.kind)
        if which.state == "failed":
            conditions.append(or_(messages.c.media_state == FAILED, messages.c.send_state == FAILED))
        elif which.state is not None:
            conditions.append(messages.c.media_state == which.state)
        first, last = self._ids(which)
        if before is not None:
            last = min(last, before[1] - 1)
        if after is not None:
            first = max(first, after[1] + 1)
        found: list[Any] = []
        searched_to = None
        give_up = time.monotonic() + SCAN_SECONDS
        while first <= last and len(found) < limit:
            low, high = max(first, last - SCAN_IDS + 1), last
            if after is not None:
                low, high = first, min(last, first + SCAN_IDS - 1)
            direction = desc if after is None else asc
            found += self._rows(
                select(*columns)
                .where(ids.between(low, high), *conditions)
                .order_by(direction(ids))
                .limit(limit - len(found))
            )
            if after is None:
                last = low - 1
            else:
                first = high + 1
            if time.monotonic() > give_up and first <= last and len(found) < limit:
                searched_to = (0.0, last + 1 if after is None else first - 1)
                break
        return found if after is None else found[::-1], searched_to

    def _ids(self, which: Filter) -> tuple[int, int]:
        """The first and the last id of the entries of that time."""
        # One query for each end: a single one would read all rows.
        ends = [select(end(messages.c.id)).scalar_subquery() for end in (func.min, func.max)]
        first, last = self._rows(select(*ends))[0].values()
        if first is None:
            return 1, 0
        if which.since is not None:
            first = self._first_id(which.since - _SLACK_SECONDS, first, last)
        if which.until is not None:
            last = self._first_id(which.until + _SLACK_SECONDS, first, last)
        return first, last

    def _first_id(self, at: float, low: int, high: int) -> int:
        """Roughly the first id that came in at that time or later. A binary search, since ids grow with time."""
        columns = messages.c
        while low < high:
            middle = (low + high) // 2
            statement = select(columns.received_at).where(columns.id.between(middle, high))
            rows = self._rows(statement.order_by(columns.id).limit(1))
            found = rows[0]["received_at"] if rows else None
            if found is None or found >= at:
                high = middle
            else:
                low = middle + 1
        return low

    def _rows(self, statement: Select[Any]) -> list[Any]:
        return self._database.run(lambda connection: list(connection.execute(statement).mappings()))

    def _of(self, which: Filter) -> Sequence[str]:
        return [which.appid] if which.appid is not None else self._appids

    def _conditions(self, which: Filter) -> list[ColumnElement[bool]]:
        columns = messages.c
        conditions: list[ColumnElement[bool]] = []
        if which.fan is not None and len(which.fan) == _OPENID_LENGTH:
            conditions.append(columns.sender == which.fan)
        elif which.fan is not None:
            conditions.append(columns.sender.contains(which.fan, autoescape=True))
        if which.since is not None:
            conditions.append(columns.received_at >= which.since)
        if which.until is not None:
            conditions.append(columns.received_at < which.until)
        return conditions

    def _streams(
        self, appid: str, which: Filter, before: Place | None, after: Place | None
    ) -> Iterator[Select[int, float]]:
        """One query for each state and kind: each reads its index and stops at the end of the page."""
        columns = messages.c
        conditions = [columns.appid == appid, *self._conditions(which)]
        if before is not None:
            conditions.append(tuple_(columns.received_at, columns.id) < before)
        if after is not None:
            conditions.append(tuple_(columns.received_at, columns.id) > after)
        stream = select(columns.id, columns.received_at).where(*conditions)
        for name, state in _ENDED.items():
            for kind in KINDS:
                if which.state in (None, name) and which.kind in (None, kind):
                    yield stream.where(
                        columns.media_done_at.is_not(None),
                        columns.media_state == state,
                        columns.media_kind == kind,
                    )
        if which.state == "failed":
            # If the download failed too, a query above has found it: twice it would take another one's place.
            sends = stream.where(
                columns.send_state == FAILED,
                columns.media_state.is_distinct_from(FAILED),
                columns.event.is_(None),
            )
            yield sends if which.kind is None else sends.where(columns.media_kind == which.kind)
        if which.state in (None, "pending"):
            # The queue is usually short, and all of it is read, from its index alone. When it is long, its newest rows
            # come last: it is read from that end (the limit makes SQLite do so), and little is left to sort.
            pending = stream.where(columns.media_state == PENDING)
            if which.kind is not None:
                pending = pending.where(columns.media_kind == which.kind)
            backwards = pending.order_by(desc(columns.media_due)).limit(_ALL).subquery()
            yield select(backwards.c.id, backwards.c.received_at)


_ALL = 2**31 - 1
_SHOWN = [messages.c[field.name] for field in fields(Shown)]
_NEWEST = (desc(messages.c.received_at), desc(messages.c.id))
