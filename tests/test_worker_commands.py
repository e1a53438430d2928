"""`dse run --workers`, `dse worker`, `dse status`: processes of the product on small trainings."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dse.storage import Storage
from dse.trial import State, Trial
from tests.command_line import Dse, study_text
from tests.postgresql import Server


@pytest.fixture
def dse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Dse:
    return Dse(tmp_path, monkeypatch, capsys)


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dse.cli", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_a_study_with_two_workers(dse: Dse) -> None:
    dse.write(study_text({"n_trials": 6}))
    ended = dse("run", "study.yaml", "--workers", "2", "--memory", "4 GiB", "--quiet")
    assert ended.code == 0, ended
    with Storage.open_readonly("sqlite:///dse.db") as storage:
        trials = storage.trials("tiny")
        assert {trial.state for trial in trials} <= {State.COMPLETE, State.INFEASIBLE}
        assert sum(not trial.served for trial in trials) == 6
        trained = Counter(trial.network_key for trial in trials if trial.trained)
        assert max(trained.values()) == 1
        assert all(storage.artifact("tiny", t.number, "graph") for t in trials if t.trained)
    ended = dse("status", "--json")
    [row] = json.loads(ended.out)
    assert (row["finished"], row["stale"], row["workers"]) == (6, 0, [])


def under_way(trial: Trial) -> bool:
    """Whether a design is being trained, which is no baseline: those take a moment."""
    return trial.state is State.RUNNING and trial.number >= 2


@pytest.mark.slow
def test_a_worker_joins_a_study_on_a_server_and_leaves_on_sigterm(
    dse: Dse, postgresql: Server
) -> None:
    database = postgresql.new_database()
    url = postgresql.url(database)
    # No trial ends by itself within the test, so that each worker has one in hand when told to go.
    long = {"training.fine_tune_epochs": 20_000, "space.pruning": {"ratio": [0.25, 0.5, 0.75]}}
    dse.write(study_text({"n_trials": 30, **long}))
    first = start("run", "study.yaml", "--storage", url, "--quiet")
    with Storage(url) as storage:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            if storage.studies() and State.RUNNING in [t.state for t in storage.trials("tiny")]:
                break
            time.sleep(0.1)
        second = start("worker", "--storage", url, "--slot", "gpu=0", "--slot", "place=lab")
        while sum(under_way(trial) for trial in storage.trials("tiny")) < 2:
            assert time.monotonic() < deadline + 120
            time.sleep(0.1)
        dse("status", "--storage", url, "--json")
        ended = dse("status", "--storage", url)
        assert "gpu=0, place=lab" in ended.out
        for process in (first, second):
            process.send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=90)[0] for process in (first, second)]
        assert [first.returncode, second.returncode] == [130, 130], said
        assert "go on with: dse resume tiny --storage" in said[0]
        assert "left; what was in hand waits for other workers" in said[1]
        states = [trial.state for trial in storage.trials("tiny")]
        assert State.RUNNING not in states
        assert states.count(State.WAITING) == 2
        assert [worker.ending for worker in storage.workers("tiny")] == ["left", "left"]
    postgresql.drop(database)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "study.yaml", "--memory", "4"), "--memory: '4' has no unit"),
        (("resume", "study.yaml", "--trial-timeout", "0 s"), "--trial-timeout is '0 s'"),
        (("worker", "--slot", "gpu"), "--slot is 'gpu'; allowed: NAME=VALUE"),
        (("worker", "--storage", "sqlite:///none.db"), "there is no database at none.db"),
    ],
)
def test_bad_flags(dse: Dse, arguments: tuple[str, ...], said: str) -> None:
    dse.write(study_text())
    ended = dse(*arguments)
    assert ended.code == 2
    assert said in ended.err
    assert not (dse.folder / "dse.db").exists()
