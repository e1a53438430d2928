"""Quantization-aware training: what is trained is what ships, the same for the same seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dse.compress.qat import FakeQuantized, learn_quantization, rounded
from dse.errors import GraphError
from dse.firmware.emit import emit
from dse.graph import execute
from dse.graph.channels import kept_count
from dse.graph.ir import DType, Graph
from dse.graph.quantize import quantize
from dse.graph.ranges import METHODS, find_ranges
from dse.graph.trace import trace
from dse.workloads import Recipe, Split, find_workload, train_baseline
from tests import networks
from tests.host_c import CC, Host, compiled, entries
from tests.test_compress_schedule import network, split

RECIPE = Recipe(batch_size=20, fine_tune_epochs=2, fine_tune_learning_rate=1e-2)
ACTIVATIONS: st.SearchStrategy[DType] = st.sampled_from(("int8", "int16"))


def float_graph() -> Graph:
    return trace(network().eval(), (1, 6, 6))


def start(graph: Graph, bits: int = 4, kept: dict[str, float] | None = None) -> Graph:
    names = [op.name for op in graph.weighted]
    ranges = execute.observe(graph, split().inputs)
    return quantize(graph, ranges, dict.fromkeys(names, bits) | {names[0]: 8}, kept)


def learned(graph: Graph, bits: int = 4, seed: int = 0) -> Graph:
    return learn_quantization(graph, start(graph, bits), split(), RECIPE, seed)


def same(one: Graph, other: Graph) -> bool:
    return one.tensors == other.tensors and all(
        np.array_equal(a.weight.values, b.weight.values)  # type: ignore[arg-type]
        and np.array_equal(a.weight.scales, b.weight.scales)  # type: ignore[arg-type]
        and np.array_equal(a.bias, b.bias)  # type: ignore[arg-type]
        and (a.weight.bits, a.weight.kept) == (b.weight.bits, b.weight.kept)
        for a, b in zip(one.weighted, other.weighted, strict=True)
    )


@settings(max_examples=30)
@given(networks.recipes(), st.integers(2, 8), ACTIVATIONS)
def test_without_a_step_nothing_changes(
    recipe: networks.Recipe, bits: int, activations: DType
) -> None:
    model, inputs = networks.network(recipe)
    graph = trace(model, recipe.shape)
    widths = {op.name: bits for op in graph.weighted}
    quantized = quantize(graph, execute.observe(graph, inputs), widths, None, activations)
    found = FakeQuantized(graph, quantized).integer()
    assert found.tensors == quantized.tensors
    for one, other in zip(found.weighted, quantized.weighted, strict=True):
        np.testing.assert_array_equal(one.weight.scales, other.weight.scales)
        # Folded weights may be float64, those that are trained are float32.
        np.testing.assert_allclose(one.weight.values, other.weight.values, atol=1)  # type: ignore[arg-type]
        np.testing.assert_allclose(one.bias, other.bias, rtol=1e-6, atol=1)  # type: ignore[arg-type]


@settings(max_examples=30)
@given(networks.recipes(), st.integers(2, 8), ACTIVATIONS)
def test_training_sees_what_the_exact_network_computes(
    recipe: networks.Recipe, bits: int, activations: DType
) -> None:
    model, inputs = networks.network(recipe)
    graph = trace(model, recipe.shape)
    widths = {op.name: bits for op in graph.weighted}
    quantized = quantize(graph, execute.observe(graph, inputs), widths, None, activations)
    output = quantized.tensors[quantized.output]
    with torch.no_grad():
        seen = FakeQuantized(graph, quantized)(inputs)
    assert output.scale is not None
    exact = (execute.run(quantized, inputs) - output.zero_point) * output.scale
    # Roundings that fall to the other side differ by a step, and by as much in what follows.
    spread = float((seen.max() - seen.min()).clamp(min=1e-3))
    assert float((seen - exact).abs().mean()) <= 0.05 * spread + output.scale


@given(st.integers(0, 999), st.floats(0.05, 2))
def test_gradients_are_those_of_learned_steps(seed: int, step: float) -> None:
    """LSQ, equations 1 to 3: the rounding error in range, the limit beyond."""
    value = torch.randn(50, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    scale = torch.tensor(step, requires_grad=True)
    result = rounded(value, scale, -2, 3)
    result.sum().backward()  # type: ignore[no-untyped-call]
    scaled = (value / scale).detach()
    inside = (scaled >= -2) & (scaled <= 3)
    torch.testing.assert_close(result.detach(), scaled.round().clamp(-2, 3) * step)
    assert torch.equal(value.grad, inside.float())  # type: ignore[arg-type]
    slopes = torch.where(inside, scaled.round() - scaled, scaled.clamp(-2, 3))
    torch.testing.assert_close(scale.grad, slopes.sum(), atol=1e-4, rtol=1e-4)


def test_same_seed_same_network() -> None:
    graph = float_graph()
    torch.manual_seed(1)
    one = learned(graph)
    torch.manual_seed(2)
    assert same(one, learned(graph))
    assert not same(one, learned(graph, seed=1))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_widths_types_and_zero_points_stay_and_the_float_graph_is_untouched(bits: int) -> None:
    graph = float_graph()
    before = [op.weight.values.copy() for op in graph.weighted if op.weight.values is not None]
    found, first = learned(graph, bits), start(graph, bits)
    assert found.key == first.key
    for name, tensor in found.tensors.items():
        assert replace(tensor, scale=None) == replace(first.tensors[name], scale=None)
    for op in found.weighted:
        assert op.weight.values is not None
        assert int(np.abs(op.weight.values).max()) <= 2 ** (op.weight.bits - 1) - 1
    for op, values in zip(graph.weighted, before, strict=True):
        np.testing.assert_array_equal(op.weight.values, values)


def test_pruned_weights_stay_zero() -> None:
    graph = float_graph()
    op = graph.weighted[-1]
    assert op.weight.values is not None
    values, spare = op.weight.values.copy(), op.weight.size - kept_count(op.weight.size, 0.25)
    values.reshape(-1)[np.argsort(np.abs(values).ravel())[:spare]] = 0
    pruned = replace(op, weight=replace(op.weight, values=values))
    graph = replace(graph, ops=(*graph.ops[:-1], pruned))
    first = start(graph, kept={op.name: 0.25})
    found = learn_quantization(graph, first, split(), RECIPE, 0).weighted[-1].weight
    assert found.values is not None
    assert found.kept == first.weighted[-1].weight.kept
    assert not found.values[values == 0].any()
    assert found.values.any()


@pytest.mark.skipif(CC is None, reason="no C compiler (cc, gcc or clang) is installed")
def test_the_c_of_a_trained_network_gives_every_byte(tmp_path: Path) -> None:
    found, inputs = learned(float_graph(), 2), split().inputs[:16]
    made = emit(found, "net", "native", "double")
    given_back = Host.load(compiled(tmp_path, [made])).run(made, entries(found, inputs))
    np.testing.assert_array_equal(given_back, execute.run(found, inputs, "double").numpy())


@pytest.mark.slow
def test_two_bits_of_digits_are_nearly_as_good_as_floats() -> None:
    workload = find_workload("digits")
    data, recipe = workload.load(), workload.recipe.with_changes({"fine_tune_epochs": 8})
    model, _ = train_baseline(workload, data.train, 0)
    graph = trace(model, data.sample_shape)
    names = [op.name for op in graph.weighted]
    bits = dict.fromkeys(names, 2) | {names[0]: 8, names[-1]: 8}
    first = quantize(graph, find_ranges(graph, data.train.inputs), bits)
    found = learn_quantization(graph, first, data.train, recipe, 0)

    def accuracy(network: Graph) -> float:
        return execute.accuracy(network, data.test.inputs, data.test.labels)

    assert accuracy(found) > max(accuracy(first), accuracy(graph) - 0.02)


# --- ranges -------------------------------------------------------------------------------------


def heavy_tailed() -> tuple[Graph, Split]:
    """A network with one input value in thousands that is far from all others."""
    inputs = split().inputs.repeat(20, 1, 1, 1)
    inputs[0, 0, 0, 0] = 200
    return float_graph(), Split(inputs, split().labels.repeat(20))


@settings(max_examples=20)
@given(networks.recipes(), st.sampled_from(METHODS))
def test_ranges_lie_within_what_was_seen(recipe: networks.Recipe, method: str) -> None:
    model, inputs = networks.network(recipe)
    graph = trace(model, recipe.shape)
    seen, found = execute.observe(graph, inputs), find_ranges(graph, inputs, method)
    assert set(found) == set(seen)
    for name, (low, high) in found.items():
        slack = 1e-6 * max(1.0, *map(abs, seen[name]))
        assert seen[name][0] - slack <= low <= high <= seen[name][1] + slack
    for name in (graph.input, graph.output):
        assert found[name] == seen[name]
    if method == "minmax":
        assert found == seen


@pytest.mark.parametrize("method", ["percentile", "mse"])
def test_outliers_are_clipped_and_the_rest_gains(method: str) -> None:
    graph, data = heavy_tailed()
    inner = [name for name in graph.tensors if name not in (graph.input, graph.output)]
    seen, found = (find_ranges(graph, data.inputs, m) for m in ("minmax", method))
    assert found[inner[0]][1] < seen[inner[0]][1]
    values = next(execute.activations(graph, data.inputs[1:]))[inner[0]]
    errors = []
    for ranges in (seen, found):
        tensor = quantize(graph, ranges).tensors[inner[0]]
        assert tensor.scale is not None
        got = (execute.quantize_input(tensor, values) - tensor.zero_point) * tensor.scale
        errors.append(float((got - values).square().mean()))
    assert errors[1] < 0.8 * errors[0]


def test_unknown_ranges_are_refused() -> None:
    with pytest.raises(GraphError, match="unknown ranges 'minmx'; did you mean 'minmax'"):
        find_ranges(float_graph(), split().inputs, "minmx")
