"""`dse verify`: a stored design built and run on an emulated core, printed beside its model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dse.explain import target_text
from dse.export import stored_network
from dse.firmware.verify import Comparison, Verification, verify
from dse.graph.archive import from_bytes
from dse.prover import store_proof
from dse.rows import StudyRecord
from dse.samples import find_samples
from dse.storage import Storage
from dse.tables import Format, show
from dse.targets import load_boards, parse_target
from dse.units import format_value


def verify_trial(
    storage: Storage,
    record: StudyRecord,
    number: int,
    *,
    target: str | None,
    samples: int,
    compiler: str | None,
    optimize: str,
    boards: Path | None,
    form: Format,
) -> bool:
    """Build and emulate a design on test data, print it beside its model and store what it gave.

    Only what its own target gave is stored. Returns whether every output is exact.
    """
    trial, blob = stored_network(storage, record, number)
    where = parse_target(target or target_text(trial), load_boards(boards))
    own = parse_target(target_text(trial), load_boards(boards)) == where
    inputs = find_samples(storage, record, samples).inputs
    found = verify(from_bytes(blob), where, where.backend.rounding, inputs, compiler, optimize)
    if own:
        store_proof(storage, record.name, number, found)
    if form == "json":
        print(json.dumps(found.to_json(), indent=2))
    else:
        _print(found, number)
    return found.exact


def _row(comparison: Comparison) -> dict[str, Any]:
    return {
        "name": comparison.name,
        "modelled": comparison.modelled,
        "emulated": comparison.emulated,
        "difference": comparison.difference,
    }


def _print(found: Verification, number: int) -> None:
    verdict = "every byte is exact" if found.exact else "OUTPUTS DIFFER"
    print(
        f"trial {number} on {found.target}, {found.compiler} ({found.flags}), {found.emulator}: "
        f"{found.matching} of {found.samples} outputs match, {verdict}"
    )
    figures = [_row(comparison) for comparison in found.figures]
    pretty = {
        key: [format_value(row["name"], row[key]) for row in figures]
        for key in ("modelled", "emulated")
    } | {"difference": [_percent(row["difference"]) for row in figures]}
    columns = ["name", "modelled", "emulated", "difference"]
    show(figures, columns, "table", pretty)
    operators = [_row(comparison) for comparison in found.operators]
    cycles = {
        key: ["-" if row[key] is None else f"{row[key]:,.0f}" for row in operators]
        for key in ("modelled", "emulated")
    } | {"difference": [_percent(row["difference"]) for row in operators]}
    show(operators, columns, "table", cycles, "cycles by operator")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:+.1f} %"
