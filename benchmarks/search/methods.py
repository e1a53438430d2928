"""Every way to search, as one loop that counts trainings and remembers what they found."""

from __future__ import annotations

import itertools
import json
import random
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
WAYS: tuple[Way, ...] = ("plain", "memo")
STARTS = 20
# 2: known networks are changed after five in a row. 3: the grey box compresses what does not count.
# 4: three first designs, other draws of mutations. 5: eight where costs are predicted.
MEMO_REVISION, GREY_REVISION, PREDICTED_REVISION = 2, 4, 5
# Proposals that cost no training, in a row, before a method counts as stuck.
_MOST_FREE = 200
_MOST_REPEATS, _CHANGES = 5, 60  # as in dse.proposer and dse.draws


@dataclass
class Ledger:
    """Trainings in order, and the designs that each brought."""

    problem: SearchProblem
    way: Way
    known: dict[str, float] = field(default_factory=dict)
    trained: list[tuple[dict[str, Any], list[int]]] = field(default_factory=list)
    _clock: list[float] = field(default_factory=lambda: [time.process_time()])

    def spent_s(self, trainings: int) -> float:
        """CPU seconds until the result of so many was there."""
        return self._clock[trainings] - self._clock[0]

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
        self._clock.append(time.process_time())
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
    """One way to search: its name, how often and how far it is run, and the run itself.

    Another `revision` runs stored results again.
    """

    name: str
    run: Callable[[SearchProblem, int, int], Ledger]
    seeds: int = 5
    trainings: int = 200
    note: str = ""
    revision: int = 1


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


Maker = Callable[[SearchProblem, int], BaseSampler]


def black_box(make: Maker, way: Way) -> Callable[..., Ledger]:
    """Optuna's samplers and their like. 'plain': every proposal is trained, where it asks to be.

    'memo': infeasible proposals are told so, and known networks their error, without a training;
    after five known ones in a row the last is changed until it is new; one training counts on all
    targets; the first 20 are cost-spread. This is what `dse` does for every sampler.
    """

    def run(problem: SearchProblem, seed: int, trainings: int) -> Ledger:
        study, ledger = _study(problem, make(problem, seed)), Ledger(problem, way)
        for params in spread(problem, seed, STARTS) if way == "memo" else []:
            study.enqueue_trial(params)
        source, repeats, free = random.Random(seed), 0, 0
        while len(ledger.trained) < trainings and free < _MOST_FREE:
            before = len(ledger.trained)
            params, known = _one(problem, study, ledger)
            repeats = repeats + 1 if known else 0
            free = free + 1 if len(ledger.trained) == before else 0
            if repeats == _MOST_REPEATS:
                study.enqueue_trial(_near(ledger, params, source))
        return ledger

    return run


def _one(
    problem: SearchProblem, study: optuna.Study, ledger: Ledger
) -> tuple[dict[str, Any], bool]:
    """Ask and tell; returns what was proposed, and whether it was known and cost nothing."""
    trial = study.ask(dict(problem.distributions))
    costs = ledger.costs(trial.params)[ledger.target(trial.params)]
    able = bool(np.isfinite(costs).all())
    trial.set_constraint("limits", -1.0 if able else 1.0)
    known = ledger.recall(trial.params) if ledger.way == "memo" and able else None
    if ledger.way == "memo" and not able:
        error = float(np.mean([*ledger.known.values(), 0.5]))
    else:
        error = ledger.train(trial.params) if known is None else known
    # Told to all: errors beyond the reference do not count.
    trial.set_constraint("error", error - problem.worst_error)
    told = problem.normalised(costs) if able else np.ones(len(problem.low))
    study.tell(trial, [error, *told.tolist()])
    return dict(trial.params), known is not None


def _near(ledger: Ledger, params: Params, source: random.Random) -> dict[str, Any]:
    """A network that is not known, with few knobs changed, where 60 attempts find one."""
    axes = Knobs(ledger.problem.distributions).axes
    changed = dict(params)
    for attempt in range(_CHANGES):
        changed = dict(params)
        for axis in source.sample(axes, min(len(axes), 1 + attempt // 15)):
            changed[axis.name] = source.choice(axis.values)
        if ledger.recall(changed) is None:
            break
    return changed


def spread_random(problem: SearchProblem, seed: int, trainings: int) -> Ledger:
    """Cost-spread draws with the memo, and nothing learned."""
    ledger = Ledger(problem, "memo")
    for params in spread(problem, seed, 3 * trainings):
        if ledger.recall(params) is None and len(ledger.trained) < trainings:
            ledger.train(params)
    return ledger


def grey_box(
    way: Way = "memo", oracle: bool = False, flight: int = 1, **settings: Any
) -> Callable[..., Ledger]:
    """The grey box; the oracle's one feature is the true error; `flight` trainings run at once.

    `settings` are the sampler's.
    """

    def run(problem: SearchProblem, seed: int, trainings: int) -> Ledger:
        sampler = grey_sampler(problem, seed, way, oracle, **settings)
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


def grey_sampler(
    problem: SearchProblem, seed: int, way: Way = "memo", oracle: bool = False, **settings: Any
) -> GreyBoxSampler:
    """As any user makes it: costs, features, region and noise of the problem."""

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
        **settings,
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
            startup=8,  # costs are learned from them, too
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


def peers() -> dict[str, Maker]:
    """Multi-objective samplers of Optuna, pymoo and BoTorch, by name."""
    from optuna.samplers import (
        GPSampler,
        NSGAIIISampler,
        NSGAIISampler,
        RandomSampler,
        TPESampler,
    )
    from peers import PymooNsga2, QLogNehvi

    return {
        "random": lambda problem, seed: RandomSampler(seed=seed),
        "NSGA-II": lambda problem, seed: NSGAIISampler(population_size=20, seed=seed),
        "NSGA-III": lambda problem, seed: NSGAIIISampler(population_size=20, seed=seed),
        "pymoo NSGA-II": lambda problem, seed: PymooNsga2(problem.distributions, seed),
        "TPE": lambda problem, seed: TPESampler(seed=seed),
        "TPE multivariate": lambda problem, seed: TPESampler(multivariate=True, seed=seed),
        "GPSampler": lambda problem, seed: GPSampler(seed=seed),
        "qLogNEHVI": lambda problem, seed: QLogNehvi(problem.distributions, seed),
    }


def peer_methods() -> list[Method]:
    """Each plain and with the memo; those that take seconds a suggestion for 50 trainings."""
    found = []
    for name, make in peers().items():
        slow = name in ("GPSampler", "qLogNEHVI")
        for way in WAYS:
            title = name if way == "plain" else f"{name} + item 1"
            revision = 1 if way == "plain" else MEMO_REVISION
            trainings = 50 if slow else 200
            found.append(Method(title, black_box(make, way), 5, trainings, revision=revision))
    return found


def methods() -> list[Method]:
    """All, in the order of the table."""
    less: Mapping[str, Any] = {
        "seeds": 3,
        "trainings": 100,
        "note": "3 seeds and 100 trainings",
        "revision": GREY_REVISION,
    }
    predicted = {**less, "revision": PREDICTED_REVISION}
    return [
        *peer_methods(),
        Method("cost-spread random + memo", spread_random),
        Method("grey box, costs predicted", predicted_costs, **predicted),
        Method("grey box, no memo", grey_box("plain"), **less),
        Method("grey box, 4 at once", grey_box(flight=4), **less),
        Method("grey box", grey_box(), revision=GREY_REVISION),
        Method("oracle", grey_box(oracle=True), **less),
    ]
