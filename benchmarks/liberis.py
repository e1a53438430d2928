"""Budgeted differentiable pruning against uniform, random and global L1 widths, as int8 networks.

Every way meets the same budgets of peak memory, size and multiply-accumulates (shares of the whole
network's), starts from the same trained network, sees the same epochs of fine-tuning, and is
measured exactly on test data. The published method is Liberis & Lane, arXiv 2110.08350. 'uniform
agp' narrows step by step in torch with its batch normalization; all others fine-tune the folded
graph, the fixed widths from the first step on.

    python benchmarks/liberis.py
    python benchmarks/liberis.py --workload lenet5-fashion-mnist --seeds 0 --recipe epochs=4
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dse.compress import Budgets, Compression, compress, prune_to_budgets
from dse.compress.widths import Masked, needs, widths_of
from dse.graph import execute
from dse.graph.channels import channel_groups, narrow, with_encodings
from dse.graph.ir import Graph
from dse.graph.quantize import quantize
from dse.graph.ranges import find_ranges
from dse.graph.trace import trace
from dse.workloads import Dataset, Recipe, find_workload, float_accuracy, train

CALIBRATION_SAMPLES = 1024
# Shares of peak memory, size and MACs.
TRIPLES = ((0.5, 0.2, 0.2), (0.4, 0.1, 0.1), (0.25, 0.04, 0.04))
METHODS = ("differentiable", "uniform", "random", "l1 global", "uniform agp")
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

    def tuned(self, masks: Callable[[Masked], Mapping[str, Tensor]]) -> tuple[Masked, float]:
        """The graph fine-tuned under masks, and the seconds that took."""
        network, recipe = Masked(self.graph, masks), self.recipe
        log = train(
            network,
            self.data.train.take(recipe.fine_tune_samples),
            recipe,
            epochs=recipe.fine_tune_epochs,
            learning_rate=recipe.fine_tune_learning_rate,
            seed=self.seed,
        )
        return network, log.seconds


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
    if method.startswith("uniform"):
        return largest(
            start.graph, budgets, lambda level: widths_of(groups, [level] * len(groups), 1)
        )
    if method == "random":
        source = random.Random(start.seed)
        draws = [source.gauss(0, 1.5) for _ in groups]

        def drawn(level: float) -> Widths:
            shift = 20 * level - 10
            return widths_of(groups, [1 / (1 + math.exp(-draw - shift)) for draw in draws], 1)

        return largest(start.graph, budgets, drawn)
    network = Masked(start.graph, lambda _: {})
    # Mean magnitudes, so that layers with many weights a channel do not go last for that alone.
    means = [network.importance(g) / _weights_a_channel(start.graph, g.producers) for g in groups]
    top = float(torch.cat(means).max())
    return largest(
        start.graph,
        budgets,
        lambda level: widths_of(
            groups, [float((mean > top * (1 - level)).float().mean()) for mean in means], 1
        ),
    )


def _weights_a_channel(graph: Graph, producers: Sequence[str]) -> int:
    return sum(graph.op(name).weight.size for name in producers) // len(producers)  # type: ignore[attr-defined]


def best_channels(start: Start, widths: Widths) -> dict[str, Tensor]:
    """Masks of the channels with the largest L1 norms."""
    network, kept = Masked(start.graph, lambda _: {}), {}
    for group in channel_groups(start.graph):
        order = torch.argsort(network.importance(group), descending=True, stable=True)
        kept[group.name] = torch.zeros(group.channels)
        kept[group.name][order[: widths.get(group.name, group.channels)]] = 1
    return kept


def pruned(start: Start, method: str, budgets: Budgets) -> Graph:
    """The float graph that a method leaves, fine-tuned."""
    if method == "differentiable":
        found = prune_to_budgets(start.graph, start.data.train, budgets, start.recipe, start.seed)
        return found.graph
    widths = fixed_widths(start, method, budgets)
    if method == "uniform agp":
        plan = Compression(widths, criterion="l1", schedule="agp")
        model = compress(start.model, start.data.train, plan, start.recipe, start.seed)
        return trace(model, start.data.sample_shape)
    kept = best_channels(start, widths)
    return start.tuned(lambda _: kept)[0].narrowed(kept)


def compare(start: Start, triples: Sequence[tuple[float, float, float]]) -> None:
    """Print one line a triple of budgets and a method."""
    plain = start.tuned(lambda _: {})[1]
    whole, test = needs(start.graph), start.data.test
    print(
        f"seed {start.seed}: float32 {100 * float_accuracy(start.model, test):.2f} %, {whole}, "
        f"plain fine-tuning {plain:.1f} s"
    )
    for shares in triples:
        budgets = budgets_of(start.graph, shares)
        print("peak, size, MACs at most " + ", ".join(f"{100 * s:g} %" for s in shares))
        for method in METHODS:
            began = time.perf_counter()
            graph = pruned(start, method, budgets)
            ratio = (time.perf_counter() - began) / plain
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
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--recipe", nargs="+", default=(), metavar="KEY=VALUE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pairs = (item.split("=", 1) for item in options.recipe)
    changes = {key: int(value) if value.isdigit() else float(value) for key, value in pairs}
    for seed in options.seeds:
        compare(prepare(options.workload, changes, seed), TRIPLES)


if __name__ == "__main__":
    main()
