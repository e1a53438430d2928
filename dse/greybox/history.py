"""What the stored trials say: trained networks, running ones, and what is not to be repeated."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from optuna.trial import FrozenTrial, TrialState

from dse.greybox.knobs import Axis, Floats, Knobs, Params

# The name of what is trained: equal for designs that share one training.
NetworkKey: TypeAlias = Callable[[Params], Hashable]
CLAIM = "greybox:network"


@dataclass
class History:
    """Rows (n, knobs) of trained networks with their errors (n,), and of running ones.

    A network that several trials share counts once, with its mean error.
    """

    knobs: Knobs
    key: NetworkKey | None = None
    trained: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    errors: Floats = field(default_factory=lambda: np.zeros(0))
    running: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    known: int = 0
    _patterns: dict[bytes, set[bytes]] = field(default_factory=dict)
    _keys: set[Hashable] = field(default_factory=set)

    @classmethod
    def read(
        cls,
        trials: Sequence[FrozenTrial],
        knobs: Knobs,
        error: Callable[[FrozenTrial], float],
        key: NetworkKey | None = None,
    ) -> History:
        """From stored trials; failed and pruned ones are only not repeated."""
        history = cls(knobs, key)
        rows: dict[Hashable, Floats] = {}
        errors: dict[Hashable, list[float]] = {}
        axes = {axis.name: axis for axis in knobs.axes}
        for trial in trials:
            params = _params(trial, axes)
            if params is None:
                continue
            row = knobs.row(params)
            name = history._add(row, params)
            rows.setdefault(name, row)
            found = error(trial) if trial.state is TrialState.COMPLETE else math.nan
            if math.isfinite(found):
                errors.setdefault(name, []).append(found)
            elif trial.state is TrialState.RUNNING:
                errors.setdefault(name, [])
        done = [name for name, found in errors.items() if found]
        history.trained = _stacked([rows[name] for name in done], knobs)
        history.errors = np.array([np.mean(errors[name]) for name in done])
        running = [rows[name] for name, found in errors.items() if not found]
        history.running = _stacked(running, knobs)
        history.known = len(rows)
        return history

    def _add(self, row: Floats, params: Params) -> Hashable:
        """Remember a network; returns its name.

        Without a key of its own, a network is known when a stored trial agrees with it on every
        parameter that this trial asked for: it would take the same path again.
        """
        if self.key is not None:
            name = self.key(params)
            self._keys.add(name)
            return name
        asked = ~np.isnan(row)
        content = _bytes(row[asked])
        self._patterns.setdefault(asked.tobytes(), set()).add(content)
        return asked.tobytes(), content

    def knows(self, row: Floats) -> bool:
        """Whether the network of this row was trained, is running or has failed."""
        if self.key is not None:
            return self.key(self.knobs.params(row)) in self._keys
        return bool(self._known(row[None])[0])

    def _known(self, rows: Floats) -> npt.NDArray[np.bool_]:
        """Which rows agree with a stored trial on all that it asked for."""
        found = np.zeros(len(rows), dtype=np.bool_)
        rounded = rows.round(9) + 0.0
        for asked, contents in self._patterns.items():
            columns = np.ascontiguousarray(rounded[:, np.frombuffer(asked, dtype=np.bool_)])
            found |= [row.tobytes() in contents for row in columns]
        return found

    def new(self, rows: Floats) -> Floats:
        """Rows whose networks are not known, each network once."""
        first: dict[bytes, int] = {}
        for index, row in enumerate(rows.round(9) + 0.0):
            first.setdefault(row.tobytes(), index)
        once = rows[list(first.values())]
        if self.key is None:
            return once[~self._known(once)]
        return _stacked([row for row in once if not self.knows(row)], self.knobs)


def _params(trial: FrozenTrial, axes: Mapping[str, Axis]) -> Params | None:
    """The network parameters of a trial, those it has claimed while they are not stored yet."""
    found = {name: value for name, value in trial.params.items() if name in axes}
    claimed = trial.system_attrs.get(CLAIM)
    if trial.state is TrialState.RUNNING and claimed is not None:
        found = {n: axes[n].value(number) for n, number in claimed.items() if n in axes} | found
    if trial.state is TrialState.WAITING or (axes and not found):
        return None
    return found


def _bytes(row: Floats) -> bytes:
    return (row.round(9) + 0.0).tobytes()


def _stacked(rows: Sequence[Floats], knobs: Knobs) -> Floats:
    return np.array(rows).reshape(len(rows), len(knobs))
