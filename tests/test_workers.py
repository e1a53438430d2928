"""The local pool: as many trials as asked for, whatever becomes of its processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dse.candidate import Candidate
from dse.evaluation import InProcess
from dse.explorer import Explorer
from dse.graph import archive
from dse.leases import MAX_ATTEMPTS
from dse.problem import Problem
from dse.storage import Storage
from dse.trial import State, Trial
from dse.workers import Limits, LocalPool
from tests.problems import STUDY, Silent, small_graph, small_problem, small_record
from tests.toy import Toy

PROBLEM = small_problem()
GRAPH = archive.to_bytes(small_graph())


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    with Storage(f"sqlite:///{tmp_path}/study.db") as opened:
        yield opened


def toy(folder: Path, **changes: object) -> Toy:
    return replace(Toy(STUDY, GRAPH, log=str(folder / "log")), **changes)  # type: ignore[arg-type]


def log(folder: Path) -> list[str]:
    path = folder / "log"
    return path.read_text().splitlines() if path.exists() else []


def explore(
    storage: Storage, pool: LocalPool, n_trials: int, sampler: str = "random", new: bool = True
) -> str:
    record = small_record(PROBLEM, sampler=sampler, n_trials=n_trials)
    if new:
        storage.create(record)
    try:
        return Explorer(storage, record, PROBLEM, pool, Silent()).run(n_trials)
    finally:
        pool.close()


def check_whole(storage: Storage, n_trials: int, problem: Problem = PROBLEM) -> list[Trial]:
    """As many as asked for, none open, none twice, no training twice; the front is the front."""
    name = storage.studies()[0].name
    trials = storage.trials(name)
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert all(trial.state.finished for trial in trials)
    assert sum(not trial.served for trial in trials) == n_trials
    assert max(Counter(trial.candidate_key for trial in trials).values()) == 1
    trained = Counter(
        (t.network_key, problem.targets[Candidate.from_json(t.candidate).target].backend.rounding)
        for t in trials
        if t.trained
    )
    assert max(trained.values()) == 1
    eligible = [t for t in trials if t.eligible]
    points = np.array([[t.value(n) for n in problem.objectives] for t in eligible], np.float64)
    mask = storage.study(name).box.front(points)
    best = {tuple(point) for point in points[mask]}
    front = {n: trials[n] for n in storage.fronts(name)[-1].members}
    assert {tuple(t.value(n) for n in problem.objectives) for t in front.values()} == best
    assert all(front[n].test_accuracy is not None for n in front)
    assert not [worker for worker in storage.workers(name) if worker.live]
    return trials


@pytest.mark.parametrize("sampler", ["grey-box", "tpe", "grid"])
def test_several_processes_make_one_study(storage: Storage, tmp_path: Path, sampler: str) -> None:
    assert explore(storage, LocalPool(toy(tmp_path, sleep_s=0.02), 3), 20, sampler) == "finished"
    trials = check_whole(storage, 20)
    assert [trial.baseline for trial in trials[:3]] == ["float32", "int8", ""]
    assert max(Counter(log(tmp_path)).values()) == 1
    assert len(log(tmp_path)) == sum(trial.trained for trial in trials)
    # Nobody trains before the float32 network is known, to which limits are relative.
    assert all(trial.started >= trials[0].finished for trial in trials[1:])


def test_a_pool_of_one_makes_the_same_study_as_this_process(tmp_path: Path) -> None:
    keys = []
    for name in ("pool", "here"):
        with Storage(f"sqlite:///{tmp_path}/{name}.db") as storage:
            made = toy(tmp_path)
            record = small_record(PROBLEM, sampler="tpe", n_trials=25)
            storage.create(record)
            executor = LocalPool(made, 1) if name == "pool" else InProcess(made(lambda: False))
            Explorer(storage, record, PROBLEM, executor, Silent()).run(25)
            executor.close()
            keys.append([(t.candidate_key, t.state) for t in storage.trials("small")])
    assert keys[0] == keys[1]


def test_a_process_that_is_killed_loses_nothing(storage: Storage, tmp_path: Path) -> None:
    pool = LocalPool(toy(tmp_path, sleep_s=0.15), 2)
    over = threading.Event()
    killed: list[int] = []

    def kill() -> None:
        while not over.wait(0.4):
            if len(log(tmp_path)) > len(killed) * 4 and len(killed) < 3:
                killed.append(pool.processes[-1])
                os.kill(killed[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        assert explore(storage, pool, 20) == "finished"
    finally:
        over.set()
        killer.join()
    trials = check_whole(storage, 20)
    assert killed
    assert not [trial for trial in trials if trial.state is State.FAILED]


@pytest.mark.parametrize(
    ("evil", "limits", "said"),
    [
        ("die", Limits(), f"tried {MAX_ATTEMPTS} times: its process was ended by SIGKILL"),
        ("hang", Limits(trial_s=3.0), "took longer than a trial may (3 s)"),
        ("eat", Limits(memory_bytes=600 * 2**20), "more than a trial may (600 MiB)"),
    ],
)
def test_what_ends_badly_ends_that_trial_only(
    storage: Storage, tmp_path: Path, evil: str, limits: Limits, said: str
) -> None:
    pool = LocalPool(toy(tmp_path, evil=evil, prey="0"), 2, limits)
    assert explore(storage, pool, 20) == "finished"
    trials = check_whole(storage, 20)
    failed = [trial for trial in trials if trial.state is State.FAILED]
    assert 0 < len(failed) < 8
    assert all(said in trial.reason for trial in failed)
    assert all(trial.network_key.endswith("0") for trial in failed)


def test_a_pool_that_is_stopped_hands_back_and_goes_on(storage: Storage, tmp_path: Path) -> None:
    record = small_record(PROBLEM, n_trials=20)
    storage.create(record)
    pool = LocalPool(toy(tmp_path, sleep_s=60.0), 2)
    first = InProcess(toy(tmp_path)(lambda: False))
    Explorer(storage, record, PROBLEM, first, Silent()).run(3)

    def trains() -> bool:
        return sum(t.state is State.RUNNING for t in storage.trials("small")) == 2

    began = time.monotonic()
    explorer = Explorer(storage, record, PROBLEM, pool, Silent(), trains)
    assert explorer.run(20) == "interrupted"
    assert time.monotonic() - began < 50
    pool.close()
    waiting = [t for t in storage.trials("small") if not t.state.finished]
    assert [trial.state for trial in waiting] == [State.WAITING] * 2
    assert explore(storage, LocalPool(toy(tmp_path), 2), 20, new=False) == "finished"
    trials = check_whole(storage, 20)
    assert [trials[t.number].candidate_key for t in waiting] == [t.candidate_key for t in waiting]


def test_networks_left_unserved_by_a_worker_that_was_lost_are_served(
    storage: Storage, tmp_path: Path
) -> None:
    """Every network is on every target where it would be on the front."""
    explore(storage, LocalPool(toy(tmp_path), 3), 25)
    trials = check_whole(storage, 25)
    front = storage.fronts("small")[-1].members
    points = [[trials[n].value(m) for m in PROBLEM.objectives] for n in front]
    known = {trial.candidate_key for trial in trials}
    for trial in (t for t in trials if t.feasible and t.params):
        for target in PROBLEM.targets:
            candidate = replace(Candidate.from_json(trial.candidate), target=target)
            costs = PROBLEM.screen(candidate)
            if candidate.key in known or not costs.feasible:
                continue
            row = [trial.value("accuracy"), *(costs.metrics[n].value for n in ("flash", "latency"))]
            assert not PROBLEM.box.front(np.array([*points, row], dtype=np.float64))[-1]
