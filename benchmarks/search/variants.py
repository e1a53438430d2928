"""The grey box with fewer or more first designs, and on other many-knob formulas.

python benchmarks/search.py --variants      # adds the tables to reports/search.md
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from methods import grey_box
from problem import SearchProblem
from synthetic import NOISE, OTHER_FORMULAS, synthetic
from tabulated import tabulated

STARTUPS = (2, 3, 4, 8)
EARLY = (6, 8, 10, 15, 25)
STARTUP_SEEDS = range(100, 106)  # those of tuning, not of the report
TRAININGS = (25, 50, 100, 200)
FORMULA_SEEDS = range(3)
Scores = list[list[float]]  # by seed, then by trainings


def measure_all() -> dict[str, Any]:
    """{"startup": problem -> designs -> scores, "formulas": formula -> noise -> scores}."""
    problems = {"digits": tabulated("digits"), "har": tabulated("har"), "syn": synthetic()}
    startup = {
        name: {str(n): _scores(problem, STARTUP_SEEDS, EARLY, startup=n) for n in STARTUPS}
        for name, problem in problems.items()
    }
    formulas = {
        str(formula): {
            f"{noise:g}": _scores(synthetic(formula, noise), FORMULA_SEEDS, TRAININGS)
            for noise in (NOISE, 0.0)
        }
        for formula in OTHER_FORMULAS
    }
    return {"startup": startup, "formulas": formulas}


def _scores(
    problem: SearchProblem, seeds: Sequence[int], trainings: Sequence[int], **settings: Any
) -> Scores:
    ledgers = [grey_box(**settings)(problem, seed, trainings[-1]) for seed in seeds]
    found = [[round(ledger.score(n), 4) for n in trainings] for ledger in ledgers]
    print(f"{problem.name} {settings}: {found}", flush=True)
    return found


def section(found: Mapping[str, Any]) -> list[str]:
    """Markdown: both tables with what they are."""
    return [
        "## Variants of the grey box",
        "",
        "`python benchmarks/search.py --variants`. With so many first designs (the parent, the "
        "smallest network, and those farthest from each other) before the model proposes; median "
        f"of {len(STARTUP_SEEDS)} seeds that are not those above. The default is 3.",
        "",
        *_table(("problem", "first designs"), EARLY, found["startup"]),
        "",
        "On formulas with other sensitivities, pairs and triples than `syn`, with the noise of .1 "
        f"on the logit of a training's error and without; median of {len(FORMULA_SEEDS)} seeds. "
        "What is left to the best known front is mostly what noisy trainings do not tell.",
        "",
        *_table(("formula", "noise"), TRAININGS, found["formulas"]),
        "",
    ]


def _table(
    names: tuple[str, str], trainings: Sequence[int], found: Mapping[str, Mapping[str, Scores]]
) -> list[str]:
    columns = [*names, *map(str, trainings)]
    lines = [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
    for first, rows in found.items():
        for second, scores in rows.items():
            medians = [statistics.median(column) for column in zip(*scores, strict=True)]
            cells = [f"{value:.2f}".lstrip("0") for value in medians]
            lines.append(f"| {' | '.join([first, second, *cells])} |")
    return lines
