"""Boards: one TOML file each, every number with unit, status and source; checked when read."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import resources
from importlib.metadata import EntryPoint, entry_points
from importlib.resources.abc import Traversable
from pathlib import Path
from types import ModuleType
from typing import Any

from dse.errors import TargetError, nearest
from dse.targets.core import CORES, Core, find_core
from dse.targets.fact import STATUSES, Fact, Word
from dse.targets.npu import Npu
from dse.targets.own import OwnMeasurements, read_own

# How far the current per MHz may be off at a clock it was not measured at: firmware set-up alone
# moves board power by about 15 % (calibration README, MLPerf Tiny energy logs).
OTHER_CLOCK_SPREAD = 0.15

_SIZE = {"B": 1.0, "KiB": 1024.0, "MiB": 1024.0**2}
_FREQUENCY = {"Hz": 1.0, "kHz": 1e3, "MHz": 1e6}
UNITS: Mapping[str, Mapping[str, float]] = {
    "clocks": _FREQUENCY,
    "clock_max": _FREQUENCY,
    "clock_min": _FREQUENCY,
    "flash": _SIZE,
    "ram": _SIZE,
    "ram_regions": _SIZE,
    "reserved_flash": _SIZE,
    "reserved_ram": _SIZE,
    "cache": _SIZE,
    "wait_states": {"cycles": 1.0},
    "supply": {"V": 1.0, "mV": 1e-3},
    "active_current": {"uA/MHz": 1e-12, "A/Hz": 1.0},
    "active_power": {"W": 1.0, "mW": 1e-3},
    "npu_power": {"W": 1.0, "mW": 1e-3},
    "sleep_current": {"A": 1.0, "mA": 1e-3, "uA": 1e-6},
    "price": {"USD": 1.0},
}
SI_UNITS: Mapping[str, str] = {
    "clocks": "Hz",
    "clock_max": "Hz",
    "clock_min": "Hz",
    "cache": "B",
    "flash": "B",
    "ram": "B",
    "ram_regions": "B",
    "reserved_flash": "B",
    "reserved_ram": "B",
    "wait_states": "cycles",
    "supply": "V",
    "active_current": "A/Hz",
    "active_power": "W",
    "npu_power": "W",
    "sleep_current": "A",
    "price": "USD",
}
REQUIRED = ("name", "title", "core", "clocks", "flash", "ram")
NPU_WORDS = ("npu", "npu_system", "npu_memory")
WORDS = ("core", "regulator", "vendor", *NPU_WORDS)
KEYS = ("name", "title", *WORDS, *UNITS, "calibration")
LISTS = ("clocks", "ram_regions")
# No Cortex-M runs slower than a watch crystal or faster than this: a slip of the unit.
CLOCK_LIMITS_HZ = (32_000, 2_000_000_000)
ENTRY_POINTS = "dse.boards"


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
    npu: Npu | None = None
    vendor: str = "unknown"
    words: tuple[tuple[str, Word], ...] = ()
    own: OwnMeasurements = field(default_factory=OwnMeasurements)

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
        self._check_clocks()
        for kind, total, reserved in (
            ("flash", self.flash_bytes, self.reserved_flash_bytes),
            ("ram", self.ram_bytes, self.reserved_ram_bytes),
        ):
            if reserved >= total:
                raise TargetError(
                    f"board '{self.name}': key 'reserved_{kind}' is {reserved} B; "
                    f"it must be below the {total} B of '{kind}'"
                )

    def _check_clocks(self) -> None:
        given = {key: round(fact.value) for key, fact in self.facts}
        low = given.get("clock_min", CLOCK_LIMITS_HZ[0])
        high = given.get("clock_max", CLOCK_LIMITS_HZ[1])
        for clock in self.clocks_hz:
            if not low <= clock <= high:
                raise TargetError(
                    f"board '{self.name}': key 'clocks' has {clock / 1e6:g} MHz; "
                    f"allowed: {low / 1e6:g} to {high / 1e6:g} MHz"
                )

    def __hash__(self) -> int:
        # Costs are looked up by target a thousand times a second; the name tells boards apart.
        return hash((self.name, self.flash_bytes, self.ram_bytes))

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
        if clock_hz not in self._power:
            self._power[clock_hz] = self._active_power_w(clock_hz)
        return self._power[clock_hz]

    @cached_property
    def _power(self) -> dict[int, Fact | None]:
        return {}

    def _active_power_w(self, clock_hz: int) -> Fact | None:
        own = self.own.power_w(clock_hz)
        if own is not None:
            return own
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
    """All boards by name: the built-in ones, those of installed packages, those of `extra_dir`.

    A later one of the same name wins. Packages name a folder of board files by the entry point
    `dse.boards`: a path, or an importable package that holds them. Raises TargetError with file,
    key, value and what is allowed when a file is wrong.
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
    return {board.name: board for folder in _folders() for board in _read_all(folder)}


def _folders() -> list[Traversable]:
    entries = entry_points(group=ENTRY_POINTS)
    return [resources.files("dse.targets") / "boards", *map(_folder, entries)]


def _folder(entry: EntryPoint) -> Traversable:
    found = entry.load()
    if isinstance(found, ModuleType):
        return resources.files(found)
    if isinstance(found, str | Path) and Path(found).is_dir():
        return Path(found)
    raise TargetError(
        f"entry point '{entry.name}' of '{ENTRY_POINTS}' gives {found!r}; "
        "it must be a package or the path of a folder with board files"
    )


def _read_all(folder: Traversable) -> Iterator[Board]:
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".toml"):
            yield read_board(file)


def read_board(file: Traversable) -> Board:
    """The board of one TOML file; TargetError names file, key, value and what is allowed."""
    try:
        text = file.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise TargetError(f"board file '{file.name}' is not readable TOML: {error}") from error
    return read_board_text(text, file.name)


def read_board_text(text: str, file: str) -> Board:
    """The board of a TOML text; `file` is the name that a TargetError gives."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TargetError(f"board file '{file}' is not readable TOML: {error}") from error
    return _board(table, file)


def board_text(name: str, extra_dir: Path | None = None) -> str:
    """The TOML text that the board of that name was read from; TargetError when there is none."""
    folders = [*([extra_dir] if extra_dir is not None else []), *reversed(_folders())]
    for folder in folders:
        for file in folder.iterdir():
            if file.name.endswith(".toml") and read_board(file).name == name:
                return file.read_text(encoding="utf-8")
    raise TargetError(f"no file holds board '{name}'")


def _board(table: Mapping[str, Any], file: str) -> Board:
    for key in table:
        if key not in KEYS:
            raise TargetError(f"board file '{file}': unknown key '{key}'; {nearest(key, KEYS)}")
    for key in REQUIRED:
        if key not in table:
            raise TargetError(f"board file '{file}': key '{key}' is missing; every board needs it")
    facts = [("clocks", _fact(clock, "clocks", file)) for clock in _list(table, "clocks", file)]
    facts += [
        (key, _fact(table[key], key, file)) for key in UNITS if key in table and key not in LISTS
    ]
    facts += list(_regions(table, file)) if "ram_regions" in table else []
    said = {key: _word(table[key], key, file) for key in WORDS if key in table}
    words = {key: word.value for key, word in said.items()}
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
            npu=_npu(words),
            vendor=words.get("vendor", "unknown"),
            words=tuple(said.items()),
            own=read_own(table.get("calibration", {}), file),
        )
    except TargetError as error:
        raise TargetError(f"board file '{file}': {error}") from error


def _npu(words: Mapping[str, str]) -> Npu | None:
    """The Ethos-U of a board, all three keys or none."""
    given = [key for key in NPU_WORDS if key in words]
    if given and len(given) < len(NPU_WORDS):
        missing = next(key for key in NPU_WORDS if key not in words)
        raise TargetError(f"key '{missing}' is missing; a board with '{given[0]}' needs it")
    return Npu(*(words[key] for key in NPU_WORDS)) if given else None


def _text(table: Mapping[str, Any], key: str, file: str) -> str:
    value = table[key]
    if not isinstance(value, str) or not value.strip():
        raise TargetError(f"board file '{file}': key '{key}' is {value!r}; it must be a text")
    return value


def _list(table: Mapping[str, Any], key: str, file: str) -> list[Any]:
    found = table[key]
    if not isinstance(found, list) or not found:
        raise TargetError(
            f"board file '{file}': key '{key}' is {found!r}; give a list of facts"
            + (", fastest first" if key == "clocks" else "")
        )
    return found


def _regions(table: Mapping[str, Any], file: str) -> Iterator[tuple[str, Fact]]:
    """Each region of RAM under its own name; none may be larger than all of it."""
    for entry in _list(table, "ram_regions", file):
        fact = _fact(entry, "ram_regions", file)
        name = entry.get("name")
        if not isinstance(name, str) or not name:
            raise TargetError(
                f"board file '{file}': key 'ram_regions' has a region of {fact.value:g} B without "
                'a name; write { name = "SRAM1", value = ... }'
            )
        yield f"ram_regions.{name}", fact


def _word(entry: object, key: str, file: str) -> Word:
    checked = _checked(entry, key, file)
    value = checked["value"]
    if not isinstance(value, str):
        raise TargetError(
            f"board file '{file}': key '{key}' has value {value!r}; it must be a text"
        )
    return Word(value, checked["status"], checked["source"])


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
