"""`dse export`: a trial to take home, as C, as `.tflite`, or as a bundle with everything around."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dse.errors import DseError, StudyError
from dse.firmware.bundle import emitted_backend, write_bundle
from dse.firmware.emit import Sources, emit
from dse.firmware.tflite import approximated_operators, to_tflite
from dse.graph.archive import from_bytes
from dse.graph.ir import Array, Graph
from dse.rows import StudyRecord
from dse.samples import find_samples
from dse.storage import Storage
from dse.tables import ExportFormat
from dse.targets import find_backend
from dse.trial import Trial

VECTORS = 20


def stored_network(storage: Storage, record: StudyRecord, number: int) -> tuple[Trial, bytes]:
    """A trial and the archive of its network, which another trial may have trained.

    Raises StudyError when there is no such trial, or nobody trained its network.
    """
    trials = storage.trials(record.name)
    if not 0 <= number < len(trials):
        raise StudyError(
            f"study '{record.name}' has no trial {number}; it has 0 to {len(trials) - 1}"
        )
    trial = trials[number]
    blob = storage.network(record.name, number)
    if blob is not None:
        return trial, blob
    raise StudyError(
        f"trial {number} of '{record.name}' has no network: it is {trial.state.value}"
        + (f" ({trial.reason})" if trial.reason else "")
        + "; 'dse front' lists designs that have one"
    )


def export_trial(
    storage: Storage,
    record: StudyRecord,
    trial: Trial,
    archive: bytes,
    form: ExportFormat,
    folder: Path,
    int4: bool,
) -> list[str]:
    """Write the trial's network to `folder`; what was written and what to know, line by line.

    `archive` is the stored graph. Raises DseError for a folder that cannot be written, GraphError
    and TargetError for a network that the format cannot hold.
    """
    graph, name = from_bytes(archive), c_name(record.workload)
    if form == "tflite":
        return _write_tflite(graph, name, folder, int4)
    rounding = find_backend(trial.candidate["target"]["backend"]).rounding
    sources = emit(graph, name, emitted_backend(trial), rounding)
    if form == "c":
        return _write_c(sources, folder)
    inputs, labels, origin = _samples(storage, record, graph)
    files = write_bundle(folder, trial, record, archive, sources, inputs, labels, rounding, origin)
    return [f"bundle: {files.folder.resolve()}", f"check it with: make -C {files.folder} test"]


def c_name(workload: str) -> str:
    """A C identifier from a workload's name."""
    words = re.sub(r"[^A-Za-z0-9]+", "_", workload).strip("_").lower()
    return words if words[:1].isalpha() else f"network_{words}".rstrip("_")


def _write_tflite(graph: Graph, name: str, folder: Path, int4: bool) -> list[str]:
    path = folder / f"{name}.tflite"
    _write(folder, {path.name: to_tflite(graph, name, int4)})
    lines = [f"wrote {path.resolve()}"]
    if found := approximated_operators(graph):
        lines.append(f"LiteRT may compute these one step off: {', '.join(found)}")
    return lines


def _write_c(sources: Sources, folder: Path) -> list[str]:
    texts = {f"{sources.name}.h": sources.header, f"{sources.name}.c": sources.source}
    _write(folder, {name: text.encode() for name, text in texts.items()})
    return [f"wrote {(folder / name).resolve()}" for name in texts]


def _write(folder: Path, contents: Mapping[str, bytes]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise DseError(f"{folder} cannot be written ({error.strerror}); name another") from error


def _samples(
    storage: Storage, record: StudyRecord, graph: Graph
) -> tuple[Array, Array | None, str]:
    """Test samples of the workload with labels, or random ones where its data is not here."""
    try:
        found = find_samples(storage, record, VECTORS)
    except DseError as error:
        reason = " ".join(str(error).split())
        return _random(graph), None, f"seeded random values, as the data is not here ({reason})"
    return found.inputs, found.labels, ""


def _random(graph: Graph) -> Array:
    """Values over the input's whole range, the same every time, (N, elements) channels first."""
    tensor = graph.tensors[graph.input]
    scale, zero_point = tensor.scale or 1 / 128, tensor.zero_point
    integers = np.random.default_rng(0).integers(-128, 128, (VECTORS, tensor.elements))
    return ((integers - zero_point) * scale).astype(np.float32)
