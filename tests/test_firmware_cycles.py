"""Cycle tables agree with documented timings, and every number in them has a source."""

from __future__ import annotations

from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dse.errors import TargetError
from dse.firmware.build import compilers, find_compiler
from dse.firmware.cycles import (
    Edge,
    Table,
    block_cycles,
    count,
    decode,
    parse_table,
    read_table,
)
from dse.firmware.cycles_report import Documented, assemble, counted, documented

for package in ("elftools", "capstone"):
    pytest.importorskip(package, reason=f"{package} is missing (pip install 'dse[firmware]')")

needs_compiler = pytest.mark.skipif(not compilers(), reason="neither gcc nor ziglang")
FAMILIES = ("m0plus", "m3", "m4", "m7", "m33")
# 16-bit instructions of Armv6-M that do not branch: movs, adds, muls, ldr, ldrb, str, strb, lsls.
STRAIGHT = st.sampled_from(
    [0x2001, 0x1840, 0x4348, 0x6808, 0x7808, 0x6008, 0x7008, 0x0048, 0x1C52, 0x5C88]
)


@needs_compiler
@pytest.mark.parametrize("row", documented(), ids=lambda row: f"{row.core}: {row.code}")
def test_documented_timings(row: Documented) -> None:
    cycles = counted(row, assemble(row.code, row.core, find_compiler()))
    assert row.low <= cycles <= row.high


@pytest.mark.parametrize("family", FAMILIES)
def test_every_number_has_a_source(family: str) -> None:
    table = read_table(family)
    assert table.facts
    for fact in table.facts.values():
        assert fact.source
        assert fact.low <= fact.value <= fact.high


@pytest.mark.parametrize("family", ["m0plus", "m3", "m4", "m33"])
@given(halves=st.lists(STRAIGHT, min_size=1, max_size=12))
def test_scalar_cycles_are_bounded_and_nearly_additive(family: str, halves: list[int]) -> None:
    """One to three cycles an instruction; joining two blocks moves at most one cycle."""
    table = read_table(family)
    code = b"".join(half.to_bytes(2, "little") for half in halves)
    whole = block_cycles(decode(code, 0), table)
    assert len(halves) <= whole <= 3 * len(halves)
    cut = len(halves) // 2 * 2
    parts = [block_cycles(decode(part, 0), table) for part in (code[:cut], code[cut:]) if part]
    assert abs(whole - sum(parts)) <= 1


@given(halves=st.lists(STRAIGHT, min_size=1, max_size=12))
def test_two_instructions_a_cycle_at_most_on_the_m7(halves: list[int]) -> None:
    table = read_table("m7")
    code = b"".join(half.to_bytes(2, "little") for half in halves)
    whole = block_cycles(decode(code, 0), table)
    assert (len(halves) + 1) // 2 <= whole <= 3 * len(halves)
    assert block_cycles(decode(code[:-2], 0), table) <= whole


LOOP = {0x1000: b"\x01\x38\xfd\xd1"}  # subs r0, #1; bne to itself
ways = st.tuples(st.integers(1, 50), st.integers(1, 50))


@pytest.mark.parametrize("family", FAMILIES)
@given(st.lists(ways, min_size=2, max_size=4))
def test_an_operator_takes_the_same_cycles_beside_any_other(
    family: str, rounds: list[tuple[int, int]]
) -> None:
    """A branch that goes one way in one layer and another in the next is learned in each."""
    table = read_table(family)
    edges = [
        [Edge(operator, 0x1000, 4, 0x1000, back), Edge(operator, 0x1000, 4, 0x1004, on)]
        for operator, (back, on) in enumerate(rounds)
    ]
    together = count([edge for each in edges for edge in each], LOOP, table)
    assert together == {i: count(each, LOOP, table)[i] for i, each in enumerate(edges)}


def text_of(family: str) -> str:
    return (resources.files("dse.firmware") / "cores" / f"{family}.toml").read_text("utf-8")


def edited(old: str, new: str) -> Table:
    text = text_of("m4")
    assert old in text
    return parse_table("mine", text.replace(old, new))


def test_wrong_tables_are_refused() -> None:
    with pytest.raises(TargetError, match=r"'mine': \[class.div\] is missing"):
        edited("[class.div]", "[class.divide]")
    with pytest.raises(TargetError, match="status"):
        edited('status = "read"', 'status = "sure"')
    with pytest.raises(TargetError, match="scalar or dual"):
        edited('issue = "scalar"', 'issue = "triple"')
    with pytest.raises(TargetError, match=r"unknown \[rule.takne\].*did you mean 'rule.taken'"):
        parse_table(
            "mine",
            text_of("m4") + '\n[rule.takne]\nvalue = 1\nstatus = "read"\nsource = "none"\n',
        )
    with pytest.raises(TargetError, match="no cycle table for core family 'm5'"):
        read_table("m5")


def test_bytes_that_are_no_code_are_refused() -> None:
    with pytest.raises(TargetError, match="do not decode"):
        decode(b"\xff\xff\xff\xff", 0x100)
