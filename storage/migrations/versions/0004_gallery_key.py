"""The random key of the gallery's sessions, and the addresses from which somebody signed in."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "gallery_key",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("key", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "known_addresses",
        sa.Column("address", sa.Text, primary_key=True),
        sa.Column("until", sa.Double, nullable=False),
    )
