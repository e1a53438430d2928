"""Optuna's samplers by name, each with the settings that a study file may give.

A sampler is made anew for every proposal, seeded by (study seed, trial number): what it knows is in
the stored trials, so a resumed study continues exactly where an uninterrupted one would be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dse.errors import StudyError, nearest

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

MAX_GRID = 20_000
# Made by `search_costs.grey_box`: they need to know what designs cost.
GREY_BOX = ("auto", "grey-box")
# NSGA's default population of 50 has had two generations at 100 trials; 20 has had five.
_POPULATION = 20

# Settings by sampler and the type each takes.
SAMPLER_SETTINGS: Mapping[str, Mapping[str, type]] = {
    "auto": {},
    "grey-box": {"startup": int, "candidates": int},
    "tpe": {"n_startup_trials": int, "n_ei_candidates": int, "multivariate": bool},
    "nsga2": {"population_size": int, "mutation_prob": float, "crossover_prob": float},
    "nsga3": {"population_size": int, "mutation_prob": float, "crossover_prob": float},
    "gp": {"n_startup_trials": int, "deterministic_objective": bool},
    "random": {},
    "grid": {},
}
_KINDS = {int: "a whole number of at least 1", float: "a number from 0", bool: "true or false"}


def check_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Raise StudyError unless the sampler exists and every setting is known and of its type."""
    if name not in SAMPLER_SETTINGS:
        raise StudyError(f"there is no sampler '{name}'; {nearest(name, SAMPLER_SETTINGS)}")
    allowed = SAMPLER_SETTINGS[name]
    for key, value in settings.items():
        if key not in allowed:
            raise StudyError(
                f"sampler '{name}' has no setting '{key}'; "
                + (nearest(key, allowed) if allowed else "it has none")
            )
        kind = allowed[key]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = number and value >= 0 if kind is not bool else isinstance(value, bool)
        if not fits or (kind is int and (not isinstance(value, int) or value < 1)):
            raise StudyError(f"setting '{key}' of {name} is {value!r}; allowed: {_KINDS[kind]}")
        if key.endswith("_prob") and value > 1:
            raise StudyError(f"setting '{key}' of {name} is {value!r}; allowed: 0 to 1")


def resolve(name: str, settings: int, n_trials: int) -> tuple[str, str]:
    """(the sampler that `auto` means, one sentence of why); others are what they are.

    `settings` is the size of the space.
    """
    if name != "auto":
        return name, f"{name}, as asked for"
    if settings <= min(n_trials, MAX_GRID):
        return "grid", f"grid, as {n_trials:,} trials are enough for all {settings:,} settings"
    return (
        "grey-box",
        f"grey-box, as costs are exact before training and {settings:,.0f} settings are too many "
        f"for {n_trials:,} trials: it learns the accuracy alone",
    )


def starts(name: str, settings: Mapping[str, Any]) -> int:
    """How many proposals come before the sampler knows anything: drawn by ourselves, cost-spread.

    None for those whose draws are the point: random, and the grid.
    """
    if name in ("tpe", "gp"):
        return int(settings.get("n_startup_trials", 10))
    return int(settings.get("population_size", _POPULATION)) if name.startswith("nsga") else 0


def draws_together(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether the sampler draws all knobs at once, and so needs a value of each in every trial."""
    return name in ("nsga2", "nsga3", "gp") or bool(settings.get("multivariate", False))


def check_grid(points: int) -> None:
    """Raise StudyError for a grid of more than 20,000 points."""
    if points > MAX_GRID:
        raise StudyError(
            f"the grid has {points:,} points; allowed: up to {MAX_GRID:,}; "
            "take coarser knobs or another sampler"
        )


def make_sampler(
    name: str,
    settings: Mapping[str, Any],
    seed: int,
    number: int,
    choices: Mapping[str, Sequence[Any]],
    distributions: Mapping[str, BaseDistribution] | None = None,
    others: bool = False,
) -> BaseSampler:
    """The sampler for trial `number`; equal arguments and stored trials give equal proposals.

    `choices` are the values of every knob, which only the grid needs. With `distributions`, a
    sampler that draws all knobs together takes them as the space, instead of comparing those of
    every stored trial (150 ms a proposal for 80 knobs and 1,000 trials). With `others`, trials run
    meanwhile, and TPE keeps away from them (its constant liar). Raises StudyError for an
    unknown sampler or setting, and for a grid of more than 20,000 points.
    """
    check_settings(name, settings)
    if name in GREY_BOX:
        raise StudyError(f"sampler '{name}' is made for a whole problem: dse.search_costs.grey_box")
    derived = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
    options = dict(settings) | ({"constant_liar": True} if others and name == "tpe" else {})
    sampler = _MAKERS[name](options, derived, seed, choices)
    if distributions is not None and draws_together(name, settings):
        known = {knob: found for knob, found in distributions.items() if not found.single()}
        sampler.infer_relative_search_space = lambda study, trial: dict(known)  # type: ignore[method-assign]
    return sampler


def _tpe(settings: dict[str, Any], derived: int, *_: Any) -> BaseSampler:
    from optuna.samplers import TPESampler

    return TPESampler(seed=derived, **settings)


def _nsga2(settings: dict[str, Any], derived: int, seed: int, *_: Any) -> BaseSampler:
    from optuna.samplers import NSGAIISampler

    return _genetic(NSGAIISampler, settings, derived, seed)


def _nsga3(settings: dict[str, Any], derived: int, seed: int, *_: Any) -> BaseSampler:
    from optuna.samplers import NSGAIIISampler

    return _genetic(NSGAIIISampler, settings, derived, seed)


def _genetic(kind: Any, settings: dict[str, Any], derived: int, seed: int) -> BaseSampler:
    """A genetic sampler that finds the same parents again when a study is resumed.

    Optuna chooses a generation's parents once, by the random state and in the order of whichever
    trial asks first; here they depend on the stored trials and the generation alone.
    """
    options = {"population_size": _POPULATION} | settings

    def select_parent(sampler: Any, study: optuna.Study, generation: int) -> Any:
        sampler.get_parent_population(study, generation - 1)  # kept with the study from here on
        state = np.random.SeedSequence(seed, spawn_key=(generation,)).generate_state(1)
        return kind(seed=int(state[0]), **options).select_parent(study, generation)

    def get_parent_population(sampler: Any, study: optuna.Study, generation: int) -> Any:
        parents = kind.get_parent_population(sampler, study, generation)
        return sorted(parents, key=lambda trial: trial.number)

    # Optuna keeps generations and parents under the name of the class.
    methods = {"select_parent": select_parent, "get_parent_population": get_parent_population}
    sampler: BaseSampler = type(kind.__name__, (kind,), methods)(seed=derived, **options)
    return sampler


def _gp(settings: dict[str, Any], derived: int, *_: Any) -> BaseSampler:
    from optuna.samplers import GPSampler

    return GPSampler(seed=derived, **settings)


def _random(settings: dict[str, Any], derived: int, *_: Any) -> BaseSampler:
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=derived, **settings)


def _grid(
    settings: dict[str, Any], derived: int, seed: int, choices: Mapping[str, Sequence[Any]]
) -> BaseSampler:
    from optuna.samplers import GridSampler

    check_grid(math.prod(len(values) for values in choices.values()))

    class _Grid(GridSampler):
        """A grid under ask and tell; the explorer sees by itself when it is exhausted."""

        def after_trial(
            self,
            study: optuna.Study,
            trial: optuna.trial.FrozenTrial,
            state: optuna.trial.TrialState,
            values: Sequence[float] | None,
        ) -> None:
            """Do not stop the study: Study.stop() works only inside Study.optimize()."""

    # The order of the grid must not move between trials, so its seed is the study's own.
    return _Grid(dict(choices), seed=seed)


_MAKERS: Mapping[str, Callable[..., BaseSampler]] = {
    "tpe": _tpe,
    "nsga2": _nsga2,
    "nsga3": _nsga3,
    "gp": _gp,
    "random": _random,
    "grid": _grid,
}
