"""The `dse` command in this process, over a small study that tests change and break."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any, TypeAlias

import pytest
import yaml

from dse import cli

STUDY: Mapping[str, Any] = {
    "name": "tiny",
    "workload": "digits",
    "training": {"epochs": 1, "fine_tune_epochs": 1, "train_samples": 100},
    "space": {
        "pruning": {"ratio": [0, 0.5]},
        "quantization": {"weight_bits": [4, 8]},
        "boards": ["rpi_pico"],
        "backends": ["native"],
    },
    "objectives": ["accuracy", "flash"],
    "constraints": ["ram <= 64 KiB"],
    "n_trials": 3,
}
MODEL = """
    import torch
    from torch import nn

    def build():
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
"""
DATA = """
    import numpy

    def arrays():
        rng = numpy.random.default_rng(0)
        return {
            "x_train": rng.normal(size=(60, 1, 4, 4)),
            "y_train": numpy.arange(60) % 3,
            "x_test": rng.normal(size=(12, 1, 4, 4)),
            "y_test": numpy.arange(12) % 3,
        }
"""
OWN = {"workload": {"model": "ownmodel:build", "data": "owndata:arrays"}}
Changes: TypeAlias = Mapping[str, Any]
MISSING = object()
NONE: Changes = {}


def study_text(changes: Changes = NONE) -> str:
    """The study with values replaced by dotted key; MISSING removes a key."""
    content: dict[str, Any] = copy.deepcopy(dict(STUDY))
    for path, value in changes.items():
        *parents, last = path.split(".")
        section = content
        for key in parents:
            section = section.setdefault(key, {})
        section[last] = value
        if value is MISSING:
            del section[last]
    return yaml.safe_dump(content, sort_keys=False)


def plain(text: str) -> str:
    """Without the colours that some environments force."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@dataclass(frozen=True)
class Ended:
    code: int | str | None
    out: str
    err: str

    def refused(self, *said: str) -> None:
        """One line on standard error that holds every fragment, and exit code 2."""
        assert self.code == 2, self
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("dse: "), self.err
        assert "Traceback" not in self.err
        for fragment in said:
            assert fragment in lines[0], (fragment, lines[0])


class Dse:
    """The command in this process, in a folder of its own."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, capture: Any = None) -> None:
        self.folder, self.patch, self.capture = folder, patch, capture
        patch.chdir(folder)
        patch.setenv("DSE_CACHE", str(folder / "cache"))
        patch.setenv("no_proxy", "127.0.0.1")
        for name in ("DSE_DATA", "DSE_STORAGE"):
            patch.delenv(name, raising=False)

    def __call__(self, *arguments: str) -> Ended:
        self.patch.setattr(sys, "argv", ["dse", *arguments])
        code: int | str | None = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        found = self.capture.readouterr() if self.capture else None
        return Ended(code, found.out if found else "", plain(found.err) if found else "")

    def write(self, text: str, name: str = "study.yaml") -> None:
        (self.folder / name).write_text(dedent(text))

    def check(self, changes: Changes = NONE) -> Ended:
        """A dry run of the study with these changes."""
        self.write(study_text(changes))
        return self("run", "study.yaml", "--dry-run")

    def check_own(self, model: str = MODEL, data: str = DATA, changes: Changes = OWN) -> Ended:
        """A dry run of the study with a user's own modules beside it."""
        self.write(model, "ownmodel.py")
        self.write(data, "owndata.py")
        return self.check(changes)
