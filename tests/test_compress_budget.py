"""Budgeted pruning: every budget is met, masked equals removed, the same for the same seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dse.compress.budget import Budgets, keep_share, prune_to_budgets
from dse.compress.widths import Masked, needs, shares_of
from dse.errors import CompressionError
from dse.graph import execute
from dse.graph.channels import channel_groups, narrow
from dse.graph.ir import Graph
from dse.graph.trace import trace
from dse.workloads import Recipe
from tests import networks
from tests.test_compress_schedule import network, split

RECIPE = Recipe(batch_size=20, fine_tune_epochs=12, fine_tune_learning_rate=1e-2)


def graph() -> Graph:
    return trace(network(channels=16).eval(), (1, 6, 6))


def run(budgets: Budgets, seed: int = 0, **more: Any) -> Any:
    return prune_to_budgets(graph(), split(), budgets, RECIPE, seed, **more)


@settings(max_examples=40)
@given(networks.recipes(), st.randoms())
def test_masked_channels_can_be_removed_and_need_what_was_said(
    recipe: networks.Recipe, source: Any
) -> None:
    model, inputs = networks.network(recipe)
    whole = trace(model, recipe.shape)
    groups = channel_groups(whole)
    widths = {group.name: source.randint(1, group.channels) for group in groups}
    kept = {}
    for group in groups:
        kept[group.name] = torch.zeros(group.channels)
        kept[group.name][source.sample(range(group.channels), widths[group.name])] = 1
    masked = Masked(whole, lambda _: kept)
    narrowed = masked.narrowed(kept)
    with torch.no_grad():
        expected = masked(inputs)
    torch.testing.assert_close(execute.run(narrowed, inputs), expected, rtol=1e-4, atol=1e-5)
    assert narrowed.key == narrow(whole, widths).key
    shares = torch.tensor([widths[group.name] / group.channels for group in groups])
    found, exact = shares_of(whole, groups, shares), needs(narrowed)
    for name in ("size_bytes", "macs"):
        assert float(found[name]) == pytest.approx(getattr(exact, name), rel=1e-4)
    # The order of operators is that of the whole network; another may be better for the narrow one.
    assert float(found["peak_memory_bytes"]) >= exact.peak_memory_bytes - 1e-2
    assert float(shares_of(whole, groups, torch.ones(len(groups)))["peak_memory_bytes"]) == (
        pytest.approx(needs(whole).peak_memory_bytes)
    )


@given(st.integers(1, 60), st.floats(0.02, 0.98), st.floats(2, 12), st.integers(0, 999))
def test_the_mask_keeps_the_best_and_its_slope_is_that_of_the_share(
    count: int, share: float, sharpness: float, seed: int
) -> None:
    importance = torch.rand(count, generator=torch.Generator().manual_seed(seed)) + 0.01
    variable = torch.tensor(share, requires_grad=True)
    mask = keep_share(importance, variable, sharpness)
    kept = max(1, round(count * variable.item()))
    assert int(mask.sum()) == kept
    assert set(mask.tolist()) <= {0.0, 1.0}
    assert torch.equal(importance[mask > 0].sort().values, importance.sort().values[-kept:])
    # One more share is one more of the mean: dp / dshare has mean 1, and is largest at the edge.
    mask.sum().backward()  # type: ignore[no-untyped-call]
    assert variable.grad is not None
    assert variable.grad.item() == pytest.approx(count, rel=1e-3)


def test_the_slope_is_that_of_the_soft_mask() -> None:
    """Against a finite difference of p = 1 / (1 + (b / B1)^-B2) with B1 found anew."""
    from dse.compress.budget import _root

    importance = torch.tensor([0.1, 0.5, 0.7, 1.0, 3.0], dtype=torch.float64)

    def soft(share: float) -> torch.Tensor:
        edge = _root(importance.log(), share, 5.0)
        return 1 / (1 + (importance / np.exp(edge)) ** -5.0)

    share = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(keep_share(importance, share, 5.0)[2], share)
    difference = (soft(0.601) - soft(0.599))[2] / 0.002
    assert slope.item() == pytest.approx(float(difference), rel=1e-3)
    assert float(soft(0.6).mean()) == pytest.approx(0.6, abs=1e-6)


WHOLE = needs(graph())


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
    found = run(budgets)
    exact = needs(found.graph)
    assert budgets.met(exact)
    assert found.graph.key == narrow(graph(), found.widths).key
    used = [getattr(exact, name) / limit for name, limit in budgets.limits.items()]
    assert max(used) > 0.7
    accuracy = execute.accuracy(found.graph, split().inputs, split().labels)
    assert accuracy > 0.6


def test_budgets_that_are_met_change_nothing() -> None:
    whole = graph()
    found = prune_to_budgets(whole, split(), Budgets(macs=WHOLE.macs), RECIPE, 0)
    assert found.graph is whole
    assert found.widths == {}


def test_same_seed_same_network_and_stopping_keeps_the_budget() -> None:
    budgets = Budgets(macs=WHOLE.macs // 4)
    graphs = []
    for seed, noise in ((1, 1), (1, 2), (2, 1)):
        torch.manual_seed(noise)
        graphs.append(run(budgets, seed).graph)
    values = [graph.weighted[0].weight.values for graph in graphs]
    np.testing.assert_array_equal(values[0], values[1])
    assert values[0].shape != values[2].shape or not np.array_equal(values[0], values[2])
    assert budgets.met(needs(run(budgets, after_epoch=lambda *_: True).graph))


def test_widths_are_aligned() -> None:
    found = run(Budgets(macs=WHOLE.macs // 3), alignment=4)
    sizes = {group.name: group.channels for group in channel_groups(graph())}
    assert all(width % 4 == 0 or width == sizes[name] for name, width in found.widths.items())


def test_what_cannot_be_met_is_told() -> None:
    with pytest.raises(CompressionError, match=r"budget macs of 3 cannot be met: the narrowest"):
        run(Budgets(macs=3))
    with pytest.raises(CompressionError, match="budget size_bytes is 0; at least 1"):
        Budgets(size_bytes=0)
    with pytest.raises(CompressionError, match="there is no budget; give one or more of peak"):
        Budgets()
