"""The measured rows of MLPerf Tiny: which system they are of, and what its kernels count.

A system is a board with a runtime and its version. Rows of float networks, of networks on an
accelerator and of builds made for small RAM are left out: not plain int8 on a Cortex-M.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from dse.graph.ir import Conv2D, FullyConnected, Graph
from dse.targets import counted
from dse.targets.core import Family
from dse.targets.cycles import features, kernel_class
from dse.targets.encoding import encode
from dse.targets.layer_rows import fit_emulated, layer_rows
from dse.targets.networks import live_graph, reference_graph, rows

FAMILIES: Mapping[str, Family] = {
    "Cortex-M0+": "m0plus",
    "Cortex-M4": "m4",
    "Cortex-M33": "m33",
    "Cortex-M7": "m7",
    "Cortex-M85": "m85",
}
# What a fitted multiplier stands for; the flash stream is of fully connected weights, read once.
COMPONENTS = (
    "conv.mac",
    "pointwise.mac",
    "depthwise.mac",
    "fully_connected.mac",
    "output",
    "column",
    "other",
    "stream",
)
# Runtimes that skip all-zero channels: calibration README; of ONNC the ratio of its visual wake
# words to its image classification says so (0.58, as X-CUBE-AI 8.1; 0.8 and more for the others).
SKIPS_DEAD = (("x-cube-ai", "8.1"), ("x-cube-ai", "9.0"), ("plumerai", "2023.05"), ("onnc", "1"))
# Wait states of measured boards with a small flash cache (board_facts; STM32L4+ reference manual).
SMALL_CACHE_WAITS: Mapping[str, int] = {"NUCLEO-L4R5ZI": 5}
# Rows that list the chip's fastest clock, and the one they ran at: mbed OS, under which they were
# built, sets the PSoC 62's core to 100 MHz (CLK_HF0 of the board's cycfg_system.c, not divided).
RUN_CLOCK_HZ: Mapping[str, float] = {"CY8CPROTO-062-4343W": 100e6}
# Cycles a byte of fully connected weights waited for in flash: five wait states for eight bytes
# where the cache is small (counted misses: emulation notes, section 3); elsewhere a fetch of 16
# bytes at about six cycles, which the fit corrects from the builds with weights in RAM.
SMALL_CACHE_STREAM, STREAM = 0.625, 0.4


@dataclass(frozen=True)
class System:
    """A board with a runtime: what a latency belongs to."""

    board: str
    family: Family
    runtime: str
    version: str


@dataclass(frozen=True)
class Measured:
    """Cycles of a network on a system and the cycles of its parts on the emulated Cortex-M4.

    `in_ram`: the weights were copied to RAM. `score`: a plain row of MLPerf Tiny. `clock_ratio`:
    the clock that the row lists over the one that `cycles` counts.
    """

    system: System
    network: str
    parts: Mapping[str, float]
    macs: int
    cycles: float
    in_ram: bool = False
    score: bool = True
    clock_ratio: float = 1.0


def runtime_of(text: str) -> tuple[str, str]:
    """Runtime and version of a row; versions that differ in the third number are one."""
    words = text.split()
    if text.startswith("X-CUBE-AI"):
        return "x-cube-ai", ".".join(words[1].split(".")[:2])
    if text.startswith("Plumerai"):
        return "plumerai", (re.findall(r"v0\.7|v1\.0|2023\.05", text) or ["?"])[0]
    if text.startswith("Bosch HALE"):
        return "hale", words[-1]
    named = {
        "ONNC": ("onnc", "1"),
        "ONNC (CMSIS-NN based)": ("onnc", "1"),
        "TFLM + CMSIS-NN (MVE)": ("cmsis-nn", "mve"),
        "TFLM + CMSIS-NN": ("cmsis-nn", "tflm"),
        "microTVM + CMSIS-NN": ("cmsis-nn", "static"),
        "microTVM native": ("microtvm", "1"),
        "TFLM 2.3.1": ("tflm", "2.3.1"),
    }
    return named[text]


def component(feature: str) -> str:
    """The component that a counted feature belongs to."""
    if feature.endswith(".output"):
        return "output"
    if feature in ("conv.column", "conv.tap", "conv.output_tap"):
        return "column"
    if feature == "tail":
        return "conv.mac"
    return feature if feature in COMPONENTS else "other"


def graph_of(network: str, runtime: str, version: str) -> Graph:
    """The network as this runtime runs it: with or without its all-zero channels."""
    skips = (runtime, version) in SKIPS_DEAD or (runtime == "x-cube-ai" and version == "10")
    return live_graph(network) if skips else reference_graph(network)


def kernel_cycles(runtime: str) -> Mapping[str, float]:
    """Emulated cycles a feature that a runtime's multipliers start from.

    CMSIS-NN has one matrix product for 1x1 and another, slower one for kxk convolutions; other
    runtimes are taken to run one for both, at the cost of the 1x1's.
    """
    base = fit_emulated().coefficients
    return base if runtime == "cmsis-nn" else {**base, "conv.mac": base["pointwise.mac"]}


def parts_of(
    graph: Graph, base: Mapping[str, float], waits: int = 0, *, in_ram: bool = False
) -> dict[str, float]:
    """Cycles by component with coefficients of `kernel_cycles`, small caches' stalls included."""
    parts = dict.fromkeys(COMPONENTS, 0.0)
    for op in graph.ops:
        encoding = encode(op.weight, (8,)) if isinstance(op, Conv2D | FullyConnected) else None
        counts = features(graph, op, encoding)
        for name, amount in counts.items():
            parts[component(name)] += base.get(name, 0.0) * amount
        kernel = f"{kernel_class(op)}.mac"
        if kernel in ("conv.mac", "pointwise.mac", "depthwise.mac"):
            parts[kernel] += counted.STALL[kernel[:-4]] * waits * counts.get(kernel, 0.0)
        if kernel == "fully_connected.mac" and not in_ram:
            each = SMALL_CACHE_STREAM if waits else STREAM
            parts["stream"] += each * counts[kernel]
    return parts


@cache
def measured() -> tuple[Measured, ...]:
    """Every plain int8 row on a Cortex-M, those with the weights in RAM, and the Pico's layers.

    Only the first kind is scored.
    """
    return (*_networks(), *_pico())


def _networks() -> list[Measured]:
    found = []
    for row in rows("measured.csv"):
        if row["core"] not in FAMILIES or "_float/" in row["source"] or "min_ram" in row["notes"]:
            continue
        runtime, version = runtime_of(row["runtime"])
        system = System(row["board"], FAMILIES[row["core"]], runtime, version)
        in_ram = "weights in RAM" in row["notes"]
        waits = SMALL_CACHE_WAITS.get(row["board"], 0)
        graph = graph_of(row["network"], runtime, version)
        parts = parts_of(graph, kernel_cycles(runtime), waits, in_ram=in_ram)
        listed_hz = float(row["clock_mhz"]) * 1e6
        clock_hz = RUN_CLOCK_HZ.get(row["board"], listed_hz)
        cycles = float(row["latency_ms"]) * clock_hz / 1e3
        macs = reference_graph(row["network"]).macs
        ratio = listed_hz / clock_hz
        found.append(
            Measured(system, row["network"], parts, macs, cycles, in_ram, not in_ram, ratio)
        )
    return found


def _pico() -> list[Measured]:
    """The layers of the Raspberry Pi Pico, summed by kind: all that ties scalar cores to DSP ones.

    Their fetch over the serial bus is in their cycles.
    """
    found, base = [], fit_emulated().coefficients
    system = System("Raspberry Pi Pico", "m0plus", "cmsis-nn", "tflm")
    for kind in ("pointwise", "depthwise"):
        layers = [row for row in layer_rows() if row.part == kind]
        parts = dict.fromkeys(COMPONENTS, 0.0)
        for row in layers:
            for name, amount in row.features.items():
                parts[component(name)] += base.get(name, 0.0) * amount
        macs, cycles = sum(row.macs for row in layers), sum(row.cycles for row in layers)
        found.append(Measured(system, f"{kind} layers", parts, macs, cycles, score=False))
    return found
