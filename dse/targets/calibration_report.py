"""The page that `python -m dse.targets.calibration` writes: the fit's error beside MAC-only."""

from __future__ import annotations

from collections.abc import Sequence

from dse.targets.calibration import (
    Error,
    fit_dsp,
    fit_scalar,
    half_width,
    leave_one_layer_out,
    leave_one_network_out,
    leave_one_system_out,
    m7_ratio,
    tables,
)


def mean(errors: Sequence[float]) -> float:
    """Mean of the absolute values."""
    return sum(abs(error) for error in errors) / len(errors)


def report() -> str:
    """The calibration report in Markdown."""
    return "\n".join([*_head(), *_systems(), *_layers(), *_m7(), *_intervals(), *_scope(), ""])


def _head() -> list[str]:
    dsp, scalar = fit_dsp(), fit_scalar()
    lines = [
        "# Calibration of the cycle models",
        "",
        "Made by `python -m dse.targets.calibration` from `dse/targets/data/*.csv`; it also writes",
        "`dse/targets/data/cycles.json`. A test fits again and compares.",
        "",
        "## Coefficients of CMSIS-NN (cycles, zero wait states)",
        "",
        "| feature | DSP cores | Cortex-M0+ |",
        "| --- | --- | --- |",
    ]
    for name in sorted({*dsp.coefficients, *scalar.coefficients}):
        cells = [f"{found.coefficients[name]:.2f}" if name in found.coefficients else "-"
                 for found in (dsp, scalar)]  # fmt: skip
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    lines += ["", "## Factor of each system over the emulated core", "", "| system | factor |",
              "| --- | --- |"]  # fmt: skip
    return [*lines, *(f"| {name} | {scale:.3f} |" for name, scale in dsp.scales.items()), ""]


def _systems() -> list[str]:
    lines = ["## DSP cores: networks that were left out", ""]
    for title, errors in (
        ("A system left out (its factor: the mean of the others')", leave_one_system_out()),
        ("A network left out (the system's factor is known)", leave_one_network_out()),
    ):
        lines += [f"### {title}", "", *_table(errors), ""]
    return lines


def _layers() -> list[str]:
    errors = leave_one_layer_out()
    return ["## Cortex-M0+ (Raspberry Pi Pico): layers that were left out", "", *_table(errors), ""]


def _table(errors: Sequence[Error]) -> list[str]:
    lines = ["| system | left out | measured Mcycles | per operator | MAC only |",
             "| --- | --- | --- | --- | --- |"]  # fmt: skip
    lines += [
        f"| {e.system} | {e.network} | {e.measured / 1e6:.3f} | {100 * e.relative:+.1f} % "
        f"| {100 * e.mac_only_relative:+.1f} % |"
        for e in errors
    ]
    ours = mean([e.relative for e in errors])
    macs = mean([e.mac_only_relative for e in errors])
    return [
        *lines,
        "",
        f"Mean error {100 * ours:.1f} %, MAC only {100 * macs:.1f} %; 90 % of the rows lie within "
        f"{100 * half_width(errors):.1f} %.",
    ]


def _m7() -> list[str]:
    ratio, spread, boards = m7_ratio()
    return [
        "## Cortex-M7 over NUCLEO-L4R5ZI, same runtime, version and network",
        "",
        f"Median {ratio:.3f}; 90 % of the pairs lie within {100 * spread:.0f} %. By board: "
        + ", ".join(f"{board} {value:.3f}" for board, value in boards.items())
        + ".",
        "",
    ]


def _intervals() -> list[str]:
    lines = [
        "## Intervals that this gives",
        "",
        "Half-width of a latency, before what single coefficients add (sub-byte weights, softmax);",
        "smaller where the very board was measured.",
        "",
        "| backend and core | factor | half-width | measured boards |",
        "| --- | --- | --- | --- |",
    ]
    for name, table in tables()["tables"].items():
        boards = [
            f"{board}: factor {scale:.3f}, {100 * table['board_error'][board]:.0f} %"
            for board, scale in table["board_scale"].items()
        ]
        lines.append(
            f"| {name} | {table['scale']:.3f} | {100 * table['error']:.0f} % "
            f"| {'; '.join(boards) or '-'} |"
        )
    return [*lines, ""]


def _scope() -> list[str]:
    return [
        "## What this is not",
        "",
        "- Three measured systems with CMSIS-NN, four networks each, and their emulation: not all",
        "  of MLPerf Tiny. HALE, Plumerai, X-CUBE-AI and ONNC are other runtimes and are used only",
        "  for the Cortex-M7 ratio. TFLM 2.3.1 runs reference kernels in part and is left out.",
        "- The factor of a board that was not measured follows its wait states and cache; the",
        "  intervals hold what that may miss.",
        "- A network left out still has its single emulated layers among the rows: fully connected",
        "  layers, say, are only in AD. Repeats of a submission by others are not counted again.",
        "- What no row tells (a tail of one to three, pools, softmax, copies, a call) is assumed,",
        "  named in `dse/targets/counted.py`, and has its own low and high.",
        "- `native` and `native-dsp` rest on instruction counts of loops, not on built networks:",
        "  emulated designs took 0.5 to 2.1 times as long, which their interval holds.",
        "  `dse verify` gives the figure of one design.",
        "- Cortex-M0+: one board, depthwise and 1x1 layers only.",
    ]
