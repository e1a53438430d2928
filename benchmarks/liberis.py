"""Budgeted differentiable pruning against uniform, random and global L1 widths, as int8 networks.

Every way meets the same budgets of peak memory, size and multiply-accumulates (shares of the whole
network's), starts from the same trained network, sees the same epochs of fine-tuning, and is
measured exactly on test data. Fixed widths are reached along the cubic ramp of gradual pruning
(arXiv 1710.01878) by L1 norms, which is stronger than at once. The method is that of Liberis &
Lane, arXiv 2110.08350.

    python benchmarks/liberis.py
    python benchmarks/liberis.py --workload lenet5-fashion-mnist --seeds 0 --recipe epochs=4
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dse.compress import Budgets, Compression, compress, prune_to_budgets
from dse.compress.resources import needs
from dse.graph import execute
from dse.graph.channels import ChannelGroup, channel_groups, narrow, with_encodings
from dse.graph.ir import Graph
from dse.graph.quantize import quantize
from dse.graph.ranges import find_ranges
from dse.graph.trace import trace
from dse.space import aligned_width
from dse.workloads import Dataset, Recipe, find_workload, float_accuracy, train

CALIBRATION_SAMPLES = 1024
# Shares of peak memory, size and MACs.
TRIPLES = ((0.5, 0.2, 0.2), (0.4, 0.1, 0.1), (0.25, 0.04, 0.04))
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


def prepare(name: str, changes: dict[str, float | int], seed: int) -> Start:
    """Train a workload's network."""
    workload = find_workload(name)
    recipe, data = workload.recipe.with_changes(changes), workload.load()
    model = workload.network(seed)
    samples = data.train.take(recipe.train_samples)
    train(
        model, samples, recipe, epochs=recipe.epochs, learning_rate=recipe.learning_rate, seed=seed
    )
    return Start(model, trace(model, data.sample_shape), data, recipe, seed)


def budgets_of(graph: Graph, shares: tuple[float, float, float]) -> Budgets:
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


def compare(start: Start, methods: Sequence[str]) -> None:
    """Print one line a triple of budgets and a method."""
    plain = plain_seconds(start)
    whole, test = needs(start.graph), start.data.test
    print(
        f"seed {start.seed}: float32 {100 * float_accuracy(start.model, test):.2f} %, {whole}, "
        f"plain fine-tuning {plain:.1f} s"
    )
    for shares in TRIPLES:
        budgets = budgets_of(start.graph, shares)
        print("peak, size, MACs at most " + ", ".join(f"{100 * s:g} %" for s in shares))
        for method in methods:
            began = time.perf_counter()
            model = pruned(start, method, budgets)
            ratio = (time.perf_counter() - began) / plain
            graph = trace(model, start.data.sample_shape)
            assert budgets.met(needs(graph))
            found = needs(graph)
            widths = "/".join(str(op.weight.shape[0]) for op in graph.weighted)
            print(
                f"  {method:<15}{100 * start.accuracy(graph):>7.2f} %  {ratio:>5.2f} x time  "
                f"{found.peak_memory_bytes} B, {found.size_bytes} B, {found.macs} MACs  {widths}",
                flush=True,
            )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", default="digits")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--recipe", nargs="+", default=(), metavar="KEY=VALUE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pairs = (item.split("=", 1) for item in options.recipe)
    changes = {key: int(value) if value.isdigit() else float(value) for key, value in pairs}
    for seed in options.seeds:
        compare(prepare(options.workload, changes, seed), options.methods)


if __name__ == "__main__":
    main()
