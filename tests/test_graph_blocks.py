"""Weights in blocks: what a graph declares of them, and the bytes they take."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dse.candidate import Candidate
from dse.compress import learn_quantization, magnitude_masks
from dse.errors import CompressionError, GraphError
from dse.firmware.constants import sparse_blocks
from dse.firmware.tflite import to_tflite
from dse.graph import archive, execute
from dse.graph.blocks import (
    BLOCKS,
    ELEMENT,
    PATTERNS,
    SHARED,
    block_grid,
    block_shape,
    cut,
    joined,
    kept_blocks,
    kept_elements,
    magnitudes_differ,
    shares_magnitudes,
    unified,
    used_blocks,
)
from dse.graph.channels import declared_weight
from dse.graph.correct import round_adaptively
from dse.graph.equalize import equalize
from dse.graph.ir import FullyConnected, Graph, Weight
from dse.graph.quantize import quantize
from dse.graph.tflite_reader import read_tflite
from dse.graph.trace import column_orders, trace
from dse.targets import encode, encoded_bytes
from dse.workloads import Recipe, dataset_from_arrays

IN_BLOCKS = tuple(pattern for pattern in PATTERNS if pattern != ELEMENT)
CONTAINERS = (2, 4, 8, 32)
patterns = st.sampled_from(IN_BLOCKS)
sizes = st.one_of(
    st.tuples(st.integers(1, 13), st.integers(1, 70)),
    st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(1, 3), st.integers(1, 9)),
)
SEEDS = st.integers(0, 10_000)


def drawn(shape: tuple[int, ...], pattern: str, bits: int, density: float, seed: int) -> Weight:
    """Random weights that keep a share of their blocks, of which some may be all zero."""
    source = np.random.default_rng(seed)
    limit = 2 ** (bits - 1) - 1
    blocks = np.ascontiguousarray(cut(source.integers(-limit, limit + 1, shape), pattern))
    grid = math.prod(blocks.shape[:2])
    count = kept_blocks(shape, density, pattern)
    blocks.reshape(grid, -1)[source.permutation(grid)[count:]] = 0
    if shares_magnitudes(pattern):
        size = np.abs(blocks[:, :, :1, :1])
        blocks = np.where(blocks < 0, -size, size)
    form = declared_weight(shape, bits, density, pattern)
    return replace(form, values=joined(blocks, shape))


@given(sizes, patterns, SEEDS)
def test_what_is_cut_is_put_together_again(shape: tuple[int, ...], pattern: str, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=shape)
    blocks = cut(values, pattern)
    assert blocks.shape == (*block_grid(shape, pattern), *block_shape(pattern))
    np.testing.assert_array_equal(joined(blocks, shape), values)
    one = unified(values, pattern)
    assert (np.sign(one) == np.sign(values)).all()
    np.testing.assert_allclose(unified(one, pattern), one)
    assert not magnitudes_differ(np.rint(1000 * one), pattern)


def read_back(weight: Weight, bits: int) -> np.ndarray:
    """The weights that a bitmap and packed blocks mean, read bit by bit."""
    op = FullyConnected("fc", ("x",), "y", weight)
    bitmap, packed = sparse_blocks(op, bits)
    grid = block_grid(weight.shape, weight.pattern)
    rows, columns = block_shape(weight.pattern)
    kept = np.unpackbits(
        np.frombuffer(bitmap, np.uint8).reshape(grid[0], -1), axis=1, bitorder="little"
    )[:, : grid[1]]
    assert int(kept.sum()) == weight.blocks
    stream = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little").tolist()
    blocks = np.zeros((*grid, columns, rows), np.int64)

    def field(width: int) -> int:
        taken = [stream.pop(0) for _ in range(width)]
        return sum(bit << i for i, bit in enumerate(taken))

    places = np.argwhere(kept)
    together = 1 if rows * columns == 16 else 2
    for first in range(0, len(places), together):
        group = places[first : first + together]
        if bits == 1:
            signs = [[field(1) for _ in range(rows * columns)] for _ in group]
            if len(group) * rows * columns % 8:
                field(4)
            for place, sign in zip(group, signs, strict=True):
                size = field(8)
                blocks[tuple(place)] = np.where(sign, -size, size).reshape(columns, rows)
        else:
            for place in group:
                values = np.array([field(bits) for _ in range(rows * columns)])
                signed = values - (values >> (bits - 1) << bits)
                blocks[tuple(place)] = signed.reshape(columns, rows)
    assert not any(stream)
    return joined(blocks.swapaxes(2, 3), weight.shape)


@given(sizes, patterns, st.sampled_from((2, 3, 4, 5, 8)), st.floats(0.01, 1), SEEDS)
def test_bytes_are_those_of_a_packing_that_is_read_back(
    shape: tuple[int, ...], pattern: str, bits: int, density: float, seed: int
) -> None:
    weight = drawn(shape, pattern, bits, density, seed)
    assert weight.values is not None
    op = FullyConnected("fc", ("x",), "y", weight)
    width = next(each for each in CONTAINERS if each >= bits)
    others = [encode(weight, CONTAINERS, sparse=sparse) for sparse in (False, True)]
    sizes = {each.layout: each.size_bytes for each in others}
    sizes["block-sparse"] = sum(map(len, sparse_blocks(op, width)))
    np.testing.assert_array_equal(read_back(weight, width), weight.values)
    if shares_magnitudes(pattern):
        sizes["shared blocks"] = sum(map(len, sparse_blocks(op, 1)))
        np.testing.assert_array_equal(read_back(weight, 1), weight.values)
    found = encode(weight, CONTAINERS, sparse=True, blocks=True)
    assert found.size_bytes == sizes[found.layout] == min(sizes.values())
    # The choice depends on shapes and what is declared, never on values; others know no blocks.
    assert encode(replace(weight, values=None), CONTAINERS, sparse=True, blocks=True) == found
    assert encoded_bytes(weight, CONTAINERS) == sizes["dense"]


def test_blocks_are_smaller_than_a_bit_a_weight_and_shared_ones_smaller_still() -> None:
    shape = (32, 3, 3, 16)
    single = encode(declared_weight(shape, 8, 0.2), CONTAINERS, sparse=True)
    for pattern in BLOCKS:
        sizes = [
            encode(declared_weight(shape, bits, 0.2, name), CONTAINERS, sparse=True, blocks=True)
            for bits in (8, 4)
            for name in (pattern, pattern + SHARED)
        ]
        assert [each.layout for each in sizes] == ["block-sparse", "shared blocks"] * 2
        wide, wide_shared, narrow, narrow_shared = (each.size_bytes for each in sizes)
        assert single.size_bytes > wide > narrow > narrow_shared
        assert wide_shared == narrow_shared  # a magnitude is a byte, whatever the bits
    # One sign bit and a byte for four weights is more than 2 bits each.
    two = encode(declared_weight(shape, 2, 0.2, "1x4-shared"), CONTAINERS, blocks=True)
    assert two.layout == "block-sparse"
    # More columns than a kernel counts in 16 bits.
    long = declared_weight((2, 1 << 16), 8, 0.1, "1x4")
    assert encode(long, CONTAINERS, sparse=True, blocks=True).layout == "sparse"


def test_wrong_blocks_are_refused() -> None:
    values = np.zeros((4, 8), np.int8)
    values[:, 0] = (1, -1, 2, 1)
    with pytest.raises(GraphError, match="fill 4 blocks 1x4; 3 are kept"):
        Weight((4, 8), 8, 12, values, pattern="1x4", blocks=3)
    with pytest.raises(GraphError, match="block 4x1-shared differ in their magnitude"):
        Weight((4, 8), 8, 4, values, pattern="4x1-shared", blocks=1)
    for blocks, bits, entries in ((9, 8, 0), (0, 8, 0), (2, 32, 0), (2, 8, 16)):
        kept = 32 if entries else 8
        with pytest.raises(GraphError, match=f"{blocks} blocks .* 1 to 8 blocks of integer"):
            Weight((4, 8), bits, kept, entries=entries, pattern="1x4", blocks=blocks)
    with pytest.raises(GraphError, match="allowed: 1 to 0"):
        Weight((4, 8), 8, 8, blocks=2)
    with pytest.raises(CompressionError, match="did you mean '4x4'"):
        Weight((4, 8), 8, 8, pattern="4x8", blocks=2)


# --- the graph -----------------------------------------------------------------------------------


class Net(nn.Module):
    """(N, 2, 6, 6) -> (N, 3), with channels of every size; the linear layer reads an image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.conv, self.norm = nn.Conv2d(2, 10, 3, bias=False), nn.BatchNorm2d(10)
        self.fc1, self.fc2 = nn.Linear(160, 9), nn.Linear(9, 3)
        self.norm.weight.data = torch.tensor([-1.0, 3, 0.1, 7, 1, -0.3, 2, 1, 0.5, 1])
        self.norm.running_var = torch.rand(10) + 0.2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        found: torch.Tensor = self.fc2(torch.relu(self.fc1(torch.flatten(x, 1))))
        return found


def samples() -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(120) % 3
    inputs = np.random.default_rng(0).normal(size=(120, 2, 6, 6)) + labels[:, None, None, None]
    return inputs.astype(np.float32), labels


def thinned(pattern: str) -> tuple[Graph, dict[str, float]]:
    """The float graph, pruned in blocks; the densities."""
    model, densities = Net().eval(), {"conv": 0.4, "fc1": 0.3, "fc2": 0.5}
    orders = column_orders(model, (2, 6, 6))
    assert set(orders) == {"fc1"}
    magnitude_masks(model, densities, pattern, orders).apply(model)
    return trace(model, (2, 6, 6)), densities


def integer(pattern: str, bits: int = 8, scales: str = "channel") -> Graph:
    graph, densities = thinned(pattern)
    ranges = execute.observe(graph, torch.from_numpy(samples()[0]))
    widths = dict.fromkeys(densities, bits)
    return quantize(graph, ranges, widths, densities, pattern=pattern, scales=scales)


@pytest.mark.parametrize("pattern", IN_BLOCKS)
def test_blocks_of_torch_are_those_of_the_graph(pattern: str) -> None:
    """Also behind a flattened image, whose columns torch has in another order."""
    graph, densities = thinned(pattern)
    for op in graph.weighted:
        assert op.weight.values is not None
        used = int(used_blocks(op.weight.values, pattern).sum())
        assert used == kept_blocks(op.weight.shape, densities[op.name], pattern)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("pattern", IN_BLOCKS)
def test_quantization_declares_blocks_and_keeps_what_they_share(pattern: str, bits: int) -> None:
    found, plain = integer(pattern, bits), integer(pattern.removesuffix(SHARED), bits)
    densities = thinned(pattern)[1]
    for op in found.weighted:
        shape, density = op.weight.shape, densities[op.name]
        assert op.weight.pattern == pattern
        assert op.weight.blocks == kept_blocks(shape, density, pattern)
        assert op.weight.kept == kept_elements(shape, density, pattern)
    if not shares_magnitudes(pattern):
        return
    # Normalization gives channels sizes of their own, and their scales take them up: nothing that
    # quantization does differs from what it would do to weights that share nothing.
    graph, _ = thinned(pattern)
    ranges = execute.observe(graph, torch.from_numpy(samples()[0]))
    alone = quantize(graph, ranges, dict.fromkeys(densities, bits))
    for op, other in zip(found.weighted, alone.weighted, strict=True):
        np.testing.assert_array_equal(op.weight.values, other.weight.values)
    assert found.key != plain.key


def test_values_that_share_nothing_are_made_to() -> None:
    graph, densities = thinned("2x2-shared")
    ranges = execute.observe(graph, torch.from_numpy(samples()[0]))
    tensor = quantize(graph, ranges, None, densities, pattern="2x2-shared", scales="tensor")
    equal = quantize(equalize(graph), ranges, None, densities, pattern="2x2-shared")
    for op in (*tensor.weighted, *equal.weighted):  # checked when they are made
        assert op.weight.pattern == "2x2-shared"
    # A study stores such layers in plain blocks instead, without loss.
    candidate = Candidate("nucleo_f446re/native/180MHz", kept=densities, pattern="2x2-shared")
    assert candidate.stored_pattern == "2x2-shared"
    for told in ({"scales": "tensor"}, {"equalization": "cross-layer"}):
        assert replace(candidate, calibration=told).stored_pattern == "2x2"
    assert replace(candidate, calibration={"rounding": "adaptive"}).stored_pattern == "2x2-shared"
    scattered = Net().eval()
    magnitude_masks(scattered, {"conv": 0.1}).apply(scattered)
    with pytest.raises(GraphError, match="layer 'conv': weights fill"):
        quantize(trace(scattered, (2, 6, 6)), ranges, None, {"conv": 0.15}, pattern="2x2")


def test_a_stored_graph_keeps_its_blocks_and_older_ones_are_read() -> None:
    graph = integer("4x1-shared")
    again = archive.from_bytes(archive.to_bytes(graph))
    assert again.key == graph.key
    assert archive.to_bytes(again) == archive.to_bytes(graph)
    floating, _ = thinned("4x1")
    header = json.loads(np.load(BytesIO(archive.to_bytes(floating)))["header"].tobytes())
    weights = [row["weight"] for row in header["ops"] if "weight" in row]
    assert all(set(weight) == {"shape", "bits", "kept"} for weight in weights)  # as ever
    read = archive.from_bytes(archive.to_bytes(floating))
    assert [(op.weight.pattern, op.weight.blocks) for op in read.weighted] == [(ELEMENT, 0)] * 3


@pytest.mark.parametrize("pattern", ["2x2", "1x4-shared"])
def test_other_formats_and_roundings_keep_to_the_blocks(pattern: str) -> None:
    graph, floating = integer(pattern), thinned(pattern)[0]
    written = read_tflite(to_tflite(graph, "blocks"), "blocks")  # a byte a weight
    adapted = round_adaptively(floating, graph, torch.from_numpy(samples()[0]))
    for op, dense, rounded in zip(graph.weighted, written.weighted, adapted.weighted, strict=True):
        np.testing.assert_array_equal(dense.weight.values, op.weight.values)
        same = np.array_equal(np.asarray(rounded.weight.values), np.asarray(op.weight.values))
        assert same == shares_magnitudes(pattern)
        assert rounded.weight.key == op.weight.key


def test_training_stays_in_the_blocks() -> None:
    inputs, labels = samples()
    parts = {"train": slice(90), "test": slice(90, None)}
    arrays = {f"x_{part}": inputs[where] for part, where in parts.items()}
    data = dataset_from_arrays(
        "blocks", arrays | {f"y_{part}": labels[where] for part, where in parts.items()}
    )
    floating, start = thinned("2x2")[0], integer("2x2", 4)
    recipe = Recipe(fine_tune_epochs=2, batch_size=10, fine_tune_learning_rate=0.02, threads=1)
    found = learn_quantization(floating, start, data.train, recipe, seed=3)
    assert replace(found, tensors=start.tensors).key == start.key
    for before, after in zip(start.weighted, found.weighted, strict=True):
        assert (np.asarray(before.weight.values) != np.asarray(after.weight.values)).any()
