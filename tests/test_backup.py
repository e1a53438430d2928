"""A copy of a database is whole, and taken while others write."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from dse.backup import backup
from dse.errors import StorageError
from dse.storage import Storage
from tests import storage_samples as samples


def test_a_copy_taken_while_trials_are_written_holds_a_whole_beginning(tmp_path: Path) -> None:
    url, count, enough = samples.url(tmp_path), 120, threading.Event()
    with Storage(url) as storage:
        storage.create(samples.record())

        def write() -> None:
            for number in range(count):
                storage.finish(
                    "digits", samples.finished(number), artifacts={"graph": b"g" * number}
                )
                if number == 40:
                    enough.set()

        writer = threading.Thread(target=write)
        writer.start()
        enough.wait(60)
        copies = [tmp_path / f"copy{index}.db" for index in range(3)]
        for copy in copies:
            backup(url, copy)
        writer.join()
        whole = storage.trials("digits")
    assert len(whole) == count
    for copy in copies:
        with Storage.open_readonly(f"sqlite:///{copy}") as reader:
            found = reader.trials("digits")
            assert 40 <= len(found) <= count
            assert found == whole[: len(found)]
            last = found[-1].number
            assert reader.artifact("digits", last, "graph") == b"g" * last
    assert not list(tmp_path.glob("copy*-*"))
    assert {path.name for path in tmp_path.glob("copy*")} == {copy.name for copy in copies}


def test_a_copy_is_one_file_that_opens_for_writing(tmp_path: Path) -> None:
    with Storage(samples.url(tmp_path)) as storage:
        storage.create(samples.record())
    copy = tmp_path / "copy.db"
    assert backup(samples.url(tmp_path), copy) == copy.stat().st_size
    with Storage(f"sqlite:///{copy}") as storage:
        storage.finish("digits", samples.finished(0))
        samples.check_optuna_agrees(storage, [samples.finished(0)])


def test_an_existing_file_is_not_overwritten_unasked(tmp_path: Path) -> None:
    with Storage(samples.url(tmp_path)) as storage:
        storage.create(samples.record())
    copy = tmp_path / "copy.db"
    copy.write_text("mine")
    with pytest.raises(StorageError, match="exists already"):
        backup(samples.url(tmp_path), copy)
    assert copy.read_text() == "mine"
    backup(samples.url(tmp_path), copy, force=True)
    with sqlite3.connect(copy) as connection:
        assert connection.execute("select name from dse_studies").fetchall() == [("digits",)]


def test_what_cannot_be_copied_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    with pytest.raises(StorageError, match="there is no database at"):
        backup(samples.url(tmp_path), copy)
    (tmp_path / "study.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(StorageError, match="cannot be copied"):
        backup(samples.url(tmp_path), copy)
    with pytest.raises(StorageError, match="cannot be written"):
        backup(samples.url(tmp_path), tmp_path / "no folder" / "copy.db")
    assert [path.name for path in tmp_path.iterdir()] == ["study.db"]


def test_postgresql_is_answered_with_its_own_command_and_no_password(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as told:
        backup("postgresql://me:hunter2@host:5433/studies", tmp_path / "my copy.dump")
    assert "pg_dump --format=custom --file='" in str(told.value)
    assert "postgresql://me@host:5433/studies" in str(told.value)
    assert "hunter2" not in str(told.value)
