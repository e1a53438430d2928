"""CMSIS-NN: Arm's int8 kernels (s8) and their 4-bit weight variants (s4), called statically.

Scratch sizes follow the get_buffer_size functions of the library (v6; ARM-software/CMSIS-NN,
Source/ConvolutionFunctions/arm_*_get_buffer_sizes_s8.c and _s4.c, arm_avgpool_s8), checked against
the figures of the backends notes, section 4.1.
"""

from __future__ import annotations

import math

from dse.graph.ir import Conv2D, FullyConnected, Graph, Lookup, Mul, Op, Pool2D, WeightedOp
from dse.targets.board import Board
from dse.targets.core import Family
from dse.targets.cycles import Timing
from dse.targets.encoding import container_bits
from dse.targets.fitted import fitted_table
from dse.targets.kernels import KernelLibrary
from dse.targets.native import known_operator, plain_or_depthwise

DSP_FAMILIES = ("m4", "m7", "m33")
HELIUM_FAMILIES = ("m55", "m85")
# Four pixels of a block of 124 channels (4464 B for 3x3: backends notes, section 4.1).
HELIUM_BLOCK = 4 * 124
S8 = (8,)
S8_AND_S4 = (4, 8)


def int8_activations(graph: Graph, op: Op, board: Board) -> bool:
    """Activations are int8."""
    # A loop, as `all` of a generator takes three times as long, and searches ask all the time.
    for name in (*op.inputs, op.output):  # noqa: SIM110
        if graph.tensors[name].dtype != "int8":
            return False
    return True


def integer_weights(graph: Graph, op: Op, board: Board) -> bool:
    """Weights are integers of at most 8 bits."""
    return not isinstance(op, Conv2D | FullyConnected) or op.weight.bits <= 8


def equal_shapes(graph: Graph, op: Op, board: Board) -> bool:
    """Both inputs of a product have one shape: the kernel does not repeat a (C,) over pixels."""
    if not isinstance(op, Mul):
        return True
    return graph.tensors[op.inputs[0]].shape == graph.tensors[op.inputs[1]].shape


class CmsisNN(KernelLibrary):
    """CMSIS-NN called statically, without an interpreter; weights dense."""

    def containers(self, op: WeightedOp) -> tuple[int, ...]:
        """s4 kernels exist for convolutions; the fully connected s4 kernel has one scale a tensor,
        so per-channel weights of few bits are stored in 8."""
        return S8 if isinstance(op, FullyConnected) else S8_AND_S4

    def scratch_like(self, family: Family) -> str:
        """Plain, DSP and Helium kernels differ."""
        return "helium" if family in HELIUM_FAMILIES else "dsp" * (family in DSP_FAMILIES)

    def scratch_bytes(self, graph: Graph, op: Op, family: Family) -> int:
        """What the kernel's get_buffer_size returns, in bytes."""
        dsp, helium = family in DSP_FAMILIES, family in HELIUM_FAMILIES
        if isinstance(op, FullyConnected):
            return 4 * op.weight.shape[0] if helium else 0
        if isinstance(op, Pool2D) and op.mode == "average":
            return 4 * graph.tensors[op.inputs[0]].channels if dsp else 0
        if not isinstance(op, Conv2D):
            return 0
        s4 = container_bits(op.weight.bits, self.containers(op)) == 4
        if op.depthwise and helium:
            return HELIUM_BLOCK * math.prod(op.kernel)
        if op.depthwise:
            return _depthwise_scratch(graph, op, dsp=dsp, s4=s4)
        if op.kernel == (1, 1) and not any(op.padding):
            return 0
        depth = op.weight.size // op.weight.shape[0]
        return 2 * 2 * (depth if s4 else -(-depth // 4) * 4)

    def in_place(self, graph: Graph, op: Op) -> bool:
        """Only look-up activations, a loop of our own; the library promises it nowhere."""
        return isinstance(op, Lookup)

    def cycles(self, board: Board) -> Timing | None:
        """Fitted to CMSIS-NN called statically (microTVM) and to emulated layers."""
        return fitted_table("cmsis-nn", board)


def _depthwise_scratch(graph: Graph, op: Conv2D, *, dsp: bool, s4: bool) -> int:
    """int16 copies of the window, but none for the 3x3 kernel, a multiplier or dilation."""
    channels = graph.tensors[op.inputs[0]].channels
    one_to_one = channels == op.weight.shape[0] and op.dilation == (1, 1)
    window = op.kernel == (3, 3) and op.padding[0] <= 1 and op.padding[2] <= 1
    if not one_to_one or (window and not s4) or not (dsp or s4):
        return 0
    return 2 * channels * op.kernel[0] * op.kernel[1]


CMSIS_NN = CmsisNN(
    name="cmsis-nn",
    version="6",
    weight_containers=S8_AND_S4,
    channel_alignment=4,
    shift_bytes=4,
    sparse=False,
    pad_rows=False,
    predicates=(
        known_operator,
        int8_activations,
        integer_weights,
        plain_or_depthwise,
        equal_shapes,
    ),
)
