"""The study file: what is asked, in YAML; a mistake is one sentence with file, key and value."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from dse.constraints import Constraint, parse_constraint
from dse.errors import StudyError, nearest
from dse.samplers import SAMPLER_SETTINGS, check_settings
from dse.trial import METRICS, MetricName
from dse.units import parse_quantity

Granularity = Literal["per-layer", "per-stage", "global"]
Criterion = Literal["l1", "l2", "bn", "taylor", "random"]
Schedule = Literal["one-shot", "agp"]
Precision = Literal["int8", "float32"]


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
        raise ValueError(f"runs from {low} to {high} by {step}; allowed: low <= high, step > 0")
    count = int((high - low) / step + 1e-9) + 1
    if count > 1000:
        raise ValueError(f"has {count} steps; allowed: up to 1000")
    return [round(low + index * step, 10) for index in range(count)]


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"has {key} = {value!r}; allowed: a number")
    return float(value)


def _share(value: float) -> float:
    if not 0 <= value < 1:
        raise ValueError(f"holds {value:g}; allowed: 0 (nothing removed) up to, not including, 1")
    return value


def _weight_bits(value: int) -> int:
    if not 2 <= value <= 8:
        raise ValueError(f"holds {value}; allowed: 2 to 8 bits")
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


def _clock(value: Any) -> Any:
    if value in ("max", "all"):
        return value
    if not isinstance(value, str):
        raise ValueError(f"holds {value!r}; allowed: 'max', 'all' or frequencies like '80 MHz'")
    return round(parse_quantity(value, "hertz"))


Share = Annotated[float, AfterValidator(_share)]
Shares = Annotated[
    list[Share], BeforeValidator(_grid), Field(min_length=1), AfterValidator(_unique)
]
Names = Annotated[
    list[str], BeforeValidator(_as_list), Field(min_length=1), AfterValidator(_unique)
]


class _Section(BaseModel):
    """A mapping of the file: unknown keys are refused, values are not coerced."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Pruning(_Section):
    """Structured pruning: whole output channels are removed."""

    granularity: Granularity = "per-layer"
    ratio: Shares
    criterion: Annotated[
        list[Criterion], BeforeValidator(_as_list), Field(min_length=1), AfterValidator(_unique)
    ] = ["l2"]
    schedule: Annotated[
        list[Schedule], BeforeValidator(_as_list), Field(min_length=1), AfterValidator(_unique)
    ] = ["one-shot"]
    skip: list[str] = []


class Sparsity(_Section):
    """Element-wise magnitude pruning: single weights become zero."""

    granularity: Granularity = "global"
    ratio: Shares
    skip: list[str] = []


class Quantization(_Section):
    """Weight widths by layer; activations are int8 (or the whole network float32)."""

    granularity: Granularity = "per-layer"
    weight_bits: Annotated[
        list[Annotated[int, AfterValidator(_weight_bits)]],
        BeforeValidator(_as_list),
        Field(min_length=1),
        AfterValidator(_unique),
    ] = [8]
    precision: Annotated[
        list[Precision], BeforeValidator(_as_list), Field(min_length=1), AfterValidator(_unique)
    ] = ["int8"]
    skip: list[str] = []


class SpaceSection(_Section):
    """What may be varied."""

    pruning: Pruning | None = None
    sparsity: Sparsity | None = None
    quantization: Quantization = Quantization()
    boards: Names
    backends: Names
    clocks: Annotated[
        list[Annotated[Any, BeforeValidator(_told(_clock))]],
        BeforeValidator(_as_list),
        Field(min_length=1),
    ] = ["max"]
    alignment: Annotated[int, Field(ge=1, le=64)] | None = None


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
        raise ValueError(f"is {value!r}; {nearest('', SAMPLER_SETTINGS)}")
    settings = {key: found for key, found in section.items() if key != "name"}
    check_settings(section["name"], settings)
    return section


class StudyFile(_Section):
    """The whole file."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    workload: str | BringYourOwn
    training: dict[str, Any] = {}
    space: SpaceSection
    objectives: Annotated[
        list[Annotated[MetricName, BeforeValidator(_metric)]],
        Field(min_length=2, max_length=5),
        AfterValidator(_unique),
    ]
    constraints: list[Annotated[Constraint, BeforeValidator(_told(_constraint))]] = []
    sampler: Annotated[SamplerSection, BeforeValidator(_told(_sampler))] = SamplerSection(
        name="tpe"
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    n_trials: Annotated[int, Field(ge=3, le=1_000_000)] = 100
    timeout: Annotated[float | None, BeforeValidator(_told(_seconds))] = None
    storage: str | None = None

    @model_validator(mode="after")
    def _one_accuracy(self) -> StudyFile:
        if "accuracy" not in self.objectives:
            raise ValueError(
                f"objectives are {', '.join(self.objectives)}; accuracy must be one of them"
            )
        return self

    def searchable(self) -> Mapping[str, Any]:
        """What a resumed study may not change: workload, training, space, objectives, limits."""
        fixed = self.model_dump(mode="json", exclude={"n_trials", "timeout", "storage", "name"})
        fixed["constraints"] = [constraint.text for constraint in self.constraints]
        return fixed


def parse_study(text: str, source: str) -> StudyFile:
    """The study file in `text`; `source` is how messages call it."""
    content = _parse_yaml(text, source)
    try:
        return StudyFile.model_validate(content)
    except ValidationError as error:
        raise StudyError(f"{source}: {_first_mistake(error)}") from error


class _Loader(yaml.SafeLoader):
    """A YAML loader that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping; a repeated key is an error with its line."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise StudyError(f"key '{key}' is given twice (line {line}); keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str, source: str) -> dict[str, Any]:
    try:
        content = yaml.load(text, Loader=_Loader)
    except StudyError as error:
        raise StudyError(f"{source}: {error}") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise StudyError(f"{source}: line {line} is not YAML ({error.problem})") from error
    except yaml.YAMLError as error:
        raise StudyError(f"{source}: this is not YAML ({error})") from error
    if not isinstance(content, dict):
        raise StudyError(
            f"{source}: holds {type(content).__name__}, not a mapping of keys; see 'dse init'"
        )
    return content


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
    return f"'{where}' is {_short(value)}; {found['msg'].lower()}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_SECTIONS: Mapping[str, type[BaseModel]] = {
    "": StudyFile,
    "space": SpaceSection,
    "pruning": Pruning,
    "sparsity": Sparsity,
    "quantization": Quantization,
    "workload": BringYourOwn,
    "BringYourOwn": BringYourOwn,
}


def _all_keys() -> set[str]:
    return {key for model in _SECTIONS.values() for key in model.model_fields}


def _keys_at(location: Sequence[int | str]) -> list[str]:
    names = [str(part) for part in location if str(part) in _SECTIONS]
    return list(_SECTIONS[names[-1] if names else ""].model_fields)


def difference(stored: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Sentences for what differs between two `searchable()` mappings, by key path."""
    return _differences("", stored, found)


def _differences(path: str, one: Any, other: Any) -> list[str]:
    if one == other:
        return []
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        lines: list[str] = []
        for key in sorted({*one, *other}):
            inner = f"{path}.{key}" if path else str(key)
            lines += _differences(inner, one.get(key), other.get(key))
        return lines
    return [f"{path} was {_short(one)} and is now {_short(other)}"]


def read_study(path: Path) -> str:
    """The text of a study file; StudyError when it is not there or cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise StudyError(f"{path}: there is no such file; write one with 'dse init'") from error
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: cannot be read ({error})") from error


def override_study(text: str, source: str, *, sampler: str | None, seed: int | None) -> str:
    """The file's text with what flags replace; unchanged text when there is nothing to replace."""
    changes = {"sampler": sampler, "seed": seed}
    given = {key: value for key, value in changes.items() if value is not None}
    if not given:
        return text
    content = _parse_yaml(text, source) | given
    return yaml.safe_dump(content, sort_keys=False)
