"""Backends: what turns a graph into firmware, seen from its costs. A Protocol and a registry.

A backend names its numerics contract (rounding), what it supports, how it stores weights, what
memory its kernels need and how many cycles they take. Others are added through the entry point
`dse.backends` (docs/adding-a-backend.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from dse.errors import TargetError, nearest
from dse.graph.ir import Graph, Op, WeightedOp
from dse.graph.plan import MemoryPlan
from dse.targets.board import Board
from dse.targets.cycles import Timing
from dse.targets.encoding import Encoding

Rounding: TypeAlias = Literal["double", "single"]
# True when the operator is supported; the docstring is the sentence a user reads when it is not.
Predicate: TypeAlias = Callable[[Graph, Op, Board], bool]

ENTRY_POINTS = "dse.backends"


@runtime_checkable
class Backend(Protocol):
    """What a cost, a search space and an export need to know of a backend.

    What it says of a graph's flash and RAM, and whether it runs it, follows from the board's core
    alone: boards with one core share the answer. What a board forbids at all is for `illegal`.
    `weight_containers` are the widths in bits in which weights can be stored;
    `channel_alignment` the multiple of channels that its kernels run best on.
    """

    @property
    def name(self) -> str:
        """As study files write it."""

    @property
    def version(self) -> str:
        """Version of the kernels that the figures hold for."""

    @property
    def rounding(self) -> Rounding:
        """Numerics contract under which accuracy is measured."""

    @property
    def channel_alignment(self) -> int:
        """Channels are pruned to a multiple of this."""

    @property
    def weight_containers(self) -> Sequence[int]:
        """Bits in which a weight can be stored."""

    @property
    def predicates(self) -> Sequence[Predicate]:
        """What is supported; each docstring is the sentence a user reads."""

    def illegal(self, board: Board) -> str:
        """Why it cannot run on this board at all, whatever the network; empty when it can."""

    def encoding(self, op: WeightedOp) -> Encoding:
        """Layout and bytes of an operator's weights; TargetError when no container fits."""

    def memory_plan(self, graph: Graph, board: Board) -> MemoryPlan:
        """Order and placement with the scratch buffers of the kernels."""

    def constants(self, op: WeightedOp) -> Mapping[str, int]:
        """Bytes in flash of an operator's weights, biases and requantization constants."""

    def tables(self, graph: Graph, op: Op) -> int:
        """Bytes in flash of an operator's look-up tables."""

    def code(self, graph: Graph, board: Board) -> Mapping[str, int]:
        """Bytes of machine code by kernel, each once, and of the runtime."""

    @property
    def code_interval(self) -> tuple[float, float]:
        """Factors that bound the code's bytes."""

    @property
    def stack_interval(self) -> tuple[float, float]:
        """Factors that bound the RAM besides the arena."""

    @property
    def memory_source(self) -> str:
        """Where code and stack sizes come from."""

    def ram(self, graph: Graph, board: Board) -> Mapping[str, int]:
        """Bytes of RAM besides the arena: runtime state and stack."""

    def cycles(self, board: Board) -> Timing | None:
        """Cycles on the board's core, such as a `CycleTable`; None when nobody counted them."""


def unsupported(backend: Backend, graph: Graph, board: Board) -> tuple[str, ...]:
    """One sentence for each operator and rule that stand against it; empty when all is well."""
    return tuple(
        [
            f"operator '{op.name}' ({op.kind}): {sentence(predicate)}"
            for op in graph.ops
            for predicate in backend.predicates
            if not predicate(graph, op, board)
        ]
    )


def sentence(predicate: Predicate) -> str:
    """What a user reads of a rule: its docstring in one line."""
    return " ".join((predicate.__doc__ or predicate.__name__).split())


def support_table(backends: Sequence[Backend] = ()) -> tuple[tuple[str, str, str], ...]:
    """(backend, rule, sentence) of every predicate: the table of the documentation."""
    return tuple(
        (backend.name, predicate.__name__, sentence(predicate))
        for backend in backends or tuple(load_backends().values())
        for predicate in backend.predicates
    )


@cache
def load_backends() -> Mapping[str, Backend]:
    """All backends by name: built in, then those of installed packages.

    Raises TargetError when an entry point does not give a Backend.
    """
    from dse.targets.cmsis_nn import CMSIS_NN
    from dse.targets.ethos_u import ETHOS_U
    from dse.targets.native import NATIVE, NATIVE_DSP, NATIVE_MVE
    from dse.targets.tflm import TFLM, TFLM_REFERENCE
    from dse.targets.x_cube_ai import X_CUBE_AI

    built_in: tuple[Backend, ...] = (
        NATIVE,
        NATIVE_DSP,
        NATIVE_MVE,
        CMSIS_NN,
        TFLM,
        TFLM_REFERENCE,
        *X_CUBE_AI,
        ETHOS_U,
    )
    found = {backend.name: backend for backend in built_in}
    for entry in entry_points(group=ENTRY_POINTS):
        backend = entry.load()
        if not isinstance(backend, Backend):
            raise TargetError(
                f"entry point '{entry.name}' of '{ENTRY_POINTS}' gives {backend!r}, not a Backend"
            )
        found[backend.name] = backend
    return found


def find_backend(name: str) -> Backend:
    """The backend of that name; TargetError names the nearest."""
    backends = load_backends()
    if name not in backends:
        raise TargetError(f"unknown backend '{name}'; {nearest(name, backends)}")
    return backends[name]
