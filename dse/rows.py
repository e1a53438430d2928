"""How a study and a trial become rows of our tables, and back again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dse import schema
from dse.errors import StorageError
from dse.pareto import Box
from dse.trial import METRICS, Metric, MetricName, Proof, State, Trial

if TYPE_CHECKING:
    import pandas as pd
    from optuna.distributions import BaseDistribution

Row = dict[str, Any]

_PREFIXES = {**schema.METRIC_PREFIXES, "": schema.TEST_PREFIX}
_EVALUATION_KEYS = (
    *("evaluation_id", "study_id", "optuna_trial_id"),
    *("revision", "attempts", "worker_id"),
)
_COPIED = (
    "number",
    "candidate_key",
    "network_key",
    "validation_samples",
    "test_samples",
    "parameters",
    "macs",
    "reason",
    "trained",
    "baseline",
    "started",
    "finished",
)
_JSON = ("params", "candidate", "violations", "stage_s", "attrs")
_STUDY_JSON = ("definition", "space", "sampler_settings", "constraints", "versions")
_STUDY_COPIED = (
    "name",
    "created",
    "workload",
    "sampler",
    "seed",
    "n_trials",
    "space_hash",
    "study_file",
)
TRIAL_COLUMNS = [c for c in schema.evaluations.columns if c.name not in _EVALUATION_KEYS]


@dataclass(frozen=True)
class StudyRecord:
    """What a study is: all that a resume needs, stored once when it is created.

    `created` is in seconds since 1970 UTC, `study_file` the YAML text, `definition` what it was
    validated to, `space` the knobs and `distributions` Optuna's form of them by knob name. The
    `box` has one axis an objective, in their order.
    Raises StorageError when objectives, box or number of trials contradict each other.
    """

    name: str
    created: float
    study_file: str
    definition: Mapping[str, Any]
    space_hash: str
    space: Sequence[Mapping[str, Any]]
    distributions: Mapping[str, BaseDistribution]
    sampler: str
    sampler_settings: Mapping[str, Any]
    seed: int
    objectives: tuple[MetricName, ...]
    constraints: tuple[str, ...]
    box: Box
    n_trials: int
    versions: Mapping[str, str]
    workload: str

    def __post_init__(self) -> None:
        if not 1 <= len(self.name) <= 512:
            raise StorageError(f"a study's name has 1 to 512 characters; found {len(self.name)}")
        if self.box.metrics != self.objectives:
            raise StorageError(
                f"the box has the axes {', '.join(self.box.metrics)}, the study the objectives "
                f"{', '.join(self.objectives)}; they must be the same, in the same order"
            )
        if self.n_trials < 1:
            raise StorageError(f"a study needs at least one trial; found {self.n_trials}")

    @property
    def folder(self) -> Path:
        """Where the study file lay, and with it the modules that it names.

        Raises StorageError for a study with modules of its own that came from another database:
        no database says from which folder of this machine code is run.
        """
        found = self.definition.get("folder")
        if not found and isinstance(self.definition.get("workload"), Mapping):
            raise StorageError(
                f"study '{self.name}' was imported, and its network and data are code; give its "
                "study file, which lies beside them, instead of its name"
            )
        return Path(found or ".")


@dataclass(frozen=True)
class StudySummary:
    """One line of `dse studies`: counts by state, the last front's size and hypervolume."""

    name: str
    workload: str
    objectives: tuple[MetricName, ...]
    created: float
    n_trials: int
    counts: Mapping[State, int]
    hypervolume: float
    front_size: int


@dataclass(frozen=True)
class FrontChange:
    """The front as it was after trial `number` finished: its members and their hypervolume."""

    number: int
    hypervolume: float
    members: tuple[int, ...]


def study_row(record: StudyRecord, optuna_study_id: int) -> Row:
    """The row of dse_studies."""
    from optuna.distributions import distribution_to_json

    row = {name: getattr(record, name) for name in _STUDY_COPIED}
    row |= {f"{name}_json": dump(getattr(record, name)) for name in _STUDY_JSON}
    row["distributions_json"] = dump(
        {knob: json.loads(distribution_to_json(d)) for knob, d in record.distributions.items()}
    )
    row["objectives_json"] = dump(record.objectives)
    row["box_json"] = dump(record.box.to_dict())
    return row | {"optuna_study_id": optuna_study_id}


def study_record(row: Mapping[str, Any]) -> StudyRecord:
    """The record that `study_row` stored."""
    stored = {name: json.loads(row[f"{name}_json"]) for name in _STUDY_JSON}
    return StudyRecord(
        **{name: row[name] for name in _STUDY_COPIED},
        **{**stored, "constraints": tuple(stored["constraints"])},
        distributions=distributions(row["distributions_json"]),
        objectives=tuple(json.loads(row["objectives_json"])),
        box=Box.from_dict(json.loads(row["box_json"])),
    )


def distributions(stored: str) -> dict[str, BaseDistribution]:
    """Optuna's distributions by knob, as `study_row` stored them."""
    from optuna.distributions import json_to_distribution

    return {knob: json_to_distribution(dump(d)) for knob, d in json.loads(stored).items()}


def wishes_row(record: StudyRecord) -> Row:
    """The columns of dse_studies that change with a study's limits and objectives."""
    return {
        "study_file": record.study_file,
        "definition_json": dump(record.definition),
        "constraints_json": dump(record.constraints),
        "objectives_json": dump(record.objectives),
        "box_json": dump(record.box.to_dict()),
    }


def front_row(study_id: int, change: FrontChange) -> Row:
    """The row of dse_fronts."""
    return {
        "study_id": study_id,
        "number": change.number,
        "hypervolume": change.hypervolume,
        "members_json": dump([int(member) for member in change.members]),
    }


def evaluation_row(trial: Trial, study_id: int, optuna_trial_id: int) -> Row:
    """The row of dse_evaluations; raises StorageError for a metric that has no columns."""
    unknown = set(trial.metrics) - set(METRICS)
    if unknown:
        raise StorageError(f"trial {trial.number} has metrics without a column: {sorted(unknown)}")
    target = trial.candidate.get("target", {})
    row: Row = {name: getattr(trial, name) for name in _COPIED}
    row |= {f"{name}_json": dump(getattr(trial, name)) for name in _JSON}
    row |= {name: target.get(name) for name in ("board", "backend", "clock_hz")}
    row |= {"reason": _storable(trial.reason), "state": trial.state.value}
    for name, prefix in _PREFIXES.items():
        row |= metric_row(prefix, trial.metrics.get(name) if name else trial.test_accuracy)
    row["proof_json"] = proof_text(trial.proof)
    return row | {"study_id": study_id, "optuna_trial_id": optuna_trial_id}


def proof_text(proof: Proof | None) -> str | None:
    """A proof as its column holds it."""
    if proof is None:
        return None
    return dump(asdict(proof) | {"reason": _storable(proof.reason)})


def metric_row(prefix: str, metric: Metric | None) -> Row:
    """One metric's five columns; all None when the trial does not have it."""
    found: tuple[Any, ...] = (None,) * 5
    if metric is not None:
        source = _storable(metric.source)
        found = (metric.value, metric.low, metric.high, metric.provenance, source)
    return dict(zip(schema.metric_columns(prefix), found, strict=True))


def trial_of(row: Mapping[str, Any]) -> Trial:
    """The trial that `evaluation_row` stored."""
    metrics = {name: _metric(row, prefix) for name, prefix in schema.METRIC_PREFIXES.items()}
    return Trial(
        **{name: row[name] for name in _COPIED},
        **{name: json.loads(row[f"{name}_json"]) for name in _JSON},
        state=State(row["state"]),
        metrics={name: metric for name, metric in metrics.items() if metric is not None},
        test_accuracy=_metric(row, schema.TEST_PREFIX),
        proof=Proof(**json.loads(row["proof_json"])) if row["proof_json"] else None,
    )


def _metric(row: Mapping[str, Any], prefix: str) -> Metric | None:
    value, low, high, provenance, source = schema.metric_columns(prefix)
    if row[provenance] is None:
        return None
    return Metric(row[value], row[low], row[high], row[provenance], row[source])


def dump(value: Any) -> str:
    """Compact JSON; raises StorageError for what is no JSON value."""
    try:
        return json.dumps(value, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise StorageError(f"cannot be stored as JSON: {error}") from error


def _storable(text: str) -> str:
    """Text that every database takes: half a surrogate pair or a NUL of an error's message not."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def summary(
    row: Mapping[str, Any], counts: Mapping[State, int], hypervolume: float, members_json: str
) -> StudySummary:
    """The summary of a row of dse_studies with its counts and its newest front."""
    return StudySummary(
        row["name"],
        row["workload"],
        tuple(json.loads(row["objectives_json"])),
        row["created"],
        row["n_trials"],
        counts,
        hypervolume,
        len(json.loads(members_json)),
    )


def frame(names: Sequence[str], found: Sequence[Sequence[Any]]) -> pd.DataFrame:
    """Rows of dse_evaluations as a table with one dtype a column; `params_json` is unfolded."""
    import pandas as pd

    series = zip(*found, strict=True) if found else ([] for _ in names)
    columns = dict(zip(names, series, strict=True))
    params = columns.pop("params_json", None)
    table = pd.DataFrame(
        {name: pd.Series(list(values), dtype=_dtype(name)) for name, values in columns.items()}
    )
    if params is None:
        return table
    # One call of the parser for all rows, not one a row.
    parsed = json.loads(f"[{','.join(params)}]")
    knobs = {f"knob:{knob}": [row.get(knob) for row in parsed] for knob in _names(parsed)}
    return table.join(pd.DataFrame(knobs, index=table.index))


def _names(parsed: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in parsed for name in row))


def _dtype(name: str) -> str:
    """Few distinct texts are categories; numbers that a trial may lack are floats with NaN."""
    if name.endswith("_provenance") or name in ("state", "board", "backend", "baseline"):
        return "category"
    kind = schema.evaluations.c[name].type
    return {float: "float64", int: "int64", bool: "bool"}.get(kind.python_type, "object")
