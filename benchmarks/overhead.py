"""Framework overhead a trial: dse against plain Optuna on its default SQLite, side by side.

80 knobs (40 layers x {channels kept, weight bits}), 1,000 finished trials in the database, no
training and no evaluation. Both sides make the same suggestions with the same sampler and hold the
same trials; they take turns, so that a noisy machine disturbs both. Plain Optuna opens a copy of
the file that dse wrote, with the pragmas of a new SQLite file.

    python benchmarks/overhead.py                      # random and NSGA-II
    python benchmarks/overhead.py --samplers tpe       # TPE's own time dominates both sides
"""

from __future__ import annotations

import argparse
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
from torch import nn

from dse.candidate import Candidate
from dse.evaluation import Evaluation, InProcess
from dse.explorer import Explorer
from dse.graph.ir import Graph
from dse.graph.numerics import Rounding
from dse.graph.trace import trace
from dse.launch import Launch, record_of
from dse.problem import Problem, build_problem
from dse.rows import StudyRecord
from dse.samplers import make_sampler
from dse.storage import Storage
from dse.study import parse_study
from dse.trial import Metric, Trial
from dse.workloads import WORKLOADS

LAYERS = 40
STUDY = """
name: overhead
workload: digits
space:
  pruning: {ratio: {low: 0, high: 0.75, step: 0.125}}
  quantization: {weight_bits: [2, 4, 8]}
  boards: [nucleo_f446re, nucleo_l4r5zi]
  backends: [native, cmsis-nn]
objectives: [accuracy, flash, latency]
constraints: ["ram <= 64 KiB"]
n_trials: 3
"""


def deep_network() -> nn.Module:
    """Forty prunable convolutions and a linear layer that decides."""
    layers: list[nn.Module] = []
    for index in range(LAYERS):
        layers += [nn.Conv2d(1 if index == 0 else 16, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


class Formula:
    """Stands in for training and evaluation, in microseconds."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def evaluate(
        self, candidate: Candidate, rounding: Rounding, watch: object = None
    ) -> Evaluation:
        shapes = self.problem.space.shapes(candidate)
        value = float(np.clip(shapes.parameters / self.problem.space.graph.parameters, 0.1, 0.99))
        return Evaluation(shapes, Metric(value, value, value, "measured", "formula"), 100, {}, True)

    def test_accuracy(self, graph: Graph, rounding: Rounding) -> tuple[Metric, int]:
        return Metric(0.5, 0.5, 0.5, "measured", "formula"), 100


class Quiet:
    """Shows nothing."""

    def begun(self, trial: Trial) -> None: ...

    def ended(self, trial: Trial, front: Sequence[int], hypervolume: float) -> None: ...

    def heard(self, trial: Trial, front: Sequence[int], hypervolume: float) -> None: ...


def problem() -> Problem:
    graph = trace(deep_network(), (1, 12, 12), "deep")
    return build_problem(parse_study(STUDY, "overhead"), graph, 10)


def record(found: Problem, sampler: str) -> StudyRecord:
    workload = WORKLOADS["digits"]
    launch = Launch(found.study, STUDY, Path(), workload, workload.load(), workload.recipe, found)
    return replace(record_of(launch, "overhead", 10_000), sampler=sampler)


def fill(url: str, found: Problem, trials: int) -> None:
    """Trials of the random sampler, which both sides then start from."""
    with Storage(url) as storage:
        filled = record(found, "random")
        storage.create(filled)
        Explorer(storage, filled, found, InProcess(Formula(found)), Quiet()).run(trials)


def plain_optuna(path: Path, found: Problem, sampler: str, number: int) -> optuna.Study:
    """The same trials under Optuna's own storage, with a new SQLite file's pragmas."""
    with sqlite3.connect(path) as connection:
        connection.execute("pragma journal_mode=delete")
    chosen = make_sampler(sampler, {}, 0, number, found.space.choices)
    return optuna.load_study(storage=f"sqlite:///{path}", study_name="overhead", sampler=chosen)


def one_plain_trial(study: optuna.Study, found: Problem) -> float:
    """Ask, 80 suggestions, tell: what a user of Optuna writes; seconds."""
    began = time.perf_counter()
    trial = study.ask()
    params = {n: trial._suggest(n, d) for n, d in found.space.distributions.items()}
    kept = sum(float(v) for v in params.values() if isinstance(v, int | float))
    trial.set_constraint("ram <= 64 KiB", -1.0)
    study.tell(trial, [0.5 + kept / 1000, 1e4 + kept, 1e-2 + kept / 1e4])
    return time.perf_counter() - began


def compare(found: Problem, source: Path, sampler: str, trials: int, rounds: int) -> None:
    """Turns of both sides over copies of one database; prints medians and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "dse.db", Path(folder) / "optuna.db"
        shutil.copy(source, ours)
        shutil.copy(source, theirs)
        plain = plain_optuna(theirs, found, sampler, trials)
        one_plain_trial(plain, found)  # loads the trials once, as a running study has
        with Storage(f"sqlite:///{ours}") as storage:
            loop = Explorer(
                storage, record(found, sampler), found, InProcess(Formula(found)), Quiet()
            )
            loop.run(trials + 1)
            dse_s, optuna_s = [], []
            for turn in range(rounds):
                began = time.perf_counter()
                loop.run(trials + 2 + turn)
                dse_s.append(time.perf_counter() - began)
                optuna_s.append(one_plain_trial(plain, found))
    mine, other = statistics.median(dse_s), statistics.median(optuna_s)
    print(
        f"{sampler:>7}: dse {1000 * mine:7.1f} ms a trial, plain Optuna {1000 * other:7.1f} ms, "
        f"ratio {mine / other:.3f} (median of {rounds} turns; dse includes exact costs)"
    )


def main() -> None:
    """Fill one database, then compare the samplers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--samplers", nargs="+", default=["random", "nsga2"])
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found = problem()
    knobs = sum(knob.kind in ("prune", "bits") for knob in found.space.knobs)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "filled.db"
        began = time.perf_counter()
        fill(f"sqlite:///{source}", found, options.trials)
        print(
            f"{knobs} knobs, {options.trials} trials filled in {time.perf_counter() - began:.0f} s"
        )
        with sqlite3.connect(source) as connection:
            connection.execute("pragma wal_checkpoint(truncate)")
        for sampler in options.samplers:
            compare(found, source, sampler, options.trials, options.rounds)


if __name__ == "__main__":
    main()
