"""Samplers of other libraries behind Optuna's interface, so that all are led by the same loop.

pymoo's NSGA-II for mixed variables, and BoTorch's qLogNEHVI (Ament et al. 2023, "Unexpected
improvements to expected improvement"): `pip install 'dse[bench]'`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from dse.greybox.knobs import Floats, Knobs

CONSTRAINTS = ("limits", "error")
POPULATION = 20


class _AskedTogether(BaseSampler):
    """Draws all parameters together, from a space that is given."""

    def __init__(self, distributions: Mapping[str, BaseDistribution], seed: int) -> None:
        self.distributions, self.seed = dict(distributions), seed
        self.knobs = Knobs(distributions)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Everything."""
        return self.distributions

    def sample_independent(self, *_: Any) -> Any:
        """Never asked for."""
        raise NotImplementedError


class PymooNsga2(_AskedTogether):
    """NSGA-II over integers and categories, a generation at a time."""

    def __init__(self, distributions: Mapping[str, BaseDistribution], seed: int) -> None:
        super().__init__(distributions, seed)
        self._algorithm: Any = None
        self._generation: Any = ()
        self._next = 0
        self._asked: dict[int, Any] = {}
        self._given: list[Any] = []

    def _started(self, objectives: int) -> Any:
        from pymoo.algorithms.moo.nsga2 import RankAndCrowdingSurvival
        from pymoo.core.mixed import MixedVariableGA, MixedVariableSampling
        from pymoo.core.population import Population
        from pymoo.core.problem import Problem
        from pymoo.core.variable import Choice, Integer

        kinds = {
            axis.name: Integer(bounds=(0, axis.levels - 1))
            if axis.ordered
            else Choice(options=list(range(axis.levels)))
            for axis in self.knobs.axes
        }
        problem = Problem(vars=kinds, n_obj=objectives, n_ieq_constr=len(CONSTRAINTS))
        given = Population.create(*self._given) if self._given else MixedVariableSampling()
        algorithm = MixedVariableGA(
            pop_size=POPULATION, sampling=given, survival=RankAndCrowdingSurvival()
        )
        algorithm.setup(problem, termination=("n_gen", 10**9), seed=self.seed)
        if self._given:  # they were tried before
            algorithm.tell(infills=algorithm.ask())
        return algorithm

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next individual of the generation."""
        if self._algorithm is None:
            self._algorithm = self._started(len(study.directions))
        if self._next == len(self._generation):
            if len(self._generation):
                self._algorithm.tell(infills=self._generation)
            self._generation, self._next = self._algorithm.ask(), 0
        found = self._asked[trial.number] = self._generation[self._next]
        self._next += 1
        return {axis.name: axis.value(found.X[axis.name]) for axis in self.knobs.axes}

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """What came of it; designs that were enqueued before the first proposal start it."""
        from pymoo.core.individual import Individual

        individual = self._asked.pop(trial.number, None)
        if individual is None:
            names = [axis.name for axis in self.knobs.axes]
            row = self.knobs.row(trial.params).astype(int).tolist()
            individual = Individual(X=dict(zip(names, row, strict=True)))
            self._given.append(individual)
        missed = study.trials[trial.number].constraints
        individual.set("F", np.array(values, dtype=np.float64))
        individual.set("G", np.array([missed[name] for name in CONSTRAINTS]))


class QLogNehvi(_AskedTogether):
    """Gaussian processes for every objective and limit; four designs a time.

    The acquisition is maximised over uniform draws and mutations of what is known: all knobs are
    discrete.
    """

    STARTS, TOGETHER, CHOICES, SAMPLES = 10, 4, 512, 64

    def __init__(self, distributions: Mapping[str, BaseDistribution], seed: int) -> None:
        super().__init__(distributions, seed)
        self._batch: list[Floats] = []

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next design of the batch."""
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        source = np.random.default_rng((self.seed, trial.number))
        if len(done) < self.STARTS:
            return self.knobs.params(self._drawn(source, 1)[0])
        if not self._batch:
            self._batch = self._chosen(done, source)
        return self.knobs.params(self._batch.pop(0))

    def _drawn(self, source: np.random.Generator, count: int) -> Floats:
        columns = [source.integers(axis.levels, size=count) for axis in self.knobs.axes]
        return np.array(columns, dtype=np.float64).T

    def _choices(self, known: Floats, source: np.random.Generator) -> Floats:
        near = known[source.integers(len(known), size=self.CHOICES // 2)]
        changed = source.random(near.shape) < 2 / near.shape[1]
        near = np.where(changed, self._drawn(source, len(near)), near)
        return np.vstack([self._drawn(source, self.CHOICES // 2), near])

    def _encoded(self, rows: Floats) -> Any:
        import torch

        return torch.tensor(np.hstack([*self.knobs.groups(rows).values()]), dtype=torch.float64)

    def _chosen(self, done: Sequence[FrozenTrial], source: np.random.Generator) -> list[Floats]:
        import torch
        from botorch.acquisition.multi_objective.logei import (
            qLogNoisyExpectedHypervolumeImprovement,
        )
        from botorch.acquisition.multi_objective.objective import IdentityMCMultiOutputObjective
        from botorch.optim import optimize_acqf_discrete
        from botorch.sampling import SobolQMCNormalSampler

        torch.manual_seed(int(source.integers(2**31)))
        rows = np.array([self.knobs.row(trial.params) for trial in done])
        values = np.array([[-v for v in trial.values] for trial in done])
        missed = np.array([[trial.constraints[name] for name in CONSTRAINTS] for trial in done])
        targets = np.hstack([values, missed[:, :1]])
        objectives = values.shape[1]
        x = self._encoded(rows)
        acquisition = qLogNoisyExpectedHypervolumeImprovement(
            _fitted(x, torch.tensor(targets)),
            # The worst that counts: the error's limit is known to all; costs are on 0..1.
            ref_point=[float((values[:, 0] + missed[:, 1]).mean()), *[-1.0] * (objectives - 1)],
            X_baseline=x,
            sampler=SobolQMCNormalSampler(torch.Size([self.SAMPLES])),
            objective=IdentityMCMultiOutputObjective(outcomes=list(range(objectives))),
            constraints=[partial(_column, index=objectives)],
            prune_baseline=True,
        )
        choices = self._choices(rows, source)
        encoded = self._encoded(choices)
        picked, _ = optimize_acqf_discrete(acquisition, q=self.TOGETHER, choices=encoded)
        places = [int((encoded == point).all(dim=1).nonzero()[0]) for point in picked]
        return [choices[place] for place in places]


def _column(samples: Any, index: int) -> Any:
    return samples[..., index]


def _fitted(x: Any, y: Any) -> Any:
    """A process for each column, fitted to its posterior mode."""
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import ModelListGP, SingleTaskGP
    from gpytorch.mlls import SumMarginalLogLikelihood

    model = ModelListGP(*(SingleTaskGP(x, y[:, i : i + 1]) for i in range(y.shape[1])))
    fit_gpytorch_mll(SumMarginalLogLikelihood(model.likelihood, model))
    return model
