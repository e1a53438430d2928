"""Boards: one TOML file each, every number with unit, status and source; checked when read."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from dse.errors import TargetError, nearest
from dse.targets.core import CORES, Core, find_core
from dse.targets.fact import STATUSES, Fact

# How far the current per MHz may be off at a clock it was not measured at: firmware set-up alone
# moves board power by about 15 % (calibration README, MLPerf Tiny energy logs).
OTHER_CLOCK_SPREAD = 0.15

_SIZE = {"B": 1.0, "KiB": 1024.0, "MiB": 1024.0**2}
UNITS: Mapping[str, Mapping[str, float]] = {
    "clocks": {"Hz": 1.0, "kHz": 1e3, "MHz": 1e6},
    "flash": _SIZE,
    "ram": _SIZE,
    "reserved_flash": _SIZE,
    "reserved_ram": _SIZE,
    "cache": _SIZE,
    "wait_states": {"cycles": 1.0},
    "supply": {"V": 1.0, "mV": 1e-3},
    "active_current": {"uA/MHz": 1e-12, "A/Hz": 1.0},
    "active_power": {"W": 1.0, "mW": 1e-3},
    "sleep_current": {"A": 1.0, "mA": 1e-3, "uA": 1e-6},
    "price": {"USD": 1.0},
}
SI_UNITS: Mapping[str, str] = {
    "clocks": "Hz",
    "cache": "B",
    "flash": "B",
    "ram": "B",
    "reserved_flash": "B",
    "reserved_ram": "B",
    "wait_states": "cycles",
    "supply": "V",
    "active_current": "A/Hz",
    "active_power": "W",
    "sleep_current": "A",
    "price": "USD",
}
REQUIRED = ("name", "title", "core", "clocks", "flash", "ram")
WORDS = ("core", "regulator")
KEYS = ("name", "title", *WORDS, *UNITS)


@dataclass(frozen=True)
class Board:
    """A board: memory in bytes, clocks in hertz, supply in volts, current in amperes per hertz.

    `ram_bytes` is the largest contiguous region; `reserved_*_bytes` belong to the other firmware.
    `facts` holds every figure of the file with interval, status and source (first clock = fastest).
    """

    name: str
    title: str
    core: Core
    clocks_hz: tuple[int, ...]
    flash_bytes: int
    ram_bytes: int
    reserved_flash_bytes: int
    reserved_ram_bytes: int
    wait_states: int
    cache_bytes: int
    regulator: str
    facts: tuple[tuple[str, Fact], ...]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise TargetError(
                f"board name '{self.name}': allowed are letters, digits, '_', '-' and '.', since "
                "targets are written board/backend/clock"
            )
        if self.clocks_hz[0] != max(self.clocks_hz) or len(set(self.clocks_hz)) != len(
            self.clocks_hz
        ):
            raise TargetError(
                f"board '{self.name}': key 'clocks' is {list(self.clocks_hz)} Hz; "
                "list each clock once, the fastest first"
            )
        for kind, total, reserved in (
            ("flash", self.flash_bytes, self.reserved_flash_bytes),
            ("ram", self.ram_bytes, self.reserved_ram_bytes),
        ):
            if reserved >= total:
                raise TargetError(
                    f"board '{self.name}': key 'reserved_{kind}' is {reserved} B; "
                    f"it must be below the {total} B of '{kind}'"
                )

    @property
    def max_clock_hz(self) -> int:
        """The fastest clock."""
        return self.clocks_hz[0]

    def fact(self, key: str) -> Fact | None:
        """The figure of that key with its source, or None when the file does not give it."""
        return dict(self.facts).get(key)

    def active_power_w(self, clock_hz: int) -> Fact | None:
        """Power while inferring at that clock, in watts; None when nothing is known.

        Current per MHz times supply; a clock it was not measured at widens the interval.
        """
        current, supply, power = map(self.fact, ("active_current", "supply", "active_power"))
        if power is not None:
            watts = power.scaled(clock_hz / self.max_clock_hz, "W")
        elif current is not None and supply is not None:
            watts = current.scaled(clock_hz * supply.value, "W")
        else:
            return None
        if clock_hz == self.max_clock_hz:
            return watts
        low, high = watts.low * (1 - OTHER_CLOCK_SPREAD), watts.high * (1 + OTHER_CLOCK_SPREAD)
        source = f"{watts.source}; the same current per MHz assumed at {clock_hz / 1e6:g} MHz"
        return Fact(watts.value, low, high, "W", "derived", source)


def load_boards(extra_dir: Path | None = None) -> Mapping[str, Board]:
    """All boards by name: those of the package, then those of `extra_dir`, which win.

    Raises TargetError with file, key, value and what is allowed when a file is wrong.
    """
    boards = dict(_packaged())
    if extra_dir is None:
        return boards
    if not extra_dir.is_dir():
        raise TargetError(f"the folder of board files '{extra_dir}' does not exist")
    boards.update((board.name, board) for board in _read_all(extra_dir))
    return boards


def find_board(name: str, boards: Mapping[str, Board]) -> Board:
    """The board of that name; TargetError names the nearest."""
    if name not in boards:
        raise TargetError(f"unknown board '{name}'; {nearest(name, boards)}")
    return boards[name]


@cache
def _packaged() -> Mapping[str, Board]:
    folder = resources.files("dse.targets") / "boards"
    return {board.name: board for board in _read_all(folder)}


def _read_all(folder: Traversable) -> Iterator[Board]:
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".toml"):
            yield read_board(file)


def read_board(file: Traversable) -> Board:
    """The board of one TOML file; TargetError names file, key, value and what is allowed."""
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise TargetError(f"board file '{file.name}' is not readable TOML: {error}") from error
    return _board(table, file.name)


def _board(table: Mapping[str, Any], file: str) -> Board:
    for key in table:
        if key not in KEYS:
            raise TargetError(f"board file '{file}': unknown key '{key}'; {nearest(key, KEYS)}")
    for key in REQUIRED:
        if key not in table:
            raise TargetError(f"board file '{file}': key '{key}' is missing; every board needs it")
    clocks = table["clocks"]
    if not isinstance(clocks, list) or not clocks:
        raise TargetError(
            f"board file '{file}': key 'clocks' is {clocks!r}; give a list of facts, fastest first"
        )
    facts = [("clocks", _fact(clock, "clocks", file)) for clock in clocks]
    facts += [
        (key, _fact(table[key], key, file)) for key in UNITS if key in table and key != "clocks"
    ]
    words = {key: _word(table[key], key, file) for key in WORDS if key in table}
    known = dict(facts)

    def count(key: str) -> int:
        return round(known[key].value) if key in known else 0

    if words["core"] not in CORES:
        raise TargetError(
            f"board file '{file}': key 'core' is '{words['core']}'; {nearest(words['core'], CORES)}"
        )
    try:
        return Board(
            name=_text(table, "name", file),
            title=_text(table, "title", file),
            core=find_core(words["core"]),
            clocks_hz=tuple(round(fact.value) for key, fact in facts if key == "clocks"),
            flash_bytes=count("flash"),
            ram_bytes=count("ram"),
            reserved_flash_bytes=count("reserved_flash"),
            reserved_ram_bytes=count("reserved_ram"),
            wait_states=count("wait_states"),
            cache_bytes=count("cache"),
            regulator=words.get("regulator", "unknown"),
            facts=tuple(facts),
        )
    except TargetError as error:
        raise TargetError(f"board file '{file}': {error}") from error


def _text(table: Mapping[str, Any], key: str, file: str) -> str:
    value = table[key]
    if not isinstance(value, str) or not value.strip():
        raise TargetError(f"board file '{file}': key '{key}' is {value!r}; it must be a text")
    return value


def _word(entry: object, key: str, file: str) -> str:
    value = _checked(entry, key, file)["value"]
    if not isinstance(value, str):
        raise TargetError(
            f"board file '{file}': key '{key}' has value {value!r}; it must be a text"
        )
    return value


def _checked(entry: object, key: str, file: str) -> Mapping[str, Any]:
    """The entry as a table with a value, a known status and a source."""
    if not isinstance(entry, Mapping) or "value" not in entry:
        raise TargetError(
            f"board file '{file}': key '{key}' is {entry!r}; write it as "
            '{ value = ..., unit = "...", status = "...", source = "..." }'
        )
    if entry.get("status") not in STATUSES:
        raise TargetError(
            f"board file '{file}': key '{key}' has status {entry.get('status')!r}; "
            f"allowed: {', '.join(STATUSES)}"
        )
    if not isinstance(entry.get("source"), str) or not entry["source"].strip():
        raise TargetError(
            f"board file '{file}': key '{key}' has no source; say where {entry['value']!r} was read"
        )
    return entry


def _fact(entry: object, key: str, file: str) -> Fact:
    checked = _checked(entry, key, file)
    unit, units = str(checked.get("unit")), UNITS[key]
    if unit not in units:
        raise TargetError(
            f"board file '{file}': key '{key}' has unit {unit!r}; allowed: {', '.join(units)}"
        )
    value, low, high = (
        _number(checked.get(part, checked["value"]), key, file) for part in ("value", "low", "high")
    )
    zero_allowed = key in ("cache", "wait_states", "reserved_flash", "reserved_ram")
    if low < 0 or (low == 0 and not zero_allowed) or not low <= value <= high:
        raise TargetError(
            f"board file '{file}': key '{key}' is {value:g} in {low:g} to {high:g} {unit}; "
            f"it must be {'at least' if zero_allowed else 'above'} 0 and lie in its interval"
        )
    factor = units[unit]
    return Fact(
        value * factor,
        low * factor,
        high * factor,
        SI_UNITS[key],
        checked["status"],
        checked["source"],
    )


def _number(value: object, key: str, file: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TargetError(
            f"board file '{file}': key '{key}' has value {value!r}; it must be a number"
        )
    return float(value)
