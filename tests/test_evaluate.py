"""Stages: trained once, kept, found again; the numbers are the graph's own."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dse.candidate import Candidate
from dse.evaluate import Evaluator, wilson_interval
from dse.evaluation import Interrupted
from dse.graph import execute
from dse.graph.ir import without_values
from dse.graph.trace import trace
from dse.knobs import Knob
from dse.space import Space
from dse.workloads import WORKLOADS

TARGET = "nucleo_f446re/native/180MHz"
LAYERS = ("conv1", "conv2", "conv3", "fc1", "fc2")
WORKLOAD = WORKLOADS["digits"]
RECIPE = WORKLOAD.recipe.with_changes({"epochs": 2, "fine_tune_epochs": 1, "threads": 1})


def evaluator(folder: Path, seed: int = 0) -> Evaluator:
    return Evaluator(WORKLOAD, WORKLOAD.load(), RECIPE, seed, folder)


def candidate(**changes: object) -> Candidate:
    given = {"bits": dict.fromkeys(LAYERS, 8)} | changes
    return Candidate(TARGET, **given)  # type: ignore[arg-type]


@pytest.mark.slow
def test_each_stage_is_trained_once_and_found_again(tmp_path: Path) -> None:
    pruned = {"widths": {"conv1": 8, "fc1": 24}, "criterion": "l2", "schedule": "one-shot"}
    first = evaluator(tmp_path)
    assert first.evaluate(candidate(), "double").trained
    assert not first.evaluate(candidate(bits=dict.fromkeys(LAYERS, 4)), "double").trained
    eight = first.evaluate(candidate(**pruned), "double")
    assert eight.trained
    four = first.evaluate(candidate(**pruned, bits=dict.fromkeys(LAYERS, 4)), "double")
    assert not four.trained

    again = evaluator(tmp_path).evaluate(candidate(**pruned), "double")
    assert not again.trained
    assert again.accuracy == eight.accuracy
    assert again.graph.key == eight.graph.key
    assert evaluator(tmp_path, seed=1).evaluate(candidate(), "double").trained


@pytest.mark.slow
def test_the_accuracy_is_what_the_stored_graph_classifies(tmp_path: Path) -> None:
    found = evaluator(tmp_path).evaluate(candidate(kept={"fc1": 0.25}, schedule="agp"), "single")
    split = WORKLOAD.load().validation
    classes = execute.run(found.graph, split.inputs, "single").argmax(dim=1)
    assert found.accuracy.value == pytest.approx(float((classes == split.labels).float().mean()))
    assert found.samples == len(split)
    weight = found.graph.op("fc1").weight  # type: ignore[attr-defined]
    assert weight.kept == round(0.25 * weight.size)
    assert int((weight.values != 0).sum()) <= weight.kept


@pytest.mark.slow
@pytest.mark.parametrize("factors", ["channel", "spatial"])
def test_low_rank_networks_have_the_costs_that_were_computed(tmp_path: Path, factors: str) -> None:
    graph = without_values(trace(WORKLOAD.network(0), (1, 8, 8), "digits"))
    knobs = (
        Knob("prune", "prune", (0, 0.5), ("conv2",)),
        Knob("low_rank", "low_rank", (0, 0.75), ("conv2", "conv3", "fc1")),
        Knob("factors", "factors", (factors,)),
        Knob("sparsity", "sparsity", (0, 0.5), ("fc1",)),
    )
    space = Space(graph, knobs, (TARGET,), 2)
    asked = space.candidate({"prune": 0.5, "low_rank": 0.75, "factors": factors, "sparsity": 0.5})
    assert set(asked.ranks) == {"conv2", "conv3", "fc1"}
    found = evaluator(tmp_path).evaluate(asked, "double")
    assert without_values(found.graph).key == space.shapes(asked).key
    assert found.trained
    assert found.accuracy.value is not None
    assert found.accuracy.value > 0.5


@pytest.mark.slow
def test_float32_is_measured_as_float32(tmp_path: Path) -> None:
    found = evaluator(tmp_path).evaluate(Candidate(TARGET, precision="float32"), "double")
    assert not found.graph.integer
    assert "float32" in found.accuracy.source


@pytest.mark.slow
def test_int16_activations_need_no_training_of_their_own(tmp_path: Path) -> None:
    eight = evaluator(tmp_path).evaluate(candidate(), "double")
    found = evaluator(tmp_path).evaluate(replace(candidate(), precision="int16"), "double")
    assert not found.trained
    assert {tensor.dtype for tensor in found.graph.tensors.values()} == {"int16"}
    assert [op.weight.bits for op in found.graph.weighted] == [
        op.weight.bits for op in eight.graph.weighted
    ]
    assert found.accuracy.value is not None
    assert found.accuracy.value == pytest.approx(eight.accuracy.value, abs=0.03)


def test_a_wish_to_stop_ends_the_training(tmp_path: Path) -> None:
    calls: list[int] = []

    def stop() -> bool:
        calls.append(1)
        return len(calls) > 3

    stopped = Evaluator(WORKLOAD, WORKLOAD.load(), RECIPE, 0, tmp_path, stop)
    with pytest.raises(Interrupted, match="step 4"):
        stopped.evaluate(candidate(), "double")
    assert not list(tmp_path.rglob("*.pt"))


def test_wilson_interval_against_published_values() -> None:
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3: 81/263 and 15/148."""
    low, high = wilson_interval(81 / 263, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    low, high = wilson_interval(15 / 148, 148)
    assert (round(low, 4), round(high, 4)) == (0.0624, 0.1605)
    assert wilson_interval(1.0, 100)[1] == 1.0


def test_torch_reproduces_the_same_network_for_the_same_seed() -> None:
    one, other = WORKLOAD.network(3), WORKLOAD.network(3)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_trained_quantization_is_a_stage_of_its_own(tmp_path: Path) -> None:
    two = dict.fromkeys(LAYERS, 2) | {"conv1": 8, "fc2": 8}
    first = evaluator(tmp_path)
    rounded = first.evaluate(candidate(bits=two), "double")
    learned = first.evaluate(candidate(bits=two, method="qat"), "double")
    assert learned.trained
    assert learned.graph.key == rounded.graph.key
    assert learned.graph.tensors != rounded.graph.tensors
    again = evaluator(tmp_path).evaluate(candidate(bits=two, method="qat"), "double")
    assert not again.trained
    assert again.accuracy == learned.accuracy
    four = candidate(bits=dict.fromkeys(LAYERS, 4), method="qat")
    assert first.evaluate(four, "double").trained


@pytest.mark.slow
def test_a_teacher_changes_what_is_fine_tuned_and_nothing_else(tmp_path: Path) -> None:
    pruned = {"widths": {"conv1": 8, "fc1": 24}, "criterion": "l2", "schedule": "one-shot"}
    taught = {"distillation": {"weight": 0.5, "temperature": 4.0}}
    found = evaluator(tmp_path)
    alone = found.evaluate(candidate(**pruned), "double")
    with_teacher = found.evaluate(candidate(**pruned, **taught), "double")
    assert with_teacher.trained
    assert with_teacher.graph.key == alone.graph.key
    assert with_teacher.accuracy != alone.accuracy
    # Ranges are found again, without a training.
    ranged = found.evaluate(candidate(**pruned, **taught, ranges="mse"), "double")
    assert not ranged.trained
    assert ranged.graph.tensors != with_teacher.graph.tensors


LOCKED = """
import sys, time
from tests.test_evaluate import evaluator
from pathlib import Path
own = evaluator(Path(sys.argv[1]))
with own._alone(own._baseline_file):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_processes_of_one_machine_do_not_train_the_same_network_at_once(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", LOCKED, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    looks: list[int] = []

    def stop() -> bool:
        looks.append(1)
        return len(looks) > 3

    waiting = evaluator(tmp_path)
    waiting.should_stop = stop
    with pytest.raises(Interrupted):
        waiting.baseline()
    child.kill()  # and lets go
    child.communicate()
    with waiting._alone(waiting._baseline_file):
        pass
