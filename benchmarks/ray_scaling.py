"""How a study scales on Ray: trials that sleep, on a Ray of this machine, stored in SQLite.

Writes reports/ray_scaling.md. Every trial sleeps instead of training, so what is lost against
linear is the explorer's, Ray's and the database's. Slots are logical cores; a machine of two can
have sixteen of them asleep.

    python benchmarks/ray_scaling.py                            # 1, 4 and 16 slots
    python benchmarks/ray_scaling.py --slots 1 4 8 --trials-per-slot 10 --sleep 1
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dse.candidate import Candidate
from dse.evaluation import Evaluation, Measuring
from dse.explorer import Explorer
from dse.graph.ir import Graph
from dse.graph.numerics import Rounding
from dse.graph.trace import trace
from dse.launch import Launch, record_of
from dse.problem import Problem, build_problem
from dse.ray_executor import RayExecutor
from dse.stopping import Watch
from dse.storage import Storage
from dse.study import parse_study
from dse.trial import Metric, Trial
from dse.workloads import WORKLOADS

REPORT = Path(__file__).parents[1] / "reports" / "ray_scaling.md"
HEAD = """# How a study scales on Ray

Made by `python benchmarks/ray_scaling.py`: trials that sleep, on a Ray cluster of one machine.
"""
STUDY = """
name: scaling
workload: digits
space:
  pruning: {ratio: {low: 0, high: 0.75, step: 0.125}}
  quantization: {weight_bits: [2, 4, 8]}
  boards: [nucleo_f446re, rpi_pico]
  backends: [native]
objectives: [accuracy, flash]
sampler: random
n_trials: 1000
"""


def problem() -> Problem:
    workload = WORKLOADS["digits"]
    graph = trace(workload.network(0), workload.load().sample_shape, workload.name)
    return build_problem(parse_study(STUDY, "scaling"), graph, 10)


@dataclass(frozen=True)
class Sleeping:
    """Makes evaluators that sleep, in the processes that use them."""

    sleep_s: float

    def __call__(self, stop: Callable[[], bool]) -> Measuring:
        return Sleeper(problem(), self.sleep_s)


@dataclass(frozen=True)
class Sleeper:
    """Finds every network equally accurate, after a while."""

    problem: Problem
    sleep_s: float

    def evaluate(
        self, candidate: Candidate, rounding: Rounding, watch: Watch | None = None
    ) -> Evaluation:
        time.sleep(self.sleep_s)
        half = Metric(0.5, 0.4, 0.6, "measured", "asleep")
        return Evaluation(self.problem.space.shapes(candidate), half, 100, {}, True)

    def test_accuracy(self, graph: Graph, rounding: Rounding) -> tuple[Metric, int]:
        return Metric(0.5, 0.4, 0.6, "measured", "asleep"), 100


class Clock:
    """The moments at which trained trials were stored."""

    def __init__(self) -> None:
        self.stored: list[float] = []

    def begun(self, trial: Trial) -> None: ...

    def ended(self, trial: Trial, front: Sequence[int], hypervolume: float) -> None:
        if trial.trained:
            self.stored.append(time.monotonic())

    def heard(self, trial: Trial, front: Sequence[int], hypervolume: float) -> None: ...


def throughput(slots: int, trials: int, sleep_s: float, folder: Path) -> float:
    """Trained trials a second, once every slot has its process and its evaluator."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": slots, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    cluster: Any = Cluster(initialize_head=True, head_node_args=node)
    asked, clock = problem(), Clock()
    workload = WORKLOADS["digits"]
    launch = Launch(asked.study, STUDY, Path(), workload, workload.load(), workload.recipe, asked)
    executor = RayExecutor(Sleeping(sleep_s), cluster.address)
    with Storage(f"sqlite:///{folder / 'scaling.db'}") as storage:
        record = record_of(launch, f"slots-{slots}", trials)
        storage.create(record)
        Explorer(storage, record, asked, executor, clock).run(trials)
    executor.close()
    cluster.shutdown()
    # The first rounds start processes and wait for the baseline. Trials end in rounds: what is
    # counted begins and ends with one.
    warm = clock.stored[2 * slots - 1 :]
    return (len(warm) - 1) / (warm[-1] - warm[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--trials-per-slot", type=int, default=5)
    parser.add_argument("--sleep", type=float, default=10.0, help="seconds a trial")
    options = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    lines = [f"| slots | trials/s | of linear (a trial sleeps {options.sleep:g} s) |"]
    lines.append("| ---: | ---: | ---: |")
    for slots in options.slots:
        with tempfile.TemporaryDirectory() as folder:
            trials = slots * options.trials_per_slot
            found = throughput(slots, trials, options.sleep, Path(folder))
        linear = 100 * found * options.sleep / slots
        lines.append(f"| {slots} | {found:.2f} | {linear:.0f} % |")
        print(lines[-1], flush=True)
    REPORT.write_text("\n".join([HEAD, *lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
