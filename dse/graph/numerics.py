"""Integer arithmetic of the contracts: multipliers, shifts and the rounding rules.

`double` is gemmlowp's SaturatingRoundingDoublingHighMul followed by RoundingDivideByPOT, as in
CMSIS-NN and LiteRT's reference convolutions; `single` rounds once, as in XNNPACK and LiteRT's
reference fully connected kernel. The sums of layers with int16 activations need more than 32 bits:
there, `double` rounds once with a multiplier of 15 bits, as CMSIS-NN and LiteRT's convolutions, and
`single` once with the whole one. All work on numpy arrays and on torch tensors of int64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np

from dse.errors import GraphError
from dse.graph.ir import Tensor

Rounding: TypeAlias = Literal["double", "single"]
ROUNDINGS: tuple[Rounding, ...] = ("double", "single")
# How far ADD shifts its inputs left before it scales them (tensorflow/lite/kernels/add.cc).
ADD_LEFT_SHIFT: Mapping[str, int] = {"int8": 20, "int16": 15}
# The largest factor of wide sums is 2^7.
LARGEST_WIDE_SHIFT = 7
INTEGER_LIMITS: Mapping[str, tuple[int, int]] = {"int8": (-128, 127), "int16": (-32768, 32767)}


@lru_cache(maxsize=65536)
def quantize_multiplier(real: float) -> tuple[int, int]:
    """`real` as (Q31 multiplier, shift) with real = multiplier * 2^(shift - 31).

    Source: tensorflow/lite/kernels/internal/quantization_util.cc, QuantizeMultiplier.
    """
    if not (math.isfinite(real) and real >= 0):
        raise GraphError(f"a requantization factor is {real}; it must be finite and >= 0")
    if real == 0:
        return 0, 0
    fraction, shift = math.frexp(real)
    multiplier = round_half_away(fraction * 2**31)
    if multiplier == 2**31:
        multiplier, shift = multiplier // 2, shift + 1
    if shift < -31:
        return 0, 0
    if shift > 30:
        return 2**31 - 1, 30
    return multiplier, shift


@lru_cache(maxsize=65536)
def wide_multiplier(real: float, rounding: Rounding) -> tuple[int, int]:
    """`real`, at most 2^7, as (Q31 multiplier, shift); 15 bits of it are used under `double`.

    Source: tensorflow/lite/kernels/internal/common.cc, MultiplyByQuantizedMultiplier of int64.
    """
    multiplier, shift = quantize_multiplier(real)
    if shift > LARGEST_WIDE_SHIFT:
        multiplier, shift = 2**31 - 1, LARGEST_WIDE_SHIFT
    if rounding == "double":
        multiplier = min((multiplier + (1 << 15)) >> 16, 2**15 - 1) << 16
    return multiplier, shift


def requantize_wide(x: Any, multiplier: Any, shift: Any) -> Any:
    """x * multiplier * 2^(shift - 31) rounded once, halves upwards; |x| < 2^47, shift <= 7.

    The product is made in two halves, each within int64.
    """
    total = 15 - shift
    high = (x >> 16) * multiplier + (((x & 0xFFFF) * multiplier) >> 16)
    return (high + (1 << (total - 1))) >> total


def round_half_away(value: float) -> int:
    """Round to the nearest integer, halves away from zero, as C's round()."""
    return math.floor(abs(value) + 0.5) * (1 if value >= 0 else -1)


def requantize(x: Any, multiplier: Any, shift: Any, rounding: Rounding) -> Any:
    """x * multiplier * 2^(shift - 31) in integers under one of the two rounding rules.

    x, multiplier and shift are int64 arrays or tensors of shapes that broadcast. |x| * 2^shift must
    fit 32 bits, as it must on the target.
    """
    if rounding == "single":
        total = 31 - shift
        return (x * multiplier + (1 << (total - 1))) >> total
    left, right = _positive(shift), _positive(-shift)
    high = (((x << left) * multiplier) + (1 << 30)) >> 31
    return rounding_divide_by_power_of_two(high, right)


def rounding_divide_by_power_of_two(x: Any, exponent: Any) -> Any:
    """x / 2^exponent rounded to nearest, halves away from zero (gemmlowp RoundingDivideByPOT)."""
    mask = (1 << exponent) - 1
    threshold = (mask >> 1) + (x < 0)
    return (x >> exponent) + ((x & mask) > threshold)


def _positive(shift: Any) -> Any:
    """max(shift, 0) for an int, a numpy array or a torch tensor."""
    return shift * (shift > 0)


def output_limits(tensor: Tensor, activation: str) -> tuple[int, int]:
    """Lowest and highest integer of an output under its fused activation."""
    low, high = INTEGER_LIMITS[tensor.dtype]
    if activation == "none":
        return low, high
    if tensor.scale is None:
        raise GraphError(f"tensor '{tensor.name}' has no scale")
    low = max(low, tensor.zero_point)
    if activation == "relu6":
        six = float(np.float32(6) / np.float32(tensor.scale))  # float32, as TensorFlow Lite
        high = min(high, tensor.zero_point + round_half_away(six))
    return low, high


def add_multipliers(
    one: float, other: float, output: float, left_shift: int = ADD_LEFT_SHIFT["int8"]
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """(multiplier, shift) of both inputs and of the output of an ADD with that left shift.

    Source: tensorflow/lite/kernels/add.cc, PrepareGeneralAddFor8Bit (16-bit tensors too).
    """
    twice = 2 * max(one, other)
    return (
        quantize_multiplier(one / twice),
        quantize_multiplier(other / twice),
        quantize_multiplier(twice / (2**left_shift * output)),
    )


def rescale_multiplier(source: Tensor, target: Tensor) -> tuple[int, int]:
    """(multiplier, shift) between two scales of int16, their ratio in float32 as in RELU.

    A ratio of 2^15 takes every number but 0 out of the range; larger ones do no more.
    """
    if source.scale is None or target.scale is None:
        raise GraphError(f"tensors '{source.name}' and '{target.name}' need scales")
    ratio = float(np.float32(source.scale) / np.float32(target.scale))
    return quantize_multiplier(min(ratio, 2.0**15))


def lookup_table(function: str, source: Tensor, target: Tensor) -> list[int]:
    """The 256 int8 outputs of an element-wise function, for inputs -128 to 127."""
    if source.scale is None or target.scale is None:
        raise GraphError(f"tensors '{source.name}' and '{target.name}' need scales")
    table = []
    for value in range(-128, 128):
        real = FUNCTIONS[function](source.scale * (value - source.zero_point))
        out = round_half_away(real / target.scale) + target.zero_point
        table.append(max(-128, min(127, out)))
    return table


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


FUNCTIONS: Mapping[str, Callable[[float], float]] = {
    "sigmoid": _sigmoid,
    "tanh": math.tanh,
    "hardsigmoid": lambda x: min(1.0, max(0.0, x / 6 + 0.5)),
    "hardswish": lambda x: x * min(1.0, max(0.0, x / 6 + 0.5)),
    "relu": lambda x: max(0.0, x),
    "relu6": lambda x: min(6.0, max(0.0, x)),
}
