"""A graph as C99: one header with three functions, one source with its constants and kernels.

The code allocates nothing, calls no library, and keeps no state but the arena that its caller
gives it (aligned to four bytes), placed as the backend's memory plan says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import fill

from dse.errors import GraphError, TargetError, nearest
from dse.firmware.library import assemble
from dse.firmware.operators import Emission, statements
from dse.graph.ir import Graph, Op
from dse.graph.numerics import ROUNDINGS, Rounding
from dse.graph.plan import MemoryPlan
from dse.targets.backend import find_backend, unsupported
from dse.targets.board import load_boards
from dse.targets.kernels import KernelLibrary

# Emission needs a board's core only for what a backend supports; a Cortex-M55 supports the most.
BOARD = "alif_e7_he"
BACKENDS = ("native", "native-dsp", "native-mve")
LINE = 100
WRITTEN_FIRST = ("float", "int32_t", "uint32_t", "uint16_t", "int16_t", "uint8_t", "int8_t")


@dataclass(frozen=True)
class Sources:
    """What `emit` wrote: header and source text, bytes of arena, input and output.

    `operators` are the symbols in the order they run, `<name>_op_<i>_<operator>`, where `i` is the
    operator's place in `graph.ops`; operators that do nothing (a reshape in place) have none.
    """

    name: str
    header: str
    source: str
    arena_bytes: int
    input_bytes: int
    output_bytes: int
    operators: tuple[str, ...]


def emit(
    graph: Graph,
    name: str = "network",
    backend: str = "native",
    rounding: Rounding = "double",
    plan: MemoryPlan | None = None,
) -> Sources:
    """The C of a graph with values, for a native backend and one rounding contract.

    `plan` says where tensors lie; by default it is the backend's own.
    The input lies at `<name>_input(arena)`, quantized, rows of pixels of channels. Raises
    GraphError for a name that is no C identifier or a graph without values, TargetError for an
    unknown backend and for the first operator that has no kernel.
    """
    _check(graph, name, backend, rounding)
    board = load_boards()[BOARD]
    library = find_backend(backend)
    assert isinstance(library, KernelLibrary)
    wrong = unsupported(library, graph, board)
    if wrong:
        raise TargetError(f"backend '{backend}' cannot run '{graph.name}': {wrong[0]}")
    plan = plan or library.memory_plan(graph, board)
    offsets = {tensor: b.offset for b in plan.buffers for tensor in b.tensors}
    emission = Emission(graph, library, offsets, rounding)
    bodies = _bodies(emission, plan, name)
    entry, result = graph.tensors[graph.input], graph.tensors[graph.output]
    sizes = (entry.size_bytes, result.size_bytes, plan.arena_bytes)
    return Sources(
        name=name,
        header=_header(name, emission.element, sizes),
        source=_source(emission, name, rounding, bodies),
        arena_bytes=plan.arena_bytes,
        input_bytes=entry.size_bytes,
        output_bytes=result.size_bytes,
        operators=tuple(bodies),
    )


def _check(graph: Graph, name: str, backend: str, rounding: str) -> None:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise GraphError(
            f"'{name}' cannot name C functions; use letters, digits and '_', a letter first"
        )
    if backend not in BACKENDS:
        raise TargetError(f"no C can be written for '{backend}'; {nearest(backend, BACKENDS)}")
    if rounding not in ROUNDINGS:
        raise GraphError(f"unknown rounding '{rounding}'; {nearest(rounding, ROUNDINGS)}")


def symbol(graph: Graph, op: Op, name: str = "network") -> str:
    """The C function of an operator: its place in `graph.ops`, then its name in C letters."""
    return f"{name}_op_{graph.ops.index(op)}_{re.sub(r'[^A-Za-z0-9_]', '_', op.name)}"


@dataclass(frozen=True)
class Body:
    """The statements of an operator's function."""

    op: Op
    lines: tuple[str, ...]


def _bodies(emission: Emission, plan: MemoryPlan, name: str) -> dict[str, Body]:
    """Functions by symbol, in the order they run."""
    graph, found = emission.graph, {}
    for step in plan.order:
        op = graph.op(step)
        own = symbol(graph, op, name)
        lines = statements(emission, op, own.removeprefix(f"{name}_"))
        if lines:
            found[own] = Body(op, tuple(lines))
    return found


def _header(name: str, element: str, sizes: tuple[int, int, int]) -> str:
    upper, guard = name.upper(), f"{name.upper()}_H"
    what = "float" if element == "float" else f"{element.removesuffix('_t')}, already quantized"
    return f"""\
#ifndef {guard}
#define {guard}

#include <stdint.h>

#define {upper}_INPUT_BYTES {sizes[0]}
#define {upper}_OUTPUT_BYTES {sizes[1]}
#define {upper}_ARENA_BYTES {sizes[2]} /* to be aligned to 4 bytes */

#ifdef __cplusplus
extern "C" {{
#endif

/* Where to write the input ({what}; height, width, channels) before each run. */
{element} *{name}_input(void *arena);

/* Where the output is after a run, until the next input is written. */
const {element} *{name}_output(const void *arena);

/* One inference. The arena holds all working memory; nothing else is written. */
void {name}_run(void *arena);

#ifdef __cplusplus
}}
#endif

#endif
"""


def _source(emission: Emission, name: str, rounding: Rounding, bodies: Mapping[str, Body]) -> str:
    kernels = assemble(emission.kernels, emission.aliases)
    about = f"{emission.graph.name}: backend {emission.backend.name}, {rounding} rounding"
    order = sorted(emission.tables, key=lambda table: WRITTEN_FIRST.index(table.ctype))
    parts = [
        f'/* {_comment(about)} */\n#include "{name}.h"\n',
        NO_INLINE,
        f"typedef {emission.dimension} dimension;\n",
        kernels,
        "\n".join(table.text for table in order),
        "\n".join(_function(symbol, body) for symbol, body in bodies.items()),
        _interface(emission, name, bodies),
    ]
    return "\n".join(part for part in parts if part)


NO_INLINE = """\
#if defined(__GNUC__)
#define NO_INLINE __attribute__((noinline))
#else
#define NO_INLINE
#endif

/* One function for all its callers, not specialized to any: same bytes, same cycles. */
#if defined(__clang__)
#define KERNEL __attribute__((noinline, used)) static
#elif defined(__GNUC__) && __GNUC__ >= 8
#define KERNEL __attribute__((noipa)) static
#else
#define KERNEL static NO_INLINE
#endif
"""


def _function(symbol: str, body: Body) -> str:
    lines = "\n".join(_wrapped(line) for line in body.lines)
    head = f"static NO_INLINE void {symbol}(int8_t *arena)"
    return f"/* {_comment(f'{body.op.kind}: {body.op.name}')} */\n{head}\n{{\n{lines}\n}}\n"


def _wrapped(line: str) -> str:
    return fill(
        line,
        LINE,
        initial_indent="    ",
        subsequent_indent="        ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _comment(text: str) -> str:
    """Text that cannot end a comment."""
    return re.sub(r"[^\w .,:()/-]", "_", text)


def _interface(emission: Emission, name: str, bodies: Mapping[str, Body]) -> str:
    graph, element = emission.graph, emission.element
    entry, result = emission.offsets[graph.input], emission.offsets[graph.output]
    calls = "\n".join(f"    {symbol}(base);" for symbol in bodies)
    return f"""\
{element} *{name}_input(void *arena)
{{
    return ({element} *)(void *)((int8_t *)arena + {entry});
}}

const {element} *{name}_output(const void *arena)
{{
    return (const {element} *)(const void *)((const int8_t *)arena + {result});
}}

void {name}_run(void *arena)
{{
    int8_t *base = arena;
{calls}
}}
"""
