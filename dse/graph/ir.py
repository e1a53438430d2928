"""The frozen network: operators, tensors, bit widths and scales; weight values are optional.

Layout is what runs on a microcontroller: activations are (H, W, C) or (N,) without the batch,
convolution weights (O, H, W, I), depthwise weights (O, H, W, 1), fully connected weights (O, I).
1-D convolutions have H = 1. Quantization follows the 8-bit specification shared by TensorFlow Lite
Micro and CMSIS-NN (https://ai.google.dev/edge/litert/models/quantization_spec).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeAlias

import numpy.typing as npt

from dse.errors import GraphError
from dse.graph.blocks import (
    ELEMENT,
    block_grid,
    check_pattern,
    magnitudes_differ,
    shares_magnitudes,
    used_blocks,
)
from dse.graph.code_book import read_table

DType: TypeAlias = Literal["float32", "int8", "int16"]
Activation: TypeAlias = Literal["none", "relu", "relu6"]
Array: TypeAlias = npt.NDArray[Any]

BYTES_PER_ELEMENT: Mapping[str, int] = {"float32": 4, "int8": 1, "int16": 2}
FLOAT_BITS = 32
WEIGHT_BITS = (2, 3, 4, 5, 6, 7, 8, FLOAT_BITS)


class Key(tuple[Any, ...]):
    """A tuple that is hashed once: costs look it up for every target."""

    def __hash__(self) -> int:
        known: int | None = self.__dict__.get("known")
        if known is None:
            known = self.__dict__["known"] = super().__hash__()
        return known

    def __reduce__(self) -> tuple[Any, ...]:
        # Hashes of texts differ between processes.
        return (Key, (tuple(self),))


@dataclass(frozen=True)
class Tensor:
    """An activation: shape without the batch, and its affine scale when it is an integer."""

    name: str
    shape: tuple[int, ...]
    dtype: DType = "float32"
    scale: float | None = None
    zero_point: int = 0

    def __post_init__(self) -> None:
        if not self.shape or any(size < 1 for size in self.shape):
            raise GraphError(
                f"tensor '{self.name}' has shape {self.shape}; every size must be >= 1"
            )
        if self.dtype not in BYTES_PER_ELEMENT:
            raise GraphError(
                f"tensor '{self.name}' has type '{self.dtype}'; allowed: float32, int8, int16"
            )
        if self.scale is not None and not (self.scale > 0 and math.isfinite(self.scale)):
            raise GraphError(
                f"tensor '{self.name}' has scale {self.scale}; it must be > 0 and finite"
            )

    @cached_property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @cached_property
    def size_bytes(self) -> int:
        """Bytes in RAM."""
        return self.elements * BYTES_PER_ELEMENT[self.dtype]

    @cached_property
    def channels(self) -> int:
        """Size of the last axis."""
        return self.shape[-1]

    @cached_property
    def key(self) -> tuple[Any, ...]:
        """What costs depend on."""
        return Key((self.name, self.shape, self.dtype))


@dataclass(frozen=True, eq=False)
class Weight:
    """A constant of an operator: shape, bit width, how many elements its mask keeps, and values.

    `values` are float32 (bits = 32) or integers in [-(2^(bits-1) - 1), 2^(bits-1) - 1]; None in a
    graph of shapes. `scales` has one entry an output channel. `kept` counts the elements that
    element-wise pruning left (all of them when dense): bytes of a sparse encoding follow from it.
    `entries` > 0 says that 8-bit values are those of a code book of so many sub-vectors of `vector`
    weights (dse.graph.code_book): bytes of indices and table follow from them, the book itself from
    the values. `pattern` names the blocks in which weights were pruned, `blocks` counts those that
    are kept (dse.graph.blocks): bytes stored block by block follow from them.
    """

    shape: tuple[int, ...]
    bits: int = FLOAT_BITS
    kept: int = -1
    values: Array | None = None
    scales: Array | None = None
    entries: int = 0
    vector: int = 1
    pattern: str = ELEMENT
    blocks: int = 0

    def __post_init__(self) -> None:
        if self.bits not in WEIGHT_BITS:
            raise GraphError(f"weights of {self.bits} bits; allowed: 2 to 8, or 32 for float")
        if self.kept < 0:
            object.__setattr__(self, "kept", self.size)
        if not 0 <= self.kept <= self.size:
            raise GraphError(f"a weight of {self.size} elements cannot keep {self.kept}")
        if self.values is not None and self.values.shape != self.shape:
            raise GraphError(f"weight values have shape {self.values.shape}, expected {self.shape}")
        if self.entries:
            self._check_book()
        if self.pattern != ELEMENT or self.blocks:
            self._check_blocks()

    def _check_book(self) -> None:
        if self.bits != 8 or self.kept != self.size:
            raise GraphError(
                f"a code book holds 8-bit weights of which none is pruned; found {self.bits} bits, "
                f"{self.kept} of {self.size} kept"
            )
        found = 0 if self.values is None else len(read_table(self.values, self.vector))
        if found > self.entries:
            raise GraphError(f"weights need a code book of {found} entries; it has {self.entries}")

    def _check_blocks(self) -> None:
        check_pattern(self.pattern)
        most = 0 if self.pattern == ELEMENT else math.prod(block_grid(self.shape, self.pattern))
        if not 1 <= self.blocks <= most or self.bits == FLOAT_BITS or self.entries:
            raise GraphError(
                f"{self.blocks} blocks of the pattern '{self.pattern}', weights of {self.bits} "
                f"bits; allowed: 1 to {most} blocks of integer weights that share no code book"
            )
        if self.values is None:
            return
        used = int(used_blocks(self.values, self.pattern).sum())
        if used > self.blocks:
            raise GraphError(f"weights fill {used} blocks {self.pattern}; {self.blocks} are kept")
        if shares_magnitudes(self.pattern) and magnitudes_differ(self.values, self.pattern):
            raise GraphError(f"weights of a block {self.pattern} differ in their magnitude")

    @cached_property
    def size(self) -> int:
        """Number of elements, zeros included."""
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        """Kept share of the elements, 0 to 1."""
        return self.kept / self.size

    @property
    def key(self) -> tuple[Any, ...]:
        """What costs depend on: everything but the values."""
        return (
            *(self.shape, self.bits, self.kept, self.entries, self.vector),
            *(self.pattern, self.blocks),
        )


@dataclass(frozen=True, eq=False)
class Op:
    """One operator: its name (that of the torch module), inputs and output by tensor name."""

    name: str
    inputs: tuple[str, ...]
    output: str
    kind: ClassVar[str] = "op"

    @property
    def attributes(self) -> tuple[Any, ...]:
        """What costs depend on besides shapes, comparable and hashable."""
        return ()

    @cached_property
    def key(self) -> tuple[Any, ...]:
        """All that costs depend on besides the shapes of inputs and output."""
        return Key((self.kind, self.name, self.inputs, self.output, self.attributes))


@dataclass(frozen=True, eq=False)
class Conv2D(Op):
    """Convolution, (H, W, C) -> (H, W, O); padding is (top, bottom, left, right)."""

    weight: Weight
    bias: Array | None = None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    activation: Activation = "none"
    kind: ClassVar[str] = "conv2d"

    @cached_property
    def depthwise(self) -> bool:
        """One filter a channel (channel multiplier 1 or more)."""
        return self.groups > 1 and self.weight.shape[3] == 1

    @cached_property
    def kernel(self) -> tuple[int, int]:
        """Height and width of the filter."""
        return self.weight.shape[1], self.weight.shape[2]

    @property
    def attributes(self) -> tuple[Any, ...]:
        """Weight key and geometry."""
        return (
            *self.weight.key,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.activation,
        )


@dataclass(frozen=True, eq=False)
class FullyConnected(Op):
    """Matrix-vector product, (I,) -> (O,)."""

    weight: Weight
    bias: Array | None = None
    activation: Activation = "none"
    kind: ClassVar[str] = "fully_connected"

    @property
    def attributes(self) -> tuple[Any, ...]:
        """Weight key and activation."""
        return (*self.weight.key, self.activation)


@dataclass(frozen=True, eq=False)
class Add(Op):
    """Element-wise sum of two tensors of one shape."""

    activation: Activation = "none"
    kind: ClassVar[str] = "add"

    @property
    def attributes(self) -> tuple[Any, ...]:
        """The fused activation."""
        return (self.activation,)


@dataclass(frozen=True, eq=False)
class Mul(Op):
    """Element-wise product; the second tensor may be (1, 1, C) or (C,) against (H, W, C)."""

    activation: Activation = "none"
    kind: ClassVar[str] = "mul"

    @property
    def attributes(self) -> tuple[Any, ...]:
        """The fused activation."""
        return (self.activation,)


@dataclass(frozen=True, eq=False)
class Concat(Op):
    """Concatenation along the last axis; all tensors share one scale."""

    kind: ClassVar[str] = "concat"


@dataclass(frozen=True, eq=False)
class Pad(Op):
    """Zero padding (top, bottom, left, right) of the spatial axes."""

    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    kind: ClassVar[str] = "pad"

    @property
    def attributes(self) -> tuple[Any, ...]:
        """The padding."""
        return (self.padding,)


@dataclass(frozen=True, eq=False)
class Reshape(Op):
    """The same bytes under another shape; costs nothing at run time."""

    kind: ClassVar[str] = "reshape"


@dataclass(frozen=True, eq=False)
class Pool2D(Op):
    """Max or average pooling; padding never counts into an average. Global: kernel = input size."""

    mode: Literal["max", "average"] = "max"
    kernel: tuple[int, int] = (2, 2)
    stride: tuple[int, int] = (2, 2)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    activation: Activation = "none"
    kind: ClassVar[str] = "pool2d"

    @property
    def attributes(self) -> tuple[Any, ...]:
        """Mode and geometry."""
        return (self.mode, self.kernel, self.stride, self.padding, self.activation)


@dataclass(frozen=True, eq=False)
class Lookup(Op):
    """An element-wise function; a table of 256 entries in an int8 network."""

    function: Literal["sigmoid", "tanh", "hardswish", "hardsigmoid", "relu", "relu6"] = "sigmoid"
    kind: ClassVar[str] = "lookup"

    @property
    def attributes(self) -> tuple[Any, ...]:
        """The function."""
        return (self.function,)


@dataclass(frozen=True, eq=False)
class Softmax(Op):
    """Softmax over the last axis."""

    kind: ClassVar[str] = "softmax"


WeightedOp: TypeAlias = Conv2D | FullyConnected


@dataclass(frozen=True, eq=False)
class Graph:
    """A network in execution order, one input and one output; checked when it is made."""

    name: str
    tensors: Mapping[str, Tensor]
    ops: tuple[Op, ...]
    input: str
    output: str

    def __post_init__(self) -> None:
        made = {self.input}
        for op in self.ops:
            for name in op.inputs:
                if name not in made:
                    raise GraphError(
                        f"operator '{op.name}' reads '{name}' before anything writes it"
                    )
            if op.output not in self.tensors:
                raise GraphError(f"operator '{op.name}' writes unknown tensor '{op.output}'")
            if op.output in made:
                raise GraphError(f"tensor '{op.output}' is written twice, last by '{op.name}'")
            made.add(op.output)
        if self.output not in made:
            raise GraphError(f"no operator writes the output '{self.output}'")

    @cached_property
    def key(self) -> tuple[Any, ...]:
        """Everything that costs depend on; equal keys have equal costs on every target."""
        ops = tuple([op.key for op in self.ops])
        tensors = sorted([tensor.key for tensor in self.tensors.values()])
        return Key((self.input, self.output, ops, tuple(tensors)))

    @cached_property
    def layer_keys(self) -> Mapping[str, tuple[Any, ...]]:
        """By operator what its kernel sees: attributes, shapes and types; its name left out."""
        return {
            op.name: Key(
                (
                    op.kind,
                    op.attributes,
                    tuple([self.tensors[n].key[1:] for n in (*op.inputs, op.output)]),
                )
            )
            for op in self.ops
        }

    @cached_property
    def weighted(self) -> tuple[WeightedOp, ...]:
        """Operators that hold weights, in order."""
        return tuple(op for op in self.ops if isinstance(op, Conv2D | FullyConnected))

    @property
    def parameters(self) -> int:
        """Kept weights plus biases."""
        return sum(op.weight.kept + op.weight.shape[0] for op in self.weighted)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference, zeros of sparse weights included."""
        return sum(op_macs(self, op) for op in self.ops)

    @property
    def integer(self) -> bool:
        """Whether activations are integers."""
        return self.tensors[self.input].dtype != "float32"

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name."""
        return self.tensors[name]

    def op(self, name: str) -> Op:
        """The operator of that name; GraphError names the ones there are."""
        for op in self.ops:
            if op.name == name:
                return op
        raise GraphError(
            f"no operator '{name}'; there are: {', '.join(op.name for op in self.ops)}"
        )


def op_macs(graph: Graph, op: Op) -> int:
    """Multiply-accumulates of one operator, padded taps counted (as MLPerf Tiny counts them)."""
    if isinstance(op, Conv2D):
        height, width, channels = graph.tensors[op.output].shape
        return height * width * channels * math.prod(op.weight.shape[1:])
    if isinstance(op, FullyConnected):
        return op.weight.size
    return 0


def without_values(graph: Graph) -> Graph:
    """The graph of shapes: the same costs, no weight values and no biases' values."""
    ops = tuple(
        replace(op, weight=replace(op.weight, values=None, scales=None), bias=None)
        if isinstance(op, Conv2D | FullyConnected)
        else op
        for op in graph.ops
    )
    return replace(graph, ops=ops)
