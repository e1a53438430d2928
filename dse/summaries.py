"""What `dse studies` shows: counts and newest fronts of all studies, one query each."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dse import schema
from dse.trial import State


def counts(connection: Connection) -> dict[int, dict[State, int]]:
    """Trials by state, by study_id."""
    column = schema.evaluations.c
    found: dict[int, dict[State, int]] = {}
    for study_id, state, count in connection.execute(
        sa.select(column.study_id, column.state, sa.func.count()).group_by(
            column.study_id, column.state
        )
    ):
        found.setdefault(study_id, {})[State(state)] = count
    return found


def newest_fronts(connection: Connection) -> dict[int, tuple[float, str]]:
    """Hypervolume and members_json of each study's last front, by study_id."""
    fronts = schema.fronts.c
    newest = (
        sa.select(fronts.study_id, sa.func.max(fronts.number).label("number"))
        .group_by(fronts.study_id)
        .subquery()
    )
    found = connection.execute(
        sa.select(fronts.study_id, fronts.hypervolume, fronts.members_json).join(
            newest, (newest.c.study_id == fronts.study_id) & (newest.c.number == fronts.number)
        )
    )
    return {row[0]: (row[1], row[2]) for row in found}
