"""Compression of torch networks: channels and weights removed, then fine-tuned."""

from dse.compress.prune import CRITERIA, Importance, prune_channels
from dse.compress.schedule import SCHEDULES, Compression, Ramp, compress
from dse.compress.sparsify import Masks, magnitude_masks

__all__ = [
    "CRITERIA",
    "SCHEDULES",
    "Compression",
    "Importance",
    "Masks",
    "Ramp",
    "compress",
    "magnitude_masks",
    "prune_channels",
]
