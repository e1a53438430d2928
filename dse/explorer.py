"""The loop: ask -> screen by cost -> train and measure -> tell -> store, one transaction a trial.

The sampler works on an Optuna study in memory; finished trials go to the database once each. What
is stored is enough to go on: a resumed study replays it and proposes what would have come next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np

from dse import draws, stopping
from dse.artifacts import GRAPH
from dse.candidate import Candidate, float_baseline
from dse.errors import DseError
from dse.evaluate import Evaluation, Interrupted
from dse.graph import archive
from dse.graph.ir import Graph
from dse.graph.numerics import Rounding
from dse.problem import Problem, Screening
from dse.proposer import Proposal, Proposer
from dse.rows import StudyRecord
from dse.stopping import Curves, StoppedEarlyError, Watch
from dse.storage import Storage
from dse.trial import COST_METRICS, NETWORK_OF, NEVER_MEASURED, Metric, State, Trial

MAX_FAILURES_IN_A_ROW = 10

Ending = Literal["finished", "timeout", "interrupted", "exhausted", "failing"]


class Listener(Protocol):
    """Whoever shows progress."""

    def begun(self, trial: Trial) -> None:
        """A trial starts to train."""

    def ended(self, trial: Trial, front: Sequence[int], hypervolume: float) -> None:
        """A trial was stored."""


class Measuring(Protocol):
    """What the explorer needs of `evaluate.Evaluator`."""

    def evaluate(
        self, candidate: Candidate, rounding: Rounding, watch: Watch | None = None
    ) -> Evaluation:
        """Train (or find) a network and measure its accuracy on validation data."""

    def test_accuracy(self, graph: Graph, rounding: Rounding) -> tuple[Metric, int]:
        """Accuracy on test data, and the number of samples."""


@dataclass(frozen=True)
class _Known:
    """What a trained network was found to reach."""

    accuracy: Metric
    samples: int
    number: int
    test: Metric | None
    test_samples: int


class Explorer:
    """Runs a study until it has as many finished trials as asked for.

    `stop` is asked between trials and training steps. Nothing but `storage` is needed to go on
    later, with the same record and problem.
    """

    def __init__(
        self,
        storage: Storage,
        record: StudyRecord,
        problem: Problem,
        evaluator: Measuring,
        listener: Listener,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.storage, self.record, self.problem = storage, record, problem
        self.evaluator, self.listener, self.stop = evaluator, listener, stop
        self.space = problem.space
        self.trials: dict[int, Trial] = {}
        self.front: tuple[int, ...] = ()
        self.hypervolume = 0.0
        self._front_points = np.zeros((0, len(problem.objectives)))
        self._keys: set[str] = set()
        self._known: dict[tuple[str, Rounding], _Known] = {}
        self._proposer = Proposer(problem, record)
        self._waiting: list[Trial] = []
        self._served = 0
        self._curves = Curves()
        self._newest: Trial | None = None  # whose network may serve further targets
        self._failed_in_a_row = 0  # of this run: whoever resumes has mended the cause
        self._replay()

    # --- state --------------------------------------------------------------------------------

    def _replay(self) -> None:
        """Rebuild everything from the stored trials; what was running when we died waits again."""
        self.storage.requeue(self.record.name)
        for trial in self.storage.trials(self.record.name):
            if trial.state.finished:
                self._proposer.replay(trial)
                self._learn(trial)
            else:
                self._waiting.append(trial)
        changes = self.storage.fronts(self.record.name)
        if changes:
            self.front, self.hypervolume = changes[-1].members, changes[-1].hypervolume
            points = [self._point(self.trials[number]) for number in self.front]
            self._front_points = np.array(points, dtype=np.float64)

    def _learn(self, trial: Trial) -> None:
        self.trials[trial.number] = trial
        self._served += trial.served
        self._curves.learn(trial)
        if NEVER_MEASURED not in trial.violations:
            self._keys.add(trial.candidate_key)
        accuracy = trial.metrics.get("accuracy")
        if accuracy is None or accuracy.value is None:
            return
        if trial.feasible and not trial.served:
            self._newest = trial
        rounding = self._rounding(Candidate.from_json(trial.candidate))
        known = _Known(
            accuracy,
            trial.validation_samples,
            trial.number,
            trial.test_accuracy,
            trial.test_samples,
        )
        self._known.setdefault((trial.network_key, rounding), known)

    def _rounding(self, candidate: Candidate) -> Rounding:
        return self.problem.targets[candidate.target].backend.rounding

    @property
    def finished(self) -> int:
        """Trials that are done, whatever came of them."""
        return len(self.trials)

    @property
    def proposed(self) -> int:
        """Those of them that were asked for: not the networks served to further targets."""
        return self.finished - self._served

    # --- the loop -----------------------------------------------------------------------------

    def run(self, n_trials: int, timeout_s: float | None = None) -> Ending:
        """Explore until `n_trials` that were proposed are finished; says why it ended.

        A trained network is then stored on every other target where it enters the front, for free.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            if self.stop():
                return "interrupted"
            if deadline is not None and time.monotonic() > deadline:
                return "timeout"
            if self._failed_in_a_row >= MAX_FAILURES_IN_A_ROW:
                return "failing"
            proposal = self._waiting_or_served()
            if proposal is None:
                if self.proposed >= n_trials:
                    return "finished"
                proposal = self._next()
            if proposal is None:
                return "exhausted"
            try:
                trial, graph = self._try(proposal)
            except Interrupted:
                self.storage.requeue(self.record.name)
                return "interrupted"
            self._store(proposal, trial, graph)
            failed = trial.state is State.FAILED
            self._failed_in_a_row = self._failed_in_a_row + 1 if failed else 0

    def _waiting_or_served(self) -> Proposal | None:
        """What a crash left over, else the newest network on a target where it enters the front."""
        if self._waiting:
            return self._again(self._waiting.pop(0))
        newest = self._newest
        if newest is None or not newest.params:
            return None
        found = self._entering(newest)
        if found is None:
            self._newest = None
            return None
        params, candidate = found
        attrs = {NETWORK_OF: newest.number}
        return Proposal(self.finished, candidate, params, attrs, None)

    def _entering(self, trial: Trial) -> tuple[Mapping[str, Any], Candidate] | None:
        """The first further target on which the trial's network is a new member of the front.

        Where rounding differs its accuracy is taken from here, and measured when it is stored.
        """
        own = Candidate.from_json(trial.candidate)
        settings, candidates, points = [], [], []
        for params in draws.others(self.space, trial.params, own.target).values():
            candidate = self.space.candidate(params)
            screening = self.problem.screen(candidate)
            if candidate.key in self._keys or screening.reasons:
                continue
            metrics = {"accuracy": trial.metrics["accuracy"], **screening.metrics}
            points.append([metrics[name].value for name in self.problem.objectives])
            settings.append(params)
            candidates.append(candidate)
        if not points:
            return None
        rows = np.array(points, dtype=np.float64)
        kept = self.record.box.front(np.vstack([self._front_points, rows]))[-len(rows) :]
        place = int(np.argmax(kept))
        return (settings[place], candidates[place]) if kept[place] else None

    def _next(self) -> Proposal | None:
        """The baselines first, then what the sampler wants; None when the space is used up."""
        if self.proposed < 2:
            return self._baseline(self.proposed)
        return self._proposer.propose(self.finished, self.proposed - 2, self._keys)

    def _again(self, trial: Trial) -> Proposal:
        candidate = Candidate.from_json(trial.candidate)
        return Proposal(trial.number, candidate, trial.params, trial.attrs, None, trial.baseline)

    def _baseline(self, place: int) -> Proposal:
        if place == 0:
            label, candidate = "float32", float_baseline(self.problem.float_target)
        else:
            label = "int8"
            candidate = self.space.int8_baseline(self.problem.reference_target)
        params = self.space.params(candidate) or {}
        return Proposal(self.finished, candidate, params, {}, None, label)

    # --- one trial ----------------------------------------------------------------------------

    def _try(self, proposal: Proposal) -> tuple[Trial, Graph | None]:
        """Screen, then train and measure; a failure becomes the trial's reason."""
        started = time.time()
        screening = self.problem.screen(proposal.candidate)
        trial = self._screened(proposal, screening, started)
        if screening.reasons and not proposal.baseline:
            reason = "; ".join(screening.reasons)
            return replace(trial, state=State.INFEASIBLE, reason=reason), None
        try:
            return self._measured(proposal, screening, trial)
        except Interrupted:
            raise
        except StoppedEarlyError as stopped:
            return stopping.stopped_trial(trial, stopped, time.time() - started), None
        except (DseError, RuntimeError, ValueError, ArithmeticError, MemoryError) as error:
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else '-'}"
            return replace(trial, state=State.FAILED, reason=reason), None

    def _screened(self, proposal: Proposal, screening: Screening, started: float) -> Trial:
        shapes = self.space.shapes(proposal.candidate)
        return Trial(
            number=proposal.number,
            state=State.RUNNING,
            params=proposal.params,
            candidate=proposal.candidate.to_json(),
            candidate_key=proposal.candidate.key,
            network_key=proposal.candidate.network_key,
            metrics={name: screening.metrics[name] for name in COST_METRICS},
            parameters=shapes.parameters,
            macs=shapes.macs,
            violations=screening.violations,
            baseline=proposal.baseline,
            started=started,
            attrs=proposal.attrs,
        )

    def _measured(
        self, proposal: Proposal, screening: Screening, trial: Trial
    ) -> tuple[Trial, Graph | None]:
        rounding = self._rounding(proposal.candidate)
        known = self._known.get((proposal.candidate.network_key, rounding))
        graph: Graph | None = None
        stage_s: Mapping[str, float] = {}
        trained = False
        if known is None:
            self.storage.begin(self.record.name, trial)
            self.listener.begun(trial)
            curve: list[float] = []
            found = self.evaluator.evaluate(
                proposal.candidate, rounding, self._watch(proposal, curve)
            )
            if curve:
                trial = replace(trial, attrs={**trial.attrs, stopping.CURVE: curve})
            known = _Known(found.accuracy, found.samples, proposal.number, None, 0)
            graph, stage_s, trained = found.graph, found.stage_s, found.trained
        trial = self._judged(proposal, screening, trial, known)
        trial = replace(trial, trained=trained, stage_s=stage_s)
        if proposal.baseline or self._enters(trial):
            return self._tested(trial, known, graph, rounding), graph
        return trial, graph

    def _watch(self, proposal: Proposal, curve: list[float]) -> Watch | None:
        """Where the study wants it: what ends a training that cannot enter the front any more."""
        if not self.problem.study.early_stop or proposal.baseline:
            return None
        members = [self.trials[number] for number in self.front]
        baseline = self.trials[0].value("accuracy") if 0 in self.trials else None
        needed = stopping.needed_accuracy(self.problem, proposal.candidate, members, baseline)
        return stopping.watch(self._curves, needed, curve)

    def _judged(
        self, proposal: Proposal, screening: Screening, trial: Trial, known: _Known
    ) -> Trial:
        baseline = self.trials[0].value("accuracy") if 0 in self.trials else known.accuracy.value
        violations, reasons = self.problem.judge(
            known.accuracy, baseline, proposal.candidate.target
        )
        missed = (*screening.reasons, *reasons)
        return replace(
            trial,
            state=State.INFEASIBLE if missed else State.COMPLETE,
            reason="; ".join(missed),
            metrics={"accuracy": known.accuracy, **trial.metrics},
            violations={**screening.violations, **violations},
            validation_samples=known.samples,
        )

    def _tested(
        self, trial: Trial, known: _Known, graph: Graph | None, rounding: Rounding
    ) -> Trial:
        """Accuracy on test data for whoever enters the front; the search never reads it."""
        metric, samples = known.test, known.test_samples
        if metric is None:
            if graph is None:
                blob = self.storage.artifact(self.record.name, known.number, GRAPH)
                if blob is None:
                    return trial
                graph = archive.from_bytes(blob)
            metric, samples = self.evaluator.test_accuracy(graph, rounding)
        return replace(trial, test_accuracy=metric, test_samples=samples)

    # --- the front ----------------------------------------------------------------------------

    def _point(self, trial: Trial) -> list[float | None]:
        return [trial.value(name) for name in self.problem.objectives]

    def _with_front(self, trial: Trial) -> np.ndarray[Any, Any]:
        """Objectives of the front's members, then those of `trial`."""
        row = np.array([self._point(trial)], dtype=np.float64)
        return np.vstack([self._front_points, row])

    def _enters(self, trial: Trial) -> bool:
        return trial.eligible and bool(self.record.box.front(self._with_front(trial))[-1])

    def _store(self, proposal: Proposal, trial: Trial, graph: Graph | None) -> None:
        trial = replace(trial, finished=time.time())
        front, hypervolume = None, None
        points = self._front_points
        if self._enters(trial):
            points = self._with_front(trial)
            kept = self.record.box.front(points)
            numbers = (*self.front, trial.number)
            front = tuple(n for n, keep in zip(numbers, kept, strict=True) if keep)
            hypervolume, points = self.record.box.hypervolume(points), points[kept]
        artifacts = {} if graph is None else {GRAPH: archive.to_bytes(graph)}
        self.storage.finish(self.record.name, trial, front, hypervolume, artifacts)
        if front is not None and hypervolume is not None:
            self.front, self.hypervolume, self._front_points = front, hypervolume, points
        self._proposer.tell(proposal, trial)
        self._learn(trial)
        self.listener.ended(trial, self.front, self.hypervolume)
