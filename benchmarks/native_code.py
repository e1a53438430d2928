"""What each kernel takes in a linked image: bytes of its functions, and stack down its calls.

Read from the machine code: who calls whom (BL and branches to another function's start), and what
a function moves the stack pointer by.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from dse.firmware.build import Image, Symbol, read_segments

ALIGNMENT = 4
# Half-words in which a function has set up its frame.
PROLOGUE = 24
# How the first half-word of a 32-bit instruction begins.
WIDE = (0b11101, 0b11110, 0b11111)


@dataclass(frozen=True)
class Function:
    """A function of an image: its name, bytes with padding, frame, and whom it calls or ends in."""

    name: str
    size_bytes: int
    frame_bytes: int
    calls: tuple[str, ...]
    ends_in: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """The functions of an image by name."""

    image: Image

    @cached_property
    def functions(self) -> Mapping[str, Function]:
        """All functions; of several names of one address, the first."""
        by_address: dict[int, Symbol] = {}
        for symbol in self.image.symbols:
            if symbol.function:
                by_address.setdefault(symbol.address, symbol)
        names = {address: symbol.name for address, symbol in by_address.items()}
        segments = read_segments(self.image.elf)
        return {
            symbol.name: _function(symbol, _bytes(segments, symbol), names)
            for symbol in by_address.values()
        }

    def closure(self, name: str) -> tuple[str, ...]:
        """A function and all that it calls, itself first."""
        found: dict[str, None] = {}
        waiting = [name]
        while waiting:
            here = waiting.pop()
            if here in found:
                continue
            found[here] = None
            function = self.functions[here]
            waiting += [*function.calls, *function.ends_in]
        return tuple(found)

    def stack_bytes(self, name: str, above: tuple[str, ...] = ()) -> int:
        """The deepest stack of a function and its callees; a function ends in another without its
        own frame. Recursion counts once."""
        if name in above:
            return 0
        function, deeper = self.functions[name], (*above, name)
        called = max((self.stack_bytes(each, deeper) for each in function.calls), default=0)
        last = max((self.stack_bytes(each, deeper) for each in function.ends_in), default=0)
        return max(function.frame_bytes + called, last)

    def others(self) -> Iterator[str]:
        """Functions that are no operator and not the API."""
        image = self.image
        own = {f"{image.name}_{part}" for part in ("input", "output", "run")}
        for name in self.functions:
            if name.split(".")[0] not in image.operators and name not in own:
                yield name


def aligned(size_bytes: int) -> int:
    """Bytes of a function up to where the next one starts."""
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT


def _bytes(segments: Iterable[tuple[int, bytes]], symbol: Symbol) -> bytes:
    for start, data in segments:
        if start <= symbol.address < start + len(data):
            return data[symbol.address - start : symbol.address - start + symbol.size_bytes]
    return b""


def _function(symbol: Symbol, code: bytes, names: Mapping[int, str]) -> Function:
    calls: list[str] = []
    ends: list[str] = []
    for linked, target in _branches(code, symbol.address):
        if target in names and target != symbol.address:
            (calls if linked else ends).append(names[target])
    return Function(
        symbol.name,
        aligned(symbol.size_bytes),
        _frame(code, symbol.address),
        tuple(dict.fromkeys(calls)),
        tuple(dict.fromkeys(ends)),
    )


def _branches(code: bytes, address: int) -> Iterator[tuple[bool, int]]:
    """(Is it a call, target) of every BL, B.W and B of Thumb code (Armv7-M ARM A7.7.12, .18)."""
    half = [int.from_bytes(code[i : i + 2], "little") for i in range(0, len(code) - 1, 2)]
    i = 0
    while i < len(half):
        one, here = half[i], address + 2 * i + 4
        if one >> 11 not in WIDE:
            i += 1
            if one >> 11 == 0b11100:
                yield False, here + _signed((one & 0x7FF) << 1, 12)
            continue
        two = half[i + 1] if i + 1 < len(half) else 0
        i += 2
        if one >> 11 != 0b11110 or two & 0xD000 not in (0xD000, 0x9000):
            continue
        sign = one >> 10 & 1
        high = (sign ^ 1 ^ (two >> 13 & 1)) << 23 | (sign ^ 1 ^ (two >> 11 & 1)) << 22
        offset = sign << 24 | high | (one & 0x3FF) << 12 | (two & 0x7FF) << 1
        yield two & 0xD000 == 0xD000, here + _signed(offset, 25)


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def _frame(code: bytes, address: int) -> int:
    """Bytes by which a function moves the stack pointer down on its way in (Armv7-M ARM, A7.7)."""
    half = [int.from_bytes(code[i : i + 2], "little") for i in range(0, len(code) - 1, 2)]
    total, i = 0, 0
    while i < min(len(half), PROLOGUE):
        one = half[i]
        two = half[i + 1] if i + 1 < len(half) else 0
        wide = one >> 11 in WIDE
        total += _moved(one, two) if wide else _moved_short(one)
        i += 2 if wide else 1
    return total


def _moved_short(one: int) -> int:
    if one >> 9 == 0b1011010:  # PUSH
        return 4 * (one & 0x1FF).bit_count()
    return 4 * (one & 0x7F) if one >> 7 == 0b101100001 else 0  # SUB SP


def _moved(one: int, two: int) -> int:
    if one == 0xE92D:  # PUSH.W
        return 4 * two.bit_count()
    if one & 0xFFBF == 0xED2D:  # VPUSH
        return 4 * (two & 0xFF)
    if one == 0xF84D and two & 0xFFF == 0xD04:  # STR to a new word
        return 4
    if one & 0xFBFF == 0xF1AD and two & 0xF00 == 0xD00:  # SUB.W
        return _expanded((one >> 10 & 1) << 11 | (two >> 12 & 7) << 8 | two & 0xFF)
    if one & 0xFBFF == 0xF2AD and two & 0xF00 == 0xD00:  # SUBW
        return (one >> 10 & 1) << 11 | (two >> 12 & 7) << 8 | two & 0xFF
    return 0


def _expanded(immediate: int) -> int:
    """A modified constant of Thumb (A5.3.2); frames need plain bytes and rotated ones."""
    if immediate >> 10:
        rotation, value = immediate >> 7, 0x80 | immediate & 0x7F
        return (value >> rotation | value << (32 - rotation)) & 0xFFFFFFFF
    return immediate & 0xFF
