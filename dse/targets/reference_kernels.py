"""Cycles of TensorFlow Lite Micro's portable kernels, from counted instructions.

No measured row runs these kernels alone, so nothing is fitted: each multiply-accumulate takes what
a compact generic C kernel takes (8 instructions at -O2: backends notes, section 2), with index
arithmetic for four dimensions and a bounds check a tap on top, and the interval is wide.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from dse.targets.board import Board
from dse.targets.core import Family
from dse.targets.cycles import CycleTable

# Cycles an instruction of a load-heavy loop, by core (core timing notes; `counted.LOOP_CYCLES`).
CYCLES: Mapping[Family, float] = {
    "m0plus": 1.6, "m3": 1.8, "m4": 1.6, "m33": 1.6, "m7": 0.9, "m55": 1.3, "m85": 0.8,
}  # fmt: skip
# Instructions: 8 a multiply-accumulate of a compact kernel, 4 more for the offset of each operand
# (Offset() of four dimensions, hoisted in part by the compiler), assumed.
MAC, FULLY_CONNECTED_MAC = 12.0, 9.0
TAP, OUTPUT, ELEMENT = 14.0, 60.0, 45.0
COEFFICIENTS: Mapping[str, float] = {
    "conv.mac": MAC,
    "conv.output": OUTPUT,
    "conv.output_tap": TAP,
    "conv.column": 0.0,
    "conv.tap": 0.0,
    "pointwise.mac": MAC,
    "pointwise.output": OUTPUT + TAP,
    "depthwise.mac": MAC + TAP,
    "depthwise.output": OUTPUT,
    "fully_connected.mac": FULLY_CONNECTED_MAC,
    "fully_connected.output": OUTPUT,
    "tail": 0.0,
    "add": 2 * ELEMENT,
    "mul": 2 * ELEMENT,
    "pool.average": 12.0,
    "pool.max": 12.0,
    "lookup": 12.0,
    "copy": 8.0,
    "softmax": 800.0,
    "op": 500.0,
}
# Compilers and flags alone move the cycles of plain C by -35 to +50 % (emulation notes,
# section 2); the assumed instructions do the rest: a factor of two each way.
ERROR = 1.0
SOURCE = (
    "counted instructions of a compact C kernel and assumed index arithmetic, times cycles an "
    "instruction of the core; no row was measured (unverified)"
)


@cache
def _table(family: Family) -> CycleTable:
    each = CYCLES[family]
    return CycleTable(
        name=f"tflm-reference/{family}",
        version="1",
        coefficients={name: count * each for name, count in COEFFICIENTS.items()},
        low={},
        high={},
        stall={},
        error=ERROR,
        board_fetch={},
        source=SOURCE,
    )


def reference_table(board: Board) -> CycleTable:
    """The table of the board's core family."""
    return _table(board.core.family)
