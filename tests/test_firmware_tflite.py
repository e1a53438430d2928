"""The .tflite writer against LiteRT's interpreter: the same bytes, or one clear refusal."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from dse.errors import GraphError
from dse.firmware.tflite import approximated_operators, to_tflite
from dse.graph.execute import observe, run
from dse.graph.ir import (
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
    Softmax,
    Tensor,
    Weight,
    without_values,
)
from dse.graph.numerics import INTEGER_LIMITS, ROUNDINGS, lookup_table
from dse.graph.quantize import quantize
from dse.graph.trace import trace
from dse.workloads.networks import DigitsNet, LeNet5
from tests.litert import litert, mixed, quantized_inputs
from tests.networks import Recipe, network, recipes

pytest.importorskip("tflite", reason="needs the extra tflite")

WIDTHS = st.integers(2, 8)


ACTIVATIONS: st.SearchStrategy[DType] = st.sampled_from(("int8", "int16"))


def quantized(
    model: nn.Module, inputs: torch.Tensor, bits: int = 8, activations: DType = "int8"
) -> Graph:
    graph = trace(model.eval(), tuple(inputs.shape[1:]), "net")
    widths = {op.name: bits for op in graph.weighted}
    return quantize(graph, observe(graph, inputs), widths, None, activations)


def of_recipe(recipe: Recipe, bits: int, activations: DType = "int8") -> tuple[Graph, torch.Tensor]:
    model, inputs = network(recipe)
    return quantized(model, inputs, bits, activations), inputs


def written(graph: Graph, int4: bool = False) -> bytes:
    """The file; a network that TensorFlow Lite cannot hold is another test's subject."""
    try:
        return to_tflite(graph, "net", int4)
    except GraphError:
        assume(False)
        raise


def compared(graph: Graph, inputs: torch.Tensor, int4: bool = False) -> int:
    """Largest difference between LiteRT's reference kernels and ours under its contract."""
    found = litert(written(graph, int4), quantized_inputs(graph, inputs))
    expected = mixed(graph, inputs)
    assert found.shape == expected.shape
    return int(np.abs(found.astype(int) - expected).max())


# --- whole networks -----------------------------------------------------------------------------


@settings(max_examples=60)
@given(recipes(), WIDTHS, st.booleans(), ACTIVATIONS)
def test_litert_gives_the_same_bytes(
    recipe: Recipe, bits: int, int4: bool, activations: DType
) -> None:
    graph, inputs = of_recipe(recipe, bits, activations)
    int4 = int4 and activations == "int8"
    differing = {type(graph.op(name)) for name in approximated_operators(graph)}
    assume(differing <= {Mul})  # whose factor `mixed` takes as LiteRT does
    assert compared(graph, inputs, int4) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("activations", "int4"), [("int8", 0), ("int8", 1), ("int16", 0)])
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("model", [DigitsNet, LeNet5])
def test_a_thousand_inputs_give_the_same_bytes(
    model: type[nn.Module], bits: int, int4: int, activations: DType
) -> None:
    torch.manual_seed(bits)
    shape = (1, 8, 8) if model is DigitsNet else (1, 28, 28)
    inputs = torch.rand(1000, *shape)
    graph = quantized(model(), inputs[:64], bits, activations)
    assert compared(graph, inputs, bool(int4)) == 0


@pytest.mark.parametrize("activations", ["int8", "int16"])
def test_the_whole_network_is_under_no_single_contract(activations: DType) -> None:
    """LiteRT's reference mixes the two: neither alone gives its bytes."""
    torch.manual_seed(0)
    inputs = torch.rand(200, 1, 8, 8)
    graph = quantized(DigitsNet(), inputs, 4, activations)
    found = litert(to_tflite(graph, "net"), quantized_inputs(graph, inputs))
    for rounding in ROUNDINGS:
        assert (found != run(graph, inputs, rounding).numpy()).any()


def test_xnnpack_rounds_once() -> None:
    """In float32 and ties to even, so that one output in a thousand may be one step off."""
    torch.manual_seed(0)
    inputs = torch.rand(300, 1, 8, 8)
    graph = quantized(DigitsNet(), inputs)
    found = litert(to_tflite(graph, "net"), quantized_inputs(graph, inputs), "BUILTIN")
    far = {r: np.abs(found - run(graph, inputs, r).numpy()) for r in ROUNDINGS}
    assert far["single"].max() <= 1
    assert (far["single"] > 0).mean() < 0.002 < (far["double"] > 0).mean()


@settings(max_examples=15)
@given(recipes())
def test_float_networks_agree(recipe: Recipe) -> None:
    model, inputs = network(recipe)
    graph = trace(model, recipe.shape, "net")
    found = litert(written(graph), quantized_inputs(graph, inputs))
    np.testing.assert_allclose(found, run(graph, inputs).numpy(), rtol=1e-4, atol=1e-4)


def test_the_same_graph_gives_the_same_bytes() -> None:
    torch.manual_seed(3)
    inputs = torch.rand(16, 1, 8, 8)
    model = DigitsNet()
    assert to_tflite(quantized(model, inputs), "net") == to_tflite(quantized(model, inputs), "net")
    assert to_tflite(quantized(model, inputs), "net") != to_tflite(quantized(model, inputs), "ten")


# --- one operator -------------------------------------------------------------------------------


def int8(name: str, shape: tuple[int, ...], scale: float = 0.05, zero_point: int = 3) -> Tensor:
    return Tensor(name, shape, "int8", float(np.float32(scale)), zero_point)


def wide(graph: Graph) -> Graph:
    """The same operators on int16: scales 256 times as fine, or those that the functions fix."""
    fixed = {
        op.output
        for op in graph.ops
        if isinstance(op, Softmax | Lookup)
        and getattr(op, "function", "softmax") in ("softmax", "sigmoid", "tanh")
    }
    tensors = {
        name: replace(
            tensor,
            dtype="int16",
            scale=2.0**-15 if name in fixed else (tensor.scale or 1.0) / 256,
            zero_point=0,
        )
        for name, tensor in graph.tensors.items()
    }
    return replace(graph, tensors=tensors)


def one(op: Op, *tensors: Tensor) -> Graph:
    """A graph of one operator; its inputs are all the first tensor."""
    return Graph("one", {t.name: t for t in tensors}, (op,), tensors[0].name, op.output)


def weight(seed: int, shape: tuple[int, ...], bits: int = 8) -> Weight:
    draw = np.random.default_rng(seed)
    limit = 2 ** (bits - 1) - 1
    values = draw.integers(-limit, limit + 1, shape).astype(np.int8)
    scales = draw.uniform(0.001, 0.01, shape[0]).astype(np.float32).astype(np.float64)
    return Weight(shape, bits, -1, values, scales)


def check(graph: Graph, int4: bool = False) -> None:
    """Random inputs over the whole range give the same bytes, for int8 and for int16."""
    for one, packed in ((graph, int4), (wide(graph), False)):
        assert compared(one, drawn(one), packed) == 0


def drawn(graph: Graph) -> torch.Tensor:
    """Twenty inputs, each number of the input's type as likely as any other."""
    tensor = graph.tensors[graph.input]
    low, high = INTEGER_LIMITS[tensor.dtype]
    draw = torch.Generator().manual_seed(1)
    numbers = torch.randint(low, high + 1, (20, tensor.elements), generator=draw)
    real = (numbers - tensor.zero_point).double() * (tensor.scale or 1.0)
    shape = tensor.shape if len(tensor.shape) == 1 else (tensor.channels, *tensor.shape[:2])
    return real.reshape(-1, *shape)


geometry = st.fixed_dictionaries(
    {
        "size": st.tuples(st.integers(5, 9), st.integers(5, 9)),
        "kernel": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "stride": st.tuples(st.integers(1, 2), st.integers(1, 2)),
        "padding": st.tuples(*[st.integers(0, 2)] * 4),
        "dilation": st.tuples(st.integers(1, 2), st.integers(1, 2)),
    }
)


def outputs(at: dict[str, Any], dilation: tuple[int, int] = (1, 1)) -> tuple[int, int]:
    pads = (sum(at["padding"][:2]), sum(at["padding"][2:]))
    rows, columns = (
        (at["size"][i] + pads[i] - (at["kernel"][i] - 1) * dilation[i] - 1) // at["stride"][i] + 1
        for i in (0, 1)
    )
    return rows, columns


@given(
    geometry,
    st.sampled_from([(3, 4, 1), (4, 6, 2), (3, 3, 3), (3, 6, 3)]),
    st.sampled_from(["none", "relu", "relu6"]),
    st.integers(2, 8),
    st.booleans(),
)
def test_any_convolution(
    at: dict[str, Any],
    channels: tuple[int, int, int],
    activation: Any,
    bits: int,
    int4: bool,
) -> None:
    source, target, groups = channels
    op = Conv2D(
        "c",
        ("x",),
        "y",
        weight(bits, (target, *at["kernel"], source // groups), bits),
        np.arange(target) * 7 - 9,
        at["stride"],
        at["padding"],
        at["dilation"],
        groups,
        activation,
    )
    shape = (*outputs(at, at["dilation"]), target)
    check(one(op, int8("x", (*at["size"], source)), int8("y", shape, 0.03, -5)), int4)


@given(st.integers(1, 30), st.integers(1, 8), WIDTHS, st.booleans())
def test_any_fully_connected(inputs: int, outputs: int, bits: int, int4: bool) -> None:
    op = FullyConnected(
        "f", ("x",), "y", weight(bits, (outputs, inputs), bits), np.arange(outputs) * 5 - 8
    )
    check(one(op, int8("x", (inputs,)), int8("y", (outputs,), 0.02, 7)), int4)


@given(geometry, st.sampled_from(["max", "average"]), st.sampled_from(["none", "relu"]))
def test_any_pooling(at: dict[str, Any], mode: Any, activation: Any) -> None:
    padding = tuple(min(pad, at["kernel"][i // 2] - 1) for i, pad in enumerate(at["padding"]))
    at = {**at, "padding": padding}
    op = Pool2D("p", ("x",), "y", mode, at["kernel"], at["stride"], padding, activation)
    check(one(op, int8("x", (*at["size"], 3)), int8("y", (*outputs(at), 3))))


@given(st.floats(0.001, 0.5))
def test_a_product_differs_only_by_its_factor(scale: float) -> None:
    op = Mul("m", ("x", "x"), "y")
    graph = one(op, int8("x", (256,)), int8("y", (256,), scale))
    x = np.arange(-128, 128)
    inputs = torch.from_numpy((x[None] - 3) * (graph.tensors["x"].scale or 1.0))
    found = litert(to_tflite(graph, "net"), x[None].astype(np.int8))
    far = int(np.abs(found - run(graph, inputs).numpy()).max())
    assert far <= (1 if approximated_operators(graph) else 0)


scales = st.floats(0.001, 0.5)
zeros = st.integers(-128, 127)


@given(scales, zeros, st.sampled_from([Add, Mul]), st.sampled_from(["none", "relu", "relu6"]))
def test_any_sum_or_product(scale: float, zero: int, kind: Any, activation: Any) -> None:
    op = kind("a", ("x", "x"), "y", activation)
    check(one(op, int8("x", (4, 5, 3)), int8("y", (4, 5, 3), scale, zero)))


def test_a_product_with_one_number_a_channel() -> None:
    shape = (4, 5, 3)
    tensors = [int8("x", shape), int8("g", (1, 1, 3)), int8("y", shape, 0.2, -11)]
    ops = (
        Pool2D("p", ("x",), "g", "average", (4, 5), (1, 1)),
        Mul("m", ("x", "g"), "y"),
    )
    check(Graph("gate", {t.name: t for t in tensors}, ops, "x", "y"))


def test_pad_and_concat() -> None:
    check(one(Pad("p", ("x",), "y", (1, 0, 2, 3)), int8("x", (4, 5, 3)), int8("y", (5, 10, 3))))
    check(one(Concat("c", ("x", "x"), "y"), int8("x", (4, 5, 3)), int8("y", (4, 5, 6))))


@given(scales)
def test_any_softmax(scale: float) -> None:
    check(one(Softmax("s", ("x",), "y"), int8("x", (10,), scale), int8("y", (10,), 1 / 256, -128)))


FIXED = {"sigmoid": (1 / 256, -128), "tanh": (1 / 128, 0)}


@given(scales, zeros, st.sampled_from(["sigmoid", "tanh", "hardswish", "relu", "relu6"]))
def test_every_entry_of_a_look_up(scale: float, zero: int, function: Any) -> None:
    """Sigmoid, tanh and clamps are exact; hard-swish and rescaling clamps are within one step."""
    output = FIXED.get(function, (0.7 * scale, -128))
    source, target = int8("x", (256,), scale, zero), int8("y", (256,), *output)
    graph = one(Lookup("l", ("x",), "y", function), source, target)
    found = litert(to_tflite(graph, "one"), np.arange(-128, 128, dtype=np.int8)[None])[0]
    far = np.abs(found.astype(int) - lookup_table(function, source, target)).max()
    assert far <= (1 if approximated_operators(graph) else 0)
    assert bool(approximated_operators(graph)) is (function not in FIXED)


@given(scales, zeros, st.sampled_from(["relu", "relu6"]))
def test_a_clamp_is_exact(scale: float, zero: int, function: Any) -> None:
    op = Lookup("l", ("x",), "y", function)
    graph = one(op, int8("x", (256,), scale, zero), int8("y", (256,), scale, zero))
    assert not approximated_operators(graph)
    check(graph)


# --- the file -----------------------------------------------------------------------------------


def test_weights_scales_and_versions_are_the_graphs() -> None:
    tflite: Any = pytest.importorskip("tflite")
    torch.manual_seed(5)
    graph = quantized(DigitsNet(), torch.rand(16, 1, 8, 8), 4)
    for int4, conv, dense in ((False, 3, 4), (True, 7, 10)):
        model = tflite.Model.GetRootAs(to_tflite(graph, "net", int4), 0)
        codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
        versions = {code.BuiltinCode(): code.Version() for code in codes}
        assert versions[tflite.BuiltinOperator.CONV_2D] == conv
        assert versions[tflite.BuiltinOperator.FULLY_CONNECTED] == dense
    subgraph = tflite.Model.GetRootAs(to_tflite(graph, "net"), 0).Subgraphs(0)
    tensors = {subgraph.Tensors(i).Name().decode(): i for i in range(subgraph.TensorsLength())}
    for op in graph.weighted:
        tensor = subgraph.Tensors(tensors[f"{op.name}/weight"])
        assert (tensor.Quantization().ScaleAsNumpy() == op.weight.scales).all()
        stored = model.Buffers(tensor.Buffer())
        assert stored.DataLength() in (op.weight.size, (op.weight.size + 1) // 2)


def test_int4_files_are_smaller() -> None:
    torch.manual_seed(5)
    graph = quantized(LeNet5(), torch.rand(8, 1, 28, 28), 4)
    plain, packed = to_tflite(graph, "net"), to_tflite(graph, "net", int4=True)
    weights = sum(op.weight.size for op in graph.weighted)
    assert abs(len(plain) - len(packed) - weights / 2) < 64


VELA = shutil.which("vela", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.skipif(VELA is None, reason="needs ethos-u-vela")
def test_vela_compiles_all_of_it_for_the_npu(tmp_path: Path) -> None:
    """Fewer bits in the same int8 containers are fewer bytes of flash."""
    torch.manual_seed(5)
    inputs, flash = torch.rand(16, 1, 8, 8), {}
    for bits in (8, 4):
        (tmp_path / "net.tflite").write_bytes(to_tflite(quantized(DigitsNet(), inputs, bits), "n"))
        command = [str(VELA), "net.tflite", "--accelerator-config", "ethos-u55-128"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert "CPU operators = 0 (0.0%)" in done.stdout, done.stderr
        found = re.search(r"Off-chip Flash used +([0-9.]+) KiB", done.stdout)
        assert found is not None
        flash[bits] = float(found[1])
    assert flash[4] < 0.7 * flash[8]


def padded_average() -> Graph:
    op = Pool2D("p", ("x",), "y", "average", (3, 3), (2, 2), (1, 1, 1, 1))
    return one(op, int8("x", (6, 6, 2)), int8("y", (3, 3, 2)))


def hard_sigmoid() -> Graph:
    return one(Lookup("h", ("x",), "y", "hardsigmoid"), int8("x", (8,)), int8("y", (8,)))


def wide_sigmoid() -> Graph:
    return one(Lookup("s", ("x",), "y", "sigmoid"), int8("x", (8,)), int8("y", (8,), 0.01))


def rescaling_pool() -> Graph:
    return one(Pool2D("p", ("x",), "y"), int8("x", (6, 6, 2)), int8("y", (3, 3, 2), 0.06))


def tiny_sum() -> Graph:
    return one(Add("a", ("x", "x"), "y"), int8("x", (8,)), int8("y", (8,), 9e-8))


def double_scale() -> Graph:
    source = replace(int8("x", (8,)), scale=0.1)
    return one(Softmax("s", ("x",), "y"), source, int8("y", (8,), 1 / 256, -128))


def shapes() -> Graph:
    op = FullyConnected("f", ("x",), "y", weight(0, (3, 8)), np.zeros(3))
    return without_values(one(op, int8("x", (8,)), int8("y", (3,))))


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (padded_average(), ["'p'", "(1, 1, 1, 1)", "neither SAME nor VALID"]),
        (hard_sigmoid(), ["'h'", "hardsigmoid", "export C"]),
        (wide_sigmoid(), ["'s'", "sigmoid", "0.01", "0.00390625"]),
        (rescaling_pool(), ["'p'", "different scales"]),
        (tiny_sum(), ["'a'", "0.05", "9e-08"]),
        (double_scale(), ["'x'", "0.1", "float32 scales"]),
        (shapes(), ["'f'", "graph of shapes"]),
    ],
    ids=lambda value: value.ops[0].name if isinstance(value, Graph) else "",
)
def test_what_cannot_be_written_exactly_is_refused(graph: Graph, words: list[str]) -> None:
    with pytest.raises(GraphError) as error:
        to_tflite(graph, "net")
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_missing_package_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tflite", None)
    with pytest.raises(GraphError, match=r"pip install 'dse\[tflite\]'"):
        to_tflite(hard_sigmoid(), "net")
