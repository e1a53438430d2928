"""A TensorFlow Lite file in the making: buffers, tensors, operators, and the codes they need.

Source: TensorFlow Lite's schema.fbs (tables, alignment of buffers, packing of INT4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dse.graph.ir import Array, Graph, Tensor

FILE_IDENTIFIER = b"TFL3"
SCHEMA_VERSION = 3
BUFFER_ALIGNMENT = 16  # schema.fbs: force_align of Buffer.data

TYPES: Mapping[str, str] = {"float32": "FLOAT32", "int8": "INT8", "int16": "INT16"}


@dataclass(frozen=True)
class Constant:
    """Values as the file holds them, with one scale a channel where they are quantized."""

    values: Array
    kind: str
    scales: Array | None = None
    axis: int = 0


class Writer:
    """One flatbuffer in the making: buffers, tensors, operators, and the codes they need."""

    def __init__(self, graph: Graph, schema: Any, builder: Any, int4: bool) -> None:
        self.graph, self.schema, self.builder, self.int4 = graph, schema, builder, int4
        self.integer = graph.integer
        self.dtype = graph.tensors[graph.input].dtype
        self.wide = self.dtype == "int16"
        self._buffers = [self.table("Buffer")]  # number 0 is the empty one
        self._tensors: list[int] = []
        self._activations: dict[str, int] = {}
        self._codes: dict[tuple[str, int], int] = {}
        self._operators: list[int] = []

    def table(self, kind: str, **fields: Any) -> int:
        """A table of the schema with these fields; vectors and tables in them are made before."""
        getattr(self.schema, f"{kind}Start")(self.builder)
        for name, value in fields.items():
            getattr(self.schema, f"{kind}Add{name}")(self.builder, value)
        return int(getattr(self.schema, f"{kind}End")(self.builder))

    def numbers(self, values: Sequence[int] | Array, kind: str = "int32") -> int:
        """A vector of numbers."""
        return int(self.builder.CreateNumpyVector(np.asarray(values, dtype=kind)))

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        kind: str,
        quantization: tuple[Array, Array, int] | None = None,
        content: bytes | None = None,
    ) -> int:
        """The number of a new tensor; `quantization` is scales, zero points and their axis."""
        buffer = 0
        if content is not None:
            self.builder.Prep(BUFFER_ALIGNMENT, len(content))
            self._buffers.append(self.table("Buffer", Data=self.builder.CreateByteVector(content)))
            buffer = len(self._buffers) - 1
        fields = {"Shape": self.numbers(shape), "Name": self.builder.CreateString(name)}
        if quantization is not None:
            scales, zero_points, axis = quantization
            fields["Quantization"] = self.table(
                "QuantizationParameters",
                Scale=self.numbers(scales, "float32"),
                ZeroPoint=self.numbers(zero_points, "int64"),
                QuantizedDimension=axis,
            )
        kinds = self.schema.TensorType
        self._tensors.append(
            self.table("Tensor", **fields, Type=getattr(kinds, kind), Buffer=buffer)
        )
        return len(self._tensors) - 1

    def activation(self, name: str) -> int:
        """The number of one of the graph's tensors, made when it is first needed."""
        if name not in self._activations:
            self._activations[name] = self.like(self.graph.tensors[name], name)
        return self._activations[name]

    def like(self, tensor: Tensor, name: str, shape: Sequence[int] | None = None) -> int:
        """A tensor with the type and scale of `tensor`, and the batch before its shape."""
        scale = None
        if tensor.dtype != "float32":
            scale = (np.array([tensor.scale]), np.array([tensor.zero_point]), 0)
        return self.tensor(name, (1, *(shape or tensor.shape)), TYPES[tensor.dtype], scale)

    def constant(self, name: str, constant: Constant) -> int:
        """A tensor with values; INT4 ones are packed, the first in the low half of its byte."""
        values, scale = constant.values, None
        if constant.scales is not None:
            zeros = np.zeros(len(constant.scales))
            scale = (constant.scales, zeros, constant.axis)
        content = values.tobytes()
        if constant.kind == "INT4":
            flat = np.append(values.reshape(-1), np.zeros(values.size % 2, dtype=np.int8))
            nibbles = flat.view(np.uint8) & 15
            content = (nibbles[0::2] | nibbles[1::2] << 4).tobytes()
        return self.tensor(name, values.shape, constant.kind, scale, content)

    def integers(self, name: str, values: Any) -> int:
        """An int32 constant, such as a shape."""
        return self.constant(name, Constant(np.asarray(values, dtype=np.int32), "INT32"))

    def operator(
        self,
        code: str,
        version: int,
        inputs: Sequence[int],
        output: int,
        options: str = "",
        **fields: Any,
    ) -> None:
        """Append one operator with its options."""
        index = self._codes.setdefault((code, version), len(self._codes))
        row = {"OpcodeIndex": index, "Inputs": self.numbers(inputs)}
        row["Outputs"] = self.numbers([output])
        if options:
            row["BuiltinOptions"] = self.table(options, **fields)
            row["BuiltinOptionsType"] = getattr(self.schema.BuiltinOptions, options)
        self._operators.append(self.table("Operator", **row))

    def finish(self, name: str) -> bytes:
        """The whole file."""
        graph = self.graph
        subgraph = self.table(
            "SubGraph",
            Tensors=self._offsets(self._tensors),
            Inputs=self.numbers([self._activations[graph.input]]),
            Outputs=self.numbers([self._activations[graph.output]]),
            Operators=self._offsets(self._operators),
            Name=self.builder.CreateString(name),
        )
        numbers = {code: getattr(self.schema.BuiltinOperator, code) for code, _ in self._codes}
        codes = [
            self.table(
                "OperatorCode",
                DeprecatedBuiltinCode=min(numbers[code], 127),
                BuiltinCode=numbers[code],
                Version=version,
            )
            for code, version in self._codes
        ]
        model = self.table(
            "Model",
            Version=SCHEMA_VERSION,
            OperatorCodes=self._offsets(codes),
            Subgraphs=self._offsets([subgraph]),
            Description=self.builder.CreateString(f"{name}, written by dse"),
            Buffers=self._offsets(self._buffers),
        )
        self.builder.Finish(model, file_identifier=FILE_IDENTIFIER)
        return bytes(self.builder.Output())

    def _offsets(self, tables: Sequence[int]) -> int:
        self.builder.StartVector(4, len(tables), 4)
        for table in reversed(tables):
            self.builder.PrependUOffsetTRelative(table)
        return int(self.builder.EndVector())
