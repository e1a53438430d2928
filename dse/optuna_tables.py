"""Optuna's tables: made by Optuna once, then written by us in the transaction of our own rows.

Optuna itself commits once a suggestion, attribute and value. We write the same rows in bulk, so
that its samplers, plots and dashboard read our studies like any other. The columns here are those
of Optuna's schema v3.2.0.a (Optuna 3.2 to 5); a contract test reads every study back with Optuna.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection

from dse import rows
from dse.database import BUSY_TIMEOUT_S, shown, sqlite_path
from dse.errors import StorageError
from dse.rows import Row, StudyRecord, dump
from dse.trial import METRICS, MetricName, State, Trial

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

# Under which Optuna keeps the names of a study's objectives.
METRIC_NAMES = "study:metric_names"
TRIAL_STATES = ("RUNNING", "COMPLETE", "PRUNED", "FAIL", "WAITING")

_optuna = sa.MetaData()
studies = sa.Table(
    "studies",
    _optuna,
    sa.Column("study_id", sa.Integer, primary_key=True),
    sa.Column("study_name", sa.String(512)),
)
study_directions = sa.Table(
    "study_directions",
    _optuna,
    sa.Column("study_direction_id", sa.Integer, primary_key=True),
    sa.Column("direction", sa.Enum("NOT_SET", "MINIMIZE", "MAXIMIZE", name="studydirection")),
    sa.Column("study_id", sa.Integer),
    sa.Column("objective", sa.Integer),
)
study_system_attributes = sa.Table(
    "study_system_attributes",
    _optuna,
    sa.Column("study_system_attribute_id", sa.Integer, primary_key=True),
    sa.Column("study_id", sa.Integer),
    sa.Column("key", sa.String(512)),
    sa.Column("value_json", sa.Text),
)
trials = sa.Table(
    "trials",
    _optuna,
    sa.Column("trial_id", sa.Integer, primary_key=True),
    sa.Column("number", sa.Integer),
    sa.Column("study_id", sa.Integer),
    sa.Column("state", sa.Enum(*TRIAL_STATES, name="trialstate")),
    sa.Column("datetime_start", sa.DateTime),
    sa.Column("datetime_complete", sa.DateTime),
)
trial_params = sa.Table(
    "trial_params",
    _optuna,
    sa.Column("param_id", sa.Integer, primary_key=True),
    sa.Column("trial_id", sa.Integer),
    sa.Column("param_name", sa.String(512)),
    sa.Column("param_value", sa.Float(53)),
    sa.Column("distribution_json", sa.Text),
)
trial_values = sa.Table(
    "trial_values",
    _optuna,
    sa.Column("trial_value_id", sa.Integer, primary_key=True),
    sa.Column("trial_id", sa.Integer),
    sa.Column("objective", sa.Integer),
    sa.Column("value", sa.Float(53)),
    sa.Column("value_type", sa.Enum("FINITE", "INF_POS", "INF_NEG", name="trialvaluetype")),
)


def _attributes(kind: str) -> sa.Table:
    return sa.Table(
        f"trial_{kind}_attributes",
        _optuna,
        sa.Column(f"trial_{kind}_attribute_id", sa.Integer, primary_key=True),
        sa.Column("trial_id", sa.Integer),
        sa.Column("key", sa.String(512)),
        sa.Column("value_json", sa.Text),
    )


system_attributes = _attributes("system")
user_attributes = _attributes("user")


@dataclass(frozen=True)
class StudyKeys:
    """What a write needs to know about its study; only its objectives ever change."""

    name: str
    study_id: int
    optuna_study_id: int
    objectives: tuple[MetricName, ...]
    distributions_json: str

    @cached_property
    def knobs(self) -> Mapping[str, BaseDistribution]:
        """Optuna's distributions by knob."""
        return rows.distributions(self.distributions_json)

    @cached_property
    def knobs_json(self) -> Mapping[str, str]:
        """The same as the texts that every parameter's row repeats."""
        from optuna.distributions import distribution_to_json

        return {name: distribution_to_json(found) for name, found in self.knobs.items()}


def state_name(trial: Trial, objectives: Sequence[MetricName]) -> str:
    """Optuna's name for the trial's state.

    An infeasible trial whose objectives are all known is COMPLETE with violated constraints, so
    that Optuna's samplers learn from its values; one that was never evaluated is PRUNED.
    """
    if trial.state is State.INFEASIBLE:
        known = all(trial.value(name) is not None for name in objectives)
        violated = any(miss > 0 for miss in trial.violations.values())
        return "COMPLETE" if known and violated else "PRUNED"
    return "FAIL" if trial.state is State.FAILED else trial.state.name


def create_study(url: URL, record: StudyRecord) -> int:
    """Let Optuna make its tables, where there are none, and the study in them; its study_id.

    An empty study of the same name and directions is taken over: a crash may have left it.
    Raises StorageError when one with trials exists, or the tables are of another version.
    """
    import optuna

    directions = [METRICS[name].direction for name in record.objectives]
    options = {"connect_args": {"timeout": BUSY_TIMEOUT_S}} if sqlite_path(url) else {}
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would announce the study
    try:
        storage = optuna.storages.RDBStorage(
            url.render_as_string(hide_password=False), engine_kwargs=options
        )
        study = optuna.create_study(
            storage=storage, study_name=record.name, directions=directions, load_if_exists=True
        )
        found = [direction.name.lower() for direction in study.directions]
        if study.get_trials(deepcopy=False) or found != directions:
            raise StorageError(
                f"{shown(url)} holds a study '{record.name}' that Optuna made without dse; choose "
                "another name"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([METRICS[name].column for name in record.objectives])
        study_id = storage.get_study_id_from_name(record.name)
        storage.engine.dispose()
        return study_id
    except optuna.exceptions.StorageInternalError as error:
        raise StorageError(f"database {shown(url)}: {error.__cause__ or error}") from error
    except RuntimeError as error:  # its tables are of another version
        raise StorageError(f"database {shown(url)}: {error}") from error
    finally:
        optuna.logging.set_verbosity(verbosity)


def exists(connection: Connection, study: StudyKeys) -> bool:
    """Whether Optuna still has the study under the name it was created with."""
    there = sa.select(studies.c.study_id).where(
        studies.c.study_id == study.optuna_study_id, studies.c.study_name == study.name
    )
    return connection.execute(there).first() is not None


def set_objectives(connection: Connection, study: StudyKeys) -> None:
    """Give Optuna's study other directions and metric names; its trials are to be written anew."""
    for table in (study_directions, study_system_attributes):
        mine = table.c.study_id == study.optuna_study_id
        if table is study_system_attributes:
            mine &= table.c.key == METRIC_NAMES
        connection.execute(sa.delete(table).where(mine))
    directions = [METRICS[name].direction.upper() for name in study.objectives]
    connection.execute(
        sa.insert(study_directions),
        [
            {"study_id": study.optuna_study_id, "objective": index, "direction": direction}
            for index, direction in enumerate(directions)
        ],
    )
    names = [METRICS[name].column for name in study.objectives]
    row = {"study_id": study.optuna_study_id, "key": METRIC_NAMES, "value_json": dump(names)}
    connection.execute(sa.insert(study_system_attributes), row)


def insert(connection: Connection, study: StudyKeys, trial: Trial) -> int:
    """Write a trial that Optuna does not have yet; its trial_id."""
    trial_id = insert_one(connection, trials, _trial_row(trial, study))
    _insert_children(connection, trial_id, trial, study)
    return trial_id


def replace(
    connection: Connection, trial_id: int, study: StudyKeys, trial: Trial, same_params: bool
) -> None:
    """Write a trial over what Optuna has under this trial_id; `same_params` stay as they are."""
    row = _trial_row(trial, study)
    connection.execute(sa.update(trials).where(trials.c.trial_id == trial_id).values(row))
    for table in (trial_params, trial_values, system_attributes, user_attributes):
        if table is not trial_params or not same_params:
            connection.execute(sa.delete(table).where(table.c.trial_id == trial_id))
    _insert_children(connection, trial_id, trial, study, same_params)


def requeue(connection: Connection, trial_ids: Sequence[int]) -> None:
    """Make these trials wait again."""
    connection.execute(
        sa.update(trials)
        .where(trials.c.trial_id.in_(trial_ids))
        .values(state="WAITING", datetime_start=None)
    )


def insert_one(connection: Connection, table: sa.Table, row: Row) -> int:
    """Insert a row; its integer primary key."""
    key: Any = connection.execute(sa.insert(table), row).inserted_primary_key
    return int(key[0])


def _insert_children(
    connection: Connection, trial_id: int, trial: Trial, study: StudyKeys, same_params: bool = False
) -> None:
    params = {} if same_params else trial.params
    complete = state_name(trial, study.objectives) == "COMPLETE"
    constraints = {f"constraints:{text}": miss for text, miss in trial.violations.items()}
    children: list[tuple[sa.Table, list[Row]]] = [
        (trial_params, [_param_row(trial, *item, study) for item in params.items()]),
        (trial_values, _value_rows(trial, study.objectives) if complete else []),
        (system_attributes, _attribute_rows({**trial.attrs, **constraints})),
        (user_attributes, _attribute_rows(_shown_attributes(trial, study.objectives))),
    ]
    for table, found in children:
        if found:
            connection.execute(sa.insert(table), [{"trial_id": trial_id, **row} for row in found])


def _trial_row(trial: Trial, study: StudyKeys) -> Row:
    return {
        "number": trial.number,
        "study_id": study.optuna_study_id,
        "state": state_name(trial, study.objectives),
        "datetime_start": _utc(trial.started),
        "datetime_complete": _utc(trial.finished) if trial.state.finished else None,
    }


def _param_row(trial: Trial, knob: str, value: Any, study: StudyKeys) -> Row:
    distribution = study.knobs.get(knob)
    if distribution is None:
        raise StorageError(f"trial {trial.number} has the knob '{knob}', its study's space has not")
    try:
        internal = distribution.to_internal_repr(value)
    except (ValueError, TypeError) as error:
        raise StorageError(
            f"trial {trial.number}: {value!r} is not a value of the knob '{knob}'"
        ) from error
    return {
        "param_name": knob,
        "param_value": internal,
        "distribution_json": study.knobs_json[knob],
    }


def _value_rows(trial: Trial, objectives: Sequence[MetricName]) -> list[Row]:
    unknown = [name for name in objectives if trial.value(name) is None]
    if unknown:
        raise StorageError(
            f"trial {trial.number} is complete, but its {', '.join(unknown)} is not known"
        )
    missed = [text for text, miss in trial.violations.items() if miss > 0]
    if trial.feasible and missed:
        raise StorageError(
            f"trial {trial.number} is complete, but misses {missed[0]}; store it as infeasible"
        )
    return [
        {"objective": index, "value": trial.value(name), "value_type": "FINITE"}
        for index, name in enumerate(objectives)
    ]


def _attribute_rows(attributes: Mapping[str, Any]) -> list[Row]:
    return [{"key": key, "value_json": dump(value)} for key, value in attributes.items()]


def _shown_attributes(trial: Trial, objectives: Sequence[MetricName]) -> dict[str, Any]:
    """What Optuna's dashboard should show beside params and values."""
    found: dict[str, Any] = {
        kind.column: trial.value(name) for name, kind in METRICS.items() if name not in objectives
    }
    found |= dict(trial.candidate.get("target", {}))
    found |= {name: getattr(trial, name) for name in ("reason", "baseline", "candidate_key")}
    return {name: value for name, value in found.items() if value not in (None, "")}


def _utc(seconds: float) -> datetime | None:
    """Optuna's naive UTC time; 0 stands for 'not yet'."""
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None) if seconds else None
