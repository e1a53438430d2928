"""The closed expected improvement against exact hypervolumes, and the surrogate behind it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dse.errors import StudyError
from dse.greybox.improvement import QUANTILES, Attained, CostPoints
from dse.greybox.knobs import Floats
from dse.greybox.surrogate import GROWTH, ErrorModel, ErrorScale, Scale, milestone
from dse.pareto import hypervolume

REFERENCE = 0.4


def designs(source: np.random.Generator, count: int, costs: int) -> tuple[Floats, Floats]:
    """Errors (n,) and normalised costs (n, 4, k); dear networks err less, one in five is out."""
    size = source.random(count)
    errors = 0.35 * (1 - size) ** 1.5 + 0.05 * source.random(count)
    each = size[:, None, None] * 0.8 + 0.2 * source.random((count, 4, costs))
    each[source.random((count, 4)) < 0.2] = np.nan
    return errors, each


def exact(errors: Floats, costs: Floats) -> float:
    """Hypervolume of every feasible deployment, by moocore."""
    rows = np.concatenate(
        [np.broadcast_to(errors[:, None, None], (*costs.shape[:2], 1)), costs], axis=2
    ).reshape(-1, costs.shape[2] + 1)
    rows = rows[np.isfinite(rows).all(axis=1)]
    return hypervolume(rows, np.array([REFERENCE, *np.ones(costs.shape[2])])) if len(rows) else 0.0


@pytest.mark.parametrize(("costs", "found"), [(1, 6), (2, 12), (3, 12), (3, 30), (4, 12)])
def test_the_closed_form_is_the_exact_difference_of_hypervolumes(costs: int, found: int) -> None:
    source = np.random.default_rng(costs + found)
    known, known_costs = designs(source, found, costs)
    new, new_costs = designs(source, 150, costs)
    new -= 0.05  # some improve everywhere, some nowhere
    points = CostPoints(costs, 8192)
    attained = Attained(points, REFERENCE)
    for index, bits in enumerate(points.served(known_costs)):
        attained.add(known[index], bits, index)
    before = exact(known, known_costs)
    assert attained.hypervolume == pytest.approx(before, abs=2e-3)
    gained = [
        exact(np.append(known, error), np.vstack([known_costs, cost[None]])) - before
        for error, cost in zip(new, new_costs, strict=True)
    ]
    closed = attained.improvement(new[:, None], points.served(new_costs))
    assert np.corrcoef(gained, closed)[0, 1] > 0.995
    assert np.abs(closed - gained).max() < 2e-3


def test_an_uncertain_error_gains_the_mean_over_its_samples() -> None:
    source = np.random.default_rng(0)
    known, costs = designs(source, 8, 2)
    points = CostPoints(2)
    attained = Attained(points, REFERENCE)
    for index, bits in enumerate(points.served(costs)):
        attained.add(known[index], bits, index)
    samples = 0.1 + 0.05 * np.tile(QUANTILES, (8, 1))
    served = points.served(costs * 0.9)
    single = [attained.improvement(samples[:, [i]], served) for i in range(len(QUANTILES))]
    assert attained.improvement(samples, served) == pytest.approx(np.mean(single, axis=0), rel=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 4))
def test_points_served_are_those_at_or_above_every_cost(seed: int, costs: int) -> None:
    source = np.random.default_rng(seed)
    _, each = designs(source, 5, costs)
    points = CostPoints(costs, 64)
    mask = points.mask(points.served(each))
    for network, row in zip(each, mask, strict=True):
        able = network[np.isfinite(network).all(axis=1)]
        expected = (able[:, None] <= points.points[None]).all(axis=2).any(axis=0)
        assert (row == expected).all()


def test_a_network_that_is_attained_gains_nothing_more() -> None:
    points = CostPoints(2)
    attained = Attained(points, REFERENCE)
    served = points.served(np.full((1, 1, 2), 0.3))
    gain = attained.improvement(np.array([[0.1]]), served)[0]
    assert gain == pytest.approx(0.3 * 0.7**2, rel=0.02)
    attained.add(0.1, served[0], 5)
    assert attained.hypervolume == pytest.approx(gain, rel=1e-4)
    assert attained.front.tolist() == [5]
    assert attained.improvement(np.array([[0.1]]), served)[0] == pytest.approx(0, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_networks_taken_at_once_or_one_by_one_leave_the_same(seed: int) -> None:
    source = np.random.default_rng(seed)
    errors, costs = designs(source, 12, 2)
    errors = np.append(errors.round(1), REFERENCE + 0.1)  # equal ones, and one that does not count
    points = CostPoints(2, 64)
    served = points.served(np.vstack([costs, costs[:1]]))
    at_once, one_by_one = Attained(points, REFERENCE), Attained(points, REFERENCE)
    at_once.take(errors, served, np.arange(13))
    for index in range(13):
        one_by_one.add(errors[index], served[index], index)
    assert (at_once.error == one_by_one.error).all()
    assert (errors[at_once.owner[at_once.owner >= 0]] == at_once.error[at_once.owner >= 0]).all()


def test_the_model_interpolates_and_knows_where_it_has_not_been() -> None:
    source = np.random.default_rng(3)
    rows = source.random((40, 3))
    errors = 0.02 + 0.3 * rows[:, 0] ** 2 + 0.1 * rows[:, 1]
    model = ErrorModel(rows[:30], errors[:30], ErrorScale())
    mean, deviation = model.predict(rows[30:])
    assert np.corrcoef(model.scale.back(mean), errors[30:])[0, 1] > 0.97
    seen = model.predict(rows[:30])[1]
    assert deviation.mean() > 1.3 * seen.mean()
    assert model.predict(np.full((1, 3), 3.0))[1][0] > 3 * deviation.mean()


def test_belief_keeps_the_mean_and_takes_the_uncertainty() -> None:
    source = np.random.default_rng(4)
    rows = source.random((12, 2))
    model = ErrorModel(rows, 0.1 + 0.2 * rows[:, 0], ErrorScale())
    there = np.array([[0.5, 2.0]])
    mean, deviation = model.predict(there)
    assert model.believe(there) == pytest.approx(ErrorScale().back(mean))
    again, less = model.predict(there)
    assert again == pytest.approx(mean, abs=0.02)
    assert less[0] < 0.7 * deviation[0]


def test_few_test_samples_make_the_model_doubt_what_it_saw() -> None:
    source = np.random.default_rng(5)
    rows = source.random((25, 2))
    errors = np.clip(0.2 + 0.05 * source.standard_normal(25), 0.05, 0.5)
    doubts = {}
    for samples in (20, 20_000):
        model = ErrorModel(rows, errors, ErrorScale("logit", samples))
        told = model.scale.back(model.predict(rows)[0])
        doubts[samples] = float(np.abs(told - errors).mean())
    assert doubts[20] > doubts[20_000]


def test_what_does_not_count_is_compressed_and_keeps_its_order() -> None:
    plain, scale = ErrorScale("logit", 500), ErrorScale("logit", 500, worst=0.2)
    errors = np.linspace(0.01, 0.98, 60)
    there, unbound = scale.forward(errors), plain.forward(errors)
    counts = errors <= 0.2
    assert there[counts] == pytest.approx(unbound[counts])
    assert (np.diff(there) > 0).all()
    assert np.ptp(there[~counts]) < 0.5 * np.ptp(unbound[~counts])
    # The noise shrinks with the scale: as much as a small step of the error does.
    steps = (scale.forward(errors + 1e-6) - there) / (plain.forward(errors + 1e-6) - unbound)
    ratio = np.sqrt(scale.variance(errors) / plain.variance(errors))
    assert ratio == pytest.approx(steps, rel=1e-3)


def test_scales_go_there_and_back_and_refuse_what_they_cannot_hold() -> None:
    values = np.array([0.01, 0.2, 0.9])
    kinds: tuple[Scale, ...] = ("logit", "log", "linear")
    for kind, worst in itertools.product(kinds, (None, 0.3, 0.0)):
        scale = ErrorScale(kind, worst=worst)
        assert scale.back(scale.forward(values)) == pytest.approx(values)
    assert np.isfinite(ErrorScale().forward(np.array([0.0, 1.0]))).all()
    with pytest.raises(StudyError, match=r"gave 1.5 .*allowed: 0 to 1"):
        ErrorScale().check(1.5)
    with pytest.raises(StudyError, match=r"gave -1 .*allowed: above 0"):
        ErrorScale("log").check(-1.0)
    with pytest.raises(StudyError, match="scale is 'probit'; allowed: logit, log, linear"):
        ErrorScale("probit")  # type: ignore[arg-type]


@given(st.integers(1, 3000))
def test_milestones_grow_by_a_tenth_and_are_reached(trainings: int) -> None:
    reached = milestone(trainings)
    assert 1 <= reached <= trainings
    assert trainings <= 4 or trainings < max(reached + 1, reached * GROWTH) + 1
    assert milestone(reached) == reached
