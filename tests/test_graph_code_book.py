"""Code books: what is shared, that it can be read back, what it weighs, and that it is learned."""

from __future__ import annotations

import json
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dse.compress import learn_quantization
from dse.errors import CompressionError, GraphError
from dse.firmware.constants import code_book, dense_rows
from dse.firmware.tflite import to_tflite
from dse.graph import archive, execute
from dse.graph.code_book import (
    CodeBooks,
    book_bytes,
    index_bits,
    read_indices,
    read_table,
    shared,
    shrinks,
    write_rows,
)
from dse.graph.correct import round_adaptively
from dse.graph.ir import FullyConnected, Graph, Weight, WeightedOp
from dse.graph.quantize import quantize
from dse.graph.tflite_reader import read_tflite
from dse.graph.trace import trace
from dse.targets import encode, encoded_bytes
from dse.workloads import Recipe, dataset_from_arrays

BOOKS = st.tuples(st.integers(4, 256), st.sampled_from((1, 2, 4)))
SIZES = st.tuples(st.integers(1, 9), st.integers(1, 60))
SEEDS = st.integers(0, 10_000)


def rows(size: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Float weights and the steps of their channels."""
    source = np.random.default_rng(seed)
    weights = source.normal(size=size) * source.uniform(0.1, 2, (size[0], 1))
    return weights, np.abs(weights).max(axis=1) / 127


@given(SIZES, BOOKS, SEEDS)
def test_what_is_shared_is_read_back_from_no_more_entries(
    size: tuple[int, int], book: tuple[int, int], seed: int
) -> None:
    weights, scales = rows(size, seed)
    integers = shared(weights, scales, *book, seed)
    assert integers.dtype == np.int8
    assert int(np.abs(integers.astype(int)).max()) <= 127
    table = read_table(integers, book[1])
    assert len(table) <= book[0]
    indices = read_indices(integers, table)
    assert indices.shape == (size[0], -(-size[1] // book[1]))
    np.testing.assert_array_equal(write_rows(table, indices, size[1]), integers)
    np.testing.assert_array_equal(shared(weights, scales, *book, seed), integers)


@given(SIZES, st.sampled_from((1, 2, 4)), SEEDS)
def test_as_many_entries_as_there_are_sub_vectors_lose_nothing(
    size: tuple[int, int], vector: int, seed: int
) -> None:
    size = (size[0], -(-size[1] // vector) * vector)  # what sticks out has no entry of its own
    values = np.random.default_rng(seed).integers(-3, 4, size).astype(np.int8)
    entries = len(read_table(values, vector))
    if 4 <= entries <= 256:
        scales = np.random.default_rng(seed).uniform(0.5, 2, size[0])
        found = shared(values * scales[:, None], scales, entries, vector, seed)
        np.testing.assert_array_equal(found, values)


def test_more_entries_come_closer_and_large_channels_count_more() -> None:
    weights, scales = rows((16, 64), 1)

    def error(entries: int, vector: int) -> float:
        found = shared(weights, scales, entries, vector, 0) * scales[:, None]
        return float(((found - weights) ** 2).mean())

    for vector in (1, 2, 4):
        errors = [error(entries, vector) for entries in (4, 16, 64)]
        assert errors == sorted(errors, reverse=True)
    assert error(16, 1) < error(16, 2) < error(16, 4)
    # One channel of a thousandth of the size of the others takes what is left.
    small, large = np.array([1e-3, 1.0]) / 127, weights[:2] / np.abs(weights[:2]).max()
    found = shared(large * [[1e-3], [1.0]], small, 4, 1, 0)
    off = np.abs(found * small[:, None] - large * [[1e-3], [1.0]]).max(axis=1)
    assert off[1] < 0.6


@given(st.tuples(st.integers(1, 9), st.integers(1, 300)), BOOKS, SEEDS)
def test_bytes_are_those_of_packed_indices_and_a_table(
    size: tuple[int, int], book: tuple[int, int], seed: int
) -> None:
    weights, scales = rows(size, seed)
    entries, vector = book
    values = shared(weights, scales, entries, vector, seed)
    weight = Weight(size, 8, -1, values, scales, entries, vector)
    op = FullyConnected("fc", ("x",), "y", weight)
    found = code_book(op)
    packed = dense_rows(found.indices, index_bits(entries))
    assert len(packed) + found.table.size == book_bytes(size, entries, vector)
    smaller = shrinks(size, entries, vector)
    stored = encode(weight, (2, 4, 8), code_books=True)
    assert stored.layout == ("code book" if smaller else "dense")
    assert stored.size_bytes == min(book_bytes(size, entries, vector), weight.size)
    assert encoded_bytes(weight, (2, 4, 8)) == weight.size  # other backends: a byte a weight


def test_wrong_books_are_refused() -> None:
    for entries, vector, told in ((3, 1, "3 entries"), (257, 1, "257"), (16, 3, "of 3 weights")):
        with pytest.raises(CompressionError, match=f"layer 'fc1'.*{told}.*allowed"):
            CodeBooks({"fc1": entries}, vector)
    values = np.arange(32, dtype=np.int8).reshape(4, 8)
    with pytest.raises(GraphError, match="of 32 entries; it has 16"):
        Weight((4, 8), 8, -1, values, None, 16, 1)
    with pytest.raises(GraphError, match="found 4 bits"):
        Weight((4, 8), 4, -1, None, None, 4, 1)
    with pytest.raises(GraphError, match="20 of 32 kept"):
        Weight((4, 8), 8, 20, None, None, 4, 1)
    with pytest.raises(GraphError, match="no layer 'nothing'"):
        quantize(*trained(), books=CodeBooks({"nothing": 16}))


# --- the graph -----------------------------------------------------------------------------------


class Net(nn.Module):
    """(N, 2, 6, 6) -> (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.conv, self.deep = nn.Conv2d(2, 12, 3), nn.Conv2d(12, 12, 3, groups=12)
        self.fc = nn.Linear(48, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.deep(torch.relu(self.conv(x))))
        found: torch.Tensor = self.fc(torch.flatten(x, 1))
        return found


def samples() -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(120) % 3
    inputs = np.random.default_rng(0).normal(size=(120, 2, 6, 6)) + labels[:, None, None, None]
    return inputs.astype(np.float32), labels


def trained() -> tuple[Graph, dict[str, tuple[float, float]]]:
    graph = trace(Net().eval(), (2, 6, 6))
    return graph, dict(execute.observe(graph, torch.from_numpy(samples()[0])))


BOTH = CodeBooks({"conv": 16, "deep": 4, "fc": 8}, 2)


def book_of(op: WeightedOp) -> tuple[int, int]:
    return op.weight.entries, op.weight.vector


def test_a_stored_graph_keeps_its_books_and_older_ones_are_read() -> None:
    graph, ranges = trained()
    books = quantize(graph, ranges, books=BOTH)
    again = archive.from_bytes(archive.to_bytes(books))
    assert [book_of(op) for op in again.weighted] == [(16, 2), (4, 2), (8, 2)]
    assert again.key == books.key
    assert archive.to_bytes(again) == archive.to_bytes(books)
    plain = archive.to_bytes(quantize(graph, ranges))
    header = json.loads(np.load(BytesIO(plain))["header"].tobytes())
    weights = [row["weight"] for row in header["ops"] if "weight" in row]
    assert all(set(weight) == {"shape", "bits", "kept"} for weight in weights)  # as ever
    assert [book_of(op) for op in archive.from_bytes(plain).weighted] == [(0, 1)] * 3


def test_other_formats_and_roundings_leave_the_values_alone() -> None:
    graph, ranges = trained()
    books = quantize(graph, ranges, books=BOTH)
    written = read_tflite(to_tflite(books, "books"), "books")  # a byte a weight
    adapted = round_adaptively(graph, books, torch.from_numpy(samples()[0]))
    for op, dense, rounded in zip(books.weighted, written.weighted, adapted.weighted, strict=True):
        np.testing.assert_array_equal(dense.weight.values, op.weight.values)
        np.testing.assert_array_equal(rounded.weight.values, op.weight.values)


def test_training_moves_entries_and_leaves_what_takes_which() -> None:
    inputs, labels = samples()
    parts = {"train": slice(90), "test": slice(90, None)}
    arrays = {f"x_{part}": inputs[where] for part, where in parts.items()}
    data = dataset_from_arrays(
        "books", arrays | {f"y_{part}": labels[where] for part, where in parts.items()}
    )
    graph, ranges = trained()
    start = quantize(graph, ranges, books=BOTH)
    recipe = Recipe(fine_tune_epochs=4, batch_size=10, fine_tune_learning_rate=0.02, threads=1)
    found, again = (learn_quantization(graph, start, data.train, recipe, seed=3) for _ in range(2))
    assert archive.to_bytes(found) == archive.to_bytes(again)
    for before, after in zip(start.weighted, found.weighted, strict=True):
        assert book_of(after) == book_of(before)
        old, new = before.weight.values, after.weight.values
        assert old is not None
        assert new is not None
        assert (old != new).any()
        # Entries that were one stay one: learned values are a function of those before.
        table = read_table(old, 2)
        indices = read_indices(old, table)
        pairs = new.reshape(len(new), -1)
        for entry in range(len(table)):
            taken = [
                tuple(pairs[row, 2 * place : 2 * place + 2])
                for row, place in zip(*np.nonzero(indices == entry), strict=True)
                if 2 * place + 2 <= pairs.shape[1]
            ]
            assert len(set(taken)) <= 1
    assert found.tensors.keys() == start.tensors.keys()
    assert replace(found, tensors=start.tensors).key == start.key
    test = data.test
    ends = [execute.accuracy(one, test.inputs, test.labels) for one in (start, found)]
    assert ends[1] > max(ends[0], 0.6)
