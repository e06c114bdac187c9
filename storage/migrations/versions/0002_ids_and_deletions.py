"""Ids are reserved ahead of what is on the disk; of a file to be deleted the stem alone is kept."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    reserve = op.create_table("id_reserve", sa.Column("upto", sa.BigInteger, nullable=False))
    op.bulk_insert(reserve, [{"upto": 0}])
    op.rename_table("doomed_files", "files_to_delete")
    op.drop_column("files_to_delete", "key")
