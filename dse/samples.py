"""A few test samples of a study, kept in its database: what proves or exports a design needs them.

With them, neither the data set nor its files have to be where the database is.
"""

from __future__ import annotations

import io

import numpy as np
import torch

from dse.rows import StudyRecord
from dse.storage import Storage
from dse.study import parse_study
from dse.workloads import Dataset, Split, workload_of

SAMPLES = "samples"  # the kind of artifact, at the first trial
KEPT = 20


def keep_samples(storage: Storage, study: str, dataset: Dataset) -> None:
    """Store the first test samples with their labels, once a study has its first trial."""
    if storage.artifact(study, 0, SAMPLES) is not None:
        return
    kept = dataset.test.take(KEPT)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, inputs=kept.inputs.numpy(), labels=kept.labels.numpy())
    storage.attach(study, 0, SAMPLES, buffer.getvalue())


def find_samples(storage: Storage, record: StudyRecord, count: int) -> Split:
    """The first `count` test samples, from the database or, where it has fewer, the data set.

    Raises WorkloadError when the data set is needed and is not here.
    """
    blob = storage.artifact(record.name, 0, SAMPLES) if count <= KEPT else None
    if blob is not None:
        with np.load(io.BytesIO(blob)) as stored:
            kept = Split(*(torch.from_numpy(stored[name]) for name in ("inputs", "labels")))
        if count <= len(kept):
            return Split(kept.inputs[:count], kept.labels[:count])
    return stored_data(record).test.take(count)


def stored_data(record: StudyRecord) -> Dataset:
    """The data set of a stored study; WorkloadError when its files are not here."""
    study = parse_study(record.study_file, f"study '{record.name}'")
    return workload_of(study, record.folder).load()
