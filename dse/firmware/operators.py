"""Each operator as C: the kernels it needs, its constants, and the statements that call them.

An operator's function reads and writes the arena at offsets of the memory plan. Integer kernels
take a record of geometry and zero points (`window`, `elementwise`); those for int16 activations end
in `_a16`, float32 ones in `_f32`. Layers whose int16 sums need 64 bits take a `_wide` kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dse.errors import GraphError
from dse.firmware import constants
from dse.firmware.choice import Choice, choose, stored
from dse.firmware.constants import Table, dense_rows, float_limits, float_table, table
from dse.firmware.library import Kernel, kernel
from dse.graph import interpolation, softmax
from dse.graph.blocks import block_shape
from dse.graph.ir import (
    BYTES_PER_ELEMENT,
    Add,
    Concat,
    Conv2D,
    DType,
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
    ADD_LEFT_SHIFT,
    FUNCTIONS,
    Rounding,
    add_multipliers,
    lookup_table,
    output_limits,
    quantize_multiplier,
    rescale_multiplier,
)
from dse.targets.kernels import KernelLibrary
from dse.targets.native_kernels import BLOCKS, BOOK

LARGEST_INT16 = 2**15 - 1
SINGLE_BOUND, SINGLE_RIGHT, NEAR_BOUND = 2**29, 30, 2**30
# Halving an even number, as (multiplier, shift): add's exact half without a shift of zero.
HALF, HALF_SHIFTED = (2**30, 0), (2**31 - 1, -1)
LEAST_WIDE_RIGHT = 2
# Backends whose cores have the DSP extension.
WITH_DSP = ("native-dsp", "native-mve")


@dataclass
class Emission:
    """A graph on its way to C: where tensors lie, and what its operators have asked for so far."""

    graph: Graph
    backend: KernelLibrary
    offsets: Mapping[str, int]
    rounding: Rounding
    kernels: list[Kernel] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    kept: set[Table] = field(default_factory=set)
    largest: int = 0
    bound: int = 0
    rights: set[int] = field(default_factory=set)
    wide_bound: int = 0
    wide_rights: set[int] = field(default_factory=set)

    @property
    def dtype(self) -> DType:
        """Type of all activations."""
        return self.graph.tensors[self.graph.input].dtype

    @property
    def element(self) -> str:
        """C type of an activation."""
        return {"float32": "float", "int8": "int8_t", "int16": "int16_t"}[self.dtype]

    @property
    def suffix(self) -> str:
        """How the names of kernels for this type end."""
        return {"float32": "_f32", "int8": "", "int16": "_a16"}[self.dtype]

    @property
    def dimension(self) -> str:
        """The narrowest C type that holds every size."""
        return "int16_t" if self.largest <= LARGEST_INT16 else "int32_t"

    @property
    def aliases(self) -> Mapping[str, str]:
        """The files with the quickest requantizations that are exact for what was asked for."""
        least = min(self.wide_rights, default=LEAST_WIDE_RIGHT)
        quick = least >= LEAST_WIDE_RIGHT and self.wide_bound < constants.ACCUMULATOR_LIMIT
        wide = "requantize_wide" if quick else "requantize_wide_any"
        requantize = self._requantization()
        chosen = wide if self.dtype == "int16" else requantize
        return {
            "requantize": requantize,
            "requantize_wide": wide,
            "requantize_four": self._vectors(chosen),
        }

    def _vectors(self, chosen: str) -> str:
        """The vector form of a requantization; shifts to the left have none."""
        for form in ("double", "single", "wide"):
            if form in chosen and not chosen.endswith("_any"):
                return f"mve_requantize_{form}"
        return "mve_requantize_each"

    def _requantization(self) -> str:
        if self.dtype == "int16":  # element-wise only: code must not be longer for some values
            return f"requantize_{self.rounding}_any"
        least, most = min(self.rights, default=1), max(self.rights, default=1)
        if self.rounding == "single":
            quick = least >= 0 and most <= SINGLE_RIGHT and self.bound < SINGLE_BOUND
            return "requantize_single" if quick else "requantize_single_any"
        if least >= 1 and self.bound < NEAR_BOUND:
            dsp = self.backend.name in WITH_DSP
            return "requantize_double_dsp" if dsp else "requantize_double_near"
        return "requantize_double" if least >= 0 else "requantize_double_any"

    def use(self, file: str, *, wide: bool = False, **parameters: str) -> None:
        """Ask for a kernel; `wide` sums in 64 bits."""
        a16 = self.dtype == "int16"
        left = ADD_LEFT_SHIFT["int16" if a16 else "int8"]
        given = {
            "element": self.element,
            "suffix": self.suffix,
            "lowest": "INT16_MIN" if a16 else "INT8_MIN",
            "requantize": "requantize_wide" if a16 else "requantize",
            "vector": "int16x8_t" if a16 else "int8x16_t",
            "width": "16" if a16 else "8",
            "lanes": "8" if a16 else "16",
            "unit": "h" if a16 else "b",
            "shift": str(left),
            "half_shift": str(left - 1),
            "sum": "int64_t" if wide else "int32_t",
            "wide": "_wide" if wide else "",
            "narrow": "(int32_t)" if wide else "",
        }
        self.kernels.append(kernel(file, **(given | parameters)))

    def at(self, name: str, extra: int = 0) -> str:
        """C expression of a tensor's address, `extra` elements further."""
        place = f"arena + {self.offsets[name] + extra * BYTES_PER_ELEMENT[self.dtype]}"
        return place if self.dtype == "int8" else f"({self.element} *)(void *)({place})"

    def keep(self, made: Table) -> str:
        """Store a table, one that several operators share only once; its name."""
        if made not in self.kept:
            self.kept.add(made)
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
    dsp, mve = e.backend.name in WITH_DSP, e.backend.name == "native-mve"
    choice = choose(op, e.backend.encoding(op), bound, dsp, mve, e.dtype == "int16")
    wide = bound >= constants.ACCUMULATOR_LIMIT
    bias = constants.folded_biases(op, source) if choice.folded else constants.biases(op)
    multiplier, right = constants.multipliers(op, source, target, e.rounding)
    if e.dtype == "int16":
        e.wide_bound, e.wide_rights = max(e.wide_bound, bound), e.wide_rights | set(map(int, right))
    else:
        e.bound, e.rights = max(e.bound, bound), e.rights | set(map(int, right))
    tables = [
        e.keep(table(f"{name}_bias", "int32_t", bias)),
        e.keep(table(f"{name}_multiplier", "int32_t", multiplier)),
        e.keep(table(f"{name}_right", "int8_t", right)),
    ]
    record = e.record("window", _window(source, target, op))
    ends = f"{e.at(op.inputs[0])}, {e.at(op.output)}"
    if choice.file == "sparse":
        function, weights = _sparse(e, op, name, choice.bits, wide)
        ends += f", &shape, {_multiple(op)}"
        return [record, f"{function}({ends}, {weights}, {', '.join(tables)});"]
    if choice.file == BLOCKS:
        weights = _blocks(e, op, name, choice, wide)
    elif choice.file.startswith(BOOK):
        weights = _book(e, op, name, choice, wide)
    else:
        weights = e.keep(table(f"{name}_weights", "uint8_t", stored(op, choice, e.dtype)))
        _use_layer(e, choice, wide)
    if choice.scratch_bytes(op, e.dtype == "int16"):
        ends += f", {_scratch(e, op, choice)}"
    function = f"{choice.function}{e.suffix}{'_wide' if wide else ''}"
    return [record, f"{function}({ends}, &shape, {weights}, {', '.join(tables)});"]


def _scratch(e: Emission, op: WeightedOp, choice: Choice) -> str:
    """C expression of the working memory's address."""
    place = f"{op.name} scratch"
    if choice.file == "mve_conv":
        return e.at(place)
    bytewise = f"arena + {e.offsets[place]}"
    if choice.file.startswith(("dsp_depthwise", BOOK)):
        return bytewise
    kind = "uint16_t" if choice.file == BLOCKS else "int16_t"
    return f"({kind} *)(void *)({bytewise})"


def _use_layer(e: Emission, choice: Choice, wide: bool) -> None:
    """The kernel of a dense layer; the DSP block of int16 activations reads them as they lie."""
    a16 = e.dtype == "int16"
    file = "dsp_vector_a16" if a16 and choice.file == "dsp_vector" else choice.file
    value = "int16_t" if a16 else choice.value
    e.use(file, wide=wide, layout=f"w{choice.bits}", bits=str(choice.bits), value=value)


def _book(e: Emission, op: WeightedOp, name: str, choice: Choice, wide: bool) -> str:
    """Arguments of a kernel for weights in a code book."""
    book = constants.code_book(op)
    codes = e.keep(table(f"{name}_codes", "uint8_t", dense_rows(book.indices, choice.bits)))
    entries = e.keep(table(f"{name}_entries", "int8_t", book.table.ravel()))
    dense = choice.file.removeprefix(BOOK)
    # Of (H, W, O), where four channels are a word; otherwise each channel's taps together.
    row, step = ("1", "channels") if dense == "depthwise" else ("taps", "1")
    file = f"{BOOK}conv" if dense == "conv" else f"{BOOK}depthwise"
    e.use(file, wide=wide, dense=dense, layout="w8", bits="8", row=row, step=step)
    return f"{codes}, {entries}, {choice.bits}, {op.weight.vector}"


def _blocks(e: Emission, op: WeightedOp, name: str, choice: Choice, wide: bool) -> str:
    """Arguments of the kernel for sparse blocks."""
    kept, values = constants.sparse_blocks(op, choice.bits)
    bitmap = e.keep(table(f"{name}_blocks", "uint8_t", kept))
    weights = e.keep(table(f"{name}_weights", "uint8_t", values))
    rows, step = choice.form.split("x")
    e.use(BLOCKS, wide=wide, form=choice.form, rows=rows, step=step)
    return f"{block_shape(op.weight.pattern)[1]}, {choice.bits}, {bitmap}, {weights}"


def _multiple(op: WeightedOp) -> int:
    """Output channels an input channel of a depthwise convolution, 0 of a plain one."""
    return op.weight.shape[0] // op.groups if isinstance(op, Conv2D) and op.depthwise else 0


def _sparse(
    e: Emission, op: WeightedOp, name: str, bits: int, wide: bool = False
) -> tuple[str, str]:
    """(Function, arguments) of a kernel for sparse weights."""
    stored = constants.sparse_rows(op)
    many = op.weight.kept >= 1 << 16
    offset, suffix = ("uint32_t", "_long") if many else ("uint16_t", "")
    first = e.keep(table(f"{name}_first", offset, stored.first))
    bitmap = e.keep(table(f"{name}_bitmap", "uint8_t", stored.bitmap))
    if bits == 32:
        values = e.keep(float_table(f"{name}_weights", stored.values))
        e.use("sparse_f32", offset=offset, long=suffix)
        return f"sparse_f32{suffix}", f"{bitmap}, {first}, {values}"
    packed = constants.pack(stored.values.astype(np.int64), bits)
    values = e.keep(table(f"{name}_weights", "uint8_t", packed))
    e.use("sparse", wide=wide, layout=f"w{bits}", offset=offset, long=suffix)
    ending = f"{e.suffix}{'_wide' if wide else ''}{suffix}"
    return f"sparse_w{bits}{ending}", f"{bitmap}, {first}, {values}"


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
    limits = "" if e.graph.integer else f", {float_limits(op.activation)}"
    e.use(f"{op.mode}_pool" if e.graph.integer else f"{op.mode}_pool_f32")
    ends = f"{e.at(op.inputs[0])}, {e.at(op.output)}"
    return [
        e.record("window", _window(source, target, op)),
        f"{op.mode}_pool{e.suffix}({ends}, &shape{limits});",
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
    left = ADD_LEFT_SHIFT[e.dtype]
    _, second, result = add_multipliers(_scale(one), _scale(other), _scale(target), left)
    e.use("add")
    second = HALF_SHIFTED if second == HALF else second
    zeros = (one.zero_point, other.zero_point, target.zero_point)
    limits = output_limits(target, op.activation)
    record = _elementwise(e, target, zeros, limits, result, second)
    return [record, f"add{e.suffix}({', '.join(map(e.at, (*names, op.output)))}, &shape);"]


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
    return [record, f"mul{e.suffix}({ends}, {other.elements}, &shape);"]


def _copy(e: Emission, *arguments: object) -> str:
    e.use("copy", value=e.element)
    return f"copy{e.suffix}({', '.join(str(argument) for argument in arguments)});"


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
        f"fill{e.suffix}({e.at(op.output)}, {zero}, {target.elements});",
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
    if e.dtype == "int16":
        return _wide_lookup(e, op, name, ends)
    e.use("lookup")
    values = e.keep(table(f"{name}_table", "int8_t", lookup_table(op.function, source, target)))
    return [f"lookup({ends}, {values});"]


def _wide_lookup(e: Emission, op: Lookup, name: str, ends: str) -> list[str]:
    """Curves from their common table, then to the output's scale; clamps; tables for the rest."""
    source, target = e.tensors(op)
    if op.function not in (*interpolation.CURVES, "relu", "relu6"):
        e.use("lookup_a16")
        values = interpolation.table(FUNCTIONS[op.function], _scale(source), _scale(target))
        return [f"lookup_a16({ends}, {e.keep(table(f'{name}_table', 'int16_t', values))});"]
    if op.function not in interpolation.CURVES:
        return [_rescale(e, source, target, ends, op.function)]
    multiplier, right = interpolation.curve_scaling(_scale(source))
    e.use(f"{op.function}_a16")
    entries = e.keep(table("sigmoids", "uint16_t", interpolation.SIGMOIDS))
    lines = [f"{op.function}_a16({ends}, {multiplier}, {right}, {entries});"]
    if target.scale != interpolation.UNIT_SCALE:
        again = f"{e.at(target.name)}, {e.at(target.name)}, {target.elements}"
        lines.append(_rescale(e, interpolation.unit(source), target, again, "none"))
    return lines


def _rescale(e: Emission, source: Tensor, target: Tensor, ends: str, activation: str) -> str:
    multiplier, shift = rescale_multiplier(source, target)
    e.use("rescale_a16")
    e.rights.add(-shift)
    low, high = output_limits(target, activation if activation in ("relu", "relu6") else "none")
    return f"rescale_a16({ends}, {multiplier}, {-shift}, {low}, {high});"


def _softmax(e: Emission, op: Softmax, name: str) -> list[str]:
    source, target = e.tensors(op)
    ends = f"{e.at(source.name)}, {e.at(target.name)}"
    sizes = f"{target.elements // target.channels}, {target.channels}"
    if not e.graph.integer:
        e.use("softmax_f32")
        return [f"softmax_f32({ends}, {sizes});"]
    if e.dtype == "int16":
        multiplier, shift = softmax.wide_scaling(_scale(source))
        e.use("softmax_a16")
        tables = [
            e.keep(table("exponentials", "int16_t", softmax.EXPONENTIALS)),
            e.keep(table("reciprocals", "int16_t", softmax.RECIPROCALS)),
        ]
        factor = f"{multiplier}, {max(shift, 0)}, {max(-shift, 0)}"
        return [f"softmax_a16({ends}, {sizes}, {factor}, {', '.join(tables)});"]
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
