"""`dse boards` and `dse backends`: what there is to choose from, from the catalog itself."""

from __future__ import annotations

from pathlib import Path

from dse.tables import Format, show
from dse.targets import load_backends, load_boards, support_table
from dse.units import format_quantity


def show_boards(folder: Path | None, form: Format) -> None:
    """One row a board: core, clocks, memory, power while inferring, and how far it is checked."""
    boards = load_boards(folder)
    rows: list[dict[str, object]] = []
    columns = ("clocks_hz", "flash_bytes", "ram_bytes", "active_w")
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
                "active_w": None if power is None else power.value,
                "figures": len(board.facts),
                "unverified": unverified,
            }
        )
        pretty["clocks_hz"].append(
            ", ".join(format_quantity(clock, "hertz") for clock in board.clocks_hz)
        )
        pretty["flash_bytes"].append(format_quantity(board.flash_bytes, "bytes"))
        pretty["ram_bytes"].append(format_quantity(board.ram_bytes, "bytes"))
        pretty["active_w"].append("-" if power is None else f"{1000 * power.value:.1f} mW")
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
