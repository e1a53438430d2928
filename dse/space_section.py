"""The section `space` of a study file: what may be varied, and what excludes what."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from dse.errors import StudyError, nearest
from dse.graph.code_book import FEWEST, MOST, VECTORS
from dse.units import parse_quantity

Granularity = Literal["per-layer", "per-stage", "global"]
Criterion = Literal["l1", "l2", "bn", "taylor", "apoz", "random"]
PruningMethod = Literal["ratio", "budget"]
Schedule = Literal["one-shot", "agp", "dynamic"]
Pattern = Literal[
    "element", "1x4", "4x1", "2x2", "4x4", "1x4-shared", "4x1-shared", "2x2-shared", "4x4-shared"
]
Precision = Literal["int8", "int16", "float32"]
Method = Literal["ptq", "qat"]
RangesChoice = Literal["minmax", "percentile", "mse"]
Factors = Literal["channel", "spatial"]
Scales = Literal["channel", "tensor"]
Equalization = Literal["none", "cross-layer"]
WeightRounding = Literal["nearest", "adaptive"]
Biases = Literal["rounded", "corrected"]
PRECISIONS: tuple[Precision, ...] = ("int8", "int16", "float32")  # narrowest first
MAX_STEPS = 1000
T = TypeVar("T")


class MistakeError(ValueError):
    """A whole sentence from below, so that pydantic adds the key that it belongs to."""


def told(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The parser, whose StudyError becomes a mistake of the file."""

    def checked(value: Any) -> Any:
        try:
            return parse(value)
        except StudyError as error:
            raise MistakeError(str(error)) from error

    return checked


def as_list(value: Any) -> Any:
    """A single value as a list of one."""
    return value if isinstance(value, list) else [value]


def unique(values: list[Any]) -> list[Any]:
    """The list, if it says nothing twice."""
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ValueError(f"lists {value!r} twice")
    return values


def _grid(value: Any) -> Any:
    """A list as it is; {low, high, step} as the list it means."""
    if not isinstance(value, dict):
        return as_list(value)
    allowed = {"low", "high", "step"}
    for key in value:
        if key not in allowed:
            raise ValueError(f"has the unknown key '{key}'; {nearest(str(key), allowed)}")
    if set(value) != allowed:
        raise ValueError(f"needs low, high and step; found {', '.join(map(str, value)) or 'none'}")
    low, high, step = (_number(value[key], key) for key in ("low", "high", "step"))
    if step <= 0 or high < low:
        raise ValueError(
            f"runs from {low:g} to {high:g} by {step:g}; allowed: low <= high, step > 0"
        )
    count = int((high - low) / step + 1e-9) + 1
    if count > MAX_STEPS:
        raise ValueError(f"has {count:,} steps; allowed: up to {MAX_STEPS:,}")
    return [round(low + index * step, 10) for index in range(count)]


def _number(value: Any, key: str) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        raise ValueError(f"has {key} = {value!r}; allowed: a number")
    return float(value)


def _share(value: float) -> float:
    if not 0 <= value < 1:
        raise ValueError(f"holds {value:g}; allowed: 0 (nothing removed) up to, not including, 1")
    return value


def _needed(value: float) -> float:
    if not 0 < value <= 1:
        raise ValueError(f"holds {value:g}; allowed: above 0, up to 1 (what the whole one needs)")
    return value


def _part(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"holds {value:g}; allowed: 0 (its beginning) to 1 (its end)")
    return value


def _weight_bits(value: int) -> int:
    if not 2 <= value <= 8:
        raise ValueError(f"holds {value}; allowed: 2 to 8 bits")
    return value


def _entries(value: int) -> int:
    if value and not FEWEST <= value <= MOST:
        raise ValueError(f"holds {value}; allowed: 0 (no code book), or {FEWEST} to {MOST}")
    return value


def _vector(value: int) -> int:
    if value not in VECTORS:
        raise ValueError(f"holds {value}; allowed: 1, 2 or 4 weights an entry")
    return value


def _weight(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"holds {value:g}; allowed: 0 (no teacher) to 1 (no labels)")
    return value


def _temperature(value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"holds {value:g}; allowed: above 0")
    return value


def _clock(value: Any) -> Any:
    if value in ("max", "all"):
        return value
    if not isinstance(value, str):
        raise ValueError(f"holds {value!r}; allowed: 'max', 'all' or frequencies like '80 MHz'")
    return round(parse_quantity(value, "hertz"))


Whole = Annotated[int, Field(strict=True)]
Share = Annotated[float, Field(strict=True), AfterValidator(_share)]
Several = Annotated[list[T], BeforeValidator(as_list), Field(min_length=1), AfterValidator(unique)]
Grid = Annotated[list[T], BeforeValidator(_grid), Field(min_length=1), AfterValidator(unique)]
Shares = Grid[Share]
Needed = Annotated[float, Field(strict=True), AfterValidator(_needed)]
_OF_RATIOS = ("criterion", "schedule", "ramp")
Names = Several[str]
Skip = Annotated[list[str], BeforeValidator(as_list)]


class Section(BaseModel):
    """A mapping of the file: unknown keys are refused, an empty key counts as left out."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    @model_validator(mode="before")
    @classmethod
    def _without_empty_keys(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        return {key: value for key, value in content.items() if value is not None}


class RampSection(Section):
    """When gradual pruning goes on, in shares of the fine-tuning, and in how many steps."""

    start: Grid[Annotated[float, Field(strict=True), AfterValidator(_part)]] = [0.0]
    end: Grid[Annotated[float, Field(strict=True), AfterValidator(_part)]] = [0.5]
    updates: Grid[Annotated[Whole, Field(ge=1, le=1000)]] = [8]

    @model_validator(mode="after")
    def _in_order(self) -> RampSection:
        if max(self.start) > min(self.end):
            raise ValueError(
                f"may start at {max(self.start):g} and end at {min(self.end):g}; every start must "
                "be at most every end"
            )
        return self


class BudgetSection(Section):
    """What a network may need, in shares of what the unpruned one needs as int8."""

    memory: Grid[Needed] = [1.0]
    size: Grid[Needed] = [1.0]
    macs: Grid[Needed] = [1.0]

    @model_validator(mode="after")
    def _narrows(self) -> BudgetSection:
        if min(*self.memory, *self.size, *self.macs) == 1:
            raise ValueError("holds no share below 1; list some for memory, size or macs")
        return self


class Pruning(Section):
    """Structured pruning: whole output channels are removed, by ratios or within budgets."""

    method: Several[PruningMethod] = ["ratio"]
    granularity: Granularity = "per-layer"
    ratio: Shares = []
    budget: BudgetSection | None = None
    criterion: Several[Criterion] = ["l2"]
    schedule: Several[Schedule] = ["one-shot"]
    ramp: RampSection = RampSection()
    skip: Skip = []

    @model_validator(mode="after")
    def _as_the_method_says(self) -> Pruning:
        for method, key in (("ratio", "ratio"), ("budget", "budget")):
            if method in self.method and key not in self.model_fields_set:
                raise MistakeError(
                    f"the key 'space.pruning.{key}' is missing; see 'dse init' for a whole file"
                )
        unheard = {"budget": ["budget"], "ratio": ["ratio", "granularity", *_OF_RATIOS]}
        for method, keys in unheard.items():
            said = [key for key in keys if key in self.model_fields_set]
            if said and method not in self.method:
                raise MistakeError(
                    f"'{said[0]}' says nothing under method {self.method[0]}; leave it out, or "
                    f"write 'method: [ratio, budget]'"
                )
        return self


class LowRank(Section):
    """Layers become two of lower rank."""

    granularity: Granularity = "per-layer"
    ratio: Shares
    factors: Several[Factors] = ["channel"]
    skip: Skip = []


class Sparsity(Section):
    """Magnitude pruning of weights: single ones, or blocks of them, become zero."""

    granularity: Granularity = "global"
    ratio: Shares
    pattern: Several[Pattern] = ["element"]
    skip: Skip = []


class CodeBooksSection(Section):
    """Weight sharing: weights become indices of a few sub-vectors that a layer's channels share."""

    granularity: Granularity = "per-layer"
    entries: Several[Annotated[Whole, AfterValidator(_entries)]]
    vector: Several[Annotated[Whole, AfterValidator(_vector)]] = [1]
    skip: Skip = []


class Quantization(Section):
    """Weight widths by layer; activations are int8 or int16 (or all is float32)."""

    granularity: Granularity = "per-layer"
    weight_bits: Several[Annotated[Whole, AfterValidator(_weight_bits)]] = [8]
    precision: Several[Precision] = ["int8"]
    method: Several[Method] = ["ptq"]
    ranges: Several[RangesChoice] = ["minmax"]
    scales: Several[Scales] = ["channel"]
    equalization: Several[Equalization] = ["none"]
    rounding: Several[WeightRounding] = ["nearest"]
    biases: Several[Biases] = ["rounded"]
    skip: Skip = []


class Distillation(Section):
    """The baseline as a teacher of every fine-tuning."""

    weight: Grid[Annotated[float, Field(strict=True), AfterValidator(_weight)]]
    temperature: Grid[Annotated[float, Field(strict=True), AfterValidator(_temperature)]] = [4.0]


class SpaceSection(Section):
    """What may be varied."""

    pruning: Pruning | None = None
    low_rank: LowRank | None = None
    sparsity: Sparsity | None = None
    code_books: CodeBooksSection | None = None
    quantization: Quantization = Quantization()
    distillation: Distillation | None = None
    boards: Names
    backends: Names
    clocks: Several[Annotated[Any, BeforeValidator(told(_clock))]] = ["max"]
    alignment: Annotated[Whole, Field(ge=1, le=64)] | None = None

    @model_validator(mode="after")
    def _widths_are_known(self) -> SpaceSection:
        if self.pruning is None or "budget" not in self.pruning.method:
            return self
        for key in ("low_rank", "sparsity", "code_books"):
            if getattr(self, key) is not None:
                raise MistakeError(
                    f"'pruning.method' lists budget, which finds widths in training, and '{key}' "
                    "needs them before; leave one out"
                )
        return self
