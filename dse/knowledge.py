"""What is known of a study, and what follows from it: the next proposal, limits, the front.

It learns from stored trials alone, in their order: a resumed study knows what an uninterrupted one
would know, and several workers know the same once each has read the others' trials.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from dse import draws, stopping
from dse.candidate import Candidate, float_baseline
from dse.evaluation import Failed, Outcome, Stopped, Task, Tested, Testing, Trained, Training
from dse.graph.ir import Graph
from dse.graph.numerics import Rounding
from dse.problem import Problem, Screening
from dse.proposer import Proposal, Proposer
from dse.rows import FrontChange, StudyRecord
from dse.stopping import Curves, StoppedEarlyError
from dse.trial import COST_METRICS, NETWORK_OF, NEVER_MEASURED, Metric, State, Trial
from dse.turn import Turn

# Why there is nothing to do now: as many as asked for, the space used up, or others must end first.
Pause: TypeAlias = Literal["finished", "exhausted", "blocked"]
Steps: TypeAlias = Generator[Task, Outcome, tuple[Trial, Graph | None]]
# A worker that holds so many proposals whose networks others train makes no more of them.
MAX_PARKED = 4


@dataclass(frozen=True)
class _Network:
    """What a trained network was found to reach."""

    accuracy: Metric
    samples: int
    number: int
    test: Metric | None
    test_samples: int


class Knowledge:
    """The trials of a study, finished and open, and what follows from them.

    `ordinal` keeps workers of one study from making the same proposals; `crowded` says that there
    are several. `stored_graph` finds the network that a trial trained.
    """

    def __init__(
        self,
        problem: Problem,
        record: StudyRecord,
        stored_graph: Callable[[int], Graph | None],
        ordinal: int = 0,
        crowded: bool = False,
    ) -> None:
        if problem.space.budgeted:  # widths that are found are this study's own, as its seed is
            problem = replace(problem, space=problem.space.apart())
        self.problem, self.record, self.space = problem, record, problem.space
        self.crowded, self._stored_graph = crowded, stored_graph
        self.trials: dict[int, Trial] = {}
        self.open: dict[int, Trial] = {}
        self.front: tuple[int, ...] = ()
        self.hypervolume = 0.0
        self.revision = -1
        self._front_points = np.zeros((0, len(problem.objectives)))
        self._keys: set[str] = set()
        self._networks: dict[tuple[str, Rounding], _Network] = {}
        self._proposer = Proposer(problem, record, ordinal)
        self._parked: list[Proposal] = []
        self._served = 0
        self._curves = Curves()
        self._serving: list[int] = []  # whose networks may serve further targets
        self._swept = False

    # --- learning -----------------------------------------------------------------------------

    def catch_up(self, turn: Turn) -> list[Trial]:
        """Learn what was stored since the last time; the trials that were finished."""
        if turn.revision == self.revision:
            return []
        first = self.revision < 0
        changed = turn.changes(self.revision)
        if first:
            changed.sort(key=lambda trial: trial.number)
        finished = [trial for trial in changed if trial.state.finished]
        for trial in changed:
            if trial.state.finished:
                self._replay(trial)
            else:
                self.open[trial.number] = trial
                self._proposer.believe(trial)
        self.revision = turn.revision
        self.crowded |= bool(finished) and not first
        if first:  # what an uninterrupted run would still have to serve
            self._serving = [t.number for t in finished if t.feasible and not t.served][-1:]
        front = turn.front()
        if front is not None:
            self.set_front(front)
        return finished

    def began(self, proposal: Proposal, trial: Trial) -> None:
        """A trial of our own runs."""
        self.open[trial.number] = trial
        if self.crowded and proposal.asked is None:
            self._proposer.believe(trial)

    def _replay(self, trial: Trial) -> None:
        if trial.number in self.trials:  # judged anew: samplers keep what they were told
            self.trials[trial.number] = trial
            return
        self._proposer.tell(trial)
        self.learn(trial)

    def told(self, proposal: Proposal, trial: Trial) -> None:
        """Learn what came of a proposal of our own."""
        self._proposer.tell(trial, proposal.asked)
        if trial.feasible and not trial.served:
            self._serving.append(trial.number)
        self.learn(trial)

    def learn(self, trial: Trial) -> None:
        """Take over a finished trial, but for the sampler."""
        self.open.pop(trial.number, None)
        self.trials[trial.number] = trial
        self._served += trial.served
        self._curves.learn(trial)
        if NEVER_MEASURED not in trial.violations:
            self._keys.add(trial.candidate_key)
        accuracy = trial.metrics.get("accuracy")
        if accuracy is None or accuracy.value is None:
            return
        candidate = Candidate.from_json(trial.candidate)
        if self.space.learn(candidate):
            self._proposer.learned_widths()
        rounding = self.rounding(candidate)
        known = _Network(
            accuracy,
            trial.validation_samples,
            trial.number,
            trial.test_accuracy,
            trial.test_samples,
        )
        self._networks.setdefault((trial.network_key, rounding), known)

    def set_front(self, change: FrontChange) -> None:
        """The front as the database has it."""
        self.front, self.hypervolume = change.members, change.hypervolume
        points = [self._point(self.trials[number]) for number in self.front]
        self._front_points = np.array(points, dtype=np.float64).reshape(
            len(points), len(self.problem.objectives)
        )

    def rounding(self, candidate: Candidate) -> Rounding:
        """The contract of the backend that the candidate is for."""
        return self.problem.targets[candidate.target].backend.rounding

    # --- counting -----------------------------------------------------------------------------

    @property
    def next_number(self) -> int:
        """The number of the next trial that is new."""
        return len(self.trials) + len(self.open)

    @property
    def asked(self) -> int:
        """Trials that were asked for, finished or not: those that are not served."""
        return self.next_number - self._served - sum(t.served for t in self.open.values())

    def taken(self, candidate: Candidate, own: int | None = None) -> bool:
        """Whether this very candidate is known, or is trial `own`'s rival."""
        return candidate.key in self._keys or candidate.key in self._open_keys(own)

    def _open_keys(self, own: int | None = None) -> set[str]:
        return {t.candidate_key for t in self.open.values() if t.number != own}

    def training_elsewhere(self, proposal: Proposal) -> bool:
        """Whether another open trial trains the network of this proposal."""
        key, rounding = proposal.candidate.network_key, self.rounding(proposal.candidate)
        if (key, rounding) in self._networks:
            return False
        rivals = (
            t for t in self.open.values() if t.network_key == key and t.number != proposal.number
        )
        return any(
            t.state is State.RUNNING and self.rounding(Candidate.from_json(t.candidate)) == rounding
            for t in rivals
        )

    # --- what comes next ----------------------------------------------------------------------

    def next(self, n_trials: int) -> Proposal | Pause:
        """What to try now, or why there is nothing.

        What waits comes first, then what others have trained meanwhile, then networks on further
        targets, the baselines, and what the sampler wants.
        """
        found = self._waiting() or self._unparked() or self._serve()
        if found is not None:
            return found
        if self.asked >= n_trials:
            return self._ended("finished")
        if self.open and 0 not in self.trials:
            return "blocked"  # limits may be relative to the float32 network
        if self.asked < 2:
            return self._baseline(self.asked)
        if len(self._parked) >= MAX_PARKED:
            return "blocked"
        known = _Union(self._keys, self._open_keys() | {p.candidate.key for p in self._parked})
        proposal = self._proposer.propose(self.next_number, self.asked - 2, known)
        return self._ended("exhausted") if proposal is None else proposal

    def _ended(self, why: Pause) -> Pause:
        """The end is near: others may still be at work, or leave theirs to us."""
        if self.open or (self._parked and why == "exhausted"):
            return "blocked"
        if self._swept or not self.crowded:
            return why
        # A worker that was lost may have left networks unserved.
        self._swept = True
        self._serving = [t.number for t in self.trials.values() if t.feasible and not t.served]
        return "blocked"

    def _waiting(self) -> Proposal | None:
        waiting = [n for n, trial in self.open.items() if trial.state is State.WAITING]
        if not waiting:
            return None
        trial = self.open[min(waiting)]
        candidate = Candidate.from_json(trial.candidate)
        return Proposal(trial.number, candidate, trial.params, trial.attrs, None, trial.baseline)

    def park(self, proposal: Proposal) -> None:
        """Keep a proposal until the network that another one trains is known."""
        self._parked.append(proposal)

    def drop(self, proposal: Proposal) -> None:
        """Somebody else has this candidate already."""
        self._proposer.drop(proposal)

    def _unparked(self) -> Proposal | None:
        for proposal in self._parked:
            if not self.training_elsewhere(proposal):
                self._parked.remove(proposal)
                return replace(proposal, number=self.next_number)
        return None

    def _baseline(self, place: int) -> Proposal:
        if place == 0:
            label, candidate = "float32", float_baseline(self.problem.float_target)
        else:
            label = "int8"
            candidate = self.space.int8_baseline(self.problem.reference_target)
        params = self.space.params(candidate) or {}
        return Proposal(self.next_number, candidate, params, {}, None, label)

    # --- one training, every target -----------------------------------------------------------

    def _serve(self) -> Proposal | None:
        """A known network on a target where it enters the front."""
        while self._serving:
            trial = self.trials[self._serving[-1]]
            found = self._entering(trial) if trial.params else None
            if found is not None:
                params, candidate = found
                attrs = {NETWORK_OF: trial.number}
                return Proposal(self.next_number, candidate, params, attrs, None)
            self._serving.pop()
        return None

    def _entering(self, trial: Trial) -> tuple[Mapping[str, Any], Candidate] | None:
        """The first further target on which the trial's network is a new member of the front.

        Where rounding differs its accuracy is taken from here, and measured when it is stored.
        """
        own = Candidate.from_json(trial.candidate)
        known = _Union(self._keys, self._open_keys())
        settings, candidates, points = [], [], []
        for params in draws.others(self.space, trial.params, own.target).values():
            candidate = self.space.candidate(params)
            screening = self.problem.screen(candidate)
            if candidate.key in known or screening.reasons:
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

    # --- one trial ----------------------------------------------------------------------------

    def steps(self, proposal: Proposal, trial: Trial, screening: Screening) -> Steps:
        """Asks for a training and a test of a screened trial where they are needed; ends with it.

        An outcome is sent in for every task that comes out. A failure becomes the trial's reason.
        """
        if screening.reasons and not proposal.baseline:
            reason = "; ".join(screening.reasons)
            return replace(trial, state=State.INFEASIBLE, reason=reason), None
        candidate = self.space.known(proposal.candidate)
        rounding = self.rounding(candidate)
        network = self._networks.get((candidate.network_key, rounding))
        graph: Graph | None = None
        if network is None:
            outcome = yield self._training(proposal, rounding)
            if isinstance(outcome, Stopped):
                early = StoppedEarlyError(outcome.gap, outcome.reason, outcome.curve, outcome.saved)
                return stopping.stopped_trial(trial, early, outcome.seconds), None
            if not isinstance(outcome, Trained):
                return _failed(trial, outcome), None
            found = outcome.found
            if outcome.curve:
                trial = replace(trial, attrs={**trial.attrs, stopping.CURVE: list(outcome.curve)})
            trial = replace(trial, trained=found.trained, stage_s=found.stage_s)
            network = _Network(found.accuracy, found.samples, proposal.number, None, 0)
            graph = found.graph
            if candidate.open:
                candidate = self.space.trained(candidate, graph)
                screening = self.problem.screen(candidate)
                trial = replace(trial, **self._costs(candidate, screening))
        trial = self._judged(proposal, screening, trial, network)
        if not proposal.baseline and not self.enters(trial):
            return trial, graph
        metric, samples = network.test, network.test_samples
        tested = graph or (self._stored_graph(network.number) if metric is None else None)
        if metric is None and tested is not None:
            outcome = yield Testing(candidate, tested, rounding)
            if isinstance(outcome, Tested):
                metric, samples = outcome.accuracy, outcome.samples
            elif isinstance(outcome, Failed):
                return _failed(trial, outcome), None
        return replace(trial, test_accuracy=metric, test_samples=samples), graph

    def _training(self, proposal: Proposal, rounding: Rounding) -> Training:
        """With what ends it, where the study wants it, once it cannot enter the front any more."""
        if not self.problem.study.early_stop or proposal.baseline:
            return Training(proposal.candidate, rounding)
        members = [self.trials[number] for number in self.front]
        baseline = self.trials[0].value("accuracy") if 0 in self.trials else None
        needed = stopping.needed_accuracy(self.problem, proposal.candidate, members, baseline)
        return Training(proposal.candidate, rounding, self._curves, needed)

    def screened(self, proposal: Proposal) -> tuple[Trial, Screening]:
        """The proposal's trial as it runs, with its costs, and what they decide."""
        started = time.time()
        candidate = self.space.known(proposal.candidate)
        screening = self.problem.screen(candidate)
        trial = Trial(
            number=proposal.number,
            state=State.RUNNING,
            params=proposal.params,
            candidate_key=candidate.key,
            network_key=candidate.network_key,
            baseline=proposal.baseline,
            started=started,
            attrs=proposal.attrs,
            **self._costs(candidate, screening),
        )
        return trial, screening

    def _costs(self, candidate: Candidate, screening: Screening) -> dict[str, Any]:
        """What a trial says of its candidate; sizes are 0 while a training is to find widths."""
        shapes = None if candidate.open else self.space.shapes(candidate)
        return {
            "candidate": candidate.to_json(),
            "metrics": {name: screening.metrics[name] for name in COST_METRICS},
            "parameters": shapes.parameters if shapes else 0,
            "macs": shapes.macs if shapes else 0,
            "violations": screening.violations,
        }

    def _judged(
        self, proposal: Proposal, screening: Screening, trial: Trial, network: _Network
    ) -> Trial:
        own = network.accuracy.value
        baseline = self.trials[0].value("accuracy") if 0 in self.trials else own
        violations, reasons = self.problem.judge(
            network.accuracy, baseline, proposal.candidate.target
        )
        missed = (*screening.reasons, *reasons)
        return replace(
            trial,
            state=State.INFEASIBLE if missed else State.COMPLETE,
            reason="; ".join(missed),
            metrics={"accuracy": network.accuracy, **trial.metrics},
            violations={**screening.violations, **violations},
            validation_samples=network.samples,
        )

    # --- the front ----------------------------------------------------------------------------

    def _point(self, trial: Trial) -> list[float | None]:
        return [trial.value(name) for name in self.problem.objectives]

    def _with_front(self, trial: Trial) -> np.ndarray[Any, Any]:
        """Objectives of the front's members, then those of `trial`."""
        row = np.array([self._point(trial)], dtype=np.float64)
        return np.vstack([self._front_points, row])

    def enters(self, trial: Trial) -> bool:
        """Whether the trial is a new member of the front."""
        return trial.eligible and bool(self.record.box.front(self._with_front(trial))[-1])

    def front_with(self, trial: Trial) -> FrontChange | None:
        """The front once this trial is stored, None where it does not change it."""
        if not self.enters(trial):
            return None
        points = self._with_front(trial)
        kept = self.record.box.front(points)
        numbers = (*self.front, trial.number)
        members = tuple(n for n, keep in zip(numbers, kept, strict=True) if keep)
        return FrontChange(trial.number, self.record.box.hypervolume(points), members)


class _Union:
    """Keys of either set, without making a third one of thousands."""

    def __init__(self, first: set[str], second: set[str]) -> None:
        self._first, self._second = first, second

    def __contains__(self, key: object) -> bool:
        return key in self._first or key in self._second


def _failed(trial: Trial, outcome: Outcome) -> Trial:
    reason = getattr(outcome, "reason", "ended without a result")
    return replace(trial, state=State.FAILED, reason=reason)
