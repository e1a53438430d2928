"""Networks the tests of targets share, and that the reference networks are the real ones."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import strategies as st

from dse.errors import TargetError
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
    Reshape,
    Softmax,
    Tensor,
    Weight,
)
from dse.targets import NOMINAL_MACS, reference_graph

SAME = (1, 1, 1, 1)


class Builder:
    """Adds one operator after another to a graph of shapes."""

    def __init__(self, shape: tuple[int, ...], dtype: DType = "int8") -> None:
        self.dtype = dtype
        self.tensors = {"input": Tensor("input", shape, dtype)}
        self.ops: list[Op] = []

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def weight(self, shape: tuple[int, ...], bits: int, density: float = 1.0) -> Weight:
        bits = 32 if self.dtype == "float32" else bits
        size = Weight(shape, bits).size
        return Weight(shape, bits, max(1, round(size * density)))

    def _add(self, op: Op, shape: tuple[int, ...]) -> str:
        self.tensors[op.output] = Tensor(op.output, shape, self.dtype)
        self.ops.append(op)
        return op.output

    def conv(
        self,
        source: str,
        channels: int,
        kernel: int = 3,
        stride: int = 1,
        bits: int = 8,
        density: float = 1.0,
        depthwise: bool = False,
    ) -> str:
        height, width, inner = self.shape(source)
        pad = kernel // 2
        channels = inner if depthwise else channels
        weight = self.weight((channels, kernel, kernel, 1 if depthwise else inner), bits, density)
        out = f"t{len(self.ops)}"
        op = Conv2D(
            f"conv{len(self.ops)}",
            (source,),
            out,
            weight,
            None,
            (stride, stride),
            (pad, pad, pad, pad),
            (1, 1),
            inner if depthwise else 1,
            "relu",
        )
        size = tuple((n + 2 * pad - kernel) // stride + 1 for n in (height, width))
        return self._add(op, (*size, channels))

    def pool(self, source: str, mode: str = "max") -> str:
        height, width, channels = self.shape(source)
        kernel = (min(2, height), min(2, width))
        name, out = f"pool{len(self.ops)}", f"t{len(self.ops)}"
        op = Pool2D(name, (source,), out, "average" if mode == "average" else "max", kernel, kernel)
        return self._add(op, (height // kernel[0], width // kernel[1], channels))

    def flatten(self, source: str) -> str:
        size = self.tensors[source].elements
        return self._add(Reshape(f"flat{len(self.ops)}", (source,), f"t{len(self.ops)}"), (size,))

    def dense(self, source: str, channels: int, bits: int = 8, density: float = 1.0) -> str:
        weight = self.weight((channels, self.shape(source)[0]), bits, density)
        name, out = f"fc{len(self.ops)}", f"t{len(self.ops)}"
        return self._add(FullyConnected(name, (source,), out, weight), (channels,))

    def two(self, kind: type[Add] | type[Mul], first: str, second: str) -> str:
        name, out = f"two{len(self.ops)}", f"t{len(self.ops)}"
        return self._add(kind(name, (first, second), out), self.shape(first))

    def concat(self, sources: Sequence[str]) -> str:
        *size, _ = self.shape(sources[0])
        channels = sum(self.shape(source)[-1] for source in sources)
        op = Concat(f"concat{len(self.ops)}", tuple(sources), f"t{len(self.ops)}")
        return self._add(op, (*size, channels))

    def pad(self, source: str) -> str:
        height, width, channels = self.shape(source)
        op = Pad(f"pad{len(self.ops)}", (source,), f"t{len(self.ops)}", SAME)
        return self._add(op, (height + 2, width + 2, channels))

    def lookup(self, source: str) -> str:
        op = Lookup(f"lookup{len(self.ops)}", (source,), f"t{len(self.ops)}", "hardswish")
        return self._add(op, self.shape(source))

    def softmax(self, source: str) -> str:
        op = Softmax(f"softmax{len(self.ops)}", (source,), f"t{len(self.ops)}")
        return self._add(op, self.shape(source))

    def graph(self, output: str, name: str = "net") -> Graph:
        return Graph(name, self.tensors, tuple(self.ops), "input", output)


def chain(
    channels: Sequence[int], bits: int = 8, density: float = 1.0, dtype: DType = "int8"
) -> Graph:
    """Convolution, depthwise, 1x1, pool, fully connected, with these channels."""
    first, second, third = channels
    net = Builder((8, 8, 4), dtype)
    x = net.conv("input", first, bits=bits, density=density)
    x = net.conv(x, 0, bits=bits, density=density, depthwise=True)
    x = net.conv(x, second, kernel=1, bits=bits, density=density)
    x = net.conv(net.pool(x), third, stride=2, bits=bits, density=density)
    return net.graph(net.dense(net.flatten(x), 10, bits=bits, density=density))


def every_operator(dtype: DType = "int8") -> Graph:
    """One of each operator that all backends know."""
    net = Builder((8, 8, 3), dtype)
    a = net.conv("input", 8)
    b = net.conv(net.lookup(a), 8, kernel=1)
    c = net.two(Add, a, b)
    d = net.two(Mul, c, net.conv(c, 0, depthwise=True))
    e = net.pool(net.pad(net.concat([d, c])), "average")
    f = net.dense(net.flatten(net.pool(e)), 10)
    return net.graph(net.softmax(f), "every")


def digits(bits: Sequence[int] = (8, 8, 8, 8, 8)) -> Graph:
    """The digits CNN that was built and run (backends notes): 6,554 parameters."""
    net = Builder((8, 8, 1))
    x = net.conv("input", 8, bits=bits[0])
    x = net.conv(x, 0, bits=bits[1], depthwise=True)
    x = net.pool(net.conv(x, 24, kernel=1, bits=bits[2]))
    x = net.pool(net.conv(x, 24, bits=bits[3]))
    return net.graph(net.dense(net.flatten(x), 10, bits=bits[4]), "digits")


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Small random networks with residuals, any width, any bits, any density."""
    net = Builder((draw(st.integers(4, 9)), draw(st.integers(4, 9)), draw(st.integers(1, 5))))
    bits, density = st.sampled_from((2, 3, 4, 7, 8)), st.sampled_from((1.0, 0.6, 0.1))
    x = net.conv("input", draw(st.integers(1, 9)), bits=draw(bits), density=draw(density))
    for kind in draw(st.lists(st.sampled_from(("conv", "dw", "1x1", "res", "pool")), max_size=5)):
        if kind == "pool":
            x = net.pool(x, draw(st.sampled_from(("max", "average"))))
        elif kind == "res":
            channels = net.shape(x)[2]
            x = net.two(Add, net.conv(x, channels, bits=draw(bits), density=draw(density)), x)
        else:
            x = net.conv(
                x,
                draw(st.integers(1, 12)),
                kernel=1 if kind == "1x1" else 3,
                stride=draw(st.integers(1, 2)),
                bits=draw(bits),
                density=draw(density),
                depthwise=kind == "dw" and net.shape(x)[2] > 1,
            )
    x = net.dense(net.flatten(x), draw(st.integers(1, 10)), bits=draw(bits), density=draw(density))
    return net.graph(net.softmax(x))


@pytest.mark.parametrize("name", sorted(NOMINAL_MACS))
def test_reference_networks_have_the_published_macs(name: str) -> None:
    assert reference_graph(name).macs == NOMINAL_MACS[name]


@pytest.mark.parametrize(
    ("name", "parameters"), [("ad", 265_864), ("ic", 77_706), ("kws", 22_604), ("vww", 210_850)]
)
def test_reference_networks_have_the_published_parameters(name: str, parameters: int) -> None:
    assert reference_graph(name).parameters == parameters


def test_unknown_reference_network_names_the_nearest() -> None:
    with pytest.raises(TargetError, match="did you mean 'kws'"):
        reference_graph("kwss")
