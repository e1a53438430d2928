"""Every way to search, as one loop that counts trainings and remembers what they found."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from problem import Params, SearchProblem
from scipy.special import logit

from dse.greybox import GreyBoxSampler
from dse.greybox.costs import CostTable
from dse.greybox.knobs import Knobs
from dse.greybox.proposals import Proposals
from dse.greybox.surrogate import ErrorModel, ErrorScale
from dse.pareto import Points

Way = Literal["plain", "memo"]
STARTS = 20
# Proposals that cost no training, in a row, before a method counts as stuck.
_MOST_FREE = 200


@dataclass
class Ledger:
    """Trainings in order, and the designs that each brought."""

    problem: SearchProblem
    way: Way
    known: dict[str, float] = field(default_factory=dict)
    trained: list[tuple[dict[str, Any], list[int]]] = field(default_factory=list)

    def costs(self, params: Params) -> Points:
        """(targets, costs) of a network."""
        problem = self.problem
        found = problem.costs([problem.network(params)], problem.deployments)
        return np.asarray(found[0])

    def target(self, params: Params) -> int:
        """The index of the deployment asked for."""
        asked = {self.problem.deployment: params[self.problem.deployment]}
        return self.problem.deployments.index(asked)

    def train(self, params: Params) -> float:
        """The measured error; counts as a training, known or not."""
        network = self.problem.network(params)
        whole = range(len(self.problem.deployments))
        self.trained.append((network, [*whole] if self.way == "memo" else [self.target(params)]))
        error = self.problem.errors.measured(network)
        self.known[_name(network)] = error
        return error

    def recall(self, params: Params) -> float | None:
        """The error of a network that was trained before."""
        return self.known.get(_name(self.problem.network(params)))

    def score(self, trainings: int) -> float:
        """Share of the best known hypervolume after the first trainings."""
        done = self.trained[:trainings]
        networks = [network for network, _ in done]
        costs = self.problem.costs(networks, self.problem.deployments)
        rows = [costs[i, targets] for i, (_, targets) in enumerate(done)]
        counts = [len(targets) for _, targets in done]
        errors = np.repeat(self.problem.errors.true(networks), counts)
        return self.problem.score(errors, np.vstack(rows))


def _name(network: Params) -> str:
    return json.dumps(sorted(network.items()))


@dataclass(frozen=True)
class Method:
    """One way to search: its name, how often and how far it is run, and the run itself."""

    name: str
    run: Callable[[SearchProblem, int, int], Ledger]
    seeds: int = 5
    trainings: int = 200
    note: str = ""


def _study(problem: SearchProblem, sampler: BaseSampler | None = None) -> optuna.Study:
    directions = [StudyDirection.MINIMIZE] * (1 + len(problem.low))
    return optuna.create_study(directions=directions, sampler=sampler)


def spread(problem: SearchProblem, seed: int, count: int) -> list[dict[str, Any]]:
    """Cost-spread designs, each on a random one of its feasible targets."""
    space = {n: d for n, d in problem.distributions.items() if n != problem.deployment}
    knobs = Knobs(space)
    table = CostTable(knobs, problem.deployments, problem.costs, True, np.ones(len(problem.low)))
    source = np.random.default_rng(seed)
    rows = Proposals(knobs, table, seed).spread(source, 3 * count)
    able = np.asarray(np.isfinite(table.of(rows)).all(axis=2))
    found = [
        {**knobs.params(row), **problem.deployments[source.choice(np.flatnonzero(fits))]}
        for row, fits in zip(rows, able, strict=True)
        if fits.any()
    ]
    return found[:count]


def black_box(make: Callable[[int], BaseSampler], way: Way) -> Callable[..., Ledger]:
    """Optuna's samplers. 'plain': every proposal is trained, on the target it names.

    'memo': infeasible proposals are told so, and known networks their error, without a training;
    one training counts on all targets; the first 20 are cost-spread.
    """

    def run(problem: SearchProblem, seed: int, trainings: int) -> Ledger:
        study, ledger = _study(problem, make(seed)), Ledger(problem, way)
        for params in spread(problem, seed, STARTS) if way == "memo" else []:
            study.enqueue_trial(params)
        free = 0
        while len(ledger.trained) < trainings and free < _MOST_FREE:
            before = len(ledger.trained)
            _one(problem, study, ledger)
            free = free + 1 if len(ledger.trained) == before else 0
        return ledger

    return run


def _one(problem: SearchProblem, study: optuna.Study, ledger: Ledger) -> None:
    trial = study.ask(dict(problem.distributions))
    costs = ledger.costs(trial.params)[ledger.target(trial.params)]
    able = bool(np.isfinite(costs).all())
    trial.set_constraint("limits", -1.0 if able else 1.0)
    if ledger.way == "plain":
        error = ledger.train(trial.params)
    elif not able:
        error = float(np.mean([*ledger.known.values(), 0.5]))
    else:
        known = ledger.recall(trial.params)
        error = ledger.train(trial.params) if known is None else known
    # Told to all: errors beyond the reference do not count.
    trial.set_constraint("error", error - problem.worst_error)
    told = problem.normalised(costs) if able else np.ones(len(problem.low))
    study.tell(trial, [error, *told.tolist()])


def spread_random(problem: SearchProblem, seed: int, trainings: int) -> Ledger:
    """Cost-spread draws with the memo, and nothing learned."""
    ledger = Ledger(problem, "memo")
    for params in spread(problem, seed, 3 * trainings):
        if ledger.recall(params) is None and len(ledger.trained) < trainings:
            ledger.train(params)
    return ledger


def grey_box(way: Way = "memo", oracle: bool = False, flight: int = 1) -> Callable[..., Ledger]:
    """The grey box; the oracle's one feature is the true error; `flight` trainings run at once."""

    def run(problem: SearchProblem, seed: int, trainings: int) -> Ledger:
        sampler = _grey_sampler(problem, seed, way, oracle)
        study, ledger = _study(problem, sampler), Ledger(problem, way)
        running: list[optuna.Trial] = []
        while len(ledger.trained) < trainings:
            running.append(study.ask(dict(problem.distributions)))
            if len(running) == flight:
                trial = running.pop(0)
                costs = ledger.costs(trial.params)[ledger.target(trial.params)]
                study.tell(trial, [ledger.train(trial.params), *costs.tolist()])
        return ledger

    return run


def _grey_sampler(problem: SearchProblem, seed: int, way: Way, oracle: bool) -> GreyBoxSampler:
    def costs(networks: Sequence[Params], deployments: Sequence[Params]) -> Points:
        if way == "memo":
            return problem.costs(networks, problem.deployments)
        found = problem.costs(networks, problem.deployments)
        names = [deployment[problem.deployment] for deployment in problem.deployments]
        asked = [names.index(network[problem.deployment]) for network in networks]
        return found[np.arange(len(networks)), asked][:, None]

    def features(params: Params) -> Mapping[str, Sequence[float]]:
        network = problem.network(params)
        if oracle:
            return {"truth": [float(logit(problem.errors.true([network])[0]))]}
        return problem.features(network)

    return GreyBoxSampler(
        costs,
        learned=0,
        deployment=[problem.deployment] if way == "memo" else [],
        distributions=problem.distributions,
        vectorized=True,
        features=features,
        network=None if way == "memo" else lambda params: _name(params),
        region=problem.region,
        samples=problem.samples,
        seed=seed,
    )


def predicted_costs(problem: SearchProblem, seed: int, trainings: int) -> Ledger:
    """The ablation: the same search, but costs are learned from the trials, too, and no memo."""
    study, ledger = _study(problem), Ledger(problem, "plain")
    while len(ledger.trained) < trainings:
        number = len(ledger.trained)
        study.sampler = GreyBoxSampler(
            _CostGuess(problem, study.trials),
            distributions=problem.distributions,
            vectorized=True,
            features=lambda params: problem.features(problem.network(params)),
            region=problem.region,
            samples=problem.samples,
            seed=seed,
        )
        trial = study.ask(dict(problem.distributions))
        assert trial.number == number
        costs = ledger.costs(trial.params)[ledger.target(trial.params)]
        error = ledger.train(trial.params)
        trial.set_user_attr("costs", costs.tolist())
        study.tell(trial, [error, *np.nan_to_num(costs, nan=1.0).tolist()])
    return ledger


class _CostGuess:
    """Costs by Gaussian processes on what the feasible trials cost; all feasible."""

    def __init__(self, problem: SearchProblem, trials: Sequence[Any]) -> None:
        self._problem = problem
        told = [trial.user_attrs["costs"] for trial in trials]
        costs = np.array(told, dtype=np.float64).reshape(len(trials), len(problem.low))
        able = np.asarray(np.isfinite(costs).all(axis=1))
        self._models: list[ErrorModel] = []
        if able.sum() >= 4:
            rows = self._features([trial.params for trial in trials])[able]
            self._models = [ErrorModel(rows, column, ErrorScale("log")) for column in costs[able].T]

    def _features(self, params: Sequence[Mapping[str, Any]]) -> Points:
        problem = self._problem
        names = [deployment[problem.deployment] for deployment in problem.deployments]
        parts = sorted({part for name in names for part in name.split("/")})
        return np.array(
            [
                [
                    *itertools.chain(*problem.features(problem.network(each)).values()),
                    *[float(part in each[problem.deployment].split("/")) for part in parts],
                ]
                for each in params
            ]
        )

    def __call__(self, networks: Sequence[Params], deployments: Sequence[Params]) -> Points:
        if not self._models:
            middle = np.sqrt(self._problem.low * self._problem.high)
            return np.tile(middle, (len(networks), 1, 1))
        rows = self._features(networks)
        means = [model.scale.back(model.predict(rows)[0]) for model in self._models]
        found = np.clip(np.array(means).T, self._problem.low, self._problem.high * 0.999)
        return np.asarray(found[:, None])


def timed(method: Method, problem: SearchProblem, seed: int) -> tuple[Ledger, float]:
    """A run and its CPU seconds a training."""
    began = time.process_time()
    ledger = method.run(problem, seed, method.trainings)
    return ledger, (time.process_time() - began) / max(1, len(ledger.trained))


def optuna_methods() -> list[Method]:
    """Optuna's multi-objective samplers, plain and with the memo."""
    from optuna.samplers import (
        GPSampler,
        NSGAIIISampler,
        NSGAIISampler,
        RandomSampler,
        TPESampler,
    )

    makers: dict[str, Callable[[int], BaseSampler]] = {
        "random": lambda seed: RandomSampler(seed=seed),
        "NSGA-II": lambda seed: NSGAIISampler(population_size=20, seed=seed),
        "NSGA-III": lambda seed: NSGAIIISampler(population_size=20, seed=seed),
        "TPE": lambda seed: TPESampler(seed=seed),
        "TPE multivariate": lambda seed: TPESampler(multivariate=True, seed=seed),
        "GPSampler": lambda seed: GPSampler(seed=seed),
    }
    found = []
    for name, make in makers.items():
        if name == "GPSampler":
            note = "2 seeds and 50 trainings only, as it takes seconds a suggestion"
            found.append(Method(name, black_box(make, "plain"), 2, 50, note))
            continue
        ways: tuple[Way, ...] = ("plain", "memo")
        for way in ways:
            title = name if way == "plain" else f"{name} + item 1"
            found.append(Method(title, black_box(make, way)))
    return found


def methods() -> list[Method]:
    """All, in the order of the table."""
    return [
        *optuna_methods(),
        Method("cost-spread random + memo", spread_random),
        Method("grey box, costs predicted", predicted_costs, 3, 100, "3 seeds and 100 trainings"),
        Method("grey box, no memo", grey_box("plain"), 3, 100, "3 seeds and 100 trainings"),
        Method("grey box, 4 at once", grey_box(flight=4), 3, 100, "3 seeds and 100 trainings"),
        Method("grey box", grey_box()),
        Method("oracle", grey_box(oracle=True), 3, 100, "3 seeds and 100 trainings"),
    ]
