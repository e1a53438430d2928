"""Trainings that end early: what is needed, what is possible, and what the front loses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest

from dse.candidate import Candidate
from dse.stopping import CURVE, LEAST_CURVES, SAVED, STOPPED, Curves, needed_accuracy
from dse.storage import Storage
from dse.trial import Metric, MetricName, State, Trial
from tests.problems import STUDY, FormulaEvaluator, explorer, small_problem, small_record

Costs: TypeAlias = Mapping[MetricName, Metric]
PROBLEM = small_problem(f"{STUDY}early_stop: true\n")


def trial(number: int, curve: list[float], final: float) -> Trial:
    metrics = {"accuracy": Metric(final, final, final, "measured")}
    return Trial(number, State.COMPLETE, metrics=metrics, attrs={CURVE: curve})


def curves(count: int, noise: float = 0.02) -> Curves:
    source = np.random.default_rng(3)
    found = Curves()
    for number in range(count):
        final = float(source.uniform(0.6, 0.97))
        found.learn(trial(number, [final - 0.1 + float(source.normal(0, noise))], final))
    return found


def test_too_few_curves_tell_nothing() -> None:
    assert curves(LEAST_CURVES - 1).best_final(1, 0.7) is None
    assert curves(LEAST_CURVES).best_final(1, 0.7) is not None
    assert curves(LEAST_CURVES).best_final(2, 0.7) is None  # nobody got that far


def test_the_best_case_is_optimistic_and_rises_with_the_accuracy() -> None:
    known = curves(60)
    found = [known.best_final(1, accuracy) or 0.0 for accuracy in (0.5, 0.6, 0.7, 0.8, 0.85)]
    assert found == sorted(found)
    source = np.random.default_rng(8)
    finals = source.uniform(0.65, 0.95, 400)
    best = [known.best_final(1, f - 0.1 + source.normal(0, 0.02)) or 0.0 for f in finals]
    assert np.mean(np.array(best) >= finals) > 0.95
    assert np.mean(np.array(best) - finals) < 0.1


def test_less_noise_makes_it_less_optimistic() -> None:
    careful, sure = curves(40, 0.04).best_final(1, 0.7), curves(40, 0.002).best_final(1, 0.7)
    assert careful is not None
    assert sure is not None
    assert sure < careful


def test_what_is_needed_comes_from_who_costs_no_more() -> None:
    candidate = PROBLEM.space.int8_baseline(PROBLEM.reference_target)
    costs = PROBLEM.screen(candidate).metrics

    def rival(factor: float, accuracy: float, costs: Costs = costs) -> Trial:
        metrics: dict[str, Metric] = dict(trial(0, [], accuracy).metrics)
        for name, metric in costs.items():
            value = (metric.value or 0.0) * factor
            metrics[name] = Metric(value, value, value, "modelled")
        return replace(trial(0, [], accuracy), metrics=metrics)

    def needed(*front: Trial) -> float:
        return needed_accuracy(PROBLEM, candidate, front, 0.9)

    limit = 0.9 - 0.3
    assert needed() == pytest.approx(limit)
    assert needed(rival(10, 0.95)) == pytest.approx(limit)
    found = [PROBLEM.screen(replace(candidate, target=name)).metrics for name in PROBLEM.targets]
    least = {name: min((m[name] for m in found), key=lambda m: m.value or 0.0) for name in costs}
    assert needed(rival(1, 0.8, least)) == pytest.approx(0.8)  # it costs no more on any target
    for own in found:
        dear = rival(1.001, 0.8, own)
        assert needed(dear) == pytest.approx(limit)  # this target or another one is open


def test_epochs_are_saved_and_the_front_stays(tmp_path: Path) -> None:
    """Random search with and without: the same proposals, fewer epochs, the same hypervolume."""
    found = {}
    for name, problem in {"all": small_problem(), "stopped": PROBLEM}.items():
        with Storage(f"sqlite:///{tmp_path}/{name}.db") as storage:
            record = small_record(problem, n_trials=80)
            storage.create(record)
            evaluator = FormulaEvaluator(problem)
            assert explorer(storage, record, problem, evaluator).run(80) == "finished"
            found[name] = (evaluator, storage.trials("small"), storage.fronts("small")[-1])
    stopped = [t for t in found["stopped"][1] if STOPPED in t.violations]
    assert stopped
    for trial_ in stopped:
        assert trial_.state is State.INFEASIBLE
        assert trial_.value("accuracy") is None
        assert "its costs ask for more than" in trial_.reason
        assert trial_.attrs[SAVED] == 5 - len(trial_.attrs[CURVE])
        assert Candidate.from_json(trial_.candidate).key == trial_.candidate_key
    everything = 5 * len(found["stopped"][0].trained[2:])
    assert found["stopped"][0].epochs < 0.9 * everything
    assert found["stopped"][2].hypervolume > 0.98 * found["all"][2].hypervolume


def test_a_resumed_study_stops_the_same_trainings(tmp_path: Path) -> None:
    record = small_record(PROBLEM, n_trials=60)
    keys = []
    for parts in ((60,), (25, 60)):
        with Storage(f"sqlite:///{tmp_path}/{len(parts)}.db") as storage:
            storage.create(record)
            for part in parts:
                explorer(storage, record, PROBLEM, FormulaEvaluator(PROBLEM)).run(part)
            keys.append([(t.candidate_key, t.state, t.reason) for t in storage.trials("small")])
    assert keys[0] == keys[1]
