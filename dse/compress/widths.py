"""A float graph trained with some of its channels masked, and what a choice of widths needs.

Masked channels are exactly zero wherever they go, so removing them afterwards changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from dse.errors import GraphError
from dse.graph import execute
from dse.graph.channels import ChannelGroup, channel_groups
from dse.graph.ir import (
    Array,
    Concat,
    Conv2D,
    FullyConnected,
    Graph,
    Lookup,
    Op,
    Reshape,
    Weight,
    WeightedOp,
)
from dse.graph.plan import plan
from dse.space import aligned_width

BIAS_BYTES = 4


@dataclass(frozen=True)
class Resources:
    """What the int8 network of some shapes needs, whatever runs it."""

    peak_memory_bytes: int
    size_bytes: int
    macs: int


def needs(graph: Graph) -> Resources:
    """Peak bytes of activations, bytes of weights and biases, and MACs, all as int8."""
    tensors = {
        name: replace(tensor, dtype="int8", scale=None) for name, tensor in graph.tensors.items()
    }
    size = sum(op.weight.size + BIAS_BYTES * op.weight.shape[0] for op in graph.weighted)
    peak = plan(replace(graph, tensors=tensors), alignment=1).peak_bytes
    return Resources(peak, size, graph.macs)


def widths_of(
    groups: Sequence[ChannelGroup], shares: Sequence[float], alignment: int
) -> dict[str, int]:
    """Kept channels by group: multiples of `alignment`, at least one; whole groups are left out."""
    found = {}
    for group, share in zip(groups, shares, strict=True):
        width = aligned_width(group.channels, 1 - share, alignment)
        if width < group.channels:
            found[group.name] = width
    return found


def shares_of(graph: Graph, groups: Sequence[ChannelGroup], shares: Tensor) -> dict[str, Tensor]:
    """The Resources by name for kept shares (groups,), each a differentiable scalar.

    As `needs`, with fractional widths; the order of operators is that of the whole network.
    """
    made = {
        name: share * group.channels
        for group, share in zip(groups, shares, strict=True)
        for name in group.producers
    }
    channels = follow(
        graph,
        lambda op: made.get(op.name, torch.tensor(float(op.weight.shape[0]))),
        lambda count: torch.tensor(float(count)),
        lambda parts: torch.stack(parts).sum(),
        _times,
    )
    size, macs = torch.zeros(()), torch.zeros(())
    for op in graph.weighted:
        weights = channels[op.output] * _per_output(op, channels[op.inputs[0]])
        size = size + weights + BIAS_BYTES * channels[op.output]
        macs = macs + weights * prod(graph.tensors[op.output].shape[:-1])
    steps = plan(graph, alignment=1).steps
    held = [
        torch.stack([_times(channels[n], prod(graph.tensors[n].shape[:-1])) for n in step.tensors])
        for step in steps
    ]
    peak = torch.stack([one.sum() for one in held]).max()
    return {"peak_memory_bytes": peak, "size_bytes": size, "macs": macs}


def _per_output(op: WeightedOp, inputs: Tensor) -> Tensor:
    if isinstance(op, FullyConnected):
        return inputs
    taps = float(op.kernel[0] * op.kernel[1])
    return torch.tensor(taps) if op.depthwise else taps * inputs / op.groups


def _times(value: Tensor, count: int) -> Tensor:
    return value * count


def follow(
    graph: Graph,
    made: Callable[[WeightedOp], Tensor],
    whole: Callable[[int], Tensor],
    join: Callable[[list[Tensor]], Tensor],
    repeat: Callable[[Tensor, int], Tensor],
) -> dict[str, Tensor]:
    """What is known of each tensor's channels, by its name, from what the layers make on.

    `whole` is for channels that nobody removes, by their number; `join` is what a concatenation
    does, `repeat` what a flatten of so many pixels does.
    """
    found = {graph.input: whole(graph.tensors[graph.input].channels)}
    for op in graph.ops:
        sources = [found[name] for name in op.inputs]
        if isinstance(op, Conv2D | FullyConnected):
            found[op.output] = made(op)
        elif isinstance(op, Concat):
            found[op.output] = join(sources)
        elif isinstance(op, Reshape):
            found[op.output] = _after_reshape(graph, op, sources[0], whole, repeat)
        else:
            found[op.output] = sources[0]
    return found


def _after_reshape(
    graph: Graph,
    op: Reshape,
    source: Tensor,
    whole: Callable[[int], Tensor],
    repeat: Callable[[Tensor, int], Tensor],
) -> Tensor:
    before, after = graph.tensors[op.inputs[0]], graph.tensors[op.output]
    if before.channels == after.channels:
        return source
    if len(after.shape) == 1:
        return repeat(source, prod(before.shape[:-1]))
    return whole(after.channels)  # channels are mixed, so that none of them is in a group


class Masked(nn.Module):
    """A float graph as a torch network; `masks` gives 0 or 1 a channel (C,) of groups by name.

    Groups that are not named are whole.
    """

    def __init__(self, graph: Graph, masks: Callable[[Masked], Mapping[str, Tensor]]) -> None:
        super().__init__()
        self.graph, self.masks = graph, masks
        self.place = {op.name: index for index, op in enumerate(graph.weighted)}
        self.weights = nn.ParameterList([_weight(op) for op in graph.weighted])
        self.biases = nn.ParameterList([_bias(op) for op in graph.weighted])
        # A function of zero may be something else; all other operators keep zeros.
        made = (Conv2D, FullyConnected, Lookup)
        self.makers = {op.output for op in graph.ops if isinstance(op, made)}

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores (N, classes) of inputs (N, C, H, W), (N, C, L) or (N, F)."""
        by_group = self.masks(self)
        masks = _by_tensor(self.graph, by_group) if by_group else {}

        def change(name: str, value: Tensor) -> Tensor:
            if name not in masks or name not in self.makers:
                return value
            return value * masks[name].view(1, -1, *[1] * (value.dim() - 2))

        weights = {
            name: (self.weights[index], self.biases[index]) for name, index in self.place.items()
        }
        return execute.run_float(self.graph, inputs, weights, change)

    @torch.no_grad()
    def importance(self, group: ChannelGroup) -> Tensor:
        """L1 norms (C,) of the channels' weights, summed over the layers of the group."""
        rows = [self.weights[self.place[name]].abs().flatten(1).sum(1) for name in group.producers]
        return torch.stack(rows).sum(0)

    @torch.no_grad()
    def narrowed(self, kept: Mapping[str, Tensor]) -> Graph:
        """The float graph as it is trained, with channels of mask 0 removed."""
        masks = {n: mask.bool().numpy() for n, mask in _by_tensor(self.graph, kept).items()}
        tensors = {
            name: replace(tensor, shape=(*tensor.shape[:-1], int(masks[name].sum())))
            for name, tensor in self.graph.tensors.items()
        }
        ops = tuple(
            self._narrow(op, masks[op.inputs[0]], masks[op.output])
            if isinstance(op, Conv2D | FullyConnected)
            else op
            for op in self.graph.ops
        )
        return replace(self.graph, tensors=tensors, ops=ops)

    def _narrow(self, op: WeightedOp, inputs: Array, outputs: Array) -> Op:
        index = self.place[op.name]
        weight, bias = self.weights[index], self.biases[index].double().numpy()[outputs]
        values = (weight.permute(0, 2, 3, 1) if weight.dim() == 4 else weight).numpy()[outputs]
        if isinstance(op, FullyConnected) or op.groups == 1:
            values = values[..., inputs]
        values = np.ascontiguousarray(values)
        narrowed = replace(op, weight=Weight(values.shape, values=values), bias=bias)
        if isinstance(narrowed, Conv2D) and narrowed.groups == op.weight.shape[0] > 1:
            return replace(narrowed, groups=len(values))
        return narrowed


def _by_tensor(graph: Graph, by_group: Mapping[str, Tensor]) -> dict[str, Tensor]:
    made = {
        name: by_group[group.name]
        for group in channel_groups(graph)
        for name in group.producers
        if group.name in by_group
    }
    return follow(
        graph,
        lambda op: made.get(op.name, torch.ones(op.weight.shape[0])),
        torch.ones,
        torch.cat,
        lambda mask, pixels: mask.repeat(pixels),
    )


def _weight(op: WeightedOp) -> nn.Parameter:
    if op.weight.values is None:
        raise GraphError(f"layer '{op.name}' has no weight values to train")
    values = torch.from_numpy(op.weight.values.astype(np.float32))
    return nn.Parameter(values.permute(0, 3, 1, 2).contiguous() if values.dim() == 4 else values)


def _bias(op: WeightedOp) -> nn.Parameter:
    bias = np.zeros(op.weight.shape[0]) if op.bias is None else op.bias
    return nn.Parameter(torch.from_numpy(np.asarray(bias).astype(np.float32)))
