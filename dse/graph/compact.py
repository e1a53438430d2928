"""Removes dead channels: the network computes the same bytes with fewer of them.

A channel is dead when a layer's weights for it are zero (or read constants only), so that its value
is known before run time. Its constant goes into the biases of the layers that read it; at a padded
border that has no exact form, so there the channel goes only where nothing reads it. What is tied
to a channel goes with it: depthwise filters, both sides of a sum, the pixels of a flattened image.
X-CUBE-AI from 8.1 and Plumerai do the same; the MLPerf Tiny visual wake words model shrinks from
7,489,664 to 3,742,091 multiply-accumulates. A channel that computes something nobody reads stays:
no runtime is known to look for it.

Exact in int8 only: where the rounding contracts disagree about a constant, its channel stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from dse.graph.ir import (
    Add,
    Array,
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
    Tensor,
    Weight,
    WeightedOp,
)
from dse.graph.numerics import (
    ROUNDINGS,
    Rounding,
    add_multipliers,
    lookup_table,
    output_limits,
    quantize_multiplier,
    requantize,
)

Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
ADD_LEFT_SHIFT = 20
INT32_MAX = 2**31 - 1


def compact(graph: Graph) -> Graph:
    """The graph without its dead channels; the same outputs under both rounding contracts.

    A graph of shapes, of floats or of int16 is returned as it is, as is one without dead channels.
    Every layer keeps at least one channel.
    """
    known = all(op.weight.values is not None and op.bias is not None for op in graph.weighted)
    if not known or any(tensor.dtype != "int8" for tensor in graph.tensors.values()):
        return graph
    while (smaller := _once(graph)) is not graph:
        graph = smaller
    return graph


def dead_channels(graph: Graph) -> int:
    """How many output channels of layers `compact` removes."""
    before, after = graph.weighted, compact(graph).weighted
    return sum(op.weight.shape[0] for op in before) - sum(op.weight.shape[0] for op in after)


@dataclass(frozen=True)
class _Constants:
    """By channel of a tensor: whether its value is one constant everywhere, and which."""

    known: Bools
    values: Int64


def _once(graph: Graph) -> Graph:
    labels = _Labels(graph)
    constants = _constants(graph)
    kept = labels.kept(_needed(graph, labels, constants))
    if all(mask.all() for mask in kept.values()):
        return graph
    tensors = {
        name: replace(t, shape=(*t.shape[:-1], int(kept[name].sum())))
        for name, t in graph.tensors.items()
    }
    ops = tuple(_narrowed(op, graph, kept, constants) for op in graph.ops)
    return replace(graph, tensors=tensors, ops=ops)


# --- which channels go together -----------------------------------------------------------------


class _Labels:
    """A number for every channel of every tensor; tied channels share one (union-find)."""

    def __init__(self, graph: Graph) -> None:
        self._parent: list[int] = [0]  # number 0 is what must stay
        self._of: dict[str, Int64] = {graph.input: np.zeros(_channels(graph, graph.input), int)}
        for op in graph.ops:
            self._of[op.output] = self._after(graph, op)
        self.freeze(self._of[graph.output])

    def of(self, tensor: str) -> Int64:
        """The numbers of a tensor's channels."""
        return np.array([self._find(int(label)) for label in self._of[tensor]])

    def all(self) -> set[int]:
        """Every number in use."""
        return {self._find(label) for label in range(len(self._parent))}

    def freeze(self, labels: Int64) -> None:
        """These channels stay."""
        for label in labels:
            self._tie(0, int(label))

    def kept(self, needed: set[int]) -> dict[str, Bools]:
        """By tensor, which channels stay; a tensor that would lose all keeps its first."""
        while True:
            masks = {t: np.isin(self.of(t), list(needed | {0})) for t in self._of}
            empty = [t for t, mask in masks.items() if not mask.any()]
            if not empty:
                return masks
            needed = needed | {int(self.of(tensor)[0]) for tensor in empty}

    def _new(self, count: int) -> Int64:
        first = len(self._parent)
        self._parent += range(first, first + count)
        return np.arange(first, first + count)

    def _find(self, label: int) -> int:
        while self._parent[label] != label:
            self._parent[label] = self._parent[self._parent[label]]
            label = self._parent[label]
        return label

    def _tie(self, one: int, other: int) -> None:
        low, high = sorted((self._find(one), self._find(other)))
        self._parent[high] = low

    def _after(self, graph: Graph, op: Op) -> Int64:
        source = self._of[op.inputs[0]]
        if isinstance(op, Conv2D | FullyConnected):
            if isinstance(op, Conv2D) and op.groups > 1:
                if _per_channel(op):
                    return source
                self.freeze(source)
                return np.zeros(op.weight.shape[0], int)
            return self._new(op.weight.shape[0])
        if isinstance(op, Add | Mul):
            for one, other in zip(source, self._of[op.inputs[1]], strict=True):
                self._tie(int(one), int(other))
            return source
        if isinstance(op, Concat):
            return np.concatenate([self._of[name] for name in op.inputs])
        if isinstance(op, Pool2D | Pad | Lookup):
            return source
        return self._after_reshape(graph, op)

    def _after_reshape(self, graph: Graph, op: Op) -> Int64:
        before, after = graph.tensors[op.inputs[0]].shape, graph.tensors[op.output].shape
        if isinstance(op, Reshape) and before[-1] == after[-1]:
            return self._of[op.inputs[0]]
        if isinstance(op, Reshape) and len(after) == 1:
            return np.tile(self._of[op.inputs[0]], after[0] // before[-1])
        self.freeze(self._of[op.inputs[0]])
        return np.zeros(after[-1], int)


def _channels(graph: Graph, tensor: str) -> int:
    return graph.tensors[tensor].channels


def _per_channel(op: Conv2D) -> bool:
    """A depthwise convolution with one filter a channel."""
    return op.depthwise and op.groups == op.weight.shape[0]


def _needed(graph: Graph, labels: _Labels, constants: Mapping[str, _Constants]) -> set[int]:
    """Numbers of the channels that are alive, or that some layer cannot do without."""
    dead = {
        int(label)
        for op in graph.weighted
        for label in labels.of(op.output)[constants[op.output].known]
    }
    needed = labels.all() - dead
    for op in graph.weighted:
        if isinstance(op, Conv2D) and op.groups > 1:
            continue
        absorbed = _steady(op, graph, constants[op.inputs[0]]) | ~_by_input(op).any(axis=(0, 1))
        needed |= set(labels.of(op.inputs[0])[~absorbed].tolist())
        # A sum that would leave the 32 bits of a bias keeps everything.
        if np.abs(_folded_bias(op, graph, constants[op.inputs[0]], absorbed)).max() > INT32_MAX:
            needed |= set(labels.of(op.inputs[0]).tolist())
    return needed


def _by_input(op: WeightedOp) -> Int64:
    """The weights as (O, taps, I)."""
    values = np.asarray(op.weight.values, dtype=np.int64)
    return values.reshape(values.shape[0], -1, values.shape[-1])


def _steady(op: WeightedOp, graph: Graph, constants: _Constants) -> Bools:
    """Input channels that add the same at every pixel: constants, or zero beside padding."""
    if isinstance(op, Conv2D) and any(op.padding):
        steady: Bools = constants.known & (
            constants.values == graph.tensors[op.inputs[0]].zero_point
        )
        return steady
    return constants.known


def _folded_bias(op: WeightedOp, graph: Graph, constants: _Constants, gone: Bools) -> Int64:
    """The bias with what the channels in `gone` add."""
    zero = graph.tensors[op.inputs[0]].zero_point
    shifted = np.where(constants.known, constants.values - zero, 0)
    added = _by_input(op).sum(axis=1)[:, gone] @ shifted[gone]
    total: Int64 = np.asarray(op.bias, dtype=np.int64) + added
    return total


# --- which channels are constant ----------------------------------------------------------------


def _constants(graph: Graph) -> dict[str, _Constants]:
    width = _channels(graph, graph.input)
    found = {graph.input: _Constants(np.zeros(width, bool), np.zeros(width, np.int64))}
    for op in graph.ops:
        found[op.output] = _after(graph, op, [found[name] for name in op.inputs])
    return found


def _after(graph: Graph, op: Op, inputs: Sequence[_Constants]) -> _Constants:
    source, target = graph.tensors[op.inputs[0]], graph.tensors[op.output]
    one = inputs[0]
    if isinstance(op, Conv2D | FullyConnected):
        return _after_weighted(graph, op, one)
    if isinstance(op, Add | Mul):
        known = one.known & inputs[1].known
        return _agreed(known, [_combined(graph, op, inputs, r) for r in ROUNDINGS])
    if isinstance(op, Lookup):
        table = np.array(lookup_table(op.function, source, target))
        return _Constants(one.known, table[one.values + 128])
    if isinstance(op, Pool2D):
        low, high = output_limits(target, op.activation)
        return _Constants(one.known, one.values.clip(low, high))
    if isinstance(op, Pad):
        same = one.known & (one.values == target.zero_point)
        return _Constants(same if any(op.padding) else one.known, one.values)
    if isinstance(op, Concat):
        known = np.concatenate([found.known for found in inputs])
        return _Constants(known, np.concatenate([found.values for found in inputs]))
    return _after_reshape(op, source, target, one)


def _after_reshape(op: Op, source: Tensor, target: Tensor, one: _Constants) -> _Constants:
    if isinstance(op, Reshape) and source.channels == target.channels:
        return one
    if isinstance(op, Reshape) and len(target.shape) == 1:
        times = target.channels // source.channels
        return _Constants(np.tile(one.known, times), np.tile(one.values, times))
    return _Constants(np.zeros(target.channels, bool), np.zeros(target.channels, np.int64))


def _after_weighted(graph: Graph, op: WeightedOp, one: _Constants) -> _Constants:
    source, target = graph.tensors[op.inputs[0]], graph.tensors[op.output]
    steady, weights = _steady(op, graph, one), _by_input(op)
    shifted = np.where(steady, one.values - source.zero_point, 0)
    if isinstance(op, Conv2D) and op.groups > 1:
        if not _per_channel(op):
            known = ~weights.any(axis=(1, 2))
            added = np.zeros(op.weight.shape[0], dtype=np.int64)
        else:
            known = steady | ~weights.any(axis=(1, 2))
            added = weights.sum(axis=(1, 2)) * shifted
    else:
        known = ~weights[:, :, ~steady].any(axis=(1, 2))
        added = weights.sum(axis=1) @ shifted
    total = np.asarray(op.bias, dtype=np.int64) + added
    scales = np.asarray(op.weight.scales, dtype=np.float64)
    ratio = (source.scale or 1.0, target.scale or 1.0)
    factors = [quantize_multiplier(ratio[0] * float(scale) / ratio[1]) for scale in scales]
    multiplier, shift = (np.array(part, dtype=np.int64) for part in zip(*factors, strict=True))
    return _agreed(
        known & (np.abs(total) <= INT32_MAX),
        [
            _finish(requantize(total, multiplier, shift, r), target, op.activation)
            for r in ROUNDINGS
        ],
    )


def _combined(graph: Graph, op: Op, inputs: Sequence[_Constants], rounding: Rounding) -> Int64:
    """ADD and MUL of constants, as `dse.graph.execute` computes them."""
    one, other, target = (graph.tensors[name] for name in (*op.inputs, op.output))
    scales = (one.scale or 1.0, other.scale or 1.0, target.scale or 1.0)
    shifted = [
        found.values - tensor.zero_point for found, tensor in zip(inputs, (one, other), strict=True)
    ]
    if isinstance(op, Mul):
        factor = quantize_multiplier(scales[0] * scales[1] / scales[2])
        return _finish(
            requantize(shifted[0] * shifted[1], *factor, rounding), target, op.activation
        )
    assert isinstance(op, Add)
    *factors, output = add_multipliers(*scales)
    total = sum(
        requantize(values << ADD_LEFT_SHIFT, *factor, rounding)
        for values, factor in zip(shifted, factors, strict=True)
    )
    return _finish(requantize(total, *output, rounding), target, op.activation)


def _finish(total: Int64, target: Tensor, activation: str) -> Int64:
    low, high = output_limits(target, activation)
    found: Int64 = (total + target.zero_point).clip(low, high)
    return found


def _agreed(known: Bools, values: Sequence[Int64]) -> _Constants:
    """Constants that both rounding contracts give."""
    return _Constants(known & (values[0] == values[1]), values[0])


# --- the smaller operators ----------------------------------------------------------------------


def _narrowed(
    op: Op, graph: Graph, kept: Mapping[str, Bools], constants: Mapping[str, _Constants]
) -> Op:
    if not isinstance(op, Conv2D | FullyConnected):
        return op
    outputs, inputs = kept[op.output], kept[op.inputs[0]]
    if outputs.all() and inputs.all():
        return op
    values, scales = np.asarray(op.weight.values)[outputs], np.asarray(op.weight.scales)[outputs]
    bias = np.asarray(op.bias)
    if isinstance(op, Conv2D) and op.groups > 1:
        weight = _weight(op.weight, values, scales)
        return replace(op, weight=weight, bias=bias[outputs], groups=int(inputs.sum()))
    bias = _folded_bias(op, graph, constants[op.inputs[0]], ~inputs)[outputs]
    weight = _weight(op.weight, np.ascontiguousarray(values[..., inputs]), scales)
    return replace(op, weight=weight, bias=bias)


def _weight(old: Weight, values: Array, scales: Array) -> Weight:
    dense = old.kept == old.size
    kept = -1 if dense else max(1, int(np.count_nonzero(values)))
    return Weight(values.shape, old.bits, kept, values, scales)
