"""The table of trials: sorted and cut into pages here, so that the page stays light.

It is HTML in one piece: as components of Dash, each of its 600 cells and buttons would listen to
every change of the page. assets/browse.js puts it in place and hears its buttons.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from html import escape
from typing import Any
from urllib.parse import quote

import numpy as np

from dse.browse.view import Rows, View, metric_of, text_of
from dse.report.designs import interval, label, shown
from dse.trial import METRICS

PAGE = 20


@dataclass(frozen=True)
class Order:
    """Sorted by a column, at a page (from 0) of what `where` leaves; another filter starts at 0."""

    column: str = ""
    down: bool = False
    page: int = 0
    where: str = ""


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


def listing(view: View, order: Order) -> str:
    """The table with its pager; its buttons carry the order or the uid that they ask for."""
    rows = ordered(view, order)
    if not len(rows):
        said = "No trial matches. Change or clear the filter and the selection."
        return f'<p class="empty">{said}</p>'
    pages = -(-len(rows) // PAGE)
    page = min(max(0, order.page), pages - 1) if order.where == view.where else 0
    order = replace(order, page=page, where=view.where)
    columns = columns_of(view)
    part = view.table.iloc[rows[page * PAGE : (page + 1) * PAGE]]
    body = "".join(_row(view, row, columns) for row in part.to_dict("records"))
    titles = "".join(_head(name, title, order) for name, title in columns.items())
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of trials">'
        '<table class="trials"><thead><tr><th><span class="hidden-text">Select</span></th>'
        f"{titles}</tr></thead><tbody>{body}</tbody></table></div>"
        + _pager(order, pages, len(rows))
    )


def _asking(order: Order) -> str:
    """The attribute of a button that asks for this order."""
    return f'data-order="{escape(json.dumps(asdict(order)))}"'


def _head(name: str, title: str, order: Order) -> str:
    here = order.column == name
    sort = "none" if not here else "descending" if order.down else "ascending"
    arrow = {"ascending": " ▲", "descending": " ▼"}.get(sort, "")
    asked = _asking(Order(name, here and not order.down, where=order.where))
    kind = "" if name in _TEXTS else ' class="number"'
    button = f'<button class="head" data-key="sort {escape(name)}" {asked}>{escape(title)}{arrow}'
    return f'<th{kind} aria-sort="{sort}">{button}</button></th>'


_TEXTS = ("study", "board", "backend", "provenance", "reason")


def _row(view: View, row: dict[Any, Any], columns: dict[str, str]) -> str:
    uid = int(row["uid"])
    pressed = view.selected is not None and uid in view.selected
    pick = (
        f'<td><button class="pick" data-key="pick {uid}" data-uid="{uid}" '
        f'title="Select this design in every view" aria-pressed="{str(pressed).lower()}" '
        f'aria-label="Select trial {int(row["number"])}">{"●" if pressed else "○"}</button></td>'
    )
    kind = "front" if row["front"] else "rejected" if not row["feasible"] else ""
    return f'<tr class="{kind}">{pick}{"".join(_cell(row, name) for name in columns)}</tr>'


_METRIC_OF = {kind.column: name for name, kind in METRICS.items()}


def _cell(row: dict[Any, Any], name: str) -> str:
    if name == "number":
        return _trial(row)
    if name in _METRIC_OF:
        metric = metric_of(row, _METRIC_OF[name])
        value = None if metric is None else metric.value
        between = interval(_METRIC_OF[name], metric)
        return _number(shown(_METRIC_OF[name], value), between)
    value = row[name]
    if name == "test_accuracy":
        return _number(shown("accuracy", float(value) if np.isfinite(value) else None))
    if name == "parameters":
        return _number(f"{int(value):,}" if value else "-")
    if name == "weight_bits":
        return _number(f"{value:.3g}" if np.isfinite(value) else "-")
    if name == "reason":
        said = escape(text_of(value))
        return f'<td class="text">{escape(str(row["state"]))}<small>{said}</small></td>'
    return f'<td class="text">{escape(text_of(value))}</td>'


def _number(text: str, between: str = "") -> str:
    small = f"<small>{escape(between)}</small>" if between else ""
    return f'<td class="number">{escape(text)}{small}</td>'


def _trial(row: dict[Any, Any]) -> str:
    tags = '<span class="tag blue">front</span>' if row["front"] else ""
    if row["baseline"]:
        tags += f'<span class="tag">{escape(str(row["baseline"]))} baseline</span>'
    path = escape(design_path(row["study"], row["number"]))
    return f'<td class="number trial"><a href="{path}">{int(row["number"])}</a>{tags}</td>'


def _pager(order: Order, pages: int, count: int) -> str:
    steps = (
        ("« First", 0),
        ("‹ Previous", order.page - 1),
        ("Next ›", order.page + 1),
        ("Last »", pages - 1),
    )
    buttons = [
        f'<button data-key="{text}" {_asking(replace(order, page=to))}'
        f"{' disabled' if to == order.page or not 0 <= to < pages else ''}>{text}</button>"
        for text, to in steps
    ]
    said = f"Page {order.page + 1:,} of {pages:,} · {count:,} trials"
    middle = f'<span class="quiet">{said}</span>'
    parts = "".join([*buttons[:2], middle, *buttons[2:]])
    return f'<nav class="pager" aria-label="Pages of the table">{parts}</nav>'


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
