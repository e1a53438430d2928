"""What every backend supports, asked of its predicates: `python -m dse.targets.support`.

Writes `docs/backends.md`. Every cell is the answer of the backend's own rules to a network of one
operator, so the page cannot promise what a study would refuse.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dse.errors import DseError
from dse.graph.channels import declared_weight
from dse.graph.ir import (
    FLOAT_BITS,
    Add,
    Concat,
    Conv2D,
    DType,
    FullyConnected,
    Graph,
    Lookup,
    Mul,
    Op,
    Pad,
    Pool2D,
    Reshape,
    Softmax,
    Tensor,
    Weight,
)
from dse.targets.backend import Backend, load_backends, sentence, unsupported
from dse.targets.board import Board, load_boards

SIZE, CHANNELS = 4, 8
# A core with everything that kernels may ask for; other cores are in the table of boards.
PROBE_BOARD = "alif_e7_he"


def probes(dtype: DType = "int8", bits: int = 8) -> Iterator[tuple[str, Graph]]:
    """One network an operator: (what it is, the graph of shapes)."""
    shape, flat = (SIZE, SIZE, CHANNELS), (CHANNELS,)
    one, two, pixel = ("in",), ("in", "in"), (1, 1, CHANNELS)

    def conv(groups: int, depth: int) -> Conv2D:
        weight = Weight((CHANNELS, 3, 3, depth), bits)
        return Conv2D("op", one, "out", weight, padding=(1, 1, 1, 1), groups=groups)

    full = FullyConnected("op", one, "out", Weight((CHANNELS, CHANNELS), bits))
    found: tuple[tuple[str, Op, tuple[int, ...], tuple[int, ...]], ...] = (
        ("convolution", conv(1, CHANNELS), shape, shape),
        ("convolution, depthwise", conv(CHANNELS, 1), shape, shape),
        ("convolution, grouped", conv(2, CHANNELS // 2), shape, shape),
        ("fully connected", full, flat, flat),
        ("sum", Add("op", two, "out"), shape, shape),
        ("product", Mul("op", two, "out"), shape, shape),
        ("concatenation", Concat("op", two, "out"), shape, (SIZE, SIZE, 2 * CHANNELS)),
        ("padding", Pad("op", one, "out", (1, 1, 1, 1)), shape, (6, 6, CHANNELS)),
        ("max pooling", Pool2D("op", one, "out", "max"), shape, (2, 2, CHANNELS)),
        ("average pooling", Pool2D("op", one, "out", "average"), shape, (2, 2, CHANNELS)),
        ("reshape", Reshape("op", one, "out"), pixel, flat),
        ("look-up activation", Lookup("op", one, "out"), shape, shape),
        ("softmax", Softmax("op", one, "out"), flat, flat),
    )
    for name, op, inner, outer in found:
        tensors = {"in": Tensor("in", inner, dtype), "out": Tensor("out", outer, dtype)}
        yield name, Graph(name, tensors, (op,), "in", "out")


def supports(backend: Backend, graph: Graph, board: Board) -> bool:
    """Whether no rule stands against it, and its weights have a container."""
    try:
        for op in graph.weighted:
            backend.encoding(op)
    except DseError:
        return False
    return not unsupported(backend, graph, board)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---"] * len(head)
    return [f"| {' | '.join(line)} |" for line in (head, rule, *lines)] + [""]


def _yes(answer: bool) -> str:
    return "yes" if answer else "-"


def _operators(backends: Mapping[str, Backend], board: Board) -> list[str]:
    lines = [
        (name, *(_yes(supports(backend, graph, board)) for backend in backends.values()))
        for name, graph in probes()
    ]
    return ["## Operators (int8)", "", *_table(("operator", *backends), lines)]


def _precisions(backends: Mapping[str, Backend], board: Board) -> list[str]:
    """Of a convolution: activations by weights, and what a weight is stored in."""
    asked: tuple[tuple[str, DType, int], ...] = (
        ("int8, 8-bit weights", "int8", 8),
        ("int8, 4-bit weights", "int8", 4),
        ("int8, 2-bit weights", "int8", 2),
        ("int16, 8-bit weights", "int16", 8),
        ("float32", "float32", FLOAT_BITS),
    )
    lines = []
    for name, dtype, bits in asked:
        graph = dict(probes(dtype, bits))["convolution"]
        cells = []
        for backend in backends.values():
            fits = supports(backend, graph, board)
            stored = backend.encoding(graph.weighted[0]).container_bits if fits else 0
            cells.append(f"in {stored} bits" if fits else "-")
        lines.append((name, *cells))
    shared = (_book_bytes(backend) for backend in backends.values())
    lines.append(("int8, 8-bit weights in a code book of 16", *shared))
    thin = (_in_blocks(backend) for backend in backends.values())
    lines.append(("int8, 8-bit weights, a fifth kept in 1x4 blocks", *thin))
    return ["## Precision of a convolution, and how weights are stored", "",
            *_table(("activations and weights", *backends), lines)]  # fmt: skip


def _book_bytes(backend: Backend) -> str:
    """How a convolution's weights are stored that share 16 values."""
    op = dict(probes())["convolution"].weighted[0]
    stored = backend.encoding(replace(op, weight=replace(op.weight, entries=16)))
    kind = "indices" if stored.layout == "code book" else "weights"
    return f"{kind} in {stored.container_bits} bits"


def _in_blocks(backend: Backend) -> str:
    """How a convolution's weights are stored of which a fifth of the 1x4 blocks is kept."""
    op = dict(probes())["convolution"].weighted[0]
    weight = declared_weight(op.weight.shape, 8, 0.2, "1x4")
    return backend.encoding(replace(op, weight=weight)).text


def _rules(backends: Mapping[str, Backend]) -> list[str]:
    rules: dict[str, list[str]] = {}
    for name, backend in backends.items():
        for predicate in backend.predicates:
            rules.setdefault(sentence(predicate), []).append(name)
    lines = [(rule, ", ".join(names)) for rule, names in rules.items()]
    return ["## Rules", "", "What a user reads when a network breaks one.", "",
            *_table(("rule", "backends"), lines)]  # fmt: skip


def _numerics(backends: Mapping[str, Backend]) -> list[str]:
    lines = [
        (name, backend.rounding, str(backend.channel_alignment))
        for name, backend in backends.items()
    ]
    head = ("backend", "rounding", "channels best in multiples of")
    return ["## Numerics and alignment", "", *_table(head, lines)]


def _boards(backends: Mapping[str, Backend]) -> list[str]:
    """Where a backend may run; Vela may be missing here, so an Ethos-U is told by its board."""
    lines = []
    for board in load_boards().values():
        legal = {
            name: board.npu is not None if name == "ethos-u" else not backend.illegal(board)
            for name, backend in backends.items()
        }
        lines.append((board.name, board.core.name, *(_yes(each) for each in legal.values())))
    return ["## Boards", "", *_table(("board", "core", *backends), lines)]


def page() -> str:
    """The whole page in Markdown."""
    backends, board = load_backends(), load_boards()[PROBE_BOARD]
    head = [
        "# Backends",
        "",
        "Made by `python -m dse.targets.support` from the backends' own rules; a test holds it.",
        "",
    ]
    parts = (
        head,
        _operators(backends, board),
        _precisions(backends, board),
        _rules(backends),
        _numerics(backends),
        _boards(backends),
    )
    return "\n".join(line for part in parts for line in part)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dse.targets.support")
    parser.add_argument("--page", type=Path, default=Path("docs/backends.md"))
    options = parser.parse_args(arguments)
    options.page.write_text(page(), "utf-8")
    print(f"written to {options.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
