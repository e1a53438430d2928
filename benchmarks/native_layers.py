"""Random layers for fitting our kernels' cycles: one operator each, all in one network.

Every operator reads the input of the network under a shape of its own and writes a place of its
own, so that hundreds of unrelated layers share an image, a build and an emulation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from dse.graph.blocks import (
    SHARED,
    block_shape,
    cut,
    joined,
    kept_blocks,
    shares_magnitudes,
    unified,
)
from dse.graph.code_book import VECTORS, shrinks, write_rows
from dse.graph.ir import (
    Add,
    Concat,
    Conv2D,
    DType,
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
from dse.graph.plan import Buffer, MemoryPlan, Step
from dse.targets.backend import find_backend
from dse.targets.native_kernels import block_form

INPUT_BYTES = 12 * 1024
SCRATCH_BYTES = 24 * 1024
FUNCTIONS = ("sigmoid", "tanh", "hardswish", "hardsigmoid", "relu", "relu6")
INPUT_SCALE, OUTPUT_SCALE, OUTPUT_SPREAD = 0.05, 0.05, 40.0
# Requantization factors of usual layers: int16 has a quicker kernel below a quarter.
LARGEST_FACTOR, LARGEST_FACTOR_INT16 = 0.45, 0.2
MACS = (1_000, 9_000)
ENTRIES = (4, 16, 64, 256)
# What kernels of sparse blocks multiply at once, and which a pattern may come to.
FORMS = ("1x4", "1x1", "2x2", "2x1", "4x4", "4x1")
WHOLE = {"1x4": ("1x4", "1x1"), "4x1": ("4x1",), "2x2": ("2x2", "2x1"), "4x4": ("4x4", "4x1")}


@dataclass
class Layers:
    """Operators as they are drawn, and their tensors."""

    random: np.random.Generator
    dtype: DType
    tensors: dict[str, Tensor] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """An activation with a scale and a random zero point."""
        if self.dtype == "float32":
            made = Tensor(name, shape)
        else:
            zero = 0 if self.dtype == "int16" else int(self.random.integers(-30, 31))
            made = Tensor(name, shape, self.dtype, INPUT_SCALE, zero)
        self.tensors[name] = made
        return made

    def view(self, shape: tuple[int, ...]) -> str:
        """The network's input under another shape."""
        name = f"x{len(self.ops)}"
        self.tensor(name, shape)
        self.ops.append(Reshape(f"view{len(self.ops)}", ("input",), name))
        return name

    def output(self, shape: tuple[int, ...]) -> tuple[str, str]:
        """(Operator, tensor) names of the next operator."""
        name = f"y{len(self.ops)}"
        self.tensor(name, shape)
        return f"layer{len(self.ops)}", name

    def pick(self, *options: Any) -> Any:
        """One of the options."""
        return options[int(self.random.integers(len(options)))]

    def between(self, low: int, high: int) -> int:
        """An integer, small ones as likely as large ones; both ends included."""
        return round(math.exp(self.random.uniform(math.log(low), math.log(high))))

    def weight(self, shape: tuple[int, ...], bits: int, density: float) -> Weight:
        """Random values with scales that keep outputs within int8."""
        if bits == 32:
            values: Any = self.random.normal(0, 0.1, shape).astype(np.float32)
        else:
            limit = 2 ** (bits - 1) - 1
            values = self.magnitudes(limit, shape) * self.random.choice((-1, 1), shape)
        size = math.prod(shape)
        kept = max(1, round(size * density))
        if kept < size:
            values.reshape(-1)[self.random.permutation(size)[kept:]] = 0
        scales = None if bits == 32 else self.scales(values)
        return Weight(shape, bits, kept, values, scales)

    def shared(self, shape: tuple[int, ...]) -> Weight | None:
        """Random weights of a code book; None where there is no smaller one for so few."""
        sizes = [(entries, vector) for entries in ENTRIES for vector in VECTORS]
        small = [book for book in sizes if shrinks(shape, *book)]
        if not small:
            return None
        entries, vector = self.pick(*small)
        table = self.magnitudes(127, (entries, vector)) * self.random.choice((-1, 1), vector)
        depth = math.prod(shape[1:])
        indices = self.random.integers(0, entries, (shape[0], -(-depth // vector)))
        values = write_rows(table, indices, depth).reshape(shape)
        return Weight(shape, 8, -1, values, self.scales(values), entries, vector)

    def blocks(self, shape: tuple[int, ...], form: str) -> Weight:
        """Random weights in blocks that a kernel multiplies in this form; a third are shared."""
        plain = [pattern for pattern, forms in WHOLE.items() if form in forms]
        pattern = self.pick(*plain) + self.pick("", "", SHARED)
        bits = self.pick(8, 8, 4, 2)
        count = kept_blocks(shape, self.pick(0.03, 0.1, 0.2, 0.3, 0.5), pattern)
        blocks = np.ascontiguousarray(cut(self.signed(2 ** (bits - 1) - 1, shape), pattern))
        grid = math.prod(blocks.shape[:2])
        blocks.reshape(grid, -1)[self.random.permutation(grid)[count:]] = 0
        values = joined(blocks, shape)
        if shares_magnitudes(pattern):
            values = np.rint(unified(values, pattern)).astype(int)
        kept = min(math.prod(shape), count * math.prod(block_shape(pattern)))
        scales = self.scales(values)
        return Weight(shape, bits, kept, values, scales, pattern=pattern, blocks=count)

    def drop(self, before: int) -> None:
        """Forget the operators drawn since there were so many."""
        for dropped in self.ops[before:]:
            del self.tensors[dropped.output]
        del self.ops[before:]

    def signed(self, limit: int, shape: tuple[int, ...]) -> Any:
        """Random integer weights."""
        return self.magnitudes(limit, shape) * self.random.choice((-1, 1), shape)

    def scales(self, values: Any) -> Any:
        """One an output channel (axis 0), so that outputs stay within int8."""
        spread = 74 * float(values.std()) * math.sqrt(values.size / len(values)) + 1e-9
        largest = LARGEST_FACTOR_INT16 if self.dtype == "int16" else LARGEST_FACTOR
        return min(largest, OUTPUT_SPREAD / spread) * self.random.uniform(0.7, 1.0, len(values))

    def magnitudes(self, limit: int, shape: tuple[int, ...]) -> Any:
        """Of integer weights; with int16 activations small ones, as their sums may need 64 bits."""
        if self.dtype == "int8":
            return self.random.integers(1, limit + 1, shape)
        return np.clip(np.rint(abs(self.random.normal(0, 0.4 * limit, shape))), 1, limit).astype(
            int
        )

    def bias(self, channels: int, bits: int) -> npt.NDArray[Any]:
        """Small biases."""
        if bits == 32:
            return self.random.normal(0, 0.1, channels).astype(np.float32)
        return self.random.integers(-500, 500, channels)


Maker = Callable[["Layers"], None]


def _fit(layers: Layers, cost: int) -> bool:
    return MACS[0] / 4 <= cost <= MACS[1]


def conv(layers: Layers, bits: int, density: float = 1.0, way: str = "conv") -> None:
    """A convolution (`way`: conv, pointwise, depthwise, multiple, dilated) of about 2,000 to 30,000
    MACs; dilated ones are depthwise."""
    pick, between = layers.pick, layers.between
    while True:
        one = way == "pointwise"
        kernel = (1, 1) if one else pick((3, 3), (3, 3), (5, 5), (1, 3), (2, 2), (7, 1), (4, 3))
        stride = (1, 1) if one else pick((1, 1), (1, 1), (2, 2), (2, 1))
        pad = 0 if one else pick(0, 1, 1, 2)
        pads = (min(pad, kernel[0] - 1),) * 2 + (min(pad, kernel[1] - 1),) * 2
        dilation = (1, 1) if way != "conv" else pick((1, 1), (1, 1), (1, 1), (1, 1), (2, 2))
        if way == "dilated":
            dilation = (2, 2)
        size = (between(1, 10), between(3, 12))
        inputs = pick(between(1, 48), 4 * between(1, 12))
        outputs = between(2, 40)
        out = [
            (size[i] + pads[2 * i] + pads[2 * i + 1] - dilation[i] * (kernel[i] - 1) - 1)
            // stride[i]
            + 1
            for i in (0, 1)
        ]
        depthwise = way in ("depthwise", "multiple", "dilated")
        if way == "multiple":
            inputs = pick(2, 3, inputs)
            outputs = inputs * (pick(1, 2) if inputs < 4 else 2)
        elif depthwise:
            inputs = outputs = max(4, inputs)
        macs = out[0] * out[1] * outputs * kernel[0] * kernel[1] * (1 if depthwise else inputs)
        small = size[0] * size[1] * inputs <= INPUT_BYTES / 4
        if min(out) >= 1 and small and _fit(layers, macs) and out[0] * out[1] * outputs <= 1500:
            break
    source = layers.view((*size, inputs))
    name, target = layers.output((out[0], out[1], outputs))
    shape = (outputs, *kernel, 1 if depthwise else inputs)
    layers.ops.append(
        Conv2D(
            name,
            (source,),
            target,
            layers.weight(shape, bits, density),
            layers.bias(outputs, bits),
            stride,
            pads,
            dilation,
            inputs if depthwise else 1,
            pick("none", "relu"),
        )
    )


def connected(layers: Layers, bits: int, density: float = 1.0) -> None:
    """A fully connected layer."""
    while True:
        inputs, outputs = layers.between(8, 800), layers.between(2, 130)
        if _fit(layers, inputs * outputs):
            break
    _connect(layers, bits, inputs, outputs, density)


def _connect(layers: Layers, bits: int, inputs: int, outputs: int, density: float) -> None:
    source = layers.view((inputs,))
    name, target = layers.output((outputs,))
    weight = layers.weight((outputs, inputs), bits, density)
    bias = layers.bias(outputs, bits)
    activation = layers.pick("none", "relu")
    layers.ops.append(FullyConnected(name, (source,), target, weight, bias, activation))


def in_blocks(layers: Layers, draw: Maker, form: str) -> None:
    """The layer that `draw` draws, its weights in blocks of which so much is left that they are
    stored as such; `form` is what the kernel multiplies at once."""
    native = find_backend("native")
    while True:
        before = len(layers.ops)
        draw(layers)
        op = layers.ops[-1]
        assert isinstance(op, Conv2D | FullyConnected)
        weight = layers.blocks(op.weight.shape, form)
        made = replace(op, weight=weight)
        if block_form(made) == form and "block" in native.encoding(made).layout:
            layers.ops[-1] = made
            return
        layers.drop(before)


def flat(layers: Layers) -> None:
    """A 1x1 convolution or a fully connected layer, as they are drawn."""
    layers.pick(partial(conv, bits=8, way="pointwise"), partial(connected, bits=8))(layers)


def through_book(layers: Layers, draw: Maker) -> None:
    """The layer that `draw` draws, its weights from a code book of any size that makes it
    smaller."""
    while True:
        before = len(layers.ops)
        draw(layers)
        op = layers.ops[-1]
        assert isinstance(op, Conv2D | FullyConnected)
        weight = layers.shared(op.weight.shape)
        if weight is not None:
            layers.ops[-1] = replace(op, weight=weight)
            return
        layers.drop(before)


def pool(layers: Layers, mode: Any) -> None:
    """A pool; one in three is global."""
    channels = layers.pick(layers.between(1, 48), 4 * layers.between(1, 12))
    size = (layers.between(2, 14), layers.between(2, 14))
    kernel = layers.pick((2, 2), (3, 3), (2, 3), size)
    pad = layers.pick(0, 0, 1) if kernel == (3, 3) else 0
    stride = layers.pick((2, 2), kernel)
    out = tuple(max(1, (size[i] + 2 * pad - kernel[i]) // stride[i] + 1) for i in (0, 1))
    if any(size[i] + 2 * pad < kernel[i] for i in (0, 1)) or math.prod(size) * channels > 1500:
        return pool(layers, mode)
    source = layers.view((*size, channels))
    name, target = layers.output((out[0], out[1], channels))
    layers.ops.append(Pool2D(name, (source,), target, mode, kernel, stride, (pad,) * 4))
    return None


def shape_of(layers: Layers) -> tuple[int, ...]:
    """A small activation."""
    channels = layers.pick(layers.between(2, 48), 4 * layers.between(1, 12))
    return (layers.between(1, 9), layers.between(1, 9), channels)


def add(layers: Layers) -> None:
    """A sum of two tensors."""
    shape = shape_of(layers)
    sources = layers.view(shape), layers.view(shape)
    name, target = layers.output(shape)
    layers.ops.append(Add(name, sources, target, layers.pick("none", "relu")))


def mul(layers: Layers) -> None:
    """A product, half of them with a gate a channel."""
    shape = shape_of(layers)
    gate = layers.pick(shape, (1, 1, shape[2]))
    sources = layers.view(shape), layers.view(gate)
    name, target = layers.output(shape)
    layers.ops.append(Mul(name, sources, target))


def concat(layers: Layers) -> None:
    """Two tensors side by side."""
    shape = shape_of(layers)
    other = (*shape[:2], layers.between(1, 32))
    sources = layers.view(shape), layers.view(other)
    name, target = layers.output((*shape[:2], shape[2] + other[2]))
    layers.ops.append(Concat(name, sources, target))


def pad(layers: Layers) -> None:
    """Zeros around a tensor."""
    shape = shape_of(layers)
    pads = tuple(layers.between(1, 3) - 1 for _ in range(4))
    source = layers.view(shape)
    target_shape = (shape[0] + pads[0] + pads[1], shape[1] + pads[2] + pads[3], shape[2])
    name, target = layers.output(target_shape)
    layers.ops.append(Pad(name, (source,), target, (pads[0], pads[1], pads[2], pads[3])))


def lookup(layers: Layers, function: Any) -> None:
    """An element-wise function."""
    shape = shape_of(layers)
    source = layers.view(shape)
    name, target = layers.output(shape)
    if layers.dtype == "int16" and function in ("sigmoid", "tanh"):
        layers.tensors[target] = Tensor(target, shape, "int16", 2.0**-15)
    layers.ops.append(Lookup(name, (source,), target, function))


def softmax(layers: Layers) -> None:
    """A softmax, mostly of one row; scaled as logits are, so that few differences count."""
    shape = layers.pick((layers.between(2, 64),), (2, 3, layers.between(2, 12)))
    source = layers.view(shape)
    name, target = layers.output(shape)
    layers.ops.append(Softmax(name, (source,), target))


def _weighted(bits: int) -> Mapping[str, Maker]:
    found: dict[str, Maker] = {
        f"conv{bits}": lambda layers: conv(layers, bits),
        f"pointwise{bits}": lambda layers: conv(layers, bits, way="pointwise"),
        f"depthwise{bits}": lambda layers: conv(layers, bits, way="depthwise"),
        f"multiple{bits}": lambda layers: conv(layers, bits, way="multiple"),
        f"connected{bits}": lambda layers: connected(layers, bits),
    }
    thin = (0.03, 0.1, 0.2, 0.3) if bits > 2 else (0.03, 0.1, 0.2)

    def some(layers: Layers) -> float:
        return float(layers.pick(*thin))

    return found | {
        f"sparse_conv{bits}": lambda layers: conv(layers, bits, some(layers)),
        f"sparse_depthwise{bits}": lambda layers: conv(layers, bits, some(layers), "depthwise"),
        f"sparse_connected{bits}": lambda layers: connected(layers, bits, some(layers)),
    }


def _books() -> Mapping[str, Maker]:
    """Layers whose weights are read through a code book; last, as all draws follow each other."""
    dense = _weighted(8)
    names = ("conv", "pointwise", "depthwise", "multiple", "connected")
    return {f"book_{name}": partial(through_book, draw=dense[f"{name}8"]) for name in names}


def _in_blocks() -> Mapping[str, Maker]:
    """Layers with sparse blocks, by what the kernel multiplies at once; last of all."""
    ways: Mapping[str, Maker] = {"conv": partial(conv, bits=8), "flat": flat}
    return {
        f"block_{way}_{form}": partial(in_blocks, draw=draw, form=form)
        for form in FORMS
        for way, draw in ways.items()
    }


def makers(dtype: DType) -> Mapping[str, Maker]:
    """What to draw, by name, for networks with these activations."""
    widths = (32,) if dtype == "float32" else (8, 4, 2)
    found: dict[str, Maker] = {}
    for bits in widths:
        found |= _weighted(bits)
    functions = FUNCTIONS[:1] if dtype == "int8" else FUNCTIONS
    last = {} if dtype == "float32" else {**_books(), **_in_blocks()}
    return found | {
        "max": lambda layers: pool(layers, "max"),
        "average": lambda layers: pool(layers, "average"),
        "add": add,
        "mul": mul,
        "concat": concat,
        "pad": pad,
        "softmax": softmax,
        **{f"lookup_{name}": partial(lookup, function=name) for name in functions},
        **last,
    }


def dilated(dtype: DType) -> Mapping[str, Maker]:
    """Depthwise layers that the DSP kernels leave to the plain ones; drawn only when asked for."""
    widths = (32,) if dtype == "float32" else (8, 4, 2)
    return {f"dilated{bits}": partial(conv, bits=bits, way="dilated") for bits in widths}


@dataclass(frozen=True)
class Sample:
    """A network of unrelated layers, where its tensors lie, and random input bytes."""

    graph: Graph
    plan: MemoryPlan
    entry: npt.NDArray[np.int8]


def draw(
    dtype: DType, each: int, seed: int, only: Sequence[str] = (), kinds: Sequence[str] = ()
) -> Sample:
    """`each` random layers of every kind (or of `only` these); of those drawn, only `kinds`."""
    random = np.random.default_rng(seed)
    layers = Layers(random, dtype)
    size = INPUT_BYTES // {"float32": 4, "int16": 2}.get(dtype, 1)
    layers.tensor("input", (size,))
    usual = makers(dtype)
    known = {**usual, **dilated(dtype)}
    ops: list[Op] = []
    for name in only or usual:
        before = len(layers.ops)
        for _ in range(each):
            known[name](layers)
        ops += layers.ops[before:] if not kinds or name in kinds else []
    graph = Graph("layers", layers.tensors, tuple(ops), "input", ops[-1].output)
    values = random.normal(0, 1, size) if dtype == "float32" else random.integers(-128, 128, size)
    kind = {"float32": np.float32, "int16": np.int16}.get(dtype, np.int8)
    entry = np.ascontiguousarray(values.astype(kind)).reshape(1, -1).view(np.int8)
    return Sample(graph, _placed(graph, random), entry)


def _placed(graph: Graph, random: np.random.Generator) -> MemoryPlan:
    """Views on the input, scratch behind it, outputs behind that at odd places."""
    views = tuple(op.output for op in graph.ops if isinstance(op, Reshape))
    last = len(graph.ops)
    buffers = [Buffer(("input", *views), INPUT_BYTES, 0, last, 0)]
    steps, base = [], INPUT_BYTES + SCRATCH_BYTES
    largest = 0
    for op in graph.ops:
        steps.append(Step(op.name, 0, 0, ()))
        if isinstance(op, Reshape):
            continue
        size = graph.tensors[op.output].size_bytes
        offset = base + 4 * int(random.integers(0, 256))
        buffers.append(Buffer((op.output,), size, 0, last, offset))
        buffers.append(Buffer((f"{op.name} scratch",), SCRATCH_BYTES, 0, last, INPUT_BYTES))
        largest = max(largest, offset + size)
    return MemoryPlan(tuple(steps), tuple(buffers), largest, -(-largest // 4) * 4)


def long_rows(dtype: DType, seed: int) -> Sample:
    """Sparse layers that keep 65,536 weights and more, whose row offsets are 32 bits wide; with
    int16 activations layers whose sums are 64 bits wide, too."""
    layers = Layers(np.random.default_rng(seed), dtype)
    layers.tensor("input", (INPUT_BYTES // {"float32": 4, "int16": 2}.get(dtype, 1),))
    for bits in (32,) if dtype == "float32" else (8, 4, 2):
        _connect(layers, bits, 1000, 340, 0.2)
        if dtype == "int16":
            _connect(layers, bits, 4000, 3, 1.0)
    graph = Graph("layers", layers.tensors, tuple(layers.ops), "input", layers.ops[-1].output)
    entry = np.zeros((1, INPUT_BYTES), np.int8)
    return Sample(graph, _placed(graph, layers.random), entry)
