"""The `dse` command: one thin function a verb. Bad input is one sentence and exit code 2."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from dse import (
    database_commands,
    deciding_commands,
    rescore_command,
    target_commands,
    worker_commands,
)
from dse.errors import DseError, StudyError
from dse.options import (
    AddressOption,
    ArtifactsOption,
    BoardsOption,
    CoresOption,
    ExecutorOption,
    FormatOption,
    GpusOption,
    JsonOption,
    MemoryOption,
    QuietOption,
    StorageOption,
    StudyArgument,
    TimeoutOption,
    TrialsOption,
    TrialTimeoutOption,
    VerboseOption,
    WorkersOption,
    chosen_form,
    cluster_of,
    limits_of,
    seconds_of,
)
from dse.tables import ExportFormat, Format, show, show_front

if TYPE_CHECKING:
    from dse.rows import StudyRecord
    from dse.storage import Storage
    from dse.trial import Trial

app = typer.Typer(
    name="dse",
    help="Explore pruning x quantization x backend x board for networks on microcontrollers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point: errors of the user become one line and exit code 2."""
    try:
        app()
    except DseError as error:
        message = " ".join(str(error).split())
        Console(stderr=True, soft_wrap=True).print(
            f"dse: {message}", style="red", highlight=False, markup=False
        )
        sys.exit(2)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Study file to write.")] = Path("study.yaml"),
    force: Annotated[bool, typer.Option(help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented study file."""
    from importlib.resources import files

    if path.exists() and not force:
        raise StudyError(f"{path} exists already; choose another name or give --force")
    template = files("dse").joinpath("study_template.yaml").read_text(encoding="utf-8")
    try:
        path.write_text(template.format(name=path.stem, path=path), encoding="utf-8")
    except OSError as error:
        raise StudyError(f"{path} cannot be written ({error.strerror})") from error
    print(f"wrote {path}; check it with: dse run {path} --dry-run")


@app.command()
def run(
    study: Annotated[Path, typer.Argument(help="Study file (YAML).")],
    storage: StorageOption = None,
    study_name: Annotated[str | None, typer.Option(help="Instead of the file's name.")] = None,
    n_trials: TrialsOption = None,
    timeout: TimeoutOption = None,
    workers: WorkersOption = 1,
    memory: MemoryOption = None,
    trial_timeout: TrialTimeoutOption = None,
    executor: ExecutorOption = "local",
    address: AddressOption = None,
    trial_cores: CoresOption = None,
    trial_gpus: GpusOption = None,
    artifacts: ArtifactsOption = None,
    sampler: Annotated[str | None, typer.Option(help="Instead of the file's sampler.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the file's seed.")] = None,
    boards: BoardsOption = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder to write the report to afterwards.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Check and describe; train nothing.")] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Start a study and explore until it has its trials."""
    from dse.launch import DEFAULT_STORAGE, prepare, preview, record_of
    from dse.storage import Storage
    from dse.study import read_study
    from dse.study_yaml import override_study
    from dse.terminal import Crew, explore_on_terminal, print_preview, tell_ending

    timeout_s, limits = seconds_of(timeout), limits_of(memory, trial_timeout)
    crew = Crew(workers, limits, cluster=cluster_of(executor, address, trial_cores, trial_gpus))
    _report_folder(report)
    text = override_study(read_study(study), str(study), sampler=sampler, seed=seed)
    launch = prepare(text, str(study), study.parent, boards)
    if dry_run:
        print_preview(preview(launch))
        return
    name = study_name or launch.study.name
    total = n_trials or launch.study.n_trials
    url = storage or launch.study.storage or DEFAULT_STORAGE
    with Storage(url, artifacts=artifacts) as opened:
        record = record_of(launch, name, total)
        opened.create(record)
        ending = explore_on_terminal(
            opened,
            record,
            launch,
            total,
            timeout_s,
            crew=crew,
            quiet=quiet,
            verbose=verbose,
        )
        _print_front(opened, record, "table")
        code = tell_ending(ending, name, url, total, workers)
        if report is not None:
            _write_report(opened, name, report)
    raise typer.Exit(code)


@app.command()
def resume(
    study: StudyArgument = None,
    storage: StorageOption = None,
    study_name: Annotated[
        str | None, typer.Option(help="The name it was given, if not the file's.")
    ] = None,
    n_trials: TrialsOption = None,
    timeout: TimeoutOption = None,
    workers: WorkersOption = 1,
    memory: MemoryOption = None,
    trial_timeout: TrialTimeoutOption = None,
    executor: ExecutorOption = "local",
    address: AddressOption = None,
    trial_cores: CoresOption = None,
    trial_gpus: GpusOption = None,
    artifacts: ArtifactsOption = None,
    constraint: Annotated[
        list[str] | None,
        typer.Option(help="A limit from now on, such as 'latency <= 20 ms'; for several, repeat."),
    ] = None,
    drop_constraint: Annotated[
        list[str] | None, typer.Option(help="A metric that has no limit from now on.")
    ] = None,
    objective: Annotated[
        list[str] | None, typer.Option(help="A metric that is an objective from now on. Repeat.")
    ] = None,
    drop_objective: Annotated[
        list[str] | None, typer.Option(help="A metric that is no objective from now on. Repeat.")
    ] = None,
    boards: BoardsOption = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder to write the report to afterwards.")
    ] = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Go on with a stored study: same sampler, next draws; refused when the search changed.

    New limits and objectives judge what is stored anew.
    """
    from dse.launch import check_same, prepare
    from dse.rejudge import Changes, change_study, rejudge
    from dse.storage import Storage
    from dse.terminal import Crew, explore_on_terminal, tell_ending

    timeout_s, limits = seconds_of(timeout), limits_of(memory, trial_timeout)
    crew = Crew(workers, limits, cluster=cluster_of(executor, address, trial_cores, trial_gpus))
    _report_folder(report)
    name, url, text = _named(study, storage)
    with Storage(url, artifacts=artifacts) as opened:
        record = opened.study(study_name or name or _only(opened, url))
        given = text is not None and study is not None
        folder = Path(study).parent if given and study else record.folder
        source = str(study) if given else f"study '{record.name}'"
        launch = prepare(text if text is not None else record.study_file, source, folder, boards)
        check_same(record, launch)
        flags = (constraint, drop_constraint, objective, drop_objective)
        if changes := Changes(*(flag or () for flag in flags)):
            launch = prepare(change_study(launch.text, source, changes), source, folder, boards)
            changed = rejudge(opened, record, launch.problem, launch.text)
            record = opened.study(record.name)
            print(f"objectives: {', '.join(record.objectives)}")
            print(f"limits: {'; '.join(record.constraints) or 'none'} ({changed} trials changed)")
        total = n_trials or (launch.study.n_trials if given else record.n_trials)
        total = max(total, record.n_trials)
        opened.update_n_trials(record.name, total)
        ending = explore_on_terminal(
            opened,
            record,
            launch,
            total,
            timeout_s,
            crew=crew,
            quiet=quiet,
            verbose=verbose,
        )
        _print_front(opened, record, "table")
        code = tell_ending(ending, record.name, url, total, workers)
        if report is not None:
            _write_report(opened, record.name, report)
    raise typer.Exit(code)


@app.command()
def status(
    study: StudyArgument = None, storage: StorageOption = None, as_json: JsonOption = False
) -> None:
    """Counts by state, front, hypervolume, who works on it, how fast it goes, when it is done."""
    with _reading(study, storage) as (opened, record, url):
        worker_commands.show_status(opened, record, url, as_json)


@app.command()
def studies(
    storage: StorageOption = None, as_json: JsonOption = False, form: FormatOption = "table"
) -> None:
    """List the studies of a database."""
    from dse.storage import Storage

    url = _url(storage)
    with Storage.open_readonly(url) as opened:
        rows = [
            {
                "study": found.name,
                "workload": found.workload,
                "objectives": ", ".join(found.objectives),
                **{state.value: count for state, count in found.counts.items()},
                "front": found.front_size,
                "hypervolume": found.hypervolume,
            }
            for found in opened.studies()
        ]
    columns = list(dict.fromkeys(key for row in rows for key in row)) or ["study"]
    show(rows, columns, chosen_form(as_json, form))


@app.command()
def front(
    study: StudyArgument = None,
    storage: StorageOption = None,
    where: Annotated[
        str | None, typer.Option(help="Only designs that match: 'flash < 64 KiB and bits <= 4'.")
    ] = None,
    knee: Annotated[
        bool, typer.Option("--knee", help="The best balanced design, and why.")
    ] = False,
    cheapest: Annotated[
        str | None, typer.Option(help="The cheapest board with a design that matches this.")
    ] = None,
    as_json: JsonOption = False,
    form: FormatOption = "table",
) -> None:
    """Print the Pareto front, or the design to choose from it."""
    with _reading(study, storage) as (opened, record, _):
        if where is None and not knee and cheapest is None:
            _print_front(opened, record, chosen_form(as_json, form))
            return
        deciding_commands.show_chosen(
            opened, record, chosen_form(as_json, form), where=where, knee=knee, cheapest=cheapest
        )


app.command(name="pareto", hidden=True)(front)


@app.command(name="show")
def show_trial(
    trial: Annotated[int, typer.Argument(help="Number of a trial.")],
    study: StudyArgument = None,
    storage: StorageOption = None,
    why: Annotated[
        bool, typer.Option("--why", help="Per-operator costs and the memory at the peak.")
    ] = False,
    boards: BoardsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Everything about one trial; --why explains its costs."""
    from dse.explain import explain, trial_facts

    with _reading(study, storage) as (opened, record, _):
        trials = {found.number: found for found in opened.trials(record.name)}
        if trial not in trials:
            raise StudyError(
                f"study '{record.name}' has no trial {trial}; it has 0 to {len(trials) - 1}"
            )
        blob = opened.artifact(record.name, trial, "graph") if why else None
    if why:
        explain(record, trials[trial], blob, boards, "json" if as_json else "table")
    else:
        trial_facts(record, trials[trial], "json" if as_json else "table")


@app.command()
def report(
    study: StudyArgument = None,
    storage: StorageOption = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path(
        "report"
    ),
) -> None:
    """Write one offline HTML file, with CSV and JSON of the front beside it."""
    with _reading(study, storage) as (opened, record, _):
        _write_report(opened, record.name, output)


@app.command()
def verify(
    trial: Annotated[int, typer.Argument(help="Number of a trial.")],
    study: StudyArgument = None,
    storage: StorageOption = None,
    target: Annotated[
        str | None, typer.Option(help="Instead of the trial's own: BOARD/BACKEND, or with /CLOCK.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Test inputs to run.")] = 20,
    compiler: Annotated[
        str | None, typer.Option(help="gcc or zig; default: what is there.")
    ] = None,
    optimize: Annotated[str, typer.Option(help="-Os, -O2 or -O3.")] = "-O2",
    boards: BoardsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build a design and run it on an emulated Cortex-M; its figures beside the model's."""
    from dse.proof import verify_trial
    from dse.storage import Storage

    with _reading(study, storage) as (_, record, url):
        pass
    with Storage(url) as opened:
        exact = verify_trial(
            opened,
            record,
            trial,
            target=target,
            samples=samples,
            compiler=compiler,
            optimize=optimize,
            boards=boards,
            form="json" if as_json else "table",
        )
    if not exact:
        raise typer.Exit(1)


@app.command()
def confusion(
    trial: Annotated[int, typer.Argument(help="Number of a trial.")],
    study: StudyArgument = None,
    storage: StorageOption = None,
    form: FormatOption = "table",
    as_json: JsonOption = False,
) -> None:
    """Classify the test data with a design: which class is taken for which; kept with it."""
    from dse.confusion import count_classes, show_counts
    from dse.storage import Storage

    with _reading(study, storage) as (_, record, url):
        pass
    with Storage(url) as opened:
        counts = count_classes(opened, record, trial)
    show_counts(trial, counts, chosen_form(as_json, form))


@app.command()
def export(
    trial: Annotated[int, typer.Argument(help="Number of a trial.")],
    study: StudyArgument = None,
    storage: StorageOption = None,
    form: Annotated[ExportFormat, typer.Option("--format", help="c, tflite or bundle.")] = "bundle",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path(
        "export"
    ),
    int4: Annotated[bool, typer.Option("--int4", help="Pack 4-bit weights in .tflite.")] = False,
) -> None:
    """Take a design home: C, a .tflite file, or a bundle with host test and test vectors."""
    from dse.export import export_trial, stored_network

    with _reading(study, storage) as (opened, record, _):
        found, archive = stored_network(opened, record, trial)
        for line in export_trial(opened, record, found, archive, form, output, int4):
            print(line)


target_commands.register(app)
rescore_command.register(app)
deciding_commands.register(app)
database_commands.register(app)
worker_commands.register(app)


# --- shared by the verbs ------------------------------------------------------------------------


def _url(storage: str | None) -> str:
    from dse.launch import DEFAULT_STORAGE

    return storage or DEFAULT_STORAGE


def _report_folder(folder: Path | None) -> None:
    """Refuse a report's folder that cannot be one before hours are spent on the study."""
    if folder is not None and folder.exists() and not folder.is_dir():
        raise StudyError(f"--report is {folder}, which is a file; name a folder")


def _named(study: str | None, storage: str | None) -> tuple[str | None, str, str | None]:
    """(study name or None, database URL, text of the study file when one was given)."""
    if study is None or not study.endswith((".yaml", ".yml")):
        return study, _url(storage), None
    from dse.study import parse_study, read_study

    text = read_study(Path(study))
    found = parse_study(text, study)
    return found.name, _url(storage or found.storage), text


def _only(opened: Storage, url: str) -> str:
    from dse.launch import only_study

    return only_study([found.name for found in opened.studies()], url)


@contextmanager
def _reading(study: str | None, storage: str | None) -> Iterator[tuple[Storage, StudyRecord, str]]:
    from dse.storage import Storage

    name, url, _ = _named(study, storage)
    with Storage.open_readonly(url) as opened:
        yield opened, opened.study(name or _only(opened, url)), url


def _front_trials(opened: Storage, record: StudyRecord) -> tuple[list[Trial], Trial | None]:
    trials = {trial.number: trial for trial in opened.trials(record.name)}
    fronts = opened.fronts(record.name)
    members = [trials[number] for number in fronts[-1].members] if fronts else []
    members.sort(key=lambda trial: -(trial.value("accuracy") or 0))
    return members, trials.get(0)


def _print_front(opened: Storage, record: StudyRecord, form: Format) -> None:
    members, baseline = _front_trials(opened, record)
    title = f"{record.name}: {len(members)} designs on the front"
    show_front(record, members, baseline, form, title)
    if not members and form == "table":
        print("no design meets every constraint yet; 'dse status' counts what was rejected")


def command_line() -> str:
    """The command as it was given, but for passwords."""
    from dse.database import without_password

    return shlex.join(["dse", *map(without_password, sys.argv[1:])])


def _write_report(opened: Storage, name: str, folder: Path) -> None:
    from dse.provenance import versions
    from dse.report import write_report

    record = opened.study(name)
    made_with = {**versions(), "command": command_line()}
    files = write_report(record, opened.trials(name), opened.fronts(name), folder, made_with)
    print(f"report: {files.html.resolve()}")


if __name__ == "__main__":
    main()
