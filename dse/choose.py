"""Help to choose one design: knee, closest to the ideal, the cheapest board that is enough.

Each choice comes with one sentence of why. The command line and the web app share it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dse.errors import StudyError, nearest
from dse.filter import both, filter_mask
from dse.overview import Overview
from dse.pareto import knee
from dse.targets import Board
from dse.trial import METRICS, MetricName
from dse.units import format_value

Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """A trial's number, the question it answers, and one sentence of why."""

    title: str
    number: int
    why: str


def best_rows(overview: Overview, where: str = "") -> npt.NDArray[np.int64]:
    """Rows of the non-dominated designs among those that match the filter, baselines left out.

    Raises StudyError for a filter that cannot be read, or when nothing is left.
    """
    eligible = overview.flag("eligible")
    plain = eligible & (overview.table["baseline"] == "").to_numpy(dtype=np.bool_)
    matching = plain & filter_mask(where, overview.table)
    if not plain.any():
        raise StudyError(
            f"study '{overview.record.name}' has no feasible design to choose from yet; 'dse "
            "status' counts what was rejected"
        )
    if not matching.any():
        raise StudyError(f"none of {plain.sum():,} feasible designs matches '{where}'; loosen it")
    rows = np.flatnonzero(matching)
    return rows[overview.record.box.front(overview.values(matching))]


def knee_choice(overview: Overview, where: str = "") -> Choice:
    """The knee: where giving up a little in one objective gains least in the others."""
    rows = best_rows(overview, where)
    row = rows[knee(_scaled(overview, rows))]
    said = _beside(overview, row, rows)
    why = f"At the knee, gaining more in one objective costs most in the others: {said}."
    return Choice("Knee", int(row), why)


def closest_choice(
    overview: Overview, weights: Mapping[str, float] | None = None, where: str = ""
) -> Choice:
    """Closest to the ideal and farthest from the worst: TOPSIS (Hwang & Yoon, 1981).

    Objectives are scaled to the range of the designs to choose from, logarithmically where the
    study's box is. `weights` by objective are 1 where not given; at least one is above 0.
    """
    rows = best_rows(overview, where)
    given = _weights(overview, weights or {})
    scaled = _scaled(overview, rows) * given
    to_ideal = np.linalg.norm(scaled, axis=1)
    to_worst = np.linalg.norm(scaled - given, axis=1)
    row = rows[np.argmin(to_ideal / np.maximum(to_ideal + to_worst, 1e-300))]
    said = _weights_text(overview, weights or {})
    return Choice(
        "Closest to ideal",
        int(row),
        f"It is nearest to the best of every objective at once ({said}): "
        f"{_beside(overview, row, rows)}.",
    )


def cheapest_choice(overview: Overview, where: str, boards: Mapping[str, Board]) -> Choice:
    """The board of the lowest price with a design that matches, and the best balanced one on it.

    Raises StudyError when nothing matches, or no board with a matching design has a price.
    """
    rows = best_rows_by_board(overview, where)
    prices = {name: fact for name in rows if (fact := _price(boards, name)) is not None}
    if not prices:
        raise StudyError(
            f"no price is known of {', '.join(sorted(rows))}; give 'price' in the board's file"
        )
    name = min(prices, key=lambda board: (prices[board].value, board))
    on_board = f'board == "{name}"'
    found = closest_choice(overview, None, both(where, on_board))
    others = [f"{board} {prices[board].value:g} USD" for board in sorted(prices) if board != name]
    beside = f" (beside {', '.join(others)})" if others else ""
    unknown = len(rows) - len(prices)
    rest = f"; {unknown} more without a price" if unknown else ""
    return Choice(
        "Cheapest board",
        found.number,
        f"{name} is the cheapest board with a design that meets '{where or 'every constraint'}': "
        f"{prices[name].value:g} USD{beside}{rest} ({prices[name].text}).",
    )


def best_rows_by_board(overview: Overview, where: str) -> dict[str, npt.NDArray[np.int64]]:
    """The feasible designs that match, by board."""
    best_rows(overview, where)  # says what is wrong
    table = overview.table
    matching = overview.flag("eligible") & filter_mask(where, table)
    boards = table["board"].astype("object").to_numpy()
    names = sorted({str(name) for name in boards[matching] if isinstance(name, str)})
    return {name: np.flatnonzero(matching & (boards == name)) for name in names}


def _price(boards: Mapping[str, Board], name: str) -> Any:
    board = boards.get(name) or boards.get(name.replace("-", "_"))
    return None if board is None else board.fact("price")


def _scaled(overview: Overview, rows: npt.NDArray[np.int64]) -> Points:
    """The rows' objectives, each from 0 (the best of these) to 1 (the worst), (n, m)."""
    points = overview.record.box.normalise(overview.values()[rows])
    low, span = points.min(axis=0), np.ptp(points, axis=0)
    scaled: Points = (points - low) / np.where(span > 0, span, 1.0)
    return scaled


def _weights(overview: Overview, weights: Mapping[str, float]) -> Points:
    objectives = overview.record.objectives
    for name, weight in weights.items():
        if name not in objectives:
            raise StudyError(f"a weight is given for '{name}'; {nearest(name, objectives)}")
        if not (np.isfinite(weight) and weight >= 0):
            raise StudyError(f"the weight of {name} is {weight:g}; allowed: 0 or more")
    found = np.array([float(weights.get(name, 1.0)) for name in objectives])
    if not found.any():
        raise StudyError("every weight is 0; give at least one objective a weight above 0")
    return found


def _weights_text(overview: Overview, weights: Mapping[str, float]) -> str:
    given = [weights.get(name, 1.0) for name in overview.record.objectives]
    if len(set(given)) == 1:
        return "TOPSIS, equal weights"
    pairs = zip(overview.record.objectives, given, strict=True)
    return "TOPSIS, weights " + ", ".join(f"{_name(name)} {weight:g}" for name, weight in pairs)


def _beside(overview: Overview, row: int, rows: npt.NDArray[np.int64]) -> str:
    """What a design gives up beside the best of each objective."""
    said = []
    for name in overview.record.objectives:
        values = overview.table[METRICS[name].column].to_numpy(dtype=np.float64)
        said.append(_gap(name, float(values[row]), values[rows]))
    return ", ".join(said)


def _gap(name: MetricName, value: float, among: Points) -> str:
    shown = f"{_name(name)} {format_value(name, value)}".replace(" us", " µs").replace(" uJ", " µJ")
    if METRICS[name].direction == "maximize":
        lost = 100 * (float(among.max()) - value)
        return f"{shown} ({lost:.2g} points below the best)" if lost > 0 else f"{shown} (the best)"
    best = float(among.min())
    if value <= best:
        return f"{shown} (the least)"
    return f"{shown} ({value / best:.3g}x the least)" if best > 0 else shown


def _name(metric: str) -> str:
    return "RAM" if metric == "ram" else metric
