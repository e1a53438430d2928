"""A real study against the plain way: wall time to the hypervolume that plain Optuna ends with.

Runs `benchmarks/plain_optuna.py` and `dse run` on the same study file at the same time, one thread
each, with the same seed and nothing cached, and measures both fronts in the study's own box.
Writes reports/live.md.

    python benchmarks/live.py --minutes 30
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dse.launch import prepare
from dse.pareto import Box
from dse.storage import Storage

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "reports" / "live.md"
STEPS = 10


@dataclass(frozen=True)
class Curve:
    """Hypervolume over time: (seconds, value) after each design that counts; trainings in all."""

    points: tuple[tuple[float, float], ...]
    trainings: int

    def at(self, seconds: float) -> float:
        """The hypervolume reached by then."""
        return max((value for when, value in self.points if when <= seconds), default=0.0)

    def reaches(self, value: float) -> float | None:
        """When that hypervolume was reached, or None."""
        return next((when for when, found in self.points if found >= value), None)


def plain_curve(box: Box, lines: Sequence[str], began: float) -> Curve:
    rows = [json.loads(line) for line in lines]
    front: list[Sequence[float]] = []
    points = []
    for row in rows:
        if row["feasible"]:
            front.append(row["values"])
            points.append((row["finished"] - began, box.hypervolume(np.array(front))))
    return Curve(tuple(points), len(rows))


def dse_curve(url: str, began: float) -> Curve:
    with Storage.open_readonly(url) as storage:
        name = storage.studies()[0].name
        trials = storage.trials(name)
        fronts = storage.fronts(name)
    when = {trial.number: trial.finished - began for trial in trials}
    points = tuple((when[change.number], change.hypervolume) for change in fronts)
    return Curve(points, sum(trial.trained for trial in trials))


def run_both(study: Path, minutes: float, seed: int, folder: Path) -> tuple[Curve, Curve, float]:
    """(plain, dse, seconds given) from two processes side by side."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DSE_CACHE": str(folder / "cache")}
    url = f"sqlite:///{folder}/live.db"
    text = study.read_text(encoding="utf-8")
    launch = prepare(text, str(study), study.parent)
    began = time.time()
    plain = subprocess.Popen(
        [
            *(sys.executable, str(ROOT / "benchmarks" / "plain_optuna.py"), str(study)),
            *("--minutes", str(minutes), "--seed", str(seed)),
        ],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    ours = subprocess.Popen(
        [
            *(sys.executable, "-m", "dse.cli", "run", str(study), "--storage", url, "-q"),
            *("--timeout", f"{60 * minutes:.0f} s", "--seed", str(seed), "--n-trials", "100000"),
        ],
        stdout=subprocess.DEVNULL,
        env=environment,
    )
    lines = plain.communicate()[0].splitlines()
    ours.wait()
    return plain_curve(launch.problem.box, lines, began), dse_curve(url, began), 60 * minutes


def report(study: Path, plain: Curve, ours: Curve, seconds: float, command: str) -> str:
    """The page: hypervolume by time, and when ours reaches what plain ends with."""
    goal = plain.at(seconds)
    reached = ours.reaches(goal) if ours.at(seconds) >= goal else None
    own = plain.reaches(goal) or seconds
    said = (
        f"dse reaches it after {reached:.0f} s, {own / reached:.1f} times sooner than the plain "
        f"way ({own:.0f} s), which is {reached / seconds:.2f} of the whole time."
        if reached
        else "dse does not reach it in this time."
    )
    rows = [
        f"| {when / 60:.1f} | {plain.at(when):.4f} | {ours.at(when):.4f} |"
        for when in np.linspace(seconds / STEPS, seconds, STEPS)
    ]
    return "\n".join(
        [
            f"# `{study.name}` for {seconds / 60:g} minutes, beside plain Optuna",
            "",
            f"Made by `{command}`: both ways at the same time, one thread each, nothing cached; "
            "time includes loading data and training the baseline. Hypervolume in the study's box. "
            f"{os.getloadavg()[2]:.0f} processes wanted the machine's {os.cpu_count()} processors "
            "(mean of the last 15 minutes).",
            "",
            f"The plain way (TPE, {plain.trainings} trainings) ends with {goal:.4f}. {said} dse "
            f"trained {ours.trainings} networks and ends with {ours.at(seconds):.4f}.",
            "",
            "| minutes | plain Optuna | dse |",
            "| --- | --- | --- |",
            *rows,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, default=ROOT / "studies/fashion-mnist-lenet5.yaml")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    command = " ".join(["python", "benchmarks/live.py", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as folder:
        found = run_both(options.study, options.minutes, options.seed, Path(folder))
    page = report(options.study, *found, command)
    REPORT.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
