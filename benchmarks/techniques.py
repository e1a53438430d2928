"""What the training techniques buy: exact accuracy of the network that would ship, on test data.

Quantization: every choice of ranges, and training, with the first and last layer in 8 bits and the
others in fewer. Distillation: networks pruned to a share of their channels (int8), fine-tuned with
labels alone and with the baseline as a teacher. Schedules: channels removed at once, along a ramp,
and along a ramp with a way back. Patterns: single weights removed, and blocks of them, with bytes
of weights, RAM and modelled latency of our kernels beside the whole int8 network. Calibration:
what one scale a tensor costs, and what equalization, adaptive rounding and corrected biases bring
back without training. Low rank: every layer split at a share of its rank (int8), before and after
fine-tuning, beside its parameters. Code books: every layer that is smaller with one, after training
and learned, beside bytes of weights (and what they would be with Huffman codes for indices, which
nothing here reads). All beside the float network, as it was trained and fine-tuned
as long as the others.

    python benchmarks/techniques.py
    python benchmarks/techniques.py --workload lenet5-fashion-mnist --recipe epochs=4
"""

from __future__ import annotations

import argparse
import copy
import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from dse.compress import (
    SCHEDULES,
    Compression,
    Distillation,
    compress,
    factorize,
    learn_quantization,
)
from dse.graph import execute
from dse.graph.blocks import PATTERNS
from dse.graph.channels import channel_groups
from dse.graph.code_book import CodeBooks, read_indices, read_table
from dse.graph.correct import correct_biases, round_adaptively
from dse.graph.equalize import equalize
from dse.graph.factor import METHODS as FACTORS
from dse.graph.factor import factorizable, matrix_shape, saves
from dse.graph.ir import Graph, WeightedOp
from dse.graph.quantize import SCALES, quantize
from dse.graph.ranges import METHODS, find_ranges
from dse.graph.trace import trace
from dse.targets import cost, encoded_bytes, parse_target
from dse.workloads import Dataset, Recipe, Split, find_workload, float_accuracy, train

CALIBRATION_SAMPLES = 1024
BITS = (8, 4, 3, 2)
KEPT = (0.5, 0.25, 0.125)
TEACHERS = ((0.5, 4.0), (0.9, 4.0))
DENSITIES = (0.25, 0.1)
BOARD = "nucleo_f446re/native"
RANKS = (0.5, 0.25, 0.125)
# (Entries, weights an entry).
BOOKS = ((16, 1), (8, 1), (256, 2), (4, 1), (256, 4), (16, 2), (16, 4))
TECHNIQUES = (
    "quantization",
    "distillation",
    "schedules",
    "patterns",
    "calibration",
    "low-rank",
    "code-books",
)


@dataclass(frozen=True)
class Trained:
    """A workload's network with its float graph, its data and the recipe of all fine-tuning."""

    model: nn.Module
    graph: Graph
    data: Dataset
    recipe: Recipe
    seed: int

    @property
    def calibration(self) -> torch.Tensor:
        """Training samples that ranges are found on."""
        return self.data.train.take(CALIBRATION_SAMPLES).inputs

    def accuracy(self, graph: Graph) -> str:
        """Share of the test data in percent."""
        test = self.data.test
        return f"{100 * execute.accuracy(graph, test.inputs, test.labels):.2f}"


def prepare(name: str, changes: dict[str, float | int], seed: int) -> Trained:
    """Train a workload's network, and print how good it is."""
    workload = find_workload(name)
    recipe, data = workload.recipe.with_changes(changes), workload.load()
    model = workload.network(seed)
    began = time.perf_counter()
    _train(model, data.train.take(recipe.train_samples), recipe, recipe.epochs, False, seed)
    longer = copy.deepcopy(model)
    tuning = data.train.take(recipe.fine_tune_samples)
    _train(longer, tuning, recipe, recipe.fine_tune_epochs, True, seed)
    found = [f"{100 * float_accuracy(one, data.test):.2f} %" for one in (model, longer)]
    seconds = time.perf_counter() - began
    print(f"{name}, seed {seed}: float32 {found[0]}, fine-tuned {found[1]} ({seconds:.0f} s)")
    return Trained(model, trace(model, data.sample_shape), data, recipe, seed)


def _train(
    model: nn.Module, split: Split, recipe: Recipe, epochs: int, tuning: bool, seed: int
) -> None:
    rate = recipe.fine_tune_learning_rate if tuning else recipe.learning_rate
    train(model, split, recipe, epochs=epochs, learning_rate=rate, seed=seed)


def quantization(found: Trained, bits: Sequence[int]) -> None:
    """One line a bit width: accuracy after each way to quantize."""
    ranges = [find_ranges(found.graph, found.calibration, method) for method in METHODS]
    names = [op.name for op in found.graph.weighted]
    print("bits " + "".join(f"{'ptq ' + m:>16}" for m in METHODS) + f"{'qat':>8}{'seconds':>9}")
    for width in bits:
        widths = dict.fromkeys(names, width) | {names[0]: 8, names[-1]: 8}
        starts = [quantize(found.graph, one, widths) for one in ranges]
        began = time.perf_counter()
        learned = learn_quantization(
            found.graph, starts[0], found.data.train, found.recipe, found.seed
        )
        seconds = time.perf_counter() - began
        cells = "".join(f"{found.accuracy(one):>16}" for one in starts)
        print(f"{width:>4} {cells}{found.accuracy(learned):>8}{seconds:>9.0f}", flush=True)


def distillation(found: Trained, shares: Sequence[float]) -> None:
    """One line a share of kept channels: accuracy without a teacher and with each."""
    groups = channel_groups(found.graph)
    titles = ["labels alone", *(f"w {w:g}, T {t:g}" for w, t in TEACHERS)]
    print("kept " + "".join(f"{title:>14}" for title in titles))
    for share in shares:
        widths = {group.name: max(1, round(group.channels * share)) for group in groups}
        cells = ""
        for loss in (None, *(Distillation(found.model, *teacher) for teacher in TEACHERS)):
            pruned = compress(
                found.model,
                found.data.train,
                Compression(widths, criterion="l2", schedule="agp"),
                found.recipe,
                found.seed,
                loss=loss,
            )
            graph = trace(pruned, found.data.sample_shape)
            integer = quantize(graph, find_ranges(graph, found.calibration))
            cells += f"{found.accuracy(integer):>14}"
        print(f"{share:>4.3g} {cells}", flush=True)


def schedules(found: Trained, shares: Sequence[float]) -> None:
    """One line a share of kept channels: accuracy by schedule."""
    groups = channel_groups(found.graph)
    print("kept " + "".join(f"{schedule:>14}" for schedule in SCHEDULES))
    for share in shares:
        widths = {group.name: max(1, round(group.channels * share)) for group in groups}
        plans = [Compression(widths, criterion="l2", schedule=one) for one in SCHEDULES]
        print(f"{share:>4.3g} " + "".join(f"{compressed(found, p):>14}" for p in plans), flush=True)


def patterns(found: Trained, densities: Sequence[float]) -> None:
    """One line a density and pattern, along the ramp: what the int8 network takes on a board."""
    print(f"kept pattern      bytes of weights  RAM bytes  latency ms  accuracy  ({BOARD})")
    whole = quantize(found.graph, find_ranges(found.graph, found.calibration))
    print(f"   1 {'':<12}{on_board(whole)}{found.accuracy(whole):>10}", flush=True)
    for density in densities:
        kept = dict.fromkeys((op.name for op in found.graph.weighted), density)
        for pattern in PATTERNS:
            plan = Compression({}, kept, schedule="agp", pattern=pattern)
            graph = integer(found, plan)
            text = f"{density:>4.3g} {pattern:<12}{on_board(graph)}{found.accuracy(graph):>10}"
            print(text, flush=True)


def on_board(graph: Graph) -> str:
    """Bytes of weights and of RAM and the modelled latency, as three columns."""
    target = parse_target(BOARD)
    stored = sum(target.backend.encoding(op).size_bytes for op in graph.weighted)
    ram, latency = (cost(graph, target).value(name) or 0.0 for name in ("ram", "latency"))
    return f"{stored:>17,}{ram:>11,.0f}{1e3 * latency:>12.2f}"


def compressed(found: Trained, plan: Compression) -> str:
    """Accuracy of the int8 network that a compression leaves."""
    return found.accuracy(integer(found, plan))


def integer(found: Trained, plan: Compression) -> Graph:
    """The int8 network that a compression leaves."""
    model = compress(found.model, found.data.train, plan, found.recipe, found.seed)
    graph = trace(model, found.data.sample_shape)
    ranges = find_ranges(graph, found.calibration)
    return quantize(graph, ranges, None, plan.densities, pattern=plan.pattern)


def calibration(found: Trained, bits: Sequence[int]) -> None:
    """One line a choice of scales and bit width: accuracy after each correction."""
    names, inputs = [op.name for op in found.graph.weighted], found.calibration
    equal = equalize(found.graph)
    titles = ("as rounded", "equalized", "adaptive", "corrected", "adapt.+corr.")
    print("scales   bits " + "".join(f"{title:>14}" for title in titles))
    for scales in SCALES:
        for width in bits:
            widths = dict.fromkeys(names, width) | {names[0]: 8, names[-1]: 8}
            plain, equalized = (
                quantize(graph, find_ranges(graph, inputs), widths, scales=scales)
                for graph in (found.graph, equal)
            )
            adapted = round_adaptively(found.graph, plain, inputs)
            corrected = (correct_biases(found.graph, one, inputs) for one in (plain, adapted))
            ends = (plain, equalized, adapted, *corrected)
            cells = "".join(f"{found.accuracy(end):>14}" for end in ends)
            print(f"{scales:<9}{width:>4} {cells}", flush=True)


def low_rank(found: Trained, shares: Sequence[float]) -> None:
    """One line a share of the rank and way to split: parameters, accuracy split and fine-tuned."""
    layers = [op for op in found.graph.weighted if factorizable(op)]
    print("rank  factors   parameters  split  fine-tuned")
    for share in shares:
        for method in FACTORS:
            most = {op.name: min(matrix_shape(op.weight.shape, method)) for op in layers}
            ranks = {
                op.name: max(1, round(most[op.name] * share))
                for op in layers
                if saves(op.weight.shape, max(1, round(most[op.name] * share)), method)
            }
            plan = Compression(ranks=ranks, factors=method)
            tuned = compress(found.model, found.data.train, plan, found.recipe, found.seed)
            ends = [
                trace(model, found.data.sample_shape)
                for model in (factorize(found.model, ranks, method), tuned)
            ]
            part = ends[0].parameters / found.graph.parameters
            cells = [
                found.accuracy(quantize(end, find_ranges(end, found.calibration))) for end in ends
            ]
            text = f"{share:<6.3g}{method:<10}{100 * part:>8.1f} %"
            print(f"{text}{cells[0]:>8}{cells[1]:>11}", flush=True)


def code_books(found: Trained, books: Sequence[tuple[int, int]]) -> None:
    """One line a size: bytes of weights, accuracy shared after training and learned."""
    ranges = find_ranges(found.graph, found.calibration)
    plain = quantize(found.graph, ranges)
    dense = sum(op.weight.size for op in plain.weighted)
    print(f"weights in 8 bits: {dense:,} bytes, {found.accuracy(plain)} %")
    print("entries  weights each    bytes  Huffman     ptq     qat  seconds")
    for entries, vector in books:
        chosen = CodeBooks(dict.fromkeys((op.name for op in plain.weighted), entries), vector)
        start = quantize(found.graph, ranges, books=chosen)
        began = time.perf_counter()
        learned = learn_quantization(found.graph, start, found.data.train, found.recipe, found.seed)
        stored = sum(encoded_bytes(op.weight, (8,), code_books=True) for op in learned.weighted)
        coded = sum(map(huffman_bytes, learned.weighted))
        text = f"{entries:>7}{vector:>14}{stored:>9,}{coded:>9,}"
        cells = f"{found.accuracy(start):>8}{found.accuracy(learned):>8}"
        print(f"{text}{cells}{time.perf_counter() - began:>9.0f}", flush=True)


def huffman_bytes(op: WeightedOp) -> int:
    """Bytes of a layer with a Huffman code for each index (or dense weight), and of the table."""
    symbols, weight = op.weight.values, op.weight
    assert symbols is not None
    if weight.entries:
        symbols = read_indices(symbols, read_table(symbols, weight.vector))
    heap = np.unique(symbols, return_counts=True)[1].tolist()
    heapq.heapify(heap)
    bits = 0 if len(heap) > 1 else symbols.size
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        bits += merged  # one bit more for every symbol below
        heapq.heappush(heap, merged)
    return -(-bits // 8) + weight.entries * weight.vector


def recipe_changes(given: Sequence[str]) -> dict[str, float | int]:
    """`key=value` pairs as numbers."""
    pairs = (item.split("=", 1) for item in given)
    return {key: int(value) if value.isdigit() else float(value) for key, value in pairs}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", default="digits")
    parser.add_argument("--techniques", nargs="+", choices=TECHNIQUES, default=TECHNIQUES)
    parser.add_argument("--bits", nargs="+", type=int, default=BITS)
    parser.add_argument("--kept", nargs="+", type=float, default=KEPT)
    parser.add_argument("--densities", nargs="+", type=float, default=DENSITIES)
    parser.add_argument("--ranks", nargs="+", type=float, default=RANKS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", nargs="+", default=(), metavar="KEY=VALUE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = prepare(options.workload, recipe_changes(options.recipe), options.seed)
    if "quantization" in options.techniques:
        quantization(found, options.bits)
    if "distillation" in options.techniques:
        distillation(found, options.kept)
    if "schedules" in options.techniques:
        schedules(found, options.kept)
    if "patterns" in options.techniques:
        patterns(found, options.densities)
    if "calibration" in options.techniques:
        calibration(found, options.bits)
    if "low-rank" in options.techniques:
        low_rank(found, options.ranks)
    if "code-books" in options.techniques:
        code_books(found, BOOKS)


if __name__ == "__main__":
    main()
