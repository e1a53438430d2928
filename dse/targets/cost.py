"""The costs of a graph on a target, from shapes alone: flash, RAM, latency, energy.

Equal graph keys give equal costs, so what a search screens before training is what the trained
network costs. Every metric has an interval and says where it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Protocol, TypeVar, runtime_checkable

from dse.bounded import Bounded
from dse.errors import TargetError
from dse.graph.ir import Conv2D, FullyConnected, Graph, Op, op_macs
from dse.graph.plan import MemoryPlan
from dse.targets.board import Board
from dse.targets.cycles import Cycles, CycleTable, Timing, counted
from dse.targets.encoding import Encoding
from dse.targets.energy import inference_energy
from dse.targets.target import Target
from dse.targets.timing import timing
from dse.trial import Metric, MetricName

COSTS_KEPT = 4096
_T = TypeVar("_T")


@dataclass(frozen=True)
class OperatorCost:
    """What one operator takes; `share` is of the latency, `live_bytes` of RAM while it runs.

    `cycles`, `latency_s` and `share` are None where the backend has no cycle table.
    """

    name: str
    kind: str
    macs: int
    cycles: float | None
    latency_s: float | None
    share: float | None
    flash_bytes: int
    live_bytes: int


@dataclass(frozen=True)
class Cost:
    """The four metrics (SI units, provenance 'modelled') and what they are made of."""

    target: str
    metrics: Mapping[MetricName, Metric]
    memory: MemoryPlan
    flash_parts: Mapping[str, int]
    ram_parts: Mapping[str, int]
    # A search asks for thousands of costs, and hardly ever for their operators.
    by_operator: Callable[[], tuple[OperatorCost, ...]] = field(compare=False, repr=False)

    @cached_property
    def operators(self) -> tuple[OperatorCost, ...]:
        """What each operator takes, in the order in which they run."""
        return self.by_operator()

    def value(self, metric: MetricName) -> float | None:
        """The metric's value in SI units, or None when it is unavailable."""
        return self.metrics[metric].value


@runtime_checkable
class WholeNetworkBackend(Protocol):
    """A backend whose compiler says what a whole network costs, such as Vela for the Ethos-U."""

    def compiled_cost(self, graph: Graph, target: Target) -> Cost:
        """The costs from shapes alone; TargetError when it cannot be compiled."""


_COSTS: Bounded[tuple[Any, ...], Cost] = Bounded(COSTS_KEPT)


def cost(graph: Graph, target: Target) -> Cost:
    """Flash and RAM in bytes, latency in seconds, energy in joules of one inference.

    Works on graphs without weight values and is cached by the graph's key. Raises TargetError
    with one sentence when the backend cannot run an operator on the board.
    """
    key = (graph.key, target)
    found = _COSTS.get(key)
    if found is None:
        found = _COSTS[key] = _cost(graph, target)
    return found


def _cost(graph: Graph, target: Target) -> Cost:
    # `hasattr` first: to check a Protocol takes as long as half of what follows.
    if hasattr(target.backend, "compiled_cost") and isinstance(target.backend, WholeNetworkBackend):
        _check_supported(graph, target)
        return target.backend.compiled_cost(graph, target)
    found = _remembered(
        _ON_BOARD, (graph.key, target.backend, target.board), _on_board, graph, target
    )
    latency = _latency(found, target)
    metrics: dict[MetricName, Metric] = {
        "flash": found.memory.flash,
        "ram": found.memory.ram,
        "latency": latency,
        "energy": inference_energy(target.board, target.clock_hz, latency),
    }
    return Cost(
        target.key,
        MappingProxyType(metrics),
        found.memory.plan,
        found.memory.flash_parts,
        found.memory.ram_parts,
        lambda: _operators(graph, found, target.clock_hz),
    )


def _check_supported(graph: Graph, target: Target) -> None:
    against = target.unsupported(graph)
    if against:
        more = f" (and {len(against) - 1} more)" if len(against) > 1 else ""
        raise TargetError(f"'{target.key}' cannot run this network: {against[0]}{more}")


# --- what does not depend on the clock, nor on the board ----------------------------------------


@dataclass(frozen=True)
class _Constants:
    """A network's weights as a backend stores them: the same on every board."""

    by_op: Mapping[str, Mapping[str, int]]
    parts: Mapping[str, int]
    total_bytes: int
    encodings: Mapping[str, Encoding]


@dataclass(frozen=True)
class _InMemory:
    """Flash and RAM that a network takes by a backend: the same on every board with the core."""

    flash: Metric
    ram: Metric
    plan: MemoryPlan
    flash_parts: Mapping[str, int]
    ram_parts: Mapping[str, int]
    constants: _Constants


@dataclass(frozen=True)
class _OnBoard:
    """What a network takes on a board by a backend, at whatever clock."""

    memory: _InMemory
    board: Board
    total: Cycles | None
    table: Timing | None


_CONSTANTS: Bounded[tuple[Any, ...], _Constants] = Bounded(COSTS_KEPT)
_IN_MEMORY: Bounded[tuple[Any, ...], _InMemory] = Bounded(COSTS_KEPT)
_ON_BOARD: Bounded[tuple[Any, ...], _OnBoard] = Bounded(COSTS_KEPT)


def _remembered(
    kept: Bounded[tuple[Any, ...], _T],
    key: tuple[Any, ...],
    make: Callable[[Graph, Target], _T],
    graph: Graph,
    target: Target,
) -> _T:
    found = kept.get(key)
    if found is None:
        found = kept[key] = make(graph, target)
    return found


def _constants_of(graph: Graph, target: Target) -> _Constants:
    by_op = {op.name: _constants(graph, op, target) for op in graph.ops}
    parts = _summed(by_op.values())
    encodings = {op.name: target.backend.encoding(op) for op in graph.weighted}
    return _Constants(by_op, parts, sum(parts.values()), encodings)


def _in_memory(graph: Graph, target: Target) -> _InMemory:
    _check_supported(graph, target)
    backend, board = target.backend, target.board
    constants = _remembered(_CONSTANTS, (graph.key, backend), _constants_of, graph, target)
    memory, code = backend.memory_plan(graph, board), backend.code(graph, board)
    ram_parts = {"arena": memory.arena_bytes, **backend.ram(graph, board)}
    code_bytes = sum(code.values())
    flash_parts = {
        **constants.parts,
        "code": code_bytes - code["runtime"],
        "runtime": code["runtime"],
    }
    return _InMemory(
        _flash(constants.total_bytes, code_bytes, target),
        _ram(memory.arena_bytes, ram_parts, target),
        memory,
        MappingProxyType(flash_parts),
        MappingProxyType(ram_parts),
        constants,
    )


def _on_board(graph: Graph, target: Target) -> _OnBoard:
    key = (graph.key, target.backend, target.board.core.name)
    memory = _remembered(_IN_MEMORY, key, _in_memory, graph, target)
    table = timing(target)
    total = None if table is None else _total(graph, target, memory.constants, table)
    return _OnBoard(memory, target.board, total, table)


def _each(graph: Graph, found: _OnBoard) -> dict[str, Cycles]:
    """Cycles by operator; none where the backend has no cycle table."""
    table, constants = found.table, found.memory.constants
    if table is None:
        return {}
    return {
        op.name: table.operator(
            graph, op, constants.encodings.get(op.name), found.board, constants.total_bytes
        )
        for op in graph.ops
    }


def _constants(graph: Graph, op: Op, target: Target) -> dict[str, int]:
    parts: dict[str, int] = {}
    if isinstance(op, Conv2D | FullyConnected):
        parts |= target.backend.constants(op)
    tables = target.backend.tables(graph, op)
    return parts | {"tables": tables} if tables else parts


def _summed(parts: Any) -> dict[str, int]:
    total: dict[str, int] = {"weights": 0, "biases": 0, "requantization": 0, "tables": 0}
    for part in parts:
        for name, size in part.items():
            total[name] = total.get(name, 0) + size
    return total


def _flash(constant_bytes: int, code_bytes: int, target: Target) -> Metric:
    """Constants are exact, code is within the backend's factors."""
    low, high = target.backend.code_interval
    return Metric(
        float(constant_bytes + code_bytes),
        constant_bytes + code_bytes * low,
        constant_bytes + code_bytes * high,
        "modelled",
        f"constants counted; code: {target.backend.memory_source}",
    )


def _ram(arena_bytes: int, parts: Mapping[str, int], target: Target) -> Metric:
    """The arena is exact; stack and state are within the backend's factors."""
    low, high = target.backend.stack_interval
    rest = sum(parts.values()) - arena_bytes
    return Metric(
        float(arena_bytes + rest),
        arena_bytes + rest * low,
        arena_bytes + rest * high,
        "modelled",
        f"arena planned exactly; stack: {target.backend.memory_source}",
    )


def _total(graph: Graph, target: Target, constants: _Constants, table: Timing) -> Cycles:
    """Cycles of the network: at once where they are a sum over counts, else by operator."""
    board, total_bytes = target.board, constants.total_bytes
    if isinstance(table, CycleTable):
        return table.network(counted(graph, constants.encodings), board, total_bytes)
    found = [
        table.operator(graph, op, constants.encodings.get(op.name), board, total_bytes)
        for op in graph.ops
    ]
    return Cycles(
        sum(c.value for c in found), sum(c.low for c in found), sum(c.high for c in found)
    )


def _operators(graph: Graph, found: _OnBoard, clock_hz: int) -> tuple[OperatorCost, ...]:
    """Each operator, in the order in which they run."""
    each = _each(graph, found)
    total = sum(cycles.value for cycles in each.values())
    named = {op.name: op for op in graph.ops}
    operators = []
    for step in found.memory.plan.steps:
        op, cycles = named[step.op], each[step.op].value if step.op in each else None
        operators.append(
            OperatorCost(
                op.name,
                op.kind,
                op_macs(graph, op),
                cycles,
                None if cycles is None else cycles / clock_hz,
                None if cycles is None else cycles / total if total else 0.0,
                sum(found.memory.constants.by_op[op.name].values()),
                step.live_bytes,
            )
        )
    return tuple(operators)


def _latency(found: _OnBoard, target: Target) -> Metric:
    if found.table is None or found.total is None:
        return Metric.unavailable(
            f"no cycle table for backend '{target.backend.name}' on {target.board.core.name}"
        )
    error, total = found.table.relative_error(target.board), found.total
    return Metric(
        total.value / target.clock_hz,
        total.low / target.clock_hz / (1 + error),
        total.high / target.clock_hz * (1 + error),
        "modelled",
        found.table.source,
    )
