"""Layers through a code book: C equals the graph byte for byte, and weighs its model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from dse.firmware.emit import BACKENDS, Sources, emit
from dse.graph import execute
from dse.graph.code_book import CodeBooks
from dse.graph.ir import DType, Graph
from dse.graph.numerics import ROUNDINGS, Rounding
from dse.graph.quantize import quantize
from dse.graph.trace import trace
from dse.targets import find_backend
from tests.host_c import CC, Host, compiled
from tests.test_firmware_emit import check, check_bytes, check_emulated, with_a_large_bias

BOOKS = ((4, 1), (6, 2), (16, 1), (16, 4), (32, 2), (256, 4))
host_only = pytest.mark.skipif(CC is None, reason="no C compiler (cc, gcc or clang) is installed")


class Wide(nn.Module):
    """Every kind of layer, wide enough for books of every size; odd channels, taps and geometry."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 18, 3, stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
            nn.ReLU6(),
            nn.Conv2d(18, 36, 3, padding=1, groups=18, bias=False),
            nn.Conv2d(36, 35, 1),
            nn.ReLU(),
            nn.Conv2d(35, 35, (2, 3), padding=1, groups=35),
            nn.Conv2d(35, 9, (3, 2), padding=1),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.LazyLinear(33),
            nn.ReLU(),
            nn.Linear(33, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(x)
        return out


def shared(
    size: int, vector: int, activations: DType = "int8", seed: int = 0
) -> tuple[Graph, torch.Tensor]:
    """The network with a book in every layer that is smaller with one."""
    inputs = torch.randn(3, 3, 7, 6, generator=torch.Generator().manual_seed(seed))
    model = Wide()
    model(inputs)
    graph = trace(model.eval(), (3, 7, 6))
    books = CodeBooks({op.name: size for op in graph.weighted}, vector, seed)
    ranges = execute.observe(graph, inputs)
    return quantize(graph, ranges, activations=activations, books=books), inputs


@host_only
@pytest.mark.parametrize("activations", ["int8", "int16"])
def test_every_book_layer_contract_and_backend(activations: DType, tmp_path: Path) -> None:
    ready: list[tuple[Graph, torch.Tensor, Sources, Rounding]] = []
    reached: set[str] = set()
    for size, vector in ((4, 1), (6, 2), (256, 4)):
        graph, inputs = shared(size, vector, activations)
        for backend in ("native", "native-dsp"):
            for rounding in ROUNDINGS:
                made = emit(graph, f"net{len(ready)}", backend, rounding)
                reached |= {name for name in KERNELS if f"{name}(" in made.source}
                ready.append((graph, inputs, made, rounding))
    suffix = "_a16" if activations == "int16" else ""
    assert {f"{name}{suffix}" for name in KINDS} <= reached
    host = Host.load(compiled(tmp_path, [made for _, _, made, _ in ready]))
    for graph, inputs, made, rounding in ready:
        check(graph, inputs, host, made, rounding)


KINDS = ("book_conv", "book_depthwise", "book_depthwise_any")
KERNELS = (*KINDS, *(f"{name}_a16" for name in KINDS))


@host_only
def test_int16_sums_past_32_bits_take_kernels_of_64(tmp_path: Path) -> None:
    graph, inputs = shared(16, 2, "int16")
    graph = replace(graph, ops=tuple(map(with_a_large_bias, graph.ops)))
    made = [emit(graph, f"net{i}", backend) for i, backend in enumerate(BACKENDS)]
    host = Host.load(compiled(tmp_path, made))
    for one in made:
        assert all(f"{name}_a16_wide(" in one.source for name in KINDS)
        check(graph, inputs, host, one, "double")


@host_only
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("size", "vector"), BOOKS)
def test_indices_and_tables_weigh_what_the_model_counts(
    size: int, vector: int, backend: str, tmp_path: Path
) -> None:
    graph, _ = shared(size, vector)
    check_bytes(graph, backend, tmp_path)
    library = find_backend(backend)
    dense = [op for op in graph.weighted if library.encoding(op).layout == "dense"]
    assert len(dense) < len(graph.weighted)
    assert all(library.encoding(op).size_bytes >= op.weight.size for op in dense)


@pytest.mark.parametrize(
    ("core", "backend", "size", "vector"),
    [
        ("cortex-m0plus", "native", 6, 2),
        ("cortex-m0plus", "native", 256, 4),
        ("cortex-m4f", "native", 4, 1),
        ("cortex-m4f", "native-dsp", 16, 1),
    ],
)
def test_the_emulated_cores_give_every_byte(
    core: str, backend: str, size: int, vector: int, tmp_path: Path
) -> None:
    graph, inputs = shared(size, vector)
    check_emulated(graph, inputs, backend, core, tmp_path)
