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


@dataclass(frozen=True, eq=False)
class Masks:
    """Which weight elements stay, by layer name: boolean tensors of the weights' shapes.

    `shared` names the pattern of those layers whose blocks have one magnitude.
    """

    kept: Mapping[str, Tensor]
    shared: Mapping[str, str] = field(default_factory=dict)

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Set every other element of the named layers' weights to exactly zero."""
        for name, mask in self.kept.items():
            weight = _weight(model, name)
            weight.mul_(mask)
            if name in self.shared:
                weight.copy_(unified(weight, self.shared[name]))

    @property
    def counts(self) -> Mapping[str, int]:
        """Elements that stay, by layer name."""
        return {name: int(mask.sum()) for name, mask in self.kept.items()}


@torch.no_grad()
def magnitude_masks(
    model: nn.Module, densities: Mapping[str, float], pattern: str = ELEMENT
) -> Masks:
    """Masks that keep the blocks of `pattern` with the largest sums of magnitudes.

    round(density x blocks) of each named layer stay, at least 1; a block of the pattern `element`
    is a weight. Equal sums are kept in the order of their index. Biases are never pruned.
    Raises CompressionError for an unknown layer or pattern, or a density outside (0, 1].
    """
    kept = {name: _mask(_weight(model, name), d, pattern) for name, d in densities.items()}
    return Masks(kept, dict.fromkeys(kept, pattern) if shares_magnitudes(pattern) else {})


def check_densities(densities: Mapping[str, float]) -> None:
    """Raises CompressionError for a density outside (0, 1]."""
    for name, density in densities.items():
        number = isinstance(density, int | float) and not isinstance(density, bool)
        if not number or not 0 < density <= 1:
            raise CompressionError(
                f"layer '{name}' cannot have density {density!r}; allowed: more than 0, up to 1"
            )


def blocks_of(weight: Tensor, pattern: str) -> Tensor:
    """(block rows, rows, block columns, columns) of a weight (O, I, ...), zeros where it ends.

    Columns are in the order in which weights lie in flash: channels of a tap together.
    """
    rows, columns = block_shape(pattern)
    matrix = weight.movedim(1, -1).reshape(len(weight), -1)
    padded = F.pad(matrix, (0, -matrix.shape[1] % columns, 0, -len(matrix) % rows))
    return padded.reshape(len(padded) // rows, rows, padded.shape[1] // columns, columns)


def from_blocks(blocks: Tensor, like: Tensor) -> Tensor:
    """The weight of the shape of `like` that `blocks_of` took apart."""
    matrix = blocks.reshape(blocks.shape[0] * blocks.shape[1], -1)
    moved = like.movedim(1, -1)
    cut = matrix[: len(like), : moved[0].numel()]
    return cut.reshape(moved.shape).movedim(-1, 1)


def unified(weight: Tensor, pattern: str) -> Tensor:
    """The weight with one magnitude a block, the mean, and every sign as it was."""
    blocks = blocks_of(weight, pattern)
    inside = blocks_of(torch.ones_like(weight), pattern).sum((1, 3), keepdim=True)
    mean = blocks.abs().sum((1, 3), keepdim=True) / inside
    return from_blocks(blocks.sign() * mean, weight)


def _mask(weight: Tensor, density: float, pattern: str) -> Tensor:
    check_densities({"": density})
    scores = blocks_of(weight.abs(), pattern).sum((1, 3))
    order = torch.argsort(scores.flatten(), descending=True, stable=True)
    stays = torch.zeros(scores.numel(), dtype=torch.bool)
    shape = weight.movedim(1, -1).shape
    stays[order[: kept_blocks(shape, density, pattern)]] = True
    blocks = blocks_of(torch.ones_like(weight), pattern).bool()
    return from_blocks(blocks & stays.reshape(scores.shape)[:, None, :, None], weight)


def _weight(model: nn.Module, name: str) -> Tensor:
    layers = {
        n: m for n, m in model.named_modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Linear)
    }
    if name not in layers:
        raise CompressionError(
            f"the network has no convolution or linear layer '{name}'; {nearest(name, layers)}"
        )
    return layers[name].weight
