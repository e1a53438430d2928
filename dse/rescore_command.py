"""`dse rescore`: stored trials on other targets or by a changed cost model, without training."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dse.options import BoardsOption, JsonOption, StorageOption, StudyArgument


def rescore(
    study: StudyArgument = None,
    storage: StorageOption = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="BOARD/BACKEND, or with /CLOCK; may be given again. Default: each trial's own."
        ),
    ] = None,
    boards: BoardsOption = None,
    label: Annotated[
        str | None, typer.Option(help="The new study is STUDY@LABEL; default: rescored.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Cost stored trials on other targets, or anew; a study STUDY@LABEL beside the old one."""
    from dse.database import without_password
    from dse.launch import DEFAULT_STORAGE, only_study
    from dse.rescore import rescore as run
    from dse.storage import Storage
    from dse.study import parse_study, read_study

    name, url = study, storage
    if study is not None and study.endswith((".yaml", ".yml")):
        found = parse_study(read_study(Path(study)), study)
        name, url = found.name, storage or found.storage
    url = url or DEFAULT_STORAGE
    with Storage(url) as opened:
        if name is None:
            whole = [found.name for found in opened.studies() if "@" not in found.name]
            name = only_study(whole, url)
        done = run(opened, name, label, target or (), boards)
    if as_json:
        print(json.dumps(asdict(done), indent=2))
        return
    print(
        f"{done.trials} trials costed anew as '{done.study}': {done.feasible} feasible "
        f"({done.feasible_before} of '{name}'); nothing was trained"
    )
    if done.never_trained:
        print(f"{done.never_trained} would fit now, but were never trained; a study would")
    for line in done.left_out:
        print(f"left out: {line}")
    print(f"look at it: dse front '{done.study}' --storage {without_password(url)}")


def register(app: typer.Typer) -> None:
    """Add the verb to the `dse` command."""
    app.command()(rescore)
