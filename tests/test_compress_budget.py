"""Budgeted pruning: every budget is met, masked equals removed, the same for the same seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dse.compress.budget import Budgets, keep_share, mask_points, prune_to_budgets, soft_mask
from dse.compress.resources import FractionalNeeds, needs
from dse.errors import CompressionError
from dse.graph.channels import channel_groups, narrow
from dse.graph.ir import Graph
from dse.graph.trace import trace
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
    shares = torch.tensor([widths[group.name] / group.channels for group in groups])
    found, exact = fractional.at(shares), needs(narrow(whole, widths))
    for name in ("size_bytes", "macs"):
        assert float(found[name]) == pytest.approx(getattr(exact, name), rel=1e-4)
    # The order of operators is that of the whole network; another may be better for the narrow one.
    assert float(found["peak_memory_bytes"]) >= exact.peak_memory_bytes - 1e-2
    assert float(fractional.at(torch.ones(len(groups)))["peak_memory_bytes"]) == (
        pytest.approx(needs(whole).peak_memory_bytes)
    )


@given(st.integers(1, 60), st.floats(0.02, 0.98), st.floats(2, 12), st.integers(0, 999))
def test_the_mask_keeps_the_best(count: int, share: float, sharpness: float, seed: int) -> None:
    importance = torch.rand(count, generator=torch.Generator().manual_seed(seed)) + 0.01
    mask, slope = keep_share(importance, share, sharpness)
    kept = max(1, round(count * share))
    assert int(mask.sum()) == kept
    assert set(mask.tolist()) <= {0.0, 1.0}
    assert torch.equal(importance[mask > 0].sort().values, importance.sort().values[-kept:])
    # One more of the share is one more of the mean.
    assert float(slope.mean()) == pytest.approx(1, rel=1e-3)
    assert float(slope.min()) >= 0


@given(st.floats(0.1, 0.9), st.floats(2, 12))
def test_the_slope_is_that_of_the_soft_mask(share: float, sharpness: float) -> None:
    """Against a finite difference of p = 1 / (1 + (b / B1)^-B2) with B1 found anew."""
    importance = torch.tensor([0.1, 0.5, 0.7, 1.0, 3.0])
    logs = importance.double().log().numpy()
    _, slope = keep_share(importance, share, sharpness)
    step = 1e-4
    above, below = (soft_mask(logs, share + d, sharpness) for d in (step, -step))
    np.testing.assert_allclose(slope, (above - below) / (2 * step), rtol=1e-2, atol=1e-3)
    assert soft_mask(logs, share, sharpness).mean() == pytest.approx(share, abs=1e-6)


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
