"""What the grey-box sampler is told of a study: costs, targets, features, and what counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dse.candidate import Candidate
from dse.graph.factor import factor_shapes
from dse.knobs import BUDGETS, Knob, KnobKind
from dse.problem import Problem
from dse.space import Space
from dse.trial import COST_METRICS, MetricName

if TYPE_CHECKING:
    from dse.greybox import GreyBoxSampler

Params = Mapping[str, Any]


def grey_box(
    problem: Problem,
    settings: Mapping[str, Any],
    seed: int,
    baseline: float | None,
    samples: int | None,
) -> GreyBoxSampler:
    """The sampler for a study.

    `baseline` is the accuracy of its float32 network, `samples` what accuracy is measured on.
    """
    from dse.greybox import GreyBoxSampler

    space = problem.space
    targets = [knob.name for knob in space.knobs if knob.kind == "target"]
    return GreyBoxSampler(
        lambda networks, deployments: _costs(problem, networks, deployments),
        learned=searched(problem).index("accuracy"),
        deployment=targets,
        distributions=space.distributions,
        vectorized=True,
        features=lambda params: features(problem, params),
        network=lambda params: _anywhere(problem, params).network_key,
        region=region(problem),
        limit=accuracy_limit(problem, baseline),
        samples=samples,
        seed=seed,
        **settings,
    )


def searched(problem: Problem) -> tuple[MetricName, ...]:
    """The objectives of the grey box: accuracy is learned, too, where it is but limited."""
    found = problem.objectives
    return found if "accuracy" in found else ("accuracy", *found)


def _anywhere(problem: Problem, params: Params) -> Candidate:
    """The network of some parameters, on whichever target."""
    return problem.space.candidate(params)


def _costs(
    problem: Problem, networks: Sequence[Params], deployments: Sequence[Params]
) -> npt.NDArray[np.float64]:
    """log10 of the costs that are objectives, (n, d, k); nan where a constraint is missed.

    Of widths that training finds they are predicted until they are known.
    """
    names = [name for name in problem.objectives if name in COST_METRICS]
    found = np.full((len(networks), len(deployments), max(1, len(names))), np.nan)
    for row, network in enumerate(networks):
        candidate = _anywhere(problem, network)
        for column, deployment in enumerate(deployments):
            target = str(next(iter(deployment.values()), candidate.target))
            screening = problem.expect(replace(candidate, target=target))
            if screening.feasible:
                values = [screening.metrics[name].value or 1.0 for name in names]
                found[row, column] = [math.log10(value) for value in values] or [0.0]
    return found[:, :, : len(names)] if names else found


def features(problem: Problem, params: Params) -> Mapping[str, Sequence[float]]:
    """Numbers by layer for what compresses layers; other knobs by value, or one-hot by choice.

    Budgets say themselves in widths, predicted or found; a knob that does not count says nothing.
    """
    space, found = problem.space, dict[str, list[float]]()
    candidate = space.expected(_anywhere(problem, params))
    for knob in space.knobs:
        kind: KnobKind = "prune" if knob.kind in BUDGETS else knob.kind
        if kind in BY_LAYER:
            if kind not in found:
                found[kind] = BY_LAYER[kind](space, candidate)
        elif kind != "target" and len(knob.choices) > 1:
            found[knob.name] = _chosen(knob, params.get(knob.name))
    return found


def _chosen(knob: Knob, value: Any) -> list[float]:
    if all(isinstance(choice, int | float) for choice in knob.choices):
        return [float(knob.choices[0] if value is None else value)]
    return [float(value == choice) for choice in knob.choices]


def _kept(space: Space, candidate: Candidate) -> list[float]:
    channels = space.channels.items()
    return [math.log(candidate.widths.get(group, n) / n) for group, n in channels]


def _dense(space: Space, candidate: Candidate) -> list[float]:
    return [math.log(candidate.kept.get(layer, 1.0)) for layer in space.layers]


def _coarse(space: Space, candidate: Candidate) -> list[float]:
    return [2.0 ** -candidate.bits.get(layer, 32) for layer in space.layers]


def _shared(space: Space, candidate: Candidate) -> list[float]:
    """The error of a code book as that of so many bits a weight would be; 0 without one."""
    books, vector = candidate.code_books, max(1, candidate.vector)
    return [books[layer] ** (-1 / vector) if layer in books else 0.0 for layer in space.layers]


def _ranks(space: Space, candidate: Candidate) -> list[float]:
    return [_rank_share(candidate, space, layer) for layer in space.layers]


def _rank_share(candidate: Candidate, space: Space, layer: str) -> float:
    """Log of the parameters that a layer's factors have, of those of the layer as trained."""
    if layer not in candidate.ranks:
        return 0.0
    shape = space.weight_shapes[layer]
    parts = factor_shapes(shape, candidate.ranks[layer], candidate.factors or "channel")
    return math.log(sum(map(math.prod, parts)) / math.prod(shape))


# What compresses layers: a number for each, on which the error of the network depends smoothly.
BY_LAYER: Mapping[KnobKind, Callable[[Space, Candidate], list[float]]] = {
    "prune": _kept,
    "low_rank": _ranks,
    "sparsity": _dense,
    "code_book": _shared,
    "bits": _coarse,
}


def region(problem: Problem) -> list[tuple[float, float]]:
    """(best, worst) by objective that is searched: the box in which hypervolume is measured."""
    box = problem.box
    ends = dict(zip(box.metrics, zip(box.ideal, box.reference, strict=True), strict=True))
    _, worst_error = ends.pop("accuracy", (0.0, 1.0))
    costs = {name: (math.log10(low), math.log10(high)) for name, (low, high) in ends.items()}
    accuracy = {"accuracy": (1.0, max(1.0 - worst_error, 0.0))}
    return [(accuracy | costs)[name] for name in searched(problem)]


def accuracy_limit(problem: Problem, baseline: float | None) -> float | None:
    """The least accuracy that the limits allow; None when they allow any.

    Those that name the baseline do not count before it is known: it failed, or still runs.
    """
    limits = [
        limit.limit(baseline)
        for limit in problem.study.constraints
        if limit.needs_accuracy and (baseline is not None or limit.relation == "absolute")
    ]
    return max(limits, default=None)
