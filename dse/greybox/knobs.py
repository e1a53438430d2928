"""The knobs as numbers: one row a design, one column a knob, and back to parameters."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

Floats: TypeAlias = npt.NDArray[np.float64]
Params: TypeAlias = Mapping[str, Any]
# Integer ranges with more values than this are treated as continuous and rounded.
MOST_LEVELS = 4096


@dataclass(frozen=True)
class Axis:
    """One knob: `levels` values in order, or 0 for a continuous one on 0..1."""

    name: str
    distribution: BaseDistribution

    @cached_property
    def values(self) -> tuple[Any, ...]:
        """Every value in order; empty for a continuous knob."""
        found = self.distribution
        if isinstance(found, CategoricalDistribution):
            numbers = all(type(c) in (int, float) for c in found.choices)
            return tuple(sorted(found.choices) if numbers else found.choices)
        assert isinstance(found, IntDistribution | FloatDistribution)
        if found.single():
            return (found.low,)
        if found.step is None:
            return ()
        count = round((found.high - found.low) / found.step) + 1
        if count > MOST_LEVELS:
            return ()
        return tuple(
            found.low + i * found.step
            if isinstance(found, IntDistribution)
            # Optuna steps a float in the same way: from the low end, then clipped to the high one.
            else min(found.low + i * found.step, found.high)
            for i in range(count)
        )

    @property
    def levels(self) -> int:
        """How many values there are; 0 for a continuous knob."""
        return len(self.values)

    @cached_property
    def ordered(self) -> bool:
        """Whether neighbouring values are alike: numbers, whatever kind of distribution."""
        return all(type(value) in (int, float) for value in self.values)

    @property
    def comparable(self) -> bool:
        """Whether one number says where a value lies between the others."""
        return self.ordered or self.levels <= 2

    @cached_property
    def _logarithmic(self) -> bool:
        return bool(getattr(self.distribution, "log", False))

    @cached_property
    def _ends(self) -> tuple[float, float]:
        found = self.distribution
        assert isinstance(found, IntDistribution | FloatDistribution)
        ends = float(found.low), float(found.high)
        return (math.log(ends[0]), math.log(ends[1])) if self._logarithmic else ends

    def value(self, number: float) -> Any:
        """The parameter that a row's number stands for."""
        if self.levels:
            return self.values[int(number)]
        low, high = self._ends
        value = low + (high - low) * float(number)
        value = math.exp(value) if self._logarithmic else value
        found = self.distribution
        assert isinstance(found, IntDistribution | FloatDistribution)
        if isinstance(found, IntDistribution):
            value = found.low + round((value - found.low) / found.step) * found.step
        return min(max(value, found.low), found.high)

    def column(self, numbers: Floats) -> list[Any]:
        """`value` of many numbers."""
        if self.levels:
            return list(map(self.values.__getitem__, numbers.astype(int).tolist()))
        return [self.value(number) for number in numbers.tolist()]

    def number(self, value: Any) -> float:
        """A row's number for a stored parameter; nan when it is none of the knob's values."""
        if not self.levels:
            low, high = self._ends
            value = math.log(value) if self._logarithmic else float(value)
            return float(np.clip((value - low) / (high - low), 0, 1))
        index = self._index.get(value)
        if index is None and self.ordered and type(value) in (int, float):
            # A sum of steps may differ from the stored value in the last digits.
            near = (i for i, v in enumerate(self.values) if math.isclose(v, value, abs_tol=1e-12))
            index = next(near, None)
        return math.nan if index is None else float(index)

    @cached_property
    def _index(self) -> dict[Any, int]:
        return {value: index for index, value in enumerate(self.values)}

    @cached_property
    def positions(self) -> Floats:
        """Values on 0..1: by logarithm where the distribution asks for it, else evenly by rank."""
        if self.levels == 1:
            return np.zeros(1)
        if self._logarithmic:
            logs = np.log(np.array(self.values, dtype=np.float64))
            return np.asarray((logs - logs[0]) / (logs[-1] - logs[0]))
        return np.linspace(0, 1, self.levels)


class Knobs:
    """Every knob of one part of the space, in the order of its names."""

    def __init__(self, distributions: Mapping[str, BaseDistribution]) -> None:
        self.axes = tuple(Axis(name, distributions[name]) for name in sorted(distributions))

    def __len__(self) -> int:
        return len(self.axes)

    @cached_property
    def size(self) -> float:
        """How many settings there are; infinite with a continuous knob."""
        return math.prod(axis.levels or math.inf for axis in self.axes)

    def params(self, row: Sequence[float] | Floats) -> dict[str, Any]:
        """The parameters of one row."""
        return {axis.name: axis.value(x) for axis, x in zip(self.axes, row, strict=True)}

    def designs(self, rows: Floats) -> list[dict[str, Any]]:
        """The parameters of every row of (n, knobs), without those that are nan."""
        if not self.axes:
            return [{} for _ in rows]
        names, asked = [axis.name for axis in self.axes], ~np.isnan(rows)
        filled = np.where(asked, rows, 0.0).T
        columns = [axis.column(numbers) for axis, numbers in zip(self.axes, filled, strict=True)]
        found = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
        for index in np.flatnonzero(~asked.all(axis=1)):
            kept = zip(found[index].items(), asked[index], strict=True)
            found[index] = {name: value for (name, value), keep in kept if keep}
        return found

    def row(self, params: Params) -> Floats:
        """One row of numbers; nan where a parameter was not asked for."""
        return np.array([self._number(axis, params) for axis in self.axes])

    @staticmethod
    def _number(axis: Axis, params: Params) -> float:
        return axis.number(params[axis.name]) if axis.name in params else math.nan

    def settings(self) -> Iterator[tuple[float, ...]]:
        """Every row, in order; for spaces small enough to walk."""
        return itertools.product(*(map(float, range(axis.levels)) for axis in self.axes))

    def groups(self, rows: Floats) -> dict[str, Floats]:
        """(n, features) on 0..1 by group: ordered knobs by position, others one-hot.

        Knobs are grouped by what comes before the first dot or digit of their names. One that was
        not asked for stands in the middle: it says nothing.
        """
        found: dict[str, list[Floats]] = {}
        for index, axis in enumerate(self.axes):
            group = re.split(r"[.0-9]", axis.name)[0] if axis.comparable else axis.name
            found.setdefault(group, []).append(self._columns(axis, rows[:, index]))
        return {group: np.hstack(columns) for group, columns in found.items()}

    @staticmethod
    def _columns(axis: Axis, numbers: Floats) -> Floats:
        absent = np.isnan(numbers)
        if not axis.levels:
            return np.where(absent, 0.5, numbers)[:, None]
        index = np.where(absent, 0, numbers).astype(int)
        if axis.comparable:
            return np.where(absent, 0.5, axis.positions[index])[:, None]
        return np.where(absent[:, None], 1 / axis.levels, np.eye(axis.levels)[index])
