"""The filter's grammar: read or refused by a sentence, never evaluated."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dse.errors import StudyError
from dse.filter import FIELDS, both, filter_mask, parse_filter

TABLE = pd.DataFrame(
    {
        "number": [0, 1, 2, 3],
        "flash_bytes": [1000.0, 70_000.0, np.nan, 65_536.0],
        "latency_s": [0.001, 0.02, 0.3, np.nan],
        "accuracy": [0.9, 0.95, np.nan, 0.99],
        "clock_hz": [125e6, 180e6, 180e6, 125e6],
        "board": pd.Categorical(["rpi_pico", "nucleo-f446re", "rpi_pico", None]),
        "reason": ["", "ram is over", "", "RAM is over"],
        "front": [True, False, False, True],
        "knob:prune.conv1": [0.0, 0.5, 0.25, np.nan],
        "knob:schedule": ["agp", "one-shot", "agp", None],
    }
)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("flash < 64 KiB", [0]),
        ("flash<=64KiB", [0, 3]),
        ("64 KiB <= flash", [1, 3]),
        ("500 B < flash < 65 KiB", [0, 3]),
        ("not flash < 64 KiB", [1, 2, 3]),
        ('board == "rpi_pico"', [0, 2]),
        ("board = rpi_pico", [0, 2]),
        ("board == nucleo-f446re", [1]),
        ("board != rpi_pico", [1]),
        ("board in (rpi_pico, 'nucleo-f446re')", [0, 1, 2]),
        ("trial in (1, 3)", [1, 3]),
        ("latency > 5 ms and latency < 1 s", [1, 2]),
        ("accuracy >= 95 %", [1, 3]),
        ("accuracy>=0.95", [1, 3]),
        ("clock == 180 MHz", [1, 2]),
        ("front", [0, 3]),
        ("front and not (flash < 64 KiB or trial == 7)", [3]),
        ("trial == 0 or trial == 1 and front", [0]),
        ("reason ~ 'RAM'", [1, 3]),
        ("prune.conv1 > 0.1", [1, 2]),
        ("prune.conv1 >= 25 %", [1, 2]),
        ("schedule == one-shot", [1]),
        ("", [0, 1, 2, 3]),
        ("   ", [0, 1, 2, 3]),
        ("front AND trial > 0", [3]),
    ],
)
def test_what_matches(text: str, numbers: list[int]) -> None:
    assert np.flatnonzero(filter_mask(text, TABLE)).tolist() == numbers


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("flush < 3 KiB", "did you mean 'flash'"),
        ("flash < 3", "has no unit"),
        ("flash < 3 kg", "unit 'kg'"),
        ("flash < ", "found the end of the filter"),
        ("(flash < 3 B", "expected ')'"),
        ("flash", "says nothing alone"),
        ("board < rpi_pico", "is text"),
        ("trial == many", "is a number"),
        ("front front", "one too many"),
        ("3 B < 4 B", "must name a field"),
        ("__import__('os').system('true')", "says nothing alone|cannot be read|one too many"),
        ("().__class__", "expected a name|cannot be read"),
        ("flash < 1 B; drop table", "cannot be read"),
        ("lambda: 0", "cannot be read|one too many|says nothing"),
        ("(" * 3000, "characters"),
        ("(" * 60 + "front" + ")" * 60, "nested deeper"),
        ("not " * 100 + "front", "nested deeper"),
    ],
)
def test_one_sentence_for_what_cannot_be_read(text: str, said: str) -> None:
    with pytest.raises(StudyError, match=said.replace("(", r"\(").replace(")", r"\)")) as error:
        filter_mask(text, TABLE)
    assert "\n" not in str(error.value)


WORDS = (
    *("flash", "board", "front", "reason", "trial", "prune.conv1", "rpi_pico", "64", "KiB", "%"),
    *("and", "or", "not", "in", "(", ")", ",", "<", "==", "=", "!=", "~", "'x'", "1e9", "lambda"),
)


@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        mask = filter_mask(text, TABLE)
    except StudyError:
        return
    assert mask.dtype == np.bool_
    assert mask.shape == (len(TABLE),)


PARTS = st.sampled_from(["flash < 64 KiB", "front", "board == rpi_pico", "trial > 1"])


@given(PARTS, PARTS)
def test_laws_of_logic(first: str, second: str) -> None:
    a, b = filter_mask(first, TABLE), filter_mask(second, TABLE)
    assert (filter_mask(f"not ({first} and {second})", TABLE) == ~(a & b)).all()
    assert (filter_mask(f"not {first} or not {second}", TABLE) == (~a | ~b)).all()
    assert (filter_mask(both(first, second), TABLE) == (a & b)).all()
    assert (filter_mask(f"not not ({first})", TABLE) == a).all()


def test_every_field_of_the_help_is_known() -> None:
    assert {"flash", "ram", "bits", "verified", "reason"} <= set(FIELDS)
    parse_filter(" and ".join(f"({name} == x)" for name in FIELDS))
