"""One thing that a sampler chooses: its values, what it acts on, and when it is asked."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from dse.errors import StudyError, nearest

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

KnobKind: TypeAlias = Literal[
    "pruning",
    "prune",
    "memory",
    "size",
    "macs",
    "low_rank",
    "factors",
    "sparsity",
    "pattern",
    "code_book",
    "vector",
    "start",
    "end",
    "updates",
    "bits",
    "criterion",
    "schedule",
    "precision",
    "method",
    "ranges",
    "scales",
    "equalization",
    "rounding",
    "biases",
    "distillation",
    "temperature",
    "target",
]
Value: TypeAlias = str | int | float


@dataclass(frozen=True)
class Knob:
    """One thing a sampler chooses: its values, and the layers or groups it acts on."""

    name: str
    kind: KnobKind
    choices: tuple[Value, ...]
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.choices:
            raise StudyError(f"knob '{self.name}' has no values to choose from")

    @property
    def ordered(self) -> bool:
        """Whether the values are evenly spaced numbers (a range for the sampler)."""
        if len(self.choices) < 3 or any(isinstance(c, str) for c in self.choices):
            return False
        numbers = [float(c) for c in self.choices]
        step = numbers[1] - numbers[0]
        return step > 0 and all(
            math.isclose(b - a, step, abs_tol=1e-9) for a, b in itertools.pairwise(numbers)
        )

    def distribution(self) -> BaseDistribution:
        """The knob as Optuna knows it."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        if not self.ordered:
            return CategoricalDistribution(self.choices)
        low, high = self.choices[0], self.choices[-1]
        step = float(self.choices[1]) - float(low)
        if all(isinstance(choice, int) for choice in self.choices):
            return IntDistribution(int(low), int(high), step=int(step))
        return FloatDistribution(float(low), float(high), step=round(step, 10))

    @property
    def branch(self) -> str:
        """The method of pruning under which alone it is asked; '' when it always is."""
        return _BRANCHES.get(self.kind, "")


RATIO, BUDGET = "ratio", "budget"
BUDGETS: tuple[KnobKind, ...] = ("memory", "size", "macs")
_BRANCHES: Mapping[KnobKind, str] = {
    **dict.fromkeys(("prune", "criterion", "schedule", "start", "end", "updates"), RATIO),
    **dict.fromkeys(BUDGETS, BUDGET),
}
_SECTION: Mapping[str, str] = {
    "prune": "pruning",
    "low_rank": "low_rank",
    "sparsity": "sparsity",
    "code_book": "code_books",
    "bits": "quantization",
}


def layer_knobs(
    kind: Literal["prune", "low_rank", "sparsity", "code_book", "bits"],
    granularity: str,
    choices: Sequence[Value],
    layers: Mapping[str, tuple[int, int]],
    skip: Sequence[str],
) -> list[Knob]:
    """Knobs over `layers` (name -> height and width it works at), one a layer, stage or in all.

    Raises StudyError for a layer to skip that does not exist, and when all are skipped.
    """
    key = f"'space.{_SECTION[kind]}.skip'"
    for name in skip:
        if name not in layers:
            raise StudyError(f"{key} names layer '{name}'; {nearest(name, layers)}")
    chosen = {name: stage for name, stage in layers.items() if name not in skip}
    if not chosen:
        raise StudyError(f"{key} names every layer; leave out the section instead")
    if granularity == "global":
        return [Knob(kind, kind, tuple(choices), tuple(chosen))]
    if granularity == "per-layer":
        return [Knob(f"{kind}.{name}", kind, tuple(choices), (name,)) for name in chosen]
    stages: dict[tuple[int, int], list[str]] = {}
    for name, stage in chosen.items():
        stages.setdefault(stage, []).append(name)
    return [
        Knob(f"{kind}.{height}x{width}", kind, tuple(choices), tuple(names))
        for (height, width), names in stages.items()
    ]
