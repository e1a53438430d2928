"""Several workers on a study: who they are, which trials they hold, and what changed last."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_STUDY = "dse_studies.study_id"
_EVALUATION = "dse_evaluations.evaluation_id"
_ZERO = sa.text("0")


def upgrade() -> None:
    """Two tables, and counters of changes and attempts."""
    op.add_column(
        "dse_studies", sa.Column("revision", sa.Integer, nullable=False, server_default=_ZERO)
    )
    for name in ("revision", "attempts"):
        op.add_column(
            "dse_evaluations", sa.Column(name, sa.Integer, nullable=False, server_default=_ZERO)
        )
    op.add_column("dse_evaluations", sa.Column("worker_id", sa.Integer))
    op.create_index(
        "ix_dse_evaluations_study_id_revision", "dse_evaluations", ["study_id", "revision"]
    )
    op.create_table(
        "dse_workers",
        sa.Column("worker_id", sa.Integer, primary_key=True),
        sa.Column(
            "study_id", sa.Integer, sa.ForeignKey(_STUDY, ondelete="CASCADE"), nullable=False
        ),
        sa.Column("ordinal", sa.Integer, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("process", sa.Text, nullable=False),
        sa.Column("slot_json", sa.Text, nullable=False),
        sa.Column("joined", sa.Float(53), nullable=False),
        sa.Column("seen", sa.Float(53), nullable=False),
        sa.Column("beats", sa.BigInteger, nullable=False),
        sa.Column("finished", sa.Integer, nullable=False),
        sa.Column("ended", sa.Float(53)),
        sa.Column("ending", sa.String(16), nullable=False),
    )
    op.create_index("ix_dse_workers_study_id", "dse_workers", ["study_id"])
    op.create_table(
        "dse_claims",
        sa.Column(
            "evaluation_id",
            sa.Integer,
            sa.ForeignKey(_EVALUATION, ondelete="CASCADE"),
            primary_key=True,
            autoincrement=False,
        ),
        sa.Column(
            "study_id", sa.Integer, sa.ForeignKey(_STUDY, ondelete="CASCADE"), nullable=False
        ),
        sa.Column("claim_key", sa.String(255), nullable=False),
        sa.Column(
            "worker_id",
            sa.Integer,
            sa.ForeignKey("dse_workers.worker_id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.UniqueConstraint("study_id", "claim_key"),
    )


def downgrade() -> None:
    """Back to one worker a study."""
    op.drop_table("dse_claims")
    op.drop_table("dse_workers")
    op.drop_index("ix_dse_evaluations_study_id_revision", "dse_evaluations")
    with op.batch_alter_table("dse_evaluations") as table:
        for name in ("revision", "attempts", "worker_id"):
            table.drop_column(name)
    with op.batch_alter_table("dse_studies") as table:
        table.drop_column("revision")
