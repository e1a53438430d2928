"""Random small classifiers for property tests: chains, residuals, depthwise, joins, gates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from dse.graph import execute
from dse.graph.ir import Graph

BLOCKS = ("conv", "bn", "depthwise", "residual", "concat", "gate", "pool", "pad", "stride", "same")
ACTIVATIONS = ("none", "relu", "relu6", "sigmoid", "tanh", "hardswish", "hardsigmoid")


@dataclass(frozen=True)
class Recipe:
    """What a random network is made of; the seed decides its weights."""

    seed: int
    channels: int
    size: tuple[int, int]
    blocks: tuple[tuple[str, int, str], ...]
    head: str
    softmax: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.channels, *self.size)


@st.composite
def recipes(draw: st.DrawFn, blocks: tuple[str, ...] = BLOCKS, most: int = 3) -> Recipe:
    kinds = st.tuples(st.sampled_from(blocks), st.integers(1, 6), st.sampled_from(ACTIVATIONS))
    return Recipe(
        seed=draw(st.integers(0, 10_000)),
        channels=draw(st.integers(1, 3)),
        size=draw(st.tuples(st.integers(4, 7), st.integers(4, 7))),
        blocks=tuple(draw(st.lists(kinds, min_size=1, max_size=most))),
        head=draw(st.sampled_from(("flatten", "average", "mean", "max"))),
        softmax=draw(st.booleans()),
    )


class RandomNet(nn.Module):
    """A classifier with five classes after a recipe."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.layers = nn.ModuleDict()
        self.first = nn.Conv2d(recipe.channels, 4, 3, padding=1)
        width, (rows, columns) = 4, recipe.size
        for index, (kind, out, _) in enumerate(recipe.blocks):
            width, rows, columns = self._block(f"b{index}", kind, width, out, rows, columns)
        features = width * rows * columns if recipe.head == "flatten" else width
        self.hidden = nn.Linear(features, 6)
        self.fc = nn.Linear(6, 5)
        self._scatter()

    def _block(
        self, name: str, kind: str, width: int, out: int, rows: int, columns: int
    ) -> tuple[int, int, int]:
        add = self.layers.add_module
        if kind in ("conv", "same"):
            padding: int | str = "same" if kind == "same" else 1
            kernel = (2, 3) if kind == "same" else 3
            add(name, nn.Conv2d(width, out, kernel, padding=padding, bias=kind == "same"))
            return out, rows, columns
        if kind == "bn":
            add(name, nn.Conv2d(width, out, 1, bias=False))
            add(f"{name}n", nn.BatchNorm2d(out))
            return out, rows, columns
        if kind == "depthwise":
            add(name, nn.Conv2d(width, width, 3, padding=1, groups=width))
        if kind == "residual":
            add(name, nn.Conv2d(width, width, 3, padding=1))
        if kind == "concat":
            add(name, nn.Conv2d(width, out, 1))
            return width + out, rows, columns
        if kind == "gate":
            add(name, nn.Conv2d(width, width, 1))
        if kind == "pad":
            return width, rows + 1, columns + 1
        if kind == "stride":
            add(name, nn.Conv2d(width, out, 3, stride=2, padding=1, dilation=1))
            return out, (rows + 1) // 2, (columns + 1) // 2
        if kind == "pool":
            return width, (rows + 2 - 3) // 2 + 1, (columns + 2 - 3) // 2 + 1
        return width, rows, columns

    def _scatter(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for index, (kind, _, activation) in enumerate(self.recipe.blocks):
            x = _activate(self._layer(f"b{index}", kind, x), activation)
        if self.recipe.head == "average":
            x = F.adaptive_avg_pool2d(x, 1)
        elif self.recipe.head == "max":
            x = F.adaptive_max_pool2d(x, 1)
        elif self.recipe.head == "mean":
            x = x.mean((2, 3))
        x = torch.relu(self.hidden(torch.flatten(x, 1)))
        x = self.fc(x)
        return torch.softmax(x, 1) if self.recipe.softmax else x

    def _layer(self, name: str, kind: str, x: Tensor) -> Tensor:
        layers = self.layers
        if kind == "bn":
            normed: Tensor = layers[f"{name}n"](layers[name](x))
            return normed
        if kind == "residual":
            total: Tensor = x + layers[name](x)
            return total
        if kind == "concat":
            return torch.cat([x, layers[name](x)], 1)
        if kind == "gate":
            return x * torch.sigmoid(layers[name](F.adaptive_avg_pool2d(x, 1)))
        if kind == "pad":
            return F.pad(x, (1, 0, 0, 1))
        if kind == "pool":
            return F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        plain: Tensor = layers[name](x)
        return plain


def _activate(x: Tensor, activation: str) -> Tensor:
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "relu": F.relu,
        "relu6": F.relu6,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "hardswish": F.hardswish,
        "hardsigmoid": F.hardsigmoid,
    }
    result: Tensor = functions[activation](x) if activation in functions else x
    return result


def network(recipe: Recipe) -> tuple[nn.Module, Tensor]:
    """The network in evaluation mode, and eight inputs for it."""
    model = RandomNet(recipe).eval()
    generator = torch.Generator().manual_seed(recipe.seed)
    return model, torch.randn(8, *recipe.shape, generator=generator)


def golden_ranges(graph: Graph, inputs: Tensor) -> dict[str, tuple[float, float]]:
    """Observed ranges to three digits: a convolution's last bits differ between processors."""
    observed = execute.observe(graph, inputs)
    return {
        name: (float(f"{low:.3g}"), float(f"{high:.3g}")) for name, (low, high) in observed.items()
    }
