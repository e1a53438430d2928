"""The cost model of our kernels beside what is built and emulated, on networks it never saw.

Thirty random candidates (`native_networks.py`) over cores, backends, rounding contracts and bit
widths: flash and RAM beside the linked image, cycles beside the emulated ones, without waiting for
flash and on the boards. Writes reports/native.md, and with all candidates the cycles of
dse/targets/data/native_networks.csv, which say how wide the intervals of latency are.

    python benchmarks/native.py
    python benchmarks/native.py --candidates 6 --jobs 1
    python benchmarks/native.py --blocks    # networks of sparse blocks -> reports/native-blocks.md
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from native_code import Code
from native_networks import Drawn, draw

from dse.errors import DseError
from dse.firmware.build import build, compilers
from dse.firmware.emit import emit
from dse.firmware.emulate import Emulation, emulate, flash_of
from dse.graph.ir import DType
from dse.graph.numerics import Rounding
from dse.targets import Board, Cost, Target, cost, find_core, load_boards, parse_target
from dse.targets.native import Native
from dse.targets.native_tables import COMPILER, compiler_text

REPORT = Path(__file__).parents[1] / "reports" / "native.md"
BLOCKS_REPORT = REPORT.with_name("native-blocks.md")
BLOCKS_SEED, BLOCKS_CANDIDATES = 2000, 12
NETWORKS = Path(__file__).parents[1] / "dse" / "targets" / "data" / "native_networks.csv"
SEED, CANDIDATES = 1000, 30
# A board for each core; only its core counts where there is no flash to wait for.
CORES = ("cortex-m0plus", "cortex-m3", "cortex-m4f", "cortex-m7", "cortex-m33", "cortex-m55")
DSP = ("cortex-m4f", "cortex-m7", "cortex-m33", "cortex-m55")
BOARDS = {
    "cortex-m4f": ("nucleo_f446re", "nano33ble"),
    "cortex-m7": ("disco_f746ng", "nucleo_h743zi"),
    "cortex-m33": ("b_u585i_iot02a", "b_u585i_iot02a"),
}
DTYPES: tuple[DType, ...] = ("float32", "int8", "int8", "int16", "int8", "int8")
INTEGERS: tuple[DType, ...] = ("int8", "int8", "int16", "int8", "int8")
BLOCKS_GOALS = {"flash": 0.03, "RAM": 0.03, "cycles": 0.10}
GOALS = {"flash": 0.02, "RAM": 0.02, "cycles": 0.10}


@dataclass(frozen=True)
class Case:
    """A candidate: the seed of its network, and what it is built for."""

    seed: int
    core: str
    backend: str
    rounding: Rounding
    dtype: DType

    @property
    def text(self) -> str:
        """How the report names it."""
        return f"{self.core}, {self.backend}, {self.rounding}, {self.dtype}"


@dataclass(frozen=True)
class Pair:
    """A figure as modelled and as found."""

    modelled: float
    found: float

    @property
    def difference(self) -> float:
        """Above 0 the model is pessimistic."""
        return self.modelled / self.found - 1


@dataclass(frozen=True)
class Result:
    """What one candidate gave; `cycles` is None without a cycle table of the core."""

    case: Case
    operators: int
    flash: Pair
    ram: Pair
    cycles: Pair | None
    boards: dict[str, Pair]


def cases(count: int, blocks: bool) -> Iterator[Case]:
    """Candidates that cover cores, backends, contracts and both kinds of activations.

    Those of `blocks` are integers, as float weights are not stored so.
    """
    for number in range(count):
        core = CORES[number % len(CORES)]
        dsp = core in DSP and (number // len(CORES)) % 2 == 0
        rounding: Rounding = "single" if (number // 2) % 3 == 2 else "double"
        kinds, seed = (INTEGERS, BLOCKS_SEED) if blocks else (DTYPES, SEED)
        dtype = kinds[(number + number // len(CORES)) % len(kinds)]
        backend = "native-dsp" if dsp and dtype != "float32" else "native"
        yield Case(seed + number, core, backend, rounding if dtype == "int8" else "double", dtype)


def quiet(core: str) -> Board:
    """A board with that core that never waits for its flash."""
    return replace(load_boards()["nucleo_f446re"], core=find_core(core), wait_states=0)


def target_of(case: Case, board: Board) -> Target:
    """The target, with the candidate's rounding contract."""
    backend = parse_target(f"nucleo_f446re/{case.backend}").backend
    assert isinstance(backend, Native)
    return Target(board, replace(backend, rounding=case.rounding), board.max_clock_hz)


def measure(case: Case, drawn: Drawn) -> Result:
    """Build and emulate one candidate beside its model."""
    sources = emit(drawn.graph, "network", case.backend, case.rounding)
    modelled = cost(drawn.graph, target_of(case, quiet(case.core)))
    with TemporaryDirectory(prefix="dse-") as folder:
        image = build(sources, case.core, COMPILER, "-O2", Path(folder))
        run: Emulation | None = None
        try:
            run = emulate(image, drawn.entry)
        except DseError:  # QEMU for the M55 is not everywhere; its stack is in its code, too
            stack = Code(image).stack_bytes("network_run")
        else:
            stack = run.stack_bytes
        boards = {}
        for name in BOARDS.get(case.core, ())[case.seed // len(CORES) % 2 :][:1]:
            flash = flash_of(load_boards()[name])
            boards[name] = on_board(case, drawn, name, emulate(image, drawn.entry, flash))
    counted = run.cycles if run is not None else None
    return Result(
        case,
        len(drawn.graph.ops),
        Pair(value(modelled, "flash"), image.flash_bytes),
        Pair(value(modelled, "ram"), image.ram_bytes + stack),
        None if counted is None else Pair(cycles(modelled), counted),
        boards,
    )


def value(modelled: Cost, name: str) -> float:
    """A metric that must be there."""
    found = modelled.metrics[name].value  # type: ignore[index]
    assert found is not None
    return found


def cycles(modelled: Cost) -> float:
    """Cycles of all operators."""
    return sum(op.cycles or 0.0 for op in modelled.operators)


def on_board(case: Case, drawn: Drawn, name: str, run: Emulation) -> Pair:
    """Cycles on a board, flash included."""
    modelled = cost(drawn.graph, target_of(case, load_boards()[name]))
    assert run.cycles is not None
    return Pair(cycles(modelled), run.cycles)


def summary(results: Sequence[Result], goals: Mapping[str, float]) -> Iterator[str]:
    """The goals and what was reached."""
    groups = {
        "flash": [r.flash for r in results],
        "RAM": [r.ram for r in results],
        "cycles": [r.cycles for r in results if r.cycles],
    }
    yield "| figure | candidates | median | worst | mean signed | goal | met |"
    yield "| --- | ---: | ---: | ---: | ---: | --- | --- |"
    for name, pairs in groups.items():
        errors = [abs(pair.difference) for pair in pairs]
        mean = statistics.mean(pair.difference for pair in pairs)
        median, worst = statistics.median(errors), max(errors)
        reached = median if name == "cycles" else worst
        text = "median" if name == "cycles" else "every one"
        cells = (
            *(name, str(len(pairs)), f"{median:.2%}", f"{worst:.2%}", f"{mean:+.2%}"),
            *(f"{text} within {goals[name]:.0%}", "yes" if reached <= goals[name] else "**no**"),
        )
        yield f"| {' | '.join(cells)} |"
    for board in dict.fromkeys(name for r in results for name in r.boards):
        pairs = [r.boards[board] for r in results if board in r.boards]
        errors = [abs(pair.difference) for pair in pairs]
        mean = statistics.mean(pair.difference for pair in pairs)
        cells = (
            *(f"cycles on {board}", str(len(pairs)), f"{statistics.median(errors):.2%}"),
            *(f"{max(errors):.2%}", f"{mean:+.2%}", "", ""),
        )
        yield f"| {' | '.join(cells)} |"


def page(results: Sequence[Result], seconds: float, blocks: bool) -> str:
    """The text of reports/native.md, or of reports/native-blocks.md."""
    command = "python benchmarks/native.py" + (" --blocks" if blocks else "")
    how = (
        "all layers pruned in blocks of one pattern to 20, 35 or 50 %, some networks with int16"
        if blocks
        else "some layers sparse, some networks with int16 or float32"
    )
    lines = [
        "# The cost model of our kernels beside what is built and emulated",
        "",
        f"Made by `{command}` in {seconds:.0f} s. {len(results)} random networks "
        f"(seeds of their own, none of them in the fit), quantized to mixed widths, {how} "
        "activations, built with "
        f"{compiler_text()}. Flash and RAM are those of the linked image, RAM with the emulator's "
        "high-water mark of the stack; cycles are "
        "emulated without waiting for flash, below also with the flash of boards. The model is "
        "fitted to single random layers (`python benchmarks/native_measure.py`, then "
        "`python -m dse.targets.native_fit`); modelled less found, as a share of found.",
        "",
        *summary(results, BLOCKS_GOALS if blocks else GOALS),
        "",
        "| network | built for | operators | flash B | model | RAM B | model | cycles | model |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in results:
        counted = ("-", "-")
        if one.cycles:
            counted = (f"{one.cycles.found:,.0f}", f"{one.cycles.difference:+.1%}")
        cells = (
            *(str(one.case.seed), one.case.text, str(one.operators)),
            *(f"{one.flash.found:,.0f}", f"{one.flash.difference:+.2%}"),
            *(f"{one.ram.found:,.0f}", f"{one.ram.difference:+.2%}"),
            *counted,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_networks(results: Sequence[Result]) -> None:
    """Cycles of every network, once without waits for flash, once on its board."""
    with NETWORKS.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("network", "core", "board", "modelled", "found"))
        for one in results:
            quiet_too = {"": one.cycles} if one.cycles else {}
            for board, pair in (quiet_too | one.boards).items():
                figures = (round(pair.modelled), round(pair.found))
                writer.writerow((one.case.seed, one.case.core, board, *figures))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--candidates", type=int)
    parser.add_argument("--jobs", type=int, default=2, help="builds and emulators at a time")
    parser.add_argument("--blocks", action="store_true", help="every layer pruned in blocks")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure, print the goals, write the report; exit code 1 when a goal is missed."""
    options, began = arguments(), time.perf_counter()
    torch.set_num_threads(1)
    if COMPILER not in compilers():
        sys.exit(f"the model is made for {compiler_text()}, which is not installed")
    blocks, usual = options.blocks, BLOCKS_CANDIDATES if options.blocks else CANDIDATES
    wanted = list(cases(options.candidates or usual, blocks))
    drawn = [draw(case.seed, case.dtype, blocks) for case in wanted]  # torch.fx knows no threads
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(measure, wanted, drawn))
    text = page(results, time.perf_counter() - began, blocks)
    output = options.output or (BLOCKS_REPORT if blocks else REPORT)
    output.write_text(text, encoding="utf-8")
    if len(results) == CANDIDATES and not blocks:
        write_networks(results)
    print("\n".join(summary(results, BLOCKS_GOALS if blocks else GOALS)))
    sys.exit("**no**" in text)


if __name__ == "__main__":
    main()
