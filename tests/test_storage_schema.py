"""The schema of our tables: made by migrations alone, upgraded on opening, refused when newer."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from dse import schema
from dse.errors import StorageError
from dse.storage import Storage
from tests import storage_samples as samples

NEXT = f"{int(schema.REVISIONS[-1]) + 1:04d}"


@pytest.fixture
def storage(any_url: str) -> Iterator[Storage]:
    with Storage(any_url) as found:
        found.create(samples.record())
        yield found


def address(storage: Storage) -> str:
    return storage.url.render_as_string(hide_password=False)


def test_migrations_make_the_tables_that_the_code_uses(storage: Storage) -> None:
    def ours(_object: object, name: str | None, kind: str, *_: object) -> bool:
        return kind != "table" or (str(name).startswith("dse_") and name != schema.VERSION_TABLE)

    with storage._read() as connection:
        context = MigrationContext.configure(
            connection, opts={"include_object": ours, "compare_type": True}
        )
        assert compare_metadata(context, schema.ours) == []


def test_known_revisions_are_those_of_the_scripts() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    scripts = ScriptDirectory.from_config(config).walk_revisions()
    assert tuple(script.revision for script in scripts)[::-1] == schema.REVISIONS


def test_the_two_version_tables_are_apart(storage: Storage) -> None:
    assert samples.sql(storage, "select * from dse_schema_version") == [(schema.REVISIONS[-1],)]
    assert samples.sql(storage, "select * from alembic_version") != [(schema.REVISIONS[-1],)]


def test_an_older_database_is_upgraded_on_opening(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A release from now: one more script, run when an old database is opened."""
    storage.finish("digits", samples.finished(0))
    storage.close()
    package = tmp_path / "dse"
    shutil.copytree(Path(schema.__file__).parent / "migrations", package / "migrations")
    (package / "migrations" / "versions" / f"v{NEXT}_price.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n"
        f"revision, down_revision = '{NEXT}', '{schema.REVISIONS[-1]}'\n"
        "def upgrade():\n"
        "    op.add_column('dse_studies', sa.Column('price', sa.Float))\n"
    )
    monkeypatch.setattr(schema, "REVISIONS", (*schema.REVISIONS, NEXT))
    monkeypatch.setattr(schema, "__file__", str(package / "schema.py"))
    url = address(storage)
    with pytest.raises(StorageError, match="made by an older dse"):
        Storage.open_readonly(url)
    with Storage(url) as opened:
        assert samples.sql(opened, "select price from dse_studies") == [(None,)]
        assert samples.sql(opened, "select * from dse_schema_version") == [(NEXT,)]
        assert opened.trials("digits") == [samples.finished(0)]
    with Storage.open_readonly(url) as reader:
        assert reader.trials("digits") == [samples.finished(0)]


def test_an_upgrade_that_fails_changes_nothing(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    storage.close()
    package = tmp_path / "dse"
    shutil.copytree(Path(schema.__file__).parent / "migrations", package / "migrations")
    (package / "migrations" / "versions" / f"v{NEXT}_wrong.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n"
        f"revision, down_revision = '{NEXT}', '{schema.REVISIONS[-1]}'\n"
        "def upgrade():\n"
        "    op.add_column('dse_studies', sa.Column('price', sa.Float))\n"
        "    op.add_column('no_such_table', sa.Column('price', sa.Float))\n"
    )
    with monkeypatch.context() as patched:
        patched.setattr(schema, "REVISIONS", (*schema.REVISIONS, NEXT))
        patched.setattr(schema, "__file__", str(package / "schema.py"))
        with pytest.raises(StorageError, match=r"no_such_table|table is missing"):
            Storage(address(storage))
    with Storage(address(storage)) as opened:
        with opened._read() as connection:
            columns = [c["name"] for c in sa.inspect(connection).get_columns("dse_studies")]
        assert "price" not in columns
        assert opened.study("digits") == samples.record()


def test_downgrade_and_upgrade_again(storage: Storage) -> None:
    """The first script undone leaves Optuna's tables alone and can be run anew."""
    with storage._write() as connection:
        config = Config()
        config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        tables = sa.inspect(connection).get_table_names()
        assert [name for name in tables if name.startswith("dse_")] == [schema.VERSION_TABLE]
        assert "trials" in tables
        schema.upgrade(connection)
    assert storage.studies() == []


@pytest.mark.parametrize("readonly", [False, True])
def test_a_newer_database_is_refused(storage: Storage, readonly: bool) -> None:
    storage.close()
    with storage._write() as connection:
        connection.exec_driver_sql("update dse_schema_version set version_num = '0417'")
    storage.close()
    with pytest.raises(StorageError, match=r"schema version 0417.*a newer dse wrote it"):
        Storage(address(storage), readonly=readonly)
