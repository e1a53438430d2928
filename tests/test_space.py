"""Knobs, candidates and keys: what changes nothing has one key, and what is legal stays legal."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import dse
from dse.candidate import CALIBRATION, Candidate, float_baseline
from dse.errors import StudyError
from dse.graph.channels import channel_groups
from dse.graph.ir import Graph, without_values
from dse.graph.trace import trace
from dse.knobs import Knob, layer_knobs
from dse.problem import Problem, build_problem
from dse.space import Space
from dse.study import parse_study
from dse.targets import load_boards
from dse.widths import aligned_width
from dse.workloads.networks import DigitsNet, LeNet5
from tests import networks

PICO, NUCLEO = "rpi_pico/native/133MHz", "nucleo_f446re/cmsis-nn/180MHz"
GRANULARITIES = ("per-layer", "per-stage", "global")
SECTION: dict[str, Any] = {
    "pruning": {"ratio": [0, 0.25, 0.5, 0.9], "criterion": ["l1", "l2"], "schedule": "agp"},
    "sparsity": {"ratio": [0, 0.5, 0.9]},
    "quantization": {"weight_bits": [2, 4, 8], "precision": ["int8", "float32"]},
    "boards": ["rpi_pico", "nucleo_f446re"],
    "backends": ["native", "cmsis-nn"],
}


@cache
def graph() -> Graph:
    return without_values(trace(DigitsNet(), (1, 8, 8), "digits"))


@cache
def _problem(section: str) -> Problem:
    content = {
        "name": "s",
        "workload": "digits",
        "space": json.loads(section),
        "objectives": ["accuracy", "flash"],
    }
    return build_problem(parse_study(yaml.safe_dump(content), "s.yaml"), graph(), 10)


def problem(**changes: Any) -> Problem:
    """The whole section, with keys replaced; None leaves one out."""
    return _problem(json.dumps({**SECTION, **changes}))


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Any section of the study file over the digits network."""

    def some(values: list[Any]) -> list[Any]:
        return draw(st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True))

    pruning = {
        "granularity": draw(st.sampled_from(GRANULARITIES)),
        "ratio": some([0, 0.1, 0.25, 0.5, 0.9]),
        "criterion": some(["l1", "l2", "taylor"]),
        "schedule": some(["one-shot", "agp", "dynamic"]),
        "ramp": draw(st.sampled_from([{}, {"end": [0.5, 0.8], "updates": 4}])),
        "skip": draw(st.sampled_from([[], ["conv1"], ["conv2", "fc1"]])),
    }
    sparsity = {
        "granularity": draw(st.sampled_from(GRANULARITIES)),
        "ratio": some([0, 0.5, 0.9]),
        "pattern": some(["element", "1x4", "4x4", "2x2"]),
        "skip": draw(st.sampled_from([[], ["fc2"]])),
    }
    low_rank = {
        "granularity": draw(st.sampled_from(GRANULARITIES)),
        "ratio": some([0, 0.3, 0.5, 0.9]),
        "factors": some(["channel", "spatial"]),
        "skip": draw(st.sampled_from([[], ["fc2", "conv1"]])),
    }
    code_books = {
        "granularity": draw(st.sampled_from(GRANULARITIES)),
        "entries": some([0, 4, 16, 256]),
        "vector": some([1, 2, 4]),
        "skip": draw(st.sampled_from([[], ["conv1", "fc1"]])),
    }
    quantization = {
        "granularity": draw(st.sampled_from(GRANULARITIES)),
        "weight_bits": some([2, 4, 5, 8]),
        "precision": some(["int8", "int16", "float32"]),
        "method": some(["ptq", "qat"]),
        "ranges": some(["minmax", "percentile", "mse"]),
        "scales": some(["channel", "tensor"]),
        "equalization": some(["none", "cross-layer"]),
        "rounding": some(["nearest", "adaptive"]),
        "biases": some(["rounded", "corrected"]),
        "skip": draw(st.sampled_from([[], ["conv1"]])),
    }
    return problem(
        pruning=draw(st.sampled_from([None, pruning])),
        low_rank=draw(st.sampled_from([None, low_rank])),
        sparsity=draw(st.sampled_from([None, sparsity])),
        code_books=draw(st.sampled_from([None, code_books])),
        quantization=quantization,
        distillation=draw(st.sampled_from([None, {"weight": [0, 0.5], "temperature": [1, 4]}])),
        alignment=draw(st.sampled_from([None, 1, 4, 6])),
    ).space


@st.composite
def settings(draw: st.DrawFn) -> tuple[Space, dict[str, Any]]:
    space = draw(spaces())
    return space, {knob.name: draw(st.sampled_from(knob.choices)) for knob in space.knobs}


# --- keys ---------------------------------------------------------------------------------------


@given(settings())
def test_a_candidate_survives_json(found: tuple[Space, dict[str, Any]]) -> None:
    space, params = found
    candidate = space.candidate(params)
    again = Candidate.from_json(json.loads(json.dumps(candidate.to_json())))
    assert again == candidate
    assert (again.key, again.network_key) == (candidate.key, candidate.network_key)
    assert json.loads(candidate.canonical) == candidate.to_json()


GOLDEN = {
    "a505d5f0407e9dbb325e39fb": Candidate(PICO, precision="float32"),
    "00d8c838f181ac5026301ad3": Candidate(
        NUCLEO,
        widths={"fc1": 32, "conv1": 8},
        kept={"fc2": 0.5},
        bits={"fc1": 2, "conv1": 4, "conv2": 8, "conv3": 8, "fc2": 8},
        criterion="l2",
        schedule="agp",
    ),
}


def test_what_came_later_does_not_change_the_space_or_the_file_of_older_studies() -> None:
    plain, spelled_out = (
        problem(),
        problem(quantization={**SECTION["quantization"], "method": "ptq", "ranges": "minmax"}),
    )
    assert {knob.kind for knob in plain.space.knobs} == {
        "prune", "criterion", "schedule", "sparsity", "bits", "precision", "target"
    }  # fmt: skip
    assert plain.space.hash == spelled_out.space.hash
    stored = plain.study.searchable()["space"]
    assert {key for key, value in stored["quantization"].items() if value is not None} == {
        "granularity", "weight_bits", "precision", "skip"
    }  # fmt: skip
    assert stored["distillation"] is None


@pytest.mark.parametrize("key", GOLDEN)
def test_keys_never_change(key: str) -> None:
    # Stored studies name candidates by these; a new key would train everything again.
    assert GOLDEN[key].key == key


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_keys_are_the_same_in_every_process(hash_seed: str) -> None:
    candidate = next(c for c in GOLDEN.values() if c.widths)
    code = (
        "import json, sys; from dse.candidate import Candidate; "
        "print(Candidate.from_json(json.loads(sys.argv[1])).key)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, json.dumps(candidate.to_json())],
        env={
            **os.environ,
            "PYTHONHASHSEED": hash_seed,
            "PYTHONPATH": str(Path(dse.__file__).parents[1]),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == candidate.key


@given(settings(), st.randoms())
def test_one_candidate_has_one_key(
    found: tuple[Space, dict[str, Any]], source: random.Random
) -> None:
    space, params = found
    one, other = space.candidate(params), space.candidate(space.draw(source))
    assert (one == other) == (one.key == other.key)
    backwards = dict(reversed(params.items()))
    assert space.candidate(backwards).key == one.key


@given(settings())
def test_the_target_decides_no_network(found: tuple[Space, dict[str, Any]]) -> None:
    space, params = found
    candidates = [space.candidate({**params, "target": target}) for target in space.targets]
    assert len({candidate.key for candidate in candidates}) == len(space.targets)
    assert len({candidate.network_key for candidate in candidates}) == 1
    assert len({candidate.training_key for candidate in candidates}) == 1
    assert len({id(space.shapes(candidate)) for candidate in candidates}) == 1


@given(settings(), st.randoms())
def test_quantization_decides_no_training(
    found: tuple[Space, dict[str, Any]], source: random.Random
) -> None:
    space, params = found
    other = space.draw(source)
    quantized = {
        knob.name: other[knob.name]
        for knob in space.knobs
        if knob.kind in ("bits", "precision", "ranges", *CALIBRATION)
    }
    one, two = space.candidate(params), space.candidate({**params, **quantized})
    assert one.float_key == two.float_key
    same, other_same = (
        (each.bits, each.precision, each.ranges, each.calibration) for each in (one, two)
    )
    alike = same == other_same
    if not one.method and not two.method:
        assert one.training_key == two.training_key == one.float_key
        assert (one.network_key == two.network_key) == alike
    elif one.method == two.method:
        assert (one.training_key == two.training_key) == alike


# --- canonical form -----------------------------------------------------------------------------


@given(settings(), st.randoms())
def test_what_changes_nothing_is_left_out(
    found: tuple[Space, dict[str, Any]], source: random.Random
) -> None:
    space, params = found
    other = space.draw(source)

    def varied(*kinds: str) -> dict[str, Any]:
        changed = {k.name: other[k.name] for k in space.knobs if k.kind in kinds}
        return {**params, **changed}

    candidate = space.candidate(params)
    if candidate.precision == "float32":
        assert not candidate.bits
        assert space.candidate(varied("bits")).key == candidate.key
    else:
        assert set(candidate.bits) == {op.name for op in space.graph.weighted}
    if not candidate.widths:
        assert candidate.criterion == ""
        assert space.candidate(varied("criterion")).key == candidate.key
    if not candidate.ranks:
        assert candidate.factors == ""
        assert space.candidate(varied("factors")).key == candidate.key
    if not candidate.widths and not candidate.kept:
        assert candidate.schedule == ""
    if not candidate.compressed:
        assert space.candidate(varied("criterion", "schedule")).key == candidate.key
        assert candidate.float_key == float_baseline(candidate.target).float_key
    if candidate.precision == "float32":
        assert (candidate.method, candidate.ranges, candidate.calibration) == ("", "", {})
        decided = varied("method", "ranges", "bits", *CALIBRATION)
        assert space.candidate(decided).key == candidate.key
    if candidate.method == "qat":
        assert candidate.ranges == ""
        learned = varied("ranges", "equalization", "rounding", "biases")
        assert space.candidate(learned).key == candidate.key
    if not candidate.distillation:
        assert space.candidate(varied("temperature")).key == candidate.key
    if not candidate.compressed and not candidate.method:
        assert candidate.distillation == {}
    assert 0 not in candidate.widths.values()
    assert 1 not in candidate.kept.values()


def test_ratios_that_leave_the_same_channels_are_one_candidate() -> None:
    space = problem(pruning={"ratio": [0, 0.1, 0.12]}, alignment=4).space
    params = {knob.name: knob.choices[0] for knob in space.knobs}
    none, little, more = (
        space.candidate({**params, "prune.conv2": ratio}) for ratio in (0, 0.1, 0.12)
    )
    assert none.widths == {}
    assert little.widths == {"conv2": 28}
    assert little.key == more.key != none.key


def test_a_sampler_s_rounding_moves_no_candidate() -> None:
    # 20 channels less 30 % are 3.5 steps of 4: a tie that the last bit would decide.
    ratios = tuple(round(0.1 * step, 10) for step in range(10))
    knob = Knob("prune.conv1", "prune", ratios, ("conv1",))
    space = Space(without_values(trace(LeNet5(), (1, 28, 28))), (knob,), (PICO,), 4)
    assert 0.1 * 3 != 0.3
    for step, ratio in enumerate(ratios):
        assert space.candidate({knob.name: 0.1 * step}) == space.candidate({knob.name: ratio})


def test_clocks_asked_for() -> None:
    def clocks(*asked: str) -> list[str]:
        return list(problem(backends=["native"], clocks=list(asked)).targets)

    pico, nucleo = "rpi_pico/native", "nucleo_f446re/native"
    assert clocks("max") == [f"{pico}/133MHz", f"{nucleo}/180MHz"]
    assert clocks("max", "48 MHz") == [f"{pico}/133MHz", f"{pico}/48MHz", f"{nucleo}/180MHz"]
    assert clocks("48 MHz") == [f"{pico}/48MHz"]
    boards = load_boards()
    every = [boards[name].clocks_hz for name in ("rpi_pico", "nucleo_f446re")]
    assert len(clocks("all")) == sum(map(len, every))


# --- widths -------------------------------------------------------------------------------------

CHANNELS, ALIGNMENT = st.integers(1, 600), st.integers(1, 64)
RATIO = st.floats(0, 0.999)


@given(CHANNELS, RATIO, ALIGNMENT)
def test_widths_are_aligned_or_whole(channels: int, ratio: float, alignment: int) -> None:
    width = aligned_width(channels, ratio, alignment)
    assert 1 <= width <= channels
    assert width % alignment == 0 or width == channels
    wanted = max(channels * (1 - ratio), min(alignment, channels))
    assert abs(width - wanted) <= alignment / 2 + 1e-9 or width == channels
    assert aligned_width(channels, 0, alignment) == channels


@given(CHANNELS, RATIO, RATIO, ALIGNMENT)
def test_pruning_more_keeps_no_more(
    channels: int, one: float, other: float, alignment: int
) -> None:
    low, high = sorted((one, other))
    assert aligned_width(channels, high, alignment) <= aligned_width(channels, low, alignment)


@given(settings())
def test_every_candidate_has_shapes(found: tuple[Space, dict[str, Any]]) -> None:
    space, params = found
    candidate = space.candidate(params)
    shapes = space.shapes(candidate)
    for name, width in candidate.widths.items():
        last = f"{name}.expand" if name in candidate.ranks else name
        assert shapes.tensors[shapes.op(last).output].channels == width
    for name, rank in candidate.ranks.items():
        assert shapes.tensors[shapes.op(f"{name}.reduce").output].channels == rank
    for op in shapes.weighted:
        layer = op.name.removesuffix(".reduce").removesuffix(".expand")
        assert op.weight.bits == candidate.bits.get(layer, 32)
        kept = candidate.kept.get(layer, 1.0)
        if candidate.pattern and kept < 1:
            assert 0 < op.weight.kept <= op.weight.size
        else:
            assert op.weight.kept == max(1, round(kept * op.weight.size))
    assert shapes.parameters <= space.graph.parameters


# --- knobs --------------------------------------------------------------------------------------


def test_knobs_of_each_granularity() -> None:
    for granularity, suffixes in {
        "per-layer": [".conv1", ".conv2", ".conv3", ".fc1"],
        "per-stage": [".8x8", ".4x4", ".1x1"],
        "global": [""],
    }.items():
        space = problem(pruning={"granularity": granularity, "ratio": [0, 0.5]}).space
        knobs = [knob for knob in space.knobs if knob.kind == "prune"]
        assert [knob.name for knob in knobs] == [f"prune{suffix}" for suffix in suffixes]
        assert {layer for knob in knobs for layer in knob.layers} == {
            group.name for group in channel_groups(graph())
        }


@given(networks.recipes(), st.sampled_from(GRANULARITIES), st.data())
def test_knobs_share_out_the_layers(
    recipe: networks.Recipe, granularity: str, data: st.DataObject
) -> None:
    traced = trace(networks.network(recipe)[0], recipe.shape)
    stages = {group.name: group.stage for group in channel_groups(traced)}
    skip = data.draw(st.lists(st.sampled_from(list(stages)), unique=True, max_size=len(stages) - 1))
    knobs = layer_knobs("prune", granularity, [0, 0.5], stages, skip)
    layers = [layer for knob in knobs for layer in knob.layers]
    assert sorted(layers) == sorted(set(stages) - set(skip))
    assert len({knob.name for knob in knobs}) == len(knobs)
    if granularity == "global":
        assert len(knobs) == 1
    if granularity == "per-layer":
        assert [knob.layers for knob in knobs] == [(layer,) for layer in layers]
    if granularity == "per-stage":
        assert [{stages[layer] for layer in knob.layers} for knob in knobs] == [
            {stage} for stage in dict.fromkeys(stages[layer] for layer in layers)
        ]


def test_layers_to_skip() -> None:
    layers = {"conv1": (8, 8), "conv2": (4, 4)}
    with pytest.raises(StudyError, match=r"'space.quantization.skip' names.*did you mean 'conv1'"):
        layer_knobs("bits", "per-layer", [8], layers, ["con1"])
    with pytest.raises(StudyError, match=r"'space.pruning.skip' names every layer"):
        layer_knobs("prune", "global", [0], layers, list(layers))


RATIOS = st.lists(st.sampled_from([0, 0.1, 0.2, 0.25, 0.3, 0.5, 0.75]), min_size=1, unique=True)
BITS = st.lists(st.integers(2, 8), min_size=1, unique=True)


@given(RATIOS | BITS)
def test_every_choice_is_one_that_optuna_allows(choices: list[Any]) -> None:
    knob = Knob("k", "bits", tuple(choices))
    distribution = knob.distribution()
    for choice in choices:
        internal = distribution.to_internal_repr(choice)
        assert distribution._contains(internal)
        assert distribution.to_external_repr(internal) == choice
    if knob.ordered:
        steps = (float(choices[-1]) - float(choices[0])) / (float(choices[1]) - float(choices[0]))
        assert round(steps) + 1 == len(choices)


def test_what_is_no_space() -> None:
    with pytest.raises(StudyError, match="knob 'k' has no values"):
        Knob("k", "bits", ())
    knob = Knob("k", "target", (PICO,))
    with pytest.raises(StudyError, match="two knobs have one name"):
        Space(graph(), (knob, knob), (PICO,))
    with pytest.raises(StudyError, match="no target is left"):
        Space(graph(), (knob,), ())


@given(spaces())
def test_a_space_is_known_by_its_knobs(space: Space) -> None:
    assert json.loads(json.dumps(space.to_json()))[0]["name"] == space.knobs[0].name
    again = Space(space.graph, space.knobs, space.targets, space.alignment)
    assert again.hash == space.hash
    assert Space(space.graph, space.knobs[1:], space.targets).hash != space.hash
    assert space.size == math.prod(len(choices) for choices in space.choices.values())


def test_walking_a_space_meets_every_setting_once() -> None:
    space = problem(pruning=None, sparsity=None, quantization={"weight_bits": [4, 8]}).space
    walked = list(space.settings())
    assert len(walked) == space.size == len({json.dumps(params) for params in walked})
