"""Options that several verbs of the command line share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dse.tables import Format

StudyArgument = Annotated[
    str | None,
    typer.Argument(help="Name of a study, or its YAML file; may be left out if only one."),
]
StorageOption = Annotated[
    str | None, typer.Option(envvar="DSE_STORAGE", help="Database URL, such as sqlite:///dse.db.")
]
BoardsOption = Annotated[
    Path | None, typer.Option(help="Folder with more board files (TOML).", metavar="DIR")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
FormatOption = Annotated[Format, typer.Option("--format", help="table, json or csv.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="A line for every trial.")]
TrialsOption = Annotated[int | None, typer.Option("--n-trials", min=3, help="Proposals in all.")]
TimeoutOption = Annotated[str | None, typer.Option(help="Stop after this time, such as '10 min'.")]


def chosen_form(as_json: bool, form: Format) -> Format:
    """`--json` is short for `--format json`."""
    return "json" if as_json else form
