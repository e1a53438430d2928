"""The database: any trial comes back as it was, and writes are atomic."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from dse import schema
from dse.errors import StorageError
from dse.storage import FrontChange, Storage
from dse.trial import Metric, Proof, State, Trial
from tests import storage_samples as samples
from tests.postgresql import Server

FINISHED = (State.COMPLETE, State.INFEASIBLE, State.FAILED)


@pytest.fixture
def storage(any_url: str) -> Iterator[Storage]:
    """The contract holds on SQLite and on PostgreSQL."""
    with Storage(any_url) as found:
        found.create(samples.record())
        yield found


@pytest.fixture
def on_sqlite(tmp_path: Path) -> Iterator[Storage]:
    with Storage(samples.url(tmp_path)) as found:
        found.create(samples.record())
        yield found


def test_study_round_trips(storage: Storage) -> None:
    assert storage.study("digits") == samples.record()


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with a study and no trials; copied, since creating one takes a quarter second."""
    folder = tmp_path_factory.mktemp("template")
    with Storage(samples.url(folder)) as storage:
        storage.create(samples.record())
    return folder / "study.db"


@given(st.data())
def test_any_trials_round_trip_exactly(empty_database: Path, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 4))
    states = (State.RUNNING, *FINISHED)
    trials = [data.draw(samples.trials(number, states)) for number in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(empty_database, folder)
        storage = Storage(samples.url(Path(folder)))
        for trial in trials:
            write = storage.begin if trial.state is State.RUNNING else storage.finish
            write("digits", trial)
        assert storage.trials("digits") == trials
        samples.check_optuna_agrees(storage, trials)
        storage.close()


@settings(max_examples=15)
@given(st.data())
def test_any_trials_round_trip_exactly_on_a_server(postgresql: Server, data: st.DataObject) -> None:
    trials = [data.draw(samples.trials(number, FINISHED)) for number in range(2)]
    database = postgresql.new_database(_template(postgresql))
    with Storage(postgresql.url(database)) as storage:
        for trial in trials:
            storage.finish("digits", trial)
        assert storage.trials("digits") == trials
        samples.check_optuna_agrees(storage, trials)
    postgresql.drop(database)


@cache
def _template(server: Server) -> str:
    """A database with a study and no trials."""
    database = server.new_database()
    with Storage(server.url(database)) as storage:
        storage.create(samples.record())
    return database


def test_a_begun_trial_is_replaced_when_it_finishes(storage: Storage) -> None:
    running = Trial(0, State.RUNNING, params={"bits": 3, "rate": 0.01}, attrs={"old": 1})
    storage.begin("digits", running)
    assert storage.trials("digits") == [running]
    samples.check_optuna_agrees(storage, [running])
    storage.finish("digits", samples.finished(0))
    assert storage.trials("digits") == [samples.finished(0)]
    samples.check_optuna_agrees(storage, [samples.finished(0)])


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
    samples.check_optuna_agrees(storage, trials)
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
    assert samples.sql(storage, "select count(*) from dse_artifacts") == [
        (2,)
    ]  # stored once by content
    tested = Metric(0.88, 0.87, 0.89, "measured", "10 000 test images")
    storage.set_test_accuracy("digits", 1, tested, 10_000)
    expected = replace(samples.finished(1), test_accuracy=tested, test_samples=10_000)
    assert storage.trials("digits")[1] == expected


@pytest.mark.parametrize("blob", [b"1", b"1234", b""])
def test_damaged_artifact_is_refused(storage: Storage, blob: bytes) -> None:
    storage.finish("digits", samples.finished(0), artifacts={"graph": b"12345"})
    with storage._write() as connection:
        connection.execute(sa.update(schema.artifacts).values(blob=blob))
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
    full = storage.table("digits")
    assert list(empty) == list(full)
    kinds = empty.select_dtypes("number").columns
    assert empty[kinds].dtypes.equals(full[kinds].dtypes)


def test_sqlite_has_the_settings_that_many_readers_need(on_sqlite: Storage) -> None:
    expected = {"journal_mode": "wal", "synchronous": 1, "foreign_keys": 1, "busy_timeout": 60_000}
    found = {name: samples.sql(on_sqlite, f"pragma {name}")[0][0] for name in expected}
    assert found == expected


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
    with pytest.raises(TypeError):  # after both trial rows and the front were written
        storage.finish("digits", samples.finished(0), (0,), 0.5, {"x": "no bytes"})  # type: ignore[dict-item]
    assert storage.trials("digits") == []
    assert samples.optuna_study(storage).trials == []
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
        before = storage.revision("digits")
        child = subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        while storage.revision("digits") < before + 8:
            time.sleep(0.01)
        child.kill()
        child.wait()
        child.stdout.close()
        storage.requeue("digits")
        trials = storage.trials("digits")
        assert [trial.number for trial in trials] == list(range(len(trials)))
        waiting = [trial for trial in trials if trial.state is State.WAITING]
        assert waiting in ([], trials[-1:])
        samples.check_optuna_agrees(storage, trials)
        done = trials[: len(trials) - len(waiting)]
        assert [change.number for change in storage.fronts("digits")] == [t.number for t in done]
        assert all(storage.artifact("digits", t.number, "graph") == bytes(20000) for t in done)
        if waiting:
            storage.finish(
                "digits", samples.finished(waiting[0].number), (0,), 0.5, {"graph": bytes(20000)}
            )
    assert len(storage.trials("digits")) > 20
    if storage.url.get_backend_name() == "sqlite":
        assert samples.sql(storage, "pragma integrity_check") == [("ok",)]


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
    with Storage(storage.url.render_as_string(hide_password=False)) as second:
        second.finish("digits", samples.finished(0))
    holder.join()
    assert len(storage.trials("digits")) == 1


def test_attach_gives_a_stored_trial_an_artifact_and_replaces_it(storage: Storage) -> None:
    storage.finish("digits", samples.finished(0), artifacts={"graph": b"network"})
    for blob in (b"first", b"second"):
        storage.attach("digits", 0, "verification", blob)
        assert storage.artifact("digits", 0, "verification") == blob
    assert storage.artifact("digits", 0, "graph") == b"network"
    with pytest.raises(StorageError, match="no trial 7"):
        storage.attach("digits", 7, "verification", b"")


def test_a_proof_is_added_to_a_finished_trial_and_changes_nothing_else(storage: Storage) -> None:
    trial = samples.finished(0)
    storage.finish("digits", trial, artifacts={"graph": b"network"})
    for matching in (19, 20):
        proof = Proof("board/native", "gcc", "unicorn", 20, matching, {"flash": 9e3})
        storage.prove("digits", 0, proof, {"verification": b"%d" % matching})
        assert storage.trials("digits") == [replace(trial, proof=proof)]
        assert storage.artifact("digits", 0, "verification") == b"%d" % matching
    assert storage.artifact("digits", 0, "graph") == b"network"
    with pytest.raises(StorageError, match="no trial 7"):
        storage.prove("digits", 7, Proof("board/native"), {})


def test_a_network_is_found_at_the_trial_that_trained_it(storage: Storage) -> None:
    for number, key in enumerate(("one", "two", "one")):
        stored = {"graph": key.encode()} if number < 2 else {}
        trial = samples.finished(number, network_key=key)
        storage.finish("digits", trial, artifacts=stored)
    found = [storage.network("digits", number) for number in range(4)]
    assert found == [b"one", b"two", b"one", None]
