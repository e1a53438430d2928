"""The verbs with which people decide: the choices of `front`, `compare`, `browse`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from dse.errors import DseError, StudyError
from dse.options import JsonOption, StorageOption
from dse.tables import FRONT_COLUMNS, Format, front_rows, show, show_front

if TYPE_CHECKING:
    from dse.choose import Choice
    from dse.overview import Overview
    from dse.rows import StudyRecord
    from dse.storage import Storage

INSTALL = 'dse browse needs Dash, which is not installed; pip install "dse[browse]"'


def show_chosen(
    storage: Storage,
    record: StudyRecord,
    form: Format,
    *,
    where: str | None,
    knee: bool,
    cheapest: str | None,
) -> None:
    """Print the designs that `front --where, --knee, --cheapest` ask for, each with its why."""
    from dse.choose import best_rows, cheapest_choice, knee_choice
    from dse.filter import both
    from dse.overview import read_overview
    from dse.targets import load_boards

    overview = read_overview(storage, record.name)
    found: list[Choice] = []
    if knee:
        found.append(knee_choice(overview, where or ""))
    if cheapest is not None:
        found.append(cheapest_choice(overview, both(cheapest, where), load_boards()))
    if found:
        _show_choices(storage, overview, found, form)
        return
    numbers = [int(row) for row in best_rows(overview, where or "")]
    trials = [storage.trial(record.name, number) for number in numbers]
    trials.sort(key=lambda trial: -(trial.value("accuracy") or 0))
    title = f"{record.name}: {len(trials)} designs on the front of those with {where}"
    show_front(record, trials, storage.trial(record.name, 0), form, title)


def _show_choices(storage: Storage, overview: Overview, found: list[Choice], form: Format) -> None:
    record = overview.record
    trials = [storage.trial(record.name, choice.number) for choice in found]
    first = storage.trial(record.name, 0)
    if form != "table":
        rows = [
            {"choice": choice.title, "why": choice.why, **row}
            for choice, row in zip(found, front_rows(trials, first), strict=True)
        ]
        show(rows, ["choice", "why", *FRONT_COLUMNS], form)
        return
    for choice, trial in zip(found, trials, strict=True):
        title = f"{choice.title} of {record.name}: trial {choice.number}"
        show_front(record, [trial], first, form, title)
        print(choice.why)


def compare(
    first: Annotated[str, typer.Argument(help="Name of a study.")],
    second: Annotated[str, typer.Argument(help="Name of the other study.")],
    storage: StorageOption = None,
    other_storage: Annotated[
        str | None, typer.Option(help="Database of the other study, if not the same.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Two studies on one reference point: hypervolume, fronts, speed, best of each objective."""
    from dse.compare import compare as compared
    from dse.launch import DEFAULT_STORAGE
    from dse.overview import read_overview
    from dse.storage import Storage

    url = storage or DEFAULT_STORAGE
    with Storage.open_readonly(url) as opened:
        one = read_overview(opened, first)
    with Storage.open_readonly(other_storage or url) as opened:
        other = read_overview(opened, second)
    found = compared(one, other)
    if as_json:
        print(json.dumps(found.to_json(), indent=2))
        return
    rows = found.rows()
    show(rows, list(rows[0]), "table")
    print(found.sentence())


def browse(
    storage: StorageOption = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than loopback need a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free port.")] = 8050,
) -> None:
    """Serve the page on which people decide: linked views, live, a page for every design."""
    from dse.launch import DEFAULT_STORAGE

    try:
        from dse.browse.server import serve
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("dash", "flask", "werkzeug"):
            raise
        raise DseError(INSTALL) from error
    if not host.strip():
        raise StudyError("--host is empty; allowed: an address such as 127.0.0.1")
    serve(storage or DEFAULT_STORAGE, host, port, lambda line: print(line, flush=True))


def register(app: typer.Typer) -> None:
    """Add the verbs of this file to the `dse` command."""
    for verb in (compare, browse):
        app.command()(verb)
