"""The report's files: the page, the front as CSV and JSON, all trials as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from dse.errors import StorageError
from dse.report.designs import Designs
from dse.report.page import page
from dse.rows import FrontChange, StudyRecord
from dse.trial import METRICS, Metric, MetricName, State, Trial

FRONT_SCHEMA = "dse.front/1"
# What a built image tells besides accuracy.
EMULATED: tuple[MetricName, ...] = ("flash", "ram", "latency")


@dataclass(frozen=True)
class ReportFiles:
    """Where the report lies: the page, the front twice, every trial."""

    html: Path
    csv: Path
    json: Path
    trials_csv: Path


def write_report(
    record: StudyRecord,
    trials: Sequence[Trial],
    fronts: Sequence[FrontChange],
    folder: Path,
    made_with: Mapping[str, str],
) -> ReportFiles:
    """Write report.html, front.csv, front.json and trials.csv into `folder`, which is made.

    `made_with` are facts to print, such as commit, command, date and machine. The page opens from
    `file://` and loads nothing. Raises StorageError when the folder cannot be written.
    """
    designs = Designs(record, sorted(trials, key=lambda trial: trial.number))
    front = table_csv(designs.front)
    files = ReportFiles(
        folder / "report.html", folder / "front.csv", folder / "front.json", folder / "trials.csv"
    )
    contents = {
        files.html: page(designs, fronts, made_with, front),
        files.csv: front,
        files.json: json.dumps(front_json(designs, made_with), indent=1) + "\n",
        files.trials_csv: table_csv(designs.trials),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in contents.items():
            # Half a surrogate pair in a stored message must not cost the report.
            path.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(
            f"cannot write the report into {folder}: {reason}; choose another folder"
        ) from error
    return files


def table_csv(trials: Sequence[Trial]) -> str:
    """Trials as CSV: SI units in the column names, knobs as `knob:<name>`, empty is unknown."""
    knobs = list(dict.fromkeys(knob for trial in trials for knob in trial.params))
    rows = [_flat(trial, knobs) for trial in trials]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(_flat(Trial(0, State.WAITING), knobs)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def front_json(designs: Designs, made_with: Mapping[str, str]) -> dict[str, Any]:
    """The front as JSON values under a versioned `schema`; figures with interval and source."""
    record = designs.record
    return {
        "schema": FRONT_SCHEMA,
        "study": record.name,
        "workload": record.workload,
        "objectives": list(record.objectives),
        "constraints": list(record.constraints),
        "box": record.box.to_dict(),
        "hypervolume": designs.hypervolume,
        "sampler": record.sampler,
        "seed": record.seed,
        "space_hash": record.space_hash,
        "versions": dict(record.versions),
        "made_with": dict(made_with),
        "designs": [_design(trial) for trial in designs.front],
    }


def _design(trial: Trial) -> dict[str, Any]:
    metrics = {METRICS[name].column: _metric(metric) for name, metric in trial.metrics.items()}
    if trial.test_accuracy is not None:
        metrics["test_accuracy"] = _metric(trial.test_accuracy)
    return {
        "trial": trial.number,
        "baseline": trial.baseline,
        "candidate_key": trial.candidate_key,
        "metrics": metrics,
        "validation_samples": trial.validation_samples,
        "test_samples": trial.test_samples,
        "parameters": trial.parameters,
        "macs": trial.macs,
        "provenance": trial.provenance,
        "emulated": asdict(trial.proof) if trial.proof else None,
        "params": dict(trial.params),
        "candidate": dict(trial.candidate),
    }


def _metric(metric: Metric) -> dict[str, Any]:
    ends = {name: getattr(metric, name) for name in ("value", "low", "high")}
    # JSON has no infinity: an open end of an interval is null.
    numbers = {name: end if end is None or isfinite(end) else None for name, end in ends.items()}
    return {**numbers, "provenance": metric.provenance, "source": metric.source}


def _flat(trial: Trial, knobs: Sequence[str]) -> dict[str, Any]:
    target = trial.candidate.get("target", {})
    row: dict[str, Any] = {
        "trial": trial.number,
        "state": trial.state.value,
        "baseline": trial.baseline,
    }
    metrics = {kind.column: trial.metrics.get(name) for name, kind in METRICS.items()}
    for column, metric in {**metrics, "test_accuracy": trial.test_accuracy}.items():
        row[column] = metric.value if metric else None
        row[f"{column}_low"] = metric.low if metric else None
        row[f"{column}_high"] = metric.high if metric else None
        row[f"{column}_provenance"] = metric.provenance if metric else None
    for name in ("validation_samples", "test_samples", "parameters", "macs"):
        row[name] = getattr(trial, name)
    row |= {name: target.get(name) for name in ("board", "backend", "clock_hz")}
    row["provenance"] = trial.provenance
    emulated = trial.proof.metrics if trial.proof else {}
    row |= {f"emulated_{METRICS[name].column}": emulated.get(name) for name in EMULATED}
    row |= {"reason": trial.reason, "candidate_key": trial.candidate_key}
    return row | {f"knob:{knob}": trial.params.get(knob) for knob in knobs}
