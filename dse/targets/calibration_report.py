"""The page that `python -m dse.targets.calibration` writes: errors on rows that were left out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from dse.targets.calibration import RUNTIMES, leave_one_layer_out, posterior, tables
from dse.targets.crossvalidation import (
    Leave,
    LeftOut,
    coverage,
    energy_errors,
    left_out,
    mean_error,
    rank_correlations,
)
from dse.targets.hierarchy import NOISE, SPREAD
from dse.targets.measured import COMPONENTS, RUN_CLOCK_HZ, System, measured
from dse.targets.power import Profile, mean_power_w, power_rows


def mean(errors: Iterable[float]) -> float:
    """Mean of the absolute values."""
    sizes = [abs(error) for error in errors]
    return sum(sizes) / len(sizes)


def report() -> str:
    """The calibration report in Markdown."""
    parts = (_head(), _summary(), _boards(), _rows(), _unknown(), _power(), _profiles(), _layers(),
             _speeds(), _intervals(), _scope())  # fmt: skip
    return "\n".join([*(line for part in parts for line in part), ""])


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _table(head: Sequence[str], lines: Iterable[Sequence[object]]) -> list[str]:
    rule = ["---"] * len(head)
    return [f"| {' | '.join(map(str, line))} |" for line in (head, rule, *lines)] + [""]


def _scored(leave: Leave, model: str = "components") -> list[LeftOut]:
    found = left_out(leave, "macs" if model == "macs" else "components")
    return [each for each in found if each.known_runtime]


def _head() -> list[str]:
    scored = sum(row.score for row in measured())
    boards = {row.system.board for row in measured() if row.score}
    return [
        "# Calibration of the cycle and energy models",
        "",
        "Made by `python -m dse.targets.calibration` from `dse/targets/data/*.csv`; it writes the",
        "coefficients, `dse/targets/data/runtime_cycles.json`, too. A test fits again and",
        f"compares. {scored} rows: MLPerf Tiny v0.5 to v1.2, int8, Cortex-M without accelerator, "
        f"{len(boards)} boards.",
        "",
    ]


def _summary() -> list[str]:
    lines = []
    for title, leave in (
        ("a board left out", "board"),
        ("a network type left out", "network"),
        ("a network type left out everywhere", "network everywhere"),
    ):
        ours, macs = _scored(leave), _scored(leave, "macs")  # type: ignore[arg-type]
        ranks = rank_correlations(ours)
        rows = sum(count for _, count in ranks.values())
        rank = sum(value * count for value, count in ranks.values()) / rows
        lines.append(
            (title, len(ours), _percent(mean_error(ours)), _percent(mean_error(macs)),
             _percent(coverage(ours)), f"{rank:.3f}")
        )  # fmt: skip
    given, modelled = energy_errors("network")
    return [
        "## Errors on rows that were left out",
        "",
        *_table(
            ("left out", "rows", "mean error", "MAC only", "in the 90 % interval",
             "rank correlation within a board, mean"),
            lines,
        ),
        f"Energy: {_percent(mean(given))} with the measured latency ({len(given)} rows), "
        f"{_percent(mean(modelled))} with the latency of a left-out board ({len(modelled)} rows).",
        "",
        "*A board left out*: no row of the board is in the fit. Scored are its rows whose runtime",
        "and version were measured on another board; the others are listed below. *A network type",
        "left out*: no row of this network on the board, and none of this network with the runtime",
        "(any version) on any board. *Everywhere*: no row of this network at all, so that only",
        "emulated layers tell its kernels. The MAC-only model gets the same rows and the same",
        "effects of runtime, version, core and board, with one cost a multiply-accumulate.",
        "",
        *_clocks(),
    ]  # fmt: skip


def _clocks() -> list[str]:
    """What was taken for the clock, and the error with clocks as rows list them."""
    listed = [each for each in left_out("board", listed=True) if each.known_runtime]
    ran = ", ".join(f"{board} at {hz / 1e6:g} MHz" for board, hz in RUN_CLOCK_HZ.items())
    return [
        f"Clocks are those that rows list, but for {ran}. Its rows list the",
        "chip's maximum, 150 MHz, while mbed OS, under which they were built, sets the core to",
        "100 MHz (CLK_HF0 in `cycfg_system.c` of its board support). What showed it: left out,",
        "all its runtimes seem 1.5 times as slow as on boards of the same core and cache. With",
        f"clocks as listed, the error of a left-out board is {_percent(mean_error(listed))}, with",
        f"{_percent(coverage(listed))} of the rows in their intervals.",
        "",
    ]


def _boards() -> list[str]:
    ours, macs = _scored("board"), _scored("board", "macs")
    ranks = rank_correlations(ours)
    lines = []
    for board, (rank, count) in ranks.items():
        here = [each for each in ours if each.row.system.board == board]
        theirs = [each for each in macs if each.row.system.board == board]
        bias = sum(each.error for each in here) / count
        lines.append((board, count, _percent(mean_error(here)), f"{100 * bias:+.1f} %",
                      _percent(mean_error(theirs)), f"{rank:.3f}"))  # fmt: skip
    head = ("board left out", "rows", "mean error", "bias", "MAC only", "rank correlation")
    below = [board for board, (rank, _) in ranks.items() if rank < 0.95]
    note = f"Below 0.95 in rank: {', '.join(below)}; networks of nearly equal time swap there."
    return ["## By board", "", *_table(head, lines), *([note, ""] if below else [])]


def _rows() -> list[str]:
    errors: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    for each in _scored("board"):
        system = each.row.system
        errors[system.board, system.runtime, system.version][each.row.network] = each.error
    networks = ("ad", "ic", "kws", "vww")
    lines = [
        (*key, *(f"{100 * row[n]:+.0f} %" if n in row else "-" for n in networks))
        for key, row in sorted(errors.items())
    ]
    head = ("board left out", "runtime", "version", *networks)
    return ["### Every system (repeats of a submission are counted above, shown once)", "",
            *_table(head, lines)]  # fmt: skip


def _unknown() -> list[str]:
    rest = [each for each in left_out("board") if not each.known_runtime]
    groups: dict[tuple[str, ...], list[LeftOut]] = defaultdict(list)
    for each in rest:
        system = each.row.system
        groups[system.board, system.runtime, system.version].append(each)
    lines = [
        (*key, len(found), _percent(mean_error(found)), _percent(coverage(found)))
        for key, found in sorted(groups.items())
    ]
    return [
        "### Rows whose runtime was measured on no other board",
        "",
        "Not in the mean: without a row of the runtime its speed is a guess, and the interval says",
        "so.",
        "",
        *_table(("board", "runtime", "version", "rows", "mean error", "in the interval"), lines),
    ]


def _power() -> list[str]:
    lines = []
    for title, leave in (
        ("the network, on this board in any runtime", "network"),
        ("the runtime in this version, on this board", "version"),
    ):
        given, modelled = energy_errors(leave)
        lines.append((title, len(given), _percent(mean(given)), len(modelled),
                      _percent(mean(modelled))))  # fmt: skip
    return [
        "## Energy",
        "",
        "Power of a row's profile (board, supply, regulator, clock, firmware: mbed OS, Zephyr or",
        "the vendor's) is the geometric mean of the profile's other rows; energy is power times",
        "latency, measured or modelled with the whole board left out. Rows without others in their",
        "profile are not counted.",
        "",
        *_table(("left out of the power", "rows", "measured latency", "rows",
                 "latency of a left-out board"), lines),
    ]  # fmt: skip


def _profiles() -> list[str]:
    groups: dict[Profile, list[float]] = defaultdict(list)
    for row in power_rows():
        groups[row.profile].append(row.power_w)
    lines = []
    for profile, powers in groups.items():
        each = [power / profile.supply_v / profile.clock_hz * 1e12 for power in powers]
        middle = mean_power_w([row for row in power_rows() if row.profile == profile])
        lines.append(
            (profile.board, f"{profile.supply_v:g} V {profile.regulator}",
             f"{profile.clock_hz / 1e6:g} MHz", profile.firmware, len(powers),
             f"{middle * 1e3:.1f} mW", f"{min(each):.0f} to {max(each):.0f} uA/MHz")
        )  # fmt: skip
    head = ("board", "supply", "clock", "firmware", "rows", "power while inferring", "current")
    return ["### Profiles", "", *_table(head, lines)]


def _layers() -> list[str]:
    found = leave_one_layer_out()
    ours = mean(modelled / row.cycles - 1 for row, modelled, _ in found)
    macs = mean(mac / row.cycles - 1 for row, _, mac in found)
    return [
        "## Cortex-M0+ (Raspberry Pi Pico): layers that were left out",
        "",
        f"{len(found)} layers, each from the layers of other shapes: mean error {_percent(ours)}, "
        f"MAC only {_percent(macs)}.",
        "",
    ]


def _speeds() -> list[str]:
    systems = sorted({row.system for row in measured() if row.score}, key=_name)
    fitted = posterior()
    short = [name.removesuffix(".mac") for name in COMPONENTS]
    lines = [
        (*_name(system), *(f"{fitted.multiplier(system, part):.2f}" for part in COMPONENTS))
        for system in systems
    ]
    spreads = ", ".join(f"{name} {value:g}" for name, value in SPREAD.items())
    return [
        "## Speeds found: cycles over those of CMSIS-NN on the emulated Cortex-M4",
        "",
        *_table(("board", "runtime", "version", *short), lines),
        f"Widths of the priors in log cycles: {spreads}; unexplained {NOISE:g}.",
        "",
        "Weights in RAM instead of flash take the column *stream* away: it is what fully connected",
        f"weights wait for in flash, over {0.4:g} cycles a byte (0.625 on the NUCLEO-L4R5ZI).",
        "",
    ]


def _name(system: System) -> tuple[str, str, str]:
    return system.board, system.runtime, system.version


def _intervals() -> list[str]:
    stored = tables()["tables"]
    places = list(dict.fromkeys(key.partition("/")[2] for key in stored))
    cell: Callable[[str, str], str] = lambda backend, place: (  # noqa: E731
        f"{100 * stored[f'{backend}/{place}']['error']:.0f} %"
        if f"{backend}/{place}" in stored
        else "as its core"
    )
    lines = [(place, *(cell(backend, place) for backend in RUNTIMES)) for place in places]
    return [
        "## Intervals that this gives",
        "",
        "Half-width of a latency (90 %), before what single coefficients add (4-bit weights,",
        "softmax). A row named after a core is of a board that was not measured.",
        "",
        *_table(("core or board", *RUNTIMES), lines),
    ]


def _scope() -> list[str]:
    return [
        "## What this is not",
        "",
        "- The form of the model and the widths of the priors were chosen by looking at these",
        "  rows: at the evidence of the whole fit and at left-out errors. A width half as large",
        "  again or a third less moves the error of a left-out board by less than 0.3 points, that",
        "  of a left-out network type by up to 1.3. Rows nobody has looked at judge better.",
        "- X-CUBE-AI 10 was not measured: it is 9.0 with a wider interval. A Cortex-M55 is the",
        "  measured Cortex-M85 with a wider interval.",
        "- `tflm-reference` rests on counted instructions, not on a fit: no row runs it alone.",
        "- A board's odd memory shows only when it was measured.",
        "- What no row tells (a tail of one to three, pools, softmax, copies, a call) is assumed,",
        "  named in `dse/targets/counted.py`, and has its own low and high.",
        "- Cortex-M0+ with CMSIS-NN: one board, depthwise and 1x1 layers only.",
        "- Own kernels (`native`) are calibrated by emulation: see their own report.",
    ]
