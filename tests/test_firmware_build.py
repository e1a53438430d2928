"""Images: what they take in flash and RAM is the network's own, and bad input gets a sentence."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dse.errors import TargetError
from dse.firmware import build as build_module
from dse.firmware.build import Image, build, compilers, find_compiler, read_segments
from dse.firmware.cpu import CPUS
from dse.targets import find_backend, load_boards
from dse.targets.core import CORES
from tests import firmware_samples as samples

pytest.importorskip(
    "elftools", reason="images are read with pyelftools (pip install 'dse[firmware]')"
)

THERE = sorted(compilers())
NEVER_BUILT = {"cortex-m85"}
needs_compiler = pytest.mark.skipif(not THERE, reason="neither arm-none-eabi-gcc nor ziglang")
each_compiler = pytest.mark.parametrize(
    "compiler",
    [
        pytest.param(
            name, marks=pytest.mark.skipif(name not in THERE, reason=f"{name} is not installed")
        )
        for name in ("gcc", "zig")
    ],
)


def size_of(image: Image, name: str) -> int:
    return sum(symbol.size_bytes for symbol in image.symbols if symbol.name == name)


@each_compiler
@pytest.mark.parametrize("core", ["cortex-m0plus", "cortex-m4"])
def test_sizes_are_the_networks_own(compiler: str, core: str, tmp_path: Path) -> None:
    plain = build(samples.dense(), core, compiler, folder=tmp_path / "plain")
    harness = build(samples.dense(), core, compiler, folder=tmp_path / "count", repeats=1000)
    assert plain.flash_bytes == harness.flash_bytes
    assert plain.flash_bytes == sum(plain.sections[s] for s in (".text", ".rodata", ".data"))
    assert (size_of(plain, "w0"), size_of(plain, "w1")) == (1024, 160)
    assert plain.sections[".rodata"] >= 1184
    assert plain.ram_bytes == 96
    assert not [s.name for s in plain.symbols if s.name.startswith("dse_") or s.name == "main"]


@each_compiler
@pytest.mark.parametrize("core", ["cortex-m0plus", "cortex-m4"])
def test_symbols_fill_the_sections(compiler: str, core: str, tmp_path: Path) -> None:
    image = build(samples.dense(), core, compiler, folder=tmp_path)
    own = sum(s.size_bytes for s in {s.address: s for s in image.symbols}.values())
    # What no symbol covers is padding between functions and tables.
    assert 0 <= image.flash_bytes - own <= 16 * len(image.symbols)
    assert set(image.operators) == {"dense_op0", "dense_op1"}
    assert all(size > 20 for size in image.operators.values())


@each_compiler
def test_library_code_counts_where_the_core_needs_it(compiler: str, tmp_path: Path) -> None:
    """Armv6-M has no 64-bit multiply: the compiler's library brings one, and it is shipped."""
    small = build(samples.dense(), "cortex-m0plus", compiler, folder=tmp_path / "m0plus")
    large = build(samples.dense(), "cortex-m4", compiler, folder=tmp_path / "m4")
    assert size_of(small, "__aeabi_lmul") > 0 or size_of(small, "__muldi3") > 0
    assert size_of(large, "__aeabi_lmul") == size_of(large, "__muldi3") == 0


UNITS = """#include "units.h"
__attribute__((noinline)) static void units_op0(float *at) { at[1] = at[0] * at[0] + 1.0f; }
int8_t *units_input(void *arena) { return arena; }
const int8_t *units_output(const void *arena) { return (const int8_t *)arena + 4; }
#if defined(__ARM_FEATURE_DSP) != DSP
#error DSP
#endif
void units_run(void *arena) { units_op0(arena); }
"""


@each_compiler
@pytest.mark.parametrize(
    "core", [core for core in CORES if core not in (*NEVER_BUILT, "cortex-m0plus")]
)
def test_either_compiler_uses_the_units_that_the_core_has(
    core: str, compiler: str, tmp_path: Path
) -> None:
    text = UNITS.replace("DSP\n", f"{int(CORES[core].dsp)}\n", 1)
    sources = samples.Written("units", samples.header("units"), text, 8, 4, 4, ("units_op0",))
    image = build(sources, core, compiler, folder=tmp_path)
    called = {symbol.name for symbol in image.symbols if symbol.name.startswith("__")}
    assert bool(called) == (not CORES[core].fpu), called


@needs_compiler
def test_static_variables_take_ram_and_their_values_flash(tmp_path: Path) -> None:
    plain = samples.dense()
    state = "static int32_t counter[5] = {1, 2, 3, 4, 5};\nstatic int32_t seen[7];\n"
    used = "void dense_run(void *arena) { seen[counter[0]++ % 7]++; counter[4] += seen[3]; "
    changed = plain.source.replace("void dense_run(void *arena) { ", state + used)
    before = build(plain, "cortex-m4", folder=tmp_path / "before")
    after = build(replace(plain, source=changed), "cortex-m4", folder=tmp_path / "after")
    assert (before.sections[".data"], before.sections[".bss"]) == (0, 0)
    assert (after.sections[".data"], after.sections[".bss"]) == (20, 28)
    assert after.ram_bytes == before.ram_bytes + 48
    code = after.sections[".text"] + after.sections[".rodata"]
    assert after.flash_bytes == code + 20


@each_compiler
def test_the_same_sources_give_the_same_image(compiler: str, tmp_path: Path) -> None:
    one, two = (
        build(samples.conv(), "cortex-m4", compiler, folder=tmp_path / name) for name in "ab"
    )
    assert read_segments(one.elf) == read_segments(two.elf)
    assert one.flags == two.flags


@pytest.mark.skipif("gcc" not in THERE, reason="the report of stack frames is gcc's")
def test_gcc_reports_the_frames_of_operators(tmp_path: Path) -> None:
    image = build(samples.conv(), "cortex-m4", "gcc", folder=tmp_path)
    assert image.frames_bytes["conv_op0"] > 0
    assert set(image.operators) <= set(image.frames_bytes)


@needs_compiler
def test_size_optimization_makes_code_smaller(tmp_path: Path) -> None:
    sizes = {
        level: build(samples.conv(), "cortex-m4", optimize=level, folder=tmp_path / level)
        for level in ("-Os", "-O3")
    }
    assert sizes["-Os"].flash_bytes < sizes["-O3"].flash_bytes


def test_unknown_words_name_the_nearest() -> None:
    with pytest.raises(TargetError, match=r"'cortex-m4g'; did you mean 'cortex-m4'\?"):
        build(samples.dense(), "cortex-m4g")
    with pytest.raises(TargetError, match="unknown compiler 'gccc'; did you mean 'gcc'"):
        find_compiler("gccc")


@needs_compiler
def test_an_unknown_optimization_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"unknown optimization '-O9'.*-O2"):
        build(samples.dense(), "cortex-m4", optimize="-O9", folder=tmp_path)


def test_a_missing_compiler_gives_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "compilers", dict)
    with pytest.raises(TargetError, match=r"no cross compiler.*pip install 'dse\[firmware\]'"):
        build(samples.dense(), "cortex-m4")
    with pytest.raises(TargetError, match=r"'zig' not found; run pip install 'dse\[firmware\]'"):
        build(samples.dense(), "cortex-m4", "zig")
    with pytest.raises(TargetError, match="'gcc' not found; install arm-none-eabi-gcc"):
        build(samples.dense(), "cortex-m4", "gcc")


@each_compiler
def test_wrong_c_gives_the_compilers_first_error(compiler: str, tmp_path: Path) -> None:
    wrong = replace(samples.dense(), source='#include "dense.h"\nint wrong(void) { return x; }\n')
    with pytest.raises(TargetError, match=rf"{compiler} \S+ cannot build 'dense.c': .*'x'"):
        build(wrong, "cortex-m4", compiler, folder=tmp_path)


@needs_compiler
def test_an_image_larger_than_the_board_says_by_how_much(tmp_path: Path) -> None:
    image = build(samples.dense(), "cortex-m4", folder=tmp_path)
    size = image.flash_bytes
    build(samples.dense(), "cortex-m4", folder=tmp_path, flash_limit_bytes=size)
    with pytest.raises(TargetError, match=f"needs {size} B of flash, 1 B more than the {size - 1}"):
        build(samples.dense(), "cortex-m4", folder=tmp_path, flash_limit_bytes=size - 1)
    with pytest.raises(TargetError, match="needs 96 B of RAM, 32 B more than the 64 B there are"):
        build(samples.dense(), "cortex-m4", folder=tmp_path, ram_limit_bytes=64)


@needs_compiler
def test_an_arena_that_no_emulated_board_holds_is_refused(tmp_path: Path) -> None:
    huge = replace(samples.dense(), arena_bytes=5 << 20)
    with pytest.raises(TargetError, match="5308416 B of RAM; an emulated cortex-m4 has 4194304 B"):
        build(huge, "cortex-m4", folder=tmp_path)


def test_importing_loads_none_of_the_optional_packages() -> None:
    heavy = ("torch", "unicorn", "ziglang", "capstone", "elftools")
    code = (
        "import sys, dse.firmware.build, dse.firmware.emulate\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_core_of_the_targets_can_be_built_but_the_newest() -> None:
    """The Cortex-M85 is newer than the compilers; its boards say that native was never built."""
    assert set(CORES) - set(CPUS) == NEVER_BUILT
    assert all(CPUS[name].family == CORES[name].family for name in set(CORES) - NEVER_BUILT)
    for board in load_boards().values():
        if board.core.name in NEVER_BUILT:
            assert "was never built for the cortex-m85" in find_backend("native").illegal(board)
