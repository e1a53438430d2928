"""The constants of an operator as C arrays, byte for byte what the cost model counts.

Dense rows start on a byte, the first weight in the lowest bits. Sparse weights are a bitmap over
all elements, the kept values one after the other, and the index of each row's first kept value.
Code books are rows of indices, packed like weights, and the table. Sparse blocks are a bitmap over
blocks, each row of them starting on a byte, and the weights of the kept ones, column by column.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dse.errors import GraphError
from dse.graph.blocks import cut
from dse.graph.code_book import read_indices, read_table
from dse.graph.ir import Activation, Array, Tensor, WeightedOp
from dse.graph.numerics import Rounding, quantize_multiplier, wide_multiplier

Ints = npt.NDArray[np.int64]
_PER_LINE = {"float": 6, "int32_t": 8, "uint32_t": 8, "uint16_t": 12, "int16_t": 12}
_BYTES = {"float": 4, "int32_t": 4, "uint32_t": 4, "uint16_t": 2, "int16_t": 2}
ACCUMULATOR_LIMIT = 2**31
FLOAT_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Table:
    """A `static const` array: its C name, element type and values as C text."""

    name: str
    ctype: str
    values: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes in flash."""
        return len(self.values) * _BYTES.get(self.ctype, 1)

    @property
    def text(self) -> str:
        """The definition."""
        width = _PER_LINE.get(self.ctype, 20)
        rows = (self.values[i : i + width] for i in range(0, len(self.values), width))
        lines = ",\n".join("    " + ", ".join(row) for row in rows)
        return f"static const {self.ctype} {self.name}[{len(self.values)}] = {{\n{lines}\n}};\n"


def table(name: str, ctype: str, values: Iterable[int]) -> Table:
    """A table of integers."""
    return Table(name, ctype, tuple(_integer(int(value)) for value in values))


def float_table(name: str, values: Array) -> Table:
    """A table of float32, each with the nine digits that give it back exactly."""
    return Table(name, "float", tuple(float_text(float(v)) for v in values.ravel()))


def float_text(value: float) -> str:
    """A C literal of the nearest float32."""
    text = f"{np.float32(value):.9g}"
    return text + ("F" if "." in text or "e" in text else ".0F")


def float_limits(activation: Activation) -> str:
    """`low, high` of a float activation."""
    low = -FLOAT_MAX if activation == "none" else 0.0
    high = 6.0 if activation == "relu6" else FLOAT_MAX
    return f"{float_text(low)}, {float_text(high)}"


def _integer(value: int) -> str:
    return "INT32_MIN" if value == -(2**31) else str(value)


def pack(values: Ints, bits: int) -> bytes:
    """Two's complement fields of 2, 4 or 8 bits, the first in the lowest bits of its byte."""
    per_byte = 8 // bits
    fields = np.zeros(-(-len(values) // per_byte) * per_byte, dtype=np.int64)
    fields[: len(values)] = values & ((1 << bits) - 1)
    shifts = np.arange(per_byte) * bits
    packed: Ints = (fields.reshape(-1, per_byte) << shifts).sum(axis=1)
    return packed.astype(np.uint8).tobytes()


def rows_of(op: WeightedOp) -> Array:
    """Weights as (output channels, everything else); GraphError for a graph of shapes."""
    if op.weight.values is None:
        raise GraphError(
            f"layer '{op.name}' has no weight values; export a trained and quantized graph"
        )
    return op.weight.values.reshape(op.weight.shape[0], -1)


def dense_rows(rows: Array, bits: int) -> bytes:
    """Each row packed, starting on a byte."""
    return b"".join(pack(row.astype(np.int64), bits) for row in rows)


@dataclass(frozen=True)
class Sparse:
    """Which elements are kept (bits, in bytes), their values, and where each row starts."""

    bitmap: bytes
    values: Array
    first: Ints


def sparse_rows(op: WeightedOp) -> Sparse:
    """The kept elements: all that are not zero, then the first zeros up to the declared number.

    Quantization may round kept weights to zero; they stay stored, since flash is known from the
    mask before any value is (docs/decisions/0002-cost-model.md).
    """
    rows = rows_of(op)
    flat = rows.ravel()
    mask = flat != 0
    mask[np.flatnonzero(~mask)[: op.weight.kept - int(mask.sum())]] = True
    counts = mask.reshape(rows.shape).sum(axis=1)
    first = np.concatenate(([0], np.cumsum(counts)[:-1])).astype(np.int64)
    return Sparse(np.packbits(mask, bitorder="little").tobytes(), flat[mask], first)


def sparse_blocks(op: WeightedOp, bits: int) -> tuple[bytes, bytes]:
    """The bitmap over blocks, and the weights of those kept: zeros where a block sticks out.

    Kept are all that are not zero, then the first zeros up to the declared number. Weights have 2,
    4 or 8 bits each, column by column; with 1 bit signs, and a magnitude a block behind those of a
    block of 16 or of two blocks of 4.
    """
    blocks = cut(rows_of(op), op.weight.pattern).astype(np.int64)
    used = blocks.any(axis=(2, 3))
    flat = used.ravel()
    flat[np.flatnonzero(~flat)[: op.weight.blocks - int(flat.sum())]] = True
    kept = blocks.swapaxes(2, 3)[used]
    values = kept.reshape(len(kept), -1)
    together = 1 if values.shape[1] == 16 else 2
    groups = (values[i : i + together] for i in range(0, len(values), together))
    packed = b"".join(map(_signs, groups)) if bits == 1 else pack(values.ravel(), bits)
    return np.packbits(used, axis=1, bitorder="little").tobytes(), packed


def _signs(group: Ints) -> bytes:
    signs: bytes = np.packbits(group.ravel() < 0, bitorder="little").tobytes()
    magnitudes: bytes = np.abs(group).max(axis=1).astype(np.uint8).tobytes()
    return signs + magnitudes


@dataclass(frozen=True)
class Book:
    """The table of a code book (entries, vector), zeros where it has more than it needs, and
    indices (O, n)."""

    table: Array
    indices: Array


def code_book(op: WeightedOp) -> Book:
    """The book of a layer, as large as declared: flash is known before any value is."""
    rows, weight = rows_of(op), op.weight
    used = read_table(rows, weight.vector)
    spare = np.zeros((weight.entries - len(used), weight.vector), dtype=used.dtype)
    return Book(np.concatenate((used, spare)), read_indices(rows, used))


def biases(op: WeightedOp) -> Array:
    """One bias an output channel; zeros where there is none."""
    if op.bias is None:
        return np.zeros(op.weight.shape[0], dtype=np.int64)
    return np.asarray(op.bias)


def folded_biases(op: WeightedOp, source: Tensor) -> Ints:
    """bias - zero_point * sum(weights): then inputs need no subtraction."""
    sums = rows_of(op).astype(np.int64).sum(axis=1)
    folded: Ints = biases(op).astype(np.int64) - source.zero_point * sums
    return folded


def accumulator_bound(op: WeightedOp, source: Tensor) -> int:
    """The largest magnitude an accumulator may pass through.

    GraphError past 32 bits with int8 activations; int16 ones have kernels of 64 bits.
    """
    sums = np.abs(rows_of(op).astype(np.int64)).sum(axis=1)
    wide = source.dtype == "int16"
    reach = 2**15 if wide else 2 * (128 + abs(source.zero_point))
    bound = int((np.abs(biases(op).astype(np.int64)) + reach * sums).max())
    if not wide and bound >= ACCUMULATOR_LIMIT:
        raise GraphError(
            f"layer '{op.name}' may accumulate up to {bound}; 32-bit accumulators hold less than "
            f"{ACCUMULATOR_LIMIT}: use a larger input scale or fewer inputs"
        )
    return bound


def multipliers(
    op: WeightedOp, source: Tensor, target: Tensor, rounding: Rounding
) -> tuple[Ints, Ints]:
    """(Q31 multiplier, right shift) of each output channel; int16 outputs have a rule of theirs."""
    scales = op.weight.scales
    if scales is None or source.scale is None or target.scale is None:
        raise GraphError(f"layer '{op.name}' has no scales; quantize the graph first")
    factors = [source.scale * float(s) / target.scale for s in scales]
    wide = target.dtype == "int16"
    pairs = [wide_multiplier(f, rounding) if wide else quantize_multiplier(f) for f in factors]
    multiplier, shift = np.array(pairs, dtype=np.int64).T
    return multiplier, -shift
