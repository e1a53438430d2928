"""What a design costs, piece by piece: its layers, memory over time, flash, every other target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dash import html

from dse.browse.markup import plot, section, table
from dse.browse.scatter import PALETTE, Figure, base_layout
from dse.errors import DseError
from dse.explain import target_text
from dse.graph.ir import Conv2D, FullyConnected, Graph
from dse.report.designs import label, shown
from dse.targets import Cost, LeftOut, Target, cost, load_boards, parse_target, targets_for
from dse.trial import Trial
from dse.units import format_quantity


def layers(graph: Graph | None, whole: Graph | None, trial: Trial, own: Cost | str) -> html.Section:
    """The table of operators: shape, channels, weights, encoding, flash, cycles, energy."""
    if isinstance(own, str) or graph is None:
        return section("Layers", [html.P(str(own))], "layers")
    target = parse_target(target_text(trial), load_boards())
    shares = [op.share or 0.0 for op in own.operators]
    rows = [
        _layer(graph, whole, target, op, share / (max(shares) or 1.0))
        for op, share in zip(own.operators, shares, strict=True)
    ]
    titles = (
        "Operator",
        "Output",
        "Kept channels",
        "Weights",
        "Encoding",
        "Flash",
        "MACs",
        "Cycles",
        "Time",
        "Energy",
        "Share",
    )
    return section("Layers", [table(titles, rows, numbers=(2, 5, 6, 7, 8, 9))], "layers")


def _layer(graph: Graph, whole: Graph | None, target: Target, found: Any, part: float) -> html.Tr:
    op = graph.op(found.name)
    shape = graph.tensors[op.output].shape
    bits, encoding = "", ""
    if isinstance(op, Conv2D | FullyConnected):
        bits = f"{op.weight.bits} bit" + (
            f", {100 * op.weight.density:.3g} % kept" if op.weight.density < 1 else ""
        )
        if op.weight.entries:
            bits += f", {op.weight.entries} x {op.weight.vector} shared"
        layout = target.backend.encoding(op)
        encoding = f"{layout.layout} {layout.container_bits} bit"
    power = target.board.active_power_w(target.clock_hz)
    joules = None if power is None or found.latency_s is None else power.value * found.latency_s
    cells = [
        html.Th([found.name, html.Small(found.kind)], scope="row"),
        html.Td("×".join(map(str, shape))),
        html.Td(_kept(whole, found.name, shape[-1] if bits else None), className="number"),
        html.Td(bits),
        html.Td(encoding),
        html.Td(format_quantity(found.flash_bytes, "bytes"), className="number"),
        html.Td(f"{found.macs:,}" if found.macs else "-", className="number"),
        html.Td("-" if found.cycles is None else f"{found.cycles:,.0f}", className="number"),
        html.Td(shown("latency", found.latency_s), className="number"),
        html.Td(shown("energy", joules), className="number"),
        html.Td(
            html.Span(style={"width": f"{100 * part:.0f}%"}),
            className="share",
            title=f"{100 * (found.share or 0):.1f} %",
        ),
    ]
    return html.Tr(cells)


def _kept(whole: Graph | None, name: str, channels: int | None) -> str:
    """Channels kept of those that the unpruned network has, where it is stored."""
    if channels is None:
        return ""
    before = None
    if whole is not None and any(op.name == name for op in whole.ops):
        before = whole.tensors[whole.op(name).output].shape[-1]
    return f"{channels} of {before}" if before else str(channels)


def memory(own: Cost | str) -> html.Section | None:
    """The memory plan as a picture, with what is held at the peak."""
    if isinstance(own, str):
        return None
    peak = own.memory.peak
    tensors = ", ".join(peak.tensors)
    scratch = (
        f" and {format_quantity(peak.scratch_bytes, 'bytes')} of scratch"
        if peak.scratch_bytes
        else ""
    )
    said = (
        f"The peak of {format_quantity(peak.live_bytes, 'bytes')} is while {peak.op} runs, which "
        f"holds {tensors}{scratch}. Every box is a buffer: as long as it is held, as "
        "high as it is large."
    )
    parts = ", ".join(
        f"{name} {format_quantity(size, 'bytes')}" for name, size in own.ram_parts.items() if size
    )
    return section(
        "Memory over time",
        [
            html.P(said),
            plot("Buffers of the arena over the operators", "low", figure=memory_figure(own)),
            html.P(
                f"RAM in all: {format_quantity(sum(own.ram_parts.values()), 'bytes')} = {parts}.",
                className="quiet",
            ),
        ],
        "memory",
    )


def memory_figure(own: Cost) -> Figure:
    """Buffers of the arena over the operators, in KiB, with the bytes held by each operator."""
    order, peak = own.memory.order, own.memory.peak
    step = order.index(peak.op)
    traces: list[Figure] = []
    for index, buffer in enumerate(own.memory.buffers):
        at_peak = buffer.first <= step <= buffer.last
        x0, x1 = buffer.first - 0.48, buffer.last + 0.48
        y0, y1 = buffer.offset / 1024, (buffer.offset + buffer.size_bytes) / 1024
        text = f"{' = '.join(buffer.tensors)}<br>{format_quantity(buffer.size_bytes, 'bytes')}"
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "fill": "toself",
                "x": [x0, x1, x1, x0, x0],
                "y": [y0, y0, y1, y1, y0],
                "line": {"color": "#D55E00" if at_peak else "white", "width": 2 if at_peak else 1},
                "fillcolor": _faded(PALETTE[index % len(PALETTE)]),
                "name": buffer.tensors[0],
                "text": text,
                "hoveron": "fills",
                "hoverinfo": "text",
                "showlegend": False,
            }
        )
    labels = [f"{name}" for name in order]
    layout = base_layout() | {
        "xaxis": {
            "tickvals": list(range(len(order))),
            "ticktext": labels,
            "automargin": True,
            "zeroline": False,
            "showgrid": False,
        },
        "yaxis": {
            "title": {"text": "Arena (KiB)"},
            "gridcolor": "rgba(123,135,148,0.22)",
            "zeroline": False,
            "automargin": True,
            "rangemode": "tozero",
        },
        "shapes": [
            {
                "type": "line",
                "x0": -0.5,
                "x1": len(order) - 0.5,
                "y0": peak.live_bytes / 1024,
                "y1": peak.live_bytes / 1024,
                "line": {"color": "#D55E00", "dash": "dash", "width": 1.5},
            }
        ],
        "annotations": [
            {
                "x": step,
                "y": peak.live_bytes / 1024,
                "text": f"peak {format_quantity(peak.live_bytes, 'bytes')}",
                "showarrow": False,
                "yanchor": "bottom",
                "font": {"size": 11},
            }
        ],
    }
    return {"data": traces, "layout": layout}


def _faded(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.35)"


def flash(own: Cost | str) -> html.Section | None:
    """What the flash is made of."""
    if isinstance(own, str):
        return None
    parts = {name: size for name, size in own.flash_parts.items() if size}
    total = sum(parts.values())
    words = {"code": "kernels"}
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "y": ["flash"],
            "x": [size / 1024],
            "name": f"{words.get(name, name)} {format_quantity(size, 'bytes')}",
            "marker": {"color": PALETTE[index % len(PALETTE)]},
            "hovertemplate": f"{words.get(name, name)}: {format_quantity(size, 'bytes')} "
            f"({100 * size / total:.0f} %)<extra></extra>",
        }
        for index, (name, size) in enumerate(parts.items())
    ]
    layout = base_layout() | {
        "barmode": "stack",
        "legend": {
            "orientation": "h",
            "traceorder": "normal",
            "y": 1.1,
            "yanchor": "bottom",
            "x": 0,
        },
        "xaxis": {
            "title": {"text": "Flash (KiB)"},
            "gridcolor": "rgba(123,135,148,0.22)",
            "zeroline": False,
            "automargin": True,
        },
        "yaxis": {"visible": False},
    }
    said = f"{format_quantity(total, 'bytes')} in all."
    graph = plot("Parts of the flash", "thin", figure={"data": traces, "layout": layout})
    return section("Flash", [html.P(said), graph], "flash")


def fits(graph: Graph | None, trial: Trial) -> html.Section:
    """The design on every board and backend: what it costs, or what misses and by how much."""
    if graph is None:
        return section(
            "On every board and backend",
            [html.P("Its network is not stored, so other boards cannot be costed here.")],
            "fits",
        )
    legal, left_out = targets_for(clocks="max")
    cells = {(t.board.name, t.backend.name): _fit(graph, t) for t in legal}
    for out in left_out:
        board, backend = out.key.split("/")[:2]
        dash = html.Span("–", className="no", title=out.reason)
        cells[board, backend] = ([dash], "none")
    boards = list(dict.fromkeys(board for board, _ in cells))
    backends = sorted({backend for _, backend in cells})
    own = (
        trial.candidate.get("target", {}).get("board"),
        trial.candidate.get("target", {}).get("backend"),
    )
    rows = [
        html.Tr(
            [
                html.Th(board, scope="row"),
                *(
                    html.Td(
                        cells.get((board, backend), (["–"], "none"))[0],
                        className=f"fit {cells.get((board, backend), (0, 'none'))[1]}"
                        + (" own" if (board, backend) == own else ""),
                    )
                    for backend in backends
                ),
            ]
        )
        for board in boards
    ]
    note = (
        "At the fastest clock of each board. The accuracy is that of the design's own backend; "
        "others may round differently. Outlined: the design's own target. Days a Wh: on a battery "
        "of one watt-hour, at one inference a second and asleep in between."
    )
    return section(
        "On every board and backend",
        [html.P(note, className="quiet"), table(("Board", *backends), rows), _never(left_out)],
        "fits",
    )


def _never(left_out: Sequence[LeftOut]) -> html.Details:
    """Which pairs of board and backend can never be, and why."""
    items = [html.Li(f"{out.key}: {out.reason}") for out in left_out]
    return html.Details([html.Summary(f"Why {len(items)} pairs (–) cannot be"), html.Ul(items)])


def _fit(graph: Graph, target: Target) -> tuple[list[Any], str]:
    """Whether it fits, how fast and how much of the memory; else what misses and by how much."""
    try:
        found = cost(graph, target)
    except DseError as error:
        reason = " ".join(str(error).split()).split(": ", 1)[-1]
        return [html.Span("cannot run", className="no"), html.Small(reason)], "none"
    limits = target.limits()
    over = []
    for name, limit in (("flash", limits.flash_bytes), ("ram", limits.ram_bytes)):
        value = found.value(name) or 0.0  # type: ignore[arg-type]
        if value > limit:
            over.append(f"{label(name)} {shown(name, value - limit)} over {shown(name, limit)}")
    if over:
        return [html.Span("misses", className="no"), html.Small("; ".join(over))], "miss"
    flash, ram = (found.value("flash") or 0.0), (found.value("ram") or 0.0)
    share = (
        f"flash {100 * flash / limits.flash_bytes:.2g} %, RAM {100 * ram / limits.ram_bytes:.2g} %"
    )
    speed = (
        shown("latency", found.value("latency")) if found.value("latency") is not None else "fits"
    )
    energy = found.value("energy")
    said = [html.Span(speed, className="yes"), html.Small(share)]
    said += [html.Small(shown("energy", energy))] if energy is not None else []
    life = battery_days(target, energy, found.value("latency"))
    said += [html.Small(f"{life:,.0f} days a Wh")] if life is not None else []
    return said, "ok"


def battery_days(target: Target, energy_j: float | None, latency_s: float | None) -> float | None:
    """Days on one watt-hour, one inference a second, asleep in between; None when not known."""
    sleep, supply = target.board.fact("sleep_current"), target.board.fact("supply")
    if energy_j is None or latency_s is None or sleep is None or supply is None or latency_s >= 1:
        return None
    watts = energy_j + sleep.value * supply.value * (1 - latency_s)
    return 3600.0 / watts / 86400.0 if watts > 0 else None
