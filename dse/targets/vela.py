"""Runs Arm's Vela compiler on a `.tflite` file and keeps what it found, on disk and in memory.

Vela runs in a process of its own, with its memory and time limited: it holds global state, and its
compiler is C++ that has crashed (5.2 does on INT4 tensors; int8 containers are fine). The process
stays, as loading Vela takes ten times as long as compiling a small network. Its
cycle figures are the compiler's estimate, not a simulation; operators that fall back to the CPU are
listed but not timed.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from importlib import metadata, util
from pathlib import Path
from typing import Any

from dse.errors import TargetError
from dse.targets.npu import Npu

INSTALL = "pip install 'dse[vela]'"
PACKAGE = "ethos-u-vela"
TIMEOUT_S = 300
SHOW_CPU = "--show-cpu-operations"
# Vela is loaded anew after so many networks, whatever it may have kept of them.
NETWORKS_A_PROCESS = 500
_CPU_OPERATOR = re.compile(r"^\s+CPU: (.+?) \(outputs .*\)$", re.MULTILINE)


@dataclass(frozen=True)
class VelaReport:
    """Vela's figures of one network: bytes, cycles at `clock_hz`, and what is left to the CPU.

    `sram_bytes` hold activations (and weights in the mode Sram_Only), `flash_bytes` encoded weights
    and commands outside SRAM, in DRAM where the system has it; `file_bytes` is the compiled model.
    """

    sram_bytes: int
    flash_bytes: int
    file_bytes: int
    cycles_npu: int
    cycles_total: int
    clock_hz: int
    macs: int
    cpu_operators: tuple[str, ...]

    @property
    def latency_s(self) -> float:
        """Seconds an inference, without the operators of the CPU."""
        return self.cycles_total / self.clock_hz


def missing() -> str:
    """Why Vela cannot run, with the install line; empty when it can."""
    for module, package in (("ethosu", PACKAGE), ("tflite", "tflite")):
        if util.find_spec(module) is None:
            return f"it needs the package '{package}': {INSTALL}"
    return ""


@cache
def version() -> str:
    """Vela's version, or 'not installed'."""
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return "not installed"


@lru_cache(maxsize=4096)
def compile_report(content: bytes, npu: Npu) -> VelaReport:
    """What Vela makes of a `.tflite` file; kept under DSE_CACHE by content, NPU and version.

    Raises TargetError when Vela is missing, refuses the file, crashes, or exceeds its time.
    """
    if reason := missing():
        raise TargetError(f"the backend 'ethos-u' compiles with Vela; {reason}")
    digest = hashlib.sha256(content)
    digest.update(json.dumps([asdict(npu), version()], sort_keys=True).encode())
    kept = _folder() / f"{digest.hexdigest()[:32]}.json"
    if (stored := _kept(kept)) is not None:
        return stored
    found = _compile(content, npu)
    _keep(kept, found)
    return found


def _folder() -> Path:
    return Path(os.environ.get("DSE_CACHE") or Path.home() / ".cache" / "dse") / "vela"


def _kept(path: Path) -> VelaReport | None:
    """A stored report; None where there is none, or it is damaged."""
    try:
        row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return VelaReport(**{**row, "cpu_operators": tuple(row["cpu_operators"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _keep(path: Path, report: VelaReport) -> None:
    """Store it; a cache that cannot be written only costs time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(asdict(report), file)
        Path(name).replace(path)
    except OSError:
        return


def _compile(content: bytes, npu: Npu) -> VelaReport:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.tflite"
        source.write_bytes(content)
        output = _WORKER.run(_arguments(source, npu), npu.text)
        summary = Path(folder) / f"model_summary_{npu.system_config}.csv"
        compiled = Path(folder) / "model_vela.tflite"
        with summary.open(encoding="utf-8") as file:
            row = next(csv.DictReader(file))
        return _of_summary(row, compiled.stat().st_size, tuple(_CPU_OPERATOR.findall(output)))


def _arguments(source: Path, npu: Npu) -> list[str]:
    options = {
        "--accelerator-config": npu.accelerator,
        "--config": "Arm/vela.ini",
        "--system-config": npu.system_config,
        "--memory-mode": npu.memory_mode,
        "--output-dir": str(source.parent),
    }
    return [str(source), *(word for pair in options.items() for word in pair), SHOW_CPU]


class _Worker:
    """The process that Vela runs in; made when first needed, and anew after a crash."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0
        self._left = 0

    def run(self, arguments: Sequence[str], where: str) -> str:
        """What Vela printed; TargetError in one sentence when it fails."""
        with self._lock:
            process = self._running()
            timer = threading.Timer(TIMEOUT_S, process.kill)
            timer.start()
            try:
                answer = self._ask(process, arguments)
            finally:
                timed_out = not timer.is_alive()
                timer.cancel()
        if "output" in answer:
            return answer["output"]
        if timed_out:
            raise TargetError(f"Vela took more than {TIMEOUT_S} s for this network ({where})")
        said = answer["error"]
        raise TargetError(f"Vela {version()} cannot compile this network for {where}: {said}")

    def _running(self) -> subprocess.Popen[str]:
        """The process, unless it died, did its share, or belongs to the parent of a fork."""
        usable = self._process is not None and self._process.poll() is None and self._left > 0
        if self._process is None or not usable or self._owner != os.getpid():
            if self._process is not None and self._owner == os.getpid():
                self._process.kill()
                self._process.communicate()
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("vela_worker.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
            )
            self._owner, self._left = os.getpid(), NETWORKS_A_PROCESS
        self._left -= 1
        return self._process

    @staticmethod
    def _ask(process: subprocess.Popen[str], arguments: Sequence[str]) -> Mapping[str, str]:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(list(arguments)) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:  # it died before it read
            line = ""
        if not line:
            return {"error": f"it crashed (exit status {process.wait()})"}
        answer: Mapping[str, str] = json.loads(line)
        return answer


_WORKER = _Worker()


def _of_summary(row: Mapping[str, str], file_bytes: int, cpu: tuple[str, ...]) -> VelaReport:
    outside = ("dram", "on_chip_flash", "off_chip_flash")
    return VelaReport(
        sram_bytes=_kibibytes(row, "sram"),
        flash_bytes=sum(_kibibytes(row, area) for area in outside),
        file_bytes=file_bytes,
        cycles_npu=round(float(row["cycles_npu"])),
        cycles_total=round(float(row["cycles_total"])),
        clock_hz=round(float(row["core_clock"])),
        macs=round(float(row["nn_macs"])),
        cpu_operators=cpu,
    )


def _kibibytes(row: Mapping[str, str], area: str) -> int:
    return round(1024 * float(row[f"{area}_memory_used"]))
