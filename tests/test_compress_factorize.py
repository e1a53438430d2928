"""Low-rank factors: the nearest product, exactly the shapes that costs were computed for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dse.compress import Compression, compress, factorize, magnitude_masks
from dse.errors import CompressionError
from dse.graph import execute
from dse.graph.channels import narrow, with_encodings
from dse.graph.factor import (
    METHODS,
    differs,
    factor_shapes,
    factorizable,
    factorize_shapes,
    matrix_shape,
    saves,
    spread,
)
from dse.graph.ir import Conv2D, FullyConnected, Weight, without_values
from dse.graph.quantize import quantize
from dse.graph.trace import trace
from tests import networks
from tests.test_compress_schedule import RECIPE, network, split

METHOD = st.sampled_from(METHODS)


@st.composite
def factorized(draw: st.DrawFn) -> tuple[networks.Recipe, dict[str, int], str]:
    """A random network, ranks of some of its layers, and how they are factorized."""
    recipe, method = draw(networks.recipes()), draw(METHOD)
    graph = trace(networks.network(recipe)[0], recipe.shape)
    ranks = {}
    for op in graph.weighted:
        if factorizable(op) and draw(st.booleans()):
            ranks[op.name] = draw(st.integers(1, min(matrix_shape(op.weight.shape, method))))
    return recipe, ranks, method


@settings(deadline=None, max_examples=60)
@given(factorized())
def test_shapes_are_those_of_the_network_that_was_really_split(
    found: tuple[networks.Recipe, dict[str, int], str],
) -> None:
    recipe, ranks, method = found
    model, _ = networks.network(recipe)
    graph = trace(model, recipe.shape)
    traced = trace(factorize(model, ranks, method), recipe.shape)
    assert traced.key == factorize_shapes(without_values(graph), ranks, method).key
    encoded = with_encodings(traced, spread(dict.fromkeys(ranks, 4), ranks), {})
    assert sum(op.weight.bits == 4 for op in encoded.weighted) == 2 * len(ranks)


@settings(deadline=None, max_examples=40)
@given(networks.recipes(), METHOD)
def test_the_whole_rank_computes_the_same(recipe: networks.Recipe, method: str) -> None:
    model, inputs = networks.network(recipe)
    layers = {op.name: op for op in trace(model, recipe.shape).weighted if factorizable(op)}
    ranks = {n: min(matrix_shape(op.weight.shape, method)) for n, op in layers.items()}
    before = model(inputs)
    after = factorize(model, ranks, method)(inputs)
    scale = float(before.detach().abs().max()) + 1
    assert torch.allclose(before, after, atol=1e-4 * scale)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
        nn.Conv2d(4, 6, 3, padding="same", bias=False),
        nn.Conv1d(4, 6, 5, stride=2, padding=2),
        nn.Linear(12, 9),
        nn.Conv2d(6, 5, 1),
    ],
)
def test_the_product_is_the_nearest_of_its_rank(layer: nn.Module, method: str) -> None:
    """Eckart and Young: the squared error is that of the singular values left out."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    size: tuple[int, ...] = (
        (12,) if isinstance(layer, nn.Linear) else (layer.get_parameter("weight").shape[1],)
    )
    size += {nn.Conv2d: (9, 9), nn.Conv1d: (9,)}.get(type(layer), ())  # type: ignore[arg-type]
    inputs = torch.randn(4, *size, generator=generator)
    whole = nn.Sequential(layer)
    split_up = factorize(whole, {"0": 3}, method)
    assert split_up(inputs).shape == whole(inputs).shape
    matrix = _matrix(layer.get_parameter("weight").detach(), method)
    product = _product(split_up.get_submodule("0"), method, matrix.shape)
    left_out = torch.linalg.svdvals(matrix.double())[3:]
    error = ((product - matrix.double()) ** 2).sum()
    assert float(error) == pytest.approx(float((left_out**2).sum()), rel=1e-4)


def _matrix(weight: torch.Tensor, method: str) -> torch.Tensor:
    if method == "spatial" and weight.dim() > 2:
        weight = weight if weight.dim() == 4 else weight[:, :, None]
        return weight.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)
    return weight.flatten(1)


def _product(pair: nn.Module, method: str, shape: torch.Size) -> torch.Tensor:
    one, other = (pair.get_parameter(f"{n}.weight").detach().double() for n in ("reduce", "expand"))
    if method == "spatial" and one.dim() > 2:
        row = other.reshape(other.shape[0], len(one), -1).permute(1, 0, 2).flatten(1)
        return one.flatten(1).T @ row
    return other.flatten(1) @ one.flatten(1)


@settings(deadline=None, max_examples=25)
@given(
    widths=st.fixed_dictionaries({}, optional={"0": st.integers(1, 8), "3": st.integers(1, 6)}),
    densities=st.fixed_dictionaries({}, optional={n: st.floats(0.05, 1) for n in ("0", "3", "7")}),
    ranked=st.fixed_dictionaries({}, optional={n: st.integers(1, 3) for n in ("0", "3", "7")}),
    method=METHOD,
    schedule=st.sampled_from(["one-shot", "agp"]),
)
def test_widths_ranks_and_counts_are_exact_after_training(
    widths: dict[str, int],
    densities: dict[str, float],
    ranked: dict[str, int],
    method: str,
    schedule: str,
) -> None:
    model = network()
    narrowed = narrow(trace(model.eval(), (1, 6, 6)), widths)
    ranks = {
        op.name: min(ranked[op.name], *matrix_shape(op.weight.shape, method))
        for op in narrowed.weighted
        if op.name in ranked
    }
    plan = Compression(widths, densities, "l1", schedule, ranks=ranks, factors=method)
    traced = trace(compress(model, split(), plan, RECIPE, 0), (1, 6, 6))
    kept = spread(densities, ranks)
    expected = with_encodings(factorize_shapes(narrowed, ranks, method), {}, kept, "float32")
    for op, wanted in zip(traced.weighted, expected.weighted, strict=True):
        assert (op.name, op.weight.shape) == (wanted.name, wanted.weight.shape)
        assert op.weight.values is not None
        if op.name in kept:
            assert int(np.count_nonzero(op.weight.values)) <= wanted.weight.kept


def test_the_same_seed_gives_the_same_weights() -> None:
    plan = Compression({"0": 4}, ranks={"3": 2, "7": 2})
    states = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        states.append(compress(network(), split(), plan, RECIPE, 0).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_torch_s_random_state_stays_as_it_was() -> None:
    model = network()
    before = torch.random.get_rng_state()
    factorize(model, {"0": 2, "3": 2, "7": 2}, "spatial")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_no_rank_is_the_network_itself() -> None:
    model = network()
    assert compress(model, split(), Compression(ranks={}), RECIPE, 0) is model
    graph = without_values(trace(model.eval(), (1, 6, 6)))
    assert factorize_shapes(graph, {}, "channel") is graph


@settings(deadline=None, max_examples=20)
@given(factorized())
def test_the_integer_network_stays_near_the_float_one(
    found: tuple[networks.Recipe, dict[str, int], str],
) -> None:
    recipe, ranks, method = found
    model, inputs = networks.network(recipe)
    graph = trace(factorize(model, ranks, method), recipe.shape)
    integer = quantize(graph, execute.observe(graph, inputs))
    output = integer.tensors[integer.output]
    assert output.scale is not None
    exact = (execute.run(integer, inputs) - output.zero_point) * output.scale
    plain = execute.run(graph, inputs)
    spread_of = float((plain.max() - plain.min()).clamp(min=1e-3))
    assert float((plain - exact).abs().mean()) <= 0.1 * spread_of + output.scale


@given(
    st.tuples(*[st.integers(1, 40)] * 2) | st.tuples(*[st.integers(1, 12)] * 4),
    st.integers(1, 40),
    METHOD,
)
def test_saving_counts_the_parameters_of_both(
    shape: tuple[int, ...], rank: int, method: str
) -> None:
    one, other = factor_shapes(shape, rank, method)
    rows, columns = matrix_shape(shape, method)
    assert math.prod(one) + math.prod(other) == rank * (rows + columns)
    assert rows * columns == math.prod(shape)
    assert saves(shape, rank, method) == (rank * (rows + columns + 1) < rows * columns)
    op: Conv2D | FullyConnected = FullyConnected("l", ("i",), "o", Weight(shape))
    if len(shape) == 4:
        op = Conv2D("l", ("i",), "o", Weight(shape))
    if method == "spatial" and not differs(op, method):
        assert factor_shapes(shape, rank, method) == factor_shapes(shape, rank, "channel")


@pytest.mark.parametrize(
    ("ranks", "method", "message"),
    [
        ({"1": 2}, "channel", "layer '1' has no low-rank factors"),
        ({"0": 0}, "channel", "layer '0' cannot have rank 0; at least 1 is needed"),
        ({"0": 9}, "channel", "layer '0' cannot have rank 9; allowed: 1 to 8"),
        ({"0": 4}, "spatial", "layer '0' cannot have rank 4; allowed: 1 to 3"),
        ({"0": 2}, "diagonal", "unknown factors 'diagonal'"),
    ],
)
def test_what_cannot_be_factorized(ranks: dict[str, int], method: str, message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        factorize(network(), ranks, method)


def test_depthwise_layers_have_no_factors() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(CompressionError, match="layer '0' has no low-rank factors"):
        factorize(model, {"0": 1})


def test_masks_reach_both_factors() -> None:
    model = factorize(network(), {"7": 2})
    masks = magnitude_masks(model, {"7.reduce": 0.5, "7.expand": 0.5})
    assert masks.counts == {"7.reduce": 24, "7.expand": 3}
