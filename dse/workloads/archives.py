"""Data sets that no publisher offers in the form that is read here: an .npz in DSE_DATA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from dse.errors import WorkloadError
from dse.workloads.dataset import Dataset, dataset_from_arrays
from dse.workloads.download import UNREADABLE, local_folder

Array: TypeAlias = npt.NDArray[Any]

# Every fifth person who is not in the test data, so that nobody is in two splits.
VALIDATION_EVERY, VALIDATION_FROM = 5, 2
CIFAR_VALIDATION_IMAGES = 2000


@dataclass(frozen=True)
class Archive:
    """A local <name>.npz: its arrays with type and shape (None: any length), and its origin."""

    name: str
    arrays: Mapping[str, tuple[str, tuple[int | None, ...]]]
    origin: str


_IMAGES, _WINDOWS = (None, 3, 32, 32), (None, 9, 128)
CIFAR10_SUBSET = Archive(
    "cifar10_subset",
    {
        "x_train_delta": ("uint8", _IMAGES),
        "y_train": ("uint8", (None,)),
        "x_test_delta": ("uint8", _IMAGES),
        "y_test": ("uint8", (None,)),
    },
    "1,600 training and 400 test images a class of CIFAR-10 (Krizhevsky, 2009), pixels as "
    "differences modulo 256 along width, then along channel",
)
HAR = Archive(
    "har",
    {
        f"{kind}_{part}": found
        for part in ("train", "test")
        for kind, found in (
            ("x", ("float32", _WINDOWS)),
            ("y", ("uint8", (None,))),
            ("subject", ("uint8", (None,))),
        )
    },
    "the inertial signals of UCI HAR (Anguita et al., 2013): body acceleration, angular velocity, "
    "total acceleration, x y z each, and who wore the phone",
)


def archive_arrays(archive: Archive, local: Path | None = None) -> Mapping[str, Array]:
    """The arrays of <local>/<name>.npz (default: DSE_DATA), types and shapes checked.

    Raises WorkloadError when the file is missing, damaged or of another format.
    """
    folder = local or local_folder()
    path = None if folder is None else folder / f"{archive.name}.npz"
    if path is None or not path.is_file():
        looked = "DSE_DATA (not set)" if path is None else f"DSE_DATA ({path})"
        raise WorkloadError(
            f"data set '{archive.name}' is not in {looked} and cannot be downloaded; set DSE_DATA "
            f"to a folder with {archive.name}.npz, which holds {', '.join(archive.arrays)}: "
            f"{archive.origin}"
        )
    try:
        with np.load(path, allow_pickle=False) as opened:
            arrays = {name: opened[name] for name in archive.arrays}
    except KeyError as error:
        raise WorkloadError(
            f"{path} lacks an array ({error.args[0]}); it needs {', '.join(archive.arrays)}"
        ) from error
    except UNREADABLE as error:
        raise WorkloadError(f"{path} is not a readable .npz file: {error}") from error
    for name, (dtype, shape) in archive.arrays.items():
        _check(path, name, arrays[name], dtype, shape)
    return arrays


def _check(path: Path, name: str, array: Array, dtype: str, shape: tuple[int | None, ...]) -> None:
    fits = len(array.shape) == len(shape) and all(
        wanted in (None, found) for wanted, found in zip(shape, array.shape, strict=True)
    )
    if array.dtype.name != dtype or not fits:
        wanted = ", ".join("N" if length is None else str(length) for length in shape)
        raise WorkloadError(
            f"{path}: {name} is {array.dtype} of shape {array.shape}; it must be {dtype} of shape "
            f"({wanted}{',' if len(shape) == 1 else ''})"
        )


def cifar10_subset(local: Path | None = None) -> Dataset:
    """Images (N, 3, 32, 32), pixels from 0 to 1; 14,000 to train, 2,000 to validate, 4,000 test."""
    found = archive_arrays(CIFAR10_SUBSET, local)
    arrays = {name: found[name] for name in ("y_train", "y_test")}
    for part in ("train", "test"):
        pixels = restored(found[f"x_{part}_delta"])
        arrays[f"x_{part}"] = pixels.astype(np.float32) / 255
    return dataset_from_arrays(CIFAR10_SUBSET.name, arrays, CIFAR_VALIDATION_IMAGES)


def restored(delta: Array) -> Array:
    """Pixels uint8 (N, C, H, W) of differences modulo 256 along width, then along channel."""
    along_channel = np.cumsum(delta, axis=1, dtype=np.uint8)
    pixels: Array = np.cumsum(along_channel, axis=3, dtype=np.uint8)
    return pixels


def har(local: Path | None = None) -> Dataset:
    """Windows (N, 9, 128) of 30 people; test people are the published ones.

    Windows overlap, and people walk alike all day: so nobody is in two of the three splits.
    """
    found = archive_arrays(HAR, local)
    people = np.unique(found["subject_train"])
    held_out = np.isin(found["subject_train"], people[VALIDATION_FROM::VALIDATION_EVERY])
    if held_out.all() or not held_out.any():
        raise WorkloadError(
            f"data set '{HAR.name}' has {len(people)} people to train on; at least "
            f"{VALIDATION_FROM + 1} are needed to hold some out for validation"
        )
    arrays = {name: found[name] for name in ("x_test", "y_test")}
    for part, chosen in (("train", ~held_out), ("validation", held_out)):
        arrays[f"x_{part}"] = found["x_train"][chosen]
        arrays[f"y_{part}"] = found["y_train"][chosen]
    return dataset_from_arrays(HAR.name, arrays)
