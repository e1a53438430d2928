"""Storms: workers killed at random and databases restarted, while a study of toy trials goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dse.errors import StorageError
from dse.graph import archive
from dse.storage import Storage
from tests.problems import small_graph, small_problem, small_record

# Trials of a storm differ in more knobs than those of the small problem, so that there are enough.
STUDY = """
name: small
workload: digits
space:
  pruning: {ratio: [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]}
  quantization: {weight_bits: [2, 3, 4, 5, 6, 7, 8]}
  boards: [nucleo_f446re, rpi_pico]
  backends: [native]
objectives: [accuracy, flash, latency]
sampler: random
n_trials: 40
"""
# Trials that end between two kills, at least.
PROGRESS = 5


@dataclass
class Storm:
    """`workers` processes of a study in `folder`; on SQLite one parent with as many children."""

    url: str
    folder: Path
    workers: int
    sleep_s: float
    lease_s: float = 6.0
    seed: int = 0
    kills: int = 0
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def local(self) -> bool:
        """Whether children of one process do the work."""
        return self.url.startswith("sqlite")

    @property
    def log(self) -> Path:
        """A line for every training that came to its end."""
        return self.folder / "log"

    def create(self, trials: int) -> None:
        """Store the study, and the network for the workers."""
        self.graph.write_bytes(archive.to_bytes(small_graph()))
        problem = small_problem(STUDY)
        record = small_record(problem, study_file=STUDY, n_trials=trials)
        with Storage(self.url) as storage:
            storage.create(record)

    @property
    def graph(self) -> Path:
        """The file with the network."""
        return self.folder / "graph.npz"

    def start(self) -> None:
        """One more process."""
        command = [sys.executable, "-m", "tests.toy", "--storage", self.url]
        command += ["--graph", str(self.graph), "--sleep", str(self.sleep_s)]
        command += ["--log", str(self.log), "--lease", str(self.lease_s)]
        command += ["--pool", str(self.workers)] if self.local else []
        self.processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))

    def run(
        self, every_s: float, timeout_s: float, at: Sequence[tuple[int, Callable[[], None]]] = ()
    ) -> None:
        """Kill a worker every so often until the study ends; `at` so many trials, do something."""
        source, due = random.Random(self.seed), list(at)
        for _ in range(1 if self.local else self.workers):
            self.start()
        deadline, killed_at, killed_after = time.monotonic() + timeout_s, time.monotonic(), 0
        while any(process.poll() is None for process in self.processes):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.finished()} trials after {timeout_s} s")
            time.sleep(0.25)
            self._replace()
            finished = self.finished()
            if due and finished >= due[0][0]:
                due.pop(0)[1]()
            # Processes start slowly on a busy machine: kill no faster than the study goes on.
            if time.monotonic() - killed_at > every_s and finished >= killed_after + PROGRESS:
                self.kill(source)
                killed_at, killed_after = time.monotonic(), finished
        if 0 not in [process.returncode for process in self.processes]:
            raise RuntimeError(f"ended with {[p.returncode for p in self.processes]}")

    def _replace(self) -> None:
        """Start another one for each that could not begin, as the server was away just then."""
        for process in list(self.processes):
            if process.poll() not in (None, 0, -signal.SIGKILL):
                self.processes.remove(process)
                self.start()

    def kill(self, source: random.Random) -> None:
        """Kill -9 of a worker; on SQLite now and then of the parent. A new one takes its place."""
        live = [process for process in self.processes if process.poll() is None]
        if not live:
            return
        victims = _children(live[0].pid) if self.local else [process.pid for process in live]
        if self.local and (not victims or self.kills % 5 == 4):
            victims = [live[0].pid]
        victim = source.choice(victims)
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
            self.kills += 1
        for process in live:
            if process.pid == victim:
                process.wait()
                self.start()

    def finished(self) -> int:
        """Trials that have an end, whatever it is; 0 while the database is away."""
        with suppress(StorageError), Storage(self.url, readonly=True, patience_s=0) as storage:
            counts = storage.studies()[0].counts
            return sum(count for state, count in counts.items() if state.finished)
        return 0

    def check(self, trials: int) -> None:
        """Exactly what was asked for; a training that was killed before it was stored is redone."""
        from tests.test_workers import check_whole

        with Storage(self.url) as storage:
            check_whole(storage, trials, small_problem(STUDY))
        redone = sum(count - 1 for count in Counter(self.log.read_text().split("\n")[:-1]).values())
        assert redone <= self.kills

    def end(self) -> None:
        """Leave no process behind."""
        for process in self.processes:
            process.kill()
            process.wait()


def _children(number: int) -> list[int]:
    """Processes that a process has started and that run its tasks."""
    found = []
    with suppress(OSError):
        text = Path(f"/proc/{number}/task/{number}/children").read_text(encoding="ascii")
        for child in map(int, text.split()):
            command = Path(f"/proc/{child}/cmdline").read_bytes()
            if b"spawn_main" in command:
                found.append(child)
    return found
