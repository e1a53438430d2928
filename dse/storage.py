"""Studies, evaluations, fronts and artifacts in one database that Optuna can read too.

A finished trial is one transaction over Optuna's tables and ours (docs/database.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from dse import optuna_tables, rows, schema
from dse.artifacts import GRAPH, get_artifact, put_artifact, same_network
from dse.database import make_engine, parse_url, sentences, shown, sqlite_path
from dse.errors import StorageError, nearest
from dse.optuna_tables import StudyKeys, insert_one
from dse.rows import FrontChange, StudyRecord, StudySummary
from dse.trial import Metric, Proof, State, Trial

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FrontChange", "Storage", "StudyRecord", "StudySummary"]


class Storage:
    """The database at `url`; also a context manager. Every error it raises is a StorageError.

    Opening upgrades the tables of an older dse and refuses those of a newer one; a file that does
    not exist yet is made by `create`. One process may write to a SQLite file, any number read.
    """

    def __init__(self, url: str, *, readonly: bool = False) -> None:
        self.url = parse_url(url)
        self.readonly = readonly
        self._studies: dict[str, StudyKeys] = {}
        path = sqlite_path(self.url)
        if path is not None:
            if path.is_dir():
                raise StorageError(f"{path} is a folder; name a file, as in {path}/study.db")
            if not path.parent.is_dir():
                raise StorageError(f"the folder {path.parent} does not exist; make it first")
            if readonly:
                self._check_file()
        self._engine = make_engine(self.url, readonly=readonly)
        if path is None or path.exists():
            self._open()

    @classmethod
    def open_readonly(cls, url: str) -> Storage:
        """For browsing and reports: never creates, locks, upgrades or changes anything."""
        return cls(url, readonly=True)

    def __enter__(self) -> Storage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of every connection; a later call opens new ones."""
        self._engine.dispose()

    # ------------------------------------------------------------------ studies

    def create(self, record: StudyRecord) -> None:
        """Store a new study, with Optuna's tables and ours where the database has none yet.

        Raises StorageError when a study of this name exists.
        """
        with self._write(create=True) as connection:
            if schema.check(schema.revision(connection)):
                schema.upgrade(connection)
            names = connection.execute(sa.select(schema.studies.c.name)).scalars().all()
        if record.name in names:
            raise self._exists(record.name)
        with sentences(self.url):
            optuna_study_id = optuna_tables.create_study(self.url, record)
        with self._write() as connection:
            try:
                connection.execute(
                    sa.insert(schema.studies), rows.study_row(record, optuna_study_id)
                )
            except IntegrityError as error:
                raise self._exists(record.name) from error

    def study(self, name: str) -> StudyRecord:
        """The study of this name; raises StorageError with the nearest name when there is none."""
        with self._read() as connection:
            return rows.study_record(self._study_row(connection, name))

    def studies(self) -> list[StudySummary]:
        """All studies, oldest first; none in a database that dse has not written to yet."""
        columns = schema.studies.c
        with self._read() as connection:
            if schema.revision(connection) is None:
                return []
            ordered = sa.select(schema.studies).order_by(columns.created, columns.study_id)
            found = [dict(row) for row in connection.execute(ordered).mappings()]
            counts, fronts = _counts(connection), _newest_fronts(connection)
            none: tuple[float, str] = (0.0, "[]")
            return [
                rows.summary(
                    row, counts.get(row["study_id"], {}), *fronts.get(row["study_id"], none)
                )
                for row in found
            ]

    def update_n_trials(self, name: str, n_trials: int) -> None:
        """Ask for another number of trials, as a longer resume does."""
        if n_trials < 1:
            raise StorageError(f"a study needs at least one trial; found {n_trials}")
        with self._write() as connection:
            mine = schema.studies.c.study_id == self._study(connection, name).study_id
            connection.execute(sa.update(schema.studies).where(mine).values(n_trials=n_trials))

    # ------------------------------------------------------------------ trials, written

    def begin(self, name: str, trial: Trial) -> None:
        """Store a trial that starts now (RUNNING), so that a crash leaves a trace of it."""
        if trial.state is not State.RUNNING:
            raise StorageError(f"trial {trial.number} begins as running; found {trial.state.value}")
        with self._write() as connection:
            self._put(connection, self._study(connection, name, lock=True), trial)

    def finish(
        self,
        name: str,
        trial: Trial,
        front: Sequence[int] | None = None,
        hypervolume: float | None = None,
        artifacts: Mapping[str, bytes] | None = None,
    ) -> None:
        """Store a finished trial, begun or not, in one transaction.

        `front` are the members' numbers and `hypervolume` theirs, where this trial changed the
        front. `artifacts` are bytes by kind (`weights`, `graph`), stored once by content.
        Raises StorageError when the trial is finished already: a result is never overwritten.
        """
        if not trial.state.finished:
            raise StorageError(f"trial {trial.number} is {trial.state.value}, not finished")
        if (front is None) is not (hypervolume is None):
            raise StorageError("a changed front needs its members and its hypervolume together")
        with self._write() as connection:
            study = self._study(connection, name, lock=True)
            evaluation_id = self._put(connection, study, trial)
            if front is not None and hypervolume is not None:
                change = FrontChange(trial.number, hypervolume, tuple(front))
                connection.execute(sa.insert(schema.fronts), rows.front_row(study.study_id, change))
            for kind, blob in (artifacts or {}).items():
                put_artifact(connection, evaluation_id, kind, blob)

    def rejudge(
        self, record: StudyRecord, trials: Sequence[Trial], front: Sequence[int], hypervolume: float
    ) -> None:
        """Store a study's new limits, the trials they changed and the newest front, at once."""
        fronts, columns = schema.fronts, schema.evaluations.c
        with self._write() as connection:
            study = self._study(connection, record.name, lock=True)
            connection.execute(
                sa.update(schema.studies)
                .where(schema.studies.c.study_id == study.study_id)
                .values(rows.limits_row(record))
            )
            for trial in trials:
                self._overwrite(connection, study, trial)
            newest = connection.execute(
                sa.select(sa.func.max(columns.number)).where(columns.study_id == study.study_id)
            ).scalar()
            if newest is None:
                return
            this = (fronts.c.study_id == study.study_id) & (fronts.c.number == newest)
            connection.execute(sa.delete(fronts).where(this))
            change = FrontChange(newest, hypervolume, tuple(front))
            connection.execute(sa.insert(fronts), rows.front_row(study.study_id, change))

    def requeue(self, name: str) -> list[int]:
        """Make every RUNNING trial WAITING again, after a crash; their numbers in order."""
        evaluations = schema.evaluations
        with self._write() as connection:
            study = self._study(connection, name, lock=True)
            running = (evaluations.c.study_id == study.study_id) & (
                evaluations.c.state == State.RUNNING.value
            )
            found = connection.execute(
                sa.select(evaluations.c.number, evaluations.c.optuna_trial_id)
                .where(running)
                .order_by(evaluations.c.number)
            ).all()
            optuna_tables.requeue(connection, [row.optuna_trial_id for row in found])
            connection.execute(
                sa.update(evaluations).where(running).values(state=State.WAITING.value, started=0.0)
            )
        return [row.number for row in found]

    def set_test_accuracy(self, name: str, number: int, metric: Metric, samples: int) -> None:
        """Add the accuracy on `samples` test images, measured when the study is over."""
        changes = rows.metric_row(schema.TEST_PREFIX, metric) | {"test_samples": samples}
        with self._write() as connection:
            study = self._study(connection, name)
            self._amend(connection, study, number, changes)

    def prove(self, name: str, number: int, proof: Proof, artifacts: Mapping[str, bytes]) -> None:
        """Store what verifying a trial gave, with its details, in the place of an earlier proof."""
        with self._write() as connection:
            study = self._study(connection, name, lock=True)
            evaluation_id = self._amend(
                connection, study, number, {"proof_json": rows.proof_text(proof)}
            )
            for kind, blob in artifacts.items():
                put_artifact(connection, evaluation_id, kind, blob)

    # ------------------------------------------------------------------ trials, read

    def trials(self, name: str) -> list[Trial]:
        """All trials by number, whole; `table` is faster where columns are enough."""
        return self._trials(name)

    def trial(self, name: str, number: int) -> Trial:
        """One trial; raises StorageError when there is none of this number."""
        found = self._trials(name, schema.evaluations.c.number == number)
        if not found:
            raise StorageError(f"study '{name}' has no trial {number}")
        return found[0]

    def proofs(self, name: str) -> dict[int, Proof]:
        """What verifying gave, by the trial's number."""
        columns = schema.evaluations.c
        known = columns.proof_json.is_not(None)
        found = self._evaluations(name, (columns.number, columns.proof_json), known)
        return {number: Proof(**json.loads(text)) for number, text in found}

    def table(
        self, name: str, *, knobs: bool = False, since: int = 0, brief: bool = False
    ) -> pd.DataFrame:
        """All trials from number `since` on, one typed column a quantity (SI units), one query.

        `knobs` adds `knob:<name>` columns, `brief` leaves out keys and sources. What a trial does
        not have is NaN or None.
        """
        left_out = ("_json", "_source", "_key") if brief else ("_json",)
        columns = [c for c in rows.TRIAL_COLUMNS if not c.name.endswith(left_out)]
        columns += [schema.evaluations.c.params_json] if knobs else []
        later = schema.evaluations.c.number >= since
        return rows.frame([c.name for c in columns], self._evaluations(name, columns, later))

    def fronts(self, name: str) -> list[FrontChange]:
        """The front after each change, in order of the trials."""
        fronts = schema.fronts
        with self._read() as connection:
            study = self._study(connection, name)
            found = connection.execute(
                sa.select(fronts.c.number, fronts.c.hypervolume, fronts.c.members_json)
                .where(fronts.c.study_id == study.study_id)
                .order_by(fronts.c.number)
            ).all()
        return [FrontChange(row[0], row[1], tuple(json.loads(row[2]))) for row in found]

    def artifact(self, name: str, number: int, kind: str) -> bytes | None:
        """A trial's artifact, None when it has none of this kind.

        Raises StorageError when the stored bytes are not those that were written.
        """
        with self._read() as connection:
            study_id = self._study(connection, name).study_id
            own = schema.evaluations.c.number == number
            return get_artifact(connection, study_id, kind, own)

    def network(self, name: str, number: int) -> bytes | None:
        """The archive of a trial's network, which another trial may have trained."""
        with self._read() as connection:
            study_id = self._study(connection, name).study_id
            same = same_network(study_id, number)
            return get_artifact(connection, study_id, GRAPH, same)

    def attach(self, name: str, number: int, kind: str, blob: bytes) -> None:
        """Give a stored trial an artifact, in the place of one of the same kind."""
        with self._write() as connection:
            study = self._study(connection, name, lock=True)
            evaluation_id = self._amend(connection, study, number, {})
            put_artifact(connection, evaluation_id, kind, blob)

    # ------------------------------------------------------------------ inside

    def _open(self) -> None:
        """Check the version of our tables; upgrade older ones, unless only reading."""
        with self._read() as connection:
            found = schema.revision(connection)
        if found is None or not schema.check(found):
            return
        if self.readonly:
            raise StorageError(
                f"database {shown(self.url)} was made by an older dse (schema {found}); resume a "
                "study in it once to upgrade it"
            )
        with self._write() as connection:
            if schema.check(schema.revision(connection)):  # unless another process just did
                schema.upgrade(connection)

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        self._check_file()
        with sentences(self.url), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _write(self, *, create: bool = False) -> Iterator[Connection]:
        """One transaction, committed when the block ends without an exception."""
        if self.readonly:
            raise StorageError(f"database {shown(self.url)} is open for reading only")
        if not create:
            self._check_file()
        with (
            sentences(self.url),
            self._engine.connect().execution_options(dse_write=True) as connection,
            connection.begin(),
        ):
            yield connection

    def _check_file(self) -> None:
        """SQLite would make a new file, or write on to one that was deleted."""
        path = sqlite_path(self.url)
        if path is not None and not path.exists():
            raise StorageError(f"there is no database at {path}; check the storage URL")

    def _exists(self, name: str) -> StorageError:
        return StorageError(
            f"study '{name}' exists in {shown(self.url)}; resume it or choose another name"
        )

    def _study_row(self, connection: Connection, name: str) -> dict[str, Any]:
        studies = schema.studies
        known = schema.revision(connection) is not None
        if known:
            statement = sa.select(studies).where(studies.c.name == name)
            row = connection.execute(statement).mappings().one_or_none()
            if row is not None:
                return dict(row)
        names = connection.execute(sa.select(studies.c.name)).scalars() if known else ()
        raise StorageError(f"no study '{name}' in {shown(self.url)}; {nearest(name, names)}")

    def _study(self, connection: Connection, name: str, *, lock: bool = False) -> StudyKeys:
        """The study's keys, read once; `lock` makes writers of one study take turns."""
        if name not in self._studies:
            row = self._study_row(connection, name)
            self._studies[name] = StudyKeys(
                name,
                row["study_id"],
                row["optuna_study_id"],
                tuple(json.loads(row["objectives_json"])),
                row["distributions_json"],
            )
        study = self._studies[name]
        if lock:
            if self.url.get_backend_name() != "sqlite":  # which has one writer anyway
                key = schema.studies.c.study_id
                connection.execute(sa.select(key).where(key == study.study_id).with_for_update())
            if not optuna_tables.exists(connection, study):
                raise StorageError(
                    f"study '{name}' was deleted or renamed in Optuna's tables of "
                    f"{shown(self.url)}; its trials can be read, but none added"
                )
        return study

    def _put(self, connection: Connection, study: StudyKeys, trial: Trial) -> int:
        """Insert the trial, or replace the one begun; its evaluation_id."""
        evaluations = schema.evaluations
        old = connection.execute(
            sa.select(evaluations.c.state).where(
                evaluations.c.study_id == study.study_id, evaluations.c.number == trial.number
            )
        ).one_or_none()
        if old is None:
            self._check_next(connection, study, trial.number)
            trial_id = optuna_tables.insert(connection, study, trial)
            row = rows.evaluation_row(trial, study.study_id, trial_id)
            return insert_one(connection, evaluations, row)
        if State(old.state).finished:
            raise StorageError(
                f"trial {trial.number} is finished already ({old.state}); it is kept as it is"
            )
        return self._overwrite(connection, study, trial)

    def _overwrite(self, connection: Connection, study: StudyKeys, trial: Trial) -> int:
        """Write a stored trial anew, ours and Optuna's; its evaluation_id."""
        columns = schema.evaluations.c
        this = (columns.study_id == study.study_id) & (columns.number == trial.number)
        old = connection.execute(
            sa.select(columns.evaluation_id, columns.optuna_trial_id, columns.params_json).where(
                this
            )
        ).one()
        same_params = old.params_json == rows.dump(dict(trial.params))
        optuna_tables.replace(connection, old.optuna_trial_id, study, trial, same_params)
        row = rows.evaluation_row(trial, study.study_id, old.optuna_trial_id)
        connection.execute(sa.update(schema.evaluations).where(this).values(row))
        return int(old.evaluation_id)

    def _amend(
        self, connection: Connection, study: StudyKeys, number: int, changes: Mapping[str, Any]
    ) -> int:
        """Change columns of a stored trial; its evaluation_id."""
        evaluations = schema.evaluations
        this = (evaluations.c.study_id == study.study_id) & (evaluations.c.number == number)
        found = connection.execute(sa.select(evaluations.c.evaluation_id).where(this)).scalar()
        if found is None:
            raise StorageError(f"study '{study.name}' has no trial {number}")
        if changes:
            connection.execute(sa.update(evaluations).where(this).values(**changes))
        return int(found)

    def _check_next(self, connection: Connection, study: StudyKeys, number: int) -> None:
        """Trials are numbered without gaps: Optuna takes a trial's number for its place."""
        column = schema.evaluations.c
        last = connection.execute(
            sa.select(sa.func.max(column.number)).where(column.study_id == study.study_id)
        ).scalar()
        expected = 0 if last is None else last + 1
        if number != expected:
            raise StorageError(
                f"study '{study.name}' has {expected} trials, so the next one is number "
                f"{expected}; found {number}"
            )

    def _trials(self, name: str, *which: sa.ColumnElement[bool]) -> list[Trial]:
        names = [column.name for column in rows.TRIAL_COLUMNS]
        found = self._evaluations(name, rows.TRIAL_COLUMNS, *which)
        return [rows.trial_of(dict(zip(names, row, strict=True))) for row in found]

    def _evaluations(
        self, name: str, columns: Sequence[sa.Column[Any]], *which: sa.ColumnElement[bool]
    ) -> Sequence[Sequence[Any]]:
        evaluations = schema.evaluations.c
        with self._read() as connection:
            mine = evaluations.study_id == self._study(connection, name).study_id
            chosen = sa.select(*columns).where(mine, *which).order_by(evaluations.number)
            return connection.execute(chosen).all()


def _counts(connection: Connection) -> dict[int, dict[State, int]]:
    """Trials by state, by study_id."""
    column = schema.evaluations.c
    counts: dict[int, dict[State, int]] = {}
    for study_id, state, count in connection.execute(
        sa.select(column.study_id, column.state, sa.func.count()).group_by(
            column.study_id, column.state
        )
    ):
        counts.setdefault(study_id, {})[State(state)] = count
    return counts


def _newest_fronts(connection: Connection) -> dict[int, tuple[float, str]]:
    """Hypervolume and members_json of each study's last front, by study_id."""
    fronts = schema.fronts.c
    newest = (
        sa.select(fronts.study_id, sa.func.max(fronts.number).label("number"))
        .group_by(fronts.study_id)
        .subquery()
    )
    found = connection.execute(
        sa.select(fronts.study_id, fronts.hypervolume, fronts.members_json).join(
            newest, (newest.c.study_id == fronts.study_id) & (newest.c.number == fronts.number)
        )
    )
    return {row[0]: (row[1], row[2]) for row in found}
