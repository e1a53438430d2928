"""Limits on metrics: `ram <= 64 KiB`, `accuracy >= baseline - 1 %`, `flash <= 50 % of baseline`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from dse.errors import StudyError, nearest
from dse.trial import METRICS, Metric, MetricName
from dse.units import METRIC_DIMENSION, format_value, parse_quantity

Relation: TypeAlias = Literal["absolute", "offset", "factor"]

_SHAPE = re.compile(r"^(\S+?) ?(<=|>=|==|<|>|=) ?(.+)$")
_OFFSET = re.compile(r"^baseline(?:\s*([+-])\s*(.+))?$")
_FACTOR = re.compile(r"^(?:([\d.]+\s*%)\s*of\s+baseline|([\d.]+)\s*(?:x|\*)\s*baseline)$")
# Longer than any unit: somebody means the baseline.
_WORD = re.compile(r"[A-Za-z]{4,}")
_FORMS = "'50 ms' (a value with its unit), 'baseline - 1 %' or '50 % of baseline'"


@dataclass(frozen=True)
class Constraint:
    """One limit. `value` is SI: the limit itself, what is added to the baseline, or its factor.

    The baseline of accuracy is the float32 network; the baseline of a cost is the unpruned int8
    network on the candidate's own target. An offset of accuracy counts percentage points.
    """

    metric: MetricName
    relation: Relation
    value: float
    text: str

    @property
    def needs_accuracy(self) -> bool:
        """Whether it can be decided only after training."""
        return self.metric == "accuracy"

    def limit(self, baseline: float | None) -> float:
        """The limit in SI units; `baseline` is needed unless the constraint is absolute."""
        if self.relation == "absolute":
            return self.value
        if baseline is None:
            raise StudyError(f"constraint '{self.text}' needs a baseline, which is not known")
        return baseline + self.value if self.relation == "offset" else baseline * self.value

    def violation(self, metric: Metric, baseline: float | None) -> float:
        """How far it is missed, as a share of the limit (of 1 for accuracy); <= 0 is met."""
        if metric.value is None:
            return 1.0
        limit = self.limit(baseline)
        if self.metric == "accuracy":
            return limit - metric.value
        # A baseline less more than itself leaves no positive limit; nothing meets that.
        return (metric.value - limit) / (limit if limit > 0 else metric.value)

    def miss(self, metric: Metric, baseline: float | None, where: str) -> str:
        """The sentence that says by how much it is missed."""
        if metric.value is None:
            return f"{self.metric} on {where} is not known ({metric.source}): '{self.text}'"
        limit = self.limit(baseline)
        over = "below" if self.metric == "accuracy" else "over"
        by = format_value(self.metric, abs(metric.value - limit))
        found, allowed = (format_value(self.metric, v) for v in (metric.value, limit))
        return f"{self.metric} {found} on {where} is {by} {over} {allowed} ('{self.text}')"


def parse_constraint(text: str) -> Constraint:
    """The constraint behind `text`, of which only single spaces are kept.

    Raises StudyError that says what is wrong and what is allowed.
    """
    line = " ".join(str(text).split())
    match = _SHAPE.match(line) if isinstance(text, str) else None
    if match is None:
        raise StudyError(f"'{line}' is not a constraint; write it like 'ram <= 64 KiB'")
    name, sign, right = match.groups()
    if name not in METRICS:
        raise StudyError(f"'{line}' limits '{name}'; {nearest(name, METRICS)}")
    kind = METRICS[name]
    allowed = "<=" if kind.direction == "minimize" else ">="
    if sign != allowed:
        raise StudyError(
            f"'{line}' uses '{sign}', but {name} is {kind.direction}d; "
            f"allowed: '{name} {allowed} ...'"
        )
    relation, value = _right_side(kind.name, right, line)
    _check_possible(kind.name, relation, value, line)
    return Constraint(kind.name, relation, value, line)


def _right_side(metric: MetricName, right: str, text: str) -> tuple[Relation, float]:
    dimension = METRIC_DIMENSION[metric]
    if offset := _OFFSET.match(right):
        if offset.group(1) is None:
            return "offset", 0.0
        value = parse_quantity(offset.group(2), dimension)
        return "offset", -value if offset.group(1) == "-" else value
    if factor := _FACTOR.match(right):
        share = factor.group(1) or factor.group(2)
        return "factor", parse_quantity(share, "share")
    if _WORD.search(right):
        raise StudyError(f"'{text}' is not understood; allowed on the right: {_FORMS}")
    return "absolute", parse_quantity(right, dimension)


def _check_possible(metric: MetricName, relation: Relation, value: float, text: str) -> None:
    if metric == "accuracy" and relation == "absolute" and not 0 <= value <= 1:
        raise StudyError(
            f"'{text}' asks for an accuracy of {100 * value:g} %; allowed: 0 % to 100 %"
        )
    if metric == "accuracy" and relation == "offset" and abs(value) >= 1:
        raise StudyError(
            f"'{text}' moves the baseline by {100 * value:g} percentage points; "
            "allowed: less than 100, such as 'baseline - 1 %'"
        )
    if metric != "accuracy" and relation != "offset" and value <= 0:
        raise StudyError(f"'{text}' can never be met; {metric} is above 0")


def baseline_of(
    constraint: Constraint, accuracy: float | None, costs: Mapping[MetricName, Metric]
) -> float | None:
    """The baseline a constraint refers to: float32 accuracy, or a cost on the same target."""
    if constraint.relation == "absolute":
        return None
    return accuracy if constraint.needs_accuracy else costs[constraint.metric].value
