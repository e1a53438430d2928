"""Patterns of sparsity: single weights, or whole blocks of the weight matrix.

The matrix of a layer has one row an output channel and one column a weight of it, in the order in
which weights lie in flash: (O, H x W x I) or (O, I). A block at its edge may stick out of it.
`-shared` blocks also share one magnitude, so that only signs differ within a block
(micro-structured weight unification, arXiv 2106.08301).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dse.errors import CompressionError, nearest

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
