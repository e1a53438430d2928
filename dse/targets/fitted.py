"""Cycle tables of runtimes that were measured: `data/runtime_cycles.json`, written by the fit.

A table belongs to a runtime on a core family, or to a board where that very board was measured.
Written by `python -m dse.targets.calibration` and by nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from dse.targets.board import Board
from dse.targets.cycles import CycleTable


@cache
def _stored() -> Mapping[str, Any]:
    file = resources.files("dse.targets") / "data" / "runtime_cycles.json"
    stored: Mapping[str, Any] = json.loads(file.read_text("utf-8"))
    return stored


@cache
def _table(key: str, name: str) -> CycleTable:
    own = _stored()["tables"][key]
    return CycleTable(
        name=name,
        version=own["version"],
        coefficients=own["coefficients"],
        low=own["low"],
        high=own["high"],
        stall=own["stall"],
        error=own["error"],
        board_fetch=own["board_fetch"],
        source=own["source"],
    )


def fitted_table(backend: str, board: Board) -> CycleTable | None:
    """The board's own table where it was measured, else its core family's; None without either."""
    for key in (f"{backend}/{board.name}", f"{backend}/{board.core.family}"):
        if key in _stored()["tables"]:
            return _table(key, key)
    return None
