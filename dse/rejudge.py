"""Limits that change during a study: what is stored is judged anew, nothing is trained again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from dse.candidate import Candidate
from dse.errors import StudyError
from dse.front import front_of
from dse.problem import Problem
from dse.rows import StudyRecord
from dse.storage import Storage
from dse.trial import COST_METRICS, NEVER_MEASURED, State, Trial


def change_limits(storage: Storage, record: StudyRecord, problem: Problem, text: str) -> int:
    """Judge every stored trial of a study by the problem's constraints and store what that gives.

    `text` is the study file with them. States, violations and the newest front change; metrics,
    artifacts and earlier fronts stay. Returns how many trials changed. Raises StudyError while
    workers are at it.
    """
    busy = [worker for worker in storage.workers(record.name) if worker.live and not worker.gone]
    if busy:
        raise StudyError(
            f"{len(busy)} workers are at study '{record.name}' and judge by its old limits; end "
            "them first (dse status)"
        )
    trials = storage.trials(record.name)
    baseline = next((t.value("accuracy") for t in trials if t.number == 0), None)
    judged = [_judged(trial, problem, baseline) for trial in trials]
    changed = [new for old, new in zip(trials, judged, strict=True) if new != old]
    front, hypervolume = front_of(record, judged)
    definition = {**problem.study.searchable(), "folder": record.definition["folder"]}
    storage.rejudge(
        replace(
            record,
            study_file=text,
            definition=definition,
            constraints=tuple(constraint.text for constraint in problem.study.constraints),
        ),
        changed,
        front,
        hypervolume,
    )
    return len(changed)


def _judged(trial: Trial, problem: Problem, baseline: float | None) -> Trial:
    """The trial with the state that the constraints now give it; what failed or waits stays."""
    if trial.state not in (State.COMPLETE, State.INFEASIBLE):
        return trial
    target = Candidate.from_json(trial.candidate).target
    if any(trial.value(name) is None for name in problem.objectives if name != "accuracy"):
        return trial  # its backend cannot run it
    costs = {name: trial.metrics[name] for name in COST_METRICS}
    screening = problem.decide(costs, target)
    violations: Mapping[str, float] = screening.violations
    reasons: Sequence[str] = screening.reasons
    accuracy = trial.metrics.get("accuracy")
    if accuracy is not None:
        more, also = problem.judge(accuracy, baseline, target)
        violations, reasons = {**violations, **more}, (*reasons, *also)
    elif not reasons:
        # Rejected before: it may be proposed again, and is then trained.
        violations = {**violations, NEVER_MEASURED: 1.0}
        reasons = ("rejected by limits that no longer hold, and so never measured",)
    state = State.INFEASIBLE if reasons else State.COMPLETE
    return replace(trial, state=state, violations=violations, reason="; ".join(reasons))
