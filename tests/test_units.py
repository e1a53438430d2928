"""Quantities: what is written can be read, and what is shown is the value, rounded."""

from __future__ import annotations

import math
from contextlib import suppress
from itertools import product
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dse.errors import StudyError
from dse.trial import METRICS
from dse.units import (
    METRIC_DIMENSION,
    UNITS,
    Dimension,
    format_quantity,
    format_value,
    parse_quantity,
)

WITH_UNIT = [(dimension, unit) for dimension, units in UNITS.items() for unit in units]
COSTS = [dimension for dimension in UNITS if dimension != "share"]
VALUES = st.floats(1e-3, 1e12)


@given(st.sampled_from(WITH_UNIT), VALUES, st.sampled_from(["", " ", "  "]))
def test_a_number_with_a_unit_is_that_many_units(
    pair: tuple[Dimension, str], number: float, space: str
) -> None:
    dimension, unit = pair
    assert parse_quantity(f"{number}{space}{unit}", dimension) == number * UNITS[dimension][unit]


@given(st.sampled_from(COSTS), st.floats(1, 1e9))
def test_a_shown_cost_reads_back_to_three_digits(dimension: Dimension, value: float) -> None:
    shown = format_quantity(value, dimension)
    assert parse_quantity(shown, dimension) == pytest.approx(value, rel=5.1e-3)


@given(st.sampled_from(["seconds", "joules"]), st.floats(1e-6, 1))
def test_small_costs_read_back_too(dimension: Dimension, value: float) -> None:
    shown = format_quantity(value, dimension)
    assert parse_quantity(shown, dimension) == pytest.approx(value, rel=5.1e-3)


@given(st.floats(0, 1))
def test_a_shown_share_reads_back_to_a_hundredth_of_a_percent(value: float) -> None:
    assert parse_quantity(format_quantity(value, "share"), "share") == pytest.approx(
        value, abs=5.1e-5
    )


@given(st.sampled_from(COSTS), VALUES)
def test_the_sign_is_kept(dimension: Dimension, value: float) -> None:
    shown, negative = format_quantity(value, dimension), format_quantity(-value, dimension)
    assert negative == f"-{shown}"


@given(st.sampled_from(COSTS), VALUES, VALUES)
def test_more_is_never_shown_as_less(dimension: Dimension, one: float, other: float) -> None:
    low, high = sorted((one, other))
    shown = [parse_quantity(format_quantity(v, dimension), dimension) for v in (low, high)]
    assert shown[0] <= shown[1] * (1 + 1e-9)


@pytest.mark.parametrize(
    ("value", "dimension", "shown"),
    [
        (0, "bytes", "0 B"),
        (760, "bytes", "760 B"),
        (1024, "bytes", "1 KiB"),
        (25_600, "bytes", "25 KiB"),
        (3318, "bytes", "3.24 KiB"),
        (2**21, "bytes", "2 MiB"),
        (0.0472, "seconds", "47.2 ms"),
        (2.5e-6, "seconds", "2.50 us"),
        (90, "seconds", "90 s"),
        (219e-6, "joules", "219 uJ"),
        (3e-9, "joules", "3 nJ"),
        (133e6, "hertz", "133 MHz"),
        (0.9876, "share", "98.76 %"),
    ],
)
def test_as_people_write_it(value: float, dimension: Dimension, shown: str) -> None:
    assert format_quantity(value, dimension) == shown


def test_every_metric_has_a_dimension_and_can_be_unknown() -> None:
    assert set(METRIC_DIMENSION) == set(METRICS)
    assert set(METRIC_DIMENSION.values()) <= set(UNITS) == set(get_args(Dimension))
    assert format_value("flash", None) == "-"
    assert format_value("accuracy", 0.5) == "50.00 %"


def test_a_share_may_be_bare_and_both_micros_are_read() -> None:
    assert parse_quantity(0.98, "share") == parse_quantity("98 %", "share") == 0.98
    micro_sign, greek_letter = "\u00b5", "\u03bc"
    for micro in (micro_sign, greek_letter, "u"):
        assert parse_quantity(f"3 {micro}s", "seconds") == 3e-6
        assert parse_quantity(f"3 {micro}J", "joules") == 3e-6


@pytest.mark.parametrize(("one", "other"), [p for p in product(UNITS, UNITS) if p[0] != p[1]])
def test_a_unit_of_another_kind_is_refused(one: Dimension, other: Dimension) -> None:
    for unit in set(UNITS[other]) - set(UNITS[one]):
        with pytest.raises(StudyError, match=r"has the unit .*allowed: "):
            parse_quantity(f"5 {unit}", one)


@pytest.mark.parametrize("dimension", COSTS)
def test_a_missing_unit_is_named_with_the_allowed_ones(dimension: Dimension) -> None:
    with pytest.raises(
        StudyError, match=f"'5' has no unit; allowed: .*{next(iter(UNITS[dimension]))}"
    ):
        parse_quantity("5", dimension)


@given(
    st.text(max_size=12) | st.text("019.eE+- %KMiBsmu\n", max_size=12), st.sampled_from(list(UNITS))
)
def test_any_text_is_a_finite_value_or_one_sentence(text: str, dimension: Dimension) -> None:
    with suppress(StudyError):
        assert math.isfinite(parse_quantity(text, dimension))
        return
    with pytest.raises(StudyError, match=r"^[^\n]*allowed: [^\n]*$"):
        parse_quantity(text, dimension)


@pytest.mark.parametrize(
    "text", ["", "KiB", "ten ms", "1,5 ms", "1.2.3 s", "nan s", "inf s", "1e999 s"]
)
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(StudyError, match=r"is not a number with a unit; allowed: s, ms, us"):
        parse_quantity(text, "seconds")
