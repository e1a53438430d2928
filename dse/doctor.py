"""`dse doctor`: is everything there, and what to do about what is not."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from dse.errors import DseError

# Distribution, module, and how to install an optional one (empty: part of the base).
_PACKAGES: tuple[tuple[str, str, str], ...] = (
    ("torch", "torch", ""),
    ("optuna", "optuna", ""),
    ("torch-pruning", "torch_pruning", ""),
    ("moocore", "moocore", ""),
    ("plotly", "plotly", ""),
    ("optuna-dashboard", "optuna_dashboard", "pip install 'dse[dashboard]'"),
    ("ziglang", "ziglang", "pip install 'dse[firmware]' to build designs"),
    ("unicorn", "unicorn", "pip install 'dse[firmware]' to run them on an emulated core"),
    ("tflite", "tflite", "pip install 'dse[tflite]' to write .tflite files"),
    ("fsspec", "fsspec", "pip install 'dse[artifacts]' to keep networks outside the database"),
    ("ray", "ray", "pip install 'dse[ray]' to run trials on a Ray cluster"),
    ("psycopg", "psycopg", "pip install 'dse[postgresql]' to share a study between machines"),
)


@dataclass(frozen=True)
class Check:
    """One thing looked at: ok, missing (optional), broken, or a harmless note."""

    what: str
    state: Literal["ok", "missing", "broken", "note"]
    found: str
    what_to_do: str = ""

    def row(self) -> dict[str, str]:
        """As a row of the table."""
        return asdict(self)


def checks() -> Iterator[Check]:
    """Python, packages, cache, data and boards."""
    good = sys.version_info >= (3, 11)
    yield Check(
        "python", "ok" if good else "broken", platform.python_version(), "" if good else "3.11+"
    )
    for package in _PACKAGES:
        yield _package(*package)
    yield _cache()
    yield from _data()
    yield _boards()


def _package(name: str, module: str, install: str) -> Check:
    if importlib.util.find_spec(module) is None:
        state: Literal["missing", "broken"] = "missing" if install else "broken"
        return Check(name, state, "not installed", install or f"pip install {name}")
    try:
        return Check(name, "ok", version(name))
    except PackageNotFoundError:
        return Check(name, "ok", "installed")


def _cache() -> Check:
    from dse.workloads.download import cache_folder

    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Check("cache", "broken", f"{folder}: {error.strerror}", "set DSE_CACHE to another")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Check("cache", "ok", f"{folder}, {size / 2**20:.0f} MiB")


def _data() -> Iterator[Check]:
    local = os.environ.get("DSE_DATA")
    if not local:
        yield Check(
            "DSE_DATA", "missing", "not set", "optional: a folder with mnist.npz and the like"
        )
        return
    found = sorted(path.name for path in Path(local).glob("*.npz"))
    state: Literal["ok", "broken"] = "ok" if found else "broken"
    yield Check("DSE_DATA", state, f"{local}: {', '.join(found) or 'no .npz file'}")


def _boards() -> Check:
    from dse.targets import load_backends, load_boards

    try:
        return Check(
            "boards", "ok", f"{len(load_boards())} boards, {len(load_backends())} backends"
        )
    except DseError as error:
        return Check("boards", "broken", str(error))


def database_check(url: str) -> Check:
    """Whether a database opens, and what it holds."""
    from dse.database import without_password
    from dse.storage import Storage
    from dse.trial import State

    try:
        with Storage.open_readonly(url) as opened:
            studies = opened.studies()
    except DseError as error:
        return Check("database", "broken", str(error))
    running = sum(study.counts.get(State.RUNNING, 0) for study in studies)
    hint = "'dse resume' does the trials again that were running" if running else ""
    return Check(
        "database",
        "ok",
        f"{without_password(url)}: {len(studies)} studies, {running} running trials",
        hint,
    )
