"""The study file: what it means, what it forgives, and that no content breaks it."""

from __future__ import annotations

import copy
import json
import re
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dse.errors import StudyError
from dse.samplers import SAMPLER_SETTINGS
from dse.study import StudyFile, parse_study, read_study
from dse.study_yaml import difference, override_study
from dse.trial import METRICS
from tests.command_line import STUDY, Dse, study_text

COSTS = [name for name in METRICS if name != "accuracy"]


def parse(content: Any) -> StudyFile:
    return parse_study(yaml.safe_dump(content, sort_keys=False), "study.yaml")


def some(values: list[Any]) -> st.SearchStrategy[Any]:
    """One of the values alone, or several as a list."""
    return st.sampled_from(values) | st.lists(st.sampled_from(values), min_size=1, unique=True)


GRANULARITY = st.sampled_from(["per-layer", "per-stage", "global"])
SKIP = st.lists(st.sampled_from(["conv1", "fc1"]), unique=True)
RATIO = some([0, 0.1, 0.5, 0.875]) | st.just({"low": 0, "high": 0.5, "step": 0.25})
STUDIES = st.fixed_dictionaries(
    {
        "name": st.text(min_size=1, max_size=20),
        "workload": st.sampled_from(["digits", {"model": "m:f", "data": "d:f"}]),
        "space": st.fixed_dictionaries(
            {"boards": some(["rpi_pico", "mine"]), "backends": some(["native", "cmsis-nn"])},
            optional={
                "pruning": st.fixed_dictionaries(
                    {"ratio": RATIO},
                    optional={
                        "granularity": GRANULARITY,
                        "criterion": some(["l1", "l2", "bn", "taylor", "apoz", "random"]),
                        "schedule": some(["one-shot", "agp", "dynamic"]),
                        "ramp": st.just({"start": [0, 0.1], "end": 0.8, "updates": [4, 8]}),
                        "skip": SKIP,
                    },
                ),
                "sparsity": st.fixed_dictionaries(
                    {"ratio": RATIO},
                    optional={
                        "granularity": GRANULARITY,
                        "pattern": some(["element", "1x4", "4x4"]),
                        "skip": SKIP,
                    },
                ),
                "code_books": st.fixed_dictionaries(
                    {"entries": some([0, 4, 16, 200, 256])},
                    optional={
                        "granularity": GRANULARITY,
                        "vector": some([1, 2, 4]),
                        "skip": SKIP,
                    },
                ),
                "quantization": st.fixed_dictionaries(
                    {},
                    optional={
                        "granularity": GRANULARITY,
                        "weight_bits": some([2, 3, 8]),
                        "precision": some(["int8", "int16", "float32"]),
                        "method": some(["ptq", "qat"]),
                        "ranges": some(["minmax", "percentile", "mse"]),
                        "scales": some(["channel", "tensor"]),
                        "equalization": some(["none", "cross-layer"]),
                        "rounding": some(["nearest", "adaptive"]),
                        "biases": some(["rounded", "corrected"]),
                        "skip": SKIP,
                    },
                ),
                "distillation": st.fixed_dictionaries(
                    {"weight": some([0, 0.5, 1.0])}, optional={"temperature": some([1, 4.5])}
                ),
                "clocks": some(["max", "all", "80 MHz", "0.5 MHz"]),
                "alignment": st.integers(1, 64),
            },
        ),
        "objectives": st.lists(st.sampled_from(COSTS), min_size=1, max_size=4, unique=True).map(
            lambda costs: ["accuracy", *costs]
        ),
    },
    optional={
        "training": st.just({"epochs": 3}),
        "constraints": some(["ram <= 64 KiB", "accuracy >= baseline - 1 %"]),
        "sampler": st.sampled_from([*SAMPLER_SETTINGS, {"name": "nsga2", "population_size": 9}]),
        "seed": st.integers(0, 2**31 - 1),
        "n_trials": st.integers(3, 10**6),
        "timeout": st.sampled_from(["90 s", "1.5 h"]),
        "storage": st.just("sqlite:///x.db"),
    },
)


@given(STUDIES)
def test_every_key_is_read_and_can_be_compared(content: dict[str, Any]) -> None:
    study = parse(content)
    assert study == parse(content)
    searched = json.loads(json.dumps(study.searchable()))
    assert difference(searched, parse(content).searchable()) == []
    assert study.objectives == content["objectives"]
    assert [c.text for c in study.constraints] == searched["constraints"]


@given(STUDIES, STUDIES)
def test_a_difference_is_told_unless_the_search_is_the_same(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    before, after = parse(one).searchable(), parse(other).searchable()
    assert (difference(before, after) == []) == (before == after)


@given(STUDIES, st.sampled_from(list(SAMPLER_SETTINGS)), st.integers(0, 99))
def test_flags_go_before_the_file(content: dict[str, Any], sampler: str, seed: int) -> None:
    text = yaml.safe_dump(content)
    assert override_study(text, "s", sampler=None, seed=None) == text
    study = parse_study(override_study(text, "s", sampler=sampler, seed=seed), "s")
    assert (study.sampler.name, study.sampler.settings, study.seed) == (sampler, {}, seed)
    changed = {*difference(parse(content).searchable(), study.searchable())}
    assert all(line.startswith(("sampler", "seed")) for line in changed)


# --- no content breaks it -----------------------------------------------------------------------

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["ram <= ", "5 KiB", "max", "tpe", "a:b", "\n", "1e999 s"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "low", "ratio", "x"]) | st.integers(), inner)
    ),
    max_leaves=4,
)


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of every value in nested mappings and lists."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(content, dict):
        pairs = list(content.items())
    elif isinstance(content, list):
        pairs = list(enumerate(content))
    return [path, *(place for key, value in pairs for place in places(value, (*path, key)))]


@given(STUDIES, st.data())
def test_any_value_anywhere_is_taken_or_refused_in_one_sentence(
    content: dict[str, Any], data: st.DataObject
) -> None:
    content = copy.deepcopy(content)
    *parents, last = data.draw(st.sampled_from(places(content)[1:]))
    section: Any = content
    for key in parents:
        section = section[key]
    section[last] = data.draw(ANYTHING)
    with suppress(StudyError):
        assert parse(content).name
        return
    with pytest.raises(StudyError, match=r"^study.yaml: [^\n]+$"):
        parse(content)


@given(st.text(max_size=40) | st.text("ab:- \n\t[]{}?&*!|>'\"#%@`0", max_size=40))
def test_any_text_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(StudyError, match=r"^s: [^\n]+$"):
        parse_study(text, "s")


# --- what it means ------------------------------------------------------------------------------


def test_what_is_left_out_or_left_empty_has_its_default() -> None:
    least = parse_study(
        "name: x\nworkload: digits\nspace: {boards: rpi_pico, backends: native}\n"
        "objectives: [accuracy, ram]\nconstraints:\ntraining:\ntimeout:\nsampler:\n",
        "s",
    )
    assert least.space.pruning is None
    assert least.space.sparsity is None
    assert least.space.quantization.weight_bits == [8]
    assert least.space.quantization.precision == ["int8"]
    assert least.space.clocks == ["max"]
    assert least.space.alignment is None
    assert (least.sampler.name, least.sampler.settings) == ("auto", {})
    assert (least.training, least.constraints, least.timeout, least.storage) == ({}, [], None, None)
    assert (least.seed, least.n_trials) == (0, 100)


def changed(path: str, value: Any) -> StudyFile:
    return parse_study(study_text({path: value}), "s")


def test_a_single_value_is_a_list_of_one() -> None:
    for path, value in {
        "space.pruning.ratio": 0.5,
        "space.pruning.criterion": "l1",
        "space.pruning.skip": "conv1",
        "space.quantization.weight_bits": 4,
        "space.boards": "rpi_pico",
        "space.clocks": "48 MHz",
        "constraints": "ram <= 5 KiB",
    }.items():
        assert changed(path, value).searchable() == changed(path, [value]).searchable()


@pytest.mark.parametrize(
    ("steps", "values"),
    [
        ({"low": 0, "high": 0.875, "step": 0.125}, [0, *(i / 8 for i in range(1, 8))]),
        ({"low": 0, "high": 0.3, "step": 0.1}, [0, 0.1, 0.2, 0.3]),
        ({"low": 0.2, "high": 0.5, "step": 0.2}, [0.2, 0.4]),
        ({"low": 0.5, "high": 0.5, "step": 1}, [0.5]),
    ],
)
def test_steps_are_the_list_they_mean(steps: dict[str, float], values: list[float]) -> None:
    pruning = changed("space.pruning.ratio", steps).space.pruning
    assert pruning is not None
    assert pruning.ratio == values


def test_numbers_as_people_and_other_tools_write_them() -> None:
    text = study_text() + "sampler: {name: nsga2, mutation_prob: 1e-2}\n"
    text = text.replace("epochs: 1", "learning_rate: 2e-3", 1)
    study = parse_study(text, "s")
    assert study.training["learning_rate"] == 0.002
    assert study.sampler.settings == {"mutation_prob": 0.01}
    assert changed("timeout", "1.5 h").timeout == 5400
    clocks = changed("space.clocks", ["84 MHz", "max"]).space.clocks
    assert clocks == [84_000_000, "max"]


def test_a_difference_names_key_and_both_values() -> None:
    before = parse_study(study_text(), "s").searchable()
    after = changed("space.pruning.ratio", [0, 0.25]).searchable()
    assert difference(before, after) == [
        "space.pruning.ratio was [0.0, 0.5] and is now [0.0, 0.25]"
    ]
    for path in ("space.sparsity", "space.pruning"):
        lines = difference(before, changed(path, {"ratio": 0.75}).searchable())
        assert lines
        assert all(line.startswith(path) for line in lines)


@pytest.mark.parametrize(
    ("key", "value"),
    [("name", "other"), ("n_trials", 99), ("timeout", "1 h"), ("storage", "sqlite:///y.db")],
)
def test_what_a_resumed_study_may_change(key: str, value: Any) -> None:
    same = difference(parse_study(study_text(), "s").searchable(), changed(key, value).searchable())
    assert same == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("workload", "lenet5-mnist"),
        ("training", {"epochs": 2}),
        ("space.boards", ["nano33ble"]),
        ("objectives", ["accuracy", "ram"]),
        ("constraints", []),
        ("sampler", "random"),
        ("seed", 1),
    ],
)
def test_what_a_resumed_study_may_not_change(key: str, value: Any) -> None:
    lines = difference(
        parse_study(study_text(), "s").searchable(), changed(key, value).searchable()
    )
    assert lines
    assert all(line.startswith(key) for line in lines)


def test_reading_a_file(tmp_path: Path) -> None:
    path = tmp_path / "größer.yaml"
    path.write_text("name: größer\n", encoding="utf-8")
    assert read_study(path) == "name: größer\n"
    with pytest.raises(StudyError, match="no such file; write one with 'dse init'"):
        read_study(tmp_path / "none.yaml")
    with pytest.raises(StudyError, match="cannot be read"):
        read_study(tmp_path)


# --- the file that dse init writes --------------------------------------------------------------


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Dse:
    return Dse(tmp_path, monkeypatch, capsys)


def test_the_written_file_is_ready_to_run(command: Dse) -> None:
    ended = command("init", "mine.yaml")
    assert (ended.code, ended.err) == (0, "")
    assert "dse run mine.yaml --dry-run" in ended.out
    assert parse_study(read_study(Path("mine.yaml")), "mine.yaml").name == "mine"
    ended = command("run", "mine.yaml", "--dry-run")
    assert (ended.code, ended.err) == (0, "")
    assert "targets" in ended.out
    assert [path.name for path in command.folder.iterdir()] == ["mine.yaml"]


def test_force_overwrites(command: Dse) -> None:
    command.write("mine", "mine.yaml")
    command("init", "mine.yaml").refused("mine.yaml exists", "--force")
    assert read_study(Path("mine.yaml")) == "mine"
    assert command("init", "mine.yaml", "--force").code == 0
    assert read_study(Path("mine.yaml")) != "mine"


# They exclude other sections of the file.
BUDGET_LINES = ("# method: [ratio", "# budget:  ", "#   memory:", "#   size: [1", "#   macs: [1")


def test_every_commented_key_of_the_written_file_is_valid() -> None:
    template = files("dse").joinpath("study_template.yaml").read_text(encoding="utf-8")
    text = template.format(name="mine", path="mine.yaml")
    # What has an example already, or is the other way to say it, stays a comment.
    other = ("# workload:", "#   model:", "#   data:", "# sampler: {")
    for line in (*other, *BUDGET_LINES):
        assert line in text
        text = text.replace(line, line.replace("#", "#!"))
    whole = parse_study(re.sub(r"(?m)^( *)# ((?:  )?(?:[a-z_]+:|- ))", r"\1\2", text), "s")
    with_budgets = template.format(name="mine", path="mine.yaml")
    for line in BUDGET_LINES:
        with_budgets = with_budgets.replace(line, line[2:])
    pruning = parse_study(with_budgets, "s").space.pruning
    assert pruning is not None
    assert pruning.budget is not None
    assert (pruning.method, pruning.budget.memory) == (["ratio", "budget"], [1.0, 0.5])
    assert {**STUDY, "timeout": 0, "storage": 0}.keys() <= whole.model_fields_set | {"seed"}
    assert whole.space.pruning is not None
    assert whole.space.pruning.skip == ["conv1"]
    assert whole.space.sparsity is not None
    assert {"clocks", "alignment", "sparsity"} <= whole.space.model_fields_set
    assert len(whole.constraints) == 4
    assert whole.training == {"epochs": 30, "fine_tune_epochs": 10, "batch_size": 64}
