"""Settings of the knobs that no sampler proposes: cost-spread starts, neighbours, what is left."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Container, Mapping
from typing import Any

from dse.candidate import Candidate
from dse.knobs import BUDGETS, Knob, Value
from dse.problem import Problem
from dse.space import Space

MAX_MUTATIONS = 60
# Spaces up to this size are walked to find what is left; larger ones are drawn from at random.
MAX_WALK = 50_000
MAX_DRAWS = 40
# How far a layer strays from the design's own level of compression, of the range of its knob.
JITTER = 0.25

Params = dict[str, Any]


def near(
    space: Space, params: Mapping[str, Any], known: Container[str], source: random.Random
) -> Params | None:
    """A new candidate close to a known one that the sampler wants: few knobs changed."""
    free = [knob for knob in space.knobs if len(knob.choices) > 1]
    for attempt in range(MAX_MUTATIONS):
        drawn = {k.name: source.choice(k.choices) for k in space.knobs if space.conditional}
        changed = {**drawn, **params}  # knobs that count under another method have no value yet
        for knob in source.sample(free, min(len(free), 1 + attempt // 15)):
            changed[knob.name] = source.choice(knob.choices)
        changed = space.asked(changed)
        if space.candidate(changed).key not in known:
            return changed
    return None


def unseen(
    space: Space,
    known: Container[str],
    source: random.Random,
    wanted: Callable[[Candidate], bool] = lambda candidate: True,
) -> Params | None:
    """Any setting whose candidate is new, and `wanted`; None when a space small enough to walk has
    none.
    """
    if space.size <= MAX_WALK:
        settings = list(space.settings())
        source.shuffle(settings)
    else:
        settings = [space.draw(source) for _ in range(MAX_MUTATIONS)]
    candidates = ((params, space.candidate(params)) for params in settings)
    return next((p for p, found in candidates if found.key not in known and wanted(found)), None)


def spread(problem: Problem, known: Container[str], source: random.Random) -> Params | None:
    """A new candidate drawn so that costs are spread: its level first, then every knob around it.

    Independent draws of many knobs put all costs into the middle of their range. The target is one
    whose costs meet every constraint, where any does.
    """
    space = problem.space
    for _ in range(MAX_DRAWS):
        level = source.random()
        params = space.asked({knob.name: _at(knob, level, source) for knob in space.knobs})
        new = [
            changed
            for target in source.sample(space.targets, len(space.targets))
            if space.candidate(changed := _on(space, params, target)).key not in known
        ]
        fits = (p for p in new if problem.expect(space.candidate(p)).feasible)
        found = next(fits, None)
        if found is not None:
            return found
    return None


def others(space: Space, params: Mapping[str, Any], target: str) -> dict[str, Params]:
    """The same network on every other target of the space, by target."""
    return {t: _on(space, params, t) for t in space.targets if t != target}


def _on(space: Space, params: Mapping[str, Any], target: str) -> Params:
    chosen = {knob.name: target for knob in space.knobs if knob.kind == "target"}
    return {**params, **chosen}


def _at(knob: Knob, level: float, source: random.Random) -> Value:
    """A knob's value near a level from 0 (costly) to 1 (cheap); any where none is cheaper."""
    if knob.kind not in ("prune", *BUDGETS, "low_rank", "sparsity", "code_book", "bits"):
        return source.choice(knob.choices)
    # No code book is the largest of all.
    size = (lambda n: float(n) or math.inf) if knob.kind == "code_book" else float
    cheap_last = sorted(
        knob.choices, key=size, reverse=knob.kind in (*BUDGETS, "code_book", "bits")
    )
    place = min(max(source.gauss(level, JITTER), 0.0), 1.0)
    return cheap_last[min(int(place * len(cheap_last)), len(cheap_last) - 1)]
