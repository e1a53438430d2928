"""A user's own network and data: two functions named 'package.module:function' in a study file."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn

from dse.errors import WorkloadError, nearest
from dse.study import BringYourOwn, StudyFile
from dse.workloads.dataset import Dataset, dataset_from_arrays
from dse.workloads.training import Recipe
from dse.workloads.workload import Workload, check_workload, find_workload, one_line

ARRAYS = "a dse.workloads.Dataset, a dict of numpy arrays x_train, y_train, x_test, y_test"


def bring_your_own(
    model: str, data: str, folder: Path, recipe: Recipe | None = None, name: str | None = None
) -> Workload:
    """The workload of two functions, `model() -> nn.Module` and `data() -> arrays`; checked by use.

    References read `package.module:function` and are imported relative to `folder` (that of the
    study file) first, then from the environment. `data` returns a Dataset, a mapping with
    `x_train, y_train, x_test, y_test[, x_validation, y_validation]`, or these four or six as a
    tuple in this order: inputs (N, C, H, W), (N, C, L) or (N, F), labels (N,) from 0.
    Raises WorkloadError with the one thing to mend.
    """
    workload = Workload(
        name or data.partition(":")[0].rpartition(".")[2] or "own",
        _OwnModel("model", model, folder.resolve()),
        _OwnData("data", data, folder.resolve()),
        recipe or Recipe(),
        f"model {model}, data {data}",
    )
    workload.network(0)  # a missing model function is told before a slow data set is loaded
    check_workload(workload)
    return workload


def own_model(reference: str, folder: Path) -> nn.Module:
    """The network that a function `package.module:function` makes; WorkloadError otherwise."""
    return _OwnModel("model", reference, folder.resolve())()


def workload_of(study: StudyFile, folder: Path) -> Workload:
    """The workload that a study file names; `folder` is where a user's own modules lie."""
    asked = study.workload
    if isinstance(asked, BringYourOwn):
        return bring_your_own(asked.model, asked.data, folder)
    return find_workload(asked)


@dataclass(frozen=True)
class _Own:
    """A function of the user's by its reference; it can be sent to another process."""

    key: str
    reference: str
    folder: Path

    def call(self) -> Any:
        with _importable(self.folder):
            function = self._function()
            try:
                return function()
            except (Exception, SystemExit) as error:
                raise WorkloadError(f"{self.where} raised {one_line(error)}") from error

    @property
    def where(self) -> str:
        return f"{self.key}: {self.reference}"

    def _function(self) -> Callable[[], Any]:
        module_name, colon, function_name = str(self.reference).partition(":")
        if not colon or not module_name or not function_name:
            raise WorkloadError(
                f"{self.key}: '{self.reference}' names no function; "
                "write package.module:function, for example mymodel:build"
            )
        module = self._module(module_name)
        found = getattr(module, function_name, None)
        if not callable(found):
            public = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
            what = "has no function" if found is None else "holds something that is no function:"
            raise WorkloadError(
                f"{self.where}: module '{module_name}' ({getattr(module, '__file__', '?')}) "
                f"{what} '{function_name}'; {nearest(function_name, public)}"
            )
        function: Callable[[], Any] = found
        return function

    def _module(self, name: str) -> Any:
        _forget_namesake(name, self.folder)
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name + ".").startswith(error.name + "."):
                raise WorkloadError(
                    f"{self.where}: there is no module '{name}', neither beside the study file "
                    f"({self.folder}) nor installed"
                ) from error
            raise WorkloadError(f"{self.where} needs the module '{error.name}'") from error
        except (Exception, SystemExit) as error:
            raise WorkloadError(f"{self.where} fails on import: {one_line(error)}") from error


@dataclass(frozen=True)
class _OwnModel(_Own):
    def __call__(self) -> nn.Module:
        model = self.call()
        if not isinstance(model, nn.Module):
            raise WorkloadError(
                f"{self.where} returned {type(model).__name__}; it must return a torch.nn.Module"
            )
        return model


@dataclass(frozen=True)
class _OwnData(_Own):
    def __call__(self) -> Dataset:
        return _loaded(self)


@lru_cache(maxsize=4)
def _loaded(data: _OwnData) -> Dataset:
    found = data.call()
    if isinstance(found, Dataset):
        return found
    if isinstance(found, tuple | list) and len(found) in (4, 6):
        names = ("x_train", "y_train", "x_test", "y_test", "x_validation", "y_validation")
        found = dict(zip(names, found, strict=False))
    if not isinstance(found, Mapping):
        raise WorkloadError(
            f"{data.where} returned {type(found).__name__}; it must return {ARRAYS} "
            "(and x_validation, y_validation), or these as a tuple"
        )
    return dataset_from_arrays(data.reference, found)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """The folder first on the import path, also while the user's function runs."""
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _forget_namesake(name: str, folder: Path) -> None:
    """Drop an imported module of the same name that lies in another study's folder."""
    top = name.partition(".")[0]
    loaded = getattr(sys.modules.get(top), "__file__", None)
    beside = [folder / f"{top}.py", folder / top / "__init__.py"]
    here = next((path for path in beside if path.is_file()), None)
    if loaded is None or here is None or Path(loaded).resolve() == here:
        return
    for module in [key for key in sys.modules if key == top or key.startswith(top + ".")]:
        del sys.modules[module]
