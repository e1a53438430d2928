"""Memory plan: the operator order with the lowest peak, and where each activation lies.

The order is exact (dynamic programming over sets of finished operators, as in Liberis & Lane,
arXiv 1910.05110); offsets are first-fit by liveness, tried in several orders until one reaches the
peak, which is the lower bound of any placement.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

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
    owner = _share_buffers(graph, in_place)
    sizes = _buffer_sizes(graph, owner, alignment)
    scratches = [_aligned(scratch(graph, op), alignment) for op in graph.ops]
    key = (graph.key, tuple(owner.items()), tuple(scratches), alignment)
    if key not in _PLANS:
        if len(_PLANS) >= PLANS_KEPT:
            _PLANS.clear()
        order = _best_order(graph, owner, sizes, scratches)
        _PLANS[key] = _place(graph, order, owner, sizes, scratches)
    return _PLANS[key]


# Backends whose kernels need the same scratch share a plan.
PLANS_KEPT = 4096
_PLANS: dict[tuple[object, ...], MemoryPlan] = {}


def _aligned(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _share_buffers(graph: Graph, in_place: InPlace) -> dict[str, str]:
    """Tensor -> the tensor that owns its buffer; a reshape always shares, others when allowed."""
    readers: dict[str, int] = {}
    for op in graph.ops:
        for name in set(op.inputs):
            readers[name] = readers.get(name, 0) + 1
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


def _needs(graph: Graph) -> list[int]:
    """For each operator, the mask of the operators whose outputs it reads."""
    writer = {op.output: index for index, op in enumerate(graph.ops)}
    return [sum(1 << writer[name] for name in set(op.inputs) if name in writer) for op in graph.ops]


def _best_order(
    graph: Graph, owner: dict[str, str], sizes: dict[str, int], scratches: list[int]
) -> tuple[int, ...]:
    needs, total = _needs(graph), len(graph.ops)
    if _is_chain(needs):
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


def _is_chain(needs: Sequence[int]) -> bool:
    return all(needs[i] >> (i - 1) & 1 for i in range(1, len(needs)))


def _place(
    graph: Graph,
    order: tuple[int, ...],
    owner: dict[str, str],
    sizes: dict[str, int],
    scratches: list[int],
) -> MemoryPlan:
    shared: dict[str, list[str]] = {}
    for name, own in owner.items():
        shared.setdefault(own, []).append(name)
    links = tuple((op.inputs, op.output) for op in graph.ops)
    key = (links, graph.input, graph.output, order, tuple(owner.items()))
    lives = _LIVES.get(key)
    if lives is None:
        if len(_LIVES) >= LIVES_KEPT:
            _LIVES.clear()
        lives = _LIVES[key] = _lives(graph, order, owner)
    first, last, steps = {owner[graph.input]: 0}, {owner[graph.input]: 0}, []
    for step, (index, live) in enumerate(zip(order, lives, strict=True)):
        op = graph.ops[index]
        for name in live:
            first.setdefault(name, step)
            last[name] = step
        size = sum(sizes[name] for name in live) + scratches[index]
        tensors = tuple(_visible(shared[name], graph, op) for name in live)
        steps.append(Step(op.name, size, scratches[index], tensors))
    buffers = [Buffer(tuple(shared[n]), sizes[n], first[n], last[n]) for n in first]
    buffers += [
        Buffer((f"{graph.ops[i].name}{SCRATCH}",), scratches[i], step, step)
        for step, i in enumerate(order)
        if scratches[i]
    ]
    peak = max(step.live_bytes for step in steps)
    placed = _first_fit_best(tuple(buffers), peak)
    arena = max(buffer.offset + buffer.size_bytes for buffer in placed)
    return MemoryPlan(tuple(steps), placed, peak, arena)


# Which buffers live at each step depends on how operators are joined, not on sizes: the candidates
# of a search share it.
LIVES_KEPT = 256
_LIVES: dict[tuple[object, ...], tuple[tuple[str, ...], ...]] = {}


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


def _visible(names: list[str], graph: Graph, op: Op) -> str:
    """The name under which a shared buffer is best known while `op` runs."""
    for name in (op.output, *op.inputs):
        if name in names:
            return name
    return max(names, key=lambda name: graph.tensors[name].size_bytes)


@lru_cache(maxsize=4096)
def _first_fit_best(buffers: tuple[Buffer, ...], bound: int) -> tuple[Buffer, ...]:
    orders: Iterable[Iterable[Buffer]] = (
        sorted(buffers, key=lambda b: (-b.size_bytes, b.first)),
        sorted(buffers, key=lambda b: (b.first - b.last, -b.size_bytes)),
        sorted(buffers, key=lambda b: (b.first, -b.size_bytes)),
        sorted(buffers, key=lambda b: (-b.size_bytes * (b.last - b.first + 1), b.first)),
    )
    if len(buffers) <= EXHAUSTIVE_BUFFERS:
        orders = itertools.chain(orders, itertools.permutations(buffers))
    best: tuple[Buffer, ...] = ()
    best_size = -1
    for order in orders:
        placed = _first_fit(order)
        size = max(buffer.offset + buffer.size_bytes for buffer in placed)
        if best_size < 0 or size < best_size:
            best, best_size = placed, size
        if best_size == bound:
            break
    return best if best_size == bound else _two_ends(buffers, bound) or best


def _two_ends(buffers: tuple[Buffer, ...], bound: int) -> tuple[Buffer, ...]:
    """Tensors at the bottom and the top of the arena in turn, scratch between; () if they collide.

    Reaches the bound for every chain, where two tensors and a scratch buffer are held at a time.
    """
    scratches = [buffer for buffer in buffers if buffer.tensors[0].endswith(SCRATCH)]
    tensors = sorted((b for b in buffers if b not in scratches), key=lambda b: b.first)
    placed = [
        replace(buffer, offset=bound - buffer.size_bytes if index % 2 else 0)
        for index, buffer in enumerate(tensors)
    ]
    for buffer in scratches:
        below = [b.size_bytes for b in placed if b.offset == 0 and b.overlaps(buffer)]
        placed.append(replace(buffer, offset=max(below, default=0)))
    for one, other in itertools.combinations(placed, 2):
        apart = one.offset + one.size_bytes <= other.offset
        apart = apart or other.offset + other.size_bytes <= one.offset
        if one.overlaps(other) and not apart:
            return ()
    return tuple(placed)


def _first_fit(order: Iterable[Buffer]) -> tuple[Buffer, ...]:
    placed: list[Buffer] = []
    for buffer in order:
        offset = 0
        for other in sorted(placed, key=lambda b: b.offset):
            if not buffer.overlaps(other):
                continue
            if offset + buffer.size_bytes <= other.offset:
                break
            offset = max(offset, other.offset + other.size_bytes)
        placed.append(Buffer(buffer.tensors, buffer.size_bytes, buffer.first, buffer.last, offset))
    return tuple(placed)
