"""What a report says about a study: front, designs worth a look, misses, sources of figures."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from dse.pareto import knee
from dse.rows import StudyRecord
from dse.tables import budgets_text, training_parts
from dse.trial import METRICS, Metric, MetricName, State, Trial
from dse.units import format_quantity, format_value

KNEE = "Knee of the front"
POINT = 0.01  # one point of accuracy
_ADJECTIVES: Mapping[str, str] = {
    "flash": "Smallest flash",
    "ram": "Smallest RAM",
    "latency": "Fastest",
    "energy": "Least energy",
}


@dataclass(frozen=True)
class Pick:
    """A design worth a look, under the titles it earned, with one sentence of why."""

    titles: tuple[str, ...]
    trial: Trial
    why: str


@dataclass(frozen=True)
class Miss:
    """Trials that were rejected or failed for the same cause."""

    cause: str
    count: int
    example: str
    failed: bool


@dataclass(frozen=True)
class Source:
    """Where the figures of one metric come from, and for how many designs."""

    metric: MetricName
    provenance: str
    text: str
    count: int

    @property
    def unverified(self) -> bool:
        """Whether the source itself says that nobody has checked it."""
        return unverified(self.text)


@dataclass(frozen=True)
class Designs:
    """A study's trials, sorted into what a reader looks for. `trials` are in order of number."""

    record: StudyRecord
    trials: Sequence[Trial]

    @cached_property
    def metrics(self) -> tuple[MetricName, ...]:
        """The objectives in their order, then every other metric that some trial knows."""
        objectives = self.record.objectives
        known = {name for trial in self.trials for name in trial.metrics}
        rest = (kind.name for kind in METRICS.values() if kind.name not in objectives)
        return (*objectives, *(name for name in rest if self._known(name, known)))

    def _known(self, name: str, found: set[str]) -> bool:
        return name in found and any(trial.value(name) is not None for trial in self.trials)

    @cached_property
    def feasible(self) -> list[Trial]:
        """The trials that are complete and meet every constraint."""
        return [trial for trial in self.trials if trial.feasible]

    @cached_property
    def compressed(self) -> list[Trial]:
        """The feasible trials without the baselines."""
        return [trial for trial in self.feasible if not trial.baseline]

    @cached_property
    def front(self) -> list[Trial]:
        """The non-dominated eligible trials, in order of the first objective that is a cost."""
        eligible = [trial for trial in self.trials if trial.eligible]
        if not eligible:
            return []
        mask = self.record.box.front(self.values(eligible))
        members = [trial for trial, member in zip(eligible, mask, strict=True) if member]
        by = next((name for name in self.record.objectives if name != "accuracy"), "accuracy")
        return sorted(members, key=lambda trial: (trial.value(by) or 0.0, trial.number))

    @cached_property
    def front_numbers(self) -> frozenset[int]:
        """The numbers of the front's trials."""
        return frozenset(trial.number for trial in self.front)

    @cached_property
    def hypervolume(self) -> float:
        """The share of the study's box that its front dominates."""
        return self.record.box.hypervolume(self.values(self.front)) if self.front else 0.0

    def values(self, trials: Iterable[Trial]) -> npt.NDArray[np.float64]:
        """The objectives of these trials, (n, m), as measured."""
        names = self.record.objectives
        rows = [[trial.value(name) for name in names] for trial in trials]
        return np.array(rows, dtype=np.float64).reshape(-1, len(names))

    @cached_property
    def baseline(self) -> Trial | None:
        """The trial of the float32 baseline, when its accuracy is known."""
        found = (trial for trial in self.trials if trial.baseline.startswith("float"))
        return next((trial for trial in found if trial.value("accuracy") is not None), None)

    @cached_property
    def picks(self) -> list[Pick]:
        """The knee, the best of each cost within a point of the baseline, the most accurate."""
        front = [trial for trial in self.front if not trial.baseline]
        if not front:
            return []
        titles: dict[int, list[str]] = {}

        def award(trial: Trial, title: str) -> None:
            titles.setdefault(trial.number, []).append(title)

        points = self.record.box.normalise(self.values(front))
        award(front[knee(points)], KNEE)
        near, suffix = self._near_baseline(front)
        for name in (name for name in self.record.objectives if name in _ADJECTIVES):
            award(min(near, key=lambda trial: _sort_key(trial, name)), _ADJECTIVES[name] + suffix)
        if "accuracy" in self.record.objectives:
            award(min(front, key=lambda trial: -(trial.value("accuracy") or 0)), "Most accurate")
        by_number = {trial.number: trial for trial in front}
        return [
            Pick(tuple(found), by_number[number], self._why(by_number[number]))
            for number, found in titles.items()
        ]

    def _near_baseline(self, front: Sequence[Trial]) -> tuple[Sequence[Trial], str]:
        """The designs within one point of the baseline's accuracy, all when there is none."""
        if self.baseline is None:
            return front, ""
        least = (self.baseline.value("accuracy") or 0.0) - POINT
        near = [trial for trial in front if (trial.value("accuracy") or 0.0) >= least]
        return (near, " within 1 point of float32") if near else (front, "")

    def _why(self, trial: Trial) -> str:
        """What the design costs beside the float32 baseline."""
        if self.baseline is None:
            return describe(trial)
        said = []
        for name in self.metrics:
            value, whole = trial.value(name), self.baseline.value(name)
            if value is None or whole is None:
                continue
            if name == "accuracy":
                said.append(f"{100 * (value - whole):+.2f} points of accuracy".replace("-", "−"))
            elif value > 0 and whole > 0:
                said.append(_ratio(whole / value, name))
        if trial.parameters and self.baseline.parameters:
            share = 100 * trial.parameters / self.baseline.parameters
            said.append(f"{share:.3g} % of the parameters")
        where = target_text(self.baseline)
        return f"Beside float32 on {where}: {', '.join(said)}." if said else describe(trial)

    @cached_property
    def misses(self) -> list[Miss]:
        """Why designs were rejected or failed, the most frequent first; baselines included."""
        groups: dict[tuple[str, bool], list[Trial]] = {}
        for trial in self.trials:
            if trial.state in (State.INFEASIBLE, State.FAILED):
                failed = trial.state is State.FAILED
                groups.setdefault((_cause(trial), failed), []).append(trial)
        found = [
            Miss(cause, len(group), min(group, key=worst_miss).reason, failed)
            for (cause, failed), group in groups.items()
        ]
        return sorted(found, key=lambda miss: (miss.failed, -miss.count, miss.cause))

    @cached_property
    def rejected(self) -> list[Trial]:
        """The infeasible trials, the nearest miss first."""
        found = [trial for trial in self.trials if trial.state is State.INFEASIBLE]
        return sorted(found, key=lambda trial: (worst_miss(trial), trial.number))

    @cached_property
    def sources(self) -> list[Source]:
        """Where the figures of every feasible design come from; of all when none is feasible."""
        counts: Counter[tuple[MetricName, str, str]] = Counter()
        for trial in self.feasible or self.trials:
            for name in self.metrics:
                metric = trial.metrics.get(name)
                if metric is not None and metric.value is not None:
                    counts[name, metric.provenance, metric.source] += 1
        order = {name: index for index, name in enumerate(self.metrics)}
        found = [Source(*key, count) for key, count in counts.items()]
        return sorted(found, key=lambda source: (order[source.metric], -source.count, source.text))

    def sentence(self) -> str:
        """The study in one or two sentences."""
        counts = Counter(trial.state for trial in self.trials)
        missed, failed = counts[State.INFEASIBLE], counts[State.FAILED]
        met = len(self.feasible)
        said = [f"{met or 'none'} {'meets' if met <= 1 else 'meet'} every constraint"]
        said += [f"{missed} {'does' if missed == 1 else 'do'} not"] if missed and met else []
        said += [f"{failed} failed"] if failed else []
        done = sum(counts[state] for state in counts if state.finished)
        tried = f"Of {done} designs tried," if done != 1 else "One design was tried:"
        text = f"{tried} {_listed(said)}."
        if done == 0:
            return "No trial has finished yet."
        if not self.front:
            return f"{text} There is no front yet: nothing is feasible."
        size = len(self.front)
        return f"{text} {size} {'is' if size == 1 else 'are'} on the Pareto front{self._spans()}."

    def _spans(self) -> str:
        """How far the front reaches in each cost."""
        said = []
        for name in (name for name in self.record.objectives if name != "accuracy"):
            values = [value for trial in self.front if (value := trial.value(name))]
            if values and max(values) / min(values) >= 1.5:
                said.append(f"{max(values) / min(values):.3g}x in {label(name)}")
        return f", which spans {_listed(said)}" if said else ""


def label(metric: str) -> str:
    """The metric's name in running text."""
    return {"ram": "RAM"}.get(metric, metric)


def shown(metric: str, value: float | None) -> str:
    """The value as `format_value` writes it, with the sign for micro, which a page can print."""
    return re.sub(r" u(?=[sJ])", " µ", format_value(metric, value))


def unverified(text: str) -> bool:
    """Whether the text of a source says that nobody has checked it."""
    return "unverified" in text.lower()


def interval(name: str, metric: Metric | None) -> str:
    """The metric's interval in pretty units; empty when it is exact, open or unknown."""
    if metric is None or metric.low is None or metric.high is None or metric.low == metric.high:
        return ""
    if not (math.isfinite(metric.low) and math.isfinite(metric.high)):
        return ""
    low, high = shown(name, metric.low), shown(name, metric.high)
    number, _, unit = low.partition(" ")
    return f"{number} to {high}" if high.endswith(f" {unit}") else f"{low} to {high}"


def target_text(trial: Trial) -> str:
    """Board, backend and clock in one line."""
    return " · ".join(target_parts(trial))


def target_parts(trial: Trial) -> list[str]:
    """Board, backend and clock, as far as they are known."""
    target = trial.candidate.get("target", {})
    clock = target.get("clock_hz")
    parts = [target.get("board"), target.get("backend")]
    parts += [format_quantity(clock, "hertz")] if clock else []
    return [str(part) for part in parts if part]


def describe(trial: Trial) -> str:
    """What was done to the network, in one line."""
    return " · ".join(network_parts(trial))


def network_parts(trial: Trial) -> list[str]:
    """Precision, weight bits, channels and kept weights, as far as they apply."""
    candidate = trial.candidate
    said = [str(candidate["precision"])] if candidate.get("precision") else []
    widths, bits = candidate.get("widths") or {}, candidate.get("bits") or {}
    kept = [float(density) for density in (candidate.get("kept") or {}).values()]
    if bits and candidate.get("precision") != "float32":
        said.append(f"weight bits {_series(list(bits.values()))}")
    if budgets := candidate.get("budgets"):
        said.append(budgets_text(budgets))
    if widths:
        said.append(f"channels {_series(list(widths.values()))}")
    if ranks := candidate.get("ranks"):
        said.append(f"{candidate.get('factors') or 'channel'} rank {_series(list(ranks.values()))}")
    if kept and min(kept) < 1:
        said.append(f"weights kept {_series([f'{100 * density:.3g}' for density in kept])} %")
    if books := candidate.get("code_books"):
        said.append(f"code books {_series(list(books.values()))} of {candidate['vector']}")
    return said + training_parts(candidate)


def mean_bits(trial: Trial) -> float | None:
    """The mean bit width of the weights over the layers."""
    bits = trial.candidate.get("bits") or {}
    return float(np.mean(list(bits.values()))) if bits else None


def worst_miss(trial: Trial) -> float:
    """How far the trial is from meeting its hardest constraint; infinite when nobody knows."""
    return max(trial.violations.values(), default=float("inf"))


def _series(values: Sequence[object]) -> str:
    """A value a layer, shortened where there are many layers."""
    if len(set(values)) == 1:
        return str(values[0])
    if len(values) <= 8:
        return "-".join(str(value) for value in values)
    return f"{'-'.join(str(value) for value in values[:6])}-… ({len(values)} layers)"


def _cause(trial: Trial) -> str:
    missed = sorted(text for text, miss in trial.violations.items() if miss > 0)
    return " and ".join(missed) or trial.reason or "no reason was stored"


def _sort_key(trial: Trial, name: str) -> tuple[float, float]:
    value = trial.value(name)
    return (float("inf") if value is None else value, -(trial.value("accuracy") or 0.0))


def _ratio(times: float, name: str) -> str:
    if 0.995 < times < 1.005:
        return f"the same {label(name)}"
    if times < 1:
        return f"{1 / times:.3g}x the {label(name)}"
    return f"{times:.3g}x less {label(name)}"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
