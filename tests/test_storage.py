"""The database: round trips, what Optuna reads in it, atomic writes, and its errors."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from dse.errors import StorageError
from dse.storage import FrontChange, Storage
from dse.trial import METRICS, Metric, State, Trial
from tests import storage_samples as samples

FINISHED = (State.COMPLETE, State.INFEASIBLE, State.FAILED)


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    with Storage(samples.url(tmp_path)) as found:
        found.create(samples.record())
        yield found


def optuna_study(storage: Storage, name: str = "digits") -> optuna.Study:
    return optuna.load_study(
        storage=storage.url.render_as_string(hide_password=False), study_name=name
    )


# --------------------------------------------------------------------------- round trips


def test_study_round_trips(storage: Storage) -> None:
    assert storage.study("digits") == samples.record()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_trials_round_trip_exactly(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 4))
    states = (State.RUNNING, *FINISHED)
    trials = [data.draw(samples.trials(number, states)) for number in range(count)]
    with tempfile.TemporaryDirectory() as folder, Storage(samples.url(Path(folder))) as storage:
        storage.create(samples.record())
        for trial in trials:
            write = storage.begin if trial.state is State.RUNNING else storage.finish
            write("digits", trial)
        assert storage.trials("digits") == trials
        check_optuna_agrees(storage, trials)


def test_a_begun_trial_is_replaced_when_it_finishes(storage: Storage) -> None:
    running = Trial(0, State.RUNNING, params={"bits": 3, "rate": 0.01}, attrs={"old": 1})
    storage.begin("digits", running)
    assert storage.trials("digits") == [running]
    check_optuna_agrees(storage, [running])
    storage.finish("digits", samples.finished(0))
    assert storage.trials("digits") == [samples.finished(0)]
    check_optuna_agrees(storage, [samples.finished(0)])


def test_requeue_makes_running_trials_wait_and_begin_again(storage: Storage) -> None:
    running = Trial(1, State.RUNNING, params={"bits": 3}, started=1.79e9)
    storage.finish("digits", samples.finished(0))
    storage.begin("digits", running)
    storage.begin("digits", replace(running, number=2))
    assert storage.requeue("digits") == [1, 2]
    assert storage.requeue("digits") == []
    waiting = replace(running, state=State.WAITING, started=0.0)
    trials = [samples.finished(0), waiting, replace(waiting, number=2)]
    assert storage.trials("digits") == trials
    check_optuna_agrees(storage, trials)
    storage.begin("digits", running)
    storage.finish("digits", samples.finished(1))
    assert [trial.state for trial in storage.trials("digits")] == [
        State.COMPLETE,
        State.COMPLETE,
        State.WAITING,
    ]


def test_fronts_artifacts_and_test_accuracy(storage: Storage) -> None:
    storage.finish("digits", samples.finished(0), (0,), 0.25, {"graph": b"\0same", "other": b""})
    storage.finish("digits", samples.finished(1), artifacts={"graph": b"\0same"})
    storage.finish("digits", samples.finished(2), [0, 2], 0.5)
    assert storage.fronts("digits") == [FrontChange(0, 0.25, (0,)), FrontChange(2, 0.5, (0, 2))]
    assert storage.artifact("digits", 1, "graph") == b"\0same"
    assert storage.artifact("digits", 0, "other") == b""
    assert storage.artifact("digits", 2, "graph") is None
    assert sql(storage, "select count(*) from dse_artifacts") == [(2,)]  # stored once by content
    tested = Metric(0.88, 0.87, 0.89, "measured", "10 000 test images")
    storage.set_test_accuracy("digits", 1, tested, 10_000)
    expected = replace(samples.finished(1), test_accuracy=tested, test_samples=10_000)
    assert storage.trials("digits")[1] == expected


def test_damaged_artifact_is_refused(storage: Storage) -> None:
    storage.finish("digits", samples.finished(0), artifacts={"graph": b"12345"})
    path = storage.url.database or ""
    with sqlite3.connect(path) as connection:
        connection.execute("update dse_artifacts set blob = x'31'")
    with pytest.raises(StorageError, match="graph of trial 0 is damaged"):
        storage.artifact("digits", 0, "graph")


def test_studies_are_summed_up(storage: Storage) -> None:
    storage.create(replace(samples.record("later"), created=1.8e9, workload="mnist"))
    storage.finish("digits", samples.finished(0), (0,), 0.25)
    storage.finish("digits", samples.finished(1), (0, 1), 0.5)
    storage.finish("digits", Trial(2, State.FAILED, reason="nan"))
    storage.begin("digits", Trial(3, State.RUNNING))
    storage.update_n_trials("later", 99)
    first, second = storage.studies()
    assert (first.name, first.hypervolume, first.front_size) == ("digits", 0.5, 2)
    assert first.counts == {State.COMPLETE: 2, State.FAILED: 1, State.RUNNING: 1}
    assert (second.name, second.workload, second.n_trials) == ("later", "mnist", 99)
    assert (second.counts, second.hypervolume, second.front_size) == ({}, 0.0, 0)
    assert second.objectives == samples.OBJECTIVES


def test_table_is_the_trials_by_column(storage: Storage) -> None:
    unknown = Trial(1, State.FAILED, params={"bits": 4}, reason="nan")
    storage.finish("digits", samples.finished(0, 0.75))
    storage.finish("digits", unknown)
    table = storage.table("digits", knobs=True)
    assert table["number"].tolist() == [0, 1]
    assert table["state"].tolist() == ["complete", "failed"]
    assert table["accuracy"].tolist()[0] == 0.75
    assert np.isnan(table["accuracy"].tolist()[1])
    assert table["flash_bytes_provenance"].tolist()[0] == "measured"
    assert table["clock_hz"].dtype == np.float64
    assert table["knob:bits"].tolist() == [2, 4]
    assert table["knob:conv1/width"].isna().tolist() == [False, True]
    assert not any(column.endswith("_json") for column in table.columns)


def test_table_of_no_trials_has_the_same_columns(storage: Storage) -> None:
    empty = storage.table("digits")
    storage.finish("digits", samples.finished(0))
    assert len(empty) == 0
    assert empty.dtypes.equals(storage.table("digits").dtypes) or list(empty) == list(
        storage.table("digits")
    )


# --------------------------------------------------------------------------- Optuna


def optuna_state(trial: Trial) -> TrialState:
    """The contract, said a second time."""
    if trial.state is State.INFEASIBLE:
        known = all(trial.value(name) is not None for name in samples.OBJECTIVES)
        missed = any(miss > 0 for miss in trial.violations.values())
        return TrialState.COMPLETE if known and missed else TrialState.PRUNED
    return {
        State.COMPLETE: TrialState.COMPLETE,
        State.FAILED: TrialState.FAIL,
        State.RUNNING: TrialState.RUNNING,
        State.WAITING: TrialState.WAITING,
    }[trial.state]


def check_optuna_agrees(storage: Storage, trials: list[Trial]) -> None:
    """Optuna reads the same numbers, states, params, values, constraints and attributes."""
    study = optuna_study(storage)
    assert study.metric_names == [METRICS[name].column for name in samples.OBJECTIVES]
    assert [found.number for found in study.trials] == [trial.number for trial in trials]
    for found, trial in zip(study.trials, trials, strict=True):
        assert found.state is optuna_state(trial)
        assert found.params == pytest.approx(trial.params)
        assert found.distributions == {knob: samples.KNOBS[knob] for knob in trial.params}
        assert found.constraints == trial.violations
        prefix = "constraints:"
        own = {k: v for k, v in found.system_attrs.items() if not k.startswith(prefix)}
        assert own == trial.attrs
        if found.state is TrialState.COMPLETE:
            assert found.values == [trial.value(name) for name in samples.OBJECTIVES]
        else:
            assert not found.values
        if trial.started:
            assert found.datetime_start is not None
            assert found.datetime_start.timestamp() == pytest.approx(trial.started, abs=1e-5)


def test_optuna_finds_our_front(storage: Storage) -> None:
    record, draw = samples.record(), np.random.default_rng(3)
    for number in range(60):
        values = {"accuracy": draw.random(), "flash": draw.random() * 1e5, "latency": draw.random()}
        metrics = {name: Metric(v, v, v, "exact") for name, v in values.items()}
        miss = draw.normal(-0.5)
        state = State.INFEASIBLE if miss > 0 else State.COMPLETE
        storage.finish(
            "digits",
            Trial(number, state, metrics=metrics, violations={samples.LIMIT: miss}),
        )
    feasible = [trial for trial in storage.trials("digits") if trial.feasible]
    values_of = [[trial.value(name) for name in record.objectives] for trial in feasible]
    mask = record.box.front(np.array(values_of, dtype=float))
    ours = {trial.number for trial, member in zip(feasible, mask, strict=True) if member}
    assert 3 < len(ours) < len(feasible) < 60
    assert {trial.number for trial in optuna_study(storage).best_trials} == ours


def test_an_optuna_sampler_continues_from_our_trials(storage: Storage) -> None:
    for number in range(12):
        storage.finish("digits", samples.finished(number, number / 20))
    study = optuna_study(storage)
    study.sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=2)
    trial = study.ask(samples.KNOBS)
    assert trial.number == 12
    assert set(trial.params) == set(samples.KNOBS)


def test_an_existing_optuna_database_gains_our_tables(tmp_path: Path) -> None:
    url = samples.url(tmp_path)
    other = optuna.create_study(storage=url, study_name="theirs")
    other.add_trial(optuna.create_trial(value=1.0))
    with Storage(url) as storage:
        assert storage.studies() == []
        with pytest.raises(StorageError, match="no study 'theirs'"):
            storage.study("theirs")
        with pytest.raises(StorageError, match="that Optuna made without dse"):
            storage.create(samples.record("theirs"))
        storage.create(samples.record())
        storage.finish("digits", samples.finished(0))
        assert [summary.name for summary in storage.studies()] == ["digits"]
    assert optuna.load_study(storage=url, study_name="theirs").best_value == 1.0


def test_an_empty_study_left_by_a_crash_is_taken_over(tmp_path: Path) -> None:
    url = samples.url(tmp_path)
    directions = [METRICS[name].direction for name in samples.OBJECTIVES]
    optuna.create_study(storage=url, study_name="digits", directions=directions)
    with Storage(url) as storage:
        storage.create(samples.record())
        storage.finish("digits", samples.finished(0))
        check_optuna_agrees(storage, [samples.finished(0)])


def test_optuna_dashboard_serves_the_study(storage: Storage) -> None:
    dashboard = pytest.importorskip(
        "optuna_dashboard", reason="the extra 'dashboard' is not installed"
    )
    storage.finish("digits", samples.finished(0))
    rejected = Trial(1, State.INFEASIBLE, violations={samples.LIMIT: 0.25}, reason="ram over")
    storage.finish("digits", rejected)
    app = dashboard.wsgi(storage.url.render_as_string(hide_password=False))
    status: list[str] = []

    def get(path: str) -> bytes:
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": path,
            "QUERY_STRING": "after=0",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "wsgi.url_scheme": "http",
        }
        return b"".join(app(environ, lambda line, _headers: status.append(line)))

    assert b'"digits"' in get("/api/studies").replace(b" ", b"").replace(b"study_name", b"")
    study_id = sql(storage, "select study_id from studies")[0][0]
    detail = get(f"/api/studies/{study_id}")
    assert status == ["200 OK", "200 OK"]
    assert b"key0" in detail
    assert b"ram over" in detail


# --------------------------------------------------------------------------- atomic, concurrent


def test_a_finished_trial_is_one_commit(storage: Storage) -> None:
    commits: list[int] = []
    sa.event.listen(storage._engine, "commit", lambda _connection: commits.append(1))
    storage.finish("digits", samples.finished(0), (0,), 0.5, {"graph": b"1"})
    assert len(commits) == 1
    storage.begin("digits", Trial(1, State.RUNNING, params={"bits": 3}))
    storage.finish("digits", samples.finished(1), (0, 1), 0.6)
    assert len(commits) == 3
    storage.trials("digits")
    storage.table("digits")
    assert len(commits) == 3


def test_a_refused_write_leaves_nothing_behind(storage: Storage) -> None:
    with pytest.raises(StorageError, match="cannot be stored as JSON"):
        storage.finish("digits", samples.finished(0, attrs={"set": {1}}))
    with pytest.raises(StorageError):
        storage.finish("digits", samples.finished(0), (0,), 0.5, {"x": "no bytes"})  # type: ignore[dict-item]
    assert storage.trials("digits") == []
    assert optuna_study(storage).trials == []
    storage.finish("digits", samples.finished(0))


WRITER = """
import sys, itertools
from dse.storage import Storage
from dse.trial import State, Trial
from tests import storage_samples as samples
with Storage(sys.argv[1]) as storage:
    print("ready", flush=True)
    for number in itertools.count(len(storage.trials("digits"))):
        if number % 2:
            storage.begin("digits", Trial(number, State.RUNNING, params={"bits": 3}))
        front = list(range(number + 1))
        storage.finish("digits", samples.finished(number), front, 0.5, {"graph": bytes(20000)})
"""


@pytest.mark.slow
def test_kill_in_the_middle_of_a_write_leaves_whole_trials(storage: Storage) -> None:
    """Killed five times while writing as fast as it can; each time every row has its like."""
    url = storage.url.render_as_string(hide_password=False)
    for _ in range(5):
        child = subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(0.25)
        child.kill()
        child.wait()
        child.stdout.close()
        storage.requeue("digits")
        trials = storage.trials("digits")
        assert [trial.number for trial in trials] == list(range(len(trials)))
        waiting = [trial for trial in trials if trial.state is State.WAITING]
        assert waiting in ([], trials[-1:])
        check_optuna_agrees(storage, trials)
        done = trials[: len(trials) - len(waiting)]
        assert [change.number for change in storage.fronts("digits")] == [t.number for t in done]
        assert all(storage.artifact("digits", t.number, "graph") == bytes(20000) for t in done)
        if waiting:
            storage.finish(
                "digits", samples.finished(waiting[0].number), (0,), 0.5, {"graph": bytes(20000)}
            )
    assert len(storage.trials("digits")) > 20
    assert sql(storage, "pragma integrity_check") == [("ok",)]


def test_readers_see_whole_trials_while_another_connection_writes(storage: Storage) -> None:
    url = storage.url.render_as_string(hide_password=False)
    stop, trouble, seen = threading.Event(), [], set()

    def read() -> None:
        with Storage.open_readonly(url) as reader:
            while not stop.is_set():
                try:
                    trials = reader.trials("digits")
                    seen.add(len(trials))
                    assert trials == [samples.finished(number) for number in range(len(trials))]
                    assert len(reader.table("digits")) >= len(trials)
                except Exception as error:  # handed to the test's own thread
                    trouble.append(error)
                    return

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(80):
        storage.finish("digits", samples.finished(number))
    stop.set()
    for thread in threads:
        thread.join()
    assert trouble == []
    assert len(seen) > 1


def test_a_writer_waits_for_another_one(storage: Storage) -> None:
    held, released = threading.Event(), threading.Event()

    def hold() -> None:
        with storage._write():
            held.set()
            released.wait(5)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(5)
    threading.Timer(0.3, released.set).start()
    with Storage(storage.url.render_as_string()) as second:
        second.finish("digits", samples.finished(0))
    holder.join()
    assert len(storage.trials("digits")) == 1


# --------------------------------------------------------------------------- reading only


def test_readonly_changes_nothing(storage: Storage) -> None:
    storage.finish("digits", samples.finished(0))
    url = storage.url.render_as_string()
    storage.close()
    path = Path(storage.url.database or "")
    before = path.read_bytes()
    with Storage.open_readonly(url) as reader:
        assert reader.trials("digits") == [samples.finished(0)]
        with pytest.raises(StorageError, match="open for reading only"):
            reader.finish("digits", samples.finished(1))
        with pytest.raises(StorageError, match="open for reading only"):
            reader.create(samples.record("other"))
        with reader._read() as connection, pytest.raises(sa.exc.OperationalError, match="readonly"):
            connection.exec_driver_sql("delete from dse_studies")
    assert path.read_bytes() == before


def test_readonly_never_creates_the_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="there is no database at"):
        Storage.open_readonly(samples.url(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_name_with_url_signs_opens(tmp_path: Path) -> None:
    url = samples.url(tmp_path, "50% of a#b.db")
    with Storage(url) as storage:
        storage.create(samples.record())
    with Storage.open_readonly(url) as reader:
        assert reader.study("digits") == samples.record()


@pytest.fixture
def nobody() -> Iterator[None]:
    """Permissions do not stop the superuser, so a test of them becomes an ordinary user."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def sealed() -> Iterator[Path]:
    """A database in a folder that nobody may write to."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Storage(samples.url(folder)) as storage:
            storage.create(samples.record())
            storage.finish("digits", samples.finished(0))
        (folder / "study.db").chmod(0o444)
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)


def test_readonly_works_in_a_folder_without_permission(sealed: Path, nobody: None) -> None:
    with Storage.open_readonly(samples.url(sealed)) as reader:
        assert reader.trials("digits") == [samples.finished(0)]


# --------------------------------------------------------------------------- errors


def test_writing_without_permission(sealed: Path, nobody: None) -> None:
    with pytest.raises(StorageError, match="permission"), Storage(samples.url(sealed)) as storage:
        storage.finish("digits", samples.finished(1))


def test_creating_without_permission(sealed: Path, nobody: None) -> None:
    with pytest.raises(StorageError, match="permission"):
        Storage(samples.url(sealed, "new.db")).create(samples.record())


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("study.db", "write sqlite:///study.db"),
        ("", "not a storage URL"),
        ("mysql://host/db", "unknown storage 'mysql://'.*allowed: postgresql, sqlite"),
        ("sqlit:///x.db", "did you mean 'sqlite'"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:////nowhere/at/all/x.db", "folder /nowhere/at/all does not exist"),
        ("sqlite:////tmp", "is a folder"),
        ("postgresql://me@host:port/db", "cannot be read"),
    ],
)
def test_wrong_urls(url: str, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        Storage(url)


def test_a_missing_postgresql_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StorageError, match=r'pip install "dse\[postgresql\]"'):
        Storage("postgresql://me:secret@localhost/db")


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    path.write_text("learning_rate: 0.1\n" * 100)
    for readonly in (False, True):
        with pytest.raises(StorageError, match="is not a SQLite database"):
            Storage(samples.url(tmp_path), readonly=readonly)
    assert path.read_text().startswith("learning_rate")


def test_a_damaged_database(storage: Storage) -> None:
    for number in range(40):
        storage.finish("digits", samples.finished(number))
    storage.close()
    path = Path(storage.url.database or "")
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(StorageError, match="damaged"), Storage(samples.url(path.parent)) as broken:
        broken.trials("digits")


def test_a_database_deleted_while_open(storage: Storage) -> None:
    storage.close()
    Path(storage.url.database or "").unlink()
    with pytest.raises(StorageError, match="there is no database"):
        storage.trials("digits")
    with pytest.raises(StorageError, match="table is missing|deleted"):
        storage.finish("digits", samples.finished(0))


def test_a_missing_file_is_not_made_by_reading(tmp_path: Path) -> None:
    with Storage(samples.url(tmp_path)) as storage:
        with pytest.raises(StorageError, match="there is no database at"):
            storage.study("digits")
    assert list(tmp_path.iterdir()) == []


def test_studies_that_exist_or_do_not(storage: Storage) -> None:
    with pytest.raises(StorageError, match="study 'digits' exists"):
        storage.create(samples.record())
    with pytest.raises(StorageError, match="no study 'digit'.*did you mean 'digits'"):
        storage.study("digit")
    with pytest.raises(StorageError, match="no study 'digit'"):
        storage.finish("digit", samples.finished(0))


def test_a_study_deleted_in_optuna_is_kept_but_closed(storage: Storage) -> None:
    storage.finish("digits", samples.finished(0))
    optuna.delete_study(
        study_name="digits", storage=storage.url.render_as_string(hide_password=False)
    )
    assert storage.trials("digits") == [samples.finished(0)]
    with pytest.raises(StorageError, match="was deleted or renamed in Optuna's tables"):
        storage.finish("digits", samples.finished(1))


def test_a_finished_trial_is_never_overwritten(storage: Storage) -> None:
    storage.finish("digits", samples.finished(0))
    for trial in (samples.finished(0), Trial(0, State.FAILED)):
        with pytest.raises(StorageError, match="trial 0 is finished already"):
            storage.finish("digits", trial)
    with pytest.raises(StorageError, match="trial 0 is finished already"):
        storage.begin("digits", Trial(0, State.RUNNING))
    assert storage.trials("digits") == [samples.finished(0)]


@pytest.mark.parametrize(
    ("trial", "message"),
    [
        (samples.finished(1), "the next one is number 0; found 1"),
        (Trial(0, State.RUNNING), "is running, not finished"),
        (Trial(0, State.WAITING), "is waiting, not finished"),
        (Trial(0, State.COMPLETE), "accuracy, flash, latency is not known"),
        (samples.finished(0, params={"bitz": 3}), "knob 'bitz'"),
        (samples.finished(0, params={"board": "esp32"}), "'esp32' is not a value of the knob"),
        (samples.finished(0, metrics={"price": Metric(1, 1, 1, "exact")}), "without a column"),
        (samples.finished(0, violations={samples.LIMIT: 0.1}), "misses"),
    ],
)
def test_wrong_trials(storage: Storage, trial: Trial, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        storage.finish("digits", trial)
    assert storage.trials("digits") == []


def test_other_wrong_arguments(storage: Storage) -> None:
    with pytest.raises(StorageError, match="begins as running"):
        storage.begin("digits", samples.finished(0))
    with pytest.raises(StorageError, match="together"):
        storage.finish("digits", samples.finished(0), front=(0,))
    with pytest.raises(StorageError, match="has no trial 7"):
        storage.set_test_accuracy("digits", 7, Metric(1, 1, 1, "measured"), 10)
    with pytest.raises(StorageError, match="at least one trial"):
        storage.update_n_trials("digits", 0)


def test_wrong_records() -> None:
    record = samples.record()
    with pytest.raises(StorageError, match="1 to 512 characters"):
        replace(record, name="")
    with pytest.raises(StorageError, match="at least one trial"):
        replace(record, n_trials=0)
    with pytest.raises(StorageError, match="in the same order"):
        replace(record, objectives=("flash", "accuracy", "latency"))


def test_messages_never_show_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    from dse.database import parse_url, shown

    assert "secret" not in shown(parse_url("postgresql://me:secret@host/db"))


def test_hostile_text_of_an_error_can_be_stored(storage: Storage) -> None:
    storage.finish("digits", Trial(0, State.FAILED, reason="bad \udcff name \0 here"))
    assert storage.trials("digits")[0].reason == "bad \\udcff name \\0 here"


def sql(storage: Storage, statement: str) -> list[tuple[object, ...]]:
    with storage._read() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(statement)]
