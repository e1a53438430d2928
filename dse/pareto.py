"""Dominance, hypervolume and the knee of a front, on moocore; every column is minimised."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import moocore
import numpy as np
import numpy.typing as npt

from dse.errors import DseError, nearest
from dse.trial import METRICS

Points: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = npt.NDArray[np.bool_]


def non_dominated(points: npt.ArrayLike) -> Mask:
    """Which rows of (n, m) no other row dominates; of equal rows only the first counts.

    A row dominates another when it is no larger in any column and smaller in at least one.
    Kung, Luccio & Preparata (JACM 1975), in moocore: O(n log n) up to three columns.
    Raises DseError when the array is not two-dimensional or holds a value that is not finite.
    """
    checked = _checked(points)
    if len(checked) == 0:
        return np.zeros(0, dtype=np.bool_)
    return np.asarray(moocore.is_nondominated(checked), dtype=np.bool_)


def hypervolume(points: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """The volume that the rows of (n, m) dominate below `reference` (m,), in the columns' units.

    A row that is not below the reference in every column adds nothing.
    Zitzler & Thiele (PPSN 1998); Guerreiro & Fonseca (2017) for four columns, in moocore.
    Raises DseError when the shapes do not fit or a value is not finite.
    """
    checked = _checked(points)
    corner = np.asarray(reference, dtype=np.float64)
    if corner.shape != checked.shape[1:]:
        raise DseError(
            f"the reference point needs one value a column; found {corner.size} values for "
            f"points of {checked.shape[1]} columns"
        )
    inside = checked[(checked < corner).all(axis=1)]
    return float(moocore.hypervolume(inside, ref=corner)) if len(inside) else 0.0


def knee(points: npt.ArrayLike) -> int:
    """The row of (n, m) where giving up a little in one column gains least in the others.

    Among the non-dominated rows, scaled by their own ranges, the one with the smallest sum: the
    point that bulges furthest from the plane through the extremes (Das, Structural Optimization
    1999), which is the minimum Manhattan distance to the ideal (Chiu, Yen & Juan, IEEE TEVC 2016).
    The first of equals. Raises DseError when there is no row.
    """
    checked = _checked(points)
    if len(checked) == 0:
        raise DseError("an empty front has no knee; at least one feasible design is needed")
    rows = np.flatnonzero(non_dominated(checked))
    front = checked[rows]
    low, span = front.min(axis=0), np.ptp(front, axis=0)
    scaled = (front - low) / np.where(span > 0, span, 1.0)
    return int(rows[np.argmin(scaled.sum(axis=1))])


@dataclass(frozen=True)
class Box:
    """The unit box in which a study's hypervolume is measured; fixed when the study is created.

    One entry a metric (a name of METRICS). `ideal` and `reference` are in the minimised sense: SI
    units for a cost, the error 1 - accuracy for accuracy. `log` axes are scaled by the logarithm,
    so that halving a large design counts as much as halving a small one.
    Raises DseError unless ideal < reference everywhere, and ideal > 0 on a logarithmic axis.
    """

    metrics: tuple[str, ...]
    ideal: tuple[float, ...]
    reference: tuple[float, ...]
    log: tuple[bool, ...]

    def __post_init__(self) -> None:
        sizes = {len(self.metrics), len(self.ideal), len(self.reference), len(self.log)}
        if len(sizes) != 1 or not self.metrics:
            raise DseError(f"a box needs metrics and one ideal, reference and log each; got {self}")
        if len(set(self.metrics)) != len(self.metrics):
            raise DseError(f"a box names every metric once; found {', '.join(self.metrics)}")
        for axis in zip(self.metrics, self.ideal, self.reference, self.log, strict=True):
            _check_axis(*axis)

    def minimised(self, values: npt.ArrayLike) -> Points:
        """Raw metric values (n, m) with accuracy turned into error: every column minimised."""
        raw = np.array(values, dtype=np.float64)
        if raw.size == 0:
            return np.zeros((0, len(self.metrics)))
        if raw.ndim != 2 or raw.shape[1] != len(self.metrics):
            raise DseError(
                f"values must be an (n, {len(self.metrics)}) array, a column for each of "
                f"{', '.join(self.metrics)}; found shape {raw.shape}"
            )
        for column, metric in enumerate(self.metrics):
            if METRICS[metric].direction == "maximize":
                raw[:, column] = 1.0 - raw[:, column]
        return _checked(raw)

    def normalise(self, values: npt.ArrayLike) -> Points:
        """Raw metric values (n, m) on the box's axes: 0 is the ideal, 1 the reference.

        Values past either end stay outside 0..1, so dominance is unchanged.
        Raises DseError for a value that is not finite, or not positive on a logarithmic axis.
        """
        points = self.minimised(values)
        for column, metric in enumerate(self.metrics):
            low, high = self.ideal[column], self.reference[column]
            if not self.log[column]:
                points[:, column] = (points[:, column] - low) / (high - low)
                continue
            if (points[:, column] <= 0).any():
                raise DseError(
                    f"{metric} has a logarithmic axis and needs values above 0; "
                    f"found {points[:, column].min():g}"
                )
            points[:, column] = np.log(points[:, column] / low) / math.log(high / low)
        return points

    def front(self, values: npt.ArrayLike) -> Mask:
        """Which rows of the raw metric values (n, m) are non-dominated (the first of equals).

        Decided on the values themselves: the logarithm could round two neighbours together.
        """
        return non_dominated(self.minimised(values))

    def hypervolume(self, values: npt.ArrayLike) -> float:
        """The share of the box, 0 to 1, that the raw metric values (n, m) dominate."""
        return hypervolume(self._inside(values), np.ones(len(self.metrics)))

    def history(self, values: npt.ArrayLike) -> Points:
        """The hypervolume after each row of the raw metric values (n, m), in order: (n,).

        A row adds its own box less what the front already covers of it (While, Bradstreet &
        Barone, IEEE TEVC 2012, equation 1), so only rows that enter the front cost anything.
        """
        total, front, ones = 0.0, np.zeros((0, len(self.metrics))), np.ones(len(self.metrics))
        history: list[float] = []
        for point in self._inside(values):
            if (point < 1.0).all() and not (front <= point).all(axis=1).any():
                shadow = hypervolume(np.maximum(front, point), ones)
                total += max(0.0, float(np.prod(1.0 - point)) - shadow)
                front = np.vstack([front[~(point <= front).all(axis=1)], point])
            history.append(min(total, 1.0))
        return np.array(history, dtype=np.float64)

    def _inside(self, values: npt.ArrayLike) -> Points:
        """Normalised, and nothing better than the ideal: the volume never exceeds 1."""
        return np.maximum(self.normalise(values), 0.0)

    def on(self, metrics: Sequence[str], other: Box) -> Box:
        """These axes: as they are here where they are known, else as in `other`."""
        here = {m: i for i, m in enumerate(self.metrics)}
        found = [(self, here[m]) if m in here else (other, other.metrics.index(m)) for m in metrics]
        return Box(
            tuple(metrics),
            tuple(box.ideal[i] for box, i in found),
            tuple(box.reference[i] for box, i in found),
            tuple(box.log[i] for box, i in found),
        )

    def to_dict(self) -> dict[str, Any]:
        """The box as JSON values; `from_dict` reads it back."""
        return {
            "metrics": list(self.metrics),
            "ideal": list(self.ideal),
            "reference": list(self.reference),
            "log": list(self.log),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Box:
        """The box that `to_dict` wrote; raises DseError when a key is missing."""
        try:
            return cls(
                tuple(str(name) for name in stored["metrics"]),
                tuple(float(value) for value in stored["ideal"]),
                tuple(float(value) for value in stored["reference"]),
                tuple(bool(value) for value in stored["log"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DseError(f"not a stored box: {error!r} in {dict(stored)}") from error


def _checked(points: npt.ArrayLike) -> Points:
    array = np.ascontiguousarray(points, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] == 0:
        raise DseError(f"points must be an (n, m) array with m >= 1; found shape {array.shape}")
    if not np.isfinite(array).all():
        raise DseError("points must be finite; found nan or infinity")
    return array


def _check_axis(metric: str, ideal: float, reference: float, log: bool) -> None:
    if metric not in METRICS:
        raise DseError(f"unknown metric '{metric}'; {nearest(metric, METRICS)}")
    if not (math.isfinite(ideal) and math.isfinite(reference) and ideal < reference):
        raise DseError(
            f"the box of {metric} needs a finite ideal below its reference; "
            f"found {ideal:g} and {reference:g}"
        )
    if log and ideal <= 0:
        raise DseError(f"the logarithmic axis of {metric} needs an ideal above 0; found {ideal:g}")
