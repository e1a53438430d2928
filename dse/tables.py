"""Tables of the command line: one place for columns, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dse.constraints import parse_constraint
from dse.trial import METRICS, Trial
from dse.units import format_quantity, format_value

if TYPE_CHECKING:
    from dse.rows import StudyRecord

Format = Literal["table", "json", "csv"]
ExportFormat = Literal["c", "tflite", "bundle"]
# Wide enough for any row when the output is a file or a pipe.
PIPE_WIDTH = 240
_UNIT_SUFFIX = re.compile(r"_(bytes|s|j|hz)$")


def console() -> Console:
    """Standard output; wide when it is not a terminal, so that rows stay on one line."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=PIPE_WIDTH)


def show(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    form: Format,
    pretty: Mapping[str, Sequence[str]] | None = None,
    title: str = "",
) -> None:
    """Print rows: raw SI values as JSON or CSV, `pretty` texts by column in the table."""
    if form == "json":
        print(json.dumps(list(rows), indent=2))
    elif form == "csv":
        print(as_csv(rows, columns), end="")
    else:
        table = Table(title=Text(title) if title else None, title_justify="left")
        for column in columns:
            # A column of pretty texts carries its units in the cells.
            name = _UNIT_SUFFIX.sub("", column) if column in (pretty or {}) else column
            table.add_column(name.replace("_", " "), overflow="fold")
        shown = {c: (pretty or {}).get(c) or [_text(row.get(c)) for row in rows] for c in columns}
        for index in range(len(rows)):
            table.add_row(*(Text(shown[column][index]) for column in columns))
        console().print(table, highlight=False)


def as_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows as CSV; mappings and lists become JSON texts."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(
            json.dumps(v) if isinstance(v := row.get(column), Mapping | list) else v
            for column in columns
        )
    return buffer.getvalue()


def _text(value: Any) -> str:
    if value is None or value == "":
        return "-"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def front_rows(trials: Sequence[Trial], baseline: Trial | None) -> list[dict[str, Any]]:
    """One row a design: where it runs, metrics in SI units, test accuracy, what was done."""
    rows = []
    for trial in trials:
        target = trial.candidate.get("target", {})
        row: dict[str, Any] = {
            "trial": trial.number,
            "board": target.get("board", ""),
            "backend": target.get("backend", ""),
            "clock_hz": target.get("clock_hz"),
        }
        row |= {kind.column: trial.value(name) for name, kind in METRICS.items()}
        row["test_accuracy"] = None if trial.test_accuracy is None else trial.test_accuracy.value
        row["parameters"] = trial.parameters
        row["parameters_share"] = trial.parameters / baseline.parameters if baseline else None
        row["compression"] = compression_text(trial)
        row["provenance"] = trial.provenance
        row["emulated"] = dict(trial.proof.metrics) if trial.proof else None
        rows.append(row)
    return rows


FRONT_COLUMNS = (
    "trial",
    "board",
    "backend",
    "clock_hz",
    *(kind.column for kind in METRICS.values()),
    "test_accuracy",
    "parameters",
    "compression",
    "provenance",
    "emulated",
)


def show_front(
    record: StudyRecord, trials: Sequence[Trial], baseline: Trial | None, form: Format, title: str
) -> None:
    """Print designs of a study: every column as JSON or CSV; as a table target, what they are
    judged by (objectives, then metrics that are only limited) and gist.
    """
    rows = front_rows(trials, baseline)
    if form != "table":
        show(rows, FRONT_COLUMNS, form)
        return
    for row in rows:
        clock = format_quantity(row["clock_hz"], "hertz") if row["clock_hz"] else "-"
        row["target"] = f"{row['board']} {row['backend']} {clock}"
    limited = [parse_constraint(text).metric for text in record.constraints]
    judged = list(dict.fromkeys([*record.objectives, *limited]))
    pretty: dict[str, list[str]] = {
        METRICS[name].column: [format_value(name, row[METRICS[name].column]) for row in rows]
        for name in judged
    }
    pretty["test_accuracy"] = [format_value("accuracy", row["test_accuracy"]) for row in rows]
    pretty["parameters"] = [
        f"{row['parameters']:,}"
        + (f" ({100 * row['parameters_share']:.1f} %)" if row["parameters_share"] else "")
        for row in rows
    ]
    pretty["provenance"] = [trial.provenance_text for trial in trials]
    metrics = [METRICS[name].column for name in judged]
    columns = ["trial", "target", *metrics, "test_accuracy", "parameters", "compression"]
    columns += ["provenance"]
    show(rows, columns, form, pretty, title)


def compression_text(trial: Trial) -> str:
    """What was done to the network, short."""
    candidate = trial.candidate
    parts = [trial.baseline and f"{trial.baseline} baseline"]
    if budgets := candidate.get("budgets"):
        parts.append(budgets_text(budgets))
    if widths := candidate.get("widths"):
        parts.append("channels " + " ".join(f"{n}={w}" for n, w in widths.items()))
    if ranks := candidate.get("ranks"):
        kind = candidate.get("factors") or "channel"
        parts.append(f"{kind} rank " + " ".join(f"{n}={r}" for n, r in ranks.items()))
    if kept := candidate.get("kept"):
        shares = sorted(set(kept.values()))
        parts.append("weights kept " + "-".join(f"{100 * s:.0f}" for s in shares) + " %")
    if books := candidate.get("code_books"):
        sizes = "-".join(str(size) for size in sorted(set(books.values())))
        parts.append(f"code books {sizes} of {candidate['vector']}")
    if bits := candidate.get("bits"):
        widths_of = sorted(set(bits.values()))
        same = len(widths_of) == 1
        parts.append(
            f"{widths_of[0]}-bit" if same else "bits " + "/".join(str(b) for b in bits.values())
        )
    if candidate.get("precision") in ("int16", "float32"):
        parts.append(str(candidate["precision"]))
    if candidate.get("criterion"):
        parts.append(f"{candidate['criterion']} {candidate['schedule']}")
    parts += training_parts(candidate)
    return ", ".join(part for part in parts if part)


def budgets_text(budgets: Mapping[str, float]) -> str:
    """Within which shares of the unpruned network's needs the widths were found."""
    return "within " + ", ".join(f"{100 * share:g} % of {n}" for n, share in budgets.items())


CALIBRATION_TEXTS: Mapping[str, str] = {
    "scales": "one scale a tensor",
    "equalization": "cross-layer equalization",
    "rounding": "adaptive rounding",
    "biases": "corrected biases",
}


def training_parts(candidate: Mapping[str, Any]) -> list[str]:
    """Blocks, ramp, how quantization was found and the teacher, where it is not the default."""
    parts = [f"blocks of {candidate['pattern']}"] if candidate.get("pattern") else []
    if ramp := candidate.get("ramp"):
        parts.append(f"ramp {ramp['start']:g} to {ramp['end']:g} in {ramp['updates']}")
    if candidate.get("method"):
        parts.append(str(candidate["method"]))
    if candidate.get("ranges"):
        parts.append(f"{candidate['ranges']} ranges")
    told = candidate.get("calibration") or {}
    parts += [CALIBRATION_TEXTS[kind] for kind in CALIBRATION_TEXTS if kind in told]
    if teacher := candidate.get("distillation"):
        parts.append(f"teacher {teacher['weight']:g} at T {teacher['temperature']:g}")
    return parts
