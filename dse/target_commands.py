"""The verbs about targets, which need no study: boards, backends."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dse.options import FormatOption, JsonOption, chosen_form


def boards(
    directory: Annotated[
        Path | None, typer.Option("--boards", help="Folder with more board files.", metavar="DIR")
    ] = None,
    as_json: JsonOption = False,
    form: FormatOption = "table",
) -> None:
    """List the boards."""
    from dse.catalog import show_boards

    show_boards(directory, chosen_form(as_json, form))


def backends(as_json: JsonOption = False, form: FormatOption = "table") -> None:
    """List the backends and what each supports."""
    from dse.catalog import show_backends

    show_backends(chosen_form(as_json, form))


def register(app: typer.Typer) -> None:
    """Add the verbs of this file to the `dse` command."""
    for verb in (boards, backends):
        app.command()(verb)
