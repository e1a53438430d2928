"""How a weight tensor lies in flash, and how many bytes it takes: known from shape, bits and kept.

Dense: packed at the container's bits, each output channel starting on a byte where the kernels
need it. Sparse (native kernels): a bitmap of one bit an element, the kept values packed in the
container's bits, and one row offset (16 or 32 bits) an output channel. Block-sparse (native
kernels): a bitmap of one bit a block, each row of blocks starting on a byte, and the weights of the
kept blocks, zeros where one sticks out; shared blocks: a sign bit a weight and an 8-bit magnitude a
block instead. Code book (native kernels): indices of 2, 4 or 8 bits, each output channel starting
on a byte, and the table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from dse.errors import TargetError
from dse.graph.blocks import ELEMENT, block_bytes, shared_bytes, shares_magnitudes
from dse.graph.code_book import book_bytes, index_bits
from dse.graph.ir import Weight


@dataclass(frozen=True)
class Encoding:
    """A layout in flash: bits a stored value (of a code book: an index; of shared blocks: a sign),
    bytes in all."""

    layout: Literal["dense", "sparse", "block-sparse", "shared blocks", "code book"]
    container_bits: int
    size_bytes: int

    @property
    def text(self) -> str:
        """How people are told of it."""
        return f"{self.layout} {self.container_bits} bit"

    @property
    def suffix(self) -> str:
        """How the cycle tables name a multiply-accumulate with it: '' is dense 8 bits."""
        name = {8: "", 32: ".f32"}.get(self.container_bits, f".w{self.container_bits}")
        return _SUFFIXES[self.layout] + name


_SUFFIXES = {
    "dense": "",
    "sparse": ".sparse",
    "block-sparse": ".blocks",
    "shared blocks": ".shared",
    "code book": ".book",
}
# What a kernel notes of a column of weights is 16 bits wide.
MOST_COLUMNS = (1 << 16) - 1
SIGN_BITS = 1


def container_bits(bits: int, containers: Sequence[int]) -> int:
    """The narrowest container that holds `bits`; integers never go into float containers.

    Raises TargetError when the backend stores nothing that wide.
    """
    fits = [width for width in containers if width >= bits and (width == 32) == (bits == 32)]
    if not fits:
        raise TargetError(
            f"no container for weights of {bits} bits; allowed containers: "
            f"{', '.join(str(width) for width in sorted(containers))} bits"
        )
    return min(fits)


def encode(
    weight: Weight,
    containers: Sequence[int],
    *,
    sparse: bool = False,
    pad_rows: bool = True,
    code_books: bool = False,
    blocks: bool = False,
) -> Encoding:
    """The smallest layout the backend can read; ties go to dense, which is never slower.

    `sparse`, `code_books`, `blocks`: the backend has such kernels. `pad_rows`: output channels
    start on a byte.
    """
    if code_books and weight.entries:
        size = book_bytes(weight.shape, weight.entries, weight.vector)
        if size < weight.size:
            return Encoding("code book", index_bits(weight.entries), size)
    found = _encode(weight.shape, weight.bits, weight.kept, tuple(containers), sparse, pad_rows)
    if not blocks or weight.pattern == ELEMENT:
        return found
    layouts = (
        found,
        *_in_blocks(weight.shape, weight.pattern, weight.blocks, found.container_bits),
    )
    return min(layouts, key=lambda each: each.size_bytes)


def encoded_bytes(
    weight: Weight,
    containers: Sequence[int],
    *,
    sparse: bool = False,
    pad_rows: bool = True,
    code_books: bool = False,
    blocks: bool = False,
) -> int:
    """Bytes in flash of the values (no biases, no multipliers) in the smallest layout."""
    return encode(
        weight, containers, sparse=sparse, pad_rows=pad_rows, code_books=code_books, blocks=blocks
    ).size_bytes


@lru_cache(maxsize=8192)
def _in_blocks(
    shape: tuple[int, ...], pattern: str, blocks: int, width: int
) -> tuple[Encoding, ...]:
    """The layouts of kept blocks; none past the columns that kernels count."""
    if math.prod(shape[1:]) > MOST_COLUMNS:
        return ()
    found = [Encoding("block-sparse", width, block_bytes(shape, width, blocks, pattern))]
    if shares_magnitudes(pattern):
        size = shared_bytes(shape, blocks, pattern)
        found.append(Encoding("shared blocks", SIGN_BITS, size))
    return tuple(found)


@lru_cache(maxsize=8192)
def _encode(
    shape: tuple[int, ...],
    bits: int,
    kept: int,
    containers: tuple[int, ...],
    sparse: bool,
    pad_rows: bool,
) -> Encoding:
    width = container_bits(bits, containers)
    rows, size = shape[0], 1
    for length in shape:
        size *= length
    packed = rows * _bytes(size // rows * width) if pad_rows else _bytes(size * width)
    dense = Encoding("dense", width, packed)
    if not sparse or kept == size:
        return dense
    offset_bytes = 2 if kept < 1 << 16 else 4
    total = _bytes(size) + _bytes(kept * width) + rows * offset_bytes
    return dense if packed <= total else Encoding("sparse", width, total)


def _bytes(bits: int) -> int:
    return -(-bits // 8)
