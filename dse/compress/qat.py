"""Quantization-aware training: weights and steps are learned on the rounding that will ship.

Every weight and activation is rounded in the forward pass exactly where the integer graph rounds
it; gradients pass straight through, and steps get the gradient of learned step size quantization
(LSQ, Esser et al., arXiv 1902.08153). Steps are learned as logarithms, since Adam ignores the scale
of a gradient (Jain et al., arXiv 1903.08066).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dse.graph import execute
from dse.graph.code_book import read_indices, read_table
from dse.graph.ir import (
    Array,
    Concat,
    Conv2D,
    FullyConnected,
    Graph,
    Op,
    Pad,
    Pool2D,
    Reshape,
    WeightedOp,
)
from dse.graph.numerics import INTEGER_LIMITS
from dse.graph.quantize import INT8_MAX, quantize_layer, scale_groups
from dse.workloads.dataset import Split
from dse.workloads.training import AfterEpoch, Loss, Progress, Recipe, train


def learn_quantization(
    graph: Graph,
    start: Graph,
    split: Split,
    recipe: Recipe,
    seed: int,
    *,
    progress: Progress | None = None,
    after_epoch: AfterEpoch | None = None,
    loss: Loss | None = None,
) -> Graph:
    """`start`, the integer graph that `quantize` makes of the float `graph`, fine-tuned.

    Bit widths, types, zero points and pruned weights stay those of `start`; weights, biases and
    scales are learned on `split` (the training split) by the recipe's fine-tuning. What is returned
    is the integer network that was trained, so its exact accuracy is the one seen in training but
    for roundings of sums. `loss` replaces cross-entropy (see Distillation). The same for the same
    seed. Raises WorkloadError when training diverges.
    """
    network = FakeQuantized(graph, start)
    train(
        network,
        split.take(recipe.fine_tune_samples),
        recipe,
        epochs=recipe.fine_tune_epochs,
        learning_rate=recipe.fine_tune_learning_rate,
        seed=seed,
        progress=progress,
        after_epoch=after_epoch,
        loss=loss,
    )
    return network.integer()


class FakeQuantized(nn.Module):
    """A float graph whose tensors and weights only take the values of an integer graph's."""

    def __init__(self, graph: Graph, start: Graph) -> None:
        super().__init__()
        self.graph, self.start = graph, start
        self.layers = nn.ModuleDict(
            {_key(op.name): _layer_of(op, _layer(start, op.name)) for op in graph.weighted}
        )
        # One step a group of tensors that share a scale; what the specification fixes is fixed.
        groups = [names for names, function in scale_groups(graph) if not function]
        self.group = {name: index for index, names in enumerate(groups) for name in names}
        self.steps = nn.Parameter(torch.zeros(len(groups)))
        # These hold values of tensors on the same scale, which are rounded already.
        self.moved = {op.output for op in graph.ops if _moves(op)}

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
        if name in self.moved:
            return value
        tensor = self.start.tensors[name]
        low, high = (limit - tensor.zero_point for limit in INTEGER_LIMITS[tensor.dtype])
        return rounded(value, self._scale(name), low, high)

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
    """Bias (O,) and steps of the weights: (O,), or (1,) for all; subclasses hold the weights."""

    def __init__(self, op: WeightedOp, start: WeightedOp) -> None:
        super().__init__()
        assert start.weight.scales is not None
        self.form = replace(start.weight, values=None, scales=None)
        channels = len(start.weight.scales)
        bias = np.zeros(channels) if op.bias is None else np.asarray(op.bias)
        self.bias = nn.Parameter(torch.from_numpy(bias.astype(np.float32)))
        # Channels that share a scale go on sharing it.
        shared = bool((start.weight.scales == start.weight.scales[0]).all())
        self.steps = nn.Parameter(torch.zeros(1 if shared else channels))
        self.register_buffer("start", torch.from_numpy(start.weight.scales.astype(np.float32)))

    def scales(self) -> Tensor:
        return self.get_buffer("start") * self.steps.exp()

    def weights(self) -> Tensor:
        """(O, I, H, W) or (O, I), rounded, with gradients."""
        raise NotImplementedError

    def values(self, scales: Array) -> Array:
        """Float weights (O, H, W, I) or (O, I), to be stored in steps of `scales`."""
        raise NotImplementedError

    def rounded(self) -> tuple[Tensor, Tensor]:
        return self.weights(), self.bias

    def integer(self, op: WeightedOp, input_scale: float) -> WeightedOp:
        scales = self.scales().detach().double().numpy()
        biased = replace(op, bias=self.bias.detach().double().numpy())
        return quantize_layer(biased, self.values(scales), scales, self.form, input_scale)


class _Dense(_Layer):
    """Weights one by one, those that pruning removed held at zero."""

    def __init__(self, op: WeightedOp, start: WeightedOp) -> None:
        super().__init__(op, start)
        assert op.weight.values is not None
        values = torch.from_numpy(op.weight.values.astype(np.float32))
        self.weight = nn.Parameter(values.permute(0, 3, 1, 2) if values.dim() == 4 else values)
        pruned = self.form.kept < self.form.size
        self.register_buffer("mask", (self.weight != 0).float() if pruned else torch.ones(()))

    def weights(self) -> Tensor:
        scales = self.scales().view(-1, *[1] * (self.weight.dim() - 1))
        limit = 2 ** (self.form.bits - 1) - 1
        return rounded(self.weight * self.get_buffer("mask"), scales, -limit, limit)

    def values(self, scales: Array) -> Array:
        weight = (self.weight * self.get_buffer("mask")).detach()
        values = weight.permute(0, 2, 3, 1) if weight.dim() == 4 else weight
        return values.contiguous().numpy()


class _Shared(_Layer):
    """Weights of a code book: which entry a weight takes is fixed, the entries are learned.

    Entries are held at the size of weights, in the mean of the steps that they start with, since
    Adam's step is one for all parameters.
    """

    def __init__(self, op: WeightedOp, start: WeightedOp) -> None:
        super().__init__(op, start)
        values = start.weight.values
        assert values is not None
        table = read_table(values, start.weight.vector)
        self.register_buffer("indices", torch.from_numpy(read_indices(values, table)))
        self.register_buffer("step", self.get_buffer("start").mean())
        self.entries = nn.Parameter(torch.from_numpy(table).float() * self.get_buffer("step"))

    def weights(self) -> Tensor:
        step = self.get_buffer("step")
        integers = self._written(rounded(self.entries, step, -INT8_MAX, INT8_MAX) / step)
        weight = integers * self.scales().view(-1, *[1] * (integers.dim() - 1))
        return weight.permute(0, 3, 1, 2) if weight.dim() == 4 else weight

    def _written(self, table: Tensor) -> Tensor:
        rows = table[self.get_buffer("indices")].flatten(1)
        return rows[:, : self.form.size // len(rows)].reshape(self.form.shape)

    def values(self, scales: Array) -> Array:
        step = self.get_buffer("step")
        table = (self.entries / step).round().clamp(-INT8_MAX, INT8_MAX).detach().double()
        integers = self._written(table).numpy()
        return np.asarray(integers * scales.reshape(-1, *[1] * (integers.ndim - 1)))


def _layer_of(op: WeightedOp, start: WeightedOp) -> _Layer:
    return _Shared(op, start) if start.weight.entries else _Dense(op, start)


class _Rounding(torch.autograd.Function):
    """Values in steps of `scale`, clipped to [low, high] steps; equations 1 to 3 of the LSQ paper.

    The gradient passes straight through to values in range; that of a step is the error of the
    rounding in range, and the limit beyond. One operation, since a chain of torch's took most of
    the time of a training.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, scale: Tensor, low: float, high: float) -> Tensor:
        scaled = value / scale
        integers = scaled.round().clamp_(low, high)
        ctx.save_for_backward(scaled, integers, scale)
        ctx.limits = low, high
        return integers * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor | None, None, None]:
        scaled, integers, scale = ctx.saved_tensors
        low, high = ctx.limits
        inside = (scaled >= low) & (scaled <= high)
        of_scale = None
        if ctx.needs_input_grad[1]:
            slope = torch.addcmul(integers, scaled, inside, value=-1) * gradients[0]
            of_scale = slope.sum_to_size(scale.shape)
        return gradients[0] * inside, of_scale, None, None


def rounded(value: Tensor, scale: Tensor, low: float, high: float) -> Tensor:
    """`value` in whole steps of `scale` (which broadcasts), from `low` to `high` of them."""
    result: Tensor = _Rounding.apply(value, scale, low, high)  # type: ignore[no-untyped-call]
    return result


def _moves(op: Op) -> bool:
    largest = isinstance(op, Pool2D) and op.mode == "max"
    return largest or isinstance(op, Reshape | Pad | Concat)


def _key(name: str) -> str:
    """Names of torch modules hold dots, keys of a ModuleDict must not."""
    return name.replace(".", "/")


def _layer(graph: Graph, name: str) -> WeightedOp:
    op = graph.op(name)
    assert isinstance(op, Conv2D | FullyConnected)
    return op
