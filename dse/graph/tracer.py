"""What is known while an fx graph is walked: values, shapes, and the operators made so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx, nn

from dse.errors import GraphError
from dse.graph.ir import (
    Array,
    Conv2D,
    FullyConnected,
    Op,
    Tensor,
)


@dataclass
class Value:
    """What is known of a traced tensor: its graph name and, when flattened, its torch order."""

    name: str
    order: Array | None = None


@dataclass
class Tracer:
    """Walks the fx nodes once and grows the lists of operators and tensors.

    `orders`: by linear layer that reads a flattened image, torch's column of each of its own.
    """

    modules: Mapping[str, nn.Module]
    shapes: Mapping[fx.Node, tuple[int, ...]]
    values: dict[fx.Node, Value] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    ops: dict[str, Op] = field(default_factory=dict)
    maker: dict[str, str] = field(default_factory=dict)
    orders: dict[str, Array] = field(default_factory=dict)

    def add(self, node: fx.Node, op: Op, order: Array | None = None) -> None:
        """Append an operator whose output is the value of `node`."""
        if op.name in self.ops and isinstance(op, Conv2D | FullyConnected):
            raise GraphError(
                f"module '{op.name}' is called more than once; "
                "weights shared by several layers are not supported: give each call its own module"
            )
        if op.name in self.ops:
            op = replace(op, name=node.name)
        self.ops[op.name] = op
        self.maker[op.output] = op.name
        self.tensors[op.output] = Tensor(op.output, hwc(self.shapes[node], node))
        self.values[node] = Value(op.output, order)

    def module(self, node: fx.Node) -> nn.Module:
        """The module that a node calls."""
        return self.modules[str(node.target)]

    def value(self, argument: Any, node: fx.Node) -> Value:
        """The traced tensor behind an argument."""
        if not isinstance(argument, fx.Node) or argument not in self.values:
            raise GraphError(
                f"operator '{label(node)}' works on a constant ({argument!r}); "
                "only tensors made by the network itself are supported"
            )
        return self.values[argument]

    def read_once(self, node: fx.Node) -> bool:
        """Whether a single operator reads the value of `node`."""
        return len(node.users) == 1


Visit = Callable[[Tracer, fx.Node], None]


def hwc(shape: Sequence[int], node: fx.Node) -> tuple[int, ...]:
    """(N, C, H, W), (N, C, L) or (N, F) as (H, W, C), (1, L, C) or (F,)."""
    if len(shape) == 4:
        return shape[2], shape[3], shape[1]
    if len(shape) == 3:
        return 1, shape[2], shape[1]
    if len(shape) == 2:
        return (shape[1],)
    raise GraphError(f"operator '{label(node)}' makes a tensor of {len(shape)} axes; allowed: 2-4")


def label(node: fx.Node) -> str:
    """How messages name a node."""
    what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "?")
    return f"{node.name} ({what})"
