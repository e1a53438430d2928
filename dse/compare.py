"""Two studies on one reference point: what each found, how fast, and whose front is ahead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dse.errors import StudyError
from dse.filter import Mask
from dse.overview import Overview
from dse.pareto import Box
from dse.report.designs import label, shown
from dse.trial import METRICS, MetricName

Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Side:
    """What one study found, in the box of both.

    `covered` is the share of the other's front that this one dominates or equals (Zitzler &
    Thiele, IEEE TEVC 1999); `caught_up_trials` and `_s` when it reached the other's final
    hypervolume, None where it never did. `best` are SI units by objective.
    """

    name: str
    trials: int
    feasible: int
    front: int
    hypervolume: float
    duration_s: float
    covered: float
    caught_up_trials: int | None
    caught_up_s: float | None
    best: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """Both sides and the box in which their hypervolumes are measured."""

    objectives: tuple[MetricName, ...]
    box: Box
    sides: tuple[Side, Side]

    def sentence(self) -> str:
        """Who is ahead, in one sentence."""
        first, second = sorted(self.sides, key=lambda side: -side.hypervolume)
        if first.hypervolume == second.hypervolume:
            return f"Both fronts dominate the same share of the box, {first.hypervolume:.4f}."
        said = (
            f"{first.name} is ahead: its front dominates {first.hypervolume:.4f} of the box, that "
            f"of {second.name} {second.hypervolume:.4f}"
        )
        if first.caught_up_trials is not None:
            said += f"; it was past that after {first.caught_up_trials:,} trials"
        return said + "."

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values (schema `dse.compare/1`)."""
        return {
            "schema": "dse.compare/1",
            "objectives": list(self.objectives),
            "box": self.box.to_dict(),
            "studies": [vars(side) for side in self.sides],
        }

    def rows(self) -> list[dict[str, str]]:
        """One row a figure, one column a study, as people read them."""
        found = {
            "trials": [f"{side.trials:,}" for side in self.sides],
            "feasible": [f"{side.feasible:,}" for side in self.sides],
            "on the front": [f"{side.front:,}" for side in self.sides],
            "hypervolume": [f"{side.hypervolume:.4f}" for side in self.sides],
            "of the other's front dominated": [f"{100 * s.covered:.0f} %" for s in self.sides],
            "past the other after": [_caught_up(side) for side in self.sides],
            "time": [_time(side.duration_s) for side in self.sides],
        }
        for name in self.objectives:
            found[f"best {label(name)}"] = [shown(name, s.best.get(name)) for s in self.sides]
        names = [side.name for side in self.sides]
        return [{"figure": key, **_named(names, values)} for key, values in found.items()]


def _named(names: Sequence[str], values: Sequence[str]) -> dict[str, str]:
    keys = names if len(set(names)) == len(names) else [f"{n} ({i})" for i, n in enumerate(names)]
    return dict(zip(keys, values, strict=True))


def compare(first: Overview, second: Overview) -> Comparison:
    """Two studies in the box that holds both of theirs.

    Raises StudyError when they have different objectives.
    """
    names = first.record.objectives
    if set(names) != set(second.record.objectives):
        raise StudyError(
            f"'{first.record.name}' has the objectives {', '.join(names)}, "
            f"'{second.record.name}' {', '.join(second.record.objectives)}; only studies with the "
            "same ones can be compared"
        )
    box = _shared(first.record.box, second.record.box)
    rows = [_eligible(overview) for overview in (first, second)]
    values = [_values(o, names)[r] for o, r in zip((first, second), rows, strict=True)]
    fronts = [found[box.front(found)] if len(found) else found for found in values]
    volumes = [box.hypervolume(front) if len(front) else 0.0 for front in fronts]
    sides = [
        _side(overview, names, box, rows[i], fronts[i], fronts[1 - i], volumes[i], volumes[1 - i])
        for i, overview in enumerate((first, second))
    ]
    return Comparison(names, box, (sides[0], sides[1]))


def _shared(first: Box, second: Box) -> Box:
    """The smallest box with both inside; its axes in the order of the first."""
    at = [second.metrics.index(name) for name in first.metrics]
    return Box(
        first.metrics,
        tuple(min(x, second.ideal[i]) for x, i in zip(first.ideal, at, strict=True)),
        tuple(max(x, second.reference[i]) for x, i in zip(first.reference, at, strict=True)),
        tuple(log and second.log[i] for log, i in zip(first.log, at, strict=True)),
    )


def _values(overview: Overview, names: Sequence[str]) -> Points:
    columns = [METRICS[name].column for name in names]
    found: Points = overview.table[columns].to_numpy(dtype=np.float64)
    return found


def _eligible(overview: Overview) -> Mask:
    return overview.flag("eligible") & np.isfinite(overview.values()).all(axis=1)


def _side(
    overview: Overview,
    names: Sequence[MetricName],
    box: Box,
    rows: Mask,
    front: Points,
    other: Points,
    volume: float,
    goal: float,
) -> Side:
    table = overview.table
    started = table["started"].to_numpy(np.float64)
    finished = table["finished"].to_numpy(np.float64)
    begin = float(started[started > 0].min()) if (started > 0).any() else 0.0
    history = box.history(_values(overview, names)[rows])
    past = np.flatnonzero(history >= goal) if goal > 0 else np.zeros(0, np.int64)
    row = int(np.flatnonzero(rows)[past[0]]) if len(past) else None
    ends = dict(zip(names, front.T, strict=True)) if len(front) else {}
    best = {n: float(v.max() if METRICS[n].sign < 0 else v.min()) for n, v in ends.items()}
    return Side(
        overview.record.name,
        len(table),
        int(overview.flag("feasible").sum()),
        len(front),
        volume,
        max(0.0, float(finished.max(initial=0.0)) - begin),
        _covered(box.minimised(front), box.minimised(other)),
        None if row is None else row + 1,
        None if row is None else max(0.0, float(finished[row]) - begin),
        best,
    )


def _covered(front: Points, other: Points) -> float:
    if not len(front) or not len(other):
        return 0.0
    return float(np.mean([(front <= point).all(axis=1).any() for point in other]))


def _caught_up(side: Side) -> str:
    if side.caught_up_trials is None or side.caught_up_s is None:
        return "never"
    return f"{side.caught_up_trials:,} trials, {_time(side.caught_up_s)}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
