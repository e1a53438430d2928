"""Run the methods on the problems, keep their scores, and write the table and the figure."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from methods import Method, methods, timed
from problem import SearchProblem
from suggestion import measure_all
from suggestion import table as suggestion_table
from synthetic import synthetic
from tabulated import tabulated
from variants import measure_all as measure_variants
from variants import section as variants_section

REPORTS = Path(__file__).parents[2] / "reports"
PROBLEMS = ("digits", "har", "syn")
TABLE = (25, 50, 100, 200)
CURVE = (8, 10, 12, 15, 18, 20, 25, 30, 35, 40, 50, 60, 75, 100, 125, 150, 175, 200)
# Seeds of the report; the sampler was tuned with seeds from 100 on.
FIRST_SEED = 0
DRAWN = ("random", "NSGA-II", "TPE", "TPE + item 1", "GPSampler", "grey box", "oracle")
SUGGESTION, VARIANTS = "suggestion", "variants"  # beside the problems in the stored results
# What the grey box is to do: (rival, its trainings, trainings that are to be enough).
GOALS = (
    ("TPE", 200, 20),
    ("NSGA-II", 200, 20),
    ("TPE + item 1", 200, 40),
    ("GPSampler", 50, 25),
    ("qLogNEHVI", 50, 25),
)
# The prototype's values at 25, 50, 100 and 200 trainings: on its real problem, and on its own
# many-knob one, which is another formula than `syn`.
LEAST = {"digits": (0.91, 0.95, 0.97, 0.98), "har": (0.91, 0.95, 0.97, 0.98)}
BETTER_THAN = {"syn": (0.49, 0.65, 0.81, 0.91)}
_COLOURS = ("#999999", "#d55e00", "#0072b2", "#56b4e9", "#cc79a7", "#009e73", "#000000")

# problem -> method -> seed -> {"scores": {trainings: share}, "cpu_s": seconds a training,
# "spent_s": {trainings: seconds}, "revision": of the method, "problem": its fingerprint}
Results = dict[str, dict[str, dict[str, Any]]]


def find_problem(name: str) -> SearchProblem:
    """One of PROBLEMS."""
    return synthetic() if name == "syn" else tabulated(name)


def run(
    results: Results, names: Sequence[str], chosen: Sequence[Method], seeds: int | None, path: Path
) -> None:
    """Run what `results` lack or have of an earlier revision, seed by seed over all methods.

    At most the first `seeds` of each method. Stored after every run.
    """
    for seed in range(max(method.seeds for method in chosen)):
        for name in names:
            problem = find_problem(name)
            for method in chosen:
                kept = results.setdefault(name, {}).setdefault(method.name, {})
                enough = method.seeds if seeds is None else min(seeds, method.seeds)
                if seed >= enough or _current(kept.get(str(FIRST_SEED + seed)), method, name):
                    continue
                ledger, cpu_s = timed(method, problem, FIRST_SEED + seed)
                points = [n for n in CURVE if n <= len(ledger.trained)]
                scores = {str(n): round(ledger.score(n), 4) for n in points}
                kept[str(FIRST_SEED + seed)] = {
                    "scores": scores,
                    "cpu_s": round(cpu_s, 4),
                    "spent_s": {str(n): round(ledger.spent_s(n), 3) for n in points if n in TABLE},
                    "revision": method.revision,
                    "problem": problem.fingerprint,
                }
                print(f"{name} {method.name} seed {seed}: {scores.get('50')} at 50", flush=True)
                path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _current(entry: dict[str, Any] | None, method: Method, name: str) -> bool:
    if entry is None or entry.get("revision", 1) != method.revision:
        return False
    return bool(entry.get("problem") == find_problem(name).fingerprint)


def median(runs: dict[str, Any], trainings: int) -> float | None:
    """Over the seeds; None when a run ended before."""
    found = [entry["scores"].get(str(trainings)) for entry in runs.values()]
    return statistics.median(found) if found and None not in found else None


def reached(runs: dict[str, Any], score: float | None) -> int | None:
    """The first point of the curve at which the median is at least the score."""
    if score is None:
        return None
    for trainings in CURVE:
        found = median(runs, trainings)
        if found is not None and found >= score:
            return trainings
    return None


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}".lstrip("0")


def table(results: Results, name: str, chosen: Sequence[Method]) -> list[str]:
    """Rows of Markdown: medians, seeds, CPU time, and what the grey box needs to be as good."""
    lines = [
        "| method | 25 | 50 | 100 | 200 | grey box is as good after | seeds | CPU s a training |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    runs = results.get(name, {})
    for method in chosen:
        mine = runs.get(method.name)
        if not mine:
            continue
        cells = [_cell(median(mine, n)) for n in TABLE]
        last = next((n for n in reversed(TABLE) if median(mine, n) is not None), TABLE[0])
        needed = reached(runs.get("grey box", {}), median(mine, last))
        ratio = f"{needed} of {last}" if needed and not method.name.startswith("grey box") else ""
        cpu = _cpu(mine)
        bold = "**" if method.name == "grey box" else ""
        title = f"{bold}{method.name}{bold}"
        lines.append(f"| {title} | {' | '.join(cells)} | {ratio} | {len(mine)} | {cpu:.3f} |")
    return lines


def goals(results: Results) -> list[str]:
    """What was to be shown, by problem: met or not, with the figures."""
    found = []
    for name in PROBLEMS:
        runs = results.get(name, {})
        ours = runs.get("grey box", {})
        for rival, trainings, enough in GOALS:
            value, mine = median(runs.get(rival, {}), trainings), median(ours, enough)
            if value is None or mine is None:
                found.append(f"- {name}: {rival} was not run to {trainings} trainings.")
                continue
            met = "met" if mine >= value else "missed"
            times = _times(runs, rival, trainings, enough) if trainings == 50 else ""
            found.append(
                f"- {name}: {rival} at {trainings} reached {_cell(value)}, the grey box at {enough}"
                f" {_cell(mine)}: {met}.{times}"
            )
        for wanted, least in ((LEAST.get(name), "at least"), (BETTER_THAN.get(name), "above")):
            if wanted is not None and ours:
                mine_all = " / ".join(_cell(median(ours, n)) for n in TABLE)
                goal = " / ".join(_cell(value) for value in wanted)
                found.append(f"- {name}: {mine_all} of the front (goal: {least} {goal}).")
    return found


def _times(runs: dict[str, Any], rival: str, trainings: int, enough: int) -> str:
    """How much less CPU time the grey box takes, a training and in all, from the stored runs."""
    theirs = _cpu(runs[rival])
    own = statistics.median(run["spent_s"][str(enough)] for run in runs["grey box"].values())
    return (
        f" A suggestion takes {theirs:.2f} s and {own / enough:.3f} s, {enough * theirs / own:.0f} "
        f"times less; all of them {trainings * theirs:.0f} s and {own:.1f} s, "
        f"{trainings * theirs / own:.0f} times less."
    )


def _cpu(runs: dict[str, Any]) -> float:
    return float(statistics.median(entry["cpu_s"] for entry in runs.values()))


def report(results: Results, chosen: Sequence[Method]) -> str:
    """The whole page."""
    lines = [
        "# Search: which sampler finds the front with the fewest trainings",
        "",
        "Made by `python benchmarks/search.py`. Median over the seeds of the hypervolume after 25,"
        " 50, 100 and 200 trainings, as a share of the true front's (digits, har: every network was"
        " trained) or of the best known one's (syn).",
        "",
        "![Median share of the front's hypervolume by trainings](search.svg)",
        "",
        "- **plain**: every proposal is one training, on the target it names.",
        "- **item 1**: what `dse` does for every sampler: what costs alone rule out is rejected"
        " free, a known network costs nothing (the fifth in a row is changed until it is new), one"
        " training counts on all targets, and the first 20 designs are cost-spread.",
        "- **grey box**: `dse.greybox.GreyBoxSampler`, with the memo; *costs predicted* learns the"
        " costs as well (and has no memo), *no memo* knows them, but each training counts on one"
        " target only.",
        "- **oracle**: the grey box whose only feature is the true error: the ceiling.",
        "- *grey box is as good after*: trainings after which its median reaches the row's last"
        " value.",
        "",
    ]
    for name in PROBLEMS:
        if results.get(name):
            lines += [f"## {name}", "", _described(name), "", *table(results, name, chosen), ""]
    if VARIANTS in results:
        lines += variants_section(results[VARIANTS])
    lines += ["## Goals", "", *goals(results), ""]
    if SUGGESTION in results:
        lines += ["## Time and memory of a suggestion", "", _SUGGESTION_TEXT, ""]
        lines += [*suggestion_table(results[SUGGESTION]), ""]
    ran = {name for problem in PROBLEMS for name in results.get(problem, {})}
    notes = [f"{m.name}: {m.note}" for m in chosen if m.note and m.name in ran]
    notes += [f"{m.name}: not run yet" for m in chosen if m.name not in ran]
    notes += [f"{m.name}: {few}" for m in chosen if m.name in ran and (few := _few(results, m))]
    lines += ["## Notes", "", *[f"- {note}." for note in notes], *_machine()]
    return "\n".join(lines) + "\n"


_SUGGESTION_TEXT = (
    "CPU seconds of one suggestion on `syn` (25 knobs, 4 objectives) with so many trials stored, "
    "median of five; the first one of a process also reads all trials and fits the model anew. "
    "Memory is the whole process's (`python benchmarks/search.py --suggestion`)."
)


def _described(name: str) -> str:
    if name == "syn":
        return (
            "12 layers, each with 7 pruning ratios and 3 bit widths, x 12 targets; error, flash, "
            "latency and energy by formulas, noise of .1 on the logit of a training's error; "
            "scored without noise (`benchmarks/search/synthetic.py`)."
        )
    problem = find_problem(name)
    costs: Any = problem.costs
    networks = costs.array.shape[0] * costs.array.shape[1]
    feasible = np.isfinite(costs.array).all(axis=3).mean()
    return (
        f"{networks:,} networks, really trained (`benchmarks/search/train_table.py {name}`), x "
        f"{costs.array.shape[2]} targets with dse's costs, {100 * feasible:.0f} % of the designs "
        f"feasible; error below {problem.worst_error:g}, flash, latency and energy."
    )


def _few(results: Results, method: Method) -> str:
    """On which problems a method lacks seeds, or ran before it was changed."""
    found = []
    for name in PROBLEMS:
        runs = results.get(name, {}).get(method.name, {})
        if len(runs) < method.seeds:
            found.append(f"{len(runs)} of {method.seeds} seeds on {name}")
        earlier = sum(not _current(entry, method, name) for entry in runs.values())
        if earlier:
            found.append(f"{earlier} runs on {name} are of an earlier method or cost model")
    return ", ".join(found)


def _machine() -> list[str]:
    import scipy
    import sklearn

    versions = f"Python {platform.python_version()}, Optuna {optuna.__version__}"
    libraries = f"scikit-learn {sklearn.__version__}, SciPy {scipy.__version__}"
    return [f"- {versions}, {libraries}; CPU times are on one thread of a shared machine."]


def figure(results: Results, path: Path) -> None:
    """Median curves of a few methods, a panel a problem."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "search"  # the same file for the same numbers
    from matplotlib import pyplot as plt

    names = [name for name in PROBLEMS if results.get(name)]
    drawing, axes = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.6), sharey=True)
    for axis, name in zip(np.atleast_1d(axes), names, strict=True):
        for method, colour in zip(DRAWN, _COLOURS, strict=True):
            runs = results[name].get(method, {})
            points = [(n, m) for n in CURVE if (m := median(runs, n)) is not None]
            if points:
                style = "--" if method == "oracle" else "-"
                axis.plot(*zip(*points, strict=True), style, color=colour, label=method)
        axis.set(title=name, xlabel="trainings", xlim=(0, 200), ylim=(0, 1))
        axis.grid(alpha=0.3)
    first = np.atleast_1d(axes)[0]
    first.set_ylabel("share of the front's hypervolume")
    first.legend(fontsize=8, loc="lower right")
    drawing.tight_layout()
    drawing.savefig(path, metadata={"Date": None})


def main() -> None:
    """Run, or with --render only write, the comparison."""
    parser = argparse.ArgumentParser(description="Compare samplers by trainings.")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    known = [method.name for method in methods()]
    parser.add_argument("--methods", nargs="+", choices=known, default=known)
    parser.add_argument("--seeds", type=int, help="only the first seeds of each method")
    parser.add_argument("--render", action="store_true", help="only the report, from stored runs")
    parser.add_argument("--results", type=Path, default=REPORTS / "search.json")
    parser.add_argument(
        "--suggestion", action="store_true", help="only the time and memory of a suggestion"
    )
    parser.add_argument(
        "--variants",
        action="store_true",
        help="only the grey box with other first designs and on other many-knob formulas",
    )
    parser.add_argument("--fresh", action="store_true", help="forget the stored runs")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    stored = options.results.exists() and not options.fresh
    results: Results = json.loads(options.results.read_text()) if stored else {}
    chosen = [method for method in methods() if method.name in options.methods]
    if options.suggestion or options.variants:
        if options.suggestion:
            results[SUGGESTION] = measure_all()
        if options.variants:
            results[VARIANTS] = measure_variants()
        options.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    elif not options.render:
        run(results, options.problems, chosen, options.seeds, options.results)
    page = options.results.with_suffix(".md")
    page.write_text(report(results, methods()), encoding="utf-8")
    figure(results, options.results.with_suffix(".svg"))
    print(f"wrote {page.name}")
