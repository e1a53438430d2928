"""Documents and example studies say what the program does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml
from pydantic import BaseModel

from dse import cli, space_section, study
from dse.samplers import SAMPLER_SETTINGS
from dse.study import StudyFile, parse_study, read_study
from dse.targets import load_backends, load_boards
from dse.trial import METRICS
from dse.units import UNITS
from dse.workloads import Recipe, workload_names
from tests.command_line import study_text

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "study-file.md"
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
STUDIES = sorted((ROOT / "studies").glob("*.yaml"))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, language: str = "[a-z]*") -> list[str]:
    """Fenced blocks of a document."""
    found = re.findall(rf"(?ms)^```({language})\n(.*?)^```", path.read_text(encoding="utf-8"))
    return [block for _, block in found]


def examples() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in DOCUMENTS:
        for block in blocks(path, "yaml"):
            yield f"{name(path)}: {block.splitlines()[0]}", yaml.safe_load(block)


EXAMPLES = dict(examples())
WHOLE = {label: found for label, found in EXAMPLES.items() if {"name", "objectives"} <= set(found)}


@pytest.mark.parametrize("label", WHOLE)
def test_whole_examples_are_valid(label: str) -> None:
    found = parse_study(yaml.safe_dump(WHOLE[label]), label)
    if isinstance(found.workload, str):
        assert found.workload in workload_names()
    assert set(found.space.boards) <= set(load_boards())
    assert set(found.space.backends) <= set(load_backends())


@pytest.mark.parametrize("label", [label for label in EXAMPLES if label not in WHOLE])
def test_examples_of_a_part_are_valid_in_a_study(label: str) -> None:
    content = EXAMPLES[label]
    sections = {"pruning", "low_rank", "sparsity", "code_books", "quantization", "distillation"}
    changes = {f"space.{key}" if key in sections else key: v for key, v in content.items()}
    found = parse_study(study_text(changes), label)
    section = found.space if sections & set(content) else found
    assert set(content) <= section.model_fields_set
    assert set(found.training) <= {field.name for field in fields(Recipe)}


def test_the_reference_shows_every_key_at_once() -> None:
    whole = WHOLE[f"{name(REFERENCE)}: name: keyword-small"]
    found = parse_study(yaml.safe_dump(whole), "reference")
    assert found.model_fields_set == set(StudyFile.model_fields)
    for section in _sections_of(found.space):
        assert section is not None
        left_out = set(type(section).model_fields) - section.model_fields_set
        # Budgets exclude low rank, sparsity and code books, so they have an example of their own.
        budgets = {"method", "budget"} if section is found.space.pruning else set()
        assert left_out <= {"skip"} | budgets


def _sections_of(space: space_section.SpaceSection) -> tuple[BaseModel | None, ...]:
    return space, space.pruning, space.quantization, space.distillation


SECTIONS: tuple[type[BaseModel], ...] = (
    StudyFile,
    study.BringYourOwn,
    space_section.SpaceSection,
    space_section.Pruning,
    space_section.BudgetSection,
    space_section.LowRank,
    space_section.Sparsity,
    space_section.CodeBooksSection,
    space_section.Quantization,
    space_section.Distillation,
    study.SamplerSection,
)


def test_every_key_is_explained_and_every_explained_key_exists() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    explained = set(re.findall(r"(?m)^\| `([^`]+)` \|", text))  # the first cell of every table
    keys = {key for model in SECTIONS for key in model.model_fields}
    keys |= {field.name for field in fields(Recipe)}
    words = {*METRICS, *SAMPLER_SETTINGS, *get_args(space_section.Granularity)}
    assert explained == keys | words


def test_every_setting_unit_and_choice_is_in_the_reference() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    choices = [
        *get_args(space_section.PruningMethod),
        *get_args(space_section.Criterion),
        *get_args(space_section.Schedule),
        *get_args(space_section.Precision),
    ]
    choices += [*get_args(space_section.Method), *get_args(space_section.RangesChoice)]
    later = (
        space_section.Factors,
        space_section.Scales,
        space_section.Equalization,
        space_section.WeightRounding,
        space_section.Biases,
    )
    choices += [word for kind in later for word in get_args(kind)]
    for word in (*choices, *(key for keys in SAMPLER_SETTINGS.values() for key in keys)):
        assert f"`{word}`" in text
    table = text[text.index("## Units") : text.index("## `workload`")]
    for unit in {unit for units in UNITS.values() for unit in units if "µ" not in unit}:
        assert re.search(rf"[| ]{unit}[, ]", table), unit


def commands() -> dict[str, Any]:
    command = typer.main.get_command(cli.app)
    assert isinstance(command, typer.core.TyperGroup)
    return dict(command.commands)


def mentioned(path: Path) -> set[str]:
    """Verbs in code: `dse VERB` in a line, or a line of a block that begins with it."""
    inline = re.findall(r"`dse ([a-z-]+)[^`]*`", path.read_text(encoding="utf-8"))
    return {*inline, *re.findall(r"(?m)^(?:\$ )?dse ([a-z-]+)", "\n".join(blocks(path)))}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_mentioned_commands_exist(path: Path) -> None:
    assert mentioned(path) <= set(commands())


def test_the_readme_names_every_command() -> None:
    shown = {verb for verb, command in commands().items() if not command.hidden}
    assert shown <= mentioned(ROOT / "README.md")


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        assert (path.parent / link).exists(), link


@pytest.mark.parametrize("path", STUDIES, ids=name)
def test_study_files_are_valid_and_say_how_to_run_them(path: Path) -> None:
    text = read_study(path)
    found = parse_study(text, path.name)
    assert found.name == path.stem
    assert f"dse run {name(path)}" in text


def test_there_are_documents_and_studies() -> None:
    assert len(STUDIES) >= 3
    assert len(WHOLE) >= 2
    assert len(EXAMPLES) >= 10
