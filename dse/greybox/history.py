"""What the stored trials say: trained networks, running ones, and what is not to be repeated."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt
from optuna.trial import FrozenTrial, TrialState

from dse.bounded import Bounded
from dse.greybox.knobs import Axis, Floats, Knobs, Params

# The name of what is trained: equal for designs that share one training.
NetworkKey: TypeAlias = Callable[[Params], Hashable]
CLAIM = "greybox:network"
_MOST_TRIALS = 100_000


@dataclass(frozen=True)
class Seen:
    """What one stored trial says of a network: its name, its row and, when trained, its error."""

    name: Hashable
    row: Floats
    error: float
    running: bool


@dataclass
class History:
    """Rows (n, knobs) of trained networks with their errors (n,), and of running ones.

    A network that several trials share counts once, with its mean error. Failed and pruned trials
    are only not repeated. Without a `key` of its own, a network is known when a stored trial agrees
    with it on every parameter that this trial asked for: it would take the same path again.
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
    def of(cls, found: Iterable[Seen], knobs: Knobs, key: NetworkKey | None) -> History:
        """From what the trials say, in their order."""
        history = cls(knobs, key)
        rows: dict[Hashable, Floats] = {}
        errors: dict[Hashable, list[float]] = {}
        for seen in found:
            rows.setdefault(seen.name, seen.row)
            if math.isfinite(seen.error):
                errors.setdefault(seen.name, []).append(seen.error)
            elif seen.running:
                errors.setdefault(seen.name, [])
        history._remember(rows)
        done = [name for name, measured in errors.items() if measured]
        history.trained = _stacked([rows[name] for name in done], knobs)
        history.errors = np.array([statistics.fmean(errors[name]) for name in done])
        running = [rows[name] for name, measured in errors.items() if not measured]
        history.running = _stacked(running, knobs)
        return history

    def _remember(self, names: Collection[Hashable]) -> None:
        self.known = len(names)
        if self.key is not None:
            self._keys.update(names)
            return
        for asked, content in cast(Collection[tuple[bytes, bytes]], names):
            self._patterns.setdefault(asked, set()).add(content)

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


class TrialReader:
    """Stored trials to histories.

    All trials are read again for every proposal, but those that are finished stay as they are and,
    with Optuna's storages, the same objects.
    """

    def __init__(
        self,
        knobs: Knobs,
        error: Callable[[FrozenTrial], float],
        key: NetworkKey | None = None,
    ) -> None:
        self._knobs, self._error, self._key = knobs, error, key
        self._axes = {axis.name: axis for axis in knobs.axes}
        # By identity, which holds while the trial is held as well.
        self._finished: Bounded[int, tuple[FrozenTrial, Seen | None]] = Bounded(_MOST_TRIALS)

    def history(self, trials: Iterable[FrozenTrial]) -> History:
        """What the trials say together."""
        found = (self._seen(trial) for trial in trials)
        return History.of((seen for seen in found if seen), self._knobs, self._key)

    def _seen(self, trial: FrozenTrial) -> Seen | None:
        kept = self._finished.get(id(trial))
        if kept is not None and kept[0] is trial:
            return kept[1]
        found = self._read(trial)
        if trial.state.is_finished():
            self._finished[id(trial)] = trial, found
        return found

    def _read(self, trial: FrozenTrial) -> Seen | None:
        params = _params(trial, self._axes)
        if params is None:
            return None
        row = self._knobs.row(params)
        name = _pattern(row) if self._key is None else self._key(params)
        error = self._error(trial) if trial.state is TrialState.COMPLETE else math.nan
        return Seen(name, row, error, trial.state is TrialState.RUNNING)


def _pattern(row: Floats) -> tuple[bytes, bytes]:
    """Which knobs were asked for, and their values."""
    asked = ~np.isnan(row)
    return asked.tobytes(), _bytes(row[asked])


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
