"""`dse show`: everything about one trial, and where its flash, RAM and time go."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dse.errors import TargetError
from dse.graph.archive import from_bytes
from dse.graph.ir import Conv2D, FullyConnected, Graph
from dse.rows import StudyRecord
from dse.tables import Format, compression_text, show
from dse.targets import Cost, Target, cost, load_boards, parse_target
from dse.trial import METRICS, Metric, Proof, Trial
from dse.units import format_quantity, format_value


def trial_facts(record: StudyRecord, trial: Trial, form: Format) -> None:
    """Metrics with interval, provenance and source, then what was done and what was missed.

    What verifying it gave stands beside what the search saw.
    """
    rows = [_metric_row(name, metric) for name, metric in trial.metrics.items()]
    if trial.test_accuracy is not None:
        rows.append(_metric_row("test accuracy", trial.test_accuracy))
    rows += _proven_rows(trial.proof) if trial.proof else []
    layers = applied(trial.candidate)
    if form == "json":
        print(json.dumps(_facts(record, trial) | {"layers": layers, "metrics": rows}, indent=2))
        return
    pretty = {
        key: [format_value(row["metric"].split()[-1], row[key]) for row in rows]
        for key in ("value", "low", "high")
    }
    for key, value in _facts(record, trial).items():
        if value not in ("", None, {}, 0.0):
            print(f"{key.replace('_', ' '):>20}: {value}")
    show(rows, ["metric", "value", "low", "high", "provenance", "source"], "table", pretty)
    if layers:
        show(layers, list(layers[0]), "table", {}, "what was applied, in this order")


def applied(candidate: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a layer: what is left of channels, rank and weights, their blocks, code book, bits;
    None where untouched.

    Tied layers have the channels of the first of them.
    """
    columns = {
        "channels": candidate.get("widths") or {},
        "rank": candidate.get("ranks") or {},
        "weights_kept": candidate.get("kept") or {},
        "blocks": _blocks(candidate),
        "code_book": _books(candidate),
        "weight_bits": candidate.get("bits") or {},
    }
    names = dict.fromkeys(name for values in reversed(columns.values()) for name in values)
    used = {key: values for key, values in columns.items() if values}
    return [{"layer": n} | {key: values.get(n) for key, values in used.items()} for n in names]


def _blocks(candidate: Mapping[str, Any]) -> dict[str, str]:
    """The pattern of layers that were pruned in blocks."""
    pattern = candidate.get("pattern") or ""
    return dict.fromkeys(candidate.get("kept") or {}, pattern) if pattern else {}


def _books(candidate: Mapping[str, Any]) -> dict[str, str]:
    """Entries by weights an entry, of layers that share weights."""
    books = candidate.get("code_books") or {}
    return {name: f"{entries} x {candidate['vector']}" for name, entries in books.items()}


def _proven_rows(proof: Proof) -> list[dict[str, Any]]:
    """Flash, RAM and latency of the built image, as rows beside the modelled ones."""
    source = (
        f"built by {proof.compiler} for {proof.target}, run on {proof.emulator}: "
        f"{proof.matching} of {proof.samples} outputs exact"
    )
    return [
        _metric_row(f"emulated {name}", Metric(value, value, value, "emulated", source))
        for name, value in proof.metrics.items()
    ]


def _metric_row(name: str, metric: Metric) -> dict[str, Any]:
    return {
        "metric": name,
        "unit": METRICS[name].unit if name in METRICS else "",
        "value": metric.value,
        "low": metric.low,
        "high": metric.high,
        "provenance": metric.provenance,
        "source": metric.source,
    }


def _facts(record: StudyRecord, trial: Trial) -> dict[str, Any]:
    return {
        "study": record.name,
        "trial": trial.number,
        "state": trial.state.value,
        "provenance": trial.provenance,
        "not_verified": trial.proof.reason if trial.proof else "",
        "baseline": trial.baseline,
        "reason": trial.reason,
        "target": target_text(trial),
        "compression": compression_text(trial),
        "parameters": trial.parameters,
        "macs": trial.macs,
        "validation_samples": trial.validation_samples,
        "test_samples": trial.test_samples,
        "trained": trial.trained,
        "seconds": {stage: round(seconds, 3) for stage, seconds in trial.stage_s.items()},
        "knobs": dict(trial.params),
        "violations": {text: v for text, v in trial.violations.items() if v > 0},
        "candidate_key": trial.candidate_key,
        "network_key": trial.network_key,
    }


def target_text(trial: Trial) -> str:
    """Board, backend and clock of a trial, as `parse_target` reads them."""
    target = trial.candidate["target"]
    return f"{target['board']}/{target['backend']}/{target['clock_hz'] / 1e6:g}MHz"


def explain(
    record: StudyRecord, trial: Trial, blob: bytes | None, boards: Path | None, form: Format
) -> None:
    """The per-operator cost table, the parts of flash and RAM, and who lives at the peak."""
    graph = _graph(record, trial, blob)
    target = parse_target(target_text(trial), load_boards(boards))
    found = cost(graph, target)
    rows = [
        {
            "operator": op.name,
            "kind": op.kind,
            "output": "x".join(map(str, _output(graph, op.name))),
            "weights": _encoding(graph, op.name, target),
            "macs": op.macs,
            "cycles": None if op.cycles is None else round(op.cycles),
            "latency_s": op.latency_s,
            "share": op.share,
            "flash_bytes": op.flash_bytes,
            "live_bytes": op.live_bytes,
        }
        for op in found.operators
    ]
    peak = found.memory.peak
    if form == "json":
        print(json.dumps({"operators": rows} | _parts(found), indent=2))
        return
    pretty = {
        "latency_s": [format_value("latency", row["latency_s"]) for row in rows],  # type: ignore[arg-type]
        "share": ["-" if op.share is None else f"{100 * op.share:.1f} %" for op in found.operators],
        "flash_bytes": [format_quantity(op.flash_bytes, "bytes") for op in found.operators],
        "live_bytes": [
            format_quantity(op.live_bytes, "bytes") + (" (peak)" if op.name == peak.op else "")
            for op in found.operators
        ],
    }
    show(rows, list(rows[0]), "table", pretty, f"trial {trial.number} on {target.key}")
    print("flash: " + _sum_text(found.flash_parts))
    print("RAM:   " + _sum_text(found.ram_parts))
    held = ", ".join(f"{name} {_bytes_of(graph, name)}" for name in peak.tensors)
    scratch = (
        f", scratch {format_quantity(peak.scratch_bytes, 'bytes')}" if peak.scratch_bytes else ""
    )
    print(
        f"peak:  {format_quantity(peak.live_bytes, 'bytes')} while '{peak.op}' runs, "
        f"holding {held}{scratch}"
    )


def _parts(found: Cost) -> dict[str, Any]:
    peak = found.memory.peak
    return {
        "flash_parts": dict(found.flash_parts),
        "ram_parts": dict(found.ram_parts),
        "peak": {
            "operator": peak.op,
            "live_bytes": peak.live_bytes,
            "scratch_bytes": peak.scratch_bytes,
            "tensors": list(peak.tensors),
        },
    }


def _graph(record: StudyRecord, trial: Trial, blob: bytes | None) -> Graph:
    """The stored network, or the shapes of a candidate that never was trained."""
    if blob is not None:
        return from_bytes(blob)
    from dse.candidate import Candidate
    from dse.launch import prepare

    launch = prepare(record.study_file, f"study '{record.name}'", record.folder)
    candidate = Candidate.from_json(trial.candidate)
    if candidate.target not in launch.problem.targets:
        raise TargetError(f"trial {trial.number} runs on {candidate.target}, which is not known")
    return launch.problem.space.shapes(candidate)


def _output(graph: Graph, name: str) -> tuple[int, ...]:
    return graph.tensors[graph.op(name).output].shape


def _encoding(graph: Graph, name: str, target: Target) -> str:
    """How the weights of an operator lie in flash; empty without weights."""
    op = graph.op(name)
    if not isinstance(op, Conv2D | FullyConnected):
        return ""
    return target.backend.encoding(op).text


def _bytes_of(graph: Graph, name: str) -> str:
    tensor = graph.tensors.get(name)
    return "" if tensor is None else format_quantity(tensor.size_bytes, "bytes")


def _sum_text(parts: Any) -> str:
    total = format_quantity(sum(parts.values()), "bytes")
    each = ", ".join(f"{name} {format_quantity(v, 'bytes')}" for name, v in parts.items() if v)
    return f"{total} = {each}"
