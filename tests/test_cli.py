"""The command line as a user meets it: a real study from file to report, killed and resumed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dse.storage import Storage
from dse.trial import State

STUDY = """
name: tiny
workload: digits
training: {epochs: 3, fine_tune_epochs: 2, threads: 1}
space:
  pruning: {ratio: [0, 0.25, 0.5, 0.75], schedule: [one-shot, agp]}
  quantization: {weight_bits: [2, 4, 8]}
  boards: [nucleo_f446re, rpi_pico]
  backends: [native, cmsis-nn]
objectives: [accuracy, flash, latency]
constraints:
  - ram <= 2.5 KiB
sampler: random
n_trials: 12
"""


def dse(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dse.cli", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=environment(folder),
        timeout=300,
    )


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "DSE_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the study has run."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "tiny.yaml").write_text(STUDY)
    done = dse(folder, "run", "tiny.yaml", "--report", "report", "-v")
    assert done.returncode == 0, done.stderr
    assert "designs on the front" in done.stdout
    assert "report: " in done.stdout
    return folder


@pytest.mark.slow
def test_status_counts_what_the_database_holds(finished: Path) -> None:
    row = json.loads(dse(finished, "status", "--json").stdout)[0]
    assert (row["finished"], row["asked"], row["running"]) == (12, 12, 0)
    assert row["trained"] <= row["complete"] + row["infeasible"] + row["failed"]
    assert row["failed"] == 0


@pytest.mark.slow
def test_front_as_table_json_and_csv_are_one_front(finished: Path) -> None:
    rows = json.loads(dse(finished, "front", "--json").stdout)
    lines = dse(finished, "pareto", "--format", "csv").stdout.splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == [str(row["trial"]) for row in rows]
    table = dse(finished, "front").stdout
    assert f"{len(rows)} designs on the front" in table
    assert re.search(r"\bram\b", table)  # limited, though no objective
    assert all(0 < row["accuracy"] <= 1 and row["flash_bytes"] > 1000 for row in rows)


@pytest.mark.slow
def test_show_why_adds_up(finished: Path) -> None:
    found = json.loads(dse(finished, "show", "1", "--why", "--json").stdout)
    facts = json.loads(dse(finished, "show", "1", "--json").stdout)
    metrics = {row["metric"]: row["value"] for row in facts["metrics"]}
    assert sum(found["flash_parts"].values()) == metrics["flash"]
    assert sum(found["ram_parts"].values()) == metrics["ram"]
    total = sum(op["latency_s"] for op in found["operators"])
    assert total == pytest.approx(metrics["latency"])
    assert found["peak"]["live_bytes"] <= found["ram_parts"]["arena"]
    assert found["peak"]["operator"] in {op["operator"] for op in found["operators"]}


@pytest.mark.slow
def test_show_explains_a_rejected_candidate_too(finished: Path) -> None:
    with Storage.open_readonly(f"sqlite:///{finished}/dse.db") as storage:
        rejected = [t for t in storage.trials("tiny") if t.state is State.INFEASIBLE]
    assert rejected, "the RAM limit must reject some of these candidates"
    done = dse(finished, "show", str(rejected[-1].number), "--why")
    assert done.returncode == 0, done.stderr
    assert "peak:" in done.stdout


@pytest.mark.slow
def test_the_report_and_its_data_lie_beside_each_other(finished: Path) -> None:
    names = {path.name for path in (finished / "report").iterdir()}
    assert {"report.html", "front.csv", "front.json", "trials.csv"} <= names


@pytest.mark.slow
def test_studies_boards_backends_and_doctor_answer(finished: Path) -> None:
    assert json.loads(dse(finished, "studies", "--json").stdout)[0]["study"] == "tiny"
    assert len(json.loads(dse(finished, "boards", "--json").stdout)) >= 7
    backends = {row["backend"] for row in json.loads(dse(finished, "backends", "--json").stdout)}
    assert {"native", "native-dsp", "cmsis-nn"} <= backends
    doctor = dse(finished, "doctor", "--storage", "sqlite:///dse.db", "--json")
    assert doctor.returncode == 0
    assert all(row["state"] in ("ok", "missing") for row in json.loads(doctor.stdout))


@pytest.mark.slow
def test_screening_is_cheap_and_trains_nothing(finished: Path) -> None:
    with Storage.open_readonly(f"sqlite:///{finished}/dse.db") as storage:
        trials = storage.trials("tiny")
    by_cost = [t for t in trials if t.state is State.INFEASIBLE and t.value("accuracy") is None]
    assert by_cost
    assert not any(trial.trained or trial.stage_s for trial in by_cost)
    assert all("ram" in trial.reason for trial in by_cost)


@pytest.mark.slow
def test_kill_9_in_the_middle_of_a_trial_loses_and_doubles_nothing(
    finished: Path, tmp_path: Path
) -> None:
    """The same study as `finished`, killed twice: the same trials in the same order."""
    (tmp_path / "tiny.yaml").write_text(STUDY)
    url = f"sqlite:///{tmp_path}/dse.db"
    killed_in: list[int] = []
    command = ["run", "tiny.yaml"]
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-m", "dse.cli", *command, "-q"],
            cwd=tmp_path,
            env=environment(tmp_path),
            stdout=subprocess.DEVNULL,
        )
        killed_in.append(_kill_while_running(process, tmp_path, url, after=killed_in))
        command = ["resume", "tiny"]
    done = dse(tmp_path, "resume", "tiny", "-q")
    assert done.returncode == 0, done.stderr
    with Storage.open_readonly(url) as storage:
        found = storage.trials("tiny")
    with Storage.open_readonly(f"sqlite:///{finished}/dse.db") as storage:
        expected = storage.trials("tiny")
    assert [trial.number for trial in found] == list(range(len(expected)))
    assert sum(not trial.served for trial in found) == 12
    assert all(trial.state.finished for trial in found)
    assert killed_in[0] < killed_in[1]
    assert [t.candidate_key for t in found] == [t.candidate_key for t in expected]
    assert [t.value("accuracy") for t in found] == [t.value("accuracy") for t in expected]


def _kill_while_running(
    process: subprocess.Popen[bytes], folder: Path, url: str, after: list[int]
) -> int:
    """Kill -9 while a trial past those of `after` is RUNNING; its number."""
    deadline = time.monotonic() + 120
    wanted = (after[-1] + 1) if after else 2
    while time.monotonic() < deadline:
        assert process.poll() is None, "the study ended before it could be killed"
        if (folder / "dse.db").exists():
            try:
                with Storage.open_readonly(url) as storage:
                    running = [t for t in storage.trials("tiny") if t.state is State.RUNNING]
            except Exception:
                running = []
            if running and running[-1].number >= wanted:
                process.send_signal(signal.SIGKILL)
                process.wait()
                return running[-1].number
        time.sleep(0.01)
    process.kill()
    raise AssertionError("no trial was seen running")


@pytest.mark.slow
def test_ctrl_c_ends_cleanly_and_names_the_resume_command(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(STUDY)
    process = subprocess.Popen(
        [sys.executable, "-m", "dse.cli", "run", "tiny.yaml", "-v"],
        cwd=tmp_path,
        env=environment(tmp_path) | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("trial 1:"):
            break
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 130
    assert "Traceback" not in rest
    assert "dse resume tiny --storage sqlite:///dse.db --n-trials 12" in rest
    done = dse(tmp_path, "resume", "tiny", "--storage", "sqlite:///dse.db", "--n-trials", "12")
    assert done.returncode == 0, done.stderr
    assert json.loads(dse(tmp_path, "status", "--json").stdout)[0]["finished"] == 12


@pytest.mark.slow
def test_limits_change_on_the_command_line(finished: Path) -> None:
    before = json.loads(dse(finished, "front", "--format", "json").stdout)
    limit = sorted(row["flash_bytes"] for row in before)[0] / 1024 + 0.01
    option = ("--constraint", f"flash <= {limit:.3f} KiB")
    done = dse(finished, "resume", "tiny", *option, "--n-trials", "3", "-q")
    assert done.returncode == 0, done.stderr
    assert f"flash <= {limit:.3f} KiB" in done.stdout
    after = json.loads(dse(finished, "front", "--format", "json").stdout)
    assert [row["trial"] for row in after] == [
        row["trial"] for row in before if row["flash_bytes"] <= 1024 * limit
    ]
    assert dse(finished, "resume", "tiny", "--drop-constraint", "flash", "-q").returncode == 0
    again = json.loads(dse(finished, "front", "--format", "json").stdout)
    assert [row["trial"] for row in again] == [row["trial"] for row in before]


@pytest.mark.slow
def test_an_objective_becomes_a_limit_on_the_command_line(finished: Path) -> None:
    """The smallest network that is accurate enough; front and report are of flash alone."""
    before = json.loads(dse(finished, "front", "--format", "json").stdout)
    limit = sorted(row["accuracy"] for row in before)[0]
    options = ("--constraint", f"accuracy >= {100 * limit:.2f} %", "--drop-objective", "accuracy")
    done = dse(finished, "resume", "tiny", *options, "--report", "flash-only", "-q")
    assert done.returncode == 0, done.stderr
    assert "objectives: " in done.stdout
    assert "accuracy" not in done.stdout.split("objectives: ")[1].splitlines()[0]
    after = json.loads(dse(finished, "front", "--format", "json").stdout)
    assert after
    assert min(row["accuracy"] for row in after) >= limit - 1e-4
    assert (finished / "flash-only" / "report.html").exists()
    restored = ("--objective", "accuracy", "--drop-constraint", "accuracy")
    back = dse(finished, "resume", "tiny", *restored, "-q")
    assert back.returncode == 0, back.stderr
    again = json.loads(dse(finished, "front", "--format", "json").stdout)
    assert {row["trial"] for row in again} >= {row["trial"] for row in before}


@pytest.mark.slow
def test_resume_asks_for_more_and_refuses_another_search(finished: Path) -> None:
    changed = STUDY.replace("[2, 4, 8]", "[4, 8]")
    (finished / "changed.yaml").write_text(changed)
    refused = dse(finished, "resume", "changed.yaml")
    assert refused.returncode == 2
    assert "weight_bits" in refused.stderr
    assert "[2, 4, 8]" in refused.stderr
    more = dse(finished, "resume", "tiny", "--n-trials", "13", "-q")
    assert more.returncode == 0, more.stderr
    assert json.loads(dse(finished, "status", "--json").stdout)[0]["finished"] == 13
