"""Why there is no access_token, in Chinese: beside the English reason, which had both before."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("tokens", sa.Column("reason_zh", sa.Text))
