"""Compaction: fewer channels, the same bytes under both contracts; the published figures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

from dse.graph.channels import channel_groups
from dse.graph.compact import compact, dead_channels
from dse.graph.execute import observe, quantize_input, run
from dse.graph.ir import Conv2D, FullyConnected, Graph, WeightedOp, without_values
from dse.graph.numerics import ROUNDINGS
from dse.graph.quantize import quantize
from dse.graph.tflite_reader import read_tflite
from dse.graph.trace import trace
from tests.calibration_models import model_file
from tests.networks import Recipe, network, recipes


def zeroed(op: WeightedOp, draw: np.random.Generator, rows: float, columns: float) -> WeightedOp:
    """Some output channels, and some input channels, without a weight; biases stay."""
    assert op.weight.values is not None
    values = op.weight.values.copy()
    values[draw.random(values.shape[0]) < rows] = 0
    values[..., draw.random(values.shape[-1]) < columns] = 0
    return replace(op, weight=replace(op.weight, values=values))


def with_dead_channels(recipe: Recipe, rows: float, columns: float) -> tuple[Graph, torch.Tensor]:
    model, inputs = network(recipe)
    graph = trace(model.eval(), recipe.shape, "net")
    exact = quantize(graph, observe(graph, inputs))
    draw = np.random.default_rng(recipe.seed)
    ops = tuple(
        zeroed(op, draw, rows, columns) if isinstance(op, Conv2D | FullyConnected) else op
        for op in exact.ops
    )
    return replace(exact, ops=ops), inputs


SHARES = st.sampled_from([0.0, 0.3, 0.6, 1.0])


@settings(max_examples=60)
@given(recipes(), SHARES, SHARES)
def test_the_same_bytes_with_fewer_channels(recipe: Recipe, rows: float, columns: float) -> None:
    graph, inputs = with_dead_channels(recipe, rows, columns)
    found = compact(graph)
    event(f"shrinks: {found.macs < graph.macs}")
    assert found.macs <= graph.macs
    assert found.parameters <= graph.parameters
    for rounding in ROUNDINGS:
        assert (run(found, inputs, rounding) == run(graph, inputs, rounding)).all()
    assert compact(found) is found
    assert all(op.weight.values is not None for op in found.weighted)
    assert dead_channels(graph) == sum(
        one.weight.shape[0] - other.weight.shape[0]
        for one, other in zip(graph.weighted, found.weighted, strict=True)
    )


@settings(max_examples=25)
@given(recipes(), st.integers(0, 100))
def test_a_dead_group_goes_wherever_nothing_is_padded(recipe: Recipe, pick: int) -> None:
    """Every output channel of a group but the first is zero, and nothing reads it: all are gone."""
    graph, _ = with_dead_channels(recipe, 0.0, 0.0)
    groups = channel_groups(without_values(graph))
    if not groups:
        return
    group = groups[pick % len(groups)]
    ops = []
    for op in graph.ops:
        if op.name in group.producers:
            assert isinstance(op, Conv2D | FullyConnected)
            assert op.weight.values is not None
            assert op.bias is not None
            values, bias = op.weight.values.copy(), op.bias.copy()
            values[1:] = 0
            # A bias of zero gives the output's zero point, which padding does not disturb.
            bias[1:] = 0
            op = replace(op, weight=replace(op.weight, values=values), bias=bias)
        ops.append(op)
    found = compact(replace(graph, ops=tuple(ops)))
    kinds = {op.kind for op in graph.ops} & {"mul", "lookup", "add", "concat"}
    if kinds or any(op.name == group.name and op.weight.shape[0] == 1 for op in graph.weighted):
        return  # sums between scales, tables and products have zero points of their own
    for name in group.producers:
        op = found.op(name)
        assert isinstance(op, Conv2D | FullyConnected)
        assert op.weight.shape[0] == 1


@settings(max_examples=25)
@given(recipes())
def test_a_network_without_dead_channels_is_returned_as_it_is(recipe: Recipe) -> None:
    graph, _ = with_dead_channels(recipe, 0.0, 0.0)
    rows = [np.asarray(op.weight.values).reshape(op.weight.shape[0], -1) for op in graph.weighted]
    if all(row.any(axis=1).all() for row in rows):
        assert compact(graph) is graph
    assert compact(without_values(graph)) is not None


def test_shapes_and_floats_are_left_alone() -> None:
    recipe = Recipe(0, 1, (5, 5), (("conv", 4, "relu"),), "flatten", False)
    model, _ = network(recipe)
    graph = trace(model.eval(), recipe.shape, "net")
    exact, _ = with_dead_channels(recipe, 0.6, 0.0)
    assert compact(graph) is graph
    shapes = without_values(exact)
    assert compact(shapes) is shapes
    assert compact(exact) is not exact


def test_visual_wake_words_shrinks_to_the_published_macs() -> None:
    """7,489,664 nominal; 971 of the 2,738 channels are zero (calibration README)."""
    graph = read_tflite(model_file("vww"), "vww")
    zero = sum(
        int((~np.asarray(op.weight.values).reshape(op.weight.shape[0], -1).any(axis=1)).sum())
        for op in graph.weighted
    )
    assert zero == 971
    found = compact(graph)
    assert (graph.macs, found.macs) == (7_489_664, 3_742_091)
    tensor = graph.tensors[graph.input]
    inputs = torch.rand(6, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 255 / 256
    assert len(set(quantize_input(tensor, inputs).reshape(-1).tolist())) > 200
    for rounding in ROUNDINGS:
        assert (run(found, inputs, rounding) == run(graph, inputs, rounding)).all()


@pytest.mark.parametrize("name", ["ad", "ic", "kws", "sww"])
def test_the_other_models_have_no_dead_channel(name: str) -> None:
    graph = read_tflite(model_file(name), name)
    assert compact(graph) is graph
