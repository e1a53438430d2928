"""What the page shows of some studies: their trials in one table, filtered and selected."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dse.filter import KNOB, Mask, filter_mask
from dse.overview import Overview
from dse.report.designs import interval, label, shown
from dse.trial import METRICS, Metric, MetricName

UID = 10_000_000  # trials a study at most; a uid fits into a script's number
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class View:
    """Studies side by side. `table` has their trials with `uid`, `study` and `position`.

    `mask` are the rows that the filter `where` leaves; `selected` uids, or None where nothing is
    selected.
    """

    overviews: tuple[Overview, ...]
    table: pd.DataFrame
    mask: Mask
    selected: frozenset[int] | None = None
    where: str = ""

    @classmethod
    def of(
        cls,
        overviews: Sequence[Overview],
        table: pd.DataFrame,
        where: str = "",
        selected: Iterable[int] | None = None,
    ) -> View:
        """The view behind a filter; StudyError when the filter cannot be read."""
        chosen = None if selected is None else frozenset(selected)
        return cls(tuple(overviews), table, filter_mask(where, table), chosen, where)

    @property
    def names(self) -> list[str]:
        """The studies, in order."""
        return [overview.record.name for overview in self.overviews]

    @cached_property
    def metrics(self) -> list[MetricName]:
        """Objectives of the studies first, then other metrics that some trial has."""
        found = [name for o in self.overviews for name in o.record.objectives]
        found += [name for o in self.overviews for name in o.metrics]
        return list(dict.fromkeys(found))

    @cached_property
    def objectives(self) -> list[MetricName]:
        """The objectives of any of the studies."""
        return list(dict.fromkeys(n for o in self.overviews for n in o.record.objectives))

    @property
    def knobs(self) -> list[str]:
        """Columns of the knobs of any of the studies."""
        return [str(name) for name in self.table if str(name).startswith(KNOB)]

    @cached_property
    def chosen(self) -> Mask:
        """Rows that are shown and, where something is selected, selected."""
        if self.selected is None:
            return self.mask
        return self.mask & self.table["uid"].isin(self.selected).to_numpy(dtype=np.bool_)

    def values(self, metric: str) -> npt.NDArray[np.float64]:
        """A metric of every row in SI units; NaN where it is not known."""
        return self.table[METRICS[metric].column].to_numpy(dtype=np.float64)

    def flag(self, name: str) -> Mask:
        """A column of truth values."""
        return self.table[name].to_numpy(dtype=np.bool_)

    @cached_property
    def is_baseline(self) -> Mask:
        """Rows of the baselines."""
        return (self.table["baseline"] != "").to_numpy(dtype=np.bool_)

    def state(self, name: str) -> Mask:
        """Rows in this state."""
        return (self.table["state"] == name).to_numpy(dtype=np.bool_)


def combined(overviews: Sequence[Overview]) -> pd.DataFrame:
    """The trials of several studies below each other, with uid, study and position."""
    parts = []
    for position, overview in enumerate(overviews):
        part = overview.table.assign(
            position=position,
            uid=overview.table["number"] + position * UID,
            study=pd.Categorical([overview.record.name] * len(overview.table)),
        )
        parts.append(part)
    if len(parts) == 1:
        return parts[0]
    table = pd.concat(parts, ignore_index=True)
    for column in parts[0]:
        if isinstance(parts[0][column].dtype, pd.CategoricalDtype):
            table[column] = table[column].astype("category")
    for flag in ("feasible", "eligible", "front", "verified", "trained"):
        table[flag] = table[flag].astype(bool)
    return table


def metric_of(row: Any, name: str) -> Metric | None:
    """A metric of one row of the table, None where it is not known."""
    column = METRICS[name].column
    value = float(row[column])
    if not np.isfinite(value):
        return None
    low, high = float(row[f"{column}_low"]), float(row[f"{column}_high"])
    return Metric(value, min(low, value), max(high, value), row[f"{column}_provenance"])


def figures_of(row: Any, metrics: Sequence[str]) -> list[tuple[str, str, str]]:
    """Name, value and interval of the metrics that a row has, as people read them."""
    found = []
    for name in metrics:
        metric = metric_of(row, name)
        if metric is not None:
            found.append((label(name), shown(name, metric.value), interval(name, metric)))
    return found


def text_of(value: Any) -> str:
    """A cell's text; empty where the trial has nothing."""
    return "" if value is None or value != value else str(value)
