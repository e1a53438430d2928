"""The bytes of an artifact may lie in a store outside the database."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Where they lie; NULL for bytes in the database."""
    op.add_column("dse_artifacts", sa.Column("store", sa.Text))


def downgrade() -> None:
    """All of them in the database; those that are not there are lost."""
    with op.batch_alter_table("dse_artifacts") as table:
        table.drop_column("store")
