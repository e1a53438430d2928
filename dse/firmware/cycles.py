"""Cycles of basic blocks on Cortex-M cores, from tables whose every number has a source.

`python -m dse.firmware.cycles [REPORT]` checks the tables against Arm's documented pairs and
writes reports/cycles.md. Two models: `scalar` (M0+, M3, M4, M33), a cost for each class of
instruction with rules for pairs, and `dual` (M7), a two-wide in-order scoreboard.
"""

from __future__ import annotations

import importlib
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args

from dse.errors import TargetError, nearest
from dse.firmware.build import INSTALL
from dse.targets.fact import STATUSES, Fact

Kind: TypeAlias = Literal[
    "alu",
    "extend",
    "mul",
    "mac",
    "mul_long",
    "mac_long",
    "simd",
    "div",
    "load",
    "load_narrow",
    "store",
    "multiple",
    "branch",
    "it",
    "fp",
    "fma",
    "fdiv",
    "other",
]
# A class that a table leaves out costs what the class beside it costs.
SAME_AS: Mapping[str, str] = {"load_narrow": "load", "extend": "alu"}
SCALAR_RULES = (
    "load_pipelined",
    "store_register_offset",
    "address_dependency",
    "taken",
    "taken_link",
    "taken_indirect",
    "taken_pop",
    "taken_table",
    "target_misaligned",
    "it_folded",
)
DUAL_RULES = (
    "address_early",
    "store_data_late",
    "accumulate_late",
    "fp_accumulate_late",
    "mispredicted",
)
RULES: Mapping[str, tuple[str, ...]] = {"scalar": SCALAR_RULES, "dual": DUAL_RULES}
PORTS = ("width", "alu", "load", "store", "mac", "simd", "branch", "fp")
PORT_OF: Mapping[str, str] = {
    "mul": "mac",
    "mul_long": "mac",
    "mac_long": "mac",
    "mac": "mac",
    "load_narrow": "load",
    "load": "load",
    "store": "store",
    "extend": "simd",
    "simd": "simd",
    "branch": "branch",
    "fp": "fp",
    "fma": "fp",
    "fdiv": "fp",
}
_KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(("mul", "smmul", "smulbb", "smulbt", "smultb", "smultt", "smuad"), "mul"),
    **dict.fromkeys(("smusd", "smuadx", "smusdx", "smulwb", "smulwt", "smmulr"), "mul"),
    **dict.fromkeys(("mla", "mls", "smlad", "smladx", "smlsd", "smlsdx", "smmla"), "mac"),
    **dict.fromkeys(("smmlar", "smmls", "smmlsr", "smlabb", "smlabt", "smlatb"), "mac"),
    **dict.fromkeys(("smlatt", "smlawb", "smlawt"), "mac"),
    **dict.fromkeys(("smull", "umull"), "mul_long"),
    **dict.fromkeys(("smlal", "umlal", "umaal", "smlald", "smlaldx", "smlsld"), "mac_long"),
    **dict.fromkeys(("smlalbb", "smlalbt", "smlaltb", "smlaltt"), "mac_long"),
    **dict.fromkeys(("sdiv", "udiv"), "div"),
    **dict.fromkeys(("sxtb", "sxth", "uxtb", "uxth"), "extend"),
    **dict.fromkeys(("sxtb16", "uxtb16", "sxtab", "sxtah", "uxtab", "uxtah"), "simd"),
    **dict.fromkeys(("sxtab16", "uxtab16", "pkhbt", "pkhtb", "ssat", "usat"), "simd"),
    **dict.fromkeys(("ssat16", "usat16", "qadd", "qsub", "qdadd", "qdsub", "sel"), "simd"),
    **dict.fromkeys(("ldr", "vldr"), "load"),
    **dict.fromkeys(("ldrb", "ldrh", "ldrsb", "ldrsh"), "load_narrow"),
    **dict.fromkeys(("str", "strb", "strh", "vstr"), "store"),
    **dict.fromkeys(("ldm", "ldmdb", "pop", "ldrd", "stm", "stmdb", "push", "strd"), "multiple"),
    **dict.fromkeys(("vldmia", "vldmdb", "vstmia", "vstmdb", "vpush", "vpop"), "multiple"),
    **dict.fromkeys(("b", "bl", "bx", "blx", "cbz", "cbnz", "tbb", "tbh"), "branch"),
    **dict.fromkeys(("vmla", "vmls", "vnmla", "vnmls", "vfma", "vfms", "vfnma", "vfnms"), "fma"),
    **dict.fromkeys(("vdiv", "vsqrt"), "fdiv"),
    "it": "it",
    **dict.fromkeys(("dmb", "dsb", "isb", "mrs", "msr", "cps", "svc", "bkpt", "udf"), "other"),
}
_SIMD_PREFIXES = ("sadd", "uadd", "ssub", "usub", "shadd", "uhadd", "shsub", "qadd", "qsub", "usad")


@dataclass(frozen=True)
class Instruction:
    """A decoded instruction with what the timing rules ask for; registers by name."""

    address: int
    size_bytes: int
    text: str
    kind: Kind
    store: bool
    addresses: frozenset[str]
    stored: frozenset[str]
    accumulates: frozenset[str]
    reads: frozenset[str]
    writes: frozenset[str]
    registers: int
    register_offset: bool
    jumps: bool
    taken: Literal["taken", "taken_link", "taken_indirect", "taken_pop", "taken_table"]


@dataclass(frozen=True)
class Table:
    """The timing of one core: cycles of each class, rules for pairs, and ports when dual-issue."""

    family: str
    name: str
    issue: str
    facts: Mapping[str, Fact]
    note: str

    def cycles(self, kind: str) -> float:
        """Cycles (scalar) or latency (dual) of a class of instructions."""
        key = f"class.{kind}"
        return self.facts[key if key in self.facts else f"class.{SAME_AS[kind]}"].value

    def rule(self, name: str) -> float:
        """Cycles that a rule adds."""
        return self.facts[f"rule.{name}"].value


@cache
def read_table(family: str) -> Table:
    """The table of a core family; TargetError for an unknown family or a wrong file."""
    folder = resources.files("dse.firmware") / "cores"
    known = sorted(file.name[:-5] for file in folder.iterdir() if file.name.endswith(".toml"))
    if family not in known:
        raise TargetError(f"no cycle table for core family '{family}'; {nearest(family, known)}")
    return parse_table(family, (folder / f"{family}.toml").read_text(encoding="utf-8"))


def parse_table(family: str, text: str) -> Table:
    """The table in a TOML text; TargetError names the file, the key and what is wrong."""
    raw = tomllib.loads(text)
    if "same_as" in raw:
        other = read_table(raw["same_as"])
        return Table(
            family, raw["name"], other.issue, other.facts, f"{raw['status']}: {raw['source']}"
        )
    facts = {
        f"{group}.{key}": _fact(entry, f"{group}.{key}", family)
        for group in ("class", "rule", "port")
        for key, entry in raw.get(group, {}).items()
    }
    if raw.get("issue") not in RULES:
        raise TargetError(f"cycle table '{family}': key 'issue' must be scalar or dual")
    wanted = [f"class.{kind}" for kind in (*get_args(Kind), "multiple_register")]
    wanted = [key for key in wanted if key.split(".")[1] not in SAME_AS]
    wanted += [f"rule.{rule}" for rule in RULES[raw["issue"]]]
    wanted += [f"port.{port}" for port in PORTS if raw["issue"] == "dual"]
    for key in wanted:
        if key not in facts:
            raise TargetError(f"cycle table '{family}': [{key}] is missing; every core needs it")
    for key in facts:
        if key not in wanted and key.split(".")[1] not in SAME_AS:
            raise TargetError(f"cycle table '{family}': unknown [{key}]; {nearest(key, wanted)}")
    return Table(family, raw["name"], raw["issue"], MappingProxyType(facts), "")


def _fact(entry: Mapping[str, Any], key: str, family: str) -> Fact:
    if entry.get("status") not in STATUSES or not entry.get("source"):
        raise TargetError(
            f"cycle table '{family}': [{key}] needs a status ({', '.join(STATUSES)}) and a source"
        )
    low, high = entry.get("low", entry["value"]), entry.get("high", entry["value"])
    return Fact(entry["value"], low, high, "cycles", entry["status"], entry["source"])


def decode(code: bytes, address: int) -> tuple[Instruction, ...]:
    """The Thumb instructions of these bytes, which hold no data (a block that was executed)."""
    capstone, engine = _capstone()
    found = tuple(_instruction(capstone, one) for one in engine.disasm(code, address))
    if sum(one.size_bytes for one in found) != len(code):
        raise TargetError(f"the {len(code)} B of code at {address:#x} do not decode as Thumb")
    return found


@cache
def _capstone() -> tuple[Any, Any]:
    try:
        capstone = importlib.import_module("capstone")
    except ImportError as error:
        raise TargetError(f"counting cycles needs capstone; run {INSTALL}") from error
    mode = capstone.CS_MODE_THUMB | capstone.CS_MODE_MCLASS | capstone.CS_MODE_V8
    engine = capstone.Cs(capstone.CS_ARCH_ARM, mode)
    engine.detail = True
    return capstone, engine


def kind_of(name: str) -> Kind:
    """The class of an instruction by its name without condition and width."""
    if name in _KINDS:
        return _KINDS[name]
    if name.startswith("it"):
        return "it"
    if name.startswith(_SIMD_PREFIXES):
        return "simd"
    return "fp" if name.startswith("v") else "alu"


def _instruction(capstone: Any, one: Any) -> Instruction:
    arm = importlib.import_module("capstone.arm")
    name = str(one.insn_name()).split(".")[0]
    kind = kind_of(name)
    operands = list(one.operands)
    memory = [operand for operand in operands if operand.type == arm.ARM_OP_MEM]
    registers = [
        str(one.reg_name(operand.reg)) for operand in operands if operand.type == arm.ARM_OP_REG
    ]
    read_ids, write_ids = one.regs_access()
    reads = frozenset(str(one.reg_name(number)) for number in read_ids)
    writes = frozenset(str(one.reg_name(number)) for number in write_ids) - {"cpsr", "apsr"}
    base = {one.reg_name(op.mem.base) for op in memory} | {
        one.reg_name(op.mem.index) for op in memory if op.mem.index
    }
    if kind == "multiple" and not memory:
        pushed = name in ("push", "pop", "vpush", "vpop")
        base = {"sp"} if pushed else set(registers[:1])
        registers = registers if pushed else registers[1:]
    jumps = kind == "branch" or "pc" in writes
    return Instruction(
        int(one.address),
        int(one.size),
        f"{one.mnemonic} {one.op_str}".strip(),
        kind,
        name.startswith(("str", "stm", "vst", "push", "vpush")),
        frozenset(str(register) for register in base if register),
        frozenset(registers[:1]) if kind == "store" else frozenset(),
        frozenset(registers[-1:] if kind == "mac" else registers[:1] if kind == "fma" else ()),
        reads - {"cpsr", "apsr"},
        writes,
        len(registers),
        any(op.mem.index for op in memory),
        jumps,
        _taken(name, kind),
    )


def _taken(
    name: str, kind: Kind
) -> Literal["taken", "taken_link", "taken_indirect", "taken_pop", "taken_table"]:
    """The rule for the branch that this instruction is when it jumps."""
    if name in ("tbb", "tbh"):
        return "taken_table"
    if name in ("bl", "blx"):
        return "taken_link"
    if kind in ("load", "multiple"):
        return "taken_pop"
    return "taken" if name in ("b", "cbz", "cbnz") else "taken_indirect"


def block_cycles(block: Sequence[Instruction], table: Table) -> float:
    """Cycles of a block whose closing branch, if it has one, is not taken."""
    if table.issue == "dual":
        return _dual(block, table)
    pairs = zip([None, *block], block, [*block[1:], None], strict=False)
    return sum(_scalar(before, one, after, table) for before, one, after in pairs)


def _scalar(
    before: Instruction | None, one: Instruction, after: Instruction | None, table: Table
) -> float:
    cycles = table.cycles(one.kind)
    if one.kind == "multiple":
        cycles += one.registers * table.cycles("multiple_register")
    if one.kind in ("load", "load_narrow") and after is not None and not one.jumps:
        follows = after.kind in ("load", "load_narrow") and not after.jumps
        if follows and not one.writes & after.addresses:
            cycles += table.rule("load_pipelined")
    loaded = before is not None and before.kind in ("load", "load_narrow")
    if one.kind == "store" and one.register_offset and not loaded:
        cycles += table.rule("store_register_offset")
    computed = before is not None and before.kind in ("alu", "extend", "mul", "mac", "simd")
    if computed and before is not None and before.writes & one.addresses:
        cycles += table.rule("address_dependency")
    if one.kind == "it" and before is not None and before.size_bytes == 2:
        cycles += table.rule("it_folded")
    return cycles


def _dual(block: Sequence[Instruction], table: Table) -> float:
    """Two-wide in-order issue: operands ready, a port free, at most two in a cycle."""
    width = int(table.facts["port.width"].value)
    ready: dict[str, float] = {}
    cycle, used = 0.0, dict.fromkeys((*PORTS, "all"), 0)
    for one in block:
        earliest = max([cycle, *(_needed(one, name, ready, table) for name in one.reads)])
        port = PORT_OF.get(one.kind, "alu")
        alone = one.kind in ("multiple", "div", "other")
        limit = table.facts[f"port.{port}"].value
        busy = used["all"] >= (1 if alone else width) or used[port] >= limit
        if earliest > cycle or busy:
            cycle, used = max(earliest, cycle + busy), dict.fromkeys(used, 0)
        used["all"] += 1
        used[port] += 1
        latency = table.cycles(one.kind)
        if alone:
            used["all"] = width
            more = one.registers * table.cycles("multiple_register") if one.registers else 0.0
            cycle += math.ceil(latency - 1 + (more if one.kind == "multiple" else 0.0))
            latency = 1.0
        ready.update(dict.fromkeys(one.writes, cycle + latency))
    return cycle + 1 if block else 0.0


def _needed(one: Instruction, register: str, ready: Mapping[str, float], table: Table) -> float:
    """The first cycle in which an instruction may issue as far as one register goes."""
    when = ready.get(register, 0.0)
    if register in one.addresses:
        return when + table.rule("address_early") if register in ready else 0.0
    if register in one.stored:
        return when - table.rule("store_data_late")
    if register in one.accumulates:
        late = "fp_accumulate_late" if one.kind == "fma" else "accumulate_late"
        return when - table.rule(late)
    return when


def branch_cycles(
    block: Sequence[Instruction], next_size_bytes: int, following: int, table: Table
) -> float:
    """What the taken branch that ends a scalar block adds, given the instruction it leads to."""
    misaligned = next_size_bytes == 4 and following % 4 == 2
    return table.rule(block[-1].taken) + (table.rule("target_misaligned") if misaligned else 0.0)


@dataclass(frozen=True)
class Edge:
    """A block that ran for an operator and what ran next, counted."""

    operator: int
    address: int
    size_bytes: int
    following: int
    count: int


# By operator and block: the block that mostly follows.
Usual: TypeAlias = Mapping[tuple[int, int], int]


@dataclass(frozen=True)
class Count:
    """What ran for one operator (or all): instructions, blocks and cycles."""

    instructions: int
    blocks: int
    cycles: float


def count(
    edges: Iterable[Edge], code: Mapping[int, bytes], table: Table | None
) -> dict[int, Count]:
    """Instructions, blocks and cycles by operator; `code` maps addresses to the image's bytes.

    Instructions that a condition switched off count: blocks are counted, not instructions, and
    the pipeline pays a cycle for them. Cycles are 0 without a table.
    """
    edges = list(edges)
    blocks = {(e.address, e.size_bytes): _block(code, e.address, e.size_bytes) for e in edges}
    static = {key: block_cycles(block, table) if table else 0.0 for key, block in blocks.items()}
    first_size = {address: block[0].size_bytes for (address, _), block in blocks.items()}
    usual = _usual(edges)
    totals: dict[int, Count] = {}
    for edge in edges:
        key = (edge.address, edge.size_bytes)
        cycles = static[key]
        if table is not None:
            cycles += _ending(edge, blocks[key], first_size.get(edge.following, 2), usual, table)
        old = totals.get(edge.operator, Count(0, 0, 0.0))
        totals[edge.operator] = Count(
            old.instructions + edge.count * len(blocks[key]),
            old.blocks + edge.count,
            old.cycles + edge.count * cycles,
        )
    return totals


def _block(code: Mapping[int, bytes], address: int, size: int) -> tuple[Instruction, ...]:
    for start, data in code.items():
        if start <= address and address + size <= start + len(data):
            return decode(data[address - start : address - start + size], address)
    raise TargetError(f"the network ran {size} B of code at {address:#x}, outside its image")


def _usual(edges: Sequence[Edge]) -> Usual:
    """Where each block mostly leads, by operator: what a branch predictor learns.

    An operator's branches do not depend on what runs before it: predictors learn anew within few
    rounds, so that a layer takes the same cycles in every network.
    """
    counts: dict[tuple[int, int], dict[int, int]] = {}
    for edge in edges:
        block = counts.setdefault((edge.operator, edge.address), {})
        block[edge.following] = block.get(edge.following, 0) + edge.count
    return {key: max(block, key=lambda to: block[to]) for key, block in counts.items()}


def _ending(
    edge: Edge,
    block: Sequence[Instruction],
    next_size_bytes: int,
    usual: Usual,
    table: Table,
) -> float:
    if table.issue == "dual":
        # Returns are predicted from a stack, so their many targets are all usual.
        last = block[-1]
        returns = last.taken in ("taken_indirect", "taken_pop")
        known = usual[edge.operator, edge.address] == edge.following or returns or not last.jumps
        return 0.0 if known else table.rule("mispredicted")
    if edge.following == edge.address + edge.size_bytes or not block[-1].jumps:
        return 0.0
    return branch_cycles(block, next_size_bytes, edge.following, table)


if __name__ == "__main__":
    importlib.import_module("dse.firmware.cycles_report").main()
