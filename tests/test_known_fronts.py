"""The front code on problems whose fronts are known in closed form: ZDT and DTLZ.

Zitzler, Deb & Thiele, Evolutionary Computation 2000; Deb, Thiele, Laumanns & Zitzler, CEC 2002.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from dse.pareto import Points, hypervolume, non_dominated


def zdt1(first: Points) -> Points:
    return 1 - np.sqrt(first)


def zdt2(first: Points) -> Points:
    return 1 - first**2


def zdt3(first: Points) -> Points:
    return 1 - np.sqrt(first) - first * np.sin(10 * math.pi * first)


@pytest.mark.parametrize(
    ("second", "exact"),
    # The area above the front in the unit square; ZDT3's, down to its reference of (1, 1).
    [(zdt1, 2 / 3), (zdt2, 1 / 3), (zdt3, None)],
)
def test_zdt(second: Callable[[Points], Points], exact: float | None) -> None:
    first = np.linspace(0, 1, 20_001)
    values = second(first)
    if exact is None:  # what is left of each point, integrated
        exact = float((1 - np.minimum.accumulate(values)[:-1]).sum() / 20_000)
    chosen = np.column_stack([first, values])[::10]
    # What lies behind the front, as for the other variables away from zero, dominates nothing.
    behind = chosen + np.random.default_rng(0).uniform(0.01, 0.3, chosen.shape)
    kept = non_dominated(np.vstack([behind, chosen]))
    assert not kept[: len(behind)].any()
    lowest = np.minimum.accumulate(chosen[:, 1])
    assert (kept[len(behind) :] == np.append(True, chosen[1:, 1] < lowest[:-1])).all()
    found = hypervolume(np.vstack([behind, chosen])[kept], np.ones(2))
    assert found < exact
    assert found == pytest.approx(exact, rel=3e-3)


def simplex(objectives: int, parts: int) -> Points:
    """Evenly spread shares that sum to one (Das & Dennis 1998)."""
    grid = np.array(np.meshgrid(*[np.arange(parts + 1)] * (objectives - 1))).reshape(
        objectives - 1, -1
    )
    grid = grid[:, grid.sum(axis=0) <= parts]
    return np.vstack([grid, parts - grid.sum(axis=0)]).T / parts


ORTHANT = {2: math.pi / 4, 3: math.pi / 6, 4: math.pi**2 / 32, 5: math.pi**2 / 60}


@pytest.mark.parametrize(
    ("objectives", "parts", "loss"), [(2, 400, 0.01), (3, 60, 0.06), (4, 20, 0.3)]
)
def test_dtlz1_is_a_plane(objectives: int, parts: int, loss: float) -> None:
    points = 0.5 * simplex(objectives, parts)
    assert non_dominated(points).all()
    exact = 0.5**objectives * (1 - 1 / math.factorial(objectives))
    found = hypervolume(points, np.full(objectives, 0.5))
    assert exact * (1 - loss) < found < exact


@pytest.mark.parametrize(
    ("objectives", "parts", "loss"), [(2, 400, 0.02), (3, 60, 0.06), (4, 20, 0.15), (5, 9, 0.3)]
)
def test_dtlz2_is_a_sphere(objectives: int, parts: int, loss: float) -> None:
    points = simplex(objectives, parts)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    behind = points * np.random.default_rng(0).uniform(1.05, 1.5, (len(points), 1))
    order = np.random.default_rng(1).permutation(2 * len(points))
    kept = non_dominated(np.vstack([points, behind])[order])
    assert (kept == (order < len(points))).all()
    exact = 1 - ORTHANT[objectives]
    found = hypervolume(points, np.ones(objectives))
    assert exact * (1 - loss) < found < exact
