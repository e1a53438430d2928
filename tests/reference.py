"""An independent integer interpreter, written from the specification in plain Python integers.

Nothing of dse.graph's arithmetic is imported. Sources: the 8-bit and 16x8 quantization
specifications, and the reference kernels of TensorFlow Lite with gemmlowp's fixed point.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dse.graph.ir import (
    Add,
    Concat,
    Conv2D,
    FullyConnected,
    Graph,
    Lookup,
    Mul,
    Pad,
    Pool2D,
    Reshape,
    Softmax,
    Tensor,
)

Array = np.ndarray[Any, Any]
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
RANGES = {"int8": (-128, 127), "int16": (-32768, 32767)}


def interpret(graph: Graph, image: Array, rounding: str) -> Array:
    """Output of one float image in the graph's own layout (H, W, C) or (F,)."""
    tensor = graph.tensors[graph.input]
    assert tensor.scale is not None
    scaled = np.rint(image.astype(np.float64) / tensor.scale) + tensor.zero_point
    values = {graph.input: np.clip(scaled, *RANGES[tensor.dtype]).astype(object)}
    for op in graph.ops:
        inputs = [values[name] for name in op.inputs]
        values[op.output] = _KERNELS[type(op)](graph, op, inputs, rounding)
    return np.array(values[graph.output].tolist(), dtype=np.int64)


def multiplier_of(real: float) -> tuple[int, int]:
    if real == 0:
        return 0, 0
    mantissa, exponent = math.frexp(real)
    fixed = math.floor(mantissa * (1 << 31) + 0.5)
    if fixed == 1 << 31:
        fixed, exponent = fixed // 2, exponent + 1
    return (0, 0) if exponent < -31 else (fixed, exponent)


def high_mul(a: int, b: int) -> int:
    """SaturatingRoundingDoublingHighMul with C's division, which truncates towards zero."""
    if a == b == INT32_MIN:
        return INT32_MAX
    product = a * b
    nudged = product + ((1 << 30) if product >= 0 else 1 - (1 << 30))
    quotient = abs(nudged) // (1 << 31)
    return quotient if nudged >= 0 else -quotient


def divide_by_pot(x: int, exponent: int) -> int:
    mask = (1 << exponent) - 1
    remainder = x & mask
    threshold = (mask >> 1) + (1 if x < 0 else 0)
    return (x >> exponent) + (1 if remainder > threshold else 0)


def scale_by(x: int, real: float, rounding: str) -> int:
    multiplier, shift = multiplier_of(real)
    if rounding == "single":
        total = 31 - shift
        return (x * multiplier + (1 << (total - 1))) >> total
    left, right = max(shift, 0), max(-shift, 0)
    return divide_by_pot(high_mul(x << left, multiplier), right)


def scale_sum(x: int, real: float, tensor: Tensor, rounding: str) -> int:
    """The sums of a layer; those of int16 activations, wider than 32 bits, are rounded once."""
    if tensor.dtype == "int8":
        return scale_by(x, real, rounding)
    multiplier, shift = multiplier_of(real)
    multiplier, shift = (multiplier, shift) if shift <= 7 else (INT32_MAX, 7)
    bits = 31
    if rounding == "double":  # MultiplyByQuantizedMultiplier(int64_t, ...)
        multiplier = (multiplier + (1 << 15)) >> 16 if multiplier < 0x7FFF0000 else 0x7FFF
        bits = 15
    return (x * multiplier + (1 << (bits - 1 - shift))) >> (bits - shift)


def round_away(value: float) -> int:
    """C's round()."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def limits(tensor: Tensor, activation: str) -> tuple[int, int]:
    assert tensor.scale is not None
    low, high = RANGES[tensor.dtype]
    if activation in ("relu", "relu6"):
        low = max(low, tensor.zero_point)
    if activation == "relu6":
        high = min(
            high, tensor.zero_point + round_away(float(np.float32(6) / np.float32(tensor.scale)))
        )
    return low, high


def clamp(value: int, bounds: tuple[int, int]) -> int:
    return min(max(value, bounds[0]), bounds[1])


def _s(tensor: Tensor) -> float:
    assert tensor.scale is not None
    return tensor.scale


def conv(graph: Graph, op: Conv2D, xs: list[Array], rounding: str) -> Array:
    source, target = graph.tensors[op.inputs[0]], graph.tensors[op.output]
    x, weight = xs[0], op.weight
    assert weight.values is not None
    assert weight.scales is not None
    assert op.bias is not None
    top, _, left, _ = op.padding
    rows, columns, outputs = target.shape
    per_group = outputs // op.groups
    depth = weight.shape[3]
    result = np.empty(target.shape, dtype=object)
    bounds = limits(target, op.activation)
    for row, column, out in itertools.product(range(rows), range(columns), range(outputs)):
        total = int(op.bias[out])
        first = (out // per_group) * depth
        for kr, kc, c in itertools.product(*map(range, weight.shape[1:])):
            r = row * op.stride[0] - top + kr * op.dilation[0]
            q = column * op.stride[1] - left + kc * op.dilation[1]
            if 0 <= r < x.shape[0] and 0 <= q < x.shape[1]:
                value = int(x[r, q, first + c]) - source.zero_point
                total += value * int(weight.values[out, kr, kc, c])
        real = _s(source) * float(weight.scales[out]) / _s(target)
        value = scale_sum(total, real, target, rounding) + target.zero_point
        result[row, column, out] = clamp(value, bounds)
    return result


def fully_connected(graph: Graph, op: FullyConnected, xs: list[Array], rounding: str) -> Array:
    source, target = graph.tensors[op.inputs[0]], graph.tensors[op.output]
    weight = op.weight
    assert weight.values is not None
    assert weight.scales is not None
    assert op.bias is not None
    result = np.empty(target.shape, dtype=object)
    for out in range(target.shape[0]):
        total = int(op.bias[out])
        for index, value in enumerate(xs[0]):
            total += (int(value) - source.zero_point) * int(weight.values[out, index])
        real = _s(source) * float(weight.scales[out]) / _s(target)
        value = scale_sum(total, real, target, rounding) + target.zero_point
        result[out] = clamp(value, limits(target, op.activation))
    return result


def add(graph: Graph, op: Add, xs: list[Array], rounding: str) -> Array:
    one, other, target = (graph.tensors[name] for name in (*op.inputs, op.output))
    twice, left = 2 * max(_s(one), _s(other)), 15 if target.dtype == "int16" else 20
    result = np.empty(target.shape, dtype=object)
    for index in np.ndindex(target.shape):
        a = scale_by((int(xs[0][index]) - one.zero_point) << left, _s(one) / twice, rounding)
        b = scale_by((int(xs[1][index]) - other.zero_point) << left, _s(other) / twice, rounding)
        out = scale_by(a + b, twice / ((1 << left) * _s(target)), rounding) + target.zero_point
        result[index] = clamp(out, limits(target, op.activation))
    return result


def mul(graph: Graph, op: Mul, xs: list[Array], rounding: str) -> Array:
    one, other, target = (graph.tensors[name] for name in (*op.inputs, op.output))
    factor = np.broadcast_to(xs[1], target.shape)
    result = np.empty(target.shape, dtype=object)
    for index in np.ndindex(target.shape):
        product = (int(xs[0][index]) - one.zero_point) * (int(factor[index]) - other.zero_point)
        out = scale_by(product, _s(one) * _s(other) / _s(target), rounding) + target.zero_point
        result[index] = clamp(out, limits(target, op.activation))
    return result


def pool(graph: Graph, op: Pool2D, xs: list[Array], rounding: str) -> Array:
    target = graph.tensors[op.output]
    x, (top, _, left, _) = xs[0], op.padding
    result = np.empty(target.shape, dtype=object)
    for row, column, channel in np.ndindex(target.shape):
        seen = []
        for kr, kc in itertools.product(range(op.kernel[0]), range(op.kernel[1])):
            r, q = row * op.stride[0] - top + kr, column * op.stride[1] - left + kc
            if 0 <= r < x.shape[0] and 0 <= q < x.shape[1]:
                seen.append(int(x[r, q, channel]))
        if op.mode == "max":
            value = max(seen)
        else:
            total, count = sum(seen), len(seen)
            value = (total + count // 2) // count if total > 0 else -((count // 2 - total) // count)
        result[row, column, channel] = clamp(value, limits(target, op.activation))
    return result


def pad(graph: Graph, op: Pad, xs: list[Array], rounding: str) -> Array:
    top, bottom, left, right = op.padding
    zero = graph.tensors[op.output].zero_point
    return np.pad(xs[0], ((top, bottom), (left, right), (0, 0)), constant_values=zero)


FUNCTIONS: dict[str, Callable[[float], float]] = {
    "sigmoid": lambda v: 1 / (1 + math.exp(-v)),
    "tanh": math.tanh,
    "hardsigmoid": lambda v: min(1, max(0, v + 3) / 6),
    "hardswish": lambda v: v * min(1, max(0, v + 3) / 6),
    "relu": lambda v: max(v, 0),
    "relu6": lambda v: min(max(v, 0), 6),
}


def lookup(graph: Graph, op: Lookup, xs: list[Array], rounding: str) -> Array:
    source, target = graph.tensors[op.inputs[0]], graph.tensors[op.output]
    result = np.empty(target.shape, dtype=object)
    if target.dtype == "int16":
        entries: list[int] = []
        if op.function.startswith("hard"):
            entries = table(FUNCTIONS[op.function], _s(source), 0, _s(target), 0)
        for index in np.ndindex(target.shape):
            result[index] = lookup16(op, int(xs[0][index]), source, target, entries, rounding)
        return result
    for index in np.ndindex(target.shape):
        real = FUNCTIONS[op.function](_s(source) * (int(xs[0][index]) - source.zero_point))
        result[index] = clamp(round_away(real / _s(target)) + target.zero_point, (-128, 127))
    return result


# --- int16: tables with interpolation (common.h, logistic.h and tanh.h of TensorFlow Lite) -------


def table(
    function: Callable[[float], float], scale: float, zero: int, out_scale: float, out_zero: int
) -> list[int]:
    """LUTPopulate: 513 samples, each less half the error in the middle of its interval."""
    low, high = scale * (-32768 - zero), scale * (32767 - zero)
    out_low, out_high = out_scale * (-32768 - out_zero), out_scale * (32767 - out_zero)
    step, inverse = (high - low) / 512, 65536 / (out_high - out_low)
    found = []
    for i in range(512):
        value = round_away(function(low + i * step) * inverse)
        middle = round_away(function(low + i * step + step / 2) * inverse)
        straight = round_away((function(low + (i + 1) * step) * inverse + value) / 2)
        found.append(clamp(value - round_away((straight - middle) / 2), (-32768, 32767)))
    return [*found, clamp(round_away(function(high) * inverse), (-32768, 32767))]


def interpolate(value: int, entries: list[int]) -> int:
    index, offset = 256 + (value >> 7), value & 0x7F
    return entries[index] + (((entries[index + 1] - entries[index]) * offset + 64) >> 7)


def curve_entry(index: int) -> int:
    """sigmoid(i / 24) in Q16, with half the error of the straight line to the next entry."""
    if index == 255:
        return 65535
    at, middle, after = (65536 / (1 + math.exp(-(index + d) / 24)) for d in (0, 0.5, 1))
    return round_away(at + (middle - (at + after) / 2) / 2)


def curve(value: int, scale: float, bits: int) -> tuple[int, int]:
    """The input in steps of 1 / 12288, and sigmoid of its magnitude with `bits` more bits."""
    multiplier, shift = scale * 4096 * 3, 0
    while multiplier <= 32767 / 2 and shift <= 30:
        multiplier, shift = multiplier * 2, shift + 1
    half = 1 << (shift - 1) if shift else 0
    x = (value * min(int(multiplier), 32767) + half) >> shift
    index, rest = abs(x) >> bits, abs(x) & ((1 << bits) - 1)
    if index >= 255:
        return x, {9: 0x7FFF << 10, 8: 0xFFFF << 8}[bits]
    first, second = curve_entry(index), curve_entry(index + 1)
    return x, (first << bits) + rest * (second - first)


def lookup16(
    op: Lookup, value: int, source: Tensor, target: Tensor, entries: list[int], rounding: str
) -> int:
    scale, activation = np.float32(_s(source)), str(op.function)
    if op.function == "sigmoid":
        x, raw = curve(value, _s(source), 9)
        value = (raw + (1 << 9) if x >= 0 else (1 << 25) - raw + (1 << 9) - 1) >> 10
    elif op.function == "tanh":
        x, raw = curve(value, _s(source), 8)
        value = (raw - (1 << 23) + 128 if x >= 0 else (1 << 23) - raw + 127) >> 8
    elif op.function not in ("relu", "relu6"):
        return interpolate(value, entries)
    if op.function in ("sigmoid", "tanh"):
        scale, activation = np.float32(2.0**-15), "none"
    real = float(scale / np.float32(_s(target)))
    return clamp(scale_by(value, real, rounding), limits(target, activation))


# --- softmax: gemmlowp's FixedPoint classes as plain functions on raw int32 ---------------------


def saturate(x: int) -> int:
    return min(max(x, INT32_MIN), INT32_MAX)


def pot(x: int, exponent: int) -> int:
    """SaturatingRoundingMultiplyByPOT."""
    return saturate(x << exponent) if exponent >= 0 else divide_by_pot(x, -exponent)


def exp_on_negative_values(a: int) -> int:
    """Q5.26 in, Q0.31 out."""
    one_quarter = 1 << 24
    mod = (a & (one_quarter - 1)) - one_quarter
    x = pot(mod, 5) + (1 << 28)
    x2 = high_mul(x, x)
    x3, x4 = high_mul(x2, x), high_mul(x2, x2)
    tail = pot(high_mul(pot(x4, -2) + x3, 715827883) + x2, -1)
    result = 1895147668 + high_mul(1895147668, x + tail)
    remainder = mod - a
    table = {-2: 1672461947, -1: 1302514674, 0: 790015084, 1: 290630308, 2: 39332535}
    for exponent, factor in (table | {3: 720401, 4: 242}).items():
        if remainder & (1 << (26 + exponent)):
            result = high_mul(result, factor)
    return INT32_MAX if a == 0 else result


def reciprocal(total: int) -> tuple[int, int]:
    """GetReciprocal of a Q12.19 sum: Q0.31 and the number of bits over unit."""
    headroom = 32 - total.bit_length()
    a = (total << headroom) - (1 << 31)
    half_sum = a + INT32_MAX
    half_denominator = (half_sum + 1) // 2
    x = 1515870810 + high_mul(half_denominator, -1010580540)
    for _ in range(3):
        x = x + pot(high_mul(x, (1 << 29) - high_mul(half_denominator, x)), 2)
    return pot(x, 1), 12 - headroom


def softmax16(values: list[int], scale: float) -> Array:
    """SoftmaxInt16: both functions by tables of 513 entries."""
    exps = table(math.exp, 10 / 65535, 32767, 2 / 65535, 0)
    reciprocals = table(lambda v: 1 / (1 + v), 1 / 65535, -32768, 2 / 65535, 0)
    found = []
    for value in values:
        place = scale_by(value - max(values), min(scale * 65535 / 10, 65535.0), "double") + 32767
        found.append(interpolate(clamp(place, (-32768, 32767)), exps))
    bits = sum(found).bit_length() - 1
    place = ((sum(found) << (30 - bits)) + (1 << 13) >> 14) - (1 << 15) - (1 << 16)
    scale_out = interpolate(clamp(place, (-32768, 32767)), reciprocals)
    out = [clamp((e * scale_out + (1 << (bits - 1))) >> bits, (0, 32767)) for e in found]
    return np.array(out, dtype=object)


def softmax(graph: Graph, op: Softmax, xs: list[Array], rounding: str) -> Array:
    scale = _s(graph.tensors[op.inputs[0]])
    if graph.tensors[op.output].dtype == "int16":
        return softmax16([int(v) for v in xs[0]], scale)
    multiplier, left = multiplier_of(min(scale * (1 << 26), (1 << 31) - 1.0))
    lowest = -math.floor(31 * (1 << 26) / (1 << left))
    top = max(int(v) for v in xs[0])
    diffs = [int(v) - top for v in xs[0]]
    exps = [
        exp_on_negative_values(high_mul(d << left, multiplier)) if d >= lowest else None
        for d in diffs
    ]
    total = sum(divide_by_pot(e, 12) for e in exps if e is not None)
    shifted, bits = reciprocal(total)
    out = [
        -128
        if e is None
        else clamp(divide_by_pot(high_mul(shifted, e), bits + 23) - 128, (-128, 127))
        for e in exps
    ]
    return np.array(out, dtype=object)


_KERNELS: dict[type, Any] = {
    Conv2D: conv,
    FullyConnected: fully_connected,
    Add: add,
    Mul: mul,
    Pool2D: pool,
    Pad: pad,
    Lookup: lookup,
    Softmax: softmax,
    Concat: lambda g, op, xs, r: np.concatenate(xs, axis=-1),
    Reshape: lambda g, op, xs, r: xs[0].reshape(g.tensors[op.output].shape),
}
