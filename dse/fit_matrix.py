"""`dse estimate` on the terminal and as JSON (schema dse.estimate/1, docs/estimate.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dse.battery import Use
from dse.estimate import Answer, Estimate, Model, Row, interval
from dse.tables import Format, as_csv, show
from dse.targets.energy import SECONDS_A_DAY
from dse.trial import COST_METRICS, METRICS, Metric, MetricName

SCHEMA = "dse.estimate/1"


def show_estimate(
    found: Estimate, form: Format, use: Use | None = None, answer: Answer | None = None
) -> None:
    """Print the fit matrix, or all of it as JSON or CSV."""
    if form == "json":
        print(json.dumps(as_json(found, use, answer), indent=2))
    elif form == "csv":
        rows = [_flat(row) for row in found.rows]
        print(as_csv(rows, list(rows[0]) if rows else ["board"]), end="")
    elif answer is not None:
        print(answer.sentence)
    else:
        _show_table(found)


def _show_table(found: Estimate) -> None:
    print(model_line(found.model))
    rows = [_cells(row) for row in found.rows]
    columns = [c for c in (rows[0] if rows else {}) if any(row[c] for row in rows)]
    fits = sum(row.fits for row in found.rows)
    show(rows, columns, "table", title=f"fits {fits} of {len(rows)} targets")
    for line in _notes(found):
        print(line)


def model_line(model: Model) -> str:
    """The network in one line."""
    graph = model.graph
    text = f"{model.name}: {len(graph.ops)} operators, {graph.parameters:,} parameters, "
    if model.dead_channels:
        return text + (
            f"{graph.macs:,} multiply-accumulates without {model.dead_channels} dead channels "
            f"({model.nominal_macs:,} as the file is; --as-is costs that)"
        )
    return text + f"{graph.macs:,} multiply-accumulates"


def _cells(row: Row) -> dict[str, str]:
    cells = {
        "board": row.target.board.name,
        "backend": row.target.backend.name,
        "clock": f"{row.target.clock_hz / 1e6:g} MHz",
        "fits": "yes" if row.fits else "no: " + "; ".join(row.misses),
    }
    cells |= {
        name: interval(name, row.metrics[name]) if name in row.metrics else ""
        for name in ("ram", "flash", "latency", "energy")
    }
    if row.battery_s is not None:
        cells["battery"] = _days(row.battery_s)
    cells["provenance"] = row.metrics["latency"].provenance if row.metrics else ""
    return cells


def _days(life: Metric) -> str:
    if life.value is None or life.low is None or life.high is None:
        return "-"
    days = [seconds / SECONDS_A_DAY for seconds in (life.value, life.low, life.high)]
    value, low, high = (f"{n:,.0f}" if n >= 100 else f"{n:.3g}" for n in days)
    return f"{value} days ({low} to {high})"


def _notes(found: Estimate) -> list[str]:
    notes = []
    unknown = {
        f"{row.target.key}: {metric.source}"
        for row in found.rows
        for name, metric in row.metrics.items()
        if metric.value is None and name != "energy"
    }
    notes += sorted(unknown)
    boards = {row.target.board.name: row.target.board for row in found.rows}
    unverified = sum(fact.status == "unverified" for b in boards.values() for _, fact in b.facts)
    if unverified:
        notes.append(
            f"{unverified} figures of these boards are unverified; 'dse boards' says of which"
        )
    if found.left_out:
        first, count = found.left_out[0], len(found.left_out)
        several = f"{count} pairs left out, the first: " if count > 1 else "left out: "
        notes.append(f"{several}{first.key}: {first.reason}")
    if found.model.rescaled:
        notes.append(
            f"'{found.model.rescaled[0]}' changes its scale on the way, which costs are not "
            f"concerned by ({len(found.model.rescaled)} such)"
        )
    return notes


# --- JSON ---------------------------------------------------------------------------------------


def as_json(found: Estimate, use: Use | None, answer: Answer | None) -> dict[str, Any]:
    """Everything, in SI units; the keys are those of docs/estimate.md."""
    return {
        "schema": SCHEMA,
        "model": _model(found.model),
        "battery": None
        if use is None
        else {"capacity_mah": use.capacity_mah, "rate_hz": use.rate_hz},
        "targets": [_target(row) for row in found.rows],
        "left_out": [{"target": left.key, "reason": left.reason} for left in found.left_out],
        "cheapest": None if answer is None else _answer(answer),
    }


def _model(model: Model) -> dict[str, Any]:
    graph = model.graph
    return {
        "name": model.name,
        "sha256": model.sha256,
        "operators": len(graph.ops),
        "parameters": graph.parameters,
        "precision": graph.tensors[graph.input].dtype,
        "macs": graph.macs,
        "nominal_macs": model.nominal_macs,
        "dead_channels": model.dead_channels,
        "rescaled_operators": list(model.rescaled),
    }


def _target(row: Row) -> dict[str, Any]:
    target, limits = row.target, row.target.limits()
    return {
        "board": target.board.name,
        "title": target.board.title,
        "backend": target.backend.name,
        "backend_version": target.backend.version,
        "clock_hz": target.clock_hz,
        "fits": row.fits,
        "misses": list(row.misses),
        "limits": {"flash_bytes": limits.flash_bytes, "ram_bytes": limits.ram_bytes},
        "metrics": {name: _metric(name, row.metrics[name]) for name in COST_METRICS if row.metrics},
        "battery_life_s": None if row.battery_s is None else _plain(row.battery_s, "s"),
        "unverified": sorted(
            {key for key, fact in target.board.facts if fact.status == "unverified"}
        ),
    }


def _metric(name: MetricName, metric: Metric) -> Mapping[str, Any]:
    return _plain(metric, METRICS[name].unit)


def _plain(metric: Metric, unit: str) -> dict[str, Any]:
    return {
        "value": metric.value,
        "low": metric.low,
        "high": metric.high,
        "unit": unit,
        "provenance": metric.provenance,
        "source": metric.source,
    }


def _answer(answer: Answer) -> dict[str, Any]:
    return {"target": answer.row.target.key, "meets": answer.meets, "sentence": answer.sentence}


def _flat(row: Row) -> dict[str, Any]:
    """One line of CSV."""
    flat: dict[str, Any] = {
        "board": row.target.board.name,
        "backend": row.target.backend.name,
        "clock_hz": row.target.clock_hz,
        "fits": row.fits,
        "misses": "; ".join(row.misses),
    }
    for name in COST_METRICS:
        metric = row.metrics.get(name)
        column = METRICS[name].column
        flat[column] = None if metric is None else metric.value
        flat[f"{column}_low"] = None if metric is None else metric.low
        flat[f"{column}_high"] = None if metric is None else metric.high
    flat["battery_life_s"] = None if row.battery_s is None else row.battery_s.value
    return flat
