"""Generated C equals the graph bit for bit, is clean under compilers' eyes, and weighs its model.

The golden files are renewed by DSE_RENEW_GOLDEN=1 python -m pytest tests/test_firmware_emit.py
"""

from __future__ import annotations

import math
import os
import random
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dse.errors import GraphError, TargetError
from dse.firmware.build import build, find_compiler
from dse.firmware.emit import Sources, emit, symbol
from dse.firmware.emulate import emulate
from dse.graph import execute
from dse.graph.blocks import ELEMENT, PATTERNS, cut, joined, shares_magnitudes, unified
from dse.graph.channels import kept_count
from dse.graph.code_book import CodeBooks
from dse.graph.ir import Conv2D, DType, FullyConnected, Graph, Op, without_values
from dse.graph.numerics import ROUNDINGS, Rounding
from dse.graph.quantize import quantize
from dse.graph.trace import trace
from dse.targets import find_backend, load_boards
from tests.host_c import CC, WARNINGS, Host, command, compiled, entries, write
from tests.networks import Recipe, golden_ranges, network, recipes

GOLDEN = Path(__file__).parent / "golden"
BACKENDS = ("native", "native-dsp")
pytestmark = pytest.mark.skipif(CC is None, reason="no C compiler (cc, gcc or clang) is installed")


@dataclass(frozen=True)
class Case:
    """A random network, how it is compressed (by seed), and the contract it is emitted under."""

    recipe: Recipe
    seed: int
    backend: str
    rounding: Rounding


@st.composite
def cases(draw: st.DrawFn) -> Case:
    backend, rounding = draw(st.sampled_from(BACKENDS)), draw(st.sampled_from(ROUNDINGS))
    return Case(draw(recipes()), draw(st.integers(0, 10_000)), backend, rounding)


def pruned(op: Op, densities: dict[str, float], pattern: str = ELEMENT) -> Op:
    """The layer without its smallest weights, or blocks of them."""
    if not isinstance(op, Conv2D | FullyConnected) or op.name not in densities:
        return op
    assert op.weight.values is not None
    blocks = np.ascontiguousarray(cut(op.weight.values, pattern))
    flat = blocks.reshape(math.prod(blocks.shape[:2]), -1)
    spare = len(flat) - kept_count(len(flat), densities[op.name])
    flat[np.argsort(np.abs(flat).sum(axis=1))[:spare]] = 0
    values = joined(blocks, op.weight.shape)
    values = unified(values, pattern) if shares_magnitudes(pattern) else values
    return replace(op, weight=replace(op.weight, values=values.astype(np.float32)))


def compressed(model: nn.Module, inputs: torch.Tensor, seed: int) -> Graph:
    """Traced, some layers pruned, in blocks or not, each at 2 to 8 bits or through a code book,
    int8 or int16; sometimes float."""
    graph, choice = trace(model, tuple(inputs.shape[1:])), random.Random(seed)
    if seed % 8 == 0:
        return graph
    names = [op.name for op in graph.weighted]
    densities = {name: choice.choice((0.1, 0.3, 0.5)) for name in names if choice.random() < 0.3}
    pattern = choice.choice((ELEMENT, *PATTERNS))
    graph = replace(graph, ops=tuple(pruned(op, densities, pattern) for op in graph.ops))
    bits = {name: choice.choice((2, 3, 4, 5, 8, 8)) for name in names}
    activations: DType = choice.choice(("int8", "int16"))
    shared = [name for name in names if name not in densities and choice.random() < 0.4]
    entries = {name: choice.choice((4, 6, 16, 32, 256)) for name in shared}
    books = CodeBooks(entries, choice.choice((1, 2, 4)), seed)
    ranges = execute.observe(graph, inputs)
    chosen = bits | dict.fromkeys(shared, 8)
    return quantize(graph, ranges, chosen, densities, activations, pattern, books=books)


def check(graph: Graph, inputs: torch.Tensor, host: Host, made: Sources, rounding: str) -> None:
    expected = execute.run(graph, inputs, "single" if rounding == "single" else "double").numpy()
    found = host.run(made, entries(graph, inputs)).reshape(expected.shape)
    if graph.integer:
        np.testing.assert_array_equal(found, expected)
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def check_all(batch: list[Case]) -> None:
    """All networks of a batch in one library, every output byte."""
    ready = []
    for index, case in enumerate(batch):
        model, inputs = network(case.recipe)
        graph = compressed(model, inputs, case.seed)
        ready.append((graph, inputs, emit(graph, f"net{index}", case.backend, case.rounding)))
    with TemporaryDirectory() as folder:
        host = Host.load(compiled(Path(folder), [made for *_, made in ready]))
        for case, (graph, inputs, made) in zip(batch, ready, strict=True):
            check(graph, inputs, host, made, case.rounding)


@settings(max_examples=6)
@given(st.lists(cases(), min_size=8, max_size=8))
def test_the_c_of_random_networks_gives_every_byte(batch: list[Case]) -> None:
    check_all(batch)


@pytest.mark.slow
@settings(max_examples=25)
@given(st.lists(cases(), min_size=20, max_size=20))
def test_the_c_of_five_hundred_networks_gives_every_byte(batch: list[Case]) -> None:
    check_all(batch)


class Shapes(nn.Module):
    """Geometry that random networks lack: dilation, uneven strides, multipliers, odd channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=(1, 1), dilation=(1, 2)),
            nn.ReLU6(),
            nn.Conv2d(5, 10, 3, padding=1, groups=5, bias=False),
            nn.Conv2d(10, 10, (2, 3), padding=2, groups=10, dilation=2, stride=(1, 2)),
            nn.Conv2d(10, 8, 1, stride=2, padding=1),
            nn.Conv2d(8, 1, 3, padding=2, dilation=2),
            nn.MaxPool2d(3, 1, 1),
            nn.Flatten(),
            nn.LazyLinear(7),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(x)
        return out


class Signal(nn.Module):
    """A 1-D network with an even number of channels in blocks of four and more."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.layers = nn.Sequential(
            nn.Conv1d(2, 8, 5, padding=2, stride=2),
            nn.ReLU(),
            nn.Conv1d(8, 8, 3, padding=1, groups=8),
            nn.Conv1d(8, 20, 1),
            nn.Conv1d(20, 16, 3),
            nn.Flatten(),
            nn.LazyLinear(9),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(x)
        return out


FIXED = {"shapes": (Shapes, (4, 3, 9, 8)), "signal": (Signal, (4, 2, 40))}


def fixed(
    name: str, bits: int, density: float, activations: DType = "int8"
) -> tuple[Graph, torch.Tensor]:
    """A network of FIXED with all layers at these bits and this density."""
    kind, shape = FIXED[name]
    inputs = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    model = kind()
    model(inputs)
    graph = trace(model.eval(), tuple(shape[1:]))
    densities = {op.name: density for op in graph.weighted if density < 1}
    graph = replace(graph, ops=tuple(pruned(op, densities) for op in graph.ops))
    if bits == 32:
        return graph, inputs
    names = [op.name for op in graph.weighted]
    ranges = execute.observe(graph, inputs)
    return quantize(graph, ranges, dict.fromkeys(names, bits), densities, activations), inputs


@pytest.mark.parametrize("activations", ["int8", "int16"])
@pytest.mark.parametrize("name", FIXED)
def test_every_geometry_layout_contract_and_backend(
    name: str, activations: DType, tmp_path: Path
) -> None:
    ready: list[tuple[Graph, torch.Tensor, Sources, Rounding]] = []
    for bits in (2, 3, 4, 6, 8, 32)[: 6 if activations == "int8" else 5]:
        for density in (1.0, 0.2):
            graph, inputs = fixed(name, bits, density, activations)
            for backend in BACKENDS:
                for rounding in ROUNDINGS:
                    made = emit(graph, f"net{len(ready)}", backend, rounding)
                    ready.append((graph, inputs, made, rounding))
    host = Host.load(compiled(tmp_path, [made for _, _, made, _ in ready]))
    for graph, inputs, made, rounding in ready:
        check(graph, inputs, host, made, rounding)


@pytest.mark.parametrize("backend", BACKENDS)
def test_int16_sums_past_32_bits_take_kernels_of_64(backend: str, tmp_path: Path) -> None:
    """One large bias a layer is enough: the kernel is chosen for what a sum may reach."""
    ready: list[tuple[Graph, torch.Tensor, Sources, Rounding]] = []
    for name, bits, density in (("shapes", 8, 1.0), ("shapes", 2, 0.2), ("signal", 4, 1.0)):
        graph, inputs = fixed(name, bits, density, "int16")
        graph = replace(graph, ops=tuple(map(with_a_large_bias, graph.ops)))
        for rounding in ROUNDINGS:
            made = emit(graph, f"net{len(ready)}", backend, rounding)
            assert made.source.count("_a16_wide") > len(graph.weighted)
            ready.append((graph, inputs, made, rounding))
    host = Host.load(compiled(tmp_path, [made for _, _, made, _ in ready]))
    for graph, inputs, made, rounding in ready:
        check(graph, inputs, host, made, rounding)


def check_bytes(graph: Graph, backend: str, folder: Path) -> None:
    """The constants and tables of an object file, and the arena, are those of the cost model."""
    made = emit(graph, backend=backend)
    (path,) = write(folder, [made])
    command(*WARNINGS, "-c", "-O0", path, "-o", folder / "o.o")
    library = find_backend(backend)
    expected = sum(sum(library.constants(op).values()) for op in graph.weighted)
    expected += sum(library.tables(graph, op) for op in graph.ops)
    listed = symbols(folder / "o.o")
    assert sum(n for name, n in listed.items() if name.startswith(("op_", "shape"))) == expected
    plan = library.memory_plan(graph, load_boards()["nucleo_f446re"])
    assert made.arena_bytes == plan.arena_bytes


def check_emulated(
    graph: Graph, inputs: torch.Tensor, backend: str, core: str, folder: Path
) -> None:
    """An emulated core gives every byte of the graph's outputs."""
    image = build(emit(graph, backend=backend), core, find_compiler().name, "-O2", folder)
    given = np.ascontiguousarray(entries(graph, inputs)).reshape(len(inputs), -1).view(np.int8)
    found = emulate(image, given).outputs.view(graph.tensors[graph.output].dtype)
    expected = execute.run(graph, inputs, "double").numpy()
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)


def with_a_large_bias(op: Op) -> Op:
    if not isinstance(op, Conv2D | FullyConnected):
        return op
    assert op.bias is not None
    bias = op.bias.copy()
    bias[0] = 2**31 - 1
    return replace(op, bias=bias)


def small(bits: int = 8, activations: DType = "int8") -> tuple[Graph, torch.Tensor]:
    """A residual network with most operators."""
    blocks = (("depthwise", 4, "relu"), ("residual", 4, "hardswish"), ("gate", 4, "none"))
    model, inputs = network(Recipe(5, 2, (5, 6), blocks, "average", True))
    graph = trace(model, (2, 5, 6))
    widths = dict.fromkeys((op.name for op in graph.weighted), bits)
    return quantize(graph, execute.observe(graph, inputs), widths, None, activations), inputs


@pytest.mark.parametrize("activations", ["int8", "int16"])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_factors_of_one_and_more_shift_left(
    rounding: Rounding, activations: DType, tmp_path: Path
) -> None:
    graph, inputs = small(8, activations)
    finer, zero = (4096, 3) if activations == "int8" else (2**18, 0)
    fine = {
        name: replace(tensor, scale=(tensor.scale or 1.0) / finer, zero_point=zero)
        if name == graph.ops[0].output
        else tensor
        for name, tensor in graph.tensors.items()
    }
    graph = replace(graph, tensors=fine)
    made = emit(graph, rounding=rounding)
    assert "`right` < 0 shifts left" in made.source
    check(graph, inputs, Host.load(compiled(tmp_path, [made])), made, rounding)


def test_the_backends_of_one_graph_agree_with_the_memory_plan() -> None:
    graph, _ = fixed("shapes", 4, 1.0)
    for backend in BACKENDS:
        made = emit(graph, backend=backend)
        plan = find_backend(backend).memory_plan(graph, load_boards()["nucleo_f446re"])
        assert made.arena_bytes == plan.arena_bytes
        running = [graph.ops[int(re.findall(r"_op_(\d+)_", s)[0])].name for s in made.operators]
        assert running == [name for name in plan.order if name in running]
        assert set(plan.order) - set(running) <= {
            op.name for op in graph.ops if op.kind == "reshape"
        }
        assert made.operators[0] == symbol(graph, graph.op(running[0]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("density", [1.0, 0.2])
@pytest.mark.parametrize(
    ("name", "bits", "activations"),
    [
        *((name, bits, "int8") for name in (*FIXED, "small") for bits in (2, 4, 8)),
        *((name, 4, "int16") for name in (*FIXED, "small")),
        *((name, 32, "float32") for name in FIXED),
    ],
    ids=str,
)
def test_constants_weigh_what_the_model_counts(
    name: str, bits: int, activations: DType, density: float, backend: str, tmp_path: Path
) -> None:
    chosen = small(bits, activations) if name == "small" else None
    graph, _ = chosen or fixed(name, bits, density, activations)
    (path,) = write(tmp_path, [emit(graph, backend=backend)])
    # Without optimization: a table of one element would be folded into the code.
    command(*WARNINGS, "-c", "-O0", path, "-o", tmp_path / "o.o")
    library = find_backend(backend)
    expected = sum(sum(library.constants(op).values()) for op in graph.weighted)
    expected += sum(library.tables(graph, op) for op in graph.ops)
    listed = symbols(tmp_path / "o.o")
    counted = ("op_", "shape")  # constants, and the record of geometry in each function
    assert sum(size for name, size in listed.items() if name.startswith(counted)) == expected


def symbols(path: Path) -> dict[str, int]:
    """Sizes of the constants in an object file, by symbol."""
    rows = (line.split() for line in binutils("nm", "-S", path).splitlines())
    return {row[3]: int(row[1], 16) for row in rows if len(row) == 4 and row[2] in "rR"}


def binutils(tool: str, *arguments: object) -> str:
    """What a tool of the compiler's own binutils prints."""
    program = command(f"-print-prog-name={tool}").strip()
    words = [program, *(str(argument) for argument in arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("level", ["-Os", "-O2", "-O3"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bits", [2, 8, 32])
def test_the_object_needs_nothing_and_keeps_no_state(
    bits: int, backend: str, level: str, tmp_path: Path
) -> None:
    graph = fixed("shapes", bits, 1.0)[0] if bits == 32 else small(bits)[0]
    (path,) = write(tmp_path, [emit(graph, backend=backend)])
    command(*WARNINGS, "-c", level, path, "-o", tmp_path / "o.o")
    assert binutils("nm", "-u", tmp_path / "o.o") == ""
    sections = re.findall(
        r"^\.(data|bss)\S*\s+(\d+)", binutils("size", "-A", tmp_path / "o.o"), re.M
    )
    assert {name for name, _ in sections} == {"data", "bss"}
    assert all(int(size) == 0 for _, size in sections)


@pytest.mark.skipif(find_spec("ziglang") is None, reason="no clang: ziglang is not installed")
@pytest.mark.parametrize("backend", BACKENDS)
def test_clang_has_nothing_to_say(backend: str, tmp_path: Path) -> None:
    graphs = [small(4)[0], fixed("shapes", 8, 1.0)[0], fixed("signal", 32, 0.2)[0]]
    graphs += [small(4, "int16")[0], fixed("shapes", 8, 1.0, "int16")[0]]
    graphs.append(replace(graphs[-1], ops=tuple(map(with_a_large_bias, graphs[-1].ops))))
    made = [emit(graph, f"net{i}", backend) for i, graph in enumerate(graphs)]
    for path in write(tmp_path, made):
        words = [sys.executable, "-m", "ziglang", "cc", *WARNINGS, "-O1", "-c", path.name]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]


def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    made: list[Sources] = []
    checks: list[str] = []
    kinds: tuple[DType, ...] = ("int8", "int16")
    ready = [
        (*fixed("shapes", bits, density, kind), backend, ROUNDINGS[bits % 3 % 2])
        for bits, density, backend, kind in product((2, 4, 8), (1.0, 0.2), BACKENDS, kinds)
    ]
    for backend, kind in product(BACKENDS, kinds):
        ready.append((*small(8, kind), backend, "double"))
    for graph, inputs, backend, rounding in ready:
        made.append(emit(graph, f"net{len(made)}", backend, rounding))
        checks.append(main_check(made[-1], graph, inputs[:2], rounding))
    includes = "".join(f'#include "{one.name}.h"\n' for one in made)
    text = f"{includes}\nint main(void)\n{{\n{''.join(checks)}    return 0;\n}}\n"
    (tmp_path / "main.c").write_text(text, encoding="utf-8")
    flags = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    command(*WARNINGS, *flags, tmp_path / "main.c", *write(tmp_path, made), "-o", tmp_path / "t")
    done = subprocess.run([tmp_path / "t"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def main_check(made: Sources, graph: Graph, inputs: torch.Tensor, rounding: Rounding) -> str:
    """C that runs a network on an arena of exactly its size and compares every byte."""
    name, expected = made.name, execute.run(graph, inputs, rounding).numpy().reshape(2, -1)
    element = graph.tensors[graph.input].dtype
    lines = [f"    static int32_t arena[({name.upper()}_ARENA_BYTES + 3) / 4];"]
    for entry, result in zip(entries(graph, inputs).reshape(2, -1), expected, strict=True):
        for kind, values in (("in", entry), ("out", result)):
            text = ", ".join(str(int(value)) for value in values)
            lines.append(f"    {{ static const {element}_t {kind}[] = {{{text}}};")
        lines.append(f"    for (int i = 0; i < {entry.size}; i++)")
        lines.append(f"        {name}_input(arena)[i] = in[i];")
        lines.append(f"    {name}_run(arena);")
        lines.append(f"    for (int i = 0; i < {result.size}; i++)")
        lines.append(f"        if ({name}_output(arena)[i] != out[i]) return 1; }} }}")
    return "    {\n" + "\n".join(lines) + "\n    }\n"


def test_the_stack_is_small(tmp_path: Path) -> None:
    (path,) = write(tmp_path, [emit(fixed("shapes", 4, 0.2)[0])])
    command(*WARNINGS, "-c", "-O2", "-fstack-usage", path, "-o", tmp_path / "o.o")
    frames = [line.split("\t") for line in (tmp_path / "o.su").read_text().splitlines()]
    assert frames
    assert all(kind != "dynamic" for *_, kind in frames)
    assert max(int(size) for _, size, _ in frames) <= 512


@pytest.mark.parametrize("activations", ["int8", "int16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_c_is_that_of_the_golden_file(backend: str, activations: DType) -> None:
    blocks = (("residual", 2, "relu"),)
    model, inputs = network(Recipe(1, 1, (4, 4), blocks, "average", False))
    graph = trace(model, (1, 4, 4))
    bits = {op.name: 4 for op in graph.weighted}
    graph = quantize(graph, golden_ranges(graph, inputs), bits, None, activations)
    made, ending = emit(graph, "tiny", backend), "" if activations == "int8" else "_int16"
    for suffix, text in ((".h", made.header), (".c", made.source)):
        file = GOLDEN / f"tiny_{backend.replace('-', '_')}{ending}{suffix}"
        if os.environ.get("DSE_RENEW_GOLDEN"):
            file.write_text(text, encoding="utf-8")
        assert text == file.read_text(encoding="utf-8")


def grouped() -> Graph:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 3))
    inputs = torch.randn(4, 4, 4, 4)
    graph = trace(model.eval(), (4, 4, 4))
    return quantize(graph, execute.observe(graph, inputs))


def test_a_grouped_convolution_is_refused_in_one_sentence() -> None:
    with pytest.raises(TargetError, match=r"'0' \(conv2d\): Convolutions are plain"):
        emit(grouped())


def test_what_cannot_be_emitted_says_so() -> None:
    graph = small()[0]
    with pytest.raises(TargetError, match="no C can be written for 'cmsis-nn'"):
        emit(graph, backend="cmsis-nn")
    with pytest.raises(GraphError, match="'1net' cannot name C functions"):
        emit(graph, name="1net")
    with pytest.raises(GraphError, match="unknown rounding 'triple'"):
        emit(graph, rounding="triple")  # type: ignore[arg-type]
    with pytest.raises(GraphError, match="has no weight values"):
        emit(without_values(graph))


def test_an_accumulator_past_32_bits_is_refused() -> None:
    graph = small()[0]
    first = graph.weighted[0]
    assert first.bias is not None
    huge = replace(first, bias=np.full_like(first.bias, 2**31 - 1))
    ops = tuple(huge if op is first else op for op in graph.ops)
    with pytest.raises(GraphError, match="may accumulate up to"):
        emit(replace(graph, ops=ops))
