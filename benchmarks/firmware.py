"""Bit-exactness of the emitted C: real networks and inputs on emulated cores, byte for byte.

Every workload with its data here x {8, 8/4, 4, 2 bits, int16 activations} x core x compiler, at
least 100 test inputs each, against the exact integer executor. Small networks run with all kernels
of a core and int16 activations beside every width, large ones with the quickest kernels and beside
8 bits. Writes reports/firmware.md.

    python benchmarks/firmware.py
    python benchmarks/firmware.py --workloads har --keep     # the rows of the other workloads stay
    python benchmarks/firmware.py --every                    # large networks like small ones
    python benchmarks/firmware.py --workloads digits --cores cortex-m4 --bits 4 --compilers gcc
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
from dse.graph.entry import input_bytes
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
Cells = tuple[str, ...]
# The trained recipes, shortened: this is about bytes, not about accuracy.
SHORT: Mapping[str, Mapping[str, int]] = {"digits": {"epochs": 8}}
SHORTEST = {"epochs": 1, "train_samples": 10_000}
# Above, a network is large: 100 inputs take seconds to minutes a combination.
LARGE_MACS = 1_000_000
# The other contract, on the smallest and the usual core.
SINGLE_CORES, SINGLE_WIDTHS = ("cortex-m0plus", "cortex-m4"), ("8", "4")
TARGET = "nucleo_f446re/native/180MHz"
# Columns of the table, and which holds "matching / total".
COLUMNS, COUNTS = 13, 7


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

    @property
    def cells(self) -> Cells:
        """The row of the table."""
        case = self.case
        return (
            *(case.workload, case.activations, case.bits, case.rounding, case.core),
            *(case.backend, case.compiler, f"{self.matching} / {self.total}"),
            *(f"{self.flash_bytes:,}", f"{self.ram_bytes:,}", f"{self.instructions:,}"),
            "-" if self.cycles is None else f"{self.cycles:,.0f}",
            self.emulator,
        )


@dataclass(frozen=True)
class Network:
    """A trained, quantized graph with test inputs (N, C, H, W) and its validation accuracy."""

    graph: Graph
    inputs: torch.Tensor
    accuracy: float

    def rows(self) -> Bytes:
        """The inputs as they lie in the arena, (N, bytes)."""
        return input_bytes(self.graph, self.inputs)

    def expected(self, rounding: Rounding) -> Bytes:
        """What the exact executor computes, (N, bytes)."""
        outputs = execute.run(self.graph, self.inputs, rounding).numpy()
        return outputs.astype(self.graph.tensors[self.graph.output].dtype).view(np.int8)


def networks(name: str, kinds: Sequence[Kind], samples: int) -> dict[Kind, Network]:
    """The networks of a workload; training is cached. Raises WorkloadError."""
    workload = WORKLOADS[name]
    dataset = workload.load()
    recipe = workload.recipe.with_changes({**changes(name), "threads": 1})
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


def changes(name: str) -> Mapping[str, int]:
    """What is changed in the recipe of a workload."""
    return SHORT.get(name, SHORTEST)


def kinds_of(options: argparse.Namespace) -> list[Kind]:
    """The networks that were asked for."""
    return list(product(options.activations, options.bits))


def layer_bits(width: str, layers: Sequence[str]) -> dict[str, int]:
    """Bits of every layer; '8/4' keeps the first and the last at 8."""
    if width != "8/4":
        return dict.fromkeys(layers, int(width))
    return {name: 8 if name in (layers[0], layers[-1]) else 4 for name in layers}


def cases(
    name: str, kinds: Sequence[Kind], cores: Sequence[str], chosen: Sequence[str], every: bool
) -> Iterator[Case]:
    """Every combination that the core can run, without `every` those of a large network."""
    for activations, width in kinds:
        if not every and activations == "int16" and width != "8":
            continue
        kind = (name, activations, width)
        for core in cores:
            backends = backends_of(core)
            for compiler in chosen:
                for backend in backends if every else backends[-1:]:
                    yield Case(*kind, "double", core, backend, compiler)
                if every and core in SINGLE_CORES and width in SINGLE_WIDTHS:
                    yield Case(*kind, "single", core, backends[-1], compiler)


def backends_of(core: str) -> tuple[str, ...]:
    """The kernels that a core can run, the quickest last."""
    if core in WITHOUT_DSP:
        return ("native",)
    return ("native", "native-dsp", *(("native-mve",) if core in WITH_MVE else ()))


def is_large(made: Mapping[Kind, Network]) -> bool:
    """Whether a workload's networks take long to emulate."""
    return any(network.graph.macs > LARGE_MACS for network in made.values())


def run(case: Case, rows: Bytes, expected: Bytes, graph: Graph) -> Result:
    """Build and emulate one case on all inputs. Raises DseError."""
    with TemporaryDirectory(prefix="dse-") as folder:
        sources = emit(graph, "network", case.backend, case.rounding)
        image = build(sources, case.core, case.compiler, OPTIMIZE, Path(folder))
        return _emulated(case, image, rows, expected, graph.macs > LARGE_MACS)


def _emulated(case: Case, image: Image, rows: Bytes, expected: Bytes, large: bool) -> Result:
    """A large network runs on the quicker QEMU where that is installed, its first input on both."""
    both = bool(large and image.cpu.unicorn and qemu_version())
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


@dataclass
class Report:
    """What reports/firmware.md says: a line a workload, the rows of the table, and what is not."""

    networks: dict[str, str]
    rows: list[Cells]
    left_out: list[str]

    @classmethod
    def kept(cls, path: Path, anew: Sequence[str], left_out: Sequence[str]) -> Report:
        """A report with what is in the file of workloads that are not run anew."""
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        rows = [tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in lines]
        rows = [row for row in rows if len(row) == COLUMNS and row[0] in WORKLOADS]
        networks = {
            name: line for line in lines for name in WORKLOADS if line.startswith(f"- {name} (")
        }
        return cls(
            {name: line for name, line in networks.items() if name not in anew},
            [row for row in rows if row[0] not in anew],
            list(left_out),
        )

    @property
    def text(self) -> str:
        """The page."""
        order = list(WORKLOADS)
        rows = sorted(self.rows, key=lambda row: order.index(row[0]))
        counts = [tuple(map(int, row[COUNTS].split(" / "))) for row in rows]
        right, outputs = (sum(pair[i] for pair in counts) for i in (0, 1))
        exact = sum(matching == total for matching, total in counts)
        versions = ", ".join(f"{one.name} {one.version}" for one in compilers().values())
        lines = [
            "# Firmware: bit for bit",
            "",
            "Made by `python benchmarks/firmware.py`. Each network was emitted as C, built with "
            f"`{OPTIMIZE}` and run on an emulated core on real test inputs; its outputs were "
            "compared byte for byte with `dse.graph.execute`, the exact integer network.",
            "",
            f"**{exact} of {len(rows)} combinations are exact: {right:,} of {outputs:,} outputs "
            f"match in every byte.** Compilers: {versions}.",
            "",
            "Flash is code and constants of the network in the linked image; RAM its arena, static "
            "variables and stack at its deepest. Instructions and cycles are those of one "
            "inference, memory without wait states. Contract: how accumulators are scaled "
            "(`double`: two roundings, as in CMSIS-NN; `single`: one, as in XNNPACK; beside int16 "
            "activations: docs/decisions/0006-int16-activations.md). Networks of more than "
            f"{LARGE_MACS / 1e6:g} million MACs run with the quickest kernels of each core, on "
            "QEMU, their first input on Unicorn too, which counts; images for the Cortex-M0+ run "
            "on QEMU's Cortex-M3, which has all its instructions.",
            "",
            "Networks, trained shortly, with their accuracy on validation data:",
            "",
            *(self.networks[name] for name in order if name in self.networks),
            "",
            "| workload | activations | weight bits | contract | core | kernels | compiler "
            "| matching / total | flash B | RAM B | instructions | cycles | emulator |",
            "| --- | --- | --- | --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | --- |",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
            "## Left out",
            "",
            *(f"- {reason}" for reason in self.left_out),
        ]
        return "\n".join(lines) + "\n"


def described(name: str, made: Mapping[Kind, Network], seconds: float) -> str:
    """The line of a workload: how it was trained, and what its networks are worth."""
    how = ", ".join(f"{key} {value:,}" for key, value in changes(name).items())
    found = ", ".join(
        f"{activations} with {bits} bit {100 * network.accuracy:.1f} %"
        for (activations, bits), network in made.items()
    )
    return f"- {name} ({how}; {seconds:.0f} s in all): {found}"


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
    names = tuple(WORKLOADS)
    parser.add_argument("--workloads", nargs="+", choices=names, default=names)
    parser.add_argument("--activations", nargs="+", choices=ACTIVATIONS, default=ACTIVATIONS)
    parser.add_argument("--bits", nargs="+", choices=WIDTHS, default=WIDTHS)
    parser.add_argument("--cores", nargs="+", choices=CORES, default=CORES)
    parser.add_argument("--every", action="store_true", help="large networks like small ones")
    parser.add_argument("--keep", action="store_true", help="keep rows of other workloads")
    parser.add_argument("--compilers", nargs="+", choices=("gcc", "zig"), default=("gcc", "zig"))
    parser.add_argument("--samples", type=int, default=100, help="test inputs a combination")
    parser.add_argument("--jobs", type=int, default=2, help="builds and emulators at a time")
    parser.add_argument("--output", type=Path, default=REPORT)
    return parser.parse_args()


def main() -> None:
    """Train, build, run, compare, write; exit code 1 when a byte differs or a case fails."""
    options = arguments()
    torch.set_num_threads(1)
    there, left_out = missing(options.cores, options.compilers)
    chosen = [name for name in options.compilers if name in compilers()]
    if not chosen:
        sys.exit(f"none of these compilers is installed: {', '.join(options.compilers)}")
    report = Report({}, [], left_out)
    if options.keep:
        report = Report.kept(options.output, options.workloads, left_out)
    results: list[Result] = []
    failed: list[str] = []
    for name in options.workloads:
        began = time.perf_counter()
        try:
            found = networks(name, kinds_of(options), options.samples)
        except DseError as error:
            report.left_out.append(f"{name}: {error}")
            continue
        every = options.every or not is_large(found)
        wanted = list(cases(name, kinds_of(options), there, chosen, every))
        made = {(name, kind): network for kind, network in found.items()}
        done, wrong = run_all(wanted, made, options.jobs)
        results, failed = results + done, failed + wrong
        report.networks[name] = described(name, found, time.perf_counter() - began)
        report.rows += [one.cells for one in done]
        report.left_out += wrong
        # Written after every workload, so that an interrupted run leaves what it has.
        options.output.write_text(report.text, encoding="utf-8")
    counted = Counter(one.matching == one.total for one in results)
    print(f"{counted[True]} exact, {counted[False]} not, {len(failed)} failed")
    sys.exit(bool(counted[False] or failed or not results))


if __name__ == "__main__":
    main()
