"""Limits and objectives that change during a study: what is stored counts anew.

Nothing is trained again. Every metric of every trial is stored, so an objective can become a limit,
and a limit an objective (docs/decisions/0013-preferences.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dse.candidate import Candidate
from dse.constraints import Constraint, parse_constraint
from dse.errors import StudyError, nearest
from dse.front import Front, front_of
from dse.problem import Problem
from dse.rows import FrontChange, StudyRecord
from dse.storage import Storage
from dse.study import parse_study
from dse.study_yaml import override_study
from dse.trial import COST_METRICS, METRICS, NEVER_MEASURED, MetricName, State, Trial


@dataclass(frozen=True)
class Changes:
    """What a study is to want from now on: limits and objectives that come and go.

    `limits` are texts, each in the place of one on the same metric; the others name metrics.
    """

    limits: Sequence[str] = ()
    dropped_limits: Sequence[str] = ()
    objectives: Sequence[str] = ()
    dropped_objectives: Sequence[str] = ()

    def __bool__(self) -> bool:
        """Whether anything changes."""
        return any((self.limits, self.dropped_limits, self.objectives, self.dropped_objectives))


def change_study(text: str, source: str, changes: Changes) -> str:
    """The file's text with other limits and objectives.

    Raises StudyError for a text that is no constraint, a metric that has none to drop, one that is
    (not) an objective already, and where no objective is left.
    """
    study = parse_study(text, source)
    objectives = _changed_objectives(study.objectives, changes)
    constraints = _changed_limits(study.constraints, changes)
    found = override_study(text, source, objectives=objectives, constraints=constraints)
    parse_study(found, source)
    return found


def _changed_limits(limits: Sequence[Constraint], changes: Changes) -> list[str]:
    known = {limit.metric for limit in limits}
    for metric in changes.dropped_limits:
        if metric not in known:
            raise StudyError(f"--drop-constraint names '{metric}'; {nearest(metric, known)}")
    new = [parse_constraint(limit) for limit in changes.limits]
    gone = {*changes.dropped_limits, *(limit.metric for limit in new)}
    return [limit.text for limit in (*(old for old in limits if old.metric not in gone), *new)]


def _changed_objectives(objectives: Sequence[MetricName], changes: Changes) -> list[str]:
    """Accuracy stays or comes first, what else is new comes last."""
    for flag, asked, allowed in (
        ("--drop-objective", changes.dropped_objectives, {*objectives}),
        ("--objective", changes.objectives, {*METRICS} - {*objectives}),
    ):
        for metric in asked:
            if metric not in allowed:
                raise StudyError(f"{flag} names '{metric}'; {nearest(metric, allowed)}")
    kept = [metric for metric in objectives if metric not in changes.dropped_objectives]
    return sorted([*kept, *changes.objectives], key=lambda metric: metric != "accuracy")


def rejudge(storage: Storage, record: StudyRecord, problem: Problem, text: str) -> int:
    """Judge every stored trial of a study by the problem's limits and objectives, and store that.

    `text` is the study file with them. States, violations and the newest front change; metrics and
    artifacts stay, and so do earlier fronts, unless they are of other objectives. Returns how many
    trials have another state or another limit. Raises StudyError while workers are at it, and when
    the objectives leave other targets than the study has.
    """
    _check_idle(storage, record)
    _check_targets(record, problem)
    new = replace(
        record,
        study_file=text,
        definition={**problem.study.searchable(), "folder": record.definition["folder"]},
        constraints=tuple(constraint.text for constraint in problem.study.constraints),
        objectives=problem.objectives,
        box=record.box.on(problem.objectives, problem.box),
    )
    trials = storage.trials(record.name)
    baseline = next((t.value("accuracy") for t in trials if t.number == 0), None)
    judged = [_judged(trial, problem, baseline) for trial in trials]
    changed = [new for old, new in zip(trials, judged, strict=True) if new != old]
    if new.objectives == record.objectives:
        storage.rejudge(new, changed, front_of(new, judged))
    else:
        storage.rejudge_all(new, judged, _fronts(new, judged))
    return len(changed)


def _check_idle(storage: Storage, record: StudyRecord) -> None:
    busy = [worker for worker in storage.workers(record.name) if worker.live and not worker.gone]
    if busy:
        raise StudyError(
            f"{len(busy)} workers are at study '{record.name}' and judge by its old limits; end "
            "them first (dse status)"
        )


def _check_targets(record: StudyRecord, problem: Problem) -> None:
    """A target on which an objective is not known is no part of a space, which may not change."""
    if problem.space.hash == record.space_hash:
        return
    known = next(found["choices"] for found in record.space if found["name"] == "target")
    come = [name for name in problem.targets if name not in known]
    go = [name for name in known if name not in problem.targets]
    said = [f"add {', '.join(come)}"] * bool(come) + [f"leave out {', '.join(go)}"] * bool(go)
    raise StudyError(
        f"the objectives {', '.join(problem.objectives)} would {' and '.join(said)}, as not every "
        f"metric is known on every target; give the study with them a new name"
    )


def _fronts(record: StudyRecord, trials: Sequence[Trial]) -> list[FrontChange]:
    """Every front that the trials had, one after another, in the objectives of now."""
    front = Front(record)
    return [
        FrontChange(trial.number, front.hypervolume, front.members)
        for trial in trials
        if front.add(trial)
    ]


def _judged(trial: Trial, problem: Problem, baseline: float | None) -> Trial:
    """The trial with the state that the constraints now give it; what failed or waits stays."""
    if trial.state not in (State.COMPLETE, State.INFEASIBLE):
        return trial
    candidate = Candidate.from_json(trial.candidate)
    if candidate.open:  # rejected by what its costs are at least
        screening = problem.screen(candidate)
    elif any(trial.value(name) is None for name in problem.objectives if name != "accuracy"):
        return trial  # its backend cannot run it
    else:
        costs = {name: trial.metrics[name] for name in COST_METRICS}
        screening = problem.decide(costs, candidate.target)
    violations: Mapping[str, float] = screening.violations
    reasons: Sequence[str] = screening.reasons
    accuracy = trial.metrics.get("accuracy")
    if accuracy is not None:
        more, also = problem.judge(accuracy, baseline, candidate.target)
        violations, reasons = {**violations, **more}, (*reasons, *also)
    elif not reasons:
        # Rejected before: it may be proposed again, and is then trained.
        violations = {**violations, NEVER_MEASURED: 1.0}
        reasons = ("rejected by limits that no longer hold, and so never measured",)
    state = State.INFEASIBLE if reasons else State.COMPLETE
    return replace(trial, state=state, violations=violations, reason="; ".join(reasons))
