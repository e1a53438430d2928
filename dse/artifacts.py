"""Artifacts of trials: bytes by kind, kept once by content, in the database or in a store."""

from __future__ import annotations

import hashlib
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from dse import schema
from dse.artifact_store import DAMAGED, MISSING, LostError, asked_store, find_store
from dse.errors import StorageError

# The kind that holds a trained network (dse/graph/archive.py).
GRAPH = "graph"
LOST = (MISSING, DAMAGED)
# The kind that counts test samples by class and class taken (dse/confusion.py).
CONFUSION = "confusion"


def put_artifact(
    connection: Connection, evaluation_id: int, kind: str, blob: bytes, store: str | None = None
) -> None:
    """Give a trial an artifact, in the place of one of the same kind.

    The bytes go to the store at the URL `store`, else the one of the environment, else into the
    database. Content that is there already takes these bytes: it may have been damaged or lost.
    """
    links = schema.trial_artifacts
    unlink(connection, evaluation_id, kind)
    url = asked_store(store)
    digest = hashlib.sha256(blob).hexdigest() if url is None else find_store(url).put(blob)
    content = {"bytes": len(blob), "blob": blob if url is None else b"", "store": url}
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(
        dialect.insert(schema.artifacts)
        .values(content | {"sha256": digest})
        .on_conflict_do_update(index_elements=["sha256"], set_=content)
    )
    link = {"evaluation_id": evaluation_id, "kind": kind, "sha256": digest}
    connection.execute(sa.insert(links), link)


def unlink(connection: Connection, evaluation_id: int, kind: str) -> None:
    """Take an artifact off a trial; its content stays."""
    links = schema.trial_artifacts
    same = (links.c.evaluation_id == evaluation_id) & (links.c.kind == kind)
    connection.execute(sa.delete(links).where(same))


def get_artifact(
    connection: Connection, study_id: int, kind: str, trials: sa.ColumnElement[bool]
) -> bytes | None:
    """The artifact of the first of some trials of a study that has one of this kind.

    Raises StorageError when the stored bytes are not those that were written, or not there.
    """
    evaluations, links, blobs = schema.evaluations, schema.trial_artifacts, schema.artifacts
    found = connection.execute(
        sa.select(*blobs.c, evaluations.c.number)
        .join(links, links.c.sha256 == blobs.c.sha256)
        .join(evaluations, evaluations.c.evaluation_id == links.c.evaluation_id)
        .where(evaluations.c.study_id == study_id, trials, links.c.kind == kind)
        .order_by(evaluations.c.number)
        .limit(1)
    ).one_or_none()
    return None if found is None else _bytes(found, f"{kind} of trial {found.number}")


def list_artifacts(
    connection: Connection, study_id: int, number: int | None = None
) -> dict[int, dict[str, str]]:
    """SHA-256 by kind, by the trial's number; of one trial where it is given."""
    columns, links = schema.evaluations.c, schema.trial_artifacts.c
    chosen = (
        sa.select(columns.number, links.kind, links.sha256)
        .join(schema.evaluations, columns.evaluation_id == links.evaluation_id)
        .where(
            columns.study_id == study_id, *([] if number is None else [columns.number == number])
        )
        .order_by(columns.number, links.kind)
    )
    found: dict[int, dict[str, str]] = {}
    for row in connection.execute(chosen):
        found.setdefault(row.number, {})[row.kind] = row.sha256
    return found


def check_artifact(connection: Connection, digest: str) -> str:
    """Empty when its bytes are those stored; else what they are (LOST), or why nobody can say."""
    blobs = schema.artifacts
    chosen = sa.select(*blobs.c).where(blobs.c.sha256 == digest)
    found = connection.execute(chosen).one_or_none()
    if found is None:
        return MISSING
    if found.store is None:
        return "" if hashlib.sha256(found.blob).hexdigest() == digest else DAMAGED
    try:
        _bytes(found, "artifact")
    except StorageError as error:
        return error.state if isinstance(error, LostError) else str(error)
    return ""


def same_network(study_id: int, number: int) -> sa.ColumnElement[bool]:
    """Which trials of a study have the network of this one."""
    columns = schema.evaluations.c
    own = sa.select(columns.network_key).where(
        columns.study_id == study_id, columns.number == number
    )
    return columns.network_key == own.scalar_subquery()


def _bytes(row: Any, what: str) -> bytes:
    """The content of a row of dse_artifacts, checked."""
    if row.store is not None:
        return _from_store(row, what)
    if hashlib.sha256(row.blob).hexdigest() != row.sha256:
        raise StorageError(
            f"the {what} is damaged: its bytes are not those stored; evaluate the candidate again"
        )
    return bytes(row.blob)


def _from_store(row: Any, what: str) -> bytes:
    """From the store that is asked for now, where it is there, else from where it was written."""
    urls = dict.fromkeys(url for url in (asked_store(), row.store) if url is not None)
    for url in list(urls)[:-1]:
        try:
            return find_store(url).get(row.sha256, what)
        except StorageError:
            continue
    return find_store(list(urls)[-1]).get(row.sha256, what)
