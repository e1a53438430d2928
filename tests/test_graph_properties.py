"""Laws of the graph: traced = torch, exact integers = the specification, shapes = really pruned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dse.compress import Importance, prune_channels
from dse.graph import archive, execute
from dse.graph.channels import channel_groups, narrow, with_encodings
from dse.graph.entry import input_bytes
from dse.graph.ir import DType, Graph, Lookup, Tensor, without_values
from dse.graph.numerics import (
    FUNCTIONS,
    ROUNDINGS,
    Rounding,
    quantize_multiplier,
    requantize,
    requantize_wide,
    wide_multiplier,
)
from dse.graph.quantize import quantize, quantize_weights
from dse.graph.trace import trace
from tests import reference
from tests.networks import Recipe, network, recipes

ACTIVATIONS: st.SearchStrategy[DType] = st.sampled_from(("int8", "int16"))


def quantized(
    recipe: Recipe, bits: dict[str, int] | None = None, activations: DType = "int8"
) -> tuple[Graph, torch.Tensor]:
    model, inputs = network(recipe)
    graph = trace(model, recipe.shape)
    return quantize(graph, execute.observe(graph, inputs), bits, None, activations), inputs


@given(recipes())
def test_the_traced_graph_computes_what_torch_computes(recipe: Recipe) -> None:
    model, inputs = network(recipe)
    graph = trace(model, recipe.shape)
    with torch.no_grad():
        expected = model(inputs)
    torch.testing.assert_close(execute.run(graph, inputs), expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=40)
@given(recipes(), st.sampled_from(ROUNDINGS), st.integers(2, 8), ACTIVATIONS)
def test_exact_execution_equals_the_specification(
    recipe: Recipe, rounding: Rounding, bits: int, activations: DType
) -> None:
    graph, inputs = quantized(recipe, {"first": bits, "fc": bits}, activations)
    found = execute.run(graph, inputs[:2], rounding).numpy()
    for image, row in zip(inputs[:2].numpy(), found, strict=True):
        expected = reference.interpret(graph, image.transpose(1, 2, 0), rounding)
        np.testing.assert_array_equal(row, expected)


@given(
    st.integers(-(2**31) + 1, 2**31 - 1),
    st.floats(2**-30, 0.999, allow_nan=False),
    st.sampled_from(ROUNDINGS),
)
def test_requantization_rounds_as_the_reference_does(x: int, real: float, rounding: str) -> None:
    multiplier, shift = quantize_multiplier(real)
    found = requantize(np.int64(x), np.int64(multiplier), np.int64(shift), rounding)  # type: ignore[arg-type]
    assert int(found) == reference.scale_by(x, real, rounding)
    assert abs(int(found) - x * real) <= 1.001 + abs(x) * 2**-30


@given(
    st.integers(-(2**46), 2**46),
    st.floats(2**-30, 127.9, allow_nan=False),
    st.sampled_from(ROUNDINGS),
)
def test_wide_sums_are_rounded_as_the_reference_does(
    x: int, real: float, rounding: Rounding
) -> None:
    multiplier, shift = wide_multiplier(real, rounding)
    found = int(requantize_wide(np.int64(x), np.int64(multiplier), np.int64(shift)))
    assert found == reference.scale_sum(x, real, Tensor("y", (1,), "int16", 1.0), rounding)
    # Fifteen bits hold a factor to one part in 2^15, the last being cut off at the top.
    assert abs(found - x * real) <= 0.501 + abs(x) * real * 2**-14


@given(recipes(), ACTIVATIONS, st.data())
def test_inputs_inside_the_range_are_off_by_at_most_half_a_step(
    recipe: Recipe, activations: DType, data: st.DataObject
) -> None:
    graph, inputs = quantized(recipe, activations=activations)
    tensor = graph.tensors[graph.input]
    assert tensor.scale is not None
    if activations == "int16":
        assert all(tensor.zero_point == 0 for tensor in graph.tensors.values())
    share = data.draw(st.floats(0, 1))
    numbers = input_bytes(graph, inputs * share).view(activations).astype(np.float64)
    exact = (inputs * share).movedim(1, -1).reshape(len(inputs), -1).double().numpy()
    error = np.abs((numbers - tensor.zero_point) * tensor.scale - exact)
    assert error.max() <= 0.500001 * tensor.scale


@given(recipes(), st.integers(2, 8))
def test_quantization_error_is_at_most_half_a_step_inside_the_clipping_range(
    recipe: Recipe, bits: int
) -> None:
    model, _ = network(recipe)
    weights = trace(model, recipe.shape).weighted[0].weight.values
    assert weights is not None
    integers, scales = quantize_weights(weights, bits)
    limit = 2 ** (bits - 1) - 1
    assert np.abs(integers).max() <= limit
    steps = scales.reshape(-1, 1, 1, 1)
    inside = np.abs(weights) <= steps * limit
    error = np.abs(integers * steps - weights)
    assert (error[inside] <= (np.broadcast_to(steps, weights.shape) * 0.500001)[inside]).all()
    if bits == 8:
        assert (error <= steps * 0.500001).all()


@given(recipes(), st.data())
def test_shapes_alone_equal_the_really_pruned_and_quantized_network(
    recipe: Recipe, data: st.DataObject
) -> None:
    model, inputs = network(recipe)
    graph = trace(model, recipe.shape)
    groups = channel_groups(graph)
    widths = {g.name: data.draw(st.integers(1, g.channels), label=g.name) for g in groups}
    names = [op.name for op in graph.weighted]
    bits = {name: data.draw(st.integers(2, 8), label=name) for name in names}
    predicted = with_encodings(narrow(graph, widths), bits, {})

    pruned = prune_channels(model, inputs[:1], widths, Importance("l1", 0, None))
    real = trace(pruned, recipe.shape)
    real = quantize(real, execute.observe(real, inputs), bits)
    assert predicted.key == without_values(real).key == real.key
    assert (predicted.macs, predicted.parameters) == (real.macs, real.parameters)


@given(recipes(), ACTIVATIONS)
def test_a_graph_survives_its_archive(recipe: Recipe, activations: DType) -> None:
    graph, inputs = quantized(recipe, activations=activations)
    content = archive.to_bytes(graph)
    again = archive.from_bytes(content)
    assert again.key == graph.key
    assert torch.equal(execute.run(again, inputs), execute.run(graph, inputs))
    assert archive.to_bytes(again) == content


@given(recipes(), ACTIVATIONS)
def test_integers_stay_close_to_float(recipe: Recipe, activations: DType) -> None:
    model, inputs = network(recipe)
    graph = trace(model, recipe.shape)
    integer = quantize(graph, execute.observe(graph, inputs), activations=activations)
    output = integer.tensors[integer.output]
    assert output.scale is not None
    real = (execute.run(integer, inputs) - output.zero_point).double() * output.scale
    expected = execute.run(graph, inputs).double()
    span = max(float(expected.abs().max()), 0.1)
    # What is left with int16 activations comes from weights of 8 bits.
    assert float((real - expected).abs().max()) <= (0.35 if activations == "int8" else 0.12) * span


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_both_contracts_differ_somewhere(rounding: Rounding) -> None:
    """If they never did, the choice of contract would be decoration."""
    recipe = Recipe(3, 2, (7, 7), (("conv", 6, "relu"), ("residual", 4, "none")), "flatten", False)
    graph, _ = quantized(recipe)
    inputs = torch.randn(400, *recipe.shape, generator=torch.Generator().manual_seed(5))
    one, other = (execute.run(graph, inputs, r) for r in ROUNDINGS)
    assert 0 < (one != other).float().mean() < 0.5
    assert (one - other).abs().max() <= 3


@settings(max_examples=20)
@given(
    st.floats(1e-6, 3.0),
    st.floats(1e-5, 1e-3),
    st.sampled_from(("sigmoid", "tanh", "relu", "relu6", "hardswish", "hardsigmoid")),
    st.sampled_from(ROUNDINGS),
)
def test_every_int16_look_up_is_the_specifications_and_near_its_function(
    scale: float, out: float, function: Any, rounding: Rounding
) -> None:
    source, target = (
        Tensor(name, (4096,), "int16", float(np.float32(step)))
        for name, step in (("x", scale), ("y", out))
    )
    op = Lookup("l", ("x",), "y", function)
    graph = Graph("one", {"x": source, "y": target}, (op,), "x", "y")
    values = np.arange(-32768, 32768, 16)
    real = values * (source.scale or 1.0)
    found = execute.run(graph, torch.from_numpy(real[None]), rounding).numpy()[0]
    every = slice(0, None, 64)
    expected = reference.interpret(one_of(graph, 64), real[every].astype(np.float32), rounding)
    np.testing.assert_array_equal(found[every], expected)
    steps = np.array([FUNCTIONS[function](x) for x in real]) / (target.scale or 1.0)
    # A table's step is 128 inputs; between two entries the function bends at most so much.
    bend = 3 * 2.0**-15 / out if function in ("sigmoid", "tanh") else 0.0
    if function.startswith("hard"):
        bend = 64 * scale / out
    inside = np.clip(steps, -32768, 32767)
    assert np.abs(found - inside).max() <= 1.01 + bend + np.abs(inside).max() * 2.0**-23


def one_of(graph: Graph, size: int) -> Graph:
    """The same operator on fewer elements."""
    tensors = {name: replace(tensor, shape=(size,)) for name, tensor in graph.tensors.items()}
    return replace(graph, tensors=tensors)
