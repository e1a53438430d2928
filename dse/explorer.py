"""The loop: ask -> screen by cost -> train and measure -> tell -> store, one transaction a trial.

Trials run wherever the executor does them, several at a time. Everything is decided and stored in
this worker's turn at the study, so others may work on it from other processes and machines. What
is stored is enough to go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeVar

from dse.artifacts import GRAPH
from dse.errors import StorageError
from dse.evaluation import Executor, Failed, HandedBack, Lost, Outcome, Task, Training
from dse.graph import archive
from dse.graph.ir import Graph
from dse.heartbeat import Heartbeat
from dse.knowledge import Knowledge, Pause, Steps
from dse.leases import LEASE_S, MAX_ATTEMPTS
from dse.problem import Problem
from dse.proposer import Proposal
from dse.rows import FrontChange, StudyRecord
from dse.storage import Storage, Turn
from dse.trial import NETWORK_OF, State, Trial

MAX_FAILURES_IN_A_ROW = 10
# Between two looks at what tasks, the user and other workers did.
POLL_S = 0.25
IDLE_S = 0.5
# How long an executor that was interrupted may take to hand back what it does.
GRACE_S = 10.0

T = TypeVar("T")

Ending = Literal["finished", "timeout", "interrupted", "exhausted", "failing"]


class Listener(Protocol):
    """Whoever shows progress."""

    def begun(self, trial: Trial) -> None:
        """A trial starts to train."""

    def ended(self, trial: Trial, front: Sequence[int], hypervolume: float) -> None:
        """A trial was stored."""

    def heard(self, trial: Trial, front: Sequence[int], hypervolume: float) -> None:
        """Another worker has stored a trial."""


@dataclass
class _Flight:
    """A trial that is begun, and the task that it waits for."""

    proposal: Proposal
    steps: Steps
    task: Task
    losses: int = 0


class Explorer:
    """A worker of a study: explores until it has as many finished trials as asked for.

    `stop` is asked between trials; tasks ask for themselves. Nothing but `storage` is needed to go
    on later, with the same record and problem. `slot` says what this worker has, for people.
    """

    def __init__(
        self,
        storage: Storage,
        record: StudyRecord,
        problem: Problem,
        executor: Executor,
        listener: Listener,
        stop: Callable[[], bool] = lambda: False,
        *,
        slot: Mapping[str, str] | None = None,
        lease_s: float = LEASE_S,
    ) -> None:
        self.storage, self.record, self.problem = storage, record, problem
        self.executor, self.listener, self.stop = executor, listener, stop
        self.slot, self.lease_s = slot or {}, lease_s
        self.knowledge = self._knowing(0)
        self._worker_id = 0
        self._flights: dict[int, _Flight] = {}
        self._n_trials = record.n_trials
        self._interrupted = False
        self._looked = 0.0
        self._failed_in_a_row = 0  # of this run: whoever resumes has mended the cause

    def _knowing(self, ordinal: int) -> Knowledge:
        crowded = self.executor.slots > 1
        return Knowledge(self.problem, self.record, self._stored_graph, ordinal, crowded)

    def _stored_graph(self, number: int) -> Graph | None:
        blob = self.storage.artifact(self.record.name, number, GRAPH)
        return None if blob is None else archive.from_bytes(blob)

    @property
    def front(self) -> tuple[int, ...]:
        """Numbers of the trials on the front."""
        return self.knowledge.front

    @property
    def hypervolume(self) -> float:
        """The share of the study's box that the front dominates."""
        return self.knowledge.hypervolume

    @property
    def finished(self) -> int:
        """Trials that are done, whatever came of them."""
        return len(self.knowledge.trials)

    # --- the loop -----------------------------------------------------------------------------

    def run(self, n_trials: int | None, timeout_s: float | None = None) -> Ending:
        """Explore until `n_trials` that were proposed are finished; says why it ended.

        Without a number it is the study's own, which may be raised meanwhile. A trained network is
        then stored on every other target where it enters the front, for free.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._at_work() as heartbeat:
            while True:
                heartbeat.check()
                self._n_trials = n_trials or self.record.n_trials
                ending = self._must_end(deadline)
                if ending is not None:
                    self._land()
                    return ending
                pause = self._step()
                if pause is None:
                    continue
                if pause == "blocked":
                    time.sleep(IDLE_S)
                    self._look_around()
                elif pause == "exhausted" or n_trials is not None or not self._more_asked():
                    return pause

    @contextmanager
    def _at_work(self) -> Iterator[Heartbeat]:
        """A worker of the study, seen by others, while the block lasts; what it holds then waits.

        Where the database fails, everything stays as after a crash, for others to find.
        """
        name = self.record.name
        worker = self.storage.join(name, self.slot)
        self._worker_id, self._flights, self._interrupted = worker.worker_id, {}, False
        self.knowledge = self._knowing(worker.ordinal)
        try:
            with Heartbeat(self.storage, name, worker.worker_id, self.lease_s) as heartbeat:
                self.storage.turn(name, self.knowledge.catch_up)
                yield heartbeat
        except StorageError:
            raise
        except BaseException:
            self.storage.leave(name, worker.worker_id)
            raise
        self.storage.leave(name, worker.worker_id)

    def _must_end(self, deadline: float | None) -> Ending | None:
        if self._interrupted or self.stop():
            return "interrupted"
        if deadline is not None and time.monotonic() > deadline:
            return "timeout"
        return "failing" if self._failed_in_a_row >= MAX_FAILURES_IN_A_ROW else None

    def _step(self) -> Pause | None:
        """Begin a trial where a slot is free, and take what has come back; None when it could."""
        pause: Pause | None = "blocked"
        if len(self._flights) < self.executor.slots:
            found = self.knowledge.next(self._n_trials)
            if isinstance(found, Proposal):
                self._try(found)
                pause = None
            else:
                pause = found
                self._look_around()
        if not self._flights:
            return pause
        for number, outcome in self.executor.wait(POLL_S if pause else 0.0):
            self._advance(number, outcome)
        return None

    def _look_around(self) -> None:
        """Learn what other workers did, now and then."""
        if time.monotonic() - self._looked < IDLE_S:
            return
        self._looked = time.monotonic()
        if self.storage.revision(self.record.name) != self.knowledge.revision:
            self._turn(lambda turn: None)

    def _more_asked(self) -> bool:
        before, self.record = self.record.n_trials, self.storage.study(self.record.name)
        return self.record.n_trials > before

    def _land(self) -> None:
        """What is under way is handed back; results that come within moments count."""
        self.executor.interrupt()
        deadline = time.monotonic() + GRACE_S
        while self._flights and time.monotonic() < deadline:
            for number, outcome in self.executor.wait(POLL_S):
                self._advance(number, outcome)

    def _turn(self, act: Callable[[Turn], T]) -> T:
        """Act in this worker's turn, knowing all that others stored before it."""
        heard: dict[int, Trial] = {}
        revision = self.knowledge.revision

        def informed(turn: Turn) -> T:
            nonlocal revision
            heard.update({trial.number: trial for trial in self.knowledge.catch_up(turn)})
            found = act(turn)
            revision = turn.revision
            return found

        found = self.storage.turn(self.record.name, informed, self._worker_id)
        self.knowledge.revision = revision
        for trial in heard.values():
            self.listener.heard(trial, self.front, self.hypervolume)
        return found

    # --- one trial ----------------------------------------------------------------------------

    def _try(self, proposal: Proposal) -> None:
        """Store the proposal's trial, or begin it where it needs time."""
        trial, screening = self.knowledge.screened(proposal)
        steps = self.knowledge.steps(proposal, trial, screening)
        try:
            task = next(steps)
        except StopIteration as end:
            self._finish(proposal, *end.value, begun=False)
            return
        begun = self._turn(lambda turn: self._claim(turn, proposal, trial, task))
        if begun is None:
            self._miss(proposal)
            return
        self.knowledge.began(proposal, begun)
        if isinstance(task, Training):
            self.listener.begun(begun)
        proposal = replace(proposal, number=begun.number)
        self._flights[begun.number] = _Flight(proposal, steps, task)
        self.executor.submit(begun.number, task)

    def _claim(self, turn: Turn, proposal: Proposal, trial: Trial, task: Task) -> Trial | None:
        """The trial as it was begun; None when another worker was faster."""
        open_ = self.knowledge.open
        for old in open_.values():  # begun by a turn whose end we were not told, as the link broke
            same = old.candidate_key == trial.candidate_key and old.state is State.RUNNING
            if same and old.number not in self._flights and self._holds(turn, old.number):
                return old
        if proposal.number in open_ and proposal.asked is None:
            if open_[proposal.number].state is not State.WAITING:
                return None
        elif self._late(proposal):
            return None
        else:
            trial = replace(trial, number=self.knowledge.next_number)
        turn.begin(trial, task.key)
        return trial

    def _holds(self, turn: Turn, number: int) -> bool:
        return turn.holder(number) == self._worker_id

    def _late(self, proposal: Proposal) -> bool:
        """Whether others meanwhile took the candidate, its network, or the last trial asked for."""
        full = self.knowledge.asked >= self._n_trials and NETWORK_OF not in proposal.attrs
        known = self.knowledge
        return full or known.taken(proposal.candidate) or known.training_elsewhere(proposal)

    def _miss(self, proposal: Proposal) -> None:
        known = self.knowledge
        if known.training_elsewhere(proposal) and not known.taken(proposal.candidate):
            known.park(proposal)
        else:
            known.drop(proposal)

    def _advance(self, number: int, outcome: Outcome) -> None:
        """Go on with a trial whose task has come to an end."""
        flight = self._flights[number]
        if isinstance(outcome, HandedBack):
            del self._flights[number]
            self._interrupted = True
            return
        if isinstance(outcome, Lost):
            flight.losses += 1
            if flight.losses < MAX_ATTEMPTS:
                self.executor.submit(number, flight.task)
                return
            outcome = Failed(f"tried {MAX_ATTEMPTS} times: {outcome.reason}")
        try:
            flight.task = flight.steps.send(outcome)
        except StopIteration as end:
            del self._flights[number]
            self._finish(flight.proposal, *end.value, begun=True)
        else:
            self.executor.submit(number, flight.task)

    def _finish(
        self, proposal: Proposal, trial: Trial, graph: Graph | None, *, begun: bool
    ) -> None:
        """Store a trial with the front that it changes; dropped when another worker was faster."""
        artifacts = {} if graph is None else {GRAPH: archive.to_bytes(graph)}
        self.storage.keep(artifacts.values())

        def store(turn: Turn) -> tuple[Trial, FrontChange | None] | None:
            if begun:
                number = proposal.number
                if not self._mine(turn, number):
                    return None
            elif self._late(proposal):
                return None
            else:
                number = self.knowledge.next_number
            done = replace(trial, number=number, finished=time.time())
            change = self.knowledge.front_with(done)
            members, volume = (
                (None, None) if change is None else (change.members, change.hypervolume)
            )
            turn.finish(done, members, volume, artifacts)
            return done, change

        stored = self._turn(store)
        if stored is None:
            self._miss(proposal)
            return
        done, change = stored
        self.knowledge.told(proposal, done)
        if change is not None:
            self.knowledge.set_front(change)
        failed = done.state is State.FAILED
        self._failed_in_a_row = self._failed_in_a_row + 1 if failed else 0
        self.listener.ended(done, self.front, self.hypervolume)

    def _mine(self, turn: Turn, number: int) -> bool:
        """Whether a trial that we began is still ours to finish, though we may have been silent."""
        trial = self.knowledge.open.get(number)
        if trial is None:
            return False
        return trial.state is State.WAITING or self._holds(turn, number)
