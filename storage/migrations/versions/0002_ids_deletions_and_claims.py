"""Ids are reserved ahead of what is on the disk; a file to be deleted is kept by its stem; the last claim is noted."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    reserve = op.create_table("id_reserve", sa.Column("upto", sa.BigInteger, nullable=False))
    op.bulk_insert(reserve, [{"upto": 0}])
    op.create_table(
        "last_claims",
        sa.Column("appid", sa.Text, primary_key=True),
        sa.Column("at", sa.Double, nullable=False),
    )
    op.rename_table("doomed_files", "files_to_delete")
    op.drop_column("files_to_delete", "key")
