"""The loop: known fronts, screening without training, duplicates, failures, exact resumption."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from dse import draws
from dse.candidate import Candidate
from dse.graph.trace import trace
from dse.problem import build_problem
from dse.samplers import SAMPLER_SETTINGS
from dse.storage import Storage
from dse.study import parse_study
from dse.trial import NETWORK_OF, State, Trial
from tests.problems import (
    STUDY,
    FormulaEvaluator,
    explorer,
    formula,
    small_problem,
    small_record,
    true_front,
)

PROBLEM = small_problem()


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    with Storage(f"sqlite:///{tmp_path}/study.db") as opened:
        yield opened


def run(storage: Storage, n_trials: int, sampler: str = "random", seed: int = 0) -> list[Trial]:
    record = small_record(PROBLEM, sampler=sampler, seed=seed, n_trials=n_trials)
    storage.create(record)
    ending = explorer(storage, record, PROBLEM, FormulaEvaluator(PROBLEM)).run(n_trials)
    assert ending == "finished"
    return storage.trials("small")


@pytest.mark.parametrize("sampler", sorted(SAMPLER_SETTINGS))
def test_every_sampler_explores(storage: Storage, sampler: str) -> None:
    """The contract: as many trials as asked, all distinct, baselines first, constraints known."""
    count = 14 if sampler == "gp" else 30  # a Gaussian process takes a second a proposal
    trials = run(storage, count, sampler)
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert len({trial.candidate_key for trial in trials}) == len(trials)
    assert sum(not trial.served for trial in trials) == count
    assert [trial.baseline for trial in trials[:3]] == ["float32", "int8", ""]
    assert {trial.state for trial in trials} <= {State.COMPLETE, State.INFEASIBLE}
    front = storage.fronts("small")[-1]
    assert front.hypervolume > 0.15
    assert 0 not in front.members  # float32 is a landmark here, not a choice


def test_the_grid_finds_the_true_front(storage: Storage) -> None:
    text = STUDY.replace("[2, 4, 8]", "[2, 8]").replace("[0, 0.25, 0.5, 0.75]", "[0, 0.5]")
    problem = small_problem(text)
    keys, values = true_front(problem)
    record = small_record(problem, sampler="grid", n_trials=1000)
    storage.create(record)
    loop = explorer(storage, record, problem, FormulaEvaluator(problem))
    assert loop.run(1000) == "exhausted"
    trials = {trial.number: trial for trial in storage.trials("small")}
    found = {trials[number].candidate_key for number in loop.front}
    assert found == keys
    assert loop.hypervolume == pytest.approx(problem.box.hypervolume(values))


def test_more_trials_never_lose_hypervolume_and_approach_the_true_one(storage: Storage) -> None:
    run(storage, 80, "tpe")
    volumes = [change.hypervolume for change in storage.fronts("small")]
    assert volumes == sorted(volumes)
    best = PROBLEM.box.hypervolume(true_front(PROBLEM)[1])
    assert 0.8 * best < volumes[-1] <= best + 1e-9


def test_what_costs_rule_out_is_never_trained(storage: Storage) -> None:
    problem = small_problem(STUDY.replace("ram <= 3 KiB", "ram <= 1.6 KiB"))
    record = small_record(problem, n_trials=60)
    storage.create(record)
    evaluator = FormulaEvaluator(problem)
    explorer(storage, record, problem, evaluator).run(60)
    trials = storage.trials("small")
    rejected = [t for t in trials if t.violations["ram <= 1.6 KiB"] > 0 and not t.baseline]
    assert len(rejected) > 5
    assert not any(trial.trained for trial in rejected)
    assert not {trial.network_key for trial in rejected} & set(evaluator.trained[2:])
    assert all("ram" in t.reason and "over 1.60 KiB" in t.reason for t in rejected)
    assert all(trial.value("accuracy") is None for trial in rejected)


def test_one_training_serves_every_target(storage: Storage) -> None:
    record = small_record(PROBLEM, sampler="random", n_trials=150)
    storage.create(record)
    evaluator = FormulaEvaluator(PROBLEM)
    explorer(storage, record, PROBLEM, evaluator).run(150)
    trials = storage.trials("small")
    assert len(evaluator.trained) == len(set(evaluator.trained))
    measured = [trial for trial in trials if trial.value("accuracy") is not None]
    assert len(measured) > len(evaluator.trained)
    assert sum(trial.trained for trial in trials) == len(evaluator.trained)


def test_a_network_is_stored_on_every_target_where_it_enters_the_front(storage: Storage) -> None:
    """Served designs cost no training, and no network of the front is missing on a target."""
    trials = run(storage, 25)
    served = [trial for trial in trials if trial.served]
    assert served
    assert not any(trial.trained or trial.baseline for trial in served)
    for trial in served:
        origin = trials[trial.attrs[NETWORK_OF]]
        assert origin.number < trial.number
        assert origin.network_key == trial.network_key
        assert origin.candidate["target"] != trial.candidate["target"]
    front = storage.fronts("small")[-1]
    points = [[t.value(n) for n in PROBLEM.objectives] for t in trials if t.number in front.members]
    known = {trial.candidate_key for trial in trials}
    for trial in (t for t in trials if t.feasible and t.params):
        for target in PROBLEM.targets:
            candidate = replace(Candidate.from_json(trial.candidate), target=target)
            costs = PROBLEM.screen(candidate)
            if candidate.key in known or not costs.feasible:
                continue
            row = [trial.value("accuracy"), *(costs.metrics[n].value for n in ("flash", "latency"))]
            assert not PROBLEM.box.front(np.array([*points, row], dtype=np.float64))[-1]


def test_starts_are_spread_over_the_costs() -> None:
    """Drawn by level, designs of a deep network reach much further in flash than drawn by knob."""
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, padding=1)]
    for _ in range(9):
        layers += [nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)]
    graph = trace(nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 10)), (1, 8, 8), "deep")
    text = STUDY.replace("ram <= 3 KiB", "ram <= 64 KiB")
    problem = build_problem(parse_study(text, "deep.yaml"), graph, 10)
    source = random.Random(0)

    def deviation(settings: list[dict[str, Any]]) -> float:
        costs = [problem.screen(problem.space.candidate(params)) for params in settings]
        return float(np.std([np.log(found.metrics["flash"].value or 1.0) for found in costs]))

    spread = [draws.spread(problem, (), source) or {} for _ in range(40)]
    independent = [dict(problem.space.draw(source)) for _ in range(40)]
    assert deviation(spread) > 1.5 * deviation(independent)


def test_a_failing_trial_is_stored_and_the_study_goes_on(storage: Storage) -> None:
    record = small_record(PROBLEM, n_trials=20)
    storage.create(record)
    evaluator = FormulaEvaluator(PROBLEM)
    probe = explorer(storage, record, PROBLEM, evaluator)
    probe.run(6)
    doomed = [PROBLEM.space.candidate(p).network_key for p in PROBLEM.space.settings()]
    evaluator.fail = frozenset(doomed[::5])
    explorer(storage, record, PROBLEM, evaluator).run(20)
    failed = [trial for trial in storage.trials("small") if trial.state is State.FAILED]
    assert failed
    assert all(trial.reason == "RuntimeError: the loss is not finite" for trial in failed)
    assert sum(not trial.served for trial in storage.trials("small")) == 20


def test_ten_failures_in_a_row_end_the_study(storage: Storage) -> None:
    record = small_record(PROBLEM, n_trials=40)
    storage.create(record)
    evaluator = FormulaEvaluator(PROBLEM)
    every = {PROBLEM.space.candidate(p).network_key for p in PROBLEM.space.settings()}
    evaluator.fail = frozenset(every)
    assert explorer(storage, record, PROBLEM, evaluator).run(40) == "failing"
    mended = FormulaEvaluator(PROBLEM)
    assert explorer(storage, record, PROBLEM, mended).run(40) == "finished"


@pytest.mark.parametrize("sampler", ["grey-box", "tpe", "nsga2", "random", "grid"])
def test_a_resumed_study_equals_an_uninterrupted_one(tmp_path: Path, sampler: str) -> None:
    """Trained networks, proposals and front: whether it was stopped leaves no trace."""
    whole = small_record(PROBLEM, sampler=sampler, n_trials=36)
    with Storage(f"sqlite:///{tmp_path}/whole.db") as storage:
        storage.create(whole)
        explorer(storage, whole, PROBLEM, FormulaEvaluator(PROBLEM)).run(36)
        expected = storage.trials("small")
        front = storage.fronts("small")[-1].members
    with Storage(f"sqlite:///{tmp_path}/parts.db") as storage:
        storage.create(whole)
        for trained in (3, 5, 4, 100):
            evaluator = FormulaEvaluator(PROBLEM, interrupt_after=trained)
            ending = explorer(storage, whole, PROBLEM, evaluator).run(36)
        assert ending == "finished"
        found = storage.trials("small")
        assert storage.fronts("small")[-1].members == front
    assert [t.candidate_key for t in found] == [t.candidate_key for t in expected]
    assert [t.state for t in found] == [t.state for t in expected]


def test_an_interrupted_trial_waits_and_is_done_again(storage: Storage) -> None:
    record = small_record(PROBLEM, n_trials=12)
    storage.create(record)
    evaluator = FormulaEvaluator(PROBLEM, interrupt_after=4)
    assert explorer(storage, record, PROBLEM, evaluator).run(12) == "interrupted"
    waiting = [trial for trial in storage.trials("small") if trial.state is State.WAITING]
    assert len(waiting) == 1
    explorer(storage, record, PROBLEM, FormulaEvaluator(PROBLEM)).run(12)
    trials = storage.trials("small")
    assert sum(not trial.served for trial in trials) == 12
    again = trials[waiting[0].number]
    assert again.state.finished
    assert again.candidate_key == waiting[0].candidate_key


def test_seeds_decide_the_proposals(tmp_path: Path) -> None:
    def keys(name: str, seed: int) -> list[str]:
        with Storage(f"sqlite:///{tmp_path}/{name}.db") as storage:
            return [trial.candidate_key for trial in run(storage, 15, "tpe", seed)]

    assert keys("a", 1) == keys("b", 1) != keys("c", 2)


def test_accuracy_of_the_front_is_tested_and_the_search_sees_only_validation(
    storage: Storage,
) -> None:
    trials = {trial.number: trial for trial in run(storage, 30)}
    for number in storage.fronts("small")[-1].members:
        trial = trials[number]
        assert trial.test_accuracy is not None
        assert (trial.test_samples, trial.validation_samples) == (500, 1000)
    for trial in trials.values():
        if trial.value("accuracy") is not None and not trial.baseline:
            expected = formula(PROBLEM, Candidate.from_json(trial.candidate))
            assert trial.value("accuracy") == pytest.approx(expected)


def test_the_front_is_what_brute_force_finds(storage: Storage) -> None:
    trials = run(storage, 60, "nsga2")
    front = set(storage.fronts("small")[-1].members)
    points = {
        trial.number: np.array(
            [-(trial.value("accuracy") or 0), trial.value("flash"), trial.value("latency")]
        )
        for trial in trials
        if trial.feasible and trial.baseline != "float32"
    }
    for number, point in points.items():
        dominated = any(
            (other <= point).all() and (other < point).any() for other in points.values()
        )
        assert (number not in front) == dominated


@pytest.mark.slow
def test_the_grey_box_is_far_ahead_after_few_trainings(tmp_path: Path) -> None:
    """On the true front of the small problem: what random search has after three times as many."""
    _, values = true_front(PROBLEM)
    best = PROBLEM.box.hypervolume(values)

    def share(sampler: str, seed: int, count: int) -> float:
        with Storage(f"sqlite:///{tmp_path}/{sampler}{seed}.db") as storage:
            run(storage, count, sampler, seed)
            return storage.fronts("small")[-1].hypervolume / best

    def mean(sampler: str, count: int) -> float:
        return sum(share(sampler, seed, count) for seed in range(3)) / 3

    assert mean("grey-box", 14) > max(0.9, mean("random", 42))


@pytest.mark.parametrize("sampler", ["grey-box", "tpe", "nsga2", "random"])
def test_a_used_up_space_ends_the_study(storage: Storage, sampler: str) -> None:
    text = STUDY.replace("[2, 4, 8]", "[2, 8]").replace("[0, 0.25, 0.5, 0.75]", "[0, 0.5]")
    problem = small_problem(text)
    record = small_record(problem, sampler=sampler, n_trials=1000)
    storage.create(record)
    assert explorer(storage, record, problem, FormulaEvaluator(problem)).run(1000) == "exhausted"
    keys, _ = true_front(problem)
    found = {trial.number: trial.candidate_key for trial in storage.trials("small")}
    members = {found[number] for number in storage.fronts("small")[-1].members}
    # Of designs with equal values only one is a member.
    assert len(members) == len(keys)
