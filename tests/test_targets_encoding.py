"""Bytes of a weight: the count equals a packing that is really made."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dse.errors import TargetError
from dse.graph.ir import Weight
from dse.targets import container_bits, encode, encoded_bytes

CONTAINERS = (2, 4, 8, 32)


def pack(fields: list[int], width: int) -> bytes:
    """Values of `width` bits one after the other, padded to a byte."""
    text = "".join(format(field & ((1 << width) - 1), f"0{width}b") for field in fields)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))


def pack_dense(values: np.ndarray[tuple[int, int], np.dtype[np.int64]], width: int) -> bytes:
    return b"".join(pack([int(v) for v in row], width) for row in values)


def pack_sparse(
    values: np.ndarray[tuple[int, int], np.dtype[np.int64]],
    mask: np.ndarray[tuple[int, int], np.dtype[np.bool_]],
    width: int,
) -> bytes:
    bitmap = pack([int(bit) for bit in mask.ravel()], 1)
    kept = pack([int(v) for v in values[mask]], width)
    starts = np.concatenate([[0], np.cumsum(mask.sum(axis=1))[:-1]])
    size = 2 if mask.sum() < 1 << 16 else 4
    return bitmap + kept + b"".join(int(start).to_bytes(size, "little") for start in starts)


@given(
    st.integers(1, 9),
    st.integers(1, 40),
    st.sampled_from((2, 3, 4, 5, 8)),
    st.floats(0, 1),
    st.integers(0, 10_000),
)
def test_bytes_equal_a_packing_that_is_made(
    rows: int, columns: int, bits: int, density: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    kept = round(density * rows * columns)
    flat = np.zeros(rows * columns, bool)
    flat[random.permutation(rows * columns)[:kept]] = True
    mask = flat.reshape(rows, columns)
    limit = 2 ** (bits - 1) - 1
    values = np.where(mask, random.integers(-limit, limit + 1, (rows, columns)), 0)
    width = container_bits(bits, CONTAINERS)
    dense, sparse = pack_dense(values, width), pack_sparse(values, mask, width)
    weight = Weight((rows, columns), bits, kept)
    expected = len(dense) if kept == mask.size else min(len(dense), len(sparse))
    assert encoded_bytes(weight, CONTAINERS, sparse=True) == expected
    assert encoded_bytes(weight, CONTAINERS) == len(dense)
    assert encoded_bytes(weight, CONTAINERS, pad_rows=False) == len(
        pack(values.ravel().tolist(), width)
    )


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from((2, 4, 8)))
def test_fewer_kept_never_takes_more_bytes(rows: int, columns: int, bits: int) -> None:
    size = rows * columns
    kept = [size, size * 3 // 4, size // 2, size // 10, 0]
    sizes = [encoded_bytes(Weight((rows, columns), bits, k), CONTAINERS, sparse=True) for k in kept]
    assert sizes == sorted(sizes, reverse=True)


def test_container_is_the_narrowest_that_holds_the_bits() -> None:
    assert [container_bits(bits, CONTAINERS) for bits in (2, 3, 4, 5, 8, 32)] == [2, 4, 4, 8, 8, 32]
    assert container_bits(2, (4, 8)) == 4


def test_integers_do_not_go_into_float_containers() -> None:
    with pytest.raises(TargetError, match="weights of 8 bits; allowed containers: 4, 32 bits"):
        container_bits(8, (4, 32))


def test_choice_depends_on_what_is_kept_and_never_on_values() -> None:
    shape = (16, 3, 3, 16)
    dense = encode(Weight(shape, 8), CONTAINERS, sparse=True)
    thin = encode(Weight(shape, 8, math.prod(shape) // 5), CONTAINERS, sparse=True)
    assert (dense.layout, dense.size_bytes) == ("dense", math.prod(shape))
    assert thin.layout == "sparse"
    values = np.zeros(shape)
    assert encode(Weight(shape, 8, values=values), CONTAINERS, sparse=True) == dense
