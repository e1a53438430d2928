"""Constraints: their texts, what they refer to, and that a violation says who misses them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dse.constraints import Constraint, baseline_of, parse_constraint
from dse.errors import StudyError
from dse.trial import COST_METRICS, METRICS, Metric, MetricName
from dse.units import METRIC_DIMENSION, UNITS, parse_quantity

POSITIVE = st.floats(1e-6, 1e6)


def metric(value: float) -> Metric:
    return Metric(value, value, value, "measured")


@st.composite
def texts(draw: st.DrawFn, names: tuple[str, ...] = tuple(METRICS)) -> str:
    """Any constraint a study file may hold."""
    name = draw(st.sampled_from(names))
    sign = ">=" if name == "accuracy" else "<="
    share, percent = draw(st.floats(0.01, 0.99)), draw(st.floats(0.01, 99))
    quantity = f"{draw(POSITIVE)} {draw(st.sampled_from(list(UNITS[METRIC_DIMENSION[name]])))}"
    if name == "accuracy":
        quantity = draw(st.sampled_from([f"{share}", f"{percent} %"]))
    right = draw(
        st.sampled_from(
            [
                quantity,
                "baseline",
                f"baseline - {quantity}",
                f"baseline + {quantity}",
                f"{percent} % of baseline",
                f"{share} x baseline",
                f"{share} * baseline",
            ]
        )
    )
    space = draw(st.sampled_from(["", " ", "  "]))
    return f"{name}{space}{sign}{space}{right}"


@given(texts())
def test_a_text_parses_to_itself(text: str) -> None:
    found = parse_constraint(text)
    assert parse_constraint(found.text) == found
    assert found.text == " ".join(text.split())
    assert parse_constraint(f"  {text}\n") == found


@given(texts(), POSITIVE, POSITIVE)
def test_a_violation_above_zero_is_a_miss(text: str, value: float, baseline: float) -> None:
    found = parse_constraint(text)
    limit = found.limit(baseline)
    missed = value < limit if found.metric == "accuracy" else value > limit
    assert (found.violation(metric(value), baseline) > 0) == missed


@given(texts(COST_METRICS), POSITIVE, POSITIVE, POSITIVE)
def test_a_worse_metric_is_never_violated_less(
    text: str, one: float, other: float, baseline: float
) -> None:
    found = parse_constraint(text)
    assume(found.limit(baseline) > 0)
    low, high = sorted((one, other))
    less, more = (found.violation(metric(value), baseline) for value in (low, high))
    assert less <= more
    assert more == pytest.approx(high / found.limit(baseline) - 1)


@given(POSITIVE, POSITIVE, st.floats(0, 1e6))
def test_nothing_meets_a_limit_below_zero(value: float, baseline: float, more: float) -> None:
    found = Constraint("energy", "offset", -baseline - more, "energy <= baseline - more")
    assert found.violation(metric(value), baseline) >= 1


@given(texts(), POSITIVE)
def test_only_relative_constraints_need_a_baseline(text: str, baseline: float) -> None:
    found = parse_constraint(text)
    costs = {name: metric(baseline) for name in COST_METRICS}
    if "baseline" in text:
        assert baseline_of(found, baseline, costs) == baseline
        with pytest.raises(StudyError, match="needs a baseline"):
            found.limit(None)
    else:
        assert baseline_of(found, None, {}) is None
        assert found.limit(None) == found.value


def test_the_baseline_of_accuracy_and_of_a_cost() -> None:
    costs: dict[MetricName, Metric] = {"flash": metric(1000.0)}
    relative = parse_constraint("flash <= 50 % of baseline")
    assert baseline_of(relative, 0.9, costs) == 1000
    assert relative.limit(1000) == 500
    points = parse_constraint("accuracy >= baseline - 2 %")
    assert baseline_of(points, 0.9, costs) == 0.9
    assert points.limit(0.9) == pytest.approx(0.88), "percentage points, not a share of 90 %"


@pytest.mark.parametrize(
    ("text", "name", "relation", "value"),
    [
        ("ram <= 64 KiB", "ram", "absolute", 65536),
        ("ram<=64KiB", "ram", "absolute", 65536),
        ("latency <= 5 ms", "latency", "absolute", 0.005),
        ("accuracy >= 98 %", "accuracy", "absolute", 0.98),
        ("accuracy >= 0.98", "accuracy", "absolute", 0.98),
        ("accuracy >= baseline", "accuracy", "offset", 0),
        ("energy <= baseline + 1 mJ", "energy", "offset", 1e-3),
        ("flash <= 2x baseline", "flash", "factor", 2),
        ("flash <= 0.5 * baseline", "flash", "factor", 0.5),
    ],
)
def test_what_a_text_means(text: str, name: str, relation: str, value: float) -> None:
    found = parse_constraint(text)
    assert (str(found.metric), str(found.relation)) == (name, relation)
    assert found.value == pytest.approx(value)
    assert found.needs_accuracy == (name == "accuracy")


def test_a_miss_says_by_how_much() -> None:
    ram = parse_constraint("ram <= 1 KiB")
    assert ram.miss(metric(1536.0), None, "rpi_pico") == (
        "ram 1.50 KiB on rpi_pico is 512 B over 1 KiB ('ram <= 1 KiB')"
    )
    accuracy = parse_constraint("accuracy >= baseline - 1 %")
    assert accuracy.miss(metric(0.9), 0.98, "rpi_pico") == (
        "accuracy 90.00 % on rpi_pico is 7.00 % below 97.00 % ('accuracy >= baseline - 1 %')"
    )


def test_what_is_not_known_is_missed_with_the_reason() -> None:
    found = parse_constraint("energy <= 1 mJ")
    unknown = Metric.unavailable("the board has no power figure")
    assert found.violation(unknown, None) == 1
    assert found.miss(unknown, None, "mine") == (
        "energy on mine is not known (the board has no power figure): 'energy <= 1 mJ'"
    )


@given(st.text(max_size=20) | st.text("<>=. %019KiBmsbaselinramxof\n", max_size=30), st.booleans())
def test_any_text_is_a_constraint_or_one_sentence(text: str, named: bool) -> None:
    text = f"ram <= {text}" if named else text
    with suppress(StudyError):
        assert parse_constraint(text).text == " ".join(text.split())
        return
    with pytest.raises(StudyError, match=r"^[^\n]*(; |: )[^\n]*$"):
        parse_constraint(text)


@given(st.sampled_from(list(METRICS)), st.sampled_from(["<", ">", "=", "==", "<=", ">="]))
def test_one_direction_makes_sense(name: str, sign: str) -> None:
    limit = "0.5" if name == "accuracy" else f"1 {next(iter(UNITS[METRIC_DIMENSION[name]]))}"
    text = f"{name} {sign} {limit}"
    if sign == (">=" if name == "accuracy" else "<="):
        assert parse_constraint(text).value == parse_quantity(limit, METRIC_DIMENSION[name])
    else:
        with pytest.raises(StudyError, match=f"uses '{sign}'.*allowed: '{name} "):
            parse_constraint(text)


@pytest.mark.parametrize("value", [None, 5, ["ram <= 5 B"], {"ram": "5 B"}])
def test_what_is_no_text(value: Any) -> None:
    with pytest.raises(StudyError, match="is not a constraint; write it like"):
        parse_constraint(value)
