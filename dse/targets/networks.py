"""The MLPerf Tiny reference networks as graphs of shapes: what the cycle models are fitted to."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from importlib import resources

from dse.errors import TargetError, nearest
from dse.graph.ir import (
    Activation,
    Add,
    Conv2D,
    FullyConnected,
    Graph,
    Op,
    Pool2D,
    Reshape,
    Softmax,
    Tensor,
    Weight,
)

# Nominal multiply-accumulates, zero channels included (MLPerf Tiny; calibration README).
NOMINAL_MACS: Mapping[str, int] = {
    "kws": 2_656_768,
    "ic": 12_501_632,
    "vww": 7_489_664,
    "ad": 264_192,
    "sww": 826_368,
}


def rows(name: str) -> list[dict[str, str]]:
    """The rows of a CSV file of `dse/targets/data`; lines that start with # are its sources."""
    text = (resources.files("dse.targets") / "data" / name).read_text(encoding="utf-8")
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


@cache
def reference_graph(name: str) -> Graph:
    """The int8 network of that name (ad, ic, kws, vww, sww), shapes only; TargetError otherwise.

    Source: the .tflite files of mlcommons/tiny; the operator table is `data/networks.csv`.
    """
    if name not in NOMINAL_MACS:
        raise TargetError(f"unknown network '{name}'; {nearest(name, NOMINAL_MACS)}")
    table = [row for row in rows("networks.csv") if row["network"] == name]
    tensors = dict(_tensors(table))
    ops = tuple(_op(row) for row in table)
    return Graph(name, tensors, ops, "input", table[-1]["output"])


def _tensors(table: list[dict[str, str]]) -> Iterator[tuple[str, Tensor]]:
    yield "input", Tensor("input", _sizes(table[0]["input_shape"]), "int8")
    for row in table:
        yield row["output"], Tensor(row["output"], _sizes(row["output_shape"]), "int8")


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split("x"))


def _op(row: Mapping[str, str]) -> Op:
    name, inputs, output = row["operator"], tuple(row["inputs"].split()), row["output"]
    inner, outer = _sizes(row["input_shape"]), _sizes(row["output_shape"])
    activation = _activation(row["activation"])
    if row["kind"] == "add":
        return Add(name, inputs, output, activation)
    if row["kind"] == "reshape":
        return Reshape(name, inputs, output)
    if row["kind"] == "softmax":
        return Softmax(name, inputs, output)
    if row["kind"] == "fully_connected":
        weight = Weight((outer[-1], math.prod(inner)), 8)
        return FullyConnected(name, inputs, output, weight, None, activation)
    kernel, stride = _pair(row["kernel"]), _pair(row["stride"])
    top, bottom, left, right = (int(pad) for pad in row["padding"].split())
    padding = (top, bottom, left, right)
    if row["kind"] == "average_pool":
        return Pool2D(name, inputs, output, "average", kernel, stride, padding, activation)
    groups = inner[2] if row["kind"] == "depthwise" else 1
    weight = Weight((outer[2], *kernel, inner[2] // groups), 8)
    return Conv2D(name, inputs, output, weight, None, stride, padding, (1, 1), groups, activation)


def _pair(text: str) -> tuple[int, int]:
    first, second = _sizes(text)
    return first, second


def _activation(text: str) -> Activation:
    return "relu" if text == "relu" else "relu6" if text == "relu6" else "none"


@cache
def live_graph(name: str) -> Graph:
    """The reference network without its all-zero channels, as runtimes that skip them run it.

    Only the visual wake words network has any (`data/live_channels.csv`).
    """
    graph = reference_graph(name)
    live = {row["operator"]: int(row["live"]) for row in rows("live_channels.csv")
            if row["network"] == name}  # fmt: skip
    tensors, ops = dict(graph.tensors), []
    for op in graph.ops:
        inner = tensors[op.inputs[0]].channels
        outer = inner if isinstance(op, Pool2D | Reshape) else tensors[op.output].channels
        if isinstance(op, Conv2D):
            outer = inner if op.depthwise else live.get(op.name, op.weight.shape[0])
            depth = 1 if op.depthwise else inner
            weight = Weight((outer, *op.kernel, depth), 8)
            op = replace(op, weight=weight, groups=inner if op.depthwise else 1)
        elif isinstance(op, FullyConnected) and live:
            op = replace(op, weight=Weight((outer, inner), 8))
        tensor = tensors[op.output]
        tensors[op.output] = replace(tensor, shape=(*tensor.shape[:-1], outer))
        ops.append(op)
    return Graph(f"{name} live", tensors, tuple(ops), graph.input, graph.output)
