"""torch module -> float graph, followed by torch.fx; BatchNorm is folded, activations are fused.

Shapes turn from (C, H, W) to (H, W, C); weights that read a flattened image are reordered to match.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from dse.errors import GraphError
from dse.graph.ir import Array, Graph, Tensor
from dse.graph.operators import visit
from dse.graph.tracer import Tracer, Value, hwc


def trace(model: nn.Module, input_shape: Sequence[int], name: str = "network") -> Graph:
    """The float graph of `model`, a classifier on inputs of (C, H, W), (C, L) or (F,).

    The model is traced in evaluation mode and left as it was. Raises GraphError that names the
    module and the operator when the graph cannot hold it.
    """
    tracer, last = _walked(model, input_shape)
    return _finish(tracer, last, name)


def column_orders(model: nn.Module, input_shape: Sequence[int]) -> Mapping[str, Array]:
    """For each linear layer that reads a flattened image: torch's column of each of the graph's.

    Raises GraphError as `trace` does.
    """
    return _walked(model, input_shape)[0].orders


def _walked(model: nn.Module, input_shape: Sequence[int]) -> tuple[Tracer, fx.Node]:
    """All that is known after a walk, and the node that the model returns."""
    frozen = copy.deepcopy(model).eval()
    try:
        traced = fx.symbolic_trace(frozen)
    except Exception as error:
        raise GraphError(
            f"the model cannot be traced: {str(error).splitlines()[0]}; "
            "its forward must not branch on values (torch.fx rules)"
        ) from error
    shapes = _shapes_of(traced, input_shape)
    tracer = Tracer(dict(traced.named_modules()), shapes)
    output = ""
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            output = _start(tracer, node, output)
        elif node.op == "output":
            return tracer, node
        elif node in shapes:
            visit(tracer, node)
    raise GraphError("the model returns nothing")


def _start(tracer: Tracer, node: fx.Node, seen: str) -> str:
    if seen:
        if node not in tracer.shapes:
            return seen
        raise GraphError("the model takes more than one input; give it exactly one tensor")
    tracer.tensors["input"] = Tensor("input", hwc(tracer.shapes[node], node))
    tracer.values[node] = Value("input")
    return "input"


def _finish(tracer: Tracer, node: fx.Node, name: str) -> Graph:
    result = node.args[0]
    if not isinstance(result, fx.Node) or result not in tracer.values:
        raise GraphError("the model must return one tensor of shape (N, classes)")
    last = tracer.values[result]
    if len(tracer.tensors[last.name].shape) != 1:
        raise GraphError(
            f"the model returns shape (N, {', '.join(map(str, tracer.shapes[result][1:]))}); "
            "a classifier returns (N, classes)"
        )
    if last.order is not None:
        raise GraphError("the model returns a flattened image; a classifier returns (N, classes)")
    used = {"input", *(op.output for op in tracer.ops.values())}
    tensors = {key: tensor for key, tensor in tracer.tensors.items() if key in used}
    return Graph(name, tensors, tuple(tracer.ops.values()), "input", last.name)


class _Shapes(fx.Interpreter):
    """Runs the model once and keeps the shape of every tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and note its shape."""
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self.found[n] = tuple(result.shape)
        return result


def _shapes_of(
    traced: fx.GraphModule, input_shape: Sequence[int]
) -> dict[fx.Node, tuple[int, ...]]:
    shapes = _Shapes(traced)
    try:
        with torch.no_grad():
            shapes.run(torch.zeros(2, *input_shape))
    except GraphError:
        raise
    except Exception as error:
        raise GraphError(
            f"the model fails on an input of shape (N, {', '.join(map(str, input_shape))}): "
            f"{str(error).splitlines()[0]}"
        ) from error
    return shapes.found
