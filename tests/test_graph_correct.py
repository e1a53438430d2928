"""Equalization, adaptive rounding, corrected biases: what they keep and what they make better."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dse.errors import GraphError
from dse.graph import correct, execute
from dse.graph.correct import correct_biases, round_adaptively
from dse.graph.equalize import equalize, pairs
from dse.graph.ir import Array, Conv2D, DType, FullyConnected, Graph, Tensor, Weight, WeightedOp
from dse.graph.quantize import quantize
from dse.graph.trace import trace
from tests import networks

ACTIVATIONS: st.SearchStrategy[DType] = st.sampled_from(("int8", "int16"))
BITS = st.integers(2, 8)


def values(op: WeightedOp) -> Array:
    assert op.weight.values is not None
    return op.weight.values


def scales(op: WeightedOp) -> Array:
    assert op.weight.scales is not None
    return op.weight.scales


def traced(recipe: networks.Recipe) -> tuple[Graph, torch.Tensor]:
    model, inputs = networks.network(recipe)
    return trace(model, recipe.shape), inputs


def integer(graph: Graph, inputs: torch.Tensor, bits: int, dtype: DType = "int8") -> Graph:
    widths = {op.name: bits for op in graph.weighted}
    return quantize(graph, execute.observe(graph, inputs), widths, None, dtype)


# --- one scale a tensor --------------------------------------------------------------------------


@settings(max_examples=30)
@given(networks.recipes(), BITS)
def test_one_scale_a_tensor_is_that_of_its_largest_weight(
    recipe: networks.Recipe, bits: int
) -> None:
    graph, inputs = traced(recipe)
    widths = {op.name: bits for op in graph.weighted}
    found = quantize(graph, execute.observe(graph, inputs), widths, scales="tensor")
    for op, plain in zip(found.weighted, graph.weighted, strict=True):
        (step,) = set(scales(op).tolist())
        error = np.abs(values(op) * step - values(plain))
        inside = np.abs(values(op)) < 2 ** (bits - 1) - 1
        assert error[inside].max(initial=0.0) <= step / 2 * (1 + 1e-6)
        if bits == 8:
            assert step == pytest.approx(float(np.abs(values(plain)).max()) / 127, rel=1e-6)
    assert found.key == integer(graph, inputs, bits).key


def test_unknown_scales_are_refused() -> None:
    graph, inputs = traced(networks.Recipe(0, 1, (4, 4), (), "mean", False))
    with pytest.raises(GraphError, match="unknown scales 'tenser'; did you mean 'tensor'"):
        quantize(graph, execute.observe(graph, inputs), scales="tenser")


# --- equalization --------------------------------------------------------------------------------


@settings(max_examples=60)
@given(networks.recipes(most=4))
def test_an_equalized_network_computes_the_same(recipe: networks.Recipe) -> None:
    graph, inputs = traced(recipe)
    found = equalize(graph)
    before, after = execute.run(graph, inputs), execute.run(found, inputs)
    assert torch.allclose(before, after, rtol=1e-3, atol=1e-4 * (1 + float(before.abs().max())))
    assert found.key == graph.key
    assert (found is graph) == (not pairs(graph))
    changed = {name for pair in pairs(graph) for name in pair}
    for one, other in zip(graph.weighted, found.weighted, strict=True):
        if one.name not in changed:
            assert other is one


def _chain(seed: int, channels: int) -> Graph:
    """A 1x1 convolution and two linear layers, their channels of very different size."""
    random = np.random.default_rng(seed)
    spread = np.exp(random.normal(0, 2, channels))
    first = random.normal(size=(channels, 1, 1, 3)) * spread[:, None, None, None]
    tensors = [Tensor("input", (1, 1, 3)), Tensor("a", (1, 1, channels)), Tensor("b", (4,))]
    ops = (
        Conv2D("first", ("input",), "a", _weight(first), np.zeros(channels), activation="relu"),
        FullyConnected("last", ("a",), "b", _weight(random.normal(size=(4, channels))), np.ones(4)),
    )
    return Graph("chain", {t.name: t for t in tensors}, ops, "input", "b")


def _weight(found: Array) -> Weight:
    return Weight(found.shape, values=found.astype(np.float32))


@given(st.integers(0, 999), st.integers(1, 9))
def test_both_layers_of_a_pair_get_equal_ranges(seed: int, channels: int) -> None:
    graph = _chain(seed, channels)
    assert pairs(graph) == (("first", "last"),)
    first, last = equalize(graph).weighted
    made = np.abs(values(first)).max(axis=(1, 2, 3))
    read = np.abs(values(last)).max(axis=0)
    np.testing.assert_allclose(made, read, rtol=1e-4)


def test_only_what_a_factor_passes_is_paired() -> None:
    graph = _chain(0, 4)
    first, last = graph.ops
    assert isinstance(first, Conv2D)
    clipped = replace(graph, ops=(replace(first, activation="relu6"), last))
    assert pairs(clipped) == ()
    assert equalize(clipped) is clipped
    plain, inputs = traced(networks.Recipe(0, 1, (4, 4), (), "mean", False))
    with pytest.raises(GraphError, match="equalized in the float graph"):
        equalize(integer(plain, inputs, 8))


# --- rounding ------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(networks.recipes(), ACTIVATIONS)
def test_moments_are_those_of_the_layer_s_own_sums(
    recipe: networks.Recipe, activations: DType
) -> None:
    """A row's w' M w is the sum of its squared accumulators, wherever a layer's taps lie."""
    graph, inputs = traced(recipe)
    found = integer(graph, inputs, 4, activations)
    seen = list(execute.activations(found, inputs))
    for op in found.weighted:
        source = found.tensors[op.inputs[0]]
        groups = op.groups if isinstance(op, Conv2D) else 1
        moments = correct._moments(found, op, inputs)
        rows = values(op).reshape(groups, -1, moments.shape[1]).astype(np.float64)
        expected = np.einsum("gri,gij,grj->gr", rows, moments, rows).ravel()
        weight = torch.from_numpy(values(op).astype(np.float64))
        weight = weight.permute(0, 3, 1, 2) if weight.dim() == 4 else weight
        squares = np.zeros(len(weight))
        for batch in seen:
            sums = execute.accumulate(op, batch[source.name].double() - source.zero_point, weight)
            squares += sums.pow(2).transpose(0, 1).flatten(1).sum(1).numpy()
        np.testing.assert_allclose(squares, expected, rtol=1e-4, atol=1e-3 * (1 + squares.max()))


@settings(max_examples=30)
@given(networks.recipes(), BITS, ACTIVATIONS)
def test_rounding_keeps_everything_but_the_integers(
    recipe: networks.Recipe, bits: int, activations: DType
) -> None:
    graph, inputs = traced(recipe)
    start = integer(graph, inputs, bits, activations)
    found = round_adaptively(graph, start, inputs)
    assert (found.key, found.tensors) == (start.key, start.tensors)
    for one, other in zip(start.weighted, found.weighted, strict=True):
        np.testing.assert_array_equal(scales(one), scales(other))
        np.testing.assert_array_equal(one.bias, other.bias)
        assert np.abs(values(other)).max() <= 2 ** (bits - 1) - 1
    again = round_adaptively(graph, start, inputs)
    for one, other in zip(again.weighted, found.weighted, strict=True):
        np.testing.assert_array_equal(values(one), values(other))


@given(st.integers(0, 9999), st.sampled_from([3, 7]), st.integers(2, 8))
def test_weights_in_whole_steps_stay_where_they_are(seed: int, limit: int, taps: int) -> None:
    random = np.random.default_rng(seed)
    rows = random.integers(-limit, limit + 1, (3, taps)).astype(np.float64)
    kept = np.ones(rows.shape, dtype=bool)
    samples = random.normal(size=(taps, 20))
    found = correct._sequential(rows, kept, samples @ samples.T, limit)
    np.testing.assert_array_equal(found, rows)


def test_the_error_of_the_sums_falls_to_near_the_least_there_is() -> None:
    """Against every way to round four weights up or down, over many draws."""
    random = np.random.default_rng(0)
    choices = np.array([[i >> k & 1 for k in range(4)] for i in range(16)])
    totals = np.zeros(3)
    for _ in range(200):
        mixed = random.normal(size=(4, 4)) @ random.normal(size=(4, 50))
        moments = mixed @ mixed.T
        row = random.normal(0, 2, (1, 4))
        found = correct._sequential(row, np.ones((1, 4), dtype=bool), moments, 7)
        options = np.concatenate((np.floor(row) + choices, np.rint(row), found))
        error = np.einsum("ri,ij,rj->r", options - row, moments, options - row)
        totals += (error[:16].min(), error[16], error[17])
    best, nearest, adaptive = totals
    assert adaptive < 0.6 * nearest
    assert adaptive < 1.6 * best


@settings(max_examples=20)
@given(networks.recipes(), st.floats(0.1, 0.9))
def test_pruned_weights_stay_zero(recipe: networks.Recipe, density: float) -> None:
    graph, inputs = traced(recipe)
    layers, densities = [], {}
    for op in graph.weighted:
        keep = max(1, round(density * op.weight.size))
        order = np.argsort(-np.abs(values(op)).ravel(), kind="stable")
        mask = np.zeros(op.weight.size, dtype=bool)
        mask[order[:keep]] = True
        pruned = values(op) * mask.reshape(op.weight.shape)
        layers.append(replace(op, weight=replace(op.weight, values=pruned)))
        densities[op.name] = density
    by_name = {op.name: op for op in layers}
    sparse = replace(graph, ops=tuple(by_name.get(op.name, op) for op in graph.ops))
    start = quantize(sparse, execute.observe(sparse, inputs), None, densities)
    found = round_adaptively(sparse, start, inputs)
    for one, other in zip(sparse.weighted, found.weighted, strict=True):
        assert not values(other)[values(one) == 0].any()
    assert found.key == start.key


# --- biases --------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(networks.recipes(), st.sampled_from([2, 3, 8]), ACTIVATIONS)
def test_means_of_all_sums_are_those_of_the_float_network(
    recipe: networks.Recipe, bits: int, activations: DType
) -> None:
    graph, inputs = traced(recipe)
    start = integer(graph, inputs, bits, activations)
    found = correct_biases(graph, start, inputs)
    assert (found.key, found.tensors) == (start.key, start.tensors)
    wanted = correct._float_means(graph, inputs)
    for one, op in zip(start.weighted, found.weighted, strict=True):
        np.testing.assert_array_equal(values(one), values(op))
        steps = (found.tensors[op.inputs[0]].scale or 0.0) * scales(op)
        off = correct._integer_means(found, op, inputs) - wanted[op.name] / steps
        assert np.abs(off).max() <= 0.5 + 1e-6 * np.abs(wanted[op.name] / steps).max()


def test_corrected_networks_are_nearer_to_the_float_one() -> None:
    better, whole = 0, 0
    for seed in range(12):
        recipe = networks.Recipe(seed, 2, (6, 6), (("conv", 6, "relu"),), "flatten", False)
        graph, inputs = traced(recipe)
        start = integer(graph, inputs, 2)
        ends = (start, round_adaptively(graph, start, inputs), correct_biases(graph, start, inputs))
        nearest, *others = (_error(graph, end, inputs) for end in ends)
        better += sum(other < nearest for other in others)
        whole += len(others)
    assert better >= 0.8 * whole


def _error(graph: Graph, found: Graph, inputs: torch.Tensor) -> float:
    output = found.tensors[found.output]
    assert output.scale is not None
    real = (execute.run(found, inputs) - output.zero_point) * output.scale
    return float((execute.run(graph, inputs) - real).pow(2).mean())
