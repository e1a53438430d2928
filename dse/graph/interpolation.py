"""Element-wise functions of int16 tensors by tables with linear interpolation.

Sigmoid and tanh share 256 entries in Q16, any other function has 513 of its own over the range of
int16. Sources: tensorflow/lite/kernels/internal/common.h (LUTPopulate, LUTLookup) and
reference/integer_ops/logistic.h and tanh.h; CMSIS-NN's arm_nn_activation_s16 has the same table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from dse.graph.ir import Tensor
from dse.graph.numerics import INTEGER_LIMITS, round_half_away

Int64 = npt.NDArray[np.int64]
STEPS = 512
UNIT_SCALE = 2.0**-15
_LOW, _HIGH = INTEGER_LIMITS["int16"]


def _sigmoid_entry(index: int) -> int:
    """sigmoid(i / 24) in Q16, raised by half of what a straight line to the next falls short."""
    at, middle, after = (65536 / (1 + math.exp(-(index + part) / 24)) for part in (0, 0.5, 1))
    return round_half_away(at + (middle - (at + after) / 2) / 2)


# The last one, next to which the curves are at their limit, is that limit.
SIGMOIDS = (*map(_sigmoid_entry, range(255)), 65535)


def table(
    function: Callable[[float], float],
    input_scale: float,
    output_scale: float,
    input_zero: int = 0,
    output_zero: int = 0,
) -> list[int]:
    """513 int16 values of `function` at equal distances, each moved by half the error between two.

    The table reaches from the lowest to the highest int16 of the input.
    """
    low, high = (input_scale * (limit - input_zero) for limit in (_LOW, _HIGH))
    reach = output_scale * (_HIGH - output_zero) - output_scale * (_LOW - output_zero)
    step, steps_a_unit = (high - low) / STEPS, (_HIGH - _LOW + 1) / reach
    found = []
    for index in range(STEPS):
        at, middle, after = (
            function(x) * steps_a_unit
            for x in (low + index * step, low + index * step + step / 2, low + (index + 1) * step)
        )
        straight = round_half_away((after + round_half_away(at)) / 2)
        bias = round_half_away((straight - round_half_away(middle)) / 2)
        found.append(round_half_away(at) - bias)
    found.append(round_half_away(function(high) * steps_a_unit))
    return [min(max(value, _LOW), _HIGH) for value in found]


def interpolate(values: Int64, entries: Int64) -> Int64:
    """int16 `values` through the 513 `entries` of `table`."""
    index = 256 + (values >> 7)
    base = entries[index]
    result: Int64 = base + (((entries[index + 1] - base) * (values & 127) + 64) >> 7)
    return result


def curve_scaling(scale: float) -> tuple[int, int]:
    """(multiplier, right shift) that bring an input to the 12288 steps a unit of both curves."""
    real, shift = scale * 4096.0 * 3.0, 0
    while real <= 32767.0 / 2.0 and shift <= 30:
        real, shift = 2 * real, shift + 1
    return min(int(real), _HIGH), shift


def sigmoid(values: Int64, scale: float) -> Int64:
    """Sigmoid of int16 `values` of this scale, in Q15."""
    x = _scaled(values, scale)
    result = _between(np.abs(x), 9, 0x7FFF << 10)
    return np.where(x >= 0, result + (1 << 9), (1 << 25) - result + (1 << 9) - 1) >> 10


def tanh(values: Int64, scale: float) -> Int64:
    """Hyperbolic tangent of int16 `values` of this scale, in Q15: 2 sigmoid(2 x) - 1."""
    x = _scaled(values, scale)
    result = _between(np.abs(x), 8, 0xFFFF << 8)
    return np.where(x >= 0, result - (1 << 23) + (1 << 7), (1 << 23) - result + (1 << 7) - 1) >> 8


def _scaled(values: Int64, scale: float) -> Int64:
    multiplier, shift = curve_scaling(scale)
    result: Int64 = (values * multiplier + ((1 << shift) >> 1)) >> shift
    return result


def _between(magnitude: Int64, bits: int, most: int) -> Int64:
    """Between two entries of SIGMOIDS, `bits` fraction bits of the index; `most` past the end."""
    entries = np.array(SIGMOIDS, dtype=np.int64)
    index = np.minimum(magnitude >> bits, 254)
    step = entries[index + 1] - entries[index]
    result = (entries[index] << bits) + (magnitude & ((1 << bits) - 1)) * step
    return np.where(magnitude >> bits >= 255, most, result)


CURVES: Mapping[str, Callable[[Int64, float], Int64]] = {"sigmoid": sigmoid, "tanh": tanh}


def unit(tensor: Tensor) -> Tensor:
    """What a curve gives for `tensor`: Q15."""
    return replace(tensor, scale=UNIT_SCALE, zero_point=0)
