"""Rows of single kernels: emulated layers of CMSIS-NN and layers measured on a Cortex-M0+.

The emulated rows give the shape of the cycle model (coefficients at zero wait states on a
Cortex-M4); the measured layers give that of cores without the DSP extension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

from dse.graph.ir import Conv2D, FullyConnected, Graph, Tensor, Weight, op_macs
from dse.targets import counted
from dse.targets.cycles import features
from dse.targets.encoding import encode
from dse.targets.fitting import EMULATED, Fit, Row, fit
from dse.targets.networks import reference_graph, rows

PICO_CLOCK_HZ = 125e6
DSP_PARAMETERS = (
    "conv.mac",
    "conv.column",
    "conv.tap",
    "pointwise.mac",
    "depthwise.mac",
    "fully_connected.mac",
    "output",
    "add",
)
SCALAR_PARAMETERS = ("pointwise.mac", "depthwise.mac", "output", "fetch")


def _part(network: str, operators: str) -> tuple[dict[str, float], int]:
    """Summed features and multiply-accumulates of some operators ('all' or names) of a network."""
    graph, total, macs = reference_graph(network), dict[str, float](), 0
    for op in graph.ops:
        if operators != "all" and op.name not in operators.split():
            continue
        encoding = encode(op.weight, (8,)) if isinstance(op, Conv2D | FullyConnected) else None
        for name, amount in features(graph, op, encoding).items():
            total[name] = total.get(name, 0.0) + amount
        macs += op_macs(graph, op)
    return total, macs


@cache
def emulated_rows() -> tuple[Row, ...]:
    """Networks and layers of the MLPerf Tiny models on the emulated zero-wait-state Cortex-M4."""
    found = []
    for row in rows("emulated.csv"):
        counts, macs = _part(row["network"], row["operators"])
        of = reference_graph(row["network"]).macs if row["per"] == "network" else macs
        cycles = float(row["cycles_per_mac"]) * of
        part = "all" if row["level"] == "network" else row["source"]
        found.append(Row(EMULATED, row["network"], part, counts, macs, cycles))
    return tuple(found)


@cache
def layer_rows() -> tuple[Row, ...]:
    """Single layers of TFLM + CMSIS-NN on the Raspberry Pi Pico (Cortex-M0+).

    The first layer, a depthwise one with multiplier 8, runs another kernel and is left out.
    """
    found = []
    for row in rows("layers.csv"):
        if row["kind"] == "depthwise" and row["cin"] == "1":
            continue
        graph = _layer(row)
        op = graph.ops[0]
        assert isinstance(op, Conv2D)
        counts = features(graph, op, encode(op.weight, (8,)))
        name = f"{row['kind']} {row['out_h']}x{row['out_w']}x{row['cin']} to {row['cout']}"
        cycles = float(row["time_us"]) * PICO_CLOCK_HZ / 1e6
        found.append(Row("Raspberry Pi Pico", name, row["kind"], counts, int(row["macs"]), cycles))
    return tuple(found)


def _layer(row: Mapping[str, str]) -> Graph:
    size = (int(row["out_h"]), int(row["out_w"]))
    inner, outer, kernel = int(row["cin"]), int(row["cout"]), int(row["kernel"])
    groups = inner if row["kind"] == "depthwise" else 1
    pad = kernel // 2
    op = Conv2D(
        "layer",
        ("in",),
        "out",
        Weight((outer, kernel, kernel, inner // groups), 8),
        padding=(pad, pad, pad, pad),
        groups=groups,
    )
    tensors = {
        "in": Tensor("in", (*size, inner), "int8"),
        "out": Tensor("out", (*size, outer), "int8"),
    }
    return Graph("layer", tensors, (op,), "in", "out")


@cache
def fit_emulated() -> Fit:
    """CMSIS-NN on the emulated Cortex-M4: cycles a feature; no measured row is used."""
    found = fit(emulated_rows(), DSP_PARAMETERS, counted.CMSIS_FIXED)
    # A product of two tensors was neither measured nor emulated: taken as a sum.
    return Fit({**found.coefficients, "mul": found.coefficients["add"]}, found.scales)


def fit_scalar(known: Sequence[Row] | None = None) -> Fit:
    """CMSIS-NN on Cortex-M0+ from single layers, all or those given.

    With one system its factor is 1: the coefficients carry it.
    """
    layers = [replace(row, system=EMULATED) for row in (layer_rows() if known is None else known)]
    return fit(layers, SCALAR_PARAMETERS, {"op": counted.M0_OPERATOR})
