"""reports/liberis.md from what benchmarks/liberis.py measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, TypeAlias

Row: TypeAlias = Mapping[str, Any]
Shares: TypeAlias = Sequence[float]
RESOURCES = ("peak_memory_bytes", "size_bytes", "macs")
INTRODUCTION = """# Budgeted pruning against fixed widths

After Liberis & Lane, [arXiv 2110.08350](https://arxiv.org/abs/2110.08350): every method meets the
same budgets of peak memory, size and MACs (shares of the whole network's), from the same trained
network, with equal epochs of fine-tuning. Exact int8 accuracy on test data, mean over the seeds;
every network met its budgets, or the run would have stopped. How it works, and where it differs
from the paper: [decisions/0009-budgets.md](../docs/decisions/0009-budgets.md). The form of its
loss was chosen among three on these runs, and HAR got harder budgets once the usual ones cost
nothing. Measured values: [liberis.json](liberis.json). Made by `python benchmarks/liberis.py`,
which goes on where it was interrupted.
"""


def key_of(workload: str, seed: int, method: str, shares: Shares = ()) -> str:
    """How a measurement is called in the results."""
    return " ".join([workload, f"seed {seed}", method, *(f"{share:g}" for share in shares)])


def write_report(
    results: Path, triples_of: Callable[[str], Sequence[Shares]], methods: Sequence[str]
) -> None:
    """Write <results>.md from <results>.json; `triples_of` a network's name."""
    known: dict[str, Row] = json.loads(results.read_text("utf-8"))
    workloads = list(dict.fromkeys(key.split(" seed ")[0] for key in known))
    wins = {method: [0, 0, 0, 0] for method in methods if method != methods[0]}
    sections = [section(known, name, triples_of(name), methods, wins) for name in workloads]
    lines = [INTRODUCTION, *sections, "## In all\n"]
    lines += [
        "Where the differentiable method is better, ties counted for the other: in triples of "
        "budgets (means over the seeds that both have) and in single runs, "
        + "; ".join(
            f"against {method} {score[0]} of {score[1]} and {score[2]} of {score[3]}"
            for method, score in wins.items()
        )
        + "."
    ]
    lines += ["", *reductions(known, workloads), *times(known, workloads, methods[0])]
    results.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def seeds_of(known: Mapping[str, Row], name: str) -> list[int]:
    """Seeds of which the whole network is known."""
    return [s for s in range(100) if key_of(name, s, "whole") in known]


def section(
    known: Mapping[str, Row],
    name: str,
    triples: Sequence[Shares],
    methods: Sequence[str],
    wins: Mapping[str, list[int]],
) -> str:
    """A table of one network; counts where the first method is better."""
    seeds = seeds_of(known, name)
    whole = [known[key_of(name, seed, "whole")] for seed in seeds]
    first = whole[0]
    lines = [
        f"## {name}\n",
        f"Seeds {', '.join(map(str, seeds))}; float32 "
        f"{percent(mean(w['float32'] for w in whole))}, {first['peak_memory_bytes']:,} B peak, "
        f"{first['size_bytes']:,} B, {first['macs']:,} MACs.\n",
        "| peak, size, MACs at most | " + " | ".join(methods) + " | widths (first seed) |",
        "| --- |" + " --- |" * (len(methods) + 1),
    ]
    for shares in triples:
        rows = {m: found(known, name, seeds, m, shares) for m in methods}
        for method, score in wins.items():
            common = set(rows[method]) & set(rows[methods[0]])
            if common:
                ours, theirs = (accuracy(rows[m], common) for m in (methods[0], method))
                score[0] += ours > theirs
                score[1] += 1
                pairs = [(rows[methods[0]][s]["int8"], rows[method][s]["int8"]) for s in common]
                score[2] += sum(one > other for one, other in pairs)
                score[3] += len(pairs)
        cells = [cell(rows[m], len(seeds)) for m in methods]
        widths = next((row["widths"] for row in rows[methods[0]].values()), "-")
        title = ", ".join(f"{100 * share:g} %" for share in shares)
        lines.append("| " + " | ".join([title, *cells, widths]) + " |")
    return "\n".join(lines) + "\n"


def found(
    known: Mapping[str, Row], name: str, seeds: Sequence[int], method: str, shares: Shares
) -> dict[int, Row]:
    """What is known of a method under one triple of budgets, by seed."""
    keys = {seed: key_of(name, seed, method, shares) for seed in seeds}
    return {seed: known[key] for seed, key in keys.items() if key in known}


def accuracy(rows: Mapping[int, Row], seeds: Iterable[int]) -> float:
    """Mean accuracy over seeds."""
    return mean(float(rows[seed]["int8"]) for seed in seeds)


def cell(rows: Mapping[int, Row], seeds: int) -> str:
    """Mean accuracy, with the number of seeds where some are missing."""
    if not rows:
        return "-"
    fewer = f" ({len(rows)} of {seeds} seeds)" if len(rows) < seeds else ""
    return percent(accuracy(rows, rows)) + fewer


def reductions(known: Mapping[str, Row], workloads: Sequence[str]) -> list[str]:
    """The largest reduction of each need at no more than one point lost, by network."""
    lines = [
        "Largest reduction of each need by one network that loses at most a point of float32:\n",
        "| network | peak memory | size | MACs |",
        "| --- | --- | --- | --- |",
    ]
    for name in workloads:
        best = dict.fromkeys(RESOURCES, 1.0)
        for seed in seeds_of(known, name):
            whole = known[key_of(name, seed, "whole")]
            for key, row in known.items():
                if not key.startswith(key_of(name, seed, "differentiable") + " "):
                    continue
                if row["int8"] >= whole["float32"] - 0.01:
                    best = {n: max(best[n], whole[n] / row[n]) for n in RESOURCES}
        lines.append(f"| {name} | " + " | ".join(f"{best[n]:.1f} x" for n in RESOURCES) + " |")
    return [*lines, ""]


def times(known: Mapping[str, Row], workloads: Sequence[str], method: str) -> list[str]:
    """Training time of the method beside plain fine-tuning of the whole network, by network."""
    ratios = {}
    for name in workloads:
        each = [
            row["seconds"] / known[key_of(name, seed, "whole")]["plain_s"]
            for seed in seeds_of(known, name)
            for key, row in known.items()
            if key.startswith(key_of(name, seed, method) + " ")
        ]
        if each:
            ratios[name] = f"{name} {mean(each):.2f}"
    text = ", ".join(ratios.values())
    return [f"Time of a training, in plain fine-tunings of the whole network: {text}."]


def percent(share: float) -> str:
    """A share in percent."""
    return f"{100 * share:.2f} %"
