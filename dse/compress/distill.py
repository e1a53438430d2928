"""Distillation: a compressed network learns from the scores of the network it came from.

Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531; behind every step
of a compression as in arXiv 2104.09191.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dse.errors import CompressionError


@dataclass(frozen=True, eq=False)
class Distillation:
    """A loss for training: (1 - weight) x cross-entropy + weight x T^2 x KL(teacher || student).

    Both softmax at `temperature` T; T^2 keeps the gradients of both terms alike (section 2 of the
    paper). `weight` 0 is cross-entropy alone, 1 the teacher alone. The teacher is run in evaluation
    mode on the same batch. Raises CompressionError for a number out of range.
    """

    teacher: nn.Module
    weight: float
    temperature: float = 4.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise CompressionError(f"distillation has weight {self.weight!r}; allowed: 0 to 1")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise CompressionError(
                f"distillation has temperature {self.temperature!r}; it must be above 0"
            )
        self.teacher.eval()

    def __call__(self, scores: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of a batch: scores (N, classes), inputs (N, ...), labels (N,)."""
        hard = F.cross_entropy(scores, labels)
        if not self.weight:
            return hard
        with torch.no_grad():
            wanted = F.log_softmax(self.teacher(inputs) / self.temperature, dim=1)
        found = F.log_softmax(scores / self.temperature, dim=1)
        soft = F.kl_div(found, wanted, reduction="batchmean", log_target=True)
        return (1 - self.weight) * hard + self.weight * self.temperature**2 * soft
