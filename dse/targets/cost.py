"""The costs of a graph on a target, from shapes alone: flash, RAM, latency, energy.

Equal graph keys give equal costs, so what a search screens before training is what the trained
network costs. Every metric has an interval and says where it comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from dse.errors import TargetError
from dse.graph.ir import Conv2D, FullyConnected, Graph, Op, op_macs
from dse.graph.plan import MemoryPlan
from dse.targets.cycles import Cycles, CycleTable, features, kernel_class
from dse.targets.target import Target
from dse.trial import Metric, MetricName

COSTS_KEPT = 4096


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
    operators: tuple[OperatorCost, ...]
    memory: MemoryPlan
    flash_parts: Mapping[str, int]
    ram_parts: Mapping[str, int]

    def value(self, metric: MetricName) -> float | None:
        """The metric's value in SI units, or None when it is unavailable."""
        return self.metrics[metric].value


_COSTS: dict[tuple[Any, ...], Cost] = {}


def cost(graph: Graph, target: Target) -> Cost:
    """Flash and RAM in bytes, latency in seconds, energy in joules of one inference.

    Works on graphs without weight values and is cached by the graph's key. Raises TargetError
    with one sentence when the backend cannot run an operator on the board.
    """
    key = (graph.key, target)
    if key not in _COSTS:
        if len(_COSTS) >= COSTS_KEPT:
            _COSTS.clear()
        _COSTS[key] = _cost(graph, target)
    return _COSTS[key]


def _cost(graph: Graph, target: Target) -> Cost:
    against = target.unsupported(graph)
    if against:
        more = f" (and {len(against) - 1} more)" if len(against) > 1 else ""
        raise TargetError(f"'{target.key}' cannot run this network: {against[0]}{more}")
    memory = target.backend.memory_plan(graph, target.board)
    constants = {op.name: _constants(op, target) for op in graph.ops}
    flash_parts = _summed(constants.values())
    constant_bytes = sum(flash_parts.values())
    code = target.backend.code(graph, target.board)
    ram_parts = {"arena": memory.arena_bytes, **target.backend.ram(graph, target.board)}
    latency, operators = _timed(graph, target, constants, memory, constant_bytes)
    metrics: dict[MetricName, Metric] = {
        "flash": _flash(constant_bytes, sum(code.values()), target),
        "ram": _ram(memory.arena_bytes, ram_parts, target),
        "latency": latency,
        "energy": _energy(latency, target),
    }
    flash_parts |= {
        "code": sum(size for part, size in code.items() if part != "runtime"),
        "runtime": code["runtime"],
    }
    return Cost(
        target.key,
        MappingProxyType(metrics),
        operators,
        memory,
        MappingProxyType(flash_parts),
        MappingProxyType(ram_parts),
    )


def _constants(op: Op, target: Target) -> dict[str, int]:
    parts: dict[str, int] = {}
    if isinstance(op, Conv2D | FullyConnected):
        parts |= target.backend.constants(op)
    tables = target.backend.tables(op)
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
    """The arena is exact; stack and state are within a factor of two upwards."""
    rest = sum(parts.values()) - arena_bytes
    return Metric(
        float(arena_bytes + rest),
        arena_bytes + rest / 2,
        arena_bytes + rest * 2.0,
        "modelled",
        f"arena planned exactly; stack: {target.backend.memory_source}",
    )


def _timed(
    graph: Graph,
    target: Target,
    constants: Mapping[str, Mapping[str, int]],
    memory: MemoryPlan,
    constant_bytes: int,
) -> tuple[Metric, tuple[OperatorCost, ...]]:
    """Latency of the whole and of each operator, in the order in which they run."""
    table = target.backend.cycles(target.board)
    live = {step.op: step.live_bytes for step in memory.steps}
    each: dict[str, Cycles] = {}
    if table is not None:
        fetch = table.fetch(constant_bytes, target.board)
        each = {op.name: _cycles(graph, op, target, table, fetch) for op in graph.ops}
    total = sum(cycles.value for cycles in each.values())
    operators = []
    for op in (graph.op(name) for name in memory.order):
        cycles = each[op.name].value if op.name in each else None
        operators.append(
            OperatorCost(
                op.name,
                op.kind,
                op_macs(graph, op),
                cycles,
                None if cycles is None else cycles / target.clock_hz,
                None if cycles is None else cycles / total if total else 0.0,
                sum(constants[op.name].values()),
                live[op.name],
            )
        )
    return _latency(each, table, target), tuple(operators)


def _cycles(graph: Graph, op: Op, target: Target, table: CycleTable, fetch: float) -> Cycles:
    encoding = target.backend.encoding(op) if isinstance(op, Conv2D | FullyConnected) else None
    counts = features(graph, op, encoding)
    found = table.cycles(counts)
    waits = table.stalls(kernel_class(op), op_macs(graph, op), target.board)
    waits += fetch * counts.get("fetch", 0.0)
    factor = table.factor(target.board)
    return Cycles(
        (found.value + waits) * factor, (found.low + waits) * factor, (found.high + waits) * factor
    )


def _latency(each: Mapping[str, Cycles], table: CycleTable | None, target: Target) -> Metric:
    if table is None:
        return Metric.unavailable(
            f"no cycle table for backend '{target.backend.name}' on {target.board.core.name}"
        )
    error = table.relative_error(target.board)
    return Metric(
        sum(cycles.value for cycles in each.values()) / target.clock_hz,
        sum(cycles.low for cycles in each.values()) / target.clock_hz / (1 + error),
        sum(cycles.high for cycles in each.values()) / target.clock_hz * (1 + error),
        "modelled",
        table.source,
    )


def _energy(latency: Metric, target: Target) -> Metric:
    """Power while inferring times latency; both intervals together (Deutel et al., 2205.10369)."""
    power = target.board.active_power_w(target.clock_hz)
    if latency.value is None or latency.low is None or latency.high is None:
        return Metric.unavailable(latency.source)
    if power is None:
        return Metric.unavailable(f"board '{target.board.name}' gives no power while active")
    return Metric(
        power.value * latency.value,
        power.low * latency.low,
        power.high * latency.high,
        "modelled",
        f"power ({power.text}) x latency ({latency.source})",
    )
