"""The verbs about targets, which need no study: boards, backends, estimate, calibrate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dse.options import FormatOption, JsonOption, chosen_form

BoardFolder = Annotated[
    Path | None, typer.Option("--boards", help="Folder with more board files.", metavar="DIR")
]
boards_app = typer.Typer(no_args_is_help=False)


@boards_app.callback(invoke_without_command=True)
def boards(
    context: typer.Context,
    directory: BoardFolder = None,
    as_json: JsonOption = False,
    form: FormatOption = "table",
) -> None:
    """List the boards; `dse boards show NAME` tells every figure of one."""
    from dse.catalog import show_boards

    if context.invoked_subcommand is None:
        show_boards(directory, chosen_form(as_json, form))
    else:
        context.obj = directory


@boards_app.command("show")
def show_one_board(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A board, as 'dse boards' lists it.")],
    directory: BoardFolder = None,
    as_json: JsonOption = False,
    form: FormatOption = "table",
) -> None:
    """Every figure of a board with its status and source."""
    from dse.catalog import show_board

    show_board(name, directory or context.obj, chosen_form(as_json, form))


def backends(as_json: JsonOption = False, form: FormatOption = "table") -> None:
    """List the backends and what each supports."""
    from dse.catalog import show_backends

    show_backends(chosen_form(as_json, form))


def estimate(
    model: Annotated[
        str, typer.Argument(help="A .tflite file, a workload's name, or module:function.")
    ],
    directory: Annotated[
        Path | None, typer.Option("--boards", help="Folder with more board files.", metavar="DIR")
    ] = None,
    board: Annotated[
        list[str] | None, typer.Option(help="Only this board; may be given again.")
    ] = None,
    backend: Annotated[
        list[str] | None, typer.Option(help="Only this backend; may be given again.")
    ] = None,
    clock: Annotated[str, typer.Option(help="max, all, or such as '80 MHz'.")] = "max",
    battery: Annotated[str | None, typer.Option(help="Such as 1000mAh; with --rate.")] = None,
    rate: Annotated[str | None, typer.Option(help="Inferences by s, min, h or day: 1/min.")] = None,
    cheapest: Annotated[
        list[str] | None,
        typer.Option(help="The cheapest board that meets 'latency <= 50 ms'; may be given again."),
    ] = None,
    shape: Annotated[str | None, typer.Option(help="Of a torch model's sample: 1x28x28.")] = None,
    as_is: Annotated[bool, typer.Option("--as-is", help="Keep dead channels.")] = False,
    as_json: JsonOption = False,
    form: FormatOption = "table",
) -> None:
    """Where a network fits, and what it costs there: every board and backend, no study."""
    from dse import estimate as costs
    from dse.battery import parse_use
    from dse.fit_matrix import show_estimate

    use, limits = parse_use(battery, rate), costs.parse_limits(cheapest or ())
    if ":" in model or not Path(model).suffix:
        network = costs.trace_model(model, shape, Path.cwd())
    else:
        network = costs.read_model(Path(model), as_is=as_is)
    targets, left_out = costs.select_targets(directory, board or (), backend or (), clock)
    found = costs.estimate(network, targets, left_out, use)
    answer = costs.cheapest(found, limits) if limits else None
    show_estimate(found, chosen_form(as_json, form), use, answer)
    if answer is not None and not answer.meets:
        raise typer.Exit(1)


def calibrate(
    measured: Annotated[Path, typer.Argument(help="CSV: board, backend, clock_mhz, model, ...")],
    out: Annotated[Path, typer.Option(help="Folder for the refitted board files.")] = Path(
        "my-boards"
    ),
    directory: BoardFolder = None,
    as_json: JsonOption = False,
    form: FormatOption = "table",
) -> None:
    """Refit your boards to latencies and currents that you measured."""
    from dse.calibrate import read_measurements, refit, write_profile
    from dse.catalog import show_profiles
    from dse.targets import load_boards

    profiles = refit(read_measurements(measured, load_boards(directory)))
    files = [write_profile(each, str(measured), out, directory) for each in profiles]
    chosen = chosen_form(as_json, form)
    show_profiles(profiles, files, chosen)
    if chosen == "table":
        typer.echo(f"Use them with --boards {out}")


def register(app: typer.Typer) -> None:
    """Add the verbs of this file to the `dse` command."""
    app.add_typer(boards_app, name="boards")
    for verb in (backends, estimate, calibrate):
        app.command()(verb)
