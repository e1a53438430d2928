"""One writer's turn at a study: a transaction in which nobody else changes its trials.

What a worker decides in its turn (the next number, who trains what, the front) holds, because it
first reads what changed since its last turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dse import leases, optuna_tables, rows, schema
from dse.artifacts import list_artifacts, put_artifact, unlink
from dse.errors import StorageError
from dse.leases import Worker
from dse.optuna_tables import StudyKeys, insert_one
from dse.rows import FrontChange, StudyRecord
from dse.trial import State, Trial


class Turn:
    """The study is locked for others when this is made, and until the transaction ends.

    `worker_id` is who has the turn, None for whoever is no worker. `revision` counts the study's
    changes so far; all that is written in one turn is one more.
    """

    def __init__(
        self,
        connection: Connection,
        study: StudyKeys,
        worker_id: int | None = None,
        store: str | None = None,
    ) -> None:
        self._connection, self._study, self.worker_id = connection, study, worker_id
        self._store = store  # where artifacts go, None for the database
        studies = schema.studies
        chosen = sa.select(studies.c.revision).where(studies.c.study_id == study.study_id)
        if connection.dialect.name != "sqlite":  # which has one writer anyway
            chosen = chosen.with_for_update()
        self.revision = int(connection.execute(chosen).scalar_one())
        self._written = False

    # --- what is there ------------------------------------------------------------------------

    def changes(self, since: int) -> list[Trial]:
        """Trials written after revision `since`, as they are now, oldest change first."""
        columns = schema.evaluations.c
        return self._trials(columns.revision > since, columns.revision)

    def front(self) -> FrontChange | None:
        """The front as it is now, None while it is empty."""
        fronts = schema.fronts.c
        found = self._connection.execute(
            sa.select(fronts.number, fronts.hypervolume, fronts.members_json)
            .where(fronts.study_id == self._study.study_id)
            .order_by(fronts.number.desc())
            .limit(1)
        ).one_or_none()
        return found and FrontChange(found[0], found[1], tuple(json.loads(found[2])))

    def next_number(self) -> int:
        """The number of a trial that is new: they have no gaps, as Optuna takes them for places."""
        column = schema.evaluations.c
        last = self._connection.execute(
            sa.select(sa.func.max(column.number)).where(column.study_id == self._study.study_id)
        ).scalar()
        return 0 if last is None else int(last) + 1

    def mine(self) -> set[int]:
        """The running trials that this worker holds."""
        held = (w.holds for w in self.workers() if w.worker_id == self.worker_id)
        return {number for numbers in held for number in numbers}

    def holder(self, number: int) -> int | None:
        """The worker that holds a running trial."""
        claims, evaluations = schema.claims.c, schema.evaluations
        chosen = sa.select(claims.worker_id).join(
            evaluations, evaluations.c.evaluation_id == claims.evaluation_id
        )
        return self._connection.execute(chosen.where(self._this(number))).scalar()

    def attempts(self, number: int) -> int:
        """How often the trial was begun, without those that were handed back."""
        attempts: int = self._connection.execute(
            sa.select(schema.evaluations.c.attempts).where(self._this(number))
        ).scalar_one()
        return attempts

    # --- writing ------------------------------------------------------------------------------

    def begin(self, trial: Trial, claim_key: str | None = None) -> None:
        """Store a trial that starts now; a worker claims `claim_key`, which nobody else may hold.

        Raises StorageError when the trial is finished, or another worker holds the key.
        """
        if trial.state is not State.RUNNING:
            raise StorageError(f"trial {trial.number} begins as running; found {trial.state.value}")
        evaluation_id = self._put(trial)
        columns = schema.evaluations.c
        this = columns.evaluation_id == evaluation_id
        self._connection.execute(
            sa.update(schema.evaluations).where(this).values(attempts=columns.attempts + 1)
        )
        if self.worker_id is None:
            return
        self._release(evaluation_id)
        claim = {
            "evaluation_id": evaluation_id,
            "study_id": self._study.study_id,
            "claim_key": claim_key or trial.candidate_key,
            "worker_id": self.worker_id,
        }
        self._connection.execute(sa.insert(schema.claims), claim)

    def finish(
        self,
        trial: Trial,
        front: Sequence[int] | None = None,
        hypervolume: float | None = None,
        artifacts: Mapping[str, bytes] | None = None,
    ) -> None:
        """Store a finished trial, begun or not, with the front where it changed and artifacts.

        Raises StorageError when the trial is finished already: a result is never overwritten.
        """
        if not trial.state.finished:
            raise StorageError(f"trial {trial.number} is {trial.state.value}, not finished")
        if (front is None) is not (hypervolume is None):
            raise StorageError("a changed front needs its members and its hypervolume together")
        evaluation_id = self._put(trial)
        self._release(evaluation_id)
        if self.worker_id is not None:
            mine = schema.evaluations.c.evaluation_id == evaluation_id
            self._connection.execute(
                sa.update(schema.evaluations).where(mine).values(worker_id=self.worker_id)
            )
            leases.count_finished(self._connection, self.worker_id)
        if front is not None and hypervolume is not None:
            self.put_front(trial.number, front, hypervolume)
        for kind, blob in (artifacts or {}).items():
            put_artifact(self._connection, evaluation_id, kind, blob, self._store)

    def put_front(self, number: int, members: Sequence[int], hypervolume: float) -> None:
        """Store the front as it is now.

        It goes under the highest number that a front has so far where trial `number` ended after
        a later one: the last row is always the newest front.
        """
        newest, fronts = self.front(), schema.fronts
        number = max(number, -1 if newest is None else newest.number)
        study_id = self._study.study_id
        this = (fronts.c.study_id == study_id) & (fronts.c.number == number)
        self._connection.execute(sa.delete(fronts).where(this))
        change = FrontChange(number, hypervolume, tuple(members))
        self._connection.execute(sa.insert(fronts), rows.front_row(study_id, change))

    def replace_fronts(self, fronts: Sequence[FrontChange]) -> None:
        """Store all fronts anew."""
        own = schema.fronts.c.study_id == self._study.study_id
        self._connection.execute(sa.delete(schema.fronts).where(own))
        for change in fronts:
            self.put_front(change.number, change.members, change.hypervolume)

    def amend_study(self, record: StudyRecord) -> None:
        """Change limits and objectives; what is written from now on in this turn follows them."""
        own = schema.studies.c.study_id == self._study.study_id
        self._connection.execute(
            sa.update(schema.studies).where(own).values(rows.wishes_row(record))
        )
        if record.objectives != self._study.objectives:
            self._study = replace(self._study, objectives=record.objectives)
            optuna_tables.set_objectives(self._connection, self._study)

    def hand_back(self, numbers: Iterable[int]) -> None:
        """Make running trials wait again that nobody is to blame for."""
        self._requeue(sorted(numbers), blamed=False)

    def give_up(self, worker: Worker, max_attempts: int = leases.MAX_ATTEMPTS) -> list[int]:
        """The worker is lost: its trials wait again; those begun too often have failed.

        Returns their numbers.
        """
        leases.end(self._connection, worker.worker_id, "lost")
        hopeless = [n for n in worker.holds if self.attempts(n) >= max_attempts]
        self._requeue([n for n in worker.holds if n not in hopeless], blamed=True)
        for trial in self._trials(schema.evaluations.c.number.in_(hopeless)):
            reason = (
                f"begun {max_attempts} times, and its worker was lost each time (killed, out of "
                "memory or switched off)"
            )
            self.finish(replace(trial, state=State.FAILED, reason=reason))
        return list(worker.holds)

    def requeue_unclaimed(self) -> list[int]:
        """Make running trials wait again that no worker holds; their numbers in order."""
        columns, claims = schema.evaluations.c, schema.claims.c
        found = self._connection.execute(
            sa.select(columns.number)
            .where(
                columns.study_id == self._study.study_id,
                columns.state == State.RUNNING.value,
                columns.evaluation_id.not_in(sa.select(claims.evaluation_id)),
            )
            .order_by(columns.number)
        )
        numbers = list(found.scalars())
        self._requeue(numbers, blamed=True)
        return numbers

    def overwrite(self, trial: Trial) -> int:
        """Write a stored trial anew, ours and Optuna's; its evaluation_id."""
        columns, this = schema.evaluations.c, self._this(trial.number)
        old = self._connection.execute(
            sa.select(columns.evaluation_id, columns.optuna_trial_id, columns.params_json).where(
                this
            )
        ).one()
        same_params = old.params_json == rows.dump(dict(trial.params))
        optuna_tables.replace(
            self._connection, old.optuna_trial_id, self._study, trial, same_params
        )
        row = rows.evaluation_row(trial, self._study.study_id, old.optuna_trial_id)
        self._connection.execute(
            sa.update(schema.evaluations).where(this).values(row | {"revision": self._change()})
        )
        return int(old.evaluation_id)

    def amend(
        self,
        number: int,
        changes: Mapping[str, Any],
        artifacts: Mapping[str, bytes] | None = None,
    ) -> None:
        """Change columns of a stored trial, and give it artifacts."""
        evaluations = schema.evaluations
        chosen = sa.select(evaluations.c.evaluation_id).where(self._this(number))
        found = self._connection.execute(chosen).scalar()
        if found is None:
            raise StorageError(f"study '{self._study.name}' has no trial {number}")
        if changes:
            self._connection.execute(
                sa.update(evaluations).where(self._this(number)).values(**changes)
            )
        for kind, blob in (artifacts or {}).items():
            put_artifact(self._connection, int(found), kind, blob, self._store)

    # --- repairs ------------------------------------------------------------------------------

    def artifacts(self, number: int) -> dict[str, str]:
        """SHA-256 of a trial's artifacts by kind."""
        return list_artifacts(self._connection, self._study.study_id, number).get(number, {})

    def unlink(self, number: int, kind: str) -> None:
        """Take an artifact off a trial that cannot be read any more."""
        chosen = sa.select(schema.evaluations.c.evaluation_id).where(self._this(number))
        unlink(self._connection, self._connection.execute(chosen).scalar_one(), kind)

    def insert(self, trial: Trial) -> int:
        """Store a trial that is not there, whatever the last number is; its evaluation_id."""
        trial_id = optuna_tables.insert(self._connection, self._study, trial)
        row = rows.evaluation_row(trial, self._study.study_id, trial_id)
        return insert_one(self._connection, schema.evaluations, row | {"revision": self._change()})

    def rewrite_optuna(self, number: int) -> None:
        """Write Optuna's rows of a stored trial anew from ours."""
        (trial,) = self._trials(schema.evaluations.c.number == number)
        columns, trials = schema.evaluations.c, optuna_tables.trials.c
        trial_id = self._connection.execute(
            sa.select(columns.optuna_trial_id)
            .join(optuna_tables.trials, trials.trial_id == columns.optuna_trial_id)
            .where(self._this(number), trials.study_id == self._study.optuna_study_id)
        ).scalar()
        if trial_id is not None:
            optuna_tables.replace(self._connection, trial_id, self._study, trial, same_params=False)
            return
        trial_id = optuna_tables.insert(self._connection, self._study, trial)
        self.amend(number, {"optuna_trial_id": trial_id})

    # --- workers ------------------------------------------------------------------------------

    def workers(self) -> list[Worker]:
        """The live workers of the study."""
        return leases.workers_of(self._connection, self._study.study_id, live=True)

    def join(self, slot: Mapping[str, str]) -> Worker:
        """Enter this process as a worker."""
        return leases.join(self._connection, self._study.study_id, slot)

    def leave(self) -> None:
        """The worker whose turn it is ends."""
        if self.worker_id is not None:
            leases.end(self._connection, self.worker_id, "left")

    # --- inside -------------------------------------------------------------------------------

    def _put(self, trial: Trial) -> int:
        """Insert the trial, or replace the one begun; its evaluation_id."""
        evaluations = schema.evaluations
        state = self._connection.execute(
            sa.select(evaluations.c.state).where(self._this(trial.number))
        ).scalar()
        if state is None:
            self._check_next(trial.number)
            return self.insert(trial)
        if State(state).finished:
            raise StorageError(
                f"trial {trial.number} is finished already ({state}); it is kept as it is"
            )
        return self.overwrite(trial)

    def _check_next(self, number: int) -> None:
        expected = self.next_number()
        if number != expected:
            raise StorageError(
                f"study '{self._study.name}' has {expected} trials, so the next one is number "
                f"{expected}; found {number}"
            )

    def _requeue(self, numbers: Sequence[int], *, blamed: bool) -> None:
        if not numbers:
            return
        columns = schema.evaluations.c
        these = (columns.study_id == self._study.study_id) & columns.number.in_(numbers)
        found = self._connection.execute(
            sa.select(columns.evaluation_id, columns.optuna_trial_id).where(these)
        ).all()
        optuna_tables.requeue(self._connection, [row.optuna_trial_id for row in found])
        for row in found:
            self._release(row.evaluation_id)
        changes = {"state": State.WAITING.value, "started": 0.0, "revision": self._change()}
        attempts = columns.attempts - (0 if blamed else 1)
        self._connection.execute(
            sa.update(schema.evaluations).where(these).values(**changes, attempts=attempts)
        )

    def _release(self, evaluation_id: int) -> None:
        claims = schema.claims
        self._connection.execute(sa.delete(claims).where(claims.c.evaluation_id == evaluation_id))

    def _trials(self, which: sa.ColumnElement[bool], *order: sa.ColumnElement[int]) -> list[Trial]:
        columns = schema.evaluations.c
        found = self._connection.execute(
            sa.select(*rows.TRIAL_COLUMNS)
            .where(columns.study_id == self._study.study_id, which)
            .order_by(*order, columns.number)
        ).mappings()
        return [rows.trial_of(row) for row in found]  # type: ignore[arg-type]

    def _this(self, number: int) -> sa.ColumnElement[bool]:
        columns = schema.evaluations.c
        return (columns.study_id == self._study.study_id) & (columns.number == number)

    def _change(self) -> int:
        """The revision of what is written in this turn."""
        if not self._written:
            studies = schema.studies
            self._connection.execute(
                sa.update(studies)
                .where(studies.c.study_id == self._study.study_id)
                .values(revision=self.revision + 1)
            )
            self.revision, self._written = self.revision + 1, True
        return self.revision
