"""What our kernels take as built and emulated: bytes, stack and cycles by kernel, as data.

`data/native_code.json` holds the bytes of every function in a linked image by core, backend and
rounding contract, for the compiler the figures are made for and for another; `data/
native_cycles.json` the coefficients of closed forms fitted to emulated layers, `data/
native_networks.csv` cycles of whole networks beside them, by which intervals are as wide.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from dse.bounded import Bounded
from dse.graph.ir import Graph, Op
from dse.targets.board import Board
from dse.targets.cycles import Cycles
from dse.targets.encoding import Encoding
from dse.targets.native_features import Call, calls, data_cache_bytes, waits
from dse.targets.native_kernels import BLOCKS

# The compiler that comes with pip; the other one shows how far compilers differ.
COMPILER, OTHER_COMPILER = "zig", "gcc"
# Entry points and NAME_run besides a call an operator, in bytes: three functions of a few
# instructions each, padded to words.
API_BYTES = 18
FLASH_CLASSES = (1024, 2048, 4096, 8192)
KEPT = 65536
LONG, WIDE, INT16 = "_long", "_wide", "_a16"


@cache
def _file(name: str) -> Mapping[str, Any]:
    text = (resources.files("dse.targets") / "data" / name).read_text("utf-8")
    found: Mapping[str, Any] = json.loads(text)
    return found


@dataclass(frozen=True)
class KernelCode:
    """Bytes of the functions of every kernel on one core; stack with the call of an operator."""

    functions: Mapping[str, int]
    kernels: Mapping[str, Mapping[str, Any]]
    run: Sequence[int]

    def code_bytes(self, names: Iterable[str]) -> dict[str, int]:
        """Bytes by kernel; a function that several share is counted with the first."""
        done: set[str] = set()
        found = {}
        for name in names:
            parts = [part for part in self._kernel(name)["functions"] if part not in done]
            done.update(parts)
            found[name] = sum(self.functions[part] for part in parts)
        return found

    def _kernel(self, name: str) -> Mapping[str, Any]:
        """What was built; a kernel of 64-bit sums that was not takes the narrow one's figures."""
        return self.kernels.get(name) or self.kernels[name.replace(WIDE, "")]

    def call_bytes(self, names: Iterable[str]) -> float:
        """Bytes of the operators' own functions and of NAME_run's calls; a name an operator."""
        each = self.run[0] / self.run[1]
        return sum(float(self._kernel(name)["call"]) + each for name in names)

    def stack_bytes(self, names: Iterable[str]) -> int:
        """The deepest call chain from NAME_run."""
        return int(self.run[2]) + max((self._kernel(name)["stack"] for name in names), default=0)


@cache
def kernel_code(core: str, backend: str, rounding: str, compiler: str) -> KernelCode | None:
    """What was built for a core, such as cortex-m4f; None where nothing was."""
    images = _file("native_code.json")["images"][compiler]
    key = f"{core}/{backend}/{rounding}"
    if key not in images:
        return None
    found = images[key]
    return KernelCode(found["functions"], found["kernels"], found["run"])


def compiler_text(compiler: str = COMPILER) -> str:
    """The compiler with version and optimization."""
    return f"{compiler} {_file('native_code.json')['compilers'][compiler]}"


@cache
def code_ratio(backend: str) -> tuple[float, float]:
    """The smallest and largest share that the other compiler's code is of the reference's.

    Over all cores and kernels that were built for a backend.
    """
    images = _file("native_code.json")["images"]
    found = [1.0]
    for key, image in images[COMPILER].items():
        other = images[OTHER_COMPILER].get(key)
        if key.split("/")[1] == backend and other:
            ours, theirs = (_total(one) for one in (image, other))
            found.append(theirs / ours)
    return min(found), max(found)


def _total(image: Mapping[str, Any]) -> int:
    """Bytes of the functions of int8 kernels; those of other activations have an @.

    Those of sparse blocks, whose loops are kept short, are alike in both compilers and would hide
    how far the others differ.
    """
    of = {True: set[str](), False: set[str]()}
    for kernel, found in image["kernels"].items():
        of[kernel.startswith(BLOCKS)].update(found["functions"])
    left_out = of[True] - of[False]
    functions = image["functions"].items()
    return sum(size for name, size in functions if "@" not in name and name not in left_out)


@dataclass(frozen=True)
class KernelCycles:
    """Fitted cycles of our kernels on one core, and what they wait for flash (a `Timing`).

    `kernels` are coefficients by kernel and count; `waiting` those of one wait state, by bytes of
    cache. `error` is the half-width of the interval.
    """

    core: str
    backend: str
    kernels: Mapping[str, Mapping[str, float]]
    waiting: Mapping[int, Mapping[str, Mapping[str, float]]]
    error: float
    source: str
    kept: Bounded[tuple[Any, ...], Cycles] = field(
        default_factory=lambda: Bounded(KEPT), compare=False, repr=False
    )

    def operator(
        self, graph: Graph, op: Op, encoding: Encoding | None, board: Board, constant_bytes: int
    ) -> Cycles:
        """Cycles of one operator, kept by its shapes; see `Timing`."""
        key = (graph.layer_keys[op.name], board.wait_states, board.cache_bytes)
        found = self.kept.get(key)
        if found is None:
            value = self._cycles(graph, op, encoding, board)
            found = self.kept[key] = Cycles(value, value, value)
        return found

    def relative_error(self, board: Board) -> float:
        """The same on every board: flash is modelled, not measured."""
        return self.error

    def _cycles(self, graph: Graph, op: Op, encoding: Encoding | None, board: Board) -> float:
        found = 0.0
        for call in _calls(graph, op, encoding, self.backend == "native-dsp"):
            kernel = call.kernel.removesuffix(LONG)
            found += _dot(_nearest(self.kernels, kernel), call.counts)
            found += self._waits(call, kernel, board)
        return found

    def _waits(self, call: Call, kernel: str, board: Board) -> float:
        """Cycles that a call waits for the board's flash."""
        if not board.wait_states or not self.waiting:
            return 0.0
        nearest = min(self.waiting, key=lambda size: abs(size - board.cache_bytes))
        counts = dict(waits(call, data_cache_bytes(board.cache_bytes)))
        return board.wait_states * _dot(_nearest(self.waiting[nearest], kernel), counts)


_CALLS: Bounded[tuple[Any, ...], tuple[Call, ...]] = Bounded(KEPT)


def _calls(graph: Graph, op: Op, encoding: Encoding | None, dsp: bool) -> tuple[Call, ...]:
    """The kernels' calls, kept by shapes: the same on every core."""
    key = (graph.layer_keys[op.name], encoding, dsp)
    found = _CALLS.get(key)
    if found is None:
        found = _CALLS[key] = calls(graph, op, encoding, dsp)
    return found


def _nearest(table: Mapping[str, Mapping[str, float]], kernel: str) -> Mapping[str, float]:
    """The coefficients of a kernel, or of the narrower one where it was not emulated."""
    for name in (kernel, kernel.replace(WIDE, ""), kernel.replace(WIDE, "").replace(INT16, "")):
        if name in table:
            return table[name]
    return {}


def _dot(coefficients: Mapping[str, float], counts: Mapping[str, float]) -> float:
    return sum(value * counts.get(name, 0.0) for name, value in coefficients.items())


@cache
def kernel_cycles(core: str, backend: str, rounding: str) -> KernelCycles | None:
    """The fitted cycles on a core, such as cortex-m4f; None where nothing was emulated."""
    tables = _file("native_cycles.json")["tables"]
    key = f"{core}/{backend}/{rounding}"
    integer = tables.get(key) or tables.get(f"{_AS.get(core, core)}/{backend}/{rounding}")
    if integer is None:
        return None
    # What a variant leaves to the plain kernels (dilated depthwise layers), and all of float32.
    plain = tables[f"{_AS.get(core, core)}/native/{rounding}"]["kernels"]
    floats = tables.get(f"{core}/native/double", integer)["kernels"]
    kernels = {**plain, **integer["kernels"]}
    kernels |= {name: found for name, found in floats.items() if name.endswith("_f32")}
    waiting = {
        size: {
            **tables[f"native@{size}"]["kernels"],
            **tables[f"{backend}@{size}"]["kernels"],
        }
        for size in FLASH_CLASSES
        if f"native@{size}" in tables
    }
    source = (
        f"closed forms fitted to emulated layers of our kernels, {compiler_text()} "
        f"(dse.targets.native_fit); 90 % of left-out layers within {integer['error']:.0%}, whole "
        "networks: reports/native.md"
    )
    error = max(network_error(_AS.get(core, core)), integer["error"])
    return KernelCycles(core, backend, kernels, waiting, error, source)


@cache
def network_error(core: str) -> float:
    """What the worst emulated network on a core is off by, in whole per cent of its modelled
    cycles; the worst of all cores where none was emulated (data/native_networks.csv)."""
    text = (resources.files("dse.targets") / "data" / "native_networks.csv").read_text("utf-8")
    errors: dict[str, list[float]] = {}
    for row in csv.DictReader(text.splitlines()):
        error = abs(float(row["found"]) / float(row["modelled"]) - 1)
        errors.setdefault(row["core"], []).append(error)
    known = errors.get(core) or [error for found in errors.values() for error in found]
    return math.ceil(100 * max(known)) / 100


# Integer code is the same without a floating-point unit.
_AS = {"cortex-m4": "cortex-m4f"}
