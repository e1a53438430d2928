"""Reading only, and what the database says when it cannot do what is asked."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa

from dse.database import parse_url, shown
from dse.errors import StorageError
from dse.storage import Storage
from dse.trial import Metric, State, Trial
from tests import storage_samples as samples


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    with Storage(samples.url(tmp_path)) as found:
        found.create(samples.record())
        yield found


def test_readonly_changes_nothing(storage: Storage) -> None:
    storage.finish("digits", samples.finished(0))
    url = storage.url.render_as_string()
    storage.close()
    path = Path(storage.url.database or "")
    before = path.read_bytes()
    with Storage.open_readonly(url) as reader:
        assert reader.trials("digits") == [samples.finished(0)]
        with pytest.raises(StorageError, match="open for reading only"):
            reader.finish("digits", samples.finished(1))
        with pytest.raises(StorageError, match="open for reading only"):
            reader.create(samples.record("other"))
        with reader._read() as connection, pytest.raises(sa.exc.OperationalError, match="readonly"):
            connection.exec_driver_sql("delete from dse_studies")
    assert path.read_bytes() == before


def test_readonly_never_creates_the_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="there is no database at"):
        Storage.open_readonly(samples.url(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_name_with_url_signs_opens(tmp_path: Path) -> None:
    url = samples.url(tmp_path, "50% of a#b.db")
    with Storage(url) as storage:
        storage.create(samples.record())
    with Storage.open_readonly(url) as reader:
        assert reader.study("digits") == samples.record()


@pytest.fixture
def nobody() -> Iterator[None]:
    """Permissions do not stop the superuser, so a test of them becomes an ordinary user."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def sealed() -> Iterator[Path]:
    """A database in a folder that nobody may write to."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Storage(samples.url(folder)) as storage:
            storage.create(samples.record())
            storage.finish("digits", samples.finished(0))
        (folder / "study.db").chmod(0o444)
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)


def test_readonly_works_in_a_folder_without_permission(sealed: Path, nobody: None) -> None:
    with Storage.open_readonly(samples.url(sealed)) as reader:
        assert reader.trials("digits") == [samples.finished(0)]


def test_writing_without_permission(sealed: Path, nobody: None) -> None:
    with pytest.raises(StorageError, match="permission"), Storage(samples.url(sealed)) as storage:
        storage.finish("digits", samples.finished(1))


def test_creating_without_permission(sealed: Path, nobody: None) -> None:
    with pytest.raises(StorageError, match="permission"):
        Storage(samples.url(sealed, "new.db")).create(samples.record())


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("study.db", "write sqlite:///study.db"),
        ("", "not a storage URL"),
        ("mysql://host/db", "unknown storage 'mysql://'.*allowed: postgresql, sqlite"),
        ("sqlit:///x.db", "did you mean 'sqlite'"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:////nowhere/at/all/x.db", "folder /nowhere/at/all does not exist"),
        ("sqlite:////tmp", "is a folder"),
        ("postgresql://me@host:port/db", "cannot be read"),
    ],
)
def test_wrong_urls(url: str, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        Storage(url)


def test_a_missing_postgresql_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StorageError, match=r'pip install "dse\[postgresql\]"'):
        Storage("postgresql://me:secret@localhost/db")


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    path.write_text("learning_rate: 0.1\n" * 100)
    for readonly in (False, True):
        with pytest.raises(StorageError, match="is not a SQLite database"):
            Storage(samples.url(tmp_path), readonly=readonly)
    assert path.read_text().startswith("learning_rate")


def test_a_damaged_database(storage: Storage) -> None:
    for number in range(40):
        storage.finish("digits", samples.finished(number))
    storage.close()
    path = Path(storage.url.database or "")
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(StorageError, match="damaged"), Storage(samples.url(path.parent)) as broken:
        broken.trials("digits")


def test_a_database_deleted_while_open(storage: Storage) -> None:
    storage.close()
    Path(storage.url.database or "").unlink()
    with pytest.raises(StorageError, match="there is no database"):
        storage.trials("digits")
    with pytest.raises(StorageError, match="there is no database"):
        storage.finish("digits", samples.finished(0))
    assert list(Path(storage.url.database or "").parent.iterdir()) == []


def test_a_missing_file_is_not_made_by_reading(tmp_path: Path) -> None:
    storage = Storage(samples.url(tmp_path))
    with pytest.raises(StorageError, match="there is no database at"):
        storage.study("digits")
    assert list(tmp_path.iterdir()) == []


def test_studies_that_exist_or_do_not(storage: Storage) -> None:
    with pytest.raises(StorageError, match="study 'digits' exists"):
        storage.create(samples.record())
    with pytest.raises(StorageError, match=r"no study 'digit'.*did you mean 'digits'"):
        storage.study("digit")
    with pytest.raises(StorageError, match="no study 'digit'"):
        storage.finish("digit", samples.finished(0))


def test_a_study_deleted_in_optuna_is_kept_but_closed(storage: Storage) -> None:
    storage.finish("digits", samples.finished(0))
    optuna.delete_study(
        study_name="digits", storage=storage.url.render_as_string(hide_password=False)
    )
    assert storage.trials("digits") == [samples.finished(0)]
    with pytest.raises(StorageError, match="was deleted or renamed in Optuna's tables"):
        storage.finish("digits", samples.finished(1))


def test_a_finished_trial_is_never_overwritten(storage: Storage) -> None:
    storage.finish("digits", samples.finished(0))
    for trial in (samples.finished(0), Trial(0, State.FAILED)):
        with pytest.raises(StorageError, match="trial 0 is finished already"):
            storage.finish("digits", trial)
    with pytest.raises(StorageError, match="trial 0 is finished already"):
        storage.begin("digits", Trial(0, State.RUNNING))
    assert storage.trials("digits") == [samples.finished(0)]


@pytest.mark.parametrize(
    ("trial", "message"),
    [
        (samples.finished(1), "the next one is number 0; found 1"),
        (Trial(0, State.RUNNING), "is running, not finished"),
        (Trial(0, State.WAITING), "is waiting, not finished"),
        (Trial(0, State.COMPLETE), "accuracy, flash, latency is not known"),
        (samples.finished(0, params={"bitz": 3}), "knob 'bitz'"),
        (samples.finished(0, params={"board": "esp32"}), "'esp32' is not a value of the knob"),
        (
            replace(
                samples.finished(0),
                metrics={**samples.finished(0).metrics, "price": Metric(1, 1, 1, "measured")},
            ),
            "without a column",
        ),
        (samples.finished(0, violations={samples.LIMIT: 0.1}), "misses"),
    ],
)
def test_wrong_trials(storage: Storage, trial: Trial, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        storage.finish("digits", trial)
    assert storage.trials("digits") == []


def test_other_wrong_arguments(storage: Storage) -> None:
    with pytest.raises(StorageError, match="begins as running"):
        storage.begin("digits", samples.finished(0))
    with pytest.raises(StorageError, match="together"):
        storage.finish("digits", samples.finished(0), front=(0,))
    with pytest.raises(StorageError, match="has no trial 7"):
        storage.set_test_accuracy("digits", 7, Metric(1, 1, 1, "measured"), 10)
    with pytest.raises(StorageError, match="at least one trial"):
        storage.update_n_trials("digits", 0)


def test_wrong_records() -> None:
    record = samples.record()
    with pytest.raises(StorageError, match="1 to 512 characters"):
        replace(record, name="")
    with pytest.raises(StorageError, match="at least one trial"):
        replace(record, n_trials=0)
    with pytest.raises(StorageError, match="in the same order"):
        replace(record, objectives=("flash", "accuracy", "latency"))


def test_messages_never_show_a_password() -> None:
    assert "secret" not in shown(parse_url("postgresql://me:secret@host/db"))


def test_hostile_text_of_an_error_can_be_stored(storage: Storage) -> None:
    storage.finish("digits", Trial(0, State.FAILED, reason="bad \udcff name \0 here"))
    assert storage.trials("digits")[0].reason == "bad \\udcff name \\0 here"
