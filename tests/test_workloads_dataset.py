"""Splits and data sets: what they promise, and every way to get them wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dse.errors import WorkloadError
from dse.workloads import Dataset, Split, dataset_from_arrays
from dse.workloads.dataset import split_off

INPUTS = torch.zeros(6, 1, 2, 2)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
SPLIT = Split(INPUTS, LABELS)


def arrays(samples: int = 40, classes: int = 4, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    made = {
        "x_train": rng.normal(size=(samples, 2, 3, 3)).astype(np.float32),
        "y_train": np.arange(samples) % classes,
        "x_test": rng.normal(size=(10, 2, 3, 3)).astype(np.float32),
        "y_test": np.arange(10) % classes,
    }
    return {name: value for name, value in {**made, **changes}.items() if value is not None}


BAD: list[tuple[str, Callable[[], object], str]] = [
    ("five axes", lambda: Split(torch.zeros(6, 2, 2, 2, 2), LABELS), r"\(N, C, H, W\)"),
    ("bytes", lambda: Split(INPUTS.to(torch.uint8), LABELS), "uint8 of shape"),
    ("float labels", lambda: Split(INPUTS, LABELS.float()), "labels are float32"),
    ("one-hot labels", lambda: Split(INPUTS, torch.zeros(6, 3).long()), r"shape \(N,\)"),
    ("counts differ", lambda: Split(INPUTS, LABELS[:5]), "6 inputs but 5 labels"),
    ("empty", lambda: Split(INPUTS[:0], LABELS[:0]), "empty"),
    ("NaN", lambda: Split(INPUTS / 0, LABELS), "24 of 24 input values are NaN"),
    ("negative label", lambda: Split(INPUTS, LABELS - 1), "label -1 is negative"),
    ("no subset", lambda: Split(INPUTS, LABELS).take(0), "0 samples"),
    ("missing array", lambda: dataset_from_arrays("d", arrays(y_test=None)), "lacks y_test"),
    ("wrong name", lambda: dataset_from_arrays("d", arrays(x_tset=0)), "did you mean 'x_test'"),
    (
        "half a validation split",
        lambda: dataset_from_arrays("d", arrays(x_validation=np.zeros((2, 2, 3, 3)))),
        "lacks y_validation",
    ),
    (
        "shapes differ",
        lambda: dataset_from_arrays("d", arrays(x_test=np.zeros((10, 2, 3, 4)))),
        r"test samples have shape \(2, 3, 4\)",
    ),
    (
        "text",
        lambda: dataset_from_arrays("d", arrays(x_test=np.full((10, 2, 3, 3), "a"))),
        "test split: inputs are of type",
    ),
    (
        "float class",
        lambda: dataset_from_arrays("d", arrays(y_test=np.zeros(10))),
        "labels are of type float64",
    ),
    (
        "one class",
        lambda: dataset_from_arrays("d", arrays(classes=1)),
        "1 classes; at least 2",
    ),
    (
        "a class of one sample",
        lambda: dataset_from_arrays("d", arrays(y_train=np.array([1] + [0] * 39))),
        "each class in both parts",
    ),
    (
        "label out of range",
        lambda: Dataset("d", SPLIT, SPLIT, SPLIT, classes=2),
        "holds label 2; with 2 classes",
    ),
]


@pytest.mark.parametrize(("make", "said"), [case[1:] for case in BAD], ids=[c[0] for c in BAD])
def test_bad_data_is_one_clear_sentence(make: Callable[[], object], said: str) -> None:
    with pytest.raises(WorkloadError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


@given(
    counts=st.lists(st.integers(1, 30), min_size=2, max_size=6),
    share=st.floats(0.05, 1.0),
    seed=st.integers(0, 100),
)
def test_take_keeps_class_shares_and_order(counts: list[int], share: float, seed: int) -> None:
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    numbered = torch.arange(len(labels), dtype=torch.float32).reshape(-1, 1, 1, 1)
    samples = max(1, round(share * len(labels)))
    taken = Split(numbered, labels).take(samples)
    assert len(taken) == samples
    assert bool((taken.inputs.flatten().diff() > 0).all())
    for label, count in enumerate(counts):
        assert abs(int((taken.labels == label).sum()) - count * samples / len(labels)) < 1
        first = int((taken.labels == label).sum())
        expected = numbered[labels == label][:first]
        assert torch.equal(taken.inputs[taken.labels == label], expected)


def test_validation_is_stratified_disjoint_and_always_the_same() -> None:
    numbered = torch.arange(100, dtype=torch.float32).reshape(-1, 1, 1, 1)
    split = Split(numbered, torch.arange(100) % 5)
    torch.manual_seed(1)
    rest, held_out = split_off(split, 20)
    torch.manual_seed(2)
    again = split_off(split, 20)[1]
    assert torch.equal(held_out.inputs, again.inputs)
    assert held_out.labels.bincount().tolist() == [4] * 5
    both = torch.cat([rest.inputs, held_out.inputs]).flatten().sort().values
    assert torch.equal(both, numbered.flatten())


def test_given_validation_arrays_are_used() -> None:
    own = arrays(x_validation=np.ones((8, 2, 3, 3)), y_validation=np.arange(8) % 4)
    data = dataset_from_arrays("d", own)
    assert (len(data.train), len(data.validation), len(data.test)) == (40, 8, 10)
    assert data.validation.inputs.dtype == torch.float32


@pytest.mark.parametrize("shape", [(2, 16), (7,), (3, 4, 4)])
def test_signals_and_features_keep_their_shape(shape: tuple[int, ...]) -> None:
    found = arrays(x_train=np.zeros((40, *shape)), x_test=np.zeros((10, *shape)))
    assert dataset_from_arrays("d", found).sample_shape == shape


def test_digest_follows_content_and_not_name_or_layout() -> None:
    plain = dataset_from_arrays("one", arrays())
    fortran = arrays()
    fortran["x_train"] = np.asfortranarray(fortran["x_train"].astype(np.float64))
    assert dataset_from_arrays("two", fortran).digest == plain.digest
    changed = arrays()
    changed["x_test"][3, 0, 0, 0] += 1
    assert dataset_from_arrays("one", changed).digest != plain.digest
    relabelled = arrays(y_test=(np.arange(10) + 1) % 4)
    assert dataset_from_arrays("one", relabelled).digest != plain.digest
