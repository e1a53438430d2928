"""Budgeted differentiable pruning against uniform, random and global L1 widths, as int8 networks.

Every way meets the same budgets of peak memory, size and multiply-accumulates (shares of the whole
network's), starts from the same trained network, sees the same epochs of fine-tuning, and is
measured exactly on test data. Fixed widths are reached along the cubic ramp of gradual pruning
(arXiv 1710.01878) by L1 norms, which is stronger than at once. After Liberis & Lane, arXiv
2110.08350. What was measured is kept beside the report, so an interrupted run goes on.

    python benchmarks/liberis.py
    python benchmarks/liberis.py --workloads digits --seeds 0
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from liberis_report import key_of, write_report
from torch import Tensor, nn

from dse.compress import Budgets, Compression, compress, prune_to_budgets
from dse.graph import execute
from dse.graph.channels import ChannelGroup, channel_groups, narrow, with_encodings
from dse.graph.ir import Graph
from dse.graph.quantize import quantize
from dse.graph.ranges import find_ranges
from dse.graph.resources import needs
from dse.graph.trace import trace
from dse.widths import aligned_width
from dse.workloads import Dataset, Recipe, find_workload, float_accuracy, train

CALIBRATION_SAMPLES = 1024
# Shares of peak memory, size and MACs: a board short of RAM, of flash, and of time.
TRIPLES = ((0.25, 0.3, 0.3), (0.6, 0.05, 0.3), (0.6, 0.3, 0.05))
# Where the triples above cost nothing (any widths are as good as the whole network): harder ones.
HARDER: Mapping[str, Sequence[Sequence[float]]] = {
    "har": ((0.15, 0.1, 0.1), (0.6, 0.01, 0.3), (0.6, 0.3, 0.01)),
}
# How far all three go at once before a point is lost.
SWEEP: Mapping[str, Sequence[Sequence[float]]] = {
    "digits": ((0.3, 0.2, 0.2), (0.2, 0.1, 0.1)),
    "lenet5-mnist": ((0.2, 0.05, 0.1), (0.15, 0.02, 0.05)),
    "har": ((0.4, 0.1, 0.1), (0.3, 0.05, 0.05)),
}
# Short trainings, the same for every method.
RECIPES: Mapping[str, Mapping[str, int]] = {
    "digits": {"epochs": 15, "fine_tune_epochs": 15},
    "lenet5-mnist": {
        "epochs": 2,
        "train_samples": 15_000,
        "fine_tune_epochs": 2,
        "fine_tune_samples": 6_000,
    },
    "har": {"epochs": 4, "fine_tune_epochs": 3},
}
METHODS = ("differentiable", "uniform", "random", "l1 global")
Widths = dict[str, int]


@dataclass(frozen=True)
class Start:
    """A trained network, its float graph, its data and how everything is fine-tuned."""

    model: nn.Module
    graph: Graph
    data: Dataset
    recipe: Recipe
    seed: int

    def accuracy(self, graph: Graph) -> float:
        """Exact int8 accuracy on test data."""
        calibration = self.data.train.take(CALIBRATION_SAMPLES).inputs
        integer = quantize(graph, find_ranges(graph, calibration))
        return execute.accuracy(integer, self.data.test.inputs, self.data.test.labels)


def prepare(name: str, seed: int) -> Start:
    """Train a workload's network."""
    workload = find_workload(name)
    recipe, data = workload.recipe.with_changes(RECIPES[name]), workload.load()
    model = workload.network(seed)
    samples = data.train.take(recipe.train_samples)
    train(
        model, samples, recipe, epochs=recipe.epochs, learning_rate=recipe.learning_rate, seed=seed
    )
    return Start(model, trace(model, data.sample_shape), data, recipe, seed)


def budgets_of(graph: Graph, shares: Sequence[float]) -> Budgets:
    """Shares of what the whole network needs."""
    whole = needs(graph)
    peak, size, macs = shares
    return Budgets(
        round(whole.peak_memory_bytes * peak),
        round(whole.size_bytes * size),
        round(whole.macs * macs),
    )


def largest(graph: Graph, budgets: Budgets, widths_at: Callable[[float], Widths]) -> Widths:
    """The widths of the largest level (0 to 1) that meets the budgets."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        shapes = with_encodings(narrow(graph, widths_at(middle)), {}, {})
        low, high = (middle, high) if budgets.met(needs(shapes)) else (low, middle)
    return widths_at(low)


def fixed_widths(start: Start, method: str, budgets: Budgets) -> Widths:
    """The widths that a method without training gives."""
    groups = channel_groups(start.graph)
    if method == "uniform":
        return largest(start.graph, budgets, lambda level: widths_of(groups, [level] * len(groups)))
    if method == "random":
        source = random.Random(start.seed)
        draws = [source.gauss(0, 1.5) for _ in groups]

        def drawn(level: float) -> Widths:
            shift = 20 * level - 10
            return widths_of(groups, [1 / (1 + math.exp(-draw - shift)) for draw in draws])

        return largest(start.graph, budgets, drawn)
    layers = dict(start.model.named_modules())
    # Mean magnitudes, so that layers with many weights a channel do not go last for that alone.
    means = [_weight(layers[g.name]).abs().flatten(1).mean(1) for g in groups]
    top = float(torch.cat(means).max())

    def above(level: float) -> Widths:
        shares = [float((mean >= top * (1 - level)).float().mean()) for mean in means]
        return widths_of(groups, shares)

    return largest(start.graph, budgets, above)


def _weight(module: nn.Module) -> Tensor:
    return module.get_parameter("weight").detach()


def widths_of(groups: Sequence[ChannelGroup], shares: Sequence[float]) -> Widths:
    """Channels kept of every group, at least one."""
    return {
        group.name: aligned_width(group.channels, 1 - share, 1)
        for group, share in zip(groups, shares, strict=True)
    }


def pruned(start: Start, method: str, budgets: Budgets) -> nn.Module:
    """The network that a method leaves, fine-tuned."""
    if method == "differentiable":
        return prune_to_budgets(start.model, start.data.train, budgets, start.recipe, start.seed)
    widths = fixed_widths(start, method, budgets)
    plan = Compression(widths, criterion="l1", schedule="agp")
    return compress(start.model, start.data.train, plan, start.recipe, start.seed)


def plain_seconds(start: Start) -> float:
    """How long the whole network takes for as many epochs."""
    recipe = start.recipe
    log = train(
        copy.deepcopy(start.model),
        start.data.train.take(recipe.fine_tune_samples),
        recipe,
        epochs=recipe.fine_tune_epochs,
        learning_rate=recipe.fine_tune_learning_rate,
        seed=start.seed,
    )
    return log.seconds


def whole_network(start: Start) -> dict[str, Any]:
    """What the unpruned network can, needs, and takes to be trained on."""
    return {
        "float32": float_accuracy(start.model, start.data.test),
        "int8": start.accuracy(start.graph),
        "plain_s": plain_seconds(start),
        **asdict(needs(start.graph)),
    }


def measured(start: Start, method: str, shares: Sequence[float]) -> dict[str, Any]:
    """One network that meets the budgets; how long it took, in plain fine-tunings beside it."""
    budgets = budgets_of(start.graph, shares)
    began = time.perf_counter()
    model = pruned(start, method, budgets)
    seconds = time.perf_counter() - began
    graph = trace(model, start.data.sample_shape)
    if not budgets.met(found := needs(graph)):
        raise SystemExit(f"{method} needs {found}, more than {budgets}")
    return {
        "int8": start.accuracy(graph),
        "seconds": round(seconds, 2),
        "widths": "/".join(str(op.weight.shape[0]) for op in graph.weighted),
        **asdict(found),
    }


def triples_of(name: str) -> list[Sequence[float]]:
    """The triples of budgets that every method is given."""
    return [*TRIPLES, *HARDER.get(name, ())]


def jobs(name: str, methods: Sequence[str], seed: int) -> Iterator[tuple[str, Sequence[float]]]:
    """Method and shares of everything that is measured of a network with a seed."""
    for triple in triples_of(name):
        for method in methods:
            yield method, triple
    if seed == 0:
        for shares in SWEEP[name]:
            yield "differentiable", shares


def compare(name: str, seed: int, methods: Sequence[str], path: Path) -> None:
    """Measure what is not known yet of one network and seed."""
    known: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}

    def keep(key: str, found: dict[str, Any]) -> None:
        known[key] = found
        print(f"{key}: {found}", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")

    missing = [
        (key, method, shares)
        for method, shares in jobs(name, methods, seed)
        if (key := key_of(name, seed, method, shares)) not in known
    ]
    if not missing:
        return
    start = prepare(name, seed)
    if key_of(name, seed, "whole") not in known:
        keep(key_of(name, seed, "whole"), whole_network(start))
    for key, method, shares in missing:
        keep(key, measured(start, method, shares))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workloads", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=Path("reports/liberis.json"))
    parser.add_argument("--print-only", action="store_true", help="report what is measured already")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.print_only:
        for seed, name in product(options.seeds, options.workloads):
            compare(name, seed, options.methods, options.results)
    write_report(options.results, triples_of, METHODS)


if __name__ == "__main__":
    main()
