"""Integer arithmetic of the 8-bit contract: multipliers, shifts and the two rounding rules.

`double` is gemmlowp's SaturatingRoundingDoublingHighMul followed by RoundingDivideByPOT, as in
CMSIS-NN and LiteRT's reference convolutions; `single` rounds once, as in XNNPACK and LiteRT's
reference fully connected kernel. Both work on numpy arrays and on torch tensors of int64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from dse.errors import GraphError
from dse.graph.ir import Tensor

Rounding: TypeAlias = Literal["double", "single"]
ROUNDINGS: tuple[Rounding, ...] = ("double", "single")
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
        high = min(high, tensor.zero_point + round_half_away(6 / tensor.scale))
    return low, high


def add_multipliers(
    one: float, other: float, output: float
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """(multiplier, shift) of both inputs and of the output of an ADD with a left shift of 20 bits.

    Source: tensorflow/lite/kernels/add.cc, PrepareGeneralAddFor8Bit.
    """
    twice = 2 * max(one, other)
    return (
        quantize_multiplier(one / twice),
        quantize_multiplier(other / twice),
        quantize_multiplier(twice / (2**20 * output)),
    )


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
