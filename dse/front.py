"""The front of a study's trials: the whole of it at once, or as trials come in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dse.rows import StudyRecord
from dse.trial import Trial


def front_of(record: StudyRecord, trials: Sequence[Trial]) -> tuple[tuple[int, ...], float]:
    """Numbers of the members among `trials`, in their order, and the hypervolume."""
    front = Front(record)
    eligible = [trial for trial in trials if trial.eligible]
    front.set(eligible)
    return front.members, front.hypervolume


def follows(record: StudyRecord, trials: Sequence[Trial], members: Sequence[int]) -> bool:
    """Whether these members are the front of the trials; of equal designs any one may be in it."""
    by_number = {trial.number: trial for trial in trials}
    if not all(n in by_number and by_number[n].eligible for n in members):
        return False
    fronts = [[by_number[n] for n in numbers] for numbers in (members, front_of(record, trials)[0])]
    points = [
        sorted([t.value(name) or 0.0 for name in record.objectives] for t in f) for f in fronts
    ]
    return points[0] == points[1]


class Front:
    """The members of the front while trials come in, one after another."""

    def __init__(self, record: StudyRecord) -> None:
        self.record = record
        self.members: tuple[int, ...] = ()
        self._points = np.zeros((0, len(record.objectives)))

    def set(self, trials: Sequence[Trial]) -> None:
        """Begin with the front of some eligible trials."""
        points = np.array([self._point(trial) for trial in trials], dtype=np.float64)
        self._keep(
            [trial.number for trial in trials], points.reshape(-1, len(self.record.objectives))
        )

    def add(self, trial: Trial) -> bool:
        """Take in a trial; whether it entered the front."""
        if not trial.eligible:
            return False
        points = np.vstack([self._points, np.array([self._point(trial)], dtype=np.float64)])
        if not self.record.box.front(points)[-1]:
            return False
        self._keep([*self.members, trial.number], points)
        return True

    def after(self, trial: Trial) -> tuple[tuple[int, ...], float] | tuple[None, None]:
        """Members and hypervolume where the trial changes them, else None twice."""
        return (self.members, self.hypervolume) if self.add(trial) else (None, None)

    @property
    def hypervolume(self) -> float:
        """The share of the study's box that the members dominate."""
        return self.record.box.hypervolume(self._points) if self.members else 0.0

    def _keep(
        self, numbers: Sequence[int], points: np.ndarray[tuple[int, int], np.dtype[np.float64]]
    ) -> None:
        kept = self.record.box.front(points)
        self.members = tuple(n for n, keep in zip(numbers, kept, strict=True) if keep)
        self._points = points[kept]

    def _point(self, trial: Trial) -> list[float | None]:
        return [trial.value(name) for name in self.record.objectives]
