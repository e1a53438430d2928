"""What a choice of widths needs, whatever runs it: exactly, and as a function of fractions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from math import prod

import numpy as np

from dse.errors import CompressionError
from dse.graph.channels import ChannelGroup
from dse.graph.ir import Array, Concat, Conv2D, FullyConnected, Graph, Op, Reshape, WeightedOp
from dse.graph.plan import plan

BIAS_BYTES = 4
# What a study file calls the fields of Resources and Budgets.
SHARES: Mapping[str, str] = {"memory": "peak_memory_bytes", "size": "size_bytes", "macs": "macs"}


@dataclass(frozen=True)
class Resources:
    """Peak bytes of activations, bytes of weights and biases, and MACs of an int8 network."""

    peak_memory_bytes: int
    size_bytes: int
    macs: int


def needs(graph: Graph) -> Resources:
    """What a graph of these shapes needs as int8."""
    tensors = {
        name: replace(tensor, dtype="int8", scale=None) for name, tensor in graph.tensors.items()
    }
    size = sum(op.weight.size + BIAS_BYTES * op.weight.shape[0] for op in graph.weighted)
    peak = plan(replace(graph, tensors=tensors), alignment=1).peak_bytes
    return Resources(peak, size, graph.macs)


@dataclass(frozen=True)
class Budgets:
    """What the int8 network may need; None is no limit.

    `peak_memory_bytes` of activations, `size_bytes` of weights and biases, `macs` of one inference.
    Raises CompressionError for a budget below 1, or when there is none.
    """

    peak_memory_bytes: int | None = None
    size_bytes: int | None = None
    macs: int | None = None

    def __post_init__(self) -> None:
        for name, limit in self.limits.items():
            if limit < 1:
                raise CompressionError(f"budget {name} is {limit}; at least 1 is needed")
        if not self.limits:
            names = ", ".join(item.name for item in fields(self))
            raise CompressionError(f"there is no budget; give one or more of {names}")

    @classmethod
    def of(cls, graph: Graph, shares: Mapping[str, float]) -> Budgets:
        """Shares of what `graph` needs, by the names in SHARES; all budgets are rounded down."""
        whole = needs(graph)
        return cls(
            **{
                SHARES[name]: max(1, math.floor(round(getattr(whole, SHARES[name]) * share, 6)))
                for name, share in shares.items()
            }
        )

    @property
    def limits(self) -> dict[str, int]:
        """The budgets that are given, by name."""
        found = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: limit for name, limit in found.items() if limit is not None}

    def met(self, found: Resources) -> bool:
        """Whether nothing is over its budget."""
        return all(getattr(found, name) <= limit for name, limit in self.limits.items())


@dataclass(frozen=True, eq=False)
class FractionalNeeds:
    """The needs of a graph as functions of the share of channels that each group keeps.

    All are polynomials of the shares without negative coefficients, of degree two at most, since a
    layer's weights are its inputs times its outputs; the peak is the largest of one a step of the
    memory plan. The order of operators is that of the whole network, found once; the best order of
    a narrower one may need less memory.
    """

    graph: Graph
    groups: tuple[ChannelGroup, ...]

    def at(self, shares: Sequence[float] | Array) -> dict[str, Array]:
        """The fields of Resources by name, (parts,) each, the largest counts; shares (groups,)."""
        channels = self._channels(shares)
        size = macs = 0.0
        for op in self.graph.weighted:
            weights = channels[op.output] * _inputs(op, channels[op.inputs[0]])
            size += weights + BIAS_BYTES * channels[op.output]
            macs += weights * self._pixels(op.output)
        held = [sum(channels[name] * self._pixels(name) for name in one) for one in self._held]
        found = {"peak_memory_bytes": held, "size_bytes": [size], "macs": [macs]}
        return {name: np.array(parts) for name, parts in found.items()}

    @cached_property
    def polynomials(self) -> dict[str, tuple[Array, Array, Array]]:
        """(constant (parts,), linear (parts, groups), quadratic (parts, groups, groups)) by name.

        Found by evaluation: three points decide a polynomial of degree two along a line.
        """
        count, zero = len(self.groups), self.at([0.0] * len(self.groups))
        unit = np.eye(count)
        ones = [self.at(row) for row in unit]
        found = {}
        for name, constant in zero.items():
            linear = np.zeros((len(constant), count))
            square = np.zeros((len(constant), count, count))
            for i in range(count):
                rise = ones[i][name] - constant
                square[:, i, i] = (self.at(2 * unit[i])[name] - constant - 2 * rise) / 2
                linear[:, i] = rise - square[:, i, i]
                for j in range(i):
                    both = self.at(unit[i] + unit[j])[name]
                    square[:, i, j] = both - ones[i][name] - ones[j][name] + constant
            found[name] = (constant, linear, square)
        return found

    @cached_property
    def _held(self) -> tuple[tuple[str, ...], ...]:
        return tuple(step.tensors for step in plan(self.graph, alignment=1).steps)

    def _pixels(self, name: str) -> int:
        return prod(self.graph.tensors[name].shape[:-1])

    def _channels(self, shares: Sequence[float] | Array) -> Mapping[str, float]:
        made = {
            name: float(share) * group.channels
            for group, share in zip(self.groups, shares, strict=True)
            for name in group.producers
        }
        found = {self.graph.input: self._whole(self.graph.input)}
        for op in self.graph.ops:
            sources = [found[name] for name in op.inputs]
            if isinstance(op, Conv2D | FullyConnected):
                found[op.output] = made.get(op.name, self._whole(op.output))
            elif isinstance(op, Concat):
                found[op.output] = sum(sources)
            elif isinstance(op, Reshape):
                found[op.output] = self._after_reshape(op, sources[0])
            else:
                found[op.output] = sources[0]
        return found

    def _whole(self, name: str) -> float:
        return float(self.graph.tensors[name].channels)

    def _after_reshape(self, op: Op, source: float) -> float:
        before, after = self.graph.tensors[op.inputs[0]], self.graph.tensors[op.output]
        if before.channels == after.channels:
            return source
        if len(after.shape) == 1:  # a flatten keeps all pixels of a kept channel
            return source * self._pixels(before.name)
        return self._whole(after.name)  # channels are mixed, so that none of them is in a group


def _inputs(op: WeightedOp, channels: float) -> float:
    """Weights an output channel."""
    if isinstance(op, FullyConnected):
        return channels
    taps = float(op.kernel[0] * op.kernel[1])
    return taps if op.depthwise else taps * channels / op.groups
