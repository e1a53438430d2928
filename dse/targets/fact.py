"""A number with its unit, its interval, whether it was verified, and where it was read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from dse.errors import TargetError

Status: TypeAlias = Literal["read", "derived", "unverified"]
STATUSES: tuple[str, ...] = get_args(Status)


@dataclass(frozen=True)
class Fact:
    """A value in SI units with low <= value <= high; `status` says how far to trust it.

    read: stands so in the source. derived: computed from read numbers as the source text says.
    unverified: from memory or an assumption; reports print it so.
    """

    value: float
    low: float
    high: float
    unit: str
    status: Status
    source: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise TargetError(f"a fact needs finite bounds; found {self.low} to {self.high}")
        if not self.low <= self.value <= self.high:
            raise TargetError(
                f"a fact's value must lie in its interval; found {self.value} outside "
                f"{self.low} to {self.high}"
            )

    @property
    def text(self) -> str:
        """The source, led by the status where it is not simply read."""
        return self.source if self.status == "read" else f"{self.status}: {self.source}"

    def scaled(self, factor: float, unit: str) -> Fact:
        """The same fact times a known factor, in another unit."""
        return Fact(
            self.value * factor,
            self.low * factor,
            self.high * factor,
            unit,
            self.status,
            self.source,
        )


@dataclass(frozen=True)
class Word:
    """A property that is a word, such as the regulator, with its status and source."""

    value: str
    status: Status
    source: str
