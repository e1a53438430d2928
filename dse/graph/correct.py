"""What quantization after training can make good with a few samples and no labels.

Adaptive rounding: the weights of a layer are rounded one input at a time, and what each rounding is
off by is put on the weights that are still to be rounded, by the second moments of the layer's own
inputs (Frantar et al., arXiv 2208.11580 and 2210.17323). It is linear algebra: no learning rate, no
draws. Bias correction: what the mean of a channel has moved by goes into its bias (Nagel et al.,
arXiv 1906.04721, with data). Inputs are those of the integer network, errors of the layers before
included.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from dse.graph import execute
from dse.graph.blocks import shares_magnitudes
from dse.graph.ir import Array, Conv2D, FullyConnected, Graph, WeightedOp
from dse.graph.quantize import INT32_MAX, quantize_layer

# Added to the second moments, as a share of their mean: inputs that are always zero have none.
DAMPING = 0.01
MOMENT_SAMPLES = 256


def round_adaptively(graph: Graph, start: Graph, inputs: torch.Tensor) -> Graph:
    """`start`, the integer graph that `quantize` makes of the float `graph`, rounded better.

    Scales, bits, code books and zeros of pruned weights stay. `inputs` (N, C, H, W), (N, C, L) or
    (N, F) are training samples, of which the first 256 are used.
    """
    samples = inputs[:MOMENT_SAMPLES]
    for name in [op.name for op in start.weighted]:
        op, rounded = _layer(graph, name), _layer(start, name)
        form = rounded.weight  # a weight that shares has no rounding of its own
        if form.entries or shares_magnitudes(form.pattern):
            continue
        moments = _moments(start, rounded, samples)
        start = _replaced(start, _rounded(op, rounded, moments, start))
    return start


def correct_biases(graph: Graph, start: Graph, inputs: torch.Tensor) -> Graph:
    """`start` with biases for which the mean sum of every channel is that of the float `graph`."""
    wanted = _float_means(graph, inputs)
    for name in [op.name for op in start.weighted]:
        op = _layer(start, name)
        scale = start.tensors[op.inputs[0]].scale
        assert scale is not None
        assert op.weight.scales is not None
        steps = scale * op.weight.scales
        off = wanted[name] / steps - _integer_means(start, op, inputs)
        bias = np.clip(np.asarray(op.bias) + np.rint(off), -INT32_MAX, INT32_MAX)
        start = _replaced(start, replace(op, bias=bias.astype(np.int64)))
    return start


def _layer(graph: Graph, name: str) -> WeightedOp:
    op = graph.op(name)
    assert isinstance(op, Conv2D | FullyConnected)
    return op


def _replaced(graph: Graph, changed: WeightedOp) -> Graph:
    ops = tuple(changed if op.name == changed.name else op for op in graph.ops)
    return replace(graph, ops=ops)


# --- means ---------------------------------------------------------------------------------------


def _float_means(graph: Graph, inputs: torch.Tensor) -> dict[str, Array]:
    """Mean sum of every channel of every layer, bias included."""
    totals: dict[str, Array] = {}
    for values in execute.activations(graph, inputs):
        for op in graph.weighted:
            sums = _sums(op, values[op.inputs[0]].double())
            totals[op.name] = totals.get(op.name, 0.0) + sums
    return {op.name: totals[op.name] / len(inputs) + np.asarray(op.bias) for op in graph.weighted}


def _integer_means(graph: Graph, op: WeightedOp, inputs: torch.Tensor) -> Array:
    source = graph.tensors[op.inputs[0]]
    total = np.zeros(op.weight.shape[0])
    for values in execute.activations(graph, inputs):
        total += _sums(op, values[source.name].double() - source.zero_point)
    means: Array = total / len(inputs) + np.asarray(op.bias)
    return means


def _sums(op: WeightedOp, x: torch.Tensor) -> Array:
    """Sums of the accumulators (O,), averaged over pixels, in all over the batch."""
    values = op.weight.values
    assert values is not None
    weight = torch.from_numpy(values.astype(np.float64))
    weight = weight.permute(0, 3, 1, 2).contiguous() if weight.dim() == 4 else weight
    with torch.no_grad():
        found = execute.accumulate(op, x, weight)
        each = found.mean((2, 3)) if found.dim() == 4 else found
    return np.asarray(each.sum(0).numpy())


# --- rounding ------------------------------------------------------------------------------------


def _moments(graph: Graph, op: WeightedOp, inputs: torch.Tensor) -> Array:
    """Second moments (groups, taps, taps) of what a layer multiplies, as the weights' rows lie."""
    source = graph.tensors[op.inputs[0]]
    groups = op.groups if isinstance(op, Conv2D) else 1
    taps = op.weight.size // op.weight.shape[0]
    total = torch.zeros(groups, taps, taps, dtype=torch.float64)
    for values in execute.activations(graph, inputs):
        columns = _columns(op, values[source.name] - source.zero_point, groups)
        total += (columns @ columns.transpose(1, 2)).double()
    return np.asarray(total.numpy())


def _columns(op: WeightedOp, x: torch.Tensor, groups: int) -> torch.Tensor:
    """(groups, taps, samples): the taps in the order (H, W, I) of the weights."""
    if not isinstance(op, Conv2D):
        return x.T[None]
    top, bottom, left, right = op.padding
    x = F.pad(x, (left, right, top, bottom))
    height, width = op.kernel
    found = F.unfold(x, op.kernel, op.dilation, 0, op.stride)  # (N, C * H * W, pixels)
    found = found.reshape(len(x), groups, -1, height * width, found.shape[-1])
    return found.permute(1, 3, 2, 0, 4).reshape(groups, height * width * found.shape[2], -1)


def _rounded(op: WeightedOp, start: WeightedOp, moments: Array, graph: Graph) -> WeightedOp:
    values, scales = op.weight.values, start.weight.scales
    assert values is not None
    assert scales is not None
    pruned = start.weight.kept < start.weight.size
    rows = values.reshape(len(scales), -1) / scales[:, None]
    kept = (rows != 0) if pruned else np.ones(rows.shape, dtype=bool)
    limit = 2 ** (start.weight.bits - 1) - 1
    per_group = len(rows) // len(moments)
    parts = [slice(i * per_group, (i + 1) * per_group) for i in range(len(moments))]
    integers = np.concatenate(
        [
            _sequential(rows[part], kept[part], moment, limit)
            for part, moment in zip(parts, moments, strict=True)
        ]
    )
    exact = (integers * scales[:, None]).reshape(values.shape)
    scale = graph.tensors[op.inputs[0]].scale or 1.0
    return quantize_layer(op, exact, scales, start.weight, scale)


def _sequential(rows: Array, kept: Array, moments: Array, limit: int) -> Array:
    """Integers (outputs, taps) for `rows` in steps, the inputs with the largest moments first."""
    order = np.argsort(-np.diag(moments), kind="stable")
    left, mask = rows[:, order].astype(np.float64), kept[:, order]
    damped = moments[np.ix_(order, order)]
    damped = damped + np.eye(len(order)) * (DAMPING * float(np.diag(moments).mean()) or 1.0)
    # The upper factor of the inverse: its rows say how an error is made good by what follows.
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    found = np.zeros_like(left)
    for column in range(left.shape[1]):
        nearest = np.clip(np.rint(left[:, column]), -limit, limit)
        found[:, column] = np.where(mask[:, column], nearest, 0)
        error = (left[:, column] - found[:, column]) / upper[column, column]
        left[:, column + 1 :] -= error[:, None] * upper[column, column + 1 :]
    integers: Array = found[:, np.argsort(order)]
    return integers
