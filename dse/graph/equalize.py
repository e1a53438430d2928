"""Cross-layer equalization: channels scaled up in one layer and down in the next, all else equal.

Where ReLU or nothing lies between two layers, dividing an output channel of the first by a factor
and multiplying the second's weights for it by the same leaves the float network as it is. Factors
that make both layers' ranges of a channel equal (Nagel et al., arXiv 1906.04721) leave fewer values
far below the step of a scale that many channels share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from dse.errors import GraphError
from dse.graph.ir import (
    Array,
    Conv2D,
    FullyConnected,
    Graph,
    Lookup,
    Op,
    Pad,
    Pool2D,
    Reshape,
    WeightedOp,
)

SWEEPS = 20
# Channels that are zero on either side have nothing to equalize.
_LEAST = 1e-12


def equalize(graph: Graph) -> Graph:
    """The same float network with equalized layers; the same graph where no pair can be.

    Raises GraphError for a graph of integers or without weight values.
    """
    if graph.integer:
        raise GraphError("layers are equalized in the float graph, before quantization")
    layers = {op.name: _doubled(op) for op in graph.weighted}
    found = pairs(graph)
    for _ in range(SWEEPS if found else 0):
        for one, other in found:
            layers[one], layers[other] = _equalized(layers[one], layers[other])
    changed = {name for pair in found for name in pair}
    ops = tuple(_single(layers[op.name]) if op.name in changed else op for op in graph.ops)
    return replace(graph, ops=ops) if changed else graph


def pairs(graph: Graph) -> tuple[tuple[str, str], ...]:
    """Layers and the only layer that reads each, through operators that a factor passes."""
    readers: dict[str, list[Op]] = {}
    for op in graph.ops:
        for name in op.inputs:
            readers.setdefault(name, []).append(op)
    found = []
    for op in graph.weighted:
        reader = _reader(graph, op, readers)
        if reader is not None:
            found.append((op.name, reader.name))
    return tuple(found)


def _reader(graph: Graph, op: WeightedOp, readers: Mapping[str, list[Op]]) -> WeightedOp | None:
    step: Op = op
    while True:
        if getattr(step, "activation", "none") == "relu6" or step.output == graph.output:
            return None
        following = readers.get(step.output, [])
        if len(following) != 1:
            return None
        step = following[0]
        if isinstance(step, Conv2D | FullyConnected):
            return step if _takes_factors(step) else None
        passes = isinstance(step, Pool2D | Pad) or (
            isinstance(step, Lookup) and step.function == "relu"
        )
        # Flattening keeps the channel as the fastest axis.
        if not passes and not isinstance(step, Reshape):
            return None
        if isinstance(step, Reshape) and not _keeps_channels(graph, step):
            return None


def _keeps_channels(graph: Graph, op: Reshape) -> bool:
    before, after = graph.tensors[op.inputs[0]].shape, graph.tensors[op.output].shape
    return len(after) == 1 or before[-1] == after[-1]


def _takes_factors(op: WeightedOp) -> bool:
    """Plain layers, and depthwise ones with one output a channel."""
    if not isinstance(op, Conv2D) or op.groups == 1:
        return True
    return op.depthwise and op.groups == op.weight.shape[0]


def _doubled(op: WeightedOp) -> WeightedOp:
    values = op.weight.values
    if values is None:
        raise GraphError(f"layer '{op.name}' has no weight values to equalize")
    return replace(op, weight=replace(op.weight, values=values.astype(np.float64)))


def _single(op: WeightedOp) -> WeightedOp:
    values = op.weight.values
    assert values is not None
    return replace(op, weight=replace(op.weight, values=values.astype(np.float32)))


def _equalized(one: WeightedOp, other: WeightedOp) -> tuple[WeightedOp, WeightedOp]:
    """Both with equal ranges of each channel between them: sqrt(r1 * r2)."""
    first, second = one.weight.values, other.weight.values
    assert first is not None
    assert second is not None
    channels = first.shape[0]
    by_input = _by_input(other, second, channels)
    made = np.abs(first.reshape(channels, -1)).max(axis=1)
    read = np.abs(by_input).max(axis=(0, 2))
    used = (made > _LEAST) & (read > _LEAST)
    factor = np.where(used, np.sqrt(made / np.where(used, read, 1.0)), 1.0)
    bias = None if one.bias is None else np.asarray(one.bias) / factor
    scaled = first / factor.reshape(-1, *[1] * (first.ndim - 1))
    rescaled = (by_input * factor[None, :, None]).reshape(second.shape)
    return (
        replace(one, weight=replace(one.weight, values=scaled), bias=bias),
        replace(other, weight=replace(other.weight, values=rescaled)),
    )


def _by_input(op: WeightedOp, values: Array, channels: int) -> Array:
    """As (rest, channels, rest): a channel is the row of a depthwise layer, else innermost."""
    if isinstance(op, Conv2D) and op.groups > 1:
        return values.reshape(1, channels, -1)
    return values.reshape(-1, channels, 1)
