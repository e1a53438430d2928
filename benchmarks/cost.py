"""Cost throughput: candidates a second from shapes to all four costs, against a naive loop.

Two questions on one core. A search asks for many compressions on one target, of which most are
new: widths and bits drawn at random. A deployment study asks for one compression on many targets.
The naive loop does what a study would without the project's caches: shapes and costs of each
pair anew. Both take turns; each figure is the median of the rounds.

    python benchmarks/cost.py                 # LeNet-5 and the digits network
    python benchmarks/cost.py --estimate DIR  # seconds of `dse estimate` for each .tflite of DIR
    python benchmarks/cost.py --vela DIR      # Vela's figures, own weights and stand-ins
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dse.candidate import Candidate
from dse.graph import channels, plan
from dse.graph.channels import narrow, with_encodings
from dse.graph.compact import compact
from dse.graph.ir import Graph
from dse.graph.tflite_reader import read_tflite
from dse.graph.trace import trace
from dse.problem import build_problem
from dse.space import Space
from dse.study import parse_study
from dse.targets import Target, cost, cycles, encoding, kernels, native, native_tables, targets_for
from dse.targets import load_boards as boards
from dse.targets.cost import _CONSTANTS, _COSTS, _IN_MEMORY, _ON_BOARD
from dse.targets.ethos_u import ETHOS_U
from dse.workloads.networks import DigitsNet, LeNet5

NETWORKS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "LeNet-5": (LeNet5, (1, 28, 28)),
    "digits": (DigitsNet, (1, 8, 8)),
}
STUDY = """
name: cost
workload: digits
space:
  pruning: {ratio: {low: 0, high: 0.75, step: 0.125}, granularity: per-layer}
  quantization: {weight_bits: [2, 4, 8]}
  boards: [nucleo_f446re]
  backends: [cmsis-nn]
objectives: [accuracy, flash, latency]
n_trials: 3
"""
CANDIDATES_WANTED, TARGETS_WANTED = 2_000, 20_000
BATCH, NAIVE_BATCH, COMPRESSIONS = 400, 40, 3


def space_of(name: str) -> tuple[Space, Target]:
    build, shape = NETWORKS[name]
    graph = trace(build().eval(), shape, name)
    problem = build_problem(parse_study(STUDY, "cost"), graph, 10)
    return problem.space, next(iter(problem.targets.values()))


REMEMBERED: tuple[Any, ...] = (
    channels._narrow_tensor,
    channels._resized,
    channels._plain,
    channels._encoded,
    channels._follow,
    channels._shapes,
    channels.channel_groups,
    plan._first_fit_best,
    encoding._encode,
)


KEPT: tuple[dict[Any, Any], ...] = (
    _COSTS,
    _CONSTANTS,
    _IN_MEMORY,
    _ON_BOARD,
    cycles._COUNTED,
    plan._PLANS,
    plan._LINKS,
    plan._LAYOUTS,
    kernels._PLANS,
    kernels._CODE,
    native._LINKED,
    native_tables._CALLS,
)


def forget() -> None:
    """What costs and shapes remember between candidates and targets."""
    for kept in KEPT:
        kept.clear()
    for function in REMEMBERED:
        function.cache_clear()


def naive(space: Space, candidate: Candidate, target: Target) -> None:
    """Shapes and costs with nothing remembered."""
    forget()
    narrowed = narrow(space.graph, candidate.widths)
    cost(with_encodings(narrowed, candidate.bits, candidate.kept, candidate.precision), target)


def rate(work: Callable[[], int]) -> float:
    """Things done a second of this process."""
    began = time.process_time()
    return work() / (time.process_time() - began)


def compare(what: str, ours: list[float], plain: list[float], wanted: int) -> None:
    mine, other = statistics.median(ours), statistics.median(plain)
    print(
        f"{what}: {mine:,.0f} a second (wanted {wanted:,}), naive loop {other:,.0f}, "
        f"ratio {mine / other:.1f}"
    )


def many_compressions(name: str, rounds: int) -> None:
    """New compressions on one target, drawn at random."""
    space, target = space_of(name)
    source = random.Random(0)
    ours, plain = [], []
    for _ in range(rounds):
        drawn = [space.candidate(space.draw(source)) for _ in range(BATCH)]
        forget()
        ours.append(rate(lambda: _each(space, drawn, target)))  # noqa: B023
        plain.append(rate(lambda: _naive_each(space, drawn, target)))  # noqa: B023
    compare(f"{name}, compressions on {target.key}", ours, plain, CANDIDATES_WANTED)


def _each(space: Space, drawn: Sequence[Candidate], target: Target) -> int:
    for candidate in drawn:
        cost(space.shapes(candidate), target)
    return len(drawn)


def _naive_each(space: Space, drawn: Sequence[Candidate], target: Target) -> int:
    for candidate in drawn[:NAIVE_BATCH]:
        naive(space, candidate, target)
    return NAIVE_BATCH


def many_targets(name: str, rounds: int) -> None:
    """One compression on every board, backend and clock."""
    space, _ = space_of(name)
    source = random.Random(0)
    legal = [t for t in targets_for(clocks="all")[0] if t.backend is not ETHOS_U]
    drawn = [space.candidate(space.draw(source)) for _ in range(rounds * COMPRESSIONS)]
    targets = [t for t in legal if not t.unsupported(space.shapes(drawn[0]))]
    ours, plain = [], []
    for turn in range(rounds):
        mine = drawn[turn * COMPRESSIONS : (turn + 1) * COMPRESSIONS]
        forget()
        ours.append(rate(lambda: _everywhere(space, mine, targets)))  # noqa: B023
        plain.append(rate(lambda: _naive_everywhere(space, mine[0], targets)))  # noqa: B023
    compare(f"{name}, one compression on {len(targets)} targets", ours, plain, TARGETS_WANTED)


def _everywhere(space: Space, drawn: Sequence[Candidate], targets: Sequence[Target]) -> int:
    for candidate in drawn:
        shapes = space.shapes(candidate)
        for target in targets:
            cost(shapes, target)
    return len(drawn) * len(targets)


def _naive_everywhere(space: Space, candidate: Candidate, targets: Sequence[Target]) -> int:
    for target in targets[:NAIVE_BATCH]:
        naive(space, candidate, target)
    return min(NAIVE_BATCH, len(targets))


def time_estimates(folder: Path) -> None:
    """Seconds of the whole command, the interpreter's start and Vela included."""
    for path in sorted(folder.glob("*.tflite")):
        began = time.perf_counter()
        command = [sys.executable, "-m", "dse.cli", "estimate", str(path), "--json"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        print(f"{path.name}: {time.perf_counter() - began:.2f} s for all boards and backends")


def show_vela(folder: Path) -> None:
    """What Vela says of each model, by its own weights and by stand-ins."""
    npu = boards()["alif_e7_he"].npu
    assert npu is not None
    print(npu.text)
    for path in sorted(folder.glob("*.tflite")):
        graph: Graph = compact(read_tflite(path.read_bytes(), path.stem))
        own, stand_in = (ETHOS_U.report(graph, npu, exact) for exact in (True, False))
        print(
            f"{path.name}: flash {own.file_bytes / 1024:.1f} KiB, by stand-ins "
            f"{stand_in.file_bytes / 1024:.1f}; SRAM {own.sram_bytes / 1024:.1f} KiB; latency "
            f"{1e6 * own.latency_s:.0f} us, by stand-ins {1e6 * stand_in.latency_s:.0f}; "
            f"{len(own.cpu_operators)} operators on the CPU"
        )


def main() -> None:
    """Throughput, or what is asked for by a folder of models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--estimate", type=Path, metavar="DIR")
    parser.add_argument("--vela", type=Path, metavar="DIR")
    options = parser.parse_args()
    gc.collect()
    gc.freeze()  # the collector need not walk torch's modules again and again
    if options.estimate is not None:
        time_estimates(options.estimate)
    if options.vela is not None:
        show_vela(options.vela)
    if options.estimate is None and options.vela is None:
        for name in NETWORKS:
            many_compressions(name, options.rounds)
            many_targets(name, options.rounds)


if __name__ == "__main__":
    main()
