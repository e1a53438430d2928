"""Quantities as people write them: `256 KiB`, `50 ms`, `2 mJ`, `98 %`; SI inside."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias

from dse.errors import StudyError, nearest

Dimension: TypeAlias = Literal["share", "bytes", "seconds", "joules", "hertz"]

UNITS: Mapping[Dimension, Mapping[str, float]] = MappingProxyType(
    {
        "share": {"%": 0.01},
        "bytes": {"B": 1, "kB": 1e3, "KiB": 1024, "MB": 1e6, "MiB": 1024**2, "GiB": 1024**3},
        "seconds": {"s": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "min": 60, "h": 3600},
        "joules": {"J": 1, "mJ": 1e-3, "uJ": 1e-6, "µJ": 1e-6, "nJ": 1e-9},
        "hertz": {"Hz": 1, "kHz": 1e3, "MHz": 1e6},
    }
)
METRIC_DIMENSION: Mapping[str, Dimension] = MappingProxyType(
    {
        "accuracy": "share",
        "flash": "bytes",
        "ram": "bytes",
        "latency": "seconds",
        "energy": "joules",
    }
)
_NUMBER = re.compile(r"^([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?) ?(\S*)$")
# Largest first; the first step that leaves a number >= 1 is used.
_PRETTY: Mapping[str, tuple[tuple[str, float], ...]] = MappingProxyType(
    {
        "bytes": (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024), ("B", 1)),
        "seconds": (("s", 1), ("ms", 1e-3), ("us", 1e-6)),
        "joules": (("J", 1), ("mJ", 1e-3), ("uJ", 1e-6), ("nJ", 1e-9)),
        "hertz": (("MHz", 1e6), ("kHz", 1e3), ("Hz", 1)),
    }
)


def parse_quantity(text: str | float, dimension: Dimension) -> float:
    """The SI value of `text`. A share may be bare (0.98) or in %; all else needs its unit.

    Raises StudyError with the nearest unit when the unit is missing, unknown or of another kind.
    """
    allowed = UNITS[dimension]
    text = " ".join(str(text).split())
    match = _NUMBER.match(text)
    if match is None or math.isinf(float(match.group(1))):
        raise StudyError(f"'{text}' is not a number with a unit; allowed: {', '.join(allowed)}")
    # The Greek letter looks the same as the micro sign.
    number, unit = float(match.group(1)), match.group(2).replace("\u03bc", "\u00b5")
    if not unit and dimension == "share":
        return number
    if not unit:
        raise StudyError(f"'{text}' has no unit; allowed: {', '.join(allowed)}")
    if unit not in allowed:
        raise StudyError(f"'{text}' has the unit '{unit}'; {nearest(unit, allowed)}")
    # Divided: 95 * 0.01 is more than 0.95.
    return number / 100 if unit == "%" else number * allowed[unit]


def format_quantity(value: float, dimension: Dimension) -> str:
    """A short text with a unit that people read easily, three significant digits."""
    if dimension == "share":
        return f"{100 * value:.2f} %"
    steps = _PRETTY[dimension]
    unit, size = next((step for step in steps if abs(value) >= step[1]), steps[-1])
    scaled = value / size
    if float(scaled).is_integer() and abs(scaled) < 1e4:
        return f"{scaled:.0f} {unit}"
    digits = 2 if abs(scaled) < 10 else 1 if abs(scaled) < 100 else 0
    return f"{scaled:.{digits}f} {unit}"


def format_value(metric: str, value: float | None) -> str:
    """A metric's value as the command line and reports show it; '-' when it is not known."""
    return "-" if value is None else format_quantity(value, METRIC_DIMENSION[metric])
