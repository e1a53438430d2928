"""Targets: boards (TOML), backends (a Protocol), and what a graph costs on them.

    boards = load_boards()                                  # name -> Board
    target = parse_target("nucleo_f446re/cmsis-nn", boards)  # or .../180MHz
    cost(graph, target).metrics["latency"]                  # Metric: value, low, high, source
    targets, left_out = targets_for(boards.values(), clocks="all")

Nothing here imports torch. Errors are `dse.errors.TargetError`.
"""

from dse.targets.backend import (
    Backend,
    find_backend,
    load_backends,
    support_table,
    unsupported,
)
from dse.targets.board import Board, find_board, load_boards, read_board
from dse.targets.core import CORES, Core, find_core
from dse.targets.cost import Cost, OperatorCost, cost
from dse.targets.encoding import Encoding, container_bits, encode, encoded_bytes
from dse.targets.fact import Fact
from dse.targets.networks import NOMINAL_MACS, reference_graph
from dse.targets.target import LeftOut, Limits, Target, parse_target, targets_for

__all__ = [
    "CORES",
    "NOMINAL_MACS",
    "Backend",
    "Board",
    "Core",
    "Cost",
    "Encoding",
    "Fact",
    "LeftOut",
    "Limits",
    "OperatorCost",
    "Target",
    "container_bits",
    "cost",
    "encode",
    "encoded_bytes",
    "find_backend",
    "find_board",
    "find_core",
    "load_backends",
    "load_boards",
    "parse_target",
    "read_board",
    "reference_graph",
    "support_table",
    "targets_for",
    "unsupported",
]
