"""What a user measured on a board: factors on modelled latency, and power, kept in a board file.

The table `calibration` of a board file is written by `dse calibrate`; it wins over the packaged
calibration for the backends and clocks that it names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dse.errors import TargetError, nearest
from dse.targets.fact import Fact

LATENCY_KEYS = ("backend", "scale", "error", "rows", "error_before", "error_after")
POWER_KEYS = ("clock_hz", "power_w", "low_w", "high_w", "rows")


@dataclass(frozen=True)
class OwnScale:
    """Factor on a backend's modelled latency, and the relative half-width after it."""

    backend: str
    scale: float
    error: float
    source: str


@dataclass(frozen=True)
class OwnMeasurements:
    """A user's factors by backend and power in watts by clock in hertz; empty when none."""

    scales: tuple[OwnScale, ...] = ()
    powers: tuple[tuple[int, Fact], ...] = ()

    def scale(self, backend: str) -> OwnScale | None:
        """The factor of that backend, or None when it was not measured."""
        return next((own for own in self.scales if own.backend == backend), None)

    def power_w(self, clock_hz: int) -> Fact | None:
        """Power measured at that clock, or None."""
        return dict(self.powers).get(clock_hz)


def read_own(table: object, file: str) -> OwnMeasurements:
    """The table `calibration` of a board file; TargetError names file, key and value."""
    if not isinstance(table, Mapping):
        raise TargetError(
            f"board file '{file}': key 'calibration' is {table!r}; it must be a table"
        )
    for key in table:
        if key not in ("source", "latency", "power"):
            raise TargetError(
                f"board file '{file}': unknown key 'calibration.{key}'; "
                f"{nearest(key, ('source', 'latency', 'power'))}"
            )
    if table and not (isinstance(table.get("source"), str) and table["source"].strip()):
        raise TargetError(f"board file '{file}': key 'calibration' has no source")
    source = str(table.get("source", ""))
    scales, powers = [], []
    for entry in _entries(table, "latency", LATENCY_KEYS, file):
        scale, error = (_positive(entry, key, "latency", file) for key in ("scale", "error"))
        scales.append(OwnScale(str(entry["backend"]), scale, error, source))
    for entry in _entries(table, "power", POWER_KEYS, file):
        value, low, high = (
            _positive(entry, key, "power", file) for key in ("power_w", "low_w", "high_w")
        )
        clock = round(_positive(entry, "clock_hz", "power", file))
        powers.append((clock, Fact(value, low, high, "W", "read", source)))
    return OwnMeasurements(tuple(scales), tuple(powers))


def _entries(
    table: Mapping[str, Any], part: str, keys: tuple[str, ...], file: str
) -> list[Mapping[str, Any]]:
    found = table.get(part, [])
    if not isinstance(found, list):
        raise TargetError(f"board file '{file}': key 'calibration.{part}' must be a list of tables")
    for entry in found:
        for key in keys:
            if key not in entry:
                raise TargetError(
                    f"board file '{file}': key 'calibration.{part}' lacks '{key}'; "
                    "it is written by 'dse calibrate'"
                )
    return found


def _positive(entry: Mapping[str, Any], key: str, part: str, file: str) -> float:
    value = entry[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise TargetError(
            f"board file '{file}': key 'calibration.{part}.{key}' is {value!r}; "
            "it must be a number above 0"
        )
    return float(value)
