"""Costs of stored trials on other targets, or by a changed cost model, without training anything.

The result is a study of its own, `NAME@LABEL`, in the same database: `dse front`, `show`, `report`
and all else work on it, and the original stays as it is. The network's shapes come from the stored
graph of the first trial, so that neither torch nor the data set is needed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dse.artifacts import GRAPH
from dse.candidate import Candidate
from dse.errors import StudyError, TargetError
from dse.front import Front
from dse.graph.archive import from_bytes
from dse.graph.channels import with_encodings
from dse.graph.ir import Graph
from dse.knobs import Knob
from dse.problem import Problem
from dse.provenance import versions
from dse.rows import StudyRecord
from dse.space import Space
from dse.storage import Storage
from dse.study import parse_study
from dse.targets import Board, Target, cost, find_backend, load_boards, parse_target
from dse.trial import COST_METRICS, State, Trial

NEVER_TRAINED = "its network was trained"
SAMPLES = "samples"  # as dse.samples names it, which needs torch


@dataclass(frozen=True)
class Rescored:
    """The new study's name, the counts of feasible trials, and what could not be rescored."""

    study: str
    trials: int
    feasible: int
    feasible_before: int
    never_trained: int
    left_out: tuple[str, ...]


def rescore(
    storage: Storage,
    name: str,
    label: str | None = None,
    targets: Sequence[str] = (),
    boards: Path | None = None,
) -> Rescored:
    """Cost every finished trial of a study again, and store the result as `name@label`.

    `targets` are `board/backend[/clock]`, and every network is costed on each of them; without,
    each trial keeps its own. `boards` is a folder with more board files, or changed ones.
    Raises StudyError, TargetError or StorageError with one sentence.
    """
    record = storage.study(name)
    if "@" in name:
        raise StudyError(f"'{name}' is a rescored study; rescore '{name.split('@')[0]}' instead")
    new_name = _label(storage, name, label)
    source = _Source(storage, record)
    known = load_boards(boards)
    wanted = [parse_target(text, known) for text in targets] or source.own_targets(known)
    usable, left_out = _usable(wanted, source)
    problem = source.problem(usable)
    judge = _Judge(source, problem)
    trials = list(judge.trials(each=bool(targets)))
    new = _record(record, problem, new_name, targets, len(trials))
    storage.create(new)
    front = Front(new)
    for trial in trials:
        members, hypervolume = front.after(trial)
        storage.finish(new.name, trial, members, hypervolume, judge.artifacts(trial))
    return Rescored(
        new.name,
        len(trials),
        sum(trial.feasible for trial in trials),
        sum(trial.feasible for trial in source.trials),
        judge.never_trained,
        left_out,
    )


class _Source:
    """The stored study: its trials, the network's shapes, and whose accuracy is known."""

    def __init__(self, storage: Storage, record: StudyRecord) -> None:
        self.storage, self.record = storage, record
        self.trials = [trial for trial in storage.trials(record.name) if trial.state.finished]
        blob = storage.artifact(record.name, 0, GRAPH) if self.trials else None
        if blob is None:
            raise StudyError(
                f"study '{record.name}' has no trained baseline yet, so its network is not known; "
                "run it first"
            )
        self.graph: Graph = from_bytes(blob)
        self.study = parse_study(record.study_file, f"study '{record.name}'")

    def own_targets(self, boards: Mapping[str, Board]) -> list[Target]:
        """The targets of the trials, as the boards are today."""
        texts = dict.fromkeys(Candidate.from_json(trial.candidate).target for trial in self.trials)
        try:
            return [parse_target(text, boards) for text in texts]
        except TargetError as error:
            raise TargetError(
                f"study '{self.record.name}' ran on a target that is not known now: {error}; give "
                "--boards its folder, or --target others"
            ) from error

    def problem(self, targets: Mapping[str, Target]) -> Problem:
        """The study's problem on other targets; its knobs but for the target stay."""
        knobs = [_knob(row) for row in self.record.space if row["kind"] != "target"]
        alignment = self.study.space.alignment or max(
            target.backend.channel_alignment for target in targets.values()
        )
        knobs.append(Knob("target", "target", tuple(targets)))
        space = Space(self.graph, tuple(knobs), tuple(targets), alignment)
        return Problem(self.study, space, targets, self._classes)

    @property
    def _classes(self) -> int:
        """From the reference point: the error of guessing is 1 - 1 / classes."""
        box = self.record.box
        if "accuracy" not in box.metrics:
            return 2
        return round(1 / (1 - box.reference[box.metrics.index("accuracy")]))

    @cached_property
    def measured(self) -> dict[tuple[str, str], list[Trial]]:
        """The trials that know a network's accuracy, by network and rounding contract."""
        found: dict[tuple[str, str], list[Trial]] = {}
        for trial in self.trials:
            if trial.value("accuracy") is not None:
                rounding = find_backend(trial.candidate["target"]["backend"]).rounding
                found.setdefault((trial.network_key, rounding), []).append(trial)
        return found

    @cached_property
    def contracts(self) -> dict[str, str]:
        """A contract under which each network was measured."""
        return dict(self.measured)


def _knob(row: Mapping[str, Any]) -> Knob:
    return Knob(**{**row, "choices": tuple(row["choices"]), "layers": tuple(row["layers"])})


def _usable(wanted: Iterable[Target], source: _Source) -> tuple[dict[str, Target], tuple[str, ...]]:
    """Targets that run the int8 network and know every objective; a sentence for the others."""
    usable: dict[str, Target] = {}
    left_out = []
    shapes = with_encodings(source.graph, {}, {}, "int8")
    for target in wanted:
        reasons = list(target.unsupported(shapes)[:1])
        if not reasons:
            metrics = cost(shapes, target).metrics
            reasons = [
                f"{name} is not known ({metrics[name].source})"
                for name in source.record.objectives
                if name in metrics and metrics[name].value is None
            ]
        if reasons:
            left_out.append(f"{target.key}: {reasons[0]}")
        else:
            usable[target.key] = target
    if not usable:
        raise TargetError(f"no target is left to rescore on: {'; '.join(left_out)}")
    return usable, tuple(left_out)


def _label(storage: Storage, name: str, label: str | None) -> str:
    """`name@label`; without a label 'rescored', then 'rescored-2' and so on."""
    taken = {found.name for found in storage.studies()}
    if label is not None:
        if not re.fullmatch(r"[\w.-]+", label):
            raise StudyError(f"--label is '{label}'; allowed are letters, digits, '_', '-' and '.'")
        if f"{name}@{label}" in taken:
            raise StudyError(f"study '{name}@{label}' exists; choose another --label")
        return f"{name}@{label}"
    numbers = (f"{name}@rescored" + (f"-{n}" if n > 1 else "") for n in range(1, len(taken) + 2))
    return next(found for found in numbers if found not in taken)


def _record(
    record: StudyRecord, problem: Problem, name: str, targets: Sequence[str], n_trials: int
) -> StudyRecord:
    origin = {"study": record.name, "targets": list(targets), "versions": dict(record.versions)}
    return replace(
        record,
        name=name,
        created=time.time(),
        definition={**record.definition, "rescored": origin},
        space_hash=problem.space.hash,
        space=problem.space.to_json(),
        distributions=problem.space.distributions,
        box=problem.box,
        n_trials=n_trials,
        versions=versions(),
    )


@dataclass
class _Judge:
    """Makes the new trials from the stored ones."""

    source: _Source
    problem: Problem
    never_trained: int = 0
    _origins: dict[int, list[Trial]] = field(default_factory=dict)

    def trials(self, *, each: bool) -> Iterator[Trial]:
        """The new trials in order: every network on each target, or every trial on its own."""
        pairs = self._crossed() if each else self._own()
        for number, (old, target) in enumerate(pairs):
            yield self._trial(number, old, target)

    def artifacts(self, trial: Trial) -> dict[str, bytes]:
        """The network of a trial with an accuracy; the first one also keeps the test samples."""
        found: dict[str, bytes] = {}
        storage, name = self.source.storage, self.source.record.name
        for origin in self._origins.get(trial.number, ()):
            blob = storage.artifact(name, origin.number, GRAPH)
            if blob is not None:
                found[GRAPH] = blob
                break
        samples = storage.artifact(name, 0, SAMPLES) if trial.number == 0 else None
        return found if samples is None else {**found, SAMPLES: samples}

    def _own(self) -> Iterator[tuple[Trial, str]]:
        for trial in self.source.trials:
            target = Candidate.from_json(trial.candidate).target
            if target not in self.problem.targets and trial.baseline:
                target = next(iter(self.problem.targets))  # a landmark of every study
            if target in self.problem.targets:
                yield trial, target

    def _crossed(self) -> Iterator[tuple[Trial, str]]:
        networks: dict[str, Trial] = {}
        for trial in self.source.trials:
            known = networks.setdefault(trial.network_key, trial)
            if known.value("accuracy") is None and trial.value("accuracy") is not None:
                networks[trial.network_key] = trial
        for trial in networks.values():
            for target in self.problem.targets:
                yield trial, target

    def _trial(self, number: int, old: Trial, target: str) -> Trial:
        candidate = replace(Candidate.from_json(old.candidate), target=target)
        screening = self.problem.screen(candidate)
        rounding = self.problem.targets[target].backend.rounding
        measured = self.source.measured.get((old.network_key, rounding))
        now = time.time()
        trial = replace(
            old,
            number=number,
            state=State.INFEASIBLE if screening.reasons else State.COMPLETE,
            params={**old.params, "target": target} if old.params else {},
            candidate=candidate.to_json(),
            candidate_key=candidate.key,
            metrics={name: screening.metrics[name] for name in COST_METRICS},
            test_accuracy=None,
            validation_samples=0,
            test_samples=0,
            violations=dict(screening.violations),
            reason="; ".join(screening.reasons),
            trained=False,
            stage_s={},
            started=now,
            finished=now,
            attrs={},
            proof=None,
        )
        if measured is None:
            return self._unknown(trial, old, rounding)
        self._origins[number] = measured
        return self._measured(trial, measured, target)

    def _measured(self, trial: Trial, known: Sequence[Trial], target: str) -> Trial:
        """The trial with what is known of its network; tested is who entered a front."""
        measured = next((one for one in known if one.test_accuracy is not None), known[0])
        accuracy = measured.metrics["accuracy"]
        baseline = self.source.trials[0].value("accuracy")
        violations, reasons = self.problem.judge(accuracy, baseline, target)
        reasons = (*([trial.reason] if trial.reason else []), *reasons)
        return replace(
            trial,
            state=State.INFEASIBLE if reasons else State.COMPLETE,
            metrics={"accuracy": accuracy, **trial.metrics},
            test_accuracy=measured.test_accuracy,
            validation_samples=measured.validation_samples,
            test_samples=measured.test_samples,
            violations={**trial.violations, **violations},
            reason="; ".join(reasons),
        )

    def _unknown(self, trial: Trial, old: Trial, rounding: str) -> Trial:
        """A network without an accuracy here: failed, rejected by cost, or rounded otherwise."""
        if old.state is State.FAILED:
            return replace(trial, state=State.FAILED, reason=old.reason)
        contract = self.source.contracts.get(old.network_key)
        if trial.reason:
            return trial
        self.never_trained += contract is None
        why = (
            f"its accuracy was measured under '{contract}' rounding, and this backend rounds "
            f"'{rounding}'; a study on this target measures it"
            if contract is not None
            else "it meets what costs decide here, but was never trained: "
            f"'{self.source.record.name}' rejected it ({old.reason})"
        )
        violations = {**trial.violations, NEVER_TRAINED: 1.0}
        return replace(trial, state=State.INFEASIBLE, reason=why, violations=violations)
