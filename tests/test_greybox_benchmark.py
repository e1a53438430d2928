"""The problems of benchmarks/search.py: complete tables, exact lookups, meaningful scores."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

SEARCH = Path(__file__).parents[1] / "benchmarks" / "search"
sys.path.insert(0, str(SEARCH))

import comparison  # noqa: E402
import trained_tables  # noqa: E402
from methods import Ledger, grey_box, spread_random  # noqa: E402
from synthetic import synthetic  # noqa: E402
from tabulated import StoredErrors  # noqa: E402


@pytest.mark.parametrize("name", sorted(trained_tables.TABLES))
def test_a_table_holds_every_network_and_is_small(name: str) -> None:
    task = trained_tables.TABLES[name]
    wrong = trained_tables.store(task, None)[: len(task.width_settings)]
    assert wrong.shape == (len(task.width_settings), len(task.bit_settings), task.epochs)
    assert wrong.max() < task.test_samples < trained_tables.MISSING
    assert (trained_tables.DATA_FOLDER / f"{name}.npz").stat().st_size < 300_000
    whole, least = wrong[0, -1], wrong[-1, 0]  # unpruned in 8 bits, narrowest in 2 bits
    assert whole[-1] <= np.quantile(wrong[..., -1], 0.3) < least[-1]
    assert wrong[..., -1].mean() < wrong[..., 0].mean()


def test_parameters_find_their_network() -> None:
    task = trained_tables.TABLES["digits"]
    places = np.arange(len(task.width_settings) * len(task.bit_settings))
    shape = (len(task.width_settings), len(task.bit_settings), 1)
    errors = StoredErrors(task, places.reshape(shape), 1)
    ratios = [layer.levels.index(max(layer.levels)) for layer in task.layers]
    params = {
        f"prune.{layer.name}": layer.levels[level]
        for layer, level in zip(task.layers, ratios, strict=True)
        if len(layer.levels) > 1
    } | {f"bits.{layer.name}": task.bits[0] for layer in task.layers}
    assert errors.index(params) == (len(task.width_settings) - 1, 0)
    assert errors.index(params | {"bits.fc": task.bits[-1]}) == (shape[0] - 1, len(task.bits) - 1)


def test_noise_belongs_to_the_network_and_the_truth_has_none() -> None:
    problem = synthetic()
    ledger = spread_random(problem, 3, 30)
    networks = [network for network, _ in ledger.trained]
    measured = np.array([problem.errors.measured(network) for network in networks])
    assert (measured == [problem.errors.measured(network) for network in networks]).all()
    true = problem.errors.true(networks)
    logits = np.log(measured / (1 - measured)) - np.log(true / (1 - true))
    assert 0.05 < logits.std() < 0.2
    assert abs(logits.mean()) < 0.08


def test_the_memo_counts_all_targets_and_the_plain_way_one() -> None:
    problem = synthetic()
    params = {**spread_random(problem, 0, 1).trained[0][0], "target": "fast/simd"}
    plain, memo = Ledger(problem, "plain"), Ledger(problem, "memo")
    assert plain.train(params) == memo.train(params) == memo.recall(params)
    assert len(plain.trained[0][1]) == 1
    assert len(memo.trained[0][1]) == 12
    assert plain.score(1) <= memo.score(1) < 1


@pytest.mark.slow
def test_the_grey_box_is_far_ahead_of_spread_draws_after_thirty_trainings() -> None:
    problem = synthetic()
    ours = grey_box()(problem, 5, 30).score(30)
    assert ours > 1.5 * spread_random(problem, 5, 30).score(30)
    assert ours < 1


def test_medians_and_what_reaches_them() -> None:
    runs = {str(s): {"scores": {"25": 0.1 * s, "30": 0.2 * s}} for s in (1, 2, 3)}
    assert comparison.median(runs, 25) == pytest.approx(0.2)
    assert comparison.median(runs, 50) is None
    assert comparison.reached(runs, 0.3) == 30
    assert comparison.reached(runs, 0.5) is None
