"""Runs a graph on a batch: exactly in integers under either rounding contract, or in float32.

Integer accumulators are computed by floating-point convolutions on integer values: in float32 where
no partial sum can reach 2^24, in float64 (exact to 2^53) elsewhere. Requantization is int64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from dse.errors import GraphError
from dse.graph import interpolation, softmax
from dse.graph.entry import entry_shape
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
    FUNCTIONS,
    INTEGER_LIMITS,
    Rounding,
    add_multipliers,
    lookup_table,
    output_limits,
    quantize_multiplier,
    requantize,
    requantize_wide,
    rescale_multiplier,
    wide_multiplier,
)

_EXACT_FLOAT32 = 2**24
_BATCH_BYTES = 32 * 2**20
Values = dict[str, torch.Tensor]


def run(graph: Graph, inputs: torch.Tensor, rounding: Rounding = "double") -> torch.Tensor:
    """The graph's output (N, classes) for float `inputs` (N, C, H, W), (N, C, L) or (N, F).

    An integer graph quantizes the inputs by its input tensor and returns int64 values, exactly
    those that a target under the `rounding` contract computes; a float graph returns float32.
    """
    size = _batch_size(graph)
    with torch.no_grad(), torch.backends.nnpack.flags(enabled=False):
        parts = [_run_batch(graph, part, rounding) for part in torch.split(inputs, size)]
    return torch.cat(parts)


def accuracy(
    graph: Graph, inputs: torch.Tensor, labels: torch.Tensor, rounding: Rounding = "double"
) -> float:
    """Share of `inputs` that the graph classifies as `labels` (N,)."""
    return float((classes(graph, inputs, rounding) == labels.numpy()).mean())


def classes(
    graph: Graph, inputs: torch.Tensor, rounding: Rounding = "double"
) -> npt.NDArray[np.int64]:
    """The class (N,) that the graph takes each input for: the first of its largest outputs."""
    found: npt.NDArray[np.int64] = run(graph, inputs, rounding).numpy().argmax(axis=1)
    return found


def observe(graph: Graph, inputs: torch.Tensor) -> dict[str, tuple[float, float]]:
    """(lowest, highest) value of every tensor of a float graph over `inputs`."""
    if graph.integer:
        raise GraphError("ranges are observed on the float graph, before quantization")
    ranges: dict[str, tuple[float, float]] = {}
    for values in activations(graph, inputs):
        for name, value in values.items():
            low, high = (float(v) for v in value.aminmax())
            known = ranges.get(name, (low, high))
            ranges[name] = (min(low, known[0]), max(high, known[1]))
    return ranges


def activations(graph: Graph, inputs: torch.Tensor) -> Iterator[Values]:
    """The values of every tensor of a graph by name, one batch of `inputs` after another.

    (N, C, H, W) or (N, F); those of an integer graph are its integers.
    """
    kernels = _INTEGER if graph.integer else _FLOAT
    with torch.no_grad(), torch.backends.nnpack.flags(enabled=False):
        for part in torch.split(inputs, _batch_size(graph)):
            entry = _entry(graph, part)
            entry = quantize_input(graph.tensors[graph.input], entry) if graph.integer else entry
            yield _forward(graph, entry, kernels, "double")


def run_float(
    graph: Graph,
    inputs: torch.Tensor,
    weights: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    change: Callable[[str, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """The output (N, classes) of a float graph, in torch operations that carry gradients.

    `weights` are each layer's weight, (O, I, H, W) or (O, I), and bias (O,); `change` gets every
    tensor's name and value, the input's included, and returns the value that is used.
    """
    values: Values = {graph.input: change(graph.input, _entry(graph, inputs))}
    for op in graph.ops:
        xs = [values[name] for name in op.inputs]
        if isinstance(op, Conv2D | FullyConnected):
            weight, bias = weights[op.name]
            total = accumulate(op, xs[0], weight) + _per_channel(bias, xs[0])
            value = _activate(total, op.activation)
        else:
            value = _FLOAT[type(op)](graph, op, xs, "double")
        values[op.output] = change(op.output, value)
    return values[graph.output]


def quantize_input(tensor: Tensor, values: torch.Tensor) -> torch.Tensor:
    """Float values as the integers of the input tensor (rounded half to even, clipped)."""
    scaled = torch.round(values.double() / cast(float, tensor.scale)) + tensor.zero_point
    return scaled.clamp(*INTEGER_LIMITS[tensor.dtype]).float()


def _batch_size(graph: Graph) -> int:
    largest = max(tensor.elements for tensor in graph.tensors.values())
    return max(1, min(1024, _BATCH_BYTES // (8 * largest)))


def _entry(graph: Graph, inputs: torch.Tensor) -> torch.Tensor:
    return inputs.reshape(-1, *entry_shape(graph, tuple(inputs.shape[1:])))


def _run_batch(graph: Graph, inputs: torch.Tensor, rounding: Rounding) -> torch.Tensor:
    entry = _entry(graph, inputs)
    if not graph.integer:
        return _forward(graph, entry, _FLOAT, rounding)[graph.output]
    entry = quantize_input(graph.tensors[graph.input], entry)
    return _forward(graph, entry, _INTEGER, rounding)[graph.output].long()


_Kernel = Callable[[Graph, Any, list[torch.Tensor], Rounding], torch.Tensor]


def _forward(
    graph: Graph, entry: torch.Tensor, kernels: Mapping[type[Op], _Kernel], rounding: Rounding
) -> Values:
    """Every tensor's values, (N, C, H, W) or (N, F); integers are held in float32."""
    values: Values = {graph.input: entry}
    for op in graph.ops:
        inputs = [values[name] for name in op.inputs]
        values[op.output] = kernels[type(op)](graph, op, inputs, rounding)
    return values


# --- float -------------------------------------------------------------------------------------


def _activate(x: torch.Tensor, activation: str) -> torch.Tensor:
    if activation == "none":
        return x
    return x.clamp(0, 6) if activation == "relu6" else x.relu()


def _float_weighted(graph: Graph, op: Any, xs: list[torch.Tensor], _: Rounding) -> torch.Tensor:
    constants = _constants(op)
    bias = torch.from_numpy(np.asarray(op.bias, dtype=np.float32))
    return _activate(
        accumulate(op, xs[0], constants.weight) + _per_channel(bias, xs[0]), op.activation
    )


def _float_pool(graph: Graph, op: Pool2D, xs: list[torch.Tensor], _: Rounding) -> torch.Tensor:
    if op.mode == "max":
        result = _max_pool(op, xs[0])
    else:
        result = _window_sum(op, xs[0]) / _window_count(op, xs[0])
    return _activate(result, op.activation)


def _float_lookup(graph: Graph, op: Lookup, xs: list[torch.Tensor], _: Rounding) -> torch.Tensor:
    functions: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "hardswish": F.hardswish,
        "hardsigmoid": F.hardsigmoid,
        "relu": F.relu,
        "relu6": F.relu6,
    }
    return functions[op.function](xs[0])


def _reshape(graph: Graph, op: Reshape, xs: list[torch.Tensor], _: Rounding) -> torch.Tensor:
    shape = graph.tensors[op.output].shape
    x = xs[0].permute(0, 2, 3, 1) if xs[0].dim() == 4 else xs[0]
    x = x.reshape(len(x), *shape)
    return x.permute(0, 3, 1, 2) if len(shape) == 3 else x


# --- exact integers ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Constants:
    """Weights (O, I, H, W) or (O, I) and, for integers, the largest sum of magnitudes."""

    weight: torch.Tensor
    largest_sum: float


@lru_cache(maxsize=32)
def _constants(op: WeightedOp) -> _Constants:
    values = op.weight.values
    if values is None:
        raise GraphError(f"layer '{op.name}' has no weight values; this is a graph of shapes")
    array = values.transpose(0, 3, 1, 2) if values.ndim == 4 else values
    sums = np.abs(values.reshape(len(values), -1).astype(np.float64)).sum(axis=1)
    return _Constants(torch.from_numpy(array.astype(np.float32)), float(sums.max()))


def accumulate(op: WeightedOp, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Sums of a layer without its bias: weights (O, I, H, W) or (O, I) over inputs (N, ...)."""
    if isinstance(op, FullyConnected):
        return F.linear(x, weight)
    top, bottom, left, right = op.padding
    if top == bottom and left == right:
        return F.conv2d(x, weight, None, op.stride, (top, left), op.dilation, op.groups)
    x = F.pad(x, (left, right, top, bottom))
    return F.conv2d(x, weight, None, op.stride, 0, op.dilation, op.groups)


def _per_channel(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.view(1, -1, 1, 1) if like.dim() == 4 else values.view(1, -1)


def _weighted(graph: Graph, op: Any, xs: list[torch.Tensor], rounding: Rounding) -> torch.Tensor:
    source, target = graph.tensors[op.inputs[0]], graph.tensors[op.output]
    constants = _constants(op)
    low, high = INTEGER_LIMITS[source.dtype]
    reach = max(high - source.zero_point, source.zero_point - low)
    exact32 = constants.largest_sum * reach < _EXACT_FLOAT32
    kind = torch.float32 if exact32 else torch.float64
    shifted = (xs[0] - source.zero_point).to(kind)
    total = accumulate(op, shifted, constants.weight.to(kind)).long()
    total += _per_channel(torch.from_numpy(np.asarray(op.bias, dtype=np.int64)), xs[0])
    wide = target.dtype == "int16"
    factors = [
        wide_multiplier(real, rounding) if wide else quantize_multiplier(real)
        for real in (
            cast(float, source.scale) * float(s) / cast(float, target.scale)
            for s in op.weight.scales
        )
    ]
    multiplier, shift = (
        _per_channel(torch.tensor(part, dtype=torch.int64), xs[0])
        for part in zip(*factors, strict=True)
    )
    if wide:
        scaled = requantize_wide(total, multiplier, shift)
    else:
        scaled = requantize(total, multiplier, shift, rounding)
    return _finish(scaled, target, op.activation)


def _finish(total: torch.Tensor, target: Tensor, activation: str) -> torch.Tensor:
    low, high = output_limits(target, activation)
    return (total + target.zero_point).clamp(low, high).float()


def _add(graph: Graph, op: Add, xs: list[torch.Tensor], rounding: Rounding) -> torch.Tensor:
    """TensorFlow Lite's ADD: both inputs to one scale with more bits, then to the output's."""
    tensors = [graph.tensors[name] for name in (*op.inputs, op.output)]
    left = ADD_LEFT_SHIFT[tensors[2].dtype]
    one, other, out = (cast(float, tensor.scale) for tensor in tensors)
    *inputs, output = add_multipliers(one, other, out, left)
    total = torch.zeros((), dtype=torch.int64)
    for x, tensor, (multiplier, shift) in zip(xs, tensors, inputs, strict=False):
        wide = (x.long() - tensor.zero_point) << left
        total = total + requantize(wide, multiplier, shift, rounding)
    return _finish(requantize(total, *output, rounding), tensors[2], op.activation)


def _mul(graph: Graph, op: Mul, xs: list[torch.Tensor], rounding: Rounding) -> torch.Tensor:
    one, other, target = (graph.tensors[name] for name in (*op.inputs, op.output))
    real = cast(float, one.scale) * cast(float, other.scale) / cast(float, target.scale)
    product = (xs[0].long() - one.zero_point) * (xs[1].long() - other.zero_point)
    scaled = requantize(product, *quantize_multiplier(real), rounding)
    return _finish(scaled, target, op.activation)


def _pool(graph: Graph, op: Pool2D, xs: list[torch.Tensor], _: Rounding) -> torch.Tensor:
    low, high = output_limits(graph.tensors[op.output], op.activation)
    if op.mode == "max":
        return _max_pool(op, xs[0]).clamp(low, high)
    total = _window_sum(op, xs[0].double()).long()
    count = _window_count(op, xs[0].double()).long()
    half = torch.div(count, 2, rounding_mode="floor")
    nudged = torch.where(total > 0, total + half, total - half)
    return torch.div(nudged, count, rounding_mode="trunc").clamp(low, high).float()


def _max_pool(op: Pool2D, x: torch.Tensor) -> torch.Tensor:
    top, bottom, left, right = op.padding
    if any(op.padding):
        x = F.pad(x, (left, right, top, bottom), value=float("-inf"))
    return F.max_pool2d(x, op.kernel, op.stride)


def _window_sum(op: Pool2D, x: torch.Tensor) -> torch.Tensor:
    top, bottom, left, right = op.padding
    if any(op.padding):
        x = F.pad(x, (left, right, top, bottom))
    return F.avg_pool2d(x, op.kernel, op.stride, divisor_override=1)


def _window_count(op: Pool2D, x: torch.Tensor) -> torch.Tensor:
    return _window_sum(op, torch.ones_like(x[:1, :1]))


def _pad(graph: Graph, op: Pad, xs: list[torch.Tensor], _: Rounding) -> torch.Tensor:
    top, bottom, left, right = op.padding
    tensor = graph.tensors[op.output]
    return F.pad(xs[0], (left, right, top, bottom), value=float(tensor.zero_point))


def _lookup(graph: Graph, op: Lookup, xs: list[torch.Tensor], rounding: Rounding) -> torch.Tensor:
    source, target = graph.tensors[op.inputs[0]], graph.tensors[op.output]
    if target.dtype == "int16":
        return _wide_lookup(op, xs[0].long(), source, target, rounding)
    table = lookup_table(op.function, source, target)
    return torch.tensor(table, dtype=torch.float32)[xs[0].long() + 128]


def _wide_lookup(
    op: Lookup, x: torch.Tensor, source: Tensor, target: Tensor, rounding: Rounding
) -> torch.Tensor:
    """Curves in Q15, then to the output's scale; clamps; tables with interpolation for the rest."""
    scale, name = cast(float, source.scale), op.function
    if name in interpolation.CURVES:
        x = torch.from_numpy(interpolation.CURVES[name](x.numpy(), scale))
        source = interpolation.unit(source)
    elif name not in ("relu", "relu6"):
        entries = interpolation.table(FUNCTIONS[name], scale, cast(float, target.scale))
        values = interpolation.interpolate(x.numpy(), np.array(entries, dtype=np.int64))
        return torch.from_numpy(values).float()
    scaled = requantize(x, *rescale_multiplier(source, target), rounding)
    return _finish(scaled, target, name if name in ("relu", "relu6") else "none")


def _softmax(graph: Graph, op: Softmax, xs: list[torch.Tensor], _: Rounding) -> torch.Tensor:
    source = graph.tensors[op.inputs[0]]
    scale = cast(float, source.scale)
    if source.dtype == "int16":
        return torch.from_numpy(softmax.wide_softmax(xs[0].long().numpy(), scale)).float()
    return torch.from_numpy(softmax.integer_softmax(xs[0].long().numpy(), scale)).float()


def _concat(graph: Graph, op: Concat, xs: list[torch.Tensor], _: Rounding) -> torch.Tensor:
    return torch.cat(xs, dim=1)


_FLOAT: Mapping[type[Op], _Kernel] = {
    Conv2D: _float_weighted,
    FullyConnected: _float_weighted,
    Add: lambda g, op, xs, r: _activate(xs[0] + xs[1], op.activation),
    Mul: lambda g, op, xs, r: _activate(xs[0] * xs[1], op.activation),
    Concat: _concat,
    Pad: _pad,
    Reshape: _reshape,
    Pool2D: _float_pool,
    Lookup: _float_lookup,
    Softmax: lambda g, op, xs, r: torch.softmax(xs[0], dim=1),
}
_INTEGER: Mapping[type[Op], _Kernel] = {
    Conv2D: _weighted,
    FullyConnected: _weighted,
    Add: _add,
    Mul: _mul,
    Concat: _concat,
    Pad: _pad,
    Reshape: _reshape,
    Pool2D: _pool,
    Lookup: _lookup,
    Softmax: _softmax,
}
