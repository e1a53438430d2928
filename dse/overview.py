"""A study's trials as columns, with what follows from them: front, feasible, verified, bits.

What the filter, the help to choose and the web app read. 20,000 trials take well under a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dse.errors import StorageError
from dse.filter import KNOB, Mask
from dse.rows import FrontChange, StudyRecord
from dse.storage import Storage
from dse.trial import COST_METRICS, METRICS, TRUST, MetricName

if TYPE_CHECKING:
    import pandas as pd

_FINISHED = ("complete", "infeasible", "failed")


@dataclass(frozen=True, eq=False)
class Overview:
    """A study with its trials in order of number; `changes` are those of its front.

    The columns of `table` are those of `Storage.table` with knobs, and `feasible`, `eligible`,
    `front`, `verified`, `trained`, `weight_bits` (mean over the knobs that set bits), `provenance`.
    """

    record: StudyRecord
    table: pd.DataFrame
    changes: tuple[FrontChange, ...]

    @cached_property
    def metrics(self) -> tuple[MetricName, ...]:
        """The objectives in their order, then every other metric that some trial has."""
        objectives = self.record.objectives
        rest = (name for name in METRICS if name not in objectives)
        return (*objectives, *(n for n in rest if self.table[METRICS[n].column].notna().any()))  # type: ignore[arg-type]

    @cached_property
    def knobs(self) -> tuple[str, ...]:
        """Names of the knobs."""
        names = map(str, self.table)
        return tuple(name.removeprefix(KNOB) for name in names if name.startswith(KNOB))

    def values(self, rows: Mask | None = None) -> npt.NDArray[np.float64]:
        """The objectives of these rows, (n, m), SI units."""
        columns = [METRICS[name].column for name in self.record.objectives]
        table = self.table if rows is None else self.table[rows]
        return table[columns].to_numpy(dtype=np.float64)

    def flag(self, name: str) -> Mask:
        """A column of truth values."""
        return self.table[name].to_numpy(dtype=np.bool_)

    @property
    def choices(self) -> Mask:
        """The designs one could take: on the front, and no baseline."""
        return self.flag("front") & (self.table["baseline"] == "").to_numpy(dtype=np.bool_)

    @cached_property
    def hypervolume(self) -> float:
        """The share of the study's box that the front dominates."""
        front = self.flag("front")
        return self.record.box.hypervolume(self.values(front)) if front.any() else 0.0


def read_overview(storage: Storage, name: str) -> Overview:
    """A study as it is now; raises StorageError when it cannot be read."""
    return _derived(storage, storage.study(name), storage.table(name, knobs=True, brief=True))


def refreshed(storage: Storage, before: Overview) -> Overview:
    """The study as it is now, reading only trials that were not finished `before`.

    Of what was finished only proofs are read again; a test accuracy that came later is not.
    Reads everything when the study was made anew.
    """
    import pandas as pd

    record = storage.study(before.record.name)
    open_ = ~before.table["state"].isin(_FINISHED).to_numpy(dtype=np.bool_)
    since = int(open_.argmax()) if open_.any() else len(before.table)
    if record.created != before.record.created:
        since = 0
    newer = storage.table(record.name, knobs=True, since=since, brief=True)
    if since == 0:
        return _derived(storage, record, newer)
    kept = before.table[[c for c in before.table if c not in DERIVED]].iloc[:since]
    table = pd.concat([kept, newer], ignore_index=True) if len(newer) else kept
    for column in kept:
        # Categories of both parts; else concat makes objects of them.
        if isinstance(kept[column].dtype, pd.CategoricalDtype):
            table[column] = table[column].astype("category")
    return _derived(storage, record, table.copy())


DERIVED = ("feasible", "eligible", "front", "verified", "weight_bits", "provenance")


def _derived(storage: Storage, record: StudyRecord, table: pd.DataFrame) -> Overview:
    import pandas as pd

    size = len(table)
    if size and int(table["number"].iloc[-1]) != size - 1:
        raise StorageError(f"study '{record.name}' misses trials; its numbers must have no gaps")
    knobs = [name for name in map(str, table) if name.startswith(KNOB)]
    sampled = table[knobs].notna().to_numpy().any(axis=1) if knobs else np.zeros(size, np.bool_)
    feasible = (table["state"] == "complete").to_numpy(dtype=np.bool_)
    eligible = feasible & ~((table["baseline"] == "float32").to_numpy(np.bool_) & ~sampled)
    proofs = storage.proofs(record.name)
    verified = np.zeros(size, dtype=np.bool_)
    verified[[number for number, proof in proofs.items() if proof.exact and number < size]] = True
    derived = {
        "feasible": feasible,
        "eligible": eligible,
        "front": _front(record, table, eligible),
        "verified": verified,
        "weight_bits": _bits(table, knobs),
        "provenance": np.where(verified, "emulated", _worst(table)),
    }
    whole = pd.concat([table, pd.DataFrame(derived, index=table.index)], axis=1)
    return Overview(record, whole, tuple(storage.fronts(record.name)))


def _front(record: StudyRecord, table: pd.DataFrame, eligible: Mask) -> Mask:
    columns = [METRICS[name].column for name in record.objectives]
    values = table[columns].to_numpy(dtype=np.float64)
    rows = np.flatnonzero(eligible & np.isfinite(values).all(axis=1))
    front = np.zeros(len(table), dtype=np.bool_)
    if len(rows):
        front[rows[record.box.front(values[rows])]] = True
    return front


def _bits(table: pd.DataFrame, knobs: list[str]) -> npt.NDArray[np.float64]:
    names = [name for name in knobs if name.removeprefix(KNOB).split(".")[0] == "bits"]
    columns = [table[n].to_numpy(np.float64) for n in names if table[n].dtype.kind in "iuf"]
    found = np.full(len(table), np.nan)
    if columns:
        stacked = np.stack(columns)
        some = np.isfinite(stacked).any(axis=0)
        found[some] = np.nanmean(stacked[:, some], axis=0)
    for baseline, bits in (("int8", 8.0), ("float32", 32.0)):
        found[(table["baseline"] == baseline).to_numpy(np.bool_) & np.isnan(found)] = bits
    return found


def _worst(table: pd.DataFrame) -> npt.NDArray[np.object_]:
    """The least trusted provenance of the costs a trial has (dse/trial.py)."""
    ranks = [
        table[f"{METRICS[name].column}_provenance"].map({kind: i for i, kind in enumerate(TRUST)})
        for name in COST_METRICS
    ]
    codes = np.stack([np.asarray(rank.astype("float64").fillna(-1.0)) for rank in ranks])
    worst = codes.max(axis=0).astype(int) if len(table) else np.zeros(0, int)
    names: npt.NDArray[np.object_] = np.array([*TRUST, "modelled"], dtype=object)[worst]
    return names
