"""Layers with sparse blocks: C equals the graph byte for byte, and weighs its model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dse.compress import magnitude_masks
from dse.firmware.build import build, find_compiler
from dse.firmware.emit import BACKENDS, Sources, emit
from dse.firmware.emulate import emulate
from dse.graph import execute
from dse.graph.blocks import ELEMENT, PATTERNS
from dse.graph.ir import Conv2D, DType, Graph
from dse.graph.numerics import ROUNDINGS, Rounding
from dse.graph.quantize import quantize
from dse.graph.trace import column_orders, trace
from dse.targets import find_backend
from tests.host_c import CC, Host, compiled, entries
from tests.test_firmware_emit import check, check_bytes, check_emulated, with_a_large_bias

IN_BLOCKS = tuple(pattern for pattern in PATTERNS if pattern != ELEMENT)
SHAPE = (3, 7, 6)
IN_FLASH = ("block-sparse", "shared blocks")
host_only = pytest.mark.skipif(CC is None, reason="no C compiler (cc, gcc or clang) is installed")


class Mixed(nn.Module):
    """Every kind of layer; channels that fill blocks and that do not, edges, strides, dilation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 18, 3, stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
            nn.ReLU6(),
            nn.Conv2d(18, 36, 3, padding=1, bias=False),
            nn.BatchNorm2d(36),
            nn.Conv2d(36, 36, 3, padding=1, groups=36),
            nn.Conv2d(36, 34, (2, 3), padding=(1, 2)),
            nn.ReLU(),
            nn.Conv2d(34, 20, 1),
            nn.Conv2d(20, 9, (3, 2), padding=2, dilation=2, stride=(1, 2)),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.LazyLinear(32),
            nn.ReLU(),
            nn.Linear(32, 6),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(x)
        return out


def pruned(
    pattern: str, bits: int = 8, activations: DType = "int8", density: float = 0.3
) -> tuple[Graph, torch.Tensor]:
    """The network with a share of its blocks in every layer."""
    inputs = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    model = Mixed()
    model(inputs)
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    densities = dict.fromkeys(names, density)
    magnitude_masks(model, densities, pattern, column_orders(model, SHAPE)).apply(model)
    graph = trace(model.eval(), SHAPE)
    widths, ranges = dict.fromkeys(names, bits), execute.observe(graph, inputs)
    return quantize(graph, ranges, widths, densities, activations, pattern), inputs


@host_only
@pytest.mark.parametrize("activations", ["int8", "int16"])
def test_every_pattern_layer_contract_and_backend(activations: DType, tmp_path: Path) -> None:
    ready: list[tuple[Graph, torch.Tensor, Sources, Rounding]] = []
    backends = {"double": "native", "single": "native-dsp"}
    for place, pattern in enumerate(IN_BLOCKS):
        graph, inputs = pruned(pattern, (8, 4, 2, 8, 4)[place % 5], activations)
        for rounding in ROUNDINGS:
            made = emit(graph, f"net{len(ready)}", backends[rounding], rounding)
            ready.append((graph, inputs, made, rounding))
    suffix = "_a16" if activations == "int16" else ""
    called = "".join(made.source for _, _, made, _ in ready)
    for form in ("1x4", "1x1", "2x2", "2x1", "4x4", "4x1"):
        assert f"    block_conv_{form}{suffix}(" in called
    host = Host.load(compiled(tmp_path, [made for _, _, made, _ in ready]))
    for graph, inputs, made, rounding in ready:
        check(graph, inputs, host, made, rounding)


@host_only
def test_int16_sums_past_32_bits_take_kernels_of_64(tmp_path: Path) -> None:
    ready = [pruned(pattern, 8, "int16") for pattern in ("1x4", "2x2-shared", "4x4")]
    graphs = [replace(graph, ops=tuple(map(with_a_large_bias, graph.ops))) for graph, _ in ready]
    made = [emit(graph, f"net{i}", "native") for i, graph in enumerate(graphs)]
    host = Host.load(compiled(tmp_path, made))
    for graph, (_, inputs), one in zip(graphs, ready, made, strict=True):
        assert "_a16_wide(" in one.source
        check(graph, inputs, host, one, "double")


@host_only
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("pattern", "bits"), [("1x4", 8), ("2x2", 2), ("4x4-shared", 4)])
def test_maps_and_values_weigh_what_the_model_counts(
    pattern: str, bits: int, backend: str, tmp_path: Path
) -> None:
    graph, _ = pruned(pattern, bits)
    check_bytes(graph, backend, tmp_path)
    library = find_backend(backend)
    for op in graph.weighted:
        depthwise = isinstance(op, Conv2D) and op.depthwise
        assert (library.encoding(op).layout in IN_FLASH) != depthwise


@host_only
def test_a_thousand_kept_blocks_of_few_fill_their_list(tmp_path: Path) -> None:
    """One row holds all blocks that are kept, and one none: the scratch is for the fullest."""
    graph, inputs = pruned("1x4", 4)
    op = next(op for op in graph.weighted if op.name == "layers.2")
    values = np.zeros(op.weight.shape, np.int8)
    most = values[0].size // 4
    values[5].ravel()[: 4 * most] = 3
    values[7].ravel()[-1] = -2
    kept = 4 * most + 4
    weight = replace(op.weight, values=values, blocks=most + 1, kept=kept)
    ops = tuple(replace(op, weight=weight) if one is op else one for one in graph.ops)
    graph = replace(graph, ops=ops)
    made = emit(graph)
    check(graph, inputs, Host.load(compiled(tmp_path, [made])), made, "double")


@pytest.mark.parametrize(
    ("core", "backend", "pattern", "bits", "activations"),
    [
        ("cortex-m0plus", "native", "1x4", 8, "int8"),
        ("cortex-m0plus", "native", "4x4-shared", 4, "int8"),
        ("cortex-m4f", "native", "2x2-shared", 8, "int16"),
        ("cortex-m4f", "native-dsp", "4x1", 2, "int8"),
    ],
)
def test_the_emulated_cores_give_every_byte(
    core: str, backend: str, pattern: str, bits: int, activations: DType, tmp_path: Path
) -> None:
    graph, inputs = pruned(pattern, bits, activations)
    check_emulated(graph, inputs, backend, core, tmp_path)


def test_fewer_blocks_take_less_time_than_all_weights(tmp_path: Path) -> None:
    """Emulated, on the plain loops: what is not kept is skipped."""
    cycles = {}
    for name, pattern, density in (("dense", ELEMENT, 1.0), ("few", "4x4", 0.1)):
        graph, inputs = pruned(pattern, 8, "int8", density)
        image = build(emit(graph), "cortex-m4f", find_compiler().name, "-O2", tmp_path / name)
        given = np.ascontiguousarray(entries(graph, inputs[:1])).reshape(1, -1).view(np.int8)
        runs = emulate(image, given).operators
        cycles[name] = {one.name: one.cycles for one in runs}
    wide = [name for name in cycles["dense"] if name.endswith(("layers_2", "layers_5"))]
    assert len(wide) == 2
    for name in wide:
        assert cycles["few"][name] < 0.5 * cycles["dense"][name]
