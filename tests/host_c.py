"""Generated C on this machine: compiled by the C compiler there is, called through ctypes."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dse.firmware.emit import Sources
from dse.graph.entry import input_bytes
from dse.graph.ir import Graph

CC = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-pedantic")
Array = np.ndarray[Any, Any]


def write(folder: Path, sources: Sequence[Sources]) -> list[Path]:
    """Header and source of every network; the paths of the sources."""
    for one in sources:
        (folder / f"{one.name}.h").write_text(one.header, encoding="utf-8")
        (folder / f"{one.name}.c").write_text(one.source, encoding="utf-8")
    return [folder / f"{one.name}.c" for one in sources]


def compiled(folder: Path, sources: Sequence[Sources], *flags: str) -> Path:
    """All networks in one shared library."""
    library = folder / "networks.so"
    command(*WARNINGS, "-O1", "-fPIC", "-shared", *flags, *write(folder, sources), "-o", library)
    return library


def command(*arguments: object) -> str:
    """What the C compiler prints; its message when it fails."""
    assert CC is not None
    words = [CC, *(str(argument) for argument in arguments)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


@dataclass(frozen=True)
class Host:
    """A compiled library."""

    library: ctypes.CDLL

    @classmethod
    def load(cls, path: Path) -> Host:
        return cls(ctypes.CDLL(str(path)))

    def run(self, sources: Sources, inputs: Array) -> Array:
        """Outputs (N, bytes or floats) of inputs (N, ...), each in the graph's own layout.

        The arena is full of old values and fenced: a byte written past its end fails.
        """
        calls = {n: getattr(self.library, f"{sources.name}_{n}") for n in ("input", "output")}
        for call in calls.values():
            call.restype = ctypes.c_void_p
        words = np.full(sources.arena_bytes // 4 + 8, 0x5A5A5A5A, dtype=np.uint32)
        place = ctypes.c_void_p(words.ctypes.data + 16)
        outputs = []
        for one in inputs:
            raw = np.ascontiguousarray(one).tobytes()
            assert len(raw) == sources.input_bytes
            ctypes.memmove(calls["input"](place), raw, len(raw))
            getattr(self.library, f"{sources.name}_run")(place)
            found = ctypes.string_at(calls["output"](place), sources.output_bytes)
            outputs.append(np.frombuffer(found, dtype=inputs.dtype))
        assert (words[:4] == 0x5A5A5A5A).all()
        assert (words[4 + sources.arena_bytes // 4 :] == 0x5A5A5A5A).all()
        return np.stack(outputs)


def entries(graph: Graph, inputs: torch.Tensor) -> Array:
    """Float inputs (N, C, H, W) as the numbers that the graph's C takes: (N, elements)."""
    values: Array = input_bytes(graph, inputs).view(graph.tensors[graph.input].dtype)
    return values
