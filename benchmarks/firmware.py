"""Bit-exactness of the emitted C: real networks and inputs on emulated cores, byte for byte.

Every workload with its data here x activations {int8, int16} x weight bits {8, 8/4, 4, 2} x core x
kernels x compiler, at least 100 test inputs each, against the exact integer executor. Writes
reports/firmware.md.

    python benchmarks/firmware.py                            # digits everywhere, LeNet-5 on M0+, M4
    python benchmarks/firmware.py --lenet-cores all          # LeNet-5 everywhere too
    python benchmarks/firmware.py --workloads digits --cores cortex-m4 --bits 4 --compilers gcc
    python benchmarks/firmware.py --activations int16 --output int16.md
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from dse.candidate import Candidate
from dse.errors import DseError
from dse.evaluate import Evaluator
from dse.firmware.build import Image, build, compilers
from dse.firmware.cpu import CPUS
from dse.firmware.emit import emit
from dse.firmware.emulate import emulate, qemu_version
from dse.graph import execute
from dse.graph.ir import Graph
from dse.graph.numerics import Rounding
from dse.workloads import WORKLOADS
from dse.workloads.download import cache_folder

Bytes = npt.NDArray[np.int8]
REPORT = Path(__file__).parents[1] / "reports" / "firmware.md"
OPTIMIZE = "-O2"
# One core with an FPU stands for both: integer networks use none.
CORES = tuple(core for core in CPUS if core != "cortex-m4f")
WITHOUT_DSP = ("cortex-m0plus", "cortex-m3")
WITH_MVE = ("cortex-m55",)
WIDTHS = ("8", "8/4", "4", "2")
Activations = Literal["int8", "int16"]
ACTIVATIONS: tuple[Activations, ...] = ("int8", "int16")
# A network of a workload: activations, bits of the weights.
Kind = tuple[Activations, str]
# The trained recipes, shortened: this is about bytes, not about accuracy.
SHORT = {
    "digits": {"epochs": 8},
    "lenet5-mnist": {"epochs": 1, "train_samples": 10_000},
    "lenet5-fashion-mnist": {"epochs": 1, "train_samples": 10_000},
}
# The other contract, on the smallest and the usual core.
SINGLE_CORES, SINGLE_WIDTHS = ("cortex-m0plus", "cortex-m4"), ("8", "4")
TARGET = "nucleo_f446re/native/180MHz"


@dataclass(frozen=True)
class Case:
    """One row of the table before it ran."""

    workload: str
    activations: Activations
    bits: str
    rounding: Rounding
    core: str
    backend: str
    compiler: str

    @property
    def text(self) -> str:
        """How it is named on the terminal."""
        words = (self.rounding, self.core, self.backend, self.compiler)
        return " ".join((self.workload, self.activations, self.bits, *words))

    @property
    def network(self) -> tuple[str, Kind]:
        """Which network it runs."""
        return self.workload, (self.activations, self.bits)


@dataclass(frozen=True)
class Result:
    """What one case gave; `cycles` where the core has a table."""

    case: Case
    matching: int
    total: int
    flash_bytes: int
    ram_bytes: int
    instructions: int
    cycles: float | None
    emulator: str


@dataclass(frozen=True)
class Network:
    """A trained, quantized graph with test inputs (N, C, H, W) and its validation accuracy."""

    graph: Graph
    inputs: torch.Tensor
    accuracy: float

    def rows(self) -> Bytes:
        """The inputs as they lie in the arena, (N, bytes)."""
        return execute.input_bytes(self.graph, self.inputs)

    def expected(self, rounding: Rounding) -> Bytes:
        """What the exact executor computes, (N, bytes)."""
        outputs = execute.run(self.graph, self.inputs, rounding).numpy()
        return outputs.astype(self.graph.tensors[self.graph.output].dtype).view(np.int8)


def networks(name: str, kinds: Sequence[Kind], samples: int) -> dict[Kind, Network]:
    """The networks of a workload; training is cached. Raises WorkloadError."""
    workload = WORKLOADS[name]
    dataset = workload.load()
    recipe = workload.recipe.with_changes({**SHORT[name], "threads": 1})
    evaluator = Evaluator(workload, dataset, recipe, 0, cache_folder() / "stages")
    inputs = dataset.test.take(samples).inputs
    found = {}
    layers = [op.name for op in evaluator.evaluate(Candidate(TARGET), "double").graph.weighted]
    for activations, width in kinds:
        bits = layer_bits(width, layers)
        done = evaluator.evaluate(Candidate(TARGET, bits=bits, precision=activations), "double")
        assert done.accuracy.value is not None
        found[activations, width] = Network(done.graph, inputs, done.accuracy.value)
    return found


def kinds_of(options: argparse.Namespace) -> list[Kind]:
    """The networks that were asked for."""
    return list(product(options.activations, options.bits))


def layer_bits(width: str, layers: Sequence[str]) -> dict[str, int]:
    """Bits of every layer; '8/4' keeps the first and the last at 8."""
    if width != "8/4":
        return dict.fromkeys(layers, int(width))
    return {name: 8 if name in (layers[0], layers[-1]) else 4 for name in layers}


def cases(
    name: str, kinds: Sequence[Kind], cores: Sequence[str], chosen: Sequence[str]
) -> Iterator[Case]:
    """Every combination that the core can run."""
    for activations, width in kinds:
        kind = (name, activations, width)
        for core in cores:
            backends = backends_of(core)
            for compiler in chosen:
                for backend in backends:
                    yield Case(*kind, "double", core, backend, compiler)
                if name == "digits" and core in SINGLE_CORES and width in SINGLE_WIDTHS:
                    yield Case(*kind, "single", core, backends[-1], compiler)


def backends_of(core: str) -> tuple[str, ...]:
    """The kernels that a core can run, the quickest last."""
    if core in WITHOUT_DSP:
        return ("native",)
    return ("native", "native-dsp", *(("native-mve",) if core in WITH_MVE else ()))


def choose(
    name: str, options: argparse.Namespace, there: Sequence[str], chosen: Sequence[str]
) -> tuple[list[Case], list[str]]:
    """(Cases of a workload, sentences about those left out to save time)."""
    found = list(cases(name, kinds_of(options), there, chosen))
    if name == "digits" or "all" in options.lenet_cores:
        return found, []
    kept = [case for case in found if case.core in options.lenet_cores]
    skipped = [core for core in there if core not in options.lenet_cores]
    reasons = [f"{name} on {', '.join(skipped)}: time"] if skipped else []
    if "cortex-m0plus" in options.lenet_cores and chosen[1:]:
        # 100 inputs take 15 s: no machine of QEMU has this core.
        kept = [c for c in kept if c.core != "cortex-m0plus" or c.compiler == chosen[0]]
        reasons.append(f"{name} on cortex-m0plus with {', '.join(chosen[1:])}: time")
    return kept, [f"{reason} (`--lenet-cores all` runs them)" for reason in reasons]


def run(case: Case, rows: Bytes, expected: Bytes, graph: Graph) -> Result:
    """Build and emulate one case on all inputs. Raises DseError."""
    with TemporaryDirectory(prefix="dse-") as folder:
        sources = emit(graph, "network", case.backend, case.rounding)
        image = build(sources, case.core, case.compiler, OPTIMIZE, Path(folder))
        return _emulated(case, image, rows, expected)


def _emulated(case: Case, image: Image, rows: Bytes, expected: Bytes) -> Result:
    """A large network runs on the quicker QEMU where that has the core, its first input on both."""
    both = bool(
        case.workload != "digits" and image.cpu.machine and image.cpu.unicorn and qemu_version()
    )
    counted = emulate(image, rows[:1] if both else rows)
    outputs, emulator = counted.outputs, counted.emulator
    if both:
        other = emulate(image, rows, qemu=True)
        outputs = np.concatenate((counted.outputs, other.outputs[1:]))
        if (other.outputs[0] != counted.outputs[0]).any():
            raise DseError("Unicorn and QEMU differ on the first input")
        emulator = f"{other.emulator}, counts {emulator}"
    equal = (outputs == expected).all(axis=1)
    return Result(
        case,
        int(equal.sum()),
        len(equal),
        image.flash_bytes,
        image.ram_bytes + (counted.stack_bytes or 0),
        counted.instructions,
        counted.cycles,
        emulator,
    )


def run_all(
    wanted: Sequence[Case], made: dict[tuple[str, Kind], Network], jobs: int
) -> tuple[list[Result], list[str]]:
    """(Results in order, sentences about the cases that could not be built or run)."""
    rows = {key: network.rows() for key, network in made.items()}
    contracts = {(one.network, one.rounding) for one in wanted}
    expected = {key: made[key[0]].expected(key[1]) for key in contracts}

    def attempt(case: Case) -> Result | str:
        key = case.network
        try:
            return run(case, rows[key], expected[key, case.rounding], made[key].graph)
        except DseError as error:
            return f"{case.text}: {error}"

    results: list[Result] = []
    failed: list[str] = []
    with ThreadPoolExecutor(jobs) as pool:
        for index, found in enumerate(pool.map(attempt, wanted), 1):
            if isinstance(found, str):
                failed.append(found)
                words = found
            else:
                results.append(found)
                words = f"{found.case.text}: {found.matching} of {found.total}"
            print(f"{index:4} of {len(wanted)}  {words}", flush=True)
    return results, failed


def page(
    results: Sequence[Result],
    made: dict[tuple[str, Kind], Network],
    left_out: Sequence[str],
    seconds: float,
) -> str:
    """The text of reports/firmware.md."""
    exact = sum(one.matching == one.total for one in results)
    outputs, right = sum(one.total for one in results), sum(one.matching for one in results)
    versions = ", ".join(f"{one.name} {one.version}" for one in compilers().values())
    lines = [
        "# Firmware: bit for bit",
        "",
        "Made by `python benchmarks/firmware.py`. Each network was emitted as C, built with "
        f"`{OPTIMIZE}` and run on an emulated core on real test inputs; its outputs were compared "
        "byte for byte with `dse.graph.execute`, the exact integer network.",
        "",
        f"**{exact} of {len(results)} combinations are exact: {right:,} of {outputs:,} outputs "
        f"match in every byte.** Compilers: {versions}. The run took {seconds:.0f} s.",
        "",
        "Flash is code and constants of the network in the linked image; RAM its arena, static "
        "variables and stack at its deepest. Instructions and cycles are those of one inference, "
        "memory without wait states. Contract: how accumulators are scaled (`double`: "
        "two roundings, as in CMSIS-NN; `single`: one, as in XNNPACK; beside int16 activations: "
        "docs/decisions/0006-int16-activations.md).",
        "",
        *_accuracies(made),
        "",
        "| workload | activations | weight bits | contract | core | kernels | compiler "
        "| matching / total | flash B | RAM B | instructions | cycles | emulator |",
        "| --- | --- | --- | --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | --- |",
        *map(_row, results),
        "",
        "## Left out",
        "",
        *(f"- {reason}" for reason in left_out),
    ]
    return "\n".join(lines) + "\n"


def _write(
    path: Path,
    results: Sequence[Result],
    made: dict[tuple[str, Kind], Network],
    left_out: Sequence[str],
    seconds: float,
) -> None:
    path.write_text(page(results, made, left_out, seconds), encoding="utf-8")


def _accuracies(made: dict[tuple[str, Kind], Network]) -> Iterator[str]:
    names = dict.fromkeys(name for name, _ in made)
    yield "Networks, trained shortly, with their accuracy on validation data:"
    yield ""
    for name in names:
        changes = ", ".join(f"{key} {value:,}" for key, value in SHORT[name].items())
        found = ", ".join(
            f"{activations} with {bits} bit {100 * network.accuracy:.1f} %"
            for (workload, (activations, bits)), network in made.items()
            if workload == name
        )
        yield f"- {name} ({changes}): {found}"


def _row(one: Result) -> str:
    case = one.case
    cells = (
        case.workload,
        case.activations,
        case.bits,
        case.rounding,
        case.core,
        case.backend,
        case.compiler,
        f"{one.matching} / {one.total}",
        f"{one.flash_bytes:,}",
        f"{one.ram_bytes:,}",
        f"{one.instructions:,}",
        "-" if one.cycles is None else f"{one.cycles:,.0f}",
        one.emulator,
    )
    return f"| {' | '.join(cells)} |"


def missing(cores: Sequence[str], chosen: Sequence[str]) -> tuple[list[str], list[str]]:
    """(Cores that can be emulated, sentences about what is not there or not yet made)."""
    reasons = [
        "DSP kernels on Cortex-M0+ and M3: these cores have no DSP instructions",
        "cycles of Cortex-M55: there is no table of this core",
    ]
    reasons += [f"compiler {name}: not installed" for name in chosen if name not in compilers()]
    there = []
    for core in cores:
        if CPUS[core].unicorn is None and qemu_version() is None:
            reasons.append(f"{core}: needs qemu-system-arm, which is not installed")
        else:
            there.append(core)
    return there, reasons


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workloads", nargs="+", choices=tuple(SHORT), default=tuple(SHORT))
    parser.add_argument("--activations", nargs="+", choices=ACTIVATIONS, default=ACTIVATIONS)
    parser.add_argument("--bits", nargs="+", choices=WIDTHS, default=WIDTHS)
    parser.add_argument("--cores", nargs="+", choices=CORES, default=CORES)
    parser.add_argument(
        "--lenet-cores",
        nargs="+",
        choices=(*CORES, "all"),
        default=("cortex-m0plus", "cortex-m4"),
        help="cores for LeNet-5, which takes five times as long",
    )
    parser.add_argument("--compilers", nargs="+", choices=("gcc", "zig"), default=("gcc", "zig"))
    parser.add_argument("--samples", type=int, default=100, help="test inputs a combination")
    parser.add_argument("--jobs", type=int, default=2, help="builds and emulators at a time")
    parser.add_argument("--output", type=Path, default=REPORT)
    return parser.parse_args()


def main() -> None:
    """Train, build, run, compare, write; exit code 1 when a byte differs or a case fails."""
    options, began = arguments(), time.perf_counter()
    torch.set_num_threads(1)
    seconds = 0.0
    there, left_out = missing(options.cores, options.compilers)
    chosen = [name for name in options.compilers if name in compilers()]
    if not chosen:
        sys.exit(f"none of these compilers is installed: {', '.join(options.compilers)}")
    made: dict[tuple[str, Kind], Network] = {}
    results: list[Result] = []
    failed: list[str] = []
    for name in options.workloads:
        try:
            found = networks(name, kinds_of(options), options.samples)
        except DseError as error:
            left_out.append(f"{name}: {error}")
            _write(options.output, results, made, [*left_out, *failed], seconds)
            continue
        made |= {(name, kind): network for kind, network in found.items()}
        wanted, skipped = choose(name, options, there, chosen)
        left_out += skipped
        done, wrong = run_all(wanted, made, options.jobs)
        results, failed = results + done, failed + wrong
        seconds = time.perf_counter() - began
        # Written after every workload, so that an interrupted run leaves what it has.
        _write(options.output, results, made, [*left_out, *failed], seconds)
    counted = Counter(one.matching == one.total for one in results)
    print(f"{counted[True]} exact, {counted[False]} not, {len(failed)} failed, {seconds:.0f} s")
    sys.exit(bool(counted[False] or failed or not results))


if __name__ == "__main__":
    main()
