"""Laws that every cost obeys, and figures that were measured or built."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dse.graph.ir import Conv2D, FullyConnected, Graph, without_values
from dse.targets import (
    Target,
    cost,
    load_boards,
    parse_target,
    read_board,
    reference_graph,
    targets_for,
)
from dse.targets.networks import rows
from dse.trial import COST_METRICS
from tests.test_targets_board import GOOD
from tests.test_targets_networks import chain, digits, graphs

TARGETS = [
    target
    for target in targets_for()[0]
    if target.backend.cycles(target.board) and target.board.active_power_w(target.clock_hz)
]
some_target = st.sampled_from(TARGETS)
widths = st.tuples(*[st.integers(1, 8)] * 3).map(lambda c: tuple(4 * n for n in c))


@given(graphs(), some_target)
def test_value_lies_in_its_interval_and_memory_is_consistent(graph: Graph, target: Target) -> None:
    found = cost(graph, target)
    for name in COST_METRICS:
        metric = found.metrics[name]
        assert metric.value is not None
        assert metric.low is not None
        assert metric.high is not None
        assert 0 < metric.low <= metric.value <= metric.high
        assert metric.provenance == "modelled"
        assert metric.source
    plan = found.memory
    ram, flash = found.value("ram"), found.value("flash")
    assert ram is not None
    assert flash is not None
    assert plan.peak_bytes <= plan.arena_bytes <= ram
    assert plan.peak_bytes >= graph.tensors[graph.input].size_bytes
    assert flash >= sum(op.flash_bytes for op in found.operators)


def with_values(graph: Graph) -> Graph:
    """The same graph with weights and biases, as after training."""
    random = np.random.default_rng(0)
    ops = tuple(
        replace(
            op,
            weight=replace(op.weight, values=random.integers(-1, 2, op.weight.shape)),
            bias=random.integers(-9, 9, op.weight.shape[0]),
        )
        if isinstance(op, Conv2D | FullyConnected)
        else op
        for op in graph.ops
    )
    return replace(graph, ops=ops)


@given(graphs(), some_target)
def test_cost_before_training_is_the_cost_of_the_trained_graph(
    graph: Graph, target: Target
) -> None:
    trained = with_values(graph)
    before = cost(without_values(trained), target)
    sys.modules["dse.targets.cost"]._COSTS.clear()  # or the second would only be the first, kept
    after = cost(trained, target)
    assert after is not before
    assert after == before


@given(widths, st.integers(0, 2), some_target, st.sampled_from((2, 4, 8)))
def test_more_channels_never_cost_less(
    channels: tuple[int, int, int], which: int, target: Target, bits: int
) -> None:
    """In steps of four channels, in which every kernel works.

    The greedy planner of TensorFlow Lite Micro may place a wider network in fewer bytes.
    """
    wider = tuple(c + 4 * (i == which) for i, c in enumerate(channels))
    small, large = cost(chain(channels, bits), target), cost(chain(wider, bits), target)
    greedy = target.backend.name in ("tflm", "tflm-reference")
    for name in (name for name in COST_METRICS if not (greedy and name == "ram")):
        before, after = small.value(name), large.value(name)
        assert before is not None
        assert after is not None
        assert before <= after, name


@given(widths, some_target)
def test_wider_weights_never_take_less_flash(
    channels: tuple[int, int, int], target: Target
) -> None:
    constants = [
        sum(op.flash_bytes for op in cost(chain(channels, bits), target).operators)
        for bits in (2, 4, 8)
    ]
    assert constants == sorted(constants)


@given(widths, some_target)
def test_element_wise_sparsity_never_changes_the_arena(
    channels: tuple[int, int, int], target: Target
) -> None:
    dense, thin = (cost(chain(channels, 8, density), target) for density in (1.0, 0.2))
    assert dense.ram_parts["arena"] == thin.ram_parts["arena"]
    sparse = target.backend.name in ("native", "native-dsp", "native-mve")
    assert (sum(op.flash_bytes for op in thin.operators) < sum(
        op.flash_bytes for op in dense.operators)) == sparse  # fmt: skip


def test_fewer_bits_save_constants_and_cost_latency_on_our_kernels() -> None:
    target = parse_target("rpi_pico/native")
    byte, nibble = cost(digits(), target), cost(digits((4,) * 5), target)
    assert nibble.flash_parts["weights"] < 0.55 * byte.flash_parts["weights"]
    assert (nibble.value("flash") or 0) < (byte.value("flash") or 0)
    assert (nibble.value("latency") or 0) > (byte.value("latency") or 0)


def test_a_clock_changes_latency_and_nothing_in_memory() -> None:
    fast, slow = (parse_target(f"nucleo_f446re/cmsis-nn/{clock}") for clock in ("180MHz", "84MHz"))
    one, two = cost(digits(), fast), cost(digits(), slow)
    assert (two.value("latency") or 0) == pytest.approx((one.value("latency") or 0) * 180 / 84)
    assert (one.value("flash"), one.value("ram")) == (two.value("flash"), two.value("ram"))


@pytest.mark.parametrize(
    ("bits", "constants"),
    [
        ((8, 8, 8, 8, 8), 7146),
        ((8, 8, 8, 4, 4), 4074),
        ((4, 4, 4, 4, 4), 3914),
        ((8, 8, 4, 2, 4), 2682),
    ],
)
def test_native_constants_are_counted(bits: tuple[int, ...], constants: int) -> None:
    """Digits CNN: packed rows, a bias of 4 B and 5 B of requantization a channel; the records of
    geometry come on top. Whole images are held in tests/test_targets_native_built.py."""
    found = cost(digits(bits), parse_target("nucleo_f446re/native"))
    parts = found.flash_parts
    assert parts["weights"] + parts["biases"] + parts["requantization"] == constants
    windows = sum(op.kind in ("conv2d", "fully_connected", "pool2d") for op in found.operators)
    assert parts["tables"] == 36 * windows
    assert found.ram_parts["arena"] == 2048


def measured(board: str, runtime: str) -> dict[str, tuple[float, float]]:
    return {
        row["network"]: (float(row["latency_ms"]) / 1e3, float(row["energy_uj"] or "nan") / 1e6)
        for row in reversed(rows("measured.csv"))
        if row["board"] == board and row["runtime"] == runtime and "v1.0" in row["source"]
    }


@pytest.mark.parametrize("network", ["ad", "ic", "kws", "vww"])
def test_latency_and_energy_hold_what_mlperf_tiny_measured(network: str) -> None:
    latency_s, energy_j = measured("NUCLEO-L4R5ZI", "microTVM + CMSIS-NN")[network]
    found = cost(reference_graph(network), parse_target("nucleo_l4r5zi/cmsis-nn/120MHz"))
    assert found.value("latency") == pytest.approx(latency_s, rel=0.06)
    for name, value in (("latency", latency_s), ("energy", energy_j)):
        metric = found.metrics["latency" if name == "latency" else "energy"]
        assert metric.low is not None
        assert metric.high is not None
        assert metric.low <= value <= metric.high


def test_person_detection_layers_on_the_pico_add_up() -> None:
    """Depthwise and 1x1 layers of MobileNetV1-0.25 took 0.81 s on the Pico at 125 MHz."""
    total = sum(float(row["time_us"]) for row in rows("layers.csv") if row["cin"] != "1") / 1e6
    found = cost(reference_graph("vww"), parse_target("rpi_pico/cmsis-nn/125MHz"))
    layers = sum(op.latency_s or 0 for op in found.operators if op.kind == "conv2d")
    layers -= found.operators[0].latency_s or 0
    assert layers == pytest.approx(total, rel=0.1)


def test_without_power_energy_is_unavailable_and_says_why(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(GOOD)
    board = read_board(file)
    found = cost(digits(), parse_target("mine/native", {"mine": board}))
    assert found.value("energy") is None
    assert "'mine' gives no power" in found.metrics["energy"].source
    assert found.value("latency") is not None


def test_without_a_cycle_table_latency_is_unavailable(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(GOOD.replace("cortex-m4f", "cortex-m3"))
    target = parse_target("mine/cmsis-nn", {"mine": read_board(file)})
    found = cost(digits(), target)
    assert found.value("latency") is None
    assert "no cycle table for backend 'cmsis-nn' on cortex-m3" in found.metrics["latency"].source
    assert found.value("flash")
    assert found.operators[0].cycles is None


def test_floats_without_a_unit_take_longer(tmp_path: Path) -> None:
    found = []
    for core in ("cortex-m4", "cortex-m4f"):
        file = tmp_path / "mine.toml"
        file.write_text(GOOD.replace("cortex-m4f", core))
        target = parse_target("mine/native", {"mine": read_board(file)})
        found.append(cost(chain((4, 4, 4), dtype="float32"), target).value("latency"))
    soft, hard = found
    assert soft is not None
    assert hard is not None
    assert soft > 2 * hard


def test_limits_are_the_boards_less_the_reserved(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    keep = 'reserved_{} = {{ value = 16, unit = "KiB", status = "read", source = "radio stack" }}\n'
    file.write_text(GOOD + keep.format("flash") + keep.format("ram"))
    limits = parse_target("mine/native", {"mine": read_board(file)}).limits()
    assert (limits.flash_bytes, limits.ram_bytes) == (240 * 1024, 48 * 1024)
    pico = load_boards()["rpi_pico"]
    assert parse_target("rpi_pico/native").limits().ram_bytes == pico.ram_bytes


def test_targets_import_no_torch() -> None:
    code = (
        "import sys, dse.targets as t; t.cost(t.reference_graph('kws'), "
        "t.parse_target('nucleo_f446re/native')); "
        "assert not {'torch', 'pandas', 'scipy', 'optuna'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_keys_and_targets_that_travel_are_hashed_anew() -> None:
    """Hashes of texts differ between processes, so what was pickled must not keep its own."""
    target = parse_target("rpi_pico/native")
    graph = digits()
    known = {(graph.key, target): 1}
    script = (
        "import pickle, sys\n"
        "from dse.targets import parse_target\n"
        "from tests.test_targets_networks import digits\n"
        "known = pickle.loads(sys.stdin.buffer.read())\n"
        "sys.exit((digits().key, parse_target('rpi_pico/native')) not in known)\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=pickle.dumps(known),
        env=environment,
        cwd=Path(__file__).parents[1],
        check=False,
    )
    assert done.returncode == 0
