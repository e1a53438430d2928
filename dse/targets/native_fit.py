"""The fit of our kernels' cycles: relative non-negative least squares over emulated layers.

    python -m dse.targets.native_fit      # data/native_layers.csv -> data/native_cycles.json
    python -m dse.targets.native_fit --kernels block_conv     # those alone, all else stays

A row is one random layer; its cycles on every core, backend and rounding contract are columns, and
so is what it waits for a flash of one wait state behind caches of so many bytes (BACKEND@BYTES).
Each kernel has coefficients of its own. Written by `benchmarks/native_measure.py`.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from dse.graph.ir import (
    Add,
    Concat,
    Conv2D,
    FullyConnected,
    Graph,
    Lookup,
    Mul,
    Op,
    Pad,
    Pool2D,
    Reshape,
    Softmax,
    Tensor,
    Weight,
)
from dse.targets.backend import find_backend
from dse.targets.native_features import Call, calls, data_cache_bytes, waits

KINDS: Mapping[str, type[Op]] = {
    kind.kind: kind
    for kind in (Add, Concat, Conv2D, FullyConnected, Lookup, Mul, Pad, Pool2D, Softmax)
}
DETAILS = ("stride", "padding", "dilation", "groups", "mode", "kernel", "function")
SHAPE_COLUMNS = ("kind", "dtype", "inputs", "output", "weight", "details")
HELD_OUT = 5  # every fifth row of a kernel is predicted by a fit without it
DIGITS = 6
DAMPING = 0.02


def describe(graph: Graph, op: Op) -> dict[str, str]:
    """The shape columns of an operator; `layer` reads them back."""
    weight = op.weight if isinstance(op, Conv2D | FullyConnected) else None
    pool = isinstance(op, Pool2D)
    details = {
        name: getattr(op, name)
        for name in DETAILS
        if hasattr(op, name) and (name != "kernel" or pool)
    }
    return {
        "kind": op.kind,
        "dtype": graph.tensors[op.output].dtype,
        "inputs": json.dumps([graph.tensors[name].shape for name in op.inputs]),
        "output": json.dumps(graph.tensors[op.output].shape),
        "weight": json.dumps(_weight_columns(weight)) if weight else "",
        "details": json.dumps(details),
    }


def _weight_columns(weight: Weight) -> list[object]:
    """Shape, bits and kept elements; the size of a code book, or pattern and kept blocks."""
    more: list[object] = [weight.entries, weight.vector] if weight.entries else []
    more = [weight.pattern, weight.blocks] if weight.blocks else more
    return [weight.shape, weight.bits, weight.kept, *more]


def layer(row: Mapping[str, str]) -> Graph:
    """A graph of shapes with the one operator that a row describes."""
    shapes = [tuple(shape) for shape in json.loads(row["inputs"])]
    dtype: Any = row["dtype"]
    scale = None if dtype == "float32" else 0.05
    tensors = {f"x{i}": Tensor(f"x{i}", shape, dtype, scale) for i, shape in enumerate(shapes)}
    tensors["y"] = Tensor("y", tuple(json.loads(row["output"])), dtype, scale)
    details = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in json.loads(row["details"]).items()
    }
    if row["weight"]:
        shape, bits, kept, *more = json.loads(row["weight"])
        of_blocks = bool(more) and isinstance(more[0], str)
        keys = ("pattern", "blocks") if of_blocks else ("entries", "vector")
        given: Any = dict(zip(keys, more, strict=False))
        details["weight"] = Weight(tuple(shape), bits, kept, **given)
    names = tuple(f"x{i}" for i in range(len(shapes)))
    views = tuple(Reshape(f"view_{name}", ("x0",), name) for name in names[1:])
    op = KINDS[row["kind"]]("op", names, "y", **details)
    return Graph("row", tensors, (*views, op), "x0", "y")


@dataclass(frozen=True)
class Row:
    """One layer in one column: the kernels it calls, its cycles, and what an error is a share of.

    `whole` is the cycles themselves, or for waits those of the layer without them.
    """

    calls: tuple[Call, ...]
    cycles: float
    whole: float


def stored_layers() -> list[dict[str, str]]:
    """The rows of data/native_layers.csv."""
    text = (resources.files("dse.targets") / "data" / "native_layers.csv").read_text("utf-8")
    return list(csv.DictReader(text.splitlines()))


def columns(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The names of what was emulated."""
    return [name for name in rows[0] if name not in SHAPE_COLUMNS]


def rows_of(column: str, layers: Sequence[Mapping[str, str]]) -> list[Row]:
    """The layers that were emulated in a column."""
    cache_bytes = int(column.partition("@")[2] or 0)
    backend = column.partition("@")[0] if cache_bytes else column.split("/")[1]
    whole = column if not cache_bytes else f"{CORE_OF[cache_bytes]}/{backend}/double"
    found = []
    for row in layers:
        if not row[column] or not row[whole]:
            continue
        graph = layer(row)
        op = graph.ops[-1]
        weighted = op if isinstance(op, Conv2D | FullyConnected) else None
        encoding = find_backend(backend).encoding(weighted) if weighted else None
        called = calls(graph, op, encoding, backend == "native-dsp")
        if cache_bytes:
            called = tuple(as_waits(call, cache_bytes) for call in called)
        found.append(Row(called, float(row[column]), float(row[whole])))
    return found


# On which core the flash of so many bytes of cache was emulated (benchmarks/native_measure.py).
CORE_OF = {1024: "cortex-m4f", 2048: "cortex-m4f", 4096: "cortex-m7", 8192: "cortex-m33"}


def as_waits(call: Call, cache_bytes: int) -> Call:
    """A call with the counts that its waits for flash are fitted to."""
    return Call(call.kernel, dict(waits(call, data_cache_bytes(cache_bytes))))


Table = dict[str, dict[str, float]]


def fit(rows: Sequence[Row]) -> Table:
    """Coefficients by kernel and feature; kernels that occur in one layer are fitted together."""
    found: Table = {}
    for group in _groups(rows):
        here = [row for row in rows if any(call.kernel in group for call in row.calls)]
        found |= _solved(here)
    return found


def _groups(rows: Sequence[Row]) -> list[set[str]]:
    groups: list[set[str]] = []
    for row in rows:
        names = {call.kernel for call in row.calls}
        touched = [group for group in groups if group & names]
        groups = [group for group in groups if not group & names]
        groups.append(names.union(*touched))
    return groups


def _solved(rows: Sequence[Row]) -> Table:
    """Non-negative least squares of relative errors; columns are scaled to a like size."""
    names = sorted(
        {(call.kernel, name) for row in rows for call in row.calls for name in call.counts}
    )
    place = {name: i for i, name in enumerate(names)}
    matrix: npt.NDArray[np.float64] = np.zeros((len(rows), len(names)))
    for i, row in enumerate(rows):
        for call in row.calls:
            for name, value in call.counts.items():
                matrix[i, place[call.kernel, name]] += value / row.whole
    scale = np.sqrt((matrix**2).mean(axis=0))
    scale[scale == 0] = 1
    target = np.array([row.cycles / row.whole for row in rows])
    # A little weight decay: features that go together share, instead of one at random.
    damped = np.vstack((matrix / scale, DAMPING * np.eye(len(names))))
    target = np.concatenate((target, np.zeros(len(names))))
    solution, _ = nnls(damped, target, maxiter=50 * len(names))
    found: Table = {}
    for (kernel, name), value in zip(names, solution / scale, strict=True):
        entry = found.setdefault(kernel, {})
        if value > 0:
            entry[name] = float(f"{value:.{DIGITS}g}")
    return found


def predicted(table: Table, row: Row) -> float:
    """Cycles of a row with fitted coefficients."""
    return sum(
        table.get(call.kernel, {}).get(name, 0.0) * value
        for call in row.calls
        for name, value in call.counts.items()
    )


def held_out(rows: Sequence[Row]) -> dict[str, list[float]]:
    """By kernel, the relative error of each row predicted by a fit without a fifth of the rows."""
    found: dict[str, list[float]] = {}
    for fold in range(HELD_OUT):
        table = fit([row for i, row in enumerate(rows) if i % HELD_OUT != fold])
        for row in rows[fold::HELD_OUT]:
            error = (predicted(table, row) - row.cycles) / row.whole
            found.setdefault(row.calls[0].kernel, []).append(error)
    return found


def tables() -> dict[str, Any]:
    """All of data/native_cycles.json."""
    layers = stored_layers()
    found: dict[str, Any] = {}
    for column in columns(layers):
        rows = rows_of(column, layers)
        errors = [abs(e) for kernel in held_out(rows).values() for e in kernel]
        found[column] = {
            "kernels": fit(rows),
            "median_error": round(statistics.median(errors), 4),
            "error": round(float(np.quantile(errors, 0.9)), 4),
        }
    return {"command": "python -m dse.targets.native_fit", "tables": found}


def renewed(stored: dict[str, Any], prefix: str) -> None:
    """Fit the kernels of `stored` tables anew whose names begin so; print how well they are
    predicted. How wide intervals are is that of all kernels, and stays."""
    layers = stored_layers()
    for column, table in stored["tables"].items():
        rows = [row for row in rows_of(column, layers) if row.calls[0].kernel.startswith(prefix)]
        if rows:
            table["kernels"] |= fit(rows)
            errors = [abs(error) for kernel in held_out(rows).values() for error in kernel]
            print(f"{column}: median {statistics.median(errors):.1%} of {len(rows)} layers")


def main() -> None:
    """Fit and write; print how well rows that were left out are predicted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", default="", help="only those whose names begin so")
    prefix = parser.parse_args().kernels
    path = Path(__file__).parent / "data" / "native_cycles.json"
    made = json.loads(path.read_text("utf-8")) if prefix else tables()
    if prefix:
        renewed(made, prefix)
    path.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for name, table in made["tables"].items() if not prefix else ():
        print(f"{name}: median {table['median_error']:.1%}, 90 % within {table['error']:.1%}")


if __name__ == "__main__":
    main()
