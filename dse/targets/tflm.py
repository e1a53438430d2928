"""TensorFlow Lite Micro: an interpreter over a model file, with CMSIS-NN or portable kernels.

Flash holds the model file (weights, biases, quantization parameters, names), the kernels that are
registered and the interpreter. RAM holds the interpreter's arena: activations placed by its greedy
planner at 16-byte borders, and what it keeps for good, such as requantization multipliers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dse.graph.ir import Graph, Op, WeightedOp
from dse.graph.plan import Buffer, MemoryPlan
from dse.targets.board import Board
from dse.targets.cmsis_nn import (
    CmsisNN,
    equal_shapes,
    int8_activations,
    integer_weights,
)
from dse.targets.core import Family
from dse.targets.cycles import Timing
from dse.targets.fitted import fitted_table
from dse.targets.kernels import code_sizes
from dse.targets.native import known_operator, plain_or_depthwise
from dse.targets.reference_kernels import reference_table

ALIGNMENT = 16
# Scale (float32) and zero point (int64) of each channel, for the weights and again for the bias.
QUANTIZATION_BYTES = 24


def greedy(plan: MemoryPlan) -> MemoryPlan:
    """The same order, placed as the interpreter's greedy planner does: largest buffer first.

    Source: tensorflow/lite/micro/memory_planner/greedy_memory_planner.cc.
    """
    placed: list[Buffer] = []
    for buffer in sorted(plan.buffers, key=lambda b: (-b.size_bytes, b.first)):
        size, offset = -(-buffer.size_bytes // ALIGNMENT) * ALIGNMENT, 0
        for other in sorted(placed, key=lambda b: b.offset):
            if buffer.overlaps(other):
                if offset + size <= other.offset:
                    break
                offset = max(offset, other.offset + other.size_bytes)
        placed.append(Buffer(buffer.tensors, size, buffer.first, buffer.last, offset))
    arena = max(buffer.offset + buffer.size_bytes for buffer in placed)
    return MemoryPlan(plan.steps, tuple(placed), plan.peak_bytes, arena)


@dataclass(frozen=True)
class Tflm(CmsisNN):
    """The interpreter with CMSIS-NN kernels."""

    def containers(self, op: WeightedOp) -> tuple[int, ...]:
        """Its int8 kernels read int8 weights."""
        return (8,)

    def in_place(self, graph: Graph, op: Op) -> bool:
        """The interpreter gives every output a buffer of its own."""
        return False

    def placed(self, found: MemoryPlan) -> MemoryPlan:
        """Placed by the greedy planner, at 16-byte borders."""
        return greedy(found)

    def constants(self, op: WeightedOp) -> Mapping[str, int]:
        """Weights and biases; the model file keeps scales and zero points, not multipliers."""
        parts = dict(super().constants(op))
        return parts | {"requantization": op.weight.shape[0] * QUANTIZATION_BYTES}

    def code(self, graph: Graph, board: Board) -> Mapping[str, int]:
        """Kernels, interpreter, and the model file's tables besides its constants."""
        sizes = code_sizes(self.sizes_name)
        tables = sizes["file_base"] + sizes["file_per_tensor"] * len(graph.tensors)
        return {**super().code(graph, board), "model_file": int(tables)}

    def ram(self, graph: Graph, board: Board) -> Mapping[str, int]:
        """What the interpreter keeps for tensors, operators and channels, and the stack."""
        return runtime_ram(self.sizes_name, graph)

    def cycles(self, board: Board) -> Timing | None:
        """Fitted to TFLM with CMSIS-NN: EK-RA6M4, Raspberry Pi Pico, EK-RA8D1 (Helium)."""
        return fitted_table("tflm", board)


class TflmReference(Tflm):
    """The interpreter with its portable kernels: no scratch, no DSP instructions."""

    def scratch_like(self, family: Family) -> str:
        """The same on every core."""
        return ""

    def scratch_bytes(self, graph: Graph, op: Op, family: Family) -> int:
        """The portable kernels work without."""
        return 0

    def cycles(self, board: Board) -> Timing | None:
        """Counted, not fitted: no measured row runs these kernels alone."""
        return reference_table(board)


def runtime_ram(sizes_of: str, graph: Graph) -> dict[str, int]:
    """Bytes of a runtime's structures by tensor, operator and output channel, and of its stack."""
    sizes = code_sizes(sizes_of)
    state = sizes["state"]
    state += sizes["state_per_tensor"] * len(graph.tensors)
    state += sizes["state_per_operator"] * len(graph.ops)
    state += sizes["state_per_channel"] * sum(op.weight.shape[0] for op in graph.weighted)
    return {"runtime": int(state), "stack": int(sizes["stack"])}


RULES = (known_operator, int8_activations, integer_weights, plain_or_depthwise, equal_shapes)
TFLM = Tflm(
    name="tflm",
    version="2021-2024, CMSIS-NN kernels",
    weight_containers=(8,),
    channel_alignment=4,
    shift_bytes=4,
    sparse=False,
    pad_rows=False,
    predicates=RULES,
)
TFLM_REFERENCE = TflmReference(
    name="tflm-reference",
    version="portable kernels",
    weight_containers=(8,),
    channel_alignment=1,
    shift_bytes=4,
    sparse=False,
    pad_rows=False,
    predicates=RULES,
)
