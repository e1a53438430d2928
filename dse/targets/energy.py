"""Energy: of one inference, of a day at a given rate, and how long a battery lasts.

Energy of an inference is power while inferring, of the board's supply, regulator and clock, times
latency (Deutel et al., arXiv 2205.10369, section 3). Between inferences the board sleeps. A slower
clock draws less for longer: which one takes least a day follows from both.
"""

from __future__ import annotations

from dataclasses import dataclass

from dse.targets.board import Board
from dse.targets.fact import Fact
from dse.trial import Metric

SECONDS_A_DAY = 86_400
COULOMBS_A_MAH = 3.6


@dataclass(frozen=True)
class Duty:
    """What a board does all day: inferences a second, each of a latency and an energy."""

    board: Board
    rate_hz: float
    latency: Metric
    energy: Metric


def inference_energy(board: Board, clock_hz: int, latency: Metric) -> Metric:
    """Joules of one inference: power while inferring times latency in seconds, both intervals.

    Unavailable, with the reason, where the latency or the board's power is.
    """
    power = board.active_power_w(clock_hz)
    if latency.value is None or latency.low is None or latency.high is None:
        return Metric.unavailable(latency.source)
    if power is None:
        return Metric.unavailable(f"board '{board.name}' gives no power while active")
    return Metric(
        power.value * latency.value,
        power.low * latency.low,
        power.high * latency.high,
        "modelled",
        f"power ({power.text}) x latency ({latency.source})",
    )


def daily_energy(duty: Duty) -> Metric:
    """Joules a day: the inferences, and sleep in between at the board's supply.

    Unavailable, with the reason, without sleep current or supply, and where the inferences do not
    fit into the day.
    """
    average = _average_power(duty)
    if isinstance(average, str):
        return Metric.unavailable(average)
    joules = [watts * SECONDS_A_DAY for watts in (average.value, average.low, average.high)]
    return Metric(joules[0], joules[1], joules[2], "modelled", average.source)


def battery_life(duty: Duty, capacity_mah: float) -> Metric:
    """Seconds that a battery of that capacity lasts at the board's supply voltage.

    What the rest of the firmware takes, and what a regulator or the battery itself lose, is not in
    it. Unavailable as `daily_energy` is.
    """
    average, supply = _average_power(duty), duty.board.fact("supply")
    if isinstance(average, str) or supply is None:
        return Metric.unavailable(average if isinstance(average, str) else "no supply")
    joules = capacity_mah * COULOMBS_A_MAH * supply.value
    value, low, high = (joules / watts for watts in (average.value, average.high, average.low))
    return Metric(value, low, high, "modelled", f"{capacity_mah:g} mAh over {average.source}")


def _average_power(duty: Duty) -> Fact | str:
    """Watts over a day; a sentence where something is not known."""
    board, energy, latency = duty.board, duty.energy, duty.latency
    if energy.value is None or energy.low is None or energy.high is None or latency.value is None:
        return energy.source
    sleep, supply = board.fact("sleep_current"), board.fact("supply")
    if sleep is None or supply is None:
        missing = "supply" if supply is None else "sleep_current"
        return f"board '{board.name}' gives no {missing}"
    busy = duty.rate_hz * latency.value
    if busy > 1:
        return f"{duty.rate_hz:g} inferences a second of {latency.value:.3g} s each do not fit"
    asleep = sleep.scaled(supply.value * (1 - busy), "W")
    bounds = zip((energy.value, energy.low, energy.high),
                 (asleep.value, asleep.low, asleep.high), strict=True)  # fmt: skip
    value, low, high = (duty.rate_hz * joules + watts for joules, watts in bounds)
    source = (
        f"{energy.source}; asleep {1e6 * sleep.value:g} uA at {supply.value:g} V ({sleep.text})"
    )
    return Fact(value, low, high, "W", "derived", source)
