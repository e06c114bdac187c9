"""The first schema: messages with their two queues, what a purge leaves to do, and the shared access_token."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _lane(name: str) -> list[sa.Column[object]]:
    return [
        sa.Column(f"{name}_state", sa.Text),
        sa.Column(f"{name}_due", sa.Double),
        sa.Column(f"{name}_lease_until", sa.Double),
        sa.Column(f"{name}_claim", sa.BigInteger),
        sa.Column(f"{name}_attempts", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column(f"{name}_code", sa.Integer),
        sa.Column(f"{name}_reason", sa.Text),
        sa.Column(f"{name}_done_at", sa.Double),
    ]


def upgrade() -> None:
    row_id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    key = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    op.create_table(
        "messages",
        sa.Column("id", row_id, primary_key=True),
        sa.Column("appid", sa.Text, nullable=False),
        sa.Column("sender", sa.Text, nullable=False),
        sa.Column("message_key", key, nullable=False),
        sa.Column("msg_type", sa.Text, nullable=False),
        sa.Column("event", sa.Text),
        sa.Column("msg_id", sa.Text),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("received_at", sa.Double, nullable=False),
        sa.Column("xml", sa.LargeBinary, nullable=False),
        sa.Column("reply", sa.LargeBinary),
        *_lane("media"),
        sa.Column("media_id", sa.Text),
        sa.Column("media_kind", sa.Text),
        sa.Column("media_key", sa.Text),
        sa.Column("media_size", sa.BigInteger),
        sa.Column("media_sha256", sa.Text),
        sa.Column("thumbnail_due", sa.Double),
        sa.Column("thumbnail_state", sa.Text),
        *_lane("send"),
        sa.Column("send_uploaded_media_id", sa.Text),
        sa.Column(
            "send_sending", sa.Boolean(create_constraint=False), nullable=False, server_default=sa.false()
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("messages_key", "messages", ["message_key", "sender", "appid"], unique=True)
    for name, columns, condition in (
        ("downloads_due", "media_due received_at media_kind sender media_state", "media_state = 'pending'"),
        ("downloads_stored", "id", "media_state = 'stored'"),
        ("downloads_failed", "id", "media_state = 'failed'"),
        ("sends_due", "send_due", "send_state = 'pending'"),
        ("sends_failed", "id", "send_state = 'failed'"),
        ("gallery_kinds", "media_state media_kind received_at id", "media_done_at IS NOT NULL"),
        ("gallery_fans", "sender media_state media_kind received_at id", "media_done_at IS NOT NULL"),
        ("thumbnails_due", "thumbnail_due", "thumbnail_due IS NOT NULL"),
        ("results_working", "id", "send_state = 'working'"),
        ("results_owed", "sender id", "send_state = 'owed'"),
        ("unsubscribed", "id", "event = 'unsubscribe'"),
    ):
        where = sa.text(condition)
        indexed = ["appid", *columns.split()]
        op.create_index(name, "messages", indexed, sqlite_where=where, postgresql_where=where)
    op.create_table(
        "doomed_files",
        sa.Column("stem", sa.Text, primary_key=True),
        sa.Column("appid", sa.Text, nullable=False),
        sa.Column("key", sa.Text),
        sa.Column("due", sa.Double, nullable=False),
    )
    op.create_table(
        "purge_index",
        sa.Column("id", row_id, primary_key=True, autoincrement=False),
        sa.Column("block", sa.Integer, nullable=False),
        sa.Column("appid", sa.Text, nullable=False),
        sa.Column("sender", sa.Text, nullable=False),
        sa.Column("received_at", sa.Double, nullable=False),
    )
    op.create_index("purge_index_sender", "purge_index", ["appid", "block", "sender"])
    op.create_index("purge_index_received_at", "purge_index", ["appid", "received_at"])
    upto = op.create_table("purge_index_upto", sa.Column("id", sa.BigInteger, nullable=False))
    op.bulk_insert(upto, [{"id": 0}])
    op.create_table(
        "tokens",
        sa.Column("appid", sa.Text, primary_key=True),
        sa.Column("value", sa.Text),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.Column("fetched_at", sa.Double, nullable=False),
        sa.Column("retry_at", sa.Double, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("code", sa.Integer),
        sa.Column("forced_at", sa.Double, nullable=False),
        sa.Column("forced_day", sa.Integer, nullable=False),
        sa.Column("forced_count", sa.Integer, nullable=False),
        sa.Column("lease_holder", sa.Text),
        sa.Column("lease_until", sa.Double),
    )
    op.create_table(
        "token_fetches",
        sa.Column("appid", sa.Text, primary_key=True),
        sa.Column("result", sa.Text, primary_key=True),
        sa.Column("count", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "sign_in_attempts",
        sa.Column("address", sa.Text, primary_key=True),
        sa.Column("first_at", sa.Double, nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
    )
    op.create_table(
        "ended_sessions",
        sa.Column("session", sa.Text, primary_key=True),
        sa.Column("until", sa.Double, nullable=False),
    )
    op.create_table(
        "works",
        sa.Column("id", row_id, primary_key=True, autoincrement=False),
        sa.Column("appid", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("due", sa.Double, nullable=False),
        sa.Column("lease_until", sa.Double),
        sa.Column("claim", sa.BigInteger),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("deliveries", sa.Integer, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("done_at", sa.Double),
        sa.Column("result", sa.LargeBinary),
    )
    pending = sa.text("state = 'pending'")
    op.create_index("works_due", "works", ["appid", "id"], sqlite_where=pending, postgresql_where=pending)
