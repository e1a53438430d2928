"""The cards that help to choose, and what lies below: drawn after the scatter and the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dash import ALL, Dash, Input, Output, State, ctx, html
from dash.exceptions import PreventUpdate

from dse.browse import charts
from dse.browse.library import uid_of
from dse.browse.markup import plot, table
from dse.browse.page import Page, quiet
from dse.browse.view import text_of
from dse.choose import Choice, cheapest_choice, closest_choice, knee_choice
from dse.compare import compare
from dse.errors import DseError
from dse.filter import both
from dse.overview import Overview
from dse.targets import load_boards

AXIS_PX = 96  # that the name of an axis takes


def choices(app: Dash, page: Page) -> None:
    """Knee, closest to the ideal and cheapest board, each with its sentence."""

    def told(names: Sequence[str], title: str, choose: Callable[[Overview], Choice]) -> list[Any]:
        parts: list[Any] = [html.H3(title)]
        for position, overview in enumerate(page.library.overviews(names)):
            try:
                found = choose(overview)
            except DseError as error:
                parts.append(html.P(page.said(error), className="quiet"))
                continue
            uid = uid_of(position, found.number)
            of = f" of {overview.record.name}" if len(names) > 1 else ""
            where = overview.table.iloc[found.number]
            button = html.Button(
                f"Trial {found.number}{of}",
                id={"type": "choice", "uid": uid, "kind": title},
                n_clicks=0,
                className="link",
            )
            parts.append(
                html.P([button, f" · {text_of(where['board'])} · {text_of(where['backend'])}"])
            )
            parts.append(html.P(found.why))
        return parts

    @app.callback(
        Output("choice-knee", "children"),
        Output("choice-closest", "children"),
        Input("mark", "data"),
        Input("where", "data"),
        Input({"type": "weight", "metric": ALL}, "value"),
        State("studies", "value"),
        prevent_initial_call=True,
    )
    @quiet
    def balanced(mark: str, where: str, weights: Sequence[float], names: list[str]) -> Any:
        given = {item["id"]["metric"]: float(item["value"] or 0) for item in ctx.inputs_list[2]}

        def closest(overview: Overview) -> Choice:
            mine = {k: v for k, v in given.items() if k in overview.record.objectives}
            return closest_choice(overview, mine, where)

        return (
            told(names, "Knee", lambda overview: knee_choice(overview, where)),
            told(names, "Closest to ideal", closest),
        )

    @app.callback(
        Output("choice-cheapest", "children"),
        Input("mark", "data"),
        Input("reach", "value"),
        Input("where", "data"),
        State("studies", "value"),
        prevent_initial_call=True,
    )
    @quiet
    def cheapest(mark: str, reach: str | None, where: str, names: list[str]) -> Any:
        wanted = both(reach, where)
        return told(names, "Cheapest board", lambda o: cheapest_choice(o, wanted, load_boards()))


def charts_below(app: Dash, page: Page) -> None:
    """What lies below: drawn after the scatter, so that the first useful page comes first."""

    @app.callback(
        Output("parallel", "figure"),
        Output("parallel-note", "children"),
        Output("parallel-frame", "style"),
        Input("late", "data"),
        State("where", "data"),
        State("selection", "data"),
        State("brush", "data"),
        State("studies", "value"),
        prevent_initial_call=True,
    )
    @quiet
    def lines(
        late: str, where: str, selected: list[int] | None, brush: Any, names: list[str]
    ) -> Any:
        if brush:
            raise PreventUpdate  # the lines themselves made this selection
        view = page.view(names, where, selected)
        drawn = len(charts.shown_lines(view))
        all_ = int((view.mask & view.flag("feasible") & ~view.is_baseline).sum())
        note = f"Drawn: the whole front and an even sample, {drawn:,} of {all_:,} feasible designs."
        width = {"minWidth": f"{AXIS_PX * len(charts.dimension_names(view))}px"}
        return charts.parallel(view, late), note if drawn < all_ else "", width

    @app.callback(
        Output("progress", "figure"),
        Input("late-mark", "data"),
        Input("against", "value"),
        State("studies", "value"),
        prevent_initial_call=True,
    )
    @quiet
    def progress(late: str | None, against: str, names: list[str]) -> Any:
        return charts.progress(page.view(names), against)

    @app.callback(
        Output("importance", "children"),
        Output("timeline", "children"),
        Output("compared", "children"),
        Input("late-mark", "data"),
        State("studies", "value"),
        prevent_initial_call=True,
    )
    @quiet
    def rest(late: str | None, names: list[str]) -> Any:
        view = page.view(names)
        parts: list[Any] = []
        for overview in view.overviews:
            parts += _importance_of(overview, len(view.overviews) > 1)
        figure = charts.timeline(view)
        ran = int((view.table["started"] > 0).sum())
        note = f"The last {charts.BARS} of {ran:,} trials." if ran > charts.BARS else ""
        shown: list[Any] = [html.P("Nothing ran yet.", className="empty")]
        if figure:
            shown = [
                plot("When the trials ran", "low", figure=figure, id="timeline-plot"),
                html.P(
                    f"Trials that ran at the same time lie above each other. {note}",
                    className="quiet",
                ),
            ]
        return parts, shown, _compared(view.overviews)


def _compared(overviews: Sequence[Overview]) -> list[Any]:
    """Two studies in one box, as `dse compare` prints them."""
    if len(overviews) != 2:
        return []
    try:
        found = compare(*overviews)
    except DseError as error:
        return [html.P(str(error), className="quiet")]
    rows = found.rows()
    cells = [
        html.Tr(
            [
                html.Th(row["figure"], scope="row"),
                *(html.Td(text, className="number") for text in list(row.values())[1:]),
            ]
        )
        for row in rows
    ]
    titles = ["", *list(rows[0])[1:]]
    return [html.P(found.sentence()), table(titles, cells, numbers=(1, 2))]


def _importance_of(overview: Overview, several: bool) -> list[Any]:
    figure = charts.importance(overview)
    title = [html.H3(overview.record.name)] if several else []
    if not figure:
        return [
            *title,
            html.P("It takes two knobs and 20 evaluated designs to say.", className="empty"),
        ]
    note = "The share of each objective that each knob decides among its best designs (PED-ANOVA)."
    return [
        *title,
        plot("Share of each objective that each knob decides", figure=figure),
        html.P(note, className="quiet"),
    ]
