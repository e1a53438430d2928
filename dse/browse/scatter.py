"""The Pareto scatter of any two or three metrics, from columns; of many designs an even sample.

Plain dictionaries instead of plotly's objects: checking every value would take longer than drawing.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dse.browse.thinning import thinned
from dse.browse.view import Rows, View
from dse.constraints import parse_constraint
from dse.errors import DseError
from dse.filter import KNOB, Mask
from dse.overview import Overview
from dse.report.designs import label, shown
from dse.report.figures import BLUE, FADED, GREEN, ORANGE, VERMILION, Axis, axis_for
from dse.trial import METRICS, MetricName

Figure = dict[str, Any]
# Okabe & Ito, without the yellow that white swallows; a second study starts further on.
PALETTE = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", VERMILION, "#8C6D1F", "#7F7F7F")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "pentagon")
MISS = "#9AA5B1"
BARS = 1000  # designs that are drawn with intervals at most
FONT = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica Neue, Arial, sans-serif"
MID = "#7B8794"  # readable on light and on dark


@dataclass(frozen=True)
class Options:
    """What the controls say. `colour` and `symbol` are columns, or '' for the kind of design.

    `quick` leaves out the many that are not on the front: it is drawn at once, they follow.
    """

    x: MetricName
    y: MetricName
    z: MetricName | None = None
    log: tuple[str, ...] = ()
    colour: str = ""
    symbol: str = ""
    intervals: bool = True
    zoom: bool = True
    quick: bool = False
    focus: int | None = None


def scatter(view: View, options: Options) -> Figure:
    """The figure; `customdata` of every point is its uid."""
    names = [options.x, options.y, *([options.z] if options.z else [])]
    axes = [axis_of(view, name) for name in names]
    traces = [trace for trace in _traces(view, options, axes) if trace]
    layout = base_layout() | {
        "uirevision": "-".join(names) + str(options.log),
        "legend": {
            "orientation": "h",
            "y": 1.02,
            "yanchor": "bottom",
            "x": 0,
            "itemsizing": "constant",
        },
        "hovermode": "closest",
        "clickmode": "event",
        # The box of a selection goes once its designs are marked, or it would select again.
        "selections": [],
        "selectionrevision": 0 if view.selected is None else hash(view.selected),
        "dragmode": "zoom",
        "coloraxis": _colour_axis(options.colour),
        "margin": {"l": 66, "r": 12, "t": 30, "b": 48},
    }
    if options.z:
        return {
            "data": traces,
            "layout": layout | {"scene": _scene(axes, options.log), "dragmode": "turntable"},
        }
    layout["xaxis"], layout["yaxis"] = (
        axis_layout(axis, axis.metric in options.log) for axis in axes
    )
    if options.zoom:
        _zoom(view, axes, options.log, layout)
    layout["shapes"], layout["annotations"] = _limits(view, axes, options.log)
    if any(trace.get("yaxis") == "y2" for trace in traces):
        layout["xaxis"] |= {"anchor": "free", "position": 0}
        layout["yaxis"] |= {"domain": [0.07, 1.0]}
        layout["yaxis2"] = {
            "domain": [0.0, 0.045],
            "range": [-1, 1],
            "visible": False,
            "fixedrange": True,
        }
    return {"data": traces, "layout": layout}


def axis_of(view: View, metric: MetricName) -> Axis:
    """The axis of a metric over what the view holds, filtered or not, so that it stays put."""
    values = view.values(metric)
    return axis_for(metric, values[np.isfinite(values)])


def base_layout() -> Figure:
    """What every figure of the page shares; colours of text and grid come from the style sheet."""
    return {
        "template": "none",
        "font": {"family": FONT, "size": 13, "color": MID},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": MID, "activecolor": BLUE},
        "hoverlabel": {"align": "left"},
        "margin": {"l": 60, "r": 12, "t": 12, "b": 44},
    }


def axis_layout(axis: Axis, log: bool) -> Figure:
    """An axis with its unit; 1, 2 and 5 of every decade where it is logarithmic."""
    return {
        "title": {"text": axis.title, "standoff": 8},
        "type": "log" if log else "linear",
        "dtick": "D2" if log else None,
        "tickformat": ",~g",
        "gridcolor": "rgba(123,135,148,0.22)",
        "zeroline": False,
        "automargin": True,
    }


def packed(values: npt.ArrayLike, kind: str = "f4") -> dict[str, str]:
    """An array as plotly's scripts read it at once: base64 of little-endian numbers."""
    array = np.ascontiguousarray(values, dtype=f"<{kind}")
    return {"dtype": kind, "bdata": base64.b64encode(array.tobytes()).decode("ascii")}


def _traces(view: View, options: Options, axes: Sequence[Axis]) -> Iterator[Figure]:
    plain = view.mask & ~view.is_baseline
    front, feasible = view.flag("front") & plain, view.flag("feasible") & plain
    infeasible = view.state("infeasible") & plain
    many = int(view.mask.sum()) > 1000
    draw = _Draw(view, options, axes)
    if options.quick:
        infeasible, feasible = np.zeros_like(plain), front
    yield draw.points(
        "infeasible",
        infeasible,
        {"color": MISS, "size": 4 if many else 6, "symbol": "x-thin-open", "opacity": 0.5},
        rank=50,
    )
    if not options.z:
        yield draw.staircases()
    small = {"size": 5 if many else 7, "opacity": 0.4}
    large = {"size": 10, "opacity": 1.0, "line": {"color": "white", "width": 1}}
    if options.colour == "":
        yield draw.points("dominated", feasible & ~front, {"color": FADED} | small, rank=40)
        yield draw.points("Pareto front", front, {"color": BLUE} | large, rank=10, bars=True)
    else:
        yield from draw.coloured(feasible & ~front, small, rank=40)
        yield from draw.coloured(front, large, rank=10, bars=True)
    for start, colour, symbol in (("float", VERMILION, "diamond"), ("int8", ORANGE, "square")):
        rows = view.mask & view.table["baseline"].astype(str).str.startswith(start).to_numpy(
            np.bool_
        )
        marker = {
            "color": colour,
            "size": 13,
            "symbol": symbol,
            "line": {"color": "white", "width": 1},
        }
        yield draw.points(f"{start.replace('float', 'float32')} baseline", rows, marker, rank=30)
    ring = {
        "color": GREEN,
        "symbol": "circle-open",
        "size": 16,
        "line": {"color": "#009E73", "width": 2},
    }
    yield draw.points("verified", view.mask & view.flag("verified"), ring, rank=20, quiet=True)
    if options.focus is not None:
        here = (view.table["uid"] == options.focus).to_numpy(np.bool_)
        mark = ring | {"size": 24, "color": "#CC79A7", "line": {"width": 3}}
        yield draw.points("chosen design", here, mark, rank=60, quiet=True)
    if not options.z and not options.quick:
        yield draw.unmeasured()


class _Draw:
    """Traces over the same axes."""

    def __init__(self, view: View, options: Options, axes: Sequence[Axis]) -> None:
        self.view, self.options, self.axes = view, options, axes
        self.columns = [view.values(axis.metric) / axis.size for axis in axes]
        known = np.all([np.isfinite(column) for column in self.columns], axis=0)
        for axis, column in zip(axes, self.columns, strict=True):
            if axis.metric in options.log:
                known &= column > 0
        self.known = known
        self.uids = view.table["uid"].to_numpy(np.int64)
        self.selected = None if view.selected is None else view.chosen

    def points(
        self,
        name: str,
        rows: Mask,
        marker: Figure,
        *,
        rank: int,
        bars: bool = False,
        quiet: bool = False,
        group: str | None = None,
        in_legend: bool = True,
    ) -> Figure:
        """A trace of markers; empty when there are none."""
        every = np.flatnonzero(rows & self.known)
        if not len(every):
            return {}
        found = self._thinned(every)
        coordinates = {k: packed(c[found]) for k, c in zip("xyz", self.columns, strict=False)}
        trace: Figure = {
            "type": "scatter3d" if self.options.z else "scatter",
            "mode": "markers",
            "name": name if group else f"{name} ({_counted(every, found)})",
            "legendrank": rank,
            "showlegend": in_legend,
            "marker": self._marker(marker, found),
            "customdata": self.uids[found].tolist(),  # packed, Dash would not tell a point its own
            "hoverinfo": "skip" if quiet else "none",
            "unselected": {"marker": {"opacity": 0.06}},
            **coordinates,
        }
        if group:
            trace["legendgroup"] = group
        if self.selected is not None and not quiet:
            trace["selectedpoints"] = np.flatnonzero(self.selected[found]).tolist()
        if bars and self.options.intervals and not self.options.z and len(found) <= BARS:
            trace |= {
                f"error_{k}": self._bars(axis, found, marker)
                for k, axis in zip("xy", self.axes, strict=False)
            }
        return trace

    def _thinned(self, rows: Rows) -> Rows:
        return thinned(rows, self.columns, [a.metric in self.options.log for a in self.axes])

    def _marker(self, marker: Figure, rows: Rows) -> Figure:
        found = dict(marker)
        if self.options.z:  # plotly's 3-D knows fewer symbols and no list of opacities
            found["symbol"] = {
                "x-thin-open": "x",
                "triangle-up": "diamond",
                "star": "cross",
                "circle-open": "circle-open",
            }.get(str(found.get("symbol", "circle")), str(found.get("symbol", "circle")))
            found["size"] = max(2, found["size"] * 0.5)
        elif self.options.symbol and found.get("symbol", "circle") == "circle":
            texts = self.view.table[self.options.symbol].astype(str).to_numpy()
            order = {text: i for i, text in enumerate(sorted(set(texts)))}
            found["symbol"] = [SYMBOLS[order[text] % len(SYMBOLS)] for text in texts[rows]]
        return found

    def coloured(
        self, rows: Mask, marker: Figure, *, rank: int, bars: bool = False
    ) -> Iterator[Figure]:
        """Traces by the column that colours: one a category, or one with a colour scale."""
        column = self.view.table[self.options.colour]
        if column.dtype.kind in "iuf" and column.nunique() > 8:
            values = column.to_numpy(np.float64)
            found = self._thinned(np.flatnonzero(rows & self.known))
            scaled = marker | {"color": packed(values[found]), "coloraxis": "coloraxis"}
            yield self.points("front" if bars else "dominated", rows, scaled, rank=rank)
            return
        texts = column.astype(object).where(column.notna(), "none").astype(str).to_numpy()
        for index, text in enumerate(sorted(set(texts[self.view.flag("feasible")]), key=_natural)):
            colour = {"color": PALETTE[index % len(PALETTE)]}
            yield self.points(
                text,
                rows & (texts == text),
                marker | colour,
                rank=rank + index if bars else rank,
                bars=bars,
                group=text,
                in_legend=bars,
            )

    def _bars(self, axis: Axis, rows: Rows, marker: Figure) -> Figure:
        column = METRICS[axis.metric].column
        value = self.view.table[column].to_numpy(np.float64)[rows]
        ends = [
            self.view.table[f"{column}_{end}"].to_numpy(np.float64)[rows] for end in ("low", "high")
        ]
        reach = [np.nan_to_num(np.abs(end - value), posinf=0.0) / axis.size for end in ends]
        return {
            "type": "data",
            "symmetric": False,
            "arrayminus": packed(reach[0]),
            "array": packed(reach[1]),
            "color": marker.get("color") if isinstance(marker.get("color"), str) else MID,
            "thickness": 1,
            "width": 0,
        }

    def staircases(self) -> Figure:
        """The lines of what no feasible design beats in these two metrics, study after study."""
        x: list[float | None] = []
        y: list[float | None] = []
        position = self.view.table["position"].to_numpy()
        for index in range(len(self.view.overviews)):
            rows = self.known & self.view.mask & self.view.flag("feasible") & (position == index)
            for first, second in steps(self.columns[0][rows], self.columns[1][rows], self.axes):
                x.append(first)
                y.append(second)
            x.append(None)
            y.append(None)
        return (
            {
                "type": "scatter",
                "mode": "lines",
                "name": "best in these two",
                "legendrank": 25,
                "x": x,
                "y": y,
                "line": {"shape": "hv", "color": BLUE, "width": 1.5, "dash": "dot"},
                "opacity": 0.6,
                "hoverinfo": "skip",
            }
            if len(x) > len(self.view.overviews)
            else {}
        )

    def unmeasured(self) -> Figure:
        """Ticks along the lower edge: designs that have x but not y, rejected by their costs."""
        lacking = self.view.mask & np.isfinite(self.columns[0]) & ~np.isfinite(self.columns[1])
        if self.axes[0].metric in self.options.log:
            lacking &= self.columns[0] > 0
        every = np.flatnonzero(lacking)
        if not len(every):
            return {}
        # One a pixel or so of the lower edge.
        found = thinned(every, self.columns[:1], [self.axes[0].metric in self.options.log])
        return {
            "type": "scatter",
            "mode": "markers",
            "yaxis": "y2",
            "legendrank": 70,
            "name": f"{label(self.axes[1].metric)} not measured ({_counted(every, found)})",
            "x": packed(self.columns[0][found]),
            "y": packed(np.zeros(len(found))),
            "customdata": self.uids[found].tolist(),
            "hoverinfo": "none",
            "marker": {"symbol": "line-ns-open", "size": 9, "color": MISS, "opacity": 0.6},
            "unselected": {"marker": {"opacity": 0.1}},
        }


def _counted(every: Rows, drawn: Rows) -> str:
    """How many there are, and how many of them are drawn where those are fewer."""
    few = f", {len(drawn):,} drawn" if len(drawn) < len(every) else ""
    return f"{len(every):,}{few}"


def _zoom(view: View, axes: Sequence[Axis], log: Sequence[str], layout: Figure) -> None:
    """Begin with the feasible designs and the baselines: what was rejected can lie far away."""
    rows = view.mask & (view.flag("feasible") | view.is_baseline)
    for key, axis in zip("xy", axes, strict=False):
        values = view.values(axis.metric)[rows] / axis.size
        values = values[np.isfinite(values) & ((values > 0) | (axis.metric not in log))]
        if len(values) < 2 or not values.max() > values.min():
            continue
        ends = np.array([values.min(), values.max()])
        ends = np.log10(ends) if axis.metric in log else ends
        margin = 0.06 * (ends[1] - ends[0])
        layout[f"{key}axis"]["range"] = [float(ends[0] - margin), float(ends[1] + margin)]


def steps(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], axes: Sequence[Axis]
) -> list[tuple[float, float]]:
    """The corners of the staircase of the best points, best x first."""
    signs = [METRICS[axis.metric].sign for axis in axes[:2]]
    order = np.lexsort((signs[1] * y, signs[0] * x))
    found: list[tuple[float, float]] = []
    best = np.inf
    for first, second in zip(x[order].tolist(), y[order].tolist(), strict=True):
        if signs[1] * second < best:
            best = signs[1] * second
            found.append((first, second))
    return found


def _limits(
    view: View, axes: Sequence[Axis], log: Sequence[str]
) -> tuple[list[Figure], list[Figure]]:
    """A dashed line with its text for every constraint on one of the two metrics."""
    shapes: list[Figure] = []
    texts: list[Figure] = []
    drawn: set[tuple[str, float]] = set()
    for overview in view.overviews:
        for metric, limit in limits_of(overview):
            for key, axis in zip("xy", axes, strict=False):
                if axis.metric != metric or (metric, limit) in drawn:
                    continue
                drawn.add((metric, limit))
                at = limit / axis.size
                other = "y" if key == "x" else "x"
                shapes.append(
                    {
                        "type": "line",
                        key + "0": at,
                        key + "1": at,
                        other + "0": 0,
                        other + "1": 1,
                        other + "ref": f"{other} domain",
                        key + "ref": key,
                        "layer": "below",
                        "line": {"color": VERMILION, "width": 1.5, "dash": "dash"},
                    }
                )
                texts.append(
                    {
                        key: float(np.log10(at)) if metric in log else at,
                        key + "ref": key,
                        # At the right end and at the top: the best small designs lie left.
                        other: 1 if key == "x" else 0.995,
                        other + "ref": f"{other} domain",
                        "showarrow": False,
                        "font": {"size": 11},
                        "text": f"limit {shown(metric, limit)}",
                        "xanchor": "right",
                        "yanchor": "bottom" if key == "y" else "top",
                    }
                )
    return shapes, texts


def limits_of(overview: Overview) -> list[tuple[str, float]]:
    """The study's constraints as limits in SI units, where they are the same for every target."""
    found = []
    float_rows = (overview.table["baseline"] == "float32").to_numpy(np.bool_)
    accuracy = overview.table["accuracy"].to_numpy(np.float64)[float_rows]
    baseline = float(accuracy[0]) if len(accuracy) and np.isfinite(accuracy[0]) else None
    for text in overview.record.constraints:
        try:
            constraint = parse_constraint(text)
        except DseError:
            continue  # of a newer or a user's own kind; its trials say what they miss
        if constraint.relation == "absolute":
            found.append((str(constraint.metric), constraint.value))
        elif constraint.metric == "accuracy" and baseline is not None:
            found.append(("accuracy", constraint.limit(baseline)))
    return found


def _scene(axes: Sequence[Axis], log: Sequence[str]) -> Figure:
    scene: Figure = {"camera": {"eye": {"x": 1.5, "y": -1.6, "z": 0.8}}}
    for key, axis in zip("xyz", axes, strict=True):
        scene[f"{key}axis"] = axis_layout(axis, axis.metric in log) | {"color": MID}
        scene[f"{key}axis"].pop("automargin")
    return scene


def _colour_axis(column: str) -> Figure:
    name = column.removeprefix(KNOB).replace("_", " ") if column else ""
    return {
        "colorscale": "Cividis",
        "colorbar": {"title": {"text": name, "side": "right"}, "thickness": 12, "len": 0.8},
    }


def _natural(text: str) -> tuple[int, float, str]:
    try:
        return (0, float(text), text)
    except ValueError:
        return (1, 0.0, text)
