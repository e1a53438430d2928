"""What the grey box sees of a study: a feature for every knob, and limits as they become known."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np

from dse.problem import Problem
from dse.search_costs import BY_LAYER, accuracy_limit, features, region
from tests.problems import STUDY, small_problem

# Kinds of knobs, each with at least two choices.
EVERYTHING = STUDY.replace(
    "pruning: {ratio: [0, 0.25, 0.5, 0.75]}",
    "pruning: {ratio: [0, 0.5], criterion: [l1, l2], schedule: [one-shot, agp],\n"
    "    ramp: {start: [0, 0.1], end: [0.5, 0.8], updates: [8, 16]}}\n"
    "  low_rank: {ratio: [0, 0.9], factors: [channel, spatial]}\n"
    "  sparsity: {ratio: [0, 0.5], pattern: [element, 1x4], skip: ['2']}\n"
    "  code_books: {entries: [16, 0], vector: [1, 2], skip: ['0', '6']}\n"
    "  distillation: {weight: [0, 0.5], temperature: [2, 4]}",
).replace(
    "quantization: {weight_bits: [2, 4, 8]}",
    "quantization: {weight_bits: [2, 4, 8], precision: [int8, int16], method: [ptq, qat],\n"
    "    ranges: [minmax, mse], equalization: [none, cross-layer],\n"
    "    rounding: [nearest, adaptive], biases: [rounded, corrected]}",
)


def numbers(problem: Problem, params: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    return np.concatenate([np.array(v) for v in features(problem, params).values()])


def test_every_knob_but_the_target_changes_the_features() -> None:
    problem = small_problem(EVERYTHING)
    knobs = problem.space.knobs
    assert len({knob.kind for knob in knobs}) >= 21
    params = {knob.name: knob.choices[-1] for knob in knobs}
    here = numbers(problem, params)
    for knob in knobs:
        there = numbers(problem, {**params, knob.name: knob.choices[0]})
        assert here.shape == there.shape
        assert (here != there).any() == (knob.kind != "target"), knob.name


def test_what_no_knob_compresses_is_no_feature() -> None:
    problem = small_problem()
    found = features(problem, problem.space.draw(random.Random(0)))
    assert set(found) == {"prune", "bits"} < set(BY_LAYER)


def test_limits_on_the_baseline_count_once_it_is_known() -> None:
    problem = small_problem()  # accuracy >= baseline - 30 %
    assert accuracy_limit(problem, 0.9) == 0.9 - 0.3
    assert accuracy_limit(problem, None) is None
    assert region(problem)[problem.objectives.index("accuracy")][1] < 0.6
