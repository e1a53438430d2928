"""Accuracy against remaining parameters, after Deutel et al., arXiv 2205.10369.

Each study file is walked along a grid instead of searched: channels removed by every criterion of
the file down to a thousandth of the parameters, at once and gradually (AGP); single weights
likewise; float32, quantized after training and trained quantized. Accuracy is on test data and of
the exact integer network, flash and RAM are those of the file's first target. What was measured is
kept beside the report, so an interrupted run goes on where it was.

    python benchmarks/deutel.py
    python benchmarks/deutel.py studies/deutel-har.yaml --results reports/deutel
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from deutel_report import write_report

from dse.candidate import Candidate
from dse.evaluate import Evaluator
from dse.graph.channels import channel_groups, narrow
from dse.graph.ir import FullyConnected, Graph
from dse.launch import Launch, prepare
from dse.widths import aligned_width
from dse.workloads.download import cache_folder

STUDIES = ("deutel-lenet-mnist", "deutel-har", "deutel-resnet8")


@dataclass(frozen=True)
class Plan:
    """What is measured of one study: remaining shares of the parameters.

    `levels`, `one_shot` and `qat` by `criterion`, `others` by every other one of the file;
    `elements` without any structure.
    """

    levels: Sequence[float]
    criterion: str = "l2"
    one_shot: Sequence[float] = ()
    qat: Sequence[float] = ()
    others: Sequence[float] = ()
    elements: Sequence[float] = ()


PLANS: Mapping[str, Plan] = {
    "deutel-lenet-mnist": Plan(
        levels=(0.03, 0.01, 0.1, 0.05, 0.2, 0.5, 0.003, 0.001),
        one_shot=(0.5, 0.2, 0.1, 0.05, 0.03, 0.01, 0.003, 0.001),
        qat=(0.1, 0.03, 0.01, 0.003, 0.001),
        others=(0.01, 0.03, 0.1, 0.003, 0.001),
        elements=(0.1, 0.01, 0.5, 0.03, 0.001),
    ),
    "deutel-har": Plan(levels=(0.1, 0.05, 0.03, 0.01), qat=(0.1, 0.03), others=(0.05, 0.1)),
    "deutel-resnet8": Plan(levels=(0.1, 0.3, 0.5), qat=(0.1,), others=(0.1,)),
}


@dataclass(frozen=True)
class Point:
    """One network of the walk: how it is compressed, by words that also name it in the results."""

    technique: str
    schedule: str
    criterion: str
    share: float
    candidate: Candidate = field(compare=False)

    @property
    def key(self) -> str:
        """Unique within a study."""
        return f"{self.technique} {self.schedule} {self.criterion} {self.share:g}".strip()


def points(launch: Launch, plan: Plan) -> Iterator[Point]:
    """Everything that is measured, what the claims rest on first."""
    graph, target = launch.problem.space.graph, launch.problem.reference_target
    bits = launch.problem.space.int8_baseline(target).bits
    whole = Candidate(target, bits=bits)
    yield Point("baseline", "", "", 1.0, whole)
    pruning = launch.study.space.pruning
    assert pruning is not None

    def structured(share: float, criterion: str, schedule: str, method: str = "") -> Point:
        found = replace(
            whole,
            widths=widths_at(graph, share),
            criterion=criterion,
            schedule=schedule,
            method=method,
        )
        return Point("qat" if method else "channels", schedule, criterion, share, found)

    for share in plan.levels:
        yield structured(share, plan.criterion, "agp")
    for share in plan.qat:
        yield structured(share, plan.criterion, "agp", "qat")
    for share in plan.one_shot:
        yield structured(share, plan.criterion, "one-shot")
    for share in plan.others:
        for criterion in pruning.criterion:
            if criterion != plan.criterion:
                yield structured(share, criterion, "agp")
    for schedule in ("agp", "one-shot"):
        for share in plan.elements:
            kept = dict.fromkeys(launch.problem.space.layers, share)
            found = replace(whole, kept=kept, schedule=schedule)
            yield Point("elements", schedule, "", share, found)


def widths_at(graph: Graph, share: float) -> dict[str, int]:
    """Widths with which at most `share` of the parameters remain.

    Fully connected layers keep the square of the share of channels that convolutions keep: they
    hold most of the weights, and each is used once.
    """
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        fits = narrow(graph, _widths(graph, middle)).parameters <= share * graph.parameters
        low, high = (middle, high) if fits else (low, middle)
    return _widths(graph, low)


def _widths(graph: Graph, kept: float) -> dict[str, int]:
    found = {}
    for group in channel_groups(graph):
        layer = graph.op(group.name)
        ratio = 1 - (kept**2 if isinstance(layer, FullyConnected) else kept)
        width = aligned_width(group.channels, ratio, 1)
        if width < group.channels:
            found[group.name] = width
    return found


def measured(launch: Launch, evaluator: Evaluator, point: Point) -> dict[str, Any]:
    """Accuracy on test data and the costs of one point."""
    problem, began = launch.problem, time.perf_counter()
    rounding = problem.targets[point.candidate.target].backend.rounding
    found = evaluator.evaluate(point.candidate, rounding)
    shapes = problem.space.shapes(point.candidate)
    costs = problem.cost(point.candidate).metrics
    dense = problem.cost(replace(point.candidate, kept={})).metrics
    remaining = sum(op.weight.kept + op.weight.shape[0] for op in shapes.weighted)
    result = {
        "technique": point.technique,
        "schedule": point.schedule,
        "criterion": point.criterion,
        "share": point.share,
        "parameters": remaining,
        "widths": "/".join(str(op.weight.shape[0]) for op in shapes.weighted),
        "int8": evaluator.test_accuracy(found.graph, rounding)[0].value,
        "flash_bytes": costs["flash"].value,
        "dense_flash_bytes": dense["flash"].value,
        "ram_bytes": costs["ram"].value,
    }
    if point.technique in ("baseline", "channels"):
        floating = replace(point.candidate, precision="float32", bits={})
        graph = evaluator.evaluate(floating, rounding).graph
        result["float32"] = evaluator.test_accuracy(graph, rounding)[0].value
    return result | {"seconds": round(time.perf_counter() - began, 1)}


def walk(study: Path, results: Path) -> None:
    """Measure what is not known yet of one study."""
    launch = prepare(study.read_text(encoding="utf-8"), str(study), study.parent)
    path = results / f"{launch.study.name}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    evaluator = Evaluator(
        launch.workload, launch.dataset, launch.recipe, launch.study.seed, cache_folder() / "stages"
    )
    for point in points(launch, PLANS[launch.study.name]):
        if point.key in known:
            continue
        known[point.key] = measured(launch, evaluator, point)
        found = known[point.key]
        print(
            f"{launch.study.name} {point.key}: {100 * found['int8']:.2f} % "
            f"({found['widths']}, {found['parameters']} parameters, {found['seconds']} s)",
            flush=True,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "studies", nargs="*", type=Path, default=[Path(f"studies/{name}.yaml") for name in STUDIES]
    )
    parser.add_argument("--results", type=Path, default=Path("reports/deutel"))
    parser.add_argument("--print-only", action="store_true", help="report what is measured already")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.print_only:
        for study in options.studies:
            walk(study, options.results)
    write_report(options.results)


if __name__ == "__main__":
    main()
