"""Measure our kernels as built: bytes and stack of each, cycles of about 24 random layers a kind.

Builds one network of random layers (`native_layers.py`) a core, backend and rounding contract,
reads bytes and stack from its machine code, emulates it, and writes what the cost model is fitted
to: dse/targets/data/native_code.json and native_layers.csv. Fit afterwards with
`python -m dse.targets.native_fit`.

    python benchmarks/native_measure.py            # all, a quarter of an hour on two processors
    python benchmarks/native_measure.py --only code
    python benchmarks/native_measure.py --only code --backends native-mve    # the others stay
    python benchmarks/native_measure.py --kinds depthwise4 dilated4    # after one kernel changed
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from native_code import Code
from native_layers import Sample, dilated, draw, long_rows, makers

from dse.firmware.build import Image, build, find_compiler
from dse.firmware.cpu import CPUS
from dse.firmware.emit import BACKENDS, emit
from dse.firmware.emulate import FlashModel, emulate
from dse.graph.ir import Conv2D, DType, FullyConnected, Graph, Op, Reshape
from dse.graph.numerics import ROUNDINGS, Rounding
from dse.targets.backend import find_backend
from dse.targets.encoding import Encoding
from dse.targets.native_features import calls
from dse.targets.native_fit import SHAPE_COLUMNS, describe
from dse.targets.native_kernels import kernels_of

DATA = Path(__file__).parents[1] / "dse" / "targets" / "data"
# Layers of a kind: for cycles, with flash, and for code, which does not depend on shapes.
SEED, EACH, EACH_WITH_FLASH, EACH_FOR_CODE = 11, 18, 8, 2
OPTIMIZE = "-O2"
DTYPES: tuple[DType, ...] = ("int8", "int16", "float32")
INTEGERS: tuple[DType, ...] = ("int8", "int16")
# Cores whose cycles are counted, and as what: the M4 without a unit for soft floats.
CYCLE_CORES = ("cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m4f", "cortex-m7", "cortex-m33")
DSP_CORES = ("cortex-m4f", "cortex-m7", "cortex-m33")
MVE_CORES = ("cortex-m55",)
# Flash organisations of the boards (dse.firmware.emulate.flash_of): name, core, model.
FLASH: Mapping[str, tuple[str, FlashModel]] = {
    "1024": ("cortex-m4f", FlashModel(1)),
    "2048": ("cortex-m4f", FlashModel(1, code_cache_bytes=2048)),
    "4096": ("cortex-m7", FlashModel(1, 8, 4096, 32, 4, 4096, 32, 4)),
    "8192": ("cortex-m33", FlashModel(1, 8, 8192, 32, 4, 8192, 32, 4)),
}


Kinds = tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """What one image is built for."""

    core: str
    backend: str
    rounding: Rounding
    dtype: DType
    compiler: str = "zig"

    @property
    def key(self) -> str:
        """As the data files name it."""
        return f"{self.core}/{self.backend}/{self.rounding}"


@cache
def sample(dtype: DType, kinds: Kinds = ()) -> Sample:
    """The random layers with these activations, or those of these kinds among them."""
    return draw(dtype, EACH, SEED, kinds=kinds)


@cache
def few(dtype: DType, kinds: Kinds = ()) -> Sample:
    """Layers for what takes long."""
    return draw(dtype, EACH_WITH_FLASH, SEED + 1, kinds=kinds)


def settings(compiler: str) -> Iterator[Setting]:
    """Every image: float32 has no rounding contract and no DSP kernels."""
    for core, rounding, dtype in product(CPUS, ROUNDINGS, INTEGERS):
        yield Setting(core, "native", rounding, dtype, compiler)
        if core in (*DSP_CORES, "cortex-m4", "cortex-m55"):
            yield Setting(core, "native-dsp", rounding, dtype, compiler)
        if core in MVE_CORES:
            yield Setting(core, "native-mve", rounding, dtype, compiler)
    for core in CPUS:
        yield Setting(core, "native", "double", "float32", compiler)


def kernels(setting: Setting, drawn: Sample) -> Mapping[str, tuple[str, ...]]:
    """The kernels that each operator calls, by the symbol it has in the image."""
    backend, found = find_backend(setting.backend), {}
    for index, op in enumerate(drawn.graph.ops):
        if isinstance(op, Reshape):
            continue
        encoding = backend.encoding(op) if isinstance(op, Conv2D | FullyConnected) else None
        names = named(setting, drawn.graph, op, encoding)
        found[f"network_op_{index}_{op.name}"] = tuple(dict.fromkeys(names))
    return found


def named(setting: Setting, graph: Graph, op: Op, encoding: Encoding | None) -> tuple[str, ...]:
    """The kernels of an operator; nobody counts the loops of those with vectors."""
    if setting.backend == "native-mve":
        return kernels_of(graph, op, encoding, dsp=True, mve=True)
    return tuple(
        call.kernel for call in calls(graph, op, encoding, setting.backend == "native-dsp")
    )


def built(setting: Setting, drawn: Sample, folder: str) -> Image:
    """The image of a network of layers."""
    sources = emit(drawn.graph, "network", setting.backend, setting.rounding, drawn.plan)
    return build(sources, setting.core, setting.compiler, OPTIMIZE, Path(folder))


def code_of(setting: Setting, kinds: Kinds) -> dict[str, Any]:
    """Bytes of functions, and by kernel which of them, stack, and bytes of the call."""
    result: dict[str, Any] = {"functions": {}, "kernels": {}}
    for drawn in code_samples(setting, kinds):
        with TemporaryDirectory(prefix="dse-") as folder:
            code = Code(built(setting, drawn, folder))
            found = read(code, kernels(setting, drawn))
        result["functions"] |= found["functions"]
        result["kernels"] = found["kernels"] | result["kernels"]
        result.setdefault("run", found["run"])
    return result


def code_samples(setting: Setting, kinds: Kinds) -> Iterator[Sample]:
    """The networks whose code is read; with `kinds`, only what these need."""
    known = set(makers(setting.dtype))
    if not kinds or known & set(kinds):
        yield draw(setting.dtype, EACH_FOR_CODE, SEED, kinds=kinds)
    left = tuple(name for name in dilated(setting.dtype) if not kinds or name in kinds)
    if setting.backend != "native" and left:  # depthwise layers that the plain kernels run
        yield draw(setting.dtype, EACH_FOR_CODE, SEED, only=left)
    if setting.backend == "native-mve" and (not kinds or "depthwise8" in kinds):
        yield draw(setting.dtype, EACH, SEED, only=("depthwise8",))  # channels for a vector or not
    if not kinds:
        yield long_rows(setting.dtype, SEED)


def read(code: Code, called: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """What `code_of` gives, of one image."""
    functions = code.functions
    known = set(code.others())
    entries = {name: entry(name, known) for names in called.values() for name in names}
    reached = {name for kernel in entries.values() for name in code.closure(kernel)}
    unreached = sorted(known - reached)  # what a run-time library brings along
    found: dict[str, Any] = {}
    for name, kernel in sorted(entries.items()):
        users = [symbol for symbol, names in called.items() if name in names]
        parts = [part for part in code.closure(kernel) if part in known]
        library = any(part.startswith(("__", "compiler_rt")) for part in parts)
        found[name] = {
            "functions": sorted(parts) + (unreached if library else []),
            "stack": statistics.median_low(code.stack_bytes(symbol) for symbol in users),
            "call": round(statistics.mean(functions[symbol].size_bytes for symbol in users), 1),
        }
    run = functions["network_run"]
    return {
        "functions": {name: functions[name].size_bytes for name in sorted(known)},
        "kernels": found,
        "run": [run.size_bytes, len(called), run.frame_bytes],
    }


def entry(kernel: str, known: set[str]) -> str:
    """The C function of a kernel: float32 copies have the name of int8 ones."""
    return kernel if kernel in known else kernel.rsplit("_", 1)[0]


@dataclass(frozen=True)
class Part:
    """What is measured anew: all, or what these names select; the rest stays as it is there."""

    backends: tuple[str, ...] = BACKENDS
    dtypes: tuple[DType, ...] = DTYPES
    kinds: Kinds = ()
    columns: str = ""

    @property
    def all_of_its_backends(self) -> bool:
        """Whether nothing that is there of the backends is kept."""
        return self.dtypes == DTYPES and not self.kinds

    def settings(self, compiler: str) -> list[Setting]:
        """The images to build."""
        chosen = [one for one in settings(compiler) if one.backend in self.backends]
        chosen = [one for one in chosen if one.dtype in self.dtypes]
        return [one for one in chosen if any(True for _ in code_samples(one, self.kinds))]

    def chosen(self) -> list[Column]:
        """The columns to emulate."""
        return [
            one
            for one in columns()
            if re.search(self.columns, one.name)
            and one.setting.backend in self.backends
            and one.setting.dtype in self.dtypes
            and (not self.kinds or set(self.kinds) & set(makers(one.setting.dtype)))
        ]


def measure_code(jobs: int, part: Part) -> dict[str, Any]:
    """All of native_code.json."""
    found: dict[str, Any] = {}
    versions = {}
    for compiler in ("zig", "gcc"):
        wanted = part.settings(compiler)
        versions[compiler] = f"{find_compiler(compiler).version} {OPTIMIZE}"
        with ThreadPoolExecutor(jobs) as pool:
            done = list(pool.map(partial(code_of, kinds=part.kinds), wanted))
        images = kept_code(compiler, part)
        for setting, code in zip(wanted, done, strict=True):
            into = images.setdefault(setting.key, {"functions": {}, "kernels": {}})
            own = "" if setting.dtype == "int8" else f"@{setting.dtype}"
            into["functions"] |= {f"{n}{own}": size for n, size in code["functions"].items()}
            for name, kernel in code["kernels"].items():
                parts = [f"{function}{own}" for function in kernel["functions"]]
                into["kernels"][name] = kernel | {"functions": parts}
            into.setdefault("run", code["run"])
        found[compiler] = images
    return {
        "command": "python benchmarks/native_measure.py",
        "compilers": versions,
        "images": found,
    }


def kept_code(compiler: str, part: Part) -> dict[str, Any]:
    """The images in native_code.json that are not, or not wholly, measured anew."""
    path = DATA / "native_code.json"
    if not path.is_file():
        return {}
    stored = json.loads(path.read_text(encoding="utf-8"))["images"][compiler]
    dropped = part.backends if part.all_of_its_backends else ()
    return {key: image for key, image in stored.items() if key.split("/")[1] not in dropped}


@dataclass(frozen=True)
class Column:
    """What is emulated: a column of native_layers.csv; with `flash`, what is waited for that."""

    name: str
    setting: Setting
    flash: FlashModel | None = None

    def sample(self, kinds: Kinds = ()) -> Sample:
        """The layers it is emulated on: fewer with flash, whose emulation is slow."""
        drawn = sample if self.flash is None else few
        return drawn(self.setting.dtype, kinds)


def columns() -> Iterator[Column]:
    """All columns."""
    for core, dtype in product(CYCLE_CORES, DTYPES):
        if core == "cortex-m4" and dtype in INTEGERS:
            continue
        for rounding in ROUNDINGS if dtype == "int8" else ROUNDINGS[:1]:
            setting = Setting(core, "native", rounding, dtype)
            yield Column(setting.key, setting)
            if core in DSP_CORES and dtype in INTEGERS:
                setting = Setting(core, "native-dsp", rounding, dtype)
                yield Column(setting.key, setting)
    for name, (core, flash) in FLASH.items():
        for backend, dtype in (("native", "int8"), ("native-dsp", "int8"), ("native", "float32")):
            setting = Setting(core, backend, "double", dtype)
            yield Column(f"{backend}@{name}", setting, flash)


Rows = dict[str, dict[str, str]]


def measure_cycles(jobs: int, wanted: Sequence[Column], kinds: Kinds, rows: Rows) -> None:
    """Fill columns of the rows of native_layers.csv (by their shapes); a layer each."""

    def one(column: Column) -> list[tuple[dict[str, str], float, float]]:
        began = time.perf_counter()
        graph, found = column.sample(kinds).graph, []
        for index, cycles, waits in emulated(column, column.sample(kinds)):
            found.append((describe(graph, graph.ops[index]), cycles, waits))
        print(column.name, column.setting.dtype, f"{time.perf_counter() - began:.0f} s", flush=True)
        return found

    with ThreadPoolExecutor(jobs) as pool:
        for column, found in zip(wanted, pool.map(one, wanted), strict=True):
            for shapes, cycles, waits in found:
                row = rows.setdefault("|".join(shapes.values()), shapes)
                row[column.setting.key] = str(round(cycles))
                if column.flash:
                    row[column.name] = str(round(waits))
            write_rows(list(rows.values()))


def emulated(column: Column, drawn: Sample) -> Iterator[tuple[int, float, float]]:
    """(Place in the graph, cycles, cycles waited for flash) of every layer."""
    with TemporaryDirectory(prefix="dse-") as folder:
        run = emulate(built(column.setting, drawn, folder), drawn.entry, column.flash)
    for one in run.operators[:-1]:
        yield int(one.name.split("_")[2]), one.cycles, one.flash_cycles


def read_rows(part: Part) -> Rows:
    """The rows there are, by their shapes, for a run that measures a part of them.

    Layers that are no longer drawn keep what is not measured anew: their kernels are the same.
    """
    path = DATA / "native_layers.csv"
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    found = {"|".join(row[name] for name in SHAPE_COLUMNS): row for row in rows}
    anew = {one.setting.key for one in part.chosen()} | {one.name for one in part.chosen()}
    for key in () if part.kinds else found.keys() - drawn():
        if found[key]["dtype"] in part.dtypes:
            found[key] |= dict.fromkeys(anew & found[key].keys(), "")
    return {
        key: row
        for key, row in found.items()
        if any(value for name, value in row.items() if name not in SHAPE_COLUMNS)
    }


@cache
def drawn() -> frozenset[str]:
    """The shapes of all layers that are drawn today: rows of others are no longer measured."""
    graphs = {id(graph): graph for graph in (column.sample().graph for column in columns())}
    return frozenset(
        "|".join(describe(graph, op).values())
        for graph in graphs.values()
        for op in graph.ops
        if not isinstance(op, Reshape)
    )


def write_rows(rows: Sequence[Mapping[str, str]]) -> None:
    """native_layers.csv: shapes, then a column a setting, in order."""
    found = {name for row in rows for name in row} - set(SHAPE_COLUMNS)
    names = [*SHAPE_COLUMNS, *sorted(found)]
    ordered = sorted(rows, key=lambda row: [row[name] for name in SHAPE_COLUMNS])
    with (DATA / "native_layers.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(ordered)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("code", "cycles"))
    parser.add_argument("--columns", default="", help="only columns whose names match, others stay")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    kinds = sorted({name for one in DTYPES for name in (*makers(one), *dilated(one))})
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=(), help="only these layers")
    parser.add_argument("--jobs", type=int, default=2, help="builds and emulators at a time")
    options = parser.parse_args()
    part = Part(
        tuple(options.backends), tuple(options.dtypes), tuple(options.kinds), options.columns
    )
    if options.only != "cycles":
        text = json.dumps(measure_code(options.jobs, part), indent=1, sort_keys=True)
        (DATA / "native_code.json").write_text(text + "\n", encoding="utf-8")
    if options.only != "code":
        rows = {} if part == Part() else read_rows(part)
        measure_cycles(options.jobs, part.chosen(), part.kinds, rows)


if __name__ == "__main__":
    main()
