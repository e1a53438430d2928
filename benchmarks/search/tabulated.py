"""Problems whose every network was trained: errors and costs of each from stored tables.

The costs are those of dse's models at one time, so that a comparison holds when the models change.

    python benchmarks/search/tabulated.py    # stores the costs that dse's models give now
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, CategoricalDistribution
from problem import Params, SearchProblem
from torch import nn
from trained_tables import DATA_FOLDER, MISSING, TABLES, TableTask, store

from dse.errors import StudyError
from dse.graph.trace import trace
from dse.pareto import Points
from dse.problem import Problem, build_problem
from dse.study import parse_study
from dse.trial import MetricName

COSTS: tuple[MetricName, ...] = ("flash", "latency", "energy")
# Products: how much flash is left for the network, and how soon the answer must be there.
_LIMITS = {
    "digits": ("flash <= 20 KiB", "latency <= 4 ms"),
    "har": ("flash <= 20 KiB", "latency <= 8 ms"),
}
_WORST_ERROR = {"digits": 0.25, "har": 0.25}


def network_of(task: TableTask) -> nn.Module:
    """The unpruned network as a torch module, for its shapes."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    flat, inputs = task.shape[0] == 1, task.shape[-1]
    for layer, positions in zip(task.layers, task.flattened, strict=True):
        last = layer is task.layers[-1]
        if layer.kernel and flat:
            kernel = layer.kernel[1]
            made: nn.Module = nn.Conv1d(
                inputs, layer.channels, kernel, layer.stride[1], padding=kernel // 2
            )
        elif layer.kernel:
            made = nn.Conv2d(
                inputs, layer.channels, layer.kernel[0], layer.stride, layer.kernel[0] // 2
            )
        else:
            if "flatten" not in parts:
                parts["flatten"] = nn.Flatten()
            made = nn.Linear(inputs * positions, layer.channels)
        parts[layer.name] = made
        if not last:
            parts[f"{layer.name}_relu"] = nn.ReLU()
        if max(layer.pool) > 1:
            size = layer.pool[1]
            parts[f"{layer.name}_pool"] = nn.MaxPool1d(size) if flat else nn.MaxPool2d(layer.pool)
        inputs = layer.channels
    return nn.Sequential(parts)


def study_of(task: TableTask) -> Problem:
    """The task as dse sees it."""
    levels = sorted({level for layer in task.layers for level in layer.levels})
    skipped = [layer.name for layer in task.layers if len(layer.levels) == 1]
    limits = "\n".join(f"  - {limit}" for limit in _LIMITS[task.name])
    # The last layer's outputs are the classes: dse never prunes them.
    skip = [name for name in skipped if name != task.layers[-1].name]
    text = f"""
name: {task.name}
workload: digits
space:
  alignment: 1
  pruning: {{granularity: per-layer, ratio: {list(levels)}, skip: {skip}}}
  quantization: {{granularity: per-layer, weight_bits: {list(task.bits)}}}
  boards: [nucleo_f446re, rpi_pico, nano33ble, nucleo_l4r5zi, nucleo_h743zi, disco_f746ng]
  backends: [native, cmsis-nn]
objectives: [accuracy, flash, latency, energy]
constraints:
{limits}
n_trials: 200
"""
    rows, columns, channels = task.shape
    shape = (channels, columns) if rows == 1 else (channels, rows, columns)
    return build_problem(
        parse_study(text, task.name), trace(network_of(task), shape, task.name), task.classes
    )


@dataclass(frozen=True)
class StoredErrors:
    """The table, by network parameters."""

    task: TableTask
    table: npt.NDArray[np.int64]
    samples: int

    def index(self, network: Params) -> tuple[int, int]:
        """Where a network's counts are stored."""
        task = self.task
        wide, bits = 0, 0
        for layer in task.layers:
            if len(layer.levels) > 1:
                ratio = round(float(network[f"prune.{layer.name}"]), 10)
                wide = wide * len(layer.levels) + layer.levels.index(ratio)
            bits = bits * len(task.bits) + task.bits.index(int(network[f"bits.{layer.name}"]))
        return wide, bits

    def measured(self, network: Params) -> float:
        """The error after the last epoch."""
        return float(self.table[self.index(network)][-1] / self.samples)

    def true(self, networks: Sequence[Params]) -> Points:
        """The same: the table is the truth."""
        return np.array([self.measured(network) for network in networks])


class StoredCosts:
    """Costs of every network of a table on every target: `array` (widths, bits, targets, costs)."""

    def __init__(self, problem: Problem, errors: StoredErrors) -> None:
        self._errors = errors
        path = costs_path(errors.task)
        with np.load(path) as stored:
            self.array: Points = stored["costs"]
            targets = stored["targets"].tolist()
        if targets != list(problem.targets):
            raise StudyError(
                f"{path.name} holds costs on {', '.join(targets)}, but the study's targets are "
                f"{', '.join(problem.targets)}; run: python benchmarks/search/tabulated.py"
            )

    def __call__(self, networks: Sequence[Params], deployments: Sequence[Params]) -> Points:
        """(n, targets, costs), nan where a limit is missed."""
        places = [self._errors.index(network) for network in networks]
        wide, bits = np.array(places, dtype=int).reshape(-1, 2).T
        return np.asarray(self.array[wide, bits])


def costs_path(task: TableTask) -> Path:
    """Where a table's costs are stored."""
    return DATA_FOLDER / f"{task.name}-costs.npz"


def modelled_costs(problem: Problem, errors: StoredErrors) -> Points:
    """What dse's models say now: (widths, bits, targets, costs), nan where a limit is missed."""
    wide, bits = errors.table.shape[:2]
    found = np.full((wide, bits, len(problem.targets), len(COSTS)), np.nan)
    ratios = {f"prune.{layer.name}": layer.levels for layer in errors.task.layers}
    for params in problem.space.settings():
        if any(params[name] not in ratios[name] for name in params.keys() & ratios.keys()):
            continue
        screening = problem.screen(problem.space.candidate(params))
        if screening.feasible:
            place = (*errors.index(params), list(problem.targets).index(str(params["target"])))
            found[place] = [screening.metrics[name].value for name in COSTS]
    return found


def layer_features(network: Params) -> dict[str, list[float]]:
    """Log kept share of every prunable layer and 2^-bits of every layer's weights."""
    kept = [1 - float(value) for name, value in network.items() if name.startswith("prune.")]
    bits = [2.0 ** -int(value) for name, value in network.items() if name.startswith("bits.")]
    return {"kept": np.log(kept).tolist(), "bits": bits}


def _trained_ratios(task: TableTask) -> dict[str, BaseDistribution]:
    """The ratios of each layer that the table holds, where they are fewer than the study's."""
    return {
        f"prune.{layer.name}": CategoricalDistribution(layer.levels)
        for layer in task.layers
        if len(layer.levels) > 1
    }


def stored_errors(name: str) -> StoredErrors:
    """The errors of a table; StudyError when it is not complete."""
    task = TABLES[name]
    table = store(task, None)[: len(task.width_settings)]
    if (table == MISSING).any():
        raise StudyError(
            f"the table '{name}' lacks {(table == MISSING).any(axis=2).sum()} networks; "
            f"run: python benchmarks/search/train_table.py {name}"
        )
    return StoredErrors(task, table, task.test_samples)


@cache
def tabulated(name: str) -> SearchProblem:
    """The problem of a stored table; StudyError when its errors or costs are not complete."""
    errors = stored_errors(name)
    task, table = errors.task, errors.table
    study = study_of(task)
    costs = StoredCosts(study, errors)
    found = costs.array[np.isfinite(costs.array).all(axis=3)]
    rough = SearchProblem(
        name,
        study.space.distributions | _trained_ratios(task),
        "target",
        errors,
        costs,
        found.min(axis=0) / 1.02,
        found.max(axis=0) * 1.02,
        _WORST_ERROR[name],
        1.0,
        layer_features,
        task.test_samples,
    )
    wrong = np.broadcast_to(table[:, :, None, -1] / task.test_samples, costs.array.shape[:3])
    best = rough.score(wrong.reshape(-1), costs.array.reshape(-1, len(COSTS)))
    return SearchProblem(**{**rough.__dict__, "best": best})


def main() -> None:
    """Store the costs of every table."""
    for name, task in TABLES.items():
        study = study_of(task)
        costs = modelled_costs(study, stored_errors(name))
        np.savez_compressed(costs_path(task), costs=costs, targets=list(study.targets))
        print(
            f"{name}: {np.isfinite(costs).all(axis=3).mean():.0%} of {costs[..., 0].size} feasible"
        )


if __name__ == "__main__":
    main()
