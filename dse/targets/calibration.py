"""Fit the cycle tables to the measured rows: `python -m dse.targets.calibration`.

Reads the rows of `dse/targets/data/*.csv`, writes `data/runtime_cycles.json` and
`reports/calibration.md`. With `--check` it writes nothing and fails when the stored tables are not
what the fit gives. No coefficient is set by hand.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from dse.targets import counted
from dse.targets.core import Family
from dse.targets.crossvalidation import QUANTILE
from dse.targets.fitting import Row, dot, mac_only
from dse.targets.hierarchy import SPREAD, Posterior, fit
from dse.targets.layer_rows import fit_emulated, fit_scalar, layer_rows
from dse.targets.measured import (
    SMALL_CACHE_STREAM,
    SMALL_CACHE_WAITS,
    STREAM,
    System,
    component,
    graph_of,
    kernel_cycles,
    measured,
    parts_of,
)

INPUTS = ("measured.csv", "layers.csv", "emulated.csv", "networks.csv", "live_channels.csv")
UNMEASURED = "unmeasured"
NETWORKS = ("ad", "ic", "kws", "vww")
COVERAGE = 0.9
# Which runtime and version a backend's cycles are those of.
RUNTIMES: Mapping[str, tuple[str, str]] = {
    "cmsis-nn": ("cmsis-nn", "static"),
    "tflm": ("cmsis-nn", "tflm"),
    "x-cube-ai-7.3": ("x-cube-ai", "7.3"),
    "x-cube-ai-9": ("x-cube-ai", "9.0"),
    "x-cube-ai-10": ("x-cube-ai", "10"),
}
FAMILIES: tuple[Family, ...] = ("m0plus", "m4", "m33", "m7", "m55", "m85")
# Boards of the catalogue by the name under which MLPerf Tiny lists them.
BOARDS: Mapping[str, str] = {
    "nucleo_l4r5zi": "NUCLEO-L4R5ZI",
    "nucleo_l4r5zi_p": "NUCLEO-L4R5ZI",
    "nucleo_h7a3zi": "NUCLEO-H7A3ZI-Q",
    "nucleo_u575zi": "NUCLEO-U575ZI-Q",
    "b_u585i_iot02a": "B-U585I-IOT02A",
    "nucleo_g0b1re": "NUCLEO-G0B1RE",
    "disco_f746ng": "DISCO-F746NG",
    "nrf5340": "nRF5340 DK",
}
# Helium kernels were measured on one Cortex-M85 only; a Cortex-M55 takes 0.31 to 0.38 cycles a
# multiply-accumulate in the dot loop where the Cortex-M85 networks took 0.33 to 0.96 (core timing
# notes): the same multipliers, and this much more uncertainty in log cycles.
M55_DEVIATION = 0.35
SOURCE = (
    "hierarchical fit of MLPerf Tiny v0.5 to v1.2 rows (runtime, version, core, board) over "
    "emulated CMSIS-NN kernels; interval: 90 % (reports/calibration.md)"
)


@cache
def posterior() -> Posterior:
    """The fit to all measured rows: what the stored tables are made of."""
    return fit(measured())


def leave_one_layer_out() -> list[tuple[Row, float, float]]:
    """Every Cortex-M0+ layer: row, cycles modelled from other shapes, and those of MACs only."""
    found = []
    for row in layer_rows():
        others = [other for other in layer_rows() if other.network != row.network]
        modelled = fit_scalar(others).shape_cycles(row)
        found.append((row, modelled, mac_only(others) * row.macs))
    return found


def half_width(errors: Sequence[float]) -> float:
    """The relative half-width that covers 90 % of the errors (order statistic, upwards)."""
    sizes = sorted(abs(error) for error in errors)
    return sizes[min(len(sizes) - 1, math.ceil(COVERAGE * (len(sizes) + 1)) - 1)]


def tables() -> dict[str, Any]:
    """All tables as they are stored: computed, nothing read from the stored file."""
    found: dict[str, Any] = {}
    for backend in RUNTIMES:
        for family in FAMILIES:
            if family == "m0plus" and not backend.startswith("x-cube-ai"):
                found[f"{backend}/{family}"] = _scalar_table(backend)
            else:
                found[f"{backend}/{family}"] = _family_table(backend, family)
        boards = {row.system.board: row.system.family for row in measured()}
        for board, name in BOARDS.items():
            scalar = boards[name] == "m0plus" and not backend.startswith("x-cube-ai")
            if not scalar:
                found[f"{backend}/{board}"] = _table(backend, name, boards[name], _waits(name))
    command = "python -m dse.targets.calibration"
    return {"command": command, "inputs": list(INPUTS), "tables": _rounded(found)}


def _waits(board: str) -> int:
    return SMALL_CACHE_WAITS.get(board, 0)


def _family_table(backend: str, family: Family) -> dict[str, Any]:
    """A board that was not measured: its flash stalls follow from its wait states and cache."""
    return _table(backend, f"{UNMEASURED} {family}", family, 0)


def _table(backend: str, board: str, family: Family, waits: int) -> dict[str, Any]:
    runtime, version = RUNTIMES[backend]
    helium = family in ("m55", "m85")
    system = System(board, family, runtime, "mve" if helium and runtime == "cmsis-nn" else version)
    base, fitted = kernel_cycles(runtime), posterior()
    scaled = {
        name: cost * fitted.multiplier(system, component(name)) for name, cost in base.items()
    }
    stream = fitted.multiplier(system, "stream")
    scaled["fully_connected.mac"] += STREAM * stream
    stall = {
        kernel: counted.STALL[kernel] * fitted.multiplier(system, f"{kernel}.mac")
        for kernel in ("conv", "pointwise", "depthwise")
    }
    each_wait = (SMALL_CACHE_STREAM - STREAM) / SMALL_CACHE_WAITS["NUCLEO-L4R5ZI"]
    stall["fully_connected"] = each_wait * stream
    # A measured board's own effects hold its waits, unless the fit took them from its cache.
    unmeasured = board.startswith(UNMEASURED)
    if not waits and not (unmeasured and family != "m0plus"):
        stall = {}
    found = counted.with_sub_byte(scaled, "dsp")
    extra = M55_DEVIATION if family == "m55" else 0.0
    return _stored(version, found, stall, _half_width(system, waits, extra), SOURCE)


def _half_width(system: System, waits: int, extra: float) -> float:
    """Relative half-width of the 90 % interval, the mean over the four networks."""
    runtime, version = system.runtime, system.version
    base = kernel_cycles(runtime)
    widths = []
    for network in NETWORKS:
        parts = parts_of(graph_of(network, runtime, version), base, waits)
        deviation = math.hypot(posterior().predict(system, parts).deviation, extra)
        widths.append(math.expm1(QUANTILE * deviation))
    return sum(widths) / len(widths)


def _scalar_table(backend: str) -> dict[str, Any]:
    """Cores without the DSP extension: the layers of the Raspberry Pi Pico."""
    scalar, dsp = fit_scalar().coefficients, fit_emulated().coefficients
    m4 = sum(dot(dsp, row.features) for row in layer_rows())
    ratio = sum(dot(scalar, row.features) for row in layer_rows()) / m4
    table = dict(counted.scalar_table(scalar, dsp, ratio))
    if backend == "tflm":
        table["op"] = counted.M0_OPERATOR
    errors = [modelled / row.cycles - 1 for row, modelled, _ in leave_one_layer_out()]
    found = counted.with_sub_byte(table, "m0")
    # A board that is not the Pico: its own factor is as uncertain as any board's.
    error = math.hypot(half_width(errors), math.expm1(QUANTILE * SPREAD["board"]))
    fetch = {"rpi_pico": scalar["fetch"]}
    return _stored("layers", found, {}, error, counted.SCALAR_SOURCE, fetch)


def _stored(
    version: str,
    found: counted.Coefficients,
    stall: Mapping[str, float],
    error: float,
    source: str,
    fetch: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    return {
        "version": version,
        "coefficients": dict(sorted(found.value.items())),
        "low": dict(sorted(found.low.items())),
        "high": dict(sorted(found.high.items())),
        "stall": dict(stall),
        "error": error,
        "board_fetch": dict(fetch or {}),
        "source": source,
    }


def _rounded(value: Any) -> Any:
    """Five significant digits: enough for any use, the same on every machine."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value


def stored_file() -> Path:
    """Where the tables lie in the source tree."""
    return Path(__file__).parent / "data" / "runtime_cycles.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write tables and report, or compare them with `--check`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dse.targets.calibration", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    parser.add_argument("--report", type=Path, default=Path("reports/calibration.md"))
    options = parser.parse_args(arguments)
    text = json.dumps(tables(), indent=1) + "\n"
    if options.check:
        same = stored_file().read_text("utf-8") == text
        print("the stored tables are what the fit gives" if same else "the stored tables differ")
        return 0 if same else 1
    stored_file().write_text(text, "utf-8")
    from dse.targets.calibration_report import report

    page = report()
    options.report.parent.mkdir(parents=True, exist_ok=True)
    options.report.write_text(page, "utf-8")
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
