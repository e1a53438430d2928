"""Quantization-aware training: weights and steps are learned on the rounding that will ship.

Every weight and activation is rounded in the forward pass exactly where the integer graph rounds
it; gradients pass straight through, and steps get the gradient of learned step size quantization
(LSQ, Esser et al., arXiv 1902.08153). Steps are learned as logarithms, since Adam ignores the scale
of a gradient (Jain et al., arXiv 1903.08066).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from dse.graph import execute
from dse.graph.ir import Conv2D, FullyConnected, Graph, WeightedOp
from dse.graph.numerics import INTEGER_LIMITS
from dse.graph.quantize import quantize_layer, scale_groups
from dse.workloads.dataset import Split
from dse.workloads.training import AfterEpoch, Progress, Recipe, train


def learn_quantization(
    graph: Graph,
    start: Graph,
    split: Split,
    recipe: Recipe,
    seed: int,
    *,
    progress: Progress | None = None,
    after_epoch: AfterEpoch | None = None,
) -> Graph:
    """`start`, the integer graph that `quantize` makes of the float `graph`, fine-tuned.

    Bit widths, types, zero points and pruned weights stay those of `start`; weights, biases and
    scales are learned on `split` (the training split) by the recipe's fine-tuning. What is returned
    is the integer network that was trained, so its exact accuracy is the one seen in training but
    for roundings of sums. The same for the same seed. Raises WorkloadError when training diverges.
    """
    network = _FakeQuantized(graph, start)
    train(
        network,
        split.take(recipe.fine_tune_samples),
        recipe,
        epochs=recipe.fine_tune_epochs,
        learning_rate=recipe.fine_tune_learning_rate,
        seed=seed,
        progress=progress,
        after_epoch=after_epoch,
    )
    return network.integer()


class _FakeQuantized(nn.Module):
    """A float graph whose tensors and weights only take the values of an integer graph's."""

    def __init__(self, graph: Graph, start: Graph) -> None:
        super().__init__()
        self.graph, self.start = graph, start
        self.layers = nn.ModuleDict(
            {_key(op.name): _Layer(op, _layer(start, op.name)) for op in graph.weighted}
        )
        # One step a group of tensors that share a scale; what the specification fixes is fixed.
        groups = [names for names, function in scale_groups(graph) if not function]
        self.group = {name: index for index, names in enumerate(groups) for name in names}
        self.steps = nn.Parameter(torch.zeros(len(groups)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores (N, classes) of inputs (N, C, H, W), (N, C, L) or (N, F)."""
        weights = {op.name: self._layer(op.name).rounded() for op in self.graph.weighted}
        return execute.run_float(self.graph, inputs, weights, self._rounded)

    def _layer(self, name: str) -> _Layer:
        layer = self.layers[_key(name)]
        assert isinstance(layer, _Layer)
        return layer

    def _scale(self, name: str) -> Tensor:
        scale = torch.tensor(self.start.tensors[name].scale)
        return scale * self.steps[self.group[name]].exp() if name in self.group else scale

    def _rounded(self, name: str, value: Tensor) -> Tensor:
        tensor, scale = self.start.tensors[name], self._scale(name)
        low, high = INTEGER_LIMITS[tensor.dtype]
        integers = _straight_through(value / scale + tensor.zero_point).clamp(low, high)
        return (integers - tensor.zero_point) * scale

    @torch.no_grad()
    def integer(self) -> Graph:
        """The integer graph that this network computes."""
        tensors = {
            name: replace(tensor, scale=float(self._scale(name)))
            for name, tensor in self.start.tensors.items()
        }
        ops = tuple(
            self._layer(op.name).integer(op, tensors[op.inputs[0]].scale or 1.0)
            if isinstance(op, Conv2D | FullyConnected)
            else op
            for op in self.graph.ops
        )
        return replace(self.start, tensors=tensors, ops=ops)


class _Layer(nn.Module):
    """Float weights (O, I, H, W) or (O, I), bias (O,) and the steps (O,) they are rounded to."""

    def __init__(self, op: WeightedOp, start: WeightedOp) -> None:
        super().__init__()
        assert op.weight.values is not None
        assert start.weight.scales is not None
        self.bits, self.kept = start.weight.bits, start.weight.kept
        values = torch.from_numpy(op.weight.values.astype(np.float32))
        self.weight = nn.Parameter((values.permute(0, 3, 1, 2) if values.dim() == 4 else values))
        bias = np.zeros(len(values)) if op.bias is None else np.asarray(op.bias)
        self.bias = nn.Parameter(torch.from_numpy(bias.astype(np.float32)))
        self.steps = nn.Parameter(torch.zeros(len(values)))
        self.register_buffer("start", torch.from_numpy(start.weight.scales.astype(np.float32)))
        pruned = self.kept < start.weight.size
        self.register_buffer("mask", (self.weight != 0).float() if pruned else torch.ones(()))

    def scales(self) -> Tensor:
        return self.get_buffer("start") * self.steps.exp()

    def rounded(self) -> tuple[Tensor, Tensor]:
        scales = self.scales().view(-1, *[1] * (self.weight.dim() - 1))
        limit = 2 ** (self.bits - 1) - 1
        integers = _straight_through(self.weight * self.get_buffer("mask") / scales)
        return integers.clamp(-limit, limit) * scales, self.bias

    def integer(self, op: WeightedOp, input_scale: float) -> WeightedOp:
        weight = (self.weight * self.get_buffer("mask")).detach()
        values = weight.permute(0, 2, 3, 1) if weight.dim() == 4 else weight
        scales = self.scales().detach().double().numpy()
        biased = replace(op, bias=self.bias.detach().double().numpy())
        return quantize_layer(
            biased, values.contiguous().numpy(), scales, self.bits, self.kept, input_scale
        )


def _straight_through(value: Tensor) -> Tensor:
    """Rounded half to even; the gradient is that of the identity (Bengio et al., 1308.3432)."""
    return value + (value.round() - value).detach()


def _key(name: str) -> str:
    """Names of torch modules hold dots, keys of a ModuleDict must not."""
    return name.replace(".", "/")


def _layer(graph: Graph, name: str) -> WeightedOp:
    op = graph.op(name)
    assert isinstance(op, Conv2D | FullyConnected)
    return op
