"""The fit of a cycle table: relative non-negative least squares with one scale a system.

A row is a stretch of a network (or a single layer) with its counted features and the cycles it
took on one system. Coefficients are shared by all systems; each measured system has one factor
(its flash, its compiler), the emulated core has factor 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from dse.targets.cycles import Features

EMULATED = "emulated"
ROUNDS = 60

# Coefficients that one parameter stands for: every CMSIS-NN kernel requantizes an output alike.
TIED: Mapping[str, tuple[str, ...]] = {
    "output": ("conv.output", "pointwise.output", "depthwise.output", "fully_connected.output"),
}


@dataclass(frozen=True)
class Row:
    """Cycles of part of a network on one system, what its kernels count, and its flash stalls.

    `part` is 'all' for a whole network.
    """

    system: str
    network: str
    part: str
    features: Features
    macs: int
    cycles: float
    stalls: float = 0.0


@dataclass(frozen=True)
class Fit:
    """Coefficients in cycles a feature and one factor a system."""

    coefficients: Mapping[str, float]
    scales: Mapping[str, float]

    def shape_cycles(self, row: Row) -> float:
        """Cycles of the row with the system's flash, before its factor."""
        return dot(self.coefficients, row.features) + row.stalls

    @property
    def mean_scale(self) -> float:
        """The factor expected of a system that was not measured."""
        logs = [math.log(scale) for scale in self.scales.values()]
        return math.exp(sum(logs) / len(logs))


def dot(coefficients: Mapping[str, float], features: Features) -> float:
    """Sum of coefficient times feature; a feature without a coefficient costs nothing."""
    return sum(coefficients.get(name, 0.0) * amount for name, amount in features.items())


def fit(rows: Sequence[Row], parameters: Sequence[str], fixed: Mapping[str, float]) -> Fit:
    """Alternate coefficients (given the factors) and factors (given the coefficients).

    `parameters` are feature names or keys of TIED; `fixed` are coefficients that no row can tell.
    """
    scales = dict.fromkeys(sorted({row.system for row in rows}), 1.0)
    coefficients: dict[str, float] = {}
    for _ in range(ROUNDS):
        coefficients = _coefficients(rows, scales, parameters, fixed)
        for system in scales:
            if system != EMULATED:
                scales[system] = _scale(rows, coefficients, system)
    return Fit(coefficients, scales)


def _coefficients(
    rows: Sequence[Row],
    scales: Mapping[str, float],
    parameters: Sequence[str],
    fixed: Mapping[str, float],
) -> dict[str, float]:
    """Each row divided by its own cycles, so that the squares are of relative errors."""
    matrix = np.array([[_amount(row, name) for name in parameters] for row in rows], float)
    cycles = np.array([row.cycles / scales[row.system] for row in rows])
    known = np.array([dot(fixed, row.features) + row.stalls for row in rows])
    target = 1.0 - known / cycles
    relative: npt.NDArray[np.float64] = matrix / cycles[:, None]
    columns = np.maximum(relative.max(axis=0), 1e-300)
    solve = cast("Any", nnls)
    solution = solve(relative / columns, target)[0] / columns
    found = dict(fixed)
    for name, value in zip(parameters, solution, strict=True):
        found.update(dict.fromkeys(TIED.get(name, (name,)), float(value)))
    return found


def _amount(row: Row, parameter: str) -> float:
    return sum(row.features.get(name, 0.0) for name in TIED.get(parameter, (parameter,)))


def _scale(rows: Iterable[Row], coefficients: Mapping[str, float], system: str) -> float:
    logs = [
        math.log(row.cycles / (dot(coefficients, row.features) + row.stalls))
        for row in rows
        if row.system == system
    ]
    return math.exp(sum(logs) / len(logs))


def mac_only(rows: Sequence[Row]) -> float:
    """The cycles a multiply-accumulate that fits best, in the same relative least squares."""
    rates = np.array([row.macs / row.cycles for row in rows if row.macs])
    return float(rates.sum() / (rates**2).sum())
