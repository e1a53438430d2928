"""Compression of torch networks: channels, ranks and weights removed, then fine-tuned."""

from dse.compress.budget import prune_to_budgets
from dse.compress.distill import Distillation
from dse.compress.factorize import factorize
from dse.compress.prune import CRITERIA, FROM_DATA, Importance, prune_channels
from dse.compress.qat import learn_quantization
from dse.compress.schedule import SCHEDULES, Compression, Ramp, compress
from dse.compress.sparsify import Masks, magnitude_masks
from dse.graph.resources import Budgets

__all__ = [
    "CRITERIA",
    "FROM_DATA",
    "SCHEDULES",
    "Budgets",
    "Compression",
    "Distillation",
    "Importance",
    "Masks",
    "Ramp",
    "compress",
    "factorize",
    "learn_quantization",
    "magnitude_masks",
    "prune_channels",
    "prune_to_budgets",
]
