"""Pieces of HTML that the pages share: attributes for assistive technology, sections, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dash import dcc, html

PLAIN = {"displaylogo": False, "responsive": True, "displayModeBar": False}
NOTHING: Mapping[str, Any] = {
    "data": [],
    "layout": {
        "template": "none",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": {"visible": False},
        "yaxis": {"visible": False},
    },
}


def aria(**attributes: str) -> dict[str, Any]:
    """`aria(label="Pages")` is `aria-label="Pages"`."""
    return {f"aria-{name}": value for name, value in attributes.items()}


def section(title: str, body: Sequence[Any], key: str) -> html.Section:
    """A titled part of a page; its heading names it."""
    heading = html.H2(title, id=f"{key}-title")
    return html.Section([heading, *body], id=f"{key}-box", **aria(labelledby=f"{key}-title"))


def table(titles: Sequence[str], rows: Sequence[Any], numbers: Sequence[int] = ()) -> html.Div:
    """A table that scrolls sideways where the screen is narrow; `numbers` are right-aligned."""
    head = html.Tr(
        [
            html.Th(title, scope="col", className="number" if index in numbers else "")
            for index, title in enumerate(titles)
        ]
    )
    whole = html.Table([html.Thead(head), html.Tbody(list(rows))])
    return html.Div(whole, className="scroll", tabIndex=0)


def number(text: str, small: str = "") -> html.Td:
    """A right-aligned cell, with what is smaller below."""
    return html.Td([text, html.Small(small)] if small else text, className="number")


def plot(
    said: str,
    size: str = "",
    *,
    figure: Any = NOTHING,
    config: Any = PLAIN,
    frame: str | None = None,
    **more: Any,
) -> html.Div:
    """A figure in a frame (of this id and size) with its alternative text."""
    graph = dcc.Graph(figure=figure, config=config, responsive=True, className="fill", **more)
    around: dict[str, Any] = {"id": frame} if frame else {}
    return html.Div(graph, className=f"plot {size}", role="group", **around, **aria(label=said))
