"""One offline HTML file: everything inlined, nothing loaded, readable and sortable."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from html import escape
from importlib import resources
from typing import Any
from urllib.parse import quote

from dse.report import figures
from dse.report.designs import (
    Designs,
    Pick,
    describe,
    interval,
    label,
    network_parts,
    shown,
    target_parts,
    target_text,
    unverified,
)
from dse.rows import FrontChange
from dse.trial import MetricName, Trial

# The browser itself holds the promise that the page loads nothing. WebGL code of plotly's
# parallel coordinates is compiled in the page, hence 'unsafe-eval'.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"
)


def page(
    designs: Designs,
    fronts: Sequence[FrontChange],
    made_with: Mapping[str, str],
    front_csv: str,
) -> str:
    """The whole page as text; `front_csv` becomes its download link."""
    sections = [
        _summary(designs),
        _scatter(designs),
        _front(designs, front_csv),
        _hypervolume(designs, fronts),
        _parallel(designs),
        _misses(designs),
        _sources(designs),
        _made_with(designs, made_with),
    ]
    title = escape(designs.record.name)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: design-space report</title>
<style>{_asset("page.css")}</style>
</head>
<body>
{_header(designs)}
<main>
{"".join(sections)}
</main>
<footer>Written by dse. This page is one file: it loads nothing and needs no network.</footer>
<p id="trouble" role="alert" hidden></p>
<noscript><p class="quiet">The figures need scripts; the tables do not.</p></noscript>
<script type="application/gzip" id="figures">{packed(_json(_figures(designs, fronts)))}</script>
<script type="application/gzip" id="plotly">{_plotly()}</script>
<script>{_asset("page.js")}</script>
</body>
</html>
"""


def _figures(designs: Designs, fronts: Sequence[FrontChange]) -> dict[str, Any]:
    """Figures by the id of their element, and what the axis pickers need."""
    x, y = _first_axes(designs)
    found: dict[str, Any] = {}
    if any(group.trials for group in figures.groups(designs)):
        found["scatter"] = figures.scatter(designs, x, y).to_plotly_json()
        found["scatter_data"] = figures.scatter_data(designs)
    if _has_progress(fronts):
        found["hypervolume"] = figures.hypervolume_history(designs, fronts).to_plotly_json()
    if len(designs.compressed) > 1:
        found["parallel"] = figures.parallel(designs).to_plotly_json()
    return found


def _has_progress(fronts: Sequence[FrontChange]) -> bool:
    return bool(fronts) and fronts[-1].number > 0


def _first_axes(designs: Designs) -> tuple[MetricName, MetricName]:
    """A cost against accuracy where there is one, else the first two objectives."""
    names = list(designs.record.objectives)
    if "accuracy" not in names:
        return names[0], names[1] if len(names) > 1 else names[0]
    return next((name for name in names if name != "accuracy"), names[0]), "accuracy"


def _header(designs: Designs) -> str:
    record = designs.record
    objectives = ", ".join(label(name) for name in record.objectives)
    rules = "; ".join(record.constraints) or "none"
    created = datetime.fromtimestamp(record.created, UTC).strftime("%d %B %Y").lstrip("0")
    facts = (
        ("Workload", record.workload),
        ("Objectives", objectives),
        ("Constraints", rules),
        ("Started", created),
    )
    items = "".join(f"<div><dt>{name}</dt><dd>{escape(text)}</dd></div>" for name, text in facts)
    return f"""<header>
<p class="kind">Design-space report</p>
<h1>{escape(record.name)}</h1>
<p class="lead">{escape(designs.sentence())}</p>
<dl class="facts">{items}</dl>
</header>"""


def _summary(designs: Designs) -> str:
    if not designs.picks:
        return _section("best", "Best designs", _no_picks(designs))
    cards = "".join(_card(designs, pick) for pick in designs.picks)
    return _section("best", "Best designs", f'<div class="cards">{cards}</div>')


def _card(designs: Designs, pick: Pick) -> str:
    trial = pick.trial
    titles = "".join(f"<h3>{escape(title)}</h3>" for title in pick.titles)
    figures = "".join(
        f"<div><dt>{escape(label(name))}</dt><dd>{shown(name, value)}</dd></div>"
        for name in designs.metrics
        if (value := trial.value(name)) is not None
    )
    return f"""<article class="card">{titles}
<p class="trial">Trial {trial.number} · {escape(target_text(trial))}</p>
<dl>{figures}</dl>
<p>{escape(pick.why)}</p>
<p class="quiet">{escape(describe(trial))}</p>
</article>"""


def _no_picks(designs: Designs) -> str:
    if designs.front:
        return "<p>Only the baselines are on the front so far.</p>"
    if not designs.rejected:
        return "<p>No trial has finished yet.</p>"
    names = designs.metrics
    body = "".join(
        f'<tr><td class="number">{trial.number}</td>'
        f"<td>{escape(trial.reason)}{_baseline_tag(trial)}</td>"
        + "".join(f'<td class="number">{_value(name, trial)}</td>' for name in names)
        + "</tr>"
        for trial in designs.rejected[:10]
    )
    head = "".join(f'<th class="number">{escape(label(name))}</th>' for name in names)
    return f"""<p>No design meets every constraint. These came closest; relax the constraint that
they miss, choose a larger board, or widen the space towards smaller networks.</p>
<div class="scroll"><table><thead><tr><th class="number">Trial</th><th>Misses</th>{head}</tr>
</thead><tbody>{body}</tbody></table></div>"""


def _baseline_tag(trial: Trial) -> str:
    name = escape(trial.baseline)
    return f' <span class="tag">{name} baseline</span>' if trial.baseline else ""


def _value(name: str, trial: Trial) -> str:
    return escape(shown(name, trial.value(name)))


def _scatter(designs: Designs) -> str:
    if not figures.groups(designs):
        return _section("pareto", "Trade-offs", "<p>There is nothing to draw yet.</p>")
    x, y = _first_axes(designs)
    controls = f"""<div class="controls" id="pickers">
<label>Horizontal {_options("x", designs.metrics, x)}</label>
<label><input type="checkbox" id="x-log"> log</label>
<label>Vertical {_options("y", designs.metrics, y)}</label>
<label><input type="checkbox" id="y-log"> log</label>
<label><input type="checkbox" id="bars" checked> intervals</label>
</div>"""
    note = (
        "Blue designs are on the front of all objectives; the dotted line joins what nothing beats "
        "in the two metrics shown. Bars are the intervals of the figures. Designs rejected "
        "before training have no accuracy; ticks along the lower edge show them. Click a name "
        "in the legend to hide it, drag to zoom, double-click to go back."
    )
    alternative = (
        f"Scatter of {label(x)} against {label(y)}: {len(designs.feasible)} feasible designs, "
        f"{len(designs.front)} of them on the Pareto front, which the table below lists"
    )
    plot = f'<div class="plot tall" id="scatter" role="img" aria-label="{alternative}"></div>'
    return _section("pareto", "Trade-offs", f'{controls}{plot}<p class="quiet">{note}</p>')


def _options(key: str, names: Iterable[str], chosen: str) -> str:
    options = "".join(
        f'<option value="{name}"{" selected" if name == chosen else ""}>{label(name)}</option>'
        for name in names
    )
    return f'<select id="{key}-metric">{options}</select>'


def _front(designs: Designs, front_csv: str) -> str:
    if not designs.front:
        return _section("front", "The front", "<p>No design is feasible, so there is no front.</p>")
    tested = any(trial.test_accuracy is not None for trial in designs.front)
    columns = ["Trial", *(label(name).capitalize() for name in designs.metrics)]
    columns = ["RAM" if name == "Ram" else name for name in columns]
    columns += ["Test accuracy"] if tested else []
    columns += ["Parameters", "Target", "Network"]
    columns += ["Proof"] if any(trial.proof for trial in designs.front) else []
    marks = dict(zip(columns[1:], designs.metrics, strict=False))
    head = "".join(
        f"<th{'' if name in ('Target', 'Network', 'Proof') else ' class=number'}>"
        f'<button type="button">{name}</button>{_mark(designs, marks.get(name))}</th>'
        for name in columns
    )
    proven = "Proof" in columns
    rows = "".join(_front_row(designs, trial, tested, proven) for trial in designs.front)
    link = f"data:text/csv;charset=utf-8,{quote(front_csv)}"
    size = len(designs.front)
    return _section(
        "front",
        "The front",
        f"""<div class="controls"><label>Filter
<input type="search" id="filter" placeholder="board, bits, trial …" autocomplete="off"></label>
<span class="quiet" id="shown">{size} of {size} designs</span>
<a class="button" download="front.csv" href="{link}">Download CSV</a></div>
<div class="scroll"><table id="front-table"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody>
</table></div>""",
    )


def _mark(designs: Designs, name: str | None) -> str:
    """A tag where figures of the column come from a source that nobody has checked."""
    found = (trial.metrics.get(name or "") for trial in designs.front)
    if any(metric is not None and unverified(metric.source) for metric in found):
        return ' <a class="tag" href="#sources">unverified</a>'
    return ""


def _front_row(designs: Designs, trial: Trial, tested: bool, proven: bool) -> str:
    cells = [
        f'<td class="number" data-sort="{trial.number}">{trial.number}{_baseline_tag(trial)}</td>'
    ]
    cells += [_metric_cell(name, trial) for name in designs.metrics]
    if tested:
        accuracy = trial.test_accuracy
        value = None if accuracy is None else accuracy.value
        between = interval("accuracy", accuracy)
        cells.append(_cell(value, shown("accuracy", value), between))
    cells += [_cell(trial.parameters, f"{trial.parameters:,}")]
    cells += [_text_cell(target_parts(trial)), _text_cell(network_parts(trial))]
    cells += [_text_cell(_proof(trial))] if proven else []
    return f"<tr>{''.join(cells)}</tr>"


def _proof(trial: Trial) -> list[str]:
    """The provenance, and what building and running the design says of its figures."""
    proof = trial.proof
    if proof is None or not proof.samples:
        return [trial.provenance, proof.reason if proof else ""]
    outputs = f"{proof.matching} of {proof.samples} outputs exact"
    found = [f"{label(name)} {shown(name, value)}" for name, value in proof.metrics.items()]
    return [trial.provenance if proof.exact else "outputs differ", outputs, *found]


def _metric_cell(name: str, trial: Trial) -> str:
    value = trial.value(name)
    between = interval(name, trial.metrics.get(name))
    return _cell(value, shown(name, value), between)


def _text_cell(parts: Sequence[str]) -> str:
    """The first part, and the others small below it."""
    first, rest = "".join(parts[:1]), " · ".join(parts[1:])
    return f'<td class="text">{escape(first)}<small>{escape(rest)}</small></td>'


def _cell(value: float | None, text: str, between: str = "") -> str:
    key = "" if value is None else repr(value)
    small = f"<small>{escape(between)}</small>" if between else ""
    return f'<td class="number" data-sort="{key}">{escape(text)}{small}</td>'


def _hypervolume(designs: Designs, fronts: Sequence[FrontChange]) -> str:
    if not _has_progress(fronts):
        return ""
    box = designs.record.box
    corner = ", ".join(
        f"{label(name)} {shown(name, 1 - end if name == 'accuracy' else end)}"
        for name, end in zip(box.metrics, box.reference, strict=True)
    )
    note = (
        f"The share of the box between the best possible design and the reference point "
        f"({corner}) that the front dominates; costs on a logarithmic scale where they span far. "
        f"It ends at {designs.hypervolume:.4f}. The box was fixed when the study was created, so "
        "runs of it can be compared."
    )
    plot = '<div class="plot" id="hypervolume" role="img" aria-label="Hypervolume by trial"></div>'
    title = "Progress of the front"
    return _section("progress", title, f'{plot}<p class="quiet">{escape(note)}</p>')


def _parallel(designs: Designs) -> str:
    if len(designs.compressed) < 2:
        return ""
    note = (
        "Every line is a feasible design, blue ones are on the front. Drag along an axis to keep "
        "only the lines that pass there; drag an axis's name to move it."
    )
    plot = (
        '<div class="plot wide" id="parallel" role="img" aria-label="Parallel coordinates"></div>'
    )
    body = f'<div class="scroll">{plot}</div><p class="quiet">{note}</p>'
    return _section("parallel-section", "All objectives at once", body)


def _misses(designs: Designs) -> str:
    if not designs.misses:
        return ""
    most = max(miss.count for miss in designs.misses)
    rows = "".join(
        f'<tr><td class="number">{miss.count}</td>'
        f'<td class="share"><span style="width:{100 * miss.count / most:.0f}%"></span></td>'
        f"<td>{'<span class=tag>failed</span> ' if miss.failed else ''}{escape(miss.cause)}"
        + (f"<small>{escape(miss.example)}</small>" if miss.example != miss.cause else "")
        + "</td></tr>"
        for miss in designs.misses
    )
    untrained = sum(not trial.trained for trial in designs.rejected)
    verb = "was" if untrained <= 1 else "were"
    return _section(
        "misses",
        "Why designs were rejected",
        f"""<p>{untrained or "None"} of {len(designs.rejected)} infeasible designs {verb} rejected
before any training, from costs alone. Under each cause stands the design that came closest.</p>
<table class="bars"><thead><tr><th class="number">Designs</th><th></th><th>Constraint missed</th>
</tr></thead><tbody>{rows}</tbody></table>""",
    )


def _sources(designs: Designs) -> str:
    rows = "".join(
        f"<tr><td>{escape(label(source.metric))}</td><td>{escape(source.provenance)}</td>"
        f"<td>{'<span class=tag>unverified</span> ' if source.unverified else ''}"
        f"{escape(source.text) or '-'}</td>"
        f'<td class="number">{source.count}</td></tr>'
        for source in designs.sources
    )
    if not rows:
        return ""
    return _section(
        "sources",
        "Where the figures come from",
        f"""<div class="scroll"><table><thead><tr><th>Metric</th><th>Kind</th><th>Source</th>
<th class="number">Designs</th></tr></thead><tbody>{rows}</tbody></table></div>""",
    )


def _made_with(designs: Designs, made_with: Mapping[str, str]) -> str:
    record = designs.record
    settings = json.dumps(dict(record.sampler_settings)) if record.sampler_settings else ""
    facts = {
        **made_with,
        "Sampler": f"{record.sampler} {settings}".strip(),
        "Seed": str(record.seed),
        "Trials asked for": str(record.n_trials),
        "Space hash": record.space_hash,
        "Versions": ", ".join(f"{name} {text}" for name, text in record.versions.items()),
    }
    items = "".join(
        f"<div><dt>{escape(name[:1].upper() + name[1:])}</dt><dd>{escape(text)}</dd></div>"
        for name, text in facts.items()
        if text
    )
    return _section(
        "made-with",
        "Made with",
        f"""<dl class="made">{items}</dl>
<details><summary>Study file</summary><pre>{escape(record.study_file)}</pre></details>""",
    )


def _section(key: str, title: str, body: str) -> str:
    return f'<section id="{key}-box"><h2>{title}</h2>\n{body}\n</section>\n'


def _json(value: Any) -> str:
    from plotly.utils import PlotlyJSONEncoder

    return json.dumps(value, cls=PlotlyJSONEncoder, separators=(",", ":"))


def packed(text: str) -> str:
    """Text that the page unpacks itself: gzip in base64, a fifth to a third of its size.

    So 20,000 trials stay in one small file. Nothing in it can end the element it stands in.
    """
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode("ascii")


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return packed(str(get_plotlyjs()))


def _asset(name: str) -> str:
    return (resources.files("dse.report") / "assets" / name).read_text(encoding="utf-8")
