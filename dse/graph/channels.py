"""Which channels are tied together, and the graph of shapes that any choice of widths leaves.

Costs of a candidate come from here, in microseconds and before anything is trained; a property
test holds the result equal to the graph traced from the really pruned network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from dse.errors import CompressionError, nearest
from dse.graph.blocks import ELEMENT, kept_blocks, kept_elements
from dse.graph.code_book import NONE, CodeBooks
from dse.graph.ir import (
    FLOAT_BITS,
    Add,
    Concat,
    Conv2D,
    DType,
    FullyConnected,
    Graph,
    Mul,
    Op,
    Reshape,
    Tensor,
    Weight,
    without_values,
)


@dataclass(frozen=True)
class ChannelGroup:
    """Layers whose output channels must be kept or removed together.

    `name` is the first producer's, which is also the name of the knob; `producers` are every
    convolution or fully connected operator of the group, `stage` the height and width it works at.
    """

    name: str
    channels: int
    producers: tuple[str, ...]
    stage: tuple[int, int]


# A tensor's channels as runs: (variable, times each channel is repeated by a flatten).
_Runs = tuple[tuple[int, int], ...]


class _Ties:
    """Union-find over channel variables; variable 0 is 'frozen'."""

    def __init__(self) -> None:
        self.parent = [0]
        self.sizes = [0]

    def new(self, size: int) -> int:
        self.parent.append(len(self.parent))
        self.sizes.append(size)
        return len(self.parent) - 1

    def find(self, variable: int) -> int:
        while self.parent[variable] != variable:
            variable = self.parent[variable]
        return variable

    def tie(self, one: int, other: int) -> None:
        low, high = sorted((self.find(one), self.find(other)))
        self.parent[high] = low

    def freeze(self, runs: _Runs) -> None:
        for variable, _ in runs:
            self.tie(0, variable)


@lru_cache(maxsize=16)
def _follow(graph: Graph) -> tuple[_Ties, dict[str, _Runs], dict[str, int]]:
    """Variables of every tensor, and the variable that each producer makes."""
    ties = _Ties()
    runs: dict[str, _Runs] = {graph.input: ((ties.new(graph.tensors[graph.input].channels), 1),)}
    ties.freeze(runs[graph.input])
    makes: dict[str, int] = {}
    for op in graph.ops:
        runs[op.output] = _runs_after(op, graph, ties, runs, makes)
    ties.freeze(runs[graph.output])
    return ties, runs, makes


def _runs_after(
    op: Op, graph: Graph, ties: _Ties, runs: dict[str, _Runs], makes: dict[str, int]
) -> _Runs:
    source = runs[op.inputs[0]]
    if isinstance(op, Conv2D | FullyConnected):
        return _runs_of_weighted(op, ties, source, makes)
    if isinstance(op, Add | Mul):
        other = runs[op.inputs[1]]
        _tie_runs(ties, source, other)
        return source
    if isinstance(op, Concat):
        return tuple(run for name in op.inputs for run in runs[name])
    if isinstance(op, Reshape):
        return _runs_after_reshape(op, graph, ties, source)
    return source


def _runs_of_weighted(
    op: Conv2D | FullyConnected, ties: _Ties, source: _Runs, makes: dict[str, int]
) -> _Runs:
    made = ties.new(op.weight.shape[0])
    makes[op.name] = made
    if isinstance(op, Conv2D) and op.groups > 1:
        if op.depthwise and op.groups == op.weight.shape[0] and len(source) == 1:
            ties.tie(made, source[0][0])
        else:
            ties.freeze((*source, (made, 1)))
    return ((made, 1),)


def _tie_runs(ties: _Ties, one: _Runs, other: _Runs) -> None:
    matches = len(one) == len(other) and all(
        a[1] == b[1] and ties.sizes[a[0]] == ties.sizes[b[0]]
        for a, b in zip(one, other, strict=True)
    )
    if not matches:
        ties.freeze((*one, *other))
        return
    for a, b in zip(one, other, strict=True):
        ties.tie(a[0], b[0])


def _runs_after_reshape(op: Reshape, graph: Graph, ties: _Ties, source: _Runs) -> _Runs:
    before, after = graph.tensors[op.inputs[0]].shape, graph.tensors[op.output].shape
    if before[-1] == after[-1]:
        return source
    if len(after) == 1:
        # Flatten: a kept channel keeps all its pixels.
        times = math.prod(before[:-1])
        return tuple((variable, count * times) for variable, count in source)
    ties.freeze(source)
    frozen = ties.new(after[-1])
    ties.freeze(((frozen, 1),))
    return ((frozen, 1),)


@lru_cache(maxsize=16)
def channel_groups(graph: Graph) -> tuple[ChannelGroup, ...]:
    """Groups of output channels that may be removed, in order of their first producer.

    Left out: the last layer, and whatever is tied to it or to the input, or goes through grouped
    convolutions and reshapes that mix channels.
    """
    ties, _, makes = _follow(graph)
    found: dict[int, list[str]] = {}
    for name, variable in makes.items():
        found.setdefault(ties.find(variable), []).append(name)
    groups = []
    for variable, names in found.items():
        if variable == ties.find(0):
            continue
        shape = graph.tensors[graph.op(names[0]).output].shape
        stage = (shape[0], shape[1]) if len(shape) == 3 else (1, 1)
        groups.append(ChannelGroup(names[0], shape[-1], tuple(names), stage))
    return tuple(groups)


def narrow(graph: Graph, widths: Mapping[str, int]) -> Graph:
    """The graph of shapes with `widths[group]` channels kept in each named group.

    Raises CompressionError for a group that does not exist or a width outside 1..channels.
    """
    groups = {group.name: group for group in channel_groups(graph)}
    for name, width in widths.items():
        if name not in groups:
            raise CompressionError(f"layer '{name}' cannot be pruned; {nearest(name, groups)}")
        if not 1 <= width <= groups[name].channels:
            raise CompressionError(
                f"layer '{name}' cannot keep {width} channels; "
                f"allowed: 1 to {groups[name].channels}"
            )
    ties, runs, makes = _follow(graph)
    chosen = {ties.find(makes[name]): width for name, width in widths.items()}
    size = [chosen.get(ties.find(v), whole) for v, whole in enumerate(ties.sizes)]
    return _with_sizes(_shapes(graph), runs, size)


@lru_cache(maxsize=16)
def _shapes(graph: Graph) -> Graph:
    return without_values(graph)


def _with_sizes(graph: Graph, runs: dict[str, _Runs], size: list[int]) -> Graph:
    channels = {
        name: sum(size[variable] * times for variable, times in found)
        for name, found in runs.items()
    }
    tensors = {
        name: _narrow_tensor(tensor, channels[name]) for name, tensor in graph.tensors.items()
    }
    ops = tuple(_narrow_op(op, tensors) for op in graph.ops)
    return replace(graph, tensors=tensors, ops=ops)


# Candidates differ in few layers at a time: what a width makes of one is met again and again.
@lru_cache(maxsize=4096)
def _narrow_tensor(tensor: Tensor, channels: int) -> Tensor:
    if tensor.channels == channels:
        return tensor
    return replace(tensor, shape=(*tensor.shape[:-1], channels))


def _narrow_op(op: Op, tensors: Mapping[str, Tensor]) -> Op:
    if isinstance(op, FullyConnected):
        return _resized(op, (tensors[op.output].channels, tensors[op.inputs[0]].channels), 1)
    if isinstance(op, Conv2D):
        inputs, outputs = tensors[op.inputs[0]].channels, tensors[op.output].channels
        groups = outputs if op.depthwise and op.groups == op.weight.shape[0] else op.groups
        return _resized(op, (outputs, *op.weight.shape[1:3], inputs // groups), groups)
    return op


@lru_cache(maxsize=4096)
def _resized(op: Conv2D | FullyConnected, shape: tuple[int, ...], groups: int) -> Op:
    if shape == op.weight.shape:
        return op
    weight = Weight(shape, op.weight.bits)
    if isinstance(op, Conv2D):
        return replace(op, weight=weight, groups=groups)
    return replace(op, weight=weight)


def with_encodings(
    graph: Graph,
    bits: Mapping[str, int],
    densities: Mapping[str, float],
    dtype: DType = "int8",
    pattern: str = ELEMENT,
    books: CodeBooks = NONE,
) -> Graph:
    """The graph of shapes with weight bits, kept weights and code books set by layer name.

    A layer that is not named keeps 8 bits (32 when `dtype` is float32) and all its elements.
    `densities` are kept shares of the blocks of `pattern`: round(share * blocks), at least 1.
    """
    names = {op.name for op in graph.weighted}
    for name in (*bits, *densities, *books.entries):
        if name not in names:
            raise CompressionError(f"no layer '{name}' holds weights; {nearest(name, names)}")
    ops = tuple(
        _encoded(
            op,
            32 if dtype == "float32" else bits.get(op.name, 8),
            densities.get(op.name),
            pattern,
            books.of(op.name, op.weight.shape),
        )
        if isinstance(op, Conv2D | FullyConnected)
        else op
        for op in graph.ops
    )
    tensors = {
        name: tensor if tensor.dtype == dtype and tensor.scale is None else _plain(tensor, dtype)
        for name, tensor in graph.tensors.items()
    }
    return replace(graph, ops=ops, tensors=tensors)


@lru_cache(maxsize=4096)
def _plain(tensor: Tensor, dtype: DType) -> Tensor:
    return Tensor(tensor.name, tensor.shape, dtype)


@lru_cache(maxsize=4096)
def _encoded(
    op: Conv2D | FullyConnected,
    bits: int,
    density: float | None,
    pattern: str,
    book: tuple[int, int],
) -> Op:
    weight = declared_weight(op.weight.shape, bits, density, pattern, book)
    if weight.key == op.weight.key and op.weight.values is None and op.bias is None:
        return op
    return replace(op, weight=weight, bias=None)


def declared_weight(
    shape: tuple[int, ...],
    bits: int,
    density: float | None,
    pattern: str = ELEMENT,
    book: tuple[int, int] = (0, 1),
) -> Weight:
    """Weights without values: what is kept at a density (None: nothing was pruned).

    Float weights declare no blocks, as no kernel reads them.
    """
    if density is None:
        return Weight(shape, bits, -1, None, None, *book)
    kept = kept_elements(shape, density, pattern)
    if pattern == ELEMENT or bits == FLOAT_BITS:
        return Weight(shape, bits, kept, None, None, *book)
    blocks = kept_blocks(shape, density, pattern)
    return Weight(shape, bits, kept, None, None, *book, pattern, blocks)


def kept_count(size: int, density: float) -> int:
    """Elements that element-wise pruning keeps of `size`: round(density * size), at least 1."""
    return max(1, min(size, round(density * size)))
