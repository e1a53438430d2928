"""Distillation: between the labels alone and the teacher alone, and the teacher stays as it is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from dse.compress import Compression, Distillation, compress
from dse.errors import CompressionError
from tests.test_compress_schedule import RECIPE, network, split

BATCH = split().take(32)
temperatures = st.floats(0.5, 10)


def scores(seed: int) -> torch.Tensor:
    return torch.randn(32, 3, generator=torch.Generator().manual_seed(seed))


@given(temperatures)
def test_no_weight_is_cross_entropy(temperature: float) -> None:
    loss = Distillation(network(), 0, temperature)
    found = loss(scores(1), BATCH.inputs, BATCH.labels)
    assert torch.equal(found, F.cross_entropy(scores(1), BATCH.labels))


@given(temperatures, st.integers(0, 99))
def test_the_teacher_alone_knows_no_labels(temperature: float, seed: int) -> None:
    teacher = network().eval()
    loss = Distillation(teacher, 1, temperature)
    found = loss(scores(seed), BATCH.inputs, BATCH.labels)
    assert torch.equal(found, loss(scores(seed), BATCH.inputs, BATCH.labels.flip(0)))
    assert found > 0
    with torch.no_grad():
        own = teacher(BATCH.inputs)
    assert float(loss(own, BATCH.inputs, BATCH.labels)) == pytest.approx(0, abs=1e-4)


def test_the_loss_is_that_of_the_paper() -> None:
    """Hinton et al., section 2: the soft term is T^2 times the divergence at temperature T."""
    teacher, temperature = network().eval(), 3.0
    with torch.no_grad():
        wanted = torch.softmax(teacher(BATCH.inputs) / temperature, 1)
    own = torch.softmax(scores(5) / temperature, 1)
    soft = (wanted * (wanted / own).log()).sum(1).mean()
    expected = 0.3 * F.cross_entropy(scores(5), BATCH.labels) + 0.7 * temperature**2 * soft
    found = Distillation(teacher, 0.7, temperature)(scores(5), BATCH.inputs, BATCH.labels)
    torch.testing.assert_close(found, expected)


def test_a_fine_tuning_with_a_teacher_is_reproducible_and_leaves_it_alone() -> None:
    teacher = network()
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    plan = Compression({"0": 3})
    found = [
        compress(teacher, split(), plan, RECIPE, 0, loss=loss).state_dict()
        for loss in (Distillation(teacher, 0.5), Distillation(teacher, 0.5), None)
    ]
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    assert not torch.equal(found[0]["0.weight"], found[2]["0.weight"])


@pytest.mark.parametrize(
    ("weight", "temperature", "said"),
    [(-0.1, 4, "weight -0.1; allowed: 0 to 1"), (1.5, 4, "weight 1.5"), (0.5, 0, "above 0"),
     (0.5, float("inf"), "above 0")],
)  # fmt: skip
def test_numbers_out_of_range(weight: float, temperature: float, said: str) -> None:
    with pytest.raises(CompressionError, match=said):
        Distillation(network(), weight, temperature)
