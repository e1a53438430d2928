"""One torch operator at a time: what each fx node becomes in the graph, or why it cannot."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
    Pad,
    Pool2D,
    Reshape,
    Softmax,
)
from dse.graph.layers import (
    adaptive_pool,
    batch_norm,
    conv,
    linear,
    mean,
    pool_function,
    pool_module,
)
from dse.graph.tracer import Tracer, Value, Visit, hwc, label

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
    (nn.Conv1d, nn.Conv2d): conv,
    nn.Linear: linear,
    (nn.BatchNorm1d, nn.BatchNorm2d): batch_norm,
    (nn.MaxPool1d, nn.MaxPool2d): pool_module("max"),
    (nn.AvgPool1d, nn.AvgPool2d): pool_module("average"),
    (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d): adaptive_pool("average"),
    (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d): adaptive_pool("max"),
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
    F.max_pool2d: pool_function("max"),
    torch.max_pool2d: pool_function("max"),
    F.max_pool1d: pool_function("max"),
    F.avg_pool2d: pool_function("average"),
    F.avg_pool1d: pool_function("average"),
    F.adaptive_avg_pool2d: adaptive_pool("average"),
    F.adaptive_avg_pool1d: adaptive_pool("average"),
    F.adaptive_max_pool2d: adaptive_pool("max"),
    torch.mean: mean,
    "mean": mean,
    F.softmax: _softmax,
    torch.softmax: _softmax,
    "softmax": _softmax,
    F.log_softmax: _log_softmax,
    torch.log_softmax: _log_softmax,
    "log_softmax": _log_softmax,
}
