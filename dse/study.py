"""The study file: what is asked, in YAML; a mistake is one sentence with file, key and value."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from dse.candidate import CALIBRATION
from dse.constraints import Constraint, parse_constraint
from dse.errors import StudyError, nearest
from dse.graph.code_book import FEWEST, MOST, VECTORS
from dse.samplers import SAMPLER_SETTINGS, check_settings
from dse.study_yaml import parse_yaml, short
from dse.trial import METRICS, MetricName
from dse.units import parse_quantity

Granularity = Literal["per-layer", "per-stage", "global"]
Criterion = Literal["l1", "l2", "bn", "taylor", "apoz", "random"]
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


class _MistakeError(ValueError):
    """A whole sentence from below, so that pydantic adds the key that it belongs to."""


def _told(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def checked(value: Any) -> Any:
        try:
            return parse(value)
        except StudyError as error:
            raise _MistakeError(str(error)) from error

    return checked


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _unique(values: list[Any]) -> list[Any]:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ValueError(f"lists {value!r} twice")
    return values


def _grid(value: Any) -> Any:
    """A list as it is; {low, high, step} as the list it means."""
    if not isinstance(value, dict):
        return _as_list(value)
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


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    seconds = parse_quantity(value, "seconds") if isinstance(value, str) else None
    if seconds is None:
        raise ValueError(f"is {value!r}; write a time with its unit, like '10 min'")
    if seconds <= 0:
        raise ValueError(f"is {value!r}; allowed: above 0")
    return seconds


def _constraint(value: Any) -> Constraint:
    return value if isinstance(value, Constraint) else parse_constraint(value)


def _metric(value: Any) -> Any:
    if str(value) not in METRICS:
        raise ValueError(f"names '{value}'; {nearest(str(value), METRICS)}")
    return value


def _objectives(values: list[str]) -> list[str]:
    if not values:
        raise ValueError(f"lists nothing; allowed: 1 to {len(METRICS)} of {', '.join(METRICS)}")
    return values


def _clock(value: Any) -> Any:
    if value in ("max", "all"):
        return value
    if not isinstance(value, str):
        raise ValueError(f"holds {value!r}; allowed: 'max', 'all' or frequencies like '80 MHz'")
    return round(parse_quantity(value, "hertz"))


Whole = Annotated[int, Field(strict=True)]
Share = Annotated[float, Field(strict=True), AfterValidator(_share)]
Several = Annotated[
    list[T], BeforeValidator(_as_list), Field(min_length=1), AfterValidator(_unique)
]
Grid = Annotated[list[T], BeforeValidator(_grid), Field(min_length=1), AfterValidator(_unique)]
Shares = Grid[Share]
Names = Several[str]
Skip = Annotated[list[str], BeforeValidator(_as_list)]


class _Section(BaseModel):
    """A mapping of the file: unknown keys are refused, an empty key counts as left out."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    @model_validator(mode="before")
    @classmethod
    def _without_empty_keys(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        return {key: value for key, value in content.items() if value is not None}


class RampSection(_Section):
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


class Pruning(_Section):
    """Structured pruning: whole output channels are removed."""

    granularity: Granularity = "per-layer"
    ratio: Shares
    criterion: Several[Criterion] = ["l2"]
    schedule: Several[Schedule] = ["one-shot"]
    ramp: RampSection = RampSection()
    skip: Skip = []


class LowRank(_Section):
    """Layers become two of lower rank."""

    granularity: Granularity = "per-layer"
    ratio: Shares
    factors: Several[Factors] = ["channel"]
    skip: Skip = []


class Sparsity(_Section):
    """Magnitude pruning of weights: single ones, or blocks of them, become zero."""

    granularity: Granularity = "global"
    ratio: Shares
    pattern: Several[Pattern] = ["element"]
    skip: Skip = []


class CodeBooksSection(_Section):
    """Weight sharing: weights become indices of a few sub-vectors that a layer's channels share."""

    granularity: Granularity = "per-layer"
    entries: Several[Annotated[Whole, AfterValidator(_entries)]]
    vector: Several[Annotated[Whole, AfterValidator(_vector)]] = [1]
    skip: Skip = []


class Quantization(_Section):
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


class Distillation(_Section):
    """The baseline as a teacher of every fine-tuning."""

    weight: Grid[Annotated[float, Field(strict=True), AfterValidator(_weight)]]
    temperature: Grid[Annotated[float, Field(strict=True), AfterValidator(_temperature)]] = [4.0]


class SpaceSection(_Section):
    """What may be varied."""

    pruning: Pruning | None = None
    low_rank: LowRank | None = None
    sparsity: Sparsity | None = None
    code_books: CodeBooksSection | None = None
    quantization: Quantization = Quantization()
    distillation: Distillation | None = None
    boards: Names
    backends: Names
    clocks: Several[Annotated[Any, BeforeValidator(_told(_clock))]] = ["max"]
    alignment: Annotated[Whole, Field(ge=1, le=64)] | None = None


class BringYourOwn(_Section):
    """A user's model and data, each `package.module:function`."""

    model: str
    data: str


class SamplerSection(BaseModel):
    """A sampler by name, with its settings."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})


def _sampler(value: Any) -> Any:
    section = {"name": value} if isinstance(value, str) else value
    if not isinstance(section, dict) or not isinstance(section.get("name"), str):
        raise ValueError(
            f"is {value!r}; write a name, or {{name: tpe, n_startup_trials: 20}}; "
            f"{nearest('', SAMPLER_SETTINGS)}"
        )
    settings = {key: found for key, found in section.items() if key != "name"}
    check_settings(section["name"], settings)
    return section


class StudyFile(_Section):
    """The whole file."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    workload: Annotated[
        Annotated[str, Tag("one by name")] | Annotated[BringYourOwn, Tag("one's own")],
        Discriminator(
            lambda v: "one's own" if isinstance(v, dict | BringYourOwn) else "one by name"
        ),
    ]
    training: dict[str, Any] = {}
    space: SpaceSection
    objectives: Annotated[
        list[Annotated[MetricName, BeforeValidator(_metric)]],
        BeforeValidator(_as_list),
        AfterValidator(_unique),
        AfterValidator(_objectives),
    ]
    constraints: Annotated[
        list[Annotated[Constraint, BeforeValidator(_told(_constraint))]], BeforeValidator(_as_list)
    ] = []
    sampler: Annotated[SamplerSection, BeforeValidator(_told(_sampler))] = SamplerSection(
        name="auto"
    )
    seed: Annotated[Whole, Field(ge=0, lt=2**31)] = 0
    n_trials: Annotated[Whole, Field(ge=3, le=1_000_000)] = 100
    timeout: Annotated[float | None, BeforeValidator(_told(_seconds))] = None
    storage: str | None = None
    verify: Literal["front", "always", "never"] = "never"
    early_stop: bool = False

    @model_validator(mode="after")
    def _accuracy_counts(self) -> StudyFile:
        if "accuracy" not in self.objectives and not any(
            limit.needs_accuracy for limit in self.constraints
        ):
            raise ValueError(
                f"'objectives' lists {', '.join(self.objectives)}, and 'constraints' no limit on "
                "accuracy, so any network would do; add accuracy to the objectives, or a limit "
                "such as 'accuracy >= baseline - 1 %'"
            )
        return self

    @model_validator(mode="after")
    def _magnitudes_stay_shared(self) -> StudyFile:
        sparsity, method = self.space.sparsity, self.space.quantization.method
        shared = [] if sparsity is None else [p for p in sparsity.pattern if p.endswith("-shared")]
        if shared and "qat" in method:
            raise ValueError(
                f"'space.sparsity.pattern' lists {shared[0]} and 'space.quantization.method' qat, "
                "which trains every weight by itself; leave one out"
            )
        return self

    def searchable(self) -> Mapping[str, Any]:
        """What a resumed study may not change: workload, training, space, objectives, limits."""
        fixed = self.model_dump(
            mode="json", exclude={"n_trials", "timeout", "storage", "name", "verify", "early_stop"}
        )
        # Keys that came after studies were stored say nothing there; None counts as left out.
        said = fixed["space"]
        for section, key, unsaid in (
            ("quantization", "method", ["ptq"]),
            ("quantization", "ranges", ["minmax"]),
            *(("quantization", kind, [usual]) for kind, usual in CALIBRATION.items()),
            ("pruning", "ramp", RampSection().model_dump(mode="json")),
            ("sparsity", "pattern", ["element"]),
        ):
            if said[section] is not None and said[section][key] == unsaid:
                del said[section][key]
        fixed["constraints"] = [constraint.text for constraint in self.constraints]
        return fixed


def parse_study(text: str, source: str) -> StudyFile:
    """The study file in `text`; `source` is how messages call it."""
    content = parse_yaml(text, source)
    try:
        return StudyFile.model_validate(content)
    except ValidationError as error:
        told = " ".join(_first_mistake(error).split())
        raise StudyError(f"{source}: {told}") from error


def _first_mistake(error: ValidationError) -> str:
    # An unknown key explains a missing one, so it is told first.
    mistakes = sorted(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    found = mistakes[0]
    # pydantic puts the names of union members into the location; keys of the file stay.
    keys = [k for k in found["loc"] if isinstance(k, int) or k in _all_keys()]
    where = ".".join(str(key) for key in (keys or found["loc"]))
    kind, value = found["type"], found["input"]
    if kind == "extra_forbidden":
        key = str(found["loc"][-1])
        parent = ".".join(str(k) for k in found["loc"][:-1] if k in _all_keys())
        inside = f" in '{parent}'" if parent else ""
        return f"unknown key '{key}'{inside}; {nearest(key, _keys_at(found['loc'][:-1]))}"
    if kind == "missing":
        return f"the key '{where}' is missing; see 'dse init' for a whole file"
    context = found.get("ctx", {})
    if kind in ("value_error", "assertion_error"):
        cause = context.get("error", found["msg"])
        if not where:
            return str(cause)
        return f"'{where}': {cause}" if isinstance(cause, _MistakeError) else f"'{where}' {cause}"
    if kind == "literal_error":
        allowed = str(context.get("expected", "")).replace("'", "").replace(" or ", ", ")
        words = [word.strip() for word in allowed.split(",")]
        return f"'{where}' is {value!r}; {nearest(str(value), words)}"
    wanted = _WANTED.get(kind, found["msg"].lower()).format(**context)
    return f"'{where}' is {short(value)}; allowed: {wanted}"


# What the kinds of pydantic's mistakes ask for.
_WHOLE, _MAPPING = "a whole number", "a mapping of keys"
_WANTED: Mapping[str, str] = {
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_from_float": _WHOLE,
    "float_type": "a number",
    "string_type": "a text (in quotes when it looks like something else)",
    "list_type": "a list",
    "dict_type": _MAPPING,
    "model_type": _MAPPING,
    "model_attributes_type": _MAPPING,
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "less_than": "below {lt}",
    "too_short": "at least {min_length} value",
    "string_too_short": "at least {min_length} character",
    "string_too_long": "at most {max_length} characters",
}


_SECTIONS: Mapping[str, type[BaseModel]] = {
    "": StudyFile,
    "space": SpaceSection,
    "pruning": Pruning,
    "ramp": RampSection,
    "low_rank": LowRank,
    "sparsity": Sparsity,
    "code_books": CodeBooksSection,
    "quantization": Quantization,
    "distillation": Distillation,
    "workload": BringYourOwn,
}


def _all_keys() -> set[str]:
    return {key for model in _SECTIONS.values() for key in model.model_fields}


def _keys_at(location: Sequence[int | str]) -> list[str]:
    names = [str(part) for part in location if str(part) in _SECTIONS]
    return list(_SECTIONS[names[-1] if names else ""].model_fields)


def read_study(path: Path) -> str:
    """The text of a study file; StudyError when it is not there or cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise StudyError(f"{path}: there is no such file; write one with 'dse init'") from error
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: cannot be read ({error})") from error
