"""A study on a terminal: what `--dry-run` tells, progress, Ctrl-C, and how a run ended."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any

from dse.launch import Launch, explore, resume_command
from dse.problem import describe
from dse.progress import StudyProgress
from dse.ray_executor import Cluster
from dse.rows import StudyRecord
from dse.samplers import resolve
from dse.storage import Storage
from dse.tables import console
from dse.units import format_value
from dse.workers import NO_LIMITS, Limits

if TYPE_CHECKING:
    from dse.explorer import Ending


@dataclass(frozen=True)
class Crew:
    """Who does the work: processes, what a trial may use, what the machine has, or a cluster."""

    workers: int = 1
    limits: Limits = NO_LIMITS
    slot: Mapping[str, str] = field(default_factory=dict)
    cluster: Cluster | None = None


def print_preview(found: Mapping[str, Any]) -> None:
    """What `--dry-run` tells, one line a fact."""
    for key, value in found.items():
        if isinstance(value, dict):
            costs = ", ".join(
                f"{k} {format_value(k, v)}" for k, v in value.items() if k != "target"
            )
            value = f"{costs} on {value['target']}"
        elif isinstance(value, list):
            value = "; ".join(map(str, value)) or "-"
        elif key == "feasible_by_cost":
            value = f"{100 * value:.0f} % of 200 random candidates"
        print(f"{key.replace('_', ' '):>18}: {value}")


def explore_on_terminal(
    opened: Storage,
    record: StudyRecord,
    launch: Launch,
    total: int | None,
    timeout_s: float | None,
    *,
    crew: Crew,
    quiet: bool,
    verbose: bool,
) -> Ending:
    """Explore with progress until it ends; Ctrl-C and SIGTERM end the trials in hand cleanly.

    Without a `total` it is the study's own, which may be raised meanwhile.
    """
    screen = console()
    if not quiet:
        screen.print(f"{record.name}: {describe(launch.problem)}", highlight=False)
        why = resolve(launch.study.sampler.name, launch.problem.space.size, record.n_trials)[1]
        screen.print(f"sampler: {why}", highlight=False)
        for reason in launch.problem.left_out:
            screen.print(f"left out: {reason}", highlight=False)
    done = [trial for trial in opened.trials(record.name) if trial.state.finished]
    timeout_s = timeout_s or launch.study.timeout
    with (
        stop_on_signal() as stopped,
        StudyProgress(
            screen,
            record.objectives,
            total or record.n_trials,
            done,
            quiet=quiet,
            verbose=verbose,
        ) as listener,
    ):
        return explore(
            opened,
            record,
            launch,
            listener,
            n_trials=total,
            timeout_s=timeout_s,
            stop=lambda: bool(stopped),
            workers=crew.workers,
            limits=crew.limits,
            slot=crew.slot,
            cluster=crew.cluster,
        )


def tell_ending(ending: Ending, name: str, url: str, total: int, workers: int = 1) -> int:
    """Say why a run ended and the exact command that goes on; the exit code, 130 after Ctrl-C."""
    words = {
        "timeout": "the time is up",
        "interrupted": "stopped; what was in hand waits to be done again",
        "exhausted": "every candidate of the space is known",
        "failing": "the last 10 trials failed; 'dse show' of the last one says why",
    }
    if ending in words:
        print(words[ending])
    if ending not in ("finished", "exhausted"):
        print(f"go on with: {resume_command(name, url, total, workers)}")
    return 130 if ending == "interrupted" else 0


@contextmanager
def stop_on_signal() -> Iterator[list[int]]:
    """A list that a first Ctrl-C or SIGTERM fills; a second Ctrl-C ends the process at once."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
