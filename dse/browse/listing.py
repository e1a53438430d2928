"""The table of trials: sorted and cut into pages here, so that the page stays light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
from dash import html

from dse.browse.markup import aria
from dse.browse.view import Rows, View, metric_of, text_of
from dse.report.designs import interval, label, shown
from dse.trial import METRICS

PAGE = 20


@dataclass(frozen=True)
class Order:
    """Sorted by a column, at a page (from 0)."""

    column: str = ""
    down: bool = False
    page: int = 0


def ordered(view: View, order: Order) -> Rows:
    """The rows shown, sorted; unsorted: the front first, then feasible ones, then the rest."""
    rows = np.flatnonzero(view.chosen)
    table = view.table.iloc[rows]
    if order.column and order.column in table:
        column = table[order.column]
        if column.dtype.kind not in "iufb":
            column = column.astype(object).where(column.notna(), "").astype(str)
        key = (
            column.argsort(kind="stable")
            if column.dtype.kind in "iufb"
            else column.reset_index(drop=True).argsort(kind="stable")
        )
        found = np.asarray(key, dtype=np.int64)
        known = column.notna().to_numpy(np.bool_)[found]
        found = np.concatenate([found[known][::-1] if order.down else found[known], found[~known]])
        return rows[found]
    rank = 2 - table["feasible"].to_numpy(int) - table["front"].to_numpy(int)
    return rows[np.lexsort((-table["number"].to_numpy(), rank))]


def columns_of(view: View) -> dict[str, str]:
    """Columns of the table by name, with their titles."""
    found = {"number": "Trial"}
    if len(view.overviews) > 1:
        found["study"] = "Study"
    found |= {METRICS[name].column: _title(name) for name in view.metrics}
    if view.table["test_accuracy"].notna().any():
        found["test_accuracy"] = "Test accuracy"
    return found | {
        "parameters": "Parameters",
        "weight_bits": "Bits",
        "board": "Board",
        "backend": "Backend",
        "provenance": "Provenance",
        "reason": "State",
    }


def listing(view: View, order: Order) -> list[Any]:
    """The table with its pager."""
    rows = ordered(view, order)
    pages = max(1, -(-len(rows) // PAGE))
    page = min(max(0, order.page), pages - 1)
    columns = columns_of(view)
    body = [_row(view, int(row), columns) for row in rows[page * PAGE : (page + 1) * PAGE]]
    head = html.Thead(
        html.Tr(
            [
                html.Th(html.Span("Select", className="hidden-text")),
                *(_head(*c, order) for c in columns.items()),
            ]
        )
    )
    if not body:
        return [
            html.P(
                "No trial matches. Change or clear the filter and the selection.", className="empty"
            )
        ]
    table = html.Table([head, html.Tbody(body)], className="trials")
    return [
        html.Div(
            table,
            className="scroll",
            tabIndex=0,
            role="region",
            **aria(label="Table of trials"),
        ),
        _pager(page, pages, len(rows)),
    ]


def _head(name: str, title: str, order: Order) -> html.Th:
    sort = "none" if order.column != name else "descending" if order.down else "ascending"
    arrow = {"ascending": " ▲", "descending": " ▼"}.get(sort, "")
    button = html.Button(
        title + arrow, id={"type": "sort", "column": name}, className="head", n_clicks=0
    )
    return html.Th(button, className="" if name in _TEXTS else "number", **aria(sort=sort))


_TEXTS = ("study", "board", "backend", "provenance", "reason")


def _row(view: View, row: int, columns: dict[str, str]) -> html.Tr:
    found = view.table.iloc[row]
    uid, number = int(found["uid"]), int(found["number"])
    pressed = view.selected is not None and uid in view.selected
    pick = html.Button(
        "●" if pressed else "○",
        id={"type": "pick", "uid": uid},
        className="pick",
        n_clicks=0,
        title="Select this design in every view",
        **aria(pressed=str(pressed).lower(), label=f"Select trial {number}"),
    )
    cells = [html.Td(pick)]
    cells += [_cell(found, name) for name in columns]
    kind = "front" if found["front"] else "rejected" if not found["feasible"] else ""
    return html.Tr(cells, className=kind)


def _cell(row: Any, name: str) -> html.Td:
    metric = next((key for key, kind in METRICS.items() if kind.column == name), None)
    if name == "number":
        tags = [html.Span("front", className="tag blue")] if row["front"] else []
        tags += (
            [html.Span(f"{row['baseline']} baseline", className="tag")] if row["baseline"] else []
        )
        return html.Td(
            [html.A(int(row["number"]), href=design_path(row["study"], row["number"])), *tags],
            className="number trial",
        )
    if metric is not None:
        found = metric_of(row, metric)
        value = None if found is None else found.value
        return html.Td(
            [shown(metric, value), html.Small(interval(metric, found))], className="number"
        )
    if name == "test_accuracy":
        value = float(row[name])
        return html.Td(shown("accuracy", value if np.isfinite(value) else None), className="number")
    if name == "parameters":
        return html.Td(f"{int(row[name]):,}" if row[name] else "-", className="number")
    if name == "weight_bits":
        return html.Td(f"{row[name]:.3g}" if np.isfinite(row[name]) else "-", className="number")
    if name == "reason":
        return html.Td([str(row["state"]), html.Small(text_of(row["reason"]))], className="text")
    return html.Td(text_of(row[name]), className="text")


def _pager(page: int, pages: int, count: int) -> html.Nav:
    steps = (
        ("first", "« First", 0),
        ("previous", "‹ Previous", page - 1),
        ("next", "Next ›", page + 1),
        ("last", "Last »", pages - 1),
    )
    buttons = [
        html.Button(
            text,
            id={"type": "page", "step": step},
            n_clicks=0,
            value=str(to),
            disabled=to == page or not 0 <= to < pages,
        )
        for step, text, to in steps
    ]
    said = html.Span(f"Page {page + 1:,} of {pages:,} · {count:,} trials", className="quiet")
    return html.Nav(
        [*buttons[:2], said, *buttons[2:]],
        className="pager",
        **aria(label="Pages of the table"),
    )


def design_path(study: str, number: int) -> str:
    """The address of a design's page."""
    return f"/design/{quote(str(study), safe='')}/{int(number)}"


def csv_text(view: View) -> str:
    """What the table shows, all pages: SI units in the names, knobs as `knob:<name>`."""
    left_out = ("uid", "position")
    columns = [name for name in view.table if name not in left_out]
    return str(view.table.loc[view.chosen, columns].to_csv(index=False, lineterminator="\n"))


def _title(metric: str) -> str:
    name = label(metric)
    return name[0].upper() + name[1:]
