"""The contract of the grey-box sampler: any space, any number of objectives, resumed or shared."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial
from threadpoolctl import threadpool_info, threadpool_limits

from dse.errors import StudyError
from dse.greybox import GreyBoxSampler
from dse.pareto import hypervolume

Params = Mapping[str, Any]
SPACE: dict[str, BaseDistribution] = {
    "keep.0": FloatDistribution(0.25, 1.0, step=0.25),
    "keep.1": FloatDistribution(0.25, 1.0, step=0.25),
    "bits.0": CategoricalDistribution((2, 4, 8)),
    "bits.1": CategoricalDistribution((2, 4, 8)),
    "rate": FloatDistribution(1e-4, 1e-1, log=True),
    "norm": CategoricalDistribution(("none", "batch", "group")),
    "board": CategoricalDistribution(("slow", "fast")),
}
LAYERS = ("0", "1")


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def size(params: Params) -> float:
    return float(sum(float(params[f"keep.{i}"]) * params[f"bits.{i}"] for i in LAYERS))


def accuracy(params: Params) -> float:
    """Falls with what is removed; a wrong rate and no normalization cost a little."""
    lost = sum((1 - params[f"keep.{i}"]) ** 2 + 0.5 / params[f"bits.{i}"] for i in LAYERS)
    off = abs(math.log10(params["rate"]) + 2.5) + (params["norm"] == "none")
    return float(0.97 - 0.2 * lost - 0.02 * off)


def costs(params: Params) -> tuple[float, float] | None:
    """Bytes (the fast board needs more code) and seconds; 14 bytes do not fit the slow board."""
    fast = params["board"] == "fast"
    if size(params) > 14 and not fast:
        return None
    return size(params) + (4 if fast else 1), (size(params) + 2) / (2 if fast else 1)


DIRECTIONS: list[Literal["minimize", "maximize"]] = ["maximize", "minimize", "minimize"]


def sampler(seed: int = 0, **changes: Any) -> GreyBoxSampler:
    options: dict[str, Any] = {
        "deployment": ["board"],
        "distributions": SPACE,
        "startup": 5,
        "seed": seed,
    }
    return GreyBoxSampler(costs, **(options | changes))


def objective(params: Params) -> list[float]:
    found = costs(params)
    return [accuracy(params), *([99.0, 99.0] if found is None else found)]


def led(trials: int, seed: int = 0) -> optuna.Study:
    study = optuna.create_study(directions=DIRECTIONS, sampler=sampler(seed))
    for _ in range(trials):
        trial = study.ask(SPACE)
        study.tell(trial, objective(trial.params))
    return study


def copied(study: optuna.Study, trials: int, seed: int = 0) -> optuna.Study:
    """What is left of a study that was killed: its stored trials, and a new sampler."""
    again = optuna.create_study(directions=DIRECTIONS, sampler=sampler(seed))
    again.add_trials(study.trials[:trials])
    return again


@pytest.fixture(scope="module")
def study() -> optuna.Study:
    return led(16)


def asked(study: optuna.Study) -> dict[str, Any]:
    return dict(study.ask(SPACE).params)


def test_proposals_are_legal_feasible_and_never_repeat_a_training(study: optuna.Study) -> None:
    networks = set()
    for trial in study.trials:
        assert set(trial.params) == set(SPACE)
        assert all(
            SPACE[n]._contains(SPACE[n].to_internal_repr(v)) for n, v in trial.params.items()
        )
        assert costs(trial.params) is not None
        networks.add(str(sorted((n, v) for n, v in trial.params.items() if n != "board")))
    assert len(networks) == len(study.trials)


def test_the_first_designs_are_the_parent_and_the_smallest(study: optuna.Study) -> None:
    assert size(study.trials[0].params) == 16
    assert size(study.trials[1].params) == 1.0


def test_equal_seeds_give_equal_studies(study: optuna.Study) -> None:
    assert [t.params for t in led(9).trials] == [t.params for t in study.trials[:9]]
    assert led(3, seed=1).trials[2].params != study.trials[2].params


@pytest.mark.parametrize("stop", [1, 4, 5, 8, 12, 15])
def test_a_resumed_study_proposes_what_an_uninterrupted_one_does(
    study: optuna.Study, stop: int
) -> None:
    assert asked(copied(study, stop)) == study.trials[stop].params


def test_a_given_number_replaces_the_trials_own(study: optuna.Study) -> None:
    shifted = copied(study, 3)  # a first design, drawn: no model leads both to the same one
    shifted.add_trial(create_trial(state=TrialState.FAIL))
    other = asked(shifted)
    again = optuna.create_study(directions=DIRECTIONS, sampler=sampler(number=3))
    again.add_trials(study.trials[:3])
    again.add_trial(create_trial(state=TrialState.FAIL))
    assert asked(again) == study.trials[3].params != other


def test_a_limit_is_a_constraint_and_not_where_gains_begin() -> None:
    """Of what is accurate enough the cheap count, as in the hypervolume that is measured."""
    least, ends = 0.86, [(2.0, 20.0), (1.0, 18.0)]
    limited = [within(least, seed, region=[(1.0, 0.0), *ends], limit=least) for seed in range(4)]
    started = [within(least, seed, region=[(1.0, least), *ends]) for seed in range(4)]
    assert np.mean(limited) > 1.05 * np.mean(started)


def within(least: float, seed: int, **settings: Any) -> float:
    """Hypervolume of the accurate designs of 20 trainings."""
    guide = sampler(seed, startup=3, **settings)
    study = optuna.create_study(directions=DIRECTIONS, sampler=guide)
    for _ in range(20):
        trial = study.ask(SPACE)
        study.tell(trial, objective(trial.params))
    accurate = [design.values for design in guide.front(study) if design.values[0] >= least]
    rows = [[1 - accuracy, size / 20, seconds / 18] for accuracy, size, seconds in accurate]
    return hypervolume(np.array(rows), np.ones(3))


def test_proposals_take_one_thread_and_leave_the_setting(study: optuna.Study) -> None:
    seen = []

    def watched(params: Mapping[str, Any]) -> Sequence[float] | None:
        seen.append(blas_threads())
        return costs(params)

    asker = GreyBoxSampler(watched, deployment=["board"], distributions=SPACE)
    again = optuna.create_study(directions=DIRECTIONS, sampler=asker)
    again.add_trials(study.trials[:10])
    with threadpool_limits(limits=2, user_api="blas"):
        asked(again)
        assert blas_threads() == {2}
    assert seen[-1] == {1}


def blas_threads() -> set[int]:
    return {i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas"}


def test_it_beats_random_search(study: optuna.Study) -> None:
    def volume(found: optuna.Study) -> float:
        values = np.array([design.values for design in sampler().front(found)])
        points = np.column_stack([1 - values[:, 0], np.log(values[:, 1:] / [1, 0.5])])
        return hypervolume(points, np.array([0.5, math.log(20), math.log(40)]))

    ours = volume(study)
    for seed in range(3):
        random = optuna.create_study(
            directions=DIRECTIONS, sampler=optuna.samplers.RandomSampler(seed=seed)
        )
        while len(random.trials) < 3 * len(study.trials):
            trial = random.ask(SPACE)
            random.tell(trial, objective(trial.params))
        assert ours > volume(random)


def test_the_front_holds_every_deployment_of_a_training(study: optuna.Study) -> None:
    front = sampler().front(study)
    assert len({design.number for design in front}) < len(front)
    for design in front:
        assert design.values == pytest.approx(objective(design.params))
        others = [other.values for other in front if other is not design]
        assert not any(
            a[0] >= design.values[0] and a[1] <= design.values[1] and a[2] <= design.values[2]
            for a in others
        )
    asked_for = {design.params["board"] for design in front}
    assert asked_for == {"slow", "fast"}


@pytest.mark.parametrize("objectives", [1, 2, 3, 4, 5])
def test_one_to_five_objectives_with_the_learned_one_anywhere(objectives: int) -> None:
    """DTLZ2 (Deb et al. 2002) with its last objective learned and the others known."""
    names = [f"x{i}" for i in range(objectives + 2)]
    space: dict[str, BaseDistribution] = {name: FloatDistribution(0, 1) for name in names}

    def dtlz2(params: Params) -> list[float]:
        x = np.array([params[name] for name in names])
        last = x[objectives - 1 :]
        radius = 1 + float(((last - 0.5) ** 2).sum())
        angles = x[: objectives - 1] * math.pi / 2
        return [
            radius
            * float(np.cos(angles[: objectives - 1 - i]).prod())
            * (math.sin(angles[objectives - 1 - i]) if i else 1.0)
            for i in range(objectives)
        ]

    made = GreyBoxSampler(
        lambda params: dtlz2(params)[:-1],
        learned=objectives - 1,
        distributions=space,
        scale="linear",
        startup=4,
    )
    study = optuna.create_study(directions=["minimize"] * objectives, sampler=made)
    study.optimize(lambda trial: dtlz2({n: trial.suggest_float(n, 0, 1) for n in names}), 12)
    assert len({str(trial.params) for trial in study.trials}) == 12
    assert 1 <= len(made.front(study)) <= 12
    if objectives == 1:
        assert study.best_value < 1.1


def test_conditional_parameters_are_learned_from_the_trials() -> None:
    def run(trial: optuna.Trial) -> tuple[float, float]:
        kind = trial.suggest_categorical("kind", ["dense", "low-rank", "sparse"])
        width = trial.suggest_int("width", 4, 64, log=True)
        share = 1.0
        if kind == "low-rank":
            share = trial.suggest_float("rank", 0.1, 0.9)
        elif kind == "sparse":
            share = trial.suggest_float("density", 0.1, 1.0, step=0.1)
        return 1 / (1 + width * share**0.5), width * share

    def known(params: Params) -> tuple[float]:
        share = {"low-rank": params.get("rank", 0.5), "sparse": params.get("density", 0.5)}
        return (params["width"] * share.get(params["kind"], 1.0),)

    study = optuna.create_study(
        directions=["minimize"] * 2, sampler=GreyBoxSampler(known, startup=4, seed=3)
    )
    study.optimize(run, 18)
    kinds = {trial.params["kind"] for trial in study.trials}
    assert kinds == {"dense", "low-rank", "sparse"}
    # A dense network does not ask for a rank: one that differs in nothing else is no new one.
    assert len({str(sorted(trial.params.items())) for trial in study.trials}) == 18


def test_designs_outside_the_region_are_never_trained() -> None:
    region = [(1.0, 0.5), (1.0, 6.0), None]
    study = optuna.create_study(directions=DIRECTIONS, sampler=sampler(region=region))
    for _ in range(12):
        trial = study.ask(SPACE)
        found = costs(trial.params)
        assert found is not None
        assert found[0] <= 6
        study.tell(trial, objective(trial.params))


def test_an_infeasible_space_ends_with_a_sentence() -> None:
    made = GreyBoxSampler(lambda params: None, deployment=["board"], distributions=SPACE)
    study = optuna.create_study(directions=DIRECTIONS, sampler=made)
    with pytest.raises(StudyError, match=r"no design is feasible: .* miss the limits on every"):
        asked(study)


SMALL: dict[str, BaseDistribution] = {
    "bits": CategoricalDistribution((2, 4, 8)),
    "keep": FloatDistribution(0.5, 1.0, step=0.5),
    "board": CategoricalDistribution(("slow", "fast")),
}


def small(trial: optuna.Trial) -> tuple[float, float]:
    bits = trial.suggest_categorical("bits", (2, 4, 8))
    keep = trial.suggest_float("keep", 0.5, 1.0, step=0.5)
    board = trial.suggest_categorical("board", ("slow", "fast"))
    return 1 / (1 + bits * keep), bits * keep * (1 if board == "fast" else 2)


def small_costs(params: Params) -> tuple[float] | None:
    bits, keep, fast = params["bits"], params["keep"], params["board"] == "fast"
    return None if bits * keep == 1 else (bits * keep * (1 if fast else 2),)


def test_a_space_with_fewer_candidates_than_trials_ends() -> None:
    made = GreyBoxSampler(small_costs, deployment=["board"], distributions=SMALL, startup=2)
    study = optuna.create_study(directions=["minimize"] * 2, sampler=made)
    study.optimize(small, 50)
    assert len(study.trials) == 5
    with pytest.raises(StudyError, match=r"nothing is left to train: 5 networks are known and .*1"):
        study.ask(SMALL)


def test_failed_pruned_and_nan_trials_teach_nothing_and_are_not_repeated() -> None:
    study = optuna.create_study(directions=DIRECTIONS, sampler=sampler())
    for number in range(14):
        trial = study.ask(SPACE)
        if number % 3 == 1:
            state = [TrialState.FAIL, TrialState.PRUNED][number % 2]
            study.tell(trial, state=state)
        elif number % 3 == 2:
            study.tell(trial, [math.nan, 1, 1], skip_if_finished=True)
        else:
            study.tell(trial, objective(trial.params))
    assert sum(trial.state is TrialState.COMPLETE for trial in study.trials) == 5
    assert len({str(trial.params) for trial in study.trials}) == 14


def test_only_failures_never_stop_the_proposals() -> None:
    study = optuna.create_study(directions=DIRECTIONS, sampler=sampler())
    for _ in range(8):
        study.tell(study.ask(SPACE), state=TrialState.FAIL)
    assert len({str(trial.params) for trial in study.trials}) == 8


def test_eight_workers_at_once_get_different_networks() -> None:
    study = optuna.create_study(directions=DIRECTIONS, sampler=sampler())
    barrier, failures = threading.Barrier(8), list[BaseException]()

    def work() -> None:
        try:
            for _ in range(2):
                barrier.wait(60)
                trial = study.ask(SPACE)
                barrier.wait(60)  # nobody has finished when all have asked
                study.tell(trial, objective(trial.params))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    networks = [{n: v for n, v in t.params.items() if n != "board"} for t in study.trials]
    assert len({str(sorted(network.items())) for network in networks}) == 16


def test_workers_with_a_sampler_each_see_what_is_running(study: optuna.Study) -> None:
    shared = copied(study, 10)
    found = []
    for _ in range(4):
        shared.sampler = sampler()
        found.append(str(asked(shared)))
    assert len(set(found)) == 4


def test_a_batch_of_costs_is_the_same_as_one_by_one(study: optuna.Study) -> None:
    def batch(networks: Sequence[Params], deployments: Sequence[Params]) -> np.ndarray[Any, Any]:
        every = [[costs({**n, **d}) or (math.nan, math.nan) for d in deployments] for n in networks]
        return np.array(every)

    again = optuna.create_study(
        directions=DIRECTIONS,
        sampler=GreyBoxSampler(
            batch, deployment=["board"], distributions=SPACE, startup=5, vectorized=True
        ),
    )
    again.add_trials(study.trials[:9])
    assert asked(again) == study.trials[9].params


def test_equal_keys_are_one_training() -> None:
    """Bits of 4 and 8 mean the same here: one of them is enough."""
    made = GreyBoxSampler(
        small_costs,
        deployment=["board"],
        distributions=SMALL,
        network=lambda params: (min(params["bits"], 4), params["keep"]),
        startup=2,
    )
    study = optuna.create_study(directions=["minimize"] * 2, sampler=made)
    study.optimize(small, 50)
    keys = [(min(t.params["bits"], 4), t.params["keep"]) for t in study.trials]
    assert len(set(keys)) == len(keys) == 3


WRONG: Sequence[tuple[dict[str, Any], str]] = (
    ({"startup": 1}, "startup is 1; allowed: at least 2"),
    ({"candidates": 5}, "candidates is 5; allowed: at least 20"),
    ({"samples": 0}, "samples is 0; allowed: at least 1"),
    ({"limit": 90}, "limit is 90; allowed: 0 to 1"),
    ({"scale": "probit"}, "scale is 'probit'; allowed: logit, log, linear"),
    ({"learned": 3}, "learned is 3, but the study has 3 objectives; allowed: 0 to 2"),
    ({"region": [None]}, "region has 1 entries for 3 objectives"),
    ({"deployment": ["rate"]}, "deployment parameter 'rate' has no list of values"),
)


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_wrong_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        asked(optuna.create_study(directions=DIRECTIONS, sampler=sampler(**changes)))


def test_costs_of_another_shape_and_impossible_accuracies_are_refused() -> None:
    one: Callable[[Params], Sequence[float]] = lambda params: (1.0,)  # noqa: E731
    made = GreyBoxSampler(one, deployment=["board"], distributions=SPACE)
    with pytest.raises(StudyError, match=r"array of shape \(1,\); expected \(2,\)"):
        asked(optuna.create_study(directions=DIRECTIONS, sampler=made))
    study = copied(led(1), 1)
    study.add_trial(percent(study.trials[0]))
    with pytest.raises(StudyError, match=r"gave -92 .* its scale is 'logit'; allowed: 0 to 1"):
        asked(study)


def percent(trial: FrozenTrial) -> FrozenTrial:
    return create_trial(values=[93.0, 1, 1], params=trial.params, distributions=trial.distributions)
