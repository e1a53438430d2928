"""`dse calibrate MEASURED.csv`: a user's own latencies and currents refit their boards.

The columns are `board`, `backend`, `clock_mhz`, `model` (a `.tflite` file, relative to the CSV, or
one of the reference networks ad, ic, kws, vww, sww), `latency_ms`, and where known `energy_uj` or
`current_ma`. The result is a board file of one's own, which `--boards DIR` reads; packaged files
are never touched.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from dse.errors import StudyError, TargetError, nearest
from dse.graph.compact import compact
from dse.graph.ir import Graph
from dse.graph.tflite_reader import read_tflite
from dse.targets import NOMINAL_MACS, Board, Target, cost, find_backend, find_board, reference_graph
from dse.targets.board import board_text, read_board_text
from dse.targets.own import OwnMeasurements

COLUMNS = ("board", "backend", "clock_mhz", "model", "latency_ms")
OPTIONAL = ("energy_uj", "current_ma")
# What a board's own factor leaves on its networks, in log cycles: a network type left out is 9.3 %
# off in the mean (reports/calibration.md), which is 0.12 of a normal distribution.
ROW_DEVIATION = 0.12
# Power varies by 3 to 5 % over the networks of one profile (reports/calibration.md).
POWER_DEVIATION = 0.04
QUANTILE = 1.645


@dataclass(frozen=True)
class Measurement:
    """One row: seconds of an inference of a network on a target, and its power where known."""

    line: int
    target: Target
    network: str
    graph: Graph
    latency_s: float
    power_w: float | None


@dataclass(frozen=True)
class LatencyFit:
    """A backend's factor on a board; errors are means of |modelled / measured - 1|.

    `error_left_out` is that of every row with the factor of the others; None with one row.
    """

    backend: str
    scale: float
    error: float
    rows: int
    error_before: float
    error_after: float
    error_left_out: float | None


@dataclass(frozen=True)
class PowerFit:
    """Power while inferring at one clock in watts, and the errors of energy before and after."""

    clock_hz: int
    power_w: float
    low_w: float
    high_w: float
    rows: int
    error_before: float | None
    error_after: float


@dataclass(frozen=True)
class Profile:
    """What a user's rows say about one board."""

    board: Board
    latency: tuple[LatencyFit, ...]
    power: tuple[PowerFit, ...]


def read_measurements(file: Path, boards: Mapping[str, Board]) -> tuple[Measurement, ...]:
    """The rows of a CSV file; StudyError names the line and the value that cannot be used."""
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{file} cannot be read ({error})") from error
    reader = csv.DictReader(text.splitlines())
    names = reader.fieldnames or []
    for column in COLUMNS:
        if column not in names:
            raise StudyError(
                f"{file}: column '{column}' is missing; found {', '.join(names) or 'nothing'}; "
                f"needed: {', '.join(COLUMNS)}, and where known {' or '.join(OPTIONAL)}"
            )
    for name in names:
        if name not in (*COLUMNS, *OPTIONAL):
            hint = nearest(name, (*COLUMNS, *OPTIONAL))
            raise StudyError(f"{file}: unknown column '{name}'; {hint}")
    found = tuple(_measurement(row, reader.line_num, file, boards) for row in reader)
    if not found:
        raise StudyError(f"{file} has no rows; give one for each network you measured")
    return found


def _measurement(
    row: Mapping[str, str | None], line: int, file: Path, boards: Mapping[str, Board]
) -> Measurement:
    where = f"{file}, line {line}"
    try:
        board = find_board((row["board"] or "").strip(), boards)
        backend = find_backend((row["backend"] or "").strip())
        target = Target(board, backend, round(_number(row, "clock_mhz", where) * 1e6))
    except TargetError as error:
        raise StudyError(f"{where}: {error}") from error
    name = (row["model"] or "").strip()
    graph = _graph(name, file.parent, where, live=getattr(backend, "skips_dead_channels", False))
    latency_s = _number(row, "latency_ms", where) / 1e3
    power = _power(row, board, latency_s, where)
    measured = Measurement(line, target, name, graph, latency_s, power)
    if _modelled(measured) is None:
        raise StudyError(
            f"{where}: latency of '{target.key}' is not modelled, so there is nothing to refit"
        )
    return measured


def _number(row: Mapping[str, str | None], column: str, where: str) -> float:
    text = (row.get(column) or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise StudyError(f"{where}: {column} is '{text}'; it must be a number above 0")
    return value


def _power(
    row: Mapping[str, str | None], board: Board, latency_s: float, where: str
) -> float | None:
    """Watts from the energy, or from the current at the board's supply; None with neither."""
    given = [column for column in OPTIONAL if (row.get(column) or "").strip()]
    if len(given) > 1:
        raise StudyError(f"{where}: give energy_uj or current_ma, not both")
    if not given:
        return None
    value = _number(row, given[0], where)
    if given[0] == "energy_uj":
        return value / 1e6 / latency_s
    supply = board.fact("supply")
    if supply is None:
        raise StudyError(
            f"{where}: current_ma is {value:g}, but board '{board.name}' gives no supply voltage; "
            "give energy_uj instead"
        )
    return value / 1e3 * supply.value


@cache
def _read(path: Path) -> Graph:
    return read_tflite(path.read_bytes(), path.stem)


def _graph(name: str, folder: Path, where: str, *, live: bool) -> Graph:
    if name in NOMINAL_MACS:
        from dse.targets.networks import live_graph

        return live_graph(name) if live else reference_graph(name)
    path = folder / name
    if path.suffix != ".tflite" or not path.is_file():
        raise StudyError(
            f"{where}: model is '{name}', which is neither a .tflite file beside {where} nor one "
            f"of {', '.join(NOMINAL_MACS)}"
        )
    return compact(_read(path)) if live else _read(path)


def _modelled(row: Measurement) -> float | None:
    """Modelled seconds with the packaged tables, any earlier factor of the user put aside."""
    plain = replace(row.target.board, own=OwnMeasurements())
    target = Target(plain, row.target.backend, row.target.clock_hz)
    try:
        return cost(row.graph, target).value("latency")
    except TargetError as error:
        raise StudyError(f"line {row.line}: {error}") from error


def refit(rows: Sequence[Measurement]) -> tuple[Profile, ...]:
    """One profile a board: a factor for each backend, and power for each clock."""
    boards: dict[str, list[Measurement]] = defaultdict(list)
    for row in rows:
        boards[row.target.board.name].append(row)
    return tuple(
        Profile(found[0].target.board, tuple(_latencies(found)), tuple(_powers(found)))
        for found in boards.values()
    )


def _latencies(rows: Sequence[Measurement]) -> Iterator[LatencyFit]:
    backends: dict[str, list[Measurement]] = defaultdict(list)
    for row in rows:
        backends[row.target.backend.name].append(row)
    for name, found in backends.items():
        table = found[0].target.backend.cycles(found[0].target.board)
        assert table is not None
        known, rest = _deviations(table.relative_error(found[0].target.board))
        logs = [math.log(row.latency_s / (_modelled(row) or math.nan)) for row in found]
        scale, deviation = _shrunk(logs, known, rest)
        left = [
            math.expm1(_shrunk([*logs[:i], *logs[i + 1 :]], known, rest)[0] - logs[i])
            for i in range(len(logs))
        ]
        yield LatencyFit(
            name,
            math.exp(scale),
            math.expm1(QUANTILE * math.hypot(deviation, rest)),
            len(found),
            _mean(math.expm1(-each) for each in logs),
            _mean(math.expm1(scale - each) for each in logs),
            _mean(left) if len(logs) > 1 else None,
        )


def _deviations(error: float) -> tuple[float, float]:
    """A table's interval in log cycles, split: what all networks share, and what each has."""
    whole = math.log1p(error) / QUANTILE
    rest = min(ROW_DEVIATION, whole / math.sqrt(2))
    return math.sqrt(whole**2 - rest**2), rest


def _shrunk(logs: Sequence[float], shared: float, rest: float) -> tuple[float, float]:
    """Mean and deviation of a log factor: normal rows around the table's own prior."""
    precision = 1 / shared**2 + len(logs) / rest**2
    return sum(logs) / rest**2 / precision, math.sqrt(1 / precision)


def _powers(rows: Sequence[Measurement]) -> Iterator[PowerFit]:
    clocks: dict[int, list[tuple[Measurement, float]]] = defaultdict(list)
    for row in rows:
        if row.power_w is not None:
            clocks[row.target.clock_hz].append((row, row.power_w))
    for clock, found in clocks.items():
        logs = [math.log(power) for _, power in found]
        middle = sum(logs) / len(logs)
        spread = math.sqrt(sum((each - middle) ** 2 for each in logs) / len(logs))
        width = math.exp(QUANTILE * max(spread, POWER_DEVIATION))
        plain = replace(found[0][0].target.board, own=OwnMeasurements()).active_power_w(clock)
        before = None
        if plain is not None:
            before = _mean(plain.value / power - 1 for _, power in found)
        after = _mean(math.expm1(middle - each) for each in logs)
        power = math.exp(middle)
        yield PowerFit(clock, power, power / width, power * width, len(found), before, after)


def _mean(errors: Iterator[float] | Sequence[float]) -> float:
    sizes = [abs(error) for error in errors]
    return sum(sizes) / len(sizes)


def write_profile(profile: Profile, source: str, folder: Path, given: Path | None) -> Path:
    """The board's file with its own factors, in `folder`; `given` is where `--boards` points.

    The board's other keys stay as they are; an earlier calibration in the file is replaced.
    """
    lines = ["", "[calibration]", f"source = {_quoted(source)}"]
    for fit in profile.latency:
        lines += ["", "[[calibration.latency]]", f'backend = "{fit.backend}"']
        lines += [f"{key} = {getattr(fit, key):.6g}" for key in ("scale", "error")]
        lines += [f"rows = {fit.rows}"]
        lines += [f"{key} = {getattr(fit, key):.6g}" for key in ("error_before", "error_after")]
    for power in profile.power:
        lines += ["", "[[calibration.power]]", f"clock_hz = {power.clock_hz}"]
        lines += [f"{key} = {getattr(power, key):.6g}" for key in ("power_w", "low_w", "high_w")]
        lines += [f"rows = {power.rows}"]
    text = board_text(profile.board.name, given).partition("\n[calibration]")[0].rstrip()
    text = "\n".join([text, *lines, ""])
    file = folder / f"{profile.board.name}.toml"
    read_board_text(text, file.name)
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(text, "utf-8")
    return file


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
