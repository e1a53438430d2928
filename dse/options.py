"""Options that several verbs of the command line share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from dse.errors import StudyError
from dse.ray_executor import Cluster, Share
from dse.tables import Format
from dse.units import Dimension, parse_quantity
from dse.workers import Limits

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

WorkersOption = Annotated[
    int, typer.Option("--workers", "-w", min=1, help="Trials at a time, each in its own process.")
]
MemoryOption = Annotated[
    str | None, typer.Option(help="What a trial's process may use, such as '4 GiB'.")
]
TrialTimeoutOption = Annotated[
    str | None, typer.Option(help="What a trial may take, such as '30 min'.")
]
SlotOption = Annotated[
    list[str] | None,
    typer.Option(help="What this machine has, such as gpu=0; shown by 'dse status'. Repeat."),
]


ExecutorOption = Annotated[
    Literal["local", "ray"], typer.Option(help="Where trainings run: on this machine, or on Ray.")
]
AddressOption = Annotated[
    str | None, typer.Option(help="The Ray cluster, such as HOST:6379; default: one started here.")
]
CoresOption = Annotated[
    float | None, typer.Option("--trial-cores", help="Cores that a trial asks of Ray.")
]
GpusOption = Annotated[
    float | None, typer.Option("--trial-gpus", help="GPUs that a trial asks of Ray.")
]
ArtifactsOption = Annotated[
    str | None,
    typer.Option(
        "--artifacts",
        envvar="DSE_ARTIFACTS",
        help="Store for networks outside the database: file:///folder or s3://bucket/folder.",
    ),
]


def cluster_of(
    executor: str, address: str | None, cores: float | None, gpus: float | None
) -> Cluster | None:
    """The Ray cluster that was asked for; raises StudyError for its options without it."""
    if executor == "ray":
        given = {"cores": cores, "gpus": gpus}
        share = Share(**{name: value for name, value in given.items() if value is not None})
        return Cluster(address, share)
    options = {"--address": address, "--trial-cores": cores, "--trial-gpus": gpus}
    for name, value in options.items():
        if value is not None:
            raise StudyError(f"{name} is for --executor ray; the executor is '{executor}'")
    return None


def limits_of(memory: str | None, trial_timeout: str | None) -> Limits:
    """What a trial may use; raises StudyError for what is no quantity above 0."""
    return Limits(
        None if memory is None else round(_above_zero("--memory", memory, "bytes")),
        None if trial_timeout is None else _above_zero("--trial-timeout", trial_timeout, "seconds"),
    )


def seconds_of(timeout: str | None) -> float | None:
    """`--timeout` in seconds; raises StudyError for what is no time above 0."""
    return None if timeout is None else _above_zero("--timeout", timeout, "seconds")


def _above_zero(flag: str, text: str, dimension: Dimension) -> float:
    try:
        found = parse_quantity(text, dimension)
    except StudyError as error:
        raise StudyError(f"{flag}: {error}") from error
    if found <= 0:
        raise StudyError(f"{flag} is '{text}'; allowed: above 0")
    return found


def slot_of(labels: list[str] | None) -> dict[str, str]:
    """`gpu=0` and the like by name; raises StudyError for what has no '='."""
    wrong = [label for label in labels or [] if "=" not in label.strip("=")]
    if wrong:
        raise StudyError(f"--slot is '{wrong[0]}'; allowed: NAME=VALUE, such as gpu=0")
    pairs = (label.split("=", 1) for label in labels or [])
    return {name.strip(): value.strip() for name, value in pairs}


def chosen_form(as_json: bool, form: Format) -> Format:
    """`--json` is short for `--format json`."""
    return "json" if as_json else form
