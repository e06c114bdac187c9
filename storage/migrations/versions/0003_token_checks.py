"""How often, and when, the platform was asked whether the access_token lives."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    for name in ("checked_at", "checks"):
        op.add_column("tokens", sa.Column(name, sa.Double, nullable=False, server_default=sa.text("0")))
