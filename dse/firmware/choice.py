"""Which kernel runs an integer layer with weights, and how that kernel wants them to lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dse.firmware.constants import ACCUMULATOR_LIMIT, dense_rows, rows_of
from dse.graph.ir import Array, Conv2D, FullyConnected, WeightedOp
from dse.targets.cycles import kernel_class
from dse.targets.encoding import Encoding

# Depthwise kernels work on four channels at a time; fewer take the general kernel.
LANES = 4
# The DSP kernels multiply narrow weights by the place they have in their byte.
PLACE = {8: 1, 4: 16, 2: 64}


@dataclass(frozen=True)
class Choice:
    """A kernel's file, the container bits of its weights, and what it expects.

    `folded`: the bias has taken in the input's zero point. `value` is the C type of what a DSP
    block multiplies, empty for kernels without one.
    """

    file: str
    bits: int
    folded: bool = False
    value: str = ""

    @property
    def function(self) -> str:
        """The C function."""
        return self.file if self.file == "dsp_depthwise" else f"{self.file}_w{self.bits}"

    @property
    def scratch(self) -> bool:
        """Whether it copies columns into scratch."""
        return self.file == "dsp_conv"


def choose(op: WeightedOp, encoding: Encoding, bound: int, dsp: bool) -> Choice:
    """The kernel of an integer layer; `bound` is the largest accumulator, `dsp` the variant."""
    bits = encoding.container_bits
    if encoding.layout == "sparse":
        return Choice("sparse", bits)
    if isinstance(op, Conv2D) and op.depthwise:
        if op.weight.shape[0] != op.groups or op.groups < LANES:
            return Choice("depthwise_any", bits)
        words = dsp and bits == 8 and op.dilation == (1, 1)
        return Choice("dsp_depthwise" if words else "depthwise", bits)
    if not dsp or bound * PLACE[bits] >= ACCUMULATOR_LIMIT:
        return Choice("conv", bits, folded=True)
    if isinstance(op, FullyConnected):
        return Choice("dsp_vector", bits, folded=True)
    if kernel_class(op) == "pointwise":
        return Choice("dsp_pointwise", bits, folded=True, value="int8_t")
    return Choice("dsp_conv", bits, value="int16_t")


def stored(op: WeightedOp, choice: Choice) -> bytes:
    """The dense weights as the kernel reads them: rows packed, or (H, W, O) for 8-bit depthwise."""
    rows = rows_of(op)
    if choice.file in ("depthwise", "dsp_depthwise") and choice.bits == 8:
        return rows.T.astype(np.int8).tobytes()
    if choice.file.startswith("dsp_"):
        rows = grouped(rows, choice.bits, column=choice.scratch)
    return dense_rows(rows, choice.bits)


def grouped(rows: Array, bits: int, column: bool) -> Array:
    """Rows in the order of the DSP kernels: words of 32 / bits weights, four to a place of a byte.

    What is left of a row follows in its own order, or in that of a column (first, third, second,
    fourth of each whole four).
    """
    size = 32 // bits
    whole = rows.shape[1] // size * size
    words = rows[:, :whole].reshape(len(rows), -1, size // 4, 4)
    rest = rows[:, whole:]
    if column:
        fours = rest.shape[1] // 4 * 4
        order = rest[:, :fours].reshape(len(rows), -1, 4)[:, :, [0, 2, 1, 3]]
        rest = np.concatenate((order.reshape(len(rows), -1), rest[:, fours:]), axis=1)
    return np.concatenate((words.swapaxes(2, 3).reshape(len(rows), -1), rest), axis=1)
