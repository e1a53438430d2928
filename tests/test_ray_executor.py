"""Trials on a real Ray cluster of several nodes, all on this machine."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from dse.audit import audit
from dse.candidate import Candidate, float_baseline
from dse.errors import StudyError
from dse.evaluation import Evaluation, Failed, HandedBack, Measuring, Trained, Training
from dse.explorer import Explorer
from dse.graph import archive
from dse.graph.ir import Graph
from dse.graph.numerics import Rounding
from dse.ray_executor import RayExecutor, Share
from dse.stopping import Watch
from dse.storage import Storage
from dse.trial import Metric, State
from dse.workers import Limits
from tests import storage_samples as samples
from tests.command_line import Dse, study_text
from tests.problems import STUDY, FormulaEvaluator, Silent, small_graph, small_problem, small_record

pytestmark = pytest.mark.slow
MEMORY: dict[str, Any] = {"object_store_memory": 100 * 2**20}


@dataclass(frozen=True)
class OnNode:
    """Makes evaluators that sleep, compute the formula, and write down where they did."""

    graph: bytes
    log: str
    sleep_s: float = 0.0
    deaf: bool = False  # to requests to end

    def __call__(self, stop: Callable[[], bool]) -> Measuring:
        formula = FormulaEvaluator(small_problem(STUDY, archive.from_bytes(self.graph)))
        return Sleeper(formula, self)


@dataclass
class Sleeper:
    formula: FormulaEvaluator
    how: OnNode

    def evaluate(
        self, candidate: Candidate, rounding: Rounding, watch: Watch | None = None
    ) -> Evaluation:
        self.note("begun", candidate, rounding)
        deadline = time.monotonic() + self.how.sleep_s
        while time.monotonic() < deadline:  # as a training does, which takes step after step
            try:
                time.sleep(0.02)
            except KeyboardInterrupt:
                if not self.how.deaf:
                    raise
        found = self.formula.evaluate(candidate, rounding, watch)
        self.note("done", candidate, rounding)
        return found

    def test_accuracy(self, graph: Graph, rounding: Rounding) -> tuple[Metric, int]:
        return self.formula.test_accuracy(graph, rounding)

    def note(self, what: str, candidate: Candidate, rounding: Rounding) -> None:
        import ray

        node = ray.get_runtime_context().get_node_id()
        with Path(self.how.log).open("a") as file:
            file.write(f"{what} {candidate.network_key}/{rounding} {node} {os.getpid()}\n")


def maker(log: Path, sleep_s: float = 0.0) -> OnNode:
    return OnNode(archive.to_bytes(small_graph()), str(log), sleep_s)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head that runs no tasks, and two nodes of one core each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("DSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, **MEMORY}
        found: Any = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            found.add_node(num_cpus=1, **MEMORY)
        yield found
        found.shutdown()


@pytest.fixture
def executors(cluster: Any) -> Iterator[Callable[..., RayExecutor]]:
    made: list[RayExecutor] = []

    def make(how: OnNode, **options: Any) -> RayExecutor:
        made.append(RayExecutor(how, cluster.address, **options))
        return made[-1]

    yield make
    for executor in made:
        executor.close()


def lines(log: Path, what: str) -> list[list[str]]:
    found = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [line[1:] for line in found if line[0] == what]


def explore(storage: Storage, executor: RayExecutor, n_trials: int) -> Silent:
    problem, listener = small_problem(), Silent()
    storage.create(small_record(problem))
    explorer = Explorer(storage, small_record(problem), problem, executor, listener)
    assert explorer.run(n_trials) == "finished"
    return listener


def check_whole(storage: Storage, n_trials: int) -> None:
    trials = storage.trials("small")
    assert sum(t.state.finished and not t.served for t in trials) == n_trials
    assert all(t.state in (State.COMPLETE, State.INFEASIBLE) for t in trials)
    assert len({t.candidate_key for t in trials}) == len(trials)
    assert [found.found for found in audit(storage) if found.kind == "broken"] == []


def test_a_study_runs_on_both_nodes_and_trains_nothing_twice(
    executors: Callable[..., RayExecutor], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    executor = executors(maker(log, 0.3))
    assert executor.slots == 2
    with Storage(samples.url(tmp_path)) as storage:
        explore(storage, executor, 14)
        check_whole(storage, 14)
    done = lines(log, "done")
    assert len({node for _, node, _ in done}) == 2
    assert os.getpid() not in {int(process) for _, _, process in done}
    assert max(Counter(key for key, _, _ in done).values()) == 1


def test_a_killed_node_loses_nothing(
    cluster: Any, executors: Callable[..., RayExecutor], tmp_path: Path
) -> None:
    """Its trial is run again by Ray on a node that is left, and the study ends whole."""
    log = tmp_path / "log"
    extra = cluster.add_node(num_cpus=1, resources={"doomed": 1}, **MEMORY)
    executor = executors(maker(log, 3.0))
    assert executor.slots == 3

    def kill() -> None:
        """In the middle of a training on that node."""
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            done = {key for key, _, _ in lines(log, "done")}
            begun = {key for key, node, _ in lines(log, "begun") if node == extra.node_id}
            if begun - done:
                break
            time.sleep(0.05)
        cluster.remove_node(extra, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    with Storage(samples.url(tmp_path)) as storage:
        explore(storage, executor, 8)
        killer.join()
        check_whole(storage, 8)
    begun = Counter(key for key, _, _ in lines(log, "begun"))
    again = [key for key, count in begun.items() if count > 1]
    assert again, "the node was killed while it ran nothing"
    nodes = {node for key, node, _ in lines(log, "done") if key in again}
    assert extra.node_id not in nodes


def test_the_command_runs_a_study_on_the_cluster(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dse = Dse(tmp_path, monkeypatch)
    dse.write(study_text())
    url, where = "sqlite:///dse.db", ("--executor", "ray", "--address", cluster.address)
    assert dse("run", "study.yaml", "--storage", url, *where, "--quiet").code == 0
    with Storage(url) as storage:
        trials = storage.trials("tiny")
        assert sum(t.state.finished and not t.served for t in trials) == 3
        assert any(t.trained for t in trials)
        assert [found.found for found in audit(storage) if found.kind == "broken"] == []


def test_what_a_trial_may_use_is_held(
    executors: Callable[..., RayExecutor], tmp_path: Path
) -> None:
    executor = executors(maker(tmp_path / "log", 600.0), limits=Limits(trial_s=1.0))
    executor.submit(0, task())
    (outcome,) = waited(executor)
    assert outcome == (0, Failed("took longer than a trial may (1 s)"))
    executor.close()
    executor = executors(maker(tmp_path / "log", 600.0), limits=Limits(memory_bytes=2**20))
    executor.submit(1, task())
    ((number, excess),) = waited(executor)
    assert number == 1
    assert isinstance(excess, Failed)
    assert "of memory, more than a trial may" in excess.reason


def test_an_interrupted_task_is_handed_back(
    executors: Callable[..., RayExecutor], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    executor = executors(maker(log, 600.0))
    executor.submit(5, task())
    while not lines(log, "begun"):
        time.sleep(0.1)
    executor.interrupt()
    assert list(waited(executor)) == [(5, HandedBack())]


def test_a_task_that_swallows_the_request_is_ended(
    executors: Callable[..., RayExecutor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dse.ray_executor.DEAF_S", 1.0)
    log = tmp_path / "log"
    executor = executors(replace(maker(log, 600.0), deaf=True))
    executor.submit(6, task())
    while not lines(log, "begun"):
        time.sleep(0.1)
    executor.interrupt()
    assert list(waited(executor)) == [(6, HandedBack())]


def test_slots_that_are_given_are_queued(
    executors: Callable[..., RayExecutor], tmp_path: Path
) -> None:
    """So that an autoscaler sees what is wanted."""
    executor = executors(maker(tmp_path / "log"), slots=5, share=Share(cores=0.5))
    assert executor.slots == 5
    for number in range(5):
        executor.submit(number, task())
    found: dict[int, object] = {}
    while len(found) < 5:
        found |= dict(executor.wait(5.0))
    assert all(isinstance(outcome, Trained) for outcome in found.values())


def test_a_share_of_the_cores_decides_how_many_run(
    executors: Callable[..., RayExecutor], tmp_path: Path
) -> None:
    assert executors(maker(tmp_path / "log"), share=Share(cores=0.5)).slots == 4


def task() -> Training:
    problem = small_problem()
    return Training(float_baseline(problem.float_target), "double")


def waited(executor: RayExecutor) -> Any:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = executor.wait(5.0)
        if found:
            return found
    raise TimeoutError


def test_a_cluster_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(StudyError, match=r"nothing answers at 127.0.0.1:9.*ray start --head"):
        RayExecutor(maker(Path("log")), "127.0.0.1:9")


def test_a_missing_ray_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(StudyError, match=r'pip install "dse\[ray\]"'):
        RayExecutor(maker(Path("log")))


@pytest.mark.parametrize("share", [{"cores": 0}, {"cores": -1}, {"gpus": -1}])
def test_a_share_is_above_zero(share: dict[str, float]) -> None:
    with pytest.raises(StudyError, match="--trial-"):
        Share(**share)
