"""What a study file, a database, an export or a checkpoint may not do; what is never told."""

from __future__ import annotations

import ast
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dse import cli
from dse.database import without_password
from dse.errors import DseError, StudyError, WorkloadError
from dse.evaluate import Evaluator
from dse.storage import Storage
from dse.study import parse_study
from dse.workloads import WORKLOADS, Recipe
from dse.workloads.bring_your_own import bring_your_own
from tests import storage_samples as samples
from tests.command_line import Dse, study_text

SOURCES = sorted(Path(cli.__file__).parent.rglob("*.py"))
SECRET = "hunter2"
SERVER = f"postgresql://me:{SECRET}@127.0.0.1:9/studies"


def calls(name: str) -> Iterator[tuple[Path, ast.Call]]:
    """Every call of a function or method of this name in the package."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                function = node.func
                found = getattr(function, "attr", getattr(function, "id", None))
                if found == name:
                    yield path, node


# --- SQL ------------------------------------------------------------------------------------------

# Pragmas take no parameters; these texts are constants of the program.
CONSTANT_SQL = {"database.py"}


@pytest.mark.parametrize("name", ["exec_driver_sql", "text", "execute", "executescript"])
def test_sql_is_never_put_together_from_strings(name: str) -> None:
    for path, call in calls(name):
        if path.name in CONSTANT_SQL or not call.args:
            continue
        for node in ast.walk(call.args[0]):
            assert not isinstance(node, ast.JoinedStr), f"{path}:{call.lineno}"
            if isinstance(node, ast.BinOp) and isinstance(node.left, ast.Constant):
                assert not isinstance(node.left.value, str), f"{path}:{call.lineno}"


@pytest.mark.parametrize("name", ["'; drop table dse_studies; --", '" or 1=1', "%s:name?", "\\"])
def test_a_name_is_a_value_and_never_sql(tmp_path: Path, name: str) -> None:
    with Storage(samples.url(tmp_path)) as storage:
        storage.create(samples.record(name))
        storage.finish(name, samples.finished(0, reason=name, candidate_key=name))
        assert storage.study(name).name == name
        assert storage.trials(name) == [samples.finished(0, reason=name, candidate_key=name)]
        assert [found.name for found in storage.studies()] == [name]


# --- code -----------------------------------------------------------------------------------------


def test_nothing_unpickles_evaluates_or_loads_more_than_weights() -> None:
    for name in ("eval", "exec", "Unpickler"):
        evaluated = [
            f"{path.name}:{call.lineno}"
            for path, call in calls(name)
            if isinstance(call.func, ast.Name) or name == "Unpickler"
        ]
        assert evaluated == []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {"pickle", "dill", "marshal", "shelve"} & set(names), path
    for path, call in calls("load"):
        module = ast.unparse(call.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if module == "torch.load":
            assert given.get("weights_only") == "True", f"{path}:{call.lineno}"
        elif module in ("np.load", "numpy.load"):
            assert given.get("allow_pickle", "False") == "False", f"{path}:{call.lineno}"
        elif module == "yaml.load":
            assert given["Loader"] == "_Loader"


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch {marker}']",
        "!!python/object/new:os.system ['touch {marker}']",
        "!!python/name:os.system",
        "!!python/module:os",
    ],
)
def test_a_study_file_cannot_make_objects(tmp_path: Path, value: str) -> None:
    marker = tmp_path / "ran"
    text = study_text() + f"timeout: {value.format(marker=marker)}\n"
    with pytest.raises(StudyError, match="study"):
        parse_study(text, "study.yaml")
    assert not marker.exists()


EVIL = "from pathlib import Path\nPath({marker!r}).touch()\n\ndef build():\n    pass\n"


def test_modules_come_from_the_study_files_folder_or_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker, elsewhere, folder = tmp_path / "ran", tmp_path / "elsewhere", tmp_path / "study"
    elsewhere.mkdir()
    folder.mkdir()
    (elsewhere / "stranger.py").write_text(EVIL.format(marker=str(marker)))
    monkeypatch.chdir(elsewhere)
    with pytest.raises(WorkloadError, match=r"neither beside the study file .* nor installed"):
        bring_your_own("stranger:build", "stranger:build", folder)
    assert not marker.exists()


@pytest.mark.parametrize(
    "reference",
    [
        "../elsewhere/stranger:build",
        "..elsewhere.stranger:build",
        "elsewhere/stranger:build",
        "/etc/passwd:x",
        "stranger.py:build",
        ":build",
        "os.path",
    ],
)
def test_a_reference_is_no_path(tmp_path: Path, reference: str) -> None:
    marker, folder = tmp_path / "ran", tmp_path / "study"
    for place in (tmp_path / "elsewhere", folder):
        place.mkdir()
    (tmp_path / "elsewhere" / "stranger.py").write_text(EVIL.format(marker=str(marker)))
    with pytest.raises(WorkloadError):
        bring_your_own(reference, reference, folder)
    assert not marker.exists()


class _Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_a_checkpoint_that_holds_code_is_not_run(tmp_path: Path) -> None:
    """Whoever can write to the cache can still run nothing."""
    marker, workload = tmp_path / "ran", WORKLOADS["digits"]
    evaluator = Evaluator(workload, workload.load(), Recipe(epochs=1), 0, tmp_path / "stages")
    evaluator._baseline_file.parent.mkdir(parents=True)
    torch.save({"weight": _Evil(marker)}, evaluator._baseline_file)
    with pytest.raises((pickle.UnpicklingError, DseError)):
        evaluator.baseline()
    assert not marker.exists()


# --- secrets --------------------------------------------------------------------------------------


@pytest.fixture
def dse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Dse:
    (tmp_path / "study.yaml").write_text(study_text())
    (tmp_path / "export.dse").write_bytes(b"none")
    return Dse(tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(
    "command",
    [
        ("status",),
        ("studies",),
        ("front",),
        ("show", "0"),
        ("report",),
        ("export", "0"),
        ("rescore",),
        ("compare", "a", "b"),
        ("export-study", "a", "a.dse"),
        ("import-study", "export.dse"),
        ("backup", "copy.db"),
        ("doctor",),
        ("doctor", "--repair", "--yes"),
        ("browse",),
    ],
    ids=" ".join,
)
def test_no_command_tells_the_password_of_its_database(dse: Dse, command: tuple[str, ...]) -> None:
    told = dse(*command, "--storage", SERVER)
    assert told.code in (1, 2)
    assert SECRET not in told.out + told.err


@pytest.mark.parametrize(
    "broken",
    [
        "postgresql://me:{s}@host:port/x",
        "pg://me:{s}@h/x",
        "me:{s}@host/x",
        "postgresql:/me:{s}@host/x",
    ],
)
def test_no_url_that_is_refused_is_told_with_its_password(dse: Dse, broken: str) -> None:
    told = dse("studies", "--storage", broken.format(s=SECRET))
    assert told.code == 2
    assert SECRET not in told.out + told.err


def test_a_study_file_holds_no_password(dse: Dse) -> None:
    dse.write(study_text({"storage": SERVER}))
    told = dse("run", "study.yaml", "--dry-run")
    told.refused("storage", "DSE_STORAGE")
    assert SECRET not in told.err


def test_a_report_tells_its_command_without_the_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["dse", "report", "--storage", SERVER, f"--storage={SERVER}", "-o", "out"]
    monkeypatch.setattr("sys.argv", given)
    assert SECRET not in cli.command_line()
    assert cli.command_line().endswith("-o out")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (SERVER, "postgresql://me:***@127.0.0.1:9/studies"),
        ("postgresql://me@host/studies", "postgresql://me@host/studies"),
        ("sqlite:///study.db", "sqlite:///study.db"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


# --- faithful state -------------------------------------------------------------------------------


def test_a_database_says_how_its_study_was_made(dse: Dse) -> None:
    """Sampler and settings, seed, study file, space and its hash, code and package versions."""
    dse.write(study_text({"sampler": {"name": "tpe", "n_startup_trials": 3}, "seed": 7}))
    assert dse("run", "study.yaml", "--storage", "sqlite:///dse.db", "--quiet").code == 0
    with Storage.open_readonly("sqlite:///dse.db") as storage:
        record, trials = storage.study("tiny"), storage.trials("tiny")
    assert record.sampler == "tpe"
    assert record.sampler_settings == {"n_startup_trials": 3}
    assert record.seed == 7
    assert parse_study(record.study_file, "stored").seed == 7
    assert record.space_hash
    assert len(record.space) == len(record.distributions) > 0
    assert {"python", "dse", "torch", "optuna", "numpy", "commit", "machine"} <= set(
        record.versions
    )
    # A sampler's state is made from the seed and a trial's number, and what the trials remember.
    assert all(json.loads(json.dumps(dict(trial.attrs))) == dict(trial.attrs) for trial in trials)
