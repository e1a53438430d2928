"""Runs an image in Unicorn: a program of its own, since Unicorn's engine (QEMU) is under the GPL.

It imports nothing of this project. A request on standard input and an answer on standard output
are each one line of JSON followed by raw bytes, whose lengths the line gives (`emulate.py` is the
other end). Only the first inference is counted, block by block; the others run without hooks.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections import OrderedDict
from typing import Any

PAGE = 4096
PAINT = 0xA5
IT_STATE = 0x0600FC00
RUN_LIMIT_US = 600_000_000


class Machine:
    """A core with the image in memory; functions of the image can be called."""

    def __init__(self, request: dict[str, Any], segments: list[bytes]) -> None:
        self.unicorn = importlib.import_module("unicorn")
        self.arm = importlib.import_module("unicorn.arm_const")
        unicorn = self.unicorn
        mode = unicorn.UC_MODE_THUMB | unicorn.UC_MODE_MCLASS
        self.engine = unicorn.Uc(unicorn.UC_ARCH_ARM, mode)
        self.engine.ctl_set_cpu_model(getattr(self.arm, request["model"]))
        self.request = request
        for start, size in request["memory"]:
            self.engine.mem_map(start, -(-size // PAGE) * PAGE)
        for address, data in zip(request["segments"], segments, strict=True):
            self.engine.mem_write(address, data)
        bottom, top = request["stack"]
        self.engine.mem_write(bottom, bytes([PAINT]) * (top - bottom))
        if request["fpu"]:
            self.engine.reg_write(self.arm.UC_ARM_REG_FPEXC, 1 << 30)

    def call(self, address: int) -> int:
        """Call function(arena) and give what it returns."""
        engine, arm = self.engine, self.arm
        engine.reg_write(arm.UC_ARM_REG_SP, self.request["stack"][1])
        engine.reg_write(arm.UC_ARM_REG_LR, self.request["stop"] | 1)
        engine.reg_write(arm.UC_ARM_REG_R0, self.request["arena"])
        engine.emu_start(address | 1, self.request["stop"], RUN_LIMIT_US)
        stopped = engine.reg_read(arm.UC_ARM_REG_PC)
        if stopped & ~1 != self.request["stop"]:
            raise RuntimeError(f"the network did not return; it is at {stopped:#x}")
        return int(engine.reg_read(arm.UC_ARM_REG_R0))

    def infer(self, data: bytes) -> bytes:
        """One inference."""
        self.engine.mem_write(self.call(self.request["input"]), data)
        self.call(self.request["run"])
        start = self.call(self.request["output"])
        return bytes(self.engine.mem_read(start, self.request["output_bytes"]))

    def stack_bytes(self) -> int:
        """How deep the stack was at most: what lies below was never written."""
        bottom, top = self.request["stack"]
        painted = bytes(self.engine.mem_read(bottom, top - bottom))
        used = len(painted.lstrip(bytes([PAINT])))
        return -(-used // 4) * 4  # whole words: a written byte may look like paint


class Cache:
    """A set-associative cache that replaces the line used longest ago; it counts misses."""

    def __init__(self, size: int, line: int, ways: int) -> None:
        self.line = line
        self.latest = -1
        self.ways = max(1, min(ways, size // line))
        self.sets: list[OrderedDict[int, None]] = [
            OrderedDict() for _ in range(max(1, size // line // self.ways))
        ]

    def misses(self, address: int, size: int) -> int:
        """Lines of these bytes that were not there; they are afterwards."""
        start, end = address // self.line, (address + size - 1) // self.line
        if start == end == self.latest:  # most accesses: nothing changes
            return 0
        self.latest = end
        count = 0
        for line in range(start, end + 1):
            kept = self.sets[line % len(self.sets)]
            if line in kept:
                kept.move_to_end(line)
                continue
            count += 1
            kept[line] = None
            if len(kept) > self.ways:
                kept.popitem(last=False)
        return count


class Counter:
    """Counts every block with the operator it ran for and the block that followed.

    A shared kernel or library function belongs to the operator that called it: the operator
    changes only at an address inside an operator (its number) or inside NAME_run (-1).
    """

    def __init__(self, machine: Machine, flash: dict[str, Any] | None) -> None:
        request, engine = machine.request, machine.engine
        self.xpsr = machine.arm.UC_ARM_REG_XPSR
        self.ranges = [(start, end, -1) for start, end in request["run_ranges"]]
        self.ranges += [(start, end, index) for index, start, end in request["operators"]]
        self.stop = request["stop"]
        self.edges: dict[tuple[int, int, int, int], int] = {}
        self.owners: dict[int, int | None] = {}
        self.current = -1
        self.last: tuple[int, int, int] | None = None
        self.code = self.data = None
        self.code_misses: dict[int, int] = {}
        self.data_misses: dict[int, int] = {}
        unicorn = machine.unicorn
        engine.hook_add(unicorn.UC_HOOK_BLOCK, self.block)
        self.unaligned: tuple[int, int] | None = None
        self.predicated: dict[int, bool] = {}
        self.conditional = False
        if request["aligned"]:
            # The emulated M0 allows what faults on the real one.
            kinds = unicorn.UC_HOOK_MEM_READ | unicorn.UC_HOOK_MEM_WRITE
            engine.hook_add(kinds, self.access)
        if flash:
            self.code, self.data = Cache(*flash["code"]), Cache(*flash["data"])
            start, size = request["memory"][0]
            hook = unicorn.UC_HOOK_MEM_READ
            engine.hook_add(hook, self.read, begin=start, end=start + size - 1)

    def block(self, engine: Any, address: int, size: int, _: Any) -> None:
        """A block is about to run."""
        last = self.last
        if last is not None:
            edge = (*last, address)
            self.edges[edge] = self.edges.get(edge, 0) + 1
        try:
            owner = self.owners[address]
        except KeyError:
            owner = self.owners[address] = self.owner(address)
        if owner is not None:
            self.current = owner
        self.last = (self.current, address, size)
        if self.code is not None:
            before = self.predicated.get(last[1], False) if last else False
            try:
                self.conditional = self.predicated[address] or before
            except KeyError:
                self.predicated[address] = has_it(bytes(engine.mem_read(address, size)))
                self.conditional = self.predicated[address] or before
            missed = self.code.misses(address, size)
            if missed:
                self.code_misses[self.current] = self.code_misses.get(self.current, 0) + missed

    def owner(self, address: int) -> int | None:
        """The operator at an address, -1 in NAME_run, None where the caller stays in charge."""
        for start, end, index in self.ranges:
            if start <= address < end:
                return index
        return None

    def access(self, engine: Any, _: int, address: int, size: int, *more: Any) -> None:
        """Memory is about to be read or written."""
        if address & (size - 1) and self.unaligned is None:
            self.unaligned = (address, size)
            engine.emu_stop()

    def read(self, engine: Any, _: int, address: int, size: int, *more: Any) -> None:
        """Constants are about to be read from flash."""
        if self.data is not None:
            missed = self.data.misses(address, size)
            if missed:
                self.data_misses[self.current] = self.data_misses.get(self.current, 0) + missed
        # A memory hook inside an IT block leaves the block's state behind, and what follows is
        # taken for conditional (unicorn issue 2309): clear it.
        if self.conditional:
            status = engine.reg_read(self.xpsr)
            if status & IT_STATE:
                engine.reg_write(self.xpsr, status & ~IT_STATE)

    def counted(self) -> list[list[int]]:
        """Rows (operator, address, size, next address, count); the last block leads to `stop`."""
        if self.last is not None:
            self.edges[(*self.last, self.stop)] = 1
        return [[*edge, count] for edge, count in sorted(self.edges.items())]


def has_it(code: bytes) -> bool:
    """Whether there may be an IT instruction (0xBFxy, y not 0): a half of a wide one counts."""
    halves = zip(code[::2], code[1::2], strict=False)
    return any(high == 0xBF and low & 0x0F for low, high in halves)


def first(request: dict[str, Any], segments: list[bytes], data: bytes) -> tuple[Any, bytes]:
    """The first inference, counted, and its output."""
    machine = Machine(request, segments)
    machine.engine.mem_write(machine.call(request["input"]), data)
    counter = Counter(machine, None)
    try:
        machine.call(request["run"])
    except RuntimeError:
        if counter.unaligned is None:
            raise
        address, size = counter.unaligned
        raise RuntimeError(
            f"it reads or writes {size} B at {address:#x}, which Armv6-M cannot (unaligned)"
        ) from None
    edges = counter.counted()
    counted = {"edges": edges, "stack_bytes": machine.stack_bytes()}
    start = machine.call(request["output"])
    output = bytes(machine.engine.mem_read(start, request["output_bytes"]))
    return counted | misses(request, segments, data, edges), output


def misses(
    request: dict[str, Any], segments: list[bytes], data: bytes, edges: list[list[int]]
) -> dict[str, Any]:
    """Lines of code and constants that the flash's caches missed, by operator.

    Memory hooks make a run of their own, which must take the same way as the one without them.
    """
    if request["flash"] is None:
        return {"code_misses": [], "data_misses": []}
    machine = Machine(request, segments)
    machine.engine.mem_write(machine.call(request["input"]), data)
    counter = Counter(machine, request["flash"])
    machine.call(request["run"])
    if counter.counted() != edges:
        raise RuntimeError("the run that counts memory accesses took another way")
    return {
        "code_misses": sorted(counter.code_misses.items()),
        "data_misses": sorted(counter.data_misses.items()),
    }


def answer(request: dict[str, Any], parts: list[bytes]) -> tuple[dict[str, Any], bytes]:
    """Run all inputs: what was counted, and the outputs one after the other."""
    segments, inputs = parts[:-1], parts[-1]
    size = request["input_bytes"]
    samples = [inputs[start : start + size] for start in range(0, len(inputs), size)]
    began = time.perf_counter()
    counted, output = first(request, segments, samples[0])
    outputs = [output]
    if len(samples) > 1:
        machine = Machine(request, segments)
        outputs += [machine.infer(sample) for sample in samples[1:]]
        counted["stack_bytes"] = max(counted["stack_bytes"], machine.stack_bytes())
    counted["seconds"] = time.perf_counter() - began
    counted["version"] = str(importlib.import_module("unicorn").__version__)
    return counted, b"".join(outputs)


def main() -> None:
    """Read one request, write one answer; an error is an answer too."""
    request = json.loads(sys.stdin.buffer.readline())
    parts = [sys.stdin.buffer.read(size) for size in request["sizes"]]
    try:
        head, outputs = answer(request, parts)
    except ImportError as error:
        head, outputs = {"missing": str(error)}, b""
    except Exception as error:  # whatever the emulator meets is told to the caller
        head, outputs = {"error": f"{type(error).__name__}: {error}"}, b""
    sys.stdout.buffer.write(json.dumps(head).encode() + b"\n" + outputs)


if __name__ == "__main__":
    main()
