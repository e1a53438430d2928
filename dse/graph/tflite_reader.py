"""`.tflite` -> Graph, without torch: int8 files as TensorFlow Lite's converter and dse write them.

Values, scales and biases are the file's, so that `dse.graph.execute` computes what LiteRT's
reference kernels do. One scale a tensor becomes one a channel. A weight's bits are the narrowest
that hold its values; zeros are not taken for sparsity. QUANTIZE and DEQUANTIZE at the ends fall
away with the float tensors, the batch of one with the shapes; (1, L, C) is (1, L, C) as an image.
A PAD that dse wrote for padding that is neither SAME nor VALID goes back into its operator.

Source: TensorFlow Lite's schema.fbs; tensorflow/lite/kernels/padding.h;
https://ai.google.dev/edge/litert/models/quantization_spec.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Literal

import numpy as np

from dse.errors import GraphError, nearest
from dse.graph.ir import (
    FLOAT_BITS,
    Activation,
    Add,
    Array,
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
    Weight,
)
from dse.graph.tflite_file import Code, TfliteFile, enumeration

INSTALL = "pip install 'dse[tflite]'"
# What `dse.firmware.tflite` ends the name of a padded copy and of a layer's weights with.
PADDED, WEIGHT = "/padded", "/weight"

_DTYPES: Mapping[str, DType] = {"FLOAT32": "float32", "INT8": "int8", "INT16": "int16"}
_ACTIVATIONS: Mapping[str, Activation] = {"NONE": "none", "RELU": "relu", "RELU6": "relu6"}
_LOOKUPS: Mapping[str, Literal["sigmoid", "tanh", "hardswish", "relu", "relu6"]] = {
    "LOGISTIC": "sigmoid",
    "TANH": "tanh",
    "HARD_SWISH": "hardswish",
    "RELU": "relu",
    "RELU6": "relu6",
}
# What a broken flatbuffer makes the accessors raise.
_BROKEN = (struct.error, IndexError, ValueError, TypeError, AttributeError, KeyError, OverflowError)


def read_tflite(content: bytes, name: str) -> Graph:
    """The network in a `.tflite` file's bytes, with its values.

    Raises GraphError in one sentence for bytes that are no such file, several subgraphs, inputs or
    outputs, a batch above one, legacy uint8 tensors, and operators that the graph has not (named
    with their position); also when the packages of the extra `tflite` are missing.
    """
    try:
        schema = import_module("tflite")
    except ImportError as error:
        raise GraphError(f"reading .tflite needs the package '{error.name}': {INSTALL}") from error
    try:
        return _Reader(TfliteFile(schema, content)).graph(name)
    except _BROKEN as error:
        raise GraphError(
            f"the .tflite file is damaged ({type(error).__name__}: {error})"
        ) from error


def rescaled_operators(graph: Graph) -> tuple[str, ...]:
    """Operators of an integer graph that only move values, yet between different scales.

    TensorFlow Lite's MEAN does so. Costs hold, but `execute` gives other values there.
    """
    found = []
    for op in graph.ops if graph.integer else ():
        ends = {
            (graph.tensors[n].scale, graph.tensors[n].zero_point) for n in (*op.inputs, op.output)
        }
        if isinstance(op, Pool2D | Pad | Reshape | Concat) and len(ends) > 1:
            found.append(op.name)
    return tuple(found)


class _Reader:
    """One file being read; `ops` and `tensors` grow in the file's order."""

    def __init__(self, file: TfliteFile) -> None:
        self.file = file
        self.tensors: dict[str, Tensor] = {}
        self.ops: list[Op] = []
        self._names: dict[int, str] = {}
        # A tensor that stands for another: the integer side of QUANTIZE and DEQUANTIZE.
        self._alias: dict[int, int] = {}
        # Padded copies by tensor number: what was padded, by how much, with zeros or the lowest.
        self.padded: dict[int, tuple[int, tuple[int, int, int, int], str]] = {}

    def graph(self, name: str) -> Graph:
        source = self.file.input
        target = self.file.output
        codes = self.file.codes
        for code in codes:
            if code.kind == "QUANTIZE" and code.inputs[0] == source:
                source = code.output
        entry = self.activation(source)
        for code in codes:
            if code.kind == "QUANTIZE" and code.output == source:
                continue
            if code.kind == "DEQUANTIZE" and code.output == target:
                target = code.inputs[0]
                continue
            if code.kind not in _OPERATORS:
                raise GraphError(
                    f"{code.where} of the .tflite file is not among the operators that can be "
                    f"read; {nearest(code.kind, (*_OPERATORS, 'QUANTIZE', 'DEQUANTIZE'))}"
                )
            _OPERATORS[code.kind](self, code)
        if not self.ops:
            raise GraphError("the .tflite file holds no operator")
        return Graph(name, self.tensors, tuple(self.ops), entry, self.activation(target))

    # ------------------------------------------------------------------ tensors

    def activation(self, number: int) -> str:
        """The graph's name of a tensor, which is made when it is first met."""
        if number not in self._names:
            tensor = self._activation(number)
            self._names[number] = tensor.name
            self.tensors[tensor.name] = tensor
        return self._names[number]

    def _activation(self, number: int) -> Tensor:
        name = self.file.name(number) or f"tensor{number}"
        if name in self.tensors:
            name = f"{name}#{number}"
        kind = self.file.kind(number)
        if kind not in _DTYPES:
            hint = "; convert the model to int8" if kind == "UINT8" else ""
            raise GraphError(
                f"tensor '{name}' of the .tflite file is {kind}; allowed: INT8, INT16 and FLOAT32"
                + hint
            )
        if self.file.constant(number) is not None:
            raise GraphError(
                f"tensor '{name}' of the .tflite file is a constant where an activation is read; "
                "only weights, biases, shapes and paddings may be constants"
            )
        shape = _image(self.file.shape(number), name)
        if kind == "FLOAT32":
            return Tensor(name, shape)
        scales, zeros = self.file.quantization(number)
        if len(scales) != 1:
            raise GraphError(f"tensor '{name}' of the .tflite file has {len(scales)} scales, not 1")
        return Tensor(name, shape, _DTYPES[kind], float(scales[0]), int(zeros[0]))

    def tensor(self, number: int) -> Tensor:
        """The graph's tensor of that number."""
        return self.tensors[self.activation(number)]

    def fused(self, code: Code) -> Activation:
        """The fused activation of an operator."""
        number = 0 if code.options is None else code.options.FusedActivationFunction()
        name = enumeration(self.file.schema.ActivationFunctionType).get(number, str(number))
        if name not in _ACTIVATIONS:
            raise GraphError(
                f"{code.where} of the .tflite file has the fused activation {name}; "
                f"allowed: {', '.join(_ACTIVATIONS)}"
            )
        return _ACTIVATIONS[name]

    # ------------------------------------------------------------------ operators

    def name(self, code: Code) -> str:
        """The layer's name where its weights carry it, else that of the output."""
        if len(code.inputs) > 1 and code.kind in (
            "CONV_2D",
            "DEPTHWISE_CONV_2D",
            "FULLY_CONNECTED",
        ):
            found = self.file.name(code.inputs[1])
            stem = found.removesuffix(WEIGHT)
            if stem != found and stem not in {op.name for op in self.ops}:
                return stem
        return self.activation(code.output)

    def weight(self, code: Code, transposed: bool = False) -> tuple[Weight, Array]:
        """The weight (O, ...) of an operator with its bias."""
        values = self.file.constant(code.inputs[1])
        if values is None:
            raise GraphError(
                f"{code.where} of the .tflite file computes its weights; allowed: constants"
            )
        scales, zeros = self.file.quantization(code.inputs[1])
        if zeros.any():
            raise GraphError(
                f"{code.where} of the .tflite file has weights with a zero point of "
                f"{int(zeros[np.flatnonzero(zeros)[0]])}; allowed: 0 (symmetric weights)"
            )
        values = values.transpose(3, 1, 2, 0) if transposed else values
        values = np.ascontiguousarray(values)
        bias = self.file.constant(code.inputs[2]) if len(code.inputs) > 2 else None
        if values.dtype.kind == "f":
            if self.tensor(code.inputs[0]).dtype != "float32":
                raise GraphError(
                    f"{code.where} of the .tflite file mixes float weights with integers"
                )
            return Weight(values.shape, FLOAT_BITS, -1, values), (
                np.zeros(len(values), dtype=np.float32) if bias is None else bias
            )
        if self.tensor(code.inputs[0]).dtype == "float32":
            raise GraphError(
                f"{code.where} of the .tflite file has integer weights and float activations "
                "(dynamic-range quantization); convert with full integer quantization"
            )
        scales = np.full(len(values), scales[0]) if len(scales) == 1 else scales
        if len(scales) != len(values):
            raise GraphError(
                f"{code.where} of the .tflite file has {len(scales)} weight scales for "
                f"{len(values)} output channels"
            )
        weight = Weight(values.shape, _bits(values), -1, values, scales)
        integers = np.zeros(len(values)) if bias is None else bias
        return weight, integers.astype(np.int64)

    def unpadded(self, code: Code, mode: str) -> tuple[int, tuple[int, int, int, int] | None]:
        """What an operator really reads, and the padding that dse had written out before it."""
        number = code.inputs[0]
        source, padding, filled = self.padded.get(number, (number, None, ""))
        readers = sum(number in other.inputs for other in self.file.codes)
        if padding is None or filled != mode or readers != 1:
            return number, None
        name = self.activation(number)
        self.ops = [op for op in self.ops if op.output != name]
        del self.tensors[name]
        return source, padding


def _conv2d(reader: _Reader, code: Code) -> None:
    depthwise = code.kind == "DEPTHWISE_CONV_2D"
    name = reader.name(code)
    weight, bias = reader.weight(code, transposed=depthwise)
    number, padded = reader.unpadded(code, "zeros")
    options, source, target = code.options, reader.tensor(number), reader.tensor(code.output)
    stride = (options.StrideH(), options.StrideW())
    dilation = (options.DilationHFactor(), options.DilationWFactor())
    groups = source.channels if depthwise else source.channels // weight.shape[3]
    reach = tuple((weight.shape[1 + axis] - 1) * dilation[axis] + 1 for axis in (0, 1))
    padding = padded or _padding(reader, code, source, target, stride, reach)
    reader.ops.append(
        Conv2D(
            name,
            (source.name,),
            target.name,
            weight,
            bias,
            stride,
            padding,
            dilation,
            groups,
            reader.fused(code),
        )
    )


def _padding(
    reader: _Reader,
    code: Code,
    source: Tensor,
    target: Tensor,
    stride: Sequence[int],
    reach: Sequence[int],
) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of SAME or VALID (padding.h, ComputePaddingHeightWidth)."""
    if code.options.Padding() != reader.file.schema.Padding.SAME:
        return (0, 0, 0, 0)
    totals = [
        max(0, (target.shape[axis] - 1) * stride[axis] + reach[axis] - source.shape[axis])
        for axis in (0, 1)
    ]
    top, left = totals[0] // 2, totals[1] // 2
    return (top, totals[0] - top, left, totals[1] - left)


def _fully_connected(reader: _Reader, code: Code) -> None:
    name = reader.name(code)
    weight, bias = reader.weight(code)
    source, target = reader.tensor(code.inputs[0]), reader.tensor(code.output)
    inputs = source.name
    if len(source.shape) > 1:
        # TensorFlow Lite flattens by itself.
        if source.elements != weight.shape[1]:
            raise GraphError(
                f"{code.where} of the .tflite file has inputs {source.shape} for weights "
                f"{weight.shape}; allowed: one row of {weight.shape[1]} numbers"
            )
        inputs = f"{name}/flat"
        reader.tensors[inputs] = replace(source, name=inputs, shape=(source.elements,))
        reader.ops.append(Reshape(inputs, (source.name,), inputs))
    if len(target.shape) > 1:
        raise GraphError(f"{code.where} of the .tflite file writes {target.shape}, not one row")
    reader.ops.append(
        FullyConnected(name, (inputs,), target.name, weight, bias, reader.fused(code))
    )


def _sum_or_product(reader: _Reader, code: Code) -> None:
    one, other = (reader.tensor(number) for number in code.inputs)
    target = reader.tensor(code.output)
    if one.shape != target.shape:
        one, other = other, one
    row = other.shape in ((1, 1, target.channels), (target.channels,)) and code.kind == "MUL"
    if one.shape != target.shape or (other.shape != target.shape and not row):
        raise GraphError(
            f"{code.where} of the .tflite file combines {one.shape} with {other.shape}; allowed: "
            "equal shapes, or for MUL one number a channel"
        )
    kind = Add if code.kind == "ADD" else Mul
    reader.ops.append(kind(target.name, (one.name, other.name), target.name, reader.fused(code)))


def _concat(reader: _Reader, code: Code) -> None:
    tensors = [reader.tensor(number) for number in code.inputs]
    target = reader.tensor(code.output)
    if sum(tensor.channels for tensor in tensors) != target.channels:
        raise GraphError(
            f"{code.where} of the .tflite file joins along axis {code.options.Axis()}; "
            "allowed: the last"
        )
    reader.fused(code)
    reader.ops.append(Concat(target.name, tuple(t.name for t in tensors), target.name))


def _pad(reader: _Reader, code: Code) -> None:
    source, target = reader.tensor(code.inputs[0]), reader.tensor(code.output)
    amounts = reader.file.constant(code.inputs[1])
    if amounts is None or amounts.shape != (4, 2) or amounts[[0, 3]].any():
        raise GraphError(
            f"{code.where} of the .tflite file pads by "
            f"{'a computed amount' if amounts is None else amounts.tolist()}; "
            "allowed: constants, on height and width only"
        )
    (top, bottom), (left, right) = amounts[1:3].tolist()
    padding, filled = (top, bottom, left, right), "zeros"
    if code.kind == "PADV2":
        value = reader.file.constant(code.inputs[2])
        lowest = -128 if source.dtype == "int8" else float(np.finfo(np.float32).min)
        zero = source.zero_point if source.dtype != "float32" else 0.0
        found = None if value is None else float(value.reshape(-1)[0])
        filled = "lowest" if found == lowest else "zeros" if found == zero else ""
    if target.name.endswith(PADDED) and filled:
        reader.padded[code.output] = (code.inputs[0], padding, filled)
    if filled != "zeros" and code.output not in reader.padded:
        raise GraphError(f"{code.where} of the .tflite file pads with other values than zero")
    reader.ops.append(Pad(target.name, (source.name,), target.name, padding))


def _reshape(reader: _Reader, code: Code) -> None:
    source, target = reader.tensor(code.inputs[0]), reader.tensor(code.output)
    if source.elements != target.elements:
        raise GraphError(f"{code.where} of the .tflite file makes {target.shape} of {source.shape}")
    reader.ops.append(Reshape(target.name, (source.name,), target.name))


def _pool(reader: _Reader, code: Code) -> None:
    mode: Literal["max", "average"] = "max" if code.kind == "MAX_POOL_2D" else "average"
    number, padded = reader.unpadded(code, "lowest") if mode == "max" else (code.inputs[0], None)
    options, source, target = code.options, reader.tensor(number), reader.tensor(code.output)
    kernel = (options.FilterHeight(), options.FilterWidth())
    stride = (options.StrideH(), options.StrideW())
    padding = padded or _padding(reader, code, source, target, stride, kernel)
    reader.ops.append(
        Pool2D(
            target.name,
            (source.name,),
            target.name,
            mode,
            kernel,
            stride,
            padding,
            reader.fused(code),
        )
    )


def _mean(reader: _Reader, code: Code) -> None:
    """The mean over height and width is a global average pooling, perhaps without its axes."""
    source, target = reader.tensor(code.inputs[0]), reader.tensor(code.output)
    axes = reader.file.constant(code.inputs[1])
    rank = len(source.shape) + 1
    spatial = axes is not None and sorted(int(a) % rank for a in axes.reshape(-1)) == [1, 2]
    if not spatial or len(source.shape) != 3:
        raise GraphError(
            f"{code.where} of the .tflite file averages axes "
            f"{None if axes is None else axes.reshape(-1).tolist()} of {source.shape}; "
            "allowed: height and width"
        )
    kernel = (source.shape[0], source.shape[1])
    if len(target.shape) == 3:
        reader.ops.append(
            Pool2D(target.name, (source.name,), target.name, "average", kernel, kernel)
        )
        return
    pooled = f"{target.name}/pooled"
    reader.tensors[pooled] = replace(target, name=pooled, shape=(1, 1, target.channels))
    reader.ops.append(Pool2D(pooled, (source.name,), pooled, "average", kernel, kernel))
    reader.ops.append(Reshape(target.name, (pooled,), target.name))


def _lookup(reader: _Reader, code: Code) -> None:
    source, target = reader.tensor(code.inputs[0]), reader.tensor(code.output)
    reader.ops.append(Lookup(target.name, (source.name,), target.name, _LOOKUPS[code.kind]))


def _softmax(reader: _Reader, code: Code) -> None:
    beta = 1.0 if code.options is None else code.options.Beta()
    if beta != 1.0:
        raise GraphError(f"{code.where} of the .tflite file has beta {beta:g}; allowed: 1")
    source, target = reader.tensor(code.inputs[0]), reader.tensor(code.output)
    reader.ops.append(Softmax(target.name, (source.name,), target.name))


_OPERATORS: Mapping[str, Callable[[_Reader, Code], None]] = {
    "CONV_2D": _conv2d,
    "DEPTHWISE_CONV_2D": _conv2d,
    "FULLY_CONNECTED": _fully_connected,
    "ADD": _sum_or_product,
    "MUL": _sum_or_product,
    "CONCATENATION": _concat,
    "PAD": _pad,
    "PADV2": _pad,
    "RESHAPE": _reshape,
    "SQUEEZE": _reshape,
    "EXPAND_DIMS": _reshape,
    "AVERAGE_POOL_2D": _pool,
    "MAX_POOL_2D": _pool,
    "MEAN": _mean,
    "SOFTMAX": _softmax,
    **dict.fromkeys(_LOOKUPS, _lookup),
}


def _image(shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """The shape without its batch of one: (N,), or (H, W, C) with (L, C) as (1, L, C)."""
    if not 2 <= len(shape) <= 4 or shape[0] != 1:
        raise GraphError(
            f"tensor '{name}' of the .tflite file has shape {shape}; allowed: (1, N), (1, L, C) "
            "and (1, H, W, C), with a batch of one"
        )
    return (1, *shape[1:]) if len(shape) == 3 else shape[1:]


def _bits(values: Array) -> int:
    """The narrowest symmetric width that holds the values; 8 holds -128, too."""
    largest = int(np.abs(values.astype(np.int64)).max())
    return next((bits for bits in range(2, 8) if largest <= 2 ** (bits - 1) - 1), 8)
