"""The first schema: studies, evaluations, fronts and artifacts.

A script never changes once it is released, so it names its columns itself and imports none.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

METRICS = ("accuracy", "flash_bytes", "ram_bytes", "latency_s", "energy_j", "test_accuracy")


def upgrade() -> None:
    """Make the five tables."""
    op.create_table(
        "dse_studies",
        sa.Column("study_id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(512), nullable=False, unique=True),
        sa.Column("optuna_study_id", sa.Integer, nullable=False),
        sa.Column("created", sa.Float(53), nullable=False),
        sa.Column("workload", sa.Text, nullable=False),
        sa.Column("sampler", sa.String(64), nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("n_trials", sa.Integer, nullable=False),
        sa.Column("space_hash", sa.String(128), nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in _study_texts()),
    )
    op.create_table("dse_evaluations", *_evaluation())
    op.create_index("ix_dse_evaluations_candidate_key", "dse_evaluations", ["candidate_key"])
    op.create_index("ix_dse_evaluations_network_key", "dse_evaluations", ["network_key"])
    op.create_index("ix_dse_evaluations_study_id_state", "dse_evaluations", ["study_id", "state"])
    op.create_table(
        "dse_fronts",
        sa.Column(
            "study_id",
            sa.Integer,
            sa.ForeignKey("dse_studies.study_id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("hypervolume", sa.Float(53), nullable=False),
        sa.Column("members_json", sa.Text, nullable=False),
    )
    op.create_table(
        "dse_artifacts",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("blob", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "dse_trial_artifacts",
        sa.Column(
            "evaluation_id",
            sa.Integer,
            sa.ForeignKey("dse_evaluations.evaluation_id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("kind", sa.String(64), primary_key=True),
        sa.Column("sha256", sa.String(64), sa.ForeignKey("dse_artifacts.sha256"), nullable=False),
    )


def downgrade() -> None:
    """Drop them again."""
    for table in ("trial_artifacts", "artifacts", "fronts", "evaluations", "studies"):
        op.drop_table(f"dse_{table}")


def _study_texts() -> tuple[str, ...]:
    return (
        "study_file",
        "definition_json",
        "space_json",
        "distributions_json",
        "sampler_settings_json",
        "objectives_json",
        "constraints_json",
        "box_json",
        "versions_json",
    )


def _evaluation() -> list[sa.schema.SchemaItem]:
    return [
        sa.Column("evaluation_id", sa.Integer, primary_key=True),
        sa.Column(
            "study_id",
            sa.Integer,
            sa.ForeignKey("dse_studies.study_id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("optuna_trial_id", sa.Integer, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("candidate_key", sa.String(128), nullable=False),
        sa.Column("network_key", sa.String(128), nullable=False),
        sa.Column("board", sa.Text),
        sa.Column("backend", sa.Text),
        sa.Column("clock_hz", sa.Float(53)),
        *(column for metric in METRICS for column in _metric(metric)),
        sa.Column("validation_samples", sa.Integer, nullable=False),
        sa.Column("test_samples", sa.Integer, nullable=False),
        sa.Column("parameters", sa.BigInteger, nullable=False),
        sa.Column("macs", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("trained", sa.Boolean, nullable=False),
        sa.Column("baseline", sa.Text, nullable=False),
        sa.Column("started", sa.Float(53), nullable=False),
        sa.Column("finished", sa.Float(53), nullable=False),
        sa.Column("params_json", sa.Text, nullable=False),
        sa.Column("candidate_json", sa.Text, nullable=False),
        sa.Column("violations_json", sa.Text, nullable=False),
        sa.Column("stage_s_json", sa.Text, nullable=False),
        sa.Column("attrs_json", sa.Text, nullable=False),
        sa.UniqueConstraint("study_id", "number"),
    ]


def _metric(prefix: str) -> list[sa.schema.SchemaItem]:
    return [
        sa.Column(prefix, sa.Float(53)),
        sa.Column(f"{prefix}_low", sa.Float(53)),
        sa.Column(f"{prefix}_high", sa.Float(53)),
        sa.Column(f"{prefix}_provenance", sa.String(16)),
        sa.Column(f"{prefix}_source", sa.Text),
    ]
