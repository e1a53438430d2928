"""The softmax of TensorFlow Lite and CMSIS-NN in integers, on int64 numpy arrays.

For int8 in fixed point, for int16 by two tables with linear interpolation.
Source: tensorflow/lite/kernels/internal/reference/softmax.h and gemmlowp/fixedpoint/fixedpoint.h.
Fixed-point numbers are int32 values held in int64; Q<n> has n integer and 31 - n fraction bits.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from dse.graph.interpolation import interpolate, table
from dse.graph.numerics import quantize_multiplier, rounding_divide_by_power_of_two

Int64 = npt.NDArray[np.int64]
_ONE = 2**31 - 1
_DIFF_INTEGER_BITS = 5
_SUM_INTEGER_BITS = 12
# exp(-2^k) in Q0 for k = -2 .. 4.
_EXP_OF_POWERS = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)

# exp on [-10, 0] and 1 / (1 + x) on [0, 1], each in Q15.
_REACH, _RANGE = 10.0, 2**16 - 1
EXPONENTIALS = tuple(table(math.exp, _REACH / _RANGE, 2.0 / _RANGE, 2**15 - 1))
RECIPROCALS = tuple(table(lambda x: 1 / (1 + x), 1.0 / _RANGE, 2.0 / _RANGE, -(2**15)))


def integer_softmax(values: Int64, scale: float) -> Int64:
    """Rows of int8 logits (N, classes) with scale `scale` -> int8 with scale 1/256, zero -128."""
    multiplier, shift, lowest = scaling(scale)
    diff = values - values.max(axis=1, keepdims=True)
    inside = diff >= lowest
    rescaled = _high_mul(np.where(inside, diff, 0) << shift, np.int64(multiplier))
    exps = np.where(inside, _exp_on_negative(rescaled), 0)
    total = rounding_divide_by_power_of_two(exps, _SUM_INTEGER_BITS).sum(axis=1)
    reciprocal, bits_over_unit = _reciprocal(total)
    product = _high_mul(reciprocal[:, None], exps)
    out = rounding_divide_by_power_of_two(product, bits_over_unit[:, None] + 31 - 8) - 128
    return np.where(inside, np.clip(out, -128, 127), -128).astype(np.int64)


def wide_softmax(values: Int64, scale: float) -> Int64:
    """Rows of int16 logits (N, classes) with scale `scale` -> int16 in Q15, zero 0."""
    multiplier, shift = wide_scaling(scale)
    diff = (values - values.max(axis=1, keepdims=True)) << max(shift, 0)
    scaled = rounding_divide_by_power_of_two(_high_mul(diff, np.int64(multiplier)), max(-shift, 0))
    place = np.clip(scaled + 2**15 - 1, -(2**15), 2**15 - 1)
    exps = interpolate(place, np.array(EXPONENTIALS, dtype=np.int64))
    total = exps.sum(axis=1)
    bits = np.floor(np.log2(total)).astype(np.int64)[:, None]  # total < 2^52: exact
    normal = ((total[:, None] << (30 - bits)) + (1 << 13)) >> 14
    place = np.clip(normal - 3 * 2**15, -(2**15), 2**15 - 1)
    reciprocal = interpolate(place, np.array(RECIPROCALS, dtype=np.int64))
    result: Int64 = np.clip((exps * reciprocal + (1 << (bits - 1))) >> bits, 0, 2**15 - 1)
    return result


def wide_scaling(scale: float) -> tuple[int, int]:
    """(multiplier, shift) that bring differences of int16 logits to 65535 steps of ten."""
    return quantize_multiplier(min(scale * _RANGE / _REACH, float(_RANGE)))


def scaling(scale: float) -> tuple[int, int, int]:
    """Multiplier and left shift of the differences, and the lowest difference that counts."""
    real = min(scale * 2 ** (31 - _DIFF_INTEGER_BITS), 2**31 - 1.0)
    multiplier, shift = quantize_multiplier(real)
    radius = (2**_DIFF_INTEGER_BITS - 1) * 2 ** (31 - _DIFF_INTEGER_BITS) / 2**shift
    return multiplier, shift, -math.floor(radius)


def _high_mul(one: Int64, other: Int64 | np.int64) -> Int64:
    """SaturatingRoundingDoublingHighMul for products that do not saturate."""
    result: Int64 = (one * other + (1 << 30)) >> 31
    return result


def _saturate(x: Int64) -> Int64:
    return np.clip(x, -(2**31), _ONE)


def _exp_on_negative(x: Int64) -> Int64:
    """exp(x) in Q0 for x <= 0 in Q5."""
    quarter = np.int64(1 << 24)
    remainder_of_quarter = (x & (quarter - 1)) - quarter
    result = _exp_on_last_quarter(_saturate(remainder_of_quarter << _DIFF_INTEGER_BITS))
    remainder = remainder_of_quarter - x
    for exponent, constant in enumerate(_EXP_OF_POWERS, start=-2):
        bit = np.int64(1) << np.int64(31 - _DIFF_INTEGER_BITS + exponent)
        result = np.where(remainder & bit, _high_mul(result, np.int64(constant)), result)
    return np.where(x == 0, _ONE, result)


def _exp_on_last_quarter(a: Int64) -> Int64:
    """exp(a) in Q0 for a in [-1/4, 0) in Q0: a Taylor series around -1/8."""
    constant, third = np.int64(1895147668), np.int64(715827883)
    x = a + (1 << 28)
    x2 = _high_mul(x, x)
    x3, x4 = _high_mul(x2, x), _high_mul(x2, x2)
    quarter_x4 = rounding_divide_by_power_of_two(x4, 2)
    tail = rounding_divide_by_power_of_two(_high_mul(quarter_x4 + x3, third) + x2, 1)
    return _saturate(constant + _high_mul(x + tail, constant))


def _reciprocal(total: Int64) -> tuple[Int64, Int64]:
    """1 / total for total in Q12, as a Q0 number and the bits by which total exceeds one."""
    headroom = 32 - np.ceil(np.log2(total.astype(np.float64) + 1)).astype(np.int64)
    shifted = (total << headroom) - (1 << 31)
    return _one_over_one_plus(shifted), _SUM_INTEGER_BITS - headroom


def _one_over_one_plus(a: Int64) -> Int64:
    """1 / (1 + a) in Q0 for a in [0, 1) in Q0: three Newton steps in Q2."""
    total = a + _ONE
    half_denominator = (total + np.where(total >= 0, 1, -1)) // 2
    x: Int64 = np.int64(1515870810) + _high_mul(half_denominator, np.int64(-1010580540))
    for _ in range(3):
        rest = (1 << 29) - _high_mul(half_denominator, x)
        x = x + _saturate(_high_mul(x, rest) << 2)
    return _saturate(x << 1)
