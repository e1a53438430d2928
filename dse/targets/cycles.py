"""Cycles of an operator: countable features of its shape times the coefficients of a cycle table.

The features are those of the kernels' loops: multiply-accumulates by kernel class and weight
layout, outputs (requantization), elements and taps of the im2col column, left-over elements of
loops that work on four, elements of element-wise operators, and one for the operator itself.
A per-operator form of this kind halves the error of counting multiply-accumulates
(reports/calibration.md). Tables are data (`data/runtime_cycles.json`), written by
`python -m dse.targets.calibration`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeAlias

from dse.bounded import Bounded
from dse.errors import TargetError
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
    op_macs,
)
from dse.targets.board import Board
from dse.targets.encoding import Encoding

Features: TypeAlias = Mapping[str, float]

# A cache up to this size does not hold the inner loops of a network (STM32 flash accelerators).
SMALL_CACHE_BYTES = 2048
UNROLL = 4


@dataclass(frozen=True)
class Cycles:
    """Cycles of one operator with the interval that its coefficients give."""

    value: float
    low: float
    high: float


class Timing(Protocol):
    """How a backend's cycles follow from shapes on one core."""

    @property
    def source(self) -> str:
        """Where the figures come from."""

    def operator(
        self, graph: Graph, op: Op, encoding: Encoding | None, board: Board, constant_bytes: int
    ) -> Cycles:
        """Cycles of one operator on a board, waits for its flash included.

        `encoding` is that of its weights, None without; `constant_bytes` those of the network.
        """

    def relative_error(self, board: Board) -> float:
        """Half-width of the interval around the sum of all operators."""


@dataclass(frozen=True, eq=False)
class CycleTable:
    """Coefficients in cycles a feature, zero wait states; `error` is the relative half-width.

    `low` and `high` hold only the coefficients that are themselves uncertain. `stall` gives, by
    kernel class, cycles a multiply-accumulate and flash wait state where the cache is small;
    `board_fetch`, by board, cycles a byte of weights fetched over a serial bus. `source` says how
    all this was found.
    """

    name: str
    version: str
    coefficients: Mapping[str, float]
    low: Mapping[str, float]
    high: Mapping[str, float]
    stall: Mapping[str, float]
    error: float
    board_fetch: Mapping[str, float]
    source: str

    def cycles(self, features: Features) -> Cycles:
        """Cycles at zero wait states; a feature without a coefficient costs nothing."""
        value = low = high = 0.0
        known = self._each
        for name, amount in features.items():
            if name in known:
                each, least, most = known[name]
                value += amount * each
                low += amount * least
                high += amount * most
        return Cycles(value, low, high)

    @cached_property
    def _each(self) -> Mapping[str, tuple[float, float, float]]:
        """Coefficient, lowest and highest by feature."""
        names = dict.fromkeys([*self.coefficients, *self.low, *self.high])
        each = {name: self.coefficients.get(name, 0.0) for name in names}
        return {n: (c, self.low.get(n, c), self.high.get(n, c)) for n, c in each.items()}

    def operator(
        self, graph: Graph, op: Op, encoding: Encoding | None, board: Board, constant_bytes: int
    ) -> Cycles:
        """Cycles of one operator: features, stalls of a small cache, a serial flash."""
        counts = features(graph, op, encoding)
        found = self.cycles(counts)
        waits = self.stalls(kernel_class(op), op_macs(graph, op), board)
        waits += self.fetch(constant_bytes, board) * counts.get("fetch", 0.0)
        return Cycles(found.value + waits, found.low + waits, found.high + waits)

    def network(self, counted: Counted, board: Board, constant_bytes: int) -> Cycles:
        """Cycles of all operators at once, from what they count together."""
        found = counted.by_table.get(self)
        if found is None:
            found = counted.by_table[self] = self.cycles(counted.features)
        waits = sum(self.stalls(kernel, macs, board) for kernel, macs in counted.macs.items())
        waits += self.fetch(constant_bytes, board) * counted.features.get("fetch", 0.0)
        return Cycles(found.value + waits, found.low + waits, found.high + waits)

    def stalls(self, kernel: str, macs: int, board: Board) -> float:
        """Cycles waited for the flash of a board with a small cache."""
        if board.cache_bytes > SMALL_CACHE_BYTES:
            return 0.0
        return self.stall.get(kernel, 0.0) * macs * board.wait_states

    def fetch(self, constant_bytes: int, board: Board) -> float:
        """Cycles a byte of weights; none while all constants stay in half of the board's cache."""
        if 2 * constant_bytes <= board.cache_bytes:
            return 0.0
        return self.board_fetch.get(board.name, 0.0)

    def relative_error(self, board: Board) -> float:
        """Half-width of the interval around the sum of all operators."""
        return self.error


@dataclass(frozen=True)
class Counted:
    """What a network's operators count together, and multiply-accumulates by kernel."""

    features: Features
    macs: Mapping[str, int]
    # Cycles without waits, which boards of one core and backends of one table share.
    by_table: dict[CycleTable, Cycles] = field(default_factory=dict, compare=False, repr=False)


COUNTED_KEPT = 1024
_COUNTED: Bounded[tuple[Any, ...], Counted] = Bounded(COUNTED_KEPT)


def counted(graph: Graph, encodings: Mapping[str, Encoding]) -> Counted:
    """The sums over all operators, kept; `encodings` are those of the weights by operator.

    The same on every board, and by all backends that store the weights alike.
    """
    key = (graph.key, *encodings.values())
    found = _COUNTED.get(key)
    if found is None:
        found = _COUNTED[key] = _sums(graph, encodings)
    return found


def _sums(graph: Graph, encodings: Mapping[str, Encoding]) -> Counted:
    totals: dict[str, float] = defaultdict(float)
    macs: dict[str, int] = {}
    for op in graph.ops:
        kernel = kernel_class(op)
        macs[kernel] = macs.get(kernel, 0) + op_macs(graph, op)
        for name, amount in features(graph, op, encodings.get(op.name)).items():
            totals[name] += amount
    return Counted(dict(totals), macs)


def kernel_class(op: Op) -> str:
    """Which kernel runs the operator: conv, pointwise, depthwise, or its kind."""
    if not isinstance(op, Conv2D):
        return op.kind
    if op.depthwise:
        return "depthwise"
    plain = op.kernel == (1, 1) and op.stride == (1, 1) and not any(op.padding)
    return "pointwise" if plain and op.groups == 1 else "conv"


def features(graph: Graph, op: Op, encoding: Encoding | None) -> Features:
    """What the kernel of `op` counts; `encoding` is that of its weights (None without weights)."""
    if isinstance(op, Conv2D | FullyConnected):
        if encoding is None:
            raise TargetError(f"operator '{op.name}' has weights; its cycles need their encoding")
        return _weighted(graph, op, encoding)
    elements = float(graph.tensors[op.output].elements)
    if isinstance(op, Pool2D):
        return {f"pool.{op.mode}": elements * math.prod(op.kernel), "pool": elements, "op": 1.0}
    if isinstance(op, Reshape):
        return {}
    if isinstance(op, Concat | Pad):
        return {"copy": elements, "op": 1.0}
    if isinstance(op, Add | Mul | Lookup | Softmax):
        return {op.kind: elements, "op": 1.0}
    raise TargetError(f"operator '{op.name}' of kind '{op.kind}' has no cycle model")


def _weighted(graph: Graph, op: Conv2D | FullyConnected, encoding: Encoding) -> Features:
    kernel = kernel_class(op)
    outputs = float(graph.tensors[op.output].elements)
    channels = op.weight.shape[0]
    depth = op.weight.size // channels
    pixels = outputs / channels
    found = {"op": 1.0, f"{kernel}.output": outputs, "fetch": float(encoding.size_bytes)}
    if encoding.layout == "sparse":
        found[f"{kernel}.mac{encoding.suffix}"] = pixels * op.weight.kept
        found["scan"] = pixels * op.weight.size
        return found
    found[f"{kernel}.mac{encoding.suffix}"] = outputs * depth
    if kernel != "depthwise" and depth % UNROLL:
        found["tail"] = outputs * (depth % UNROLL)
    if isinstance(op, Conv2D) and kernel == "conv":
        taps = math.prod(op.kernel)
        inputs = graph.tensors[op.inputs[0]].channels
        found["conv.column"] = pixels * taps * inputs
        found["conv.tap"] = pixels * taps
        found["conv.output_tap"] = outputs * taps
    return found
