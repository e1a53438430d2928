"""Every command explains itself."""

from __future__ import annotations

import click
import pytest
import typer
from typer.testing import CliRunner

from dse.cli import app


def paths() -> list[tuple[str, ...]]:
    """Every command and group, by the words that call it."""
    found: list[tuple[str, ...]] = []

    def walk(command: object, words: tuple[str, ...]) -> None:
        found.append(words)
        for name, below in getattr(command, "commands", {}).items():
            walk(below, (*words, name))

    walk(typer.main.get_command(app), ())
    return found


def test_there_are_commands() -> None:
    assert {("run",), ("boards", "show"), ("rescore",)} <= set(paths())


@pytest.mark.parametrize("words", paths(), ids=" ".join)
def test_every_command_explains_itself(words: tuple[str, ...]) -> None:
    ended = CliRunner().invoke(app, [*words, "--help"])
    assert ended.exit_code == 0, ended.exception
    assert "Usage:" in click.unstyle(ended.output)
