"""Speeds of runtimes, cores and boards from few rows each: a hierarchical fit of log cycles.

Cycles of a network are the sum over components (kernels, requantization, im2col, flash) of what
they take on the emulated core, times a multiplier. The log of a multiplier is a sum of effects: of
the runtime, its version (a walk along the versions), the core family, the board, and of each of
these on single components. Every effect has a normal prior around zero (boards a Student t, so
that one odd board does not move the others); the estimate is the posterior's mode, found by
Gauss-Newton, and its curvature gives the interval of a prediction (Laplace approximation;
Gelman et al., Bayesian Data Analysis, chapters 4 and 5). A system that was not measured has the
effects that it shares with the measured ones, and the priors' width for the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from dse.targets.measured import COMPONENTS, Measured, System

Key: TypeAlias = tuple[str, ...]
Array: TypeAlias = npt.NDArray[np.float64]

# Standard deviations of the effects, in log cycles (how they were chosen: reports/calibration.md).
SPREAD: Mapping[str, float] = {
    "runtime": 0.3,
    "runtime component": 0.2,
    "runtime matmul": 0.05,
    "vendor": 0.4,
    "version": 0.15,
    "version component": 0.1,
    "instructions": 0.7,
    "instructions component": 0.3,
    "m7": 0.4,
    "m7 component": 0.02,
    "m7 runtime": 0.02,
    "m7 runtime component": 0.06,
    "board": 0.1,
    "board component": 0.05,
    "build": 0.05,
    "stream": 0.3,
    "all streams": 0.5,
}
# What no effect explains: repeats, compilers, the shape of single layers.
NOISE = 0.05
FREEDOM = 3.0
ROUNDS = 15
VERSIONS: Mapping[str, tuple[str, ...]] = {
    "x-cube-ai": ("7.1", "7.3", "8.0", "8.1", "9.0", "10"),
    "plumerai": ("v0.7", "v1.0", "2023.05"),
    "hale": ("1.0", "1.0.175"),
}
# Runtimes tuned by a vendor for the DSP extension share how they differ from CMSIS-NN.
VENDORS = ("x-cube-ai", "hale", "plumerai", "onnc")
MATMUL = ("conv.mac", "pointwise.mac")
INSTRUCTIONS: Mapping[str, str] = {"m0plus": "scalar", "m55": "mve", "m85": "mve"}


def effects(system: System, component: str) -> Iterator[tuple[Key, float]]:
    """The effects whose sum is the log multiplier of a component, with their priors' widths."""
    m7 = [(("m7",), SPREAD["m7"])] if system.family == "m7" else []
    if component == "stream":
        yield from m7
        yield ("stream", system.board), SPREAD["stream"]
        yield ("all streams",), SPREAD["all streams"]
        return
    for key, kind in _shared(system):
        yield key, SPREAD[kind]
        if kind != "build":
            yield (*key, component), SPREAD[_of_component(kind)]
    if system.family == "m7":
        yield from m7
        yield ("m7", component), SPREAD["m7 component"]
        yield ("m7", system.runtime), SPREAD["m7 runtime"]
        yield ("m7", system.runtime, component), SPREAD["m7 runtime component"]
    if system.runtime != "cmsis-nn" and component in MATMUL:
        kind = INSTRUCTIONS.get(system.family, "dsp")
        yield ("runtime", system.runtime, kind, "matmul"), SPREAD["runtime matmul"]


def _of_component(kind: str) -> str:
    return {
        "vendor": "vendor",
        "scalar runtime": "runtime component",
        "runtime": "runtime component",
    }.get(kind, f"{kind} component")


def _shared(system: System) -> Iterator[tuple[Key, str]]:
    """Effects with a part for each component: (key, kind of spread)."""
    kind = INSTRUCTIONS.get(system.family, "dsp")
    yield ("board", system.board), "board"
    yield ("build", system.board, system.runtime, system.version), "build"
    if kind != "dsp":
        yield ("instructions", kind), "instructions"
    if system.runtime != "cmsis-nn":
        if kind == "dsp" and system.runtime in VENDORS:
            yield ("vendor",), "vendor"
        # Without the DSP extension runtimes have less to differ by.
        yield ("runtime", system.runtime, kind), "runtime" if kind == "dsp" else "version"
    chain = VERSIONS.get(system.runtime, ("", system.version))
    for version in chain[1 : chain.index(system.version) + 1]:
        yield ("version", system.runtime, version, kind), "version"


@dataclass(frozen=True)
class Prediction:
    """Log cycles and their standard deviation."""

    log_cycles: float
    deviation: float


@dataclass(frozen=True)
class Posterior:
    """Effects with their covariance; `components` are those the parts are counted in."""

    names: Mapping[Key, int]
    mode: Array
    covariance: Array
    components: tuple[str, ...]
    of: Callable[[System, str], Iterator[tuple[Key, float]]] = field(default=effects)

    def multiplier(self, system: System, component: str) -> float:
        """What the emulated cycles of a component are multiplied by on a system."""
        known = (self.names.get(key) for key, _ in self.of(system, component))
        return math.exp(sum(self.mode[index] for index in known if index is not None))

    def predict(self, system: System, parts: Mapping[str, float]) -> Prediction:
        """Cycles of a network on a system, measured or not."""
        total, slope, unknown = 0.0, np.zeros(len(self.mode)), dict[Key, tuple[float, float]]()
        for component in self.components:
            cycles = parts[component] * self.multiplier(system, component)
            total += cycles
            for key, spread in self.of(system, component):
                if key in self.names:
                    slope[self.names[key]] += cycles
                else:
                    unknown[key] = (unknown.get(key, (0.0, 0.0))[0] + cycles, spread)
        variance = float(slope @ self.covariance @ slope) / total**2 + NOISE**2
        variance += sum((cycles / total * spread) ** 2 for cycles, spread in unknown.values())
        return Prediction(math.log(total), math.sqrt(variance))


def fit(
    rows: Sequence[Measured],
    components: tuple[str, ...] = COMPONENTS,
    of: Callable[[System, str], Iterator[tuple[Key, float]]] = effects,
) -> Posterior:
    """The posterior of all effects given measured rows."""
    names: dict[Key, int] = {}
    spreads: list[float] = []
    cells = []
    for index, row in enumerate(rows):
        for column, part in enumerate(components):
            for key, spread in of(row.system, part):
                if key not in names:
                    names[key] = len(names)
                    spreads.append(spread)
                cells.append((index, column, names[key]))
    design = np.zeros((len(rows), len(components), len(names)))
    for cell in cells:
        design[cell] = 1.0
    parts = np.array([[row.parts[name] for name in components] for row in rows], float)
    logs = np.log([row.cycles for row in rows])
    heavy = np.array([key[0] == "board" for key in names])
    mode, covariance = _solve(design, parts, logs, np.array(spreads), heavy)
    return Posterior(names, mode, covariance, components, of)


def _solve(
    design: Array, parts: Array, logs: Array, spreads: Array, heavy: npt.NDArray[np.bool_]
) -> tuple[Array, Array]:
    """Gauss-Newton; the Student t prior is a normal one reweighted in every round."""
    mode, precision = np.zeros(len(spreads)), 1.0 / spreads**2
    curvature = np.diag(precision)
    for _ in range(ROUNDS):
        cycles = np.exp(design @ mode) * parts
        total = cycles.sum(axis=1)
        slope = np.einsum("rc,rce->re", cycles / total[:, None], design) / NOISE
        tails = (FREEDOM + 1) / (FREEDOM + mode**2 * precision)
        curvature = slope.T @ slope + np.diag(np.where(heavy, tails, 1.0) * precision)
        rest = (logs - np.log(total)) / NOISE + slope @ mode
        mode = np.linalg.solve(curvature, slope.T @ rest)
    return mode, np.asarray(np.linalg.inv(curvature), np.float64)
