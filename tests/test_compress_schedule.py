"""Schedules and masks: exact at the end, held by training, the same for the same seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dse.compress import CRITERIA, SCHEDULES, Compression, Ramp, compress, magnitude_masks
from dse.compress.schedule import HIDDEN, _Returning
from dse.errors import CompressionError
from dse.workloads import Recipe, Split, find_workload, float_accuracy, train_baseline

RECIPE = Recipe(batch_size=20, fine_tune_epochs=2, fine_tune_learning_rate=1e-2)


def split() -> Split:
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(100) % 3
    inputs = torch.randn(100, 1, 6, 6, generator=generator) * 0.3
    return Split(inputs + labels.reshape(-1, 1, 1, 1).float(), labels)


def network(channels: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(),
        nn.Conv2d(channels, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip


def run(plan: Compression, model: nn.Module | None = None, seed: int = 0, **more: Any) -> nn.Module:
    return compress(model or network(), split(), plan, RECIPE, seed, **more)


def weight(model: nn.Module, name: str) -> torch.Tensor:
    return model.get_submodule(name).get_parameter("weight")


ramps = st.builds(
    lambda ends, updates: Ramp(min(ends), max(ends), updates),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.integers(1, 30),
)


@given(ramp=ramps, total=st.integers(1, 2000))
def test_ramp_rises_to_its_goal(ramp: Ramp, total: int) -> None:
    shares = [ramp.share(update) for update in range(ramp.updates)]
    assert shares == sorted(shares)
    assert shares[0] > 0
    assert shares[-1] == 1
    steps = ramp.steps(total)
    assert len(steps) == ramp.updates
    assert list(steps) == sorted(steps)
    assert 0 <= steps[0] <= steps[-1] <= total
    if ramp.updates > 1:
        assert (steps[0], steps[-1]) == (round(ramp.start * total), round(ramp.end * total))


def test_ramp_is_cubic() -> None:
    # Zhu & Gupta, equation 1, with an initial sparsity of 0: half way an eighth is left to remove.
    assert Ramp(updates=10).share(4) == pytest.approx(1 - 0.5**3)


@settings(deadline=None, max_examples=25)
@given(
    widths=st.fixed_dictionaries({}, optional={"0": st.integers(1, 8), "3": st.integers(1, 6)}),
    densities=st.fixed_dictionaries(
        {}, optional={name: st.floats(0.01, 1) for name in ("0", "3", "7")}
    ),
    schedule=st.sampled_from(SCHEDULES),
    criterion=st.sampled_from(["l1", "bn", "taylor", "apoz", "random"]),
    ramp=ramps,
)
def test_widths_and_counts_are_exact_after_training(
    widths: dict[str, int], densities: dict[str, float], schedule: str, criterion: str, ramp: Ramp
) -> None:
    plan = Compression(widths, densities, criterion, schedule, ramp)
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pruned = run(plan, model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    for name, width in widths.items():
        assert len(weight(pruned, name)) == width
    assert len(weight(pruned, "7")) == 3
    if pruned is model:
        return
    for name, density in densities.items():
        size = weight(pruned, name).numel()
        assert int((weight(pruned, name) != 0).sum()) == max(1, round(density * size))


def test_nothing_to_remove_returns_the_model_itself() -> None:
    model = network()
    assert run(Compression(), model) is model
    assert run(Compression({"0": 8, "3": 6}, {"7": 1.0}, "bn", "agp"), model) is model


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_same_seed_same_weights(schedule: str, criterion: str) -> None:
    plan = Compression({"0": 4, "3": 3}, {"3": 0.5}, criterion, schedule)
    states = []
    for seed, noise in ((1, 1), (1, 2), (2, 1)):
        torch.manual_seed(noise)
        states.append(run(plan, seed=seed).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["0.weight"], states[2]["0.weight"])


def test_agp_narrows_step_by_step_and_training_goes_on() -> None:
    widths: list[int] = []
    model = network(channels=32)
    plan = Compression({"0": 2}, {}, "l1", "agp", Ramp(0.0, 0.8, 5))
    handle = nn.Module.register_forward_pre_hook

    def note(module: nn.Module, inputs: Any) -> None:
        if module.training:
            widths.append(len(weight(module, "0")))

    handle(model, note)
    pruned = run(plan, model)
    assert widths == sorted(widths, reverse=True)
    assert len(widths) == 10
    assert sorted(set(widths), reverse=True) == [18, 9, 4, 3, 2]
    assert float_accuracy(pruned, split()) > 0.6


def test_what_was_removed_may_return_until_the_ramp_ends() -> None:
    """A channel that is hidden first, and important later, is kept; a weight likewise."""
    model = network(channels=8)
    with torch.no_grad():
        weight(model, "0")[0] *= 1e-2
        model.get_submodule("1").get_parameter("weight")[0] = 1e-2
        weight(model, "3")[:, 0] *= 1e-2
        weight(model, "7")[:, 0] = 1e-4
    plan = Compression({"0": 1}, {"7": 0.5}, "l1", "dynamic", Ramp(0, 1, 3))
    pruning = _Returning(model, split(), plan, 0)
    model.train()
    assert not pruning(model, 0, 10)  # hidden, not gone
    assert len(weight(model, "0")) == 8
    assert pruning.kept["0"][0] == torch.tensor(HIDDEN)
    assert (pruning.kept["0"] == 1).sum() == 4
    assert not weight(model, "7")[:, 0].any()
    with torch.no_grad():  # as if training had made it important
        weight(model, "0")[0] += 50
        weight(model, "7")[:, 0] += 50
    pruning(model, 5, 10)
    assert pruning.kept["0"][0] == 1
    assert (pruning.kept["0"] == 1).sum() == 2
    assert pruning(model, 10, 10)
    assert len(weight(model, "0")) == 1
    assert float(weight(model, "0").detach().mean()) > 10
    assert bool((weight(model, "7")[:, 0] > 10).all())
    assert not any(module._forward_hooks for module in model.modules())


def test_gradients_of_hidden_channels_reach_their_weights() -> None:
    model = network(channels=4)
    plan = Compression({"0": 1}, {}, "l1", "dynamic", Ramp(0, 1, 2))
    pruning = _Returning(model, split(), plan, 0)
    model.train()
    pruning(model, 0, 10)
    hidden = [index for index, kept in enumerate(pruning.kept["0"].tolist()) if kept != 1]
    assert len(hidden) > 0
    scores = model(split().inputs)
    torch.nn.functional.cross_entropy(scores, split().labels).backward()  # type: ignore[no-untyped-call]
    gradient = weight(model, "0").grad
    assert gradient is not None
    assert bool((gradient[hidden].abs().sum((1, 2, 3)) > 0).all())


def test_stopped_training_still_has_the_asked_size() -> None:
    plan = Compression({"0": 2}, {"3": 0.25}, "l1", "agp", Ramp(0.2, 1.0, 6))
    pruned = run(plan, after_epoch=lambda *_: True)
    assert len(weight(pruned, "0")) == 2
    # A weight that is kept may happen to be zero.
    assert 0 <= round(0.25 * 6 * 2 * 9) - int((weight(pruned, "3") != 0).sum()) <= 2


def test_masks_keep_the_largest_and_ties_go_by_index() -> None:
    model = nn.Sequential(nn.Linear(6, 1))
    with torch.no_grad():
        weight(model, "0").copy_(torch.tensor([[1.0, -3, 2, -2, 2, 0]]))
    masks = magnitude_masks(model, {"0": 0.5})
    assert masks.kept["0"].tolist() == [[False, True, True, True, False, False]]
    assert masks.counts == {"0": 3}
    masks.apply(model)
    assert weight(model, "0").tolist() == [[0, -3, 2, -2, 0, 0]]
    assert magnitude_masks(model, {"0": 0.001}).counts == {"0": 1}


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"criterion": "l3"}, "unknown criterion 'l3'"),
        ({"schedule": "apg"}, "did you mean 'agp'"),
        ({"widths": {"0": 0}}, "cannot keep 0 channels"),
        ({"widths": {"0": True}}, "cannot keep True channels"),
        ({"densities": {"0": 0.0}}, "density 0.0; allowed: more than 0"),
        ({"densities": {"0": 1.5}}, "density 1.5"),
        ({"densities": {"0": float("nan")}}, "density nan"),
        ({"widths": {"1": 2}}, "no convolution or linear layer '1'"),
        ({"densities": {"6": 0.5}}, "no convolution or linear layer '6'"),
        ({"widths": {"0": 9}}, "allowed: 1 to 8"),
        ({"widths": {"7": 2}}, "the network's output"),
    ],
)
def test_bad_plan(plan: dict[str, Any], said: str) -> None:
    with pytest.raises(CompressionError, match=said):
        run(Compression(**plan))


@pytest.mark.parametrize(
    ("ramp", "said"),
    [
        ((0.5, 0.2, 3), "0 <= start <= end <= 1"),
        ((0.0, 1.2, 3), "0 <= start <= end <= 1"),
        ((0.0, 0.5, 0), "at least 1"),
    ],
)
def test_bad_ramp(ramp: tuple[float, float, int], said: str) -> None:
    with pytest.raises(CompressionError, match=said):
        Ramp(*ramp)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_digits_survive_pruning_to_a_tenth(schedule: str) -> None:
    workload = find_workload("digits")
    data, recipe = workload.load(), workload.recipe
    model, _ = train_baseline(workload, data.train, 0)
    plan = Compression({"conv1": 4, "conv2": 8, "conv3": 8, "fc1": 16}, {}, "l2", schedule)
    pruned = compress(model, data.train, plan, recipe, 0)
    parameters = [sum(p.numel() for p in net.parameters()) for net in (model, pruned)]
    assert parameters[1] < 0.1 * parameters[0]
    assert float_accuracy(pruned, data.test) > float_accuracy(model, data.test) - 0.03
