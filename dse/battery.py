"""`--battery 1000mAh --rate 1/min`: what the command line says of a battery and its use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from dse.errors import StudyError, nearest
from dse.targets import Board
from dse.targets.energy import SECONDS_A_DAY, Duty, battery_life
from dse.trial import Metric

_CAPACITY: Mapping[str, float] = {"mAh": 1.0, "Ah": 1000.0}
_PERIODS: Mapping[str, float] = {"s": 1, "min": 60, "h": 3600, "day": SECONDS_A_DAY}
_NUMBER = re.compile(r"^(\d+\.?\d*|\.\d+) ?(\S+)$")


@dataclass(frozen=True)
class Use:
    """A battery's charge in milliampere-hours, and inferences a second."""

    capacity_mah: float
    rate_hz: float


def parse_use(battery: str | None, rate: str | None) -> Use | None:
    """`1000mAh` and `1/min`; None when neither is given.

    Raises StudyError when one is missing, or not understood.
    """
    if battery is None and rate is None:
        return None
    if battery is None or rate is None:
        given, missing = ("--rate", "--battery") if battery is None else ("--battery", "--rate")
        raise StudyError(f"{given} needs {missing}, such as --battery 1000mAh --rate 1/min")
    return Use(_charge(battery), _rate(rate))


def _charge(text: str) -> float:
    match = _NUMBER.match(" ".join(text.split()))
    if match is None or match.group(2) not in _CAPACITY or not float(match.group(1)):
        raise StudyError(f"--battery is '{text}'; allowed: above 0 mAh or Ah, such as 1000mAh")
    return float(match.group(1)) * _CAPACITY[match.group(2)]


def _rate(text: str) -> float:
    number, slash, period = "".join(text.split()).partition("/")
    if not slash or period not in _PERIODS:
        hint = f"; {nearest(period, _PERIODS)}" if slash else ""
        raise StudyError(f"--rate is '{text}'; write inferences by period, such as 1/min{hint}")
    try:
        found = float(number)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise StudyError(f"--rate is '{text}'; allowed: above 0, such as 1/min")
    return found / _PERIODS[period]


def battery_life_s(use: Use, latency: Metric, energy: Metric, board: Board) -> Metric:
    """Seconds until the battery is empty at that rate (`dse.targets.energy.battery_life`)."""
    return battery_life(Duty(board, use.rate_hz, latency, energy), use.capacity_mah)
