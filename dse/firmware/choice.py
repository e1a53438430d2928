"""How the kernel that `targets.native_kernels` chose wants the weights of a layer to lie."""

from __future__ import annotations

import numpy as np

from dse.firmware.constants import dense_rows, rows_of
from dse.graph.ir import Array, WeightedOp
from dse.targets.native_kernels import Choice, choose

__all__ = ["Choice", "choose", "grouped", "stored"]


def stored(op: WeightedOp, choice: Choice, dtype: str = "int8") -> bytes:
    """The dense weights as the kernel reads them: rows packed, or (H, W, O) for 8-bit depthwise.

    `dtype` is that of the activations.
    """
    rows = rows_of(op)
    if choice.file in ("depthwise", "dsp_depthwise", "mve_depthwise") and choice.bits == 8:
        return rows.T.astype(np.int8).tobytes()
    if choice.file.startswith("dsp_") and choice.file != "dsp_depthwise_narrow":
        column = choice.columns and dtype == "int8"
        rows = grouped(rows, choice.bits, column, paired=dtype == "int16")
    return dense_rows(rows, choice.bits)


def grouped(rows: Array, bits: int, column: bool, paired: bool = False) -> Array:
    """Rows in the order of the DSP kernels: words of 32 / bits weights, four to a place of a byte.

    `paired`: the even bytes of a word hold its first and second weight of four, as int16
    activations lie; otherwise the first and third.

    What is left of a row follows in its own order, or in that of a column (first, third, second,
    fourth of each whole four).
    """
    size = 32 // bits
    whole = rows.shape[1] // size * size
    words = rows[:, :whole].reshape(len(rows), -1, size // 4, 4)
    words = words[:, :, :, [0, 2, 1, 3]] if paired else words
    rest = rows[:, whole:]
    if column:
        fours = rest.shape[1] // 4 * 4
        order = rest[:, :fours].reshape(len(rows), -1, 4)[:, :, [0, 2, 1, 3]]
        rest = np.concatenate((order.reshape(len(rows), -1), rest[:, fours:]), axis=1)
    return np.concatenate((words.swapaxes(2, 3).reshape(len(rows), -1), rest), axis=1)
