"""Arm Ethos-U processors as Vela knows them: only combinations that its compiler accepts.

Source: ethos-u-vela 5.2, `--accelerator-config` and its configuration file Arm/vela.ini, where a
dedicated SRAM needs DRAM beside it (`ConfigOptionError` otherwise; tried for every combination).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

from dse.errors import TargetError, nearest

ACCELERATORS: tuple[str, ...] = (
    "ethos-u55-32",
    "ethos-u55-64",
    "ethos-u55-128",
    "ethos-u55-256",
    "ethos-u65-256",
    "ethos-u65-512",
    "ethos-u85-128",
    "ethos-u85-256",
    "ethos-u85-512",
    "ethos-u85-1024",
    "ethos-u85-2048",
)


@dataclass(frozen=True)
class SystemConfig:
    """The clock Vela counts with, and whether weights lie in DRAM or in read-only flash."""

    clock_hz: int
    dram: bool


SYSTEM_CONFIGS: Mapping[str, SystemConfig] = {
    "Ethos_U55_Deep_Embedded": SystemConfig(200_000_000, dram=False),
    "Ethos_U55_High_End_Embedded": SystemConfig(500_000_000, dram=False),
    "Ethos_U65_Embedded": SystemConfig(500_000_000, dram=False),
    "Ethos_U65_Mid_End": SystemConfig(500_000_000, dram=True),
    "Ethos_U65_High_End": SystemConfig(1_000_000_000, dram=True),
    "Ethos_U65_Client_Server": SystemConfig(1_000_000_000, dram=True),
    "Ethos_U85_SYS_Flash_Low": SystemConfig(200_000_000, dram=False),
    "Ethos_U85_SYS_Flash_High": SystemConfig(500_000_000, dram=False),
    "Ethos_U85_SYS_DRAM_Low": SystemConfig(500_000_000, dram=True),
    "Ethos_U85_SYS_DRAM_Mid": SystemConfig(1_000_000_000, dram=True),
    "Ethos_U85_SYS_DRAM_High": SystemConfig(1_000_000_000, dram=True),
}
# Name -> whether it needs DRAM.
MEMORY_MODES: Mapping[str, bool] = {
    "Sram_Only": False,
    "Shared_Sram": False,
    "Dedicated_Sram": True,
    "Dedicated_Sram_256KB": True,
    "Dedicated_Sram_384KB": True,
    "Dedicated_Sram_512KB": True,
}


@dataclass(frozen=True)
class Npu:
    """An accelerator, its system and its memory mode; TargetError when they do not go together."""

    accelerator: str
    system_config: str
    memory_mode: str

    def __post_init__(self) -> None:
        for key, found, allowed in (
            ("npu", self.accelerator, ACCELERATORS),
            ("npu_system", self.system_config, tuple(SYSTEM_CONFIGS)),
            ("npu_memory", self.memory_mode, tuple(MEMORY_MODES)),
        ):
            if found not in allowed:
                raise TargetError(f"key '{key}' is '{found}'; {nearest(found, allowed)}")
        family = _family(self.accelerator)
        if not self.system_config.startswith(family):
            fits = ", ".join(name for name in SYSTEM_CONFIGS if name.startswith(family))
            raise TargetError(
                f"key 'npu_system' is '{self.system_config}', which is no system of the "
                f"{self.accelerator}; allowed: {fits}"
            )
        if MEMORY_MODES[self.memory_mode] and not SYSTEM_CONFIGS[self.system_config].dram:
            raise TargetError(
                f"key 'npu_memory' is '{self.memory_mode}', but {self.system_config} has no DRAM; "
                "allowed: Sram_Only, Shared_Sram"
            )

    @property
    def clock_hz(self) -> int:
        """The clock of the accelerator in its system."""
        return SYSTEM_CONFIGS[self.system_config].clock_hz

    @property
    def text(self) -> str:
        """All three in one line."""
        return f"{self.accelerator}, {self.system_config}, {self.memory_mode}"


def _family(accelerator: str) -> str:
    """How the names of its system configurations begin: ethos-u55-128 -> Ethos_U55."""
    _, family, _ = accelerator.split("-")
    return f"Ethos_{family.upper()}"


def legal_npus() -> tuple[Npu, ...]:
    """Every combination that Vela accepts."""
    found = []
    for combination in product(ACCELERATORS, SYSTEM_CONFIGS, MEMORY_MODES):
        try:
            found.append(Npu(*combination))
        except TargetError:
            continue
    return tuple(found)
