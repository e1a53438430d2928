"""Artifacts of trials in the database: bytes by kind, stored once by their content."""

from __future__ import annotations

import hashlib

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from dse import schema
from dse.errors import StorageError

# The kind that holds a trained network (dse/graph/archive.py).
GRAPH = "graph"


def put_artifact(connection: Connection, evaluation_id: int, kind: str, blob: bytes) -> None:
    """Give a trial an artifact, in the place of one of the same kind."""
    links = schema.trial_artifacts
    same = (links.c.evaluation_id == evaluation_id) & (links.c.kind == kind)
    connection.execute(sa.delete(links).where(same))
    digest = hashlib.sha256(blob).hexdigest()
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    content = {"sha256": digest, "bytes": len(blob), "blob": blob}
    connection.execute(dialect.insert(schema.artifacts).values(content).on_conflict_do_nothing())
    link = {"evaluation_id": evaluation_id, "kind": kind, "sha256": digest}
    connection.execute(sa.insert(links), link)


def get_artifact(
    connection: Connection, study_id: int, kind: str, trials: sa.ColumnElement[bool]
) -> bytes | None:
    """The artifact of the first of some trials of a study that has one of this kind.

    Raises StorageError when the stored bytes are not those that were written.
    """
    evaluations, links, blobs = schema.evaluations, schema.trial_artifacts, schema.artifacts
    found = connection.execute(
        sa.select(blobs.c.sha256, blobs.c.blob, evaluations.c.number)
        .join(links, links.c.sha256 == blobs.c.sha256)
        .join(evaluations, evaluations.c.evaluation_id == links.c.evaluation_id)
        .where(evaluations.c.study_id == study_id, trials, links.c.kind == kind)
        .order_by(evaluations.c.number)
        .limit(1)
    ).one_or_none()
    if found is None:
        return None
    if hashlib.sha256(found.blob).hexdigest() != found.sha256:
        raise StorageError(
            f"the {kind} of trial {found.number} is damaged: its bytes are not those stored; "
            "evaluate the candidate again"
        )
    return bytes(found.blob)


def same_network(study_id: int, number: int) -> sa.ColumnElement[bool]:
    """Which trials of a study have the network of this one."""
    columns = schema.evaluations.c
    own = sa.select(columns.network_key).where(
        columns.study_id == study_id, columns.number == number
    )
    return columns.network_key == own.scalar_subquery()
