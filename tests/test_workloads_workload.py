"""Workloads by name, and a user's own: every way to get the two functions wrong."""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from torch import nn

from dse.errors import WorkloadError
from dse.workloads import (
    Dataset,
    Recipe,
    Workload,
    bring_your_own,
    check_workload,
    find_workload,
    workload_names,
)

MODEL = """
    from torch import nn

    def build():
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
"""
DATA = """
    import numpy

    def arrays():
        rng = numpy.random.default_rng(0)
        return {
            "x_train": rng.normal(size=(60, 1, 4, 4)),
            "y_train": numpy.arange(60) % 3,
            "x_test": rng.normal(size=(12, 1, 4, 4)),
            "y_test": numpy.arange(12) % 3,
        }
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a user's two modules beside the study file, under names that no other test uses."""
    # Compiled modules can be loaded once: what a data set needs must not go with the copy.
    importlib.import_module("sklearn.model_selection")
    monkeypatch.setattr(sys, "modules", dict(sys.modules))

    def write_files(model: str = MODEL, data: str = DATA, folder: Path = tmp_path) -> Path:
        folder.mkdir(exist_ok=True)
        (folder / "ownmodel.py").write_text(dedent(model))
        (folder / "owndata.py").write_text(dedent(data))
        return folder

    return write_files


def own(folder: Path, model: str = "ownmodel:build", data: str = "owndata:arrays") -> Workload:
    return bring_your_own(model, data, folder)


def test_own_network_and_data(write: Callable[..., Path]) -> None:
    path = list(sys.path)
    workload = own(write())
    assert isinstance(workload.network(0), nn.Sequential)
    assert workload.load().sample_shape == (1, 4, 4)
    assert workload.load() is workload.load()
    assert sys.path == path
    assert "ownmodel:build" in workload.origin


def test_own_workload_can_be_sent_to_another_process(write: Callable[..., Path]) -> None:
    workload = own(write())
    again = pickle.loads(pickle.dumps(workload))
    assert again.load().digest == workload.load().digest
    assert again.model_digest() == workload.model_digest()


def test_own_data_as_tuple_or_dataset(write: Callable[..., Path]) -> None:
    digest = own(write()).load().digest
    tuples = DATA + "\n    def rows():\n        return tuple(arrays().values())\n"
    sets = DATA + (
        "\n    def made():\n        from dse.workloads import dataset_from_arrays\n"
        "        return dataset_from_arrays('mine', arrays())\n"
    )
    for text, name in ((tuples, "rows"), (sets, "made")):
        folder = write(data=text)
        (folder / "owndata.py").rename(folder / f"own_{name}.py")
        assert own(folder, data=f"own_{name}:{name}").load().digest == digest


def test_two_studies_with_modules_of_one_name(write: Callable[..., Path], tmp_path: Path) -> None:
    own(write(folder=tmp_path / "one"))
    wide = MODEL.replace("(1, 4, 3)", "(1, 5, 3)").replace("16", "20")
    workload = own(write(wide, folder=tmp_path / "two"))
    assert workload.network(0).get_submodule("0").get_parameter("bias").shape == (5,)


BAD: list[tuple[str, dict[str, str], dict[str, str], str]] = [
    ("no colon", {}, {"model": "ownmodel.build"}, "names no function; write package.module:func"),
    ("no module", {}, {"model": "nowhere.at_all:build"}, "there is no module 'nowhere.at_all'"),
    ("no function", {}, {"model": "ownmodel:biuld"}, "no function 'biuld'; did you mean 'build'"),
    ("no data function", {}, {"data": "owndata:array"}, "did you mean 'arrays'"),
    ("no callable", {"model": "build = 3"}, {}, "holds something that is no function"),
    ("syntax", {"model": "def build(:"}, {}, "fails on import: SyntaxError"),
    ("needs a module", {"model": "import notinstalled"}, {}, "needs the module 'notinstalled'"),
    ("raises", {"model": "def build():\n    1 / 0"}, {}, "raised ZeroDivisionError"),
    ("no network", {"model": "def build():\n    return 3"}, {}, "returned int; .*torch.nn.Module"),
    ("arguments", {"model": "def build(n):\n    return n"}, {}, "raised TypeError"),
    ("data raises", {"data": "def arrays():\n    open('/none')"}, {}, "raised FileNotFoundError"),
    ("data of a wrong type", {"data": "def arrays():\n    return 'x'"}, {}, "returned str"),
    ("data of two arrays", {"data": "def arrays():\n    return 1, 2"}, {}, "returned tuple"),
    ("a wrong array name", {"data": DATA.replace("x_test", "x_tst")}, {}, "did you mean 'x_test'"),
    ("too many scores", {"model": MODEL.replace("16, 3", "16, 4")}, {}, r"must be \(2, 3\)"),
    ("wrong input size", {"model": MODEL.replace("16, 3", "17, 3")}, {}, r"fails on samples of"),
    (
        "two outputs",
        {"model": "from torch import nn\ndef build():\n    return nn.AdaptiveMaxPool2d(1, True)"},
        {},
        "returned tuple; it must return a tensor",
    ),
    (
        "NaN",
        {"model": MODEL.replace("nn.ReLU()", "nn.Threshold(9, float('nan'))")},
        {},
        "NaN or infinite scores before any training",
    ),
    ("NaN in data", {"data": DATA.replace("(12, 1, 4, 4))", "(12, 1, 4, 4)) / 0")}, {}, "infinite"),
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("files", "references", "said"), [case[1:] for case in BAD], ids=[case[0] for case in BAD]
)
def test_bad_own_workload_is_one_clear_sentence(
    write: Callable[..., Path], files: dict[str, str], references: dict[str, str], said: str
) -> None:
    folder = write(**files)
    with pytest.raises(WorkloadError, match=said) as caught:
        own(folder, **references)
    assert "\n" not in str(caught.value)


def test_unknown_workload() -> None:
    with pytest.raises(WorkloadError, match="did you mean 'digits'"):
        find_workload("digit")
    assert {"digits", "lenet5-mnist", "lenet5-fashion-mnist"} <= set(workload_names())


class _Point:
    name, value = "theirs", "their.package:workload"

    def __init__(self, found: Any) -> None:
        self.found = found

    def load(self) -> Any:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


@pytest.mark.parametrize(
    ("found", "said"),
    [(3, "is int; the entry point must name"), (ImportError("no numba"), "no numba")],
)
def test_entry_points(monkeypatch: pytest.MonkeyPatch, found: Any, said: str) -> None:
    module = "dse.workloads.workload.entry_points"
    monkeypatch.setattr(module, lambda group: [_Point(find_workload("digits"))])
    assert find_workload("theirs").name == "digits"
    monkeypatch.setattr(module, lambda group: [_Point(found)])
    with pytest.raises(WorkloadError, match=said):
        find_workload("theirs")


def test_lenet5_is_the_one_of_the_literature() -> None:
    model = find_workload("lenet5-fashion-mnist").network(0)
    assert sum(p.numel() for p in model.parameters()) == 431_080


def test_digits_fit_their_network() -> None:
    data = check_workload(find_workload("digits"))
    assert (data.classes, data.sample_shape) == (10, (1, 8, 8))
    assert len(data.train) + len(data.validation) + len(data.test) == 1797
    assert float(data.train.inputs.max()) == 1.0


class _Pretrained(nn.Module):
    def __init__(self, fill: float, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 2, stride=stride)
        self.fixed = nn.Parameter(torch.full((3,), fill))


def test_model_digest_sees_layers_and_pretrained_values_but_not_the_seed() -> None:
    def digest(build: Callable[[], nn.Module]) -> str:
        def load() -> Dataset:
            raise AssertionError("the data does not belong to the model's digest")

        return Workload("w", build, load, Recipe(), "").model_digest()

    first = digest(lambda: _Pretrained(1.0))
    torch.manual_seed(7)
    assert digest(lambda: _Pretrained(1.0)) == first
    assert digest(lambda: _Pretrained(2.0)) != first
    assert digest(lambda: _Pretrained(1.0, stride=2)) != first


def test_network_depends_on_the_seed_alone() -> None:
    workload = find_workload("digits")
    torch.manual_seed(1)
    one = workload.network(4).state_dict()
    torch.manual_seed(2)
    two, other = workload.network(4).state_dict(), workload.network(5).state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])
