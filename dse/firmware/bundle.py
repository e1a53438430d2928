"""A design to take home: its C, a test that runs on any machine, how to call it, what to expect.

The folder is the same, byte for byte, for the same trial, network and vectors. `dse.json` ties it
to the trial by the SHA-256 of the stored network, and holds that of every other file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from dse.errors import DseError
from dse.firmware.emit import BACKENDS, BOARD, Sources
from dse.graph.archive import from_bytes
from dse.graph.entry import input_bytes
from dse.graph.ir import Array, Graph, Tensor
from dse.graph.numerics import INTEGER_LIMITS, Rounding
from dse.graph.plan import MemoryPlan
from dse.rows import StudyRecord
from dse.targets import find_backend, load_boards
from dse.trial import METRICS, Metric, Trial
from dse.units import format_value

SCHEMA = 1
MANIFEST = "dse.json"
VECTORS = "test_vectors.h"
TEMPLATES = ("host_test.c", "Makefile", "CMakeLists.txt", "README.md")
# Float sums depend on the order in which a compiler adds.
FLOAT_TOLERANCE = 1e-4
_LINE_WIDTH = 100


@dataclass(frozen=True)
class BundleFiles:
    """Where `write_bundle` wrote what."""

    folder: Path
    header: Path
    source: Path
    vectors: Path
    host_test: Path
    makefile: Path
    cmake: Path
    readme: Path
    manifest: Path


@dataclass(frozen=True, eq=False)
class Vectors:
    """Inputs as the network takes them (N, elements), its outputs for them, labels or -1 (N,)."""

    inputs: Array
    outputs: Array
    labels: Array
    tolerance: float

    @classmethod
    def of(cls, graph: Graph, inputs: Array, labels: Array | None, rounding: Rounding) -> Vectors:
        """Quantize float inputs (N, C, H, W), (N, C, L) or (N, F) and run the graph on them."""
        if len(inputs) < 1:
            raise DseError("a bundle needs at least one test vector; found none")
        import torch  # slow to load, and only needed when a bundle is written

        from dse.graph.execute import run

        tensor = graph.tensors[graph.input]
        batch = torch.from_numpy(np.ascontiguousarray(inputs, dtype=np.float32))
        outputs = run(graph, batch, rounding).numpy()
        values = input_bytes(graph, batch).view(tensor.dtype)
        known = np.full(len(inputs), -1) if labels is None else np.asarray(labels)
        tolerance = 0.0
        if not graph.integer:
            tolerance = FLOAT_TOLERANCE * max(1.0, float(np.abs(outputs).max()))
        if outputs.ndim == 4:
            outputs = outputs.transpose(0, 2, 3, 1)
        return cls(values, outputs.reshape(len(outputs), -1), known, tolerance)


def emitted_backend(trial: Trial) -> str:
    """The backend whose C stands for a trial: its own, or `native` for one of another project."""
    backend = str(trial.candidate["target"]["backend"])
    return backend if backend in BACKENDS else "native"


def write_bundle(
    folder: Path,
    trial: Trial,
    record: StudyRecord,
    archive: bytes,
    sources: Sources,
    inputs: Array,
    labels: Array | None,
    rounding: Rounding,
    origin: str = "",
) -> BundleFiles:
    """Write the bundle of a trial; files in `folder` that have these names are replaced.

    `archive` are the network's stored bytes (artifact `graph`), `sources` its C for
    `emitted_backend(trial)` under the contract `rounding`, `inputs` float samples (N, C, H, W) as
    the workload has them with their `labels` (N,) or None, and `origin` says where they come from
    (default: the workload's test data). Raises DseError when the folder cannot be written or
    `sources` are of another network, GraphError for bytes that are no network.
    """
    graph = from_bytes(archive)
    plan = _plan(graph, trial, sources)
    vectors = Vectors.of(graph, inputs, labels, rounding)
    origin = origin or f"samples of the test data of `{record.workload}`"
    digest = hashlib.sha256(archive).hexdigest()
    facts = _facts(graph, trial, record, sources, vectors, rounding) | {
        "origin": origin,
        "graph_sha256": digest,
        "arena": "\n".join(_arena_rows(plan)),
    }
    texts = {
        f"{sources.name}.h": sources.header,
        f"{sources.name}.c": sources.source,
        VECTORS: _vectors_header(sources.name, graph, vectors),
        **{name: _filled(name, facts) for name in TEMPLATES},
    }
    texts[MANIFEST] = _manifest(trial, record, sources.name, digest, rounding, vectors, texts)
    _write(folder, texts)
    order = (f"{sources.name}.h", f"{sources.name}.c", VECTORS, *TEMPLATES, MANIFEST)
    return BundleFiles(folder, *(folder / name for name in order))


def check_bundle(folder: Path, archive: bytes) -> tuple[str, ...]:
    """What differs from the bundle that was written for the network `archive`: nothing, if ().

    Each entry is a sentence. Raises DseError when the folder holds no bundle that this dse reads.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        expected, written = manifest["graph_sha256"], manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DseError(f"{folder} holds no bundle: {path.name} cannot be read ({error})") from error
    if manifest.get("schema") != SCHEMA:
        raise DseError(f"{path} has schema {manifest.get('schema')}; this dse reads {SCHEMA}")
    found = hashlib.sha256(archive).hexdigest()
    problems = []
    if found != expected:
        problems.append(
            f"the bundle was written for the network {expected[:12]}, this one is {found[:12]}"
        )
    for name, digest in written.items():
        if not (folder / name).is_file():
            problems.append(f"{name} is missing")
        elif hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            problems.append(f"{name} was changed after it was written")
    return tuple(problems)


def _write(folder: Path, texts: Mapping[str, str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_bytes(text.encode())
    except OSError as error:
        raise DseError(
            f"the bundle cannot be written to {folder} ({error.strerror}); name another folder"
        ) from error


class _Template(Template):
    """`@{word}`, because `$` belongs to make and CMake."""

    delimiter = "@"


def _filled(name: str, facts: Mapping[str, Any]) -> str:
    text = files("dse.firmware").joinpath("templates", name).read_text(encoding="utf-8")
    return _Template(text).substitute(facts)


# --- texts --------------------------------------------------------------------------------------


def _element(graph: Graph) -> str:
    """C type of input and output."""
    return f"{graph.tensors[graph.input].dtype}_t" if graph.integer else "float"


def _vectors_header(name: str, graph: Graph, vectors: Vectors) -> str:
    integer = graph.integer
    count, inputs, outputs = (*vectors.inputs.shape, vectors.outputs.shape[1])
    guard = f"{name.upper()}_TEST_VECTORS_H"
    lines = [
        f"#ifndef {guard}",
        f"#define {guard}",
        "",
        "#include <stdint.h>",
        "",
        f"#define VECTORS {count}u",
        f"#define VECTOR_OUTPUTS {outputs}u",
        f"#define VECTOR_TOLERANCE {vectors.tolerance!r}",
        "",
        f"typedef {_element(graph)} vector_element;",
        "",
        f"static const vector_element vector_inputs[{count}][{inputs}] = {{",
        *_rows(vectors.inputs, integer),
        "};",
        "",
        f"static const vector_element vector_outputs[{count}][{outputs}] = {{",
        *_rows(vectors.outputs, integer),
        "};",
        "",
        "/* Classes as labelled, -1 where that is not known. */",
        f"static const int vector_labels[{count}] = {{",
        *_wrapped(str(int(label)) for label in vectors.labels),
        "};",
        "",
        "#endif",
    ]
    return "\n".join(lines) + "\n"


def _rows(values: Array, integer: bool) -> list[str]:
    """One braced initializer a row; nine digits keep a float32 exactly."""
    lines: list[str] = []
    for row in values:
        words = (str(int(v)) if integer else f"{v:.8e}f" for v in row)
        lines += ["    {", *_wrapped(words), "    },"]
    return lines


def _wrapped(words: Iterable[str]) -> list[str]:
    lines, line = [], ""
    for word in words:
        if len(line) + len(word) + 10 > _LINE_WIDTH:
            lines.append(f"        {line.rstrip()}")
            line = ""
        line += f"{word}, "
    return [*lines, f"        {line.rstrip()}"]


def _facts(
    graph: Graph,
    trial: Trial,
    record: StudyRecord,
    sources: Sources,
    vectors: Vectors,
    rounding: Rounding,
) -> dict[str, Any]:
    """What the templates say, by word."""
    entry, result = graph.tensors[graph.input], graph.tensors[graph.output]
    return {
        "name": sources.name,
        "NAME": sources.name.upper(),
        "trial": trial.number,
        "study": record.name,
        "workload": record.workload,
        "parameters": graph.parameters,
        "macs": graph.macs,
        "candidate_key": trial.candidate_key,
        "element": _element(graph),
        "inputs": entry.elements,
        "outputs": result.elements,
        "input_shape": _shape(entry),
        "tensors": "\n".join(_tensor_row(*row) for row in (("input", entry), ("output", result))),
        "preprocessing": _preprocessing(entry),
        "classes": _classes(result),
        "arena_bytes": sources.arena_bytes,
        "input_bytes": sources.input_bytes,
        "output_bytes": sources.output_bytes,
        "operators": "\n".join(f"- `{symbol}`" for symbol in sources.operators),
        "target": _target(trial),
        "metrics": "\n".join(_metric_row(name, metric) for name, metric in _metrics(trial)),
        "vectors": len(vectors.inputs),
        "contract": f"integers, {rounding} rounding" if graph.integer else "float32",
        "exactness": "every output byte has to agree"
        if graph.integer
        else f"outputs have to agree within {vectors.tolerance:g}",
        "dse_version": version("dse"),
    }


def _plan(graph: Graph, trial: Trial, sources: Sources) -> MemoryPlan:
    backend = emitted_backend(trial)
    plan = find_backend(backend).memory_plan(graph, load_boards()[BOARD])
    if plan.arena_bytes != sources.arena_bytes:
        raise DseError(
            f"the C of '{sources.name}' has an arena of {sources.arena_bytes} bytes, the network "
            f"on '{backend}' one of {plan.arena_bytes}; emit it from this network, for this backend"
        )
    return plan


def _arena_rows(plan: MemoryPlan) -> list[str]:
    return [
        f"| {buffer.offset} | {buffer.size_bytes} | {', '.join(buffer.tensors)} "
        f"| {plan.steps[buffer.first].op} | {plan.steps[buffer.last].op} |"
        for buffer in sorted(plan.buffers, key=lambda buffer: (buffer.offset, buffer.first))
    ]


def _target(trial: Trial) -> str:
    target = trial.candidate["target"]
    place = f"{target['board']} at {target['clock_hz'] / 1e6:g} MHz with `{target['backend']}`"
    if target["backend"] == emitted_backend(trial):
        return place
    return f"{place} (the C here has kernels of dse's own, with the same numbers but other costs)"


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


def _tensor_row(what: str, tensor: Tensor) -> str:
    scale, zero_point = ("-", "-")
    if tensor.scale is not None:
        scale, zero_point = repr(tensor.scale), str(tensor.zero_point)
    return f"| {what} | {_shape(tensor)} | {tensor.dtype} | {scale} | {zero_point} |"


def _preprocessing(entry: Tensor) -> str:
    text = (
        "The network reads samples `x` as its workload scales them; no other preprocessing is in\n"
        "the code. PyTorch's (C, H, W) samples are rearranged to (H, W, C)."
    )
    if entry.scale is None:
        return text
    low, high = INTEGER_LIMITS[entry.dtype]
    zero = f"{entry.zero_point:+d}".replace("+", "+ ").replace("-", "- ")
    text += f"\nWrite `q = clip(round(x / {entry.scale!r}) {zero}, {low}, {high})`, halves to even."
    if (entry.scale, entry.zero_point) == (float(np.float32(1 / 255)), -128):
        text += "\nWith `x = pixel / 255` that is `q = pixel - 128`."
    return text


def _classes(result: Tensor) -> str:
    text = (
        f"Output value i is the score of class i, 0 to {result.elements - 1}, in the order of the\n"
        "data set's labels; the highest wins."
    )
    if result.scale is None:
        return text
    return f"{text}\nThe real score is `{result.scale!r} * (q - ({result.zero_point}))`."


def _metrics(trial: Trial) -> list[tuple[str, Metric]]:
    found = list(trial.metrics.items())
    return found + ([("test accuracy", trial.test_accuracy)] if trial.test_accuracy else [])


def _metric_row(name: str, metric: Metric) -> str:
    kind = name.removeprefix("test ")
    shown = (format_value(kind, value) for value in (metric.value, metric.low, metric.high))
    source = " ".join(metric.source.replace("|", "\\|").split())
    return f"| {name} | {' | '.join(shown)} | {metric.provenance} | {source} |"


def _manifest(
    trial: Trial,
    record: StudyRecord,
    name: str,
    digest: str,
    rounding: Rounding,
    vectors: Vectors,
    texts: Mapping[str, str],
) -> str:
    content = {
        "schema": SCHEMA,
        "dse_version": version("dse"),
        "study": record.name,
        "workload": record.workload,
        "trial": trial.number,
        "candidate": trial.candidate,
        "candidate_key": trial.candidate_key,
        "network_key": trial.network_key,
        "graph_sha256": digest,
        "name": name,
        "rounding": rounding,
        "vectors": len(vectors.inputs),
        "metrics": {name: _metric_json(name, metric) for name, metric in _metrics(trial)},
        "files": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()},
    }
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _metric_json(name: str, metric: Metric) -> dict[str, Any]:
    return {
        "unit": METRICS[name.removeprefix("test ")].unit,
        "value": metric.value,
        "low": metric.low,
        "high": metric.high,
        "provenance": metric.provenance,
        "source": metric.source,
    }
