"""A small problem whose true front is known: real shapes and costs, accuracy by a formula.

Loading it loads no torch: a worker that only computes the formula is a small process.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from dse.candidate import Candidate
from dse.evaluation import Evaluation, InProcess, Interrupted
from dse.explorer import Explorer
from dse.graph.ir import Graph
from dse.graph.numerics import Rounding
from dse.launch import Launch, record_of
from dse.pareto import non_dominated
from dse.problem import Problem, build_problem
from dse.rows import StudyRecord
from dse.stopping import Watch
from dse.storage import Storage
from dse.study import parse_study
from dse.trial import Metric, Trial

STUDY = """
name: small
workload: digits
space:
  pruning: {ratio: [0, 0.25, 0.5, 0.75]}
  quantization: {weight_bits: [2, 4, 8]}
  boards: [nucleo_f446re, rpi_pico]
  backends: [native]
objectives: [accuracy, flash, latency]
constraints:
  - accuracy >= baseline - 30 %
  - ram <= 3 KiB
sampler: random
n_trials: 40
"""


EPOCHS = 5


def small_graph() -> Graph:
    from torch import nn

    from dse.graph.trace import trace

    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 16, 10),
    )
    return trace(model, (1, 8, 8), "small")


def small_problem(text: str = STUDY, graph: Graph | None = None) -> Problem:
    return build_problem(parse_study(text, "small.yaml"), graph or small_graph(), 10)


@dataclass
class FormulaEvaluator:
    """Accuracy falls smoothly with what is removed; counts what it is asked to train."""

    problem: Problem
    trained: list[str] = field(default_factory=list)
    fail: frozenset[str] = frozenset()
    interrupt_after: int | None = None
    sleep_s: float = 0.0
    epochs: int = 0

    def after(self, candidate: Candidate, epoch: int) -> float:
        """The accuracy between two epochs: on its way to the final one, with some noise."""
        final = formula(self.problem, candidate)
        noise = np.random.default_rng(int(candidate.network_key[:8], 16) + epoch).normal(0, 0.01)
        return float(np.clip(final - 0.3 * 0.5**epoch + noise, 0.05, 0.99))

    def evaluate(
        self, candidate: Candidate, rounding: Rounding, watch: Watch | None = None
    ) -> Evaluation:
        if self.interrupt_after is not None and len(self.trained) >= self.interrupt_after:
            raise Interrupted
        self.trained.append(candidate.network_key)
        time.sleep(self.sleep_s)
        if candidate.network_key in self.fail:
            raise RuntimeError("the loss is not finite")
        candidate = trained(self.problem, candidate)
        shapes = self.problem.space.shapes(candidate)
        metric = _metric(formula(self.problem, candidate), "validation")
        if watch is not None:
            for epoch in range(1, EPOCHS):
                self.epochs += 1
                watch(self.after(candidate, epoch), epoch, EPOCHS)
            self.epochs += 1
        return Evaluation(shapes, metric, 1000, {"train": self.sleep_s}, True)

    def test_accuracy(self, graph: Graph, rounding: Rounding) -> tuple[Metric, int]:
        return _metric(0.5, "test"), 500


def trained(problem: Problem, candidate: Candidate) -> Candidate:
    """With widths as a training would find them within budgets: near those that are predicted."""
    if not candidate.open:
        return candidate
    widths = dict(problem.space.expected(candidate).widths)
    unlucky = sorted(widths)[int(candidate.float_key[:4], 16) % len(widths)]
    widths[unlucky] = max(1, widths[unlucky] - 1)
    return replace(candidate, widths=widths)


def _metric(value: float, source: str) -> Metric:
    return Metric(value, max(0.0, value - 0.01), min(1.0, value + 0.01), "measured", source)


def formula(problem: Problem, candidate: Candidate) -> float:
    """Loses by log of kept parameters and by coarse bits; deterministic."""
    shapes, whole = problem.space.shapes(candidate), problem.space.graph
    kept = np.log(whole.parameters / shapes.parameters)
    coarse = sum(2.0 ** (1 - bits) for bits in candidate.bits.values())
    return float(max(0.1, 0.99 - 0.05 * kept - 0.12 * coarse))


def true_front(
    problem: Problem,
) -> tuple[set[str], np.ndarray[tuple[int, int], np.dtype[np.float64]]]:
    """Candidate keys and raw values (accuracy, flash, latency) of the exact front."""
    found: dict[str, list[float]] = {}
    baseline = formula(problem, problem.space.int8_baseline(problem.reference_target))
    for params in problem.space.settings():
        candidate = problem.space.candidate(params)
        screening = problem.screen(candidate)
        accuracy = formula(problem, candidate)
        if screening.feasible and accuracy >= baseline - 0.3:
            costs = [screening.metrics[name].value or 0.0 for name in ("flash", "latency")]
            found[candidate.key] = [accuracy, *costs]
    values = np.array(list(found.values()))
    mask = non_dominated(np.column_stack([1 - values[:, 0], values[:, 1:]]))
    keys = np.array(list(found))[mask]
    return set(keys), values[mask]


class Silent:
    """A listener that only remembers."""

    def __init__(self) -> None:
        self.seen: list[Trial] = []

    def begun(self, trial: Trial) -> None: ...

    def ended(self, trial: Trial, front: Sequence[int], hypervolume: float) -> None:
        self.seen.append(trial)

    def heard(self, trial: Trial, front: Sequence[int], hypervolume: float) -> None:
        self.seen.append(trial)


def small_record(problem: Problem, name: str = "small", **changes: object) -> StudyRecord:
    from dse.workloads import WORKLOADS

    workload = WORKLOADS["digits"]
    launch = Launch(
        problem.study, STUDY, Path(), workload, workload.load(), workload.recipe, problem
    )
    record = record_of(launch, name, problem.study.n_trials)
    return replace(record, **changes)  # type: ignore[arg-type]


def explorer(
    storage: Storage, record: StudyRecord, problem: Problem, evaluator: FormulaEvaluator
) -> Explorer:
    return Explorer(storage, record, problem, InProcess(evaluator), Silent())
