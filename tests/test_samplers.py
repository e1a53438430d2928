"""One contract for every sampler: legal proposals, the same ones again, and settings checked."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from dse.errors import StudyError
from dse.knobs import Knob
from dse.samplers import (
    GREY_BOX,
    MAX_GRID,
    SAMPLER_SETTINGS,
    check_settings,
    make_sampler,
    resolve,
)

# The grey box needs a whole problem: tests/test_greybox_*.py and test_explorer.py.
SAMPLERS = [name for name in SAMPLER_SETTINGS if name not in GREY_BOX]
KNOBS = (
    Knob("prune.conv1", "prune", (0.0, 0.125, 0.25, 0.375, 0.5)),
    Knob("prune.conv2", "prune", (0.0, 0.5, 0.9)),
    Knob("bits.conv1", "bits", (2, 3, 4, 5)),
    Knob("bits.conv2", "bits", (2, 4, 8)),
    Knob("schedule", "schedule", ("one-shot",)),
    Knob("target", "target", ("rpi_pico/native/133MHz", "nucleo_f446re/cmsis-nn/180MHz")),
)
CHOICES = {knob.name: knob.choices for knob in KNOBS}
DISTRIBUTIONS = {knob.name: knob.distribution() for knob in KNOBS}
DIRECTIONS: list[Literal["maximize", "minimize"]] = ["maximize", "minimize", "minimize"]
# Enough for every sampler to have left its start-up phase.
TRIALS = 26
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "tpe": {"n_startup_trials": 6, "n_ei_candidates": 8, "multivariate": True},
    "nsga2": {"population_size": 5, "mutation_prob": 0.3, "crossover_prob": 0.8},
    "nsga3": {"population_size": 5, "mutation_prob": 0.3, "crossover_prob": 0.8},
    "gp": {"n_startup_trials": 22, "deterministic_objective": True},
    "random": {},
    "grid": {},
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def values(params: Mapping[str, Any]) -> list[float]:
    """Three objectives that pull against each other."""
    pruned, bits = params["prune.conv1"] + params["prune.conv2"], params["bits.conv1"]
    fast = params["target"].startswith("nucleo")
    return [1 - pruned**2 / 4 - 1 / bits**2, bits * (2 - pruned), (2 - pruned) * (1 if fast else 3)]


def constraints(params: Mapping[str, Any]) -> dict[str, float]:
    return {"flash <= 8": params["bits.conv1"] * (2 - params["prune.conv1"]) / 8 - 1}


def history(name: str, trials: int, seed: int = 0) -> optuna.Study:
    """A study that the sampler led itself, as the explorer leads one."""
    study = optuna.create_study(directions=DIRECTIONS)
    while len(study.trials) < trials:
        ask(study, name, seed, len(study.trials))
    return study


def ask(study: optuna.Study, name: str, seed: int, number: int) -> dict[str, Any]:
    study.sampler = make_sampler(name, SETTINGS[name], seed, number, CHOICES)
    trial = study.ask(DISTRIBUTIONS)
    for text, miss in constraints(trial.params).items():
        trial.set_constraint(text, miss)
    study.tell(trial, values(trial.params))
    return dict(trial.params)


def copied(study: optuna.Study) -> optuna.Study:
    """What a resumed study replays: the stored trials, added to a new study."""
    again = optuna.create_study(directions=DIRECTIONS)
    for trial in study.trials:
        again.add_trial(replayed(trial))
    return again


def replayed(trial: FrozenTrial) -> FrozenTrial:
    return create_trial(
        state=TrialState.COMPLETE,
        values=trial.values,
        params=trial.params,
        distributions=trial.distributions,
        system_attrs={k: v for k, v in trial.system_attrs.items() if k != "constraints"},
        constraints=constraints(trial.params),
    )


@pytest.fixture(scope="module", params=SAMPLERS)
def led(request: pytest.FixtureRequest) -> tuple[str, optuna.Study]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return request.param, history(request.param, TRIALS)


def test_only_legal_values_are_proposed(led: tuple[str, optuna.Study]) -> None:
    _, study = led
    for trial in study.trials:
        assert set(trial.params) == set(CHOICES)
        for name, value in trial.params.items():
            assert any(value == pytest.approx(choice) for choice in CHOICES[name]), (name, value)


def test_equal_history_seed_and_number_give_equal_proposals(led: tuple[str, optuna.Study]) -> None:
    name, study = led
    first = ask(copied(study), name, 0, TRIALS)
    assert ask(copied(study), name, 0, TRIALS) == first


def test_a_resumed_study_proposes_what_an_uninterrupted_one_does(
    led: tuple[str, optuna.Study],
) -> None:
    name, study = led
    for stop in range(1, TRIALS, 4 if name == "gp" else 1):
        earlier = optuna.create_study(directions=DIRECTIONS)
        for trial in study.trials[:stop]:
            earlier.add_trial(replayed(trial))
        assert ask(earlier, name, 0, stop) == study.trials[stop].params


def test_proposals_differ_from_trial_to_trial(led: tuple[str, optuna.Study]) -> None:
    _, study = led
    assert len({str(sorted(trial.params.items())) for trial in study.trials}) > TRIALS / 3


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "grid"])
def test_another_number_or_seed_draws_other_values(name: str) -> None:
    study = history(name, 3)
    numbers = [ask(copied(study), name, 0, number) for number in range(3, 9)]
    seeds = [ask(copied(study), name, seed, 3) for seed in range(6)]
    for proposals in (numbers, seeds):
        assert len({str(sorted(params.items())) for params in proposals}) > 3


def legal(params: Mapping[str, Any]) -> bool:
    return set(params) == set(CHOICES) and all(
        any(value == pytest.approx(choice) for choice in CHOICES[name])
        for name, value in params.items()
    )


@pytest.mark.parametrize("objectives", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", SAMPLERS)
def test_one_to_five_objectives(name: str, objectives: int) -> None:
    study = optuna.create_study(directions=["minimize"] * objectives)
    for number in range(12):
        study.sampler = make_sampler(name, SETTINGS[name], 0, number, CHOICES)
        trial = study.ask(DISTRIBUTIONS)
        assert legal(trial.params)
        study.tell(trial, [value * (i + 1) for i in range(objectives) for value in [number % 5]])


@pytest.mark.parametrize("name", SAMPLERS)
def test_failed_and_nan_trials_and_nothing_feasible_still_give_legal_proposals(name: str) -> None:
    study = optuna.create_study(directions=DIRECTIONS)
    for number in range(TRIALS):
        study.sampler = make_sampler(name, SETTINGS[name], 0, number, CHOICES)
        trial = study.ask(DISTRIBUTIONS)
        assert legal(trial.params)
        trial.set_constraint("never met", 1.0 + number % 3)
        if number % 3 == 0:
            study.tell(trial, state=TrialState.FAIL)
        elif number % 3 == 1:
            study.tell(trial, [float("nan"), 1, 1], skip_if_finished=True)
        else:
            study.tell(trial, values(trial.params))


@pytest.mark.parametrize("name", SAMPLERS)
def test_eight_at_once_get_legal_and_mostly_different_proposals(name: str) -> None:
    study = history(name, 6)
    running = []
    for number in range(6, 14):
        study.sampler = make_sampler(name, SETTINGS[name], 0, number, CHOICES)
        running.append(study.ask(DISTRIBUTIONS))
    assert all(legal(trial.params) for trial in running)
    assert len({str(sorted(trial.params.items())) for trial in running}) > 4
    for trial in reversed(running):
        study.tell(trial, values(trial.params))
    assert legal(ask(study, name, 0, 14))


def test_a_grid_meets_every_point_once() -> None:
    knobs = {name: CHOICES[name] for name in ("prune.conv2", "bits.conv2", "target")}
    distributions = {name: DISTRIBUTIONS[name] for name in knobs}
    study = optuna.create_study(directions=DIRECTIONS)
    points = 3 * 3 * 2
    for number in range(points):
        study.sampler = make_sampler("grid", {}, 0, number, knobs)
        study.tell(study.ask(distributions), [0, 0, 0])
    assert len({str(sorted(trial.params.items())) for trial in study.trials}) == points


def test_a_grid_of_too_many_points_is_refused() -> None:
    edge = {"a": range(MAX_GRID // 10), "b": range(10)}
    make_sampler("grid", {}, 0, 0, edge)
    with pytest.raises(StudyError, match=r"the grid has 20,010 points; allowed: up to 20,000"):
        make_sampler("grid", {}, 0, 0, {**edge, "a": range(MAX_GRID // 10 + 1)})


@pytest.mark.parametrize("name", SAMPLERS)
def test_settings_are_taken_or_refused(name: str) -> None:
    check_settings(name, SETTINGS[name])
    assert set(SETTINGS[name]) == set(SAMPLER_SETTINGS[name])
    for key, kind in SAMPLER_SETTINGS[name].items():
        for wrong in (
            "3",
            None,
            -1,
            [3],
            1 if kind is bool else True,
            2.5 if kind is int else -0.1,
        ):
            with pytest.raises(StudyError, match=f"'{key}' of {name} is .*; allowed: "):
                check_settings(name, {key: wrong})
        near = r"has no setting .*did you mean" if len(key) > 3 else "has no setting"
        with pytest.raises(StudyError, match=near):
            check_settings(name, {key[:-1]: 3})
    with pytest.raises(
        StudyError, match=rf"'{name}' has no setting 'zzz'; (allowed: |it has none)"
    ):
        check_settings(name, {"zzz": 3})


@pytest.mark.parametrize("key", ["mutation_prob", "crossover_prob"])
def test_a_probability_is_at_most_one(key: str) -> None:
    check_settings("nsga2", {key: 1})
    with pytest.raises(StudyError, match="allowed: 0 to 1"):
        check_settings("nsga2", {key: 1.1})


def test_an_unknown_sampler_is_named_with_the_nearest() -> None:
    with pytest.raises(StudyError, match=r"no sampler 'nsga4'; did you mean 'nsga[23]'\?"):
        check_settings("nsga4", {})
    with pytest.raises(StudyError, match=r"no sampler 'x'; allowed: auto, gp, grey-box"):
        make_sampler("x", {}, 0, 0, {})


def test_auto_walks_small_spaces_and_takes_the_grey_box_for_the_rest() -> None:
    assert resolve("auto", 30, 30)[0] == "grid"
    name, why = resolve("auto", 31, 30)
    assert name == "grey-box"
    assert "31 settings are too many for 30 trials" in why
    assert resolve("tpe", 3, 30) == ("tpe", "tpe, as asked for")
