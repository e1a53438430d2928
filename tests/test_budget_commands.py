"""Budgets through the real command: a study from file to design, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dse.candidate import Candidate
from dse.evaluate import Evaluator
from dse.evaluation import InProcess
from dse.explorer import Explorer
from dse.launch import prepare, record_of
from dse.storage import Storage
from dse.trial import COST_METRICS
from tests.command_line import Dse
from tests.problems import Silent
from tests.test_cli import _kill_while_running, environment
from tests.test_cli import dse as command

# --- through the command line -------------------------------------------------------------------

FILE = """
name: tiny
workload: digits
training: {epochs: 2, fine_tune_epochs: 2, fine_tune_samples: 300, threads: 1}
space:
  pruning:
    method: [ratio, budget]
    ratio: [0, 0.5]
    granularity: global
    budget: {memory: [1, 0.5], size: [1, 0.5, 0.25], macs: [1, 0.5, 0.2]}
  quantization: {weight_bits: [4, 8], granularity: global}
  boards: [nucleo_f446re, rpi_pico]
  backends: [native]
objectives: [accuracy, flash, latency]
sampler: SAMPLER
n_trials: 9
"""


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["grey-box", "tpe"])
def test_killed_and_resumed_shown_exported_rescored(tmp_path: Path, sampler: str) -> None:
    """The study by the library and, killed on its way, by the command; then what one does with a
    design within budgets."""
    text, url = FILE.replace("SAMPLER", sampler), f"sqlite:///{tmp_path}/dse.db"
    (tmp_path / "tiny.yaml").write_text(text)
    run = [sys.executable, "-m", "dse.cli", "run", "tiny.yaml", "-q"]
    process = subprocess.Popen(run, cwd=tmp_path, env=environment(tmp_path))
    _kill_while_running(process, tmp_path, url, after=[2])
    assert command(tmp_path, "resume", "tiny", "-q").returncode == 0
    with Storage(f"sqlite:///{tmp_path}/library.db") as storage, Storage(url) as killed:
        launch = prepare(text, "tiny.yaml", tmp_path)
        record = record_of(launch, "tiny", 9)
        storage.create(record)
        evaluator = Evaluator(
            launch.workload, launch.dataset, launch.recipe, 0, tmp_path / "cache" / "stages"
        )
        executor = InProcess(evaluator)
        assert Explorer(storage, record, launch.problem, executor, Silent()).run(9) == "finished"
        expected, found = storage.trials("tiny"), killed.trials("tiny")
    assert [trial.candidate for trial in found] == [trial.candidate for trial in expected]
    within = [t for t in found if t.candidate.get("budgets") and t.feasible]
    for trial in within:
        candidate = Candidate.from_json(trial.candidate)
        costs = launch.problem.screen(candidate)
        assert {name: trial.metrics[name] for name in COST_METRICS} == dict(costs.metrics)
    if sampler == "tpe":
        return
    number = str(within[0].number)
    shown = json.loads(command(tmp_path, "show", number, "--json").stdout)
    channels = {row["layer"]: row["channels"] for row in shown["layers"] if row["channels"]}
    assert channels == within[0].candidate["widths"]
    assert "within " in shown["compression"]
    for words in (
        ("show", number, "--why"),
        ("front",),
        ("export", number, "--format", "tflite"),
        ("rescore", "--target", "disco_f746ng/native"),
        ("report", "tiny", "--output", "report"),
    ):
        done = command(tmp_path, *words)
        assert done.returncode == 0, done.stderr
    with Storage.open_readonly(url) as storage:
        again = {t.network_key: t for t in storage.trials("tiny@rescored")}
    assert again[within[0].network_key].candidate["widths"] == within[0].candidate["widths"]
    assert again[within[0].network_key].value("flash") is not None


# --- bad input ----------------------------------------------------------------------------------

WHOLE = {"method": ["ratio", "budget"], "ratio": [0, 0.5], "budget": {"size": [1, 0.5]}}
BAD: list[tuple[Mapping[str, Any], tuple[str, ...]]] = [
    ({"method": "budgets"}, ("method.0' is 'budgets'", "did you mean 'budget'?")),
    ({"method": "budget", "ratio": None}, ("space.pruning", "'granularity'")),
    ({"budget": None}, ("the key 'space.pruning.budget' is missing", "dse init")),
    ({"ratio": None}, ("the key 'space.pruning.ratio' is missing", "dse init")),
    ({"method": "budget"}, ("'ratio' says nothing under method budget", "[ratio, budget]")),
    ({"method": "ratio"}, ("'budget' says nothing under method ratio", "leave it out")),
    ({"budget": {"ram": [0.5]}}, ("unknown key 'ram' in 'space.pruning.budget'", "macs, memory")),
    ({"budget": {"size": [0]}}, ("budget.size.0' holds 0", "above 0, up to 1")),
    ({"budget": {"size": [1.5]}}, ("budget.size.0' holds 1.5", "above 0, up to 1")),
    ({"budget": {"size": [1]}}, ("'space.pruning.budget' holds no share below 1", "macs")),
    ({"budget": {}}, ("'space.pruning.budget' holds no share below 1", "memory")),
    ({"budget": {"size": [0.5, 0.5]}}, ("budget.size' lists 0.5 twice",)),
    ({"budget": {"size": "half"}}, ("budget.size.0' is 'half'", "a number")),
    (
        {"budget": {"memory": [1, 0.01]}},
        ("'space.pruning.budget.memory' holds 0.01", "the narrowest network needs", "to 1"),
    ),
    ({"skip": ["conv9"]}, ("'space.pruning.skip' names layer 'conv9'", "conv1")),
]


@pytest.fixture
def dse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Dse:
    return Dse(tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(("changes", "said"), BAD, ids=[str(case[0]) for case in BAD])
def test_what_does_not_fit_together_is_one_sentence(
    dse: Dse, changes: Mapping[str, Any], said: tuple[str, ...]
) -> None:
    pruning = {**WHOLE, **changes}
    if pruning["ratio"] is None and pruning["method"] == "budget":
        pruning["granularity"] = "global"
    dse.check({"space.pruning": pruning}).refused("study.yaml", *said)


@pytest.mark.parametrize(
    ("key", "section"),
    [
        ("low_rank", {"ratio": [0, 0.5]}),
        ("sparsity", {"ratio": [0, 0.5]}),
        ("code_books", {"entries": [0, 16]}),
    ],
)
def test_what_needs_widths_before_training_excludes_budgets(
    dse: Dse, key: str, section: Mapping[str, Any]
) -> None:
    changes = {"space.pruning": WHOLE, f"space.{key}": section}
    said = ("'pruning.method' lists budget, which finds widths in training", f"'{key}'")
    dse.check(changes).refused("study.yaml", "'space'", *said, "leave one out")
    assert dse.check({f"space.{key}": section}).code == 0


def test_a_grid_of_too_many_conditional_settings_is_refused(dse: Dse) -> None:
    many = [round(0.5 + i / 1000, 3) for i in range(400)]
    pruning = {**WHOLE, "budget": {"size": many, "macs": many}}
    changes = {"space.pruning": pruning, "sampler": "grid"}
    dse.check(changes).refused("'sampler': the grid has", "up to 20,000")
