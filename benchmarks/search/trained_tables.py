"""The tabulated problems: what was trained, and the stored test errors of every network."""

from __future__ import annotations

import itertools
import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dse.errors import WorkloadError

DATA_FOLDER = Path(__file__).parent / "data"
MISSING = 65535
Samples = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Layer:
    """One weighted layer; an empty `kernel` means fully connected. `levels` are pruning ratios."""

    name: str
    channels: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, int] = (1, 1)
    pool: tuple[int, int] = (1, 1)
    levels: tuple[float, ...] = (0.0,)

    def widths(self) -> tuple[int, ...]:
        """Channels left at each level."""
        return tuple(round(self.channels * (1 - level)) for level in self.levels)


@dataclass(frozen=True)
class TableTask:
    """A network, its data and its choices: widths by layer x weight bits by layer."""

    name: str
    shape: tuple[int, int, int]
    classes: int
    layers: tuple[Layer, ...]
    bits: tuple[int, ...] = (2, 4, 8)
    epochs: int = 5
    train_samples: int = 960
    seed: int = 0

    @cached_property
    def width_settings(self) -> list[tuple[int, ...]]:
        """Every choice of widths, in the table's order."""
        return list(itertools.product(*(layer.widths() for layer in self.layers)))

    @cached_property
    def bit_settings(self) -> list[tuple[int, ...]]:
        """Every choice of bits, in the table's order."""
        return list(itertools.product(self.bits, repeat=len(self.layers)))

    @property
    def test_samples(self) -> int:
        """Samples behind every stored error."""
        return _TEST_SAMPLES[self.name]

    @property
    def flattened(self) -> tuple[int, ...]:
        """Positions that one input channel of each layer has when it is flattened, else 1."""
        rows, columns, _ = self.shape
        found = []
        for layer in self.layers:
            found.append(1 if layer.kernel else rows * columns)
            if not layer.kernel:
                rows = columns = 1
                continue
            rows = math.ceil(rows / layer.stride[0]) // layer.pool[0]
            columns = math.ceil(columns / layer.stride[1]) // layer.pool[1]
        return tuple(found)


_QUARTERS = (0.0, 0.25, 0.5, 0.75)
TABLES = {
    "digits": TableTask(
        "digits",
        (8, 8, 1),
        10,
        (
            Layer("conv1", 16, (3, 3), pool=(2, 2)),
            Layer("conv2", 16, (3, 3), levels=_QUARTERS),
            Layer("conv3", 32, (3, 3), pool=(2, 2), levels=_QUARTERS),
            Layer("fc", 10),
        ),
    ),
    "har": TableTask(
        "har",
        (1, 128, 9),
        6,
        (
            Layer("conv1", 16, (1, 5), stride=(1, 2), pool=(1, 2)),
            Layer("conv2", 24, (1, 5), pool=(1, 4), levels=(0.0, 0.5, 0.75)),
            Layer("fc1", 32, levels=(0.0, 0.5, 0.75)),
            Layer("fc2", 6),
        ),
        epochs=4,
        train_samples=640,
    ),
}
_TEST_SAMPLES = {"digits": 2000, "har": 1000}
# Standard deviation of the noise on pixels of 0 to 1: the parent then misses about one in ten.
_DIGITS_NOISE = 0.25


def load_samples(task: TableTask) -> list[Samples]:
    """Training and test samples: float32 (N, H, W, C) and classes (N,)."""
    return _digits(task) if task.name == "digits" else _har(task)


def _digits(task: TableTask) -> list[Samples]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    source = np.random.default_rng(task.seed)
    order = source.permutation(len(x))
    parts = order[: task.train_samples], order[task.train_samples :]
    # Every test image comes several times, each time with other noise.
    parts = parts[0], np.resize(parts[1], _TEST_SAMPLES["digits"])
    return [_noisy(x[rows].reshape(-1, *task.shape) / 16, y[rows], source) for rows in parts]


def _noisy(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.int64], source: np.random.Generator
) -> Samples:
    noisy = x + _DIGITS_NOISE * source.standard_normal(x.shape)
    return noisy.astype(np.float32), y.astype(np.int64)


def _har(task: TableTask) -> list[Samples]:
    folder = os.environ.get("DSE_DATA")
    if folder is None:
        raise WorkloadError("the HAR table needs DSE_DATA, a folder that holds har.npz")
    arrays = np.load(Path(folder) / "har.npz")
    source = np.random.default_rng(task.seed)
    counts = {"train": task.train_samples, "test": _TEST_SAMPLES["har"]}
    found = []
    for part, count in counts.items():
        rows = source.permutation(len(arrays[f"x_{part}"]))[:count]
        x = arrays[f"x_{part}"][rows].transpose(0, 2, 1)[:, None]
        found.append((x.astype(np.float32), arrays[f"y_{part}"][rows].astype(np.int64)))
    return found


def store(
    task: TableTask, table: npt.NDArray[np.int64] | None, folder: Path = DATA_FOLDER
) -> npt.NDArray[np.int64]:
    """Write the table, or with None read it; (width settings, bit settings, epochs) of counts.

    What was not trained yet is MISSING.
    """
    path = folder / f"{task.name}.npz"
    shape = (len(task.width_settings), len(task.bit_settings), task.epochs)
    if table is not None:
        np.savez_compressed(path, wrong=table.astype(np.uint16), samples=_TEST_SAMPLES[task.name])
    elif path.exists():
        with np.load(path) as stored:
            return np.asarray(stored["wrong"], dtype=np.int64)
    return np.full(shape, MISSING, dtype=np.int64) if table is None else table
