"""Whether a database is whole: what contradicts itself, what is missing, and what mends it.

Looking changes nothing. A repair never deletes what was measured: it writes anew what follows from
our trials (Optuna's rows, the front), lets go of what points to nothing, and makes trials wait
again that nobody runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dse import leases, schema
from dse.artifacts import LOST, check_artifact, list_artifacts
from dse.audit_optuna import compare
from dse.database import make_engine, sentences, sqlite_path
from dse.finding import Finding, listed
from dse.front import follows, front_of
from dse.rows import StudyRecord
from dse.storage import Storage, Turn
from dse.trial import NEVER_MEASURED, State, Trial


def audit(storage: Storage) -> list[Finding]:
    """Everything that is wrong with the database, whole file first, then study by study."""
    engine = make_engine(storage.url, readonly=True)
    try:
        with sentences(storage.url), engine.connect() as connection:
            found = [*_damaged(connection, storage)]
            if found:  # nothing that is read from it can be trusted
                return found
            found += _orphans(connection)
            for summary in storage.studies():
                found += _Study(storage, connection, storage.study(summary.name)).findings()
    finally:
        engine.dispose()
    return found


def repair(storage: Storage, findings: Sequence[Finding]) -> list[str]:
    """Mend what can be mended; what was done, a sentence each."""
    return [finding.mend(storage) for finding in findings if finding.mend is not None]


# --- the whole database ---------------------------------------------------------------------------


def _damaged(connection: Connection, storage: Storage) -> Iterator[Finding]:
    if sqlite_path(storage.url) is None:
        return
    found = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
    if list(found) != ["ok"]:
        yield Finding(
            "",
            f"SQLite finds the file damaged: {'; '.join(map(str, found[:3]))}; restore a backup, "
            "or save what can be read with 'dse export-study'",
        )


@dataclass(frozen=True)
class _Link:
    """Rows of `table` whose `column` names no row of `other`; `measured` ones are kept."""

    table: sa.Table
    column: str
    other: sa.Table
    what: str
    measured: bool = False

    @property
    def lost(self) -> sa.ColumnElement[bool]:
        """Which rows these are."""
        known = sa.select(self.other.c[_key(self.other)])
        return self.table.c[self.column].not_in(known)


def _key(table: sa.Table) -> str:
    return next(iter(table.primary_key.columns)).name


_LINKS = (
    _Link(schema.evaluations, "study_id", schema.studies, "trials of no study", measured=True),
    _Link(schema.fronts, "study_id", schema.studies, "fronts of no study"),
    _Link(schema.claims, "evaluation_id", schema.evaluations, "claims of no trial"),
    _Link(schema.claims, "worker_id", schema.workers, "claims of no worker"),
    _Link(schema.trial_artifacts, "evaluation_id", schema.evaluations, "artifacts of no trial"),
    _Link(schema.trial_artifacts, "sha256", schema.artifacts, "artifacts without content"),
)


def _orphans(connection: Connection) -> Iterator[Finding]:
    for link in _LINKS:
        count = _count(connection, link.table, link.lost)
        if count and link.measured:
            yield Finding("", f"{count} {link.what}: they stay; a backup has their study")
        elif count:
            mend = _deleting(link.table, link.lost, f"let go of {count} {link.what}")
            yield Finding("", f"{count} {link.what}", "let go of them", mend=mend)
    links, blobs = schema.trial_artifacts, schema.artifacts
    unused = blobs.c.sha256.not_in(sa.select(links.c.sha256))
    count = _count(connection, blobs, unused)
    if count:
        mend = _deleting(blobs, unused, f"let go of {count} contents that no trial names")
        found = f"{count} contents of artifacts that no trial names any more"
        yield Finding("", found, "let go of them", "note", mend)


def _count(connection: Connection, table: sa.Table, which: sa.ColumnElement[bool]) -> int:
    chosen = sa.select(sa.func.count()).select_from(table).where(which)
    return int(connection.execute(chosen).scalar_one())


def _deleting(
    table: sa.Table, which: sa.ColumnElement[bool], done: str
) -> Callable[[Storage], str]:
    def mend(storage: Storage) -> str:
        with storage.writing() as connection:
            connection.execute(sa.delete(table).where(which))
        return done

    return mend


# --- one study ------------------------------------------------------------------------------------


class _Study:
    """What is wrong with one study's trials, artifacts, front and Optuna's rows."""

    def __init__(self, storage: Storage, connection: Connection, record: StudyRecord) -> None:
        self.storage, self.connection, self.record = storage, connection, record
        self.name = record.name
        self.trials = storage.trials(record.name)

    def findings(self) -> Iterator[Finding]:
        """In the order in which they are best mended."""
        yield from self._gaps()
        yield from self._doubles()
        yield from self._stale()
        yield from self._artifacts()
        yield from self._front()
        yield from compare(self.storage, self.connection, self.record, self.trials)

    def _gaps(self) -> Iterator[Finding]:
        numbers = {trial.number for trial in self.trials}
        missing = sorted(set(range(max(numbers, default=-1) + 1)) - numbers)
        if not missing:
            return

        def mend(storage: Storage) -> str:
            storage.turn(self.name, lambda turn: _fill(turn, missing))
            return f"'{self.name}': stored trials {listed(missing)} as failed, for their number"

        yield Finding(
            self.name,
            f"trials {listed(missing)} are missing, and numbers have no gaps",
            "store them as failed",
            mend=mend,
        )

    def _doubles(self) -> Iterator[Finding]:
        counts = Counter(
            trial.candidate_key
            for trial in self.trials
            if trial.state.finished and NEVER_MEASURED not in trial.violations
        )
        for key, count in counts.items():
            if count > 1:
                numbers = [trial.number for trial in self.trials if trial.candidate_key == key]
                yield Finding(
                    self.name,
                    f"trials {listed(numbers)} are the same candidate; all stay, as they were "
                    "measured",
                    kind="note",
                )

    def _stale(self) -> Iterator[Finding]:
        """Running trials that no worker holds, or one that is gone or silent for a lease."""
        workers = leases.workers_of(self.connection, _study_id(self.connection, self.name))
        now = self.storage.database_time()
        lost = [w for w in workers if w.holds and (not w.live or w.gone or _silent(w, now))]
        held = {number for worker in workers for number in worker.holds}
        stale = {n for worker in lost for n in worker.holds}
        stale |= {t.number for t in self.trials if t.state is State.RUNNING} - held
        if not stale:
            return

        def mend(storage: Storage) -> str:
            storage.turn(self.name, lambda turn: [turn.give_up(worker) for worker in lost])
            storage.requeue(self.name)
            return f"'{self.name}': trials {listed(sorted(stale))} wait to be run again"

        yield Finding(
            self.name,
            f"trials {listed(sorted(stale))} are stored as running, and nobody runs them",
            "make them wait",
            mend=mend,
        )

    def _artifacts(self) -> Iterator[Finding]:
        study_id = _study_id(self.connection, self.name)
        links = list_artifacts(self.connection, study_id)
        checked: dict[str, str] = {}
        for number, kinds in links.items():
            for kind, digest in kinds.items():
                if digest not in checked:
                    checked[digest] = check_artifact(self.connection, digest)
                if checked[digest]:
                    yield self._lost(number, kind, checked[digest])
        yield from self._without_network(links)

    def _lost(self, number: int, kind: str, state: str) -> Finding:
        def mend(storage: Storage) -> str:
            storage.turn(self.name, lambda turn: turn.unlink(number, kind))
            return f"'{self.name}': trial {number} has no {kind} any more; its figures stay"

        found = f"the {kind} of trial {number} is {state}"
        if state not in LOST:  # its store cannot be asked now
            return Finding(self.name, found)
        return Finding(self.name, found, "take it off the trial; its figures stay", mend=mend)

    def _without_network(self, links: Mapping[int, Mapping[str, str]]) -> Iterator[Finding]:
        """Trained designs whose network was not kept."""
        kept = {t.network_key for t in self.trials if "graph" in links.get(t.number, {})}
        without = [
            t.number
            for t in self.trials
            if t.trained and t.state is State.COMPLETE and t.network_key not in kept
        ]
        if without:
            yield Finding(
                self.name,
                f"trials {listed(without)} were trained, and their networks are not stored: they "
                "cannot be exported or verified",
                kind="note",
            )

    def _front(self) -> Iterator[Finding]:
        changes = self.storage.fronts(self.name)
        members = changes[-1].members if changes else ()
        right, hypervolume = front_of(self.record, self.trials)
        stored = changes[-1].hypervolume if changes else 0.0
        if not follows(self.record, self.trials, members):
            found = f"the front is stored as {listed(members)}, and follows as {listed(right)}"
        elif abs(stored - hypervolume) > 1e-9:
            found = f"the hypervolume is stored as {stored:.9f}, and follows as {hypervolume:.9f}"
        else:
            return

        def mend(storage: Storage) -> str:
            storage.turn(self.name, self._put_front)
            return f"'{self.name}': the front was found again from its trials"

        yield Finding(self.name, found, "find it again from the trials", mend=mend)

    def _put_front(self, turn: Turn) -> None:
        trials = sorted(turn.changes(-1), key=lambda trial: trial.number)
        members, hypervolume = front_of(self.record, trials)
        turn.put_front(trials[-1].number, members, hypervolume)


def _fill(turn: Turn, numbers: Sequence[int]) -> None:
    reason = "lost from the database, and stored as failed by dse doctor"
    for number in numbers:
        turn.insert(Trial(number, State.FAILED, reason=reason))


def _study_id(connection: Connection, name: str) -> int:
    chosen = sa.select(schema.studies.c.study_id).where(schema.studies.c.name == name)
    return int(connection.execute(chosen).scalar_one())


def _silent(worker: leases.Worker, now: float) -> bool:
    return now - worker.seen > leases.LEASE_S
