"""The study file: what is asked, in YAML; a mistake is one sentence with file, key and value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

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
from dse.samplers import SAMPLER_SETTINGS, check_settings
from dse.space_section import (
    BudgetSection,
    CodeBooksSection,
    Distillation,
    LowRank,
    MistakeError,
    Pruning,
    Quantization,
    RampSection,
    Section,
    SpaceSection,
    Sparsity,
    Whole,
    as_list,
    told,
    unique,
)
from dse.study_yaml import parse_yaml, short
from dse.trial import METRICS, MetricName
from dse.units import parse_quantity


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


class BringYourOwn(Section):
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


class StudyFile(Section):
    """The whole file."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    workload: Annotated[
        Annotated[str, Tag("one by name")] | Annotated[BringYourOwn, Tag("one's own")],
        Discriminator(
            lambda v: "one's own" if isinstance(v, dict | BringYourOwn) else "one by name"
        ),
    ]
    training: dict[str, Any] = Field(default_factory=dict)
    space: SpaceSection
    objectives: Annotated[
        list[Annotated[MetricName, BeforeValidator(_metric)]],
        BeforeValidator(as_list),
        AfterValidator(unique),
        AfterValidator(_objectives),
    ]
    constraints: Annotated[
        list[Annotated[Constraint, BeforeValidator(told(_constraint))]], BeforeValidator(as_list)
    ] = Field(default_factory=list)
    sampler: Annotated[SamplerSection, BeforeValidator(told(_sampler))] = SamplerSection(
        name="auto"
    )
    seed: Annotated[Whole, Field(ge=0, lt=2**31)] = 0
    n_trials: Annotated[Whole, Field(ge=3, le=1_000_000)] = 100
    timeout: Annotated[float | None, BeforeValidator(told(_seconds))] = None
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
            ("pruning", "method", ["ratio"]),
            ("pruning", "budget", None),
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
        said = " ".join(_first_mistake(error).split())
        raise StudyError(f"{source}: {said}") from error


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
        return f"'{where}': {cause}" if isinstance(cause, MistakeError) else f"'{where}' {cause}"
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
    "budget": BudgetSection,
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
