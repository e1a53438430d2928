"""Graph -> `.tflite`, for LiteRT, TensorFlow Lite Micro and Vela; NHWC with a batch of one.

Scales, zero points, weights and biases are those of the graph, bit for bit; beside int16
activations biases are int64, with which TensorFlow Lite sums in 64 bits. Weights of 2 to 8 bits
lie in int8 containers (or on request packed as INT4 where a layer's are 4 bits or less; depthwise
ones never, because LiteRT's reference kernels do not read them; not for Vela 5.2, which fails on
INT4 and encodes a reduced grid in int8 containers as small).
LiteRT's reference kernels compute fully connected layers under the `single` contract and all else
under `double`; XNNPACK rounds in float32, which is `single` but for rare ties. Beside int16
activations LiteRT scales the sums of fully connected layers as doubles: `single`, but for one
output in ten million.

Three operators may be one step beside what this project's graphs hold, and
`approximated_operators` names them: HARD_SWISH, and RELU or RELU6 between different scales, have a
fixed point of their own; MUL's factor is rounded to float32 in LiteRT. LOGISTIC and TANH are exact
in LiteRT 2.3 (TensorFlow Lite Micro has a fixed point of its own there, too). In int16 RELU, RELU6,
LOGISTIC and TANH are exact, and there is no HARD_SWISH.

Source of formats and versions: TensorFlow Lite's schema.fbs and tools/versioning/op_version.cc;
https://ai.google.dev/edge/litert/models/quantization_spec.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from dse.errors import GraphError
from dse.firmware.flatbuffer import TYPES, Constant, Writer
from dse.graph.ir import (
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
    ADD_LEFT_SHIFT,
    INTEGER_LIMITS,
    LARGEST_WIDE_SHIFT,
    quantize_multiplier,
)

INSTALL = "pip install 'dse[tflite]'"
SAME, VALID = 0, 1
INT4_LIMIT_BITS = 4

_ACTIVATIONS: Mapping[str, int] = {"none": 0, "relu": 1, "relu6": 3}
_LOOKUPS: Mapping[str, str] = {
    "sigmoid": "LOGISTIC",
    "tanh": "TANH",
    "hardswish": "HARD_SWISH",
    "relu": "RELU",
    "relu6": "RELU6",
}
# Output scale and zero point that the 8-bit and 16x8 specifications fix.
_FIXED: Mapping[tuple[str, str], tuple[float, int]] = {
    ("sigmoid", "int8"): (1 / 256, -128),
    ("tanh", "int8"): (1 / 128, 0),
    ("softmax", "int8"): (1 / 256, -128),
    ("sigmoid", "int16"): (1 / 32768, 0),
    ("tanh", "int16"): (1 / 32768, 0),
    ("softmax", "int16"): (1 / 32768, 0),
}
# Operator versions of float32, int8 and int16 tensors (op_version.cc).
_VERSIONS: Mapping[str, tuple[int, int, int]] = {
    "ADD": (1, 2, 3),
    "CONCATENATION": (1, 2, 3),
    "PAD": (1, 2, 3),
    "PADV2": (1, 2, 3),
    "MAX_POOL_2D": (1, 2, 3),
    "AVERAGE_POOL_2D": (1, 2, 3),
    "LOGISTIC": (1, 2, 3),
    "TANH": (1, 2, 3),
    "RELU": (1, 2, 3),
    "RELU6": (1, 2, 3),
    "HARD_SWISH": (1, 1, 1),
    "SOFTMAX": (1, 2, 3),
}


def to_tflite(graph: Graph, name: str, int4: bool = False) -> bytes:
    """The file's bytes, the same for the same graph; input (1, H, W, C), output (1, classes).

    `int4` packs the weights of layers of at most 4 bits as INT4 tensors, two a byte (depthwise
    layers excepted).
    Raises GraphError for a graph of shapes, hard-sigmoid, hard-swish or INT4 in an int16 network,
    average pooling with padding that is not SAME, output scales that TensorFlow Lite fixes
    otherwise, factors it cannot hold, and when the packages of the extra `tflite` are missing.
    """
    schema, flatbuffers = _packages()
    for tensor in graph.tensors.values():
        _check_tensor(tensor)
    writer = Writer(graph, schema, flatbuffers.Builder(4096), int4)
    writer.activation(graph.input)
    for op in graph.ops:
        if type(op) not in _OPERATORS:
            raise GraphError(f"operator '{op.name}' ({op.kind}) has no TensorFlow Lite form")
        _OPERATORS[type(op)](writer, op)
    return writer.finish(name)


def approximated_operators(graph: Graph) -> tuple[str, ...]:
    """Operators whose outputs in LiteRT may be one step beside the graph's; none in float32."""
    if not graph.integer:
        return ()
    return tuple(op.name for op in graph.ops if _approximated(graph, op))


def _approximated(graph: Graph, op: Op) -> bool:
    source, target = _ends(graph, op)
    if isinstance(op, Mul):
        one, other, out = (graph.tensors[n].scale or 1.0 for n in (*op.inputs, op.output))
        single = float(np.float32(one) * np.float32(other) / np.float32(out))
        return quantize_multiplier(one * other / out) != quantize_multiplier(single)
    if not isinstance(op, Lookup) or target.dtype == "int16":
        return False
    same = (source.scale, source.zero_point) == (target.scale, target.zero_point)
    return op.function == "hardswish" or (op.function in ("relu", "relu6") and not same)


def _packages() -> tuple[Any, Any]:
    try:
        return import_module("tflite"), import_module("flatbuffers")
    except ImportError as error:
        raise GraphError(f"writing .tflite needs the package '{error.name}': {INSTALL}") from error


def _check_tensor(tensor: Tensor) -> None:
    if tensor.dtype != "float32" and float(np.float32(tensor.scale or 0)) != tensor.scale:
        raise GraphError(
            f"tensor '{tensor.name}' has scale {tensor.scale}; a .tflite file holds float32 scales"
        )


def _version(writer: Writer, floating: int, narrow: int, wide: int) -> int:
    """The version of an operator for the network's type of activations."""
    return {"float32": floating, "int8": narrow, "int16": wide}[writer.dtype]


def _operator(
    writer: Writer, code: str, inputs: Sequence[int], output: int, options: str, **fields: Any
) -> None:
    writer.operator(code, _version(writer, *_VERSIONS[code]), inputs, output, options, **fields)


# --- operators ----------------------------------------------------------------------------------


def _conv2d(writer: Writer, op: Conv2D) -> None:
    source, target = _ends(writer.graph, op)
    x, padding = writer.activation(source.name), _padding(op, source, target, op.dilation)
    if padding is None:
        x, padding = _padded(writer, op, source, op.padding), VALID
    weights, packed = _weights(writer, op)
    geometry = {
        "Padding": padding,
        "StrideH": op.stride[0],
        "StrideW": op.stride[1],
        "DilationHFactor": op.dilation[0],
        "DilationWFactor": op.dilation[1],
        "FusedActivationFunction": _ACTIVATIONS[op.activation],
    }
    inputs, output = (x, *weights), writer.activation(op.output)
    if op.depthwise:
        version = _version(writer, 1 if op.dilation == (1, 1) else 2, 3, 5)
        multiplier = target.channels // source.channels
        options = {**geometry, "DepthMultiplier": multiplier}
        writer.operator(
            "DEPTHWISE_CONV_2D", version, inputs, output, "DepthwiseConv2DOptions", **options
        )
        return
    version = 6 if op.groups > 1 else _version(writer, 1, 7 if packed else 3, 4)
    writer.operator("CONV_2D", version, inputs, output, "Conv2DOptions", **geometry)


def _fully_connected(writer: Writer, op: FullyConnected) -> None:
    weights, packed = _weights(writer, op)
    version = _version(writer, 1, 10 if packed else 4, 7)
    inputs, output = (writer.activation(op.inputs[0]), *weights), writer.activation(op.output)
    activation = _ACTIVATIONS[op.activation]
    writer.operator(
        "FULLY_CONNECTED",
        version,
        inputs,
        output,
        "FullyConnectedOptions",
        FusedActivationFunction=activation,
    )


def _weights(writer: Writer, op: WeightedOp) -> tuple[tuple[int, int], bool]:
    """The tensors of weights and bias, and whether the weights are packed as INT4."""
    values, scales = op.weight.values, op.weight.scales
    if values is None:
        raise GraphError(f"layer '{op.name}' has no weight values; this is a graph of shapes")
    depthwise = isinstance(op, Conv2D) and op.depthwise
    values = np.ascontiguousarray(values.transpose(3, 1, 2, 0) if depthwise else values)
    bias = np.zeros(op.weight.shape[0]) if op.bias is None else op.bias
    if not writer.integer:
        weight = writer.constant(f"{op.name}/weight", Constant(values.astype("<f4"), "FLOAT32"))
        return (
            weight,
            writer.constant(f"{op.name}/bias", Constant(bias.astype("<f4"), "FLOAT32")),
        ), False
    packed = writer.int4 and op.weight.bits <= INT4_LIMIT_BITS and not depthwise
    if writer.wide:
        _check_wide(writer.graph, op, packed)
    kind, axis = "INT4" if packed else "INT8", 3 if depthwise else 0
    scales = np.asarray(scales, dtype=np.float64)
    input_scale = writer.graph.tensors[op.inputs[0]].scale or 1.0
    integer, name = ("<i8", "INT64") if writer.wide else ("<i4", "INT32")
    biases = Constant(bias.astype(integer), name, input_scale * scales)
    return (
        writer.constant(f"{op.name}/weight", Constant(values.astype("i1"), kind, scales, axis)),
        writer.constant(f"{op.name}/bias", biases),
    ), packed


def _check_wide(graph: Graph, op: WeightedOp, packed: bool) -> None:
    """What the int16 kernels of TensorFlow Lite do not read."""
    if packed:
        raise GraphError(
            f"layer '{op.name}' has int16 activations, beside which TensorFlow Lite reads no INT4 "
            "weights; write it without int4"
        )
    source, target = _ends(graph, op)
    scales = np.asarray(op.weight.scales, dtype=np.float64)
    largest = (source.scale or 1.0) * float(scales.max()) / (target.scale or 1.0)
    if largest >= 2**LARGEST_WIDE_SHIFT:
        raise GraphError(
            f"layer '{op.name}' scales its sums by {largest:g}; beside int16 activations "
            f"TensorFlow Lite needs a factor under {2**LARGEST_WIDE_SHIFT}, so export C instead"
        )


def _add(writer: Writer, op: Add) -> None:
    one, other, out = (writer.graph.tensors[n].scale or 1.0 for n in (*op.inputs, op.output))
    bits = ADD_LEFT_SHIFT[writer.dtype] if writer.integer else 0
    # tensorflow/lite/kernels/add.cc: the output's factor must be below one.
    if writer.integer and 2 * max(one, other) >= 2**bits * out:
        raise GraphError(
            f"the sum '{op.name}' reads scales of {one:g} and {other:g} and writes {out:g}; "
            f"TensorFlow Lite needs an output scale above 1 / {2 ** (bits - 1):,} of its inputs'"
        )
    if writer.wide and all(math.frexp(scale)[0] == 0.5 for scale in (one, other, out)):
        raise GraphError(
            f"the sum '{op.name}' has three powers of two as scales, for which TensorFlow Lite "
            "has another int16 kernel; export C instead"
        )
    inputs = [writer.activation(name) for name in op.inputs]
    fields = {"FusedActivationFunction": _ACTIVATIONS[op.activation]}
    fields |= {"PotScaleInt16": False} if writer.wide else {}
    output = writer.activation(op.output)
    _operator(writer, "ADD", inputs, output, "AddOptions", **fields)


def _mul(writer: Writer, op: Mul) -> None:
    scales = [writer.graph.tensors[name].scale or 1.0 for name in (*op.inputs, op.output)]
    inputs, activation = [writer.activation(name) for name in op.inputs], op.activation
    version = _version(writer, 1, 3 if scales[0] * scales[1] >= scales[2] else 2, 4)
    output, fused = writer.activation(op.output), _ACTIVATIONS[activation]
    writer.operator("MUL", version, inputs, output, "MulOptions", FusedActivationFunction=fused)


def _concat(writer: Writer, op: Concat) -> None:
    _same_scale(writer.graph, op)
    inputs, output = [writer.activation(name) for name in op.inputs], writer.activation(op.output)
    axis = len(writer.graph.tensors[op.output].shape)
    _operator(writer, "CONCATENATION", inputs, output, "ConcatenationOptions", Axis=axis)


def _pad(writer: Writer, op: Pad) -> None:
    _same_scale(writer.graph, op)
    x, output = writer.activation(op.inputs[0]), writer.activation(op.output)
    _pad_operator(writer, op, x, output, op.padding)


def _reshape(writer: Writer, op: Reshape) -> None:
    _same_scale(writer.graph, op)
    shape = (1, *writer.graph.tensors[op.output].shape)
    inputs = (writer.activation(op.inputs[0]), writer.integers(f"{op.name}/shape", shape))
    output, new = writer.activation(op.output), writer.numbers(shape)
    writer.operator("RESHAPE", 1, inputs, output, "ReshapeOptions", NewShape=new)


def _pool(writer: Writer, op: Pool2D) -> None:
    _same_scale(writer.graph, op)
    source, target = _ends(writer.graph, op)
    x, padding = writer.activation(source.name), _padding(op, source, target)
    if padding is None and op.mode == "average":
        raise GraphError(
            f"average pooling '{op.name}' pads {op.padding} (top, bottom, left, right), which is "
            "neither SAME nor VALID in TensorFlow Lite; pad otherwise, or export C"
        )
    if padding is None:
        x, padding = _padded(writer, op, source, op.padding, lowest=True), VALID
    fields = {
        "Padding": padding,
        "StrideH": op.stride[0],
        "StrideW": op.stride[1],
        "FilterHeight": op.kernel[0],
        "FilterWidth": op.kernel[1],
        "FusedActivationFunction": _ACTIVATIONS[op.activation],
    }
    code, output = f"{op.mode.upper()}_POOL_2D", writer.activation(op.output)
    _operator(writer, code, (x,), output, "Pool2DOptions", **fields)


def _lookup(writer: Writer, op: Lookup) -> None:
    if op.function not in _LOOKUPS:
        raise GraphError(
            f"operator '{op.name}' is a {op.function}, which TensorFlow Lite does not have; "
            "export C, or use sigmoid or hardswish"
        )
    if writer.wide and op.function == "hardswish":
        raise GraphError(
            f"operator '{op.name}' is a hardswish, which TensorFlow Lite has in int8 only; "
            "export C, or use int8 activations"
        )
    source, target = _ends(writer.graph, op)
    ratio = (source.scale or 1.0) / (target.scale or 1.0)
    if writer.wide and op.function in ("relu", "relu6") and ratio >= 2**15:
        raise GraphError(
            f"operator '{op.name}' reads a scale of {source.scale:g} and writes {target.scale:g}; "
            "TensorFlow Lite needs an output scale above 1 / 32,768 of its input's"
        )
    _check_fixed(writer.graph, op, op.function)
    options = "HardSwishOptions" if op.function == "hardswish" else ""
    x, output = writer.activation(op.inputs[0]), writer.activation(op.output)
    _operator(writer, _LOOKUPS[op.function], (x,), output, options)


def _softmax(writer: Writer, op: Softmax) -> None:
    _check_fixed(writer.graph, op, "softmax")
    x, output = writer.activation(op.inputs[0]), writer.activation(op.output)
    _operator(writer, "SOFTMAX", (x,), output, "SoftmaxOptions", Beta=1.0)


_OPERATORS: Mapping[type[Op], Callable[[Writer, Any], None]] = {
    Conv2D: _conv2d,
    FullyConnected: _fully_connected,
    Add: _add,
    Mul: _mul,
    Concat: _concat,
    Pad: _pad,
    Reshape: _reshape,
    Pool2D: _pool,
    Lookup: _lookup,
    Softmax: _softmax,
}


# --- padding and scales -------------------------------------------------------------------------


def _ends(graph: Graph, op: Op) -> tuple[Tensor, Tensor]:
    return graph.tensors[op.inputs[0]], graph.tensors[op.output]


def _padding(
    op: Conv2D | Pool2D, source: Tensor, target: Tensor, dilation: tuple[int, int] = (1, 1)
) -> int | None:
    """VALID or SAME where it means the operator's padding, None where neither does.

    Source: tensorflow/lite/kernels/padding.h, ComputePaddingHeightWidth and ComputeOutSize.
    """
    kinds = {VALID, SAME}
    for axis in (0, 1):
        size, out, stride = source.shape[axis], target.shape[axis], op.stride[axis]
        reach = (op.kernel[axis] - 1) * dilation[axis] + 1
        before = op.padding[2 * axis]
        same = max(0, (out - 1) * stride + reach - size) // 2
        if before != 0 or out != (size - reach) // stride + 1:
            kinds -= {VALID}
        if before != same or out != -(-size // stride):
            kinds -= {SAME}
    return max(kinds, default=None)


def _padded(
    writer: Writer, op: Op, source: Tensor, padding: Sequence[int], lowest: bool = False
) -> int:
    """The input with its padding written out: with zeros, or with the lowest value there is."""
    top, bottom, left, right = padding
    rows, columns, channels = source.shape
    shape = (rows + top + bottom, columns + left + right, channels)
    padded = writer.like(source, f"{op.name}/padded", shape)
    _pad_operator(writer, op, writer.activation(source.name), padded, padding, lowest)
    return padded


def _pad_operator(
    writer: Writer, op: Op, x: int, output: int, padding: Sequence[int], lowest: bool = False
) -> None:
    top, bottom, left, right = padding
    amounts = [[0, 0], [top, bottom], [left, right], [0, 0]]
    inputs = [x, writer.integers(f"{op.name}/padding", amounts)]
    if not lowest:
        _operator(writer, "PAD", inputs, output, "PadOptions")
        return
    source = writer.graph.tensors[op.inputs[0]]
    limits = INTEGER_LIMITS.get(source.dtype, (float(np.finfo(np.float32).min),))
    value = np.array([limits[0]], dtype=np.dtype(source.dtype).newbyteorder("<"))
    scale = (np.array([source.scale]), np.array([source.zero_point]), 0)
    inputs.append(
        writer.tensor(
            f"{op.name}/lowest",
            (1,),
            TYPES[source.dtype],
            scale if writer.integer else None,
            value.tobytes(),
        )
    )
    _operator(writer, "PADV2", inputs, output, "PadV2Options")


def _same_scale(graph: Graph, op: Op) -> None:
    """Operators that move values without arithmetic need one scale on both sides."""
    scales = {
        (graph.tensors[n].scale, graph.tensors[n].zero_point) for n in (*op.inputs, op.output)
    }
    if graph.integer and len(scales) > 1:
        raise GraphError(
            f"operator '{op.name}' ({op.kind}) reads and writes different scales; TensorFlow Lite "
            "allows one"
        )


def _check_fixed(graph: Graph, op: Op, function: str) -> None:
    target = graph.tensors[op.output]
    wanted = _FIXED.get((function, target.dtype))
    if graph.integer and wanted is not None and (target.scale, target.zero_point) != wanted:
        raise GraphError(
            f"the output of '{op.name}' ({function}) has scale {target.scale:g} and zero point "
            f"{target.zero_point}; TensorFlow Lite fixes them to {wanted[0]:g} and {wanted[1]}, so "
            "export C instead"
        )
