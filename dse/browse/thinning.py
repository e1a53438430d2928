"""Which of many points are drawn: at most so many, spread evenly; selections take all inside.

Thousands of points cannot be told apart, and a browser without a graphics card needs seconds for
each redraw of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dse.browse.view import Rows
from dse.filter import Mask

DRAWN = 1000
CELLS = (160, 80)  # of the drawing: about six pixels each

Column = npt.NDArray[np.float64]


def thinned(rows: Rows, columns: Sequence[Column], logs: Sequence[bool]) -> Rows:
    """At most DRAWN of the rows: one from every cell of the drawing first, the same every time."""
    if len(rows) <= DRAWN:
        return rows
    cells = np.zeros(len(rows), dtype=np.int64)
    for column, log, count in zip(columns[:2], logs, CELLS, strict=False):
        values = np.log(column[rows]) if log else column[rows]
        reach = float(np.ptp(values)) or 1.0
        cells = cells * count + np.minimum(
            count - 1, (values - values.min()) / reach * count
        ).astype(np.int64)
    first = np.sort(np.unique(cells, return_index=True)[1])
    if len(first) > DRAWN:
        first = first[np.linspace(0, len(first) - 1, DRAWN).astype(np.int64)]
    return rows[first]


def inside(event: Mapping[str, Any], x: Column, y: Column) -> Mask:
    """Which points lie in the box or lasso of plotly's selection, in the units of the axes.

    Nothing where the event names no area.
    """
    area = event.get("range") or event.get("lassoPoints") or {}
    if "x" not in area or "y" not in area:
        return np.zeros(len(x), dtype=np.bool_)
    if event.get("range"):
        (left, right), (low, high) = sorted(area["x"]), sorted(area["y"])
        within: Mask = (x >= left) & (x <= right) & (y >= low) & (y <= high)
        return within
    return _in_polygon(np.array(area["x"], float), np.array(area["y"], float), x, y)


def _in_polygon(corners_x: Column, corners_y: Column, x: Column, y: Column) -> Mask:
    """Even-odd rule: a ray from the point crosses the outline an odd number of times."""
    within = np.zeros(len(x), dtype=np.bool_)
    for x0, y0, x1, y1 in zip(
        corners_x, corners_y, np.roll(corners_x, 1), np.roll(corners_y, 1), strict=True
    ):
        if y0 != y1:
            crosses = (y0 > y) != (y1 > y)
            within ^= crosses & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return within
