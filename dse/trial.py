"""What one trial found: metrics with intervals and provenance, timings, and why it failed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, TypeAlias

from dse.errors import DseError

Provenance: TypeAlias = Literal["measured", "emulated", "estimated", "modelled"]
MetricName: TypeAlias = Literal["accuracy", "flash", "ram", "latency", "energy"]


@dataclass(frozen=True)
class MetricKind:
    """One quantity that can be an objective: its unit in the database and its direction."""

    name: MetricName
    column: str
    unit: str
    direction: Literal["minimize", "maximize"]

    @property
    def sign(self) -> int:
        """+1 when smaller is better, -1 when larger is: value * sign is always minimized."""
        return 1 if self.direction == "minimize" else -1


METRICS: Mapping[str, MetricKind] = {
    kind.name: kind
    for kind in (
        MetricKind("accuracy", "accuracy", "", "maximize"),
        MetricKind("flash", "flash_bytes", "B", "minimize"),
        MetricKind("ram", "ram_bytes", "B", "minimize"),
        MetricKind("latency", "latency_s", "s", "minimize"),
        MetricKind("energy", "energy_j", "J", "minimize"),
    )
}
COST_METRICS: tuple[MetricName, ...] = ("flash", "ram", "latency", "energy")


@dataclass(frozen=True)
class Metric:
    """A value in SI units with its interval and where it comes from; None is 'unavailable'."""

    value: float | None
    low: float | None
    high: float | None
    provenance: Provenance
    source: str = ""

    def __post_init__(self) -> None:
        if self.value is None:
            return
        if self.low is None or self.high is None or not math.isfinite(self.value):
            raise DseError(f"a metric needs a finite value, low and high; found {self}")
        if not self.low <= self.value <= self.high:
            raise DseError(f"a metric's value must lie in its interval; found {self}")

    @classmethod
    def unavailable(cls, reason: str) -> Metric:
        """A quantity nobody can give here, with the reason."""
        return cls(None, None, None, "modelled", reason)


# The violation of a trial that earlier limits rejected, and today's would not.
NEVER_MEASURED = "never measured"
# The attribute that names the trial whose network a served one is.
NETWORK_OF = "dse:network_of"
# Most trusted first: what a design's figures are at worst is the last of those it has.
TRUST: tuple[Provenance, ...] = ("measured", "emulated", "estimated", "modelled")


@dataclass(frozen=True)
class Proof:
    """What building a design and running it on an emulated core gave.

    `matching` of `samples` outputs were exact in every byte; `metrics` are flash, RAM, latency and
    energy in SI units by name, `reason` why there are none.
    """

    target: str
    compiler: str = ""
    emulator: str = ""
    samples: int = 0
    matching: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""

    @property
    def exact(self) -> bool:
        """Whether it ran, and every output was what the network computes."""
        return 0 < self.samples == self.matching


class State(StrEnum):
    """A trial's state. INFEASIBLE misses a constraint; it is not a failure."""

    RUNNING = "running"
    WAITING = "waiting"
    COMPLETE = "complete"
    INFEASIBLE = "infeasible"
    FAILED = "failed"

    @property
    def finished(self) -> bool:
        """Whether nothing more will be written for it."""
        return self in (State.COMPLETE, State.INFEASIBLE, State.FAILED)


@dataclass(frozen=True)
class Trial:
    """One stored trial.

    `params` are the sampler's knob values by name, `candidate` the canonical JSON they mean.
    `violations` are normalised misses by constraint text (<= 0 is met). `trained` says whether this
    trial itself trained a network (False: rejected by cost, or its network was known already).
    `stage_s` are seconds a stage. `attrs` are Optuna's system attributes, kept for the sampler.
    `proof` is what `dse verify` found; the metrics stay those that the search saw.
    """

    number: int
    state: State
    params: Mapping[str, Any] = field(default_factory=dict)
    candidate: Mapping[str, Any] = field(default_factory=dict)
    candidate_key: str = ""
    network_key: str = ""
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    test_accuracy: Metric | None = None
    validation_samples: int = 0
    test_samples: int = 0
    parameters: int = 0
    macs: int = 0
    violations: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    trained: bool = False
    baseline: str = ""
    stage_s: Mapping[str, float] = field(default_factory=dict)
    started: float = 0.0
    finished: float = 0.0
    attrs: Mapping[str, Any] = field(default_factory=dict)
    proof: Proof | None = None

    @property
    def feasible(self) -> bool:
        """Complete, and every constraint met."""
        return self.state is State.COMPLETE

    @property
    def served(self) -> bool:
        """Whether it is another trial's network on one more target, which nobody proposed."""
        return NETWORK_OF in self.attrs

    @property
    def eligible(self) -> bool:
        """Whether it may enter the front: feasible, and a choice of the study's space.

        A float32 baseline that no setting of the knobs means is a landmark, not a design.
        """
        return self.feasible and not (self.baseline == "float32" and not self.params)

    @property
    def provenance(self) -> Provenance:
        """Where its costs come from: 'emulated' once its firmware ran exactly, else their worst."""
        if self.proof is not None and self.proof.exact:
            return "emulated"
        found = {m.provenance for name, m in self.metrics.items() if name in COST_METRICS}
        return next((kind for kind in reversed(TRUST) if kind in found), "modelled")

    @property
    def model_errors(self) -> Mapping[str, float]:
        """(modelled - emulated) / emulated by metric of a verified design, else empty."""
        found = {} if self.proof is None else self.proof.metrics
        return {
            name: value / emulated - 1
            for name, emulated in found.items()
            if emulated and (value := self.value(name)) is not None
        }

    @property
    def provenance_text(self) -> str:
        """The provenance in words: of a verified design, by how much the model was off."""
        proof = self.proof
        if proof is None or not proof.samples:
            return self.provenance
        if not proof.exact:
            return f"emulated: {proof.samples - proof.matching} of {proof.samples} outputs differ"
        off = [f"{name} {100 * error:+.1f} %" for name, error in self.model_errors.items()]
        return f"emulated (model: {', '.join(off)})" if off else "emulated"

    def value(self, metric: str) -> float | None:
        """The metric's value in SI units, or None when it is not known."""
        found = self.metrics.get(metric)
        return None if found is None else found.value
