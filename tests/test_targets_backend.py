"""The contract of a backend, run over every backend and every board."""

from __future__ import annotations

from itertools import product

import pytest

from dse.errors import TargetError
from dse.graph.ir import Conv2D, Graph, Pool2D, Tensor, Weight
from dse.targets import (
    Backend,
    Board,
    Target,
    cost,
    find_backend,
    load_backends,
    load_boards,
    parse_target,
    support_table,
    targets_for,
)
from dse.targets.backend import unsupported
from dse.targets.cycles import CycleTable, features
from tests.test_targets_networks import Builder, chain, digits, every_operator

BOARDS = load_boards()
BACKENDS = load_backends()
LEGAL, LEFT_OUT = targets_for(clocks="all")
FASTEST = [target for target in targets_for()[0] if target.backend.name != "ethos-u"]
TIMED = [target for target in FASTEST if target.backend.cycles(target.board) is not None]
UNTIMED = [target for target in FASTEST if target not in TIMED]


def name(value: object) -> str:
    return value.key if isinstance(value, Target) else str(getattr(value, "name", value))


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=name)
def test_it_is_a_backend_that_says_what_it_is(backend: Backend) -> None:
    assert isinstance(backend, Backend)
    assert backend.rounding in ("double", "single")
    assert backend.version
    assert backend.channel_alignment >= 1
    assert list(backend.weight_containers) == sorted(set(backend.weight_containers))
    low, high = backend.code_interval
    assert 0 < low <= 1 <= high
    assert backend.memory_source


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=name)
def test_every_rule_is_a_sentence(backend: Backend) -> None:
    rules = [row for row in support_table() if row[0] == backend.name]
    assert len(rules) == len(backend.predicates) > 0
    assert all(text.endswith(".") and text[0].isupper() for _, _, text in rules)


def test_only_own_kernels_on_helium_cores_have_no_cycles() -> None:
    """Nobody emulated them: latency and energy are unavailable there, with the reason."""
    for target in UNTIMED:
        assert target.backend.name in ("native", "native-dsp", "native-mve")
        assert target.board.core.family in ("m55", "m85")
        found = cost(digits(), target)
        assert found.value("latency") is found.value("energy") is None
        assert "no cycle table" in found.metrics["latency"].source
        assert found.value("ram")


@pytest.mark.parametrize("target", TIMED, ids=name)
def test_it_runs_every_operator_and_counts_each(target: Target) -> None:
    graph = every_operator()
    found = cost(graph, target)
    assert target.unsupported(graph) == ()
    assert {op.name for op in found.operators} == {op.name for op in graph.ops}
    for op in found.operators:
        assert op.cycles is not None
        assert (op.cycles > 0) == (op.kind != "reshape"), op
    assert sum(op.share or 0 for op in found.operators) == pytest.approx(1)


@pytest.mark.parametrize(
    "target", [t for t in TIMED if isinstance(t.backend.cycles(t.board), CycleTable)], ids=name
)
def test_every_counted_feature_has_a_coefficient(target: Target) -> None:
    """A feature that the table does not know would cost nothing without anyone noticing."""
    table = target.backend.cycles(target.board)
    assert isinstance(table, CycleTable)
    free = {"fetch", "conv.output_tap", "conv.column", "conv.tap", "pool"}
    for bits, density in product((2, 4, 8), (1.0, 0.1)):
        graph = chain((4, 8, 8), bits, density)
        for op in graph.weighted:
            counted = features(graph, op, target.backend.encoding(op))
            assert set(counted) - free <= set(table.coefficients), (op.name, bits, density)


@pytest.mark.parametrize("target", TIMED, ids=name)
def test_parts_add_up(target: Target) -> None:
    found = cost(chain((8, 16, 16)), target)
    assert sum(found.flash_parts.values()) == found.value("flash")
    assert sum(found.ram_parts.values()) == found.value("ram")
    operators = sum(op.flash_bytes for op in found.operators)
    constants = sum(
        found.flash_parts[part] for part in ("weights", "biases", "requantization", "tables")
    )
    assert operators == constants
    assert max(op.live_bytes for op in found.operators) == found.memory.peak_bytes
    latency = found.value("latency")
    assert latency is not None
    assert sum(op.latency_s or 0 for op in found.operators) == pytest.approx(latency)


@pytest.mark.parametrize(
    ("backend", "board"), list(product(BACKENDS.values(), BOARDS.values())), ids=name
)
def test_legal_or_left_out_with_a_reason(backend: Backend, board: Board) -> None:
    key = f"{board.name}/{backend.name}"
    legal = [target for target in LEGAL if target.key.startswith(f"{key}/")]
    reasons = [left.reason for left in LEFT_OUT if left.key == key]
    assert bool(legal) != bool(reasons)
    if legal:
        assert [target.clock_hz for target in legal] == list(board.clocks_hz)
        assert [parse_target(target.key) for target in legal] == legal


def test_only_cores_with_dsp_run_the_dsp_kernels() -> None:
    without = {left.key for left in LEFT_OUT if left.key.endswith("/native-dsp")}
    assert without >= {f"{b.name}/native-dsp" for b in BOARDS.values() if not b.core.dsp}
    assert "rpi_pico/native-dsp" in without
    with pytest.raises(TargetError, match="needs the DSP extension, which the cortex-m0plus"):
        parse_target("rpi_pico/native-dsp")
    left = unsupported(BACKENDS["native-dsp"], digits(), BOARDS["rpi_pico"])
    assert "The core has the DSP extension" in left[0]


@pytest.mark.parametrize("board", BOARDS.values(), ids=name)
def test_floats_run_on_native_alone(board: Board) -> None:
    graph = chain((4, 8, 8), dtype="float32")
    if not BACKENDS["native"].illegal(board):
        assert cost(graph, parse_target(f"{board.name}/native")).value("ram")
    for backend in ("cmsis-nn", "tflm", "tflm-reference"):
        with pytest.raises(TargetError, match=r"'conv0' \(conv2d\): Activations are int8\."):
            cost(graph, parse_target(f"{board.name}/{backend}"))


@pytest.mark.parametrize("board", BOARDS.values(), ids=name)
def test_x_cube_ai_is_for_stm32_only(board: Board) -> None:
    for version in ("7.3", "9", "10"):
        reason = BACKENDS[f"x-cube-ai-{version}"].illegal(board)
        stm32 = "STM32" in board.title
        assert (reason == "") == stm32, board.title
        assert stm32 or f"board '{board.name}' has vendor 'unknown'; use 'tflm'" in reason


def test_soft_floats_take_much_longer() -> None:
    graphs = (chain((8, 8, 8)), chain((8, 8, 8), dtype="float32"))
    pico, nucleo = parse_target("rpi_pico/native"), parse_target("nucleo_f446re/native")
    slow = [cost(graph, pico).operators[0].cycles or 0 for graph in graphs]
    hard = [cost(graph, nucleo).operators[0].cycles or 0 for graph in graphs]
    assert slow[1] > 8 * slow[0]
    assert hard[1] < 5 * hard[0]


def test_grouped_convolutions_are_refused_with_the_rule() -> None:
    weight = Weight((8, 3, 3, 4), 8)
    conv = Conv2D("grouped", ("input",), "out", weight, None, (1, 1), (1, 1, 1, 1), (1, 1), 2)
    tensors = {n: Tensor(n, (8, 8, 8), "int8") for n in ("input", "out")}
    graph = Graph("grouped", tensors, (conv,), "input", "out")
    for target in FASTEST:
        with pytest.raises(TargetError, match=r"'grouped' .*plain \(one group\) or depthwise"):
            cost(graph, target)


def test_int16_is_refused_with_the_rule() -> None:
    net = Builder((4, 4, 4), "int16")
    graph = net.graph(net.conv("input", 4))
    for target in FASTEST:
        if target.backend.name in ("native", "native-dsp", "native-mve"):
            continue
        with pytest.raises(TargetError, match="Activations are int8"):
            cost(graph, target)


def test_cmsis_nn_scratch_is_what_its_functions_return() -> None:
    """The library's own buffer functions (backends notes, 4.1), for cores with DSP and without."""
    net = Builder((16, 16, 32))
    conv = net.conv("input", 32)
    graph = net.graph(net.pool(net.conv(conv, 0, depthwise=True), "average"))
    dsp = BACKENDS["cmsis-nn"].memory_plan(graph, BOARDS["nucleo_f446re"])
    scalar = BACKENDS["cmsis-nn"].memory_plan(graph, BOARDS["rpi_pico"])
    assert [step.scratch_bytes for step in dsp.steps] == [1152, 0, 128]
    assert [step.scratch_bytes for step in scalar.steps] == [1152, 0, 0]


def test_cmsis_nn_stores_few_bits_only_where_s4_kernels_take_channels() -> None:
    backend = BACKENDS["cmsis-nn"]
    widths = {op.name: backend.encoding(op).container_bits for op in digits((4,) * 5).weighted}
    assert widths["conv0"] == widths["conv1"] == widths["conv2"] == 4
    assert widths[digits().weighted[-1].name] == 8
    assert backend.encoding(chain((8, 8, 8), density=0.1).weighted[0]).layout == "dense"


def test_in_place_saves_ram_only_where_the_backend_allows_it() -> None:
    net = Builder((8, 8, 8))
    graph = net.graph(net.lookup(net.conv("input", 8, kernel=1)))
    board = BOARDS["nucleo_f446re"]
    assert BACKENDS["native"].memory_plan(graph, board).peak_bytes == 2 * 512
    pooled = Builder((8, 8, 8))
    graph = pooled.graph(pooled.pool(pooled.conv("input", 8, kernel=1)))
    assert isinstance(graph.ops[-1], Pool2D)
    assert BACKENDS["native"].memory_plan(graph, board).peak_bytes == 2 * 512


def test_bad_targets_are_one_sentence_each() -> None:
    for text, message in (
        ("nucleo_f446re", "is not board/backend or board/backend/clock"),
        ("nucleo_f446/native", "did you mean 'nucleo_f446re'"),
        ("nucleo_f446re/cmsisnn", "unknown backend 'cmsisnn'; did you mean 'cmsis-nn'"),
        ("nucleo_f446re/native/181MHz", "has no clock '181MHz'; did you mean '180MHz'"),
    ):
        with pytest.raises(TargetError, match=message):
            parse_target(text)
    with pytest.raises(TargetError, match="has no clock of 7MHz; allowed: 180MHz, 84MHz, 16MHz"):
        Target(BOARDS["nucleo_f446re"], find_backend("native"), 7_000_000)
    with pytest.raises(TargetError, match="clocks are 'fast'; allowed: max, all"):
        targets_for(clocks="fast")
