"""The .tflite writer with int16 activations, against LiteRT: every look-up, softmax, wide sums."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from dse.errors import GraphError
from dse.firmware.tflite import approximated_operators, to_tflite
from dse.graph.execute import run
from dse.graph.ir import Add, FullyConnected, Graph, Lookup, Softmax, Tensor
from dse.workloads.networks import DigitsNet
from tests.litert import litert
from tests.test_firmware_tflite import FIXED, compared, drawn, one, quantized, weight

pytest.importorskip("tflite", reason="needs the extra tflite")


@given(
    st.floats(1e-6, 2.5), st.floats(1e-6, 1), st.sampled_from(["sigmoid", "tanh", "relu", "relu6"])
)
def test_every_int16_look_up_is_exact(scale: float, out: float, function: Any) -> None:
    source, target = (
        Tensor(name, (65536,), "int16", float(np.float32(step)))
        for name, step in (("x", scale), ("y", 2.0**-15 if function in FIXED else out))
    )
    graph = one(Lookup("l", ("x",), "y", function), source, target)
    assume(scale < 2**15 * out)
    assert not approximated_operators(graph)
    values = np.arange(-32768, 32768)[None]
    found = litert(to_tflite(graph, "one"), values.astype(np.int16))
    inputs = torch.from_numpy(values * (source.scale or 1.0))
    np.testing.assert_array_equal(found, run(graph, inputs).numpy())


@given(st.floats(1e-7, 2.0), st.integers(2, 50))
def test_any_int16_softmax(scale: float, classes: int) -> None:
    source = Tensor("x", (classes,), "int16", float(np.float32(scale)))
    target = Tensor("y", (classes,), "int16", 2.0**-15)
    graph = one(Softmax("s", ("x",), "y"), source, target)
    for share in (1.0, 0.01, 1e-4):
        assert compared(graph, drawn(graph) * share) == 0


def test_int16_sums_past_32_bits_are_exact() -> None:
    op = FullyConnected("f", ("x",), "y", weight(0, (4, 3000)), np.arange(4) * 2**29)
    assert op.weight.values is not None
    magnitudes = np.abs(op.weight.values)
    op = replace(op, weight=replace(op.weight, values=magnitudes))
    graph = one(
        op, *(Tensor(n, (s,), "int16", c) for n, s, c in (("x", 3000, 0.5), ("y", 4, 64.0)))
    )
    inputs = torch.rand(50, 3000) * 2**14
    sums = (inputs.double() / 0.5) @ torch.from_numpy(magnitudes.astype(np.float64)).T
    assert float(sums.max()) > 2**31
    assert compared(graph, inputs) == 0


def int16_hard_swish() -> Graph:
    tensors = [Tensor(name, (4, 4, 2), "int16", 0.5) for name in "xy"]
    return one(Lookup("r", ("x",), "y", "hardswish"), *tensors)


def int16_powers_of_two() -> Graph:
    return one(Add("q", ("x", "x"), "y"), *(Tensor(name, (8,), "int16", 0.5) for name in "xy"))


def int16_large_factor() -> Graph:
    op = FullyConnected("g", ("x",), "y", weight(0, (3, 8)), np.zeros(3))
    return one(op, Tensor("x", (8,), "int16", 0.5), Tensor("y", (3,), "int16", 2.0**-20))


def int16_large_ratio() -> Graph:
    source, target = (Tensor(n, (8,), "int16", 2.0**p) for n, p in (("x", 0), ("y", -15)))
    return one(Lookup("k", ("x",), "y", "relu"), source, target)


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (int16_hard_swish(), ["'r'", "hardswish", "int8 only"]),
        (int16_powers_of_two(), ["'q'", "powers of two", "export C"]),
        (int16_large_factor(), ["'g'", "factor under 128"]),
        (int16_large_ratio(), ["'k'", "32,768"]),
    ],
    ids=lambda value: value.ops[0].name if isinstance(value, Graph) else "",
)
def test_what_int16_cannot_hold_exactly_is_refused(graph: Graph, words: list[str]) -> None:
    with pytest.raises(GraphError) as error:
        to_tflite(graph, "net")
    assert all(word in str(error.value) for word in words), str(error.value)


def test_int4_weights_beside_int16_activations_are_refused() -> None:
    torch.manual_seed(5)
    graph = quantized(DigitsNet(), torch.rand(16, 1, 8, 8), 4, "int16")
    with pytest.raises(GraphError, match="no INT4 weights; write it without int4"):
        to_tflite(graph, "net", int4=True)
