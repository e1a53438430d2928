"""Laws of the graph: traced = torch, exact integers = the specification, shapes = really pruned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dse.compress import Importance, prune_channels
from dse.graph import archive, execute
from dse.graph.channels import channel_groups, narrow, with_encodings
from dse.graph.ir import Graph, without_values
from dse.graph.numerics import ROUNDINGS, Rounding, quantize_multiplier, requantize
from dse.graph.quantize import quantize, quantize_weights
from dse.graph.trace import trace
from tests import reference
from tests.networks import Recipe, network, recipes


def quantized(recipe: Recipe, bits: dict[str, int] | None = None) -> tuple[Graph, torch.Tensor]:
    model, inputs = network(recipe)
    graph = trace(model, recipe.shape)
    return quantize(graph, execute.observe(graph, inputs), bits), inputs


@given(recipes())
def test_the_traced_graph_computes_what_torch_computes(recipe: Recipe) -> None:
    model, inputs = network(recipe)
    graph = trace(model, recipe.shape)
    with torch.no_grad():
        expected = model(inputs)
    torch.testing.assert_close(execute.run(graph, inputs), expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=40)
@given(recipes(), st.sampled_from(ROUNDINGS), st.integers(2, 8))
def test_exact_execution_equals_the_specification(
    recipe: Recipe, rounding: Rounding, bits: int
) -> None:
    graph, inputs = quantized(recipe, {"first": bits, "fc": bits})
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


@given(recipes())
def test_a_graph_survives_its_archive(recipe: Recipe) -> None:
    graph, inputs = quantized(recipe)
    content = archive.to_bytes(graph)
    again = archive.from_bytes(content)
    assert again.key == graph.key
    assert torch.equal(execute.run(again, inputs), execute.run(graph, inputs))
    assert archive.to_bytes(again) == content


@given(recipes())
def test_int8_stays_close_to_float(recipe: Recipe) -> None:
    model, inputs = network(recipe)
    graph = trace(model, recipe.shape)
    integer = quantize(graph, execute.observe(graph, inputs))
    output = integer.tensors[integer.output]
    assert output.scale is not None
    real = (execute.run(integer, inputs) - output.zero_point).double() * output.scale
    expected = execute.run(graph, inputs).double()
    span = max(float(expected.abs().max()), 0.1)
    assert float((real - expected).abs().max()) <= 0.35 * span


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_both_contracts_differ_somewhere(rounding: Rounding) -> None:
    """If they never did, the choice of contract would be decoration."""
    recipe = Recipe(3, 2, (7, 7), (("conv", 6, "relu"), ("residual", 4, "none")), "flatten", False)
    graph, _ = quantized(recipe)
    inputs = torch.randn(400, *recipe.shape, generator=torch.Generator().manual_seed(5))
    one, other = (execute.run(graph, inputs, r) for r in ROUNDINGS)
    assert 0 < (one != other).float().mean() < 0.5
    assert (one - other).abs().max() <= 3
