"""Candidate -> accuracy on the exact network that would ship, in stages cached by content.

Stages: the trained baseline, the pruned and fine-tuned network (shared by every bit width and every
target), the quantized graph, fine-tuned once more where quantization is trained, its accuracy under
a rounding contract.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import nn

from dse.candidate import CALIBRATION, Candidate
from dse.compress import (
    Budgets,
    Compression,
    Distillation,
    Ramp,
    compress,
    learn_quantization,
    prune_to_budgets,
)
from dse.errors import WorkloadError
from dse.evaluation import Evaluation, Interrupted
from dse.graph import archive, execute
from dse.graph.blocks import ELEMENT, kept_elements
from dse.graph.correct import correct_biases, round_adaptively
from dse.graph.equalize import equalize
from dse.graph.ir import Conv2D, FullyConnected, Graph, Op, WeightedOp
from dse.graph.numerics import Rounding
from dse.graph.quantize import Ranges, quantize
from dse.graph.ranges import find_ranges
from dse.graph.trace import trace
from dse.stopping import Watch
from dse.trial import Metric
from dse.workloads import Dataset, Recipe, Split, Workload, float_accuracy, train
from dse.workloads.training import AfterEpoch, Loss, Progress

CALIBRATION_SAMPLES = 1024
# Bumped when the meaning of a stored stage changes.
STAGE_VERSION = 2
# Between two looks whether another process has made a stage.
WAIT_S = 0.1


class _Training(TypedDict):
    """What every fine-tuning is told besides what it makes."""

    progress: Progress
    after_epoch: AfterEpoch | None
    loss: Loss | None


class Evaluator:
    """Trains, compresses and measures the networks of one workload; the seed decides every draw.

    `folder` keeps the stages; it may be deleted at any time. `should_stop` is asked after every
    training step, and ends the training with Interrupted.
    """

    def __init__(
        self,
        workload: Workload,
        dataset: Dataset,
        recipe: Recipe,
        seed: int,
        folder: Path,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.workload, self.dataset, self.recipe = workload, dataset, recipe
        self.seed, self.should_stop = seed, should_stop
        content = _content(workload, dataset, recipe, seed)
        self._stages = folder / _digest(content)
        # How networks are fine-tuned does not change the baseline.
        content["recipe"] = {k: v for k, v in content["recipe"].items() if "fine_tune" not in k}
        self._baseline_file = folder / _digest(content) / "baseline.pt"
        self._baseline: nn.Module | None = None
        self._last: tuple[str, Graph] | None = None
        self._last_ranges: tuple[tuple[str, ...], Ranges] | None = None
        self._trainings = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W), (C, L) or (F,) of one sample."""
        return self.dataset.sample_shape

    def evaluate(
        self, candidate: Candidate, rounding: Rounding, watch: Watch | None = None
    ) -> Evaluation:
        """Train (or find) the candidate's network and measure its accuracy on validation data.

        `watch` is told the float network's validation accuracy between two epochs of a training
        that happens here, and may raise to end it. Raises Interrupted, CompressionError,
        WorkloadError or GraphError.
        """
        stage_s: dict[str, float] = {}
        before = self._trainings
        with _timed(stage_s, "train"):
            # Under quantization-aware training, the accuracy to watch is that of the second stage.
            graph = self._float_stage(candidate, None if candidate.method == "qat" else watch)
        with _timed(stage_s, "quantize"):
            finished = self._finished(graph, candidate)
        if candidate.method == "qat":
            with _timed(stage_s, "train"):
                finished = self._learned_stage(graph, finished, candidate, watch)
        with _timed(stage_s, "validate"):
            metric = self.accuracy(finished, self.dataset.validation, rounding)
        trained = self._trainings > before
        return Evaluation(finished, metric, len(self.dataset.validation), stage_s, trained)

    def test_accuracy(self, graph: Graph, rounding: Rounding) -> tuple[Metric, int]:
        """Accuracy on test data, which the search never sees, and the number of samples."""
        return self.accuracy(graph, self.dataset.test, rounding), len(self.dataset.test)

    def accuracy(self, graph: Graph, split: Split, rounding: Rounding) -> Metric:
        """Share of a split that the graph classifies correctly, with its 95 % Wilson interval."""
        share = execute.accuracy(graph, split.inputs, split.labels, rounding)
        low, high = wilson_interval(share, len(split))
        kind = f"integer network, {rounding} rounding" if graph.integer else "float32 network"
        return Metric(share, low, high, "measured", f"exact {kind}, {len(split)} samples")

    def _finished(self, graph: Graph, candidate: Candidate) -> Graph:
        if candidate.precision == "float32":
            return _with_kept(graph, candidate.layer_kept, candidate.pattern or ELEMENT)
        chosen = {**CALIBRATION, **candidate.calibration}
        equal = equalize(graph) if chosen["equalization"] == "cross-layer" else graph
        found = quantize(
            equal,
            self._ranges(equal, candidate),
            candidate.layer_bits,
            candidate.layer_kept,
            candidate.precision,
            candidate.stored_pattern,
            chosen["scales"],
            candidate.books(self.seed),
        )
        if chosen["rounding"] == "adaptive":
            found = round_adaptively(equal, found, self._calibration)
        if chosen["biases"] == "corrected":
            found = correct_biases(equal, found, self._calibration)
        return found

    def _ranges(self, graph: Graph, candidate: Candidate) -> Ranges:
        method = candidate.ranges or "minmax"
        key = candidate.float_key, method, candidate.calibration.get("equalization", "")
        if self._last_ranges is None or self._last_ranges[0] != key:
            self._last_ranges = key, find_ranges(graph, self._calibration, method)
        return self._last_ranges[1]

    @cached_property
    def _calibration(self) -> torch.Tensor:
        """The training samples that quantization after training looks at."""
        return self.dataset.train.take(CALIBRATION_SAMPLES).inputs

    def _float_stage(self, candidate: Candidate, watch: Watch | None) -> Graph:
        """The pruned, fine-tuned network as a float graph."""
        key = candidate.float_key
        if self._last is None or self._last[0] != key:
            self._last = key, self._kept(key, lambda: self._compressed(candidate, watch))
        return self._last[1]

    def _learned_stage(
        self, graph: Graph, start: Graph, candidate: Candidate, watch: Watch | None
    ) -> Graph:
        """The integer network after quantization-aware training."""

        def learned() -> Graph:
            self._trainings += 1
            return learn_quantization(
                graph,
                start,
                self.dataset.train,
                self.recipe,
                self.seed,
                progress=self._stop_between_steps,
                after_epoch=None if watch is None else self._watched(watch),
                loss=self._loss(candidate),
            )

        return self._kept(candidate.training_key, learned)

    def _kept(self, key: str, make: Callable[[], Graph]) -> Graph:
        """The graph of a stage: found in the cache, or made and put there."""
        path = self._stages / f"{key}.npz"
        with self._alone(path):
            if path.exists():
                return archive.from_bytes(path.read_bytes())
            graph = make()
            _write(path, archive.to_bytes(graph))
            return graph

    def _loss(self, candidate: Candidate) -> Loss | None:
        teaching = candidate.distillation
        return Distillation(self.baseline(), **teaching) if teaching else None

    def _compressed(self, candidate: Candidate, watch: Watch | None) -> Graph:
        baseline = self.baseline()
        self._trainings += candidate.compressed
        training: _Training = {
            "progress": self._stop_between_steps,
            "after_epoch": None if watch is None else self._watched(watch),
            "loss": self._loss(candidate),
        }
        if candidate.budgets:
            model = self._within_budgets(baseline, candidate, training)
        else:
            model = self._by_plan(baseline, candidate, training)
        return trace(model, self.shape, self.workload.name)

    def _within_budgets(
        self, baseline: nn.Module, candidate: Candidate, training: _Training
    ) -> nn.Module:
        return prune_to_budgets(
            baseline,
            self.dataset.train,
            Budgets.of(trace(baseline, self.shape), candidate.budgets),
            self.recipe,
            self.seed,
            alignment=candidate.alignment,
            kept=candidate.whole,
            **training,
        )

    def _by_plan(self, baseline: nn.Module, candidate: Candidate, training: _Training) -> nn.Module:
        plan = Compression(
            candidate.widths,
            candidate.kept,
            candidate.criterion or "l2",
            candidate.schedule or "one-shot",
            ranks=candidate.ranks,
            factors=candidate.factors or "channel",
            pattern=candidate.pattern or ELEMENT,
            ramp=Ramp(**candidate.ramp) if candidate.ramp else Ramp(),
        )
        return compress(baseline, self.dataset.train, plan, self.recipe, self.seed, **training)

    def _watched(self, watch: Watch) -> AfterEpoch:
        def after_epoch(model: nn.Module, epoch: int, epochs: int) -> bool:
            watch(float_accuracy(model, self.dataset.validation), epoch, epochs)
            return False

        return after_epoch

    def baseline(self) -> nn.Module:
        """The trained float32 network, from this process, the cache or a new training."""
        if self._baseline is not None:
            return self._baseline
        with self._alone(self._baseline_file):
            self._baseline = self._baseline_kept()
        return self._baseline

    def _baseline_kept(self) -> nn.Module:
        model = self.workload.network(self.seed)
        path = self._baseline_file
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True))
            model.eval()
            return model
        self._trainings += 1
        train(
            model,
            self.dataset.train.take(self.recipe.train_samples),
            self.recipe,
            epochs=self.recipe.epochs,
            learning_rate=self.recipe.learning_rate,
            seed=self.seed,
            progress=self._stop_between_steps,
        )
        with _replacing(path) as temporary:
            torch.save(model.state_dict(), temporary)
        return model

    @contextmanager
    def _alone(self, path: Path) -> Iterator[None]:
        """Keeps other processes of this machine from making the same file meanwhile.

        One byte of a file beside it is locked, by its name; a process that dies lets go of it.
        """
        with _writable(path.parent):
            file = (path.parent / "lock").open("a")
        with file:
            place = int(hashlib.sha256(path.name.encode()).hexdigest()[:12], 16)
            while True:
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
                    break
                except BlockingIOError:
                    self._stop_between_steps(0, 0)
                    time.sleep(WAIT_S)
            yield

    def _stop_between_steps(self, step: int, total: int) -> None:
        if self.should_stop():
            raise Interrupted(f"stopped at training step {step} of {total}")


def wilson_interval(share: float, samples: int) -> tuple[float, float]:
    """95 % interval of a share found on `samples` draws (E. B. Wilson, JASA 22, 1927)."""
    z = 1.959964
    centre = (share + z * z / (2 * samples)) / (1 + z * z / samples)
    half = (
        z
        / (1 + z * z / samples)
        * (share * (1 - share) / samples + z * z / (4 * samples * samples)) ** 0.5
    )
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def _with_kept(graph: Graph, kept: Mapping[str, float], pattern: str) -> Graph:
    """A float graph whose weights declare what their masks keep."""

    def declared(op: WeightedOp) -> Op:
        count = kept_elements(op.weight.shape, kept[op.name], pattern)
        return replace(op, weight=replace(op.weight, kept=count))

    ops = tuple(
        declared(op) if isinstance(op, Conv2D | FullyConnected) and op.name in kept else op
        for op in graph.ops
    )
    return replace(graph, ops=ops)


def _content(workload: Workload, dataset: Dataset, recipe: Recipe, seed: int) -> dict[str, Any]:
    """Everything that decides a training besides the candidate."""
    return {
        "model": workload.model_digest(),
        "data": dataset.digest,
        "recipe": asdict(recipe),
        "seed": seed,
        "torch": torch.__version__,
        "stage": STAGE_VERSION,
    }


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


@contextmanager
def _timed(stage_s: dict[str, float], stage: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    stage_s[stage] = stage_s.get(stage, 0.0) + time.perf_counter() - began


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Makes the folder; an OSError in the block is a sentence about it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise WorkloadError(
            f"the cache folder {folder} cannot be written ({error}); set DSE_CACHE to another"
        ) from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well."""
    with _writable(path.parent):
        handle, name = tempfile.mkstemp(dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    with _replacing(path) as temporary:
        temporary.write_bytes(content)
