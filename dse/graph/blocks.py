"""Patterns of sparsity: single weights, or whole blocks of the weight matrix.

The matrix of a layer has one row an output channel and one column a weight of it, in the order in
which weights lie in flash: (O, H x W x I) or (O, I). A block at its edge may stick out of it.
`-shared` blocks also share one magnitude, so that only signs differ within a block
(micro-structured weight unification, arXiv 2106.08301).

Stored block by block, a layer is a map of one bit a block (every row of blocks starts on a byte)
and the weights of the kept blocks; a `-shared` one has a sign a weight and a magnitude a block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dse.errors import CompressionError, nearest

Array = npt.NDArray[Any]

ELEMENT = "element"
BLOCKS: dict[str, tuple[int, int]] = {
    "1x4": (1, 4),
    "4x1": (4, 1),
    "2x2": (2, 2),
    "4x4": (4, 4),
}
SHARED = "-shared"
PATTERNS = (ELEMENT, *BLOCKS, *(name + SHARED for name in BLOCKS))


def check_pattern(pattern: str) -> None:
    """Raises CompressionError for a pattern that does not exist."""
    if pattern not in PATTERNS:
        raise CompressionError(f"unknown pattern '{pattern}'; {nearest(pattern, PATTERNS)}")


def block_shape(pattern: str) -> tuple[int, int]:
    """Rows and columns of a block; (1, 1) for single elements."""
    check_pattern(pattern)
    return BLOCKS.get(pattern.removesuffix(SHARED), (1, 1))


def shares_magnitudes(pattern: str) -> bool:
    """Whether the weights of a block have one magnitude."""
    return pattern.endswith(SHARED)


def block_grid(shape: Sequence[int], pattern: str) -> tuple[int, int]:
    """Blocks along the rows and along the columns of weights (O, H, W, I) or (O, I)."""
    rows, columns = block_shape(pattern)
    return -(-shape[0] // rows), -(-math.prod(shape[1:]) // columns)


def kept_blocks(shape: Sequence[int], density: float, pattern: str) -> int:
    """Blocks that are kept at a density: round(density x blocks), at least 1."""
    blocks = math.prod(block_grid(shape, pattern))
    return max(1, min(blocks, round(density * blocks)))


def kept_elements(shape: Sequence[int], density: float, pattern: str) -> int:
    """Elements that may differ from zero: those of the kept blocks, as if none stuck out."""
    inside = math.prod(block_shape(pattern)) * kept_blocks(shape, density, pattern)
    return min(math.prod(shape), inside)


def map_bytes(shape: Sequence[int], pattern: str) -> int:
    """Bytes of the map of blocks."""
    rows, columns = block_grid(shape, pattern)
    return rows * -(-columns // 8)


def block_bytes(shape: Sequence[int], bits: int, blocks: int, pattern: str) -> int:
    """Bytes of the map and of so many kept blocks whose weights have 2, 4 or 8 bits each.

    What sticks out of the matrix is stored, too.
    """
    return map_bytes(shape, pattern) + blocks * math.prod(block_shape(pattern)) * bits // 8


def shared_bytes(shape: Sequence[int], blocks: int, pattern: str) -> int:
    """Bytes of the map and of so many kept blocks of signs and one 8-bit magnitude each."""
    signs = -(-blocks * math.prod(block_shape(pattern)) // 8)
    return map_bytes(shape, pattern) + signs + blocks


def cut(values: Array, pattern: str) -> Array:
    """(block rows, block columns, rows, columns) of weights (O, ...), zeros where they end."""
    rows, columns = block_shape(pattern)
    matrix = values.reshape(len(values), -1)
    padded = np.pad(matrix, ((0, -len(matrix) % rows), (0, -matrix.shape[1] % columns)))
    return padded.reshape(len(padded) // rows, rows, -1, columns).swapaxes(1, 2)


def joined(blocks: Array, shape: Sequence[int]) -> Array:
    """The weights of a shape that `cut` took apart."""
    _, across, _, columns = blocks.shape
    matrix: Array = blocks.swapaxes(1, 2).reshape(-1, across * columns)
    return np.ascontiguousarray(matrix[: shape[0], : math.prod(shape[1:])]).reshape(shape)


def used_blocks(values: Array, pattern: str) -> Array:
    """Which blocks (block rows, block columns) of weights (O, ...) are not all zero."""
    used: Array = np.asarray(cut(values, pattern).any(axis=(2, 3)))
    return used


def unified(values: Array, pattern: str) -> Array:
    """Weights (O, ...) with one magnitude a block, the mean of it, and their signs.

    A zero among other weights becomes positive: a sign is all that is stored of a weight.
    """
    blocks = cut(values, pattern)
    inside = cut(np.ones(values.shape), pattern).sum(axis=(2, 3), keepdims=True)
    mean = np.abs(blocks).sum(axis=(2, 3), keepdims=True) / inside
    return joined(np.where(blocks < 0, -mean, mean), values.shape)


def magnitudes_differ(values: Array, pattern: str) -> bool:
    """Whether the weights (O, ...) of some block are of more than one magnitude."""
    blocks = np.abs(cut(values.astype(np.int64), pattern))
    inside = cut(np.ones(values.shape, dtype=np.int64), pattern)
    return bool((blocks != inside * blocks[:, :, :1, :1]).any())
