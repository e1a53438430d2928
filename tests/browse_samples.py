"""Databases for the tests of browsing: sample studies of tests/report_samples, stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from dse.rows import StudyRecord
from dse.storage import Storage
from dse.trial import MetricName, Proof, Trial
from tests.report_samples import BOARDS, sample_fronts, sample_record, sample_trials

OBJECTIVES: tuple[MetricName, ...] = ("accuracy", "flash", "ram", "latency")
KNOBS: dict[str, BaseDistribution] = {
    "width": FloatDistribution(0, 4),
    "bits": IntDistribution(2, 32),
    "board": CategoricalDistribution(list(BOARDS)),
}


def record(
    name: str = "digits", objectives: tuple[MetricName, ...] = OBJECTIVES, n_trials: int = 60
) -> StudyRecord:
    found = sample_record(objectives, name)
    return replace(found, distributions=KNOBS, n_trials=n_trials)


def stored(
    folder: Path,
    count: int = 60,
    *,
    name: str = "digits",
    objectives: tuple[MetricName, ...] = OBJECTIVES,
    trials: Sequence[Trial] | None = None,
    seed: int = 0,
) -> str:
    """The URL of a database with a study of this many trials, one of its front verified."""
    url = f"sqlite:///{folder / 'browse.db'}"
    given = list(sample_trials(count, seed) if trials is None else trials)
    study = record(name, objectives, max(1, len(given)))
    changes = {change.number: change for change in sample_fronts(study, given)}
    with Storage(url) as storage:
        storage.create(study)
        for trial in given:
            change = changes.get(trial.number)
            front = (change.members, change.hypervolume) if change else (None, None)
            storage.finish(study.name, trial, *front)
        if changes:
            last = list(changes.values())[-1].members[-1]
            proof = Proof("rpi-pico/native/125MHz", "gcc", "unicorn", 20, 20, {"flash": 6400.0})
            storage.prove(study.name, last, proof, {})
    return url
