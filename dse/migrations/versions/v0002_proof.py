"""A trial may have a proof: what building and emulating its firmware gave."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One more column."""
    op.add_column("dse_evaluations", sa.Column("proof_json", sa.Text))


def downgrade() -> None:
    """Back to the first schema; the proofs are lost."""
    with op.batch_alter_table("dse_evaluations") as table:
        table.drop_column("proof_json")
