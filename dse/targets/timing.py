"""Cycles on a board as the user measured it, where they did: a factor over the packaged table."""

from __future__ import annotations

from dataclasses import dataclass

from dse.graph.ir import Graph, Op
from dse.targets.board import Board
from dse.targets.cycles import Cycles, Timing
from dse.targets.encoding import Encoding
from dse.targets.own import OwnScale
from dse.targets.target import Target


@dataclass(frozen=True)
class Rescaled:
    """A `Timing` times a board's own factor, with the interval that the user's rows left."""

    table: Timing
    own: OwnScale

    @property
    def source(self) -> str:
        """Both sources."""
        return f"{self.table.source}; times {self.own.scale:.3g} measured by {self.own.source}"

    def operator(
        self, graph: Graph, op: Op, encoding: Encoding | None, board: Board, constant_bytes: int
    ) -> Cycles:
        """Cycles of one operator on the user's board; bounds keep their distance."""
        found = self.table.operator(graph, op, encoding, board, constant_bytes)
        return Cycles(*(x * self.own.scale for x in (found.value, found.low, found.high)))

    def relative_error(self, board: Board) -> float:
        """Half-width of the interval after the user's rows."""
        return self.own.error


def timing(target: Target) -> Timing | None:
    """The cycle table of a target, the user's own factor applied; None when there is none."""
    table = target.backend.cycles(target.board)
    own = target.board.own.scale(target.backend.name)
    return table if table is None or own is None else Rescaled(table, own)
