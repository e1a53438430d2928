"""The main page: its controls and the empty frames that the callbacks fill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dash import dcc, html

from dse.browse.library import counts_of
from dse.browse.listing import Order, listing
from dse.browse.markup import aria, plot, section
from dse.browse.scatter import Options, scatter
from dse.browse.view import View
from dse.filter import KNOB
from dse.overview import Overview
from dse.report.designs import label
from dse.report.figures import axis_for
from dse.rows import StudySummary
from dse.trial import MetricName

POLL_MS = 2000
GRAPH = {
    "displaylogo": False,
    "responsive": True,
    "toImageButtonOptions": {"format": "svg"},
}


def shell() -> html.Div:
    """What stays while pages come and go."""
    return html.Div(
        [
            dcc.Location(id="url", refresh="callback-nav"),
            html.A("Skip to the content", href="#page", className="skip"),
            html.Button("Light or dark", id="theme", className="theme", n_clicks=0),
            html.Div(id="page", children=html.P("Reading the database …", className="empty")),
            dcc.Store(id="address"),
        ]
    )


def main_page(
    view: View,
    studies: Sequence[StudySummary],
    shown_name: str,
    given: Mapping[str, str],
    problem: str = "",
) -> list[Any]:
    """The page for these studies; `given` are controls by name, from the address.

    `problem` says what is wrong with the filter that was given.
    """
    return [
        _header(view, studies, shown_name),
        html.Main(
            [
                _filter_bar(given, problem),
                _trade_offs(view, given),
                section("Help to choose", [_choose(view)], "choose"),
                section(
                    "Trials",
                    [html.Div(id="table")],
                    "trials",
                ),
                _parallel(),
                html.Div([_progress(), _importance()], className="two"),
                _timeline(),
            ]
        ),
        html.Footer("Served by dse browse from a read-only connection."),
        dcc.Store(id="mark"),
        dcc.Store(id="listing", data=listing(view, Order())),
        dcc.Store(id="listed"),
        dcc.Store(id="picked"),
        dcc.Store(id="where", data="" if problem else given.get("where", "")),
        dcc.Store(id="selection", data=None),
        dcc.Store(id="brush", data={}),
        dcc.Store(id="focus", data=None),
        dcc.Store(id="order", data=asdict(Order())),
        dcc.Store(id="late"),
        dcc.Store(id="late-mark"),
        dcc.Interval(id="poll", interval=POLL_MS),
        dcc.Store(id="start"),
        dcc.Download(id="csv-file"),
        dcc.Tooltip(id="hover", direction="right", zindex=20),
    ]


def _loading(what: str) -> html.P:
    return html.P(f"Reading {what} …", className="empty")


def _header(view: View, studies: Sequence[StudySummary], shown_name: str) -> html.Header:
    options = [
        {"label": f"{found.name} ({sum(found.counts.values()):,} trials)", "value": found.name}
        for found in reversed(studies)
    ]
    return html.Header(
        [
            html.P(["dse browse · ", html.Span(shown_name)], className="kind"),
            html.H1("Which design goes on which board"),
            html.Label("Studies", htmlFor="studies", className="hidden-text"),
            dcc.Dropdown(
                options,
                view.names,
                id="studies",
                multi=True,
                placeholder="Choose one or several studies",
            ),
            html.P(lead(view.overviews), id="lead", className="lead"),
            html.P(live(view.overviews), id="live", className="quiet", role="status"),
            html.P(id="problem", className="problem", role="alert", hidden=True),
        ]
    )


def lead(overviews: Sequence[Overview]) -> list[html.Span]:
    """A sentence a study: what was tried and what came of it."""
    return [_sentence(overview, len(overviews) > 1) for overview in overviews]


def _sentence(overview: Overview, several: bool) -> html.Span:
    counts, front = counts_of(overview), int(overview.flag("front").sum())
    done = sum(counts.get(state, 0) for state in ("complete", "infeasible", "failed"))
    name = f"{overview.record.name}: " if several else ""
    if not done:
        return html.Span(f"{name}No trial has finished yet. ")
    feasible = counts.get("complete", 0)
    tail = f"{front:,} on the Pareto front" if front else "so there is no front yet"
    return html.Span(
        f"{name}{done:,} designs tried, {feasible:,} feasible, {tail}; "
        f"hypervolume {overview.hypervolume:.4f}. "
    )


def live(overviews: Sequence[Overview]) -> str:
    """What is still to come."""
    left = sum(
        max(
            0,
            o.record.n_trials
            - sum(v for k, v in counts_of(o).items() if k in ("complete", "infeasible", "failed")),
        )
        for o in overviews
    )
    running = sum(counts_of(o).get("running", 0) for o in overviews)
    said = f"{running} running now, " if running else ""
    more = f"{said}{left:,} trials to go" if left else "all trials are done"
    return f"Live: new trials appear by themselves; {more}."


def _filter_bar(given: Mapping[str, str], problem: str) -> html.Div:
    field = dcc.Input(
        id="filter",
        type="text",
        value=given.get("where", ""),
        debounce=0.2,
        placeholder='flash < 64 KiB and board == "rpi_pico"',
        autoComplete="off",
        spellCheck=False,
    )
    tip = (
        "Names: accuracy, flash, ram, latency, energy, test_accuracy, clock, trial, parameters, "
        "bits, board, backend, state, reason, front, feasible, verified, and every knob. "
        "Joined by and, or, not, ( ); "
        "compared by < <= > >= == != ~ (contains) and in (…). Quantities carry their unit."
    )
    return html.Div(
        [
            html.Label(["Filter ", field], className="wide"),
            html.Span(id="shown", className="quiet", role="status"),
            html.Button("Clear selection", id="clear", n_clicks=0),
            html.Button("Download CSV", id="csv", n_clicks=0),
            html.Details([html.Summary("What a filter can say"), html.P(tip)], className="tip"),
            html.P(
                problem,
                id="filter-problem",
                role="alert",
                className="problem",
                hidden=not problem,
            ),
        ],
        className="controls bar",
    )


def _choose(view: View) -> html.Div:
    sliders = [
        html.Div(
            [
                html.Label(label(name), htmlFor=f"weight-{name}"),
                dcc.Slider(
                    0,
                    5,
                    1,
                    value=1,
                    id={"type": "weight", "metric": name},
                    marks={0: "0", 1: "1", 5: "5"},
                ),
            ],
            className="weight",
        )
        for name in view.objectives
    ]
    cheapest = dcc.Input(
        id="reach",
        type="text",
        value="accuracy >= 90 %" if "accuracy" in view.objectives else "feasible",
        debounce=0.4,
        autoComplete="off",
        spellCheck=False,
    )
    return html.Div(
        [
            html.Div(id="choice-knee", className="card"),
            html.Div(
                [
                    html.Div(id="choice-closest"),
                    html.Details([html.Summary("Weights"), html.Div(sliders, className="weights")]),
                ],
                className="card",
            ),
            html.Div(
                [
                    html.Div(id="choice-cheapest"),
                    html.Label(["that reaches ", cheapest], className="reach"),
                ],
                className="card",
            ),
        ],
        className="cards",
    )


def _trade_offs(view: View, given: Mapping[str, str]) -> html.Section:
    x, y = first_axes(view)
    x = next((name for name in view.metrics if name == given.get("x")), x)
    y = next((name for name in view.metrics if name == given.get("y")), y)
    metrics: dict[str, str] = {name: label(name) for name in view.metrics}
    logs = [name for name in view.metrics if _log(view, name)]
    first = scatter(view, Options(x, y, log=tuple(logs), quick=True))
    colours = {
        "": "kind of design",
        **({"study": "study"} if len(view.overviews) > 1 else {}),
        "board": "board",
        "backend": "backend",
        "weight_bits": "weight bits",
        "provenance": "provenance",
        "state": "state",
        **{name: name.removeprefix(KNOB) for name in view.knobs},
    }
    symbols = {"": "none", "board": "board", "backend": "backend", "study": "study"}
    controls = html.Div(
        [
            _pick("Horizontal", "x", metrics, x),
            _pick("Vertical", "y", metrics, y),
            _pick("Third", "z", {"": "none", **metrics}, given.get("z", "")),
            _pick("Colour", "colour", colours, given.get("colour", "")),
            _pick("Symbol", "symbol", symbols, given.get("symbol", "")),
            dcc.Checklist(
                [
                    {"label": f"log {label(name)}", "value": name}
                    for name in view.metrics
                    if name != "accuracy"
                ],
                logs,
                id="log",
                inline=True,
                className="checks",
            ),
            dcc.Checklist(
                [
                    {"label": "intervals", "value": "bars"},
                    {"label": "zoom to feasible designs", "value": "zoom"},
                ],
                ["bars", "zoom"],
                id="bars",
                className="checks",
            ),
        ],
        className="controls",
    )
    note = (
        "Drag with the box or lasso tool to select designs in every view; click a point to see it "
        "at the side. The dotted line joins what nothing beats in these two metrics; dashed "
        "lines are the constraints; green rings are designs that were built and emulated."
    )
    return section(
        "Trade-offs",
        [
            controls,
            html.Div(
                [
                    plot(
                        "Pareto scatter; the table below holds the same designs",
                        "tall",
                        figure=first,
                        config=GRAPH,
                        id="scatter",
                        clear_on_unhover=True,
                    ),
                    html.Aside(
                        id="side",
                        children=_side_hint(),
                        **aria(label="The chosen design", live="polite"),
                    ),
                ],
                className="with-side",
            ),
            html.P(note, className="quiet"),
        ],
        "trade",
    )


def _side_hint() -> list[Any]:
    return [html.P("Click a point to see the design here.", className="empty")]


def first_axes(view: View) -> tuple[MetricName, MetricName]:
    """A cost against accuracy where there is one, else the first two objectives or metrics."""
    names = list(dict.fromkeys([*view.objectives, *view.metrics]))
    if "accuracy" in names:
        return next((name for name in names if name != "accuracy"), names[0]), "accuracy"
    return names[0], names[1] if len(names) > 1 else names[0]


def _log(view: View, name: MetricName) -> bool:
    values = view.values(name)
    return axis_for(name, values[values == values]).log


def _pick(title: str, key: str, options: Mapping[str, str], value: str) -> html.Label:
    chosen = value if value in options else next(iter(options))
    listed = [{"label": text, "value": name} for name, text in options.items()]
    return html.Label(
        [
            title,
            dcc.Dropdown(
                listed,
                chosen,
                id=key,
                clearable=False,
                searchable=len(options) > 12,
                className="pick-one",
            ),
        ]
    )


def _parallel() -> html.Section:
    note = (
        "Drag along an axis to keep only the lines that pass there; they are selected in every "
        "view. Click an axis to let go."
    )
    return section(
        "All objectives at once",
        [
            html.Div(
                plot(
                    "Parallel coordinates of the feasible designs",
                    "wide",
                    frame="parallel-frame",
                    id="parallel",
                ),
                className="scroll",
            ),
            html.P([note, " ", html.Span(id="parallel-note")], className="quiet"),
        ],
        "parallel",
    )


def _progress() -> html.Section:
    choice = dcc.RadioItems(
        [{"label": "by trial", "value": "trials"}, {"label": "by hour", "value": "hours"}],
        "trials",
        id="against",
        inline=True,
        className="checks",
    )
    return section(
        "Progress of the front",
        [
            choice,
            plot("Hypervolume of the front over time", id="progress"),
            html.Div(id="compared"),
        ],
        "progress",
    )


def _importance() -> html.Section:
    return section(
        "Which knob decides what",
        [
            html.Div(id="importance", children=_loading("the trials")),
        ],
        "importance",
    )


def _timeline() -> html.Section:
    return section(
        "What ran when",
        [
            html.Div(id="timeline", children=_loading("the trials")),
        ],
        "timeline",
    )


def message_page(title: str, text: str) -> list[Any]:
    """A page with one sentence, for what cannot be shown."""
    return [
        html.Header([html.P("dse browse", className="kind"), html.H1(title)]),
        html.Main([html.P(text, role="alert"), html.P(html.A("Back to the studies", href="/"))]),
    ]
