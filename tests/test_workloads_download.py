"""Published data: verified against a publisher on loopback, damaged in every way a network can."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dse.errors import WorkloadError
from dse.workloads import find_workload
from dse.workloads.download import (
    FASHION_MNIST,
    MNIST,
    Part,
    Publication,
    local_folder,
    matches,
    published_arrays,
    read_idx,
)

Array = npt.NDArray[Any]


def make_arrays(seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "x_train": rng.integers(0, 256, (30, 4, 5)).astype(np.uint8),
        "y_train": (np.arange(30) % 3).astype(np.uint8),
        "x_test": rng.integers(0, 256, (9, 4, 5)).astype(np.uint8),
        "y_test": (np.arange(9) % 3).astype(np.uint8),
    }


def idx(array: Array) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address under which it is served."""
    folder = tmp_path / "site"
    folder.mkdir()
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


def refused() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/"


def publish(folder: Path, *mirrors: str) -> Publication:
    parts = {}
    for name, array in make_arrays().items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        parts[name] = Part(f"{name}.gz", hashlib.sha256(array.tobytes()).hexdigest())
    return Publication("toy", mirrors, parts)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("DSE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def _no_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DSE_DATA", raising=False)


def archive(path: Path, arrays: dict[str, Array]) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]


def same(found: Any, expected: dict[str, Array]) -> bool:
    return all(np.array_equal(found[name], array) for name, array in expected.items())


@pytest.mark.usefixtures("_no_local")
def test_download_is_kept_and_needs_no_network_again(
    site: tuple[Path, str], tmp_path: Path
) -> None:
    folder, address = site
    publication = publish(folder, address)
    assert same(published_arrays(publication), make_arrays())
    for file in folder.iterdir():
        file.unlink()
    again = published_arrays(publication)
    assert same(again, make_arrays())
    assert isinstance(again["x_train"], np.memmap)
    kept = sorted(path.name for path in (tmp_path / "cache" / "datasets" / "toy").iterdir())
    assert kept == ["x_test.npy", "x_train.npy", "y_test.npy", "y_train.npy"]


@pytest.mark.usefixtures("_no_local")
def test_next_mirror_is_tried(site: tuple[Path, str]) -> None:
    folder, address = site
    assert same(published_arrays(publish(folder, refused(), address)), make_arrays())


@pytest.mark.usefixtures("_no_local")
@pytest.mark.parametrize("damage", ["bit", "cut", "not gzip", "not idx", "short", "gone", "other"])
def test_damaged_download_is_refused_and_not_kept(
    site: tuple[Path, str], tmp_path: Path, damage: str
) -> None:
    folder, address = site
    publication = publish(folder, address)
    file = folder / "x_test.gz"
    whole, content = file.read_bytes(), idx(make_arrays()["x_test"])
    damaged = {
        "bit": whole[:60] + bytes([whole[60] ^ 1]) + whole[61:],
        "cut": whole[: len(whole) // 2],
        "not gzip": b"<html>sorry</html>",
        "not idx": gzip.compress(b"\x00\x00\x0d\x03" + content[4:]),
        "short": gzip.compress(content[:-1]),
        "gone": b"",
        "other": gzip.compress(idx(make_arrays(seed=1)["x_test"])),
    }[damage]
    file.write_bytes(damaged)
    if damage == "gone":
        file.unlink()
    with pytest.raises(WorkloadError, match=r"missing x_test\.gz.*DSE_DATA \(not set\)") as caught:
        published_arrays(publication)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache" / "datasets" / "toy").exists()


@pytest.mark.usefixtures("_no_local")
def test_refused_connection_says_where_it_looked_and_what_to_do(tmp_path: Path) -> None:
    publication = publish(tmp_path, address := refused())
    said = rf"not in the cache \(.*toy\).*{address}x_train\.gz: .*refused.*set DSE_DATA"
    with pytest.raises(WorkloadError, match=said):
        published_arrays(publication, cache=tmp_path / "cache")


@pytest.mark.usefixtures("_no_local")
def test_damaged_cache_is_fetched_again(site: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = site
    publication = publish(folder, address)
    published_arrays(publication)
    kept = tmp_path / "cache" / "datasets" / "toy" / "x_train.npy"
    content = kept.read_bytes()
    for damaged in (content[:200], content[:-1] + bytes([content[-1] ^ 1])):
        kept.write_bytes(damaged)
        assert same(published_arrays(publication), make_arrays())
        assert kept.read_bytes() == content


def test_local_folder_goes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    publication = publish(tmp_path, refused())
    archive(tmp_path / "toy.npz", make_arrays())
    monkeypatch.setenv("DSE_DATA", str(tmp_path))
    assert same(published_arrays(publication), make_arrays())
    assert isinstance(published_arrays(publication)["x_train"], np.memmap)


def test_another_local_file_is_used_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publication = publish(tmp_path, refused())
    for seed in (0, 1):  # the file changes under the same name: no stale cache
        archive(tmp_path / "toy.npz", make_arrays(seed))
        assert same(published_arrays(publication, local=tmp_path), make_arrays(seed))
    assert "is not the published toy" in caplog.text


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x_train": np.zeros((3, 4, 5), np.uint8)}, "lacks an array .*y_train"),
        ({**make_arrays(), "x_test": np.zeros((9, 4, 5))}, "x_test is float64"),
        ({**make_arrays(), "y_test": np.zeros((9, 1), np.uint8)}, r"y_test is uint8 .*\(N,\)"),
        (None, "not a readable .npz"),
    ],
)
def test_bad_local_file(tmp_path: Path, arrays: dict[str, Array] | None, said: str) -> None:
    publication = publish(tmp_path, refused())
    if arrays is None:
        (tmp_path / "toy.npz").write_bytes(b"not a zip")
    else:
        archive(tmp_path / "toy.npz", arrays)
    with pytest.raises(WorkloadError, match=said):
        published_arrays(publication, local=tmp_path)


def test_cache_that_cannot_be_written_costs_only_speed(tmp_path: Path) -> None:
    publication = publish(tmp_path, refused())
    archive(tmp_path / "toy.npz", make_arrays())
    (blocked := tmp_path / "file").write_text("a file where a folder should be")
    assert same(published_arrays(publication, local=tmp_path, cache=blocked), make_arrays())


def test_idx_of_any_shape() -> None:
    for shape in ((5,), (2, 3), (2, 3, 4), (0, 3, 4)):
        array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
        assert np.array_equal(read_idx(idx(array)), array)


@pytest.mark.slow
@pytest.mark.parametrize("publication", [MNIST, FASHION_MNIST], ids=lambda p: p.name)
def test_real_archives_are_the_published_ones(publication: Publication, tmp_path: Path) -> None:
    folder = local_folder()
    if folder is None or not (folder / f"{publication.name}.npz").is_file():
        pytest.skip(f"DSE_DATA names no folder with {publication.name}.npz")
    arrays = published_arrays(publication, cache=tmp_path)
    assert matches(publication, arrays)
    data = find_workload(f"lenet5-{publication.name.replace('_', '-')}").load()
    assert (len(data.train), len(data.validation), len(data.test)) == (55_000, 5_000, 10_000)
    assert data.sample_shape == (1, 28, 28)
    assert float(data.train.inputs.max()) == 1.0
