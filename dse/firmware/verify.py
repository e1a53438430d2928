"""A design proven without a board: emitted, built, emulated, and held beside its model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from dse.firmware.build import Image, build, compilers
from dse.firmware.emit import emit
from dse.firmware.emulate import Emulation, emulate, flash_of
from dse.graph.entry import input_bytes
from dse.graph.ir import Array, Graph
from dse.graph.numerics import Rounding
from dse.targets import Cost, Target, cost
from dse.targets.native_tables import COMPILER
from dse.trial import MetricName, Proof

# Sums in another order differ in the last bits of a float.
FLOAT_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Comparison:
    """One figure as modelled and as emulated, in SI units (cycles for an operator)."""

    name: str
    modelled: float | None
    emulated: float | None

    @property
    def difference(self) -> float | None:
        """(modelled - emulated) / emulated: above 0 the model is pessimistic."""
        if self.modelled is None or not self.emulated:
            return None
        return self.modelled / self.emulated - 1


@dataclass(frozen=True)
class Verification:
    """What building and running one design gave.

    `matching` of `samples` outputs equal the exact network's in every byte (float32: within
    1e-4). `figures` compare flash, RAM, latency and energy, `operators` cycles by operator.
    """

    target: str
    compiler: str
    flags: str
    emulator: str
    samples: int
    matching: int
    figures: tuple[Comparison, ...]
    operators: tuple[Comparison, ...]
    instructions: int
    stack_bytes: int | None

    @property
    def exact(self) -> bool:
        """Whether every output is what the network computes."""
        return self.matching == self.samples

    @property
    def proof(self) -> Proof:
        """What a trial keeps of it; energy is left out: nobody emulated a power."""
        return Proof(
            target=self.target,
            compiler=f"{self.compiler} ({self.flags})",
            emulator=self.emulator,
            samples=self.samples,
            matching=self.matching,
            metrics={
                figure.name: float(figure.emulated)
                for figure in self.figures
                if figure.emulated is not None and figure.name != "energy"
            },
        )

    def to_json(self) -> dict[str, Any]:
        """Everything, as `dse verify --json` prints it (schema `dse.verify/1`)."""
        rows = {
            name: [asdict(found) | {"difference": found.difference} for found in comparisons]
            for name, comparisons in (("figures", self.figures), ("operators", self.operators))
        }
        return {"schema": "dse.verify/1", **asdict(self), **rows}


def verify(
    graph: Graph,
    target: Target,
    rounding: Rounding,
    inputs: npt.ArrayLike,
    compiler: str | None = None,
    optimize: str = "-O2",
) -> Verification:
    """Emit, build and emulate `graph` on float `inputs` (N, C, H, W) and compare with the model.

    Without `compiler`, the one that the model's figures belong to is taken where it is installed.
    Raises TargetError when the backend has no C of ours, a compiler or emulator is missing, or the
    image does not fit the board.
    """
    if compiler is None and COMPILER in compilers():
        compiler = COMPILER
    with ThreadPoolExecutor(1) as other:
        # Compiler and emulator are processes: what is expected is found meanwhile.
        running = other.submit(_emulated, graph, target, rounding, inputs, compiler, optimize)
        expected = _expected(graph, inputs, rounding)
        image, run = running.result()
    return _compared(graph, target, image, run, _matching(graph, expected, run))


def _emulated(
    graph: Graph,
    target: Target,
    rounding: Rounding,
    inputs: npt.ArrayLike,
    compiler: str | None,
    optimize: str,
) -> tuple[Image, Emulation]:
    board, limits = target.board, target.limits()
    sources = emit(graph, "network", target.backend.name, rounding)
    with TemporaryDirectory() as folder:
        image = build(
            sources,
            board.core.name,
            compiler,
            optimize,
            Path(folder),
            flash_limit_bytes=limits.flash_bytes,
            ram_limit_bytes=limits.ram_bytes,
        )
        return image, emulate(image, input_bytes(graph, inputs), flash_of(board))


def _expected(graph: Graph, inputs: npt.ArrayLike, rounding: Rounding) -> Array:
    import torch  # takes seconds to load, which the compiler and the emulator need, too

    from dse.graph import execute

    rows = torch.from_numpy(np.ascontiguousarray(inputs))
    return execute.run(graph, rows, rounding).numpy()


def _matching(graph: Graph, expected: Array, run: Emulation) -> int:
    found = run.outputs.view(graph.tensors[graph.output].dtype)
    if graph.integer:
        return int((found == expected).all(axis=1).sum())
    return int(np.isclose(found, expected, rtol=0, atol=FLOAT_TOLERANCE).all(axis=1).sum())


def _compared(
    graph: Graph, target: Target, image: Image, run: Emulation, matching: int
) -> Verification:
    modelled = cost(graph, target)
    cycles = {op.name: op.cycles + op.flash_cycles for op in run.operators}
    total = sum(cycles.values()) if run.cycles is not None else None
    latency_s = None if total is None else total / target.clock_hz
    power = target.board.active_power_w(target.clock_hz)
    emulated: Mapping[MetricName, float | None] = {
        "flash": image.flash_bytes,
        "ram": image.ram_bytes + (run.stack_bytes or 0),
        "latency": latency_s,
        "energy": None if power is None or latency_s is None else power.value * latency_s,
    }
    figures = tuple(
        Comparison(name, modelled.metrics[name].value, value) for name, value in emulated.items()
    )
    return Verification(
        target=target.key,
        compiler=f"{image.compiler.name} {image.compiler.version}",
        flags=" ".join(image.flags),
        emulator=run.emulator,
        samples=len(run.outputs),
        matching=matching,
        figures=figures,
        operators=_operators(graph, modelled, cycles),
        instructions=run.instructions,
        stack_bytes=run.stack_bytes,
    )


def _operators(graph: Graph, modelled: Cost, cycles: Mapping[str, float]) -> tuple[Comparison, ...]:
    """By operator in the order of the network; what lies between them comes last."""
    known = {op.name: op.cycles for op in modelled.operators}
    found, rest = [], 0.0
    for symbol, value in cycles.items():
        place = re.search(r"_op_(\d+)_", symbol)
        if place is None:
            rest += value
            continue
        name = graph.ops[int(place.group(1))].name
        found.append(Comparison(name, known[name], value))
    return (*found, Comparison("calls between operators", None, rest))
