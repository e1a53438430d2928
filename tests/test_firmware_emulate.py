"""Emulated cores give the bytes of the reference, and counts that are exact.

DSE_RENEW_GOLDEN=1 python -m pytest tests/test_firmware_emulate.py renews the golden counts.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dse.errors import TargetError
from dse.firmware.build import build, compilers
from dse.firmware.cpu import CPUS
from dse.firmware.emulate import Emulation, FlashModel, emulate, flash_of, qemu_version
from dse.targets.board import load_boards
from tests import firmware_samples as samples
from tests.firmware_samples import Bytes, Written

MISSING = [
    name for name in ("elftools", "unicorn", "capstone") if importlib.util.find_spec(name) is None
]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"{MISSING} are missing (pip install 'dse[firmware]')"
)

GOLDEN = Path(__file__).parent / "golden" / "firmware_instructions.csv"
THERE = sorted(compilers())
needs_qemu = pytest.mark.skipif(qemu_version() is None, reason="qemu-system-arm is not installed")
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
SLOW = ("cortex-m3", "cortex-m4f")  # neighbours of cores that the quick tests have
each_core = pytest.mark.parametrize(
    "core",
    [
        pytest.param(
            core,
            marks=([] if cpu.unicorn else [needs_qemu])
            + ([pytest.mark.slow] if core in SLOW else []),
        )
        for core, cpu in CPUS.items()
    ],
)
NETWORKS: dict[str, tuple[Callable[[], Written], Callable[[Bytes], Bytes]]] = {
    "dense": (samples.dense, samples.dense_answer),
    "conv": (samples.conv, samples.conv_answer),
}
RUN_INSTRUCTIONS = 12  # at most what NAME_run does around its operators in these samples


def run(
    sources: Written, core: str, folder: Path, compiler: str | None = None, inputs: int = 1
) -> Emulation:
    image = build(sources, core, compiler, folder=folder)
    return emulate(image, samples.inputs(sources.input_bytes, inputs))


@each_compiler
@each_core
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_counts(name: str, core: str, compiler: str, tmp_path: Path) -> None:
    make, answer = NETWORKS[name]
    sources = make()
    image = build(sources, core, compiler, folder=tmp_path, repeats=200)
    inputs = samples.inputs(sources.input_bytes, 20)
    result = emulate(image, inputs)
    np.testing.assert_array_equal(result.outputs, answer(inputs))
    _golden(name, core, image.compiler.name, image.compiler.version, result.instructions)


def _golden(name: str, core: str, compiler: str, version: str, instructions: int) -> None:
    """The frozen count of this network, core and compiler version."""
    key = (name, core, compiler, version)
    known: dict[tuple[str, ...], int] = {}
    if GOLDEN.is_file():
        with GOLDEN.open(encoding="utf-8", newline="") as stream:
            known = {tuple(row[:4]): int(row[4]) for row in list(csv.reader(stream))[1:]}
    if os.environ.get("DSE_RENEW_GOLDEN") == "1":
        known[key] = instructions
        with GOLDEN.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(("network", "core", "compiler", "version", "instructions"))
            writer.writerows((*row, known[row]) for row in sorted(known))
    if key not in known:
        pytest.skip(f"no golden count of {compiler} {version}; the outputs were right")
    assert instructions == known[key]


@needs_qemu
@each_compiler
@pytest.mark.parametrize(
    "core", [core for core, cpu in CPUS.items() if cpu.unicorn and cpu.machine]
)
def test_qemu_counts_the_same_instructions_and_stack(
    core: str, compiler: str, tmp_path: Path
) -> None:
    for name, (make, _) in NETWORKS.items():
        sources = make()
        image = build(sources, core, compiler, folder=tmp_path / name, repeats=200)
        inputs = samples.inputs(sources.input_bytes, 3)
        ours, theirs = emulate(image, inputs), emulate(image, inputs, qemu=True)
        np.testing.assert_array_equal(ours.outputs, theirs.outputs)
        assert ours.instructions == theirs.instructions
        assert ours.stack_bytes == emulate(image, inputs[:1]).stack_bytes == theirs.stack_bytes


LOOP = """
    movs r1, #10
    movs r2, #0
1:  cmp r1, #5
    it gt
    addgt r2, r2, #2
    subs r1, #1
    bne 1b
    strb r2, [r0]
    bx lr
"""


@each_compiler
def test_switched_off_instructions_count_and_cycles_add_up(compiler: str, tmp_path: Path) -> None:
    """By hand on the M4 table: 2 + 10 x 5 + 2 instructions, five of them switched off.

    Cycles: movs, movs 2; a round cmp, it (folded), addgt, subs, bne 4, nine rounds taken + 2;
    strb 1, bx 1 + 2. The addresses of the loop are even, its first instruction has 16 bits.
    """
    result = run(samples.assembled("loop", LOOP), "cortex-m4", tmp_path, compiler)
    assert result.outputs.tolist() == [[10]]
    operator = result.operators[0]
    assert operator.instructions == 54
    assert operator.blocks == 11
    assert operator.cycles == 2 + 10 * 4 + 9 * 2 + 1 + 3


@each_compiler
def test_cycles_of_the_loop_on_other_cores(compiler: str, tmp_path: Path) -> None:
    """M0+: movs, movs 2; subs, bne 2 and 9 times + 1; strb 2, bx 2. M33 has the table of the M4."""
    small = LOOP.replace("it gt", "nop").replace("addgt r2, r2, #2", "adds r2, #1")
    result = run(samples.assembled("loop", small), "cortex-m0plus", tmp_path, compiler)
    assert result.operators[0].cycles == 2 + 10 * 5 + 9 + 2 + 2
    same = [
        run(samples.assembled("loop", LOOP), core, tmp_path / core, compiler).operators[0].cycles
        for core in ("cortex-m4", "cortex-m33")
    ]
    assert same[0] == same[1]


@each_compiler
def test_the_m7_pays_once_for_leaving_a_loop(compiler: str, tmp_path: Path) -> None:
    """movs, then subs with bne: 2; nine rounds of subs with bne: 1 each; the exit 5; bx 1."""
    body = "movs r1, #10\n1: subs r1, #1\nbne 1b\nbx lr"
    result = run(samples.assembled("loop", body), "cortex-m7", tmp_path, compiler)
    assert result.operators[0].cycles == 2 + 9 + 5 + 1


@each_compiler
def test_a_shared_kernel_counts_for_the_operator_that_called_it(
    compiler: str, tmp_path: Path
) -> None:
    result = run(samples.dense(), "cortex-m4", tmp_path, compiler)
    first, second, rest = result.operators
    assert [one.name for one in result.operators] == ["dense_op0", "dense_op1", "dense_run"]
    assert result.instructions == sum(one.instructions for one in result.operators)
    assert result.cycles == sum(one.cycles for one in result.operators)
    assert result.blocks == sum(one.blocks for one in result.operators)
    # 1024 against 160 MACs, all of them in the function that both call.
    assert 4 < first.instructions / second.instructions < 6.4
    assert rest.instructions <= RUN_INSTRUCTIONS


@needs_compiler
def test_counts_are_those_of_the_first_input(tmp_path: Path) -> None:
    one = run(samples.dense(), "cortex-m4", tmp_path / "one")
    many = run(samples.dense(), "cortex-m4", tmp_path / "many", inputs=5)
    assert (one.instructions, one.cycles) == (many.instructions, many.cycles)
    assert many.outputs.shape == (5, 10)


@needs_compiler
def test_flash_waits_grow_with_wait_states_and_shrink_with_caches(tmp_path: Path) -> None:
    image = build(samples.dense(), "cortex-m4", folder=tmp_path)
    inputs = samples.inputs(64, 1)
    plain = emulate(image, inputs)

    def waits(model: FlashModel) -> float:
        result = emulate(image, inputs, model)
        assert result.instructions == plain.instructions
        assert result.cycles is not None
        assert plain.cycles is not None
        return result.cycles - plain.cycles

    five = waits(FlashModel(5))
    assert waits(FlashModel(0)) == 0
    assert five == pytest.approx(2.5 * waits(FlashModel(2)))
    # Every constant is read once in order, so each 8-byte line of the 1,184 B misses at least once.
    assert five >= 1184 / 8 * 5
    roomy = FlashModel(5, code_cache_bytes=8192, data_cache_bytes=8192, data_ways=1024)
    assert 1184 / 8 * 5 <= waits(roomy) <= five


CONDITIONAL = """
    push {r4, lr}
    movs r2, #0
    movs r3, #0
    ldr r4, =dense_table
1:  cmp r3, #8
    itee lo
    ldrblo r1, [r4, r3]
    movhs r1, #0
    movhs r1, #0
    cmp r3, #8
    bhs 2f
    adds r2, r2, r1
    adds r3, #1
    b 1b
2:  strb r2, [r0]
    pop {r4, pc}
    .ltorg
"""


@each_compiler
def test_memory_hooks_leave_conditional_blocks_as_they_are(compiler: str, tmp_path: Path) -> None:
    """A load from flash under a condition, then a branch on new flags: unicorn issue 2309."""
    sources = samples.assembled("cond", CONDITIONAL)
    table = "__attribute__((used)) const uint8_t dense_table[8] = {1, 2, 3, 4, 5, 6, 7, 8};\n"
    include = '#include "cond.h"\n'
    sources = replace(sources, source=sources.source.replace(include, include + table))
    image = build(sources, "cortex-m33", compiler, folder=tmp_path)
    plain, flash = (emulate(image, samples.inputs(4, 1), model) for model in (None, FlashModel(5)))
    assert plain.outputs.tolist() == flash.outputs.tolist() == [[36]]
    assert plain.instructions == flash.instructions
    assert flash.operators[0].data_misses > 0


def test_boards_without_wait_states_have_no_flash_to_wait_for() -> None:
    boards = load_boards()
    for board in boards.values():
        model = flash_of(board)
        assert (model is None) == (board.wait_states == 0)
        assert model is None or model.code_cache_bytes == board.cache_bytes
    art = flash_of(boards["nucleo_l4r5zi"])
    assert art is not None
    assert (art.code_cycles(3), art.data_cycles(3)) == (60, 15)  # 4 reads a line x 5 wait states


def test_a_flash_model_refuses_senseless_figures() -> None:
    with pytest.raises(TargetError, match="-1 wait states"):
        FlashModel(-1)


@needs_compiler
def test_a_network_that_leaves_its_memory_is_stopped(tmp_path: Path) -> None:
    wild = samples.assembled("wild", "movs r1, #9\nlsls r1, r1, #28\nstr r1, [r1]\nbx lr")
    with pytest.raises(TargetError, match=r"stopped: UcError: .*[Ii]nvalid memory write"):
        run(wild, "cortex-m4", tmp_path)


@needs_compiler
def test_unaligned_words_fault_on_armv6m_only(tmp_path: Path) -> None:
    odd = samples.assembled("odd", "movs r1, #1\nldr r2, [r0, r1]\nbx lr")
    assert run(odd, "cortex-m4", tmp_path / "m4").instructions > 0
    with pytest.raises(TargetError, match=r"reads or writes 4 B at 0x\S+1, which Armv6-M cannot"):
        run(odd, "cortex-m0plus", tmp_path / "m0plus")


@needs_compiler
def test_inputs_must_fit(tmp_path: Path) -> None:
    image = build(samples.dense(), "cortex-m4", folder=tmp_path)
    for wrong in (np.zeros((1, 63), np.int8), np.zeros((0, 64), np.int8), b"abc"):
        with pytest.raises(TargetError, match="inputs of 64 B each; found"):
            emulate(image, wrong)
    with pytest.raises(TargetError, match="float32"):
        emulate(image, np.zeros((1, 64), np.float32))


@needs_compiler
def test_without_unicorn_the_install_line_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = build(samples.dense(), "cortex-m4", folder=tmp_path / "image")
    (tmp_path / "unicorn.py").write_text("raise ImportError('not here')\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(TargetError, match=r"needs unicorn .*pip install 'dse\[firmware\]'"):
        emulate(image, samples.inputs(64, 1))


@needs_compiler
def test_without_qemu_the_m55_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = build(samples.dense(), "cortex-m55", folder=tmp_path)
    monkeypatch.setattr("dse.firmware.emulate.qemu_version", lambda: None)
    with pytest.raises(TargetError, match="cortex-m55 with QEMU needs qemu-system-arm"):
        emulate(image, samples.inputs(64, 1))
    with pytest.raises(TargetError, match="Unicorn does not emulate cortex-m55"):
        emulate(image, samples.inputs(64, 1), qemu=False)


@needs_compiler
def test_the_engine_stays_in_its_own_process(tmp_path: Path) -> None:
    run(samples.dense(), "cortex-m4", tmp_path)
    assert "unicorn" not in sys.modules


@needs_compiler
def test_a_name_of_its_own_for_every_network(tmp_path: Path) -> None:
    sources = samples.dense()
    other = replace(
        sources,
        name="other",
        header=sources.header.replace("dense_", "other_"),
        source=sources.source.replace("dense", "other"),
        operators=("other_op0", "other_op1"),
    )
    one = run(sources, "cortex-m4", tmp_path / "one")
    two = run(other, "cortex-m4", tmp_path / "two")
    assert one.instructions == two.instructions
