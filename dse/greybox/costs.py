"""The known objectives of every deployment of a network, asked for once and kept."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution

from dse.errors import StudyError
from dse.greybox.knobs import Axis, Floats, Knobs, Params
from dse.greybox.memo import RowMemo

# One design -> its known objectives in the study's order, or None when it must not be built.
DesignCosts: TypeAlias = Callable[[Params], Sequence[float] | None]
# Networks (n) and deployments (d) -> (n, d, k) known objectives, nan for what must not be built.
BatchCosts: TypeAlias = Callable[[Sequence[Params], Sequence[Params]], npt.ArrayLike]
# Where designs count: (best, worst) of each objective, None for what is to be found out.
Region: TypeAlias = Sequence[tuple[float, float] | None]

MOST_DEPLOYMENTS = 4096


def deployments_of(distributions: Mapping[str, BaseDistribution]) -> tuple[dict[str, Any], ...]:
    """Every setting of the deployment parameters; one empty setting when there are none."""
    axes = [Axis(name, distributions[name]) for name in sorted(distributions)]
    for axis in axes:
        if not axis.levels:
            raise StudyError(
                f"deployment parameter '{axis.name}' has no list of values; allowed: categories, "
                "integers, or floats with a step"
            )
    if (count := math.prod(axis.levels for axis in axes)) > MOST_DEPLOYMENTS:
        raise StudyError(
            f"the deployment parameters have {count:,} settings; allowed: up to "
            f"{MOST_DEPLOYMENTS:,}; give fewer values"
        )
    names = [axis.name for axis in axes]
    return tuple(
        dict(zip(names, values, strict=True))
        for values in itertools.product(*(axis.values for axis in axes))
    )


class CostTable:
    """Known objectives by network, minimised: (n, deployments, k), nan where not feasible.

    `signs` (k,) are -1 for an objective that is maximised. Without known objectives k is 1: a
    constant.
    """

    def __init__(
        self,
        knobs: Knobs,
        deployments: Sequence[Params],
        costs: DesignCosts | BatchCosts,
        vectorized: bool,
        signs: Floats,
    ) -> None:
        self.knobs, self.deployments = knobs, tuple(deployments)
        # With nothing but the learned objective, a constant says what may be built.
        self._alone = not len(signs)
        self.signs = np.ones(1) if self._alone else signs
        self._costs, self._vectorized = costs, vectorized
        self._memo = RowMemo(self._asked)

    @property
    def shape(self) -> tuple[int, int]:
        """Deployments and known objectives."""
        return len(self.deployments), len(self.signs)

    def of(self, rows: Floats) -> Floats:
        """Costs of the networks in `rows` (n, knobs)."""
        if not len(rows):
            return np.zeros((0, *self.shape))
        return np.asarray(self._memo(rows), dtype=np.float64)

    def _asked(self, rows: Floats) -> Floats:
        networks = self.knobs.designs(rows)
        shape = (len(networks), *self.shape)
        found = self._batch(networks) if self._vectorized else self._designs(networks)
        if found.shape != shape:
            self._refuse(found.shape, shape)
        found[~np.isfinite(found).all(axis=2)] = math.nan
        return np.asarray(found * self.signs)

    def _batch(self, networks: list[dict[str, Any]]) -> Floats:
        ask = cast(BatchCosts, self._costs)
        return np.array(ask(networks, self.deployments), dtype=np.float64)

    def _designs(self, networks: list[dict[str, Any]]) -> Floats:
        ask = cast(DesignCosts, self._costs)
        costs, objectives = [], len(self.signs)
        for network, deployment in itertools.product(networks, self.deployments):
            found = ask({**network, **deployment})
            if found is not None and self._alone:
                found = (*found, 1.0)
            row = np.full(objectives, math.nan) if found is None else np.array(found, dtype=float)
            if row.shape != (objectives,):
                self._refuse(row.shape, (objectives,))
            costs.append(row)
        return np.array(costs).reshape(len(networks), *self.shape)

    def _refuse(self, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
        raise StudyError(
            f"the cost function gave an array of shape {found}; expected {expected}: every "
            "objective but the learned one, in the study's order"
        )


class CostBox:
    """The unit box of the known objectives; logarithmic where all values are positive."""

    def __init__(self, low: Floats, high: Floats) -> None:
        self._log = (low > 0) & (high > 0)
        self._low = self._scaled(low)
        span = self._scaled(high) - self._low
        self._span = np.where(span > 0, span, 1.0)

    @classmethod
    def around(cls, costs: Floats, region: Region, signs: Floats) -> CostBox:
        """From the feasible `costs` (n, d, k), minimised, where the region leaves an end open.

        The designs that were seen lie a little inside, so that the extremes count, too.
        """
        flat = costs.reshape(-1, len(signs))
        flat = flat[np.isfinite(flat).all(axis=1)]
        found = np.ones((2, len(signs))) if not len(flat) else np.array([flat.min(0), flat.max(0)])
        margin = 0.05 * np.abs(found)
        ends = np.array([found[0] - margin[0], found[1] + margin[1]])
        for column, pair in enumerate(region):
            if pair is not None:
                ends[:, column] = sorted(np.array(pair) * signs[column])
        return cls(ends[0], ends[1])

    def _scaled(self, costs: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self._log, np.log(costs), costs)

    def normalise(self, costs: Floats) -> Floats:
        """0 is the best and 1 the worst that counts; beyond 1 is not worth building."""
        found: Floats = (self._scaled(costs) - self._low) / self._span
        return np.where(found > 1, math.nan, found)
