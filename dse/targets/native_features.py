"""What the loops of our kernels count on a shape: the features of the fitted cycle model.

Each kernel (`dse/firmware/kernels`) has a closed form: calls, pixels, output channels or pairs of
them (one requantization each), rows of taps, taps, the words or fours an inner loop takes and what
is left over. Padding is counted exactly: how often a tap meets the input factors over the axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from dse.graph.blocks import block_grid, block_shape
from dse.graph.ir import (
    Add,
    Concat,
    Conv2D,
    FullyConnected,
    Graph,
    Lookup,
    Mul,
    Op,
    Pad,
    Pool2D,
    Softmax,
    Weight,
)
from dse.targets.encoding import Encoding
from dse.targets.native_kernels import BLOCKS, BOOK, kernels_of

Counts: TypeAlias = dict[str, float]
UNROLL = 4
EULER = 0.5772


@dataclass(frozen=True)
class Call:
    """A kernel called by an operator, what its loops count, and bytes of constants it reads.

    `constant_bytes` are read `passes` times; 0 where a kernel has no constants.
    """

    kernel: str
    counts: Mapping[str, float]
    constant_bytes: int = 0
    passes: float = 1.0


@dataclass(frozen=True)
class Axis:
    """One axis of a window: positions, taps, and how many of them meet the input.

    `met` sums the taps that do over all positions; `whole` counts positions where taps lie side by
    side inside the input, `met_whole` those whose every tap meets it.
    """

    size: int
    kernel: int
    met: int
    whole: int
    met_whole: int
    fours: int
    rest: int


@lru_cache(maxsize=65536)
def axis(size: int, out: int, kernel: int, stride: int, before: int, dilation: int) -> Axis:
    """The axis of a window with `out` positions over `size` inputs."""
    met, whole, full, fours, rest = 0, 0, 0, 0, 0
    for position in range(out):
        start = position * stride - before
        first = max(0, (dilation - 1 - start) // dilation)
        last = min(kernel, (size - start + dilation - 1) // dilation)
        here = max(0, last - first)
        met += here
        full += here == kernel
        fours += here // UNROLL
        rest += here % UNROLL
        whole += dilation == 1 and start >= 0 and start + kernel <= size
    return Axis(out, kernel, met, whole, full, fours, rest)


@lru_cache(maxsize=65536)
def runs(unit: int, run: int, count: int) -> tuple[int, int]:
    """(Whole units, single steps) of `count` runs of weights packed `unit` to a byte.

    A run that does not start on a byte takes single steps up to one, as `pair_w*.c` do.
    """
    whole = steps = phase = 0
    for _ in range(count):
        head = min(run, (unit - phase) % unit)
        units = (run - head) // unit
        tail = run - head - units * unit
        whole, steps = whole + units, steps + head + tail
        phase = (phase + run) % unit
    return whole, steps


@dataclass(frozen=True)
class Window:
    """The geometry of a weighted operator or pool; a fully connected layer is one 1x1 window."""

    rows: Axis
    columns: Axis
    inputs: int
    outputs: int

    @property
    def pixels(self) -> int:
        """Output positions."""
        return self.rows.size * self.columns.size

    @property
    def taps(self) -> int:
        """Taps of all pixels, those in the padding too."""
        return self.pixels * self.rows.kernel * self.columns.kernel

    @property
    def met(self) -> int:
        """Taps of all pixels that meet the input."""
        return self.rows.met * self.columns.met


def window_of(graph: Graph, op: Op) -> Window:
    """The window of a convolution, pool or fully connected layer."""
    source, target = graph.tensors[op.inputs[0]], graph.tensors[op.output]
    if not isinstance(op, Conv2D | Pool2D):
        one = Axis(1, 1, 1, 1, 1, 0, 1)
        return Window(one, one, source.elements, target.elements)
    height, width, channels = source.shape
    dilation = op.dilation if isinstance(op, Conv2D) else (1, 1)
    top, _, left, _ = op.padding
    return Window(
        axis(height, target.shape[0], op.kernel[0], op.stride[0], top, dilation[0]),
        axis(width, target.shape[1], op.kernel[1], op.stride[1], left, dilation[1]),
        channels,
        target.channels,
    )


def _packed(bits: int) -> int:
    """Weights that the plain inner loop takes at once."""
    return {8: 4, 4: 2, 2: 4}[bits]


def plain(w: Window, bits: int) -> Counts:
    """`conv.c`: two output channels a pixel, runs of taps side by side where all are inside."""
    unit, kw, kh = _packed(bits), w.columns.kernel, w.rows.kernel
    pairs = (w.outputs + 1) // 2
    odd_columns = w.columns.size - w.columns.whole
    met_odd = w.columns.met - w.columns.whole * kw
    side_calls, single_calls = w.rows.met * w.columns.whole, w.rows.met * met_odd
    if bits == 8:
        side, single = divmod(kw * w.inputs, unit), divmod(w.inputs, unit)
        share = 1.0
    else:
        side, single = runs(unit, kw * w.inputs, kh), runs(unit, w.inputs, kh * kw)
        share = 1 / kh
    calls = pairs * (side_calls + single_calls)
    per_single = share if bits == 8 else share / kw
    units = side_calls * side[0] * share + single_calls * single[0] * per_single
    steps = side_calls * side[1] * share + single_calls * single[1] * per_single
    skipped = (w.rows.size * kh - w.rows.met) * w.columns.whole * kw
    skipped += w.rows.size * kh * odd_columns * kw - w.rows.met * met_odd
    return {
        "pixel": w.pixels,
        "pair": w.pixels * pairs,
        "row": w.pixels * pairs * kh,
        "tap": w.rows.size * kh * odd_columns * kw * pairs,
        "run": calls,
        "unit": pairs * units,
        "step": pairs * steps,
        "short": calls if bits == 8 and w.inputs * kw < UNROLL else 0,
        "left": pairs * (side_calls * (side[1] > 0) + single_calls * (single[1] > 0)),
        "skipped": pairs * skipped * w.inputs,
    }


def decoded(rows: int, depth: int, vector: int, bits: int) -> Counts:
    """`decode_row.c`: rows of a code book's indices, their bytes, and the weights they mean."""
    indices = -(-depth // vector)
    return {
        "decode_row": rows,
        "decode_byte": rows * -(-indices * bits // 8),
        "decode_index": rows * indices,
        "decode_weight": rows * depth,
    }


def book_conv(w: Window, bits: int, vector: int) -> Counts:
    """`book_conv.c`: as `conv.c`, pixels within pairs of output channels, whose rows it decodes."""
    found = plain(w, 8)
    found["line"] = w.rows.size * ((w.outputs + 1) // 2)
    depth = w.rows.kernel * w.columns.kernel * w.inputs
    return {**found, **decoded(w.outputs, depth, vector, bits)}


def blocks(w: Window, bits: int, pixels: int) -> Counts:
    """`block.c`: two pixels by two output channels over a depth."""
    group = 32 // bits
    depth = w.rows.kernel * w.columns.kernel * w.inputs
    words, rest = divmod(depth, group)
    block = (pixels + 1) // 2
    pairs = block * ((w.outputs + 1) // 2)
    return {
        "block": block,
        "pair": pairs,
        "word": pairs * words,
        "odd_word": pairs * (words % 2) if bits == 8 else 0,
        "rest": pairs * rest,
        "left": pairs * (rest > 0),
    }


def columns(w: Window) -> Counts:
    """`column.c`: the window of each pixel as int16."""
    depth = w.rows.kernel * w.columns.kernel * w.inputs
    whole = w.inputs % UNROLL == 0
    missed = w.taps - w.met
    return {
        "pixel": w.pixels,
        "row": w.pixels * w.rows.kernel,
        "tap": w.taps,
        "missed": missed,
        "zero": missed * w.inputs,
        "met": w.met,
        "widened": w.met * w.inputs / UNROLL if whole else 0,
        "copied": 0 if whole else w.met * w.inputs,
        "copied_four": 0 if whole else w.met * (w.inputs // UNROLL),
        "reordered": 0 if whole else w.pixels * (depth // UNROLL),
    }


def vector(w: Window, bits: int) -> Counts:
    """`dsp_vector.c`: two outputs at a time."""
    words, rest = divmod(w.inputs, 32 // bits)
    pairs = (w.outputs + 1) // 2
    return {
        "pair": pairs,
        "word": pairs * words,
        "rest": pairs * rest,
        "left": pairs * (rest > 0),
        "rest_four": pairs * (rest // UNROLL),
    }


def depthwise(w: Window) -> Counts:
    """`depthwise.c`: four channels of a pixel at a time, taps that meet the input."""
    lanes = -(-w.inputs // 4)
    return {
        "line": w.rows.size,
        "pixel": w.pixels,
        "lanes": w.pixels * lanes,
        "row": w.rows.met * w.columns.size * lanes,
        "tap": w.met * lanes,
        "outside": w.rows.size * (w.columns.size * w.columns.kernel - w.columns.met),
    }


def dsp_depthwise(w: Window) -> Counts:
    """`dsp_depthwise.c`: rows of three taps have a loop of their own."""
    lanes = -(-w.inputs // 4)
    three = w.columns.met_whole if w.columns.kernel == 3 else 0
    return {
        "line": w.rows.size,
        "pixel": w.pixels,
        "lanes": w.pixels * lanes,
        "three": w.rows.met * three * lanes,
        "row": w.rows.met * (w.columns.size - three) * lanes,
        "tap": w.rows.met * (w.columns.met - 3 * three) * lanes,
        "outside": w.rows.size * (w.columns.size * w.columns.kernel - w.columns.met),
    }


def depthwise_any(w: Window) -> Counts:
    """`depthwise_any.c`: one output channel at a time."""
    return {
        "line": w.rows.size,
        "pixel": w.pixels,
        "output": w.pixels * w.outputs,
        "row": w.rows.met * w.columns.size * w.outputs,
        "tap": w.met * w.outputs,
        "outside": w.rows.size * (w.columns.size * w.columns.kernel - w.columns.met),
    }


def sparse(w: Window, size: int, kept: int, multiple: int) -> Counts:
    """`sparse.c`: every bit of the map is looked at, kept ones are multiplied where inside.

    `multiple` is that of a depthwise convolution, which divides by it; 0 of a plain one.
    """
    depth = size // w.outputs // (w.rows.kernel * w.columns.kernel)
    inside = w.met / w.taps
    taps = w.taps * w.outputs
    return {
        "pixel": w.pixels,
        "output": w.pixels * w.outputs,
        "row": w.pixels * w.outputs * w.rows.kernel,
        "tap": taps,
        "met": w.met * w.outputs,
        "bit": taps * depth,
        "bit_met": w.met * w.outputs * depth,
        "kept": w.pixels * kept,
        "kept_inside": w.pixels * kept * inside,
        "change": w.pixels * 2 * kept * (1 - kept / size),
        "divided": taps if multiple else 0,
        "divided_bit": taps * max(1, w.outputs // max(1, multiple)).bit_length() if multiple else 0,
        "divided_row": w.pixels * w.outputs * w.rows.kernel if multiple else 0,
    }


def block_conv(w: Window, weight: Weight, bits: int, step: int, apart: bool) -> Counts:
    """`block_conv.c`: rows of blocks outside, pixels inside; kept blocks are listed once for all.

    `step` columns are multiplied at once; with dilation taps lie `apart`. Where a row's blocks lie
    is not known: every byte of the map and every tap has its share.
    """
    high, wide = block_shape(weight.pattern)
    rows, across = block_grid(weight.shape, weight.pattern)
    height, width = w.rows.kernel, w.columns.kernel
    listed = weight.blocks * (1 if step == wide else height * width * w.inputs / across)
    inside = w.rows.met_whole * w.columns.whole  # windows
    groups = width if apart else 1
    covered = w.rows.met * w.columns.size - inside * height
    kept = float(weight.blocks * high * wide)
    return {
        "row": rows,
        "map_byte": rows * -(-across // 8),
        "map_bit": rows * across * _looked_at(weight.blocks / (rows * across)),
        "listed": listed,
        "start": rows * height,
        "unpacked": kept if bits in (2, 4) else 0,
        "signed": kept if bits == 1 else 0,
        "signed_block": weight.blocks if bits == 1 else 0,
        "line": rows * w.rows.size,
        "pixel": rows * w.pixels,
        "output": w.pixels * w.outputs,
        "run": rows * inside * height,
        "edge": rows * (w.pixels - inside),
        "edge_group": rows * (w.pixels - inside) * height * groups,
        "edge_covered": rows * covered * groups,
        "searched": w.rows.met * (w.columns.size - w.columns.whole) * listed / height,
        "multiplied": w.met * listed / (height * width),
        "skipped": (w.taps - w.met) * listed * step * high / (height * width),
    }


def _looked_at(share: float) -> float:
    """Bits that are looked at of a byte's map up to its last kept one, a bit; `share` is kept."""
    return sum(1 - (1 - share) ** bits for bits in range(1, 9)) / 8


def conv_f32(w: Window, depth: int, multiple: int) -> Counts:
    """`conv_f32.c`: one output at a time; `depth` is 1 of a depthwise convolution."""
    met = w.met * w.outputs
    return {
        "pixel": w.pixels,
        "output": w.pixels * w.outputs,
        "row": w.pixels * w.outputs * w.rows.kernel,
        "tap": w.taps * w.outputs,
        "met": met,
        "mac": met * depth,
        "mac_four": met * (depth // UNROLL),
        "mac_rest": met * (depth % UNROLL > 0),
        "divided": met if multiple else 0,
        "divided_bit": met * max(1, w.inputs).bit_length() if multiple else 0,
    }


def pool(w: Window) -> Counts:
    """`average_pool.c` and `max_pool.c`: channels of a window."""
    return {
        "line": w.rows.size,
        "pixel": w.pixels,
        "channel": w.pixels * w.inputs,
        "channel_four": w.pixels * (w.inputs // UNROLL),
        "tap": w.taps,
        "met": w.met,
        "row": w.rows.met * w.columns.size * w.inputs,
        "all_rows": w.pixels * w.rows.kernel * w.inputs,
        "all_taps": w.taps * w.inputs,
        "value": w.met * w.inputs,
        "value_four": w.rows.met * w.columns.fours * w.inputs,
        "value_rest": w.rows.met * w.columns.rest * w.inputs,
        "channels_four": w.met * (w.inputs // UNROLL),
        "larger": w.pixels * w.inputs * _records(w.met / w.pixels),
    }


def _records(taps: float) -> float:
    """How often a maximum is expected to grow over so many values in random order."""
    return math.log(max(1.0, taps)) + EULER if taps > 1 else 1.0


def copied(rows: int, count: int) -> Counts:
    """`copy.c`: rows of elements."""
    return {"row": rows, "element": rows * count, "four": rows * (count // UNROLL)}


def calls(graph: Graph, op: Op, encoding: Encoding | None, dsp: bool) -> tuple[Call, ...]:
    """The kernels that an operator calls with their counts; `encoding` is that of its weights."""
    names = kernels_of(graph, op, encoding, dsp)
    if isinstance(op, Conv2D | FullyConnected):
        assert encoding is not None
        return _weighted(graph, op, encoding, names[0])
    target = graph.tensors[op.output]
    if isinstance(op, Pool2D):
        return (_call(names[0], pool(window_of(graph, op))),)
    if isinstance(op, Concat):
        rows = target.elements // target.channels
        widths = (graph.tensors[name].channels for name in op.inputs)
        return tuple(_call(names[0], copied(rows, width)) for width in widths)
    if isinstance(op, Pad):
        source = graph.tensors[op.inputs[0]]
        run = source.elements // source.shape[0]
        filled: Counts = {"element": target.elements, "four": target.elements // UNROLL}
        return (_call(names[0], filled), _call(names[1], copied(source.shape[0], run)))
    if isinstance(op, Mul):
        period = graph.tensors[op.inputs[1]].elements
        return (_call(names[0], {"element": target.elements, "round": target.elements / period}),)
    if isinstance(op, Softmax):
        rows = target.elements // target.channels
        return (_call(names[0], {"row": rows, "element": target.elements}),)
    if isinstance(op, Add | Lookup):
        elements = target.elements
        return (_call(names[0], {"element": elements, "four": elements // UNROLL}),)
    return ()


def _call(name: str, counts: Counts) -> Call:
    return Call(name, {"call": 1.0, **counts})


def _weighted(
    graph: Graph, op: Conv2D | FullyConnected, encoding: Encoding, name: str
) -> tuple[Call, ...]:
    w, bits = window_of(graph, op), encoding.container_bits
    per_channel = 4 if bits == 32 else 9
    depthwise_layer = isinstance(op, Conv2D) and op.depthwise
    multiple = op.weight.shape[0] // w.inputs if depthwise_layer else 0
    constant = encoding.size_bytes + per_channel * op.weight.shape[0]
    length, apart = op.weight.vector, isinstance(op, Conv2D) and op.dilation[1] > 1
    rows = decoded(w.outputs, w.rows.kernel * w.columns.kernel, length, bits)
    forms: dict[str, Callable[[], Counts]] = {
        "book_conv": lambda: book_conv(w, bits, length),
        "book_depthwise_any": lambda: {**depthwise_any(w), **rows},
        "book_depthwise": lambda: {**depthwise(w), **rows},
        "block_conv": lambda: block_conv(w, op.weight, bits, int(name.split("x")[1][0]), apart),
        "sparse": lambda: sparse(w, op.weight.size, op.weight.kept, multiple),
        "conv_f32": lambda: conv_f32(w, 1 if depthwise_layer else w.inputs, multiple),
        "dsp_depthwise_w": lambda: {**dsp_depthwise(w), "unpacked": float(op.weight.size)},
        "dsp_depthwise": lambda: dsp_depthwise(w),
        "depthwise_any": lambda: depthwise_any(w),
        "depthwise": lambda: depthwise(w),
        "dsp_vector": lambda: vector(w, bits),
        "dsp_pointwise": lambda: blocks(w, bits, w.pixels),
        "dsp_conv": lambda: blocks(w, bits, w.pixels),
        "conv": lambda: plain(w, bits),
    }
    form = next(make for prefix, make in forms.items() if name.startswith(prefix))
    passes = w.pixels / 2 if name.startswith(("dsp_conv", "dsp_pointwise")) else w.pixels
    # Indices, and blocks of a row, are read once; biases with every pixel but out of registers.
    if name.startswith((BOOK, BLOCKS)):
        passes = 1.0
    found = Call(name, {"call": 1.0, **form()}, constant, max(1.0, passes))
    if not name.startswith("dsp_conv"):
        return (found,)
    suffix = "_a16" if graph.tensors[op.output].dtype == "int16" else ""
    return (found, Call(f"fill_column{suffix}", columns(w)))


# Boards with less have the small accelerator of dse.firmware.emulate.FlashModel.
LARGE_CACHE_BYTES = 4096
SMALL_DATA_CACHE_BYTES = 256


def data_cache_bytes(cache_bytes: int) -> int:
    """The data cache behind a flash whose code cache has so many bytes (emulate.flash_of)."""
    return cache_bytes if cache_bytes >= LARGE_CACHE_BYTES else SMALL_DATA_CACHE_BYTES


def waits(call: Call, data_cache: int) -> Iterator[tuple[str, float]]:
    """What a call waits for flash by: its constants once, again when they do not fit, its code."""
    missed = call.constant_bytes > data_cache
    yield "first", float(call.constant_bytes)
    yield "again", float(call.constant_bytes * (call.passes - 1) if missed else 0)
    for name, value in call.counts.items():
        yield name, float(value)
        if missed and name != "call":
            yield f"{name}.miss", float(value)
