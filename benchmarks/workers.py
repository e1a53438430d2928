"""Throughput of many workers on one database, and how it grows with their number.

    python benchmarks/workers.py                      # everything, to reports/workers.md
    python benchmarks/workers.py --trials 200 --workers 1 4 16 --out /tmp/workers.md

Trials compute a formula (`tests/toy.py`), so what is measured is all that is not training. Optuna
is asked for as many trials with as many parameters, by as many processes, on the same kind of file.
Needs PostgreSQL's server binaries.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from dse.storage import Storage
from tests.faults import STUDY, Storm
from tests.postgresql import running
from tests.problems import small_problem

OPTUNA = """
import sys, time, pathlib, optuna
url, go, trials, knobs = sys.argv[1:]
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.load_study(study_name="plain", storage=url)
study.sampler = optuna.samplers.RandomSampler()
def objective(trial):
    found = [trial.suggest_int(f"x{i}", 0, 8) for i in range(int(knobs))]
    return float(sum(found)), float(max(found)), float(min(found))
print("ready", flush=True)
while not pathlib.Path(go).exists():
    time.sleep(0.01)
study.optimize(objective, n_trials=int(trials))
"""


@dataclass(frozen=True)
class Run:
    """What came of some workers: trials a second, and how many of their processes had an error."""

    rate: float
    errors: int


@contextmanager
def started(commands: Sequence[Sequence[str]], go: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are ready; they begin together when the block is entered."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        for command in commands
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    go.touch()
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def dse(url: str, folder: Path, workers: int, trials: int, sleep_s: float, pool: bool) -> Run:
    """`trials` by `workers` processes.

    The time counts from the end of the first trial, which is alone; of those that cost nothing from
    the end of the first tenth, as the processes of a pool start with the study.
    """
    storm = Storm(url, folder, workers, sleep_s)
    storm.create(trials)
    go = folder / "go"
    command = [sys.executable, "-m", "tests.toy", "--storage", url, "--graph", str(storm.graph)]
    command += ["--sleep", str(sleep_s), "--go", str(go)]
    command += ["--pool", str(workers)] if pool else []
    with started([command] * (1 if pool else workers), go) as processes:
        errors = sum(process.wait() != 0 for process in processes)
    with Storage.open_readonly(url) as storage:
        found = [trial for trial in storage.trials("small") if not trial.served]
    assert len(found) == trials
    assert all(trial.state.finished for trial in found)
    ends = sorted(trial.finished for trial in found)
    first = 0 if sleep_s else trials // 10
    return Run((trials - 1 - first) / (ends[-1] - ends[first]), errors)


def optuna_alone(url: str, folder: Path, workers: int, trials: int, knobs: int) -> Run:
    """The same number of trials by Optuna's own `optimize`."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    optuna.create_study(
        storage=url, study_name="plain", directions=["maximize", "minimize", "minimize"]
    )
    go, each = folder / "go", trials // workers
    command = [sys.executable, "-c", OPTUNA, url, str(go), str(each), str(knobs)]
    with started([command] * workers, go) as processes:
        began = time.monotonic()
        errors = sum(process.wait() != 0 for process in processes)
    return Run(each * workers / (time.monotonic() - began), errors)


def throughput(trials: int, workers: int) -> list[tuple[str, Run]]:
    """The same trials on every kind of database."""
    knobs = len(small_problem(STUDY).space.knobs)
    found = []
    with running() as server:
        for label, kind in (
            (f"dse, one SQLite file, pool of {workers}", "pool"),
            (f"dse, one SQLite file, {workers} workers that all write", "file"),
            (f"Optuna alone, one SQLite file, {workers} processes", "optuna"),
            (f"dse, PostgreSQL, {workers} workers", "server"),
        ):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                url = f"sqlite:///{name}/study.db"
                if kind == "server":
                    url = server.url(server.new_database())
                if kind == "optuna":
                    run = optuna_alone(url, folder, workers, trials, knobs)
                else:
                    run = dse(url, folder, workers, trials, 0.0, kind == "pool")
            found.append((label, run))
            print(f"{label}: {run.rate:.1f} trials/s, {run.errors} errors", flush=True)
    return found


def scaling(counts: Sequence[int], each: int, sleep_s: float) -> list[tuple[int, Run]]:
    """Workers whose trials sleep, on PostgreSQL."""
    found = []
    with running() as server:
        for workers in counts:
            with tempfile.TemporaryDirectory() as name:
                url = server.url(server.new_database())
                run = dse(url, Path(name), workers, each * workers + 1, sleep_s, False)
            found.append((workers, run))
            print(f"{workers} workers: {run.rate:.3f} trials/s, {run.errors} errors", flush=True)
    return found


def rates_section(given: argparse.Namespace, rates: list[tuple[str, Run]]) -> str:
    """The table of throughput."""
    plain = next((run.rate for label, run in rates if label.startswith("Optuna")), float("nan"))
    lines = [
        f"## {given.trials:,} trials that cost nothing, {given.processes} processes",
        "",
        "| | trials/s | ratio to Optuna alone | processes that ended with an error |",
        "| --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {label} | {run.rate:.1f} | {run.rate / plain:.2f} | {run.errors} |"
        for label, run in rates
    ]
    return "\n".join(lines) + "\n"


def scaling_section(given: argparse.Namespace, scaled: list[tuple[int, Run]]) -> str:
    """The table of how throughput grows."""
    lines = [
        f"## Trials that sleep {given.sleep:g} s, on PostgreSQL",
        "",
        "| workers | trials/s | of linear | processes that ended with an error |",
        "| ---: | ---: | ---: | ---: |",
    ]
    first = scaled[0][1].rate / scaled[0][0]
    for workers, run in scaled:
        linear = 100 * run.rate / (workers * first)
        lines.append(f"| {workers} | {run.rate:.3f} | {linear:.0f} % | {run.errors} |")
    return "\n".join(lines) + "\n"


HEAD = f"""# Many workers on one database

Made by `python benchmarks/workers.py`; with `--workers` alone or `--trials 0` one of the two tables
is made anew and the other one stays. Measured on {os.cpu_count()} cores that other work shared:
read ratios within a table, not rates. What ends processes of Optuna is "database is locked".
"""


def report(path: Path, rates: str, scaled: str) -> str:
    """The page: new sections, and of those not made now what the old page has."""
    old = path.read_text(encoding="utf-8").split("\n## ")[1:] if path.exists() else []
    kept = {("sleep" in part.split("\n")[0]): f"## {part.strip()}\n" for part in old}
    parts = [HEAD, rates or kept.get(False, ""), scaled or kept.get(True, "")]
    return "\n".join(part for part in parts if part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--each", type=int, default=4, help="sleeping trials for each worker")
    parser.add_argument("--sleep", type=float, default=10.0, help="seconds a sleeping trial takes")
    parser.add_argument("--out", type=Path, default=Path("reports/workers.md"))
    given = parser.parse_args()
    scaled = scaling(given.workers, given.each, given.sleep)
    rates = throughput(given.trials, given.processes) if given.trials else []
    text = report(
        given.out,
        rates_section(given, rates) if rates else "",
        scaling_section(given, scaled) if scaled else "",
    )
    given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
