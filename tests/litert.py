"""LiteRT's interpreter for tests, and what its reference kernels compute in our terms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dse.graph import execute
from dse.graph.entry import input_bytes
from dse.graph.ir import FullyConnected, Graph, Mul, Op
from dse.graph.numerics import Rounding, output_limits, quantize_multiplier, requantize

Array = np.ndarray[Any, Any]


def quantized_inputs(graph: Graph, inputs: torch.Tensor) -> Array:
    """Inputs (N, C, H, W) as the bytes or floats of the graph's input, (N, H, W, C)."""
    tensor = graph.tensors[graph.input]
    rows = input_bytes(graph, inputs).view(tensor.dtype)
    array: Array = rows.reshape(len(rows), *tensor.shape)
    return array


def litert(content: bytes, inputs: Array, resolver: str = "BUILTIN_REF") -> Array:
    """Outputs (N, ...) of a .tflite file for inputs as its bytes."""
    module = pytest.importorskip("ai_edge_litert.interpreter", reason="needs ai-edge-litert")
    interpreter = module.Interpreter(
        model_content=content,
        experimental_op_resolver_type=getattr(module.OpResolverType, resolver),
        num_threads=1,
    )
    interpreter.allocate_tensors()
    (source,) = interpreter.get_input_details()
    (target,) = interpreter.get_output_details()
    found = []
    for value in inputs:
        interpreter.set_tensor(source["index"], value[None])
        interpreter.invoke()
        found.append(interpreter.get_tensor(target["index"])[0].copy())
    return np.array(found)


def contract(op: Op) -> Rounding:
    """LiteRT's reference kernels: `single` for fully connected, `double` for all others."""
    return "single" if isinstance(op, FullyConnected) else "double"


def mixed(graph: Graph, inputs: torch.Tensor) -> Array:
    """The graph's output bytes with each operator under LiteRT's contract for its kind."""
    tensor = graph.tensors[graph.input]
    values = {graph.input: execute.quantize_input(tensor, inputs)}
    with torch.no_grad():
        for op in graph.ops:
            sources = [values[name] for name in op.inputs]
            kernel = _mul if isinstance(op, Mul) else execute._INTEGER[type(op)]
            if isinstance(op, FullyConnected) and tensor.dtype == "int16":
                kernel = _wide_fully_connected
            values[op.output] = kernel(graph, op, sources, contract(op))
    array = values[graph.output].numpy().astype(np.int64)
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def _mul(graph: Graph, op: Any, xs: list[torch.Tensor], rounding: Rounding) -> torch.Tensor:
    """LiteRT computes the factor of MUL in float32 (mul.cc), TensorFlow Lite Micro in double."""
    one, other, target = (graph.tensors[name] for name in (*op.inputs, op.output))
    product = (xs[0].long() - one.zero_point) * (xs[1].long() - other.zero_point)
    factor = quantize_multiplier(mul_factor(graph, op))
    scaled = requantize(product, *factor, rounding) + target.zero_point
    clamped: torch.Tensor = scaled.clamp(*output_limits(target, op.activation)).float()
    return clamped


def _wide_fully_connected(
    graph: Graph, op: Any, xs: list[torch.Tensor], rounding: Rounding
) -> torch.Tensor:
    """LiteRT scales 64-bit sums as doubles, one in ten million otherwise than a Q31 multiplier."""
    source, target = (graph.tensors[name] for name in (op.inputs[0], op.output))
    weights = torch.from_numpy(op.weight.values.astype(np.int64))
    sums = xs[0].long() @ weights.T + torch.from_numpy(op.bias)
    factors = (source.scale or 1.0) * torch.from_numpy(op.weight.scales) / (target.scale or 1.0)
    rounded = torch.round(sums.double() * factors)
    clamped: torch.Tensor = rounded.clamp(*output_limits(target, op.activation)).float()
    return clamped


def mul_factor(graph: Graph, op: Mul) -> float:
    one, other, target = (np.float32(graph.tensors[n].scale or 1) for n in (*op.inputs, op.output))
    return float(one * other / target)
