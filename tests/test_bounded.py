"""Results are kept until there are too many, and never more."""

from __future__ import annotations

import copy
import pickle

from hypothesis import given
from hypothesis import strategies as st

from dse.bounded import Bounded


@given(keys=st.lists(st.integers(0, 20)), most=st.integers(1, 5))
def test_never_more_than_most_and_always_the_last(keys: list[int], most: int) -> None:
    kept: Bounded[int, int] = Bounded(most)
    for key in keys:
        if key not in kept:
            kept[key] = -key
        assert kept[key] == -key
        assert len(kept) <= most


def test_copies_are_empty_and_as_large() -> None:
    kept: Bounded[str, int] = Bounded(2)
    kept["a"] = 1
    for other in (copy.deepcopy(kept), pickle.loads(pickle.dumps(kept))):
        assert (dict(other), other.most) == ({}, 2)
    assert kept == {"a": 1}
