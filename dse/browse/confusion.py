"""The confusion matrix on a design's page, as `dse confusion` stored it, or a button for it."""

from __future__ import annotations

import json
import shlex
from typing import Any

import numpy as np
from dash import dcc, html

from dse.artifacts import CONFUSION
from dse.browse.library import Library
from dse.browse.markup import PLAIN, plot, section
from dse.browse.scatter import FONT, MID

LABELLED = 20  # classes up to which every cell says its number
PAIRS = 3


def confusion(library: Library, study: str, number: int, *, network: bool) -> html.Section:
    """The matrix, or how to get it; `network` says whether the design's network is stored."""
    found = matrix(library, study, number)
    if not network:
        found = [html.P("This design was never trained, so it classifies nothing.")]
    elif not found:
        found = _asking(library, study, number)
    body = html.Div(found, id="confusion-body")
    status = html.P(id="confusion-status", role="status", className="quiet")
    return section("Confusion matrix", [body, status], "confusion")


def matrix(library: Library, study: str, number: int) -> list[Any]:
    """The stored counts as a figure with a sentence; empty when nobody counted."""
    with library.open() as storage:
        blob = storage.artifact(study, number, CONFUSION)
    if blob is None:
        return []
    stored = json.loads(blob)
    counts = np.array(stored["counts"], dtype=np.int64)
    said = _said(counts, str(stored["rounding"]))
    figure = plot(said, "tall", figure=_figure(counts), config=PLAIN, id="confusion-plot")
    return [html.P(said), html.Div(figure, className="square")]


def _said(counts: np.ndarray[Any, Any], rounding: str) -> str:
    total, right = int(counts.sum()), int(np.trace(counts))
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    worst = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    pairs = [(*divmod(int(at), len(wrong)), int(wrong.flat[at])) for at in worst]
    often = [f"{label} for {taken} ({count:,} times)" for label, taken, count in pairs if count]
    tail = f"; most often it takes {', '.join(often)}" if often else ""
    return (
        f"{right:,} of {total:,} test samples are right ({right / total:.2%}), by the integer "
        f"network under {rounding} rounding{tail}."
    )


def _figure(counts: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Shares of each class as colour, counts as numbers."""
    rows = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [str(index) for index in range(len(counts))]
    axis = {"type": "category", "color": MID, "showgrid": False, "constrain": "domain"}
    title = {"standoff": 8}
    trace = {
        "type": "heatmap",
        "x": names,
        "y": names,
        "z": (counts / rows).tolist(),
        "zmin": 0,
        "zmax": 1,
        "customdata": counts.tolist(),
        "colorscale": "Cividis",
        "xgap": 1,
        "ygap": 1,
        "colorbar": {
            "title": {"text": "share of the class", "side": "right"},
            "tickformat": ".0%",
            "thickness": 12,
        },
        "hovertemplate": "class %{y} taken for %{x}: %{customdata} (%{z:.1%})<extra></extra>",
    }
    if len(counts) <= LABELLED:
        trace |= {"text": [[str(n) if n else "" for n in row] for row in counts.tolist()],
                  "texttemplate": "%{text}"}  # fmt: skip
    return {
        "data": [trace],
        "layout": {
            "template": "none",
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": FONT, "size": 12, "color": MID},
            "margin": {"l": 60, "r": 10, "t": 10, "b": 50},
            "xaxis": axis | {"title": {"text": "taken for"} | title},
            "yaxis": axis
            | {"title": {"text": "class"} | title, "autorange": "reversed", "scaleanchor": "x"},
        },
    }


def _asking(library: Library, study: str, number: int) -> list[Any]:
    command = f"dse confusion {number} {shlex.quote(study)} --storage {library.storage_option}"
    button = html.Button(
        "Classify the test data", id={"type": "confusion", "number": number}, n_clicks=0
    )
    said = "Nobody has counted which classes it confuses. It takes the data set, and some seconds."
    return [
        html.P(said),
        html.Div([button], className="controls"),
        html.P(
            [html.Code(command), dcc.Clipboard(content=command, title="Copy", className="copy")],
            className="commands",
        ),
    ]
