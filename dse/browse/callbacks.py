"""What happens on the main page: every view follows the studies, the filter and the selection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dash import ALL, Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.exceptions import PreventUpdate

from dse.browse import charts
from dse.browse.below import charts_below, choices
from dse.browse.layout import lead, live
from dse.browse.library import Library, place_of
from dse.browse.listing import Order, csv_text, design_path, listing
from dse.browse.page import Page, quiet
from dse.browse.scatter import Options, axis_of, scatter
from dse.browse.thinning import inside
from dse.browse.view import View, figures_of, text_of
from dse.errors import DseError


def register(app: Dash, library: Library) -> None:
    """Add every callback of the main page to the app."""
    page = Page(library)
    for add in (_live, _views, _saving, _selecting, _pointing, choices, charts_below):
        add(app, page)


def _live(app: Dash, page: Page) -> None:
    @app.callback(
        Output("mark", "data"),
        Output("lead", "children"),
        Output("live", "children"),
        Output("problem", "children"),
        Output("problem", "hidden"),
        Input("poll", "n_intervals"),
        Input("start", "data"),
        Input("studies", "value"),
        State("mark", "data"),
        prevent_initial_call=True,
    )
    def look(
        _: int | None, start: bool | None, names: list[str], mark: str | None
    ) -> tuple[Any, ...]:
        try:
            found = page.library.mark() + "|" + "|".join(names or [])
            if found == mark:
                return no_update, no_update, no_update, "", True
            overviews = page.library.overviews(names) if names else ()
        except DseError as error:
            return no_update, no_update, "Not live.", page.said(error), False
        if not names:
            return found, "No study is chosen.", "", "", True
        return (
            found,
            lead(overviews),
            live(overviews),
            "",
            True,
        )


def _saving(app: Dash, page: Page) -> None:
    @app.callback(
        Output("csv-file", "data"),
        Input("csv", "n_clicks"),
        State("studies", "value"),
        State("where", "data"),
        State("selection", "data"),
        prevent_initial_call=True,
    )
    @quiet
    def save(_: int, names: list[str], where: str, selected: list[int] | None) -> Any:
        return {
            "content": csv_text(page.view(names, where, selected)),
            "filename": "trials.csv",
            "type": "text/csv",
        }


def _selecting(app: Dash, page: Page) -> None:
    @app.callback(
        Output("selection", "data"),
        Output("brush", "data"),
        Input("scatter", "selectedData"),
        Input("parallel", "restyleData"),
        Input("picked", "data"),
        Input("clear", "n_clicks"),
        Input("studies", "value"),
        State("selection", "data"),
        State("brush", "data"),
        State("where", "data"),
        State("x", "value"),
        State("y", "value"),
        prevent_initial_call=True,
    )
    @quiet
    def select(
        lasso: Mapping[str, Any] | None,
        brushed: Sequence[Any] | None,
        picked: Mapping[str, int] | None,
        clear: int,
        names: list[str],
        selected: list[int] | None,
        brush: dict[str, Any],
        where: str,
        x: Any,
        y: Any,
    ) -> tuple[Any, Any]:
        source = ctx.triggered_id
        if source in ("clear", "studies"):
            return None, {}
        if source == "scatter":
            found = _within(page.view(names, where), lasso or {}, (x, y))
            if not found or found == selected:
                raise PreventUpdate  # a redraw, not a person
            return found, {}
        view = page.view(names, where)
        if source == "parallel":
            ranges = _ranges(view, brushed, brush)
            return charts.brushed(view, ranges), ranges
        if not picked:
            raise PreventUpdate
        return (sorted(set(selected or []) ^ {picked["uid"]}) or None), {}

    @app.callback(
        Output("focus", "data"),
        Input("scatter", "clickData"),
        Input({"type": "choice", "uid": ALL, "kind": ALL}, "n_clicks"),
        prevent_initial_call=True,
    )
    def focus(click: Mapping[str, Any] | None, clicks: Sequence[int]) -> Any:
        if isinstance(ctx.triggered_id, dict):
            return ctx.triggered_id["uid"] if any(clicks) else no_update
        points = (click or {}).get("points", [])
        uid = next((p["customdata"] for p in points if "customdata" in p), None)
        return no_update if uid is None else uid


def _within(view: View, lasso: Mapping[str, Any], axes: Sequence[Any]) -> list[int]:
    """The uids in a box or lasso: the points drawn, and those that were too many to draw."""
    points = lasso.get("points") or []
    found = {p["customdata"] for p in points if "customdata" in p}
    if found:
        x, y = (view.values(name) / axis_of(view, name).size for name in axes)
        found |= set(view.table["uid"][view.mask & inside(lasso, x, y)].tolist())
    return sorted(found)


def _ranges(view: View, brushed: Sequence[Any] | None, before: Mapping[str, Any]) -> dict[str, Any]:
    """The brushed ranges by column after one more brush; plotly tells only what changed."""
    ranges, names = dict(before), charts.dimension_names(view)
    for key, value in (brushed[0] if brushed else {}).items():
        if not key.endswith("constraintrange"):
            continue
        name = names[int(key.split("[")[1].split("]")[0])]
        if value:
            ranges[name] = value[0]
        else:
            ranges.pop(name, None)
    return ranges


VIEWS = {"mark", "filter", "selection"}  # what changes them all
DRAWING = ("x", "y", "z", "colour", "symbol", "log", "bars")


def _views(app: Dash, page: Page) -> None:
    """The scatter, the table and the number of trials: one answer, so that they change together."""

    @app.callback(
        Output("scatter", "figure"),
        Output("listing", "data"),
        Output("shown", "children"),
        Output("clear", "disabled"),
        Output("where", "data"),
        Output("filter-problem", "children"),
        Output("filter-problem", "hidden"),
        inputs={
            "mark": Input("mark", "data"),
            "text": Input("filter", "value"),
            "selected": Input("selection", "data"),
            "order": Input("order", "data"),
            "focus": Input("focus", "data"),
            "drawing": {name: Input(name, "value") for name in DRAWING},
        },
        state={"where": State("where", "data"), "names": State("studies", "value")},
        prevent_initial_call=True,
    )
    @quiet
    def draw(
        mark: str | None,
        text: str | None,
        selected: list[int] | None,
        order: Any,
        focus: int | None,
        drawing: Mapping[str, Any],
        where: str,
        names: list[str],
    ) -> tuple[Any, ...]:
        if mark is None:
            # A new page tells of its empty selection, before which the front is already drawn; to
            # draw it here would make the first `mark` a circle, which Dash does not follow.
            raise PreventUpdate
        asked = {key.rpartition(".")[0] for key in ctx.triggered_prop_ids}
        problem = ""
        try:
            view = page.view(names, text or "", selected)
        except DseError as error:
            problem = page.said(error)
            if "filter" in asked:
                return *(no_update,) * 5, problem, False
            view = page.view(names, where, selected)
        all_ = bool(asked & VIEWS)
        drawn = scatter(view, _options(drawing, focus)) if all_ or asked - {"order"} else no_update
        listed = listing(view, Order(**order)) if all_ or "order" in asked else no_update
        return (
            drawn,
            listed,
            _shown(view),
            selected is None,
            no_update if problem else text or "",
            problem,
            not problem,
        )


def _options(drawing: Mapping[str, Any], focus: int | None) -> Options:
    """What the controls of the scatter say."""
    flags = drawing["bars"] or ()
    return Options(
        drawing["x"],
        drawing["y"],
        drawing["z"] or None,
        tuple(drawing["log"] or ()),
        drawing["colour"],
        drawing["symbol"],
        intervals="bars" in flags,
        zoom="zoom" in flags,
        focus=focus,
    )


def _shown(view: View) -> str:
    said = f"{int(view.mask.sum()):,} of {len(view.mask):,} trials"
    return said if view.selected is None else f"{said}, {int(view.chosen.sum()):,} selected"


def _pointing(app: Dash, page: Page) -> None:
    @app.callback(
        Output("hover", "show"),
        Output("hover", "bbox"),
        Output("hover", "children"),
        Input("scatter", "hoverData"),
        State("studies", "value"),
        prevent_initial_call=True,
    )
    @quiet
    def hover(found: Mapping[str, Any] | None, names: list[str]) -> tuple[Any, ...]:
        point = (found or {}).get("points", [{}])[0]
        if "customdata" not in point or "bbox" not in point:
            return False, no_update, no_update
        return True, point["bbox"], _card(page, names, point["customdata"], short=True)

    @app.callback(
        Output("side", "children"),
        Input("focus", "data"),
        Input("mark", "data"),
        State("studies", "value"),
        prevent_initial_call=True,
    )
    @quiet
    def side(uid: int | None, _: str, names: list[str]) -> Any:
        if uid is None:
            raise PreventUpdate
        return _card(page, names, uid, short=False)


def _card(page: Page, names: Sequence[str], uid: int, *, short: bool) -> list[Any]:
    """A trial at the pointer or at the side."""
    place = place_of(uid, names)
    if place is None:
        raise PreventUpdate
    study, number = place
    view = page.view(names)
    rows = view.table[view.table["uid"] == uid]
    if rows.empty:
        raise PreventUpdate
    row = rows.iloc[0]
    kind = "on the front" if row["front"] else str(row["state"])
    tags = [kind] + ([f"{row['baseline']} baseline"] if row["baseline"] else [])
    tags += ["verified"] if row["verified"] else []
    figures = [
        html.Div([html.Dt(name), html.Dd([value, html.Small(between)])])
        for name, value, between in figures_of(row, view.metrics)
    ]
    where = " · ".join(text for text in (text_of(row["board"]), text_of(row["backend"])) if text)
    head = f"Trial {number}" + (f" of {study}" if len(names) > 1 else "")
    parts: list[Any] = [
        html.H3(head),
        html.P(" · ".join(tags), className="quiet"),
        html.Dl(figures, className="figures"),
        html.P(where),
    ]
    if row["reason"]:
        parts.append(html.P(row["reason"], className="why"))
    if not short:
        size = f"{int(row['parameters']):,} parameters, " if row["parameters"] else ""
        parts.append(html.P(f"{size}costs {row['provenance']}", className="quiet"))
        parts.append(
            dcc.Link("Open the design's page", href=design_path(study, number), className="button")
        )
    return parts
