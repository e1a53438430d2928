"""Low-rank layers: two thin operators in place of one, as shapes, known before anything is trained.

A layer's weights as a matrix are replaced by the product of two of lower rank. `channel`: a
convolution with all taps makes `rank` channels, one of 1x1 makes the outputs from them (Zhang et
al., arXiv 1505.06798). `spatial`: one column of taps makes `rank` channels, one row of taps the
outputs (Jaderberg et al., arXiv 1405.3866). Fully connected layers know one way only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from dse.errors import CompressionError, nearest
from dse.graph.ir import Conv2D, FullyConnected, Graph, Op, Tensor, Weight, WeightedOp

METHODS = ("channel", "spatial")
FIRST, LAST = "reduce", "expand"
T = TypeVar("T")


def check_method(method: str) -> None:
    """Raises CompressionError for a way to factorize that does not exist."""
    if method not in METHODS:
        raise CompressionError(f"unknown factors '{method}'; {nearest(method, METHODS)}")


def factorizable(op: Op) -> bool:
    """Whether an operator is a layer that low-rank factors exist for: weights, and one group."""
    return isinstance(op, FullyConnected) or (isinstance(op, Conv2D) and op.groups == 1)


def differs(op: WeightedOp, method: str) -> bool:
    """Whether a layer's factors are others than those of `channel`."""
    return method == "spatial" and isinstance(op, Conv2D) and op.kernel[1] > 1


def matrix_shape(shape: tuple[int, ...], method: str) -> tuple[int, int]:
    """Rows and columns of the matrix that weights (O, H, W, I) or (O, I) are factorized as."""
    if method == "spatial" and len(shape) == 4:
        outputs, height, width, inputs = shape
        return inputs * height, outputs * width
    return shape[0], math.prod(shape[1:])


def factor_shapes(
    shape: tuple[int, ...], rank: int, method: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the two weights that replace one of (O, H, W, I) or (O, I)."""
    if len(shape) == 2:
        return (rank, shape[1]), (shape[0], rank)
    outputs, height, width, inputs = shape
    if method == "spatial":
        return (rank, height, 1, inputs), (outputs, 1, width, rank)
    return (rank, height, width, inputs), (outputs, 1, 1, rank)


def saves(shape: tuple[int, ...], rank: int, method: str) -> bool:
    """Whether the factors have fewer parameters, the biases of `rank` more channels included."""
    parts = factor_shapes(shape, rank, method)
    return sum(map(math.prod, parts)) + rank < math.prod(shape)


def factorize_shapes(graph: Graph, ranks: Mapping[str, int], method: str) -> Graph:
    """The graph of shapes with each layer of `ranks` replaced by its factors.

    They are called `<layer>.reduce` and `<layer>.expand`, as their torch modules are. Raises
    CompressionError for a layer that has no factors or a rank out of range.
    """
    check_method(method)
    check_ranks({op.name: op.weight.shape for op in graph.weighted if factorizable(op)}, ranks)
    if not ranks:
        return graph
    tensors, ops = dict(graph.tensors), []
    for op in graph.ops:
        if op.name not in ranks:
            ops.append(op)
            continue
        assert isinstance(op, Conv2D | FullyConnected)
        pair, between = _pair(op, ranks[op.name], method, graph)
        del tensors[op.output]
        out = replace(graph.tensors[op.output], name=pair[1].output)
        tensors |= {between.name: between, out.name: out}
        ops += pair
    made = {op.output: f"{op.output}_{LAST}" for op in graph.ops if op.name in ranks}
    reading = tuple(
        replace(op, inputs=tuple(made.get(name, name) for name in op.inputs)) for op in ops
    )
    return replace(graph, tensors=tensors, ops=reading, output=made.get(graph.output, graph.output))


def check_ranks(shapes: Mapping[str, tuple[int, ...]], ranks: Mapping[str, int]) -> None:
    """Raises CompressionError for a layer that is not among `shapes`, or a rank below 1."""
    for name, rank in ranks.items():
        if name not in shapes:
            raise CompressionError(
                f"layer '{name}' has no low-rank factors (convolutions of one group and linear "
                f"layers have); {nearest(name, shapes)}"
            )
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise CompressionError(
                f"layer '{name}' cannot have rank {rank!r}; at least 1 is needed"
            )


def _pair(op: WeightedOp, rank: int, method: str, graph: Graph) -> tuple[tuple[Op, Op], Tensor]:
    """The two operators, and the tensor between them."""
    one, other = (Weight(s) for s in factor_shapes(op.weight.shape, rank, method))
    middle, names = f"{op.output}_{FIRST}", (f"{op.name}.{FIRST}", f"{op.name}.{LAST}")
    out = f"{op.output}_{LAST}"
    if isinstance(op, FullyConnected):
        first: Op = FullyConnected(names[0], op.inputs, middle, one)
        last: Op = FullyConnected(names[1], (middle,), out, other, None, op.activation)
        return (first, last), Tensor(middle, (rank,), graph.tensors[op.output].dtype)
    height, width, _ = graph.tensors[op.output].shape
    if method == "spatial":
        width = graph.tensors[op.inputs[0]].shape[1]
    first = _along(op, rows=True, columns=method == "channel", name=names[0])
    last = _along(op, rows=False, columns=method == "spatial", name=names[1])
    first = replace(first, inputs=op.inputs, output=middle, weight=one, activation="none")
    last = replace(last, inputs=(middle,), output=out, weight=other)
    return (first, last), Tensor(middle, (height, width, rank), graph.tensors[op.output].dtype)


def _along(op: Conv2D, *, rows: bool, columns: bool, name: str) -> Conv2D:
    """The geometry of a convolution along some of its axes; 1x1 along the others."""
    top, bottom, left, right = op.padding

    def only(pair: tuple[int, int]) -> tuple[int, int]:
        return pair[0] if rows else 1, pair[1] if columns else 1

    vertical, horizontal = (top, bottom) if rows else (0, 0), (left, right) if columns else (0, 0)
    return replace(
        op,
        name=name,
        bias=None,
        stride=only(op.stride),
        padding=(*vertical, *horizontal),
        dilation=only(op.dilation),
    )


def spread(by_layer: Mapping[str, T], ranks: Mapping[str, int]) -> dict[str, T]:
    """What was chosen by layer, for the layers that there are: both factors take their layer's."""
    found: dict[str, T] = {}
    for name, value in by_layer.items():
        parts = (f"{name}.{FIRST}", f"{name}.{LAST}") if name in ranks else (name,)
        found.update(dict.fromkeys(parts, value))
    return found
