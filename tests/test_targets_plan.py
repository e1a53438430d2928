"""The memory plan is exact: its peak is the least of all orders, its placement never overlaps."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from dse.graph.ir import Add, Concat, Graph, Lookup, Op, Reshape, Tensor
from dse.graph.plan import plan
from dse.targets import load_backends, load_boards
from tests.test_targets_networks import graphs


@st.composite
def dags(draw: st.DrawFn) -> Graph:
    """Up to seven operators that read any earlier tensors; sizes differ."""
    tensors = {"input": Tensor("input", (draw(st.integers(1, 40)),), "int8")}
    ops: list[Op] = []
    for index in range(draw(st.integers(1, 7))):
        names = sorted(tensors)
        first = draw(st.sampled_from(names))
        second = draw(st.sampled_from(names))
        kind = draw(st.sampled_from(("concat", "lookup", "reshape", "any")))
        out, size = f"t{index}", tensors[first].elements
        if kind == "lookup":
            ops.append(Lookup(f"op{index}", (first,), out))
        elif kind == "reshape":
            ops.append(Reshape(f"op{index}", (first,), out))
        elif kind == "concat":
            ops.append(Concat(f"op{index}", (first, second), out))
            size += tensors[second].elements
        else:
            ops.append(Add(f"op{index}", (first, second), out))
            size = draw(st.integers(1, 40))
        tensors[out] = Tensor(out, (size,), "int8")
    return Graph("dag", tensors, tuple(ops), "input", ops[-1].output)


def scratch(graph: Graph, op: Op) -> int:
    return graph.tensors[op.output].elements % 7


def orders(graph: Graph) -> list[tuple[Op, ...]]:
    """Every order of the operators in which each reads only what was written."""
    found = []
    for order in itertools.permutations(graph.ops):
        written = {graph.input}
        for op in order:
            if not set(op.inputs) <= written:
                break
            written.add(op.output)
        else:
            found.append(order)
    return found


def shared(graph: Graph, in_place: bool) -> dict[str, str]:
    """Which buffer a tensor lies in: a reshape shares its input's, a look-up where it may."""
    readers = {name: sum(name in op.inputs for op in graph.ops) for name in graph.tensors}
    owner = {graph.input: graph.input}
    for op in graph.ops:
        source = op.inputs[0]
        alone = readers[source] == 1 and source != graph.output
        kind = isinstance(op, Reshape) or (in_place and isinstance(op, Lookup))
        owner[op.output] = owner[source] if alone and kind else op.output
    return owner


def peak(graph: Graph, order: tuple[Op, ...], in_place: bool) -> int:
    """Bytes held at the worst step, from the definition: what is written and still to be read."""
    owner = shared(graph, in_place)
    worst = 0
    for step, op in enumerate(order):
        written = {graph.input, *(earlier.output for earlier in order[:step])}
        later = {name for after in order[step:] for name in after.inputs} | {graph.output}
        live = {owner[name] for name in written & later} | {owner[op.output]}
        sizes = dict.fromkeys(live, 0)
        for name, own in owner.items():
            if own in sizes:
                sizes[own] = max(sizes[own], graph.tensors[name].size_bytes)
        worst = max(worst, sum(sizes.values()) + scratch(graph, op))
    return worst


@given(dags(), st.booleans())
@settings(max_examples=150)
def test_the_peak_is_the_least_of_all_orders(graph: Graph, in_place: bool) -> None:
    found = plan(
        graph,
        scratch,
        in_place=lambda graph, op: in_place and isinstance(op, Lookup),
        alignment=1,
    )
    assert found.peak_bytes == min(peak(graph, order, in_place) for order in orders(graph))
    assert found.order in {tuple(op.name for op in order) for order in orders(graph)}


@given(graphs(), st.sampled_from(sorted(load_boards())))
def test_no_two_buffers_overlap_in_time_and_place(graph: Graph, name: str) -> None:
    for backend in load_backends().values():
        found = backend.memory_plan(graph, load_boards()[name])
        for one, two in itertools.combinations(found.buffers, 2):
            apart = (
                one.offset + one.size_bytes <= two.offset
                or two.offset + two.size_bytes <= one.offset
            )
            assert apart or not one.overlaps(two)
        ends = [buffer.offset + buffer.size_bytes for buffer in found.buffers]
        assert max(ends) == found.arena_bytes >= found.peak_bytes
