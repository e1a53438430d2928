"""Build a network's C for a Cortex-M core: one ELF image, and what the network takes in it.

The image holds the network and a small harness (vector table, reset, a loop for QEMU). The linker
script keeps the two apart, so flash and RAM are those of the network alone, library code that it
pulls in (64-bit multiplies of Armv6-M, memcpy) included.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from dse.errors import TargetError, nearest
from dse.firmware.cpu import CPUS, Cpu, find_cpu

INSTALL = "pip install 'dse[firmware]'"
STACK_BYTES = 64 * 1024
OPTIMIZE = ("-O0", "-O1", "-O2", "-O3", "-Os", "-Oz")
# No unwind tables, each function its own section; -ffreestanding is left out on purpose, since it
# turns four-byte memcpy into calls (16.6 instead of 2.2 instructions a MAC on CMSIS-NN).
FLAGS = (
    "-std=c99",
    "-mthumb",
    "-ffunction-sections",
    "-fdata-sections",
    "-fno-unwind-tables",
    "-fno-asynchronous-unwind-tables",
    "-fomit-frame-pointer",
)
CODE_SECTIONS = (".text", ".rodata", ".data")
SECTIONS = (*CODE_SECTIONS, ".bss")


class Sources(Protocol):
    """A network as C: `NAME.h` and `NAME.c`; sizes in bytes; operators are its static functions."""

    @property
    def name(self) -> str:
        """The prefix of the API: NAME_input, NAME_run, NAME_output."""

    @property
    def header(self) -> str:
        """The text of NAME.h."""

    @property
    def source(self) -> str:
        """The text of NAME.c (C99)."""

    @property
    def arena_bytes(self) -> int:
        """What the caller must provide."""

    @property
    def input_bytes(self) -> int:
        """Bytes of one input."""

    @property
    def output_bytes(self) -> int:
        """Bytes of one output."""

    @property
    def operators(self) -> Sequence[str]:
        """Symbols of the operators in the order in which they run."""


@dataclass(frozen=True)
class Compiler:
    """A cross compiler that is there: `zig` (clang) or `gcc`."""

    name: str
    command: tuple[str, ...]
    version: str


@dataclass(frozen=True)
class Symbol:
    """A function or table of the network in the image; size in bytes."""

    name: str
    section: str
    address: int
    size_bytes: int
    function: bool


@dataclass(frozen=True)
class Image:
    """A linked image. Bytes are the network's own; the harness, arena and stack are not in them.

    `flash_bytes` is .text + .rodata + .data; `ram_bytes` is the arena + .data + .bss. `operators`
    gives the code bytes of each operator's function, 0 where the compiler merged it away.
    `addresses` are those of all symbols, the harness's too. `frames_bytes` is the compiler's own
    report of each function's stack frame; `repeats` is how often the harness counts (QEMU).
    """

    elf: Path
    core: str
    compiler: Compiler
    flags: tuple[str, ...]
    name: str
    arena_bytes: int
    input_bytes: int
    output_bytes: int
    repeats: int
    sections: Mapping[str, int]
    symbols: tuple[Symbol, ...]
    addresses: Mapping[str, int]
    operators: Mapping[str, int]
    frames_bytes: Mapping[str, int]

    @property
    def flash_bytes(self) -> int:
        """Bytes of flash: code, constants and initial values."""
        return sum(self.sections[section] for section in CODE_SECTIONS)

    @property
    def ram_bytes(self) -> int:
        """Bytes of RAM without the stack: the arena and static variables."""
        return self.arena_bytes + self.sections[".data"] + self.sections[".bss"]

    @property
    def cpu(self) -> Cpu:
        """The core as compilers and emulators name it."""
        return CPUS[self.core]


@cache
def compilers() -> Mapping[str, Compiler]:
    """The cross compilers found on this machine by name: `gcc` first, then `zig`."""
    found = {}
    for name, command in _commands():
        argument = "version" if name == "zig" else "-dumpfullversion"
        try:
            answer = subprocess.run(
                [*command, argument], capture_output=True, text=True, check=True, timeout=60
            )
        except (OSError, subprocess.SubprocessError):
            continue
        found[name] = Compiler(name, command, answer.stdout.strip())
    return MappingProxyType(found)


def _commands() -> Iterator[tuple[str, tuple[str, ...]]]:
    gcc = shutil.which("arm-none-eabi-gcc")
    if gcc:
        yield "gcc", (gcc,)
    if importlib.util.find_spec("ziglang") is not None:
        yield "zig", (sys.executable, "-m", "ziglang")
    elif zig := shutil.which("zig"):
        yield "zig", (zig,)


def find_compiler(name: str | None = None) -> Compiler:
    """The compiler of that name, or the first one there; TargetError gives the install line."""
    if name is not None and name not in ("gcc", "zig"):
        raise TargetError(f"unknown compiler '{name}'; {nearest(name, ('gcc', 'zig'))}")
    found = compilers()
    if name is None and found:
        return next(iter(found.values()))
    if name is not None and name in found:
        return found[name]
    wanted = "no cross compiler for Cortex-M" if name is None else f"compiler '{name}' not"
    hint = "install arm-none-eabi-gcc of your system" if name == "gcc" else f"run {INSTALL}"
    raise TargetError(f"{wanted} found; {hint}")


def build(
    sources: Sources,
    core: str,
    compiler: str | None = None,
    optimize: str = "-O2",
    folder: Path | None = None,
    *,
    repeats: int = 1,
    flash_limit_bytes: int | None = None,
    ram_limit_bytes: int | None = None,
) -> Image:
    """Compile and link a network for a core; the files stay in `folder` (default: a new one).

    `repeats` is how often the harness runs the network to count instructions under QEMU, whose
    timer has a step of 31 to 50 instructions. The larger, the more exact. Raises
    TargetError for an unknown core, a missing compiler, C that does not compile, or an image that
    needs more than the given bytes.
    """
    cpu, cross = find_cpu(core), find_compiler(compiler)
    if optimize not in OPTIMIZE:
        raise TargetError(f"unknown optimization '{optimize}'; {nearest(optimize, OPTIMIZE)}")
    if repeats < 1:
        raise TargetError(f"'repeats' is {repeats}; a network is counted at least once")
    work = Path(tempfile.mkdtemp(prefix="dse-")) if folder is None else folder
    work.mkdir(parents=True, exist_ok=True)
    flags = (*_target_flags(cpu, cross), *FLAGS, optimize)
    objects = _compile(sources, cpu, cross, flags, work, repeats)
    elf = _link(sources, cpu, cross, objects, work, optimize)
    image = _image(sources, cpu, cross, flags, elf, repeats)
    for kind, needed, limit in (
        ("flash", image.flash_bytes, flash_limit_bytes),
        ("RAM", image.ram_bytes, ram_limit_bytes),
    ):
        if limit is not None and needed > limit:
            raise TargetError(
                f"the image of '{sources.name}' for {core} needs {needed} B of {kind}, "
                f"{needed - limit} B more than the {limit} B there are"
            )
    return image


def _target_flags(cpu: Cpu, compiler: Compiler) -> tuple[str, ...]:
    return cpu.zig if compiler.name == "zig" else cpu.gcc


def _driver(compiler: Compiler) -> tuple[str, ...]:
    return (*compiler.command, "cc") if compiler.name == "zig" else compiler.command


def _compile(
    sources: Sources,
    cpu: Cpu,
    compiler: Compiler,
    flags: tuple[str, ...],
    folder: Path,
    repeats: int,
) -> list[Path]:
    (folder / f"{sources.name}.h").write_text(sources.header, encoding="utf-8")
    network = folder / f"{sources.name}.c"
    network.write_text(sources.source, encoding="utf-8")
    defines = (
        f'-DDSE_HEADER="{sources.name}.h"',
        f"-DDSE_NAME={sources.name}",
        f"-DDSE_ARENA_BYTES={sources.arena_bytes}u",
        f"-DDSE_INPUT_BYTES={sources.input_bytes}u",
        f"-DDSE_OUTPUT_BYTES={sources.output_bytes}u",
        f"-DDSE_REPEATS={repeats}",
        f"-DDSE_FPU={int(cpu.fpu)}",
    )
    own: tuple[str, ...] = ("-fno-builtin", "-std=gnu11", "-O1", "-g0")
    if compiler.name == "gcc":
        own += ("-fno-tree-loop-distribute-patterns",)
    parts = [(network, (*flags, "-fstack-usage")), (_packaged(folder, "startup.c"), own + defines)]
    if compiler.name == "gcc":  # zig brings these functions in its own run-time library
        parts.append((_packaged(folder, "runtime.c"), (*own, "-O2")))
    objects = []
    for file, extra in parts:
        target = file.with_suffix(".o")
        wanted = extra if file == network else (*flags, *extra)
        _run(compiler, [*wanted, "-I", ".", "-c", file.name, "-o", target.name], folder, file.name)
        objects.append(target)
    return objects


def _packaged(folder: Path, name: str) -> Path:
    """A file of this package, copied into the build folder."""
    path = folder / name
    path.write_bytes((resources.files("dse.firmware") / name).read_bytes())
    return path


def _link(
    sources: Sources,
    cpu: Cpu,
    compiler: Compiler,
    objects: Sequence[Path],
    folder: Path,
    optimize: str,
) -> Path:
    elf = folder / f"{sources.name}.elf"
    script = _packaged(folder, "link.ld")
    text = script.read_text(encoding="utf-8")
    places = {"DSE_FLASH": cpu.flash, "DSE_RAM": cpu.ram, "DSE_STACK_BYTES": STACK_BYTES}
    for name, value in places.items():
        text = text.replace(name, f"{value:#x}")
    script.write_text(text, encoding="utf-8")
    arguments = [
        *_target_flags(cpu, compiler),
        "-mthumb",
        "-O2" if compiler.name == "zig" else optimize,  # zig strips the symbols at -Os
        "-nostartfiles",
        f"-Wl,-T,{script.name}",
        "-Wl,--gc-sections",
        *(path.name for path in objects),
    ]
    if compiler.name == "gcc":  # with -nostdlib, zig would also drop compiler-rt
        arguments += ["-nostdlib", "-lgcc"]
    _run(compiler, [*arguments, "-o", elf.name], folder, elf.name)
    return elf


def _run(compiler: Compiler, arguments: Sequence[str], folder: Path, what: str) -> None:
    done = subprocess.run(
        [*_driver(compiler), *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        lines = done.stderr.splitlines() or ["no message"]
        first = next((line for line in lines if "error" in line), lines[0])
        raise TargetError(f"{compiler.name} {compiler.version} cannot build '{what}': {first}")


def _image(
    sources: Sources, cpu: Cpu, compiler: Compiler, flags: tuple[str, ...], elf: Path, repeats: int
) -> Image:
    sections, everything = read_elf(elf)
    symbols = tuple(one for one in everything if one.section in SECTIONS and one.size_bytes)
    code = dict.fromkeys(sources.operators, 0)
    for symbol in symbols:
        # gcc names clones OPERATOR.constprop.0, OPERATOR.part.0 and the like.
        name = symbol.name.split(".")[0]
        if symbol.function and name in code:
            code[name] += symbol.size_bytes
    image = Image(
        elf,
        cpu.core,
        compiler,
        flags,
        sources.name,
        sources.arena_bytes,
        sources.input_bytes,
        sources.output_bytes,
        repeats,
        MappingProxyType(sections),
        symbols,
        MappingProxyType({symbol.name: symbol.address for symbol in everything}),
        MappingProxyType(code),
        MappingProxyType(_frames(elf.with_suffix(".su"))),
    )
    for kind, size, limit in (
        ("flash", image.flash_bytes, cpu.flash_limit_bytes),
        ("RAM", image.ram_bytes + STACK_BYTES, cpu.ram_limit_bytes),
    ):
        if size > limit:
            raise TargetError(
                f"'{sources.name}' takes {size} B of {kind}; an emulated {cpu.core} has {limit} B"
            )
    return image


def _frames(report: Path) -> dict[str, int]:
    """Bytes of each function's frame from a -fstack-usage report (file:line:function, bytes)."""
    if not report.is_file():
        return {}
    lines = report.read_text(encoding="utf-8").splitlines()
    found = (re.match(r".*:([^:\t]+)\t(\d+)\t", line) for line in lines)
    return {match[1]: int(match[2]) for match in found if match}


def read_elf(path: Path) -> tuple[dict[str, int], tuple[Symbol, ...]]:
    """Bytes of the network's sections, and every symbol of the image in order of address."""
    elf = _elf_reader()
    with path.open("rb") as stream:
        file = elf.ELFFile(stream)
        by_index = [section.name for section in file.iter_sections()]
        sizes = {section.name: int(section["sh_size"]) for section in file.iter_sections()}
        table = file.get_section_by_name(".symtab")
        if table is None:
            raise TargetError(f"{path.name} has no symbols (it was stripped); link it without -s")
        symbols = [
            Symbol(
                entry.name,
                by_index[entry["st_shndx"]] if isinstance(entry["st_shndx"], int) else "",
                int(entry["st_value"]) & ~int(entry["st_info"]["type"] == "STT_FUNC"),
                int(entry["st_size"]),
                entry["st_info"]["type"] == "STT_FUNC",
            )
            for entry in table.iter_symbols()
            if entry.name and not entry.name.startswith("$")
        ]
    ordered = tuple(sorted(symbols, key=lambda symbol: (symbol.address, symbol.name)))
    return {name: sizes.get(name, 0) for name in SECTIONS}, ordered


def read_segments(path: Path) -> list[tuple[int, bytes]]:
    """The bytes that a loader writes, by address."""
    with path.open("rb") as stream:
        file = _elf_reader().ELFFile(stream)
        return [
            (int(segment["p_vaddr"]), bytes(segment.data()))
            for segment in file.iter_segments()
            if segment["p_type"] == "PT_LOAD" and segment["p_filesz"]
        ]


def read_code(path: Path) -> bytes:
    """The bytes of the .text section of an object file."""
    with path.open("rb") as stream:
        return bytes(_elf_reader().ELFFile(stream).get_section_by_name(".text").data())


def _elf_reader() -> Any:
    """The pyelftools module, an optional dependency."""
    try:
        return importlib.import_module("elftools.elf.elffile")
    except ImportError as error:
        raise TargetError(f"reading images needs pyelftools; run {INSTALL}") from error
