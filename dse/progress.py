"""Progress of a study: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from dse.trial import METRICS, State, Trial
from dse.units import format_value


class StudyProgress:
    """Counts trials, keeps the best feasible value of each objective, and estimates what is left.

    `done` trials are finished already. Plain lines come at most every `every_s` seconds, and for
    the last trial; with `verbose`, for every trial.
    """

    def __init__(
        self,
        console: Console,
        objectives: Sequence[str],
        total: int,
        done: Sequence[Trial],
        *,
        quiet: bool = False,
        verbose: bool = False,
        every_s: float = 10.0,
    ) -> None:
        self.console, self.objectives, self.total = console, objectives, total
        self.quiet, self.verbose, self.every_s = quiet, verbose, every_s
        self.counts = dict.fromkeys(State, 0)
        self.best: dict[str, float] = {}
        self.trained = self.served = 0
        self._began = self._printed = time.monotonic()
        self._new = 0
        for trial in done:
            self._count(trial)
        self._bar: Progress | None = None

    def __enter__(self) -> StudyProgress:
        if self.console.is_terminal and not self.quiet:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                console=self.console,
            )
            self._bar.start()
            self._task = self._bar.add_task(
                "trials", total=self.total, completed=self._finished(), status=""
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begun(self, trial: Trial) -> None:
        """A trial starts to train."""
        if self._bar is not None:
            self._bar.update(self._task, description=f"training {trial.number}")

    def ended(self, trial: Trial, front: Sequence[int], hypervolume: float) -> None:
        """A trial was stored."""
        self._count(trial)
        self._new += not trial.served
        status = self.status(len(front), hypervolume)
        if self._bar is not None:
            self._bar.update(
                self._task, completed=self._finished(), status=status, description="trials"
            )
        if self.verbose:
            self.console.print(self.line(trial), highlight=False, soft_wrap=True)
        elif self._bar is None and not self.quiet and self._due():
            self.console.print(
                f"{self._finished()}/{self.total} {status}", highlight=False, soft_wrap=True
            )

    def heard(self, trial: Trial, front: Sequence[int], hypervolume: float) -> None:
        """Another worker has stored a trial; it counts as well."""
        self.ended(trial, front, hypervolume)

    def line(self, trial: Trial) -> str:
        """One trial in one line."""
        values = ", ".join(f"{n} {format_value(n, trial.value(n))}" for n in self.objectives)
        tail = f" ({trial.reason})" if trial.reason else ""
        return f"trial {trial.number}: {trial.state.value}, {values}{tail}"

    def status(self, front_size: int, hypervolume: float) -> str:
        """Feasible count, front, best of each objective, and the time left."""
        best = ", ".join(f"{name} {format_value(name, v)}" for name, v in self.best.items())
        failed = f", {self.counts[State.FAILED]} failed" if self.counts[State.FAILED] else ""
        return (
            f"{self.counts[State.COMPLETE]} feasible, {self.trained} trained{failed}, "
            f"front {front_size}, hypervolume {hypervolume:.4f}, best: {best or '-'}, "
            f"ETA {self._eta()}"
        )

    def _finished(self) -> int:
        return sum(n for state, n in self.counts.items() if state.finished) - self.served

    def _count(self, trial: Trial) -> None:
        self.counts[trial.state] += 1
        self.served += trial.served
        self.trained += trial.trained
        if not trial.feasible:
            return
        for name in self.objectives:
            value = trial.value(name)
            if value is None:
                continue
            better = max if METRICS[name].direction == "maximize" else min
            self.best[name] = better(self.best.get(name, value), value)

    def _due(self) -> bool:
        now = time.monotonic()
        if now - self._printed < self.every_s and self._finished() < self.total:
            return False
        self._printed = now
        return True

    def _eta(self) -> str:
        if not self._new:
            return "?"
        left = self.total - self._finished()
        seconds = (time.monotonic() - self._began) / self._new * left
        minutes, seconds = divmod(round(seconds), 60)
        return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
