"""The cost model of our kernels: its counts by brute force, its data by the fit that made it."""

from __future__ import annotations

import json
import re
from importlib import resources
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dse.firmware.emit import emit
from dse.graph import execute
from dse.graph.ir import Conv2D, DType, Graph, Tensor, Weight
from dse.graph.quantize import quantize
from dse.graph.trace import trace
from dse.targets import cost, find_backend, load_boards, parse_target
from dse.targets import native_fit as fitting
from dse.targets.native import Native
from dse.targets.native_features import Axis, axis, plain, runs, window_of
from dse.targets.native_tables import kernel_code, kernel_cycles
from tests.networks import Recipe, network, recipes

BACKENDS = ("native", "native-dsp")
lengths = st.integers(1, 9)


@given(lengths, lengths, st.integers(1, 5), st.integers(1, 3), st.integers(0, 4), st.integers(1, 3))
def test_an_axis_counts_the_taps_that_meet_the_input(
    size: int, out: int, kernel: int, stride: int, before: int, dilation: int
) -> None:
    found = axis(size, out, kernel, stride, before, dilation)
    met = [
        [0 <= x * stride - before + tap * dilation < size for tap in range(kernel)]
        for x in range(out)
    ]
    assert found == Axis(
        size=out,
        kernel=kernel,
        met=sum(map(sum, met)),
        whole=sum(all(taps) and dilation == 1 for taps in met),
        met_whole=sum(all(taps) for taps in met),
        fours=sum(sum(taps) // 4 for taps in met),
        rest=sum(sum(taps) % 4 for taps in met),
    )


@given(st.sampled_from((2, 4)), st.integers(1, 40), st.integers(1, 12))
def test_runs_of_packed_weights_take_every_weight_once(unit: int, run: int, count: int) -> None:
    whole, steps = runs(unit, run, count)
    assert whole * unit + steps == run * count
    assert steps <= count * 2 * (unit - 1)


def quantized(recipe: Recipe, bits: int) -> Graph:
    model, inputs = network(recipe)
    floating = trace(model, recipe.shape, "random")
    if bits == 32:
        return floating
    names = [op.name for op in floating.weighted]
    return quantize(floating, execute.observe(floating, inputs), dict.fromkeys(names, bits))


@settings(max_examples=25, deadline=None)
@given(recipes(), st.sampled_from((2, 4, 8, 32)), st.sampled_from(BACKENDS))
def test_the_model_names_the_kernels_that_are_emitted(
    recipe: Recipe, bits: int, backend: str
) -> None:
    torch.set_num_threads(1)
    graph = quantized(recipe, bits)
    library = find_backend(backend)
    assert isinstance(library, Native)
    text = emit(graph, "network", backend).source
    bodies = text[text.index("network_op_") :]
    called = set(re.findall(r"^    (\w+)\((?:arena|\(float)", bodies, re.MULTILINE))
    named = {name for names in library.kernels(graph) for name in names}
    # A reshape that cannot lie in place copies; the model takes it to lie in place.
    copies = {"copy", "copy_f32"}
    assert named - copies == called - copies
    assert called >= named


@given(st.data())
def test_products_with_padding_are_not_lost(data: st.DataObject) -> None:
    """What the plain kernel multiplies and what it skips are all MACs, two channels at a time."""
    row = data.draw(st.sampled_from([r for r in fitting.stored_layers() if r["kind"] == "conv2d"]))
    graph = fitting.layer(row)
    window = window_of(graph, graph.ops[-1])
    for bits, unit in ((8, 4), (4, 2), (2, 4)):
        found = plain(window, bits)
        pairs = (window.outputs + 1) // 2
        taken = found["unit"] * unit + found["step"] + found["skipped"]
        assert taken == pytest.approx(pairs * window.taps * window.inputs)


def stored() -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    text = (resources.files("dse.targets") / "data" / "native_cycles.json").read_text("utf-8")
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = json.loads(text)["tables"]
    return found


def test_stored_coefficients_are_what_the_fit_gives() -> None:
    """Renewed by `python -m dse.targets.native_fit`."""
    layers = fitting.stored_layers()
    tables = stored()
    assert set(tables) == set(fitting.columns(layers))
    for column in ("cortex-m4f/native-dsp/double", "cortex-m0plus/native/single", "native@1024"):
        found = fitting.fit(fitting.rows_of(column, layers))
        assert set(found) == set(tables[column]["kernels"])
        for kernel, coefficients in found.items():
            expected = tables[column]["kernels"][kernel]
            assert coefficients == pytest.approx(expected, rel=1e-3), (column, kernel)


def test_layers_left_out_of_the_fit_are_predicted() -> None:
    for column, table in stored().items():
        assert float(str(table["median_error"])) < 0.06, column


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_kernel_has_bytes_stack_and_cycles_on_every_board(backend: str) -> None:
    for board in load_boards().values():
        library = find_backend(backend)
        if library.illegal(board):
            continue
        code = kernel_code(board.core.name, backend, "double", "zig")
        cycles = kernel_cycles(board.core.name, backend, "double")
        assert code is not None
        if cycles is None:
            continue
        for name in code.kernels:
            narrow = name.replace("_wide", "").removesuffix("_long")
            assert {name, narrow} & set(cycles.kernels), (board.name, name)


@pytest.mark.parametrize(
    ("dtype", "kernel", "dilation", "depthwise"),
    [
        (dtype, kernel, dilation, depthwise)
        for dtype in ("int8", "int16")
        for kernel, dilation in ((1, 1), (3, 1), (3, 2))
        for depthwise in (False, True)
    ],
)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_layer_that_a_backend_takes_has_code_and_cycles(
    dtype: DType, kernel: int, dilation: int, depthwise: bool, bits: int
) -> None:
    """Variants leave some layers to the plain kernels: these need figures there, too."""
    channels = 8
    shape = (channels, kernel, kernel, 1 if depthwise else channels)
    size = 9 - dilation * (kernel - 1)
    tensors = {
        "x": Tensor("x", (9, 9, channels), dtype, 0.05),
        "y": Tensor("y", (size, size, channels), dtype, 0.05),
    }
    op = Conv2D(
        *("layer", ("x",), "y", Weight(shape, bits, channels * shape[1] * shape[2] * shape[3])),
        dilation=(dilation, dilation),
        groups=channels if depthwise else 1,
    )
    graph = Graph("one", tensors, (op,), "x", "y")
    for board, backend in product(("nucleo_f446re", "alif_e7_he"), (*BACKENDS, "native-mve")):
        if find_backend(backend).illegal(load_boards()[board]):
            continue
        found = cost(graph, parse_target(f"{board}/{backend}"))
        assert found.flash_parts["code"] > 0
        assert found.operators[0].cycles is None or found.operators[0].cycles > 0


@pytest.mark.parametrize(("bits", "scratch"), [(8, 0), (4, 72), (2, 72)])
def test_narrow_depthwise_weights_are_unpacked_into_scratch(bits: int, scratch: int) -> None:
    tensors = {name: Tensor(name, (4, 4, 8), "int8", 0.05) for name in ("x", "y")}
    weight = Weight((8, 3, 3, 1), bits, 72)
    op = Conv2D("layer", ("x",), "y", weight, padding=(1, 1, 1, 1), groups=8)
    graph, board = Graph("one", tensors, (op,), "x", "y"), load_boards()["nucleo_f446re"]
    needed = [
        find_backend(backend).memory_plan(graph, board).steps[0].scratch_bytes
        for backend in BACKENDS
    ]
    assert needed == [0, scratch]
