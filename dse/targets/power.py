"""Power while inferring, from the energy runs of MLPerf Tiny: one figure a profile.

A profile is a board at a supply with its regulator, a clock and the firmware around the runtime
(mbed OS, Zephyr or the vendor's start-up code, which alone moves the power by about 15 %). Within
a profile power hardly depends on the network or the runtime.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from dse.targets.measured import FAMILIES, System, runtime_of
from dse.targets.networks import rows

# Rows that do not state their supply draw what others draw at 1.8 V (Zephyr, NUCLEO-L4R5ZI: 51 mW
# over 1.8 V is 238 uA/MHz; over 3.0 V it would be 143, less than any other firmware on this chip).
UNSTATED_SUPPLY_V = 1.8


@dataclass(frozen=True)
class Profile:
    """What power belongs to; supply in volts, clock in hertz."""

    board: str
    supply_v: float
    regulator: str
    clock_hz: float
    firmware: str


@dataclass(frozen=True)
class PowerRow:
    """One energy run: energy in joules over latency in seconds gives its power in watts."""

    profile: Profile
    system: System
    network: str
    latency_s: float
    energy_j: float

    @property
    def power_w(self) -> float:
        """Mean power of one inference."""
        return self.energy_j / self.latency_s


@cache
def power_rows() -> tuple[PowerRow, ...]:
    """Every plain int8 row on a Cortex-M with energy."""
    found = []
    for row in rows("measured.csv"):
        if not row["energy_uj"] or row["core"] not in FAMILIES or "_float/" in row["source"]:
            continue
        notes = row["notes"]
        supply = re.match(r"([\d.]+)V", notes)
        firmware = "mbed" if "mbed" in notes else "Zephyr" if "Zephyr" in notes else "vendor"
        clock_hz = float(row["clock_mhz"]) * 1e6
        profile = Profile(
            row["board"],
            float(supply[1]) if supply else UNSTATED_SUPPLY_V,
            "SMPS" if "SMPS" in notes else "LDO",
            clock_hz,
            firmware,
        )
        runtime, version = runtime_of(row["runtime"])
        system = System(row["board"], FAMILIES[row["core"]], runtime, version)
        latency_s, energy_j = float(row["latency_ms"]) / 1e3, float(row["energy_uj"]) / 1e6
        found.append(PowerRow(profile, system, row["network"], latency_s, energy_j))
    return tuple(found)


def mean_power_w(found: Sequence[PowerRow]) -> float:
    """Geometric mean of the powers of some rows."""
    return math.exp(statistics.fmean(math.log(row.power_w) for row in found))


def left_out_power_w(row: PowerRow, leave: str) -> float | None:
    """Power of a row's profile from its other rows; None when there are none.

    `leave` is 'network' (all rows of this network on the board are left out) or 'version' (all
    rows of this runtime and version on the board are).
    """
    others = [
        other
        for other in power_rows()
        if other.profile == row.profile
        and (other.network != row.network if leave == "network" else other.system != row.system)
    ]
    return mean_power_w(others) if others else None
