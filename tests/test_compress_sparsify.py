"""Blocks of weights: exact counts, whole blocks, one magnitude where they share it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dse.compress import Compression, Ramp, compress, magnitude_masks
from dse.compress.sparsify import blocks_of, from_blocks, unified
from dse.errors import CompressionError
from dse.graph.blocks import BLOCKS, ELEMENT, PATTERNS, block_grid, kept_blocks, kept_elements
from dse.graph.trace import column_orders
from dse.space import USUAL_RAMP
from tests.test_compress_schedule import RECIPE, network, split, weight

shapes = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3)),
    st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3)),
)
patterns = st.sampled_from(PATTERNS)


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def flash_order(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], *shape[2:], shape[1])


@given(shapes, patterns, st.integers(0, 99))
def test_a_weight_comes_back_from_its_blocks(
    shape: tuple[int, ...], pattern: str, seed: int
) -> None:
    value = drawn(shape, seed)
    blocks = blocks_of(value, pattern)
    assert (blocks.shape[0], blocks.shape[2]) == block_grid(flash_order(shape), pattern)
    assert torch.equal(from_blocks(blocks, value), value)


@given(st.tuples(st.integers(1, 9), st.integers(1, 9)), patterns, st.floats(0.01, 1))
def test_whole_blocks_of_the_largest_sums_stay(
    shape: tuple[int, int], pattern: str, density: float
) -> None:
    model = nn.Sequential(nn.Linear(shape[1], shape[0]))
    masks = magnitude_masks(model, {"0": density}, pattern)
    stays = blocks_of(masks.kept["0"].float(), pattern).amax((1, 3)).bool()
    inside = blocks_of(torch.ones(shape), pattern)
    assert torch.equal(blocks_of(masks.kept["0"].float(), pattern), inside * _spread(stays, inside))
    assert int(stays.sum()) == kept_blocks(shape, density, pattern)
    assert masks.counts["0"] <= kept_elements(shape, density, pattern)
    sums = blocks_of(weight(model, "0").detach().abs(), pattern).sum((1, 3))
    if not bool(stays.all()):
        assert float(sums[stays].min()) >= float(sums[~stays].max())


def _spread(stays: Tensor, like: Tensor) -> Tensor:
    return stays[:, None, :, None].expand_as(like).float()


@given(shapes, st.floats(0.01, 1))
def test_a_pattern_of_elements_keeps_a_share_of_them(
    shape: tuple[int, ...], density: float
) -> None:
    size = math.prod(shape)
    assert kept_elements(shape, density, "element") == max(1, min(size, round(density * size)))
    for pattern in BLOCKS:
        assert kept_elements(shape, 1.0, pattern) == size


@given(shapes, st.sampled_from(sorted(BLOCKS)), st.integers(0, 99))
def test_shared_blocks_have_one_magnitude(shape: tuple[int, ...], pattern: str, seed: int) -> None:
    value = drawn(shape, seed)
    found = unified(value, pattern)
    assert torch.equal(found.sign(), value.sign())
    blocks = blocks_of(found.abs(), pattern)
    inside = blocks_of(torch.ones(shape), pattern)
    largest = blocks.amax((1, 3), keepdim=True)
    torch.testing.assert_close(blocks, largest * inside)
    # What was there in all stays, and so does what is shared already.
    torch.testing.assert_close(found.abs().sum(), value.abs().sum())
    torch.testing.assert_close(unified(found, pattern), found)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("schedule", ["one-shot", "agp", "dynamic"])
def test_training_holds_the_blocks(pattern: str, schedule: str) -> None:
    plan = Compression({}, {"0": 0.5, "7": 0.25}, "l1", schedule, pattern=pattern)
    pruned = compress(network(), split(), plan, RECIPE, 0)
    # Columns that read a flattened image lie in flash in another order than torch's.
    orders = column_orders(pruned, tuple(split().inputs.shape[1:]))
    assert set(orders) == {"7"}
    for name, density in plan.densities.items():
        value = weight(pruned, name).detach()
        order = None if pattern == ELEMENT else orders.get(name)
        blocks = blocks_of(value.abs(), pattern, order)
        used = blocks.amax((1, 3)) > 0
        assert int(used.sum()) == kept_blocks(flash_order(tuple(value.shape)), density, pattern)
        if pattern.endswith("-shared"):
            torch.testing.assert_close(unified(value, pattern, order), value)


@given(st.integers(0, 99), patterns)
def test_an_order_of_columns_is_taken_back(seed: int, pattern: str) -> None:
    value = drawn((5, 12), seed)
    order = np.random.default_rng(seed).permutation(12)
    blocks = blocks_of(value, pattern, order)
    assert torch.equal(blocks, blocks_of(value[:, torch.from_numpy(order)], pattern))
    assert torch.equal(from_blocks(blocks, value, order), value)


def test_an_unknown_pattern_is_told() -> None:
    with pytest.raises(CompressionError, match="unknown pattern '4x8'; did you mean '4x4'"):
        Compression(pattern="4x8")


def test_the_usual_ramp_of_a_study_is_that_of_compression() -> None:
    usual: Any = dict(USUAL_RAMP)
    assert Ramp(**usual) == Ramp()
