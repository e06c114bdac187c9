"""The tables and their keys: what the database holds, on SQLite and on PostgreSQL alike.

One row of `messages` is a message, its reply, and its place in two queues ("lanes"): `media_*`, the download
of its picture, and `send_*`, what is sent back later. Knows names, types, indexes and when a lease is over; no
statements, no connections. A change of a table needs a new file in `migrations/versions`; a test holds the two
together.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    false,
    literal_column,
    or_,
    text,
)

from storage.states import SendState, WorkState

metadata = MetaData()

# Only an INTEGER primary key is SQLite's row id.
_ID = BigInteger().with_variant(Integer(), "sqlite")
# Byte order: cheaper to compare, and the order in which the keys grow, in any locale.
_KEY = Text().with_variant(Text(collation="C"), "postgresql")


def _lane(name: str) -> list[Column[object]]:
    """The columns of one queue. `state` is NULL where the message has nothing to do in it."""
    return [
        Column(f"{name}_state", Text),
        Column(f"{name}_due", Double),
        Column(f"{name}_lease_until", Double),
        Column(f"{name}_claim", BigInteger),
        Column(f"{name}_attempts", Integer, nullable=False, server_default=text("0")),
        Column(f"{name}_code", Integer),
        Column(f"{name}_reason", Text),
        Column(f"{name}_done_at", Double),
    ]


# Longer than any pause or lease: a time further ahead was written by a wrong clock, and the work is due now.
AHEAD_SECONDS = 3600.0


def lease_over(until: Column[float], now: float | ColumnElement[float]) -> ColumnElement[bool]:
    """The row is not claimed: it never was, the lease has ended, or a wrong clock set it too far ahead."""
    return or_(until.is_(None), until <= now, until > now + AHEAD_SECONDS)


messages = Table(
    "messages",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("appid", Text, nullable=False),
    Column("sender", Text, nullable=False),
    Column("message_key", _KEY, nullable=False),
    Column("msg_type", Text, nullable=False),
    Column("event", Text),
    Column("msg_id", Text),
    Column("create_time", BigInteger, nullable=False),
    Column("received_at", Double, nullable=False),
    Column("xml", LargeBinary, nullable=False),
    Column("reply", LargeBinary),
    *_lane("media"),
    Column("media_id", Text),
    Column("media_kind", Text),
    Column("media_key", Text),
    Column("media_size", BigInteger),
    Column("media_sha256", Text),
    # NULL where there is nothing to make: no picture, not stored yet, or `thumbnail_state` says how it ended.
    Column("thumbnail_due", Double),
    Column("thumbnail_state", Text),
    *_lane("send"),
    Column("send_uploaded_media_id", Text),
    Column("send_sending", Boolean(create_constraint=False), nullable=False, server_default=false()),
    # An id names a file, so that it must never be given twice, even after the newest rows were purged.
    sqlite_autoincrement=True,
)

# States are literals in the SQL: with a bound value neither database uses a partial index.
PENDING = literal_column("'pending'", Text)
STORED = literal_column("'stored'", Text)
FAILED = literal_column("'failed'", Text)
WAITING = literal_column("'waiting'", Text)
SENT = literal_column("'sent'", Text)
UNKNOWN = literal_column("'unknown'", Text)
WORKING = literal_column("'working'", Text)
KEPT = literal_column("'owed'", Text)


def _partial(name: str, columns: str, where: str) -> None:
    condition = text(where)
    indexed = [messages.c[column] for column in ("appid", *columns.split())]
    Index(name, *indexed, sqlite_where=condition, postgresql_where=condition)


# A picture that comes in enters `messages_key` and `downloads_due` alone, and the others when its download ends.
#
# messages_key: finds a repeated delivery. Its first column grows with time, so that inserts stay at its right edge
#     however many rows there are.
# downloads_due, sends_due: the next claim, and the queue's length and age. The further columns of `downloads_due` give
#     the gallery what has not ended.
# downloads_stored: the count.
# downloads_failed, sends_failed: `flask ledger retry`, and the counts.
# gallery_kinds, gallery_fans: the gallery's pages of what has ended, newest first.
# thumbnails_due: the next picture to be made small.
# results_working, results_owed: the results of deferred work that are still to come, or kept.
# unsubscribed: the fans who left, for PURGE_ON_UNSUBSCRIBE.
Index("messages_key", messages.c.message_key, messages.c.sender, messages.c.appid, unique=True)
_partial("downloads_due", "media_due received_at media_kind sender media_state", "media_state = 'pending'")
_partial("downloads_stored", "id", "media_state = 'stored'")
_partial("downloads_failed", "id", "media_state = 'failed'")
_partial("sends_due", "send_due", "send_state = 'pending'")
_partial("sends_failed", "id", "send_state = 'failed'")
_partial("gallery_kinds", "media_state media_kind received_at id", "media_done_at IS NOT NULL")
_partial("gallery_fans", "sender media_state media_kind received_at id", "media_done_at IS NOT NULL")
_partial("thumbnails_due", "thumbnail_due", "thumbnail_due IS NOT NULL")
_partial("results_working", "id", "send_state = 'working'")
_partial("results_owed", "sender id", "send_state = 'owed'")
_partial("unsubscribed", "id", "event = 'unsubscribe'")

# Files whose rows are purged, until they are deleted: whatever lies under `stem`, and its thumbnail.
files_to_delete = Table(
    "files_to_delete",
    metadata,
    Column("stem", Text, primary_key=True),
    Column("appid", Text, nullable=False),
    Column("due", Double, nullable=False),
)

# With LEDGER_SYNC=normal: the highest id of a message that may be given now. One row. See storage.ids.
id_reserve = Table("id_reserve", metadata, Column("upto", BigInteger, nullable=False))

# When any process last successfully asked for work, even if there was none.
last_claims = Table(
    "last_claims",
    metadata,
    Column("appid", Text, primary_key=True),
    Column("at", Double, nullable=False),
)

# Whose messages are how old, for a purge: filled when a purge asks, up to `purge_index_upto.id`. Indexes on `messages`
# would cost every push a write, the one on the sender in the middle of a large tree.
purge_index = Table(
    "purge_index",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=False),
    # A block of neighbouring ids has a part of the next index to itself, small enough to be written in memory.
    Column("block", Integer, nullable=False),
    Column("appid", Text, nullable=False),
    Column("sender", Text, nullable=False),
    Column("received_at", Double, nullable=False),
)
Index("purge_index_sender", purge_index.c.appid, purge_index.c.block, purge_index.c.sender)
Index("purge_index_received_at", purge_index.c.appid, purge_index.c.received_at)
purge_index_upto = Table("purge_index_upto", metadata, Column("id", BigInteger, nullable=False))

tokens = Table(
    "tokens",
    metadata,
    Column("appid", Text, primary_key=True),
    Column("value", Text),
    Column("expires_at", Double, nullable=False),
    Column("fetched_at", Double, nullable=False),
    Column("retry_at", Double, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("reason", Text),
    Column("reason_zh", Text),
    Column("code", Integer),
    Column("checked_at", Double, nullable=False, server_default=text("0")),
    Column("checks", Double, nullable=False, server_default=text("0")),
    Column("forced_at", Double, nullable=False),
    Column("forced_day", Integer, nullable=False),
    Column("forced_count", Integer, nullable=False),
    Column("lease_holder", Text),
    Column("lease_until", Double),
)

# How often the token was fetched by any process, by result ("ok", the platform's code, "transport").
token_fetches = Table(
    "token_fetches",
    metadata,
    Column("appid", Text, primary_key=True),
    Column("result", Text, primary_key=True),
    Column("count", BigInteger, nullable=False),
)

# How many requests that look like the platform's were refused, by minute (unix seconds / 60) and reason; for an hour.
refusals = Table(
    "refusals",
    metadata,
    Column("appid", Text, primary_key=True),
    Column("minute", BigInteger, primary_key=True, autoincrement=False),
    Column("reason", Text, primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("last_at", Double, nullable=False),
)

# How often a secret was tried, in all processes together, since `first_at`: "gallery 12ab 192.0.2.1" by that address,
# "gallery 12ab *" by all addresses without an earlier sign-in.
sign_in_attempts = Table(
    "sign_in_attempts",
    metadata,
    Column("address", Text, primary_key=True),
    Column("first_at", Double, nullable=False),
    Column("count", Integer, nullable=False),
)
# Addresses from which a sign-in to the gallery succeeded, and until when that counts.
known_addresses = Table(
    "known_addresses",
    metadata,
    Column("address", Text, primary_key=True),
    Column("until", Double, nullable=False),
)
# One row: what the gallery's sessions are signed with, together with ADMIN_PASSWORD.
gallery_key = Table(
    "gallery_key",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("key", LargeBinary, nullable=False),
)
# Sessions of the gallery that were signed out before their end.
ended_sessions = Table(
    "ended_sessions",
    metadata,
    Column("session", Text, primary_key=True),
    Column("until", Double, nullable=False),
)

# Deferred replies: one row beside the message's own, from its first delivery until it is purged.
works = Table(
    "works",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=False),
    Column("appid", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("due", Double, nullable=False),
    Column("lease_until", Double),
    Column("claim", BigInteger),
    Column("attempts", Integer, nullable=False),
    Column("deliveries", Integer, nullable=False),
    Column("reason", Text),
    Column("done_at", Double),
    Column("result", LargeBinary),
    # The handler's reply, where the file that it names is still to be uploaded under a MediaId of ours.
    Column("reply", LargeBinary),
)
_works_pending = text("state = 'pending'")
Index("works_due", works.c.appid, works.c.id, sqlite_where=_works_pending, postgresql_where=_works_pending)

# What handlers remember of each fan, as JSON. `version` grows by one with each change.
memories = Table(
    "memories",
    metadata,
    Column("appid", Text, primary_key=True),
    Column("sender", Text, primary_key=True),
    Column("memory", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("changed_at", Double, nullable=False),
)
Index("memories_changed", memories.c.appid, memories.c.changed_at)

# Work whose result is still to come: it waits for the message's file, is claimed, or can be claimed.
UNFINISHED = (WorkState.WAITING, WorkState.PENDING)


def failed_send(code: int | None, reason: str, now: float) -> dict[str, object]:
    """The columns of a message to which nothing will be sent any more, and why."""
    return {
        "send_state": SendState.FAILED,
        "send_code": code,
        "send_reason": reason,
        "send_done_at": now,
        "send_lease_until": None,
    }
