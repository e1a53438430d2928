"""Element-wise magnitude pruning: masks with an exact count, held while training.

Han et al., "Learning both Weights and Connections for Efficient Neural Networks", arXiv 1506.02626.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dse.errors import CompressionError, nearest
from dse.graph.channels import kept_count


@dataclass(frozen=True, eq=False)
class Masks:
    """Which weight elements stay, by layer name: boolean tensors of the weights' shapes."""

    kept: Mapping[str, Tensor]

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Set every other element of the named layers' weights to exactly zero."""
        for name, mask in self.kept.items():
            _weight(model, name).mul_(mask)

    @property
    def counts(self) -> Mapping[str, int]:
        """Elements that stay, by layer name."""
        return {name: int(mask.sum()) for name, mask in self.kept.items()}


@torch.no_grad()
def magnitude_masks(model: nn.Module, densities: Mapping[str, float]) -> Masks:
    """Masks that keep the largest weights: round(density x size) of each named layer, at least 1.

    Equal magnitudes are kept in the order of their index. Biases are never pruned.
    Raises CompressionError for an unknown layer or a density outside (0, 1].
    """
    return Masks({name: _mask(_weight(model, name), d) for name, d in densities.items()})


def check_densities(densities: Mapping[str, float]) -> None:
    """Raises CompressionError for a density outside (0, 1]."""
    for name, density in densities.items():
        number = isinstance(density, int | float) and not isinstance(density, bool)
        if not number or not 0 < density <= 1:
            raise CompressionError(
                f"layer '{name}' cannot have density {density!r}; allowed: more than 0, up to 1"
            )


def _mask(weight: Tensor, density: float) -> Tensor:
    check_densities({"": density})
    order = torch.argsort(weight.abs().flatten(), descending=True, stable=True)
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[order[: kept_count(weight.numel(), density)]] = True
    return mask.reshape(weight.shape)


def _weight(model: nn.Module, name: str) -> Tensor:
    layers = {
        n: m for n, m in model.named_modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Linear)
    }
    if name not in layers:
        raise CompressionError(
            f"the network has no convolution or linear layer '{name}'; {nearest(name, layers)}"
        )
    return layers[name].weight
