"""What ending hopeless trainings early saves: `python benchmarks/search/early_stop.py`.

Replays the stored curves of the tabulated problems (test errors after every epoch) in the order in
which random search and the grey box train, with the rule of `dse.stopping`. "Perfect foresight"
knows every final error: no rule, and no cheap first rung of training, can save more.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import optuna
from methods import Ledger, grey_box, spread_random
from problem import SearchProblem
from tabulated import StoredErrors, tabulated

from dse.stopping import Curves, StoppedEarlyError, watch

TRAININGS = 100
SEEDS = range(5)
ORDERS: dict[str, Callable[[SearchProblem, int, int], Ledger]] = {
    "cost-spread random": spread_random,
    "grey box": grey_box(),
}


@dataclass(frozen=True)
class Replay:
    """Shares of epochs saved, by the rule and at best; hypervolume kept; front members lost."""

    saved: float
    foresight: float
    kept: float
    wrong: int


def needed(costs: list[np.ndarray], errors: list[float], own: np.ndarray) -> float:
    """The accuracy above which a network with costs `own` (targets, k) enters the front."""
    found = [
        max(
            [1 - e for c, e in zip(costs, errors, strict=True) if (c <= row).all(axis=1).any()],
            default=0.0,
        )
        for row in own
    ]
    return min(found)


def replay(problem: SearchProblem, ledger: Ledger) -> Replay:
    """Train again in the ledger's order, ending what the rule ends."""
    table = cast(StoredErrors, problem.errors)
    curves, costs, errors = Curves(), list[np.ndarray](), list[float]()
    saved = hopeless = epochs = wrong = 0
    kept = Ledger(problem, "memo")
    for network, targets in ledger.trained:
        own = problem.costs([network], problem.deployments)[0]
        own = own[np.isfinite(own).all(axis=1)]
        curve = 1 - table.table[table.index(network)] / table.samples
        asked = max(needed(costs, errors, own), 1 - problem.worst_error)
        useless = curve[-1] <= asked
        epochs += len(curve)
        hopeless += len(curve) * useless
        seen: list[float] = []
        after = watch(curves, asked, seen)
        try:
            for epoch, accuracy in enumerate(curve, 1):
                after(float(accuracy), epoch, len(curve))
        except StoppedEarlyError:
            saved += len(curve) - len(seen)
            wrong += not useless
            continue
        curves.known.append((tuple(seen), float(curve[-1])))
        costs.append(own)
        errors.append(1 - float(curve[-1]))
        kept.trained.append((network, targets))
    whole = ledger.score(len(ledger.trained))
    return Replay(saved / epochs, hopeless / epochs, kept.score(len(kept.trained)) / whole, wrong)


def main() -> None:
    """One line a problem and order."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    print("| problem | order | epochs saved | at best | hypervolume kept | front members lost |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in ("digits", "har"):
        problem = tabulated(name)
        for order, run in ORDERS.items():
            found = [replay(problem, run(problem, seed, TRAININGS)) for seed in SEEDS]
            saved, best, kept = (
                statistics.median(getattr(each, part) for each in found)
                for part in ("saved", "foresight", "kept")
            )
            lost = sum(each.wrong for each in found)
            print(
                f"| {name} | {order} | {saved:.0%} | {best:.0%} | {kept:.3f} "
                f"| {lost} of {len(SEEDS) * TRAININGS} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
