"""A study from one database to another: exported to a file, imported or merged from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dse.database import shown, sqlite_path
from dse.errors import StorageError
from dse.front import Front, follows, front_of
from dse.provenance import versions
from dse.rows import FrontChange, StudyRecord, metric_row, proof_text
from dse.schema import TEST_PREFIX
from dse.storage import Storage, Turn
from dse.study_archive import StudyArchive, read_archive, write_archive
from dse.study_yaml import difference
from dse.trial import NETWORK_OF, NEVER_MEASURED, State, Trial


@dataclass(frozen=True)
class Exported:
    """What an export wrote, and a sentence for each artifact that it could not."""

    trials: int
    artifacts: int
    size_bytes: int
    left_out: tuple[str, ...]


@dataclass
class Imported:
    """Counts of the file's trials by what became of them.

    `added` are new here, `completed` gave a result to one that waited or had failed here, `known`
    were here already, `running` run here now, `unfinished` had no result in the file.
    """

    study: str
    added: int = 0
    completed: int = 0
    known: int = 0
    running: int = 0
    unfinished: int = 0


def export_study(storage: Storage, name: str, path: Path, *, force: bool = False) -> Exported:
    """Write a study with all its trials, fronts and artifacts to one file.

    It may run meanwhile: the file holds a whole beginning. An artifact that is missing or damaged
    is left out. Raises StorageError when there is no such study, or the file exists or cannot be
    written.
    """
    if path.exists() and not force:
        raise StorageError(f"{path} exists already; choose another name or give --force")
    record = storage.study(name)
    fronts, trials = storage.fronts(name), storage.trials(name)
    if not follows(record, trials, fronts[-1].members if fronts else ()):  # one came in between
        members, hypervolume = front_of(record, trials)
        fronts.append(FrontChange(trials[-1].number, hypervolume, members))
    artifacts = storage.artifacts(name)
    blobs = _Blobs(storage, name, artifacts)
    write_archive(path, record, trials, fronts, artifacts, iter(blobs), versions())
    return Exported(len(trials), blobs.count, path.stat().st_size, tuple(blobs.left_out))


@dataclass
class _Blobs:
    """Every content once, checked as it is read."""

    storage: Storage
    study: str
    artifacts: Mapping[int, Mapping[str, str]]
    count: int = 0
    left_out: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        seen: set[str] = set()
        for number, kinds in self.artifacts.items():
            for kind, digest in kinds.items():
                if digest in seen:
                    continue
                seen.add(digest)
                try:
                    blob = self.storage.artifact(self.study, number, kind)
                except StorageError as error:
                    self.left_out.append(str(error))
                    continue
                if blob is not None:
                    self.count += 1
                    yield digest, blob


def import_study(storage: Storage, path: Path, name: str | None = None) -> Imported:
    """Bring the study of a file into this database, as a new one or into one of the same name.

    Trials of the same study are merged by candidate: one that has a result here is kept as it is,
    with what only the file knows of it (test accuracy, proof, artifacts) added. All of it is one
    transaction. Modules that the study names are not taken from the folder it came from.
    Raises StorageError when the file is damaged, or a study of this name asks for something else.
    """
    archive = read_archive(path)
    definition = {**archive.record.definition, "folder": ""}
    record = replace(archive.record, name=name or archive.record.name, definition=definition)
    here = _here(storage, record.name)
    if here is None:
        storage.create(record)
    else:
        _check_same(here, record, storage)
        record = replace(here, n_trials=max(here.n_trials, record.n_trials))
        if record.n_trials > here.n_trials:
            storage.update_n_trials(record.name, record.n_trials)
    return storage.turn(record.name, lambda turn: _Merge(turn, record, archive).run())


def _here(storage: Storage, name: str) -> StudyRecord | None:
    path = sqlite_path(storage.url)
    if path is not None and not path.exists():
        return None
    known = {found.name for found in storage.studies()}
    return storage.study(name) if name in known else None


def _check_same(here: StudyRecord, found: StudyRecord, storage: Storage) -> None:
    """Refuse trials of another search, and costs that another model gave."""
    lines = difference(_asked(here), _asked(found))
    if not lines and here.space_hash != found.space_hash:
        lines = ["its knobs or their choices"]
    if not lines and here.box != found.box:
        lines = ["its reference point, as another version of the cost models gave it"]
    if lines:
        raise StorageError(
            f"study '{here.name}' in {shown(storage.url)} asks for something else than the file: "
            f"{'; '.join(lines)}; import it under another name with --name"
        )


def _asked(record: StudyRecord) -> Mapping[str, object]:
    return {key: value for key, value in record.definition.items() if key != "folder"}


class _Merge:
    """One file's trials into one study, within one turn at it."""

    def __init__(self, turn: Turn, record: StudyRecord, archive: StudyArchive) -> None:
        self.turn, self.record, self.archive = turn, record, archive
        self.done = Imported(record.name)
        stored = turn.changes(-1)
        self.numbers: dict[int, int] = {}  # in the file -> here
        self._next = turn.next_number()
        self._by_key: dict[str, Trial] = {}
        for trial in sorted(stored, key=lambda trial: trial.number):
            self._note(trial)
        self._front = Front(record)
        front = turn.front()
        members = () if front is None else front.members
        by_number = {trial.number: trial for trial in stored}
        self._front.set([by_number[number] for number in members])

    def run(self) -> Imported:
        """Copy into an empty study, else merge."""
        trials = sorted(self.archive.trials, key=lambda trial: trial.number)
        if self._next == 0 and [trial.number for trial in trials] == list(range(len(trials))):
            self._copy(trials)
        else:
            for trial in trials:
                self._merge(trial)
        return self.done

    def _copy(self, trials: Sequence[Trial]) -> None:
        """As they are, with their numbers and the history of the front; running ones wait."""
        for trial in trials:
            if trial.state.finished:
                self.turn.finish(trial, artifacts=self._artifacts(trial.number))
                self.done.added += 1
            else:
                self.turn.begin(replace(trial, state=State.RUNNING))
                self.done.unfinished += 1
        self.turn.hand_back(trial.number for trial in trials if not trial.state.finished)
        for change in self.archive.fronts:
            self.turn.put_front(change.number, change.members, change.hypervolume)

    def _merge(self, trial: Trial) -> None:
        here = self._by_key.get(trial.candidate_key)
        if not trial.state.finished:
            self.done.unfinished += 1
        elif here is None or (NEVER_MEASURED in here.violations and _measured(trial)):
            self._add(trial, self._next)
            self._next += 1
            self.done.added += 1
        elif here.state is State.RUNNING:
            self.numbers[trial.number] = here.number
            self.done.running += 1
        elif here.state is State.WAITING or (here.state is State.FAILED and _measured(trial)):
            self._add(trial, here.number)
            self.done.completed += 1
        else:
            self.numbers[trial.number] = here.number
            self._complement(here, trial)
            self.done.known += 1

    def _add(self, trial: Trial, number: int) -> None:
        """Store the file's trial under a number of this study."""
        artifacts = self._artifacts(trial.number)
        self.numbers[trial.number] = number
        attrs = dict(trial.attrs)
        if NETWORK_OF in attrs:
            attrs[NETWORK_OF] = self.numbers.get(attrs[NETWORK_OF], number)
        trial = replace(trial, number=number, attrs=attrs)
        failed = self._by_key.get(trial.candidate_key)
        if failed is not None and failed.number == number and failed.state is State.FAILED:
            self.turn.overwrite(trial)
            self.turn.amend(number, {}, artifacts)
        else:
            self.turn.finish(trial, artifacts=artifacts)
        if self._front.add(trial):
            self.turn.put_front(number, self._front.members, self._front.hypervolume)
        self._note(trial)

    def _complement(self, here: Trial, found: Trial) -> None:
        """What only the file knows about a trial that has its result here."""
        changes: dict[str, object] = {}
        if here.test_accuracy is None and found.test_accuracy is not None:
            changes |= metric_row(TEST_PREFIX, found.test_accuracy)
            changes["test_samples"] = found.test_samples
        if here.proof is None and found.proof is not None:
            changes["proof_json"] = proof_text(found.proof)
        kinds = self.turn.artifacts(here.number)
        missing = {k: b for k, b in self._artifacts(found.number).items() if k not in kinds}
        if changes or missing:
            self.turn.amend(here.number, changes, missing)

    def _artifacts(self, number: int) -> dict[str, bytes]:
        kinds = self.archive.artifacts.get(number, {})
        return {kind: self.archive.blob(digest) for kind, digest in kinds.items()}

    def _note(self, trial: Trial) -> None:
        """The trial that stands for its candidate: one with a result before one without."""
        known = self._by_key.get(trial.candidate_key)
        if known is None or _rank(trial) > _rank(known):
            self._by_key[trial.candidate_key] = trial


def _measured(trial: Trial) -> bool:
    return trial.state in (State.COMPLETE, State.INFEASIBLE) and (
        NEVER_MEASURED not in trial.violations
    )


def _rank(trial: Trial) -> int:
    return 2 if _measured(trial) else int(trial.state.finished)
