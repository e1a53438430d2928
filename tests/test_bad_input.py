"""Everything a user can get wrong, through the real command: one clear sentence, exit code 2."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dse import cli
from dse.storage import Storage
from dse.workloads import workload as workloads
from dse.workloads.download import MNIST
from tests.command_line import DATA, MISSING, MODEL, OWN, Dse, Ended, plain, study_text


@pytest.fixture
def dse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Dse:
    return Dse(tmp_path, monkeypatch, capsys)


def test_without_a_mistake_nothing_is_refused(dse: Dse) -> None:
    for ended in (dse.check(), dse.check_own()):
        assert (ended.code, ended.err) == (0, "")


# --- the study file -----------------------------------------------------------------------------

BAD_TEXTS: list[tuple[str, str, tuple[str, ...]]] = [
    ("not YAML", "name: [1\nspace: 2\n", ("line 2 is not YAML",)),
    ("tab", "name:\n\t- x\n", ("line 2 is not YAML", "'\\t'")),
    ("control sign", "name: \x01\n", ("is not YAML", "#x0001")),
    ("no date", "name: 2024-13-45\n", ("is not YAML", "month must be in 1..12")),
    ("a Python object", "name: !!python/object:os.system x\n", ("line 1 is not YAML", "python")),
    ("too deep", "[" * 5000, ("is not YAML",)),
    ("a list", "- name: x\n", ("holds [{'name': 'x'}]", "mapping", "dse init")),
    ("empty", "# nothing\n", ("is empty", "mapping", "dse init")),
    ("a key twice", "name: a\nseed: 1\nname: b\n", ("line 3: key 'name' is given twice",)),
    ("a nested key twice", "space:\n  boards: a\n  boards: b\n", ("line 3: key 'boards'",)),
    ("a number as key", "3: 4\n", ("line 1: key 3 is not a text",)),
    ("a list as key", "? [a]\n: b\n", ("line 1: key ['a'] is not a text",)),
]


@pytest.mark.parametrize(
    ("text", "said"), [c[1:] for c in BAD_TEXTS], ids=[c[0] for c in BAD_TEXTS]
)
def test_texts(dse: Dse, text: str, said: tuple[str, ...]) -> None:
    (dse.folder / "study.yaml").write_text(text)
    dse("run", "study.yaml", "--dry-run").refused("study.yaml", *said)


BAD_KEYS: list[tuple[str, Any, tuple[str, ...]]] = [
    ("objectivs", [], ("unknown key 'objectivs'", "did you mean 'objectives'?", "n_trials")),
    ("space.quantisation", {}, ("'quantisation' in 'space'", "did you mean 'quantization'?")),
    ("space.pruning.ratios", [0], ("'ratios' in 'space.pruning'", "did you mean 'ratio'?")),
    ("objectives", MISSING, ("the key 'objectives' is missing", "dse init")),
    ("space.pruning", {}, ("the key 'space.pruning.ratio' is missing", "dse init")),
    ("name", "", ("'name' is ''", "at least 1 character")),
    ("name", 3, ("'name' is 3", "a text")),
    ("workload", "digit", ("'workload'", "'digit'", "did you mean 'digits'?", "lenet5-mnist")),
    ("workload", 3, ("'workload' is 3", "a text")),
    ("workload", {"model": "a:b"}, ("the key 'workload.data' is missing",)),
    ("objectives", ["accuracy", "flsh"], ("'objectives.1'", "'flsh'", "did you mean 'flash'?")),
    ("objectives", [], ("'objectives' lists nothing", "1 to 5 of accuracy, flash, ram")),
    ("objectives", ["flash", "ram"], ("'objectives' lists flash, ram", "add accuracy")),
    ("objectives", ["accuracy", "ram", "ram"], ("'objectives' lists 'ram' twice",)),
    (
        "objectives",
        ["accuracy", "flash", "ram", "latency", "energy", "size"],
        ("'objectives.5'", "'size'", "allowed: accuracy, energy, flash, latency, ram"),
    ),
    ("constraints", ["ram <= 50 KB"], ("'50 KB'", "did you mean 'KiB'?", "MiB")),
    ("constraints", ["flash <= 1 MiB", "ram <= 50"], ("'constraints.1'", "no unit", "KiB")),
    ("constraints", ["latency <= 5 KiB"], ("unit 'KiB'", "ms, s, us")),
    ("constraints", ["latency <= ten ms"], ("'ten ms'", "number with a unit", "s, ms, us")),
    ("constraints", ["ram >= 50 KiB"], ("'>='", "minimized", "'ram <= ...'")),
    ("constraints", ["accuracy <= 90 %"], ("'<='", "maximized", "'accuracy >= ...'")),
    ("constraints", ["accuracy >= 101 %"], ("101 %", "allowed: 0 % to 100 %")),
    ("constraints", ["accuracy >= 90"], ("9000 %", "allowed: 0 % to 100 %")),
    ("constraints", ["accuracy >= baseline - 1"], ("100 percentage points", "baseline - 1 %")),
    ("constraints", ["accuracy >= basline - 1 %"], ("not understood", "'baseline - 1 %'")),
    ("constraints", ["ram <= baseline - 5 %"], ("'5 %'", "unit '%'", "KiB")),
    ("constraints", ["rma <= 5 KiB"], ("limits 'rma'", "did you mean 'ram'?")),
    ("constraints", ["small"], ("'small' is not a constraint", "'ram <= 64 KiB'")),
    ("constraints", ["ram <= 0 B"], ("'ram <= 0 B' can never be met",)),
    ("constraints", ["ram <= 500 B"], ("at best, ram 1.73 KiB on rpi_pico/native/133MHz", "over")),
    ("constraints", ["flash <= 1 % of baseline"], ("at best, flash", "1 % of baseline")),
    ("constraints", ["flash <= baseline - 1 MiB"], ("at best, flash", "raise the limit")),
    ("space.pruning.ramp", {"starts": 0}, ("unknown key 'starts'", "did you mean 'start'?")),
    ("space.pruning.ramp", {"end": 1.5}, ("end.0' holds 1.5", "0 (its beginning) to 1")),
    ("space.pruning.ramp", {"start": 0.6}, ("may start at 0.6 and end at 0.5", "every start")),
    (
        "space.sparsity",
        {"ratio": [0], "pattern": "4x8"},
        ("pattern.0' is '4x8'", "did you mean '4x4'?"),
    ),
    ("space.pruning.ratio", [1.0], ("ratio.0' holds 1", "not including, 1")),
    ("space.pruning.ratio", [], ("'space.pruning.ratio' is []", "at least 1 value")),
    ("space.pruning.ratio", ["half"], ("ratio.0' is 'half'", "a number")),
    ("space.pruning.ratio", [0, 0.5, 0], ("lists 0.0 twice",)),
    (
        "space.pruning.ratio",
        {"low": 0.5, "high": 0.1, "step": 0.1},
        ("'space.pruning.ratio' runs from 0.5 to 0.1", "low <= high"),
    ),
    ("space.pruning.ratio", {"low": 0, "high": 0.5}, ("needs low, high and step",)),
    ("space.pruning.ratio", {"lo": 0}, ("unknown key 'lo'", "did you mean 'low'?")),
    (
        "space.pruning.ratio",
        {"low": 0, "high": float("inf"), "step": 0.1},
        ("high = inf", "a number"),
    ),
    ("space.pruning.ratio", {"low": 0, "high": 0.5, "step": 1e-7}, ("5,000,001", "1,000")),
    ("space.pruning.granularity", "layer", ("'layer'", "did you mean 'per-layer'?", "global")),
    ("space.pruning.criterion", "l3", ("criterion.0' is 'l3'", "did you mean 'l2'?", "taylor")),
    ("space.pruning.skip", "con1", ("'space.pruning.skip'", "'con1'", "did you mean 'conv1'?")),
    ("space.pruning.skip", ["conv1", "conv2", "conv3", "fc1"], ("skip' names every layer",)),
    ("space.low_rank", {}, ("the key 'space.low_rank.ratio' is missing",)),
    ("space.low_rank.ratio", [1.5], ("low_rank.ratio.0' holds 1.5", "not including, 1")),
    ("space.low_rank", {"ratio": 0.5, "skip": "con1"}, ("'space.low_rank.skip'", "'conv1'?")),
    ("space.low_rank", {"ratio": 0.5, "factors": "space"}, ("'space'", "did you mean 'spatial'?")),
    ("space.quantization.scales", "chanel", ("'chanel'", "did you mean 'channel'?", "tensor")),
    ("space.quantization.rounding", ["up"], ("'up'", "nearest", "adaptive")),
    ("space.quantization.biases", "correct", ("'correct'", "did you mean 'corrected'?")),
    ("space.quantization.equalization", True, ("is True", "none", "cross-layer")),
    ("space.code_books", {}, ("the key 'space.code_books.entries' is missing",)),
    ("space.code_books.entries", [0, 3], ("entries.1' holds 3", "0 (no code book), or 4 to 256")),
    ("space.code_books", {"entries": 16, "vector": 3}, ("holds 3", "1, 2 or 4 weights")),
    ("space.sparsity", {"ratio": 0.5, "skip": ["x"]}, ("'space.sparsity.skip'", "'x'", "fc2")),
    ("space.quantization.weight_bits", [9], ("weight_bits.0' holds 9", "2 to 8 bits")),
    ("space.quantization.weight_bits", 1, ("weight_bits.0' holds 1", "2 to 8 bits")),
    ("space.quantization.weight_bits", ["8"], ("is '8'", "a whole number")),
    ("space.quantization.precision", "int4", ("'int4'", "did you mean 'int8'?", "float32")),
    ("space.boards", "rpi_pic", ("'space.boards'", "did you mean 'rpi_pico'?", "nano33ble")),
    ("space.boards", [], ("'space.boards' is []", "at least 1")),
    ("space.backends", "cmsis", ("'space.backends'", "did you mean 'cmsis-nn'?", "native-dsp")),
    ("space.backends", "native-dsp", ("'space' leaves no target", "DSP extension", "'native'")),
    ("space.clocks", "133 mHz", ("'space.clocks.0'", "'mHz'", "MHz")),
    ("space.clocks", [133], ("'space.clocks.0' holds 133", "'80 MHz'")),
    ("space.clocks", "100 MHz", ("'space.clocks' holds 100 MHz", "48 MHz, 125 MHz, 133 MHz")),
    ("space.alignment", 0, ("'space.alignment' is 0", "at least 1")),
    ("space", {"boards": "rpi_pico", "backends": "native"}, ("one candidate only", "several")),
    ("space", ["pruning"], ("'space' is ['pruning']", "a mapping")),
    ("sampler", "tep", ("no sampler 'tep'", "did you mean 'tpe'?", "nsga2")),
    ("sampler", ["tpe"], ("'sampler' is ['tpe']", "write a name", "nsga2")),
    ("sampler", {"name": "tpe", "n_startup": 3}, ("'n_startup'", "did you mean 'n_startup_trials")),
    ("sampler", {"name": "random", "a": 1}, ("no setting 'a'", "it has none")),
    ("sampler", {"name": "tpe", "n_startup_trials": "3"}, ("is '3'", "whole number of at least")),
    ("sampler", {"name": "nsga2", "mutation_prob": 2}, ("'mutation_prob'", "is 2", "0 to 1")),
    ("sampler", {"name": "nsga2", "population_size": 1}, ("{'population_size': 1}", "cannot work")),
    ("seed", -1, ("'seed' is -1", "at least 0")),
    ("seed", True, ("'seed' is True", "a whole number")),
    ("n_trials", 0, ("'n_trials' is 0", "at least 3")),
    ("n_trials", 2.5, ("'n_trials' is 2.5", "a whole number")),
    ("timeout", 10, ("'timeout' is 10", "with its unit", "'10 min'")),
    ("timeout", "10 minutes", ("'timeout'", "'minutes'", "did you mean 'min'?")),
    ("timeout", "0 s", ("'timeout' is '0 s'", "above 0")),
    ("training", {"epoch": 3}, ("'training'", "'epoch'", "did you mean 'epochs'?")),
    ("training", {"epochs": 0}, ("'training'", "epochs is 0", "at least 1")),
    ("training", {"optimizer": "adma"}, ("'training'", "'adma'", "did you mean 'adam'?")),
    ("training", 3, ("'training' is 3", "a mapping")),
]


def _label(key: str, value: Any) -> str:
    return f"{key} = {'(left out)' if value is MISSING else value}"[:70]


@pytest.mark.parametrize(
    ("key", "value", "said"), BAD_KEYS, ids=[_label(key, value) for key, value, _ in BAD_KEYS]
)
def test_keys(dse: Dse, key: str, value: Any, said: tuple[str, ...]) -> None:
    dse.check({key: value}).refused("study.yaml", *said)


def test_a_grid_that_is_too_large(dse: Dse) -> None:
    ratios = [0, 0.25, 0.5, 0.6, 0.75, 0.8]
    ended = dse.check({"sampler": "grid", "space.pruning.ratio": ratios})
    ended.refused("'sampler'", "41,472 points", "up to 20,000", "coarser knobs")


def test_study_files_that_cannot_be_read(dse: Dse) -> None:
    dse("run", "stduy.yaml").refused("stduy.yaml", "no such file", "dse init")
    dse("run", str(dse.folder)).refused(str(dse.folder), "cannot be read")
    (dse.folder / "study.yaml").write_bytes(b"name: \xff\xfe\n")
    dse("run", "study.yaml").refused("study.yaml", "cannot be read", "utf-8")


def test_nothing_is_stored_before_the_whole_study_was_checked(dse: Dse) -> None:
    dse.write(study_text({"sampler": {"name": "nsga2", "population_size": 1}}))
    dse("run", "study.yaml", "--storage", "sqlite:///new.db").refused("population_size")
    dse.write(study_text())
    dse("run", "study.yaml", "--sampler", "tep").refused("study.yaml", "did you mean 'tpe'?")
    assert [path.name for path in dse.folder.iterdir()] == ["study.yaml"]


# --- the user's own network and data ------------------------------------------------------------

BAD_MODELS: list[tuple[str, str, str, tuple[str, ...]]] = [
    ("no colon", "ownmodel.build", MODEL, ("'ownmodel.build'", "package.module:function")),
    ("no module", "nomodel:build", MODEL, ("no module 'nomodel'", "beside the study file")),
    ("no function", "ownmodel:bild", MODEL, ("no function 'bild'", "did you mean 'build'?")),
    ("syntax", "ownmodel:build", "def build(:\n", ("ownmodel:build", "SyntaxError", "line 1")),
    ("needs more", "ownmodel:build", "import nowhere\n", ("needs the module 'nowhere'",)),
    ("raises", "ownmodel:build", "def build():\n    1 / 0\n", ("raised ZeroDivisionError",)),
    ("no network", "ownmodel:build", "def build():\n    return 3\n", ("int", "torch.nn.Module")),
    ("wrong shape", "ownmodel:build", MODEL.replace("16, 3", "16, 4"), ("(2, 4)", "(2, 3)")),
    ("wrong input", "ownmodel:build", MODEL.replace("16, 3", "9, 3"), ("fails on", "(2, 1, 4, 4)")),
    (
        "operator",
        "ownmodel:build",
        MODEL.replace("ReLU", "Softplus"),
        ("'1' is a Softplus", "ReLU6"),
    ),
    (
        "group norm",
        "ownmodel:build",
        MODEL.replace("nn.ReLU()", "nn.GroupNorm(2, 4)"),
        ("module '1' is a GroupNorm", "batch norm"),
    ),
    (
        "transposed",
        "ownmodel:build",
        MODEL.replace("Conv2d(1, 4, 3)", "ConvTranspose2d(1, 1, 1)"),
        ("module '0' is a ConvTranspose2d", "convolutions"),
    ),
    (
        "branches",
        "ownmodel:build",
        """
        from torch import nn
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.head = nn.Linear(16, 3)
            def forward(self, x):
                return self.head(x.flatten(1) if x.sum() > 0 else -x.flatten(1))
        build = Net
        """,
        ("cannot be traced", "must not branch on values"),
    ),
    (
        "nothing to prune",
        "ownmodel:build",
        MODEL.replace("nn.Conv2d(1, 4, 3), nn.ReLU(), ", ""),
        ("'space.pruning'", "no channels that could be removed"),
    ),
]


@pytest.mark.parametrize(
    ("reference", "model", "said"), [c[1:] for c in BAD_MODELS], ids=[c[0] for c in BAD_MODELS]
)
def test_models(dse: Dse, reference: str, model: str, said: tuple[str, ...]) -> None:
    changes = {**OWN, "workload.model": reference}
    dse.check_own(model, changes=changes).refused("study.yaml: '", *said)


BAD_DATA: list[tuple[str, str, tuple[str, ...]]] = [
    ("raises", "def arrays():\n    open('/none')\n", ("raised FileNotFoundError", "/none")),
    ("a text", "def arrays():\n    return 'x'\n", ("returned str", "x_train, y_train, x_test")),
    ("wrong name", DATA.replace("x_test", "x_tst"), ("'x_tst'", "did you mean 'x_test'?")),
    ("NaN", DATA.replace("size=(60, 1, 4, 4))", "size=(60, 1, 4, 4)) * numpy.nan"), ("960", "NaN")),
    ("lengths", DATA.replace("arange(12)", "arange(11)"), ("12 inputs but 11 labels",)),
    ("one class", DATA.replace("% 3", "* 0"), ("has 1 classes", "at least 2")),
]


@pytest.mark.parametrize(("data", "said"), [c[1:] for c in BAD_DATA], ids=[c[0] for c in BAD_DATA])
def test_data(dse: Dse, data: str, said: tuple[str, ...]) -> None:
    dse.check_own(data=data).refused("study.yaml: 'workload'", *said)


# --- published data -----------------------------------------------------------------------------


@pytest.fixture
def offline(dse: Dse) -> Iterator[Dse]:
    """MNIST's publisher does not answer, and nothing is cached."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/"
    dse.patch.setattr(workloads, "MNIST", replace(MNIST, mirrors=(address,)))
    workloads._mnist.cache_clear()
    yield dse
    workloads._mnist.cache_clear()


def test_an_unreachable_publisher(offline: Dse) -> None:
    said = ("'mnist'", "could not be downloaded", "http://127.0.0.1", "go online once", "mnist.npz")
    offline.check({"workload": "lenet5-mnist"}).refused("study.yaml", "DSE_DATA (not set)", *said)
    offline.patch.setenv("DSE_DATA", "nodata")
    offline.check({"workload": "lenet5-mnist"}).refused("nodata/mnist.npz", *said)


IMAGES = np.zeros((3, 2, 2))
BAD_ARCHIVES: list[tuple[str, Callable[[Path], object], tuple[str, ...]]] = [
    ("no zip", lambda path: path.write_bytes(b"PK\3\4 garbage"), ("not a readable .npz file",)),
    ("too few", lambda path: np.savez(path, x_train=IMAGES), ("lacks an array", "y_train")),
    (
        "floats",
        lambda path: np.savez(path, x_train=IMAGES, y_train=IMAGES, x_test=IMAGES, y_test=IMAGES),
        ("x_train is float64 of shape (3, 2, 2)", "uint8 of shape (N, H, W)"),
    ),
]


@pytest.mark.parametrize(
    ("write", "said"), [c[1:] for c in BAD_ARCHIVES], ids=[c[0] for c in BAD_ARCHIVES]
)
def test_archives(offline: Dse, write: Callable[[Path], object], said: tuple[str, ...]) -> None:
    write(offline.folder / "mnist.npz")
    offline.patch.setenv("DSE_DATA", str(offline.folder))
    offline.check({"workload": "lenet5-mnist"}).refused("mnist.npz", *said)


# --- boards -------------------------------------------------------------------------------------

BAD_BOARDS: list[tuple[str, str, tuple[str, ...]]] = [
    ("no TOML", "name = [", ("not readable TOML",)),
    ("unknown key", 'name = "x"\nflsh = 3', ("unknown key 'flsh'", "did you mean 'flash'?")),
    ("missing key", 'name = "x"\ntitle = "t"', ("key 'core' is missing",)),
    (
        "not a fact",
        'name = "x"\ntitle = "t"\ncore = "m4"\nclocks = 3\nflash=1\nram=1',
        ("'clocks'",),
    ),
]


@pytest.mark.parametrize(
    ("text", "said"), [c[1:] for c in BAD_BOARDS], ids=[c[0] for c in BAD_BOARDS]
)
def test_board_files(dse: Dse, text: str, said: tuple[str, ...]) -> None:
    (dse.folder / "mine.toml").write_text(text)
    dse.write(study_text())
    for command in (("run", "study.yaml", "--dry-run"), ("boards",)):
        ended = dse(*command, "--boards", ".")
        ended.refused("board file 'mine.toml'", *said)
        assert "study.yaml" not in ended.err
        dse(*command, "--boards", "nowhere").refused("'nowhere' does not exist")


# --- storage and stored studies -----------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished study of three trials in study.db."""
    folder = tmp_path_factory.mktemp("stored")
    with pytest.MonkeyPatch.context() as patch:
        dse = Dse(folder, patch)
        dse.write(study_text())
        assert dse("run", "study.yaml", "-q", "--storage", "sqlite:///study.db").code == 0
    return folder


@pytest.fixture
def here(stored: Path, dse: Dse) -> Iterator[Dse]:
    """The command beside a stored study, of which nothing is lost whatever is asked."""
    dse.patch.chdir(stored)
    dse.patch.setenv("DSE_STORAGE", "sqlite:///study.db")
    with Storage.open_readonly("sqlite:///study.db") as storage:
        before = storage.trials("tiny")
        yield dse
        assert storage.trials("tiny") == before


BAD_STORAGE: list[tuple[str, tuple[str, ...]]] = [
    ("study.db", ("'study.db' is not a storage URL", "sqlite:///study.db")),
    ("mysql://host/db", ("unknown storage 'mysql://'", "postgresql, sqlite")),
    ("sqlite://", ("names no file", "sqlite:///study.db")),
    ("sqlite:///nowhere/study.db", ("folder nowhere does not exist", "make it")),
    ("sqlite:///study.yaml", ("study.yaml", "not a SQLite database")),
    ("sqlite:///.", ("is a folder", "study.db")),
    ("postgresql://me:secret@host/db", ("PostgreSQL", 'pip install "dse[postgresql]"')),
]


@pytest.mark.parametrize(("url", "said"), BAD_STORAGE, ids=[url for url, _ in BAD_STORAGE])
def test_storage(here: Dse, url: str, said: tuple[str, ...]) -> None:
    here.patch.setitem(sys.modules, "psycopg", None)
    for command in (("run", "study.yaml"), ("resume",), ("status",), ("front",), ("report",)):
        ended = here(*command, "--storage", url)
        ended.refused(*said)
        assert "secret" not in ended.err


BAD_COMMANDS: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    (("status", "tinny"), ("no study 'tinny'", "did you mean 'tiny'?")),
    (("resume", "tinny"), ("no study 'tinny'", "did you mean 'tiny'?")),
    (("front", "nofile.yaml"), ("nofile.yaml", "no such file")),
    (("front", "--storage", "sqlite:///no.db"), ("no database at no.db", "check the storage URL")),
    (("run", "study.yaml"), ("study 'tiny' exists", "resume it or choose another name")),
    (("show", "99"), ("has no trial 99", "0 to 2")),
    (("resume", "study.yaml", "--timeout", "10"), ("'10' has no unit", "min")),
    (("resume", "tiny", "--constraint", "ram < 1"), ("uses '<'", "allowed: 'ram <= ...'")),
    (("resume", "tiny", "--drop-constraint", "flash"), ("names 'flash'", "ram")),
    (("resume", "tiny", "--drop-objective", "energy"), ("names 'energy'", "allowed: accuracy")),
    (("resume", "tiny", "--objective", "accuracy"), ("names 'accuracy'", "allowed: energy")),
    (("init", "study.yaml"), ("study.yaml exists", "--force")),
    (("init", "nowhere/study.yaml"), ("nowhere/study.yaml", "cannot be written")),
    (("report", "-o", "study.yaml"), ("into study.yaml", "choose another folder")),
]


@pytest.mark.parametrize(
    ("arguments", "said"), BAD_COMMANDS, ids=[" ".join(arguments) for arguments, _ in BAD_COMMANDS]
)
def test_commands(here: Dse, arguments: tuple[str, ...], said: tuple[str, ...]) -> None:
    here(*arguments).refused(*said)


def test_resuming_another_search(here: Dse) -> None:
    changed = study_text({"space.pruning.ratio": [0, 0.25], "seed": 7, "n_trials": 9})
    Path("changed.yaml").write_text(changed)
    here("resume", "changed.yaml").refused(
        "study 'tiny' cannot be resumed",
        "space.pruning.ratio was [0.0, 0.5] and is now [0.0, 0.25]",
        "seed was 0 and is now 7",
        "new name",
    )


# The library that parses the command line prints a box; its exit code is ours.
BAD_FLAGS: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    (("run", "study.yaml", "--n-trials", "1"), ("--n-trials", "3")),
    (("run", "study.yaml", "--seed", "-1"), ("--seed", "0")),
    (("run",), ("Missing argument",)),
    (("front", "--format", "xml"), ("--format", "'xml'", "table")),
    (("show", "first"), ("trial", "integer")),
    (("fornt",), ("No such command 'fornt'",)),
]


@pytest.mark.parametrize(
    ("arguments", "said"), BAD_FLAGS, ids=[" ".join(arguments) for arguments, _ in BAD_FLAGS]
)
def test_flags(here: Dse, arguments: tuple[str, ...], said: tuple[str, ...]) -> None:
    ended = here(*arguments)
    assert ended.code == 2
    assert "Traceback" not in ended.err
    for fragment in said:
        assert fragment in ended.err


# --- a real process -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "nofile.yaml"), ("nofile.yaml", "no such file")),
        (("run", "study.yaml", "--dry-run"), ("unknown key 'sampeler'", "did you mean 'sampler'?")),
        (("status", "--storage", "sqlite:///study.yaml"), ("not a SQLite database",)),
    ],
    ids=["missing file", "unknown key", "storage"],
)
def test_a_real_process(tmp_path: Path, arguments: tuple[str, ...], said: tuple[str, ...]) -> None:
    (tmp_path / "study.yaml").write_text(study_text({"sampeler": "tpe"}))
    found = subprocess.run(
        [sys.executable, "-m", "dse.cli", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    Ended(found.returncode, found.stdout, plain(found.stderr)).refused(*said)


# --- flags, checked before anything starts ------------------------------------------------------


@pytest.mark.parametrize("timeout", ["soon", "10", "-5 s", "0 s"])
def test_a_bad_timeout_leaves_no_study_behind(dse: Dse, timeout: str) -> None:
    (dse.folder / "study.yaml").write_text(study_text({}))
    dse("run", "study.yaml", "--timeout", timeout).refused("--timeout", timeout)
    assert not (dse.folder / "dse.db").exists()


def test_a_report_that_is_a_file_is_told_at_once(dse: Dse) -> None:
    (dse.folder / "study.yaml").write_text(study_text({}))
    dse("run", "study.yaml", "--report", "study.yaml").refused("--report", "file", "folder")


def test_a_board_whose_name_cannot_be_in_a_target(dse: Dse) -> None:
    folder = Path(__file__).parents[1] / "dse" / "targets" / "boards"
    text = (folder / "rpi_pico.toml").read_text().replace('name = "rpi_pico"', 'name = "my/pico"')
    (dse.folder / "more").mkdir()
    (dse.folder / "more" / "pico.toml").write_text(text)
    dse("boards", "--boards", "more").refused("my/pico", "letters")
