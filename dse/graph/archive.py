"""A graph as bytes and back: one .npz with a JSON header; the same graph gives the same bytes."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from dse.errors import GraphError
from dse.graph.ir import (
    Add,
    Array,
    Concat,
    Conv2D,
    FullyConnected,
    Graph,
    Lookup,
    Mul,
    Op,
    Pad,
    Pool2D,
    Reshape,
    Softmax,
    Tensor,
    Weight,
)

VERSION = 1
_KINDS: Mapping[str, type[Op]] = {
    kind.kind: kind
    for kind in (Conv2D, FullyConnected, Add, Mul, Concat, Pad, Pool2D, Reshape, Lookup, Softmax)
}


def to_bytes(graph: Graph) -> bytes:
    """The whole graph, weights included, compressed."""
    arrays: dict[str, Array] = {}
    header = {
        "version": VERSION,
        "name": graph.name,
        "input": graph.input,
        "output": graph.output,
        "tensors": [_plain(tensor) for tensor in graph.tensors.values()],
        "ops": [_op_header(op, arrays) for op in graph.ops],
    }
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def from_bytes(content: bytes) -> Graph:
    """The graph that `to_bytes` wrote; GraphError when it is something else."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        header = json.loads(arrays["header"].tobytes())
    except (ValueError, KeyError, OSError, EOFError) as error:
        raise GraphError(f"these {len(content)} bytes are not a stored graph ({error})") from error
    if header["version"] != VERSION:
        raise GraphError(f"a stored graph of version {header['version']}; this dse reads {VERSION}")
    tensors = {
        row["name"]: Tensor(**(row | {"shape": tuple(row["shape"])})) for row in header["tensors"]
    }
    ops = tuple(_op(row, arrays) for row in header["ops"])
    return Graph(header["name"], tensors, ops, header["input"], header["output"])


def _plain(value: Any) -> dict[str, Any]:
    return {item.name: getattr(value, item.name) for item in fields(value)}


def _op_header(op: Op, arrays: dict[str, Array]) -> dict[str, Any]:
    row = {"kind": op.kind, **_plain(op)}
    if isinstance(op, Conv2D | FullyConnected):
        weight = _plain(op.weight)
        for name in ("values", "scales"):
            _keep(arrays, f"{op.name}/{name}", weight.pop(name))
        _keep(arrays, f"{op.name}/bias", row.pop("bias"))
        if not weight["entries"]:  # fields that came later
            del weight["entries"], weight["vector"]
        if not weight["blocks"]:
            del weight["pattern"], weight["blocks"]
        row["weight"] = weight
    return row


def _keep(arrays: dict[str, Array], name: str, values: Array | None) -> None:
    if values is not None:
        arrays[name] = values


def _op(row: Mapping[str, Any], arrays: Mapping[str, Array]) -> Op:
    kind = _KINDS[row["kind"]]
    given = {key: _tuple(value) for key, value in row.items() if key != "kind"}
    if kind in (Conv2D, FullyConnected):
        name = row["name"]
        weight = Weight(**{key: _tuple(value) for key, value in row["weight"].items()})
        given["weight"] = replace(
            weight, values=arrays.get(f"{name}/values"), scales=arrays.get(f"{name}/scales")
        )
        given["bias"] = arrays.get(f"{name}/bias")
    return kind(**given)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
