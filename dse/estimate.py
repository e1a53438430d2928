"""What a network costs on every board and backend, without a study and without training.

    estimate = estimate_file(Path("model.tflite"), select_targets(boards))
    estimate.rows[0].metrics["latency"]        # Metric: value, low, high, provenance
    cheapest(estimate, [parse_constraint("latency <= 50 ms")])

A `.tflite` file needs no torch; `module:function` and workloads by name do.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dse.battery import Use, battery_life_s
from dse.constraints import Constraint, parse_constraint
from dse.errors import GraphError, StudyError, TargetError
from dse.graph.channels import with_encodings
from dse.graph.compact import compact
from dse.graph.ir import Graph
from dse.graph.tflite_reader import read_tflite, rescaled_operators
from dse.targets import (
    Board,
    Cost,
    LeftOut,
    Target,
    cost,
    find_backend,
    find_board,
    load_boards,
    targets_for,
)
from dse.targets.ethos_u import EthosU
from dse.trial import COST_METRICS, Metric, MetricName
from dse.units import format_value, parse_quantity


@dataclass(frozen=True)
class Model:
    """The network that is costed, and what it was before its dead channels were removed.

    `sha256` is that of the file, empty for a torch model; `rescaled` names operators whose cost is
    right but whose values this project would compute otherwise (TensorFlow Lite's MEAN).
    """

    name: str
    sha256: str
    graph: Graph
    nominal_macs: int
    nominal_channels: int
    rescaled: tuple[str, ...] = ()

    @property
    def dead_channels(self) -> int:
        """Output channels of layers that were removed."""
        return self.nominal_channels - _channels(self.graph)


@dataclass(frozen=True)
class Row:
    """One target: its costs, and each thing that keeps the network from it in a sentence.

    `metrics` is empty where the backend cannot run the network at all.
    """

    target: Target
    metrics: Mapping[MetricName, Metric]
    misses: tuple[str, ...]
    battery_s: Metric | None = None

    @property
    def fits(self) -> bool:
        """Whether it runs, and its flash and RAM suffice."""
        return not self.misses

    def value(self, metric: MetricName) -> float:
        """The metric's value; infinite where it is not known."""
        found = self.metrics.get(metric)
        return math.inf if found is None or found.value is None else found.value


@dataclass(frozen=True)
class Estimate:
    """Rows by board, then backend, then clock; `left_out` are pairs that can never be."""

    model: Model
    rows: tuple[Row, ...]
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True)
class Answer:
    """What `--cheapest` answers: the target and one sentence; `meets` is False for the nearest."""

    row: Row
    meets: bool
    sentence: str


# --- the network --------------------------------------------------------------------------------


def read_model(path: Path, *, as_is: bool = False) -> Model:
    """The network of a `.tflite` file without its dead channels, or `as_is`.

    Raises StudyError or GraphError, with the file's name, for a file that cannot be used.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StudyError(f"{path} cannot be read ({error.strerror})") from error
    try:
        graph = read_tflite(content, path.stem)
    except GraphError as error:
        raise GraphError(f"{path}: {error}") from error
    digest = hashlib.sha256(content).hexdigest()
    return _model(graph, digest, graph if as_is else compact(graph))


def trace_model(name: str, shape: str | None, folder: Path) -> Model:
    """The int8 shapes of a torch network: a workload's name, or `module:function` with a shape.

    `shape` is that of one sample, as `1x28x28`. Raises StudyError, WorkloadError or GraphError.
    """
    from dse.graph.trace import trace
    from dse.workloads import find_workload
    from dse.workloads.bring_your_own import own_model

    if ":" in name:
        if shape is None:
            raise StudyError(
                f"'{name}' needs --shape, that of one sample without the batch, such as 1x28x28"
            )
        module, sizes = own_model(name, folder), _sizes(shape)
    else:
        workload = find_workload(name)
        module = workload.network(0)
        sizes = workload.load().sample_shape if shape is None else _sizes(shape)
    graph = with_encodings(trace(module.eval(), sizes, name), {}, {}, "int8")
    return _model(graph, "", graph)


def _sizes(text: str) -> tuple[int, ...]:
    parts = text.replace(",", "x").split("x")
    if not all(part.strip().isdigit() and int(part) for part in parts) or len(parts) > 3:
        raise StudyError(f"--shape is '{text}'; allowed: 1 to 3 sizes above 0, such as 1x28x28")
    return tuple(int(part) for part in parts)


def _model(nominal: Graph, digest: str, graph: Graph) -> Model:
    return Model(
        nominal.name, digest, graph, nominal.macs, _channels(nominal), rescaled_operators(nominal)
    )


def _channels(graph: Graph) -> int:
    return sum(op.weight.shape[0] for op in graph.weighted)


# --- targets ------------------------------------------------------------------------------------


def select_targets(
    folder: Path | None = None,
    boards: Sequence[str] = (),
    backends: Sequence[str] = (),
    clock: str = "max",
) -> tuple[tuple[Target, ...], tuple[LeftOut, ...]]:
    """Targets of the boards and backends named (all where none is), at a clock.

    `clock` is 'max', 'all' or a frequency such as '80 MHz'. Raises TargetError or StudyError for
    an unknown name, and for a clock that no target has.
    """
    known = load_boards(folder)
    chosen = [find_board(name, known) for name in boards] or list(known.values())
    found = [find_backend(name) for name in backends] or None
    if clock in ("max", "all"):
        return targets_for(chosen, found, clock)
    hertz = round(parse_quantity(clock, "hertz"))
    legal, left_out = targets_for(chosen, found, "all")
    targets = tuple(target for target in legal if target.clock_hz == hertz)
    if not targets:
        offered = sorted({target.clock_hz for target in legal})
        raise StudyError(
            f"--clock is '{clock}', at which no board runs; allowed: max, all, "
            + ", ".join(f"{each / 1e6:g} MHz" for each in offered)
        )
    return targets, left_out


def estimate(
    model: Model,
    targets: Sequence[Target],
    left_out: Sequence[LeftOut] = (),
    use: Use | None = None,
) -> Estimate:
    """Costs of a network on every target; a target that cannot run it says why."""
    rows = tuple(_row(model.graph, target, use) for target in targets)
    ordered = sorted(
        rows, key=lambda r: (r.target.board.name, r.target.backend.name, -r.target.clock_hz)
    )
    return Estimate(model, tuple(ordered), tuple(left_out))


def _row(graph: Graph, target: Target, use: Use | None) -> Row:
    try:
        metrics = _cost(graph, target).metrics
    except TargetError as error:
        return Row(target, {}, (str(error),))
    limits = target.limits()
    allowed: Mapping[MetricName, int] = {"flash": limits.flash_bytes, "ram": limits.ram_bytes}
    misses = tuple(
        _over(name, metrics[name], limit)
        for name, limit in allowed.items()
        if (metrics[name].value or 0) > limit
    )
    row = Row(target, metrics, misses)
    if use is None:
        return row
    life = battery_life_s(use, metrics["latency"], metrics["energy"], target.board)
    return replace(row, battery_s=life)


def _cost(graph: Graph, target: Target) -> Cost:
    """Costs of the very values, where a compiler's figures depend on them."""
    valued = all(op.weight.values is not None for op in graph.weighted)
    if isinstance(target.backend, EthosU) and valued and not target.unsupported(graph):
        return target.backend.compiled_cost(graph, target, exact=True)
    return cost(graph, target)


def _over(name: MetricName, metric: Metric, limit: float) -> str:
    found, allowed = format_value(name, metric.value), format_value(name, limit)
    over = format_value(name, (metric.value or 0) - limit)
    return f"{name.upper() if name == 'ram' else name} {found} is {over} over {allowed}"


# --- the cheapest -------------------------------------------------------------------------------


def parse_limits(texts: Sequence[str]) -> tuple[Constraint, ...]:
    """Constraints on costs, as study files write them; StudyError for one about a baseline."""
    found = []
    for text in texts:
        constraint = parse_constraint(text)
        if constraint.relation != "absolute" or constraint.needs_accuracy:
            raise StudyError(
                f"--cheapest '{text}' needs a study; allowed: flash, ram, latency and energy "
                "against a value, such as 'latency <= 50 ms'"
            )
        found.append(constraint)
    return tuple(found)


def cheapest(found: Estimate, limits: Sequence[Constraint]) -> Answer:
    """The cheapest board on which the network fits and meets the limits, with one sentence why.

    Cheap is a low price, then little flash, then little RAM; among a board's backends and clocks
    the one with the least energy, then latency. Where none meets them, the nearest is told.
    Raises StudyError when no target runs the network at all.
    """
    able = [row for row in found.rows if row.metrics]
    if not able:
        raise StudyError(
            "no board and backend can run this network; leave out --cheapest to see why"
        )
    meets = [row for row in able if row.fits and _worst(row, limits) <= 0]
    if not meets:
        told = [row for row in able if all(row.value(c.metric) < math.inf for c in limits)] or able
        nearest_row = min(told, key=lambda row: max(_worst(row, limits), _worst(row, _own(row))))
        missed = [*nearest_row.misses, *_missed(nearest_row, limits)]
        return Answer(
            nearest_row,
            False,
            f"no board meets it; the nearest is {nearest_row.target.key}: {', '.join(missed)}",
        )
    best = min(meets, key=_cheapness)
    return Answer(best, True, _why(best, found, limits))


def _own(row: Row) -> tuple[Constraint, ...]:
    limits = row.target.limits()
    return (
        Constraint("flash", "absolute", limits.flash_bytes, "flash of the board"),
        Constraint("ram", "absolute", limits.ram_bytes, "ram of the board"),
    )


def _worst(row: Row, limits: Sequence[Constraint]) -> float:
    return max((c.violation(row.metrics[c.metric], None) for c in limits), default=0.0)


def _missed(row: Row, limits: Sequence[Constraint]) -> list[str]:
    return [
        c.miss(row.metrics[c.metric], None, row.target.board.name)
        for c in limits
        if c.violation(row.metrics[c.metric], None) > 0
    ]


def _price(board: Board) -> float:
    price = board.fact("price")
    return math.inf if price is None else price.value


def _cheapness(row: Row) -> tuple[float, ...]:
    board = row.target.board
    return (
        _price(board),
        board.flash_bytes,
        board.ram_bytes,
        row.value("energy"),
        row.value("latency"),
    )


def _why(best: Row, found: Estimate, limits: Sequence[Constraint]) -> str:
    board = best.target.board
    price = board.fact("price")
    named = [c.metric for c in limits] or list(COST_METRICS)
    figures = ", ".join(f"{name} {interval(name, best.metrics[name])}" for name in named)
    cost_text = f"about {price.value:g} USD, {price.status}" if price else "its price is not known"
    text = f"{best.target.key} ({cost_text}) is the cheapest that meets it: {figures}"
    close = [c.text for c in limits if (best.metrics[c.metric].high or 0) > c.limit(None)]
    if close:
        text += f"; the interval's upper end misses '{close[0]}'"
    cheaper = {
        row.target.board.name for row in found.rows if _cheapness(row)[:3] < _cheapness(best)[:3]
    }
    if not cheaper:
        return text + "; no board is cheaper"
    return (
        text
        + f"; {len(cheaper)} cheaper {'board misses' if len(cheaper) == 1 else 'boards miss'} it"
    )


def interval(name: MetricName, metric: Metric) -> str:
    """A value with its bounds, as people read it."""
    if metric.value is None:
        return "-"
    low, high = format_value(name, metric.low), format_value(name, metric.high)
    value = format_value(name, metric.value)
    return value if low == high else f"{value} ({low} to {high})"
