"""A TensorFlow Lite file as it lies there: operators with their options, tensors, constants.

Source: TensorFlow Lite's schema.fbs. `dse.graph.tflite_reader` makes a graph of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from dse.errors import GraphError
from dse.graph.ir import Array

FILE_IDENTIFIER = b"TFL3"
_NUMPY: Mapping[str, str] = {
    "FLOAT32": "<f4",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
}


@dataclass(frozen=True)
class Code:
    """One operator of the file: its place, builtin name, tensor numbers and options' table."""

    position: int
    kind: str
    inputs: tuple[int, ...]
    output: int
    options: Any

    @property
    def where(self) -> str:
        """How a sentence names it."""
        return f"operator {self.position} ({self.kind})"


class TfliteFile:
    """The one subgraph of a file; GraphError when there are several, inputs or outputs too."""

    def __init__(self, schema: Any, content: bytes) -> None:
        if content[4:8] != FILE_IDENTIFIER:
            raise GraphError(
                f"this is not a .tflite file: its bytes 4 to 8 are {content[4:8]!r}, not 'TFL3'"
            )
        self.schema = schema
        self.model = schema.Model.GetRootAs(content, 0)
        if self.model.SubgraphsLength() != 1:
            raise GraphError(
                f"the .tflite file holds {self.model.SubgraphsLength()} subgraphs; allowed: one"
            )
        self.subgraph = self.model.Subgraphs(0)

    @property
    def input(self) -> int:
        """The number of the tensor that comes in."""
        return _only("input", self.subgraph.InputsAsNumpy())

    @property
    def output(self) -> int:
        """The number of the tensor that goes out."""
        return _only("output", self.subgraph.OutputsAsNumpy())

    @cached_property
    def codes(self) -> tuple[Code, ...]:
        """The operators in order."""
        names = enumeration(self.schema.BuiltinOperator)
        options = enumeration(self.schema.BuiltinOptions)
        found = []
        for position in range(self.subgraph.OperatorsLength()):
            op = self.subgraph.Operators(position)
            code = self.model.OperatorCodes(op.OpcodeIndex())
            number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
            kind = names.get(number, str(number))
            if kind == "CUSTOM":
                kind = f"CUSTOM {(code.CustomCode() or b'').decode(errors='replace')}"
            if op.OutputsLength() != 1:
                raise GraphError(
                    f"operator {position} ({kind}) has {op.OutputsLength()} outputs; allowed: one"
                )
            table = self._options(op, options.get(op.BuiltinOptionsType(), "NONE"))
            inputs = tuple(int(op.Inputs(i)) for i in range(op.InputsLength()))
            found.append(Code(position, kind, inputs, int(op.Outputs(0)), table))
        return tuple(found)

    def _options(self, op: Any, kind: str) -> Any:
        union = op.BuiltinOptions()
        if kind == "NONE" or union is None or not hasattr(self.schema, kind):
            return None
        table = getattr(self.schema, kind)()
        table.Init(union.Bytes, union.Pos)
        return table

    def name(self, number: int) -> str:
        """A tensor's name, which may be empty."""
        return (self.subgraph.Tensors(number).Name() or b"").decode(errors="replace")

    def shape(self, number: int) -> tuple[int, ...]:
        """A tensor's shape, batch included."""
        found = self.subgraph.Tensors(number)
        return tuple(int(found.Shape(i)) for i in range(found.ShapeLength()))

    def kind(self, number: int) -> str:
        """The tensor's type as the schema names it."""
        return enumeration(self.schema.TensorType)[self.subgraph.Tensors(number).Type()]

    def quantization(self, number: int) -> tuple[Array, Array]:
        """Scales (float64) and zero points of a tensor; empty where it has none."""
        found = self.subgraph.Tensors(number).Quantization()
        if found is None or not found.ScaleLength():
            return np.zeros(0), np.zeros(0, dtype=np.int64)
        scales = found.ScaleAsNumpy().astype(np.float64)
        zeros = found.ZeroPointAsNumpy() if found.ZeroPointLength() else np.zeros(len(scales))
        return scales, np.asarray(zeros, dtype=np.int64)

    def constant(self, number: int) -> Array | None:
        """A constant's values in their shape, INT4 unpacked; None for an activation."""
        if number < 0:
            return None
        found = self.subgraph.Tensors(number)
        buffer = self.model.Buffers(found.Buffer())
        if not buffer.DataLength():
            return None
        shape = self.shape(number)
        raw, kind = buffer.DataAsNumpy(), self.kind(number)
        if kind == "INT4":
            pairs = np.stack([raw & 15, raw >> 4], axis=1).reshape(-1)[: math.prod(shape)]
            return (((pairs ^ 8).astype(np.int8)) - 8).astype(np.int8).reshape(shape)
        if kind not in _NUMPY:
            raise GraphError(f"a constant of the .tflite file is {kind}, which is not read")
        return np.frombuffer(raw.tobytes(), dtype=_NUMPY[kind]).reshape(shape)


def _only(kind: str, numbers: Any) -> int:
    found = [] if isinstance(numbers, int) else [int(number) for number in numbers]
    if len(found) != 1:
        raise GraphError(f"the .tflite file has {len(found)} {kind}s; allowed: one")
    return found[0]


@cache
def enumeration(enumeration: Any) -> dict[int, str]:
    """The names of an enumeration of the schema by number."""
    return {number: name for name, number in vars(enumeration).items() if isinstance(number, int)}
