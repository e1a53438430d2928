"""Cores that firmware is built for: flags of either compiler, emulator models, memory map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dse.errors import TargetError, nearest


@dataclass(frozen=True)
class Cpu:
    """A core as the compilers and emulators name it, and where its image lies.

    `unicorn` is the emulator's model, `machine` QEMU's; None where there is none. Addresses are
    those of QEMU's machine, whose image memory has `flash_limit_bytes`.
    """

    core: str
    family: str
    gcc: tuple[str, ...]
    zig: tuple[str, ...]
    fpu: bool
    unicorn: str | None
    machine: str | None
    clock_hz: int = 25_000_000
    flash: int = 0
    flash_limit_bytes: int = 4 << 20
    ram: int = 0x20000000
    ram_limit_bytes: int = 4 << 20


def _gcc(cpu: str, fpu: str | None) -> tuple[str, ...]:
    if fpu is None:
        return (f"-mcpu={cpu}", "-mfloat-abi=soft")
    return (f"-mcpu={cpu}", f"-mfpu={fpu}", "-mfloat-abi=hard")


# zig's cores come without what is optional in them: floating point, and DSP on the M33 and M55.
def _zig(cpu: str, hard: bool) -> tuple[str, ...]:
    return ("-target", f"thumb-freestanding-eabi{'hf' if hard else ''}", f"-mcpu={cpu}")


# Unicorn has no M0+: its M0 runs the same Armv6-M instructions. QEMU's only M0 has 16 KiB of RAM;
# its Cortex-M3 runs all of Armv6-M, but takes unaligned words, too. Memory maps: QEMU hw/arm/mps2.c
# and mps2-tz.c (secure aliases; the AN547 has 512 KiB of instruction memory and 2 GiB of DRAM).
CPUS: Mapping[str, Cpu] = {
    cpu.core: cpu
    for cpu in (
        Cpu(
            "cortex-m0plus",
            "m0plus",
            _gcc("cortex-m0plus", None),
            _zig("cortex_m0plus", False),
            False,
            "UC_CPU_ARM_CORTEX_M0",
            "mps2-an385",
        ),
        Cpu(
            "cortex-m3",
            "m3",
            _gcc("cortex-m3", None),
            _zig("cortex_m3", False),
            False,
            "UC_CPU_ARM_CORTEX_M3",
            "mps2-an385",
        ),
        Cpu(
            "cortex-m4",
            "m4",
            _gcc("cortex-m4", None),
            (*_zig("cortex_m4", False), "-mfloat-abi=soft"),
            False,
            "UC_CPU_ARM_CORTEX_M4",
            "mps2-an386",
        ),
        Cpu(
            "cortex-m4f",
            "m4",
            _gcc("cortex-m4", "fpv4-sp-d16"),
            _zig("cortex_m4+vfp4d16sp", True),
            True,
            "UC_CPU_ARM_CORTEX_M4",
            "mps2-an386",
        ),
        Cpu(
            "cortex-m7",
            "m7",
            _gcc("cortex-m7", "fpv5-sp-d16"),
            _zig("cortex_m7+fp_armv8d16sp", True),
            True,
            "UC_CPU_ARM_CORTEX_M7",
            "mps2-an500",
        ),
        Cpu(
            "cortex-m33",
            "m33",
            _gcc("cortex-m33", "fpv5-sp-d16"),
            _zig("cortex_m33+dsp+fp_armv8d16sp", True),
            True,
            "UC_CPU_ARM_CORTEX_M33",
            "mps2-an505",
            clock_hz=20_000_000,
            flash=0x10000000,
            ram=0x38000000,
        ),
        Cpu(
            "cortex-m55",
            "m55",
            ("-mcpu=cortex-m55", "-mfloat-abi=hard"),
            _zig("cortex_m55+dsp+mve_fp+fp_armv8d16sp", True),
            True,
            None,
            "mps3-an547",
            clock_hz=32_000_000,
            flash_limit_bytes=512 << 10,
            ram=0x60000000,
        ),
    )
}


def find_cpu(core: str) -> Cpu:
    """The core to build for; TargetError names the nearest."""
    if core not in CPUS:
        raise TargetError(f"cannot build for core '{core}'; {nearest(core, CPUS)}")
    return CPUS[core]
