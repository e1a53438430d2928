"""A few test samples of a study, kept in its database: what proves or exports a design needs them.

With them, neither the data set nor its files have to be where the database is.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dse.graph.ir import Array
from dse.rows import StudyRecord
from dse.storage import Storage
from dse.study import parse_study

if TYPE_CHECKING:
    from dse.workloads import Dataset

SAMPLES = "samples"  # the kind of artifact, at the first trial
KEPT = 20


@dataclass(frozen=True)
class Samples:
    """Inputs as the workload has them, float32 (N, ...), and labels (N,)."""

    inputs: Array
    labels: Array


def keep_samples(storage: Storage, study: str, dataset: Dataset) -> None:
    """Store the first test samples with their labels, once a study has its first trial."""
    if storage.artifact(study, 0, SAMPLES) is not None:
        return
    kept = dataset.test.take(KEPT)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, inputs=kept.inputs.numpy(), labels=kept.labels.numpy())
    storage.attach(study, 0, SAMPLES, buffer.getvalue())


def find_samples(storage: Storage, record: StudyRecord, count: int) -> Samples:
    """The first `count` test samples, from the database or, where it has fewer, the data set.

    Raises WorkloadError when the data set is needed and is not here.
    """
    blob = storage.artifact(record.name, 0, SAMPLES) if count <= KEPT else None
    if blob is not None:
        with np.load(io.BytesIO(blob)) as stored:
            kept = Samples(stored["inputs"], stored["labels"])
        if count <= len(kept.inputs):
            return Samples(kept.inputs[:count], kept.labels[:count])
    found = stored_data(record).test.take(count)
    return Samples(found.inputs.numpy(), found.labels.numpy())


def stored_data(record: StudyRecord) -> Dataset:
    """The data set of a stored study; WorkloadError when its files are not here."""
    # Loads torch, which what is in the database does not need.
    from dse.workloads import workload_of

    study = parse_study(record.study_file, f"study '{record.name}'")
    return workload_of(study, record.folder).load()
