"""Shares of channels that lose least within what may be needed: a convex program, solved exactly.

With y the logarithms of the kept shares, what is lost is taken as sum(weight / share^2), and every
need is a polynomial of the shares without negative coefficients, so that both are convex in y
(Boyd et al., "A tutorial on geometric programming", 2007).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dse.graph.ir import Array
from dse.graph.resources import FractionalNeeds

MOST_STEPS = 200
# What is lost by a group is its weight over its share to this power (decision 9).
POWER = 2


def best_shares(
    fractional: FractionalNeeds,
    limits: Mapping[str, float],
    weights: Array,
    low: Array,
    high: Array,
) -> Array:
    """Kept shares (groups,) between `low` and `high` with the least sum(weights / share^2).

    Dividing by the share says that losing half of what is left costs more, the less is left: what
    remains of a group takes over for what is gone. `limits` are what each need may be; one that
    `low` misses already is left out. Limits are met to the solver's accuracy.
    """
    from scipy.optimize import minimize  # costs a second

    bounds = np.log(low), np.log(high)
    constraints = [
        _constraint(*fractional.polynomials[name], limit)
        for name, limit in limits.items()
        if fractional.at(low)[name].max() <= limit
    ]
    found = minimize(
        _lost,
        (bounds[0] + bounds[1]) / 2,
        args=(weights / weights.sum(),),
        jac=True,
        bounds=list(zip(*bounds, strict=True)),
        constraints=constraints,
        method="SLSQP",
        options={"maxiter": MOST_STEPS, "ftol": 1e-8},
    )
    shares: Array = np.exp(np.clip(found.x, *bounds))
    return shares


def _lost(y: Array, weights: Array) -> tuple[float, Array]:
    """log(sum(weights / exp(y)^POWER)), and its derivative."""
    each = weights * np.exp(-POWER * y)
    total = float(each.sum())
    return float(np.log(total)), -POWER * each / total


def _constraint(constant: Array, linear: Array, square: Array, limit: float) -> dict[str, Any]:
    """log(limit) - log(need), one a part, and its derivative."""
    both = square + square.transpose(0, 2, 1)

    def needed(y: Array) -> Array:
        shares = np.exp(y)
        found: Array = constant + linear @ shares + (square @ shares) @ shares
        return found

    def slope(y: Array) -> Array:
        shares = np.exp(y)
        found: Array = (linear + both @ shares) * shares / needed(y)[:, None]
        return found

    return {
        "type": "ineq",
        "fun": lambda y: np.log(limit) - np.log(needed(y)),
        "jac": lambda y: -slope(y),
    }
