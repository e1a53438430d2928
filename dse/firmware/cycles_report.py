"""The cycle tables against documented timings: assembled, decoded, costed and compared."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dse.firmware.build import Compiler, find_compiler, read_code
from dse.firmware.cpu import CPUS, find_cpu
from dse.firmware.cycles import (
    Edge,
    block_cycles,
    count,
    decode,
    read_table,
)

PAIRS = "Arm DDI 0337I page 3-9; TI SWCU185G, load and store timings"
M3_TABLE = "Arm DDI 0337I table 3-1"
M4_TABLE = "TI SWCU192 table 3-25"
M0_TABLE = "Arm DDI 0484C table 3.1"
M7_MODEL = "LLVM ARMScheduleM7.td"


@dataclass(frozen=True)
class Documented:
    """A sequence and the cycles that a document gives, `low` to `high`.

    A sequence that ends in a branch is costed with the branch taken (to a 16-bit instruction).
    """

    core: str
    code: str
    low: float
    high: float
    source: str
    taken: bool = False


def _load_store(core: str) -> Iterator[Documented]:
    for code, cycles in (
        ("ldr r0, [r1]; ldr r1, [r2]", 3),
        ("ldr r0, [r1, r2]; str r0, [r3, #20]", 3),
        ("ldr r0, [r1, r2]; str r1, [r3, r2]", 3),
        ("ldr r0, [r1, r5]; ldr r1, [r2]; ldr r2, [r3, #4]", 4),
        ("str r0, [r1, #4]", 1),
        ("ldrd r0, r1, [r2]", 3),
        ("strd r0, r1, [r2]", 3),
        ("ldm r0!, {r1, r2, r3}", 4),
        ("stm r0!, {r1-r8}", 9),
        ("add r1, r1, r2; ldr r0, [r1]", 4),
        ("ldr r1, [r2]; ldr r0, [r1]", 4),
    ):
        yield Documented(core, code, cycles, cycles, PAIRS)


def documented() -> list[Documented]:
    """What is compared: every sequence with its document."""
    rows = [*_load_store("cortex-m3"), *_load_store("cortex-m4")]
    for core, source in (("cortex-m3", M3_TABLE), ("cortex-m4", M4_TABLE)):
        rows += [
            Documented(core, "add r0, r1, r2", 1, 1, source),
            Documented(core, "mul r0, r1, r2", 1, 1, source),
            Documented(core, "udiv r0, r1, r2", 2, 12, source),
            Documented(core, "b .", 2, 4, source, taken=True),
            Documented(core, "bx lr", 2, 4, source, taken=True),
            Documented(core, "pop {r4, pc}", 4, 6, source, taken=True),
            Documented(core, "tbb [r0, r1]", 6, 6, PAIRS, taken=True),
        ]
    rows += [
        Documented("cortex-m3", "mla r0, r1, r2, r3", 2, 2, M3_TABLE),
        Documented("cortex-m3", "smull r0, r1, r2, r3", 3, 5, M3_TABLE),
        Documented("cortex-m3", "smlal r0, r1, r2, r3", 4, 7, M3_TABLE),
        Documented("cortex-m4", "mla r0, r1, r2, r3", 1, 1, M4_TABLE),
        Documented("cortex-m4", "smull r0, r1, r2, r3", 1, 1, M4_TABLE),
        Documented("cortex-m4", "smlal r0, r1, r2, r3", 1, 1, M4_TABLE),
    ]
    rows += [
        Documented("cortex-m0plus", code, cycles, cycles, M0_TABLE, taken)
        for code, cycles, taken in (
            ("adds r0, r1, r2", 1, False),
            ("muls r0, r1, r0", 1, False),
            ("ldr r0, [r1]", 2, False),
            ("ldr r0, [r1]; ldr r2, [r3]", 4, False),
            ("strb r0, [r1]", 2, False),
            ("push {r4-r7, lr}", 6, False),
            ("ldm r0!, {r1, r2, r3}", 4, False),
            ("b .", 2, True),
            ("bx lr", 2, True),
        )
    ]
    rows += [
        Documented("cortex-m7", code, cycles, cycles, M7_MODEL)
        for code, cycles in (
            ("add r0, r1, r2; add r3, r4, r5", 1),
            ("add r0, r1, r2; add r3, r0, r5", 2),
            ("ldr r0, [r1]; ldr r2, [r3]", 1),
            ("ldr r0, [r1]; add r2, r0, r3", 2),
            ("ldrb r0, [r1]; add r2, r0, r3", 3),
            ("add r1, r1, r2; ldr r0, [r1]", 3),
            ("smlad r0, r1, r2, r0; smlad r0, r3, r4, r0", 2),
            ("mul r0, r1, r2; add r3, r0, r4", 3),
            ("udiv r0, r1, r2", 7),
        )
    ]
    return rows


def assemble(code: str, core: str, compiler: Compiler) -> bytes:
    """The Thumb bytes of a sequence of instructions, `;` between them."""
    cpu = find_cpu(core)
    with tempfile.TemporaryDirectory(prefix="dse-") as name:
        folder = Path(name)
        lines = (f"    {line.strip()}\n" for line in code.split(";"))
        text = ".syntax unified\n.thumb\n.text\nstart:\n" + "".join(lines)
        (folder / "pair.s").write_text(text.replace("b .", "b start"), encoding="utf-8")
        driver = (*compiler.command, "cc") if compiler.name == "zig" else compiler.command
        flags = cpu.zig if compiler.name == "zig" else cpu.gcc
        subprocess.run(
            [*driver, *flags, "-mthumb", "-c", "pair.s", "-o", "pair.o"],
            cwd=folder,
            check=True,
            capture_output=True,
        )
        return read_code(folder / "pair.o")


def counted(row: Documented, code: bytes) -> float:
    """The cycles that the table of the core gives these bytes."""
    table = read_table(CPUS[row.core].family)
    block = decode(code, 0x1000)
    if not row.taken:
        return block_cycles(block, table)
    edge = Edge(0, 0x1000, len(code), 0x1000 - 0x100, 1)
    return count([edge], {0x1000: code}, table)[0].cycles


def page() -> str:
    """The text of reports/cycles.md."""
    compiler = find_compiler()
    lines = [
        "# Cycle tables against documented timings",
        "",
        "Made by `python -m dse.firmware.cycles reports/cycles.md`. Each sequence was assembled "
        f"with {compiler.name} {compiler.version}, decoded and costed with the core's table.",
        "",
        "| core | sequence | documented | counted | agrees | document |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    agreed = 0
    rows = documented()
    for row in rows:
        cycles = counted(row, assemble(row.code, row.core, compiler))
        good = row.low <= cycles <= row.high
        agreed += good
        span = f"{row.low:g}" if row.low == row.high else f"{row.low:g} to {row.high:g}"
        code = f"`{row.code}`" + (" (taken)" if row.taken else "")
        answer = "yes" if good else "**no**"
        lines.append(f"| {row.core} | {code} | {span} | {cycles:g} | {answer} | {row.source} |")
    lines += ["", f"{agreed} of {len(rows)} sequences agree.", "", *_tables()]
    return "\n".join(lines) + "\n"


def _tables() -> Iterator[str]:
    yield "## Tables"
    yield ""
    yield (
        "Cycles of a class (scalar) or latency and ports (dual), with what rules add. Instructions "
        "that a condition switched off are charged like the others. M55 has no table: QEMU counts "
        "its instructions only."
    )
    for family in dict.fromkeys(cpu.family for cpu in CPUS.values() if cpu.unicorn):
        table = read_table(family)
        yield ""
        yield f"### {table.name} ({table.issue})"
        yield ""
        if table.note:
            yield f"The table of another core. {table.note}."
            continue
        yield "| entry | cycles | status | source |"
        yield "| --- | --- | --- | --- |"
        for key, fact in table.facts.items():
            span = f" ({fact.low:g} to {fact.high:g})" if fact.low != fact.high else ""
            yield f"| {key} | {fact.value:g}{span} | {fact.status} | {fact.source} |"


def main() -> None:
    """Write the report to the path given, or print it."""
    text = page()
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text, encoding="utf-8")
    else:
        print(text, end="")
