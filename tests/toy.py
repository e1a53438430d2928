"""Workers that compute a formula instead of training: processes of a pool, and whole workers.

As a command it is a worker on a shared database: python -m tests.toy --storage URL --graph FILE.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dse.candidate import Candidate
from dse.errors import StorageError
from dse.evaluation import Evaluation, Executor, InProcess, Interrupted
from dse.explorer import Explorer
from dse.graph import archive
from dse.graph.ir import Graph
from dse.graph.numerics import Rounding
from dse.stopping import Watch
from dse.storage import Storage
from dse.terminal import stop_on_signal
from dse.trial import Metric
from dse.workers import LocalPool
from tests.problems import FormulaEvaluator, Silent, small_problem


@dataclass(frozen=True)
class Toy:
    """What a toy training is like: how long it takes, and what else happens.

    `log` gets a line for every training that comes to its end. `evil` is what becomes of networks
    whose key ends in one of the characters `prey`: they 'hang', 'eat' memory, 'die' or 'fail'.
    """

    text: str
    graph: bytes
    sleep_s: float = 0.0
    log: str = ""
    evil: str = ""
    prey: str = ""

    def __call__(self, stop: Callable[[], bool]) -> ToyEvaluator:
        """The evaluator, as the pool asks for it."""
        problem = small_problem(self.text, archive.from_bytes(self.graph))
        return ToyEvaluator(FormulaEvaluator(problem), self, stop)


@dataclass
class ToyEvaluator:
    """Sleeps, listens to whoever stops it, and comes to grief as real trainings do."""

    formula: FormulaEvaluator
    toy: Toy
    stop: Callable[[], bool]

    def evaluate(
        self, candidate: Candidate, rounding: Rounding, watch: Watch | None = None
    ) -> Evaluation:
        if candidate.network_key.endswith(tuple(self.toy.prey)):
            self._suffer()
        deadline = time.monotonic() + self.toy.sleep_s
        while (left := deadline - time.monotonic()) > 0:
            if self.stop():
                raise Interrupted
            time.sleep(min(left, 0.05))
        found = self.formula.evaluate(candidate, rounding, watch)
        if self.toy.log:
            with Path(self.toy.log).open("a") as file:
                file.write(f"{candidate.network_key} {rounding}\n")
        return found

    def test_accuracy(self, graph: Graph, rounding: Rounding) -> tuple[Metric, int]:
        return self.formula.test_accuracy(graph, rounding)

    def _suffer(self) -> None:
        held: list[bytes] = []
        if self.toy.evil == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        while self.toy.evil in ("hang", "eat"):
            if self.toy.evil == "eat" and len(held) < 100:
                held.append(os.urandom(2**20) * 20)
            time.sleep(0.01)


def main() -> int:
    """Work on a study until it is done, or a signal says to leave."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--storage", required=True)
    parser.add_argument("--study", default="small")
    parser.add_argument("--graph", type=Path, required=True)
    parser.add_argument("--sleep", type=float, default=0.0)
    parser.add_argument("--log", default="")
    parser.add_argument("--lease", type=float, default=60.0)
    parser.add_argument("--pool", type=int, default=0)
    parser.add_argument("--go", type=Path, help="say 'ready', and begin once this file is there")
    given = parser.parse_args()
    with stop_on_signal() as stopped, Storage(given.storage, patience_s=120) as storage:
        record = storage.study(given.study)
        toy = Toy(record.study_file, given.graph.read_bytes(), given.sleep, given.log)
        executor: Executor = InProcess(toy(lambda: bool(stopped)))
        if given.pool:
            executor = LocalPool(toy, given.pool)
        problem = small_problem(record.study_file, archive.from_bytes(toy.graph))
        if given.go is not None:
            print("ready", flush=True)
            while not given.go.exists():
                time.sleep(0.01)
        try:
            ending = Explorer(
                storage,
                record,
                problem,
                executor,
                Silent(),
                lambda: bool(stopped),
                lease_s=given.lease,
            ).run(None)
        except StorageError as error:
            print(error, file=sys.stderr)
            return 2
        finally:
            executor.close()
    print(ending, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
