"""Reading .tflite: the same graph back, LiteRT's own bytes, exact MACs, and clear refusals."""

from __future__ import annotations

import struct
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dse.errors import GraphError
from dse.firmware.flatbuffer import Writer
from dse.firmware.tflite import approximated_operators, to_tflite
from dse.graph.execute import observe, run
from dse.graph.ir import Conv2D, DType, FullyConnected, Graph, Lookup, Mul, Op, Pool2D, Tensor
from dse.graph.quantize import quantize
from dse.graph.tflite_reader import read_tflite, rescaled_operators
from dse.graph.trace import trace
from dse.targets import NOMINAL_MACS, reference_graph
from dse.workloads.networks import DigitsNet, LeNet5
from tests.calibration_models import FILES, model_file
from tests.litert import litert, mixed, quantized_inputs
from tests.networks import Recipe, network, recipes

tflite: Any = pytest.importorskip("tflite", reason="needs the extra tflite")


def of_recipe(recipe: Recipe, bits: int, activations: DType = "int8") -> tuple[Graph, torch.Tensor]:
    model, inputs = network(recipe)
    graph = trace(model.eval(), recipe.shape, "net")
    widths = {op.name: bits for op in graph.weighted}
    exact = quantize(graph, observe(graph, inputs), widths, activations=activations)
    return exact, inputs


def written(graph: Graph) -> bytes:
    """The file; a network that TensorFlow Lite cannot hold is another test's subject."""
    try:
        return to_tflite(graph, "net")
    except GraphError:
        assume(False)
        raise


def trimmed(graph: Graph, op: Op) -> Op:
    """A convolution or pooling without padding at the end that no window reaches."""
    if not isinstance(op, Conv2D | Pool2D):
        return op
    source, target = graph.tensors[op.inputs[0]], graph.tensors[op.output]
    dilation = op.dilation if isinstance(op, Conv2D) else (1, 1)
    ends: list[int] = []
    for axis in (0, 1):
        reach = (op.kernel[axis] - 1) * dilation[axis] + 1
        before = op.padding[2 * axis]
        needed = (target.shape[axis] - 1) * op.stride[axis] + reach - source.shape[axis] - before
        ends += [before, max(0, needed)]
    top, bottom, left, right = ends
    return replace(op, padding=(top, bottom, left, right))


def same(one: Graph, other: Graph) -> bool:
    """Equal tensors, operators, weights, scales and biases; names of weightless operators aside."""

    def rows(graph: Graph) -> list[Any]:
        found: list[Any] = []
        for raw in graph.ops:
            op = trimmed(graph, raw)
            row: list[Any] = [op.kind, op.inputs, op.output, op.attributes]
            if isinstance(op, Conv2D | FullyConnected):
                assert op.weight.values is not None
                assert op.bias is not None
                assert op.weight.scales is not None or not graph.integer
                scales = [] if op.weight.scales is None else list(op.weight.scales)
                kind = "i8" if graph.integer else "f4"
                values = (op.weight.values, op.bias)
                row += [op.name, scales, *(np.asarray(v, dtype=kind).tobytes() for v in values)]
            found.append(row)
        return [*found, sorted(graph.tensors.items()), graph.input, graph.output]

    return rows(one) == rows(other)


# --- round trips --------------------------------------------------------------------------------


@settings(max_examples=40)
@given(recipes(), st.integers(2, 8), st.sampled_from(["int8", "int16"]))
def test_what_was_written_is_read(recipe: Recipe, bits: int, activations: Any) -> None:
    graph, _ = of_recipe(recipe, bits, activations)
    content = written(graph)
    found = read_tflite(content, "net")
    narrowest = all(
        op.weight.values is not None and np.abs(op.weight.values).max() == 2 ** (bits - 1) - 1
        for op in graph.weighted
    )
    assert same(found, graph) or not narrowest
    assert written(found) == content


@settings(max_examples=15)
@given(recipes())
def test_float_networks_come_back(recipe: Recipe) -> None:
    model, _ = network(recipe)
    graph = trace(model.eval(), recipe.shape, "net")
    assert same(read_tflite(written(graph), "net"), graph)


@settings(max_examples=10)
@given(recipes(), st.integers(2, 4))
def test_packed_weights_are_unpacked(recipe: Recipe, bits: int) -> None:
    graph, _ = of_recipe(recipe, bits)
    plain = written(graph)
    packed = to_tflite(graph, "net", int4=True)
    assert same(read_tflite(packed, "net"), read_tflite(plain, "net"))


# --- the same bytes as LiteRT -------------------------------------------------------------------


@settings(max_examples=20)
@given(recipes(), st.integers(2, 8))
def test_the_read_graph_computes_litert_s_bytes(recipe: Recipe, bits: int) -> None:
    graph, inputs = of_recipe(recipe, bits)
    content = written(graph)
    found = read_tflite(content, "net")
    assume({type(found.op(name)) for name in approximated_operators(found)} <= {Mul})
    assert (litert(content, quantized_inputs(found, inputs)) == mixed(found, inputs)).all()


@pytest.mark.parametrize("name", ["kws", "ic", "vww", "ad", "sww"])
def test_calibration_models_compute_litert_s_bytes(name: str) -> None:
    """Fully connected layers under `single`, all else under `double`, as LiteRT's reference."""
    content = model_file(name)
    graph = read_tflite(content, name)
    tensor = graph.tensors[graph.input]
    draw = torch.Generator().manual_seed(2)
    shape = tensor.shape if len(tensor.shape) == 1 else (tensor.channels, *tensor.shape[:2])
    numbers = torch.randint(-128, 128, (8, *shape), generator=draw)
    inputs = (numbers - tensor.zero_point).double() * (tensor.scale or 1.0)
    found = litert(content, quantized_inputs(graph, inputs))
    assert (found == mixed(graph, inputs)).all()
    assert len(np.unique(found)) > 1


@pytest.mark.parametrize("name", sorted(FILES))
def test_calibration_models_have_their_nominal_macs_and_known_shapes(name: str) -> None:
    graph, known = read_tflite(model_file(name), name), reference_graph(name)
    assert graph.macs == NOMINAL_MACS[name]
    assert [op.attributes for op in graph.weighted] == [op.attributes for op in known.weighted]
    assert [op.kind for op in graph.ops] == [op.kind for op in known.ops]
    assert not rescaled_operators(graph)


def test_reading_needs_no_torch() -> None:
    code = "import sys, dse.graph.tflite_reader; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- files of other converters ------------------------------------------------------------------


def digits() -> Graph:
    torch.manual_seed(0)
    inputs = torch.rand(32, 1, 8, 8)
    graph = trace(DigitsNet().eval(), (1, 8, 8), "digits")
    return quantize(graph, observe(graph, inputs))


def patched(content: bytes, kind: str, other: str) -> bytes:
    """The file with one builtin operator's code replaced by another's."""
    numbers = [getattr(tflite.BuiltinOperator, name) for name in (kind, other)]
    model = tflite.Model.GetRootAs(bytearray(content), 0)
    buffer = bytearray(content)
    for index in range(model.OperatorCodesLength()):
        code = model.OperatorCodes(index)
        if code.BuiltinCode() != numbers[0]:
            continue
        for field, form in ((4, "<b"), (10, "<i")):
            offset = code._tab.Offset(field)
            if offset:
                struct.pack_into(form, buffer, code._tab.Pos + offset, numbers[1])
    return bytes(buffer)


def affine(shape: tuple[int, ...], scale: float, zero: int) -> dict[str, Any]:
    return {
        "shape": shape,
        "kind": "INT8",
        "quantization": (np.array([scale]), np.array([zero]), 0),
    }


def other_converter(mean_scale: float = 0.05) -> bytes:
    """Float ends, a mean over the pixels and shapes with other operators, as Keras leaves them."""
    tensors = {"x": Tensor("x", (4, 6, 2)), "y": Tensor("y", (2,))}
    graph = Graph("k", tensors, (Lookup("l", ("x",), "y", "relu"),), "x", "y")
    writer = Writer(graph, tflite, pytest.importorskip("flatbuffers").Builder(1024), False)
    source = writer.activation("x")
    q = writer.tensor("q", **affine((1, 4, 6, 2), 0.05, -3))
    wide = writer.tensor("wide", **affine((1, 1, 24, 2), 0.05, -3))
    flat = writer.tensor("flat", **affine((1, 24, 2), 0.05, -3))
    back = writer.tensor("back", **affine((1, 4, 6, 2), 0.05, -3))
    mean = writer.tensor("mean", **affine((1, 2), mean_scale, -3))
    writer.operator("QUANTIZE", 1, [source], q, "QuantizeOptions")
    writer.operator("RESHAPE", 1, [q, writer.integers("s", [1, 1, 24, 2])], wide, "ReshapeOptions")
    writer.operator("SQUEEZE", 1, [wide], flat, "SqueezeOptions")
    writer.operator(
        "RESHAPE", 1, [flat, writer.integers("t", [1, 4, 6, 2])], back, "ReshapeOptions"
    )
    axes = writer.integers("axes", [1, 2])
    writer.operator("MEAN", 2, [back, axes], mean, "ReducerOptions", KeepDims=False)
    writer.operator("DEQUANTIZE", 2, [mean], writer.activation("y"), "DequantizeOptions")
    return writer.finish("k")


def test_float_ends_fall_away_and_a_mean_is_a_pooling() -> None:
    content = other_converter()
    graph = read_tflite(content, "k")
    assert [op.kind for op in graph.ops] == ["reshape", "reshape", "reshape", "pool2d", "reshape"]
    assert (graph.input, graph.output) == ("q", "mean")
    assert graph.tensors["flat"].shape == (1, 24, 2)
    assert not rescaled_operators(graph)
    inputs = torch.randn(16, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    found = litert(content, inputs.numpy().transpose(0, 2, 3, 1))
    ours = (run(graph, inputs).numpy() + 3) * np.float32(0.05)
    # LiteRT's MEAN has a rounding of its own, one step beside that of AVERAGE_POOL_2D.
    assert np.abs(found - ours).max() <= 0.051


def test_a_mean_with_a_scale_of_its_own_is_told() -> None:
    assert rescaled_operators(read_tflite(other_converter(0.02), "k")) == ("mean/pooled",)


def test_an_unknown_operator_is_named_with_its_place() -> None:
    content = patched(to_tflite(digits(), "net"), "MAX_POOL_2D", "L2_POOL_2D")
    place = [op.kind for op in digits().ops].index("pool2d")
    with pytest.raises(GraphError) as error:
        read_tflite(content, "net")
    assert f"operator {place} (L2_POOL_2D)" in str(error.value)
    assert "did you mean" in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["not a .tflite file"]),
        (b"PK\x03\x04" + b"\0" * 100, ["not a .tflite file"]),
        (b"\x1c\0\0\0TFL3" + b"\xff" * 200, ["damaged"]),
    ],
)
def test_other_bytes_are_refused(content: bytes, words: list[str]) -> None:
    with pytest.raises(GraphError) as error:
        read_tflite(content, "net")
    assert all(word in str(error.value) for word in words)


@settings(max_examples=60)
@given(st.data())
def test_damaged_files_give_one_sentence(data: st.DataObject) -> None:
    """Whatever bytes are changed or cut off: a graph or a GraphError, never another exception."""
    content = bytearray(FILE)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(8, 600))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(content), len(content) // 2, 100]))
    with suppress(GraphError):
        read_tflite(bytes(content[:cut]), "net")


FILE = to_tflite(digits(), "net")


def test_a_missing_package_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tflite", None)
    with pytest.raises(GraphError, match=r"pip install 'dse\[tflite\]'"):
        read_tflite(FILE, "net")


def test_rescaling_movers_are_named() -> None:
    tensors = {
        "x": Tensor("x", (4, 4, 2), "int8", 0.5),
        "y": Tensor("y", (1, 1, 2), "int8", 0.25),
    }
    graph = Graph("g", tensors, (Pool2D("p", ("x",), "y", "average", (4, 4), (4, 4)),), "x", "y")
    assert rescaled_operators(graph) == ("p",)


def test_lenet_comes_back_and_runs() -> None:
    torch.manual_seed(1)
    inputs = torch.rand(16, 1, 28, 28)
    graph = trace(LeNet5().eval(), (1, 28, 28), "lenet")
    exact = quantize(graph, observe(graph, inputs), {op.name: 4 for op in graph.weighted})
    found = read_tflite(to_tflite(exact, "net"), "lenet")
    assert (run(found, inputs) == run(exact, inputs)).all()
    assert [op.weight.bits for op in found.weighted] == [4] * len(exact.weighted)
