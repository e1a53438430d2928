"""`dse worker` joins a shared study; `dse status` shows who is on it and how far it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dse.errors import StudyError
from dse.options import (
    ArtifactsOption,
    BoardsOption,
    MemoryOption,
    QuietOption,
    SlotOption,
    StorageOption,
    TimeoutOption,
    TrialTimeoutOption,
    VerboseOption,
    WorkersOption,
    limits_of,
    seconds_of,
    slot_of,
)
from dse.tables import show

if TYPE_CHECKING:
    from dse.rows import StudyRecord
    from dse.storage import Storage, Worker
    from dse.trial import Trial

# How many of the last trials say how fast it goes.
_RECENT = 20


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    app.command()(worker)


def worker(
    storage: StorageOption = None,
    study: Annotated[str | None, typer.Option(help="May be left out if there is only one.")] = None,
    workers: WorkersOption = 1,
    slot: SlotOption = None,
    memory: MemoryOption = None,
    trial_timeout: TrialTimeoutOption = None,
    timeout: TimeoutOption = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where the study's own modules lie on this machine.")
    ] = None,
    artifacts: ArtifactsOption = None,
    boards: BoardsOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Work on a study that others have started, until it is done; join and leave at any time.

    SIGTERM and Ctrl-C hand the trial in hand back to the others.
    """
    from dse.launch import DEFAULT_STORAGE, check_same, only_study, prepare
    from dse.storage import Storage
    from dse.terminal import Crew, explore_on_terminal

    crew = Crew(workers, limits_of(memory, trial_timeout), slot_of(slot))
    timeout_s = seconds_of(timeout)
    url = storage or DEFAULT_STORAGE
    with Storage(url, artifacts=artifacts) as opened:
        record = opened.study(study or only_study([found.name for found in opened.studies()], url))
        where = folder or _without_code(record)
        launch = prepare(record.study_file, f"study '{record.name}'", where, boards)
        check_same(record, launch)
        ending = explore_on_terminal(
            opened, record, launch, None, timeout_s, crew=crew, quiet=quiet, verbose=verbose
        )
    words = {
        "finished": "the study is finished",
        "exhausted": "every candidate of the space is known",
        "interrupted": "left; what was in hand waits for other workers",
        "timeout": "left, as the time is up; what was in hand waits for other workers",
        "failing": "left, as the last 10 trials failed here; 'dse show' of one says why",
    }
    if not quiet:
        print(words[ending])
    raise typer.Exit({"interrupted": 130, "failing": 1}.get(ending, 0))


def _without_code(record: StudyRecord) -> Path:
    """Any folder, for a study that names no modules of its own.

    Whoever can write to a shared database could otherwise say which folder here code is run from.
    """
    if isinstance(record.definition.get("workload"), str):
        return Path()
    raise StudyError(
        f"study '{record.name}' names functions of its own; give --folder with where its modules "
        f"lie on this machine (they were in {record.definition.get('folder') or '?'})"
    )


def show_status(opened: Storage, record: StudyRecord, url: str, as_json: bool) -> None:
    """Counts by state, the front, who works on the study, how fast it goes, when it is done."""
    from dse.database import without_password
    from dse.launch import resume_command
    from dse.leases import LEASE_S
    from dse.trial import State

    trials, fronts = opened.trials(record.name), opened.fronts(record.name)
    crew, now = opened.workers(record.name), opened.database_time()
    finished = sum(t.state.finished and not t.served for t in trials)
    live = [found for found in crew if found.live and not found.gone]
    stale = _stale(trials, [w for w in live if now - w.seen <= LEASE_S])
    rate = _rate(trials)
    left = max(0, record.n_trials - finished)
    row: dict[str, Any] = {
        "study": record.name,
        "workload": record.workload,
        "storage": without_password(url),
        "finished": finished,
        "asked": record.n_trials,
        "served": sum(t.served for t in trials),
        **{state.value: sum(t.state is state for t in trials) for state in State},
        "stale": len(stale),
        "trained": sum(t.trained for t in trials),
        "front": len(fronts[-1].members) if fronts else 0,
        "hypervolume": fronts[-1].hypervolume if fronts else 0.0,
        "trials_per_hour": None if rate is None else round(3600 * rate, 1),
        "eta_s": round(left / rate) if rate and left and live else None,
    }
    workers = [_worker_row(found, now) for found in live]
    if as_json:
        show([{**row, "workers": workers}], [*row, "workers"], "json")
        return
    pairs = [{"what": key, "value": value} for key, value in row.items() if value is not None]
    show(pairs, ["what", "value"], "table")
    if workers:
        show(workers, list(workers[0]), "table")
    if left and not live:
        print(f"go on with: {resume_command(record.name, url, record.n_trials)}")
    if stale and live:
        print(f"trials {', '.join(map(str, stale))} lost their worker; another takes them soon")


def _stale(trials: Sequence[Trial], live: Sequence[Worker]) -> list[int]:
    """Running trials that nobody runs."""
    from dse.trial import State

    held = {number for found in live for number in found.holds}
    return [t.number for t in trials if t.state is State.RUNNING and t.number not in held]


def _rate(trials: Sequence[Trial]) -> float | None:
    """Trials a second over the last ones that were asked for, None while too few are known."""
    ends = sorted(t.finished for t in trials if t.state.finished and not t.served)[-_RECENT:]
    if len(ends) < 3 or ends[-1] <= ends[0]:
        return None
    return (len(ends) - 1) / (ends[-1] - ends[0])


def _worker_row(found: Worker, now: float) -> dict[str, Any]:
    from dse.leases import LEASE_S

    silent = now - found.seen
    return {
        "worker": found.worker_id,
        "host": found.host.split()[0],
        "process": int(found.process.split()[0]),
        "slot": ", ".join(f"{name}={value}" for name, value in found.slot.items()),
        "finished": found.finished,
        "runs": ", ".join(map(str, found.holds)),
        "minutes": round((now - found.joined) / 60, 1),
        "heartbeat": "silent" if silent > LEASE_S else f"{silent:.0f} s ago",
    }
