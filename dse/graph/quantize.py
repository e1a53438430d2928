"""Float graph -> integer graph: post-training quantization to the 8-bit and 16x8 specifications.

Activations per tensor from the ranges seen on training data: int8 affine, or int16 symmetric (zero
point 0); weights symmetric with 2 to 8 bits, per output channel or per tensor; bias
int32 with scale s_in * s_w (docs/decisions/0006-int16-activations.md says why not int64)
(https://ai.google.dev/edge/litert/models/quantization_spec).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from dse.errors import GraphError, nearest
from dse.graph.blocks import ELEMENT, shares_magnitudes, unified
from dse.graph.channels import declared_weight
from dse.graph.code_book import NONE, CodeBooks, shared
from dse.graph.ir import (
    Array,
    Concat,
    Conv2D,
    DType,
    FullyConnected,
    Graph,
    Lookup,
    Op,
    Pad,
    Pool2D,
    Reshape,
    Softmax,
    Tensor,
    Weight,
    WeightedOp,
)

INT8_MIN, INT8_MAX, INT16_MAX = -128, 127, 32767
INT32_MAX = 2**31 - 1
Ranges = Mapping[str, tuple[float, float]]
SCALES = ("channel", "tensor")

# Output scales that the specification fixes; kept unless a concatenation shares the tensor.
_FIXED: Mapping[str, Mapping[str, tuple[float, int]]] = {
    "int8": {"sigmoid": (1 / 256, -128), "tanh": (1 / 128, 0)},
    "int16": {"sigmoid": (1 / 32768, 0), "tanh": (1 / 32768, 0)},
}
_CLIP_SHARES = np.linspace(0.35, 1.0, 40)


def quantize(
    graph: Graph,
    ranges: Ranges,
    bits: Mapping[str, int] | None = None,
    densities: Mapping[str, float] | None = None,
    activations: DType = "int8",
    pattern: str = ELEMENT,
    scales: str = "channel",
    books: CodeBooks = NONE,
) -> Graph:
    """The integer graph of a float one, with activations of type int8 or int16.

    `ranges` are (low, high) of every tensor on training data (`execute.observe`), `bits` the weight
    widths by layer (8 where not named), `densities` the kept shares of the blocks of `pattern`
    (dse.graph.blocks) that pruning declared, `scales` whether weights have one an output 'channel'
    or one a 'tensor', `books` the layers whose weights become those of a code book; they have 8
    bits. Weights of `-shared` blocks get one integer magnitude a block: with a scale a channel that
    loses nothing, since what folded normalization multiplies a channel by its scale takes up.
    Raises GraphError when a layer is unknown, a range is missing or not finite, the type of
    activations is no integer, scales are neither, or a layer with a code book is pruned or has
    other bits.
    """
    if activations not in _FIXED:
        raise GraphError(f"activations cannot be quantized to '{activations}'; use int8 or int16")
    if scales not in SCALES:
        raise GraphError(f"unknown scales '{scales}'; {nearest(scales, SCALES)}")
    bits, densities = bits or {}, densities or {}
    names = {op.name for op in graph.weighted}
    for name in (*bits, *densities, *books.entries):
        if name not in names:
            raise GraphError(f"no layer '{name}' holds weights; {nearest(name, names)}")
    tensors = _activations(graph, ranges, activations)
    ops = tuple(
        _weighted(op, tensors, _form(op, bits, densities, pattern, books), scales, books.seed)
        if isinstance(op, Conv2D | FullyConnected)
        else op
        for op in graph.ops
    )
    return replace(graph, tensors=tensors, ops=ops)


def _same_scale(op: Op) -> bool:
    """Operators that move values without arithmetic on scales."""
    return isinstance(op, Pool2D | Pad | Reshape | Concat)


def scale_groups(graph: Graph) -> tuple[tuple[tuple[str, ...], str], ...]:
    """Tensors that share one scale, and the function that fixes it ('' where ranges decide)."""
    members = _tied(graph)
    tied = {name: set(group) for group in members for name in group}
    fixed = dict(_fixed_scales(graph, tied))
    return tuple(
        (tuple(names), next((fixed[name] for name in names if name in fixed), ""))
        for names in members
    )


def _tied(graph: Graph) -> list[list[str]]:
    owner = {name: name for name in graph.tensors}

    def find(name: str) -> str:
        while owner[name] != name:
            name = owner[name]
        return name

    for op in graph.ops:
        if _same_scale(op):
            for name in op.inputs:
                owner[find(name)] = find(op.output)
    members: dict[str, list[str]] = {}
    for name in graph.tensors:
        members.setdefault(find(name), []).append(name)
    return list(members.values())


def _activations(graph: Graph, ranges: Ranges, dtype: DType) -> dict[str, Tensor]:
    affine = _affine if dtype == "int8" else _symmetric
    scales: dict[str, tuple[float, int]] = {}
    for names, function in scale_groups(graph):
        scale = _FIXED[dtype][function] if function else affine(*_union(names, ranges))
        scales.update(dict.fromkeys(names, scale))
    return {
        name: replace(tensor, dtype=dtype, scale=scales[name][0], zero_point=scales[name][1])
        for name, tensor in graph.tensors.items()
    }


def _fixed_scales(graph: Graph, tied: Mapping[str, set[str]]) -> Iterator[tuple[str, str]]:
    """Tensors whose scale a function fixes, with that function."""
    makers = {op.output: op for op in graph.ops}
    for op in graph.ops:
        function = "sigmoid" if isinstance(op, Softmax) else getattr(op, "function", "")
        if not isinstance(op, Softmax | Lookup) or function not in _FIXED["int8"]:
            continue
        sources = [n for n in tied[op.output] if n in makers and not _same_scale(makers[n])]
        if sources == [op.output] and graph.input not in tied[op.output]:
            yield op.output, function


def _union(names: Sequence[str], ranges: Ranges) -> tuple[float, float]:
    missing = [name for name in names if name not in ranges]
    if missing:
        raise GraphError(f"tensor '{missing[0]}' has no calibration range")
    low = min(ranges[name][0] for name in names)
    high = max(ranges[name][1] for name in names)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise GraphError(f"tensor '{names[0]}' reached {low} to {high} on the training data")
    return low, high


def _affine(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point of int8 for [low, high] widened to hold 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    if high == low:
        return _float32(1 / 255), 0
    scale = _float32(max((high - low) / (INT8_MAX - INT8_MIN), 1e-12))
    return scale, int(np.clip(round(INT8_MIN - low / scale), INT8_MIN, INT8_MAX))


def _symmetric(low: float, high: float) -> tuple[float, int]:
    """Scale of int16 for the larger magnitude of [low, high]; the zero point is 0."""
    largest = max(abs(low), abs(high))
    return _float32(max(largest, 1e-12) / INT16_MAX if largest else 1 / INT16_MAX), 0


def _float32(value: float) -> float:
    """Scales are stored as float32 in every runtime's file, so they are float32 from the start."""
    return float(np.float32(value))


def _form(
    op: WeightedOp,
    bits: Mapping[str, int],
    densities: Mapping[str, float],
    pattern: str,
    books: CodeBooks,
) -> Weight:
    """What the integers of a layer are to be, without values."""
    shape, name = op.weight.shape, op.name
    density, book = densities.get(name), books.of(name, shape)
    return declared_weight(shape, bits.get(name, 8), density, pattern, book)


def _weighted(
    op: WeightedOp, tensors: Mapping[str, Tensor], form: Weight, steps: str, seed: int
) -> Op:
    values = _values(op)
    # One scale for all: the whole tensor is a single row.
    rows = values if steps == "channel" else values.reshape(1, -1)
    scales = np.broadcast_to(weight_scales(rows, form.bits), values.shape[:1]).copy()
    if form.entries:
        rows = values.reshape(len(scales), -1).astype(np.float64)
        integers = shared(rows, scales, form.entries, form.vector, seed)
        values = (integers * scales[:, None]).reshape(values.shape)
    return quantize_layer(op, values, scales, form, tensors[op.inputs[0]].scale or 1.0)


def _values(op: WeightedOp) -> Array:
    if op.weight.values is None:
        raise GraphError(f"layer '{op.name}' has no weight values to quantize")
    return op.weight.values


def quantize_layer(
    op: WeightedOp, values: Array, scales: Array, form: Weight, input_scale: float
) -> WeightedOp:
    """`op` with integers: float `values` in steps of `scales` (outputs,), and the bias in s_in * s.

    `form` says of how many bits, and how many kept or shared. Raises GraphError when more of the
    integers are not zero, or differ, than it declares.
    """
    if shares_magnitudes(form.pattern):
        steps = scales.reshape(-1, *[1] * (values.ndim - 1))
        values = np.rint(unified(values / steps, form.pattern)) * steps
    integers, kept = _rounded(values, scales, form.bits), form.kept
    bias = np.zeros(len(scales)) if op.bias is None else op.bias
    offsets = np.clip(np.rint(bias / (input_scale * scales)), -INT32_MAX, INT32_MAX)
    if int(np.count_nonzero(integers)) > kept:
        raise GraphError(
            f"layer '{op.name}' keeps {np.count_nonzero(integers)} non-zero weights "
            f"but declares {kept}"
        )
    try:
        weight = replace(form, values=integers, scales=scales)
    except GraphError as error:
        raise GraphError(f"layer '{op.name}': {error}") from error
    return replace(op, weight=weight, bias=offsets.astype(np.int64))


def quantize_weights(weights: Array, bits: int) -> tuple[Array, Array]:
    """Symmetric integers (int8) and one scale an output channel (axis 0), for 2 to 8 bits."""
    scales = weight_scales(weights, bits)
    return _rounded(weights, scales, bits), scales


def _rounded(weights: Array, scales: Array, bits: int) -> Array:
    limit = 2 ** (bits - 1) - 1
    rows = weights.reshape(weights.shape[0], -1).astype(np.float64)
    integers: Array = np.clip(np.rint(rows / scales[:, None]), -limit, limit)
    return integers.reshape(weights.shape).astype(np.int8)


def weight_scales(weights: Array, bits: int) -> Array:
    """One scale an output channel (axis 0), for 2 to 8 bits; each a float32.

    That of the largest magnitude, or below 8 bits of the clipping point with the least squared
    error (Banner et al., arXiv 1810.05723, searched instead of fitted).
    """
    if not 2 <= bits <= 8:
        raise GraphError(f"weights of {bits} bits; allowed: 2 to 8")
    limit = 2 ** (bits - 1) - 1
    rows = weights.reshape(weights.shape[0], -1).astype(np.float64)
    largest = np.abs(rows).max(axis=1)
    whole = float(largest.max()) or 1.0
    largest = np.where(largest > 0, largest, whole)
    scales: Array = (largest / limit).astype(np.float32).astype(np.float64)
    if bits < 8:
        return _least_error(rows, largest, limit)
    return scales


def _least_error(rows: Array, largest: Array, limit: int) -> Array:
    best = np.full(len(rows), np.inf)
    scales = np.empty(len(rows))
    for share in _CLIP_SHARES:
        trial = (largest * share / limit).astype(np.float32).astype(np.float64)
        integers = np.clip(np.rint(rows / trial[:, None]), -limit, limit)
        error = ((integers * trial[:, None] - rows) ** 2).sum(axis=1)
        better = error < best
        best = np.where(better, error, best)
        scales = np.where(better, trial, scales)
    return scales
