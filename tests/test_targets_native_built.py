"""The cost model of our kernels against images built and emulated here, on layers it never saw."""

from __future__ import annotations

import statistics
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dse.firmware.build import build, compilers
from dse.firmware.emit import emit
from dse.firmware.emulate import emulate
from dse.graph.ir import Reshape
from dse.targets import Target, cost, find_backend, find_core, load_boards
from dse.targets.native import Native
from dse.targets.native_tables import COMPILER, compiler_text, kernel_code, kernel_cycles
from tests.networks import Recipe
from tests.test_targets_native import quantized

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from native_layers import draw

BUILT_WITH = compiler_text().split()[1]
reference = pytest.mark.skipif(
    COMPILER not in compilers() or compilers()[COMPILER].version != BUILT_WITH,
    reason=f"the figures belong to {compiler_text()}, which is not installed",
)
RECIPE = Recipe(
    seed=3,
    channels=3,
    size=(7, 6),
    blocks=(("depthwise", 6, "relu"), ("residual", 6, "hardswish"), ("gate", 6, "none")),
    head="average",
    softmax=True,
)


def target(core: str, backend: str) -> Target:
    board = load_boards()["nucleo_f446re"]
    library = find_backend(backend)
    assert isinstance(library, Native)
    return Target(replace(board, core=find_core(core), wait_states=0), library, board.max_clock_hz)


@reference
@pytest.mark.parametrize(
    ("core", "backend", "bits"),
    [("cortex-m0plus", "native", 4), ("cortex-m4f", "native-dsp", 8), ("cortex-m3", "native", 32)],
)
def test_flash_and_ram_are_those_of_the_linked_image(
    core: str, backend: str, bits: int, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    graph = quantized(RECIPE, bits)
    image = build(emit(graph, "network", backend), core, COMPILER, "-O2", tmp_path)
    modelled = cost(graph, target(core, backend))
    assert modelled.value("flash") == pytest.approx(image.flash_bytes, rel=0.02)
    assert modelled.ram_parts["arena"] == image.ram_bytes
    run = emulate(image, b"\0" * image.input_bytes)
    assert modelled.value("ram") == pytest.approx(image.ram_bytes + run.stack_bytes, rel=0.04)


@reference
def test_functions_are_as_long_as_the_data_says(tmp_path: Path) -> None:
    """Renewed by `python benchmarks/native_measure.py --only code`."""
    drawn = draw("int8", 1, 5, only=("depthwise8", "connected4", "average", "softmax"))
    image = build(
        emit(drawn.graph, "network", "native", "double", drawn.plan),
        "cortex-m4f",
        COMPILER,
        "-O2",
        tmp_path,
    )
    known = kernel_code("cortex-m4f", "native", "double", COMPILER)
    assert known is not None
    for symbol in image.symbols:
        if symbol.name in known.functions:
            expected = known.functions[symbol.name]
            assert symbol.size_bytes == pytest.approx(expected, rel=0.1, abs=4), symbol.name


@pytest.mark.slow
@reference
@pytest.mark.parametrize(
    ("core", "backend"), [("cortex-m4f", "native-dsp"), ("cortex-m3", "native")]
)
def test_new_layers_take_the_cycles_of_the_model(core: str, backend: str, tmp_path: Path) -> None:
    drawn = draw("int8", 1, 77)
    library, board = find_backend(backend), target(core, backend).board
    image = build(
        emit(drawn.graph, "network", backend, "double", drawn.plan), core, COMPILER, "-O2", tmp_path
    )
    table = kernel_cycles(core, backend, "double")
    assert table is not None
    errors = []
    for run in emulate(image, drawn.entry).operators[:-1]:
        op = drawn.graph.ops[int(run.name.split("_")[2])]
        assert not isinstance(op, Reshape)
        encoding = library.encoding(op) if hasattr(op, "weight") else None  # type: ignore[arg-type]
        found = table.operator(drawn.graph, op, encoding, board, 0).value
        errors.append(abs(found / run.cycles - 1))
    assert statistics.median(errors) < 0.03
    assert max(errors) < 0.4
