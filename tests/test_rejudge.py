"""Limits and objectives that change during a study: as if they had always been those."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dse.audit import audit
from dse.errors import StudyError
from dse.pareto import Box
from dse.problem import Problem
from dse.rejudge import Changes, change_study, rejudge
from dse.rows import FrontChange, StudyRecord
from dse.storage import Storage
from dse.trial import METRICS, NEVER_MEASURED, MetricName, Trial
from tests import storage_samples as samples
from tests.problems import (
    STUDY,
    FormulaEvaluator,
    explorer,
    formula,
    small_problem,
    small_record,
)

PROBLEM = small_problem()
FAST = Changes(limits=["latency <= 3 ms"], dropped_objectives=["latency"])
ACCURATE = Changes(limits=["accuracy >= 80 %"], dropped_objectives=["accuracy"])


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    with Storage(f"sqlite:///{tmp_path}/study.db") as opened:
        yield opened


@pytest.fixture
def anywhere(any_url: str) -> Iterator[Storage]:
    with Storage(any_url) as opened:
        yield opened


def explore(storage: Storage, record: StudyRecord, problem: Problem, n_trials: int) -> None:
    explorer(storage, record, problem, FormulaEvaluator(problem)).run(n_trials)


def run(storage: Storage, n_trials: int, sampler: str) -> StudyRecord:
    record = small_record(PROBLEM, sampler=sampler, n_trials=n_trials)
    storage.create(record)
    explore(storage, record, PROBLEM, n_trials)
    return record


def change(storage: Storage, changes: Changes) -> Problem:
    """As `dse resume` does; the problem that follows."""
    record = storage.study("small")
    text = change_study(record.study_file, "small.yaml", changes)
    problem = small_problem(text)
    rejudge(storage, record, problem, text)
    assert audit(storage) == []
    return problem


def best(trials: list[Trial], objectives: tuple[MetricName, ...]) -> set[tuple[float, ...]]:
    """Values of the front, by brute force."""
    found = {
        tuple(t.value(name) or 0.0 for name in objectives)
        for t in trials
        if t.feasible and t.baseline != "float32"
    }
    signs = np.array([1 if METRICS[name].direction == "minimize" else -1 for name in objectives])
    return {
        one
        for one in found
        if not any(
            (np.array(other) * signs <= np.array(one) * signs).all() and other != one
            for other in found
        )
    }


def test_new_limits_judge_what_is_stored_and_steer_what_comes(storage: Storage) -> None:
    """As if the study had had them: same states, same front; what was rejected may come again."""
    record = run(storage, 25, "tpe")
    before = storage.trials("small")
    changes = Changes(limits=["latency <= 3 ms"], dropped_limits=["ram"])
    text = change_study(STUDY, "small.yaml", changes)
    problem = small_problem(text)
    assert rejudge(storage, record, problem, text) > 0
    changed = storage.study("small")
    assert changed.constraints == ("accuracy >= baseline - 30 %", "latency <= 3 ms")
    after = storage.trials("small")
    assert [t.metrics for t in after] == [t.metrics for t in before]
    for trial in after:
        slow = (trial.value("latency") or 1.0) > 0.003
        measured = trial.value("accuracy") is not None
        assert trial.feasible <= (measured and not slow)
        assert (NEVER_MEASURED in trial.violations) == (not measured and not slow)
    assert any(t.feasible != old.feasible for t, old in zip(after, before, strict=True))
    samples.check_optuna_agrees(storage, after, dict(PROBLEM.space.distributions))
    explore(storage, changed, problem, 40)
    trials = {trial.number: trial for trial in storage.trials("small")}
    front = storage.fronts("small")[-1].members
    assert all((trials[number].value("latency") or 1.0) <= 0.003 for number in front)
    assert len(trials) >= 40


def test_limits_taken_back_give_the_old_front(storage: Storage) -> None:
    record, before = run(storage, 25, "tpe"), storage.trials("small")
    front = storage.fronts("small")[-1]
    text = change_study(STUDY, "small.yaml", Changes(limits=["latency <= 3 ms"]))
    rejudge(storage, record, small_problem(text), text)
    assert storage.fronts("small")[-1].members != front.members
    rejudge(storage, storage.study("small"), PROBLEM, STUDY)
    assert storage.trials("small") == before
    again = storage.fronts("small")[-1]
    assert sorted(again.members) == sorted(front.members)
    assert again.hypervolume == pytest.approx(front.hypervolume)


@pytest.mark.parametrize("changes", [FAST, ACCURATE], ids=["latency", "accuracy"])
def test_an_objective_becomes_a_limit(anywhere: Storage, changes: Changes) -> None:
    """Front, hypervolume and its course are those of the objectives of now, for Optuna, too."""
    storage = anywhere
    record = run(storage, 30, "nsga2")
    before = storage.trials("small")
    change(storage, changes)
    after, changed = storage.trials("small"), storage.study("small")
    left = tuple(name for name in record.objectives if name not in changes.dropped_objectives)
    assert changed.objectives == changed.box.metrics == left
    assert changed.definition["objectives"] == list(left)
    assert [t.metrics for t in after] == [t.metrics for t in before]
    fronts = storage.fronts("small")
    values = {n: tuple(after[n].value(name) or 0.0 for name in left) for n in fronts[-1].members}
    assert set(values.values()) == best(after, left)
    volumes = [change.hypervolume for change in fronts]
    assert volumes == sorted(volumes)
    assert volumes[-1] == pytest.approx(changed.box.hypervolume(list(values.values())))
    assert storage.studies()[0].front_size == len(fronts[-1].members)
    samples.check_optuna_agrees(storage, after, dict(PROBLEM.space.distributions))


@pytest.mark.parametrize("changes", [FAST, ACCURATE], ids=["latency", "accuracy"])
def test_an_objective_that_comes_back_gives_the_old_study(
    storage: Storage, changes: Changes
) -> None:
    record, before = run(storage, 25, "tpe"), storage.trials("small")
    fronts = storage.fronts("small")
    change(storage, changes)
    assert storage.fronts("small") != fronts
    text = change_study(
        storage.study("small").study_file,
        "small.yaml",
        Changes(
            limits=["accuracy >= baseline - 30 %"],
            dropped_limits=["latency"] if changes is FAST else [],
            objectives=changes.dropped_objectives,
        ),
    )
    rejudge(storage, storage.study("small"), small_problem(text), text)
    again = storage.study("small")
    assert (again.objectives, again.box) == (record.objectives, record.box)
    assert [(t.metrics, t.state) for t in storage.trials("small")] == [
        (t.metrics, t.state) for t in before
    ]
    assert _courses(storage.fronts("small")) == pytest.approx(_courses(fronts))
    samples.check_optuna_agrees(storage, storage.trials("small"), dict(PROBLEM.space.distributions))


def _courses(fronts: list[FrontChange]) -> list[float]:
    return [number for change in fronts for number in (change.number, change.hypervolume)]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["grey-box", "tpe", "nsga2"])
@pytest.mark.parametrize("changes", [FAST, ACCURATE], ids=["latency", "accuracy"])
def test_the_sampler_goes_on_with_what_is_wanted_now(
    storage: Storage, sampler: str, changes: Changes
) -> None:
    """The resumed study counts, repeats nothing, and its front only grows."""
    run(storage, 12, sampler)
    problem = change(storage, changes)
    first = storage.fronts("small")[-1].hypervolume
    explore(storage, storage.study("small"), problem, 16)
    explore(storage, storage.study("small"), problem, 30)
    trials = storage.trials("small")
    assert sum(not trial.served for trial in trials) == 30
    for number in storage.fronts("small")[-1].members:
        assert trials[number].feasible
    assert storage.fronts("small")[-1].hypervolume >= first
    keys = [trial.candidate_key for trial in trials if NEVER_MEASURED not in trial.violations]
    assert len(keys) == len(set(keys))


@pytest.mark.slow
def test_the_grey_box_finds_the_smallest_accurate_design(storage: Storage) -> None:
    """One objective is left: flash, with a limit on accuracy; the true one is among few trials."""
    run(storage, 12, "grey-box")
    problem = change(storage, replace(ACCURATE, dropped_objectives=["accuracy", "latency"]))
    explore(storage, storage.study("small"), problem, 40)
    trials = storage.trials("small")
    (member,) = storage.fronts("small")[-1].members
    assert trials[member].value("flash") == pytest.approx(min(_accurate(problem)))


def _accurate(problem: Problem) -> Iterator[float]:
    """Flash of every candidate that is accurate enough."""
    for params in problem.space.settings():
        candidate = problem.space.candidate(params)
        screening = problem.screen(candidate)
        if screening.feasible and formula(problem, candidate) >= 0.8:
            yield screening.metrics["flash"].value or 0.0


ALL = ["accuracy", "flash", "latency"]
REFUSED: list[tuple[Changes, tuple[str, ...]]] = [
    (Changes(dropped_objectives=ALL), ("'objectives' lists nothing", "1 to 5 of accuracy")),
    (Changes(dropped_objectives=["flsh"]), ("--drop-objective names 'flsh'", "'flash'?")),
    (Changes(dropped_objectives=["ram"]), ("--drop-objective names 'ram'", "latency")),
    (Changes(objectives=["flash"]), ("--objective names 'flash'", "allowed: energy, ram")),
    (
        Changes(dropped_objectives=["accuracy"], dropped_limits=["accuracy"]),
        ("'objectives' lists flash, latency", "add accuracy"),
    ),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED)
def test_what_cannot_be_wanted_is_one_sentence(changes: Changes, said: tuple[str, ...]) -> None:
    with pytest.raises(StudyError) as error:
        change_study(STUDY, "small.yaml", changes)
    for part in said:
        assert part in str(error.value)


def test_an_objective_that_is_not_known_on_every_target_changes_the_space(tmp_path: Path) -> None:
    """Boards whose latency is not known are left out when it counts: that is another search."""
    text = STUDY.replace("rpi_pico]", "stm32n6]").replace(", latency]", "]")
    problem = small_problem(text)
    assert len(problem.targets) == 2
    record = replace(small_record(problem), study_file=text)
    with Storage(f"sqlite:///{tmp_path}/study.db") as storage:
        storage.create(record)
        changed = change_study(text, "small.yaml", Changes(objectives=["latency"]))
        with pytest.raises(StudyError, match=r"would leave out stm32n6.*a new name"):
            rejudge(storage, record, small_problem(changed), changed)
        assert storage.study("small").objectives == record.objectives


AXES = st.lists(st.sampled_from(sorted(METRICS)), min_size=1, unique=True)


@given(AXES, AXES)
def test_a_box_on_other_axes_keeps_its_own(here: list[str], wanted: list[str]) -> None:
    own = Box(tuple(here), (0.1,) * len(here), (0.9,) * len(here), (False,) * len(here))
    whole = Box(tuple(METRICS), (0.2,) * 5, (0.8,) * 5, (True,) * 5)
    found = own.on(wanted, whole)
    assert found.metrics == tuple(wanted)
    assert found.ideal == tuple(0.1 if name in here else 0.2 for name in wanted)
    assert found.log == tuple(name not in here for name in wanted)
    assert found.on(wanted, whole) == found
