"""Studies between databases: nothing lost, nothing doubled, nothing believed."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dse.audit import audit
from dse.errors import StorageError
from dse.front import Front, follows
from dse.storage import Storage
from dse.transfer import export_study, import_study
from dse.trial import NETWORK_OF, NEVER_MEASURED, Metric, Proof, State, Trial
from tests import storage_samples as samples
from tests.command_line import Dse
from tests.postgresql import Server

FINISHED = (State.COMPLETE, State.INFEASIBLE, State.FAILED)


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    with Storage(samples.url(tmp_path)) as found:
        found.create(samples.record())
        yield found


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Storage]:
    with Storage(samples.url(tmp_path, "other.db")) as found:
        yield found


def moved(source: Storage, target: Storage, folder: Path, **options: Any) -> Any:
    path = folder / "study.dse"
    export_study(source, "digits", path, force=True)
    return import_study(target, path, **options)


def fill(storage: Storage, trials: list[Trial]) -> None:
    """Store trials as a study does, with the front after each."""
    front = Front(samples.record())
    for trial in trials:
        if not trial.state.finished:
            storage.begin("digits", replace(trial, state=State.RUNNING))
            continue
        members, hypervolume = front.after(trial)
        blob = trial.candidate_key.encode()
        storage.finish("digits", trial, members, hypervolume, {"graph": blob})


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with a study and no trials; copied, since creating one takes long."""
    folder = tmp_path_factory.mktemp("template")
    with Storage(samples.url(folder)) as storage:
        storage.create(samples.record())

    return folder / "study.db"


@settings(max_examples=8)
@given(st.data())
def test_any_study_comes_back_as_it_was(empty: Path, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 4))
    states = (State.RUNNING, *FINISHED)
    trials = [data.draw(samples.trials(number, states)) for number in range(count)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(empty, folder / "study.db")
        shutil.copy(empty, folder / "b.db")
        with Storage(samples.url(folder)) as source, Storage(samples.url(folder, "b.db")) as target:
            for trial in trials:
                write = source.begin if trial.state is State.RUNNING else source.finish
                write("digits", trial)
            moved(source, target, folder, name="new")
            expected = [
                trial if trial.state.finished else replace(trial, state=State.WAITING, started=0.0)
                for trial in trials
            ]
            assert target.trials("new") == expected
            definition = {**samples.record().definition, "folder": ""}
            assert target.study("new") == replace(samples.record("new"), definition=definition)
            samples.check_optuna_agrees(target, expected, name="new")


def test_fronts_and_artifacts_come_along(storage: Storage, other: Storage, tmp_path: Path) -> None:
    fill(storage, [samples.finished(n, 0.5 + 0.1 * n) for n in range(4)])
    done = moved(storage, other, tmp_path)
    assert (done.added, done.known) == (4, 0)
    assert other.fronts("digits") == storage.fronts("digits")
    assert len(other.fronts("digits")) == 4
    for number in range(4):
        assert other.artifact("digits", number, "graph") == f"key{number}".encode()
    assert audit(other) == []


def test_importing_twice_changes_nothing(storage: Storage, other: Storage, tmp_path: Path) -> None:
    fill(storage, [samples.finished(n) for n in range(3)])
    moved(storage, other, tmp_path)
    before = other.trials("digits"), other.fronts("digits")
    done = moved(storage, other, tmp_path)
    assert (done.added, done.known) == (0, 3)
    assert (other.trials("digits"), other.fronts("digits")) == before


KEYS = st.lists(
    st.tuples(st.integers(0, 6), st.sampled_from(FINISHED)), max_size=6, unique_by=lambda p: p[0]
)


def with_key(number: int, key: int, state: State) -> Trial:
    """The trial of candidate `key`, the same wherever it was measured."""
    trial = samples.finished(number, 0.4 + 0.05 * key, candidate_key=f"key{key}")
    if state is State.COMPLETE:
        return trial
    return replace(trial, state=state, metrics={}, violations={samples.LIMIT: 1.0})


@settings(max_examples=8)
@given(KEYS, KEYS)
def test_a_merge_has_every_candidate_once_and_keeps_every_result(
    empty: Path, ours: list[tuple[int, State]], theirs: list[tuple[int, State]]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(empty, folder / "study.db")
        shutil.copy(empty, folder / "b.db")
        with Storage(samples.url(folder)) as source, Storage(samples.url(folder, "b.db")) as target:
            for storage, keys in ((target, ours), (source, theirs)):
                fill(storage, [with_key(n, *pair) for n, pair in enumerate(keys)])
            before = target.trials("digits")
            moved(source, target, folder)
            after = target.trials("digits")
            assert sorted(t.candidate_key for t in after) == sorted(
                {f"key{key}" for key, _ in ours + theirs}
            )
            assert [t.number for t in after] == list(range(len(after)))
            for old, new in zip(before, after, strict=False):
                assert new == old or old.state is State.FAILED
            measured = {f"key{key}" for key, state in ours + theirs if state is not State.FAILED}
            assert {t.candidate_key for t in after if t.state is not State.FAILED} == measured
            fronts = target.fronts("digits")
            assert follows(target.study("digits"), after, fronts[-1].members if fronts else ())
            assert [f for f in audit(target) if f.kind == "broken"] == []
            samples.check_optuna_agrees(target, after)


def test_what_only_the_file_knows_of_a_trial_is_added(
    storage: Storage, other: Storage, tmp_path: Path
) -> None:
    tested = Metric(0.8, 0.7, 0.9, "measured", "test")
    proof = Proof("board/native", samples=20, matching=20)
    storage.finish("digits", samples.finished(0, test_accuracy=tested, test_samples=500))
    storage.prove("digits", 0, proof, {"verification": b"details"})
    other.create(samples.record())
    other.finish("digits", samples.finished(0), artifacts={"graph": b"mine"})
    assert moved(storage, other, tmp_path).known == 1
    found = other.trial("digits", 0)
    assert found == samples.finished(0, test_accuracy=tested, test_samples=500, proof=proof)
    assert other.artifact("digits", 0, "verification") == b"details"
    assert other.artifact("digits", 0, "graph") == b"mine"


def test_a_waiting_trial_takes_its_result_from_the_file(
    storage: Storage, other: Storage, tmp_path: Path
) -> None:
    fill(storage, [samples.finished(n, 0.5 + 0.1 * n) for n in range(2)])
    other.create(samples.record())
    other.begin("digits", replace(samples.finished(0, candidate_key="key1"), state=State.RUNNING))
    other.requeue("digits")
    done = moved(storage, other, tmp_path)
    assert (done.completed, done.added) == (1, 1)
    assert [t.candidate_key for t in other.trials("digits")] == ["key1", "key0"]
    assert all(t.state is State.COMPLETE for t in other.trials("digits"))


def test_a_trial_that_runs_here_goes_on(storage: Storage, other: Storage, tmp_path: Path) -> None:
    fill(storage, [samples.finished(0)])
    other.create(samples.record())
    other.begin("digits", replace(samples.finished(0), state=State.RUNNING))
    assert moved(storage, other, tmp_path).running == 1
    assert [t.state for t in other.trials("digits")] == [State.RUNNING]


def test_a_served_trial_names_its_origin_by_the_number_it_has_here(
    storage: Storage, other: Storage, tmp_path: Path
) -> None:
    served = samples.finished(1, 0.95, attrs={NETWORK_OF: 0})
    fill(storage, [samples.finished(0), served])
    other.create(samples.record())
    fill(other, [samples.finished(0, candidate_key="mine")])
    moved(storage, other, tmp_path)
    assert other.trial("digits", 2).attrs[NETWORK_OF] == 1


def test_a_candidate_that_limits_rejected_here_takes_its_measurement(
    storage: Storage, other: Storage, tmp_path: Path
) -> None:
    fill(storage, [samples.finished(0)])
    other.create(samples.record())
    rejected = with_key(0, 0, State.INFEASIBLE)
    other.finish("digits", replace(rejected, violations={NEVER_MEASURED: 1.0}))
    assert moved(storage, other, tmp_path).added == 1
    assert [t.state for t in other.trials("digits")] == [State.INFEASIBLE, State.COMPLETE]
    assert audit(other) == []


CHANGES: dict[str, Callable[[], Any]] = {
    "space.bits was": lambda: replace(
        samples.record(), definition={"study": "digits", "space": {"bits": [4, 8]}}
    ),
    "its knobs or their choices": lambda: replace(samples.record(), space_hash="other"),
    "its reference point": lambda: replace(
        samples.record(), box=replace(samples.record().box, reference=(1e8, 1e9, 1e9))
    ),
}


@pytest.mark.parametrize("said", CHANGES)
def test_another_search_is_refused_with_what_differs_or_gets_another_name(
    storage: Storage, other: Storage, tmp_path: Path, said: str
) -> None:
    fill(storage, [samples.finished(0)])
    other.create(CHANGES[said]())
    with pytest.raises(StorageError) as told:
        moved(storage, other, tmp_path)
    assert said in str(told.value)
    assert "--name" in str(told.value)
    assert other.trials("digits") == []
    moved(storage, other, tmp_path, name="theirs")
    assert other.trials("theirs") == [samples.finished(0)]


def test_more_trials_asked_for_in_the_file_are_asked_for_here(
    storage: Storage, other: Storage, tmp_path: Path
) -> None:
    other.create(replace(samples.record(), n_trials=10))
    moved(storage, other, tmp_path)
    assert other.study("digits").n_trials == 60


def test_code_beside_the_study_file_is_not_taken_from_its_old_folder(
    storage: Storage, other: Storage, tmp_path: Path
) -> None:
    own = {"folder": "/somewhere", "workload": {"model": "own:build", "data": "own:data"}}
    storage.create(replace(samples.record("own"), definition=own))
    export_study(storage, "own", tmp_path / "own.dse")
    import_study(other, tmp_path / "own.dse")
    with pytest.raises(StorageError, match="its network and data are code; give its study file"):
        _ = other.study("own").folder
    assert storage.study("own").folder == Path("/somewhere")


# --- the file -------------------------------------------------------------------------------------


@pytest.fixture
def exported(storage: Storage, tmp_path: Path) -> Path:
    fill(storage, [samples.finished(0)])
    path = tmp_path / "study.dse"
    export_study(storage, "digits", path)
    return path


def changed(path: Path, member: str, change: Callable[[bytes], bytes], *, honest: bool) -> Path:
    """The file with one member changed; an honest one has the right hash in its manifest."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    content[member] = change(content[member])
    if honest and member != "manifest.json":
        manifest = json.loads(content["manifest.json"])
        manifest["sha256"][member] = hashlib.sha256(content[member]).hexdigest()
        content["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def member_names(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def test_the_file_holds_no_code_and_only_what_it_names(exported: Path) -> None:
    digest = hashlib.sha256(b"key0").hexdigest()
    texts = ["study.json", "trials.jsonl", "fronts.jsonl", "manifest.json"]
    assert member_names(exported) == [f"artifacts/{digest}", *texts]


def test_an_existing_file_is_not_overwritten_unasked(storage: Storage, exported: Path) -> None:
    before = exported.read_bytes()
    with pytest.raises(StorageError, match="exists already"):
        export_study(storage, "digits", exported)
    assert exported.read_bytes() == before


@pytest.mark.parametrize("member", range(4))
def test_a_changed_byte_anywhere_is_refused(exported: Path, other: Storage, member: int) -> None:
    name = member_names(exported)[member]
    changed(exported, name, lambda data: data[:-3] + b"x" + data[-2:], honest=False)
    with pytest.raises(StorageError, match="is damaged; export the study again"):
        import_study(other, exported)
    assert not Path(other.url.database or "").exists()


@pytest.mark.parametrize("size", [0, 10, 500])
def test_a_truncated_file_is_refused(exported: Path, other: Storage, size: int) -> None:
    exported.write_bytes(exported.read_bytes()[:size])
    with pytest.raises(StorageError, match="is not a whole export"):
        import_study(other, exported)


def json_changed(**changes: Any) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps({**json.loads(data), **changes}).encode() + b"\n"


def without(key: str) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        row = json.loads(data)
        del row[key]
        return json.dumps(row).encode() + b"\n"

    return change


@pytest.mark.parametrize(
    ("member", "change", "said"),
    [
        ("manifest.json", json_changed(version=2), "format version 2, this dse reads 1"),
        ("manifest.json", json_changed(format="zoo"), "holds 'zoo'"),
        ("manifest.json", without("sha256"), "is not a whole export"),
        ("manifest.json", json_changed(sha256={}), "other members than its manifest"),
        ("study.json", without("box_json"), "is not a whole export"),
        ("study.json", json_changed(n_trials=0), "at least one trial"),
        ("study.json", json_changed(name=""), "1 to 512 characters"),
        ("trials.jsonl", json_changed(price=3), "a newer dse wrote it: price"),
        ("trials.jsonl", json_changed(number="0; drop table"), "is not a whole export"),
        ("trials.jsonl", json_changed(state="odd"), "is not a whole export"),
        ("trials.jsonl", json_changed(accuracy=2.0), "is not a whole export"),
        (
            "trials.jsonl",
            json_changed(artifacts={"graph": "0" * 64}),
            "graph of trial 0 is missing",
        ),
        ("trials.jsonl", lambda data: data + b"[", "is not a whole export"),
        ("fronts.jsonl", without("members_json"), "is not a whole export"),
    ],
)
def test_a_file_made_by_hand_is_refused_with_one_sentence(
    exported: Path, other: Storage, member: str, change: Callable[[bytes], bytes], said: str
) -> None:
    changed(exported, member, change, honest=True)
    with pytest.raises(StorageError) as told:
        import_study(other, exported)
    assert said in str(told.value)
    assert str(exported) in str(told.value)


def test_a_member_outside_is_refused_and_nothing_is_unpacked(
    exported: Path, other: Storage, tmp_path: Path
) -> None:
    with zipfile.ZipFile(exported, "a") as archive:
        archive.writestr("../evil.py", "raise SystemExit")
    with pytest.raises(StorageError, match="other members than its manifest"):
        import_study(other, exported)
    assert not (tmp_path.parent / "evil.py").exists()


def test_what_unpacks_to_too_much_is_refused_unread(
    exported: Path, other: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dse.study_archive.MAX_BYTES", 100)
    with pytest.raises(StorageError, match="would unpack to"):
        import_study(other, exported)


def test_an_artifact_that_is_damaged_is_left_out_and_said(
    storage: Storage, other: Storage, tmp_path: Path
) -> None:
    fill(storage, [samples.finished(n) for n in range(2)])
    with storage.writing() as connection:
        connection.exec_driver_sql(
            "update dse_artifacts set blob = x'00' where bytes = 4 and sha256 in "
            "(select sha256 from dse_trial_artifacts where evaluation_id = 1)"
        )
    done = export_study(storage, "digits", tmp_path / "study.dse")
    assert (done.artifacts, len(done.left_out)) == (1, 1)
    assert "graph of trial 0 is damaged" in done.left_out[0]
    import_study(other, tmp_path / "study.dse")
    assert other.artifact("digits", 0, "graph") is None
    assert other.artifact("digits", 1, "graph") == b"key1"


# --- between kinds of database, and by command ----------------------------------------------------


def test_sqlite_to_postgresql_and_back(
    storage: Storage, other: Storage, postgresql: Server, tmp_path: Path
) -> None:
    fill(storage, [samples.finished(n, 0.5 + 0.1 * n) for n in range(3)])
    database = postgresql.new_database()
    with Storage(postgresql.url(database)) as server:
        assert moved(storage, server, tmp_path).added == 3
        assert server.trials("digits") == storage.trials("digits")
        fill_more = samples.finished(3, 0.95)
        server.finish("digits", fill_more, (3,), 0.5, {"graph": b"key3"})
        moved(server, other, tmp_path)
        assert moved(server, storage, tmp_path).added == 1
    postgresql.drop(database)
    for target in (other, storage):
        assert [t.candidate_key for t in target.trials("digits")] == [f"key{n}" for n in range(4)]
        assert target.artifact("digits", 3, "graph") == b"key3"
        samples.check_optuna_agrees(target, target.trials("digits"))


def test_the_commands_move_a_study(
    storage: Storage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fill(storage, [samples.finished(0)])
    dse = Dse(tmp_path, monkeypatch, capsys)
    store = f"file://{tmp_path / 'store'}"
    told = dse("export-study", "digits", "study.dse", "--storage", "sqlite:///study.db")
    assert "wrote study.dse: 1 trials, 1 artifacts" in told.out
    given = ("--storage", "sqlite:///new.db", "--artifacts", store)
    told = dse("import-study", "study.dse", *given)
    assert "study 'digits': 1 added" in told.out
    told = dse("import-study", "study.dse", *given)
    assert "study 'digits': 1 known here already" in told.out
    with Storage.open_readonly("sqlite:///new.db") as reader:
        assert reader.artifact("digits", 0, "graph") == b"key0"
        assert samples.sql(reader, "select bytes, length(blob), store from dse_artifacts") == [
            (4, 0, store)
        ]
    told = dse("backup", "copy.db", "--storage", "sqlite:///new.db")
    assert "wrote copy.db" in told.out
    dse("export-study", "digit", "x.dse", "--storage", "sqlite:///new.db").refused("'digits'")
    dse("import-study", "none.dse").refused("there is no file none.dse")
    dse("backup", "copy.db", "--storage", "sqlite:///new.db").refused("exists already")
