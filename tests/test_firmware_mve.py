"""Our Helium kernels: every byte on an emulated Cortex-M55 and in their plain form on this machine.

The golden file is renewed by DSE_RENEW_GOLDEN=1 python -m pytest tests/test_firmware_mve.py
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dse.errors import TargetError
from dse.firmware.build import build, compilers
from dse.firmware.cpu import CPUS
from dse.firmware.emit import Sources, emit
from dse.firmware.emulate import Bytes, emulate, qemu_version
from dse.graph import execute
from dse.graph.entry import input_bytes
from dse.graph.ir import Activation, Conv2D, DType, FullyConnected, Graph, Op, Tensor, Weight
from dse.graph.numerics import ROUNDINGS, Rounding
from dse.graph.quantize import quantize
from dse.graph.trace import trace
from dse.targets import Target, cost, find_backend, find_core, load_boards, parse_target
from dse.targets.backend import unsupported
from dse.targets.core import CORES
from dse.targets.native import Native
from dse.targets.native_tables import COMPILER, compiler_text
from tests.host_c import CC, WARNINGS, Host, command, compiled, write
from tests.networks import Recipe, golden_ranges, network, recipes
from tests.test_firmware_emit import (
    FIXED,
    check,
    compressed,
    fixed,
    main_check,
    small,
    with_a_large_bias,
)

GOLDEN = Path(__file__).parent / "golden"
MVE, M55 = "native-mve", "cortex-m55"
INTEGERS: tuple[DType, ...] = ("int8", "int16")
host_only = pytest.mark.skipif(CC is None, reason="no C compiler (cc, gcc or clang) is installed")
emulated = pytest.mark.skipif(
    not compilers() or qemu_version() is None or importlib.util.find_spec("elftools") is None,
    reason="needs a cross compiler, pyelftools and qemu-system-arm",
)
BOTH = sorted(compilers())


@dataclass(frozen=True)
class Layer:
    """A random layer: what it is, its input, its window, and the factor that scales its sums."""

    seed: int
    kind: str
    size: tuple[int, int]
    channels: int
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    factor: float = 0.02

    @property
    def output(self) -> tuple[int, ...]:
        """(H, W) of the output."""
        pads = (sum(self.padding[:2]), sum(self.padding[2:]))
        taps = (d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))
        return tuple(
            (size + pad - tap) // stride + 1
            for size, pad, tap, stride in zip(self.size, pads, taps, self.stride, strict=True)
        )


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kind = draw(st.sampled_from(("conv", "conv", "pointwise", "depthwise", "connected")))
    sides, below = st.integers(1, 7), st.integers(0, 3)
    channels = draw(st.integers(8, 37) if kind == "depthwise" else st.integers(1, 37))
    outputs = channels if kind == "depthwise" else draw(st.integers(1, 19))
    factor = draw(st.sampled_from((0.0005, 0.02, 0.4, 0.9, 3.0)))
    found = Layer(
        draw(st.integers(0, 10_000)), kind, draw(st.tuples(sides, sides)), channels, outputs,
        factor=factor,
    )  # fmt: skip
    if kind in ("pointwise", "connected"):
        return found
    padding = draw(st.tuples(below, below, below, below))
    return replace(
        found, kernel=draw(pair), stride=draw(pair), dilation=draw(pair), padding=padding
    )


def graph_of(layer: Layer, dtype: DType) -> Graph:
    """One layer with random constants and zero points."""
    random = np.random.default_rng(layer.seed)
    activation: Activation = ("none", "relu", "relu6")[layer.seed % 3]
    flat = layer.kind == "connected"
    depth = 1 if layer.kind == "depthwise" else layer.channels
    inner: tuple[int, ...] = (*layer.size, layer.channels)
    outer: tuple[int, ...] = (*layer.output, layer.outputs)
    shape: tuple[int, ...] = (layer.outputs, *layer.kernel, depth)
    if flat:
        inner, outer = (int(np.prod(inner)),), (layer.outputs,)
        shape = (layer.outputs, *inner)
    limit = 127 if dtype == "int8" else 40
    values = random.integers(-limit, limit + 1, shape)
    scales = layer.factor * random.uniform(0.5, 1.0, layer.outputs)
    weight = Weight(shape, 8, -1, values, scales)
    bias = random.integers(-3000, 3000, layer.outputs)
    zeros = (0, 0) if dtype == "int16" else random.integers(-128, 128, 2)
    names = ("in", "out")
    tensors = {
        name: Tensor(name, each, dtype, 0.5, int(zero))
        for name, each, zero in zip(names, (inner, outer), zeros, strict=True)
    }
    if flat:
        op: Op = FullyConnected("op", ("in",), "out", weight, bias, activation)
    else:
        op = Conv2D(
            "op", ("in",), "out", weight, bias, layer.stride, layer.padding, layer.dilation,
            layer.channels if layer.kind == "depthwise" else 1, activation,
        )  # fmt: skip
    return Graph("layer", tensors, (op,), "in", "out")


def inputs_of(graph: Graph, count: int = 3) -> torch.Tensor:
    """Random inputs (N, C, H, W) or (N, F) that take every value of the input's type."""
    tensor = graph.tensors[graph.input]
    limits = np.iinfo(tensor.dtype)
    made = np.random.default_rng(0).integers(limits.min, limits.max + 1, (count, *tensor.shape))
    assert tensor.scale is not None
    found = torch.from_numpy((made - tensor.zero_point) * tensor.scale).float()
    return found.permute(0, 3, 1, 2) if found.dim() == 4 else found


def answer(graph: Graph, inputs: torch.Tensor, rounding: Rounding) -> Bytes:
    """What the exact executor computes, as it lies in the arena: (N, bytes)."""
    found = execute.run(graph, inputs, rounding)
    found = found.permute(0, 2, 3, 1) if found.dim() == 4 else found
    rows = found.reshape(len(found), -1).numpy().astype(graph.tensors[graph.output].dtype)
    return np.ascontiguousarray(rows).view(np.int8)


def on_m55(
    graph: Graph, inputs: torch.Tensor, rounding: Rounding, compiler: str, optimize: str = "-O2"
) -> None:
    """Every output byte of the emulated core is the executor's."""
    with TemporaryDirectory() as folder:
        made = emit(graph, "net", MVE, rounding)
        image = build(made, M55, compiler, optimize, Path(folder))
        result = emulate(image, input_bytes(graph, inputs))
    np.testing.assert_array_equal(result.outputs, answer(graph, inputs, rounding))


@host_only
@settings(max_examples=6, deadline=None)
@given(st.lists(st.tuples(layers(), st.sampled_from(INTEGERS)), min_size=10, max_size=10))
def test_the_plain_form_gives_every_byte(batch: list[tuple[Layer, DType]]) -> None:
    graphs = [graph_of(layer, dtype) for layer, dtype in batch if min(layer.output) > 0]
    made = [emit(one, f"net{i}", MVE, ROUNDINGS[i % 2]) for i, one in enumerate(graphs)]
    assert all("mve_" in one.source for one in made)
    with TemporaryDirectory() as folder:
        host = Host.load(compiled(Path(folder), made))
        for index, (graph, one) in enumerate(zip(graphs, made, strict=True)):
            inputs = inputs_of(graph)
            entries = input_bytes(graph, inputs).view(graph.tensors["in"].dtype)
            found = np.ascontiguousarray(host.run(one, entries)).view(np.int8)
            np.testing.assert_array_equal(found, answer(graph, inputs, ROUNDINGS[index % 2]))


@host_only
def test_networks_of_every_geometry_and_width_on_this_machine(tmp_path: Path) -> None:
    ready: list[tuple[Graph, torch.Tensor, Sources, Rounding]] = []
    for name, bits, density in product(FIXED, (4, 8, 32), (1.0, 0.2)):
        for dtype in INTEGERS if bits != 32 else INTEGERS[:1]:
            graph, inputs = fixed(name, bits, density, dtype)
            rounding = ROUNDINGS[len(ready) % 2]
            ready.append((graph, inputs, emit(graph, f"net{len(ready)}", MVE, rounding), rounding))
    graph, inputs = fixed("shapes", 8, 1.0, "int16")
    graph = replace(graph, ops=tuple(map(with_a_large_bias, graph.ops)))
    ready.append((graph, inputs, emit(graph, f"net{len(ready)}", MVE), "double"))
    host = Host.load(compiled(tmp_path, [made for _, _, made, _ in ready]))
    for graph, inputs, made, rounding in ready:
        check(graph, inputs, host, made, rounding)


@host_only
def test_sanitizers_find_nothing_in_the_plain_form(tmp_path: Path) -> None:
    made: list[Sources] = []
    checks: list[str] = []
    for name, dtype in product(FIXED, INTEGERS):
        graph, inputs = fixed(name, 8, 1.0, dtype)
        made.append(emit(graph, f"net{len(made)}", MVE, "single"))
        checks.append(main_check(made[-1], graph, inputs[:2], "single"))
    includes = "".join(f'#include "{one.name}.h"\n' for one in made)
    text = f"{includes}\nint main(void)\n{{\n{''.join(checks)}    return 0;\n}}\n"
    (tmp_path / "main.c").write_text(text, encoding="utf-8")
    flags = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    command(*WARNINGS, *flags, tmp_path / "main.c", *write(tmp_path, made), "-o", tmp_path / "t")
    done = subprocess.run([tmp_path / "t"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@emulated
@pytest.mark.parametrize("compiler", BOTH)
@pytest.mark.parametrize("dtype", INTEGERS)
def test_a_network_on_an_emulated_m55(dtype: DType, compiler: str) -> None:
    for rounding in ROUNDINGS:
        on_m55(*fixed("shapes", 8, 1.0, dtype), rounding, compiler)


@pytest.mark.slow
@emulated
@pytest.mark.parametrize("compiler", BOTH)
@settings(max_examples=15, deadline=None)
@given(layers(), st.sampled_from(INTEGERS), st.sampled_from(ROUNDINGS))
def test_layers_on_an_emulated_m55(
    compiler: str, layer: Layer, dtype: DType, rounding: Rounding
) -> None:
    assume(min(layer.output) > 0)
    graph = graph_of(layer, dtype)
    on_m55(graph, inputs_of(graph), rounding, compiler, ("-O2", "-O3", "-Os")[layer.seed % 3])


@pytest.mark.slow
@emulated
@settings(max_examples=15, deadline=None)
@given(recipes(), st.integers(0, 10_000), st.sampled_from(ROUNDINGS), st.sampled_from(BOTH))
def test_random_networks_on_an_emulated_m55(
    recipe: Recipe, seed: int, rounding: Rounding, compiler: str
) -> None:
    model, inputs = network(recipe)
    graph = compressed(model, inputs, seed)
    if graph.integer:
        on_m55(graph, inputs, rounding, compiler)


@emulated
@pytest.mark.parametrize("compiler", BOTH)
def test_the_vector_kernels_compile_clean(compiler: str, tmp_path: Path) -> None:
    cpu, found = CPUS[M55], compilers()[compiler]
    flags, driver = (cpu.gcc, ()) if compiler == "gcc" else (cpu.zig, ("cc",))
    graphs = [small(8)[0], *(fixed("shapes", 8, 1.0, dtype)[0] for dtype in INTEGERS)]
    graphs.append(graph_of(Layer(1, "depthwise", (4, 4), 9, 9, (3, 3), factor=3.0), "int8"))
    made = [emit(one, f"net{i}", MVE, ROUNDINGS[i % 2]) for i, one in enumerate(graphs)]
    for path in write(tmp_path, made):
        words = [*found.command, *driver, *flags, *WARNINGS, "-O2", "-c", path.name, "-o", "o.o"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]


@emulated
@pytest.mark.parametrize("compiler", BOTH)
def test_vectors_take_few_instructions(compiler: str, tmp_path: Path) -> None:
    graph = graph_of(Layer(1, "pointwise", (6, 6), 64, 32), "int8")
    entries = input_bytes(graph, inputs_of(graph, 1))
    counted = {
        backend: emulate(
            build(emit(graph, "net", backend), M55, compiler, folder=tmp_path / backend), entries
        ).instructions
        for backend in ("native-dsp", MVE)
    }
    assert counted[MVE] < 0.4 * counted["native-dsp"]


@host_only
def test_constants_and_scratch_weigh_what_the_model_counts() -> None:
    board = load_boards()["alif_e7_he"]
    library = find_backend(MVE)
    assert isinstance(library, Native)
    for bits, dtype in product((2, 4, 8), INTEGERS):
        graph, _ = fixed("shapes", bits, 1.0, dtype)
        made = emit(graph, "net", MVE)
        assert made.arena_bytes == library.memory_plan(graph, board).arena_bytes
    op = graph.weighted[0]
    assert isinstance(op, Conv2D)
    depth = op.weight.size // op.weight.shape[0]
    assert library.scratch_bytes(graph, op, "m55") == 2 * depth
    narrow, _ = fixed("shapes", 4, 1.0)
    dsp = find_backend("native-dsp")
    assert isinstance(dsp, Native)
    for one in narrow.ops:
        assert library.scratch_bytes(narrow, one, "m55") == dsp.scratch_bytes(narrow, one, "m55")


@settings(max_examples=20, deadline=None)
@given(recipes(), st.sampled_from((4, 8)), st.sampled_from(INTEGERS))
def test_the_model_names_the_kernels_that_are_emitted(
    recipe: Recipe, bits: int, dtype: DType
) -> None:
    model, inputs = network(recipe)
    graph = trace(model, recipe.shape)
    widths = dict.fromkeys((op.name for op in graph.weighted), bits)
    graph = quantize(graph, execute.observe(graph, inputs), widths, None, dtype)
    library = find_backend(MVE)
    assert isinstance(library, Native)
    named = {name for names in library.kernels(graph) for name in names}
    text = emit(graph, "network", MVE).source
    called = set(re.findall(r"^ {4}(\w+)\((?:arena|\(int16_t)", text, re.MULTILINE))
    copies = {"copy", "copy_a16"}  # a reshape that cannot lie in place
    rescaled = {"rescale_a16"}  # of a curve's output
    assert named - copies - rescaled == called - copies - rescaled


def test_only_cores_with_the_vector_extension_run_it() -> None:
    assert {name for name, core in CORES.items() if core.mve} == {"cortex-m55", "cortex-m85"}
    with pytest.raises(TargetError, match=r"needs the vector extension .* cortex-m7 .*native-dsp"):
        parse_target("nucleo_h743zi/native-mve")
    graph = fixed("shapes", 8, 1.0)[0]
    left = unsupported(find_backend(MVE), graph, load_boards()["nucleo_h743zi"])
    assert "The core has the M-profile vector extension" in left[0]
    target = parse_target("alif_e7_he/native-mve")
    assert target.unsupported(graph) == ()
    found = cost(graph, target)
    assert found.value("latency") is found.value("energy") is None
    assert "no cycle table" in found.metrics["latency"].source


@pytest.mark.parametrize("target", ["alif_e7_he/native-mve", "nucleo_f446re/native-dsp"])
def test_float_networks_weigh_what_they_do_on_the_plain_backend(target: str) -> None:
    graph = fixed("signal", 32, 0.2)[0]
    board = target.partition("/")[0]
    plain = cost(graph, parse_target(f"{board}/native"))
    assert cost(graph, parse_target(target)).value("flash") == pytest.approx(
        plain.value("flash"), rel=0.01
    )


@emulated
@pytest.mark.skipif(
    COMPILER not in compilers() or compilers()[COMPILER].version != compiler_text().split()[1],
    reason=f"the figures belong to {compiler_text()}, which is not installed",
)
@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("name", FIXED)
def test_flash_and_ram_are_those_of_the_linked_image(
    name: str, dtype: DType, tmp_path: Path
) -> None:
    """Renewed by `python benchmarks/native_measure.py --only code --backends native-mve`."""
    graph, inputs = fixed(name, 8, 1.0, dtype)
    board = replace(load_boards()["alif_e7_he"], core=find_core(M55))
    image = build(emit(graph, "network", MVE), M55, COMPILER, "-O2", tmp_path)
    modelled = cost(graph, Target(board, find_backend(MVE), board.max_clock_hz))
    assert modelled.value("flash") == pytest.approx(image.flash_bytes, rel=0.02)
    assert modelled.ram_parts["arena"] == image.ram_bytes
    run = emulate(image, input_bytes(graph, inputs)[:1])
    assert modelled.value("ram") == pytest.approx(image.ram_bytes + run.stack_bytes, rel=0.04)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_the_c_is_that_of_the_golden_file(dtype: DType) -> None:
    model, inputs = network(Recipe(1, 8, (4, 4), (("depthwise", 8, "relu"),), "average", False))
    graph = trace(model, (8, 4, 4))
    graph = quantize(graph, golden_ranges(graph, inputs), None, None, dtype)
    made, ending = emit(graph, "tiny", MVE), "" if dtype == "int8" else "_int16"
    for suffix, text in ((".h", made.header), (".c", made.source)):
        file = GOLDEN / f"tiny_native_mve{ending}{suffix}"
        if os.environ.get("DSE_RENEW_GOLDEN"):
            file.write_text(text, encoding="utf-8")
        assert text == file.read_text(encoding="utf-8")
