"""The page of one design: its figures and where they come from, and how to take it home."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
from dash import dcc, html

from dse.browse.confusion import confusion
from dse.browse.library import Library
from dse.browse.markup import section, table
from dse.browse.network import fits, flash, layers, memory
from dse.errors import DseError
from dse.explain import target_text
from dse.graph.archive import from_bytes
from dse.graph.ir import Graph
from dse.report.designs import describe, interval, label, shown, target_parts, unverified
from dse.report.files import table_csv
from dse.rows import StudyRecord
from dse.targets import Cost, cost, load_boards, parse_target
from dse.trial import METRICS, Trial


@dataclass(frozen=True)
class Design:
    """A trial with its network and the unpruned one, where stored, and what verifying it found."""

    record: StudyRecord
    trial: Trial
    graph: Graph | None
    whole: Graph | None
    verification: Mapping[str, Any]


def read_design(library: Library, study: str, number: int) -> Design:
    """Everything stored of a trial; StorageError when there is none."""
    with library.open() as storage:
        record, trial = storage.study(study), storage.trial(study, number)
        blob = storage.network(study, number) if trial.network_key else None
        found = storage.artifact(study, number, "verification")
        # The baselines are the first trials of a study.
        first = blob and (storage.network(study, 0) or storage.network(study, 1))
    graph = None if blob is None else from_bytes(blob)
    whole = from_bytes(first) if first else None
    return Design(record, trial, graph, whole, json.loads(found) if found else {})


def design_page(library: Library, study: str, number: int) -> list[Any]:
    """The page's parts. Raises a DseError when there is no such trial."""
    design = read_design(library, study, number)
    own = _own_cost(design)
    return [
        _header(library, design),
        dcc.Interval(id="tick", interval=1500),
        html.Main(
            [
                _figures(design),
                _take_home(library, design),
                layers(design.graph, design.whole, design.trial, own),
                memory(own),
                flash(own),
                _proof(design, own),
                fits(design.graph, design.trial),
                confusion(library, study, number, network=design.graph is not None),
                _knobs(design),
            ]
        ),
    ]


def _own_cost(design: Design) -> Cost | str:
    """What the design costs on its own target, or the sentence that says why it is not known."""
    if design.graph is None:
        candidate = design.trial.candidate
        if candidate.get("budgets") and not candidate.get("widths"):
            return (
                "This design was never trained, and only a training finds the widths that its "
                "budgets leave, so it has no layers to show."
            )
        return (
            "This design was never trained, so its layers are not stored; "
            f"dse show {design.trial.number} {shlex.quote(design.record.name)} --why rebuilds them."
        )
    try:
        return cost(design.graph, parse_target(target_text(design.trial), load_boards()))
    except (DseError, KeyError) as error:
        return " ".join(str(error).split())


def _header(library: Library, design: Design) -> html.Header:
    trial = design.trial
    back = dcc.Link(
        f"‹ {design.record.name}", href=f"/?study={quote(design.record.name)}", className="back"
    )
    state = trial.state.value
    baseline = f"{trial.baseline} baseline · " if trial.baseline else ""
    lead = f"{baseline}{state} · {trial.provenance_text}"
    return html.Header(
        [
            html.P(back),
            html.H1(f"Trial {trial.number}"),
            html.P(" · ".join(target_parts(trial)), className="lead"),
            html.P(lead),
            html.P(trial.reason, className="why"),
            html.P(describe(trial), className="quiet"),
        ]
    )


def _figures(design: Design) -> html.Section:
    trial = design.trial
    named: list[tuple[str, str, Any]] = [
        (label(name), name, trial.metrics[name]) for name in METRICS if name in trial.metrics
    ]
    if trial.test_accuracy is not None:
        named.insert(1, ("test accuracy", "accuracy", trial.test_accuracy))
    rows = []
    for title, name, metric in named:
        tag: list[Any] = []
        if unverified(metric.source):
            tag = [html.Span("unverified", className="tag"), " "]
        rows.append(
            html.Tr(
                [
                    html.Th(title[0].upper() + title[1:], scope="row"),
                    html.Td(shown(name, metric.value), className="number"),
                    html.Td(interval(name, metric) or "exact", className="number"),
                    html.Td(metric.provenance if metric.value is not None else "not known"),
                    html.Td([*tag, metric.source], className="source"),
                ]
            )
        )
    titles = ("Figure", "Value", "Interval", "Provenance", "Source")
    note = f"{trial.parameters:,} parameters · {trial.macs:,} multiply-accumulates"
    if trial.validation_samples:
        note += f" · accuracy on {trial.validation_samples:,} validation samples"
        note += f" and {trial.test_samples:,} test samples" if trial.test_samples else ""
    missed = [f"{text}: missed by {100 * v:.3g} %" for text, v in trial.violations.items() if v > 0]
    body = [table(titles, rows, numbers=(1, 2)), html.P(note, className="quiet")]
    body += [html.P("Constraints: " + "; ".join(missed))] if missed else []
    return (
        section("Figures", body, "figures")
        if rows
        else section("Figures", [html.P(trial.reason or "Nothing was measured.")], "figures")
    )


def _take_home(library: Library, design: Design) -> html.Section:
    name, number = shlex.quote(design.record.name), design.trial.number
    storage = f"--storage {library.storage_option}"
    commands = {
        "Take it home": f"dse export {number} {name} {storage} --output export",
        "Build and emulate it": f"dse verify {number} {name} {storage}",
        "Explain its costs": f"dse show {number} {name} --why {storage}",
    }
    if design.graph is None:
        commands = {"Explain its costs": commands["Explain its costs"]}
    listed = [
        html.Div(
            [
                html.Dt(title),
                html.Dd(
                    [html.Code(text), dcc.Clipboard(content=text, title="Copy", className="copy")]
                ),
            ]
        )
        for title, text in commands.items()
    ]
    buttons: list[Any] = []
    if design.graph is not None:
        path = f"/bundle/{quote(design.record.name, safe='')}/{number}.zip"
        buttons = [
            html.A(
                "Download bundle (C, test vectors, Makefile)",
                href=path,
                className="button",
                id="bundle",
            ),
            html.Button(
                "Queue a verification", id={"type": "verify", "number": number}, n_clicks=0
            ),
            html.Span(id="verify-status", role="status"),
        ]
    place = html.P("Run the commands in the folder of the database.", className="quiet")
    body = [html.Div(buttons, className="controls"), html.Dl(listed, className="commands"), place]
    return section("Take it home", body, "take-home")


def _proof(design: Design, own: Cost | str) -> html.Section:
    proof, trial = design.trial.proof, design.trial
    if proof is None:
        text = "Nobody has built and run this design yet: its costs are modelled. Queue a "
        text += "verification above."
        return section("Modelled, built, emulated", [html.P(text)], "proof")
    if not proof.samples:
        return section(
            "Modelled, built, emulated",
            [html.P(f"It could not be verified: {proof.reason}")],
            "proof",
        )
    rows = []
    for name, value in proof.metrics.items():
        modelled = trial.value(name)
        off = "-" if not modelled or not value else f"{100 * (modelled - value) / value:+.1f} %"
        between = interval(name, trial.metrics.get(name))
        inside = _inside(trial, name, value)
        rows.append(
            html.Tr(
                [
                    html.Th(label(name), scope="row"),
                    html.Td([shown(name, modelled), html.Small(between)], className="number"),
                    html.Td(shown(name, value), className="number"),
                    html.Td("emulated" if name in ("latency", "energy") else "built"),
                    html.Td(off, className="number"),
                    html.Td(inside),
                ]
            )
        )
    verdict = "every output is exact to the byte" if proof.exact else "OUTPUTS DIFFER"
    said = (
        f"{proof.matching} of {proof.samples} outputs match: {verdict}. Built by {proof.compiler} "
        f"for {proof.target}, run on {proof.emulator}."
    )
    titles = ("Figure", "Modelled", "Found", "How", "Model is off by", "Inside the interval")
    parts: list[Any] = [html.P(said), table(titles, rows, numbers=(1, 2, 4))]
    return section("Modelled, built, emulated", [*parts, *_operators(design)], "proof")


def _inside(trial: Trial, name: str, value: float) -> str:
    metric = trial.metrics.get(name)
    if metric is None or metric.low is None or metric.high is None:
        return "-"
    return "yes" if metric.low <= value <= metric.high else "no"


def _operators(design: Design) -> list[Any]:
    found: Sequence[Mapping[str, Any]] = design.verification.get("operators", ())
    rows = [
        html.Tr(
            [
                html.Th(row["name"], scope="row"),
                *(
                    html.Td("-" if row[k] is None else f"{row[k]:,.0f}", className="number")
                    for k in ("modelled", "emulated")
                ),
                html.Td(
                    "-" if row["difference"] is None else f"{100 * row['difference']:+.1f} %",
                    className="number",
                ),
            ]
        )
        for row in found
    ]
    titles = ("Operator", "Cycles modelled", "Cycles emulated", "Difference")
    return (
        [html.Details([html.Summary("Cycles by operator"), table(titles, rows, numbers=(1, 2, 3))])]
        if rows
        else []
    )


def _knobs(design: Design) -> html.Section:
    trial = design.trial
    facts = {
        **{f"knob {name}": value for name, value in trial.params.items()},
        "candidate key": trial.candidate_key,
        "network key": trial.network_key,
        **{f"seconds of {stage}": f"{seconds:.3g}" for stage, seconds in trial.stage_s.items()},
    }
    rows = [
        html.Div([html.Dt(name), html.Dd(_plain(value))])
        for name, value in facts.items()
        if value not in ("", None)
    ]
    csv = f"data:text/csv;charset=utf-8,{quote(table_csv([trial]))}"
    link = html.A("Download as CSV", href=csv, download=f"trial-{trial.number}.csv")
    return section("What was done", [html.Dl(rows, className="facts"), html.P(link)], "knobs")


def _plain(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) and np.isfinite(value) else str(value)
