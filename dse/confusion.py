"""`dse confusion`: which class a stored design takes for which, counted over all test samples."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt

from dse.artifacts import CONFUSION
from dse.export import stored_network
from dse.graph.archive import from_bytes
from dse.graph.execute import classes
from dse.rows import StudyRecord
from dse.samples import stored_data
from dse.storage import Storage
from dse.tables import Format, show
from dse.targets import find_backend

Counts = npt.NDArray[np.int64]


def count_classes(storage: Storage, record: StudyRecord, number: int) -> Counts:
    """Test samples by their class (row) and the class taken (column), stored with the trial.

    Under the rounding of the trial's backend. Raises StudyError when the trial has no network,
    WorkloadError when the data set is not here.
    """
    trial, blob = stored_network(storage, record, number)
    rounding = find_backend(str(trial.candidate["target"]["backend"])).rounding
    dataset = stored_data(record)
    taken = classes(from_bytes(blob), dataset.test.inputs, rounding)
    counts = np.zeros((dataset.classes, dataset.classes), dtype=np.int64)
    np.add.at(counts, (dataset.test.labels.numpy(), taken), 1)
    content = {"rounding": rounding, "counts": counts.tolist()}
    storage.attach(record.name, number, CONFUSION, json.dumps(content).encode())
    return counts


def show_counts(number: int, counts: Counts, form: Format) -> None:
    """A sentence, then a row a class and a column a class taken."""
    if form == "table":
        total, right = int(counts.sum()), int(np.trace(counts))
        print(
            f"trial {number}: {right:,} of {total:,} test samples right ({right / total:.2%}), "
            f"rows are classes, columns what they were taken for"
        )
    taken = [str(column) for column in range(len(counts))]
    rows = [
        {"class": label, **dict(zip(taken, row, strict=True))}
        for label, row in enumerate(counts.tolist())
    ]
    show(rows, ["class", *taken], form)
