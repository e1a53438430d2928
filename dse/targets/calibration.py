"""Fit the cycle tables to the measured rows: `python -m dse.targets.calibration`.

Reads the rows of `dse/targets/data/*.csv`, writes `data/cycles.json` and `reports/calibration.md`.
With `--check` it writes nothing and fails when the stored tables are not what the fit gives.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from dse.graph.ir import Conv2D, FullyConnected, Graph, Tensor, Weight, op_macs
from dse.targets import counted
from dse.targets.cycles import features, kernel_class
from dse.targets.encoding import encode
from dse.targets.fitting import EMULATED, Fit, Row, dot, fit, mac_only
from dse.targets.networks import reference_graph, rows

CMSIS_RUNTIMES = ("microTVM + CMSIS-NN", "TFLM + CMSIS-NN")
# Boards of the catalogue whose scale was measured with this very kernel library.
MEASURED_BOARDS = {"NUCLEO-L4R5ZI": "nucleo_l4r5zi"}
# Wait states of systems with a small flash cache; the others are taken as having none.
STALL_SYSTEM = "NUCLEO-L4R5ZI"
WAIT_STATES = {STALL_SYSTEM: 5}
COVERAGE = 0.9
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


@dataclass(frozen=True)
class Error:
    """A left-out row: what was measured and what the two models say."""

    system: str
    network: str
    measured: float
    modelled: float
    mac_only: float

    @property
    def relative(self) -> float:
        """Modelled over measured, less one."""
        return self.modelled / self.measured - 1

    @property
    def mac_only_relative(self) -> float:
        """The same of the MAC-only model."""
        return self.mac_only / self.measured - 1


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


def _stalls(network: str, system: str) -> float:
    """Cycles that a network waits for the flash of a system with a small cache."""
    graph = reference_graph(network)
    each = [counted.STALL.get(kernel_class(op), 0.0) * op_macs(graph, op) for op in graph.ops]
    return sum(each) * WAIT_STATES.get(system, 0)


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
def measured_rows() -> tuple[Row, ...]:
    """CMSIS-NN networks on hardware: the first submission of each board (later ones repeat it)."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows("measured.csv"):
        key = row["board"], row["network"]
        if row["runtime"] in CMSIS_RUNTIMES and key not in found:
            counts, macs = _part(row["network"], "all")
            cycles = float(row["latency_ms"]) * float(row["clock_mhz"]) * 1e3
            stalls = _stalls(row["network"], row["board"])
            found[key] = Row(row["board"], row["network"], "all", counts, macs, cycles, stalls)
    return tuple(found.values())


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
def dsp_rows() -> tuple[Row, ...]:
    """Everything the fit for cores with the DSP extension rests on."""
    return (*emulated_rows(), *measured_rows())


def fit_dsp(known: Sequence[Row] | None = None) -> Fit:
    """CMSIS-NN on cores with the DSP extension, from all rows or those given."""
    found = fit(dsp_rows() if known is None else known, DSP_PARAMETERS, counted.CMSIS_FIXED)
    # A product of two tensors was neither measured nor emulated: taken as a sum.
    return Fit({**found.coefficients, "mul": found.coefficients["add"]}, found.scales)


def fit_scalar(known: Sequence[Row] | None = None) -> Fit:
    """CMSIS-NN on Cortex-M0+ from single layers, all or those given.

    With one system its factor is 1: the coefficients carry it.
    """
    layers = [replace(row, system=EMULATED) for row in (layer_rows() if known is None else known)]
    return fit(layers, SCALAR_PARAMETERS, {"op": counted.M0_OPERATOR})


def leave_one_system_out() -> list[Error]:
    """Every measured row predicted without its system; the factor is the mean of the others."""
    errors = []
    for row in measured_rows():
        found = fit_dsp([r for r in dsp_rows() if r.system != row.system])
        others = [r for r in _networks() if r.system != row.system]
        errors.append(_error(row, found.shape_cycles(row) * found.mean_scale, others))
    return errors


def leave_one_network_out() -> list[Error]:
    """Every measured row predicted without its network on any system, its system's factor known.

    Emulated single layers stay: a kernel class that only this network holds is known from them.
    """
    errors = []
    for row in measured_rows():
        found = fit_dsp(
            [r for r in dsp_rows() if not (r.network == row.network and r.part == "all")]
        )
        others = [r for r in _networks() if r.network != row.network and r.system == row.system]
        errors.append(_error(row, found.shape_cycles(row) * found.scales[row.system], others))
    return errors


def leave_one_layer_out() -> list[Error]:
    """Every Cortex-M0+ layer predicted from the layers of other shapes."""
    errors = []
    for row in layer_rows():
        others = [r for r in layer_rows() if r.network != row.network]
        errors.append(_error(row, fit_scalar(others).shape_cycles(row), others))
    return errors


def _networks() -> list[Row]:
    return [row for row in (*emulated_rows(), *measured_rows()) if row.part == "all"]


def _error(row: Row, modelled: float, others: Sequence[Row]) -> Error:
    return Error(row.system, row.network, row.cycles, modelled, mac_only(others) * row.macs)


def half_width(errors: Sequence[Error]) -> float:
    """The relative half-width that covers 90 % of the left-out rows (order statistic, upwards)."""
    sizes = sorted(abs(error.relative) for error in errors)
    return sizes[min(len(sizes) - 1, math.ceil(COVERAGE * (len(sizes) + 1)) - 1)]


def m7_ratio() -> tuple[float, float, Mapping[str, float]]:
    """Cycles on Cortex-M7 over those on the NUCLEO-L4R5ZI, same runtime and version and network.

    Median over all pairs, the relative half-width that covers 90 % of them, and medians a board.
    """
    totals: dict[tuple[str, str, str], list[float]] = {}
    for row in rows("measured.csv"):
        key = row["runtime"], row["network"], row["board"]
        cycles = float(row["latency_ms"]) * float(row["clock_mhz"])
        totals.setdefault(key, []).append(cycles)
    mean = {key: statistics.fmean(values) for key, values in totals.items()}
    ratios: dict[str, list[float]] = {}
    for (runtime, network, board), cycles in mean.items():
        base = mean.get((runtime, network, STALL_SYSTEM))
        if base is not None and board in ("DISCO-F746NG", "NUCLEO-H7A3ZI-Q"):
            ratios.setdefault(board, []).append(cycles / base)
    every = [ratio for found in ratios.values() for ratio in found]
    middle = statistics.median(every)
    spread = sorted(abs(ratio / middle - 1) for ratio in every)
    width = spread[math.ceil(COVERAGE * len(spread)) - 1]
    return middle, width, {board: statistics.median(found) for board, found in ratios.items()}


def tables() -> dict[str, Any]:
    """All cycle tables as they are stored: computed, nothing read from the stored file."""
    dsp, scalar = fit_dsp(), fit_scalar()
    loso, lono = half_width(leave_one_system_out()), leave_one_network_out()
    base, stall = dsp.mean_scale, dict(counted.STALL)
    ratio, spread, _ = m7_ratio()
    m7_scale = ratio * _slowdown(dsp)
    boards = {MEASURED_BOARDS[name]: dsp.scales[name] for name in MEASURED_BOARDS}
    widths = {
        MEASURED_BOARDS[name]: max(abs(e.relative) for e in lono if e.system == name)
        for name in MEASURED_BOARDS
    }
    scalar_all = counted.scalar_table(
        scalar.coefficients, dsp.coefficients, _m0plus_over_m4(dsp, scalar)
    )
    layer = half_width(leave_one_layer_out())
    fetch = {"rpi_pico": scalar.coefficients["fetch"]}
    found: dict[str, Any] = {}
    for family in ("m4", "m33"):
        found[f"cmsis-nn/{family}"] = _table(
            counted.with_sub_byte(dsp.coefficients, "dsp"),
            base,
            stall,
            loso,
            counted.CMSIS_SOURCE,
            boards,
            widths,
        )
    found["cmsis-nn/m7"] = _table(
        counted.with_sub_byte(dsp.coefficients, "dsp"),
        m7_scale,
        {},
        _joined(loso, spread),
        counted.M7_SOURCE,
    )
    found["cmsis-nn/m0plus"] = _table(
        counted.with_sub_byte(scalar_all, "m0"),
        1.0,
        {},
        _joined(layer, loso),
        counted.SCALAR_SOURCE,
        {"rpi_pico": 1.0},
        {"rpi_pico": layer},
        fetch,
    )
    for family in counted.FAMILIES:
        m7 = family == "m7"
        for backend in ("native", "native-dsp") if family in counted.DSP_FAMILIES else ("native",):
            found[f"{backend}/{family}"] = _table(
                counted.native_table(backend, family, dsp.coefficients),
                m7_scale if m7 else 1.0,
                stall if family in ("m3", "m4", "m33") else {},
                _joined(counted.NATIVE_ERROR, spread) if m7 else counted.NATIVE_ERROR,
                counted.NATIVE_SOURCE,
                board_fetch=fetch if family == "m0plus" else None,
            )
    return {
        "command": "python -m dse.targets.calibration",
        "inputs": [
            "measured.csv",
            "layers.csv",
            "emulated.csv",
            "instructions.csv",
            "networks.csv",
        ],
        "tables": _rounded(found),
    }


def _slowdown(dsp: Fit) -> float:
    """Cycles of the NUCLEO-L4R5ZI over those of the emulated core: its factor and its flash."""
    logs = [
        math.log(row.cycles / dot(dsp.coefficients, row.features))
        for row in measured_rows()
        if row.system == STALL_SYSTEM
    ]
    return math.exp(sum(logs) / len(logs))


def _joined(first: float, second: float) -> float:
    """Two independent relative errors as one."""
    return math.hypot(first, second)


def _m0plus_over_m4(dsp: Fit, scalar: Fit) -> float:
    """How many more cycles Cortex-M0+ takes, over the layers measured on it."""
    m4 = sum(dot(dsp.coefficients, row.features) for row in layer_rows())
    return sum(dot(scalar.coefficients, row.features) for row in layer_rows()) / m4


def _table(
    found: counted.Coefficients,
    scale: float,
    stall: Mapping[str, float],
    error: float,
    source: str,
    board_scale: Mapping[str, float] | None = None,
    board_error: Mapping[str, float] | None = None,
    board_fetch: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    return {
        "version": counted.VERSION,
        "coefficients": dict(sorted(found.value.items())),
        "low": dict(sorted(found.low.items())),
        "high": dict(sorted(found.high.items())),
        "scale": scale,
        "stall": stall,
        "error": error,
        "board_scale": dict(board_scale or {}),
        "board_error": dict(board_error or {}),
        "board_fetch": dict(board_fetch or {}),
        "source": source,
    }


def _rounded(value: Any) -> Any:
    """Six significant digits: enough for any use, the same on every machine."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value


def stored_file() -> Path:
    """Where the tables lie in the source tree."""
    return Path(__file__).parent / "data" / "cycles.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write tables and report, or compare them with `--check`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dse.targets.calibration", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    parser.add_argument("--report", type=Path, default=Path("reports/calibration.md"))
    options = parser.parse_args(arguments)
    from dse.targets.calibration_report import report

    text, page = json.dumps(tables(), indent=1) + "\n", report()
    if options.check:
        same = stored_file().read_text("utf-8") == text
        print("the stored tables are what the fit gives" if same else "the stored tables differ")
        return 0 if same else 1
    stored_file().write_text(text, "utf-8")
    options.report.parent.mkdir(parents=True, exist_ok=True)
    options.report.write_text(page, "utf-8")
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
