"""Emitted networks, built and emulated: every output byte is that of the exact reference."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from dse.firmware.build import Image, build, compilers
from dse.firmware.cpu import CPUS
from dse.firmware.emit import emit
from dse.firmware.emulate import Emulation, emulate, qemu_version
from dse.graph import execute
from dse.graph.entry import input_bytes
from dse.graph.ir import DType, Graph
from dse.graph.numerics import Rounding
from dse.graph.quantize import quantize
from dse.graph.trace import trace
from tests.networks import Recipe, network

MISSING = [
    name for name in ("elftools", "unicorn", "capstone") if importlib.util.find_spec(name) is None
]
pytestmark = [
    pytest.mark.skipif(
        bool(MISSING), reason=f"{MISSING} are missing (pip install 'dse[firmware]')"
    ),
    pytest.mark.skipif(not compilers(), reason="neither arm-none-eabi-gcc nor ziglang"),
]
MOST = Recipe(
    5,
    2,
    (5, 6),
    (("depthwise", 4, "relu"), ("residual", 4, "hardswish"), ("gate", 4, "none")),
    "average",
    True,
)


@dataclass(frozen=True)
class Ready:
    """A graph, its inputs as the C takes them (N, bytes), and what it must answer."""

    graph: Graph
    inputs: torch.Tensor

    @property
    def entries(self) -> np.ndarray[tuple[int, ...], np.dtype[np.int8]]:
        return input_bytes(self.graph, self.inputs)


def ready(recipe: Recipe, bits: int, activations: DType = "int8") -> Ready:
    """The graph of a recipe with all layers at these bits; 32 leaves it in float."""
    model, inputs = network(recipe)
    graph = trace(model, recipe.shape)
    if bits != 32:
        widths = {op.name: bits for op in graph.weighted}
        graph = quantize(graph, execute.observe(graph, inputs), widths, None, activations)
    return Ready(graph, inputs)


def check(
    case: Ready, core: str, compiler: str | None, backend: str, rounding: Rounding, folder: Path
) -> tuple[Image, Emulation]:
    image = build(emit(case.graph, "net", backend, rounding), core, compiler, folder=folder)
    result = emulate(image, case.entries)
    expected = execute.run(case.graph, case.inputs, rounding).numpy()
    found = result.outputs.view(case.graph.tensors[case.graph.output].dtype)
    if case.graph.integer:
        np.testing.assert_array_equal(found, expected.reshape(found.shape))
    else:
        np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=1e-4, atol=1e-5)
    return image, result


@pytest.mark.parametrize("compiler", sorted(compilers()))
@pytest.mark.parametrize(
    ("core", "backend", "activations"),
    [
        ("cortex-m0plus", "native", "int8"),
        ("cortex-m4", "native-dsp", "int8"),
        ("cortex-m33", "native", "int8"),
        ("cortex-m0plus", "native", "int16"),
        ("cortex-m4", "native-dsp", "int16"),
    ],
)
def test_a_network_of_most_operators(
    core: str, backend: str, activations: DType, compiler: str, tmp_path: Path
) -> None:
    made = ready(MOST, 4, activations)
    image, result = check(made, core, compiler, backend, "double", tmp_path)
    *operators, rest = result.operators
    assert [one.name for one in operators] == list(image.operators)
    assert all(one.instructions > 0 for one in operators)
    # What runs outside operators is the calls themselves: the attribution is complete.
    assert rest.instructions <= 4 * len(operators) + 8
    assert all(size > 0 for size in image.operators.values())
    assert 0 < result.stack_bytes < 1024


@pytest.mark.slow
@pytest.mark.parametrize("compiler", sorted(compilers()))
@pytest.mark.parametrize("core", CPUS)
@pytest.mark.parametrize(
    ("bits", "activations"), [(2, "int8"), (8, "int8"), (8, "int16"), (32, "float32")]
)
def test_every_core_and_compiler(
    bits: int, activations: DType, core: str, compiler: str, tmp_path: Path
) -> None:
    if CPUS[core].unicorn is None and qemu_version() is None:
        pytest.skip("qemu-system-arm is not installed")
    backends = ["native"] if core in ("cortex-m0plus", "cortex-m3") else ["native", "native-dsp"]
    for backend in backends:
        made = ready(MOST, bits, activations)
        check(made, core, compiler, backend, "double", tmp_path / backend)
