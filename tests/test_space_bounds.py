"""Baselines of a space, and the lowest costs that any of its candidates can have."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dse.candidate import CALIBRATION, float_baseline
from dse.problem import MIXTURE_SLACK
from dse.space import Space
from dse.trial import COST_METRICS
from tests.test_space import GRANULARITIES, PICO, problem, spaces


@given(spaces())
def test_the_baselines_have_a_setting_wherever_the_knobs_allow_one(space: Space) -> None:
    for target in space.targets:
        for baseline in (space.int8_baseline(target), float_baseline(target)):
            params = space.params(baseline)
            wanted: dict[str, Any] = {"prune": 0, "low_rank": 0, "sparsity": 0, "bits": 8}
            wanted |= {
                "code_book": 0,
                "precision": baseline.precision,
                "method": "ptq",
                "ranges": "minmax",
            }
            wanted |= CALIBRATION
            if baseline.precision == "float32":
                # Whatever these say, the weights are floats.
                for kind in ("code_book", "bits", "method", "ranges", *CALIBRATION):
                    del wanted[kind]
            possible = all(
                wanted.get(knob.kind, knob.choices[0]) in knob.choices for knob in space.knobs
            )
            assert (params is not None) == possible
            if params is not None:
                assert space.candidate(params) == baseline
                assert all(params[knob.name] in knob.choices for knob in space.knobs)


def test_a_compressed_candidate_has_no_setting_of_its_own() -> None:
    space = problem().space
    pruned = replace(space.int8_baseline(PICO), widths={"conv1": 8}, criterion="l1", schedule="agp")
    assert space.params(pruned) is None


@given(
    st.sampled_from(GRANULARITIES),
    st.sampled_from([["channel"], ["channel", "spatial"]]),
    st.randoms(),
)
def test_no_candidate_costs_less_than_the_lowest(
    granularity: str, factors: list[str], source: random.Random
) -> None:
    found = problem(
        pruning={"granularity": granularity, "ratio": [0, 0.25, 0.5, 0.9]},
        low_rank={"granularity": granularity, "ratio": [0, 0.5, 0.9], "factors": factors},
        sparsity={"granularity": granularity, "ratio": [0, 0.5, 0.9]},
        code_books={"granularity": granularity, "entries": [0, 4, 16, 256], "vector": [1, 4]},
        quantization={"granularity": granularity, "weight_bits": [2, 4, 5, 8]},
        backends=["native", "native-dsp", "cmsis-nn"],
    )
    for _ in range(20):
        params = found.space.draw(source)
        if source.random() < 0.5:  # random widths alone never come near
            params |= {k.name: 0.9 for k in found.space.knobs if k.kind == "prune"}
        candidate = found.space.candidate(params)
        costs, lowest = found.cost(candidate).metrics, found.lowest_costs(candidate.target)
        for name in COST_METRICS:
            value, least = costs[name].value, lowest[name].value
            assert value is not None
            assert least is not None
            assert value >= least * (1 - MIXTURE_SLACK)


def test_corners_are_candidates_of_the_space() -> None:
    space = problem().space
    corners = list(space.corners(PICO))
    assert {corner.target for corner in corners} == {PICO}
    assert {corner.precision for corner in corners} == {"int8", "float32"}
    assert len({json.dumps(corner.widths) for corner in corners}) == 1
    drawn = {space.candidate(params).key for params in _narrowest(space)}
    assert {corner.key for corner in corners} <= drawn


def _narrowest(space: Space) -> list[dict[str, Any]]:
    """Settings with all ratios at their ends and one bit width everywhere."""
    found = []
    for sparsity in (0, 0.9):
        for bits in (2, 4, 8):
            for precision in ("int8", "float32"):
                values = {"prune": 0.9, "sparsity": sparsity, "bits": bits, "precision": precision}
                values["target"] = PICO
                found.append({k.name: values.get(k.kind, k.choices[0]) for k in space.knobs})
    return found
