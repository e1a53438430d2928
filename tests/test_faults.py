"""Nothing is lost and nothing is done twice, whatever happens: kills, restarts, full disks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dse.database import UnreachableError
from dse.errors import StorageError
from dse.evaluation import InProcess
from dse.explorer import Explorer
from dse.heartbeat import Heartbeat
from dse.leases import BEATS_PER_LEASE
from dse.storage import Storage
from dse.trial import State, Trial
from tests import storage_samples as samples
from tests.faults import Storm
from tests.postgresql import Server, running
from tests.problems import FormulaEvaluator, Silent, small_problem, small_record
from tests.test_workers import check_whole

PROBLEM = small_problem()


@pytest.mark.slow
def test_workers_killed_at_random_on_sqlite(tmp_path: Path) -> None:
    """The pool's processes, and now and then their parent, which is started again."""
    storm = Storm(f"sqlite:///{tmp_path}/study.db", tmp_path, workers=4, sleep_s=0.1)
    storm.create(200)
    try:
        storm.run(every_s=2.0, timeout_s=600)
    finally:
        storm.end()
    storm.check(200)
    assert storm.kills


@pytest.mark.slow
def test_workers_killed_at_random_and_a_server_restarted_three_times(tmp_path: Path) -> None:
    with running() as server:
        storm = Storm(server.url(server.new_database()), tmp_path, workers=4, sleep_s=0.2)
        storm.create(200)

        def restart() -> None:
            server.stop()
            time.sleep(1.0)
            server.start()

        def crash() -> None:
            server.kill()
            server.start()

        try:
            storm.run(2.0, 600, at=[(30, restart), (60, crash), (90, restart)])
        finally:
            storm.end()
        storm.check(200)
        assert storm.kills


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    with Storage(f"sqlite:///{tmp_path}/study.db") as opened:
        yield opened


class Meddler(Silent):
    """Does something when so many trials have ended."""

    def __init__(self, number: int, act: object) -> None:
        super().__init__()
        self.number, self.act = number, act

    def ended(self, trial: Trial, front: object, hypervolume: float) -> None:
        self.seen.append(trial)
        if len(self.seen) == self.number and callable(self.act):
            self.act()


def explore(storage: Storage, listener: Silent, new: bool = True) -> str:
    record = small_record(PROBLEM, n_trials=20)
    if new:
        storage.create(record)
    executor = InProcess(FormulaEvaluator(PROBLEM))
    return Explorer(storage, record, PROBLEM, executor, listener).run(20)


def test_a_full_disk_is_said_and_nothing_is_lost(storage: Storage) -> None:
    def fill() -> None:
        with storage._read() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    listener = Meddler(5, fill)
    with pytest.raises(StorageError, match=r"the disk is full; free some space and resume"):
        explore(storage, listener)
    with Storage(storage.url.render_as_string()) as again:
        kept = again.trials("small")
        assert [t.state.finished for t in kept if t.number < 5] == [True] * 5
        storage.close()
        # A process that ended would be found gone; this one lives, so its silence must tell.
        again.give_up("small", again.workers("small"))
        assert explore(again, Silent(), new=False) == "finished"
        trials = check_whole(again, 20)
        assert trials[:5] == kept[:5]


def test_a_database_deleted_while_a_study_runs_is_said(storage: Storage, tmp_path: Path) -> None:
    def delete() -> None:
        storage.close()
        for path in tmp_path.glob("study.db*"):
            path.unlink()

    with pytest.raises(StorageError, match="there is no database at"):
        explore(storage, Meddler(5, delete))
    assert list(tmp_path.glob("study.db*")) == []


def test_a_clock_that_is_set_back_changes_nothing(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time

    def back() -> None:
        monkeypatch.setattr(time, "time", lambda: real() - 86_400.0)

    assert explore(storage, Meddler(5, back)) == "finished"
    check_whole(storage, 20)


def test_silence_is_counted_in_beats_of_the_listener(any_url: str) -> None:
    """Seven looks without a new beat; a look that was not possible counts for nobody."""
    with Storage(any_url) as storage:
        storage.create(samples.record())
        mine, other = storage.join("digits"), storage.join("digits")
        other = replace(other, host="elsewhere")
        heart = Heartbeat(storage, "digits", mine.worker_id, 60.0)
        for _ in range(BEATS_PER_LEASE + 1):
            assert heart.silent([mine, other]) == []
        assert heart.silent([mine, replace(other, beats=1)]) == []
        for _ in range(BEATS_PER_LEASE):
            assert heart.silent([mine, replace(other, beats=1)]) == []
        assert [w.worker_id for w in heart.silent([replace(other, beats=1)])] == [other.worker_id]


def test_a_result_that_comes_late_counts_unless_another_has_the_trial(storage: Storage) -> None:
    """The link of a worker was cut for longer than a lease, in the middle of its training."""
    record = small_record(PROBLEM, n_trials=6)
    storage.create(record)

    def lose() -> None:
        [worker] = storage.workers("small")
        storage.beat("small", worker.worker_id)  # or it is lost already
        storage.give_up("small", [w for w in storage.workers("small") if w.live])

    class Slow(FormulaEvaluator):
        def evaluate(self, *arguments: object) -> object:  # type: ignore[override]
            if len(self.trained) == 2:
                lose()
            if len(self.trained) == 3:
                lose()
                other = storage.join("small")
                [waits] = [t for t in storage.trials("small") if t.state is State.WAITING]
                again = replace(waits, state=State.RUNNING)
                storage.turn("small", lambda turn: turn.begin(again), other.worker_id)
                theirs = replace(again, state=State.FAILED, reason="theirs")
                storage.turn("small", lambda turn: turn.finish(theirs), other.worker_id)
                storage.leave("small", other.worker_id)
            return super().evaluate(*arguments)  # type: ignore[arg-type]

    Explorer(storage, record, PROBLEM, InProcess(Slow(PROBLEM)), Silent()).run(6)  # type: ignore[arg-type]
    trials = [trial for trial in storage.trials("small") if trial.trained or trial.reason]
    assert [trial.reason for trial in storage.trials("small")].count("theirs") == 1
    assert trials[2].trained
    assert all(trial.state.finished for trial in storage.trials("small"))


def test_calls_wait_for_a_server_that_restarts(postgresql: Server) -> None:
    url = postgresql.url(postgresql.new_database())
    with Storage(url) as storage:
        storage.create(samples.record())
        worker = storage.join("digits")
        postgresql.stop()
        threading.Timer(1.0, postgresql.start).start()
        begun = Trial(0, State.RUNNING, candidate_key="key")
        storage.turn("digits", lambda turn: turn.begin(begun), worker.worker_id)
        assert [w.holds for w in storage.beat("digits", worker.worker_id)] == [(0,)]
        assert storage.revision("digits") == 1


def test_a_server_that_stays_away_is_said_without_its_password(postgresql: Server) -> None:
    address = postgresql.url(postgresql.new_database()).replace("dse@", "dse:secret@")
    with Storage(address, patience_s=0.3) as storage:
        storage.create(samples.record())
        postgresql.stop()
        try:
            with pytest.raises(UnreachableError, match="refused") as error:
                storage.join("digits")
        finally:
            postgresql.start()
    assert "secret" not in str(error.value)
