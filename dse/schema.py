"""Our tables of the database (`dse_*`) and their version.

They are made and changed only by the alembic scripts of `dse/migrations`; a test holds the
definitions here equal to what the scripts make. Optuna's tables are in `optuna_tables`.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dse.errors import StorageError
from dse.trial import METRICS

VERSION_TABLE = "dse_schema_version"
# Oldest first; the last one is what this code reads and writes.
REVISIONS = ("0001", "0002", "0003", "0004")


def metric_columns(prefix: str) -> tuple[str, str, str, str, str]:
    """The columns that hold one metric: value, low, high, provenance, source."""
    return (prefix, f"{prefix}_low", f"{prefix}_high", f"{prefix}_provenance", f"{prefix}_source")


def _metric(prefix: str) -> list[sa.Column[float] | sa.Column[str]]:
    value, low, high, provenance, source = metric_columns(prefix)
    return [
        sa.Column(value, sa.Float(53)),
        sa.Column(low, sa.Float(53)),
        sa.Column(high, sa.Float(53)),
        sa.Column(provenance, sa.String(16)),
        sa.Column(source, sa.Text),
    ]


METRIC_PREFIXES: dict[str, str] = {name: kind.column for name, kind in METRICS.items()}
TEST_PREFIX = "test_accuracy"

_ZERO = sa.text("0")

ours = sa.MetaData()
studies = sa.Table(
    "dse_studies",
    ours,
    sa.Column("study_id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(512), nullable=False, unique=True),
    # Optuna's study_id, without a foreign key: what is ours outlives a study deleted there.
    sa.Column("optuna_study_id", sa.Integer, nullable=False),
    sa.Column("created", sa.Float(53), nullable=False),
    sa.Column("workload", sa.Text, nullable=False),
    sa.Column("sampler", sa.String(64), nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("n_trials", sa.Integer, nullable=False),
    sa.Column("space_hash", sa.String(128), nullable=False),
    sa.Column("study_file", sa.Text, nullable=False),
    sa.Column("definition_json", sa.Text, nullable=False),
    sa.Column("space_json", sa.Text, nullable=False),
    sa.Column("distributions_json", sa.Text, nullable=False),
    sa.Column("sampler_settings_json", sa.Text, nullable=False),
    sa.Column("objectives_json", sa.Text, nullable=False),
    sa.Column("constraints_json", sa.Text, nullable=False),
    sa.Column("box_json", sa.Text, nullable=False),
    sa.Column("versions_json", sa.Text, nullable=False),
    # One more with every change of its trials; each of them remembers its last.
    sa.Column("revision", sa.Integer, nullable=False, server_default=_ZERO),
)
evaluations = sa.Table(
    "dse_evaluations",
    ours,
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
    sa.Column("candidate_key", sa.String(128), nullable=False, index=True),
    sa.Column("network_key", sa.String(128), nullable=False, index=True),
    sa.Column("board", sa.Text),
    sa.Column("backend", sa.Text),
    sa.Column("clock_hz", sa.Float(53)),
    *(column for prefix in METRIC_PREFIXES.values() for column in _metric(prefix)),
    *_metric(TEST_PREFIX),
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
    # What building and emulating the design gave; its details are the artifact `verification`.
    sa.Column("proof_json", sa.Text),
    sa.Column("revision", sa.Integer, nullable=False, server_default=_ZERO),
    # How often it was begun, without those that were handed back; who finished it.
    sa.Column("attempts", sa.Integer, nullable=False, server_default=_ZERO),
    sa.Column("worker_id", sa.Integer),
    sa.UniqueConstraint("study_id", "number"),
    sa.Index("ix_dse_evaluations_study_id_state", "study_id", "state"),
    sa.Index("ix_dse_evaluations_study_id_revision", "study_id", "revision"),
)
fronts = sa.Table(
    "dse_fronts",
    ours,
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
artifacts = sa.Table(
    "dse_artifacts",
    ours,
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("blob", sa.LargeBinary, nullable=False),
    # The URL of the store that has the bytes, where the database has not.
    sa.Column("store", sa.Text),
)
trial_artifacts = sa.Table(
    "dse_trial_artifacts",
    ours,
    sa.Column(
        "evaluation_id",
        sa.Integer,
        sa.ForeignKey("dse_evaluations.evaluation_id", ondelete="CASCADE"),
        primary_key=True,
    ),
    sa.Column("kind", sa.String(64), primary_key=True),
    sa.Column("sha256", sa.String(64), sa.ForeignKey("dse_artifacts.sha256"), nullable=False),
)
# Who works on a study. `beats` counts heartbeats: a worker is lost when others see no new one, by
# their own steady clocks. `joined`, `seen` and `ended` are the database's time, for people.
workers = sa.Table(
    "dse_workers",
    ours,
    sa.Column("worker_id", sa.Integer, primary_key=True),
    sa.Column(
        "study_id",
        sa.Integer,
        sa.ForeignKey("dse_studies.study_id", ondelete="CASCADE"),
        nullable=False,
        index=True,
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
# Running trials and who runs them; what is trained has one key, so nobody can train it twice.
claims = sa.Table(
    "dse_claims",
    ours,
    sa.Column(
        "evaluation_id",
        sa.Integer,
        sa.ForeignKey("dse_evaluations.evaluation_id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    sa.Column(
        "study_id",
        sa.Integer,
        sa.ForeignKey("dse_studies.study_id", ondelete="CASCADE"),
        nullable=False,
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
_version = sa.Table(VERSION_TABLE, sa.MetaData(), sa.Column("version_num", sa.String(32)))


def revision(connection: Connection) -> str | None:
    """The revision of our tables, or None in a database that has none of them."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(sa.select(_version.c.version_num)).scalar()


def check(found: str | None) -> bool:
    """Whether the tables of this revision need an upgrade.

    Raises StorageError when a newer version of dse made them.
    """
    if found is not None and found not in REVISIONS:
        raise StorageError(
            f"the database has schema version {found}, this dse knows {REVISIONS[0]} to "
            f"{REVISIONS[-1]}: a newer dse wrote it; upgrade with pip install --upgrade dse"
        )
    return found != REVISIONS[-1]


def upgrade(connection: Connection, to: str = "head") -> None:
    """Bring our tables to a revision inside the caller's transaction (alembic)."""
    # Only here: alembic costs a fifth of a second and is not needed to read a database.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, to)
