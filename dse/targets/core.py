"""Cortex-M cores: what a backend may use on them, and the family whose cycles they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from dse.errors import TargetError, nearest

Family: TypeAlias = Literal["m0plus", "m3", "m4", "m7", "m33", "m55", "m85"]


@dataclass(frozen=True)
class Core:
    """A processor: name as Arm writes it, instruction set, extensions, floating-point unit.

    `mve` is the M-profile vector extension (Helium); it is optional on the M55 and M85, and taken
    to be there, as it is on every board we describe.
    """

    name: str
    family: Family
    isa: str
    dsp: bool
    fpu: bool
    mve: bool = False


# Instruction sets and options: Arm product pages; Zephyr board pages name those of our boards.
CORES: Mapping[str, Core] = {
    core.name: core
    for core in (
        Core("cortex-m0plus", "m0plus", "armv6-m", dsp=False, fpu=False),
        Core("cortex-m3", "m3", "armv7-m", dsp=False, fpu=False),
        Core("cortex-m4", "m4", "armv7e-m", dsp=True, fpu=False),
        Core("cortex-m4f", "m4", "armv7e-m", dsp=True, fpu=True),
        Core("cortex-m7", "m7", "armv7e-m", dsp=True, fpu=True),
        Core("cortex-m33", "m33", "armv8-m.main", dsp=True, fpu=True),
        Core("cortex-m55", "m55", "armv8.1-m.main", dsp=True, fpu=True, mve=True),
        Core("cortex-m85", "m85", "armv8.1-m.main", dsp=True, fpu=True, mve=True),
    )
}


def find_core(name: str) -> Core:
    """The core of that name; TargetError names the nearest."""
    if name not in CORES:
        raise TargetError(f"unknown core '{name}'; {nearest(name, CORES)}")
    return CORES[name]
