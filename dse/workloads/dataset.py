"""Data sets in memory: a training, a validation and a test split, checked when they are made."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dse.errors import WorkloadError, nearest

# Fixed for every data set: a study's seed must not change what accuracy is measured on.
SPLIT_SEED = 20240
VALIDATION_SHARE = 0.15
REQUIRED_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
VALIDATION_ARRAYS = ("x_validation", "y_validation")


@dataclass(frozen=True, eq=False)
class Split:
    """Samples and their classes: inputs float32, labels (N,) int64.

    Inputs are images (N, C, H, W), signals (N, C, L) or features (N, F), as the network reads
    them. Raises WorkloadError when shapes, types or values are not so.
    """

    inputs: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        x, y = self.inputs, self.labels
        if x.dim() not in (2, 3, 4) or x.dtype != torch.float32:
            raise WorkloadError(
                f"inputs are {_kind(x)}; they must be float32 of shape (N, C, H, W), (N, C, L) "
                "or (N, F)"
            )
        if y.dim() != 1 or y.dtype != torch.int64:
            raise WorkloadError(f"labels are {_kind(y)}; they must be int64 of shape (N,)")
        if len(x) != len(y):
            raise WorkloadError(
                f"there are {len(x)} inputs but {len(y)} labels; give one label a sample"
            )
        if x.numel() == 0:
            raise WorkloadError(f"a split is empty (inputs have shape {tuple(x.shape)})")
        if not bool(torch.isfinite(x).all()):
            bad = int((~torch.isfinite(x)).sum())
            raise WorkloadError(f"{bad} of {x.numel()} input values are NaN or infinite")
        if int(y.min()) < 0:
            raise WorkloadError(f"label {int(y.min())} is negative; labels count from 0")

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.labels)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(C, H, W), (C, L) or (F,) of one sample."""
        return tuple(self.inputs.shape[1:])

    def take(self, samples: int | None) -> Split:
        """The first `samples` of the split, class shares kept; all of them for None or more."""
        if samples is None or samples >= len(self):
            return self
        if samples < 1:
            raise WorkloadError(f"a subset of {samples} samples was asked for; it needs at least 1")
        index = _stratified_prefix(self.labels.numpy(), samples)
        return Split(self.inputs[index], self.labels[index])


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits with one sample shape and labels in [0, classes).

    The search sees validation accuracy; test accuracy is reported for the front only.
    Raises WorkloadError when the splits do not fit together.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise WorkloadError(
                f"data set '{self.name}' has {self.classes} classes; at least 2 are needed"
            )
        for name, split in self.splits.items():
            if split.sample_shape != self.train.sample_shape:
                raise WorkloadError(
                    f"data set '{self.name}': {name} samples have shape {split.sample_shape}, "
                    f"training samples {self.train.sample_shape}; they must be equal"
                )
            if (highest := int(split.labels.max())) >= self.classes:
                raise WorkloadError(
                    f"data set '{self.name}': the {name} split holds label {highest}; "
                    f"with {self.classes} classes labels are 0 to {self.classes - 1}"
                )

    @property
    def splits(self) -> Mapping[str, Split]:
        """The three splits by name."""
        return {"training": self.train, "validation": self.validation, "test": self.test}

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(C, H, W), (C, L) or (F,) of one sample."""
        return self.train.sample_shape

    @property
    def example(self) -> Tensor:
        """The first training sample as a batch of one."""
        return self.train.inputs[:1]

    @cached_property
    def digest(self) -> str:
        """The sha256 (hex) over shapes, labels and input bytes, the same on every machine."""
        digest = hashlib.sha256(str(self.classes).encode())
        for split in self.splits.values():
            for tensor in (split.inputs, split.labels):
                digest.update(str(tuple(tensor.shape)).encode())
                digest.update(tensor.contiguous().numpy().astype(_little_endian(tensor)).data)
        return digest.hexdigest()


def dataset_from_arrays(
    name: str, arrays: Mapping[str, Any], validation: int | float = VALIDATION_SHARE
) -> Dataset:
    """A data set from arrays `x_train, y_train, x_test, y_test[, x_validation, y_validation]`.

    Inputs are channels-first, (N, C, H, W), (N, C, L) or (N, F), of any real type;
    they are used as they are (no scaling). Without validation arrays that split is taken from the
    training data, stratified and with a fixed seed: `validation` is a share or a number of samples.
    Raises WorkloadError for a missing or unknown name, or content that Split and Dataset refuse.
    """
    _check_names(name, arrays)
    train = _split_of(name, arrays, "train")
    test = _split_of(name, arrays, "test")
    if VALIDATION_ARRAYS[0] in arrays:
        held_out = _split_of(name, arrays, "validation")
    else:
        train, held_out = split_off(train, validation)
    classes = 1 + max(int(part.labels.max()) for part in (train, held_out, test))
    return Dataset(name, train, held_out, test, classes)


def split_off(split: Split, size: int | float) -> tuple[Split, Split]:
    """(rest, held out): `size` samples (or that share), stratified, the same on every call."""
    from sklearn.model_selection import train_test_split  # costs a second

    try:
        rest, held_out = train_test_split(
            np.arange(len(split)), test_size=size, random_state=SPLIT_SEED, stratify=split.labels
        )
    except ValueError as error:
        raise WorkloadError(
            f"cannot hold out {size} of {len(split)} samples, each class in both parts: {error}"
        ) from error
    return (
        Split(split.inputs[rest], split.labels[rest]),
        Split(split.inputs[held_out], split.labels[held_out]),
    )


def _check_names(name: str, arrays: Mapping[str, Any]) -> None:
    allowed = (*REQUIRED_ARRAYS, *VALIDATION_ARRAYS)
    for key in arrays:
        if key not in allowed:
            raise WorkloadError(
                f"data set '{name}' has an array '{key}'; {nearest(str(key), allowed)}"
            )
    missing = [key for key in REQUIRED_ARRAYS if key not in arrays]
    if (VALIDATION_ARRAYS[0] in arrays) != (VALIDATION_ARRAYS[1] in arrays):
        missing += [key for key in VALIDATION_ARRAYS if key not in arrays]
    if missing:
        raise WorkloadError(
            f"data set '{name}' lacks {', '.join(missing)}; it has "
            f"{', '.join(sorted(arrays)) or 'nothing'}"
        )


def _split_of(name: str, arrays: Mapping[str, Any], part: str) -> Split:
    try:
        return Split(_inputs(arrays[f"x_{part}"]), _labels(arrays[f"y_{part}"]))
    except WorkloadError as error:
        raise WorkloadError(f"data set '{name}', {part} split: {error}") from error


def _array(array: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(array)
    except (ValueError, TypeError) as error:
        raise WorkloadError(f"not an array ({error}); every sample needs one shape") from error


def _inputs(array: Any) -> Tensor:
    values = _array(array)
    if values.dtype.kind not in "fiub":
        raise WorkloadError(f"inputs are of type {values.dtype}; numbers are needed")
    return torch.from_numpy(np.array(values, dtype=np.float32, order="C"))


def _labels(array: Any) -> Tensor:
    values = _array(array)
    if values.dtype.kind not in "iub":
        raise WorkloadError(
            f"labels are of type {values.dtype}; whole numbers from 0 are needed, one a sample"
        )
    return torch.from_numpy(np.array(values, dtype=np.int64))


def _stratified_prefix(labels: npt.NDArray[Any], samples: int) -> Tensor:
    """Indices, in order, of the first samples of every class; shares by largest remainder."""
    classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    quota = counts * (samples / len(labels))
    taken = np.floor(quota).astype(np.int64)
    remainder = np.argsort(-(quota - taken), kind="stable")[: samples - int(taken.sum())]
    taken[remainder] += 1
    chosen = [np.flatnonzero(inverse == c)[: taken[c]] for c in range(len(classes))]
    return torch.from_numpy(np.sort(np.concatenate(chosen)))


def _little_endian(tensor: Tensor) -> str:
    return "<f4" if tensor.dtype == torch.float32 else "<i8"


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
