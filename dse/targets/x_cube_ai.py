"""X-CUBE-AI, STMicroelectronics' runtime, by version: closed, for STM32 only.

Cycles are fitted to MLPerf Tiny rows of versions 7.1 to 9.0; code and runtime sizes are unverified.
From 8.1 on it skips output channels whose weights are all zero (`skips_dead_channels`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dse.graph.ir import Add, Conv2D, Graph, Lookup, Mul, Op, WeightedOp
from dse.targets.board import Board
from dse.targets.cmsis_nn import equal_shapes, int8_activations, integer_weights
from dse.targets.core import Family
from dse.targets.cycles import Timing, kernel_class
from dse.targets.fitted import fitted_table
from dse.targets.kernels import KernelLibrary
from dse.targets.native import known_operator, plain_or_depthwise
from dse.targets.tflm import runtime_ram

VENDOR = "STMicroelectronics"


@dataclass(frozen=True)
class XCubeAI(KernelLibrary):
    """One version of the runtime; int8 weights, activations overlaid where that is safe.

    Its rounding is not documented; it is taken as that of TensorFlow Lite's convolutions.
    """

    skips_dead_channels: bool = False

    def illegal(self, board: Board) -> str:
        """Its licence and its library are for STM32."""
        if board.vendor == VENDOR:
            return ""
        return (
            f"backend '{self.name}' runs on STM32 only; board '{board.name}' has vendor "
            f"'{board.vendor}'; use 'tflm' or 'cmsis-nn'"
        )

    def containers(self, op: WeightedOp) -> tuple[int, ...]:
        """Int8 weights."""
        return (8,)

    def scratch_like(self, family: Family) -> str:
        """The same on every core."""
        return ""

    def scratch_bytes(self, graph: Graph, op: Op, family: Family) -> int:
        """A column of a window in int16 for two pixels, as its generated reports show for int8
        convolutions; the exact size is the library's own (unverified)."""
        if not isinstance(op, Conv2D) or kernel_class(op) == "pointwise":
            return 0
        depth = op.weight.size // op.weight.shape[0]
        return 4 * depth if not op.depthwise else 2 * depth * min(op.weight.shape[0], 16)

    def in_place(self, graph: Graph, op: Op) -> bool:
        """Element-wise operators overwrite their input ("in-place" in its reports)."""
        return isinstance(op, Add | Mul | Lookup)

    @property
    def sizes_name(self) -> str:
        """All versions share one entry."""
        return "x-cube-ai"

    def ram(self, graph: Graph, board: Board) -> Mapping[str, int]:
        """Descriptors of layers and tensors, and the stack."""
        return runtime_ram(self.sizes_name, graph)

    def cycles(self, board: Board) -> Timing | None:
        """Fitted to MLPerf Tiny rows of this version."""
        return fitted_table(self.name, board)


def _version(name: str, version: str, *, skips_dead_channels: bool) -> XCubeAI:
    return XCubeAI(
        name=name,
        version=version,
        weight_containers=(8,),
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
        skips_dead_channels=skips_dead_channels,
    )


X_CUBE_AI = (
    _version("x-cube-ai-7.3", "7.3 and 8.0", skips_dead_channels=False),
    _version("x-cube-ai-9", "9.0", skips_dead_channels=True),
    _version("x-cube-ai-10", "10 (as 9.0, not measured)", skips_dead_channels=True),
)
