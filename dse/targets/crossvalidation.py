"""Errors on rows that the fit has not seen: of latency, beside counting MACs only, and of energy.

What is left out, exactly:

- *board*: all rows of the board, whatever their runtime; scored are the board's rows whose runtime
  and version were measured on another board (a runtime that was never seen has no speed to take
  over; those rows are listed apart).
- *network type*: all rows of this network on the board, and all of this network with the runtime
  in any version on any board; the type is known from other runtimes on other boards only.
- *network type, everywhere*: all rows of this network; only emulated layers tell its kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, TypeAlias

from scipy.stats import spearmanr

from dse.targets.hierarchy import Key, effects, fit
from dse.targets.measured import COMPONENTS, Measured, System, measured
from dse.targets.power import left_out_power_w, power_rows

Leave: TypeAlias = Literal["board", "network", "network everywhere"]
# A stated interval holds 90 % of a normal distribution.
QUANTILE = 1.645


@dataclass(frozen=True)
class LeftOut:
    """A row that was left out: measured and modelled cycles, and whether its runtime was known."""

    row: Measured
    modelled: float
    deviation: float
    known_runtime: bool

    @property
    def error(self) -> float:
        """Modelled over measured, less one."""
        return self.modelled / self.row.cycles - 1

    @property
    def covered(self) -> bool:
        """Whether the measured value lies in the stated interval."""
        return abs(math.log(self.modelled / self.row.cycles)) <= QUANTILE * self.deviation


def mac_effects(system: System, component: str) -> Iterator[tuple[Key, float]]:
    """The effects of the MAC-only model: the same levels, one cost a multiply-accumulate."""
    components = {(component,), *((*key, component) for key in _levels(system))}
    for key, spread in effects(system, component):
        if key not in components and key[-1] != component:
            yield key, spread
    yield ("cycles a mac",), 1.0


def _levels(system: System) -> list[Key]:
    return [key for key, _ in effects(system, "fully_connected.mac")]


@cache
def left_out(
    leave: Leave, model: Literal["components", "macs"] = "components", listed: bool = False
) -> tuple[LeftOut, ...]:
    """Every scored row predicted without what `leave` says.

    Clocks are those that boards ran at (`measured.RUN_CLOCK_HZ`), or as rows list them (`listed`).
    """
    rows = measured()
    if listed:
        rows = tuple(replace(row, cycles=row.cycles * row.clock_ratio) for row in rows)
    if model == "macs":
        rows = tuple(replace(row, parts={"mac": float(row.macs)}) for row in rows)
    components = COMPONENTS if model == "components" else ("mac",)
    of = effects if model == "components" else mac_effects
    found: list[LeftOut] = []
    for test, dropped in _folds(leave, rows):
        known = [row for row in rows if not dropped(row)]
        posterior = fit(known, components, of)
        runtimes = {(row.system.runtime, row.system.version) for row in known}
        for row in rows:
            if not (row.score and test(row)):
                continue
            guess = posterior.predict(row.system, row.parts)
            runtime = (row.system.runtime, row.system.version)
            found.append(
                LeftOut(row, math.exp(guess.log_cycles), guess.deviation, runtime in runtimes)
            )
    return tuple(found)


Choice: TypeAlias = Callable[[Measured], bool]


def _folds(leave: Leave, rows: Sequence[Measured]) -> Iterator[tuple[Choice, Choice]]:
    """(which rows are tested, which are left out of the fit) of each fold."""
    if leave == "board":
        for board in sorted({row.system.board for row in rows if row.score}):
            yield (lambda r, b=board: r.system.board == b,) * 2
        return
    for network in sorted({row.network for row in rows if row.score}):
        if leave == "network everywhere":
            yield (lambda r, n=network: r.network == n,) * 2
            continue
        for board, runtime in sorted({(r.system.board, r.system.runtime) for r in rows if r.score}):
            yield _one_type(network, board, runtime)


def _one_type(network: str, board: str, runtime: str) -> tuple[Choice, Choice]:
    def test(row: Measured) -> bool:
        here = row.system.board == board and row.system.runtime == runtime
        return row.network == network and here

    def dropped(row: Measured) -> bool:
        near = row.system.board == board or row.system.runtime == runtime
        return row.network == network and near

    return test, dropped


def mean_error(found: Sequence[LeftOut]) -> float:
    """Mean of the absolute relative errors."""
    return sum(abs(each.error) for each in found) / len(found)


def coverage(found: Sequence[LeftOut]) -> float:
    """Share of rows that lie in their stated interval."""
    return sum(each.covered for each in found) / len(found)


def rank_correlations(found: Sequence[LeftOut]) -> dict[str, tuple[float, int]]:
    """Spearman's rank correlation of modelled and measured cycles by board, and the rows."""
    correlations = {}
    for board in sorted({each.row.system.board for each in found}):
        here = [each for each in found if each.row.system.board == board]
        rank = spearmanr([e.modelled for e in here], [e.row.cycles for e in here]).statistic
        correlations[board] = (float(rank), len(here))
    return correlations


def energy_errors(leave: str) -> tuple[list[float], list[float]]:
    """Relative errors of energy with the measured latency, and with that of a left-out board.

    Power is that of the row's profile without its network or without its runtime's version.
    """
    latencies = {
        (each.row.system, each.row.network): each.modelled / each.row.cycles
        for each in left_out("board")
        if each.known_runtime
    }
    given, modelled = [], []
    for row in power_rows():
        power = left_out_power_w(row, leave)
        if power is None:
            continue
        ratio = power / row.power_w
        given.append(ratio - 1)
        if (row.system, row.network) in latencies:
            modelled.append(ratio * latencies[row.system, row.network] - 1)
    return given, modelled
