"""Test samples in the database: the same as in the data set, and there when the data is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dse.errors import WorkloadError
from dse.samples import KEPT, find_samples, keep_samples
from dse.storage import Storage
from dse.workloads import find_workload
from dse.workloads.workload import _mnist
from tests import storage_samples as samples

STUDY = """
name: digits
workload: lenet5-mnist
space: {boards: [rpi_pico], backends: [native]}
objectives: [accuracy, flash]
"""


def test_samples_are_kept_once_and_need_no_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stored ones are read; where more are asked for, the data set is missed by name."""
    _mnist.cache_clear()  # an earlier test may have loaded it
    monkeypatch.setenv("DSE_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setenv("DSE_CACHE", str(tmp_path / "cache"))
    dataset = find_workload("digits").load()
    record = replace(samples.record(), study_file=STUDY, definition={"folder": str(tmp_path)})
    with Storage(samples.url(tmp_path)) as storage:
        storage.create(record)
        storage.finish("digits", samples.finished(0))
        for _ in range(2):
            keep_samples(storage, "digits", dataset)
        found = find_samples(storage, record, 7)
        expected = dataset.test.take(KEPT)
        assert np.array_equal(found.inputs, expected.inputs[:7])
        assert np.array_equal(found.labels, expected.labels[:7])
        monkeypatch.setattr("urllib.request.urlopen", _offline)
        with pytest.raises(WorkloadError, match="is missing"):
            find_samples(storage, record, KEPT + 1)


def _offline(*_: object, **__: object) -> None:
    raise OSError("no network")
