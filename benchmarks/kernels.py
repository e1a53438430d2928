"""Speed of our kernels: cycles a MAC of typical layers, emulated without wait states.

On a Cortex-M55, which has no cycle table, QEMU counts instructions instead.

Each layer is a network of its own with random weights and a ReLU, emitted, built at -O2 and -O3 by
every compiler there is, run on one input, and checked byte for byte against the exact executor.
Writes reports/kernels.md beside the goals.

    python benchmarks/kernels.py
    python benchmarks/kernels.py --cores cortex-m4 --layers conv3x3 --bits 8 --compilers gcc
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from dse.errors import DseError
from dse.firmware.build import build, compilers
from dse.firmware.emit import emit
from dse.firmware.emulate import emulate
from dse.graph import execute
from dse.graph.entry import input_bytes
from dse.graph.ir import Graph, WeightedOp, op_macs
from dse.graph.quantize import quantize
from dse.graph.trace import trace
from dse.targets import find_core

Bytes = npt.NDArray[np.int8]
REPORT = Path(__file__).parents[1] / "reports" / "kernels.md"
CORES = ("cortex-m4", "cortex-m0plus", "cortex-m7", "cortex-m33", "cortex-m55")
COUNTED = ("cortex-m55",)
REPEATS = 4
# Below, `native-mve` runs the kernels of `native-dsp`.
VECTOR_BITS = 8
GOAL_CORE = "cortex-m4"
WIDTHS = (8, 4, 2)
GOAL_WIDTHS = (8, 4)
OPTIMIZE = ("-O2", "-O3")
SEED = 7


@dataclass(frozen=True)
class Layer:
    """A layer as the goals name it: (C, H, W) of its input, and cycles a MAC to reach on an M4."""

    title: str
    shape: tuple[int, int, int]
    make: Callable[[], nn.Module]
    goal: float
    inclusive: bool = True

    def met(self, cycles: float) -> bool:
        """Whether that many cycles a MAC reach the goal."""
        return cycles <= self.goal if self.inclusive else cycles < self.goal

    @property
    def goal_text(self) -> str:
        """The goal with its relation."""
        return f"{'at most' if self.inclusive else 'under'} {self.goal:g}"


LAYERS: Mapping[str, Layer] = {
    "conv3x3": Layer(
        "3x3 conv 32 -> 32 on 16 x 16",
        (32, 16, 16),
        lambda: nn.Conv2d(32, 32, 3, padding=1),
        2.3,
    ),
    "conv1x1": Layer("1x1 conv 64 -> 64 on 8 x 8", (64, 8, 8), lambda: nn.Conv2d(64, 64, 1), 2.3),
    "depthwise": Layer(
        "depthwise 3x3, 64 channels on 16 x 16",
        (64, 16, 16),
        lambda: nn.Conv2d(64, 64, 3, padding=1, groups=64),
        8,
        inclusive=False,
    ),
    "fc": Layer(
        "fully connected 640 -> 128",
        (640, 1, 1),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(640, 128)),
        2.7,
        inclusive=False,
    ),
}


@dataclass(frozen=True)
class Case:
    """One measurement before it is made."""

    core: str
    layer: str
    bits: int
    backend: str
    compiler: str
    optimize: str


Found = Mapping[Case, float | str]


@dataclass(frozen=True)
class Network:
    """A quantized layer in a network, one input as it lies in the arena, and the exact answer."""

    graph: Graph
    entry: Bytes
    expected: Bytes

    @property
    def macs(self) -> int:
        """MACs of the layer as it is defined, products with padding counted too."""
        return op_macs(self.graph, self.graph.weighted[0])


def network(layer: Layer, bits: int, alone: bool = False) -> Network:
    """The layer with a ReLU behind it; a global pool ends what has height and width.

    `alone` cuts the pool off, for emulators that do not tell operators apart.
    """
    torch.manual_seed(SEED)
    end = () if layer.shape[1] == 1 else (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(layer.make(), nn.ReLU(), *end).eval()
    inputs = torch.randn(16, *layer.shape)
    floating = trace(model, layer.shape, "layer")
    names = [op.name for op in floating.weighted]
    graph = quantize(floating, execute.observe(floating, inputs), dict.fromkeys(names, bits))
    graph = up_to(graph, graph.weighted[0]) if alone else graph
    answer = execute.run(graph, inputs[:1])
    answer = answer.permute(0, 2, 3, 1) if answer.dim() == 4 else answer
    expected = answer.reshape(1, -1).numpy().astype(graph.tensors[graph.output].dtype)
    return Network(graph, input_bytes(graph, inputs[:1]), expected.view(np.int8))


def up_to(graph: Graph, last: WeightedOp) -> Graph:
    """The graph without what comes after an operator."""
    ops = graph.ops[: graph.ops.index(last) + 1]
    names = {name for op in ops for name in (*op.inputs, op.output)}
    tensors = {name: tensor for name, tensor in graph.tensors.items() if name in names}
    return replace(graph, ops=ops, tensors=tensors, output=last.output)


def measure(case: Case, made: Network) -> float | str:
    """Cycles a MAC of the layer's operator (instructions on COUNTED cores), or why not."""
    try:
        with TemporaryDirectory(prefix="dse-") as folder:
            sources = emit(made.graph, "layer", case.backend)
            image = build(
                sources,
                case.core,
                case.compiler,
                case.optimize,
                Path(folder),
                repeats=REPEATS if case.core in COUNTED else 1,
            )
            result = emulate(image, made.entry)
    except DseError as error:
        return str(error)
    if (result.outputs != made.expected).any():
        return "the outputs differ from the exact network's"
    if case.core in COUNTED:
        return result.instructions / made.macs
    index = made.graph.ops.index(made.graph.weighted[0])
    (cycles,) = [one.cycles for one in result.operators if f"_op_{index}_" in one.name]
    return cycles / made.macs


def all_cases(options: argparse.Namespace, chosen: Sequence[str]) -> list[Case]:
    """Every combination, the core with the goals first."""
    return [
        Case(core, layer, bits, backend, compiler, optimize)
        for core, layer, bits, backend, compiler, optimize in product(
            options.cores,
            options.layers,
            options.bits,
            ("native", "native-dsp", "native-mve"),
            chosen,
            [f"-{level}" for level in options.optimize],
        )
        if runs(core, backend, bits)
    ]


def runs(core: str, backend: str, bits: int) -> bool:
    """Whether the core has what the kernels need, and they are not those of another backend."""
    if backend == "native-mve":
        return core in COUNTED and bits == VECTOR_BITS
    return backend == "native" or find_core(core).dsp


def page(found: Found, seconds: float) -> str:
    """The text of reports/kernels.md."""
    versions = ", ".join(f"{one.name} {one.version}" for one in compilers().values())
    lines = [
        "# Speed of the kernels",
        "",
        "Made by `python benchmarks/kernels.py`. Cycles a MAC of one layer with its "
        "requantization and a ReLU, emulated without wait states and costed with the cycle tables "
        "of `reports/cycles.md`; MACs as the layer is defined, products with padding counted too. "
        "Every output was equal to the exact network's in every byte. "
        f"Compilers: {versions}. The run took {seconds:.0f} s.",
        "",
        *_goals(found),
    ]
    for core in dict.fromkeys(case.core for case in found):
        lines += [
            "",
            *_heading(core),
            "",
            *_table({c: v for c, v in found.items() if c.core == core}),
        ]
    return "\n".join(lines) + "\n"


def _heading(core: str) -> Iterator[str]:
    yield f"## {core}"
    if core in COUNTED:
        yield ""
        yield (
            "**Instructions** a MAC, counted by QEMU, not cycles: there is no cycle table of this "
            "core, and a vector instruction takes two cycles there. Compilers may make "
            "vectors of plain C too: the kernels `native` and `native-dsp` are built for Helium."
        )


def _goals(found: Found) -> Iterator[str]:
    """The goals on the M4, each with the best that was reached."""
    yield f"## Goals ({GOAL_CORE})"
    yield ""
    yield "| layer | weight bits | goal | best | with | met |"
    yield "| --- | ---: | ---: | ---: | --- | --- |"
    for layer, bits in product(LAYERS, GOAL_WIDTHS):
        here = {
            case: value
            for case, value in found.items()
            if (case.core, case.layer, case.bits) == (GOAL_CORE, layer, bits)
            and isinstance(value, float)
        }
        if not here:
            continue
        best = min(here, key=lambda case: here[case])
        goal = LAYERS[layer]
        how = f"{best.backend}, {best.compiler} {best.optimize}"
        met = "yes" if goal.met(here[best]) else "**no**"
        cells = (goal.title, str(bits), goal.goal_text, f"{here[best]:.2f}", how, met)
        yield f"| {' | '.join(cells)} |"


def _table(found: Found) -> Iterator[str]:
    """One core: a row a layer, bits and kernels; a column a compiler and optimization."""
    ways = list(dict.fromkeys((case.compiler, case.optimize) for case in found))
    heads = " | ".join(" ".join(way) for way in ways)
    yield f"| layer | weight bits | kernels | {heads} |"
    yield f"| --- | ---: | --- |{' ---: |' * len(ways)}"
    rows = dict.fromkeys((case.core, case.layer, case.bits, case.backend) for case in found)
    failed = []
    for core, layer, bits, backend in rows:
        values = [found[Case(core, layer, bits, backend, *way)] for way in ways]
        failed += [f"{layer} {bits} bit {backend}: {v}" for v in values if isinstance(v, str)]
        cells = ["-" if isinstance(value, str) else f"{value:.2f}" for value in values]
        yield f"| {LAYERS[layer].title} | {bits} | {backend} | {' | '.join(cells)} |"
    for reason in dict.fromkeys(failed):
        yield f"\nNot measured: {reason}."


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cores", nargs="+", choices=CORES, default=CORES)
    parser.add_argument("--layers", nargs="+", choices=tuple(LAYERS), default=tuple(LAYERS))
    parser.add_argument("--bits", nargs="+", type=int, choices=WIDTHS, default=WIDTHS)
    parser.add_argument("--compilers", nargs="+", choices=("gcc", "zig"), default=("gcc", "zig"))
    levels = [level.lstrip("-") for level in OPTIMIZE]  # an argument cannot begin with a dash
    parser.add_argument("--optimize", nargs="+", choices=levels, default=levels)
    parser.add_argument("--jobs", type=int, default=2, help="builds and emulators at a time")
    parser.add_argument("--output", type=Path, default=REPORT)
    return parser.parse_args()


def main() -> None:
    """Measure everything asked for, print the goals, write the report."""
    options, began = arguments(), time.perf_counter()
    torch.set_num_threads(1)
    chosen = [name for name in options.compilers if name in compilers()]
    if not chosen:
        sys.exit(f"none of these compilers is installed: {', '.join(options.compilers)}")
    wanted = all_cases(options, chosen)
    kinds = {(case.layer, case.bits, case.core in COUNTED) for case in wanted}
    made = {(name, bits, alone): network(LAYERS[name], bits, alone) for name, bits, alone in kinds}
    inputs = [made[case.layer, case.bits, case.core in COUNTED] for case in wanted]
    with ThreadPoolExecutor(options.jobs) as pool:
        found = dict(zip(wanted, pool.map(measure, wanted, inputs), strict=True))
    options.output.write_text(page(found, time.perf_counter() - began), encoding="utf-8")
    print("\n".join(_goals(found)))
    wrong = {value for value in found.values() if isinstance(value, str)}
    print(f"{len(found)} measurements, {len(wrong)} reasons why some are missing")
    for reason in wrong:
        print(reason)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
