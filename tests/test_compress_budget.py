"""Budgeted pruning: every budget is met, nothing better is left, the same for the same seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from dse.compress.budget import Search, prune_to_budgets
from dse.compress.mask_points import mask_points
from dse.errors import CompressionError
from dse.graph.allocate import best_shares
from dse.graph.channels import channel_groups, narrow
from dse.graph.ir import Graph
from dse.graph.resources import Budgets, FractionalNeeds, needs
from dse.graph.trace import trace
from dse.widths import Narrowing
from dse.workloads import Recipe, float_accuracy
from tests import networks
from tests.test_compress_schedule import network, split

RECIPE = Recipe(batch_size=20, fine_tune_epochs=12, fine_tune_learning_rate=1e-2)


def whole_model() -> nn.Module:
    return network(channels=16).eval()


def graph_of(model: nn.Module) -> Graph:
    return trace(model, (1, 6, 6))


def run(budgets: Budgets, seed: int = 0, **more: Any) -> nn.Module:
    return prune_to_budgets(whole_model(), split(), budgets, RECIPE, seed, **more)


@settings(max_examples=40)
@given(networks.recipes(), st.randoms())
def test_fractional_needs_are_exact_at_whole_widths(recipe: networks.Recipe, source: Any) -> None:
    whole = trace(networks.network(recipe)[0], recipe.shape)
    groups = channel_groups(whole)
    widths = {group.name: source.randint(1, group.channels) for group in groups}
    fractional = FractionalNeeds(whole, groups)
    shares = [widths[group.name] / group.channels for group in groups]
    found, exact = fractional.at(shares), needs(narrow(whole, widths))
    for name in ("size_bytes", "macs"):
        assert found[name].max() == pytest.approx(getattr(exact, name))
    # The order of operators is that of the whole network; another may be better for the narrow one.
    assert found["peak_memory_bytes"].max() >= exact.peak_memory_bytes - 1e-6
    assert fractional.at([1.0] * len(groups))["peak_memory_bytes"].max() == (
        pytest.approx(needs(whole).peak_memory_bytes)
    )


def small() -> FractionalNeeds:
    graph = graph_of(whole_model())
    return FractionalNeeds(graph, channel_groups(graph))


@settings(max_examples=40)
@given(networks.recipes(), st.randoms())
def test_needs_are_polynomials_of_the_shares(recipe: networks.Recipe, source: Any) -> None:
    whole = trace(networks.network(recipe)[0], recipe.shape)
    fractional = FractionalNeeds(whole, channel_groups(whole))
    shares = np.array([source.random() for _ in fractional.groups])
    for name, (constant, linear, square) in fractional.polynomials.items():
        found = constant + linear @ shares + (square @ shares) @ shares
        np.testing.assert_allclose(found, fractional.at(shares)[name], rtol=1e-9, atol=1e-6)
        assert min(constant.min(), linear.min(initial=0), square.min(initial=0)) > -1e-6


@settings(max_examples=30)
@given(st.floats(0.1, 0.9), st.floats(0.1, 0.9), st.floats(0.05, 20), st.randoms())
def test_no_shares_within_the_limits_lose_less(
    size: float, macs: float, weight: float, source: Any
) -> None:
    fractional, weights = small(), np.array([1.0, weight])
    whole = fractional.at([1.0, 1.0])
    limits = {"size_bytes": size * whole["size_bytes"][0], "macs": macs * whole["macs"][0]}
    low, high = np.array([1 / 16, 1 / 6]), np.ones(2)
    possible = {n: v for n, v in limits.items() if fractional.at(low)[n].max() <= v}
    shares = best_shares(fractional, limits, weights, low, high)
    assert (low - 1e-9 <= shares).all()
    assert (shares <= high + 1e-9).all()
    assert all(fractional.at(shares)[n].max() <= v * (1 + 1e-5) for n, v in possible.items())
    for _ in range(60):
        other = np.array([source.uniform(a, b) for a, b in zip(low, high, strict=True)])
        if all(fractional.at(other)[n].max() <= v for n, v in possible.items()):
            assert (weights / shares**2).sum() <= (weights / other**2).sum() * (1 + 1e-3)


def test_a_group_that_matters_more_keeps_more() -> None:
    fractional = small()
    limits = {"macs": 0.3 * fractional.at([1.0, 1.0])["macs"][0]}
    low, high = np.array([1 / 16, 1 / 6]), np.ones(2)
    kept = [
        best_shares(fractional, limits, np.array([1.0, weight]), low, high)[1]
        for weight in (0.1, 1, 10)
    ]
    assert kept[0] < kept[1] < kept[2]


def test_a_group_that_nothing_reads_is_worth_nothing() -> None:
    """The measured worth of a group: none when the layer behind it ignores it."""
    model = network(channels=8)
    with torch.no_grad():
        model.get_submodule("3").get_parameter("weight").zero_()
    graph = graph_of(model)
    search = Search(Narrowing(graph), Budgets(macs=1))
    search.attach(model, split().inputs[:1])
    model.train()
    loss = F.cross_entropy(model(split().inputs), split().labels)
    loss.backward()  # type: ignore[no-untyped-call]
    search(model, 1, 1000)
    assert search.worth["0"] == 0
    assert search.worth["3"] > 0


def test_masks_sit_behind_batch_normalization() -> None:
    assert mask_points(whole_model()) == {"0": "1", "3": "4", "7": "7"}


WHOLE = needs(graph_of(whole_model()))


@pytest.mark.parametrize(
    "budgets",
    [
        Budgets(peak_memory_bytes=WHOLE.peak_memory_bytes // 2),
        Budgets(size_bytes=WHOLE.size_bytes // 4),
        Budgets(macs=WHOLE.macs // 8),
        Budgets(WHOLE.peak_memory_bytes // 2, WHOLE.size_bytes // 3, WHOLE.macs // 3),
    ],
)
def test_every_budget_is_met_and_used(budgets: Budgets) -> None:
    model = whole_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pruned = prune_to_budgets(model, split(), budgets, RECIPE, 0)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    found = needs(graph_of(pruned))
    assert budgets.met(found)
    used = [getattr(found, name) / limit for name, limit in budgets.limits.items()]
    assert max(used) > 0.7
    assert float_accuracy(pruned, split()) > 0.6
    assert not any(module._forward_hooks for module in pruned.modules())


def test_budgets_that_are_met_change_nothing() -> None:
    model = whole_model()
    assert prune_to_budgets(model, split(), Budgets(macs=WHOLE.macs), RECIPE, 0) is model


def test_same_seed_same_network_and_stopping_keeps_the_budget() -> None:
    budgets = Budgets(macs=WHOLE.macs // 4)
    states = []
    for seed, noise in ((1, 1), (1, 2), (2, 1)):
        torch.manual_seed(noise)
        states.append(run(budgets, seed).state_dict()["0.weight"])
    assert torch.equal(states[0], states[1])
    assert states[0].shape != states[2].shape or not torch.equal(states[0], states[2])
    assert budgets.met(needs(graph_of(run(budgets, after_epoch=lambda *_: True))))


def test_widths_are_aligned() -> None:
    model = run(Budgets(macs=WHOLE.macs // 3), alignment=2)
    sizes = {group.name: group.channels for group in channel_groups(graph_of(whole_model()))}
    widths = {group.name: group.channels for group in channel_groups(graph_of(model))}
    assert widths != sizes
    assert all(width % 2 == 0 or width == sizes[name] for name, width in widths.items())


def test_pressure_does_not_overshoot() -> None:
    """A budget that only the first layer exceeds leaves the others nearly whole."""
    narrow_first = needs(narrow(graph_of(whole_model()), {"0": 8})).macs
    model = run(Budgets(macs=narrow_first))
    assert needs(graph_of(model)).macs > 0.75 * narrow_first


def test_what_cannot_be_met_is_told() -> None:
    with pytest.raises(CompressionError, match=r"budget macs of 3 cannot be met: the narrowest"):
        run(Budgets(macs=3))
    with pytest.raises(CompressionError, match="budget size_bytes is 0; at least 1"):
        Budgets(size_bytes=0)
    with pytest.raises(CompressionError, match="there is no budget; give one or more of peak"):
        Budgets()
