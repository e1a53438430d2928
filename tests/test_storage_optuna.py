"""Optuna and its dashboard read the same database, and see the same study."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from wsgiref.util import setup_testing_defaults

import numpy as np
import optuna
import pytest

from dse.errors import StorageError
from dse.storage import Storage
from dse.trial import METRICS, Metric, State, Trial
from tests import storage_samples as samples


@pytest.fixture
def storage(any_url: str) -> Iterator[Storage]:
    with Storage(any_url) as found:
        found.create(samples.record())
        yield found


def test_optuna_finds_our_front(storage: Storage) -> None:
    record, draw = samples.record(), np.random.default_rng(3)
    for number in range(60):
        values = {"accuracy": draw.random(), "flash": draw.random() * 1e5, "latency": draw.random()}
        metrics = {name: Metric(v, v, v, "measured") for name, v in values.items()}
        miss = draw.normal(-0.5)
        state = State.INFEASIBLE if miss > 0 else State.COMPLETE
        storage.finish(
            "digits",
            Trial(number, state, metrics=metrics, violations={samples.LIMIT: miss}),
        )
    feasible = [trial for trial in storage.trials("digits") if trial.feasible]
    values_of = [[trial.value(name) for name in record.objectives] for trial in feasible]
    mask = record.box.front(np.array(values_of, dtype=float))
    ours = {trial.number for trial, member in zip(feasible, mask, strict=True) if member}
    assert 3 < len(ours) < len(feasible) < 60
    assert {trial.number for trial in samples.optuna_study(storage).best_trials} == ours


def test_an_optuna_sampler_continues_from_our_trials(storage: Storage) -> None:
    for number in range(12):
        storage.finish("digits", samples.finished(number, number / 20))
    study = samples.optuna_study(storage)
    study.sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=2)
    trial = study.ask(samples.KNOBS)
    assert trial.number == 12
    assert set(trial.params) == set(samples.KNOBS)


def test_an_existing_optuna_database_gains_our_tables(any_url: str) -> None:
    url = any_url
    other = optuna.create_study(storage=url, study_name="theirs")
    other.add_trial(optuna.create_trial(value=1.0))
    with Storage(url) as storage:
        assert storage.studies() == []
        with pytest.raises(StorageError, match="no study 'theirs'"):
            storage.study("theirs")
        with pytest.raises(StorageError, match="that Optuna made without dse"):
            storage.create(samples.record("theirs"))
        storage.create(samples.record())
        storage.finish("digits", samples.finished(0))
        assert [summary.name for summary in storage.studies()] == ["digits"]
    assert optuna.load_study(storage=url, study_name="theirs").best_value == 1.0


def test_an_empty_study_left_by_a_crash_is_taken_over(any_url: str) -> None:
    url = any_url
    directions = [METRICS[name].direction for name in samples.OBJECTIVES]
    optuna.create_study(storage=url, study_name="digits", directions=directions)
    with Storage(url) as storage:
        storage.create(samples.record())
        storage.finish("digits", samples.finished(0))
        samples.check_optuna_agrees(storage, [samples.finished(0)])


def test_optuna_dashboard_serves_the_study(storage: Storage) -> None:
    dashboard = pytest.importorskip(
        "optuna_dashboard", reason="the extra 'dashboard' is not installed"
    )
    storage.finish("digits", samples.finished(0))
    rejected = Trial(1, State.INFEASIBLE, violations={samples.LIMIT: 0.25}, reason="ram over")
    storage.finish("digits", rejected)
    app = dashboard.wsgi(storage.url.render_as_string(hide_password=False))
    status: list[str] = []

    def get(path: str) -> bytes:
        environ: dict[str, Any] = {"PATH_INFO": path, "QUERY_STRING": "after=0"}
        setup_testing_defaults(environ)
        return b"".join(app(environ, lambda line, *_: status.append(line)))

    assert b'"digits"' in get("/api/studies")
    study_id = samples.sql(storage, "select study_id from studies")[0][0]
    detail = get(f"/api/studies/{study_id}")
    assert status == ["200 OK", "200 OK"]
    assert b"key0" in detail
    assert b"ram over" in detail
