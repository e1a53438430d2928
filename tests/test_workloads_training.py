"""Training: reproducible, honest about divergence, and good enough on real digits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from dse.errors import WorkloadError
from dse.workloads import (
    Recipe,
    Split,
    TrainingLog,
    find_workload,
    float_accuracy,
    train,
    train_baseline,
)
from dse.workloads.training import rate_factor

RECIPE = Recipe(batch_size=16)


def blobs(samples: int = 100) -> Split:
    """Three classes that a small network can learn."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(samples) % 3
    inputs = torch.randn(samples, 1, 4, 4, generator=generator) * 0.3
    inputs += labels.reshape(-1, 1, 1, 1).float()
    return Split(inputs, labels)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(),
        nn.Linear(24, 3),
    )  # fmt: skip


def run(model: nn.Module, seed: int = 0, **changes: Any) -> TrainingLog:
    options: dict[str, Any] = {"epochs": 3, "learning_rate": 1e-2, "seed": seed, **changes}
    recipe = options.pop("recipe", RECIPE)
    return train(model, options.pop("split", blobs()), recipe, **options)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_same_seed_same_weights(optimizer: str) -> None:
    recipe = RECIPE.with_changes({"optimizer": optimizer})
    states = []
    for seed, noise in ((5, 1), (5, 2), (6, 1)):
        model = network()
        torch.manual_seed(noise)
        run(model, seed, recipe=recipe)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_it_learns_and_leaves_the_global_generator_and_mode_alone() -> None:
    model = network()
    before = torch.random.get_rng_state()
    log = run(model, epochs=10)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not model.training
    assert log.losses[-1] < log.losses[0]
    assert log.steps == 10 * (100 // 16)
    assert float_accuracy(model, blobs()) > 0.9
    assert all(value.is_contiguous() for value in model.state_dict().values())


def test_hook_sees_every_step_and_may_replace_parameters() -> None:
    seen: list[tuple[int, int]] = []

    def hook(model: nn.Module, step: int, total: int) -> bool:
        seen.append((step, total))
        if step == 4:
            layer = model.get_submodule("5")
            assert isinstance(layer, nn.Linear)
            layer.weight = nn.Parameter(torch.zeros_like(layer.weight))
            return True
        return False

    model = network()
    run(model, after_step=hook)
    assert seen == [(step, 18) for step in range(19)]
    # The new parameter was trained: the optimiser knew of it.
    assert float(model.get_submodule("5").get_parameter("weight").detach().abs().sum()) > 0


def test_progress_and_stop() -> None:
    done: list[int] = []
    log = run(
        network(),
        progress=lambda step, total: done.append(step),
        after_epoch=lambda model, epoch, epochs: epoch == 2,
    )
    assert done == list(range(1, 13))
    assert log.stopped
    assert len(log.losses) == 2


def test_divergence_is_explained() -> None:
    with pytest.raises(WorkloadError, match=r"training diverged: the loss is .* step \d+ of 18"):
        run(network(), learning_rate=1e30, recipe=RECIPE.with_changes({"optimizer": "sgd"}))


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(WorkloadError, match="no trainable parameters"):
        run(nn.Flatten())


def test_rate_rises_then_falls_to_zero() -> None:
    rates = [rate_factor(step / 200) for step in range(201)]
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(1)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"weight_decay": "a"}, "weight_decay is 'a'"),
        ({"optimizer": "adamw"}, "did you mean 'adam'"),
        ({"train_samples": 0}, "train_samples is 0"),
        ({"threads": True}, "threads is True"),
    ],
)
def test_bad_recipe(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(WorkloadError, match=said):
        RECIPE.with_changes(changes)


def test_baseline_follows_the_recipe() -> None:
    changes = {"epochs": 2, "train_samples": 160, "batch_size": 40}
    digits = find_workload("digits")
    small = replace(digits, recipe=digits.recipe.with_changes(changes))
    models = [train_baseline(small, digits.load().train, seed) for seed in (3, 3, 4)]
    assert [log.steps for _, log in models] == [8, 8, 8]
    first, again, other = (model.get_parameter("conv1.weight") for model, _ in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.slow
def test_digits_reach_97_percent() -> None:
    data = find_workload("digits").load()
    model, _ = train_baseline(find_workload("digits"), data.train, 0)
    assert float_accuracy(model, data.test) >= 0.97
    assert 10_000 <= sum(p.numel() for p in model.parameters()) <= 40_000
