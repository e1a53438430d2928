"""Options that only make sense together, and where a worker takes code from."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dse.options import cluster_of
from dse.ray_executor import Cluster, Share
from dse.storage import Storage
from tests import storage_samples as samples
from tests.command_line import Dse, study_text


@pytest.fixture
def dse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Dse:
    found = Dse(tmp_path, monkeypatch, capsys)
    found.write(study_text())
    return found


def test_a_cluster_is_what_was_asked_for() -> None:
    assert cluster_of("local", None, None, None) is None
    assert cluster_of("ray", None, None, None) == Cluster()
    assert cluster_of("ray", "head:6379", 2, 0.5) == Cluster("head:6379", Share(2, 0.5))


@pytest.mark.parametrize(
    ("option", "value"), [("--address", "head:1"), ("--trial-cores", "2"), ("--trial-gpus", "1")]
)
def test_options_of_ray_need_ray(dse: Dse, option: str, value: str) -> None:
    for verb in ("run", "resume"):
        dse(verb, "study.yaml", option, value).refused(option, "is for --executor ray")


@pytest.mark.parametrize("value", ["0", "-1", "nan"])
def test_a_share_that_cannot_be_is_refused(dse: Dse, value: str) -> None:
    told = dse("run", "study.yaml", "--executor", "ray", "--trial-cores", value)
    told.refused("--trial-cores", "above 0")


def test_an_unknown_executor_is_refused(dse: Dse) -> None:
    told = dse("run", "study.yaml", "--executor", "dask")
    assert told.code == 2
    assert "dask" in told.err


def test_a_missing_ray_is_refused_before_anything_is_trained(
    dse: Dse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    told = dse("run", "study.yaml", "--executor", "ray", "--quiet")
    told.refused('pip install "dse[ray]"')


def test_a_worker_takes_code_only_from_a_folder_that_it_was_given(dse: Dse, tmp_path: Path) -> None:
    """A database names a folder, in which somebody put a module: it is not imported."""
    marker, folder = tmp_path / "ran", tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "stranger.py").write_text(
        f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
    )
    own = {"model": "stranger:build", "data": "stranger:data"}
    text = study_text({"workload": own})
    definition = {"folder": str(folder), "workload": own}
    with Storage("sqlite:///dse.db") as storage:
        record = samples.record("tiny")
        storage.create(replace(record, study_file=text, definition=definition))
    told = dse("worker", "--storage", "sqlite:///dse.db", "--study", "tiny")
    told.refused("give --folder with where its modules lie on this machine")
    assert not marker.exists()


def test_an_artifact_store_that_is_none_is_refused(dse: Dse) -> None:
    dse("run", "study.yaml", "--artifacts", "nowhere").refused("no URL of an artifact store")
    assert not list(dse.folder.glob("*.db"))


def test_a_run_keeps_its_networks_in_the_store(dse: Dse, tmp_path: Path) -> None:
    store = f"file://{tmp_path / 'store'}"
    assert dse("run", "study.yaml", "--quiet", "--artifacts", store).code == 0
    with Storage.open_readonly("sqlite:///dse.db") as storage:
        assert storage.artifact("tiny", 0, "graph")
        kept = samples.sql(storage, "select distinct store, length(blob) from dse_artifacts")
    assert kept == [(store, 0)]
