"""Random networks on emulated cores: each gives the bytes of the exact executor on M0+ and M4."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from dse.firmware.build import build, compilers
from dse.firmware.emit import emit
from dse.firmware.emulate import emulate
from dse.graph import execute
from dse.graph.numerics import ROUNDINGS, Rounding
from dse.graph.quantize import quantize
from dse.graph.trace import trace
from tests import host_c
from tests.networks import Recipe, network, recipes

MISSING = [
    name for name in ("elftools", "unicorn", "capstone") if importlib.util.find_spec(name) is None
]
pytestmark = [
    pytest.mark.skipif(
        bool(MISSING), reason=f"{MISSING} are missing (pip install 'dse[firmware]')"
    ),
    pytest.mark.skipif(not compilers(), reason="neither arm-none-eabi-gcc nor ziglang"),
]
# Shrinking a failure would build and emulate for minutes; these networks are small already.
PHASES = (Phase.explicit, Phase.generate)
WIDTHS = st.sampled_from((2, 3, 4, 8))
CORES = (("cortex-m0plus", "native"), ("cortex-m4", "native"), ("cortex-m4", "native-dsp"))


@dataclass(frozen=True)
class Case:
    """A random network, the bits of its first, inner and last layers, and how it is built."""

    recipe: Recipe
    bits: tuple[int, int, int]
    rounding: Rounding
    compiler: str
    optimize: str


CASES = st.builds(
    Case,
    recipes(),
    st.tuples(WIDTHS, WIDTHS, WIDTHS),
    st.sampled_from(ROUNDINGS),
    st.sampled_from(sorted(compilers()) or ["none"]),
    st.sampled_from(("-Os", "-O2", "-O3")),
)


def check(case: Case) -> None:
    """Both cores, all kernels: every output byte, and stacks that stay small."""
    model, inputs = network(case.recipe)
    floating = trace(model, case.recipe.shape)
    first, inner, last = case.bits
    bits = {op.name: inner for op in floating.weighted} | {"first": first, "fc": last}
    graph = quantize(floating, execute.observe(floating, inputs), bits)
    rows = host_c.entries(graph, inputs).reshape(len(inputs), -1)
    expected = execute.run(graph, inputs, case.rounding).numpy()
    for core, backend in CORES:
        sources = emit(graph, "net", backend, case.rounding)
        with TemporaryDirectory(prefix="dse-") as folder:
            image = build(sources, core, case.compiler, case.optimize, Path(folder))
            result = emulate(image, rows)
        message = f"{core} {backend} {case}"
        np.testing.assert_array_equal(result.outputs, expected, err_msg=message)
        assert result.instructions > graph.macs / 4, message
        assert result.stack_bytes is not None
        assert 0 < result.stack_bytes < 1024, message


@settings(max_examples=4, phases=PHASES)
@given(CASES)
def test_a_few_random_networks_are_exact_on_m0plus_and_m4(case: Case) -> None:
    check(case)


@pytest.mark.slow
@settings(max_examples=60, phases=PHASES)
@given(CASES)
def test_sixty_random_networks_are_exact_on_m0plus_and_m4(case: Case) -> None:
    check(case)
