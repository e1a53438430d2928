"""`dse rescore`: other targets and changed boards, without training; both versions stay."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dse.artifacts import GRAPH
from dse.candidate import Candidate
from dse.errors import DseError, StudyError, TargetError
from dse.graph.archive import from_bytes
from dse.graph.channels import narrow, with_encodings
from dse.rescore import NEVER_TRAINED, rescore
from dse.storage import Storage
from dse.targets import cost, parse_target
from dse.trial import COST_METRICS, State, Trial
from tests.command_line import Dse, study_text

NAME = "tiny"
BOARDS = Path("boards")
CHANGES: dict[str, Any] = {
    "n_trials": 12,
    "sampler": "random",
    "space.boards": ["tiny1", "tiny2"],
    "space.backends": ["native"],
    "space.pruning": {"ratio": [0, 0.25, 0.5, 0.75], "granularity": "per-layer"},
    "objectives": ["accuracy", "flash", "energy"],
    "constraints": ["accuracy >= baseline - 60 %"],
    "training": {"epochs": 1, "fine_tune_epochs": 1, "train_samples": 300},
}


def board(name: str, template: str, changes: dict[str, str]) -> str:
    """A packaged board's file under another name with some figures changed."""
    file = Path(__file__).parents[1] / "dse" / "targets" / "boards" / f"{template}.toml"
    changes = {"name": f'"{name}"', **changes}
    lines = [
        f"{key} = {changes[key]}" if (key := line.partition(" =")[0]) in changes else line
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    return "\n".join(lines)


FLASH = '{ value = 9, unit = "KiB", status = "read", source = "test" }'
WATT = '{ value = 1, unit = "W", status = "read", source = "test" }'


def write_boards(folder: Path) -> Path:
    """Two boards on which the unpruned network has no room."""
    folder.mkdir()
    for name, template in (("tiny1", "rpi_pico"), ("tiny2", "nucleo_f446re")):
        (folder / f"{name}.toml").write_text(board(name, template, {"flash": FLASH}))
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's database, run once."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        run = Dse(folder, patch)
        run.write(study_text(CHANGES))
        words = ("run", "study.yaml", "--quiet", "--storage", "sqlite:///dse.db")
        assert run(*words, "--boards", str(write_boards(folder / "boards"))).code == 0
    return folder / "dse.db"


@pytest.fixture
def url(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    shutil.copy(finished, tmp_path / "dse.db")
    shutil.copytree(finished.parent / "boards", tmp_path / "boards")
    monkeypatch.chdir(tmp_path)
    return f"sqlite:///{tmp_path / 'dse.db'}"


def stored(url: str, name: str) -> list[Trial]:
    with Storage.open_readonly(url) as opened:
        return opened.trials(name)


def test_an_unchanged_model_gives_the_same_study(url: str) -> None:
    before = stored(url, NAME)
    with Storage(url) as opened:
        found = rescore(opened, NAME, boards=BOARDS)
        old, new = opened.fronts(NAME)[-1], opened.fronts(found.study)[-1]
        boxes = (opened.study(NAME).box, opened.study(found.study).box)
        assert opened.study(found.study).definition["rescored"]["study"] == NAME
    assert found.study == "tiny@rescored"
    assert (found.feasible, found.feasible_before) == (sum(t.feasible for t in before),) * 2
    assert (old.members, old.hypervolume) == (new.members, new.hypervolume)
    assert boxes[0] == boxes[1]
    assert stored(url, NAME) == before
    for one, other in zip(before, stored(url, found.study), strict=True):
        assert (one.number, one.state, one.candidate) == (
            other.number,
            other.state,
            other.candidate,
        )
        assert one.metrics == other.metrics
        assert one.test_accuracy in (None, other.test_accuracy)
        assert one.violations == other.violations
        assert (other.trained, other.stage_s) == (False, {})


def test_each_call_is_a_version_of_its_own(url: str) -> None:
    with Storage(url) as opened:
        names = [rescore(opened, NAME, boards=BOARDS).study for _ in range(3)]
        assert names == ["tiny@rescored", "tiny@rescored-2", "tiny@rescored-3"]
        assert rescore(opened, NAME, "winter", boards=BOARDS).study == "tiny@winter"
        assert {s.name for s in opened.studies()} == {NAME, *names, "tiny@winter"}


def test_every_network_is_costed_on_every_target(url: str) -> None:
    texts = ("nucleo_h743zi/native-dsp", "nucleo_l4r5zi/cmsis-nn/80MHz")
    targets = [parse_target(text) for text in texts]
    with Storage(url) as opened:
        found = rescore(opened, NAME, targets=texts)
        blob = opened.artifact(NAME, 0, GRAPH)
        copied = opened.artifact(found.study, 0, GRAPH)
        assert copied is not None
    assert blob is not None
    graph = from_bytes(blob)
    before, after = stored(url, NAME), stored(url, found.study)
    networks = {trial.network_key for trial in before}
    assert len(after) == len(networks) * len(targets)
    assert [trial.number for trial in after] == list(range(len(after)))
    known = {
        t.network_key: t.metrics["accuracy"] for t in before if t.value("accuracy") is not None
    }
    by_key = {target.key: target for target in targets}
    for trial in after:
        candidate = Candidate.from_json(trial.candidate)
        target = by_key[candidate.target]
        shapes = with_encodings(
            narrow(graph, candidate.widths), candidate.bits, candidate.kept, candidate.precision
        )
        if target.unsupported(shapes):
            assert trial.state is State.INFEASIBLE
            continue
        expected = cost(shapes, target).metrics
        assert {name: trial.metrics[name] for name in COST_METRICS} == expected
        assert trial.metrics.get("accuracy") == known.get(trial.network_key)
    assert any(trial.feasible for trial in after)


def test_what_was_never_trained_says_so(url: str) -> None:
    before = stored(url, NAME)
    rejected = {t.network_key for t in before if t.value("accuracy") is None}
    rejected -= {t.network_key for t in before if t.value("accuracy") is not None}
    assert rejected, "the boards' flash rejects some"
    with Storage(url) as opened:
        found = rescore(opened, NAME, targets=["nucleo_h743zi/native"])
    after = [t for t in stored(url, found.study) if t.network_key in rejected]
    unknown = [t for t in after if NEVER_TRAINED in t.violations]
    assert found.never_trained == len(unknown) > 0
    for trial in after:
        assert trial.state is State.INFEASIBLE
        assert trial.value("accuracy") is None
        assert ("never trained" in trial.reason) is (trial in unknown)


def test_a_changed_board_changes_what_depends_on_it(url: str, tmp_path: Path) -> None:
    for name, template in (("tiny1", "rpi_pico"), ("tiny2", "nucleo_f446re")):
        (tmp_path / "boards" / f"{name}.toml").write_text(
            board(name, template, {"flash": FLASH, "active_current": WATT}).replace(
                "active_current", "active_power"
            )
        )
    with Storage(url) as opened:
        found = rescore(opened, NAME, boards=BOARDS)
    for one, other in zip(stored(url, NAME), stored(url, found.study), strict=True):
        assert one.value("flash") == other.value("flash")
        assert one.value("latency") == other.value("latency")
        assert other.value("energy") == pytest.approx(other.value("latency"))  # at one watt
        assert one.value("energy") != other.value("energy")


def test_every_verb_works_on_the_new_study(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    shutil.copy(finished, tmp_path / "dse.db")
    shutil.copytree(finished.parent / "boards", tmp_path / "boards")
    run = Dse(tmp_path, monkeypatch, capsys)
    done = run("rescore", NAME, "--target", "nucleo_h743zi/native", "--label", "h7", "--json")
    assert done.code == 0
    assert json.loads(done.out)["study"] == "tiny@h7"
    front = json.loads(run("front", "tiny@h7", "--json").out)
    assert {row["board"] for row in front} == {"nucleo_h743zi"}
    assert "nucleo_h743zi" in run("show", str(front[0]["trial"]), "tiny@h7").out
    assert "float32" in run("show", "0", "tiny@h7").out
    assert run("show", str(front[0]["trial"]), "tiny@h7", "--why").code == 0
    assert run("report", "tiny@h7", "--output", "page").code == 0
    assert run("export", str(front[0]["trial"]), "tiny@h7", "--format", "c").code == 0
    (status,) = json.loads(run("status", "tiny@h7", "--json").out)
    assert status["asked"] == status["finished"] == json.loads(done.out)["trials"]
    plain = run("rescore", NAME, "--boards", "boards")
    assert "nothing was trained" in plain.out
    assert "dse front 'tiny@rescored'" in plain.out
    run("resume", "tiny@h7", "--boards", "boards").refused(
        "cannot be resumed with another search", "rescored"
    )


def test_neither_torch_nor_the_data_is_needed(url: str, tmp_path: Path) -> None:
    code = (
        "import sys; from dse.cli import app; "
        f"words = ['rescore', 'tiny', '--storage', {url!r}, '--boards', 'boards']; "
        "app(words, standalone_mode=False); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"name": "tinny"}, DseError, "'tinny'"),
        ({"label": "a/b"}, StudyError, "--label is 'a/b'"),
        ({"targets": ["rpi_pico"]}, TargetError, "is not board/backend"),
        ({"targets": ["rpi_pic/native"]}, TargetError, "did you mean 'rpi_pico'"),
        ({"targets": ["rpi_pico/native-dsp"]}, TargetError, "DSP extension"),
        ({"boards": Path("nowhere")}, TargetError, "does not exist"),
        ({}, TargetError, "ran on a target that is not known now: unknown board 'tiny1'"),
    ],
)
def test_bad_input(url: str, arguments: dict[str, Any], kind: type[DseError], words: str) -> None:
    with Storage(url) as opened:
        with pytest.raises(kind) as error:
            rescore(opened, **{"name": NAME, **arguments})
        assert words in str(error.value)
        assert [found.name for found in opened.studies()] == [NAME]


def test_a_label_is_used_once_and_only_whole_studies_are_rescored(url: str) -> None:
    with Storage(url) as opened:
        rescore(opened, NAME, "once", boards=BOARDS)
        with pytest.raises(StudyError, match="'tiny@once' exists; choose another --label"):
            rescore(opened, NAME, "once", boards=BOARDS)
        with pytest.raises(StudyError, match="rescore 'tiny' instead"):
            rescore(opened, "tiny@once")
