"""The figures below the scatter: parallel coordinates, progress, importance, what ran when."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from dse.browse.scatter import MID, PALETTE, Figure, axis_of, base_layout, packed
from dse.browse.view import Rows, View
from dse.filter import KNOB
from dse.overview import Overview
from dse.report.designs import label
from dse.report.figures import BLUE, VERMILION
from dse.trial import METRICS, MetricName

LINES = 600  # of parallel coordinates; more cannot be told apart
BARS = 400  # trials of the timeline
STATES: Mapping[str, str] = {"complete": BLUE, "infeasible": "#9AA5B1", "failed": VERMILION}
IMPORTANCE_TRIALS = 2000


def shown_lines(view: View) -> Rows:
    """Rows of the parallel coordinates: feasible designs, the front last so that it lies on top.

    Where there are too many: the whole front and an even sample of the others.
    """
    rows = np.flatnonzero(view.mask & view.flag("feasible") & ~view.is_baseline)
    front = view.flag("front")[rows]
    rest = rows[~front]
    if len(rest) > LINES:
        rest = rest[np.linspace(0, len(rest) - 1, LINES).astype(np.int64)]
    return np.concatenate([rest, rows[front]])


def dimension_names(view: View) -> list[str]:
    """Columns that become axes, in order: metrics, size, bits, target, knobs with few values."""
    rows = shown_lines(view)
    wanted = [METRICS[name].column for name in view.metrics]
    wanted += ["parameters", "weight_bits", "board", "backend", *view.knobs[:6]]
    found = []
    for name in wanted:
        values = view.table[name].iloc[rows]
        if name in wanted[: len(view.metrics)] or values.nunique() > 1:
            found.append(name)
    return [name for name in found if not _repeats(name, found)]


def _repeats(name: str, among: Sequence[str]) -> bool:
    plain = name.removeprefix(KNOB)
    return name != plain and (plain in among or (plain == "bits" and "weight_bits" in among))


def parallel(view: View, revision: str = "") -> Figure:
    """Parallel coordinates; lines that are selected, or else the front, in colour.

    A brush on an axis stays while `revision` does.
    """
    rows = shown_lines(view)
    bright = view.flag("front")[rows] if view.selected is None else view.chosen[rows]
    order = np.argsort(bright, kind="stable")
    rows, bright = rows[order], bright[order]
    return {
        "data": [
            {
                "type": "parcoords",
                "dimensions": [_dimension(view, name, rows) for name in dimension_names(view)],
                "line": {
                    "color": packed(bright.astype(np.float32)),
                    "colorscale": [[0, "#A9B7C3"], [1, BLUE]],
                    "cmin": 0,
                    "cmax": 1,
                },
                "labelfont": {"size": 13, "color": MID},
                "tickfont": {"size": 11, "color": MID},
                "rangefont": {"size": 1, "color": "rgba(0,0,0,0)"},
                "unselected": {"line": {"color": "#8FA0AF", "opacity": 0.12}},
            }
        ],
        "layout": base_layout()
        | {"margin": {"l": 76, "r": 76, "t": 58, "b": 22}, "uirevision": revision},
    }


def _dimension(view: View, name: str, rows: Rows) -> Figure:
    column = view.table[name].iloc[rows]
    metric = next((m for m in METRICS.values() if m.column == name), None)
    if metric is not None:
        axis = axis_of(view, metric.name)
        return _numeric(axis.title, column.to_numpy(np.float64) / axis.size, log=axis.log) | {
            "name": name
        }
    title = {"weight_bits": "Weight bits", "parameters": "Parameters"}.get(
        name, name.removeprefix(KNOB)
    )
    if column.dtype.kind in "iuf":
        values = column.to_numpy(np.float64)
        log = name == "parameters" and len(values) > 0 and bool(values.min() > 0)
        return _numeric(title, values, log=log) | {"name": name}
    texts = column.astype(object).where(column.notna(), "none").astype(str)
    names = sorted(set(texts))
    return {
        "label": title[0].upper() + title[1:],
        "name": name,
        "values": packed([names.index(text) for text in texts]),
        "tickvals": list(range(len(names))),
        "ticktext": names,
        "range": [-0.3, len(names) - 0.7],
    }


def _numeric(title: str, values: npt.NDArray[np.float64], *, log: bool) -> Figure:
    """Parallel coordinates have no logarithmic axes of their own: exponents with ticks."""
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    filled = np.where(np.isfinite(values), values, low)
    if not high > low:
        return {"label": title, "values": packed(filled), "range": [low - 0.5, high + 0.5]}
    if not (log and low > 0):
        return {"label": title, "values": packed(filled), "range": [low, high]}
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [d * 10.0**e for e in decades for d in (1, 2, 5) if low <= d * 10.0**e <= high]
    ticks = ticks if len(ticks) > 1 else [low, high]
    return {
        "label": title,
        "values": packed(np.log10(filled)),
        "tickvals": np.log10(ticks).tolist(),
        "ticktext": [f"{tick:,.0f}" if tick >= 100 else f"{tick:.3g}" for tick in ticks],
        "range": [float(np.log10(low)), float(np.log10(high))],
    }


def brushed(view: View, ranges: Mapping[str, Any]) -> list[int] | None:
    """The uids of the lines inside brushed ranges by column; None when nothing is brushed.

    A range is [low, high] or a list of them, on the axis as it is drawn.
    """
    if not ranges:
        return None
    rows = shown_lines(view)
    inside = np.ones(len(rows), dtype=np.bool_)
    for name, given in ranges.items():
        if name not in view.table:
            continue
        drawn = _unpacked(_dimension(view, name, rows)["values"])
        parts = given if isinstance(given[0], list) else [given]
        inside &= np.any([(drawn >= low) & (drawn <= high) for low, high in parts], axis=0)
    found: list[int] = view.table["uid"].to_numpy(np.int64)[rows[inside]].tolist()
    return found


def _unpacked(values: Mapping[str, str]) -> npt.NDArray[np.float32]:
    import base64

    return np.frombuffer(base64.b64decode(values["bdata"]), dtype=f"<{values['dtype']}")


def progress(view: View, against: str) -> Figure:
    """The hypervolume of each study after each trial, or after each hour since its first."""
    traces: list[Figure] = []
    for index, overview in enumerate(view.overviews):
        changes = overview.changes
        if not changes:
            continue
        finished = overview.table["finished"].to_numpy(np.float64)
        started = overview.table["started"].to_numpy(np.float64)
        numbers = [0, *(change.number for change in changes), len(finished) - 1]
        begin = float(started[started > 0].min()) if (started > 0).any() else 0.0
        last = float(finished.max())
        at = [begin, *(float(finished[n]) for n in numbers[1:-1]), last]
        values = [0.0, *(change.hypervolume for change in changes)]
        x = numbers if against == "trials" else [max(0.0, t - begin) / 3600 for t in at]
        colour = PALETTE[index % len(PALETTE)]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if len(changes) < 200 else "lines",
                "name": overview.record.name,
                "x": x,
                "y": [*values, values[-1]],
                "text": ["", *(f"{len(c.members)} designs on the front" for c in changes), "now"],
                "line": {"shape": "hv", "color": colour, "width": 2},
                "marker": {"size": 5},
                "hovertemplate": "%{x:.4~g} " + against + "<br>hypervolume <b>%{y:.4f}</b>"
                "<br>%{text}<extra>%{fullData.name}</extra>",
            }
        )
    layout = base_layout() | {
        "showlegend": len(traces) > 1,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "xaxis": _plain_axis("Trial" if against == "trials" else "Hours since the first trial"),
        "yaxis": _plain_axis("Hypervolume (share of the box)") | {"rangemode": "tozero"},
        "uirevision": against,
    }
    if not traces:
        layout["annotations"] = [
            {
                "text": "The front's history was not stored."
                if any(overview.flag("front").any() for overview in view.overviews)
                else "No design is on the front yet.",
                "showarrow": False,
                "xref": "paper",
                "yref": "paper",
                "x": 0.5,
                "y": 0.5,
            }
        ]
    return {"data": traces, "layout": layout}


def _plain_axis(title: str) -> Figure:
    return {
        "title": {"text": title, "standoff": 8},
        "gridcolor": "rgba(123,135,148,0.22)",
        "zeroline": False,
        "automargin": True,
    }


def importance(overview: Overview) -> Figure:
    """How much each knob decides each objective, as a share (PED-ANOVA, optuna.importance)."""
    found = importances(overview)
    if not found:
        return {}
    knobs = sorted(
        {k for values in found.values() for k in values},
        key=lambda k: sum(v.get(k, 0) for v in found.values()),
    )[-12:]
    shares = [[found[name].get(knob, 0.0) for name in found] for knob in knobs]
    heat = {
        "type": "heatmap",
        "x": [label(name)[0].upper() + label(name)[1:] for name in found],
        "y": knobs,
        "z": shares,
        "colorscale": "Cividis",
        "zmin": 0,
        "zmax": 1,
        "texttemplate": "%{z:.0%}",
        "hovertemplate": "%{y} decides %{z:.1%} of %{x}<extra></extra>",
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
    }
    layout = base_layout() | {
        "xaxis": {"side": "top", "fixedrange": True},
        "yaxis": {"automargin": True, "fixedrange": True},
        "margin": {"l": 90, "r": 12, "t": 34, "b": 10},
    }
    return {"data": [heat], "layout": layout}


def importances(overview: Overview) -> dict[str, dict[str, float]]:
    """Shares by objective and knob; empty where there are too few trials or knobs to say."""
    known = np.isfinite(overview.values()).all(axis=1)
    rows = np.flatnonzero(known & (overview.table["baseline"] == "").to_numpy(np.bool_))
    if len(rows) < 20 or len(overview.record.distributions) < 2:
        return {}
    # Read again only when a tenth more is known, not with every trial.
    size = int(10 * np.log(len(rows)) / np.log(1.1)) // 10
    return _importances(
        _Hashed(overview, rows, (overview.record.name, overview.record.created, size))
    )


class _Hashed:
    """A study's overview as a key of the cache below: the same study with about as many trials."""

    def __init__(self, overview: Overview, rows: Rows, key: tuple[Any, ...]) -> None:
        self.overview, self.rows, self.key = overview, rows, key

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashed) and self.key == other.key


@lru_cache(maxsize=32)
def _importances(key: _Hashed) -> dict[str, dict[str, float]]:
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    overview, rows = key.overview, key.rows
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), IMPORTANCE_TRIALS)).astype(np.int64)]
    distributions = dict(overview.record.distributions)
    knobs = overview.table[
        [f"{KNOB}{name}" for name in distributions if f"{KNOB}{name}" in overview.table]
    ]
    records = knobs.iloc[rows].astype(object).to_dict("records")
    values = overview.values()[rows].tolist()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    directions = [METRICS[name].direction for name in overview.record.objectives]
    study = optuna.create_study(directions=directions)
    for params, found in zip(records, values, strict=True):
        told = {name: params.get(f"{KNOB}{name}") for name in distributions}
        # A method of pruning has knobs of its own, which trials by another one lack.
        given = {
            name: value for name, value in told.items() if value is not None and value == value
        }
        asked = {name: distributions[name] for name in given}
        if given:
            study.add_trial(optuna.create_trial(params=given, distributions=asked, values=found))
    shares: dict[str, dict[str, float]] = {}
    for index, name in enumerate(overview.record.objectives):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the target has to be minimised: it is
                shares[name] = get_param_importances(
                    study, evaluator=PedAnovaImportanceEvaluator(), target=_minimised(index, name)
                )
        except (ValueError, RuntimeError, ZeroDivisionError):
            continue  # all values alike: no knob decides anything
    return shares


def _minimised(index: int, name: MetricName) -> Callable[[Any], float]:
    """An objective of Optuna's trial so that low is good: PED-ANOVA looks at the lowest."""
    return lambda trial: METRICS[name].sign * float(trial.values[index])


def timeline(view: View) -> Figure:
    """When the last trials ran, each in the first lane that was free: as many as ran at once."""
    table = view.table[view.mask]
    ran = table[(table["started"] > 0) & (table["finished"] >= table["started"])]
    ran = ran.sort_values("started").tail(BARS)
    if ran.empty:
        return {}
    begin = float(ran["started"].iloc[0])
    starts = ran["started"].to_numpy(np.float64)
    ends = ran["finished"].to_numpy(np.float64)
    lanes = lanes_of(starts, ends)
    unit, size = ("h", 3600.0) if ends.max() - begin > 7200 else ("min", 60.0)
    traces = []
    for state, colour in STATES.items():
        rows = np.flatnonzero((ran["state"] == state).to_numpy(np.bool_))
        if len(rows):
            traces.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": f"{state} ({len(rows)})",
                    "base": packed((starts[rows] - begin) / size),
                    "x": packed((ends[rows] - starts[rows]) / size),
                    "y": lanes[rows].tolist(),
                    "customdata": packed(ran["uid"].to_numpy(np.int64)[rows], "i4"),
                    "text": [f"trial {n}" for n in ran["number"].iloc[rows]],
                    "textposition": "none",
                    "marker": {"color": colour, "line": {"width": 0.5, "color": "white"}},
                    "hovertemplate": "%{text}: %{x:.3~g} " + unit + "<extra></extra>",
                }
            )
    layout = base_layout() | {
        "barmode": "overlay",
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "xaxis": _plain_axis(f"Time ({unit})"),
        "yaxis": _plain_axis("At once") | {"dtick": 1, "range": [0.4, lanes.max() + 0.6]},
    }
    return {"data": traces, "layout": layout}


def lanes_of(starts: npt.NDArray[np.float64], ends: npt.NDArray[np.float64]) -> Rows:
    """The first lane, from 1, that is free when each interval (in order of start) begins."""
    free: list[float] = []
    found = []
    for start, end in zip(starts, ends, strict=True):
        lane = next((i for i, until in enumerate(free) if until <= start), len(free))
        if lane == len(free):
            free.append(end)
        free[lane] = end
        found.append(lane + 1)
    return np.array(found, dtype=np.int64)
