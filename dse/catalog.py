"""`dse boards`, `dse backends`, `dse calibrate`: what there is to choose from, and its figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dse.tables import Format, show
from dse.targets import Board, find_board, load_backends, load_boards, support_table
from dse.targets.fact import Fact
from dse.targets.own import OwnScale
from dse.units import format_quantity

if TYPE_CHECKING:
    from dse.calibrate import Profile

# How a unit of a board's facts is shown: factor and name.
SHOWN_UNITS = {"Hz": (1e-6, "MHz"), "A/Hz": (1e12, "uA/MHz"), "B": (1 / 1024, "KiB"),
               "A": (1e6, "uA"), "W": (1e3, "mW")}  # fmt: skip


def show_boards(folder: Path | None, form: Format) -> None:
    """One row a board: core, clocks, memory, power while inferring, and how far it is checked."""
    boards = load_boards(folder)
    rows: list[dict[str, object]] = []
    columns = ("clocks_hz", "flash_bytes", "ram_bytes", "active_power_w")
    pretty: dict[str, list[str]] = {column: [] for column in columns}
    for board in boards.values():
        power = board.active_power_w(board.max_clock_hz)
        unverified = sum(fact.status == "unverified" for _, fact in board.facts)
        rows.append(
            {
                "board": board.name,
                "title": board.title,
                "core": board.core.name,
                "clocks_hz": list(board.clocks_hz),
                "flash_bytes": board.flash_bytes,
                "ram_bytes": board.ram_bytes,
                "active_power_w": None if power is None else power.value,
                "figures": len(board.facts),
                "unverified": unverified,
            }
        )
        pretty["clocks_hz"].append(
            ", ".join(format_quantity(clock, "hertz") for clock in board.clocks_hz)
        )
        pretty["flash_bytes"].append(format_quantity(board.flash_bytes, "bytes"))
        pretty["ram_bytes"].append(format_quantity(board.ram_bytes, "bytes"))
        pretty["active_power_w"].append("-" if power is None else f"{1000 * power.value:.1f} mW")
    show(rows, list(rows[0]), form, pretty)


def show_backends(form: Format) -> None:
    """One row a backend, then every rule a network must meet to run on it."""
    backends = load_backends()
    rules = support_table()
    rows = [
        {
            "backend": name,
            "version": backend.version,
            "rounding": backend.rounding,
            "weight_containers": list(backend.weight_containers),
            "channel_alignment": backend.channel_alignment,
            "rules": [sentence for owner, _, sentence in rules if owner == name],
        }
        for name, backend in backends.items()
    ]
    pretty = {
        "weight_containers": [
            ", ".join(map(str, backend.weight_containers)) for backend in backends.values()
        ],
        "rules": [" ".join(row["rules"]) for row in rows],  # type: ignore[arg-type]
    }
    show(rows, list(rows[0]), form, pretty)


def show_board(name: str, folder: Path | None, form: Format) -> None:
    """Every figure of one board with its interval, status and source; TargetError if unknown."""
    rows = board_rows(find_board(name, load_boards(folder)))
    shown = {"value": [row.pop("shown") for row in rows]}
    if form == "table":
        show(rows, ("key", "value", "status", "source"), form, shown, title=name)
    else:
        show(rows, ("key", "value", "low", "high", "unit", "status", "source"), form)


def board_rows(board: Board) -> list[dict[str, Any]]:
    """One row a figure or word of the board's file, in SI units, and `shown` for people."""
    rows: list[dict[str, Any]] = [
        {"key": key, "value": word.value, "low": None, "high": None, "unit": "",
         "status": word.status, "source": word.source, "shown": word.value}
        for key, word in board.words
    ]  # fmt: skip
    rows += [_fact_row(key, fact) for key, fact in board.facts]
    rows += [
        _fact_row(f"calibration power at {clock / 1e6:g} MHz", power)
        for clock, power in board.own.powers
    ]
    return rows + [_own_row(own) for own in board.own.scales]


def _fact_row(key: str, fact: Fact) -> dict[str, Any]:
    factor, unit = SHOWN_UNITS.get(fact.unit, (1.0, fact.unit))
    shown = f"{fact.value * factor:g} {unit}"
    if fact.low < fact.high:
        shown += f" ({fact.low * factor:.4g} to {fact.high * factor:.4g})"
    return {"key": key, "value": fact.value, "low": fact.low, "high": fact.high,
            "unit": fact.unit, "status": fact.status, "source": fact.source,
            "shown": shown}  # fmt: skip


def _own_row(own: OwnScale) -> dict[str, Any]:
    shown = f"latency x {own.scale:.3g} (within {100 * own.error:.0f} %)"
    return {"key": f"calibration {own.backend}", "value": own.scale, "low": None, "high": None,
            "unit": "", "status": "read", "source": own.source, "shown": shown}  # fmt: skip


def show_profiles(profiles: Sequence[Profile], files: Sequence[Path], form: Format) -> None:
    """The old and the new error of each refitted latency and power, and where the files lie."""
    rows: list[dict[str, Any]] = []
    for profile, file in zip(profiles, files, strict=True):
        shared = {"board": profile.board.name, "file": str(file)}
        rows += [
            {**shared, "what": f"latency, {fit.backend}", "rows": fit.rows, "factor": fit.scale,
             "old_error": fit.error_before, "new_error": fit.error_after,
             "left_out_error": fit.error_left_out}
            for fit in profile.latency
        ]  # fmt: skip
        rows += [
            {**shared, "what": f"power, {fit.clock_hz / 1e6:g} MHz", "rows": fit.rows,
             "factor": fit.power_w, "old_error": fit.error_before, "new_error": fit.error_after,
             "left_out_error": None}
            for fit in profile.power
        ]  # fmt: skip
    errors = ("old_error", "new_error", "left_out_error")
    pretty = {name: [_percent(row[name]) for row in rows] for name in errors}
    pretty["factor"] = [
        f"{1e3 * row['factor']:.3g} mW" if row["what"].startswith("power") else
        f"x {row['factor']:.3f}" for row in rows
    ]  # fmt: skip
    columns = ("board", "what", "rows", "factor", *errors, "file")
    show(rows, columns, form, pretty)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
