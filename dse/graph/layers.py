"""Layers of torch as operators of the graph: convolutions, linear, batch norm and pooling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import fx, nn

from dse.errors import GraphError
from dse.graph.ir import (
    Array,
    Conv2D,
    FullyConnected,
    Pool2D,
    Reshape,
    Tensor,
    Weight,
)
from dse.graph.tracer import Tracer, Value, Visit, hwc, label

PoolMode = Literal["max", "average"]


def _array(tensor: torch.Tensor | None) -> Array | None:
    return None if tensor is None else tensor.detach().cpu().numpy().astype(np.float64)


def _pair(value: Any) -> tuple[int, int]:
    """(height, width) of an int, a 1-tuple (1-D layers: height 1) or a 2-tuple."""
    if isinstance(value, int):
        return value, value
    values = tuple(int(v) for v in value)
    return (values[0], values[1]) if len(values) == 2 else (1, values[0])


def conv(tracer: Tracer, node: fx.Node) -> None:
    """A convolution, 1-D or 2-D."""
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


def linear(tracer: Tracer, node: fx.Node) -> None:
    """A fully connected layer; its columns follow the order of a flattened image."""
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
        tracer.orders[str(node.target)] = source.order
    bias = _bias(linear.bias, weight.shape[0])
    name = str(node.target)
    tracer.add(node, FullyConnected(name, (source.name,), node.name, _float_weight(weight), bias))


def batch_norm(tracer: Tracer, node: fx.Node) -> None:
    """Folded into the layer before it, or a 1x1 depthwise convolution."""
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


def pool_module(mode: PoolMode) -> Visit:
    """How a pooling module of that mode is visited."""

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


def pool_function(mode: PoolMode) -> Visit:
    """How a pooling function of that mode is visited."""

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


def adaptive_pool(mode: PoolMode) -> Visit:
    """How an adaptive pooling of that mode is visited."""
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


def mean(tracer: Tracer, node: fx.Node) -> None:
    """A mean over height and width: global average pooling."""
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
