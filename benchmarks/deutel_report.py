"""reports/deutel.md and its figure, from what benchmarks/deutel.py measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Row: TypeAlias = Mapping[str, Any]
POINT = 0.01
KIB = 1024
INTRODUCTION = """# Accuracy against remaining parameters

How much of a network can go before its accuracy does, after Deutel et al.,
[arXiv 2205.10369](https://arxiv.org/abs/2205.10369). Accuracy is on test data, of the exact int8
network unless a column says otherwise; one seed, so differences below about half a point are noise
(one point on HAR and ResNet-8). Flash and RAM are modelled for `nucleo_f446re/native`. Measured
values: [deutel/](deutel). Made by `python benchmarks/deutel.py`, which goes on where it was
interrupted; a dash is what it has not measured yet.

![Accuracy against remaining parameters](deutel.svg)
"""


def write_report(results: Path) -> None:
    """Write <results>.md and <results>.svg from every <results>/*.json."""
    found = {
        path.stem: list(json.loads(path.read_text("utf-8")).values())
        for path in sorted(results.glob("*.json"))
    }
    sections = [section(name, rows) for name, rows in found.items()]
    text = "\n".join([INTRODUCTION, *sections])
    results.with_suffix(".md").write_text(text, encoding="utf-8")
    figure(found, results.with_suffix(".svg"))


def section(name: str, rows: Sequence[Row]) -> str:
    """What is known of one network."""
    (whole,) = (row for row in rows if row["technique"] == "baseline")
    parts = [
        f"## {name}\n",
        f"`studies/{name}.yaml`: {whole['parameters']:,} parameters, float32 "
        f"{percent(whole['float32'])}, int8 {percent(whole['int8'])}, "
        f"{kib(whole['flash_bytes'])} of flash, {kib(whole['ram_bytes'])} of RAM.\n",
        *claims(rows, whole),
        channels_table(rows, whole),
    ]
    if any(row["technique"] == "elements" for row in rows):
        parts.append(elements_table(rows, whole))
    return "\n".join(parts)


def claims(rows: Sequence[Row], whole: Row) -> list[str]:
    """How far each criterion goes within one and three points of float32."""
    lines = ["Least share of the parameters of those measured, within 1 and 3 points of float32:\n"]
    lines += ["| channels by | within 1 point | within 3 points |", "| --- | --- | --- |"]
    for technique, schedule, criterion in ways(rows):
        chosen = pick(rows, technique, schedule, criterion)
        ends = [least(chosen, whole, points) for points in (1, 3)]
        title = f"{criterion}, {schedule}" + (", trained int8" if technique == "qat" else "")
        lines.append(f"| {title} | {ends[0]} | {ends[1]} |")
    return [*lines, ""]


def ways(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """Technique, schedule and criterion of structured pruning, in the order measured."""
    found = {
        (row["technique"], row["schedule"], row["criterion"])
        for row in rows
        if row["technique"] in ("channels", "qat")
    }
    return sorted(found)


def pick(rows: Iterable[Row], technique: str, schedule: str, criterion: str = "") -> list[Row]:
    """The rows of one way, most parameters first."""
    wanted = (technique, schedule, criterion)
    chosen = [r for r in rows if (r["technique"], r["schedule"], r["criterion"]) == wanted]
    return sorted(chosen, key=lambda row: -float(row["share"]))


def least(rows: Sequence[Row], whole: Row, points: float) -> str:
    """The least remaining share down to which every network is so close to float32."""
    found = None
    for row in rows:
        if row["int8"] < whole["float32"] - points * POINT:
            break
        found = row
    if found is None:
        return "-"
    share = found["parameters"] / whole["parameters"]
    return f"{percent(share)} ({percent(found['int8'])})"


def channels_table(rows: Sequence[Row], whole: Row) -> str:
    """One line a level: float32, after training, trained; every criterion; flash and RAM."""
    gradual = [way for way in ways(rows) if way[1] == "agp" and way[0] == "channels"]
    once = [way for way in ways(rows) if way[1] == "one-shot"]
    main = next(way for way in gradual if way[2] == "l2")
    columns = [main, *(way for way in gradual if way != main), *once]
    titles = [f"{criterion} {schedule}" for _, schedule, criterion in columns]
    lines = [
        "Whole channels removed, widths of all layers, then accuracy (l2 agp also as float32 and "
        "trained int8):\n",
        "| parameters | widths | flash | RAM | float32 | "
        + " | ".join([titles[0], "l2 agp qat", *titles[1:]])
        + " |",
        "| --- |" + " --- |" * (len(columns) + 5),
    ]
    for row in pick(rows, *main):
        found = [at(rows, way, row["share"], "int8") for way in columns]
        trained = at(rows, ("qat", "agp", "l2"), row["share"], "int8")
        cells = [row_share(row, whole), row["widths"], kib(row["flash_bytes"])]
        cells += [kib(row["ram_bytes"]), percent(row["float32"]), found[0], trained, *found[1:]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def elements_table(rows: Sequence[Row], whole: Row) -> str:
    """One line a density: accuracy, flash dense and sparse, RAM."""
    lines = [
        "Single weights removed: RAM stays, and flash falls once the sparse form is smaller.\n",
        "| parameters | agp | one-shot | flash dense | flash sparse | RAM |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in pick(rows, "elements", "agp"):
        dense, smaller = row["dense_flash_bytes"], row["flash_bytes"]
        once = at(rows, ("elements", "one-shot", ""), row["share"], "int8")
        cells = [row_share(row, whole), percent(row["int8"]), once, kib(dense)]
        cells += [kib(smaller) if smaller < dense else "stays dense", kib(row["ram_bytes"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def at(rows: Sequence[Row], way: tuple[str, str, str], share: float, key: str) -> str:
    """One accuracy, or a dash where it was not measured."""
    found = [row[key] for row in pick(rows, *way) if row["share"] == share]
    return percent(found[0]) if found else "-"


def row_share(row: Row, whole: Row) -> str:
    """Remaining share of the parameters."""
    return percent(row["parameters"] / whole["parameters"])


def percent(share: float) -> str:
    """A share in percent."""
    return f"{100 * share:.2f} %"


def kib(size: float) -> str:
    """Bytes in KiB."""
    return f"{size / KIB:.1f} KiB"


def figure(found: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Accuracy against remaining parameters, one panel a network; no date in it."""
    mpl.rcParams.update({"svg.hashsalt": "dse", "font.size": 9, "axes.spines.top": False})
    canvas, panels = plt.subplots(1, len(found), squeeze=False, layout="constrained")
    canvas.set_size_inches(4.2 * len(found), 3.4)
    for axes, (name, rows) in zip(panels[0], found.items(), strict=True):
        panel(axes, name, rows)
    canvas.savefig(path, metadata={"Date": None})


def panel(axes: Axes, name: str, rows: Sequence[Row]) -> None:
    """The curves of one network."""
    (whole,) = (row for row in rows if row["technique"] == "baseline")
    single = [("elements", schedule, "") for schedule in ("agp", "one-shot")]
    for way in [*ways(rows), *single]:
        chosen = pick(rows, *way)
        if not chosen:
            continue
        shares = [100 * row["parameters"] / whole["parameters"] for row in chosen]
        style = {"channels": "-o", "qat": "--s"}.get(way[0], ":^")
        label = f"{way[2] or 'single weights'} {way[1]}"
        label += " trained int8" if way[0] == "qat" else ""
        axes.plot(shares, [100 * row["int8"] for row in chosen], style, ms=3, lw=1, label=label)
    axes.axhline(100 * whole["float32"], color="#444444", lw=0.8)
    axes.axhline(100 * (whole["float32"] - POINT), color="#bbbbbb", lw=0.8, ls="--")
    axes.set(xscale="log", xlabel="remaining parameters (%)", title=name)
    axes.set_ylabel("int8 test accuracy (%)")
    axes.set_ylim(bottom=max(0, 100 * whole["float32"] - 25))
    axes.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    axes.legend(frameon=False, fontsize=6)
