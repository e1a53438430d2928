"""Random networks as a study would propose them, quantized, with one input: for `native.py`."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dse.compress import magnitude_masks
from dse.graph import execute
from dse.graph.blocks import ELEMENT, PATTERNS
from dse.graph.channels import kept_count
from dse.graph.ir import DType, Graph
from dse.graph.quantize import quantize
from dse.graph.trace import column_orders, trace

BLOCKS = (
    *("conv", "conv", "conv", "pointwise", "separable", "separable", "residual"),
    *("gate", "concat", "max", "average", "pad", "stride", "wide"),
)
ACTIVATIONS = ("relu", "relu", "relu", "relu6", "none", "hardswish", "sigmoid", "tanh")
MOST_MACS = 200_000
IN_BLOCKS = tuple(pattern for pattern in PATTERNS if pattern != ELEMENT)


@dataclass(frozen=True)
class Drawn:
    """A graph with values and one input as it lies in the arena."""

    graph: Graph
    entry: npt.NDArray[np.int8]


class RandomNet(nn.Module):
    """A classifier of random blocks on a small image."""

    def __init__(self, choice: random.Random) -> None:
        super().__init__()
        self.shape = (choice.choice((1, 3)), choice.randint(8, 18), choice.randint(8, 18))
        self.layers = nn.ModuleDict()
        self.blocks: list[tuple[str, str]] = []
        self.width, self.rows, self.columns = self.shape
        for index in range(choice.randint(3, 7)):
            kind = choice.choice(BLOCKS) if index else "conv"
            if kind in ("max", "average", "stride") and min(self.rows, self.columns) < 4:
                kind = "pointwise"
            self.blocks.append((kind, choice.choice(ACTIVATIONS)))
            self._add(f"b{index}", kind, choice)
        self.head = choice.choice(("flatten", "average", "max"))
        size = self.rows * self.columns if self.head == "flatten" else 1
        self.hidden = nn.Linear(self.width * size, choice.randint(8, 40))
        self.fc = nn.Linear(self.hidden.out_features, choice.randint(2, 12))
        self.softmax = choice.random() < 0.5

    def _add(self, name: str, kind: str, choice: random.Random) -> None:
        width, out = self.width, choice.choice((choice.randint(4, 40), 4 * choice.randint(2, 10)))
        layer: nn.Module | None = None
        if kind == "conv":
            layer = nn.Conv2d(width, out, 3, padding=1)
        elif kind == "wide":
            layer = nn.Conv2d(width, out, (5, 3), padding=(2, 1))
        elif kind == "stride":
            layer = nn.Conv2d(width, out, 3, stride=2, padding=1)
            self.rows, self.columns = (self.rows + 1) // 2, (self.columns + 1) // 2
        elif kind == "pointwise":
            layer = nn.Conv2d(width, out, 1)
        elif kind == "separable":
            self.layers[f"{name}d"] = nn.Conv2d(width, width, 3, padding=1, groups=width)
            layer = nn.Conv2d(width, out, 1)
        elif kind == "concat":
            layer = nn.Conv2d(width, out, 1)
        elif kind in ("residual", "gate"):
            layer = nn.Conv2d(width, width, 3 if kind == "residual" else 1, padding="same")
        elif kind in ("max", "average"):
            self.rows, self.columns = self.rows // 2, self.columns // 2
        elif kind == "pad":
            self.rows, self.columns = self.rows + 1, self.columns + 1
        if layer is not None:
            self.layers[name] = layer
        if kind in ("conv", "wide", "stride", "pointwise", "separable"):
            self.width = out
        elif kind == "concat":
            self.width = width + out

    def forward(self, x: Tensor) -> Tensor:
        """Logits or probabilities, (N, classes)."""
        for index, (kind, activation) in enumerate(self.blocks):
            x = _activated(self._block(f"b{index}", kind, x), activation)
        if self.head == "average":
            x = F.adaptive_avg_pool2d(x, 1)
        elif self.head == "max":
            x = F.adaptive_max_pool2d(x, 1)
        x = self.fc(torch.relu(self.hidden(torch.flatten(x, 1))))
        return torch.softmax(x, 1) if self.softmax else x

    def _block(self, name: str, kind: str, x: Tensor) -> Tensor:
        layers = self.layers
        if kind == "max":
            return F.max_pool2d(x, 2)
        if kind == "average":
            return F.avg_pool2d(x, 2)
        if kind == "pad":
            return F.pad(x, (1, 0, 0, 1))
        if kind == "separable":
            x = torch.relu(layers[f"{name}d"](x))
        if kind == "gate":
            gate: Tensor = torch.sigmoid(layers[name](F.adaptive_avg_pool2d(x, 1)))
            return x * gate
        y: Tensor = layers[name](x)
        if kind == "residual":
            return x + y
        return torch.cat([x, y], 1) if kind == "concat" else y


def _activated(x: Tensor, activation: str) -> Tensor:
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "relu": F.relu,
        "relu6": F.relu6,
        "hardswish": F.hardswish,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
    }
    found: Tensor = functions[activation](x) if activation in functions else x
    return found


def draw(seed: int, dtype: DType, blocks: bool = False) -> Drawn:
    """The network of a seed with activations of a type: mixed widths and some sparse layers.

    With `blocks` every layer is pruned in blocks of one pattern.
    """
    choice = random.Random(seed)
    while True:
        torch.manual_seed(choice.randrange(1 << 30))
        model = RandomNet(choice).eval()
        floating = trace(model, model.shape, f"random{seed}")
        if 10_000 < floating.macs < MOST_MACS * (0.2 if dtype == "float32" else 1):
            break
    inputs = torch.randn(4, *model.shape)
    if dtype == "float32":
        values = inputs[:1].movedim(1, -1).numpy().astype(np.float32)
        return Drawn(floating, np.ascontiguousarray(values).reshape(1, -1).view(np.int8))
    pattern = choice.choice(IN_BLOCKS) if blocks else ELEMENT
    densities = _blocked(model, pattern, choice) if blocks else _thinned(model, choice)
    floating = trace(model, model.shape, f"random{seed}")
    widths = choice.choice(((8,), (8, 4), (4,), (4, 2), (8, 4, 2)))
    bits = {op.name: choice.choice(widths) for op in floating.weighted}
    ranges = execute.observe(floating, inputs)
    graph = quantize(floating, ranges, bits, densities, dtype, pattern)
    values = execute.quantize_input(graph.tensors[graph.input], inputs[:1]).movedim(1, -1).numpy()
    kind = np.int16 if dtype == "int16" else np.int8
    return Drawn(graph, np.ascontiguousarray(values, kind).reshape(1, -1).view(np.int8))


def _blocked(model: RandomNet, pattern: str, choice: random.Random) -> dict[str, float]:
    """Zero the smallest blocks of every layer; the densities by layer name."""
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    found = {name: choice.choice((0.2, 0.35, 0.5)) for name in layers}
    magnitude_masks(model, found, pattern, column_orders(model, model.shape)).apply(model)
    return found


def _thinned(model: RandomNet, choice: random.Random) -> dict[str, float]:
    """Zero the smallest weights of some layers; the densities by layer name."""
    found: dict[str, float] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear) or choice.random() > 0.25:
            continue
        density = choice.choice((0.1, 0.3))
        weight = module.weight.detach()
        kept = kept_count(weight.numel(), density)
        order = weight.abs().flatten().argsort()
        weight.flatten()[order[: weight.numel() - kept]] = 0
        found[name] = density
    return found
