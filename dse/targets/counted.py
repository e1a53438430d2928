"""Cycle tables from counted instructions, and the coefficients that no measured row can tell.

`native` has no kernels of its own yet: its tables are instruction counts of the loops it will use
(QEMU, gcc 12.2; `data/instructions.csv`) times cycles an instruction, derived from Arm's timing
tables. Assumptions are named constants here, each with its source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import get_args

from dse.targets.core import Family
from dse.targets.networks import rows

VERSION = "1"
FAMILIES: tuple[Family, ...] = get_args(Family)
DSP_FAMILIES: tuple[Family, ...] = ("m4", "m7", "m33")
COUNTED_ON: Mapping[Family, str] = {
    "m0plus": "m0",
    "m3": "m3",
    "m4": "m4",
    "m7": "m7",
    "m33": "m33",
}

CMSIS_SOURCE = (
    "CMSIS-NN (2021-11 to v4.0): relative non-negative least squares over MLPerf Tiny networks on "
    "NUCLEO-L4R5ZI, nRF5340 DK and EK-RA6M4 and over emulated Cortex-M4 layers; interval: 90 % of "
    "the rows of left-out systems (reports/calibration.md)"
)
M7_SOURCE = (
    "the Cortex-M4 table of CMSIS-NN times the median ratio of Cortex-M7 to NUCLEO-L4R5ZI cycles "
    "over HALE, Plumerai and X-CUBE-AI pairs of MLPerf Tiny: no CMSIS-NN row was measured on a "
    "Cortex-M7; the ratio's spread is in the interval (reports/calibration.md)"
)
SCALAR_SOURCE = (
    "TFLM + CMSIS-NN depthwise and 1x1 layers measured on the Raspberry Pi Pico; kxk and fully "
    "connected layers take the 1x1 cost, other terms are the Cortex-M4's times the ratio of the "
    "measured layers (unverified; reports/calibration.md)"
)
NATIVE_SOURCE = (
    "instruction counts of the kernels' loops (QEMU, gcc 12.2 -O2) times cycles an instruction "
    "from Arm's timing tables, not yet fitted to the kernels as built: emulated designs took 0.5 "
    "to 2.1 times as long; 'dse verify' gives a design's own figure"
)
# What `dse verify` found on trained designs: M7 plain 0.49, sparse layers and few input channels
# with DSP kernels 2.13 times the modelled cycles.
NATIVE_ERROR = 1.15

# Cycles an instruction of the five-instruction dot loop (two loads, MLA, compare, branch).
# M4 and M33: load pair +1, taken branch +2: 8 cycles. M3: MLA one more. M7 uses the M4's, its scale
# is measured. M0+: loads 2, taken branch 2: 10 cycles of 7 instructions (core timing table).
LOOP_CYCLES: Mapping[Family, float] = {
    "m0plus": 10 / 7, "m3": 9 / 5, "m4": 8 / 5, "m7": 8 / 5, "m33": 8 / 5,
}  # fmt: skip
# Straight code: cycles over instructions of whole CMSIS-NN networks on the emulated M4 (KWS, VWW:
# 3.58 / 2.98, 4.07 / 3.32); the fully connected one (2.88 / 2.17) has the most loads.
STRAIGHT_CYCLES, LOAD_HEAVY_CYCLES = 1.21, 1.33
# Hard floating point, M4: two loads (+1), VFMA 3 (+2), taken branch (+2) over five instructions.
FLOAT_CYCLES = 10 / 5
# A compact kernel that extracts every 4- or 2-bit weight by shifts took 8 more instructions a MAC
# (backends notes, section 2: 1,557,061 less 884,129 over the 83,904 MACs stored in 4 bits).
EXTRACTION_INSTRUCTIONS = 8.0
# Scanning the bitmap of a sparse weight: instructions an element, assumed (low 0.1, high 1).
SCAN_INSTRUCTIONS = (0.25, 0.1, 1.0)
# Widening a byte into the int16 column: load, two SXTB16, two packs, two stores for four elements.
COLUMN_INSTRUCTIONS = 7 / 4

# Raspberry Pi Pico, same file as the layers: average pool 3x3x256 870 us, softmax of two 338 us,
# reshape 22 us (what the interpreter adds to any operator), all at 125 MHz.
M0_POOL_TAP = 870e-6 * 125e6 / 2304
M0_OPERATOR = 22e-6 * 125e6
M0_SOFTMAX = (338e-6 * 125e6 - M0_OPERATOR) / 2
# Flash stalls of a board whose small cache does not hold the inner loops: cycles a MAC and wait
# state. Emulation notes, section 3 (256 B data cache of 8-byte lines, 1 KiB code cache): weights
# are fetched once a MAC by fully connected and depthwise kernels, once for two pixels by
# convolutions (0.128 and 0.066 misses a MAC in AD and IC); code line misses (4 waits each) are
# 0.008 a MAC in IC and 0.018 to 0.020 in KWS and VWW, where 1x1 kernels make them.
STALL: Mapping[str, float] = {
    "fully_connected": 1 / 8,
    "depthwise": 1 / 8,
    "conv": 1 / 16 + 4 * 0.008,
    "pointwise": 1 / 32 + 4 * 0.0235,
}
# A statically called operator, its arguments and set-up: assumed.
OPERATOR_CYCLES = 200.0
# What no row tells on Cortex-M4. tail: a left-over MAC in a scalar loop (8 cycles) instead of the
# unrolled one (2.4). Pooling: the Cortex-M0+ figure over 4, its layers' ratio. Softmax: over 20, as
# its exponential is a chain of 64-bit products, one instruction here and a library call there.
CMSIS_FIXED: Mapping[str, float] = {
    "op": OPERATOR_CYCLES,
    "tail": 5.6,
    "pool.average": M0_POOL_TAP / 4,
    "pool.max": M0_POOL_TAP / 4,
    "softmax": M0_SOFTMAX / 20,
    "lookup": 6.0,
    "copy": 3.0,
}
M0_MEASURED: Mapping[str, float] = {
    "pool.average": M0_POOL_TAP,
    "pool.max": M0_POOL_TAP,
    "softmax": M0_SOFTMAX,
}
# How far those may be off, as factors (low, high): they are assumed or taken from another core.
UNCERTAIN: Mapping[str, tuple[float, float]] = {
    "op": (0.25, 5.0),
    "pool.average": (0.3, 2.0),
    "pool.max": (0.3, 2.0),
    "softmax": (0.3, 4.0),
    "lookup": (0.5, 2.0),
    "copy": (0.3, 2.0),
    "mul": (0.7, 1.3),
}
# On Cortex-M0+ these kernels were not measured at all: they take the 1x1 kernel's cost.
M0_UNCERTAIN: Mapping[str, tuple[float, float]] = {
    **UNCERTAIN,
    "conv.mac": (0.8, 1.6),
    "conv.column": (0.5, 2.0),
    "conv.tap": (0.5, 2.0),
    "fully_connected.mac": (0.8, 1.6),
    "add": (0.5, 2.0),
}


@dataclass(frozen=True)
class Coefficients:
    """Cycles a feature, and the bounds of those that are uncertain in themselves."""

    value: Mapping[str, float]
    low: Mapping[str, float] = field(default_factory=dict)
    high: Mapping[str, float] = field(default_factory=dict)


@cache
def _counts() -> Mapping[tuple[str, str], float]:
    return {
        (row["core"], row["kernel"]): float(row["instructions_per_mac"])
        for row in rows("instructions.csv")
    }


def count(core: str, kernel: str) -> float:
    """Instructions a multiply-accumulate of a kernel on a core, as counted."""
    return _counts()[core, kernel]


def scalar_table(
    fitted: Mapping[str, float], m4: Mapping[str, float], ratio: float
) -> Mapping[str, float]:
    """The M0+ table of static calls: what was fitted, and the M4's times the layers' ratio."""
    per_mac = fitted["pointwise.mac"]
    table = {name: value * ratio for name, value in m4.items() if name not in fitted}
    return {
        **table,
        **{name: value for name, value in fitted.items() if name != "fetch"},
        "op": OPERATOR_CYCLES * ratio,
        "conv.mac": per_mac,
        "fully_connected.mac": per_mac,
        "tail": 0.0,
        **M0_MEASURED,
    }


def with_sub_byte(table: Mapping[str, float], counted_on: str) -> Coefficients:
    """Add multiply-accumulates with 4-bit weights: the ratio counted on own kernels.

    On DSP cores that of the 2x2 blocked 1x1 kernel (3.34 / 2.52), on M0+ that of the dot loop;
    the high end squares it, as the s4 kernels themselves were never timed here.
    """
    if counted_on == "dsp":
        ratio = count("m4", "pointwise_w4_dsp_2x2") / count("m4", "pointwise_dsp_2x2")
    else:
        ratio = count("m0", "dot_w4_c") / count("m0", "dot_c")
    value = dict(table)
    low, high = _bounds(value, UNCERTAIN if counted_on == "dsp" else M0_UNCERTAIN)
    for name in _mac_names(table):
        value[f"{name}.w4"] = table[name] * ratio
        low[f"{name}.w4"] = low.get(name, table[name]) * ratio
        high[f"{name}.w4"] = high.get(name, table[name]) * ratio**2
    return Coefficients(value, low, high)


def _bounds(
    value: Mapping[str, float], uncertain: Mapping[str, tuple[float, float]]
) -> tuple[dict[str, float], dict[str, float]]:
    """Low and high of the coefficients that no row tells."""
    known = {name: factors for name, factors in uncertain.items() if name in value}
    low = {name: value[name] * factors[0] for name, factors in known.items()}
    return low, {name: value[name] * factors[1] for name, factors in known.items()}


def _mac_names(table: Mapping[str, float]) -> list[str]:
    return [name for name in table if name.endswith(".mac")]


def native_table(backend: str, family: Family, cmsis: Mapping[str, float]) -> Coefficients:
    """Cycles of our own C, plain or with SMLAD and 2x2 blocking, at zero wait states."""
    core, loop = COUNTED_ON[family], LOOP_CYCLES[family]
    plain = _plain(core, loop)
    slow = 1.0 if family != "m0plus" else 4.0  # element-wise: only the M4's is known
    shared = {**CMSIS_FIXED, "add": cmsis["add"], "mul": cmsis["mul"]}
    value = {name: cost * slow for name, cost in shared.items()} | {"tail": 0.0} | plain
    if family == "m0plus":
        value |= M0_MEASURED
    if backend == "native-dsp":
        value |= _blocked(core)
    low, high = _bounds(value, UNCERTAIN)
    output = (count(core, "pointwise_c_32_32") - count(core, "dot_c")) * 32
    high |= _depthwise(core, "depthwise3x3_c_O2", output)
    _add_sub_byte(value, high, core, loop, backend)
    _add_sparse(value, low, high, core, loop)
    _add_float(value, core, family)
    return Coefficients(value, low, high)


def _plain(core: str, loop: float) -> dict[str, float]:
    """The dot loop a MAC, and what the counted layers take beyond it, an output and a tap."""
    dot = count(core, "dot_c")
    output = max(0.0, (count(core, "pointwise_c_32_32") - dot) * 32)
    taps = max(0.0, ((count(core, "conv3x3_c_8_8") - dot) * 72 - output) / 9)
    connected = max(0.0, (count(core, "fc_c_512_2") - dot) * 512)
    return {
        "conv.mac": dot * loop,
        "conv.output": output * STRAIGHT_CYCLES,
        "conv.output_tap": taps * STRAIGHT_CYCLES,
        "pointwise.mac": dot * loop,
        "pointwise.output": output * STRAIGHT_CYCLES,
        "fully_connected.mac": dot * loop,
        "fully_connected.output": connected * STRAIGHT_CYCLES,
        **_depthwise(core, "depthwise3x3_c_O3", output),
    }


def _depthwise(core: str, kernel: str, output: float) -> dict[str, float]:
    """A 3x3 kernel that was counted whole, split into taps (three instructions at least: two
    loads, multiply-add) and an output like that of the other kernels."""
    whole = count(core, kernel) * 9
    each = max(3.0, (whole - output) / 9)
    return {
        "depthwise.mac": each * STRAIGHT_CYCLES,
        "depthwise.output": (whole - 9 * each) * STRAIGHT_CYCLES,
    }


def _blocked(core: str) -> dict[str, float]:
    """SMLAD over two rows; requantization is what the 2x2 kernel takes beyond it (32 channels)."""
    dot = count(core, "dot_dsp_2rows")
    output = max(0.0, (count(core, "pointwise_dsp_2x2") - dot) * 32) * STRAIGHT_CYCLES
    cost = dot * LOAD_HEAVY_CYCLES
    return {
        "conv.mac": cost,
        "conv.output": output,
        "conv.output_tap": 0.0,
        "conv.column": COLUMN_INSTRUCTIONS * LOAD_HEAVY_CYCLES,
        "pointwise.mac": cost,
        "pointwise.output": output,
        "fully_connected.mac": cost,
        "tail": CMSIS_FIXED["tail"],
    }


def _add_sub_byte(
    value: dict[str, float], high: dict[str, float], core: str, loop: float, backend: str
) -> None:
    """Unpacking on top of an 8-bit MAC; the high end is the compact kernel's extraction."""
    unrolled = count(core, "dot_c_unroll4")
    for bits in (4, 2):
        extra = max(0.0, count(core, f"dot_w{bits}_c") - unrolled) * loop
        if backend == "native-dsp":
            step = count(core, "pointwise_w4_dsp_2x2") - count(core, "pointwise_dsp_2x2")
            extra = step * STRAIGHT_CYCLES
        for name in _mac_names(value):
            value[f"{name}.w{bits}"] = value[name] + extra
            top = high.get(name, value[name]) + EXTRACTION_INSTRUCTIONS * STRAIGHT_CYCLES
            high[f"{name}.w{bits}"] = max(top, value[name] + extra)


def _add_sparse(
    value: dict[str, float],
    low: dict[str, float],
    high: dict[str, float],
    core: str,
    loop: float,
) -> None:
    """A kept weight costs what the counted sparse loop costs; the bitmap is read besides."""
    each = count(core, "csr_per_nonzero") * loop
    for name in [name for name in value if ".mac" in name]:
        layout, _, bits = name.partition(".mac")
        value[f"{layout}.mac.sparse{bits}"] = each + max(0.0, value[name] - value[f"{layout}.mac"])
    scan, least, most = SCAN_INSTRUCTIONS
    value["scan"], low["scan"], high["scan"] = (x * STRAIGHT_CYCLES for x in (scan, least, most))


def _add_float(value: dict[str, float], core: str, family: Family) -> None:
    hard = family in ("m4", "m7", "m33")
    each = (
        count(core, "dot_f32_hard") * FLOAT_CYCLES
        if hard
        else count(core, "dot_f32_soft") * STRAIGHT_CYCLES
    )
    for name in _mac_names(value):
        value[f"{name}.f32"] = each
        value[f"{name}.sparse.f32"] = each + max(0.0, value[f"{name}.sparse"] - value[name])
