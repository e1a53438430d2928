"""What is asked of whoever trains and measures, and what comes back: plain data, without torch.

The explorer makes a task of every training and every test; where it is done (in this process, in
another one, on another machine) is the executor's matter.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from dse.candidate import Candidate
from dse.errors import DseError
from dse.graph.ir import Graph
from dse.graph.numerics import Rounding
from dse.stopping import Curves, StoppedEarlyError, Watch, watch
from dse.trial import Metric


class Interrupted(Exception):  # noqa: N818 - a wish, not an error
    """The user asked to stop in the middle of a training; nothing of it is kept."""


@dataclass(frozen=True)
class Evaluation:
    """What was found for one network: its graph, its validation accuracy, seconds a stage.

    `trained` says whether anything was trained for it; stages that were kept cost nothing again.
    """

    graph: Graph
    accuracy: Metric
    samples: int
    stage_s: Mapping[str, float]
    trained: bool


class Measuring(Protocol):
    """What a task needs: `evaluate.Evaluator` is one."""

    def evaluate(
        self, candidate: Candidate, rounding: Rounding, watch: Watch | None = None
    ) -> Evaluation:
        """Train (or find) a network and measure its accuracy on validation data."""

    def test_accuracy(self, graph: Graph, rounding: Rounding) -> tuple[Metric, int]:
        """Accuracy on test data, and the number of samples."""


# --- tasks --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """Train (or find) the network of a candidate and measure it on validation data.

    With `curves` it ends early once it cannot become as accurate as `needed`.
    """

    candidate: Candidate
    rounding: Rounding
    curves: Curves | None = None
    needed: float = 0.0

    @property
    def key(self) -> str:
        """Equal where one training is enough."""
        return f"{self.candidate.network_key}/{self.rounding}"


@dataclass(frozen=True)
class Testing:
    """Measure a trained network on test data."""

    candidate: Candidate
    graph: Graph
    rounding: Rounding

    @property
    def key(self) -> str:
        """Unlike those of trainings."""
        return f"test/{self.candidate.key}"


Task: TypeAlias = Training | Testing


# --- outcomes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """What a training gave, and the validation accuracies between its epochs."""

    found: Evaluation
    curve: Sequence[float]


@dataclass(frozen=True)
class Tested:
    """Accuracy on so many test samples."""

    accuracy: Metric
    samples: int


@dataclass(frozen=True)
class Stopped:
    """A training that could no longer enter the front; see `stopping`."""

    gap: float
    reason: str
    curve: Sequence[float]
    saved: int
    seconds: float


@dataclass(frozen=True)
class Failed:
    """The task cannot be done; why, in one sentence."""

    reason: str


@dataclass(frozen=True)
class HandedBack:
    """The task was not done, as its executor is to stop."""


@dataclass(frozen=True)
class Lost:
    """Whoever did the task is gone; why, in one sentence. It may be done again elsewhere."""

    reason: str


Outcome: TypeAlias = Trained | Tested | Stopped | Failed | HandedBack | Lost


class Executor(Protocol):
    """Where tasks are done, `slots` at a time; a task is known by its trial's number.

    A trial that was submitted keeps its slot until its outcome was taken with `wait`.
    """

    slots: int

    def submit(self, number: int, task: Task) -> None:
        """Begin a task; not more than `slots` may be under way."""

    def wait(self, timeout_s: float) -> Sequence[tuple[int, Outcome]]:
        """Outcomes that are there, after waiting for the first one so long at most."""

    def interrupt(self) -> None:
        """End what is under way soon, as handed back."""

    def close(self) -> None:
        """End at once, and let go of everything."""


@dataclass
class InProcess:
    """Does one task at a time, here, while `wait` is called."""

    evaluator: Measuring
    slots: int = 1
    _next: list[tuple[int, Task]] = field(default_factory=list)

    def submit(self, number: int, task: Task) -> None:
        """Keep it for `wait`."""
        self._next.append((number, task))

    def wait(self, timeout_s: float) -> Sequence[tuple[int, Outcome]]:
        """Do what was submitted, however long it takes."""
        return [(number, perform(task, self.evaluator)) for number, task in self._taken()]

    def interrupt(self) -> None:
        """Nothing is under way between two calls."""

    def close(self) -> None:
        """There is nothing to let go of."""

    def _taken(self) -> list[tuple[int, Task]]:
        taken, self._next = self._next, []
        return taken


def perform(task: Task, evaluator: Measuring) -> Outcome:
    """Do a task here; an error of it becomes its outcome."""
    began = time.monotonic()
    try:
        if isinstance(task, Testing):
            return Tested(*evaluator.test_accuracy(task.graph, task.rounding))
        curve: list[float] = []
        watched = None if task.curves is None else watch(task.curves, task.needed, curve)
        return Trained(evaluator.evaluate(task.candidate, task.rounding, watched), curve)
    except Interrupted:
        return HandedBack()
    except StoppedEarlyError as stopped:
        found = (stopped.gap, stopped.reason, stopped.curve, stopped.saved)
        return Stopped(*found, time.monotonic() - began)
    except (DseError, RuntimeError, ValueError, ArithmeticError, MemoryError) as error:
        return Failed(f"{type(error).__name__}: {(str(error).splitlines() or ['-'])[0]}")
