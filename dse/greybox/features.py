"""What the error is modelled on: numbers by layer, and their averages over the layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from dse.greybox.knobs import Floats, Knobs, Params
from dse.greybox.memo import RowMemo

# A network's parameters -> numbers by group, such as {"kept": [...], "bits": [...]}.
Features: TypeAlias = Callable[[Params], Mapping[str, Sequence[float]]]
# An average over the layers counts this many times as much as one layer before the data speak:
# what is taken away in all layers together says more than what is taken away in any one.
AVERAGE_WEIGHT = 4.0


class FeatureMap:
    """Rows of knobs (n, knobs) -> (n, features), each on 0..1 over the `probes`.

    Groups of two or more features get their average besides, stretched by AVERAGE_WEIGHT, so that
    a few trainings already tell the common trend from what single layers add.
    """

    def __init__(self, knobs: Knobs, features: Features | None, probes: Floats) -> None:
        self._knobs, self._features = knobs, features
        raw = self._groups(probes)
        self._low = {group: found.min(axis=0) for group, found in raw.items()}
        spans = {group: np.ptp(found, axis=0) for group, found in raw.items()}
        # What never changes over the probes stays as it is.
        self._span = {group: np.where(span > 0, span, 1.0) for group, span in spans.items()}
        self._memo = RowMemo(self._scaled)

    def _groups(self, rows: Floats) -> dict[str, Floats]:
        if self._features is None:
            return self._knobs.groups(rows)
        found = [self._features(params) for params in self._knobs.designs(rows)]
        names = found[0] if found else {}
        return {
            name: np.array([each[name] for each in found], dtype=np.float64).reshape(len(rows), -1)
            for name in names
        }

    def __call__(self, rows: Floats) -> Floats:
        """The features of every row, averages last."""
        return np.asarray(self._memo(rows) if len(rows) else self._scaled(rows), dtype=np.float64)

    def _scaled(self, rows: Floats) -> Floats:
        columns, averages = [np.zeros((len(rows), 0))], []
        for group, raw in self._groups(rows).items():
            scaled = (raw - self._low[group]) / self._span[group]
            columns.append(scaled)
            if scaled.shape[1] > 1:
                averages.append(AVERAGE_WEIGHT * scaled.mean(axis=1, keepdims=True))
        found = np.hstack(columns + averages)
        return found if found.shape[1] else np.zeros((len(rows), 1))
