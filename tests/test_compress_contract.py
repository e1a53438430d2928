"""What every technique owes, whatever it does: one suite that a technique joins with one line.

A technique is what a study file would say under `space`: every list runs from the value that
changes nothing to the strongest one. From there on everything is the product's own way: the knobs
make candidates, candidates have costs from shapes, and the evaluator trains them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from dse.candidate import Candidate
from dse.evaluate import Evaluator
from dse.evaluation import Evaluation
from dse.firmware.emit import Sources, emit
from dse.graph import archive, execute
from dse.graph.ir import Graph
from dse.graph.resources import SHARES, needs
from dse.graph.trace import trace
from dse.problem import Problem, build_problem
from dse.space_section import Criterion
from dse.study import parse_study
from dse.targets import find_backend
from dse.targets.kernels import KernelLibrary
from dse.trial import COST_METRICS
from dse.workloads import Dataset, Recipe, Workload, dataset_from_arrays
from tests.host_c import CC, WARNINGS, Host, command, compiled, entries, write
from tests.test_firmware_emit import symbols

PRUNING: Mapping[str, Any] = {"granularity": "global", "ratio": [0, 0.5]}
BUDGET: Mapping[str, Any] = {"memory": [1, 0.75], "size": [1, 0.5], "macs": [1, 0.6]}
SPARSITY: Mapping[str, Any] = {"granularity": "global", "ratio": [0, 0.75]}
LOW_RANK: Mapping[str, Any] = {"granularity": "global", "ratio": [0, 0.5]}
TECHNIQUES: Mapping[str, Mapping[str, Any]] = {
    **{
        f"channels by {criterion}": {"pruning": {**PRUNING, "criterion": criterion}}
        for criterion in Criterion.__args__  # type: ignore[attr-defined]
    },
    "channels along a ramp": {"pruning": {**PRUNING, "schedule": "agp"}},
    "channels that may return": {"pruning": {**PRUNING, "schedule": "dynamic"}},
    "a ramp of one's own": {
        "pruning": {**PRUNING, "schedule": "agp", "ramp": {"start": 0.1, "end": 0.9, "updates": 3}}
    },
    "channels within budgets": {"pruning": {"method": "budget", "budget": BUDGET}},
    "channels by ratios or within budgets": {
        "pruning": {
            **{**PRUNING, "ratio": 0},
            "method": ["ratio", "budget"],
            "budget": {"size": [1, 0.4]},
            "skip": ["fc1"],
        }
    },
    "channels within budgets, few trained bits, a teacher": {
        "pruning": {"method": "budget", "budget": {"macs": [1, 0.3]}},
        "quantization": {"method": ["ptq", "qat"], "granularity": "global", "weight_bits": [8, 4]},
        "distillation": {"weight": [0, 0.5]},
    },
    "elements": {"sparsity": SPARSITY},
    "elements that may return": {
        "pruning": {**PRUNING, "schedule": "dynamic"},
        "sparsity": SPARSITY,
    },
    **{
        f"blocks of {pattern}": {"sparsity": {**SPARSITY, "pattern": ["element", pattern]}}
        for pattern in ("1x4", "4x4", "2x2-shared")
    },
    "shared blocks of few bits, wide activations": {
        "sparsity": {**SPARSITY, "pattern": ["element", "4x1-shared"]},
        "quantization": {
            "granularity": "global",
            "weight_bits": [8, 4],
            "precision": ["int8", "int16"],
            "rounding": ["nearest", "adaptive"],
        },
    },
    "shared blocks of equalized layers": {
        "sparsity": {**SPARSITY, "pattern": ["element", "1x4-shared"]},
        "quantization": {"equalization": ["none", "cross-layer"]},
    },
    "trained blocks of narrow layers and factors": {
        "pruning": {**PRUNING, "ratio": [0, 0.25], "schedule": "dynamic"},
        "low_rank": LOW_RANK,
        "sparsity": {**SPARSITY, "pattern": ["element", "2x2"]},
        "quantization": {"method": ["ptq", "qat"], "granularity": "global", "weight_bits": [8, 4]},
    },
    "elements along a ramp": {"pruning": {**PRUNING, "schedule": "agp"}, "sparsity": SPARSITY},
    "low rank": {"low_rank": LOW_RANK},
    "low rank, spatial": {"low_rank": {**LOW_RANK, "factors": "spatial"}},
    "low rank of narrow and sparse layers": {
        "pruning": {**PRUNING, "ratio": [0, 0.25], "schedule": "agp"},
        "low_rank": {**LOW_RANK, "ratio": [0, 0.75]},
        "sparsity": SPARSITY,
    },
    "weights of few bits": {"quantization": {"granularity": "global", "weight_bits": [8, 4, 2]}},
    "code books": {"code_books": {"granularity": "global", "entries": [0, 16]}},
    "code books of sub-vectors, wide activations": {
        "code_books": {"granularity": "global", "entries": [0, 8], "vector": [1, 2]},
        "quantization": {"precision": ["int8", "int16"], "biases": ["rounded", "corrected"]},
    },
    "trained code books": {
        "code_books": {"granularity": "global", "entries": [0, 8]},
        "quantization": {"method": ["ptq", "qat"]},
    },
    "code books of narrow layers and factors": {
        "pruning": {**PRUNING, "ratio": [0, 0.25]},
        "low_rank": LOW_RANK,
        "code_books": {"granularity": "global", "entries": [0, 4]},
        "quantization": {"granularity": "global", "weight_bits": [8, 4]},
    },
    "wide activations": {"quantization": {"precision": ["int8", "int16"]}},
    "ranges by percentile": {"quantization": {"ranges": ["minmax", "percentile"]}},
    "ranges by error": {"quantization": {"ranges": ["minmax", "mse"]}},
    "one scale a tensor": {"quantization": {"scales": ["channel", "tensor"]}},
    "equalized layers": {"quantization": {"equalization": ["none", "cross-layer"]}},
    "adaptive rounding": {
        "sparsity": SPARSITY,
        "quantization": {
            "rounding": ["nearest", "adaptive"],
            "granularity": "global",
            "weight_bits": [8, 3],
        },
    },
    "corrected biases": {"quantization": {"biases": ["rounded", "corrected"]}},
    "one trained scale a tensor": {
        "quantization": {"scales": ["channel", "tensor"], "method": ["ptq", "qat"]}
    },
    "trained quantization": {
        "quantization": {"method": ["ptq", "qat"], "granularity": "global", "weight_bits": [8, 3]}
    },
    "distillation": {"pruning": PRUNING, "distillation": {"weight": [0, 0.5]}},
    "everything": {
        "pruning": {**PRUNING, "schedule": "agp"},
        "sparsity": SPARSITY,
        "quantization": {"method": ["ptq", "qat"], "granularity": "global", "weight_bits": [8, 4]},
        "distillation": {"weight": [0, 0.5]},
    },
}
BACKENDS = ("native", "native-dsp")
STUDY = """
name: contract
workload: digits
space: {space}
objectives: [accuracy, flash, ram]
"""


class Net(nn.Module):
    """A residual sum, a depthwise convolution and two linear layers: (N, 2, 8, 8) -> (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.block, self.block_bn = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.deep, self.deep_bn = nn.Conv2d(8, 8, 3, 2, padding=1, groups=8), nn.BatchNorm2d(8)
        self.fc1, self.fc1_bn = nn.Linear(128, 12), nn.BatchNorm1d(12)
        self.fc2 = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(x + self.block_bn(self.block(x)))
        x = F.relu(self.deep_bn(self.deep(x)))
        scores: Tensor = self.fc2(F.relu(self.fc1_bn(self.fc1(torch.flatten(x, 1)))))
        return scores


def load() -> Dataset:
    source = np.random.default_rng(0)
    labels = np.arange(150) % 3
    inputs = source.normal(size=(150, 2, 8, 8)) * 0.3 + labels[:, None, None, None] * 0.7
    parts = {"train": slice(120), "test": slice(120, None)}
    arrays = {f"x_{part}": inputs[chosen] for part, chosen in parts.items()}
    return dataset_from_arrays(
        "contract", arrays | {f"y_{part}": labels[chosen] for part, chosen in parts.items()}
    )


WORKLOAD = Workload(
    "contract",
    Net,
    load,
    Recipe(epochs=3, fine_tune_epochs=2, batch_size=20, fine_tune_learning_rate=5e-3, threads=1),
    "made up",
)


@cache
def problem(technique: str) -> Problem:
    """The technique's space on the small network."""
    space = {"boards": ["nucleo_f446re"], "backends": ["native"], "alignment": 1}
    text = STUDY.format(
        space=yaml.safe_dump({**space, **TECHNIQUES[technique]}, default_flow_style=True)
    )
    shapes = trace(WORKLOAD.network(0), (2, 8, 8), "contract")
    return build_problem(parse_study(text, "contract"), shapes, 3)


def candidate(technique: str, place: int) -> Candidate:
    """The setting at the beginning (0) or end (-1) of every knob."""
    space = problem(technique).space
    return space.candidate({knob.name: knob.choices[place] for knob in space.knobs})


def evaluated(technique: str, place: int, seed: int = 0) -> Evaluation:
    """Trained from nothing."""
    with TemporaryDirectory() as folder:
        evaluator = Evaluator(WORKLOAD, load(), WORKLOAD.recipe, seed, Path(folder))
        return evaluator.evaluate(candidate(technique, place), "double")


@cache
def strongest(technique: str) -> Evaluation:
    """What the technique makes of the network, at its strongest."""
    return evaluated(technique, -1)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_no_strength_is_the_identity(technique: str) -> None:
    space = problem(technique).space
    plain = space.int8_baseline(space.targets[0])
    assert candidate(technique, 0).key == plain.key
    assert candidate(technique, -1).key != plain.key


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_the_same_seed_gives_the_same_network(technique: str) -> None:
    torch.manual_seed(hash(technique) % 1000)  # whatever the global state
    again, other = evaluated(technique, -1), evaluated(technique, -1, seed=1)
    assert archive.to_bytes(again.graph) == archive.to_bytes(strongest(technique).graph)
    assert archive.to_bytes(other.graph) != archive.to_bytes(again.graph)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_costs_from_shapes_are_those_of_the_trained_network(technique: str) -> None:
    graph, space = strongest(technique).graph, problem(technique).space
    asked = candidate(technique, -1)
    made = space.trained(asked, graph) if asked.open else asked
    assert made.key == asked.key
    assert graph.key == space.shapes(made).key
    for op in graph.weighted:
        assert op.weight.values is not None
        assert int(np.count_nonzero(op.weight.values)) <= op.weight.kept


@pytest.mark.parametrize("technique", [name for name in TECHNIQUES if "budgets" in name])
def test_budgets_are_met_by_aligned_widths_and_costs_lie_above_their_bound(technique: str) -> None:
    graph, found = strongest(technique).graph, problem(technique)
    asked = candidate(technique, -1)
    made, whole = found.space.trained(asked, graph), needs(found.space.graph)
    for name, share in asked.budgets.items():
        field = SHARES[name]
        assert getattr(needs(graph), field) <= share * getattr(whole, field)
    assert set(made.widths).isdisjoint(asked.whole)
    costs, bounds = found.cost(made).metrics, found.screen(asked).metrics
    for name in COST_METRICS:
        exact, least = costs[name].value, bounds[name].low
        assert bounds[name].value is None
        assert exact is not None
        assert least is not None
        assert exact > least


@pytest.mark.skipif(CC is None, reason="no C compiler (cc, gcc or clang) is installed")
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_the_emitted_c_is_the_exact_network_and_weighs_what_is_modelled(
    technique: str, tmp_path: Path
) -> None:
    graph, inputs = strongest(technique).graph, load().test.inputs
    made = [emit(graph, f"net{i}", backend) for i, backend in enumerate(BACKENDS)]
    host = Host.load(compiled(tmp_path, made))
    expected = execute.run(graph, inputs, "double").numpy()
    for one, backend in zip(made, BACKENDS, strict=True):
        found = host.run(one, entries(graph, inputs)).reshape(expected.shape)
        np.testing.assert_array_equal(found, expected)
        assert constants_in_c(one, tmp_path) == constants_modelled(graph, backend)


def constants_modelled(graph: Graph, backend: str) -> int:
    """Bytes of constants that the cost model counts."""
    library = find_backend(backend)
    assert isinstance(library, KernelLibrary)
    constants = sum(sum(library.constants(op).values()) for op in graph.weighted)
    return constants + sum(library.tables(graph, op) for op in graph.ops)


def constants_in_c(made: Sources, folder: Path) -> int:
    """Bytes of constants in the object file, with the record of geometry in each function."""
    (path,) = write(folder, [made])
    # Without optimization: a table of one element would be folded into the code.
    command(*WARNINGS, "-c", "-O0", path, "-o", folder / "o.o")
    listed = symbols(folder / "o.o")
    return sum(size for name, size in listed.items() if name.startswith(("op_", "shape")))
