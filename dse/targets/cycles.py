"""Cycles of an operator: countable features of its shape times the coefficients of a cycle table.

The features are those of the kernels' loops: multiply-accumulates by kernel class and weight
layout, outputs (requantization), elements and taps of the im2col column, left-over elements of
loops that work on four, elements of element-wise operators, and one for the operator itself.
A per-operator form of this kind halves the error of counting multiply-accumulates
(reports/calibration.md). Tables are data (`data/cycles.json`), written by
`python -m dse.targets.calibration`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, TypeAlias

from dse.errors import TargetError, nearest
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
)
from dse.targets.board import Board
from dse.targets.core import Family
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


@dataclass(frozen=True)
class CycleTable:
    """Coefficients in cycles a feature, zero wait states; `error` is the relative half-width.

    `low` and `high` hold only the coefficients that are themselves uncertain. `scale` is the factor
    of the core over the one the coefficients belong to. `stall` gives, by kernel class, cycles a
    multiply-accumulate and flash wait state where the cache is small; `board_fetch`, by board,
    cycles a byte of weights fetched over a serial bus. `source` says how all this was found.
    """

    name: str
    version: str
    coefficients: Mapping[str, float]
    low: Mapping[str, float]
    high: Mapping[str, float]
    scale: float
    stall: Mapping[str, float]
    error: float
    board_scale: Mapping[str, float]
    board_error: Mapping[str, float]
    board_fetch: Mapping[str, float]
    source: str

    def cycles(self, features: Features) -> Cycles:
        """Cycles at zero wait states; a feature without a coefficient costs nothing."""
        value = low = high = 0.0
        for name, amount in features.items():
            each = self.coefficients.get(name, 0.0)
            value += amount * each
            low += amount * self.low.get(name, each)
            high += amount * self.high.get(name, each)
        return Cycles(value, low, high)

    def stalls(self, kernel: str, macs: int, board: Board) -> float:
        """Cycles waited for the flash of a board with a small cache."""
        if board.cache_bytes > SMALL_CACHE_BYTES:
            return 0.0
        return self.stall.get(kernel, 0.0) * macs * board.wait_states

    def factor(self, board: Board) -> float:
        """What cycles are multiplied by on this board; the measured one where there is one."""
        return self.board_scale.get(board.name, self.scale)

    def fetch(self, constant_bytes: int, board: Board) -> float:
        """Cycles a byte of weights; none while all constants stay in half of the board's cache."""
        if 2 * constant_bytes <= board.cache_bytes:
            return 0.0
        return self.board_fetch.get(board.name, 0.0)

    def relative_error(self, board: Board) -> float:
        """Half-width of the interval: smaller where this very board was measured."""
        return self.board_error.get(board.name, self.error)


@cache
def cycle_table(backend: str, family: Family) -> CycleTable:
    """The stored table of a backend on a core family; TargetError when there is none."""
    tables = _tables()
    key = f"{backend}/{family}"
    if key not in tables:
        raise TargetError(f"no cycle table for '{key}'; {nearest(key, tables)}")
    return CycleTable(name=key, **tables[key])


@cache
def _tables() -> Mapping[str, Mapping[str, Any]]:
    file = resources.files("dse.targets") / "data" / "cycles.json"
    tables: Mapping[str, Mapping[str, Any]] = json.loads(file.read_text("utf-8"))["tables"]
    return tables


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
