"""Budgets as a method of pruning: a conditional space, bounds before training, widths after it."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dse.browse.charts import importances
from dse.candidate import Candidate
from dse.graph.resources import SHARES, Budgets, needs
from dse.overview import read_overview
from dse.problem import Problem
from dse.rejudge import rejudge
from dse.search_costs import features
from dse.storage import Storage
from dse.trial import COST_METRICS, NEVER_MEASURED, State, Trial
from dse.widths import Narrowing
from tests.problems import (
    STUDY,
    FormulaEvaluator,
    explorer,
    formula,
    small_problem,
    small_record,
    trained,
)
from tests.test_space import PICO
from tests.test_space import problem as space_problem

RATIOS = "pruning: {ratio: [0, 0.25, 0.5, 0.75]}"
BUDGET = "{memory: [1, 0.75, 0.5], size: [1, 0.5, 0.25], macs: [1, 0.5, 0.25]}"
BOTH = STUDY.replace(
    RATIOS, f"pruning: {{method: [ratio, budget], ratio: [0, 0.25, 0.5, 0.75], budget: {BUDGET}}}"
)
ALONE = STUDY.replace(RATIOS, f"pruning: {{method: budget, budget: {BUDGET}}}")
PROBLEM = small_problem(BOTH)


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    with Storage(f"sqlite:///{tmp_path}/study.db") as opened:
        yield opened


def open_candidate(problem: Problem = PROBLEM, **shares: float) -> Candidate:
    """The candidate within some budgets, all else at its first choice."""
    params = {f"budget.{name}": share for name, share in shares.items()}
    return problem.space.candidate({"pruning": "budget", **params})


# --- the space ----------------------------------------------------------------------------------


def test_studies_without_budgets_keep_their_keys() -> None:
    """Computed before there were budgets."""
    space = space_problem().space
    assert space.hash == "72b7e8dbf6c359b7368c7a46"
    assert space.int8_baseline(PICO).key == "a3b43b67e12705e892d1969c"
    pruned = {"prune.conv1": 0.5, "prune.conv2": 0.25, "prune.fc1": 0.9, "criterion": "l1"}
    more = {"schedule": "agp", "sparsity": 0.5, "bits.conv1": 4, "target": PICO}
    found = space.candidate({**pruned, **more})
    assert (found.key, found.network_key, found.float_key) == (
        "07cf9ebce657e5b57bb0cf71",
        "c210e17e8eca8656ba786b37",
        "c297aa08877a0cdd4bdda80a",
    )
    assert "method" not in space_problem().study.searchable()["space"]["pruning"]
    assert "budget" not in space_problem().study.searchable()["space"]["pruning"]


@given(st.randoms())
def test_a_setting_asks_for_the_knobs_of_its_method_alone(source: random.Random) -> None:
    space = PROBLEM.space
    params = space.draw(source)
    kinds = {knob.kind for knob in space.knobs if knob.name in params}
    ratio = params["pruning"] == "ratio"
    assert {"prune", "criterion", "schedule"} <= kinds if ratio else not {"prune"} & kinds
    assert {"memory", "size", "macs"}.isdisjoint(kinds) == ratio
    assert space.asked(space.filled(params)) == params
    candidate = space.candidate(params)
    assert space.candidate(space.filled(params)) == candidate
    assert candidate.open == (not ratio and bool(candidate.budgets))
    assert not (candidate.open and (candidate.criterion or candidate.schedule))


def test_every_setting_is_walked_once_and_counted() -> None:
    space = small_problem(BOTH.replace("[2, 4, 8]", "8")).space
    settings = [tuple(sorted(params.items())) for params in space.settings()]
    assert len(settings) == len(set(settings)) == space.size == 2 * (4 * 4 + 27)
    assert small_problem(ALONE.replace("[2, 4, 8]", "8")).space.size == 2 * 27


def test_budgets_of_one_are_the_unpruned_network() -> None:
    space = PROBLEM.space
    assert open_candidate(memory=1.0, size=1.0).key == space.int8_baseline(space.targets[0]).key
    alone = small_problem(ALONE).space
    params = alone.params(alone.int8_baseline(alone.targets[0]))
    assert params is not None
    assert (params["pruning"], params["budget.macs"]) == ("budget", 1)


def test_what_was_found_is_no_part_of_the_key_and_what_decides_it_is() -> None:
    asked = open_candidate(size=0.5)
    found = trained(PROBLEM, asked)
    assert asked.open
    assert not found.open
    for candidate in (asked, found):
        again = Candidate.from_json(candidate.to_json())
        assert again == candidate
        keys = (again.key, again.network_key, again.float_key, again.training_key)
        assert keys == (asked.key, asked.network_key, asked.float_key, asked.training_key)
    for change in ({"alignment": 4}, {"whole": ("0",)}, {"budgets": {"size": 0.25}}):
        assert replace(asked, **change).float_key != asked.float_key
    fewer_bits = replace(asked, bits={**asked.bits, "0": 4})
    assert fewer_bits.float_key == asked.float_key  # one training finds the widths of both


def test_widths_that_one_training_found_are_known_for_every_bit_width_and_target() -> None:
    space = PROBLEM.space.apart()
    found = trained(PROBLEM, open_candidate(size=0.5))
    params = {"pruning": "budget", "budget.size": 0.5, "bits.0": 2, "target": space.targets[1]}
    assert space.candidate(params).open
    assert space.learn(found)
    assert not space.learn(found)
    assert space.candidate(params).widths == found.widths
    assert PROBLEM.space.candidate(params).open  # another study has to find its own


def test_the_corners_of_a_space_stay_whatever_was_found() -> None:
    space = PROBLEM.space.apart()
    target = space.targets[0]
    before = list(space.corners(target))
    open_ = [corner for corner in before if corner.open]
    assert open_
    for corner in open_:
        space.learn(trained(PROBLEM, corner))
    assert list(space.corners(target)) == before


# --- costs --------------------------------------------------------------------------------------


def test_predicted_widths_meet_the_budgets_in_steps_of_the_alignment() -> None:
    whole = space_problem().space.graph
    for alignment in (1, 4, 8):
        narrowing = Narrowing(whole, alignment, ("fc1",))
        for shares in ({"memory": 0.7}, {"size": 0.3}, {"memory": 0.8, "size": 0.5, "macs": 0.6}):
            budgets = Budgets.of(whole, shares)
            widths = narrowing.expected(budgets)
            assert budgets.met(narrowing.needs(widths))
            assert widths["fc1"] == narrowing.whole["fc1"]
            for name, width in widths.items():
                assert width % alignment == 0 or width == narrowing.whole[name]


@settings(max_examples=30)
@given(st.randoms(), st.sampled_from([1, 2, 4]), st.sampled_from([["native"], ["cmsis-nn"]]))
def test_no_widths_cost_less_than_the_bound(
    source: random.Random, alignment: int, backends: list[str]
) -> None:
    pruning = {"method": "budget", "budget": {"size": [1, 0.5]}}
    found = space_problem(
        pruning=pruning,
        sparsity=None,
        quantization={"weight_bits": [2, 4, 8]},
        alignment=alignment,
        backends=backends,
    )
    space = found.space
    asked = space.candidate({**space.draw(source), "budget.size": 0.5})
    bound = found.screen(asked)
    assert asked.open
    assert bound.feasible
    widths = {
        name: min(channels, alignment * source.randint(1, math.ceil(channels / alignment)))
        for name, channels in space.channels.items()
    }
    made = replace(asked, widths={n: w for n, w in widths.items() if w < space.channels[n]})
    if made.open:
        return
    costs = found.cost(made).metrics
    for name in COST_METRICS:
        value, least = costs[name].value, bound.metrics[name].low
        assert bound.metrics[name].value is None
        assert value is not None
        assert least is not None
        assert least <= value


def test_what_misses_a_limit_at_any_width_is_said_so() -> None:
    problem = small_problem(BOTH.replace("ram <= 3 KiB", "flash <= 2500 B"))
    nucleo = "nucleo_f446re/native/180MHz"
    asked = replace(open_candidate(problem, size=0.5), target=nucleo)
    (reason,) = problem.screen(asked).reasons
    assert reason.startswith("at any width: flash ")
    assert "at least" in problem.screen(asked).metrics["flash"].source


# --- the loop -----------------------------------------------------------------------------------


def run(
    storage: Storage, problem: Problem, sampler: str, count: int, **settings: Any
) -> tuple[list[Trial], FormulaEvaluator]:
    record = small_record(problem, sampler=sampler, n_trials=count, sampler_settings=settings)
    storage.create(record)
    evaluator = FormulaEvaluator(problem)
    assert explorer(storage, record, problem, evaluator).run(count) == "finished"
    return storage.trials("small"), evaluator


def check(problem: Problem, trials: list[Trial], evaluator: FormulaEvaluator) -> list[Trial]:
    """What holds for every study with budgets; its trials within budgets."""
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert len({trial.candidate_key for trial in trials}) == len(trials)
    assert len(evaluator.trained) == len(set(evaluator.trained))
    found = []
    for trial in trials:
        if not trial.params:
            continue
        assert trial.params == problem.space.asked(trial.params)
        candidate = Candidate.from_json(trial.candidate)
        assert candidate.key == trial.candidate_key == problem.space.candidate(trial.params).key
        if not candidate.budgets:
            continue
        found.append(trial)
        if trial.value("accuracy") is None:
            assert not trial.trained
            continue
        asked = replace(candidate, widths={})
        assert candidate == trained(problem, asked)
        shapes, whole = problem.space.shapes(candidate), needs(problem.space.graph)
        for name, share in candidate.budgets.items():
            assert getattr(needs(shapes), SHARES[name]) <= share * getattr(whole, SHARES[name])
        assert (trial.parameters, trial.macs) == (shapes.parameters, shapes.macs)
        exact = problem.screen(candidate)
        assert {n: trial.metrics[n] for n in COST_METRICS} == dict(exact.metrics)
        assert trial.value("accuracy") == formula(problem, candidate)
    return found


@pytest.mark.parametrize(
    ("sampler", "more"),
    [
        ("grey-box", {}),
        ("tpe", {}),
        ("tpe", {"multivariate": True}),
        ("nsga2", {"population_size": 6}),
        ("random", {}),
        ("gp", {}),
    ],
)
def test_every_sampler_chooses_between_ratios_and_budgets(
    storage: Storage, sampler: str, more: Mapping[str, Any]
) -> None:
    trials, evaluator = run(storage, PROBLEM, sampler, 12 if sampler == "gp" else 20, **more)
    budgeted = check(PROBLEM, trials, evaluator)
    assert budgeted
    assert any(trial.params.get("pruning") == "ratio" for trial in trials[2:])
    served = [trial for trial in budgeted if trial.served]
    assert not any(trial.trained for trial in served)


def test_every_knob_has_an_importance_though_no_trial_has_all(storage: Storage) -> None:
    run(storage, PROBLEM, "random", 40)
    found = importances(read_overview(storage, "small"))
    assert set(found) == {"accuracy", "flash", "latency"}
    for shares in found.values():
        assert {"pruning", "prune.0", "budget.size"} <= set(shares)


def test_a_grid_walks_both_methods(storage: Storage) -> None:
    text = BOTH.replace("[2, 4, 8]", "8").replace("[0, 0.25, 0.5, 0.75]", "[0, 0.5]")
    problem = small_problem(text)
    record = small_record(problem, sampler="grid", n_trials=1000)
    storage.create(record)
    evaluator = FormulaEvaluator(problem)
    assert explorer(storage, record, problem, evaluator).run(1000) == "exhausted"
    trials = storage.trials("small")
    check(problem, trials, evaluator)
    every = {problem.space.candidate(params).key for params in problem.space.settings()}
    assert {trial.candidate_key for trial in trials if trial.params} == every


@pytest.mark.parametrize(
    ("sampler", "text"),
    [("grey-box", BOTH), ("grey-box", ALONE), ("tpe", BOTH), ("nsga2", BOTH)],
    ids=["grey-box", "grey-box alone", "tpe", "nsga2"],
)
def test_a_resumed_study_equals_an_uninterrupted_one(
    tmp_path: Path, sampler: str, text: str
) -> None:
    problem = small_problem(text)
    more = {"population_size": 6} if sampler == "nsga2" else {}
    with Storage(f"sqlite:///{tmp_path}/whole.db") as storage:
        expected, _ = run(storage, problem, sampler, 18, **more)
    record = small_record(problem, sampler=sampler, n_trials=18, sampler_settings=more)
    with Storage(f"sqlite:///{tmp_path}/parts.db") as storage:
        storage.create(record)
        for count in (3, 5, 100):
            evaluator = FormulaEvaluator(problem, interrupt_after=count)
            ending = explorer(storage, record, problem, evaluator).run(18)
        assert ending == "finished"
        found = storage.trials("small")
    assert [t.candidate_key for t in found] == [t.candidate_key for t in expected]
    assert [t.candidate for t in found] == [t.candidate for t in expected]
    assert [(t.state, t.reason) for t in found] == [(t.state, t.reason) for t in expected]


def test_workers_share_what_was_found(tmp_path: Path) -> None:
    """Two explorers take turns; widths that one found are exact costs for the other."""
    with Storage(f"sqlite:///{tmp_path}/study.db") as storage:
        record = small_record(PROBLEM, sampler="tpe", n_trials=30)
        storage.create(record)
        evaluator = FormulaEvaluator(PROBLEM)
        pair = [explorer(storage, record, PROBLEM, evaluator) for _ in range(2)]
        for count in range(4, 31, 2):
            assert pair[count // 2 % 2].run(count) == "finished"
        assert check(PROBLEM, storage.trials("small"), evaluator)


@pytest.mark.parametrize("sampler", ["grey-box", "tpe"])
def test_a_network_that_misses_a_limit_after_training_is_infeasible_with_its_reason(
    storage: Storage, sampler: str
) -> None:
    """Budgets that fit nowhere are trained where the bound does not tell, and never feasible."""
    text = ALONE.replace("ram <= 3 KiB", "ram <= 700 B").replace("0.5, 0.25", "0.5, 0.45")
    problem = small_problem(text.replace("nucleo_f446re, rpi_pico", "rpi_pico"))
    trials, evaluator = run(storage, problem, sampler, 14)
    budgeted = check(problem, trials, evaluator)
    assert storage.fronts("small") == []
    assert all(trial.state is State.INFEASIBLE for trial in budgeted)
    assert budgeted
    assert any(trial.trained for trial in budgeted)
    for trial in budgeted:
        # Widths that were found with other bits are known, and screened without a training.
        assert (trial.value("accuracy") is None) == (not trial.trained)
        assert "ram" in trial.reason
        assert "over 700 B ('ram <= 700 B')" in trial.reason


def test_what_the_bound_rejects_is_never_trained_and_comes_back_with_another_limit(
    storage: Storage,
) -> None:
    """A budget trial without costs is rejected by its bound, and by that judged anew."""
    limit = "flash <= 2500 B"
    text = ALONE.replace("ram <= 3 KiB", limit)
    problem = small_problem(text)
    record = replace(small_record(problem, sampler="random", n_trials=30), study_file=text)
    storage.create(record)
    evaluator = FormulaEvaluator(problem)
    explorer(storage, record, problem, evaluator).run(30)
    trials = storage.trials("small")
    rejected = [t for t in trials if t.params and t.reason.startswith("at any width")]
    assert rejected
    assert not {trial.network_key for trial in rejected if trial.trained}
    assert all(trial.value("flash") is None and trial.parameters == 0 for trial in rejected)
    assert all(trial.violations[limit] > 0 for trial in rejected)
    wider = text.replace(limit, "flash <= 1 MiB")
    rejudge(storage, record, small_problem(wider), wider)
    judged = storage.trials("small")
    assert all(NEVER_MEASURED in judged[trial.number].violations for trial in rejected)


def test_the_grey_box_ranks_by_a_prediction_and_learns_from_what_was_found() -> None:
    problem = replace(PROBLEM, space=PROBLEM.space.apart())
    params = problem.space.filled({"pruning": "budget", "budget.size": 0.25})
    before = features(problem, params)
    asked = problem.space.candidate(params)
    predicted = problem.expect(asked).metrics
    problem.space.learn(trained(problem, asked))
    after = features(problem, params)
    assert before.keys() == after.keys()
    assert not np.array_equal(before["prune"], after["prune"])
    known = problem.space.candidate(params)
    assert problem.expect(known).metrics == problem.screen(known).metrics
    assert problem.screen(known).metrics["flash"] != predicted["flash"]
