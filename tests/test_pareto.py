"""Laws of the front, the hypervolume and the box."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from dse.errors import DseError
from dse.pareto import Box, Points, hypervolume, knee, non_dominated

SHAPES = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=5).map(
    lambda s: (4 * s[0], s[1])
)
# Few distinct values, so that ties and equal rows are common.
TIED = arrays(np.float64, SHAPES, elements=st.integers(0, 6).map(float))
UNIT = arrays(np.float64, SHAPES, elements=st.floats(0, 1))
BOX = Box(("accuracy", "flash", "latency"), (0.0, 1e3, 1e-4), (0.9, 1e6, 1.0), (False, True, True))
RAW = st.lists(
    st.tuples(st.floats(0, 1), st.floats(1e2, 1e7), st.floats(1e-5, 1e1)), min_size=1, max_size=40
).map(lambda rows: np.array(rows))


def dominates(a: Points, b: Points) -> bool:
    return bool((a <= b).all() and (a < b).any())


def brute_force(points: Points) -> list[bool]:
    """The definition, word for word; of equal rows the first."""
    return [
        not any(dominates(other, point) for other in points)
        and not any((points[j] == point).all() for j in range(i))
        for i, point in enumerate(points)
    ]


@given(TIED)
def test_front_is_the_definition(points: Points) -> None:
    assert non_dominated(points).tolist() == brute_force(points)


@given(TIED)
def test_front_is_idempotent_and_mutually_non_dominated(points: Points) -> None:
    front = points[non_dominated(points)]
    assert non_dominated(front).all()
    assert not any(dominates(a, b) for a in front for b in front)


@given(TIED, st.randoms(use_true_random=False))
def test_front_does_not_depend_on_order(points: Points, draw: object) -> None:
    order = np.random.default_rng(draw.getrandbits(32)).permutation(len(points))  # type: ignore[attr-defined]
    front = {tuple(row) for row in points[non_dominated(points)]}
    shuffled = points[order]
    assert {tuple(row) for row in shuffled[non_dominated(shuffled)]} == front


@given(TIED)
def test_what_is_not_on_the_front_is_dominated_or_repeated_there(points: Points) -> None:
    mask = non_dominated(points)
    front = points[mask]
    assert all((front <= point).all(axis=1).any() for point in points[~mask])


def test_front_of_ten_thousand_points_of_four_columns() -> None:
    """Also past the size where moocore changes its algorithm: every claim checked by numpy."""
    points = np.random.default_rng(0).random((10_000, 4)).round(3)
    mask = non_dominated(points)
    front = points[mask]
    assert 10 < len(front) < 2000
    for point, member in zip(points[:500], mask[:500], strict=True):
        beaten = ((points <= point).all(axis=1) & (points < point).any(axis=1)).any()
        assert member == (not beaten)


@given(UNIT, st.integers(0, 3))
def test_hypervolume_grows_with_every_point_and_stays_in_the_box(points: Points, cut: int) -> None:
    ones = np.ones(points.shape[1])
    part = hypervolume(points[cut:], ones)
    whole = hypervolume(points, ones)
    assert -1e-12 <= part <= whole + 1e-12
    assert whole <= 1 + 1e-12
    assert hypervolume(points[non_dominated(points)], ones) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("columns", [1, 2, 3, 4, 5])
def test_hypervolume_equals_monte_carlo(columns: int) -> None:
    draw = np.random.default_rng(columns)
    points, samples = draw.random((12, columns)), draw.random((40_000, columns))
    covered = (points[:, None, :] <= samples[None]).all(axis=2).any(axis=0)
    error = 4 * np.sqrt(covered.mean() * (1 - covered.mean()) / len(samples))
    assert hypervolume(points, np.ones(columns)) == pytest.approx(covered.mean(), abs=error)


def test_hypervolume_of_known_boxes() -> None:
    assert hypervolume([[0.5, 0.5]], [1.0, 1.0]) == 0.25
    assert hypervolume([[0.5, 0.0], [0.0, 0.5]], [1.0, 1.0]) == 0.75
    assert hypervolume([[2.0, 0.0], [1.0, 0.0]], [1.0, 1.0]) == 0.0
    assert hypervolume(np.zeros((0, 2)), [1.0, 1.0]) == 0.0


def test_box_maps_its_ends_to_zero_and_one() -> None:
    ideal, reference = [1.0, 1e3, 1e-4], [0.1, 1e6, 1.0]
    np.testing.assert_allclose(BOX.normalise([ideal, reference]), [[0, 0, 0], [1, 1, 1]], atol=1e-9)
    assert BOX.hypervolume([ideal]) == pytest.approx(1.0)
    assert BOX.hypervolume([reference]) == 0.0
    half = [0.55, np.sqrt(1e9), 1e-2]
    assert BOX.hypervolume([half]) == pytest.approx(1 / 8)


@given(RAW)
def test_box_keeps_the_order_of_every_metric(values: Points) -> None:
    points = BOX.normalise(values)
    assert (np.diff(points[np.argsort(values[:, 1]), 1]) >= 0).all()
    assert (np.diff(points[np.argsort(values[:, 0]), 0]) <= 0).all()


@given(RAW)
def test_front_of_the_box_is_the_front_of_its_minimised_values(values: Points) -> None:
    minimised = np.column_stack([1 - values[:, 0], values[:, 1:]])
    assert BOX.front(values).tolist() == brute_force(minimised)


@given(RAW)
def test_history_is_the_hypervolume_of_every_beginning(values: Points) -> None:
    history = BOX.history(values)
    expected = [BOX.hypervolume(values[: i + 1]) for i in range(len(values))]
    np.testing.assert_allclose(history, expected, atol=1e-9)
    assert (np.diff(history) >= 0).all()
    assert 0 <= history[-1] <= 1


@given(RAW, st.permutations([0, 1, 2]))
def test_history_ends_the_same_whatever_the_order_of_metrics(
    values: Points, order: list[int]
) -> None:
    def pick(entries: tuple[object, ...]) -> tuple[object, ...]:
        return tuple(entries[i] for i in order)

    turned = Box(*(pick(part) for part in (BOX.metrics, BOX.ideal, BOX.reference, BOX.log)))  # type: ignore[arg-type]
    assert turned.history(values[:, order])[-1] == pytest.approx(BOX.history(values)[-1], abs=1e-9)


def test_history_and_front_of_nothing() -> None:
    assert BOX.history([]).shape == (0,)
    assert BOX.front([]).shape == (0,)
    assert BOX.hypervolume([]) == 0.0


@given(UNIT)
def test_knee_is_on_the_front(points: Points) -> None:
    assert non_dominated(points)[knee(points)]


def test_knee_is_where_the_front_bulges() -> None:
    front = np.array([[0.0, 1.0], [0.1, 0.5], [0.2, 0.2], [0.6, 0.15], [1.0, 0.0]])
    assert knee(front) == 2
    # Scaling a column, or adding points that are dominated, changes nothing.
    assert knee(front * [1000, 0.01]) == 2
    assert knee(np.vstack([[[0.9, 0.9]], front])) == 3
    assert knee([[3.0, 4.0]]) == 0


@given(
    st.lists(st.sampled_from(["accuracy", "flash", "ram", "latency", "energy"]), unique=True)
    .filter(bool)
    .flatmap(
        lambda names: st.tuples(
            st.just(tuple(names)),
            *(
                st.tuples(*(strategy for _ in names))
                for strategy in (st.floats(1e-9, 1), st.floats(1.5, 1e9), st.booleans())
            ),
        )
    )
)
def test_box_round_trips_through_its_dict(parts: tuple[tuple[str, ...], ...]) -> None:
    box = Box(*parts)  # type: ignore[arg-type]
    assert Box.from_dict(box.to_dict()) == box


@pytest.mark.parametrize(
    ("metrics", "ideal", "reference", "log", "message"),
    [
        (("flash",), (2.0,), (1.0,), (False,), "below its reference"),
        (("flash",), (1.0,), (1.0,), (False,), "below its reference"),
        (("flash",), (0.0,), (1.0,), (True,), "above 0"),
        (("flash",), (0.0,), (float("inf"),), (False,), "finite"),
        (("flsh",), (0.0,), (1.0,), (False,), "did you mean 'flash'"),
        (("flash", "flash"), (0.0,) * 2, (1.0,) * 2, (False,) * 2, "once"),
        (("flash",), (0.0, 1.0), (1.0,), (False,), "one ideal"),
        ((), (), (), (), "needs metrics"),
    ],
)
def test_a_wrong_box_is_refused(
    metrics: tuple[str, ...],
    ideal: tuple[float, ...],
    reference: tuple[float, ...],
    log: tuple[bool, ...],
    message: str,
) -> None:
    with pytest.raises(DseError, match=message):
        Box(metrics, ideal, reference, log)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[0.9, 1e4]], r"\(n, 3\) array"),
        ([0.9, 1e4, 1e-3], r"\(n, 3\) array"),
        ([[0.9, 0.0, 1e-3]], "above 0"),
        ([[float("nan"), 1e4, 1e-3]], "finite"),
    ],
)
def test_wrong_values_are_refused(values: npt.ArrayLike, message: str) -> None:
    with pytest.raises(DseError, match=message):
        BOX.normalise(values)


def test_wrong_points_are_refused() -> None:
    with pytest.raises(DseError, match="shape"):
        non_dominated([1.0, 2.0])
    with pytest.raises(DseError, match="one value a column"):
        hypervolume([[0.0, 0.0]], [1.0])
    with pytest.raises(DseError, match="no knee"):
        knee(np.zeros((0, 2)))
    with pytest.raises(DseError, match="not a stored box"):
        Box.from_dict({"metrics": ["flash"]})


def test_pareto_storage_and_report_start_without_torch() -> None:
    """Browsing must not wait for torch, nor for alembic, pandas and Optuna before they are used."""
    code = (
        "import sys, dse.pareto, dse.storage; heavy = {'torch', 'optuna', 'alembic', 'pandas'};"
        "print(heavy & set(sys.modules)); import dse.report, optuna; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["set()", "False"]
