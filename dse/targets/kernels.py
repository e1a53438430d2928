"""What the built-in backends share: constants, code by kernel, and memory of the runtime."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from dse.bounded import Bounded
from dse.graph.ir import FLOAT_BITS, Conv2D, FullyConnected, Graph, Lookup, Op, Pool2D, WeightedOp
from dse.graph.plan import MemoryPlan, plan
from dse.targets.backend import Predicate, Rounding
from dse.targets.board import Board
from dse.targets.core import Family
from dse.targets.cycles import Timing
from dse.targets.encoding import Encoding, encode

BIAS_BYTES = 4
MULTIPLIER_BYTES = 4
LOOKUP_BYTES, WIDE_LOOKUP_BYTES = 256, 2 * 513


@cache
def code_sizes(backend: str) -> Mapping[str, Any]:
    """The entries of a backend in `data/code_sizes.toml`: bytes by kernel, with their source."""
    file = resources.files("dse.targets") / "data" / "code_sizes.toml"
    sizes: Mapping[str, Any] = tomllib.loads(file.read_text("utf-8"))[backend]
    return sizes


@dataclass(frozen=True)
class KernelLibrary:
    """A backend whose kernels are C functions called one after the other (a `Backend`).

    `shift_bytes` is the width of a stored requantization shift. Subclasses say what scratch their
    kernels need and which operators may write over their input.
    """

    name: str
    version: str
    weight_containers: tuple[int, ...]
    channel_alignment: int
    shift_bytes: int
    sparse: bool
    pad_rows: bool
    predicates: tuple[Predicate, ...]
    rounding: Rounding = "double"
    code_books: bool = False
    blocks: bool = False

    @property
    def sizes_name(self) -> str:
        """Its entry in `data/code_sizes.toml`; versions of one runtime share one."""
        return self.name

    def scratch_bytes(self, graph: Graph, op: Op, family: Family) -> int:
        """Working memory of the operator's kernel besides its tensors."""
        raise NotImplementedError

    def scratch_like(self, family: Family) -> str:
        """Equal for core families on which every operator needs the same working memory."""
        return family

    def in_place(self, graph: Graph, op: Op) -> bool:
        """Whether the kernel may write its output over its first input."""
        raise NotImplementedError

    def illegal(self, board: Board) -> str:
        """Plain kernels run on every core."""
        return ""

    def containers(self, op: WeightedOp) -> tuple[int, ...]:
        """Widths in which this operator's kernel reads weights."""
        return self.weight_containers

    def encoding(self, op: WeightedOp) -> Encoding:
        """Layout and bytes of an operator's weights; TargetError when no container fits.

        Depthwise layers are never stored in blocks: they have few weights, and blocks of several
        output channels would read as many input channels.
        """
        return encode(
            op.weight,
            self.containers(op),
            sparse=self.sparse,
            pad_rows=self.pad_rows,
            code_books=self.code_books,
            blocks=self.blocks and not (isinstance(op, Conv2D) and op.depthwise),
        )

    def memory_plan(self, graph: Graph, board: Board) -> MemoryPlan:
        """Order and placement with the kernels' scratch buffers, cached by shapes."""
        family = board.core.family
        key = (self.name, self.scratch_like(family), graph.key)
        if key not in _PLANS:
            _PLANS[key] = self.placed(
                plan(
                    graph,
                    scratch=lambda graph, op: self.scratch_bytes(graph, op, family),
                    in_place=self.in_place,
                )
            )
        return _PLANS[key]

    def placed(self, found: MemoryPlan) -> MemoryPlan:
        """The plan as the runtime places its buffers: by default at the lowest offsets found."""
        return found

    def constants(self, op: WeightedOp) -> Mapping[str, int]:
        """Bytes of weights, of int32 or float biases, and of multipliers with their shifts."""
        channels = op.weight.shape[0]
        parts = {"weights": self.encoding(op).size_bytes, "biases": channels * BIAS_BYTES}
        if op.weight.bits != FLOAT_BITS:
            parts["requantization"] = channels * (MULTIPLIER_BYTES + self.shift_bytes)
        return parts

    def tables(self, graph: Graph, op: Op) -> int:
        """A look-up activation holds a byte for each int8 input, or 513 values of int16.

        Int16 curves share a table, which counts as code, and clamps need none.
        """
        if not isinstance(op, Lookup):
            return 0
        if graph.tensors[op.output].dtype != "int16":
            return LOOKUP_BYTES
        shared = op.function in ("sigmoid", "tanh", "relu", "relu6")
        return 0 if shared else WIDE_LOOKUP_BYTES

    def code(self, graph: Graph, board: Board) -> Mapping[str, int]:
        """Bytes of each kernel used, once, and of what calls them.

        A second weight layout of a kernel is a second copy of its inner loops.
        """
        key = (self.name, board.core.family == "m0plus", graph.key)
        if key not in _CODE:
            _CODE[key] = self._code(graph, board)
        return _CODE[key]

    def _code(self, graph: Graph, board: Board) -> Mapping[str, int]:
        sizes = code_sizes(self.sizes_name)
        factor = sizes["m0plus"] if board.core.family == "m0plus" else 1.0
        parts = {"runtime": round(sizes["runtime"] * factor)}
        layouts: dict[str, set[str]] = {}
        for op in graph.ops:
            kernel = code_kernel(op)
            if kernel in sizes:
                layouts.setdefault(kernel, set())
                if isinstance(op, Conv2D | FullyConnected):
                    layouts[kernel].add(self.encoding(op).suffix)
        for kernel, found in layouts.items():
            extra = sizes["variant"] * max(0, len(found) - 1) + sum(
                self._extra(name) for name in found
            )
            parts[kernel] = round((sizes[kernel] + extra) * factor)
        return parts

    def _extra(self, layout: str) -> int:
        sizes = code_sizes(self.sizes_name)
        extra = int(sizes["sparse"]) if ".sparse" in layout else 0
        if ".w" in layout:
            extra += int(sizes["sub_byte"])
        return extra + (int(sizes["float"]) if ".f32" in layout else 0)

    @property
    def code_interval(self) -> tuple[float, float]:
        """Factors that bound the code's bytes."""
        sizes = code_sizes(self.sizes_name)
        return float(sizes["low"]), float(sizes["high"])

    @property
    def stack_interval(self) -> tuple[float, float]:
        """Factors that bound stack and state: as low as half, as high as twice."""
        return 0.5, 2.0

    @property
    def memory_source(self) -> str:
        """Where code and stack sizes come from."""
        return str(code_sizes(self.sizes_name)["source"])

    def ram(self, graph: Graph, board: Board) -> Mapping[str, int]:
        """Bytes of runtime state and of the deepest call chain."""
        sizes = code_sizes(self.sizes_name)
        return {"runtime": int(sizes["state"]), "stack": int(sizes["stack"])}

    def cycles(self, board: Board) -> Timing | None:
        """Cycles on the board's core, or None when nobody counted them."""
        raise NotImplementedError


PLANS_KEPT = 4096
_PLANS: Bounded[tuple[Any, ...], MemoryPlan] = Bounded(PLANS_KEPT)
_CODE: Bounded[tuple[Any, ...], Mapping[str, int]] = Bounded(PLANS_KEPT)


def code_kernel(op: Op) -> str:
    """The name under which `data/code_sizes.toml` knows the operator's code."""
    if isinstance(op, Conv2D) and op.depthwise:
        return "depthwise"
    if isinstance(op, Pool2D):
        return f"pool2d.{op.mode}"
    return op.kind
