"""What every search problem of the benchmark offers, however its errors come about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution

from dse.greybox import Features
from dse.greybox.knobs import Knobs
from dse.pareto import Points, hypervolume, non_dominated

Params = Mapping[str, Any]
_FINGERPRINTED = 64


class ErrorTable(Protocol):
    """Errors of networks, which stand for trainings."""

    def measured(self, network: Params) -> float:
        """What a training reports; the same for the same network."""

    def true(self, networks: Sequence[Params]) -> Points:
        """What the network is worth, without the noise of its estimate, (n,)."""


class CostModel(Protocol):
    """Costs of networks on every deployment."""

    def __call__(self, networks: Sequence[Params], deployments: Sequence[Params]) -> Points:
        """(n, d, k) costs, nan where infeasible."""


@dataclass(frozen=True)
class SearchProblem:
    """A space, its errors and costs, and the box in which the hypervolume is measured.

    `low` and `high` are the ends of the costs, on logarithmic axes; `worst_error` is the reference
    error. `best` is the largest hypervolume known.
    """

    name: str
    distributions: Mapping[str, BaseDistribution]
    deployment: str
    errors: ErrorTable
    costs: CostModel
    low: Points
    high: Points
    worst_error: float
    best: float
    features: Features
    samples: int | None = None

    @cached_property
    def deployments(self) -> tuple[dict[str, Any], ...]:
        """Settings of the deployment parameter."""
        choices = self.distributions[self.deployment].choices  # type: ignore[attr-defined]
        return tuple({self.deployment: choice} for choice in choices)

    @cached_property
    def region(self) -> list[tuple[float, float]]:
        """Best and worst of error and costs."""
        return [(0.0, self.worst_error), *zip(self.low.tolist(), self.high.tolist(), strict=True)]

    @cached_property
    def fingerprint(self) -> str:
        """Of errors and costs of a few networks: stored results of another problem do not count."""
        knobs = Knobs({n: d for n, d in self.distributions.items() if n != self.deployment})
        source = np.random.default_rng(0)
        rows = [
            [axis.values[source.integers(axis.levels)] for axis in knobs.axes]
            for _ in range(_FINGERPRINTED)
        ]
        names = [axis.name for axis in knobs.axes]
        networks = [dict(zip(names, row, strict=True)) for row in rows]
        values = [*self.errors.true(networks), *self.costs(networks, self.deployments).ravel()]
        return sha256(" ".join(f"{value:.6g}" for value in values).encode()).hexdigest()[:12]

    def network(self, params: Params) -> dict[str, Any]:
        """The parameters that change training."""
        return {name: value for name, value in params.items() if name != self.deployment}

    def normalised(self, costs: npt.ArrayLike) -> Points:
        """Costs on the unit box, by logarithm."""
        return np.asarray(np.log(np.asarray(costs) / self.low) / np.log(self.high / self.low))

    def score(self, errors: Points, costs: Points) -> float:
        """Hypervolume of designs, errors (n,) and costs (n, k), as a share of the best known."""
        able = np.isfinite(costs).all(axis=1)
        points = np.column_stack([errors[able], np.maximum(self.normalised(costs[able]), 0)])
        points = points[(points[:, 1:] < 1).all(axis=1) & (points[:, 0] < self.worst_error)]
        reference = np.array([self.worst_error, *np.ones(len(self.low))])
        return hypervolume(points[non_dominated(points)], reference) / self.best
