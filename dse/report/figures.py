"""The figures of a study (plotly): Pareto scatter, hypervolume, parallel coordinates."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from dse.report.designs import (
    KNEE,
    Designs,
    describe,
    interval,
    label,
    mean_bits,
    shown,
    target_text,
)
from dse.rows import FrontChange
from dse.trial import Metric, MetricName, State, Trial
from dse.units import METRIC_DIMENSION, UNITS

# Okabe & Ito's palette (jfly.uni-koeln.de/color, 2008): told apart by every kind of eye.
BLUE, ORANGE, VERMILION, GREEN = "#0072B2", "#E69F00", "#D55E00", "#009E73"
FADED, INFEASIBLE, INK, GRID = "#8FB3CC", "#CCCCCC", "#1F2933", "#E8ECF0"

_FONT = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica Neue, Arial, sans-serif"

GL_FROM = 1500  # points of a trace

_AXIS_UNITS: Mapping[str, tuple[str, ...]] = {
    "share": ("%",),
    "bytes": ("MiB", "KiB", "B"),
    "seconds": ("s", "ms", "us"),
    "joules": ("J", "mJ", "uJ"),
}


@dataclass(frozen=True)
class Axis:
    """How one metric is drawn: its unit, what a unit is in SI, and whether logarithmic."""

    metric: MetricName
    unit: str
    size: float
    log: bool

    @property
    def title(self) -> str:
        """The axis title with its unit."""
        name = label(self.metric)
        return f"{name[0].upper()}{name[1:]} ({self.unit.replace('us', 'µs').replace('uJ', 'µJ')})"

    def scaled(self, value: float | None) -> float | None:
        """The value in the axis's unit, None when it is unknown; nine digits are enough to draw."""
        return None if value is None else float(f"{value / self.size:.9g}")


@dataclass(frozen=True)
class Group:
    """The trials of one trace of the scatter and how they are drawn."""

    key: str
    name: str
    trials: Sequence[Trial]
    marker: Mapping[str, Any]
    rank: int
    bars: bool = False


def axis(designs: Designs, metric: MetricName) -> Axis:
    """The axis of a metric over a study's trials."""
    known = [value for trial in designs.trials if (value := trial.value(metric)) is not None]
    return axis_for(metric, np.array(known, dtype=np.float64))


def axis_for(metric: MetricName, values: npt.NDArray[np.float64]) -> Axis:
    """The axis of values in SI units, without NaN: the unit of their median; log over 10x."""
    sizes = UNITS[METRIC_DIMENSION[metric]]
    units = _AXIS_UNITS[METRIC_DIMENSION[metric]]
    middle = float(np.median(values)) if len(values) else 0.0
    unit = next((unit for unit in units if middle >= sizes[unit]), units[-1])
    positive = len(values) > 0 and bool(values.min() > 0)
    log = metric != "accuracy" and positive and bool(values.max() / values.min() > 10)
    return Axis(metric, unit, sizes[unit], log)


def groups(designs: Designs) -> list[Group]:
    """The traces of the scatter, drawn from first to last."""
    plain = [trial for trial in designs.trials if not trial.baseline]
    front = designs.front_numbers
    dominated = [trial for trial in plain if trial.feasible and trial.number not in front]
    infeasible = [trial for trial in plain if trial.state is State.INFEASIBLE]
    many = len(designs.trials) > 1000
    found = [
        Group(
            "infeasible",
            "infeasible",
            infeasible,
            {"color": INFEASIBLE, "size": 4 if many else 6, "symbol": "x"},
            rank=5,
        ),
        Group(
            "dominated",
            "dominated",
            dominated,
            {"color": FADED, "size": 5 if many else 7, "opacity": 0.45},
            rank=4,
        ),
        Group(
            "front",
            "Pareto front",
            [trial for trial in designs.front if not trial.baseline],
            {"color": BLUE, "size": 10, "line": {"color": "white", "width": 1}},
            rank=1,
            bars=True,
        ),
    ]
    found += [
        Group(
            "knee",
            "knee",
            [pick.trial for pick in designs.picks if KNEE in pick.titles],
            {
                "color": "rgba(0,0,0,0)",
                "size": 19,
                "symbol": "circle",
                "line": {"color": GREEN, "width": 2.5},
            },
            rank=2,
        )
    ]
    symbols = {"float": ("diamond", VERMILION), "int8": ("square", ORANGE)}
    for start, (symbol, colour) in symbols.items():
        members = [trial for trial in designs.trials if trial.baseline.startswith(start)]
        marker = {"color": colour, "size": 13, "symbol": symbol}
        marker["line"] = {"color": "white", "width": 1}
        name = f"{members[0].baseline} baseline" if members else start
        found.append(Group(f"{start}-baseline", name, members, marker, rank=3, bars=True))
    return [group for group in found if group.trials]


def scatter(designs: Designs, x: MetricName, y: MetricName) -> go.Figure:
    """The Pareto scatter of two metrics.

    Besides a trace a group: the staircase of what no feasible design beats in these two metrics,
    and ticks along the lower edge for designs whose y was never measured (rejected by cost).
    """
    axes = {name: axis(designs, name) for name in (x, y)}
    figure = go.Figure(layout=_layout(height=560))
    figure.add_trace(_staircase(designs, axes[x], axes[y]))
    for group in groups(designs):
        figure.add_trace(_points(designs, group, axes[x], axes[y]))
    figure.add_trace(_untried(designs, axes[x], axes[y]))
    figure.update_layout(
        # Below the strip of ticks, which takes the lower edge.
        xaxis={**_axis(axes[x]), "anchor": "free", "position": 0},
        yaxis={**_axis(axes[y]), "domain": [0.06, 1.0]},
        yaxis2={
            "domain": [0.0, 0.04],
            "range": [-1, 1],
            "visible": False,
            "fixedrange": True,
        },
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hovermode="closest",
    )
    return figure


def scatter_data(designs: Designs) -> dict[str, Any]:
    """All that the page needs to redraw the scatter on other axes, as JSON values.

    `axes` by metric; `traces` in the order of `scatter`, with value, low and high by metric.
    """
    axes = {name: axis(designs, name) for name in designs.metrics}
    return {
        "axes": {
            name: {
                "title": found.title,
                "name": label(name),
                "log": found.log,
                "maximize": name == "accuracy",
                "positive": name != "accuracy",
            }
            for name, found in axes.items()
        },
        "traces": [
            {
                "bars": group.bars,
                "feasible": [trial.feasible for trial in group.trials],
                "points": {name: _numbers(group, axes[name]) for name in designs.metrics},
            }
            for group in groups(designs)
        ],
    }


def hover(designs: Designs, trial: Trial) -> str:
    """What the pointer shows: trial, metrics with intervals, target, network, reason."""
    on_front = " · on the front" if trial.number in designs.front_numbers else ""
    kind = f" · {trial.baseline} baseline" if trial.baseline else ""
    state = "" if trial.feasible else f" · {trial.state.value}"
    lines = [f"<b>Trial {trial.number}</b>{html.escape(kind)}{on_front}{state}"]
    for name in designs.metrics:
        value, between = trial.value(name), interval(name, trial.metrics.get(name))
        if value is not None:
            tail = f"  ({between})" if between else ""
            lines.append(f"{label(name)} <b>{shown(name, value)}</b>{tail}")
    knobs = (target_text(trial), *_wrapped(describe(trial)), *_wrapped(trial.reason))
    return "<br>".join(lines + [html.escape(text) for text in knobs if text])


def hypervolume_history(designs: Designs, fronts: Sequence[FrontChange]) -> go.Figure:
    """The hypervolume after each trial; a step where the front changed."""
    last = max((trial.number for trial in designs.trials), default=0)
    x = [0, *(change.number for change in fronts), last]
    y = [0.0, *(change.hypervolume for change in fronts)]
    y.append(y[-1])
    texts = ["", *(f"{len(change.members)} designs on the front" for change in fronts), ""]
    steps = go.Scatter(
        x=x,
        y=y,
        text=texts,
        mode="lines+markers",
        line={"shape": "hv", "color": BLUE, "width": 2},
        marker={"size": [0, *[5] * len(fronts), 0]},
        hovertemplate="after trial %{x}<br>hypervolume <b>%{y:.4f}</b><br>%{text}<extra></extra>",
    )
    figure = go.Figure(steps, layout=_layout(height=320))
    top = max(y) or 1.0
    figure.update_xaxes(title="Trial", rangemode="tozero", zeroline=False)
    figure.update_yaxes(title="Hypervolume (share of the box)", range=[0, min(1.0, 1.08 * top)])
    return figure


def parallel(designs: Designs) -> go.Figure:
    """Parallel coordinates of the feasible designs (no baselines), the front in colour."""
    front = designs.front_numbers
    shown_trials = sorted(designs.compressed, key=lambda trial: trial.number in front)
    found = [_metric_dimension(axis(designs, name), shown_trials) for name in designs.metrics]
    found += [_dimension(*knob, shown_trials) for knob in _KNOBS]
    dimensions = [dimension for dimension in found if dimension is not None]
    lines = go.Parcoords(
        dimensions=dimensions,
        line={
            "color": [float(trial.number in front) for trial in shown_trials],
            "colorscale": [[0, "#DCE5EC"], [1, BLUE]],
            "cmin": 0,
            "cmax": 1,
        },
        labelfont={"size": 13, "color": INK},
        tickfont={"size": 11, "color": "#52606D"},
        rangefont={"size": 1, "color": "rgba(0,0,0,0)"},
        labelangle=0,
    )
    figure = go.Figure(lines, layout=_layout(height=400))
    figure.update_layout(margin={"l": 70, "r": 70, "t": 60, "b": 24})
    return figure


def _points(designs: Designs, group: Group, x: Axis, y: Axis) -> go.Scatter | go.Scattergl:
    found_x, found_y = _numbers(group, x), _numbers(group, y)
    return _marks(len(group.trials))(
        name=f"{group.name} ({len(group.trials)})",
        meta=group.key,
        legendrank=group.rank,
        mode="markers",
        marker=dict(group.marker),
        x=found_x["value"],
        y=found_y["value"],
        error_x=_bars(found_x, group),
        error_y=_bars(found_y, group),
        customdata=[trial.number for trial in group.trials],
        hovertext=[hover(designs, trial) for trial in group.trials],
        hoverinfo="text",
    )


def _numbers(group: Group, found: Axis) -> dict[str, list[float | None]]:
    """The values in the axis's unit; for groups with bars also how far the intervals reach."""
    metrics = [trial.metrics.get(found.metric) for trial in group.trials]
    numbers = {"value": [found.scaled(metric.value if metric else None) for metric in metrics]}
    if group.bars:
        numbers["minus"] = [_reach(found, metric, "low") for metric in metrics]
        numbers["plus"] = [_reach(found, metric, "high") for metric in metrics]
    return numbers


def _reach(found: Axis, metric: Metric | None, end: Literal["low", "high"]) -> float | None:
    if metric is None or metric.value is None:
        return None
    bound = metric.low if end == "low" else metric.high
    known = bound is not None and np.isfinite(bound)
    return found.scaled(abs(metric.value - bound)) if known and bound is not None else 0.0


def _bars(numbers: Mapping[str, list[float | None]], group: Group) -> dict[str, Any]:
    if not group.bars:
        return {"visible": False}
    return {
        "type": "data",
        "array": numbers["plus"],
        "arrayminus": numbers["minus"],
        "visible": True,
        "color": group.marker["color"],
        "thickness": 1,
        "width": 0,
    }


def _staircase(designs: Designs, x: Axis, y: Axis) -> go.Scatter:
    """The steps are drawn by the page's script too, when the axes change."""
    points = [
        (first, second)
        for trial in designs.feasible
        if (first := x.scaled(trial.value(x.metric))) is not None
        and (second := y.scaled(trial.value(y.metric))) is not None
    ]
    better = _better(x), _better(y)
    steps: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: (better[0] * point[0], better[1] * point[1])):
        if not steps or better[1] * point[1] < better[1] * steps[-1][1]:
            steps.append(point)
    return go.Scatter(
        name="best in these two",
        meta="staircase",
        legendrank=2,
        x=[point[0] for point in steps],
        y=[point[1] for point in steps],
        mode="lines",
        line={"shape": "hv", "color": BLUE, "width": 1.5, "dash": "dot"},
        opacity=0.55,
        hoverinfo="skip",
    )


def _marks(count: int) -> Any:
    """An element of the page a point is sharp and prints; thousands need the graphics card."""
    return go.Scattergl if count > GL_FROM else go.Scatter


def _better(found: Axis) -> int:
    return -1 if found.metric == "accuracy" else 1


def _untried(designs: Designs, x: Axis, y: Axis) -> go.Scatter | go.Scattergl:
    trials = [
        trial
        for group in groups(designs)
        for trial in group.trials
        if trial.value(x.metric) is not None and trial.value(y.metric) is None
    ]
    return _marks(len(trials))(
        name=f"{label(y.metric)} not measured ({len(trials)})",
        meta="untried",
        legendrank=6,
        x=[x.scaled(trial.value(x.metric)) for trial in trials],
        y=[0] * len(trials),
        yaxis="y2",
        mode="markers",
        marker={"symbol": "line-ns-open", "size": 9, "color": "#A5AFB8"},
        hovertext=[hover(designs, trial) for trial in trials],
        hoverinfo="text",
        showlegend=bool(trials),
    )


def _axis(found: Axis) -> dict[str, Any]:
    return {
        "title": {"text": found.title},
        "type": "log" if found.log else "linear",
        # 1, 2 and 5 of every decade, written out.
        "dtick": "D2" if found.log else None,
        "tickformat": ",~g",
        "gridcolor": GRID,
        "zeroline": False,
    }


def _layout(height: int) -> dict[str, Any]:
    return {
        "template": "none",
        "height": height,
        "margin": {"l": 64, "r": 16, "t": 48, "b": 46},
        "font": {"family": _FONT, "size": 13, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#9AA5B1", "activecolor": BLUE},
        "hoverlabel": {"bgcolor": "white", "bordercolor": "#CBD2D9", "align": "left"},
        "xaxis": {"gridcolor": GRID},
        "yaxis": {"gridcolor": GRID},
    }


_KNOBS: tuple[tuple[str, Callable[[Trial], Any]], ...] = (
    ("Parameters", lambda trial: trial.parameters or None),
    ("Mean weight bits", mean_bits),
    ("Board", lambda trial: trial.candidate.get("target", {}).get("board")),
    ("Backend", lambda trial: trial.candidate.get("target", {}).get("backend")),
    ("Criterion", lambda trial: trial.candidate.get("criterion")),
    ("Schedule", lambda trial: trial.candidate.get("schedule")),
)


def _metric_dimension(found: Axis, trials: Sequence[Trial]) -> dict[str, Any] | None:
    scaled = [found.scaled(trial.value(found.metric)) for trial in trials]
    known = [value for value in scaled if value is not None]
    return _numeric(found.title, known, log=found.log) if len(known) == len(scaled) else None


def _dimension(
    title: str, value: Callable[[Trial], Any], trials: Sequence[Trial]
) -> dict[str, Any] | None:
    """A knob's axis; None when some design lacks it or all have the same."""
    values = [value(trial) for trial in trials]
    if None in values or len(set(values)) < 2:
        return None
    if not any(isinstance(found, str) for found in values):
        return _numeric(title, values, log=min(values) > 0 and max(values) > 10 * min(values))
    names = sorted({str(found) for found in values})
    return {
        "label": title,
        "values": [names.index(str(found)) for found in values],
        "tickvals": list(range(len(names))),
        "ticktext": names,
        "range": [-0.3, len(names) - 0.7],
    }


def _numeric(title: str, values: Sequence[float], *, log: bool) -> dict[str, Any]:
    """A numeric axis of parallel coordinates, which have no logarithmic type of their own."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    found: dict[str, Any] = {"label": title, "values": list(values)}
    if not high > low:
        return found | {"range": [low - 0.5, high + 0.5]}
    if not log:
        return found
    ticks = _ticks(low, high)
    return found | {
        "values": np.log10(values).round(6).tolist(),
        "tickvals": np.log10(ticks).tolist(),
        "ticktext": [f"{tick:.3g}" if tick < 1000 else f"{tick:,.0f}" for tick in ticks],
        "range": [float(np.log10(low)), float(np.log10(high))],
    }


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of every decade between the ends; the ends where that leaves fewer than two."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    found = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    inside = [tick for tick in found if low <= tick <= high]
    return inside if len(inside) > 1 else [low, high]


def _wrapped(text: str, width: int = 64) -> list[str]:
    """The text in lines that a hover box can show."""
    return textwrap.wrap(text, width)[:6]
