"""Networks worth looking at: spread over the costs, and near those that are on the front."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dse.greybox.costs import CostTable
from dse.greybox.knobs import Axis, Floats, Knobs

_BASES = 4
_JITTER = 0.25


class Proposals:
    """Draws over the knobs that change training.

    Independent uniform draws put all costs into the middle: the sum of many knobs hardly varies.
    A cost-spread draw chooses how costly the design is first, then every knob around it. What is
    costly is asked of the cost function, a knob at a time.
    """

    def __init__(self, knobs: Knobs, table: CostTable, seed: int) -> None:
        self.knobs = knobs
        source = np.random.default_rng(np.random.SeedSequence((seed, 0xC057)))
        bases = self.uniform(source, _BASES)
        self._levels = np.array([axis.levels for axis in knobs.axes], dtype=np.intp)
        self._ordered = np.array([axis.ordered for axis in knobs.axes], dtype=bool)
        # By knob: the levels from cheap to costly (0 and 1 for a continuous one), None if equal.
        self._ranked = [_ranked(axis, i, bases, table) for i, axis in enumerate(knobs.axes)]

    def uniform(self, source: np.random.Generator, count: int) -> Floats:
        """Every knob by itself."""
        columns = [
            source.integers(axis.levels, size=count) if axis.levels else source.random(count)
            for axis in self.knobs.axes
        ]
        return np.array(columns, dtype=np.float64).reshape(len(columns), count).T

    def _at(self, position: Floats, column: int) -> Floats:
        """The knob's numbers at positions of 0 (cheap) to 1 (costly)."""
        axis, ranked = self.knobs.axes[column], self._ranked[column]
        if not axis.levels:
            return position if ranked is None or ranked[0] < ranked[-1] else 1 - position
        ranked = np.arange(axis.levels) if ranked is None else ranked
        index = np.minimum((position * axis.levels).astype(int), axis.levels - 1)
        found: Floats = ranked[index].astype(np.float64)
        return found

    def ends(self) -> Floats:
        """The costliest network (the parent of all) and the cheapest, (2, knobs).

        Knobs without influence on the costs stand in the middle.
        """
        ends, middle = np.array([1.0, 0.0]), np.array([0.5, 0.5])
        columns = [
            self._at(middle if ranked is None else ends, i) for i, ranked in enumerate(self._ranked)
        ]
        return np.array(columns).T.reshape(2, -1)

    def spread(self, source: np.random.Generator, count: int) -> Floats:
        """Cost-spread draws; knobs without influence on the costs are drawn by themselves."""
        mean = source.random((count, 1))
        jitter = source.normal(0, _JITTER, (count, len(self.knobs)))
        position = np.clip(mean + jitter, 0, 1)
        free = np.array([ranked is None for ranked in self._ranked], dtype=bool)
        position[:, free] = source.random((count, int(free.sum())))
        columns = [self._at(position[:, i], i) for i in range(len(self.knobs))]
        return np.array(columns).reshape(len(columns), count).T

    def mutated(self, source: np.random.Generator, parents: Floats, count: int) -> Floats:
        """Copies of `parents` with one to three knobs changed, mostly by one level."""
        rows = parents[source.integers(len(parents), size=count)].copy()
        if not len(self.knobs):
            return rows
        changes, every = source.integers(1, 4, size=count), np.arange(count)
        for turn in range(3):
            columns = source.integers(len(self.knobs), size=count)
            before = rows[every, columns]
            stepped = self._stepped(source, columns, before)
            rows[every, columns] = np.where(changes > turn, stepped, before)
        return rows

    def _stepped(
        self, source: np.random.Generator, columns: npt.NDArray[np.intp], numbers: Floats
    ) -> Floats:
        """Another level of the knob in each of `columns`: mostly a neighbour where ordered."""
        levels, ordered = self._levels[columns], self._ordered[columns]
        shape = numbers.shape
        moved = np.clip(numbers + source.normal(0, 0.1, shape), 0, 1)
        other = np.floor(source.random(shape) * (levels - 1))
        anywhere = other + (other >= numbers)
        step = np.where(source.random(shape) < 0.5, 1.0, -1.0)
        inside = (numbers + step >= 0) & (numbers + step < levels)
        near = np.where(inside, numbers + step, numbers - step)
        discrete = np.where(ordered & (source.random(shape) < 0.75), near, anywhere)
        return np.where(levels == 0, moved, np.where(levels == 1, numbers, discrete))

    def crossed(self, source: np.random.Generator, parents: Floats, count: int) -> Floats:
        """Every knob from one of two parents."""
        pairs = parents[source.integers(len(parents), size=(2, count))]
        return np.asarray(np.where(source.random(pairs.shape[1:]) < 0.5, pairs[0], pairs[1]))


def _ranked(
    axis: Axis, column: int, bases: Floats, table: CostTable
) -> npt.NDArray[np.intp] | None:
    """The knob's levels from cheap to costly, None when the costs do not depend on it."""
    levels = np.arange(axis.levels or 2)
    ends = axis.ordered and axis.levels != 1
    tried = levels[[0, -1]] if ends else levels
    rows = np.repeat(bases[None], len(tried), axis=0)
    rows[:, :, column] = tried[:, None]
    costs = table.of(rows.reshape(-1, rows.shape[2]))
    costs = costs.reshape(len(tried), -1, costs.shape[2])
    costs = costs[:, np.isfinite(costs).all(axis=(0, 2))]  # where all levels are feasible
    # Ranks within each deployment's column, so that no objective outweighs another.
    relative = costs / np.maximum(np.abs(costs).max(axis=0, keepdims=True), 1e-300)
    mean = relative.mean(axis=(1, 2)) if relative.size else np.zeros(len(tried))
    if np.ptp(mean) < 1e-9:
        return None
    if ends:
        return levels if mean[-1] > mean[0] else levels[::-1]
    return np.argsort(mean, kind="stable")
