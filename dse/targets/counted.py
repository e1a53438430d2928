"""Coefficients that no measured row can tell: assumed or taken from another core, each named here.

Source of the 4-bit ratios: instruction counts of small kernels (QEMU, gcc 12.2;
`data/instructions.csv`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from dse.targets.networks import rows

SCALAR_SOURCE = (
    "TFLM + CMSIS-NN depthwise and 1x1 layers measured on the Raspberry Pi Pico; kxk and fully "
    "connected layers take the 1x1 cost, other terms are the Cortex-M4's times the ratio of the "
    "measured layers (unverified; reports/calibration.md)"
)
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
