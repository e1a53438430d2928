"""Data sets from a local .npz: restored exactly, people kept apart, bad files told."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from dse.errors import WorkloadError
from dse.graph.trace import trace
from dse.workloads import check_workload, find_workload
from dse.workloads.archives import (
    CIFAR10_SUBSET,
    HAR,
    Archive,
    archive_arrays,
    cifar10_subset,
    har,
    restored,
)
from dse.workloads.download import local_folder

Array = npt.NDArray[Any]


def images() -> dict[str, Array]:
    source = np.random.default_rng(0)
    return {
        "x_train_delta": source.integers(0, 256, (2100, 3, 32, 32)).astype(np.uint8),
        "y_train": (np.arange(2100) % 10).astype(np.uint8),
        "x_test_delta": source.integers(0, 256, (20, 3, 32, 32)).astype(np.uint8),
        "y_test": (np.arange(20) % 10).astype(np.uint8),
    }


def windows(people: int = 8) -> dict[str, Array]:
    """Every window holds its person's number, so that splits can be told apart."""
    found: dict[str, Array] = {}
    for part, first in (("train", 1), ("test", 100)):
        subject = np.repeat(np.arange(first, first + people), 12).astype(np.uint8)
        found[f"subject_{part}"] = subject
        found[f"y_{part}"] = (np.arange(len(subject)) % 6).astype(np.uint8)
        signal = np.ones((len(subject), 9, 128), np.float32)
        found[f"x_{part}"] = signal * subject[:, None, None].astype(np.float32)
    return found


def save(folder: Path, archive: Archive, arrays: dict[str, Array]) -> Path:
    np.savez(folder / f"{archive.name}.npz", **arrays)  # type: ignore[arg-type]
    return folder


@given(arrays_of.arrays(np.uint8, st.tuples(*[st.integers(1, 4)] * 4)))
def test_differences_are_undone(pixels: Array) -> None:
    along_width = np.diff(pixels, axis=3, prepend=np.uint8(0))
    delta = np.diff(along_width, axis=1, prepend=np.uint8(0))
    assert np.array_equal(restored(delta), pixels)


def test_images_are_scaled_and_validation_is_held_out(tmp_path: Path) -> None:
    data = cifar10_subset(save(tmp_path, CIFAR10_SUBSET, images()))
    assert (len(data.train), len(data.validation), len(data.test)) == (100, 2000, 20)
    assert (data.sample_shape, data.classes) == ((3, 32, 32), 10)
    wanted = restored(images()["x_test_delta"]) / np.float32(255)
    assert np.array_equal(data.test.inputs.numpy(), wanted)


def test_nobody_is_in_two_splits(tmp_path: Path) -> None:
    data = har(save(tmp_path, HAR, windows()))
    people = {name: set(split.inputs[:, 0, 0].tolist()) for name, split in data.splits.items()}
    assert people["validation"] == {3.0, 8.0}
    assert people["training"] == {1.0, 2.0, 4.0, 5.0, 6.0, 7.0}
    assert people["test"] == set(range(100, 108))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"y_test": None}, "lacks an array .*y_test.*it needs x_train_delta"),
        ({"y_test": np.zeros((20, 1), np.uint8)}, r"y_test is uint8 .*of shape \(N,\)"),
        ({"x_test_delta": np.zeros((20, 3, 32, 32))}, "x_test_delta is float64.*must be uint8"),
        ({"x_test_delta": np.zeros((20, 3, 30, 32), np.uint8)}, r"shape \(N, 3, 32, 32\)"),
    ],
)
def test_another_format_is_told(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    arrays = {k: v for k, v in (images() | changes).items() if v is not None}
    with pytest.raises(WorkloadError, match=said):
        archive_arrays(CIFAR10_SUBSET, save(tmp_path, CIFAR10_SUBSET, arrays))


def test_missing_and_damaged_files_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DSE_DATA", raising=False)
    with pytest.raises(WorkloadError, match=r"'har' is not in DSE_DATA \(not set\) and cannot"):
        har()
    monkeypatch.setenv("DSE_DATA", str(tmp_path))
    with pytest.raises(WorkloadError, match=r"not in DSE_DATA \(.*har\.npz\).*holds x_train, y_"):
        har()
    (tmp_path / "har.npz").write_bytes(b"no archive")
    with pytest.raises(WorkloadError, match=r"not a readable \.npz"):
        har()
    with pytest.raises(WorkloadError, match="2 people to train on; at least 3"):
        har(save(tmp_path, HAR, windows(2)))


@pytest.mark.parametrize(
    ("workload", "shape", "parameters", "macs"),
    [
        ("resnet8-cifar10", (3, 32, 32), 77_706, 12_501_632),
        ("har", (9, 128), 167_758, 2_458_320),
    ],
)
def test_networks_have_their_sizes(
    workload: str, shape: tuple[int, ...], parameters: int, macs: int
) -> None:
    """ResNet-8 of MLPerf Tiny: 12.5 million MACs; batch normalization is folded here."""
    graph = trace(find_workload(workload).network(0), shape)
    assert (graph.parameters, graph.macs) == (parameters, macs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet8-cifar10", "har"])
def test_real_archives(name: str) -> None:
    archive = CIFAR10_SUBSET if name != "har" else HAR
    folder = local_folder()
    if folder is None or not (folder / f"{archive.name}.npz").is_file():
        pytest.skip(f"DSE_DATA names no folder with {archive.name}.npz")
    data = check_workload(find_workload(name))
    sizes = (len(data.train), len(data.validation), len(data.test))
    assert sizes == ((5943, 1409, 2947) if name == "har" else (14_000, 2000, 4000))
    if name != "har":
        pixels = restored(archive_arrays(archive)["x_train_delta"])
        found = hashlib.sha256(pixels.tobytes()).hexdigest()
        assert found == "d904d807b87be5f0d2a4563e384cbde8635634502db80688f0c6250a18d9d7a7"
