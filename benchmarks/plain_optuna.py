"""The plain way: an Optuna script with TPE that trains whatever it suggests.

The same network, data, knobs, training (torch-pruning inside), exact accuracy and costs as
`dse run` of the same study file, but one suggestion is one training: nothing is screened by cost,
no network is known again, no training serves a second target. Constraints go to TPE as Optuna has
it. Prints one line a trial; `benchmarks/live.py` runs it beside `dse`.

    python benchmarks/plain_optuna.py studies/fashion-mnist-lenet5.yaml --minutes 30
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import optuna

from dse.compress import Compression, compress
from dse.graph import execute
from dse.graph.quantize import quantize
from dse.graph.trace import trace
from dse.launch import Launch, prepare
from dse.trial import METRICS, Metric
from dse.workloads import train

CALIBRATION_SAMPLES = 1024


class PlainObjective:
    """What such a script does with a suggestion: prune, fine-tune, quantize, measure, cost."""

    def __init__(self, launch: Launch, seed: int) -> None:
        self.launch, self.seed = launch, seed
        data, recipe = launch.dataset, launch.recipe
        self.baseline = launch.workload.network(seed)
        train(
            self.baseline,
            data.train.take(recipe.train_samples),
            recipe,
            epochs=recipe.epochs,
            learning_rate=recipe.learning_rate,
            seed=seed,
        )
        graph = trace(self.baseline, data.sample_shape, launch.workload.name)
        split = data.validation
        self.accuracy = execute.accuracy(graph, split.inputs, split.labels, "double")

    def __call__(self, trial: optuna.Trial) -> tuple[float, ...]:
        launch, data = self.launch, self.launch.dataset
        space = launch.problem.space
        params = {k: trial._suggest(k, d) for k, d in space.distributions.items()}
        candidate = space.candidate(params)
        plan = Compression(
            candidate.widths,
            candidate.kept,
            candidate.criterion or "l2",
            candidate.schedule or "one-shot",
        )
        model = compress(self.baseline, data.train, plan, launch.recipe, self.seed)
        float_graph = trace(model, data.sample_shape, launch.workload.name)
        ranges = execute.observe(float_graph, data.train.take(CALIBRATION_SAMPLES).inputs)
        graph = quantize(float_graph, ranges, candidate.bits, candidate.kept)
        rounding = launch.problem.targets[candidate.target].backend.rounding
        split = data.validation
        share = execute.accuracy(graph, split.inputs, split.labels, rounding)
        screening = launch.problem.screen(candidate)
        metric = Metric(share, share, share, "measured")
        violations, _ = launch.problem.judge(metric, self.accuracy, candidate.target)
        missed = {**screening.violations, **violations}
        for name, value in missed.items():
            trial.set_constraint(name, value)
        values = {"accuracy": metric, **screening.metrics}
        return tuple(float(values[name].value or 0.0) for name in launch.problem.objectives)


def explore(launch: Launch, seed: int, minutes: float) -> None:
    """Optimize for that long; one JSON line a trial on standard output.

    It says when it was finished (s since 1970), its values, and whether it meets every limit.
    """
    began = time.monotonic()
    objective = PlainObjective(launch, seed)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        directions=[METRICS[name].direction for name in launch.problem.objectives],
        sampler=optuna.samplers.TPESampler(seed=seed),
    )

    def told(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        row: dict[str, Any] = {"finished": time.time(), "values": trial.values}
        row["feasible"] = max(trial.constraints.values()) <= 0
        print(json.dumps(row), flush=True)

    left = began + 60 * minutes - time.monotonic()
    study.optimize(objective, timeout=left, callbacks=[told])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    text = options.study.read_text(encoding="utf-8")
    launch = prepare(text, str(options.study), options.study.parent)
    explore(launch, options.seed, options.minutes)


if __name__ == "__main__":
    main()
