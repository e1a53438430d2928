"""One torch operator at a time: what each fx node becomes in the graph, or why it cannot."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from dse.errors import GraphError
from dse.graph.ir import (
    Activation,
    Add,
    Array,
    Concat,
    Conv2D,
    FullyConnected,
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

PoolMode = Literal["max", "average"]
LookupFunction = Literal["sigmoid", "tanh", "hardswish", "hardsigmoid", "relu", "relu6"]

_ACTIVATION_MODULES: Mapping[type[nn.Module], LookupFunction] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.Hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid",
}
_ACTIVATION_FUNCTIONS: Mapping[Any, LookupFunction] = {
    F.relu: "relu",
    torch.relu: "relu",
    F.relu6: "relu6",
    torch.sigmoid: "sigmoid",
    F.sigmoid: "sigmoid",
    torch.tanh: "tanh",
    F.tanh: "tanh",
    F.hardswish: "hardswish",
    F.hardsigmoid: "hardsigmoid",
    "relu": "relu",
    "relu_": "relu",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
}
_SKIPPED_MODULES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
_SKIPPED_FUNCTIONS = (F.dropout, F.dropout1d, F.dropout2d, "contiguous", "clone")
_RESHAPES = (torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze)
_RESHAPE_METHODS = ("view", "reshape", "flatten", "squeeze", "unsqueeze")


@dataclass
class Value:
    """What is known of a traced tensor: its graph name and, when flattened, its torch order."""

    name: str
    order: Array | None = None


@dataclass
class Tracer:
    """Walks the fx nodes once and grows the lists of operators and tensors."""

    modules: Mapping[str, nn.Module]
    shapes: Mapping[fx.Node, tuple[int, ...]]
    values: dict[fx.Node, Value] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    ops: dict[str, Op] = field(default_factory=dict)
    maker: dict[str, str] = field(default_factory=dict)

    def add(self, node: fx.Node, op: Op, order: Array | None = None) -> None:
        """Append an operator whose output is the value of `node`."""
        if op.name in self.ops and isinstance(op, Conv2D | FullyConnected):
            raise GraphError(
                f"module '{op.name}' is called more than once; "
                "weights shared by several layers are not supported: give each call its own module"
            )
        if op.name in self.ops:
            op = replace(op, name=node.name)
        self.ops[op.name] = op
        self.maker[op.output] = op.name
        self.tensors[op.output] = Tensor(op.output, hwc(self.shapes[node], node))
        self.values[node] = Value(op.output, order)

    def module(self, node: fx.Node) -> nn.Module:
        """The module that a node calls."""
        return self.modules[str(node.target)]

    def value(self, argument: Any, node: fx.Node) -> Value:
        """The traced tensor behind an argument."""
        if not isinstance(argument, fx.Node) or argument not in self.values:
            raise GraphError(
                f"operator '{label(node)}' works on a constant ({argument!r}); "
                "only tensors made by the network itself are supported"
            )
        return self.values[argument]

    def read_once(self, node: fx.Node) -> bool:
        """Whether a single operator reads the value of `node`."""
        return len(node.users) == 1


Visit = Callable[[Tracer, fx.Node], None]


def hwc(shape: Sequence[int], node: fx.Node) -> tuple[int, ...]:
    """(N, C, H, W), (N, C, L) or (N, F) as (H, W, C), (1, L, C) or (F,)."""
    if len(shape) == 4:
        return shape[2], shape[3], shape[1]
    if len(shape) == 3:
        return 1, shape[2], shape[1]
    if len(shape) == 2:
        return (shape[1],)
    raise GraphError(f"operator '{label(node)}' makes a tensor of {len(shape)} axes; allowed: 2-4")


def label(node: fx.Node) -> str:
    """How messages name a node."""
    what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "?")
    return f"{node.name} ({what})"


def visit(tracer: Tracer, node: fx.Node) -> None:
    """Add what one fx node computes; GraphError names a node that the graph cannot hold."""
    if node.op == "call_module":
        _visit_module(tracer, node)
    elif node.op in ("call_function", "call_method"):
        _visit_function(tracer, node)
    else:
        raise GraphError(
            f"the model uses the parameter '{node.target}' outside a module; "
            "move it into a supported layer"
        )


def _visit_module(tracer: Tracer, node: fx.Node) -> None:
    module = tracer.module(node)
    if isinstance(module, _SKIPPED_MODULES):
        tracer.values[node] = tracer.value(node.args[0], node)
        return
    if type(module) in _ACTIVATION_MODULES:
        _activation(tracer, node, _ACTIVATION_MODULES[type(module)])
        return
    for kind, visit in _MODULES.items():
        if isinstance(module, kind):
            visit(tracer, node)
            return
    raise GraphError(
        f"module '{node.target}' is a {type(module).__name__}, which the graph does not support; "
        "supported: convolutions, linear, batch norm, max/average pooling, ReLU, ReLU6, sigmoid, "
        "tanh, hard-swish, hard-sigmoid, softmax, flatten, dropout, zero padding"
    )


def _visit_function(tracer: Tracer, node: fx.Node) -> None:
    target = node.target
    if target in _SKIPPED_FUNCTIONS:
        tracer.values[node] = tracer.value(node.args[0], node)
    elif target in _ACTIVATION_FUNCTIONS:
        _activation(tracer, node, _ACTIVATION_FUNCTIONS[target])
    elif target in _RESHAPES or target in _RESHAPE_METHODS:
        _reshape(tracer, node)
    elif target in _FUNCTIONS:
        _FUNCTIONS[target](tracer, node)
    else:
        raise GraphError(
            f"operator '{label(node)}' in '{_owner(node)}' is not supported by the graph; "
            "use a supported module instead (convolution, linear, pooling, add, mul, cat, pad, "
            "flatten, ReLU, ReLU6, sigmoid, tanh, hard-swish, softmax)"
        )


def _owner(node: fx.Node) -> str:
    """The module whose forward calls the operator, or 'the model'."""
    stack = node.meta.get("nn_module_stack") or {}
    names = [str(key) for key in stack]
    return names[-1] if names and names[-1] else "the model"


def _array(tensor: torch.Tensor | None) -> Array | None:
    return None if tensor is None else tensor.detach().cpu().numpy().astype(np.float64)


def _pair(value: Any) -> tuple[int, int]:
    """(height, width) of an int, a 1-tuple (1-D layers: height 1) or a 2-tuple."""
    if isinstance(value, int):
        return value, value
    values = tuple(int(v) for v in value)
    return (values[0], values[1]) if len(values) == 2 else (1, values[0])


def _conv(tracer: Tracer, node: fx.Node) -> None:
    conv = cast(nn.Conv2d, tracer.module(node))
    flat = isinstance(conv, nn.Conv1d)
    if conv.padding_mode != "zeros":
        raise GraphError(f"module '{node.target}' pads with '{conv.padding_mode}'; allowed: zeros")
    source = tracer.value(node.args[0], node)
    weight = cast(Array, _array(conv.weight))
    if flat:
        weight = weight[:, :, None, :]
    stride, dilation = _spatial(conv.stride, flat, 1), _spatial(conv.dilation, flat, 1)
    op = Conv2D(
        name=str(node.target),
        inputs=(source.name,),
        output=node.name,
        weight=_float_weight(weight.transpose(0, 2, 3, 1)),
        bias=_bias(conv.bias, weight.shape[0]),
        stride=stride,
        padding=_conv_padding(conv, flat, weight.shape[2:], dilation),
        dilation=dilation,
        groups=conv.groups,
    )
    tracer.add(node, op)


def _spatial(value: Any, flat: bool, height: int) -> tuple[int, int]:
    return (height, _pair(value)[1]) if flat else _pair(value)


def _conv_padding(
    conv: nn.Conv2d, flat: bool, kernel: Sequence[int], dilation: tuple[int, int]
) -> tuple[int, int, int, int]:
    if conv.padding == "valid":
        return 0, 0, 0, 0
    if conv.padding == "same":
        # torch puts the odd element at the end.
        total = [dilation[axis] * (kernel[axis] - 1) for axis in (0, 1)]
        before = [size // 2 for size in total]
        return before[0], total[0] - before[0], before[1], total[1] - before[1]
    rows, columns = _spatial(conv.padding, flat, 0)
    return rows, rows, columns, columns


def _float_weight(values: Array) -> Weight:
    data = np.ascontiguousarray(values, dtype=np.float32)
    return Weight(data.shape, values=data)


def _bias(bias: torch.Tensor | None, size: int) -> Array:
    found = _array(bias)
    return np.zeros(size) if found is None else found


def _linear(tracer: Tracer, node: fx.Node) -> None:
    linear = cast(nn.Linear, tracer.module(node))
    source = tracer.value(node.args[0], node)
    if len(tracer.tensors[source.name].shape) != 1:
        raise GraphError(
            f"module '{node.target}' is a Linear on a tensor of shape "
            f"{tracer.tensors[source.name].shape}; flatten it to (N, features) first"
        )
    weight = cast(Array, _array(linear.weight))
    if source.order is not None:
        weight = weight[:, source.order]
    bias = _bias(linear.bias, weight.shape[0])
    name = str(node.target)
    tracer.add(node, FullyConnected(name, (source.name,), node.name, _float_weight(weight), bias))


def _batch_norm(tracer: Tracer, node: fx.Node) -> None:
    norm = cast(nn.BatchNorm2d, tracer.module(node))
    if norm.running_mean is None or norm.running_var is None:
        raise GraphError(
            f"module '{node.target}' keeps no running statistics; set track_running_stats=True"
        )
    source = tracer.value(node.args[0], node)
    deviation = np.sqrt(cast(Array, _array(norm.running_var)) + norm.eps)
    gamma = _array(norm.weight) if norm.affine else np.ones_like(deviation)
    beta = _array(norm.bias) if norm.affine else np.zeros_like(deviation)
    factor = cast(Array, gamma) / deviation
    shift = cast(Array, beta) - cast(Array, _array(norm.running_mean)) * factor
    if source.order is not None:
        factor, shift = factor[source.order], shift[source.order]
    before = tracer.ops.get(tracer.maker.get(source.name, ""))
    foldable = isinstance(before, Conv2D | FullyConnected) and before.activation == "none"
    if foldable and tracer.read_once(cast(fx.Node, node.args[0])):
        _fold(tracer, node, cast(Conv2D, before), factor, shift)
    else:
        _norm_as_depthwise(tracer, node, source, factor, shift)


def _fold(tracer: Tracer, node: fx.Node, op: Conv2D, factor: Array, shift: Array) -> None:
    values = cast(Array, op.weight.values)
    scaled = values * factor.reshape(-1, *[1] * (values.ndim - 1))
    weight = replace(op.weight, values=scaled.astype(np.float32))
    bias = cast(Array, op.bias) * factor + shift
    tracer.ops[op.name] = replace(op, weight=weight, bias=bias)
    tracer.values[node] = tracer.values[cast(fx.Node, node.args[0])]


def _norm_as_depthwise(
    tracer: Tracer, node: fx.Node, source: Value, factor: Array, shift: Array
) -> None:
    """A BatchNorm that follows no layer: a 1x1 depthwise convolution."""
    if len(tracer.tensors[source.name].shape) != 3:
        raise GraphError(
            f"module '{node.target}' is a BatchNorm1d that follows no Linear; put it behind one"
        )
    weight = _float_weight(factor.reshape(-1, 1, 1, 1))
    op = Conv2D(str(node.target), (source.name,), node.name, weight, shift, groups=factor.shape[0])
    tracer.add(node, op)


def _activation(tracer: Tracer, node: fx.Node, function: LookupFunction) -> None:
    source = tracer.value(node.args[0], node)
    before = tracer.ops.get(tracer.maker.get(source.name, ""))
    fusable = isinstance(before, Conv2D | FullyConnected | Add | Mul | Pool2D)
    if (
        function in ("relu", "relu6")
        and fusable
        and cast(Conv2D, before).activation == "none"
        and tracer.read_once(cast(fx.Node, node.args[0]))
    ):
        fused = replace(cast(Conv2D, before), activation=cast(Activation, function))
        tracer.ops[fused.name] = fused
        tracer.values[node] = source
        return
    name = str(node.target) if node.op == "call_module" else node.name
    tracer.add(node, Lookup(name, (source.name,), node.name, function), source.order)


def _pool_module(mode: PoolMode) -> Visit:
    def visit(tracer: Tracer, node: fx.Node) -> None:
        module: Any = tracer.module(node)
        flat = isinstance(module, nn.MaxPool1d | nn.AvgPool1d)
        _pool(
            tracer,
            node,
            mode,
            kernel=_spatial(module.kernel_size, flat, 1),
            stride=_spatial(module.stride, flat, 1),
            padding=_spatial(module.padding, flat, 0),
            dilation=getattr(module, "dilation", 1),
            counts_padding=getattr(module, "count_include_pad", False),
        )

    return visit


def _pool_function(mode: PoolMode) -> Visit:
    def visit(tracer: Tracer, node: fx.Node) -> None:
        given = dict(zip(("input", "kernel_size", "stride", "padding"), node.args, strict=False))
        given.update(node.kwargs)
        flat = len(tracer.shapes[node]) == 3
        kernel = given["kernel_size"]
        _pool(
            tracer,
            node,
            mode,
            kernel=_spatial(kernel, flat, 1),
            stride=_spatial(given.get("stride") or kernel, flat, 1),
            padding=_spatial(given.get("padding", 0), flat, 0),
            dilation=cast(Any, given.get("dilation", 1)),
            counts_padding=mode == "average" and bool(given.get("count_include_pad", True)),
        )

    return visit


def _pool(
    tracer: Tracer,
    node: fx.Node,
    mode: PoolMode,
    *,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: Any,
    counts_padding: bool,
) -> None:
    name = str(node.target) if node.op == "call_module" else node.name
    if _pair(dilation) != (1, 1):
        raise GraphError(f"pooling '{name}' has dilation {dilation}; allowed: 1")
    if mode == "average" and any(padding) and counts_padding:
        raise GraphError(
            f"pooling '{name}' counts its padding into the average; set count_include_pad=False"
        )
    source = tracer.value(node.args[0], node)
    height, width, _ = tracer.tensors[source.name].shape
    out = tracer.shapes[node][2:] if len(tracer.shapes[node]) == 4 else (1, tracer.shapes[node][2])
    expected = tuple(
        (size + 2 * pad - k) // s + 1
        for size, pad, k, s in zip((height, width), padding, kernel, stride, strict=True)
    )
    if tuple(out) != expected:
        raise GraphError(f"pooling '{name}' rounds its output size up; set ceil_mode=False")
    sides = (padding[0], padding[0], padding[1], padding[1])
    tracer.add(node, Pool2D(name, (source.name,), node.name, mode, kernel, stride, sides))


def _adaptive_pool(mode: PoolMode) -> Visit:
    return partial(_adaptive, mode=mode)


def _adaptive(tracer: Tracer, node: fx.Node, mode: PoolMode) -> None:
    name = str(node.target) if node.op == "call_module" else node.name
    source = tracer.value(node.args[0], node)
    height, width, _ = tracer.tensors[source.name].shape
    out = hwc(tracer.shapes[node], node)
    if height % out[0] or width % out[1]:
        raise GraphError(
            f"pooling '{name}' turns {height} x {width} into {out[0]} x {out[1]}, "
            "which does not divide evenly; choose an output size that does"
        )
    kernel = (height // out[0], width // out[1])
    tracer.add(node, Pool2D(name, (source.name,), node.name, mode, kernel, kernel))


def _mean(tracer: Tracer, node: fx.Node) -> None:
    axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    source = tracer.value(node.args[0], node)
    shape = tracer.tensors[source.name].shape
    rank = len(tracer.shapes[cast(fx.Node, node.args[0])])
    given = [axes] if isinstance(axes, int) else list(cast(Sequence[int], axes or ()))
    if sorted(axis % rank for axis in given) != list(range(2, rank)):
        raise GraphError(f"operator '{label(node)}' averages over {axes}; allowed: all of H and W")
    height, width, channels = shape
    pooled = f"{node.name}_pool"
    pool = Pool2D(pooled, (source.name,), pooled, "average", (height, width), (height, width))
    tracer.ops[pooled] = pool
    tracer.tensors[pooled] = Tensor(pooled, (1, 1, channels))
    tracer.maker[pooled] = pooled
    tracer.add(node, Reshape(node.name, (pooled,), node.name))


def _reshape(tracer: Tracer, node: fx.Node) -> None:
    source = tracer.value(node.args[0], node)
    argument = cast(fx.Node, node.args[0])
    before, after = tracer.shapes[argument], tracer.shapes[node]
    if after[0] != before[0]:
        raise GraphError(
            f"operator '{label(node)}' changes the batch axis from {before} to {after}"
        )
    if before == after:
        tracer.values[node] = source
        return
    old, new = tracer.tensors[source.name].shape, hwc(after, node)
    order = source.order
    if len(new) == 1 and len(old) == 3:
        order = _flatten_order(old)
    elif order is not None or not _same_order(old, new):
        raise GraphError(
            f"operator '{label(node)}' reshapes {before[1:]} to {after[1:]}; "
            "allowed: flattening, and adding or removing axes of size 1"
        )
    tracer.add(node, Reshape(node.name, (source.name,), node.name), order)


def _flatten_order(shape: tuple[int, ...]) -> Array | None:
    """For each element of a flattened (H, W, C), its index in torch's flattened (C, H, W)."""
    height, width, channels = shape
    if channels == 1 or height * width == 1:
        return None
    index: Array = np.arange(height * width * channels).reshape(channels, height, width)
    return index.transpose(1, 2, 0).ravel()


def _same_order(old: tuple[int, ...], new: tuple[int, ...]) -> bool:
    """Whether both are the same channels with axes of size 1 added or moved."""
    return old[-1] == new[-1] and [s for s in old if s > 1] == [s for s in new if s > 1]


def _two_inputs(tracer: Tracer, node: fx.Node) -> tuple[Value, Value]:
    if len(node.args) < 2:
        raise GraphError(f"operator '{label(node)}' needs two tensors")
    one, other = tracer.value(node.args[0], node), tracer.value(node.args[1], node)
    a, b = one.order, other.order
    same = a is b or (a is not None and b is not None and np.array_equal(a, b))
    if not same:
        raise GraphError(f"operator '{label(node)}' mixes tensors flattened in different orders")
    return one, other


def _add(tracer: Tracer, node: fx.Node) -> None:
    one, other = _two_inputs(tracer, node)
    shapes = tracer.tensors[one.name].shape, tracer.tensors[other.name].shape
    if shapes[0] != shapes[1] or node.kwargs.get("alpha", 1) != 1:
        raise GraphError(
            f"operator '{label(node)}' adds shapes {shapes[0]} and {shapes[1]}; "
            "allowed: two tensors of one shape, alpha = 1"
        )
    tracer.add(node, Add(node.name, (one.name, other.name), node.name), one.order)


def _mul(tracer: Tracer, node: fx.Node) -> None:
    one, other = _two_inputs(tracer, node)
    if tracer.tensors[one.name].elements < tracer.tensors[other.name].elements:
        one, other = other, one
    shape, small = tracer.tensors[one.name].shape, tracer.tensors[other.name].shape
    if small not in (shape, (1, 1, shape[-1])):
        raise GraphError(
            f"operator '{label(node)}' multiplies shapes {shape} and {small}; "
            "allowed: one shape, or one factor a channel"
        )
    tracer.add(node, Mul(node.name, (one.name, other.name), node.name), one.order)


def _cat(tracer: Tracer, node: fx.Node) -> None:
    parts = cast(Sequence[Any], node.args[0] if node.args else node.kwargs["tensors"])
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    values = [tracer.value(part, node) for part in parts]
    if axis not in (1, 1 - len(tracer.shapes[node])):
        raise GraphError(f"operator '{label(node)}' joins along axis {axis}; allowed: channels (1)")
    order = _cat_order(values, tracer)
    tracer.add(node, Concat(node.name, tuple(v.name for v in values), node.name), order)


def _cat_order(values: Sequence[Value], tracer: Tracer) -> Array | None:
    if all(value.order is None for value in values):
        return None
    orders, start = [], 0
    for value in values:
        size = tracer.tensors[value.name].elements
        orders.append((np.arange(size) if value.order is None else value.order) + start)
        start += size
    return np.concatenate(orders)


def _pad_function(tracer: Tracer, node: fx.Node) -> None:
    given = dict(zip(("input", "pad", "mode", "value"), node.args, strict=False)) | dict(
        node.kwargs
    )
    if given.get("mode", "constant") != "constant" or given.get("value") not in (None, 0, 0.0):
        raise GraphError(f"operator '{label(node)}' does not pad with zeros; allowed: zeros")
    _pad(tracer, node, cast(Sequence[int], given["pad"]))


def _pad_module(tracer: Tracer, node: fx.Node) -> None:
    module = cast(nn.ZeroPad2d, tracer.module(node))
    if getattr(module, "value", 0) not in (0, 0.0):
        raise GraphError(f"module '{node.target}' does not pad with zeros; allowed: zeros")
    _pad(tracer, node, module.padding)


def _pad(tracer: Tracer, node: fx.Node, sides: Sequence[int]) -> None:
    padded = [*sides, *[0] * (4 - len(sides))]
    left, right, top, bottom = padded[:4]
    if min(padded) < 0 or any(padded[4:]):
        raise GraphError(f"operator '{label(node)}' pads by {tuple(sides)}; allowed: H and W, >= 0")
    source = tracer.value(node.args[0], node)
    name = str(node.target) if node.op == "call_module" else node.name
    tracer.add(node, Pad(name, (source.name,), node.name, (top, bottom, left, right)))


def _softmax(tracer: Tracer, node: fx.Node) -> None:
    source = tracer.value(node.args[0], node)
    if len(tracer.tensors[source.name].shape) != 1:
        raise GraphError(f"operator '{label(node)}' is a softmax over an image; flatten it first")
    name = str(node.target) if node.op == "call_module" else node.name
    tracer.add(node, Softmax(name, (source.name,), node.name), source.order)


def _log_softmax(tracer: Tracer, node: fx.Node) -> None:
    """A closing log-softmax does not move the largest logit, so the graph ends before it."""
    if any(user.op != "output" for user in node.users):
        raise GraphError(
            f"operator '{label(node)}' is a log-softmax inside the network; "
            "it is supported only as the last operator"
        )
    tracer.values[node] = tracer.value(node.args[0], node)


_MODULES: Mapping[Any, Visit] = {
    (nn.Conv1d, nn.Conv2d): _conv,
    nn.Linear: _linear,
    (nn.BatchNorm1d, nn.BatchNorm2d): _batch_norm,
    (nn.MaxPool1d, nn.MaxPool2d): _pool_module("max"),
    (nn.AvgPool1d, nn.AvgPool2d): _pool_module("average"),
    (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d): _adaptive_pool("average"),
    (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d): _adaptive_pool("max"),
    (nn.Flatten, nn.Unflatten): _reshape,
    (nn.ZeroPad1d, nn.ZeroPad2d, nn.ConstantPad1d, nn.ConstantPad2d): _pad_module,
    nn.Softmax: _softmax,
    nn.LogSoftmax: _log_softmax,
}
_FUNCTIONS: Mapping[Any, Visit] = {
    operator.add: _add,
    operator.iadd: _add,
    torch.add: _add,
    "add": _add,
    "add_": _add,
    operator.mul: _mul,
    operator.imul: _mul,
    torch.mul: _mul,
    "mul": _mul,
    torch.cat: _cat,
    torch.concat: _cat,
    F.pad: _pad_function,
    F.max_pool2d: _pool_function("max"),
    torch.max_pool2d: _pool_function("max"),
    F.max_pool1d: _pool_function("max"),
    F.avg_pool2d: _pool_function("average"),
    F.avg_pool1d: _pool_function("average"),
    F.adaptive_avg_pool2d: _adaptive_pool("average"),
    F.adaptive_avg_pool1d: _adaptive_pool("average"),
    F.adaptive_max_pool2d: _adaptive_pool("max"),
    torch.mean: _mean,
    "mean": _mean,
    F.softmax: _softmax,
    torch.softmax: _softmax,
    "softmax": _softmax,
    F.log_softmax: _log_softmax,
    torch.log_softmax: _log_softmax,
    "log_softmax": _log_softmax,
}
