"""Run a built image on an emulated Cortex-M: outputs, instructions and cycles of each operator.

Unicorn runs in a process of its own (`unicorn_worker.py`): its engine is under the GPL, so it is
an optional extra that this program never loads. QEMU serves cores that Unicorn lacks (M55) and
checks instruction counts. Neither models time: cycles come from `cycles.py`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from dse.errors import TargetError
from dse.firmware.build import INSTALL, STACK_BYTES, Image, read_segments
from dse.firmware.cycles import Edge, count, read_table
from dse.targets.board import Board

Bytes: TypeAlias = npt.NDArray[np.int8]
TIMEOUT_S = 900
LARGE_CACHE_BYTES = 4096
MARGIN_BYTES = 64 * 1024
EMPTY_INSTRUCTIONS = 1  # the harness compares with a function that only returns


@dataclass(frozen=True)
class FlashModel:
    """Flash with wait states behind small caches; a miss costs its fetches times the wait states.

    The default organisation is that of ST's ART accelerator as it was emulated for the calibration
    (unverified): 1 KiB of code in lines of 32 bytes, 4 ways; 256 B of data in units of 8 bytes.
    With it the networks of MLPerf Tiny come within 10 % of an STM32L4R5 at 5 wait states.
    """

    wait_states: int
    fetch_bytes: int = 8
    code_cache_bytes: int = 1024
    code_line_bytes: int = 32
    code_ways: int = 4
    data_cache_bytes: int = 256
    data_line_bytes: int = 8
    data_ways: int = 32

    def __post_init__(self) -> None:
        small = (self.code_line_bytes, self.data_line_bytes, self.fetch_bytes)
        if self.wait_states < 0 or min(small) < 1:
            raise TargetError(
                f"flash with {self.wait_states} wait states and lines of {small} B: wait states "
                "must be at least 0, lines and fetches at least 1 B"
            )

    def code_cycles(self, misses: int) -> float:
        """Cycles that so many missed code lines cost."""
        return misses * self.wait_states * max(1, self.code_line_bytes // self.fetch_bytes)

    def data_cycles(self, misses: int) -> float:
        """Cycles that so many missed data lines cost."""
        return misses * self.wait_states * max(1, self.data_line_bytes // self.fetch_bytes)


def flash_of(board: Board) -> FlashModel | None:
    """The flash of a board, None when it reads without waiting.

    Board files give the code cache. Data is assumed (unverified) to have one of the same size and
    lines of 32 bytes from 4 KiB on, and otherwise the 256 B of ST's ART accelerator.
    """
    if board.wait_states == 0:
        return None
    if board.cache_bytes < LARGE_CACHE_BYTES:
        return FlashModel(board.wait_states, code_cache_bytes=board.cache_bytes)
    return FlashModel(
        board.wait_states,
        code_cache_bytes=board.cache_bytes,
        data_cache_bytes=board.cache_bytes,
        data_line_bytes=32,
        data_ways=4,
    )


@dataclass(frozen=True)
class OperatorRun:
    """What one operator took in one inference; cycles without those of the flash."""

    name: str
    instructions: int
    blocks: int
    cycles: float
    code_misses: int
    data_misses: int
    flash_cycles: float


@dataclass(frozen=True)
class Emulation:
    """What running an image gave; counts are those of the first inference.

    `outputs` is (n, output_bytes) of int8. `cycles` is None where no table of the core exists,
    and `blocks` where the emulator counts none. `operators` holds each operator in order and last
    what ran outside them, named as NAME_run; QEMU tells none of these. `seconds` is the emulator's
    own time. QEMU's instructions are exact to two ticks of its timer (31 to 50 instructions each)
    over the `repeats` that the image was built with; Unicorn's are exact.
    """

    outputs: Bytes
    instructions: int
    cycles: float | None
    blocks: int | None
    operators: tuple[OperatorRun, ...]
    stack_bytes: int
    seconds: float
    emulator: str


def emulate(
    image: Image, inputs: Bytes | bytes, flash: FlashModel | None = None, qemu: bool | None = None
) -> Emulation:
    """Run inputs (n, input_bytes) through the image on its core; n is at least 1.

    Without `qemu`, Unicorn is used where it knows the core, and QEMU otherwise. Raises TargetError
    when the emulator is missing, the inputs do not fit, or the network does not return.
    """
    rows = _rows(image, inputs)
    if qemu is None:
        qemu = image.cpu.unicorn is None
    return _qemu(image, rows) if qemu else _unicorn(image, rows, flash)


def _rows(image: Image, inputs: Bytes | bytes) -> Bytes:
    size = image.input_bytes
    data = np.frombuffer(inputs, np.int8) if isinstance(inputs, bytes) else inputs
    if data.dtype != np.int8 or data.size == 0 or data.size % size:
        raise TargetError(
            f"'{image.name}' takes int8 inputs of {size} B each; found {data.size} values of "
            f"{data.dtype} (view other types as int8 first)"
        )
    return np.ascontiguousarray(data).reshape(-1, size)


def _unicorn(image: Image, rows: Bytes, flash: FlashModel | None) -> Emulation:
    if image.cpu.unicorn is None:
        raise TargetError(f"Unicorn does not emulate {image.core}; use QEMU (qemu=True)")
    segments = read_segments(image.elf)
    request = _request(image, segments, flash)
    head, outputs = _ask(request, [*(data for _, data in segments), rows.tobytes()])
    edges = [Edge(*edge) for edge in head["edges"]]
    counts = count(edges, dict(segments), read_table(image.cpu.family))
    misses = {kind: dict(head[f"{kind}_misses"]) for kind in ("code", "data")}
    names = [*image.operators, f"{image.name}_run"]
    order = [*range(len(image.operators)), -1]
    operators = tuple(
        _operator(name, counts.get(index), misses, index, flash)
        for name, index in zip(names, order, strict=True)
    )
    return Emulation(
        np.frombuffer(outputs, np.int8).reshape(len(rows), image.output_bytes),
        sum(one.instructions for one in operators),
        sum(one.cycles + one.flash_cycles for one in operators),
        sum(one.blocks for one in operators),
        operators,
        int(head["stack_bytes"]),
        float(head["seconds"]),
        f"unicorn {head['version']}",
    )


def _operator(
    name: str,
    counted: Any,
    misses: Mapping[str, Mapping[int, int]],
    index: int,
    flash: FlashModel | None,
) -> OperatorRun:
    code, data = misses["code"].get(index, 0), misses["data"].get(index, 0)
    waits = flash.code_cycles(code) + flash.data_cycles(data) if flash else 0.0
    if counted is None:
        return OperatorRun(name, 0, 0, 0.0, code, data, waits)
    return OperatorRun(
        name, counted.instructions, counted.blocks, counted.cycles, code, data, waits
    )


def _request(
    image: Image, segments: Sequence[tuple[int, bytes]], flash: FlashModel | None
) -> dict[str, Any]:
    """What the worker must know; addresses come from the image's symbols."""
    cpu, symbols, at = image.cpu, image.symbols, image.addresses
    end = max(address + len(data) for address, data in segments if address < cpu.ram)
    operators = list(image.operators)
    found = [
        (operators.index(base), symbol.address, symbol.address + symbol.size_bytes)
        for symbol in symbols
        if symbol.function and (base := symbol.name.split(".")[0]) in image.operators
    ]
    run = [s for s in symbols if s.function and s.name == f"{image.name}_run"]
    top = at["dse_stack_top"]
    return {
        "model": cpu.unicorn,
        "fpu": cpu.fpu,
        "aligned": cpu.family == "m0plus",
        "memory": [
            [cpu.flash, end - cpu.flash + MARGIN_BYTES],
            [cpu.ram, top - cpu.ram + MARGIN_BYTES],
        ],
        "segments": [address for address, _ in segments],
        "stack": [top - STACK_BYTES, top],
        "arena": at["dse_arena"],
        "stop": at["dse_stop"],
        "input": at[f"{image.name}_input"],
        "run": at[f"{image.name}_run"],
        "output": at[f"{image.name}_output"],
        "operators": found,
        "run_ranges": [(s.address, s.address + s.size_bytes) for s in run],
        "input_bytes": image.input_bytes,
        "output_bytes": image.output_bytes,
        "flash": None
        if flash is None
        else {
            "code": [flash.code_cache_bytes, flash.code_line_bytes, flash.code_ways],
            "data": [flash.data_cache_bytes, flash.data_line_bytes, flash.data_ways],
        },
    }


def _ask(request: dict[str, Any], parts: Sequence[bytes]) -> tuple[dict[str, Any], bytes]:
    """One answer of the worker: its line and its bytes."""
    line = json.dumps(request | {"sizes": [len(part) for part in parts]}).encode() + b"\n"
    worker = Path(__file__).with_name("unicorn_worker.py")
    try:
        done = subprocess.run(
            [sys.executable, str(worker)],
            input=line + b"".join(parts),
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TargetError(f"the emulator did not finish within {TIMEOUT_S} s") from error
    first, _, rest = done.stdout.partition(b"\n")
    if done.returncode != 0 or not first:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise TargetError(f"the emulator ended with code {done.returncode}: {''.join(last)}")
    head = json.loads(first)
    if "missing" in head:
        raise TargetError(f"emulating needs unicorn ({head['missing']}); run {INSTALL}")
    if "error" in head:
        raise TargetError(f"the emulated network stopped: {head['error']}")
    return head, rest


def check_emulator() -> None:
    """TargetError with the install line when there is no Unicorn to run images with."""
    if find_spec("unicorn") is None:
        raise TargetError(f"emulating needs unicorn; run {INSTALL}")


@cache
def qemu_version() -> str | None:
    """The version of qemu-system-arm, or None when it is not installed."""
    command = shutil.which("qemu-system-arm")
    if command is None:
        return None
    answer = subprocess.run([command, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"version (\S+)", answer.stdout)
    return found[1] if found else None


def _qemu(image: Image, rows: Bytes) -> Emulation:
    """All inputs under QEMU; instructions from its SysTick."""
    cpu, version = image.cpu, qemu_version()
    if version is None:
        raise TargetError(
            f"emulating {image.core} with QEMU needs qemu-system-arm; install your system's package"
        )
    if cpu.machine is None:
        raise TargetError(f"QEMU has no machine with a {image.core}; use Unicorn")
    with TemporaryDirectory(prefix="dse-") as name:
        folder = Path(name)
        (folder / "dse_in.bin").write_bytes(rows.tobytes())
        began = time.perf_counter()
        _start_qemu(image, folder)
        seconds = time.perf_counter() - began
        outputs = (folder / "dse_out.bin").read_bytes()
        counted = np.fromfile(folder / "dse_ticks.bin", "<u8")
    if len(outputs) != len(rows) * image.output_bytes:
        raise TargetError(f"'{image.name}' gave {len(outputs)} B for {len(rows)} inputs on QEMU")
    return Emulation(
        np.frombuffer(outputs, np.int8).reshape(len(rows), image.output_bytes),
        _instructions(image, counted),
        None,
        None,
        (),
        int(counted[2]),
        seconds,
        f"qemu {version}",
    )


def _start_qemu(image: Image, folder: Path) -> None:
    """QEMU with one instruction a nanosecond, so that its timers count instructions."""
    command = [
        *("qemu-system-arm", "-M", str(image.cpu.machine), "-display", "none"),
        *("-monitor", "none", "-serial", "none", "-icount", "shift=0,sleep=off"),
        *("-semihosting-config", "enable=on,target=native", "-kernel", str(image.elf.resolve())),
    ]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise TargetError(f"'{image.name}' did not end within {TIMEOUT_S} s on QEMU") from error
    if done.returncode != 0 or not (folder / "dse_ticks.bin").is_file():
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise TargetError(f"QEMU could not run '{image.name}' on {image.core}: {lines[0]}")


def _instructions(image: Image, ticks: npt.NDArray[np.uint64]) -> int:
    """Instructions of one run: the ticks of all, less those of as many empty calls.

    One instruction is one nanosecond of QEMU's time, and SysTick counts the machine's clock.
    """
    nanoseconds = (int(ticks[1]) - int(ticks[0])) * 1_000_000_000 / image.cpu.clock_hz
    return round(nanoseconds / image.repeats) + EMPTY_INSTRUCTIONS
