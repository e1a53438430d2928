"""Workers of one study: claims, heartbeats, lost workers; the same on SQLite and PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from dse.errors import StorageError
from dse.leases import MAX_ATTEMPTS, this_process
from dse.storage import Storage, Turn, Worker
from dse.trial import State, Trial
from tests import storage_samples as samples


@pytest.fixture
def storage(any_url: str) -> Iterator[Storage]:
    with Storage(any_url) as found:
        found.create(samples.record())
        yield found


def running(number: int, key: str = "") -> Trial:
    return Trial(number, State.RUNNING, params={"bits": 3}, candidate_key=key or f"key{number}")


def begin(storage: Storage, worker: Worker, trial: Trial) -> None:
    storage.turn("digits", lambda turn: turn.begin(trial), worker.worker_id)


def states(storage: Storage) -> list[State]:
    return [trial.state for trial in storage.trials("digits")]


def test_workers_join_hold_trials_and_leave(storage: Storage) -> None:
    first = storage.join("digits", {"gpu": "0"})
    second = storage.join("digits")
    assert (first.ordinal, second.ordinal, first.slot) == (0, 1, {"gpu": "0"})
    assert first.process == this_process()
    begin(storage, first, running(0))
    begin(storage, second, running(1))
    assert [worker.holds for worker in storage.workers("digits")] == [(0,), (1,)]
    storage.leave("digits", first.worker_id)
    gone, there = storage.workers("digits")
    assert (gone.live, gone.ending, gone.holds, there.live) == (False, "left", (), True)
    assert states(storage) == [State.WAITING, State.RUNNING]
    assert storage.join("digits").ordinal == 0
    samples.check_optuna_agrees(storage, storage.trials("digits"))


def test_nobody_may_hold_what_another_worker_holds(storage: Storage) -> None:
    first, second = storage.join("digits"), storage.join("digits")
    begin(storage, first, running(0, "same"))
    with pytest.raises(StorageError):
        begin(storage, second, running(1, "same"))
    assert states(storage) == [State.RUNNING]
    storage.turn("digits", lambda turn: turn.finish(samples.finished(0)), first.worker_id)
    begin(storage, second, running(1, "same"))
    assert [worker.finished for worker in storage.workers("digits")] == [1, 0]


def test_what_changed_is_told_once_and_in_order(storage: Storage) -> None:
    worker = storage.join("digits")

    def changes(since: int) -> tuple[list[int], int]:
        def look(turn: Turn) -> tuple[list[int], int]:
            return [trial.number for trial in turn.changes(since)], turn.revision

        return storage.turn("digits", look)

    before = storage.revision("digits")
    for number in range(3):
        begin(storage, worker, running(number))
    assert changes(before)[0] == [0, 1, 2]
    since = changes(before)[1]
    assert changes(since) == ([], since)
    for number in (2, 0):
        storage.finish("digits", samples.finished(number))
    assert changes(since) == ([2, 0], since + 2)
    assert changes(-1)[0] == [1, 2, 0]


def test_a_silent_worker_is_lost_and_its_trial_waits(storage: Storage) -> None:
    worker = storage.join("digits")
    begin(storage, worker, running(0))
    storage.finish("digits", samples.finished(1))
    [seen] = storage.beat("digits", worker.worker_id)
    storage.beat("digits", worker.worker_id)
    assert storage.give_up("digits", [seen]) == []  # it has made another heartbeat since
    [seen] = [w for w in storage.workers("digits") if w.live]
    assert storage.give_up("digits", [seen]) == [0]
    assert states(storage) == [State.WAITING, State.COMPLETE]
    assert storage.workers("digits")[0].ending == "lost"
    # Its link comes back: it works on, without the trial.
    [back] = storage.beat("digits", worker.worker_id)
    assert (back.live, back.holds) == (True, ())


def test_a_trial_that_always_loses_its_worker_fails(storage: Storage) -> None:
    for _ in range(MAX_ATTEMPTS):
        assert states(storage) in ([], [State.WAITING])
        worker = storage.join("digits")
        begin(storage, worker, running(0))
        storage.give_up("digits", storage.workers("digits")[-1:])
    [trial] = storage.trials("digits")
    assert trial.state is State.FAILED
    assert trial.reason.startswith(f"begun {MAX_ATTEMPTS} times, and its worker was lost")
    samples.check_optuna_agrees(storage, [trial])


def test_handing_back_is_nobodys_fault(storage: Storage) -> None:
    for _ in range(MAX_ATTEMPTS + 2):
        worker = storage.join("digits")
        begin(storage, worker, running(0))
        storage.leave("digits", worker.worker_id)
    assert states(storage) == [State.WAITING]


JOIN = """
import sys
from dse.storage import Storage
from tests.test_leases import begin, running
with Storage(sys.argv[1]) as storage:
    begin(storage, storage.join("digits"), running(0))
    sys.stdin.read()
"""


def test_a_process_of_this_host_that_is_gone_is_lost_at_once(storage: Storage) -> None:
    """Not by its silence, which would take a lease."""
    url = storage.url.render_as_string(hide_password=False)
    child = subprocess.Popen([sys.executable, "-c", JOIN, url], stdin=subprocess.PIPE)
    while not states(storage):
        assert child.poll() is None
    other = storage.join("digits")
    assert (other.ordinal, states(storage)) == (1, [State.RUNNING])
    child.kill()
    child.communicate()
    assert storage.join("digits").ordinal == 0
    assert states(storage) == [State.WAITING]


def test_running_trials_of_an_older_dse_wait_when_a_worker_joins(storage: Storage) -> None:
    storage.begin("digits", running(0))
    storage.join("digits")
    assert states(storage) == [State.WAITING]


def test_numbers_have_no_gaps_and_no_doubles_whoever_writes(storage: Storage) -> None:
    url = storage.url.render_as_string(hide_password=False)

    def work(place: int) -> None:
        with Storage(url) as own:
            worker = own.join("digits")
            for index in range(10):
                key = f"{place}.{index}"

                def open_one(turn: Turn, key: str = key) -> int:
                    number = turn.next_number()
                    turn.begin(running(number, key))
                    return number

                number = own.turn("digits", open_one, worker.worker_id)
                trial = replace(samples.finished(number), candidate_key=key)
                front = [number] if index % 3 == 0 else None
                volume = None if front is None else 0.5

                def close(turn: Turn, args: tuple[object, ...] = (trial, front, volume)) -> None:
                    turn.finish(*args)  # type: ignore[arg-type]

                own.turn("digits", close, worker.worker_id)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    trials = storage.trials("digits")
    assert [trial.number for trial in trials] == list(range(40))
    assert len({trial.candidate_key for trial in trials}) == 40
    assert sum(worker.finished for worker in storage.workers("digits")) == 40
    assert storage.revision("digits") == 80
    samples.check_optuna_agrees(storage, trials)
    numbers = [change.number for change in storage.fronts("digits")]
    assert numbers == sorted(set(numbers))
    assert samples.sql(storage, "select count(*) from dse_claims") == [(0,)]


def test_the_last_front_is_the_newest_whatever_the_order(storage: Storage) -> None:
    for number in range(3):
        storage.begin("digits", running(number))
    storage.finish("digits", samples.finished(2), (2,), 0.5)
    storage.finish("digits", samples.finished(0), (2, 0), 0.6)
    storage.finish("digits", samples.finished(1))
    assert [(c.number, c.members) for c in storage.fronts("digits")] == [(2, (2, 0))]
    assert storage.studies()[0].hypervolume == 0.6
