"""Each operator as C: the kernels it needs, its constants, and the statements that call them.

An operator's function reads and writes the arena at offsets of the memory plan. Int8 kernels take
a record of geometry and zero points (`window`, `elementwise`); float32 kernels have `_f32` names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dse.errors import GraphError
from dse.firmware import constants
from dse.firmware.choice import choose, stored
from dse.firmware.constants import Table, float_table, float_text, table
from dse.firmware.library import Kernel, kernel
from dse.graph import softmax
from dse.graph.ir import (
    Activation,
    Add,
    Concat,
    Conv2D,
    FullyConnected,
    Graph,
    Lookup,
    Mul,
    Op,
    Pad,
    Pool2D,
    Reshape,
    Softmax,
    Tensor,
    WeightedOp,
)
from dse.graph.numerics import (
    add_multipliers,
    lookup_table,
    output_limits,
    quantize_multiplier,
)
from dse.targets.kernels import KernelLibrary

FLOAT_MAX = float(np.finfo(np.float32).max)
LARGEST_INT16 = 2**15 - 1
SINGLE_BOUND, SINGLE_RIGHT, NEAR_BOUND = 2**29, 30, 2**30
# Halving an even number, as (multiplier, shift): add's exact half without a shift of zero.
HALF, HALF_SHIFTED = (2**30, 0), (2**31 - 1, -1)


@dataclass
class Emission:
    """A graph on its way to C: where tensors lie, and what its operators have asked for so far."""

    graph: Graph
    backend: KernelLibrary
    offsets: Mapping[str, int]
    kernels: list[Kernel] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    largest: int = 0
    bound: int = 0
    rights: set[int] = field(default_factory=set)

    @property
    def element(self) -> str:
        """C type of an activation."""
        return "int8_t" if self.graph.integer else "float"

    @property
    def dimension(self) -> str:
        """The narrowest C type that holds every size."""
        return "int16_t" if self.largest <= LARGEST_INT16 else "int32_t"

    def requantization(self, rounding: str) -> str:
        """The file with the quickest `requantize` that is exact for what was asked for."""
        least, most = min(self.rights, default=1), max(self.rights, default=1)
        if rounding == "single":
            quick = least >= 0 and most <= SINGLE_RIGHT and self.bound < SINGLE_BOUND
            return "requantize_single" if quick else "requantize_single_any"
        if least >= 1 and self.bound < NEAR_BOUND:
            dsp = self.backend.name == "native-dsp"
            return "requantize_double_dsp" if dsp else "requantize_double_near"
        return "requantize_double" if least >= 0 else "requantize_double_any"

    def use(self, file: str, **parameters: str) -> None:
        """Ask for a kernel."""
        self.kernels.append(kernel(file, **parameters))

    def at(self, name: str, extra: int = 0) -> str:
        """C expression of a tensor's address, `extra` elements further."""
        offset = self.offsets[name] + extra * (1 if self.graph.integer else 4)
        place = f"arena + {offset}"
        return place if self.graph.integer else f"(float *)(void *)({place})"

    def keep(self, made: Table) -> str:
        """Store a table; its name."""
        self.tables.append(made)
        return made.name

    def tensors(self, op: Op) -> tuple[Tensor, ...]:
        """Inputs, then the output."""
        return tuple(self.graph.tensors[name] for name in (*op.inputs, op.output))

    def record(self, ctype: str, values: tuple[int, ...]) -> str:
        """Definition of a record of geometry in flash."""
        if ctype == "window":
            self.largest = max(self.largest, *values)
        return f"static const {ctype} shape = {{{', '.join(str(v) for v in values)}}};"


def float_limits(activation: Activation) -> str:
    """`low, high` of a float activation."""
    low = -FLOAT_MAX if activation == "none" else 0.0
    high = 6.0 if activation == "relu6" else FLOAT_MAX
    return f"{float_text(low)}, {float_text(high)}"


def _window(source: Tensor, target: Tensor, op: Any) -> tuple[int, ...]:
    """The fields of `window` in their order; a fully connected layer is one 1x1 window."""
    spatial = isinstance(op, Conv2D | Pool2D)
    size = source.shape if spatial else (1, 1, source.elements)
    out = target.shape if spatial else (1, 1, target.elements)
    kernel_size = op.kernel if spatial else (1, 1)
    stride = op.stride if spatial else (1, 1)
    corner = (op.padding[0], op.padding[2]) if spatial else (0, 0)
    dilation = getattr(op, "dilation", (1, 1))
    limits = output_limits(target, op.activation) if target.dtype != "float32" else (0, 0)
    zeros = (source.zero_point, target.zero_point)
    return (*size, *out, *kernel_size, *stride, *corner, *dilation, *zeros, *limits)


def _weighted(e: Emission, op: WeightedOp, name: str) -> list[str]:
    source, target = e.tensors(op)
    if not e.graph.integer:
        return _weighted_float(e, op, name)
    bound = constants.accumulator_bound(op, source)
    choice = choose(op, e.backend.encoding(op), bound, e.backend.name == "native-dsp")
    e.bound = max(e.bound, bound)
    bias = constants.folded_biases(op, source) if choice.folded else constants.biases(op)
    multiplier, right = constants.multipliers(op, source, target)
    e.rights |= {int(value) for value in right}
    tables = [
        e.keep(table(f"{name}_bias", "int32_t", bias)),
        e.keep(table(f"{name}_multiplier", "int32_t", multiplier)),
        e.keep(table(f"{name}_right", "int8_t", right)),
    ]
    record = e.record("window", _window(source, target, op))
    ends = f"{e.at(op.inputs[0])}, {e.at(op.output)}"
    if choice.file == "sparse":
        call = _sparse(e, op, name, choice.bits)
        return [
            record,
            f"{call[0]}({ends}, &shape, {_multiple(op)}, {call[1]}, {', '.join(tables)});",
        ]
    packed = stored(op, choice)
    weights = e.keep(table(f"{name}_weights", "uint8_t", packed))
    e.use(choice.file, layout=f"w{choice.bits}", bits=str(choice.bits), value=choice.value)
    if choice.scratch:
        ends += f", (int16_t *)(void *)({e.at(f'{op.name} scratch')})"
    return [record, f"{choice.function}({ends}, &shape, {weights}, {', '.join(tables)});"]


def _multiple(op: WeightedOp) -> int:
    """Output channels an input channel of a depthwise convolution, 0 of a plain one."""
    depthwise = isinstance(op, Conv2D) and op.depthwise
    return op.weight.shape[0] // op.groups if isinstance(op, Conv2D) and depthwise else 0


def _sparse(e: Emission, op: WeightedOp, name: str, bits: int) -> tuple[str, str]:
    """(Function, arguments) of a kernel for sparse weights."""
    stored = constants.sparse_rows(op)
    wide = op.weight.kept >= 1 << 16
    offset, suffix = ("uint32_t", "_long") if wide else ("uint16_t", "")
    first = e.keep(table(f"{name}_first", offset, stored.first))
    bitmap = e.keep(table(f"{name}_bitmap", "uint8_t", stored.bitmap))
    if bits == 32:
        values = e.keep(float_table(f"{name}_weights", stored.values))
        e.use("sparse_f32", offset=offset, long=suffix)
        return f"sparse_f32{suffix}", f"{bitmap}, {first}, {values}"
    packed = constants.pack(stored.values.astype(np.int64), bits)
    values = e.keep(table(f"{name}_weights", "uint8_t", packed))
    e.use("sparse", layout=f"w{bits}", offset=offset, long=suffix)
    return f"sparse_w{bits}{suffix}", f"{bitmap}, {first}, {values}"


def _weighted_float(e: Emission, op: WeightedOp, name: str) -> list[str]:
    source, target = e.tensors(op)
    record = e.record("window", _window(source, target, op))
    bias = e.keep(float_table(f"{name}_bias", constants.biases(op)))
    if e.backend.encoding(op).layout == "sparse":
        function, weights = _sparse(e, op, name, 32)
    else:
        e.use("conv_f32")
        function = "conv_f32"
        weights = e.keep(float_table(f"{name}_weights", constants.rows_of(op)))
    ends = f"{e.at(op.inputs[0])}, {e.at(op.output)}, &shape, {_multiple(op)}"
    return [record, f"{function}({ends}, {weights}, {bias}, {float_limits(op.activation)});"]


def _pool(e: Emission, op: Pool2D, name: str) -> list[str]:
    source, target = e.tensors(op)
    suffix = "" if e.graph.integer else "_f32"
    limits = "" if e.graph.integer else f", {float_limits(op.activation)}"
    e.use(f"{op.mode}_pool{suffix}")
    ends = f"{e.at(op.inputs[0])}, {e.at(op.output)}"
    return [
        e.record("window", _window(source, target, op)),
        f"{op.mode}_pool{suffix}({ends}, &shape{limits});",
    ]


def _add(e: Emission, op: Add, name: str) -> list[str]:
    one, other, target = e.tensors(op)
    names = list(op.inputs)
    if not e.graph.integer:
        e.use("add_f32")
        ends = ", ".join(map(e.at, (*names, op.output)))
        return [f"add_f32({ends}, {target.elements}, {float_limits(op.activation)});"]
    if _scale(other) > _scale(one):
        one, other, names = other, one, names[::-1]
    _, second, result = add_multipliers(*(_scale(t) for t in (one, other, target)))
    e.use("add")
    second = HALF_SHIFTED if second == HALF else second
    zeros = (one.zero_point, other.zero_point, target.zero_point)
    limits = output_limits(target, op.activation)
    record = _elementwise(e, target, zeros, limits, result, second)
    return [record, f"add({', '.join(map(e.at, (*names, op.output)))}, &shape);"]


def _elementwise(
    e: Emission,
    target: Tensor,
    zeros: tuple[int, int, int],
    limits: tuple[int, int],
    result: tuple[int, int],
    second: tuple[int, int],
) -> str:
    e.rights |= {-result[1], -second[1]}
    factors = (result[0], -result[1], second[0], -second[1])
    return e.record("elementwise", (target.elements, *zeros, *limits, *factors))


def _scale(tensor: Tensor) -> float:
    if tensor.scale is None:
        raise GraphError(f"tensor '{tensor.name}' has no scale; quantize the graph first")
    return tensor.scale


def _mul(e: Emission, op: Mul, name: str) -> list[str]:
    one, other, target = e.tensors(op)
    ends = ", ".join(map(e.at, (*op.inputs, op.output)))
    if not e.graph.integer:
        e.use("mul_f32")
        sizes = f"{target.elements}, {other.elements}"
        return [f"mul_f32({ends}, {sizes}, {float_limits(op.activation)});"]
    e.use("mul")
    factor = quantize_multiplier(_scale(one) * _scale(other) / _scale(target))
    zeros = (one.zero_point, other.zero_point, target.zero_point)
    record = _elementwise(e, target, zeros, output_limits(target, op.activation), factor, factor)
    return [record, f"mul({ends}, {other.elements}, &shape);"]


def _copy(e: Emission, *arguments: object) -> str:
    e.use("copy", value=e.element)
    return f"copy({', '.join(str(argument) for argument in arguments)});"


def _concat(e: Emission, op: Concat, name: str) -> list[str]:
    *sources, target = e.tensors(op)
    lines, done = [], 0
    for source in sources:
        width, rows = source.channels, target.elements // target.channels
        place = e.at(op.output, done)
        lines.append(_copy(e, e.at(source.name), place, rows, width, width, target.channels))
        done += width
    return lines


def _pad(e: Emission, op: Pad, name: str) -> list[str]:
    source, target = e.tensors(op)
    e.use("fill", value=e.element)
    zero = str(target.zero_point) if e.graph.integer else "0.0F"
    rows, run, pitch = source.shape[0], *(t.shape[1] * t.channels for t in (source, target))
    place = e.at(op.output, op.padding[0] * pitch + op.padding[2] * target.channels)
    return [
        f"fill({e.at(op.output)}, {zero}, {target.elements});",
        _copy(e, e.at(source.name), place, rows, run, run, pitch),
    ]


def _reshape(e: Emission, op: Reshape, name: str) -> list[str]:
    source, _ = e.tensors(op)
    if e.offsets[source.name] == e.offsets[op.output]:
        return []
    size = source.elements
    return [_copy(e, e.at(source.name), e.at(op.output), 1, size, size, size)]


def _lookup(e: Emission, op: Lookup, name: str) -> list[str]:
    source, target = e.tensors(op)
    ends = f"{e.at(source.name)}, {e.at(target.name)}, {target.elements}"
    if not e.graph.integer:
        e.use("lookup_f32", function=op.function)
        return [f"lookup_{op.function}_f32({ends});"]
    e.use("lookup")
    values = e.keep(table(f"{name}_table", "int8_t", lookup_table(op.function, source, target)))
    return [f"lookup({ends}, {values});"]


def _softmax(e: Emission, op: Softmax, name: str) -> list[str]:
    source, target = e.tensors(op)
    ends = f"{e.at(source.name)}, {e.at(target.name)}"
    sizes = f"{target.elements // target.channels}, {target.channels}"
    if not e.graph.integer:
        e.use("softmax_f32")
        return [f"softmax_f32({ends}, {sizes});"]
    multiplier, left, lowest = softmax.scaling(_scale(source))
    e.use("softmax")
    return [f"softmax({ends}, {sizes}, {multiplier}, {left}, {lowest});"]


_Emitter = Callable[[Emission, Any, str], list[str]]
_EMITTERS: Mapping[type[Op], _Emitter] = {
    Conv2D: _weighted,
    FullyConnected: _weighted,
    Pool2D: _pool,
    Add: _add,
    Mul: _mul,
    Concat: _concat,
    Pad: _pad,
    Reshape: _reshape,
    Lookup: _lookup,
    Softmax: _softmax,
}


def statements(emission: Emission, op: Op, name: str) -> list[str]:
    """The C statements of an operator, its tables named after `name`; empty when it does nothing.

    Raises GraphError when weights or scales are missing.
    """
    return _EMITTERS[type(op)](emission, op, name)
