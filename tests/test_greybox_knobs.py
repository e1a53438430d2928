"""Laws of the knobs as numbers, of cost-spread draws and of what counts as the same network."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from dse.errors import StudyError
from dse.greybox.costs import CostBox, CostTable, deployments_of
from dse.greybox.features import FeatureMap
from dse.greybox.history import CLAIM, History, TrialReader
from dse.greybox.knobs import Knobs
from dse.greybox.proposals import Proposals


@st.composite
def distributions(draw: st.DrawFn) -> BaseDistribution:
    kind = draw(st.sampled_from(("choice", "numbers", "int", "log-int", "step", "float", "log")))
    if kind == "choice":
        return CategoricalDistribution(draw(st.permutations(["a", "b", None, True, 3])))
    if kind == "numbers":
        return CategoricalDistribution(draw(st.permutations([2, 8, 4, 0.5])))
    if kind == "int":
        low, stride = draw(st.integers(-5, 5)), draw(st.integers(1, 7))
        return IntDistribution(low, low + stride * draw(st.integers(0, 9)), step=stride)
    if kind == "log-int":
        return IntDistribution(1, draw(st.integers(1, 10_000)), log=True)
    if kind == "step":
        step = draw(st.sampled_from((0.05, 0.1, 0.125, 0.25)))
        return FloatDistribution(0.0, round(step * draw(st.integers(1, 12)), 10), step=step)
    return FloatDistribution(1e-4, draw(st.floats(1e-3, 1e3)), log=kind == "log")


spaces = st.dictionaries(st.sampled_from("abcdef"), distributions(), min_size=1)


@settings(max_examples=60, deadline=None)
@given(spaces, st.integers(0, 1000))
def test_rows_become_legal_parameters_and_come_back(
    space: dict[str, BaseDistribution], seed: int
) -> None:
    knobs = Knobs(space)
    table = CostTable(knobs, [{}], lambda params: (1.0,), False, np.ones(1))
    proposals, source = Proposals(knobs, table, seed), np.random.default_rng(seed)
    rows = np.vstack([proposals.uniform(source, 4), proposals.spread(source, 4), proposals.ends()])
    rows = np.vstack([rows, proposals.mutated(source, rows, 6), proposals.crossed(source, rows, 4)])
    for row, params in zip(rows, knobs.designs(rows), strict=True):
        assert params == knobs.params(row)
        for name, value in params.items():
            assert space[name]._contains(space[name].to_internal_repr(value)), (name, value)
        again = knobs.row(params)
        assert knobs.params(again) == pytest.approx(params)
        discrete = [bool(axis.levels) for axis in knobs.axes]
        assert (again[discrete] == row[discrete]).all()
    features = FeatureMap(knobs, None, rows)(rows)
    assert np.isfinite(features).all()


@given(spaces)
def test_what_was_not_asked_for_is_left_out(space: dict[str, BaseDistribution]) -> None:
    knobs = Knobs(space)
    rows = np.full((2, len(knobs)), math.nan)
    rows[1, 0] = 0
    assert knobs.designs(rows) == [{}, {knobs.axes[0].name: knobs.axes[0].value(0)}]
    assert np.isfinite(FeatureMap(knobs, None, rows)(rows)).all()


LAYERS = 20
SPACE: dict[str, BaseDistribution] = {
    **{f"keep.{i}": FloatDistribution(0.25, 1.0, step=0.25) for i in range(LAYERS)},
    "kind": CategoricalDistribution(("dear", "cheap", "fair")),
    "rate": FloatDistribution(1e-4, 1e-1, log=True),
}


def price(params: Any) -> tuple[float]:
    factor = {"cheap": 0.8, "fair": 1.0, "dear": 1.2}[params["kind"]]
    return (factor * sum(params[f"keep.{i}"] for i in range(LAYERS)),)


def test_spread_draws_cover_the_costs_and_uniform_ones_do_not() -> None:
    knobs = Knobs(SPACE)
    table = CostTable(knobs, [{}], price, False, np.ones(1))
    proposals, source = Proposals(knobs, table, 0), np.random.default_rng(0)
    ends = table.of(proposals.ends())[:, 0, 0]
    assert ends == pytest.approx([1.2 * LAYERS, 0.8 * LAYERS / 4])
    spread = table.of(proposals.spread(source, 300)).std()
    assert spread > 2 * table.of(proposals.uniform(source, 300)).std()
    rates = [params["rate"] for params in knobs.designs(proposals.spread(source, 300))]
    assert np.corrcoef(rates, table.of(proposals.spread(source, 300))[:, 0, 0])[0, 1] < 0.2


def test_costs_are_asked_once_and_those_beyond_the_box_do_not_count() -> None:
    asked = []

    def known(params: Any) -> tuple[float] | None:
        asked.append(params)
        return None if params["board"] == "none" else (price(params)[0] * params["clock"],)

    boards: dict[str, BaseDistribution] = {
        "board": CategoricalDistribution(("one", "none")),
        "clock": IntDistribution(1, 2),
    }
    knobs = Knobs(SPACE)
    table = CostTable(knobs, deployments_of(boards), known, False, np.ones(1))
    rows = Proposals(knobs, table, 0).ends()
    asked.clear()
    fresh = np.vstack([rows, rows]) * 1.0
    fresh[:, knobs.axes.index(next(a for a in knobs.axes if a.name == "rate"))] = 0.123
    costs = table.of(fresh)
    assert len(asked) == 2 * 4
    assert np.isnan(costs).sum() == 4 * 2
    box = CostBox.around(costs, [(1.0, 30.0)], np.ones(1)).normalise(costs)
    assert np.nanmin(box) == pytest.approx(math.log(4) / math.log(30))
    assert np.isnan(box[0]).sum() == 3  # two on no board, one dearer than 30


def test_deployments_need_a_list_of_values() -> None:
    with pytest.raises(StudyError, match="'clock' has no list of values"):
        deployments_of({"clock": FloatDistribution(0, 1)})
    with pytest.raises(StudyError, match=r"have 10,000 settings; allowed: up to 4,096"):
        deployments_of({"a": IntDistribution(1, 100), "b": IntDistribution(1, 100)})
    assert deployments_of({}) == ({},)


SMALL: dict[str, BaseDistribution] = {
    "kind": CategoricalDistribution(("plain", "wide")),
    "width": IntDistribution(1, 4),
}


def trial(state: TrialState, number: int = 0, **params: Any) -> FrozenTrial:
    made = create_trial(
        state=state,
        values=[0.1 * (number + 1)] if state is TrialState.COMPLETE else None,
        params=params,
        distributions={name: SMALL[name] for name in params},
    )
    made.number = number
    return made


def read(*trials: FrozenTrial) -> History:
    return TrialReader(Knobs(SMALL), lambda found: float(found.values[0])).history(trials)


def test_a_network_agrees_with_a_trial_on_all_that_it_asked_for() -> None:
    history = read(trial(TrialState.COMPLETE, kind="plain"))
    knobs = history.knobs
    assert history.knows(knobs.row({"kind": "plain", "width": 3}))
    assert not history.knows(knobs.row({"kind": "wide", "width": 3}))
    rows = np.array([knobs.row({"kind": "wide", "width": w}) for w in (1, 1, 2)])
    assert len(history.new(rows)) == 2


def test_trials_of_one_network_count_once_with_their_mean() -> None:
    done = TrialState.COMPLETE
    history = read(
        trial(done, 0, kind="wide", width=1),
        trial(done, 2, kind="wide", width=1),
        trial(done, 4, kind="wide", width=2),
        trial(TrialState.FAIL, 5, kind="wide", width=3),
        trial(TrialState.RUNNING, 6, kind="plain", width=4),
    )
    assert history.errors == pytest.approx([0.2, 0.5])
    assert len(history.running) == 1
    assert history.known == 4


def test_only_trials_that_are_not_finished_are_read_again() -> None:
    asked = []

    def error(found: FrozenTrial) -> float:
        asked.append(found.number)
        return float(found.values[0])

    trials = [trial(TrialState.COMPLETE, n, kind="wide", width=n + 1) for n in range(2)]
    running = trial(TrialState.RUNNING, 2, kind="plain", width=4)
    reader = TrialReader(Knobs(SMALL), error)
    first = reader.history([*trials, running])
    running.state, running.values = TrialState.COMPLETE, [0.3]
    second = reader.history([*trials, running])
    assert asked == [0, 1, 2]
    assert second.errors == pytest.approx([*first.errors, 0.3])


def test_a_claim_counts_before_its_parameters_are_stored() -> None:
    running = trial(TrialState.RUNNING)
    assert read(running).known == 0
    running.system_attrs = {CLAIM: {"kind": 1.0, "width": 2.0}}
    history = read(running)
    assert history.knows(history.knobs.row({"kind": "wide", "width": 3}))
