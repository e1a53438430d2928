"""What budgets as a method of pruning add to a study, and how near their predicted costs come.

The same study by ratios alone and with budgets beside them, as many trials each: hypervolumes in
the box that holds both. For every network that was trained within budgets, the costs of the widths
that the grey box expected, and of the uniform ratio that just meets the budgets, are set against
those that were found. Prints tables for docs/techniques.md.

    python benchmarks/budgets.py
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import yaml

from dse.candidate import Candidate
from dse.compare import compare
from dse.graph.resources import Budgets
from dse.launch import Launch, explore, prepare, record_of
from dse.overview import read_overview
from dse.problem import Problem
from dse.storage import Storage
from dse.trial import MetricName, Trial
from dse.widths import Narrowing, aligned_width

RATIO = {"ratio": [0, 0.25, 0.5, 0.75, 0.875]}
SHARES = [1, 0.5, 0.25, 0.1]
METHODS: Mapping[str, Mapping[str, object]] = {
    "ratio": RATIO,
    "ratio, budget": {
        **RATIO,
        "method": ["ratio", "budget"],
        "budget": {"memory": [1, 0.5, 0.25], "size": SHARES, "macs": SHARES},
    },
}
RECIPES: Mapping[str, Mapping[str, object]] = {
    "digits": {},
    "lenet5-mnist": {"epochs": 2, "train_samples": 10000, "fine_tune_samples": 10000},
}
COSTS: tuple[MetricName, ...] = ("flash", "ram", "latency")


class Quiet:
    """Shows nothing."""

    def begun(self, trial: Trial) -> None: ...

    def ended(self, trial: Trial, front: Sequence[int], hypervolume: float) -> None: ...

    def heard(self, trial: Trial, front: Sequence[int], hypervolume: float) -> None: ...


def launched(workload: str, method: str, seed: int, folder: Path) -> Launch:
    """The study, ready to explore."""
    content = {
        "name": f"{method} {seed}",
        "workload": workload,
        "training": {"threads": 1, **RECIPES[workload]},
        "space": {
            "pruning": METHODS[method],
            "quantization": {"weight_bits": [4, 8]},
            "boards": ["nucleo_f446re"],
            "backends": ["native", "cmsis-nn"],
        },
        "objectives": ["accuracy", *COSTS],
        "seed": seed,
    }
    return prepare(yaml.safe_dump(content), "the study", folder)


def explored(storage: Storage, launch: Launch, trials: int) -> str:
    """Run the study; its name."""
    record = record_of(launch, launch.study.name, trials)
    storage.create(record)
    explore(storage, record, launch, Quiet(), n_trials=trials, timeout_s=None, stop=lambda: False)
    return record.name


def uniform(problem: Problem, candidate: Candidate) -> Candidate:
    """With the widths of the smallest ratio over all groups that meets the budgets."""
    narrowing = Narrowing(problem.space.graph, candidate.alignment, candidate.whole)
    budgets = Budgets.of(problem.space.graph, candidate.budgets)
    for percent in range(100):
        widths = {
            name: aligned_width(channels, percent / 100, candidate.alignment)
            for name, channels in narrowing.whole.items()
        }
        if budgets.met(narrowing.needs(widths)):
            return replace(candidate, widths=narrowing.removed(widths))
    return problem.space.narrowest(candidate)


def errors(problem: Problem, trials: Sequence[Trial]) -> dict[str, dict[str, list[float]]]:
    """|predicted / found - 1| of each cost, by kind of prediction, one a training."""
    found: dict[str, dict[str, list[float]]] = {}
    for trial in trials:
        candidate = Candidate.from_json(trial.candidate)
        if not (candidate.budgets and candidate.widths and trial.trained):
            continue
        asked = replace(candidate, widths={})
        for kind, guess in (
            ("expected", problem.space.expected(asked)),
            ("uniform", uniform(problem, asked)),
        ):
            metrics = problem.screen(guess).metrics
            for name in COSTS:
                predicted, value = metrics[name].value, trial.value(name)
                assert predicted is not None
                assert value is not None
                found.setdefault(kind, {}).setdefault(name, []).append(abs(predicted / value - 1))
    return found


def main() -> None:
    """Run all studies and print what they gave."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=RECIPES, default="digits")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = parser.parse_args()
    print(f"{given.workload}, {given.trials} trials a study\n")
    print("| seed | " + " | ".join(METHODS) + " | of them on the front within budgets |")
    print("| --- |" + " --- |" * (len(METHODS) + 1))
    off: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(f"sqlite:///{folder}/dse.db")
        for seed in given.seeds:
            launches = [launched(given.workload, m, seed, Path(folder)) for m in METHODS]
            names = [explored(storage, launch, given.trials) for launch in launches]
            compared = compare(*(read_overview(storage, name) for name in names))
            trials = storage.trials(names[1])
            members = storage.fronts(names[1])[-1].members
            within = sum(bool(trials[number].candidate.get("budgets")) for number in members)
            volumes = " | ".join(f"{side.hypervolume:.4f}" for side in compared.sides)
            print(f"| {seed} | {volumes} | {within} of {len(members)} |", flush=True)
            for kind, costs in errors(launches[1].problem, trials).items():
                for name, values in costs.items():
                    off.setdefault(kind, {}).setdefault(name, []).extend(values)
        storage.close()
    print("\n| predicted widths | networks | " + " | ".join(COSTS) + " |")
    print("| --- | --- |" + " --- |" * len(COSTS))
    for kind, costs in off.items():
        cells = " | ".join(f"{100 * median(costs[name]):.1f} %" for name in COSTS)
        print(f"| {kind} | {len(costs['flash'])} | {cells} |")


if __name__ == "__main__":
    main()
