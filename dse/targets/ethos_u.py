"""Arm Ethos-U through the real Vela compiler: a backend that is costed as a whole network.

Vela's weight encoder depends on the weights' values, which a search does not have when it screens.
So costs are those of deterministic random weights that use every value of their bit width alike,
the hardest to encode; they are the same before and after training (docs/decisions/0007). `exact`
costs the network's own values instead, as `dse estimate` does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType

import numpy as np

from dse.errors import GraphError, TargetError
from dse.firmware.tflite import to_tflite
from dse.graph.blocks import cut, joined, shares_magnitudes
from dse.graph.code_book import write_rows
from dse.graph.ir import (
    FLOAT_BITS,
    Array,
    Conv2D,
    FullyConnected,
    Graph,
    Lookup,
    Op,
    Weight,
    WeightedOp,
    op_macs,
)
from dse.graph.plan import MemoryPlan, plan
from dse.graph.quantize import quantize
from dse.targets import vela
from dse.targets.backend import Predicate, Rounding
from dse.targets.board import Board
from dse.targets.cost import Cost, OperatorCost
from dse.targets.cycles import Timing
from dse.targets.encoding import Encoding, encode
from dse.targets.npu import Npu
from dse.targets.target import Target
from dse.targets.vela import VelaReport
from dse.trial import Metric, MetricName

CONTAINERS = (8,)
# TensorFlow Lite Micro's interpreter with one operator and the driver; the interpreter's own state
# and the stack. From memory, so within a factor of two either way.
RUNTIME_FLASH_BYTES = 24 * 1024
RUNTIME_RAM_BYTES = 4 * 1024
STACK_BYTES = 2 * 1024
RUNTIME_FACTOR = 2.0
# How far Vela's estimate may be off. Arm states none; assumed.
LATENCY_FACTOR = 1.5


def integer_network(graph: Graph, op: Op, board: Board) -> bool:
    """Activations are int8 or int16 and weights integers; Vela leaves floats to the CPU."""
    if isinstance(op, Conv2D | FullyConnected) and op.weight.bits == FLOAT_BITS:
        return False
    return all(graph.tensors[n].dtype in ("int8", "int16") for n in (*op.inputs, op.output))


def in_tensorflow_lite(graph: Graph, op: Op, board: Board) -> bool:
    """The function has an operator in TensorFlow Lite, which hard-sigmoid has not."""
    return not isinstance(op, Lookup) or op.function != "hardsigmoid"


@dataclass(frozen=True)
class EthosU:
    """A backend (`dse.targets.Backend`) that compiles whole networks (`WholeNetworkBackend`)."""

    name: str = "ethos-u"
    rounding: Rounding = "double"
    channel_alignment: int = 1
    weight_containers: tuple[int, ...] = CONTAINERS
    predicates: Sequence[Predicate] = (integer_network, in_tensorflow_lite)

    @property
    def version(self) -> str:
        """Vela's version."""
        return vela.version()

    def illegal(self, board: Board) -> str:
        """Boards without an Ethos-U, and machines without Vela."""
        if board.npu is None:
            return (
                f"backend '{self.name}' needs an Ethos-U, which board '{board.name}' lacks "
                "(its file gives no 'npu')"
            )
        reason = vela.missing()
        return f"backend '{self.name}' compiles with Vela; {reason}" if reason else ""

    def compiled_cost(self, graph: Graph, target: Target, exact: bool = False) -> Cost:
        """Vela's SRAM, flash and cycles, with what the runtime adds.

        `exact` compiles the graph's own values; otherwise stand-ins, which shapes alone decide.
        Raises TargetError when Vela cannot compile it.
        """
        report = self.report(graph, _npu(target), exact)
        memory = self.memory_plan(graph, target.board)
        flash_parts = {
            "model": report.file_bytes,
            "runtime": RUNTIME_FLASH_BYTES,
        }
        ram_parts = {"arena": report.sram_bytes, "runtime": RUNTIME_RAM_BYTES, "stack": STACK_BYTES}
        source = f"Vela {self.version} for {_npu(target).text}" + (
            "" if exact else "; random weights of the same bits"
        )
        latency = _latency(report, source)
        metrics: dict[MetricName, Metric] = {
            "flash": _with_runtime(flash_parts, "model", source),
            "ram": _with_runtime(ram_parts, "arena", source),
            "latency": latency,
            "energy": _energy(latency, target.board),
        }
        live = {step.op: step.live_bytes for step in memory.steps}
        operators = tuple(
            OperatorCost(op.name, op.kind, op_macs(graph, op), None, None, None, 0, live[op.name])
            for op in (graph.op(name) for name in memory.order)
        )
        return Cost(
            target.key,
            MappingProxyType(metrics),
            memory,
            MappingProxyType(flash_parts),
            MappingProxyType(ram_parts),
            lambda: operators,
        )

    def report(self, graph: Graph, npu: Npu, exact: bool = False) -> VelaReport:
        """Vela's own figures; TargetError where the graph has no TensorFlow Lite form."""
        try:
            content = _file(graph) if exact else _stand_in_file(graph.key, _Unkeyed(graph))
        except GraphError as error:
            raise TargetError(f"'{self.name}' cannot compile this network: {error}") from error
        return vela.compile_report(content, npu)

    # ------------------------------------------------------------------ the rest of a Backend

    def encoding(self, op: WeightedOp) -> Encoding:
        """Weights of any width stay in int8 containers; Vela encodes them smaller."""
        return encode(op.weight, CONTAINERS)

    def memory_plan(self, graph: Graph, board: Board) -> MemoryPlan:
        """The order and who lives when, by our planner; how many bytes is Vela's to say."""
        return plan(graph)

    def constants(self, op: WeightedOp) -> Mapping[str, int]:
        """Bytes before Vela encodes them."""
        return {"weights": self.encoding(op).size_bytes}

    def tables(self, graph: Graph, op: Op) -> int:
        """Tables lie in the compiled model."""
        return 0

    def code(self, graph: Graph, board: Board) -> Mapping[str, int]:
        """Interpreter and driver."""
        return {"runtime": RUNTIME_FLASH_BYTES}

    @property
    def code_interval(self) -> tuple[float, float]:
        """Factors that bound the runtime's bytes."""
        return 1 / RUNTIME_FACTOR, RUNTIME_FACTOR

    @property
    def stack_interval(self) -> tuple[float, float]:
        """Factors that bound the runtime's state and the stack."""
        return 1 / RUNTIME_FACTOR, RUNTIME_FACTOR

    @property
    def memory_source(self) -> str:
        """Where the runtime's sizes come from."""
        return "unverified: TensorFlow Lite Micro's interpreter and the Ethos-U driver, from memory"

    def ram(self, graph: Graph, board: Board) -> Mapping[str, int]:
        """The interpreter's state and the stack."""
        return {"runtime": RUNTIME_RAM_BYTES, "stack": STACK_BYTES}

    def cycles(self, board: Board) -> Timing | None:
        """None: Vela times the network as a whole."""
        return None


ETHOS_U = EthosU()


def _npu(target: Target) -> Npu:
    if target.board.npu is None:
        raise TargetError(target.backend.illegal(target.board))
    return target.board.npu


def _with_runtime(parts: Mapping[str, int], compiled: str, source: str) -> Metric:
    """Vela's bytes as they are; the runtime's within a factor."""
    fixed, rest = parts[compiled], sum(parts.values()) - parts[compiled]
    low, high = fixed + rest / RUNTIME_FACTOR, fixed + rest * RUNTIME_FACTOR
    runtime = ETHOS_U.memory_source
    return Metric(float(fixed + rest), low, high, "estimated", f"{source}; runtime {runtime}")


def _latency(report: VelaReport, source: str) -> Metric:
    if report.cpu_operators:
        left = ", ".join(report.cpu_operators)
        return Metric.unavailable(
            f"{len(report.cpu_operators)} operators fall back to the CPU, which Vela does not time "
            f"({left}); the rest takes {1000 * report.latency_s:.3g} ms"
        )
    value = report.latency_s
    text = f"{source}: {report.cycles_total} cycles at {report.clock_hz / 1e6:g} MHz"
    bounds = f"interval assumed: a factor of {LATENCY_FACTOR:g}"
    low, high = value / LATENCY_FACTOR, value * LATENCY_FACTOR
    return Metric(value, low, high, "estimated", f"{text}; {bounds}")


def _energy(latency: Metric, board: Board) -> Metric:
    """Power while the NPU infers times latency."""
    power = board.fact("npu_power")
    if latency.value is None or latency.low is None or latency.high is None:
        return Metric.unavailable(latency.source)
    if power is None:
        return Metric.unavailable(f"board '{board.name}' gives no 'npu_power'")
    return Metric(
        power.value * latency.value,
        power.low * latency.low,
        power.high * latency.high,
        "estimated",
        f"power ({power.text}) x latency ({latency.source})",
    )


# --- files --------------------------------------------------------------------------------------


def _file(graph: Graph) -> bytes:
    """The network with its own values, weights in int8 containers."""
    return to_tflite(graph, "network")


class _Unkeyed:
    """A graph that a cache keyed by `Graph.key` does not look at."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Unkeyed)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=1024)
def _stand_in_file(key: tuple[object, ...], unkeyed: _Unkeyed) -> bytes:
    return to_tflite(stand_in(unkeyed.graph), "network")


def stand_in(graph: Graph) -> Graph:
    """A network of these shapes, bit widths and kept counts with random weights, always the same.

    Values are uniform over the integers of their width, so that no encoder gains by their
    distribution; as many are zero as the graph says were removed.
    """
    ranges = dict.fromkeys(graph.tensors, (-1.0, 1.0))
    floats = replace(
        graph,
        tensors={n: replace(t, dtype="float32", scale=None) for n, t in graph.tensors.items()},
        ops=tuple(_zeroed(op) for op in graph.ops),
    )
    scaled = quantize(floats, ranges, activations=graph.tensors[graph.input].dtype)
    ops = tuple(
        replace(op, weight=_random(old.weight, index))
        if isinstance(op, Conv2D | FullyConnected) and isinstance(old, Conv2D | FullyConnected)
        else op
        for index, (op, old) in enumerate(zip(scaled.ops, graph.ops, strict=True))
    )
    return replace(scaled, ops=ops)


def _zeroed(op: Op) -> Op:
    if not isinstance(op, Conv2D | FullyConnected):
        return op
    zeros = np.zeros(op.weight.shape, dtype=np.float32)
    weight = Weight(op.weight.shape, FLOAT_BITS, -1, zeros)
    return replace(op, weight=weight, bias=np.zeros(op.weight.shape[0], dtype=np.float32))


def _random(weight: Weight, index: int) -> Weight:
    # Raw bits of PCG64, which numpy promises never to change.
    bits = np.random.PCG64([index, weight.bits, *weight.shape])
    limit = 2 ** (weight.bits - 1) - 1

    def drawn(count: int, different: int) -> Array:
        found: Array = (bits.random_raw(count) >> np.uint64(16)) % np.uint64(different)
        return found.astype(np.int64)

    values = (drawn(weight.size, 2 * limit + 1) - limit).astype(np.int8)
    if weight.entries:  # Vela's encoder takes less for few different values
        rows, depth = weight.shape[0], weight.size // weight.shape[0]
        table = values[: weight.entries * weight.vector].reshape(-1, weight.vector)
        indices = drawn(rows * -(-depth // weight.vector), len(table)).reshape(rows, -1)
        values = write_rows(table, indices, depth).ravel()
    gone = weight.size - weight.kept
    if weight.blocks:
        return replace(weight, values=_in_blocks(weight, values, bits), scales=_scales(weight))
    if gone:
        values[values == 0] = 1
        values[np.argsort(bits.random_raw(weight.size), kind="stable")[:gone]] = 0
    return replace(weight, values=values.reshape(weight.shape), scales=_scales(weight))


def _scales(weight: Weight) -> Array:
    return np.full(weight.shape[0], float(np.float32(0.01)))


def _in_blocks(weight: Weight, values: Array, bits: np.random.PCG64) -> Array:
    """Random values in as many random blocks as are kept, zeros elsewhere."""
    blocks = np.ascontiguousarray(cut(values.reshape(weight.shape), weight.pattern))
    count = math.prod(blocks.shape[:2])
    gone = np.argsort(bits.random_raw(count), kind="stable")[weight.blocks :]
    blocks.reshape(count, -1)[gone] = 0
    if shares_magnitudes(weight.pattern):
        magnitudes = np.abs(blocks[:, :, :1, :1])
        blocks = np.where(blocks < 0, -magnitudes, magnitudes)
    return joined(blocks, weight.shape)
