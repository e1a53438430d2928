"""What a choice of widths needs, whatever runs it: exactly, and as a differentiable function."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from dse.graph.channels import ChannelGroup
from dse.graph.ir import Concat, Conv2D, FullyConnected, Graph, Op, Reshape, WeightedOp
from dse.graph.plan import plan

BIAS_BYTES = 4


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


@dataclass(frozen=True, eq=False)
class FractionalNeeds:
    """The needs of a graph as functions of the share of channels that each group keeps.

    The order of operators is that of the whole network, found once; the best order of a narrower
    one may need less memory.
    """

    graph: Graph
    groups: tuple[ChannelGroup, ...]

    def __post_init__(self) -> None:
        steps = tuple(step.tensors for step in plan(self.graph, alignment=1).steps)
        object.__setattr__(self, "held", steps)

    held: tuple[tuple[str, ...], ...] = ()

    def at(self, shares: Tensor) -> dict[str, Tensor]:
        """The fields of Resources by name, each () with gradients, for kept shares (groups,)."""
        channels = self._channels(shares)
        size, macs = torch.zeros(()), torch.zeros(())
        for op in self.graph.weighted:
            weights = channels[op.output] * _inputs(op, channels[op.inputs[0]])
            size = size + weights + BIAS_BYTES * channels[op.output]
            macs = macs + weights * self._pixels(op.output)
        steps = [sum(channels[name] * self._pixels(name) for name in one) for one in self.held]
        peak = torch.stack([torch.as_tensor(step) for step in steps]).max()
        return {"peak_memory_bytes": peak, "size_bytes": size, "macs": macs}

    def _pixels(self, name: str) -> int:
        return prod(self.graph.tensors[name].shape[:-1])

    def _channels(self, shares: Tensor) -> dict[str, Tensor]:
        made = {
            name: share * group.channels
            for group, share in zip(self.groups, shares, strict=True)
            for name in group.producers
        }
        found = {self.graph.input: self._whole(self.graph.input)}
        for op in self.graph.ops:
            sources = [found[name] for name in op.inputs]
            if isinstance(op, Conv2D | FullyConnected):
                found[op.output] = made.get(op.name, self._whole(op.output))
            elif isinstance(op, Concat):
                found[op.output] = torch.stack(sources).sum()
            elif isinstance(op, Reshape):
                found[op.output] = self._after_reshape(op, sources[0])
            else:
                found[op.output] = sources[0]
        return found

    def _whole(self, name: str) -> Tensor:
        return torch.tensor(float(self.graph.tensors[name].channels))

    def _after_reshape(self, op: Op, source: Tensor) -> Tensor:
        before, after = self.graph.tensors[op.inputs[0]], self.graph.tensors[op.output]
        if before.channels == after.channels:
            return source
        if len(after.shape) == 1:  # a flatten keeps all pixels of a kept channel
            return source * self._pixels(before.name)
        return self._whole(after.name)  # channels are mixed, so that none of them is in a group


def _inputs(op: WeightedOp, channels: Tensor) -> Tensor:
    """Weights an output channel."""
    if isinstance(op, FullyConnected):
        return channels
    taps = float(op.kernel[0] * op.kernel[1])
    return torch.tensor(taps) if op.depthwise else taps * channels / op.groups
