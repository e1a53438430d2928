"""Everything between a command and the explorer: open, check, build, run, and say how it ended."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dse.database import without_password
from dse.errors import DseError, StudyError, TargetError
from dse.evaluation import Executor, InProcess, Measuring
from dse.problem import Problem, build_problem
from dse.provenance import versions
from dse.ray_executor import Cluster, RayExecutor
from dse.rows import StudyRecord
from dse.samplers import resolve
from dse.storage import Storage
from dse.study import StudyFile, parse_study
from dse.study_yaml import difference
from dse.workers import NO_LIMITS, Limits, LocalPool

if TYPE_CHECKING:
    from dse.explorer import Ending, Listener
    from dse.workloads import Dataset, Recipe, Workload

DEFAULT_STORAGE = "sqlite:///dse.db"


@dataclass(frozen=True, eq=False)
class Launch:
    """A study file with its workload, data and problem, ready to explore."""

    study: StudyFile
    text: str
    folder: Path
    workload: Workload
    dataset: Dataset
    recipe: Recipe
    problem: Problem


def prepare(text: str, source: str, folder: Path, boards: Path | None = None) -> Launch:
    """Read a study file's text and everything it names; `folder` is where its modules lie.

    Raises a DseError with one sentence for whatever does not fit.
    """
    study = parse_study(text, source)
    if without_password(study.storage or "") != (study.storage or ""):
        raise StudyError(
            f"{source}: 'storage' holds a password, which a study file does not, as it is stored "
            "and shown; set DSE_STORAGE to the URL, or keep the password in ~/.pgpass"
        )
    from dse.graph.trace import trace
    from dse.workloads import check_workload, workload_of

    with _located(f"{source}: 'workload'"):
        workload = workload_of(study, folder)
    with _located(f"{source}: 'training'"):
        recipe = workload.recipe.with_changes(study.training)
    with _located(f"{source}: 'workload'"):
        dataset = check_workload(workload)
        graph = trace(workload.network(study.seed), dataset.sample_shape, workload.name)
    with _located(source):
        problem = build_problem(study, graph, dataset.classes, boards)
        _check_prunable(problem, workload, dataset)
        _check_factorizable(problem, workload, dataset)
    if study.verify != "never":
        from dse.prover import check_provable

        check_provable(problem)
    return Launch(study, text, folder, workload, dataset, recipe, problem)


@contextmanager
def _located(where: str) -> Iterator[None]:
    """Puts file and key before the message of an error from below."""
    try:
        yield
    except TargetError:  # of a board file, which it names
        raise
    except DseError as error:
        raise type(error)(f"{where}: {' '.join(str(error).split())}") from error


def _check_prunable(problem: Problem, workload: Workload, dataset: Dataset) -> None:
    """Prune the untrained network once by every criterion, as far as the space goes.

    Finds at the start what would fail in every trial, and holds the costs that the search will
    trust against those of a network that was really pruned.
    """
    from dse.compress import FROM_DATA, Importance, prune_channels
    from dse.graph.channels import narrow
    from dse.graph.trace import trace

    space = problem.space
    corners = [space.narrowest(corner).widths for corner in space.corners(space.targets[0])]
    widths = min(corners, key=lambda kept: sum({**space.channels, **kept}.values()))
    if not widths:
        return
    samples = dataset.train.take(min(64, len(dataset.train)))
    for criterion in space.choices.get("criterion", ("l2",)):
        importance = Importance(
            str(criterion), problem.study.seed, samples if criterion in FROM_DATA else None
        )
        model = workload.network(problem.study.seed)
        pruned = prune_channels(model, dataset.example, widths, importance)
        if (
            trace(pruned, dataset.sample_shape, workload.name).key
            != narrow(space.graph, widths).key
        ):
            raise StudyError(
                f"pruning by '{criterion}' removes other channels than the graph ties together; "
                "list the layers it concerns under 'space.pruning.skip'"
            )


def _check_factorizable(problem: Problem, workload: Workload, dataset: Dataset) -> None:
    """Split the layers of the untrained network as far as the space goes, as pruning is checked."""
    from dse.compress import Importance, factorize, prune_channels
    from dse.graph.channels import narrow
    from dse.graph.factor import factorize_shapes
    from dse.graph.trace import trace

    space = problem.space
    corners = [corner for corner in space.corners(space.targets[0]) if corner.ranks]
    for corner in {corner.factors: corner for corner in corners}.values():
        model, factors = workload.network(problem.study.seed), corner.factors or "channel"
        model = prune_channels(model, dataset.example, corner.widths, Importance("l2"))
        found = trace(factorize(model, corner.ranks, factors), dataset.sample_shape, workload.name)
        expected = factorize_shapes(narrow(space.graph, corner.widths), corner.ranks, factors)
        if found.key != expected.key:
            raise StudyError(
                f"low-rank factors ({factors}) become other operators than their layers say; "
                "list the layers that the network's forward looks into under 'space.low_rank.skip'"
            )


def record_of(launch: Launch, name: str, n_trials: int) -> StudyRecord:
    """What the database keeps of a new study."""
    study, problem = launch.study, launch.problem
    return StudyRecord(
        name=name,
        created=time.time(),
        study_file=launch.text,
        definition={**study.searchable(), "folder": str(launch.folder.resolve())},
        space_hash=problem.space.hash,
        space=problem.space.to_json(),
        distributions=problem.space.distributions,
        sampler=resolve(study.sampler.name, problem.space.size, n_trials)[0],
        sampler_settings=study.sampler.settings,
        seed=study.seed,
        objectives=problem.objectives,
        constraints=tuple(constraint.text for constraint in study.constraints),
        box=problem.box,
        n_trials=n_trials,
        versions=versions(),
        workload=launch.workload.name,
    )


def check_same(stored: StudyRecord, launch: Launch) -> None:
    """Refuse to resume when the study file's space, workload, seed or limits changed."""
    before = {key: value for key, value in stored.definition.items() if key != "folder"}
    lines = difference(before, launch.study.searchable())
    if not lines and stored.space_hash != launch.problem.space.hash:
        lines = ["the knobs that the network and the boards leave have changed"]
    if lines:
        raise StudyError(
            f"study '{stored.name}' cannot be resumed with another search: {'; '.join(lines)}; "
            "restore the file, or give the changed one a new name"
        )


def explore(
    storage: Storage,
    record: StudyRecord,
    launch: Launch,
    listener: Listener,
    *,
    n_trials: int | None,
    timeout_s: float | None,
    stop: Callable[[], bool],
    workers: int = 1,
    limits: Limits = NO_LIMITS,
    slot: Mapping[str, str] | None = None,
    cluster: Cluster | None = None,
) -> Ending:
    """Run the study until it has `n_trials` finished ones, the time is up, or `stop` says so.

    `workers` trials run at a time, each held to `limits`; `slot` says what this machine has. On a
    `cluster` as many run as fit into it, or `workers` where that is more than one.
    """
    from dse.explorer import Explorer
    from dse.samples import keep_samples

    # What is loaded by now stays: the collector need not look at it again while costs are computed.
    gc.collect()
    gc.freeze()
    listener = _proving(listener, storage, record, launch)
    executor = _executor(record, launch, stop, workers, limits, cluster)
    try:
        explorer = Explorer(storage, record, launch.problem, executor, listener, stop, slot=slot)
        ending = explorer.run(n_trials, timeout_s)
    finally:
        executor.close()
    if explorer.finished:
        keep_samples(storage, record.name, launch.dataset)
    return ending


def _executor(
    record: StudyRecord,
    launch: Launch,
    stop: Callable[[], bool],
    workers: int,
    limits: Limits,
    cluster: Cluster | None,
) -> Executor:
    """This process alone, or a pool where several are wanted or one is to be held to limits."""
    make = partial(evaluator_of, launch.text, str(launch.folder.resolve()), record.seed)
    if cluster is not None:
        slots = workers if workers > 1 else None
        return RayExecutor(make, cluster.address, cluster.share, slots, limits)
    if workers == 1 and limits == NO_LIMITS:
        return InProcess(
            _evaluator(launch.workload, launch.dataset, launch.recipe, record.seed, stop)
        )
    return LocalPool(make, workers, limits)


def evaluator_of(text: str, folder: str, seed: int, stop: Callable[[], bool]) -> Measuring:
    """What trains and measures a study's networks, in a process that knows only its file."""
    from dse.workloads import check_workload, workload_of

    study = parse_study(text, "the study")
    workload = workload_of(study, Path(folder))
    recipe = workload.recipe.with_changes(study.training)
    return _evaluator(workload, check_workload(workload), recipe, seed, stop)


def _evaluator(
    workload: Workload, dataset: Dataset, recipe: Recipe, seed: int, stop: Callable[[], bool]
) -> Measuring:
    from dse.evaluate import Evaluator
    from dse.workloads.download import cache_folder

    return Evaluator(workload, dataset, recipe, seed, cache_folder() / "stages", stop)


def _proving(listener: Listener, storage: Storage, record: StudyRecord, launch: Launch) -> Listener:
    """The listener, and before it one that builds and runs designs where the study asks so."""
    if launch.study.verify == "never":
        return listener
    from dse.prover import SAMPLES, Prover

    inputs = launch.dataset.test.take(SAMPLES).inputs
    prover = Prover(listener, storage, record.name, launch.problem, launch.study.verify, inputs)
    prover.catch_up()
    return prover


def preview(launch: Launch, draws: int = 200) -> Mapping[str, Any]:
    """What a study would do, without training: targets, knobs, costs, share that fits."""
    import random

    problem, source = launch.problem, random.Random(launch.study.seed)
    screened = [
        problem.expect(problem.space.candidate(problem.space.draw(source))) for _ in range(draws)
    ]
    return {
        "workload": launch.workload.name,
        "parameters": problem.space.graph.parameters,
        "macs": problem.space.graph.macs,
        "sampler": resolve(launch.study.sampler.name, problem.space.size, launch.study.n_trials)[1],
        "knobs": len(problem.space.knobs),
        "settings": problem.space.size,
        "alignment": problem.space.alignment,
        "targets": list(problem.targets),
        "left_out": list(problem.left_out),
        "feasible_by_cost": sum(s.feasible for s in screened) / draws,
        "baseline_int8": _costs(problem, problem.baseline_costs(problem.reference_target)),
        "smallest": _costs(problem, problem.lowest_costs(problem.reference_target)),
        "constraints": [constraint.text for constraint in problem.study.constraints],
    }


def _costs(problem: Problem, metrics: Mapping[Any, Any]) -> dict[str, Any]:
    return {"target": problem.reference_target} | {
        name: metric.value for name, metric in metrics.items()
    }


def resume_command(name: str, storage: str, n_trials: int, workers: int = 1) -> str:
    """The exact command that goes on with a study, but for a password, which it does not show."""
    url = _quoted(without_password(storage))
    crew = f" --workers {workers}" if workers > 1 else ""
    return f"dse resume {_quoted(name)} --storage {url} --n-trials {n_trials}{crew}"


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)


def only_study(names: Sequence[str], url: str) -> str:
    """The single study of a database; StudyError names them when there are several."""
    if len(names) == 1:
        return names[0]
    if not names:
        url = without_password(url)
        raise StudyError(f"{url} holds no study yet; start one with 'dse run STUDY.yaml'")
    url = without_password(url)
    raise StudyError(f"{url} holds {len(names)} studies; name one of: {', '.join(sorted(names))}")
