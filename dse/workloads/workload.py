"""Workloads by name: a network, its data set and its training recipe."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dse.errors import WorkloadError, nearest
from dse.workloads.archives import cifar10_subset, har
from dse.workloads.dataset import SPLIT_SEED, Dataset, Split, dataset_from_arrays
from dse.workloads.download import FASHION_MNIST, MNIST, Publication, published_arrays
from dse.workloads.networks import DigitsNet, LeNet5, MotionNet, ResNet8
from dse.workloads.training import Progress, Recipe, TrainingLog, train

ENTRY_POINTS = "dse.workloads"
DIGITS_TEST_SHARE = 0.2
VALIDATION_IMAGES = 5000


@dataclass(frozen=True)
class Workload:
    """What is compressed: `build` makes the network, `load` the data; `origin` names the sources.

    The network maps float32 samples (N, C, H, W), (N, C, L) or (N, F) to scores (N, classes).
    """

    name: str
    build: Callable[[], nn.Module]
    load: Callable[[], Dataset]
    recipe: Recipe
    origin: str

    def __post_init__(self) -> None:
        if not self.name or not callable(self.build) or not callable(self.load):
            raise WorkloadError(
                f"workload '{self.name}' needs a name, a function 'build' and a function 'load'"
            )

    def network(self, seed: int) -> nn.Module:
        """A fresh network whose random weights depend on `seed` alone; torch's generator is kept.

        Raises WorkloadError when `build` returns something else than a torch module.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.build()
        if not isinstance(model, nn.Module):
            raise WorkloadError(
                f"workload '{self.name}': the model function returned {type(model).__name__}; "
                "it must return a torch.nn.Module"
            )
        return model

    def model_digest(self) -> str:
        """Sha256 (hex) of what `build` makes: layers, shapes, source code, pretrained values.

        Values that change with the seed are an initialisation and do not count, so the digest is
        the same on every machine.
        """
        model, other = self.network(0), self.network(1)
        digest = hashlib.sha256(repr(model).encode())
        for source in sorted(_sources(model)):
            digest.update(source.encode())
        for (name, value), again in zip(
            model.state_dict().items(), other.state_dict().values(), strict=True
        ):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            if torch.equal(value, again):
                digest.update(value.contiguous().numpy().tobytes())
        return digest.hexdigest()


def check_workload(workload: Workload) -> Dataset:
    """The workload's data set, after a run of its network on two samples.

    Raises WorkloadError when the network cannot read the samples, or returns something else than
    finite scores (N, classes).
    """
    dataset = workload.load()
    if not isinstance(dataset, Dataset):
        raise WorkloadError(
            f"workload '{workload.name}': its data function returned {type(dataset).__name__}; "
            "it must return a Dataset"
        )
    model = workload.network(0).eval()
    samples = dataset.train.inputs[:2]
    try:
        with torch.no_grad():
            scores = model(samples)
    except Exception as error:
        raise WorkloadError(
            f"the model of workload '{workload.name}' fails on samples of shape "
            f"{tuple(samples.shape)}: {one_line(error)}"
        ) from error
    _check_scores(workload.name, scores, len(samples), dataset.classes)
    return dataset


def train_baseline(
    workload: Workload,
    train_split: Split,
    seed: int,
    *,
    progress: Progress | None = None,
) -> tuple[nn.Module, TrainingLog]:
    """The workload's network, trained from scratch by its recipe; the same for the same seed."""
    model, recipe = workload.network(seed), workload.recipe
    log = train(
        model,
        train_split.take(recipe.train_samples),
        recipe,
        epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        seed=seed,
        progress=progress,
    )
    return model, log


def find_workload(name: str) -> Workload:
    """The workload of that name: built in, or from an installed package (`dse.workloads`).

    Raises WorkloadError for an unknown name, or an entry point that is not a Workload.
    """
    if name in WORKLOADS:
        return WORKLOADS[name]
    installed = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in installed:
        raise WorkloadError(f"unknown workload '{name}'; {nearest(name, workload_names())}")
    try:
        found = installed[name].load()
    except Exception as error:
        raise WorkloadError(
            f"workload '{name}' ({installed[name].value}) cannot be imported: {one_line(error)}"
        ) from error
    if not isinstance(found, Workload):
        raise WorkloadError(
            f"workload '{name}' ({installed[name].value}) is {type(found).__name__}; "
            "the entry point must name a dse.workloads.Workload"
        )
    return found


def workload_names() -> tuple[str, ...]:
    """Every name that find_workload knows, sorted."""
    return tuple(sorted({*WORKLOADS, *(point.name for point in entry_points(group=ENTRY_POINTS))}))


def one_line(error: BaseException) -> str:
    """Type and text of a foreign error, for the tail of a message."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@cache
def _digits() -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 1, 8, 8) / 16  # ink is counted from 0 to 16
    rest, test = train_test_split(
        np.arange(len(labels)),
        test_size=DIGITS_TEST_SHARE,
        random_state=SPLIT_SEED,
        stratify=labels,
    )
    return dataset_from_arrays(
        "digits",
        {
            "x_train": images[rest],
            "y_train": labels[rest],
            "x_test": images[test],
            "y_test": labels[test],
        },
        DIGITS_TEST_SHARE / (1 - DIGITS_TEST_SHARE),
    )


def _images(publication: Publication) -> Dataset:
    """Pixels from 0 to 1, so that an int8 input is the pixel minus 128."""
    arrays = published_arrays(publication)
    scaled = {
        key: value[:, np.newaxis].astype(np.float32) / 255 if key.startswith("x_") else value
        for key, value in arrays.items()
    }
    return dataset_from_arrays(publication.name, scaled, VALIDATION_IMAGES)


@cache
def _mnist() -> Dataset:
    return _images(MNIST)


@cache
def _fashion_mnist() -> Dataset:
    return _images(FASHION_MNIST)


@cache
def _cifar10_subset() -> Dataset:
    return cifar10_subset()


@cache
def _har() -> Dataset:
    return har()


LENET_RECIPE = Recipe(
    epochs=6,
    fine_tune_epochs=2,
    batch_size=64,
    learning_rate=2e-3,
    fine_tune_learning_rate=4e-3,
    fine_tune_samples=40_000,
)

WORKLOADS: Mapping[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload(
            "digits",
            DigitsNet,
            _digits,
            Recipe(
                epochs=30, fine_tune_epochs=30, learning_rate=4e-3, fine_tune_learning_rate=4e-3
            ),
            "scikit-learn's 8x8 digits (UCI Optical Recognition, Alpaydin & Kaynak 1998)",
        ),
        Workload(
            "lenet5-mnist",
            LeNet5,
            _mnist,
            LENET_RECIPE,
            "MNIST (LeCun & Cortes); LeNet-5 after LeCun et al. 1998, as in arXiv 1510.00149",
        ),
        Workload(
            "lenet5-fashion-mnist",
            LeNet5,
            _fashion_mnist,
            LENET_RECIPE,
            "Fashion-MNIST (Xiao et al., arXiv 1708.07747); LeNet-5 as in arXiv 1510.00149",
        ),
        Workload(
            "resnet8-cifar10",
            ResNet8,
            _cifar10_subset,
            Recipe(epochs=8, fine_tune_epochs=4, learning_rate=6e-3, fine_tune_learning_rate=4e-3),
            "a subset of CIFAR-10 (Krizhevsky 2009); ResNet-8 of MLPerf Tiny (arXiv 2106.07597)",
        ),
        Workload(
            "har",
            MotionNet,
            _har,
            Recipe(epochs=8, fine_tune_epochs=6, learning_rate=2e-3, fine_tune_learning_rate=2e-3),
            "UCI HAR, split by person (Anguita et al. 2013); a 1-D network after Ronao & Cho 2016",
        ),
    )
}


def _check_scores(name: str, scores: object, samples: int, classes: int) -> None:
    if not isinstance(scores, Tensor):
        raise WorkloadError(
            f"the model of workload '{name}' returned {type(scores).__name__}; it must return a "
            f"tensor of shape (N, {classes})"
        )
    if tuple(scores.shape) != (samples, classes):
        raise WorkloadError(
            f"the model of workload '{name}' returned shape {tuple(scores.shape)} for {samples} "
            f"samples; its data has {classes} classes, so it must be {(samples, classes)}"
        )
    if not bool(torch.isfinite(scores).all()):
        raise WorkloadError(
            f"the model of workload '{name}' returned NaN or infinite scores before any training"
        )


def _sources(model: nn.Module) -> set[str]:
    """Source of the files that define the model's classes, torch's own left out."""
    classes = {type(module) for module in model.modules()}
    own = {cls for cls in classes if not cls.__module__.startswith("torch.")}
    return {text for cls in own if (text := _source(cls))}


def _source(cls: type) -> str:
    try:
        return Path(inspect.getfile(cls)).read_text(encoding="utf-8")
    except (OSError, TypeError):  # defined in a console or a notebook
        return cls.__qualname__
