"""The handler's reply while the file that it names is still to be uploaded: so that the handler runs once."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("works", sa.Column("reply", sa.LargeBinary))
