"""Studies, evaluations, fronts and artifacts in one database that Optuna can read too.

A finished trial is one transaction over Optuna's tables and ours (docs/database.md).
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from dse import leases, optuna_tables, rows, schema, summaries
from dse.artifact_store import asked_store, find_store
from dse.artifacts import GRAPH, get_artifact, list_artifacts, same_network
from dse.database import UnreachableError, make_engine, parse_url, sentences, shown, sqlite_path
from dse.errors import StorageError, nearest
from dse.leases import Worker
from dse.optuna_tables import StudyKeys
from dse.rows import FrontChange, StudyRecord, StudySummary
from dse.trial import Metric, Proof, Trial
from dse.turn import Turn

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FrontChange", "Storage", "StudyRecord", "StudySummary", "Turn", "Worker"]

T = TypeVar("T")
# How long a server that cannot be reached is tried again, and the longest wait between two tries.
PATIENCE_S = 600.0
MAX_PAUSE_S = 5.0
# PostgreSQL's lock for whoever makes or changes tables; any number that others do not use.
UPGRADE_LOCK = 0x647365


class Storage:
    """The database at `url`; also a context manager. Every error it raises is a StorageError.

    Opening upgrades the tables of an older dse and refuses those of a newer one; a file that does
    not exist yet is made by `create`. Any number of processes may read. Writers of a study take
    turns; what they do is tried again for `patience_s` while a server is away. `artifacts` is the
    URL of a store for them (dse.artifact_store), instead of the environment's or the database.
    """

    def __init__(
        self,
        url: str,
        *,
        readonly: bool = False,
        patience_s: float = PATIENCE_S,
        artifacts: str | None = None,
    ) -> None:
        self.url, self._store = parse_url(url), asked_store(artifacts)
        self.readonly, self.patience_s = readonly, patience_s
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
            self._upgrade(connection)
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
            counts, fronts = summaries.counts(connection), summaries.newest_fronts(connection)
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

    def turn(self, name: str, act: Callable[[Turn], T], worker_id: int | None = None) -> T:
        """What `act` returns; all that it writes in its turn is stored at once, or not at all.

        Where the database went away in the middle it is called again, so it must read anew
        whatever it decides from.
        """
        return self._again(lambda: self._turn(name, act, worker_id))

    def begin(self, name: str, trial: Trial) -> None:
        """Store a trial that starts now (RUNNING), so that a crash leaves a trace of it."""
        self._turn(name, lambda turn: turn.begin(trial))

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
        self._turn(name, lambda turn: turn.finish(trial, front, hypervolume, artifacts))

    def rejudge(
        self, record: StudyRecord, trials: Sequence[Trial], front: tuple[Sequence[int], float]
    ) -> None:
        """Store a study's new limits, the trials they changed and the newest front, at once."""

        def judge(turn: Turn) -> None:
            turn.amend_study(record)
            for trial in trials:
                turn.overwrite(trial)
            newest = turn.next_number() - 1
            if newest >= 0:
                turn.put_front(newest, *front)

        self._turn(record.name, judge)

    def rejudge_all(
        self, record: StudyRecord, trials: Sequence[Trial], fronts: Sequence[FrontChange]
    ) -> None:
        """Store a study's new objectives, all its trials and all fronts anew, at once.

        Optuna's study gets them, too: its directions, names and values.
        """

        def judge(turn: Turn) -> None:
            turn.amend_study(record)
            for trial in trials:
                turn.overwrite(trial)
            turn.replace_fronts(fronts)

        try:
            self._turn(record.name, judge)
        finally:
            self._studies.pop(record.name, None)  # its objectives are part of that

    def requeue(self, name: str) -> list[int]:
        """Make every RUNNING trial that no worker holds WAITING again; their numbers in order."""
        return self._turn(name, lambda turn: turn.requeue_unclaimed())

    # ------------------------------------------------------------------ workers

    def join(self, name: str, slot: Mapping[str, str] | None = None) -> Worker:
        """Enter this process as a worker; trials of processes of this host that are gone wait."""

        def enter(turn: Turn) -> Worker:
            for worker in turn.workers():
                if worker.gone:
                    turn.give_up(worker)
            turn.requeue_unclaimed()
            return turn.join(slot or {})

        return self.turn(name, enter)

    def beat(self, name: str, worker_id: int) -> list[Worker]:
        """Say that a worker is there; all live ones, with their heartbeats."""

        def count() -> list[Worker]:
            with self._write() as connection:
                leases.beat(connection, worker_id)
                study_id = self._study(connection, name).study_id
                return leases.workers_of(connection, study_id, live=True)

        return self._again(count)

    def give_up(self, name: str, silent: Sequence[Worker]) -> list[int]:
        """Let the trials of workers wait that made no heartbeat since; the trials' numbers."""

        def lose(turn: Turn) -> list[int]:
            now = {worker.worker_id: worker for worker in turn.workers()}
            same = [now[w.worker_id] for w in silent if w.worker_id in now]
            before = {worker.worker_id: worker.beats for worker in silent}
            lost = [worker for worker in same if worker.beats == before[worker.worker_id]]
            return [number for worker in lost for number in turn.give_up(worker)]

        return self.turn(name, lose)

    def leave(self, name: str, worker_id: int) -> None:
        """A worker ends; what it holds waits for others."""

        def go(turn: Turn) -> None:
            turn.hand_back(turn.mine())
            turn.leave()

        self.turn(name, go, worker_id)

    def workers(self, name: str) -> list[Worker]:
        """Who works on a study and who did, in the order in which they joined."""
        with self._read() as connection:
            study_id = self._study(connection, name).study_id
            return leases.workers_of(connection, study_id)

    def revision(self, name: str) -> int:
        """How often the study's trials changed so far."""

        def read() -> int:
            with self._read() as connection:
                study_id = self._study(connection, name).study_id
                chosen = sa.select(schema.studies.c.revision)
                found = connection.execute(chosen.where(schema.studies.c.study_id == study_id))
                return int(found.scalar_one())

        return self._again(read)

    def database_time(self) -> float:
        """Seconds since 1970 by the database's clock."""
        with self._read() as connection:
            return float(connection.execute(sa.select(leases.now(connection))).scalar_one())

    # ------------------------------------------------------------------ trials, amended

    def set_test_accuracy(self, name: str, number: int, metric: Metric, samples: int) -> None:
        """Add the accuracy on `samples` test images, measured when the study is over."""
        changes = rows.metric_row(schema.TEST_PREFIX, metric) | {"test_samples": samples}
        self.turn(name, lambda turn: turn.amend(number, changes))

    def prove(self, name: str, number: int, proof: Proof, artifacts: Mapping[str, bytes]) -> None:
        """Store what verifying a trial gave, with its details, in the place of an earlier proof."""
        changes = {"proof_json": rows.proof_text(proof)}
        self.turn(name, lambda turn: turn.amend(number, changes, artifacts))

    def attach(self, name: str, number: int, kind: str, blob: bytes) -> None:
        """Give a stored trial an artifact, in the place of one of the same kind."""
        self.turn(name, lambda turn: turn.amend(number, {}, {kind: blob}))

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

    def artifacts(self, name: str) -> dict[int, dict[str, str]]:
        """SHA-256 of the artifacts by kind, by the trial's number."""
        with self._read() as connection:
            return list_artifacts(connection, self._study(connection, name).study_id)

    def keep(self, blobs: Iterable[bytes]) -> None:
        """Write artifacts to their store ahead of a turn, in which others would wait for it."""
        if self._store is not None:
            for blob in blobs:
                find_store(self._store).put(blob)

    def network(self, name: str, number: int) -> bytes | None:
        """The archive of a trial's network, which another trial may have trained."""
        with self._read() as connection:
            study_id = self._study(connection, name).study_id
            same = same_network(study_id, number)
            return get_artifact(connection, study_id, GRAPH, same)

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
            self._upgrade(connection)

    def _upgrade(self, connection: Connection) -> None:
        """Make or upgrade our tables, unless another process just did."""
        if connection.dialect.name == "postgresql":  # SQLite has one writer anyway
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(UPGRADE_LOCK)))
        if schema.check(schema.revision(connection)):
            schema.upgrade(connection)

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        self._check_file()
        with sentences(self.url), self._engine.connect() as connection:
            yield connection

    def writing(self) -> AbstractContextManager[Connection]:
        """One transaction for a repair of what no turn can reach; what is known is read anew."""
        self._studies.clear()
        return self._write()

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

    def _study(self, connection: Connection, name: str) -> StudyKeys:
        """The study's keys, read once."""
        if name not in self._studies:
            row = self._study_row(connection, name)
            self._studies[name] = StudyKeys(
                name,
                row["study_id"],
                row["optuna_study_id"],
                tuple(json.loads(row["objectives_json"])),
                row["distributions_json"],
            )
        return self._studies[name]

    def _turn(self, name: str, act: Callable[[Turn], T], worker_id: int | None = None) -> T:
        with self._write() as connection:
            return act(self._taken(connection, self._study(connection, name), worker_id))

    def _taken(
        self, connection: Connection, study: StudyKeys, worker_id: int | None = None
    ) -> Turn:
        """A turn at a study: writers of one study take turns."""
        turn = Turn(connection, study, worker_id, self._store)
        if not optuna_tables.exists(connection, study):
            raise StorageError(
                f"study '{study.name}' was deleted or renamed in Optuna's tables of "
                f"{shown(self.url)}; its trials can be read, but none added"
            )
        return turn

    def _again(self, call: Callable[[], T]) -> T:
        """What `call` returns; called again, ever more rarely, while the server cannot be reached.

        Raises its UnreachableError when that takes longer than `patience_s`.
        """
        deadline, pause = time.monotonic() + self.patience_s, 0.05
        while True:
            try:
                return call()
            except UnreachableError:
                if time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, MAX_PAUSE_S)

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
