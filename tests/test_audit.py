"""`dse doctor` on a database: each damage is found and mended, nothing measured is lost."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import optuna
import pytest

from dse.artifact_store import find_store
from dse.audit import audit, repair
from dse.front import Front
from dse.storage import Storage
from dse.trial import State, Trial
from tests import storage_samples as samples
from tests.command_line import Dse


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    """Four designs, two of them on the front, one that failed, one that was rejected."""
    with Storage(samples.url(tmp_path)) as found:
        found.create(samples.record())
        front = Front(samples.record())
        for number in range(4):
            accuracy, network = 0.9 - 0.1 * (number % 3), f"network {number}"
            trial = samples.finished(number, accuracy, trained=True, network_key=network)
            members, hypervolume = front.after(trial)
            artifacts = {"graph": f"graph {number}".encode()}
            found.finish("digits", trial, members, hypervolume, artifacts)
        found.finish("digits", Trial(4, State.FAILED, candidate_key="key4", reason="no"))
        limits = {samples.LIMIT: 1.0}
        found.finish("digits", Trial(5, State.INFEASIBLE, candidate_key="key5", violations=limits))
        yield found


def damage(storage: Storage, *statements: str, foreign_keys: bool = False) -> None:
    """As another program would: without us, and without SQLite's checks."""
    storage.close()
    with closing(sqlite3.connect(storage.url.database or "")) as connection:
        connection.execute(f"PRAGMA foreign_keys={'ON' if foreign_keys else 'OFF'}")
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def broken(storage: Storage) -> list[str]:
    return [finding.found for finding in audit(storage) if finding.kind == "broken"]


def check_mended(storage: Storage, said: str, *, changed: tuple[int, ...] = ()) -> None:
    """The damage is found, one repair mends all of it, and the trials stay as they were."""
    before = storage.trials("digits")
    findings = audit(storage)
    assert any(said in finding.found for finding in findings), findings
    assert audit(storage) == findings
    done = repair(storage, findings)
    assert len(done) == sum(finding.mend is not None for finding in findings) > 0
    assert audit(storage) == []
    after = {trial.number: trial for trial in storage.trials("digits")}
    for trial in before:
        if trial.number not in changed:
            assert after[trial.number] == trial
    samples.check_optuna_agrees(storage, list(after.values()))


def test_a_whole_database_has_no_finding(storage: Storage) -> None:
    assert audit(storage) == []


DAMAGES: dict[str, tuple[str, str]] = {
    "the front": (
        "delete from dse_fronts",
        "the front is stored as none, and follows as",
    ),
    "members": (
        "update dse_fronts set members_json = '[3, 4]'",
        "the front is stored as 3, 4, and follows as",
    ),
    "hypervolume": (
        "update dse_fronts set hypervolume = hypervolume / 2",
        "the hypervolume is stored as",
    ),
    "a claim": (
        "insert into dse_claims values (77, 1, 'key', 5)",
        "claims of no trial",
    ),
    "a link": (
        "insert into dse_trial_artifacts values (77, 'graph', "
        "(select min(sha256) from dse_artifacts))",
        "artifacts of no trial",
    ),
    "a front": (
        "insert into dse_fronts values (77, 0, 0.5, '[]')",
        "fronts of no study",
    ),
    "an unused content": (
        "insert into dse_artifacts (sha256, bytes, blob) values ('00', 1, 'x')",
        "1 contents of artifacts that no trial names",
    ),
    "a running trial": (
        "update dse_evaluations set state = 'running' where number = 4",
        "trials 4 are stored as running, and nobody runs them",
    ),
    "Optuna's state": (
        "update trials set state = 'RUNNING' where number = 2",
        "Optuna's tables say something else of trials 2",
    ),
    "Optuna's value": (
        "update trial_values set value = 7 where trial_id = 2",
        "Optuna's tables say something else of trials 1",
    ),
    "Optuna's parameter": (
        "update trial_params set param_value = 0.25 where trial_id = 1 and param_name like 'conv%'",
        "Optuna's tables say something else of trials 0",
    ),
    "Optuna's limits": (
        "delete from trial_system_attributes",
        "Optuna's tables say something else of trials 0, 1, 2, 3, 5",
    ),
    "Optuna's name": (
        "update studies set study_name = 'mine'",
        "the study is called 'mine' in Optuna's tables",
    ),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damage_is_found_and_mended(storage: Storage, what: str) -> None:
    statement, said = DAMAGES[what]
    damage(storage, statement)
    check_mended(storage, said, changed=(4,) if what == "a running trial" else ())


def test_a_study_deleted_in_optuna_is_made_there_again(storage: Storage) -> None:
    url = storage.url.render_as_string()
    optuna.delete_study(study_name="digits", storage=url)
    check_mended(storage, "the study was deleted in Optuna's tables")
    storage.finish("digits", samples.finished(6))


def test_a_trial_deleted_in_optuna_is_written_there_again(storage: Storage) -> None:
    tables = ("trial_params", "trial_values", "trial_system_attributes", "trial_user_attributes")
    damage(storage, *(f"delete from {t} where trial_id = 3" for t in (*tables, "trials")))
    check_mended(storage, "Optuna's tables say something else of trials 2")


def test_a_missing_number_is_filled_with_a_failed_trial(storage: Storage) -> None:
    tables = ("trial_params", "trial_values", "trial_system_attributes", "trial_user_attributes")
    damage(
        storage,
        "delete from dse_evaluations where number = 1",
        "delete from dse_trial_artifacts where evaluation_id = 2",
        *(f"delete from {t} where trial_id = 2" for t in (*tables, "trials")),
    )
    findings = audit(storage)
    assert any("trials 1 are missing" in finding.found for finding in findings)
    repair(storage, findings)
    assert storage.trial("digits", 1).state is State.FAILED
    assert "lost" in storage.trial("digits", 1).reason
    assert broken(storage) == []
    storage.finish("digits", samples.finished(6))


def test_doubled_candidates_are_told_and_kept(storage: Storage) -> None:
    storage.finish("digits", samples.finished(6, 0.2, candidate_key="key1"))
    (finding,) = audit(storage)
    assert "trials 1, 6 are the same candidate" in finding.found
    assert (finding.kind, finding.mend) == ("note", None)


def test_a_trial_that_optuna_made_alone_is_told_and_kept(storage: Storage) -> None:
    samples.optuna_study(storage).ask()
    (finding,) = audit(storage)
    assert "Optuna has trials 6 that dse did not write" in finding.found
    assert finding.mend is None


def test_trials_of_no_study_are_kept(storage: Storage) -> None:
    damage(storage, "update dse_evaluations set study_id = 9 where number = 5")
    assert any("trials of no study: they stay" in found for found in broken(storage))
    repair(storage, audit(storage))
    count = samples.sql(storage, "select count(*) from dse_evaluations where study_id = 9")
    assert count == [(1,)]


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("update dse_artifacts set blob = x'00'", "damaged"),
        ("delete from dse_artifacts", "missing"),
    ],
)
def test_an_artifact_that_is_lost_is_taken_off_its_trial(
    storage: Storage, statement: str, said: str
) -> None:
    damage(
        storage,
        f"{statement} where bytes = 7 and sha256 in (select sha256 from "
        "dse_trial_artifacts where evaluation_id = 2)",
    )
    before = storage.trials("digits")
    assert any(f"graph of trial 1 is {said}" in found for found in broken(storage))
    repair(storage, audit(storage))
    assert broken(storage) == []
    assert storage.artifact("digits", 1, "graph") is None
    assert storage.trials("digits") == before
    assert "trials 1 were trained" in audit(storage)[-1].found


def test_artifacts_in_a_store_are_checked_there(tmp_path: Path) -> None:
    where = f"file://{tmp_path / 'store'}"
    with Storage(samples.url(tmp_path), artifacts=where) as storage:
        storage.create(samples.record())
        for number in range(3):
            blob = f"graph {number}".encode()
            storage.finish("digits", samples.finished(number), artifacts={"graph": blob})
        repair(storage, audit(storage))  # the front, which nobody stored here
        assert audit(storage) == []
        store = find_store(where)
        digests = [storage.artifacts("digits")[number]["graph"] for number in range(3)]
        Path(store._place(digests[0])).write_bytes(b"cut")
        Path(store._place(digests[1])).unlink()
        found = broken(storage)
        assert "graph of trial 0 is damaged" in found[0]
        assert "graph of trial 1 is missing" in found[1]
        assert len(found) == 2
        repair(storage, audit(storage))
        assert broken(storage) == []
        assert storage.artifact("digits", 2, "graph") == b"graph 2"


def test_a_file_that_sqlite_finds_damaged_is_not_repaired(storage: Storage) -> None:
    storage.close()
    path = Path(storage.url.database or "")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        page = connection.execute(
            "select rootpage from sqlite_master where name = 'ix_dse_evaluations_network_key'"
        ).fetchone()[0]
        size = connection.execute("PRAGMA page_size").fetchone()[0]
    content = bytearray(path.read_bytes())
    content[(page - 1) * size + 8 : page * size - 200] = b"\0" * (size - 208)
    path.write_bytes(content)
    with Storage.open_readonly(f"sqlite:///{path}") as opened:
        (finding,) = audit(opened)
    assert "SQLite finds the file damaged" in finding.found
    assert "restore a backup" in finding.found
    assert finding.mend is None


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def dse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Dse:
    return Dse(tmp_path, monkeypatch, capsys)


def test_the_command_tells_asks_and_repairs(
    storage: Storage, dse: Dse, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = storage.url.render_as_string()
    damage(storage, "delete from dse_fronts")
    told = dse("doctor", "--storage", url, "--json")
    assert told.code == 1
    (row,) = [row for row in json.loads(told.out) if row["what"] == "study digits"]
    assert row["state"] == "broken"
    assert row["what_to_do"] == "dse doctor --repair: find it again from the trials"
    monkeypatch.setattr("typer.confirm", lambda question: False)
    refused = dse("doctor", "--storage", url, "--repair")
    assert refused.code == 1
    assert "nothing was changed" in refused.out
    assert broken(storage) != []
    monkeypatch.setattr("typer.confirm", lambda question: True)
    done = dse("doctor", "--storage", url, "--repair")
    assert done.code == 0
    assert "done: 'digits': the front was found again from its trials" in done.out
    assert broken(storage) == []
    assert "nothing to repair" in dse("doctor", "--storage", url, "--repair", "--yes").out


def test_repair_needs_a_database(dse: Dse) -> None:
    dse("doctor", "--repair").refused("--repair needs the database: give --storage URL")


def test_a_password_is_not_told(dse: Dse) -> None:
    told = dse("doctor", "--storage", "postgresql://me:hunter2@127.0.0.1:9/none", "--json")
    assert told.code == 1
    assert "hunter2" not in told.out + told.err
