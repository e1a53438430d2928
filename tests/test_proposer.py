"""Proposals while other workers train: what runs elsewhere is believed, not proposed again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dse.proposer import Proposal, Proposer
from dse.trial import COST_METRICS, Metric, State, Trial
from tests.problems import FormulaEvaluator, small_problem, small_record

PROBLEM = small_problem()


def trial_of(proposal: Proposal, state: State) -> Trial:
    """What the explorer makes of a proposal, with the accuracy of the formula once it is done."""
    candidate = proposal.candidate
    screening = PROBLEM.screen(candidate)
    metrics: dict[str, Metric] = {name: screening.metrics[name] for name in COST_METRICS}
    if state is State.COMPLETE:
        rounding = PROBLEM.targets[candidate.target].backend.rounding
        metrics["accuracy"] = FormulaEvaluator(PROBLEM).evaluate(candidate, rounding).accuracy
    return Trial(
        number=proposal.number,
        state=state,
        params=proposal.params,
        candidate=candidate.to_json(),
        candidate_key=candidate.key,
        network_key=candidate.network_key,
        metrics=metrics,
        parameters=1,
        macs=1,
        violations=screening.violations,
        attrs=proposal.attrs,
    )


def proposer(sampler: str = "grey-box") -> Proposer:
    return Proposer(PROBLEM, small_record(PROBLEM, sampler=sampler))


def asked(found: Proposer, number: int, known: set[str]) -> Proposal:
    proposal = found.propose(number, number, known)
    assert proposal is not None
    return proposal


def led(trials: int, sampler: str = "grey-box") -> tuple[Proposer, list[Trial], set[str]]:
    """A proposer that led so many trials one after the other."""
    found, done, known = proposer(sampler), list[Trial](), set[str]()
    for number in range(trials):
        proposal = asked(found, number, known)
        done.append(trial_of(proposal, State.COMPLETE))
        known.add(done[-1].candidate_key)
        found.tell(done[-1], proposal.asked)
    return found, done, known


def test_workers_that_hear_of_each_other_train_different_networks() -> None:
    """Each has a proposer of its own, as in processes; keys of targets alone tell too little."""
    _, done, known = led(10)
    running: list[Trial] = []
    for number in range(10, 14):
        mine = proposer()
        for trial in done:
            mine.tell(trial)
        for trial in running:
            mine.believe(trial)
        running.append(trial_of(asked(mine, number, known), State.RUNNING))
    networks = {trial.network_key for trial in (*done, *running)}
    assert len(networks) == len(done) + len(running)


@pytest.mark.parametrize("sampler", ["grey-box", "tpe"])
def test_what_ran_elsewhere_counts_like_any_other_once_it_is_done(sampler: str) -> None:
    _, done, known = led(12, sampler)
    whole, parts = proposer(sampler), proposer(sampler)
    for trial in done:
        whole.tell(trial)
    for trial in done[:11]:
        parts.tell(trial)
    parts.believe(replace(done[11], state=State.RUNNING))
    parts.believe(replace(done[11], state=State.RUNNING))  # heard of twice
    parts.tell(done[11])
    assert asked(parts, 12, known).params == asked(whole, 12, known).params


def test_a_failure_elsewhere_teaches_nothing_and_is_not_repeated() -> None:
    _, done, known = led(10)
    mine = proposer()
    for trial in done[:9]:
        mine.tell(trial)
    mine.believe(replace(done[9], state=State.RUNNING))
    lost = {name: m for name, m in done[9].metrics.items() if name != "accuracy"}
    mine.tell(replace(done[9], state=State.FAILED, metrics=lost, reason="no memory"))
    assert asked(mine, 10, known).candidate.network_key != done[9].network_key
