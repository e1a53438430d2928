"""Our own C: plain loops for every core, and a variant with SMLAD and 2 x 2 blocking.

Weights lie packed at 2, 4, 8 bits or as float32, sparse where that is smaller; requantization
rounds twice, as CMSIS-NN does. Multipliers are int32 with an int8 shift a channel.
"""

from __future__ import annotations

from dse.graph.ir import Add, Conv2D, FullyConnected, Graph, Lookup, Mul, Op
from dse.targets.board import Board
from dse.targets.core import Family
from dse.targets.cycles import kernel_class
from dse.targets.kernels import KernelLibrary

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
INT16_BYTES = 2


def known_operator(graph: Graph, op: Op, board: Board) -> bool:
    """Operators are conv2d, fully_connected, add, mul, concat, pad, reshape, pool2d, lookup and
    softmax."""
    return op.kind in KINDS


def plain_activations(graph: Graph, op: Op, board: Board) -> bool:
    """Activations are int8 or float32; int16 has no kernel yet."""
    return all(graph.tensors[name].dtype != "int16" for name in (*op.inputs, op.output))


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


def counted_floats(graph: Graph, op: Op, board: Board) -> bool:
    """Float32 needs a floating-point unit, or a Cortex-M0+ or M3, where software floats were
    counted."""
    software = board.core.family in ("m0plus", "m3")
    return board.core.fpu or software or graph.tensors[op.output].dtype != "float32"


RULES = (known_operator, plain_activations, one_precision, plain_or_depthwise, counted_floats)


class Native(KernelLibrary):
    """Our generated C: direct convolution, no scratch; element-wise operators work in place."""

    def scratch_bytes(self, graph: Graph, op: Op, family: Family) -> int:
        """The plain kernels need none."""
        return 0

    def in_place(self, graph: Graph, op: Op) -> bool:
        """Element-wise operators read an element before they write it."""
        return isinstance(op, Add | Mul | Lookup)


class NativeDsp(Native):
    """The DSP variant: convolutions with a window copy two int16 columns before they multiply."""

    def illegal(self, board: Board) -> str:
        """SMLAD and SXTB16 belong to the DSP extension."""
        if board.core.dsp:
            return ""
        return (
            f"backend '{self.name}' needs the DSP extension, which the {board.core.name} of board "
            f"'{board.name}' lacks; use 'native'"
        )

    def scratch_bytes(self, graph: Graph, op: Op, family: Family) -> int:
        """Two columns of int16 for an integer convolution that is not 1x1 or depthwise."""
        if not isinstance(op, Conv2D) or kernel_class(op) != "conv" or op.weight.bits == 32:
            return 0
        depth = op.weight.size // op.weight.shape[0]
        return 2 * (-(-depth // 4) * 4) * INT16_BYTES


NATIVE = Native(
    name="native",
    version="1",
    weight_containers=(2, 4, 8, 32),
    channel_alignment=1,
    shift_bytes=1,
    sparse=True,
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
    pad_rows=True,
    predicates=(*RULES, dsp_extension),
)
