"""Magnitude pruning of weights, single or in blocks: masks with an exact count, held in training.

Han et al., "Learning both Weights and Connections for Efficient Neural Networks", arXiv 1506.02626;
blocks with one magnitude as in "Micro-structured weight unification and pruning", arXiv 2106.08301.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dse.errors import CompressionError, nearest
from dse.graph.blocks import ELEMENT, block_shape, kept_blocks, shares_magnitudes
from dse.graph.ir import Array

# By layer, torch's column of each column of its weights in flash.
Orders = Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class Masks:
    """Which weight elements stay, by layer name: boolean tensors of the weights' shapes.

    `shared` names the pattern of those layers whose blocks have one magnitude, `orders` the order
    of columns of those whose weights lie otherwise in flash (dse.graph.trace.column_orders).
    """

    kept: Mapping[str, Tensor]
    shared: Mapping[str, str] = field(default_factory=dict)
    orders: Orders = field(default_factory=dict)

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Set every other element of the named layers' weights to exactly zero."""
        for name, mask in self.kept.items():
            weight = _weight(model, name)
            weight.mul_(mask)
            if name in self.shared:
                order = self.orders.get(name)
                weight.copy_(unified(weight, self.shared[name], order))

    @property
    def counts(self) -> Mapping[str, int]:
        """Elements that stay, by layer name."""
        return {name: int(mask.sum()) for name, mask in self.kept.items()}


@torch.no_grad()
def magnitude_masks(
    model: nn.Module,
    densities: Mapping[str, float],
    pattern: str = ELEMENT,
    orders: Orders | None = None,
) -> Masks:
    """Masks that keep the blocks of `pattern` with the largest sums of magnitudes.

    round(density x blocks) of each named layer stay, at least 1; a block of the pattern `element`
    is a weight. Equal sums are kept in the order of their index. Biases are never pruned. `orders`
    are those of columns by layer name, where blocks are not cut from torch's.
    Raises CompressionError for an unknown layer or pattern, or a density outside (0, 1].
    """
    orders = orders or {}
    kept = {
        name: _mask(_weight(model, name), density, pattern, orders.get(name))
        for name, density in densities.items()
    }
    shared = dict.fromkeys(kept, pattern) if shares_magnitudes(pattern) else {}
    return Masks(kept, shared, orders)


def check_densities(densities: Mapping[str, float]) -> None:
    """Raises CompressionError for a density outside (0, 1]."""
    for name, density in densities.items():
        number = isinstance(density, int | float) and not isinstance(density, bool)
        if not number or not 0 < density <= 1:
            raise CompressionError(
                f"layer '{name}' cannot have density {density!r}; allowed: more than 0, up to 1"
            )


def blocks_of(weight: Tensor, pattern: str, order: Array | None = None) -> Tensor:
    """(block rows, rows, block columns, columns) of a weight (O, I, ...), zeros where it ends.

    Columns are in the order in which weights lie in flash: channels of a tap together, and those of
    a flattened image as `order` says.
    """
    rows, columns = block_shape(pattern)
    matrix = weight.movedim(1, -1).reshape(len(weight), -1)
    matrix = matrix if order is None else matrix[:, torch.from_numpy(order)]
    padded = F.pad(matrix, (0, -matrix.shape[1] % columns, 0, -len(matrix) % rows))
    return padded.reshape(len(padded) // rows, rows, padded.shape[1] // columns, columns)


def from_blocks(blocks: Tensor, like: Tensor, order: Array | None = None) -> Tensor:
    """The weight of the shape of `like` that `blocks_of` took apart."""
    matrix = blocks.reshape(blocks.shape[0] * blocks.shape[1], -1)
    moved = like.movedim(1, -1)
    cut = matrix[: len(like), : moved[0].numel()]
    cut = cut if order is None else cut[:, torch.from_numpy(order).argsort()]
    return cut.reshape(moved.shape).movedim(-1, 1)


def unified(weight: Tensor, pattern: str, order: Array | None = None) -> Tensor:
    """The weight with one magnitude a block, the mean, and every sign as it was.

    A zero among others becomes positive (dse.graph.blocks.unified): a sign is all that is stored.
    """
    blocks = blocks_of(weight, pattern, order)
    inside = blocks_of(torch.ones_like(weight), pattern).sum((1, 3), keepdim=True)
    mean = blocks.abs().sum((1, 3), keepdim=True) / inside
    return from_blocks(torch.where(blocks < 0, -mean, mean), weight, order)


def _mask(weight: Tensor, density: float, pattern: str, order: Array | None) -> Tensor:
    check_densities({"": density})
    scores = blocks_of(weight.abs(), pattern, order).sum((1, 3))
    best = torch.argsort(scores.flatten(), descending=True, stable=True)
    stays = torch.zeros(scores.numel(), dtype=torch.bool)
    shape = weight.movedim(1, -1).shape
    stays[best[: kept_blocks(shape, density, pattern)]] = True
    blocks = blocks_of(torch.ones_like(weight), pattern).bool()
    return from_blocks(blocks & stays.reshape(scores.shape)[:, None, :, None], weight, order)


def _weight(model: nn.Module, name: str) -> Tensor:
    layers = {
        n: m for n, m in model.named_modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Linear)
    }
    if name not in layers:
        raise CompressionError(
            f"the network has no convolution or linear layer '{name}'; {nearest(name, layers)}"
        )
    return layers[name].weight
