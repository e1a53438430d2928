"""A study with four workers on one SQLite file while its page is open and reloaded 200 times.

The same study runs with nobody looking and watched, in turns. Its trials sleep, as if they were
trained elsewhere: then its wall time, from the first start to the last end of a trial as they are
stored, shows what waits for locks, and not that the page's server needs a processor, too, which is
told apart. A reload asks the server for what the browser asks it for, and since a trial has ended
meanwhile the server reads the database anew. Writes reports/watched.md.

    python benchmarks/watched.py
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from browse import free_port, server

from dse.graph import archive
from dse.storage import Storage
from tests.problems import small_graph, small_problem, small_record

REPORT = Path(__file__).parents[1] / "reports" / "watched.md"
# Many ratios: a network that was trained already would not be trained again, and not sleep.
STUDY = f"""
name: small
workload: digits
space:
  pruning: {{ratio: {[ratio / 100 for ratio in range(90)]}}}
  quantization: {{weight_bits: [2, 3, 4, 5, 6, 7, 8]}}
  boards: [nucleo_f446re, rpi_pico]
  backends: [native]
objectives: [accuracy, flash, latency]
sampler: random
n_trials: 200
"""
PAGE = {
    "output": "page.children",
    "outputs": {"id": "page", "property": "children"},
    "inputs": [{"id": "url", "property": "pathname", "value": "/"}],
    "state": [{"id": "url", "property": "search", "value": ""}],
    "changedPropIds": ["url.pathname"],
}


@dataclass(frozen=True)
class Ran:
    """Wall and processor seconds of a run, the page's too, lock errors, reloads, trials lost."""

    wall_s: float
    processor_s: float
    page_s: float
    locks: int
    reloads: int
    lost: int


def reload(address: str) -> bool:
    """One reload of the page; whether it showed the study."""
    for path in ("/", "/_dash-layout", "/_dash-dependencies"):
        with urllib.request.urlopen(address + path, timeout=120) as answer:
            answer.read()
    request = urllib.request.Request(
        address + "/_dash-update-component",
        json.dumps(PAGE).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return "Trade-offs" in answer.read().decode()


def create(folder: Path, trials: int) -> str:
    """A database with the study in an empty folder, and its network."""
    url = f"sqlite:///{folder / 'watched.db'}"
    (folder / "graph.npz").write_bytes(archive.to_bytes(small_graph()))
    record = small_record(small_problem(STUDY), study_file=STUDY, n_trials=trials)
    with Storage(url) as storage:
        storage.create(record)
    return url


def run(folder: Path, given: argparse.Namespace, reloads: int) -> Ran:
    """The study once; watched where `reloads` is not 0."""
    url, port = create(folder, given.trials), free_port()
    command = [sys.executable, "-m", "tests.toy", "--storage", url, "--pool", str(given.workers)]
    command += ["--graph", str(folder / "graph.npz"), "--sleep", str(given.sleep)]
    page = [sys.executable, "-m", "dse.cli", "browse", "--storage", url, "--port", str(port)]
    every_s = 0.9 * given.trials * given.sleep / given.workers / max(1, reloads)
    used, seen, page_s = _children_s(), 0, 0.0
    if reloads:
        with server(page, port) as serving:
            said, seen, code = _watched(command, url, f"http://127.0.0.1:{port}", reloads, every_s)
            page_s = _processor_s(serving.pid)
    else:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said, code = done.stderr, done.returncode
    used = _children_s() - used - page_s
    with Storage.open_readonly(url) as storage:
        stored = [trial for trial in storage.trials("small") if trial.state.finished]
    wall = max(t.finished for t in stored) - min(t.started for t in stored)
    lost = given.trials - sum(not trial.served for trial in stored)
    return Ran(wall, used, page_s, said.lower().count("locked") + (code != 0), seen, lost)


def _watched(
    command: list[str], url: str, address: str, reloads: int, every_s: float
) -> tuple[str, int, int]:
    """What the run said, how often it was looked at, from its first trial on, and its exit code."""
    running = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    seen, due = 0, 0.0
    while running.poll() is None and seen < reloads:
        if not due:
            with Storage.open_readonly(url) as storage:
                due = time.monotonic() if storage.trials("small") else 0.0
        if not due or time.monotonic() < due:
            time.sleep(0.02)
            continue
        seen, due = seen + reload(address), due + every_s
    return running.communicate()[1], seen, running.returncode


def _children_s() -> float:
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


def _processor_s(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def report(given: argparse.Namespace, alone: list[Ran], watched: list[Ran]) -> str:
    def total(runs: list[Ran], name: str) -> float:
        return float(sum(getattr(found, name) for found in runs))

    rows = [
        ("from the first trial to the last", "wall_s", "s"),
        ("processor time of the study", "processor_s", "s"),
        ("processor time of the page's server", "page_s", "s"),
        ("reloads of the page", "reloads", ""),
        ("lock errors", "locks", ""),
        ("trials lost", "lost", ""),
    ]
    slower = total(watched, "wall_s") / total(alone, "wall_s") - 1
    return "\n".join(
        [
            "# A study that is watched",
            "",
            f"`python benchmarks/watched.py --trials {given.trials} --workers {given.workers} "
            f"--reloads {given.reloads} --sleep {given.sleep} --turns {given.turns}`: "
            f"{given.trials} trials by {given.workers} workers on one SQLite file, each trial "
            f"{given.sleep} s of sleep in place of training, alone and watched in turns. Load "
            f"average at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.",
            "",
            f"| sum of {len(alone)} runs each | alone | watched |",
            "| --- | --- | --- |",
            *(
                f"| {what} | {total(alone, name):.4g} {unit} | {total(watched, name):.4g} {unit} |"
                for what, name, unit in rows
            ),
            "",
            f"Watched, the study took {slower:+.1%} time.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--reloads", type=int, default=200)
    parser.add_argument("--sleep", type=float, default=0.8, help="seconds a trial")
    parser.add_argument("--turns", type=int, default=2)
    given = parser.parse_args()
    alone: list[Ran] = []
    watched: list[Ran] = []
    for found, reloads in [(alone, 0), (watched, given.reloads)] * given.turns:
        with tempfile.TemporaryDirectory() as folder:
            found.append(run(Path(folder), given, reloads))
        print(found[-1], flush=True)
    text = report(given, alone, watched)
    REPORT.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
