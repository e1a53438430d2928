"""Every released schema is upgraded whole or not at all, on SQLite and on PostgreSQL."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dse import optuna_tables, rows, schema
from dse.audit import audit, repair
from dse.database import make_engine, parse_url
from dse.errors import StorageError
from dse.storage import Storage
from tests import storage_samples as samples
from tests.postgresql import Server

OLD = schema.REVISIONS[:-1]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield samples.url(tmp_path)
        return
    server: Server = request.getfixturevalue("postgresql")
    database = server.new_database()
    yield server.url(database)
    server.drop(database)


def old_database(url: str, revision: str) -> None:
    """A study with a trial and an artifact, as a dse of that schema left them."""
    record, trial, blob = samples.record(), samples.finished(0), b"network"
    optuna_id = optuna_tables.create_study(parse_url(url), record)
    engine = make_engine(parse_url(url))
    with engine.connect().execution_options(dse_write=True) as connection, connection.begin():
        schema.upgrade(connection, to=revision)
        put(connection, "dse_studies", rows.study_row(record, optuna_id) | {"study_id": 1})
        knobs = rows.study_row(record, optuna_id)["distributions_json"]
        keys = optuna_tables.StudyKeys("digits", 1, optuna_id, record.objectives, knobs)
        trial_id = optuna_tables.insert(connection, keys, trial)
        row = rows.evaluation_row(trial, 1, trial_id) | {"evaluation_id": 1}
        put(connection, "dse_evaluations", row)
        digest = hashlib.sha256(blob).hexdigest()
        put(connection, "dse_artifacts", {"sha256": digest, "bytes": len(blob), "blob": blob})
        link = {"evaluation_id": 1, "kind": "graph", "sha256": digest}
        put(connection, "dse_trial_artifacts", link)
        for name in ("dse_studies_study_id", "dse_evaluations_evaluation_id"):
            if connection.dialect.name == "postgresql":  # keys were given, not drawn
                connection.exec_driver_sql(f"select setval('{name}_seq', 1)")
    engine.dispose()


def put(connection: Connection, table: str, row: dict[str, Any]) -> None:
    """Insert what the table of that version has columns for."""
    found = sa.Table(table, sa.MetaData(), autoload_with=connection)
    connection.execute(sa.insert(found), {k: v for k, v in row.items() if k in found.columns})


def content(url: str) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table of ours, with the names of its columns."""
    engine = make_engine(parse_url(url), readonly=True)
    found: dict[str, list[tuple[object, ...]]] = {}
    with engine.connect() as connection:
        for name in sorted(sa.inspect(connection).get_table_names()):
            if name.startswith("dse_"):
                result = connection.execute(sa.text(f"select * from {name}"))
                found[name] = [tuple(result.keys()), *map(tuple, result)]
    engine.dispose()
    return found


@pytest.mark.parametrize("revision", OLD)
def test_a_database_of_any_release_is_upgraded_and_goes_on(url: str, revision: str) -> None:
    old_database(url, revision)
    with pytest.raises(StorageError, match=f"made by an older dse .schema {revision}."):
        Storage.open_readonly(url)
    with Storage(url) as storage:
        assert storage.trials("digits") == [samples.finished(0)]
        assert storage.artifact("digits", 0, "graph") == b"network"
        assert storage.study("digits") == samples.record()
        storage.finish("digits", samples.finished(1))
        repair(storage, audit(storage))  # the front, which the old database does not have
        assert audit(storage) == []
        samples.check_optuna_agrees(storage, [samples.finished(0), samples.finished(1)])


@pytest.mark.parametrize("revision", OLD)
def test_an_upgrade_that_fails_at_its_end_leaves_the_old_database(
    url: str, revision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_database(url, revision)
    before = content(url)
    package = tmp_path / "dse"
    shutil.copytree(Path(schema.__file__).parent / "migrations", package / "migrations")
    (package / "migrations" / "versions" / "v9999_wrong.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n"
        f"revision, down_revision = '9999', '{schema.REVISIONS[-1]}'\n"
        "def upgrade():\n"
        "    op.add_column('dse_studies', sa.Column('price', sa.Float))\n"
        "    op.execute('update dse_artifacts set bytes = 0')\n"
        "    op.add_column('no_such_table', sa.Column('price', sa.Float))\n"
    )
    with monkeypatch.context() as patched:
        patched.setattr(schema, "REVISIONS", (*schema.REVISIONS, "9999"))
        patched.setattr(schema, "__file__", str(package / "schema.py"))
        with pytest.raises(StorageError):
            Storage(url)
    assert content(url) == before
    with Storage(url) as storage:
        assert storage.trials("digits") == [samples.finished(0)]
