"""Our own C: plain loops for every core, variants with SMLAD and 2 x 2 blocking, and with Helium.

Weights lie packed at 2, 4, 8 bits or as float32, sparse where that is smaller; requantization
rounds twice, as CMSIS-NN does. Multipliers are int32 with an int8 shift a channel.

Constants are counted as emission writes them; bytes of code, stack and cycles are those of the
kernels as built and emulated (docs/decisions/0002-cost-model.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

from dse.bounded import Bounded
from dse.graph.ir import Add, Conv2D, FullyConnected, Graph, Lookup, Mul, Op, Pool2D
from dse.targets.board import Board
from dse.targets.core import Family
from dse.targets.kernels import PLANS_KEPT, KernelLibrary
from dse.targets.native_kernels import choose, kernels_of
from dse.targets.native_tables import (
    API_BYTES,
    COMPILER,
    OTHER_COMPILER,
    KernelCode,
    KernelCycles,
    code_ratio,
    compiler_text,
    kernel_code,
    kernel_cycles,
)

KINDS = frozenset(
    (
        "conv2d",
        "fully_connected",
        "add",
        "mul",
        "concat",
        "pad",
        "reshape",
        "pool2d",
        "lookup",
        "softmax",
    )
)


def known_operator(graph: Graph, op: Op, board: Board) -> bool:
    """Operators are conv2d, fully_connected, add, mul, concat, pad, reshape, pool2d, lookup and
    softmax."""
    return op.kind in KINDS


def one_activation_type(graph: Graph, op: Op, board: Board) -> bool:
    """Activations are all int8, all int16 or all float32."""
    return len({graph.tensors[name].dtype for name in (*op.inputs, op.output)}) == 1


def one_precision(graph: Graph, op: Op, board: Board) -> bool:
    """Weights are float32 where activations are, and integers where activations are."""
    if not isinstance(op, Conv2D | FullyConnected):
        return True
    return (op.weight.bits == 32) == (graph.tensors[op.inputs[0]].dtype == "float32")


def plain_or_depthwise(graph: Graph, op: Op, board: Board) -> bool:
    """Convolutions are plain (one group) or depthwise (one input channel a filter)."""
    return not isinstance(op, Conv2D) or op.groups == 1 or op.depthwise


def dsp_extension(graph: Graph, op: Op, board: Board) -> bool:
    """The core has the DSP extension (Cortex-M4, M7 or M33)."""
    return board.core.dsp


def vector_extension(graph: Graph, op: Op, board: Board) -> bool:
    """The core has the M-profile vector extension, Helium (Cortex-M55 or M85)."""
    return board.core.mve


RULES = (known_operator, one_activation_type, one_precision, plain_or_depthwise)
# Records of geometry: 18 sizes of 16 bits (32 where one is larger), and ten words.
WINDOW_BYTES, ELEMENTWISE_BYTES = 36, 40
LARGEST_INT16 = 2**15 - 1
# Tables that all operators of a kernel share: powers of e, the sigmoid's upper half, and for int16
# exp and 1 / (1 + x) in 513 steps each.
SHARED_BYTES = {"softmax": 28, "sigmoid_a16": 512, "tanh_a16": 512, "softmax_a16": 2052}
# Bytes of an operator's own function and how tables are aligned are means: so much may code be off.
CODE_ERROR, STACK_ERROR = 0.02, 0.1


@dataclass(frozen=True)
class _Linked:
    """Bytes of code by kernel and of the deepest stack, of a network on a core."""

    code: Mapping[str, int]
    stack_bytes: int


_LINKED: Bounded[tuple[Any, ...], _Linked] = Bounded(PLANS_KEPT)


class Native(KernelLibrary):
    """Our generated C: direct convolution, scratch for code books and blocks only; element-wise
    operators work in place."""

    def scratch_like(self, family: Family) -> str:
        """The same on every core."""
        return ""

    def scratch_bytes(self, graph: Graph, op: Op, family: Family) -> int:
        """Decoded weights of code books and lists of blocks; in variants columns of values, and
        unpacked weights."""
        if not isinstance(op, Conv2D | FullyConnected) or op.weight.bits == 32:
            return 0
        int16 = graph.tensors[op.output].dtype == "int16"
        dsp, mve = isinstance(self, NativeDsp), isinstance(self, NativeMve)
        choice = choose(op, self.encoding(op), 0, dsp, mve, int16)
        return choice.scratch_bytes(op, int16)

    def illegal(self, board: Board) -> str:
        """The kernels were built and measured for this core."""
        if _code(board.core.name, self.name, self.rounding) is not None:
            return ""
        return (
            f"backend '{self.name}' was never built for the {board.core.name} of board "
            f"'{board.name}'; choose a board with another core"
        )

    def in_place(self, graph: Graph, op: Op) -> bool:
        """Element-wise operators read an element before they write it."""
        return isinstance(op, Add | Mul | Lookup)

    def tables(self, graph: Graph, op: Op) -> int:
        """Bytes of the record of geometry, and of the values of a look-up activation."""
        integer = graph.tensors[op.output].dtype != "float32"
        if isinstance(op, Conv2D | FullyConnected | Pool2D):
            return WINDOW_BYTES * (1 + (_largest(graph) > LARGEST_INT16))
        if isinstance(op, Add | Mul) and integer:
            return ELEMENTWISE_BYTES
        return super().tables(graph, op) if integer else 0

    def kernels(self, graph: Graph) -> list[tuple[str, ...]]:
        """The kernels that each operator calls, operators without any left out."""
        dsp, mve = isinstance(self, NativeDsp), isinstance(self, NativeMve)
        found = []
        for op in graph.ops:
            encoding = self.encoding(op) if isinstance(op, Conv2D | FullyConnected) else None
            names = kernels_of(graph, op, encoding, dsp, mve)
            if names:
                found.append(names)
        return found

    def code(self, graph: Graph, board: Board) -> Mapping[str, int]:
        """Bytes of each kernel in a linked image, and of the operators' functions and the API."""
        return self._linked(graph, board).code

    def _linked(self, graph: Graph, board: Board) -> _Linked:
        """What the network's kernels take on the board's core, remembered by shapes."""
        key = (self.name, self.rounding, board.core.name, graph.key)
        if key not in _LINKED:
            built, each = self._built(board), self.kernels(graph)
            stack = built.stack_bytes(name for names in each for name in names)
            _LINKED[key] = _Linked(self._parts(built, each), stack)
        return _LINKED[key]

    def _parts(self, built: KernelCode, each: list[tuple[str, ...]]) -> Mapping[str, int]:
        parts = built.code_bytes(dict.fromkeys(name for names in each for name in names))
        for name in parts.keys() & SHARED_BYTES.keys():
            parts[name] += SHARED_BYTES[name]
        if {"sigmoid_a16", "tanh_a16"} <= parts.keys():  # one table serves both
            parts["tanh_a16"] -= SHARED_BYTES["tanh_a16"]
        runtime = API_BYTES + built.call_bytes(names[0] for names in each)
        return {**parts, "runtime": round(runtime)}

    def _built(self, board: Board) -> KernelCode:
        found = _code(board.core.name, self.name, self.rounding)
        assert found is not None, board.core.name
        return found

    @property
    def code_interval(self) -> tuple[float, float]:
        """From the smaller of the two compilers to the larger, and what is left of the model."""
        low, high = code_ratio(self.name)
        return low * (1 - CODE_ERROR), high * (1 + CODE_ERROR)

    @property
    def stack_interval(self) -> tuple[float, float]:
        """What the frames of the functions on the way differ by."""
        return 1 - STACK_ERROR, 1 + STACK_ERROR

    @property
    def memory_source(self) -> str:
        """Which compilers built what the figures are read from."""
        return (
            f"kernels as built by {compiler_text()}, the interval down to "
            f"{compiler_text(OTHER_COMPILER)} (benchmarks/native_measure.py)"
        )

    def ram(self, graph: Graph, board: Board) -> Mapping[str, int]:
        """Bytes of the deepest call chain; there is no state besides the arena."""
        return {"runtime": 0, "stack": self._linked(graph, board).stack_bytes}

    def cycles(self, board: Board) -> KernelCycles | None:
        """The fitted cycles on the board's core."""
        return kernel_cycles(board.core.name, self.name, self.rounding)


@cache
def _code(core: str, backend: str, rounding: str) -> KernelCode | None:
    """What was built for a core; float32 kernels are the same for all variants and contracts."""
    found = kernel_code(core, backend, rounding, COMPILER)
    plain = kernel_code(core, "native", "double", COMPILER)
    if found is None or plain is None:
        return None
    functions, kernels = plain.functions, plain.kernels
    floats = {name: each for name, each in kernels.items() if "_f32" in name}
    parts = {part for each in floats.values() for part in each["functions"]}
    sizes = {part: functions[part] for part in parts}
    return replace(
        found, functions={**sizes, **found.functions}, kernels={**floats, **found.kernels}
    )


@lru_cache(maxsize=64)
def _largest(graph: Graph) -> int:
    """The largest size that a record of geometry holds."""
    sizes = [1]
    for op in graph.ops:
        for tensor in (graph.tensors[op.inputs[0]], graph.tensors[op.output]):
            if isinstance(op, FullyConnected):
                sizes.append(tensor.elements)
            elif isinstance(op, Conv2D | Pool2D):
                sizes += tensor.shape
    return max(sizes)


class NativeDsp(Native):
    """The DSP variant: convolutions with a window copy two int16 columns before they multiply."""

    def illegal(self, board: Board) -> str:
        """SMLAD and SXTB16 belong to the DSP extension."""
        if board.core.dsp:
            return super().illegal(board)
        return (
            f"backend '{self.name}' needs the DSP extension, which the {board.core.name} of board "
            f"'{board.name}' lacks; use 'native'"
        )


class NativeMve(NativeDsp):
    """The Helium variant: dense 8-bit layers in vectors, all others as in the DSP variant."""

    def illegal(self, board: Board) -> str:
        """Vector instructions belong to the M-profile vector extension."""
        if board.core.mve:
            return super().illegal(board)
        return (
            f"backend '{self.name}' needs the vector extension (Helium), which the "
            f"{board.core.name} of board '{board.name}' lacks; use 'native-dsp' or 'native'"
        )


NATIVE = Native(
    name="native",
    version="1",
    weight_containers=(2, 4, 8, 32),
    channel_alignment=1,
    shift_bytes=1,
    sparse=True,
    code_books=True,
    blocks=True,
    pad_rows=True,
    predicates=RULES,
)
NATIVE_DSP = NativeDsp(
    name="native-dsp",
    version="1",
    weight_containers=(2, 4, 8, 32),
    channel_alignment=4,
    shift_bytes=1,
    sparse=True,
    code_books=True,
    blocks=True,
    pad_rows=True,
    predicates=(*RULES, dsp_extension),
)
NATIVE_MVE = NativeMve(
    name="native-mve",
    version="1",
    weight_containers=(2, 4, 8, 32),
    channel_alignment=4,
    shift_bytes=1,
    sparse=True,
    code_books=True,
    blocks=True,
    pad_rows=True,
    predicates=(*RULES, vector_extension),
)
