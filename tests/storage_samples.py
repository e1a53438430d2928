"""Studies and trials for the tests of the database: any that can exist, drawn by hypothesis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from dse.pareto import Box
from dse.rows import StudyRecord
from dse.storage import Storage
from dse.trial import METRICS, Metric, MetricName, Proof, Provenance, State, Trial

KNOBS: dict[str, BaseDistribution] = {
    "conv1/width": FloatDistribution(0.1, 1.0),
    "rate": FloatDistribution(1e-5, 1e-1, log=True),
    "bits": IntDistribution(2, 8),
    "board": CategoricalDistribution(["rpi-pico", "nucleo-f446re", None, True]),
}
OBJECTIVES: tuple[MetricName, ...] = ("accuracy", "flash", "latency")
LIMIT = "ram <= 16 KiB"


def record(name: str = "digits", objectives: tuple[MetricName, ...] = OBJECTIVES) -> StudyRecord:
    size = len(objectives)
    log = tuple(metric != "accuracy" for metric in objectives)
    ideal = tuple(1e-9 if cost else 0.0 for cost in log)
    return StudyRecord(
        name=name,
        created=1.79e9,
        study_file="study: digits\n# größer\n",
        definition={"study": name, "space": {"bits": [2, 8]}},
        space_hash="abc123",
        space=[{"name": "bits", "low": 2, "high": 8}],
        distributions=KNOBS,
        sampler="tpe",
        sampler_settings={"n_startup_trials": 10},
        seed=2**40,
        objectives=objectives,
        constraints=(LIMIT,),
        box=Box(objectives, ideal, (1e9,) * size, log),
        n_trials=60,
        versions={"dse": "0.1.0"},
        workload="digits",
    )


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
PROVENANCES: st.SearchStrategy[Provenance] = st.sampled_from(
    ["measured", "emulated", "estimated", "modelled"]
)
METRIC = st.one_of(
    TEXT.map(Metric.unavailable),
    st.tuples(
        st.lists(FINITE, min_size=3, max_size=3).map(sorted), PROVENANCES, TEXT, st.booleans()
    ).map(lambda m: Metric(m[0][1], m[0][0], float("inf") if m[3] else m[0][2], m[1], m[2])),
)
KNOWN = METRIC.filter(lambda metric: metric.value is not None)
PARAMS = st.fixed_dictionaries(
    {},
    optional={
        "conv1/width": st.floats(0.1, 1.0),
        "rate": st.floats(1e-5, 1e-1),
        "bits": st.integers(2, 8),
        "board": st.sampled_from(["rpi-pico", "nucleo-f446re", None, True]),
    },
)
TARGET = st.fixed_dictionaries(
    {}, optional={"board": TEXT, "backend": TEXT, "clock_hz": st.integers(1, 10**9)}
)
SECONDS = st.just(0.0) | st.floats(1.0, 4e9)
COUNT = st.integers(0, 2**31 - 1)


PROOF = st.builds(
    Proof,
    target=TEXT,
    compiler=TEXT,
    emulator=TEXT,
    samples=st.integers(0, 20),
    matching=st.integers(0, 20),
    metrics=st.dictionaries(st.sampled_from(["flash", "ram", "latency"]), FINITE),
    reason=TEXT,
)


@st.composite
def trials(draw: st.DrawFn, number: int = 0, states: tuple[State, ...] = tuple(State)) -> Trial:
    """Any trial that can be stored."""
    state = draw(st.sampled_from(states))
    metrics = draw(st.dictionaries(st.sampled_from(sorted(METRICS)), METRIC))
    violations = draw(st.dictionaries(TEXT, FINITE, max_size=3))
    if state is State.COMPLETE:
        metrics |= {name: draw(KNOWN) for name in OBJECTIVES}
        violations = {text: -abs(miss) for text, miss in violations.items()}
    candidate: dict[str, Any] = draw(st.dictionaries(TEXT, JSON, max_size=3))
    return Trial(
        number=number,
        state=state,
        params=draw(PARAMS),
        candidate={**candidate, "target": draw(TARGET)},
        candidate_key=draw(TEXT),
        network_key=draw(TEXT),
        metrics=metrics,
        test_accuracy=draw(st.none() | METRIC),
        validation_samples=draw(COUNT),
        test_samples=draw(COUNT),
        parameters=draw(st.integers(0, 2**62)),
        macs=draw(st.integers(0, 2**62)),
        violations=violations,
        reason=draw(TEXT),
        trained=draw(st.booleans()),
        baseline=draw(TEXT),
        stage_s=draw(st.dictionaries(TEXT, FINITE, max_size=3)),
        started=draw(SECONDS),
        finished=draw(SECONDS),
        attrs=draw(st.dictionaries(TEXT.filter(lambda k: not k.startswith("constraints")), JSON)),
        proof=draw(st.none() | PROOF),
    )


def finished(number: int, accuracy: float = 0.9, **changes: Any) -> Trial:
    """A complete trial with every part filled."""
    values = {"accuracy": accuracy, "flash": 1e4 + number, "latency": 0.01}
    parts: dict[str, Any] = {
        "params": {"bits": 2 + number % 7, "board": "rpi-pico", "conv1/width": 0.5},
        "candidate": {
            "target": {"board": "rpi-pico", "backend": "native", "clock_hz": 133_000_000}
        },
        "candidate_key": f"key{number}",
        "metrics": {name: Metric(v, v, v, "measured", "here") for name, v in values.items()},
        "violations": {LIMIT: -0.5},
        "started": 1.79e9,
        "finished": 1.79e9 + 3,
        "attrs": {"tpe:step": number},
    }
    return Trial(number, State.COMPLETE, **{**parts, **changes})


def url(folder: Path, name: str = "study.db") -> str:
    return f"sqlite:///{folder / name}"


def sql(storage: Storage, statement: str) -> list[tuple[object, ...]]:
    with storage._read() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(statement)]


def optuna_study(storage: Storage, name: str = "digits") -> optuna.Study:
    return optuna.load_study(
        storage=storage.url.render_as_string(hide_password=False), study_name=name
    )


def optuna_state(trial: Trial, objectives: tuple[MetricName, ...] = OBJECTIVES) -> TrialState:
    """The contract, said a second time."""
    if trial.state is State.INFEASIBLE:
        known = all(trial.value(name) is not None for name in objectives)
        missed = any(miss > 0 for miss in trial.violations.values())
        return TrialState.COMPLETE if known and missed else TrialState.PRUNED
    return {
        State.COMPLETE: TrialState.COMPLETE,
        State.FAILED: TrialState.FAIL,
        State.RUNNING: TrialState.RUNNING,
        State.WAITING: TrialState.WAITING,
    }[trial.state]


def check_optuna_agrees(
    storage: Storage,
    trials: list[Trial],
    knobs: dict[str, BaseDistribution] = KNOBS,
    name: str | None = None,
) -> None:
    """Optuna reads the same numbers, states, params, values, constraints and attributes."""
    name = name or storage.studies()[0].name
    study, objectives = optuna_study(storage, name), storage.study(name).objectives
    assert study.metric_names == [METRICS[metric].column for metric in objectives]
    assert [found.name.lower() for found in study.directions] == [
        METRICS[metric].direction for metric in objectives
    ]
    assert [found.number for found in study.trials] == [trial.number for trial in trials]
    for found, trial in zip(study.trials, trials, strict=True):
        assert found.state is optuna_state(trial, objectives)
        assert found.params == pytest.approx(trial.params)
        assert found.distributions == {knob: knobs[knob] for knob in trial.params}
        assert found.constraints == trial.violations
        prefix = "constraints:"
        own = {k: v for k, v in found.system_attrs.items() if not k.startswith(prefix)}
        assert own == trial.attrs
        if found.state is TrialState.COMPLETE:
            assert found.values == [trial.value(metric) for metric in objectives]
        else:
            assert not found.values
        if trial.started:
            assert found.datetime_start is not None
            assert found.datetime_start.timestamp() == pytest.approx(trial.started, abs=1e-5)
