"""Memory plan: the operator order with the lowest peak, and where each activation lies.

The order is exact (dynamic programming over sets of finished operators, as in Liberis & Lane,
arXiv 1910.05110); offsets are first-fit by liveness, tried in several orders until one reaches the
peak, which is the lower bound of any placement.
"""

from __future__ import annotations

import itertools
from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from dse.bounded import Bounded
from dse.errors import GraphError
from dse.graph.ir import Graph, Op, Reshape

MAX_STATES = 50_000
EXHAUSTIVE_BUFFERS = 7
SCRATCH = " scratch"

Scratch = Callable[[Graph, Op], int]
InPlace = Callable[[Graph, Op], bool]


@dataclass(frozen=True)
class Buffer:
    """A stretch of the arena: the tensors that share it, and the steps between which it is held."""

    tensors: tuple[str, ...]
    size_bytes: int
    first: int
    last: int
    offset: int = 0

    def overlaps(self, other: Buffer) -> bool:
        """Whether both are held at some step."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Step:
    """One operator as it runs: bytes held while it does, and by which tensors."""

    op: str
    live_bytes: int
    scratch_bytes: int
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class MemoryPlan:
    """The order, the placement, and the exact peak; `arena_bytes` >= `peak_bytes`."""

    steps: tuple[Step, ...]
    buffers: tuple[Buffer, ...]
    peak_bytes: int
    arena_bytes: int

    @property
    def order(self) -> tuple[str, ...]:
        """Operator names in the order that reaches the peak."""
        return tuple(step.op for step in self.steps)

    @property
    def peak(self) -> Step:
        """The step that holds the most."""
        return max(self.steps, key=lambda step: step.live_bytes)


def no_scratch(graph: Graph, op: Op) -> int:
    """A kernel that needs no working memory."""
    return 0


def never_in_place(graph: Graph, op: Op) -> bool:
    """A backend whose kernels never overwrite their input."""
    return False


def plan(
    graph: Graph,
    scratch: Scratch = no_scratch,
    in_place: InPlace = never_in_place,
    alignment: int = 4,
) -> MemoryPlan:
    """Order the operators for the lowest peak and place every buffer.

    `scratch` gives the bytes a kernel needs besides its tensors; `in_place` whether an operator
    may write over its first input (done only where nothing else reads it). Sizes are rounded up to
    `alignment` bytes. The input tensor counts. Raises GraphError when the graph has more than
    50,000 distinct sets of finished operators.
    """
    links = _links(graph)
    owner = _share_buffers(graph, links.readers, in_place)
    sizes = _buffer_sizes(graph, owner, alignment)
    scratches = [_aligned(scratch(graph, op), alignment) for op in graph.ops]
    key = (graph.key, tuple(owner.items()), tuple(scratches), alignment)
    found = _PLANS.get(key)
    if found is None:
        order = _best_order(graph, links, owner, sizes, scratches)
        found = _PLANS[key] = _place(graph, links, order, owner, sizes, scratches)
    return found


# Backends whose kernels need the same scratch share a plan.
PLANS_KEPT = 4096
LAYOUTS_KEPT = 256
_PLANS: Bounded[tuple[object, ...], MemoryPlan] = Bounded(PLANS_KEPT)


def _aligned(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


@dataclass(frozen=True)
class _Links:
    """How operators are joined, which the candidates of a search share."""

    ops: tuple[tuple[tuple[str, ...], str], ...]
    readers: Mapping[str, int]
    needs: tuple[int, ...]
    chain: bool

    @classmethod
    def of(cls, ops: tuple[tuple[tuple[str, ...], str], ...]) -> _Links:
        """From each operator's inputs and output; `needs` are masks of the operators it reads."""
        readers: dict[str, int] = {}
        for inputs, _ in ops:
            for name in set(inputs):
                readers[name] = readers.get(name, 0) + 1
        writer = {output: index for index, (_, output) in enumerate(ops)}
        needs = tuple(
            sum(1 << writer[name] for name in set(inputs) if name in writer) for inputs, _ in ops
        )
        chain = all(needs[i] >> (i - 1) & 1 for i in range(1, len(needs)))
        return cls(ops, readers, needs, chain)


_LINKS: Bounded[object, _Links] = Bounded(LAYOUTS_KEPT)


def _links(graph: Graph) -> _Links:
    key = tuple([(op.inputs, op.output) for op in graph.ops])
    found = _LINKS.get(key)
    if found is None:
        found = _LINKS[key] = _Links.of(key)
    return found


def _share_buffers(graph: Graph, readers: Mapping[str, int], in_place: InPlace) -> dict[str, str]:
    """Tensor -> the tensor that owns its buffer; a reshape always shares, others when allowed."""
    owner = {graph.input: graph.input}
    for op in graph.ops:
        source, target = graph.tensors[op.inputs[0]], graph.tensors[op.output]
        sole = readers[source.name] == 1 and source.name != graph.output
        shares = isinstance(op, Reshape) or (
            in_place(graph, op) and target.size_bytes <= source.size_bytes
        )
        owner[target.name] = owner[source.name] if sole and shares else target.name
    return owner


def _buffer_sizes(graph: Graph, owner: dict[str, str], alignment: int) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name, own in owner.items():
        size = _aligned(graph.tensors[name].size_bytes, alignment)
        sizes[own] = max(sizes.get(own, 0), size)
    return sizes


@dataclass(frozen=True)
class _Held:
    """Bit masks over operators: who writes a buffer and who must have run before it is free."""

    readers: dict[str, int]
    writers: dict[str, int]

    @classmethod
    def of(cls, graph: Graph, owner: Mapping[str, str]) -> _Held:
        readers = dict.fromkeys(owner.values(), 0)
        writers = dict.fromkeys(owner.values(), 0)
        for index, op in enumerate(graph.ops):
            writers[owner[op.output]] |= 1 << index
            for name in op.inputs:
                readers[owner[name]] |= 1 << index
        readers[owner[graph.output]] |= 1 << len(graph.ops)  # never free before the end
        return cls(readers, writers)

    def live(self, done: int, root: str) -> list[str]:
        """Buffers that hold a value needed after the operators in `done`."""
        return [
            name
            for name, readers in self.readers.items()
            if (name == root or self.writers[name] & done) and readers & ~done
        ]


def _best_order(
    graph: Graph, links: _Links, owner: dict[str, str], sizes: dict[str, int], scratches: list[int]
) -> tuple[int, ...]:
    needs, total = links.needs, len(graph.ops)
    if links.chain:
        return tuple(range(total))
    held, root = _Held.of(graph, owner), owner[graph.input]

    def at(done: int, index: int) -> int:
        names = {*held.live(done, root), owner[graph.ops[index].output]}
        return sum(sizes[name] for name in names) + scratches[index]

    def ready(done: int) -> list[int]:
        return [i for i in range(total) if not done >> i & 1 and needs[i] & ~done == 0]

    best: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}
    for _ in range(total):
        reached: dict[int, tuple[int, tuple[int, ...]]] = {}
        for done, (peak, order) in best.items():
            for index in ready(done):
                after, candidate = done | 1 << index, max(peak, at(done, index))
                if after not in reached or candidate < reached[after][0]:
                    reached[after] = (candidate, (*order, index))
        if len(reached) > MAX_STATES:
            raise GraphError(
                f"'{graph.name}' has more than {MAX_STATES} parallel branches' orders; "
                "its memory plan cannot be made exact"
            )
        best = reached
    return best[(1 << total) - 1][1]


def _place(
    graph: Graph,
    links: _Links,
    order: tuple[int, ...],
    owner: dict[str, str],
    sizes: dict[str, int],
    scratches: list[int],
) -> MemoryPlan:
    held = _layout(graph, links, order, owner)
    steps = []
    for index, live, tensors in zip(order, held.lives, held.visible, strict=True):
        scratch = scratches[index]
        size = sum([sizes[name] for name in live]) + scratch
        steps.append(Step(graph.ops[index].name, size, scratch, tensors))
    peak = max([step.live_bytes for step in steps])
    working = [(f"{graph.ops[i].name}{SCRATCH}", i, step) for step, i in enumerate(order)]
    working = [each for each in working if scratches[each[1]]]
    spans = [(sizes[name], first, last) for name, _, first, last in held.buffers]
    spans += [(scratches[i], step, step) for _, i, step in working]
    offsets = _first_fit_best(tuple(spans), len(held.buffers), peak)
    names = [tensors for _, tensors, _, _ in held.buffers] + [(name,) for name, _, _ in working]
    placed = [
        Buffer(tensors, *span, offset)
        for tensors, span, offset in zip(names, spans, offsets, strict=True)
    ]
    arena = max([buffer.offset + buffer.size_bytes for buffer in placed])
    return MemoryPlan(tuple(steps), tuple(placed), peak, arena)


@dataclass(frozen=True)
class _Layout:
    """What follows from how operators are joined, not from sizes.

    By step the owners of the buffers held and the tensors they are known by; by buffer its owner,
    its tensors, and the steps between which it is held.
    """

    lives: tuple[tuple[str, ...], ...]
    visible: tuple[tuple[str, ...], ...]
    buffers: tuple[tuple[str, tuple[str, ...], int, int], ...]


# The candidates of a search share it.
_LAYOUTS: Bounded[tuple[object, ...], _Layout] = Bounded(LAYOUTS_KEPT)


def _layout(
    graph: Graph, links: _Links, order: tuple[int, ...], owner: Mapping[str, str]
) -> _Layout:
    key = (links.ops, graph.input, graph.output, order, tuple(owner.items()))
    found = _LAYOUTS.get(key)
    if found is None:
        found = _LAYOUTS[key] = _laid_out(graph, order, owner)
    return found


def _laid_out(graph: Graph, order: tuple[int, ...], owner: Mapping[str, str]) -> _Layout:
    shared: dict[str, list[str]] = {}
    for name, own in owner.items():
        shared.setdefault(own, []).append(name)
    lives = _lives(graph, order, owner)
    root = owner[graph.input]
    first, last = {root: 0}, {root: 0}
    for step, live in enumerate(lives):
        for name in live:
            first.setdefault(name, step)
            last[name] = step
    visible = tuple(
        tuple(_visible(shared[name], graph.ops[index]) for name in live)
        for index, live in zip(order, lives, strict=True)
    )
    return _Layout(lives, visible, tuple((n, tuple(shared[n]), first[n], last[n]) for n in first))


def _lives(
    graph: Graph, order: tuple[int, ...], owner: Mapping[str, str]
) -> tuple[tuple[str, ...], ...]:
    """The buffers held while each operator runs, in that order."""
    held, root = _Held.of(graph, owner), owner[graph.input]
    found, done = [], 0
    for index in order:
        output = owner[graph.ops[index].output]
        found.append(tuple(dict.fromkeys([*held.live(done, root), output])))
        done |= 1 << index
    return tuple(found)


def _visible(names: list[str], op: Op) -> str:
    """The name under which a shared buffer is best known while `op` runs; else its owner's."""
    for name in (op.output, *op.inputs):
        if name in names:
            return name
    return names[0]


# Bytes, and the first and last step at which they are held.
_Span: TypeAlias = tuple[int, int, int]


@lru_cache(maxsize=4096)
def _first_fit_best(spans: tuple[_Span, ...], n_tensors: int, bound: int) -> tuple[int, ...]:
    """Offsets of the spans, of which the first `n_tensors` hold tensors, the others scratch."""
    best: tuple[int, ...] = ()
    best_size = -1
    for order in _orders(spans):
        offsets = _first_fit(spans, order)
        size = max([offset + span[0] for offset, span in zip(offsets, spans, strict=True)])
        if best_size < 0 or size < best_size:
            best, best_size = offsets, size
        if best_size == bound:
            break
    return best if best_size == bound else _two_ends(spans, n_tensors, bound) or best


def _orders(spans: tuple[_Span, ...]) -> Iterator[Iterable[int]]:
    """Orders in which to place: the likely ones, then, of few buffers, all."""
    every = range(len(spans))
    yield sorted(every, key=lambda i: (-spans[i][0], spans[i][1]))
    yield sorted(every, key=lambda i: (spans[i][1] - spans[i][2], -spans[i][0]))
    yield sorted(every, key=lambda i: (spans[i][1], -spans[i][0]))
    yield sorted(every, key=lambda i: (-spans[i][0] * (spans[i][2] - spans[i][1] + 1), spans[i][1]))
    if len(spans) <= EXHAUSTIVE_BUFFERS:
        yield from itertools.permutations(every)


def _two_ends(spans: tuple[_Span, ...], n_tensors: int, bound: int) -> tuple[int, ...]:
    """Tensors at the bottom and the top of the arena in turn, scratch between; () if they collide.

    Reaches the bound for every chain, where two tensors and a scratch buffer are held at a time.
    """
    offsets = [0] * len(spans)
    for turn, index in enumerate(sorted(range(n_tensors), key=lambda i: spans[i][1])):
        offsets[index] = bound - spans[index][0] if turn % 2 else 0
    for index in range(n_tensors, len(spans)):
        below = [
            spans[i][0]
            for i in range(index)
            if offsets[i] == 0 and _together(spans[i], spans[index])
        ]
        offsets[index] = max(below, default=0)
    for one, other in itertools.combinations(range(len(spans)), 2):
        apart = offsets[one] + spans[one][0] <= offsets[other]
        apart = apart or offsets[other] + spans[other][0] <= offsets[one]
        if _together(spans[one], spans[other]) and not apart:
            return ()
    return tuple(offsets)


def _together(one: _Span, other: _Span) -> bool:
    return one[1] <= other[2] and other[1] <= one[2]


def _first_fit(spans: tuple[_Span, ...], order: Iterable[int]) -> tuple[int, ...]:
    offsets = [0] * len(spans)
    placed: list[tuple[int, int]] = []
    for index in order:
        size, first, last = spans[index]
        offset = 0
        for start, other in placed:
            other_size, other_first, other_last = spans[other]
            if first > other_last or other_first > last:
                continue
            if offset + size <= start:
                break
            offset = max(offset, start + other_size)
        offsets[index] = offset
        insort(placed, (offset, index))
    return tuple(offsets)
