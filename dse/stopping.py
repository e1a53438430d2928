"""Trainings that can no longer enter the front end early.

Costs are exact before training, so a network's place in the front asks for a certain accuracy. A
training ends when its final accuracy, as optimistic as earlier ones of the study allow (a
regression of final on current logit error, two standard deviations below), stays under that.
Pruners of Optuna are for one objective and raise NotImplementedError here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from dse.candidate import Candidate
from dse.problem import Problem
from dse.trial import COST_METRICS, Metric, State, Trial

CURVE = "dse:curve"
SAVED = "dse:epochs_saved"
STOPPED = "stopped early"
# Fewer finished curves than this tell too little (they were replayed on a digits network).
LEAST_CURVES = 12
DEVIATIONS = 2.0
_EDGE = 1e-4  # accuracies of 0 and 1 have no logit


Floats: TypeAlias = npt.NDArray[np.float64]
Watch: TypeAlias = Callable[[float, int, int], None]


class StoppedEarlyError(Exception):
    """A training was ended: what is missing in accuracy, why, and how many epochs were saved."""

    def __init__(self, gap: float, reason: str, curve: Sequence[float], saved: int) -> None:
        super().__init__(reason)
        self.gap, self.reason, self.curve, self.saved = gap, reason, tuple(curve), saved


@dataclass
class Curves:
    """Finished trainings: validation accuracy after each epoch, and in the end."""

    known: list[tuple[tuple[float, ...], float]] = field(default_factory=list)

    def learn(self, trial: Trial) -> None:
        """Take over a stored trial that was trained to its end."""
        curve, final = trial.attrs.get(CURVE), trial.value("accuracy")
        if curve and final is not None:
            self.known.append((tuple(curve), final))

    def best_final(self, epoch: int, accuracy: float) -> float | None:
        """The final accuracy at best of a training that has `accuracy` after `epoch` (from 1).

        None while fewer than 12 trainings are known to that epoch, or they were all alike.
        """
        known = [(curve[epoch - 1], final) for curve, final in self.known if len(curve) >= epoch]
        if len(known) < LEAST_CURVES:
            return None
        x, y = (_logit_error(np.array(column)) for column in zip(*known, strict=True))
        spread = float(((x - x.mean()) ** 2).sum())
        if spread == 0:
            return None
        slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread
        residual = y - y.mean() - slope * (x - x.mean())
        deviation = math.sqrt(float((residual**2).sum()) / (len(x) - 2))
        here = float(_logit_error(np.array([accuracy]))[0])
        # Standard error of a new observation in simple linear regression.
        widened = deviation * math.sqrt(1 + 1 / len(x) + (here - x.mean()) ** 2 / spread)
        lowest = y.mean() + slope * (here - x.mean()) - DEVIATIONS * widened
        return 1 / (1 + math.exp(float(lowest)))


def _logit_error(accuracy: Floats) -> Floats:
    error = np.clip(1 - accuracy, _EDGE, 1 - _EDGE)
    return np.asarray(np.log(error / (1 - error)))


def stopped_trial(trial: Trial, stopped: StoppedEarlyError, seconds: float) -> Trial:
    """A trial whose training was ended: infeasible like one that costs reject, with its curve."""
    return replace(
        trial,
        state=State.INFEASIBLE,
        reason=stopped.reason,
        violations={**trial.violations, STOPPED: stopped.gap},
        attrs={**trial.attrs, CURVE: list(stopped.curve), SAVED: stopped.saved},
        stage_s={"train": seconds},
        trained=True,
    )


def needed_accuracy(
    problem: Problem, candidate: Candidate, front: Iterable[Trial], baseline: float | None
) -> float:
    """The accuracy above which the network enters the front on some target, or may by its limits.

    `front` are the members' trials and `baseline` the accuracy of the float32 network.
    """
    costs = [name for name in problem.objectives if name in COST_METRICS]
    counts = "accuracy" in problem.objectives  # else whoever costs less is better
    members = [
        ([t.value(name) or 0.0 for name in costs], (t.value("accuracy") or 0.0) if counts else 1.0)
        for t in front
    ]
    needed = math.inf
    for target in problem.space.targets:
        screening = problem.screen(replace(candidate, target=target))
        if not screening.feasible:
            continue
        own = [_least(screening.metrics[name]) for name in costs]
        rivals = [a for costs_of, a in members if _no_larger(costs_of, own)]
        needed = min(needed, max(rivals, default=0.0))
    limits = [c.limit(baseline) for c in problem.study.constraints if c.needs_accuracy]
    return max([needed, *limits])


def _least(metric: Metric) -> float:
    """What is known for sure: the value, or how low it may be."""
    return (metric.low if metric.value is None else metric.value) or 0.0


def _no_larger(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True))


def watch(curves: Curves, needed: float, curve: list[float]) -> Watch:
    """Called with (validation accuracy, epochs done, epochs in all); fills `curve`.

    Raises StoppedEarlyError when the network cannot become as accurate as `needed`.
    """

    def after_epoch(accuracy: float, epoch: int, epochs: int) -> None:
        curve.append(accuracy)
        best = curves.best_final(epoch, accuracy)
        if best is not None and best <= needed:
            reason = (
                f"stopped after epoch {epoch} of {epochs} with an accuracy of "
                f"{100 * accuracy:.2f} %: at best {100 * best:.2f} % in the end, and its costs ask "
                f"for more than {100 * needed:.2f} %"
            )
            raise StoppedEarlyError(needed - best, reason, curve, epochs - epoch)

    return after_epoch
