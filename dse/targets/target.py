"""A target: a board, a backend and a clock; which combinations are legal, and what they offer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from dse.errors import TargetError, nearest
from dse.graph.ir import Graph
from dse.targets.backend import Backend, find_backend, load_backends, unsupported
from dse.targets.board import Board, find_board, load_boards


@dataclass(frozen=True)
class Limits:
    """Bytes the network may use: the board's less what the rest of the firmware keeps."""

    flash_bytes: int
    ram_bytes: int


@dataclass(frozen=True)
class Target:
    """Where a network runs; TargetError when the board has no such clock or the core cannot."""

    board: Board
    backend: Backend
    clock_hz: int

    def __post_init__(self) -> None:
        if self.clock_hz not in self.board.clocks_hz:
            clocks = ", ".join(_megahertz(clock) for clock in self.board.clocks_hz)
            raise TargetError(
                f"board '{self.board.name}' has no clock of {_megahertz(self.clock_hz)}; "
                f"allowed: {clocks}"
            )
        reason = self.backend.illegal(self.board)
        if reason:
            raise TargetError(reason)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Found once: costs are looked up by target thousands of times a second."""
        return hash((self.board, self.backend, self.clock_hz))

    def __getstate__(self) -> dict[str, Any]:
        # Hashes of texts differ between processes.
        return {name: value for name, value in self.__dict__.items() if name != "_hash"}

    @cached_property
    def key(self) -> str:
        """Board, backend and clock, such as nucleo_f446re/cmsis-nn/180MHz; the same everywhere."""
        return f"{self.board.name}/{self.backend.name}/{_megahertz(self.clock_hz)}"

    def limits(self) -> Limits:
        """Flash and RAM for the network: those of the board less the reserved ones."""
        board = self.board
        return Limits(
            board.flash_bytes - board.reserved_flash_bytes,
            board.ram_bytes - board.reserved_ram_bytes,
        )

    def unsupported(self, graph: Graph) -> tuple[str, ...]:
        """One sentence for each operator that the backend cannot run on this board."""
        return unsupported(self.backend, graph, self.board)


@dataclass(frozen=True)
class LeftOut:
    """A combination that is not legal, with the reason."""

    key: str
    reason: str


def _megahertz(clock_hz: int) -> str:
    return f"{clock_hz / 1e6:g}MHz"


def parse_target(text: str, boards: Mapping[str, Board] | None = None) -> Target:
    """`board/backend` or `board/backend/clock` (such as 180MHz; without it the fastest).

    Raises TargetError that names the nearest board, backend or clock.
    """
    parts = text.strip().split("/")
    if len(parts) not in (2, 3):
        raise TargetError(
            f"target '{text}' is not board/backend or board/backend/clock, "
            "such as nucleo_f446re/cmsis-nn/180MHz"
        )
    board = find_board(parts[0], load_boards() if boards is None else boards)
    backend = find_backend(parts[1])
    if len(parts) == 2:
        return Target(board, backend, board.max_clock_hz)
    clocks = {_megahertz(clock): clock for clock in board.clocks_hz}
    if parts[2] not in clocks:
        raise TargetError(
            f"target '{text}': board '{board.name}' has no clock '{parts[2]}'; "
            f"{nearest(parts[2], clocks)}"
        )
    return Target(board, backend, clocks[parts[2]])


def targets_for(
    boards: Iterable[Board] | None = None,
    backends: Sequence[Backend] | None = None,
    clocks: str = "max",
) -> tuple[tuple[Target, ...], tuple[LeftOut, ...]]:
    """Every legal combination, and those left out with the reason.

    `boards` and `backends` default to all; `clocks` is 'max' (the fastest) or 'all'.
    """
    if clocks not in ("max", "all"):
        raise TargetError(f"clocks are '{clocks}'; allowed: max, all")
    legal, left_out = [], []
    chosen = tuple(load_boards().values()) if boards is None else tuple(boards)
    for board, backend in product(chosen, backends or tuple(load_backends().values())):
        reason = backend.illegal(board)
        if reason:
            left_out.append(LeftOut(f"{board.name}/{backend.name}", reason))
            continue
        wanted = board.clocks_hz[:1] if clocks == "max" else board.clocks_hz
        legal += [Target(board, backend, clock) for clock in wanted]
    return tuple(legal), tuple(left_out)
