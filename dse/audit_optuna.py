"""Whether Optuna's tables say of a study what ours say; ours are the truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dse import optuna_tables, schema
from dse.finding import Finding, listed
from dse.rows import StudyRecord
from dse.storage import Storage, Turn
from dse.trial import Trial

_PREFIX = "constraints:"


def compare(
    storage: Storage, connection: Connection, record: StudyRecord, trials: Sequence[Trial]
) -> Iterator[Finding]:
    """Findings where Optuna has no such study, or other trials, parameters, values or limits."""
    name = record.name
    studies, ours = optuna_tables.studies, schema.studies
    optuna_study_id = connection.execute(
        sa.select(ours.c.optuna_study_id).where(ours.c.name == name)
    ).scalar_one()
    chosen = sa.select(studies.c.study_name).where(studies.c.study_id == optuna_study_id)
    called = connection.execute(chosen).scalar()
    if called != name:
        yield _gone(record, called, optuna_study_id)
        return
    known = _their_trials(connection, optuna_study_id)
    ids = _trial_ids(connection, name)
    wrong = [t.number for t in trials if known.get(ids[t.number]) != _as_theirs(t, record)]
    if wrong:
        yield _other(name, wrong)
    foreign = sorted(known[trial_id]["number"] for trial_id in set(known) - set(ids.values()))
    if foreign:
        yield Finding(
            name,
            f"Optuna has trials {listed(foreign)} that dse did not write; they stay there, and dse "
            "passes over them",
            kind="note",
        )


def _gone(record: StudyRecord, called: str | None, optuna_study_id: int) -> Finding:
    """Deleted or renamed in Optuna's dashboard: no trial can be added to it."""

    def again(storage: Storage) -> str:
        optuna_tables_id = optuna_tables.create_study(storage.url, record)
        with storage.writing() as connection:
            mine = schema.studies.c.name == record.name
            connection.execute(
                sa.update(schema.studies).where(mine).values(optuna_study_id=optuna_tables_id)
            )
        numbers = [trial.number for trial in storage.trials(record.name)]
        storage.turn(record.name, lambda turn: _rewrite(turn, numbers))
        return f"'{record.name}': made again in Optuna's tables, with its {len(numbers)} trials"

    def rename(storage: Storage) -> str:
        table = optuna_tables.studies
        with storage.writing() as connection:
            this = table.c.study_id == optuna_study_id
            connection.execute(sa.update(table).where(this).values(study_name=record.name))
        return f"'{record.name}': has its name again in Optuna's tables"

    if called is None:
        found = "the study was deleted in Optuna's tables, so no trial can be added"
        return Finding(record.name, found, "make it there again from ours", mend=again)
    found = f"the study is called '{called}' in Optuna's tables, so no trial can be added"
    return Finding(record.name, found, "rename it back", mend=rename)


def _other(name: str, numbers: Sequence[int]) -> Finding:
    def mend(storage: Storage) -> str:
        storage.turn(name, lambda turn: _rewrite(turn, numbers))
        return f"'{name}': wrote trials {listed(numbers)} anew into Optuna's tables"

    found = f"Optuna's tables say something else of trials {listed(numbers)}"
    return Finding(name, found, "write them anew there from ours", mend=mend)


def _rewrite(turn: Turn, numbers: Sequence[int]) -> None:
    for number in numbers:
        turn.rewrite_optuna(number)


def _as_theirs(trial: Trial, record: StudyRecord) -> dict[str, Any]:
    """What Optuna's tables have to say of a trial."""
    state = optuna_tables.state_name(trial, record.objectives)
    complete = state == "COMPLETE"
    knobs = record.distributions
    return {
        "number": trial.number,
        "state": state,
        "params": {k: float(knobs[k].to_internal_repr(v)) for k, v in trial.params.items()},
        "values": {
            index: trial.value(name) for index, name in enumerate(record.objectives) if complete
        },
        "limits": {_PREFIX + text: float(miss) for text, miss in trial.violations.items()},
    }


def _their_trials(connection: Connection, optuna_study_id: int) -> dict[int, dict[str, Any]]:
    """What they say, by Optuna's trial_id."""
    trials = optuna_tables.trials
    mine = trials.c.study_id == optuna_study_id
    found: dict[int, dict[str, Any]] = {
        row.trial_id: {"number": row.number, "state": row.state, "params": {}, "values": {}}
        | {"limits": {}}
        for row in connection.execute(
            sa.select(trials.c.trial_id, trials.c.number, trials.c.state).where(mine)
        )
    }
    params, values = optuna_tables.trial_params.c, optuna_tables.trial_values.c
    attributes = optuna_tables.system_attributes.c
    of_study = sa.select(trials.c.trial_id).where(mine)
    for part, key, value, column in (
        ("params", params.param_name, params.param_value, params.trial_id),
        ("values", values.objective, values.value, values.trial_id),
        ("limits", attributes.key, attributes.value_json, attributes.trial_id),
    ):
        rows = connection.execute(sa.select(column, key, value).where(column.in_(of_study)))
        for trial_id, name, content in rows:
            if part != "limits":
                found[trial_id][part][name] = content
            elif name.startswith(_PREFIX):
                found[trial_id][part][name] = float(content)
    return found


def _trial_ids(connection: Connection, name: str) -> Mapping[int, int]:
    """Optuna's trial_id by number, as our rows remember it."""
    columns, studies = schema.evaluations.c, schema.studies.c
    chosen = (
        sa.select(columns.number, columns.optuna_trial_id)
        .join(schema.studies, studies.study_id == columns.study_id)
        .where(studies.name == name)
    )
    return {row.number: row.optuna_trial_id for row in connection.execute(chosen)}
