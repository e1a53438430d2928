"""Activation ranges from training data: min-max, percentile, or the least squared error.

Post-training quantization scales each tensor by its range. A range narrower than what was seen
clips rare values and gives the others finer steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dse.errors import GraphError, nearest
from dse.graph import execute
from dse.graph.ir import Graph
from dse.graph.quantize import Ranges

METHODS = ("minmax", "percentile", "mse")
PERCENTILE = 0.9999
STEPS = 255
_BINS = 2048
_SHARES = np.linspace(0.3, 1.0, 36)
_Array = npt.NDArray[Any]


def find_ranges(graph: Graph, inputs: torch.Tensor, method: str = "minmax") -> Ranges:
    """(low, high) of every tensor of a float graph over `inputs`, by one of METHODS.

    `minmax` is what was seen; `percentile` leaves out 0.01 % of the values in all (both ends
    alike); `mse` clips where the squared error of 8-bit steps is least (as Banner et al., arXiv
    1810.05723, searched on a histogram of 2048 bins). The input and the output keep their whole
    range: pixels stay what they are, and clipped scores of two classes would be equal.
    Raises GraphError for an unknown method.
    """
    if method not in METHODS:
        raise GraphError(f"unknown ranges '{method}'; {nearest(method, METHODS)}")
    seen = execute.observe(graph, inputs)
    if method == "minmax":
        return seen
    inner = {n: r for n, r in seen.items() if n not in (graph.input, graph.output) and r[0] < r[1]}
    choose = _percentile if method == "percentile" else _least_error
    counts = _histograms(graph, inputs, inner)
    return {**seen, **{name: choose(counts[name], *inner[name]) for name in inner}}


def _histograms(graph: Graph, inputs: torch.Tensor, ranges: Ranges) -> Mapping[str, _Array]:
    counts: dict[str, _Array] = {name: np.zeros(_BINS) for name in ranges}
    for values in execute.activations(graph, inputs):
        for name, (low, high) in ranges.items():
            counts[name] += torch.histc(values[name], _BINS, low, high).numpy()
    return counts


def _percentile(counts: _Array, low: float, high: float) -> tuple[float, float]:
    edges = np.linspace(low, high, _BINS + 1)
    share = np.concatenate(([0.0], np.cumsum(counts))) / counts.sum()
    tail = (1 - PERCENTILE) / 2
    # The last edge below which at most `tail` lies, and the first above which at most `tail` does.
    first = int(np.searchsorted(share, tail, side="right")) - 1
    last = int(np.searchsorted(share, 1 - tail, side="left"))
    return float(edges[first]), float(edges[max(last, first + 1)])


def _least_error(counts: _Array, low: float, high: float) -> tuple[float, float]:
    """Both ends are tried at 36 shares of themselves; an end at 0 has one."""
    edges = np.linspace(low, high, _BINS + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    used = counts > 0
    best = (np.inf, low, high)
    for bottom in {low * share if low < 0 else low for share in _SHARES}:
        for top in {high * share if high > 0 else high for share in _SHARES}:
            best = min(best, (_error(centres[used], counts[used], bottom, top), bottom, top))
    return best[1], best[2]


def _error(values: _Array, counts: _Array, low: float, high: float) -> float:
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / STEPS
    kept = np.clip(np.rint((values - low) / step), 0, STEPS) * step + low
    return float((counts * (kept - values) ** 2).sum())
