"""Ethos-U through the real Vela compiler: its figures, what the search sees, and what fails."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dse.errors import GraphError, TargetError
from dse.firmware.tflite import to_tflite
from dse.graph.compact import compact
from dse.graph.execute import observe
from dse.graph.ir import Graph, Lookup, Tensor, without_values
from dse.graph.quantize import quantize
from dse.graph.tflite_reader import read_tflite
from dse.graph.trace import trace
from dse.targets import cost, load_boards, parse_target, read_board, targets_for, vela
from dse.targets.ethos_u import (
    ETHOS_U,
    RUNTIME_FLASH_BYTES,
    RUNTIME_RAM_BYTES,
    STACK_BYTES,
    stand_in,
)
from dse.targets.npu import ACCELERATORS, SYSTEM_CONFIGS, Npu, legal_npus
from dse.targets.vela import VelaReport, compile_report
from dse.workloads.networks import DigitsNet, LeNet5
from tests.calibration_models import FILES, model_file
from tests.networks import Recipe, network, recipes
from tests.test_targets_networks import chain, every_operator

pytest.importorskip("ethosu.vela", reason="needs the extra vela")
pytest.importorskip("tflite", reason="needs the extra tflite")

U55 = Npu("ethos-u55-128", "Ethos_U55_Deep_Embedded", "Shared_Sram")
BOARDS = [board for board in load_boards().values() if board.npu is not None]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSE_CACHE", str(tmp_path_factory.getbasetemp() / "vela-cache"))


def quantized(model: torch.nn.Module, shape: tuple[int, ...], bits: int = 8) -> Graph:
    torch.manual_seed(0)
    inputs = torch.rand(16, *shape)
    graph = trace(model.eval(), shape, "net")
    return quantize(graph, observe(graph, inputs), {op.name: bits for op in graph.weighted})


# --- the compiler -------------------------------------------------------------------------------


def test_lenet_compiles_whole_on_the_npu() -> None:
    graph = quantized(LeNet5(), (1, 28, 28))
    found = ETHOS_U.report(graph, U55, exact=True)
    weights = sum(op.weight.size for op in graph.weighted)
    assert found.cpu_operators == ()
    assert found.clock_hz == 200_000_000
    assert 0.5 * weights < found.flash_bytes < 1.5 * weights
    assert found.file_bytes > found.flash_bytes
    assert found.sram_bytes >= 28 * 28
    assert found.cycles_total >= found.cycles_npu > graph.macs / 128
    assert found.latency_s == found.cycles_total / 200e6


def test_fewer_bits_are_smaller_and_faster() -> None:
    """The encoder gains by a small alphabet in int8 containers (backends notes, 4.2)."""
    torch.manual_seed(3)
    model = LeNet5()
    eight, four, two = (
        ETHOS_U.report(quantized(model, (1, 28, 28), bits), U55, exact=True) for bits in (8, 4, 2)
    )
    assert eight.flash_bytes > 1.4 * four.flash_bytes > 1.4 * two.flash_bytes
    assert eight.cycles_total > four.cycles_total > two.cycles_total


@pytest.mark.parametrize("name", sorted(FILES))
def test_calibration_models_compile(name: str) -> None:
    """The reader and the writer in between lose nothing: Vela says the same of the file itself."""
    content = model_file(name)
    graph = read_tflite(content, name)
    own, ours = compile_report(content, U55), ETHOS_U.report(graph, U55, exact=True)
    assert own.cpu_operators == ours.cpu_operators == ()
    assert (own.cycles_total, own.sram_bytes, own.macs) == (
        ours.cycles_total,
        ours.sram_bytes,
        ours.macs,
    )
    assert ours.flash_bytes == pytest.approx(own.flash_bytes, rel=0.01)


def test_compacting_shrinks_what_vela_makes() -> None:
    graph = read_tflite(model_file("vww"), "vww")
    whole, small = (ETHOS_U.report(g, U55, exact=True) for g in (graph, compact(graph)))
    assert small.flash_bytes < 0.7 * whole.flash_bytes
    assert small.cycles_total < 0.8 * whole.cycles_total


@pytest.mark.slow
@pytest.mark.parametrize("npu", legal_npus(), ids=lambda npu: npu.text)
def test_every_legal_combination_compiles(npu: Npu) -> None:
    found = ETHOS_U.report(quantized(DigitsNet(), (1, 8, 8)), npu, exact=True)
    assert found.clock_hz == npu.clock_hz
    assert found.cycles_total > 0


@pytest.mark.parametrize("accelerator", ACCELERATORS)
def test_every_accelerator_compiles(accelerator: str) -> None:
    npu = next(npu for npu in legal_npus() if npu.accelerator == accelerator)
    assert ETHOS_U.report(quantized(DigitsNet(), (1, 8, 8)), npu, exact=True).cycles_total > 0


# --- what the search sees -----------------------------------------------------------------------


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_costs_are_velas_with_the_runtime_on_top(board: Any) -> None:
    target = parse_target(f"{board.name}/ethos-u")
    graph = quantized(DigitsNet(), (1, 8, 8))
    report, found = ETHOS_U.report(graph, board.npu), cost(graph, target)
    assert found.value("flash") == report.file_bytes + RUNTIME_FLASH_BYTES
    assert found.value("ram") == report.sram_bytes + RUNTIME_RAM_BYTES + STACK_BYTES
    assert found.value("latency") == report.latency_s
    assert sum(found.flash_parts.values()) == found.value("flash")
    assert sum(found.ram_parts.values()) == found.value("ram")
    for name in ("flash", "ram", "latency"):
        assert found.metrics[name].provenance == "estimated"
        assert "Vela" in found.metrics[name].source
    assert found.value("energy") is None
    assert "npu_power" in found.metrics["energy"].source


def test_power_of_the_npu_gives_energy(tmp_path: Path) -> None:
    packaged = Path(__file__).parents[1] / "dse" / "targets" / "boards" / "alif_e7_he.toml"
    line = 'npu_power = { value = 40, unit = "mW", status = "read", source = "test" }\n'
    (tmp_path / "mine.toml").write_text(packaged.read_text() + line)
    board = read_board(tmp_path / "mine.toml")
    (target,), _ = targets_for([board], [ETHOS_U])
    found = cost(chain((4, 8, 8)), target)
    assert found.value("energy") == pytest.approx(0.04 * (found.value("latency") or 0))


@settings(max_examples=30)
@given(recipes(), st.integers(2, 8))
def test_shapes_alone_decide(recipe: Recipe, bits: int) -> None:
    """What a search screens before training is what the trained network costs."""
    model, inputs = network(recipe)
    graph = trace(model.eval(), recipe.shape, "net")
    exact = quantize(graph, observe(graph, inputs), {op.name: bits for op in graph.weighted})
    found, screened = stand_in(exact), stand_in(without_values(exact))
    try:
        assert to_tflite(found, "n") == to_tflite(screened, "n")
    except GraphError:  # no form in TensorFlow Lite
        assume(False)
    assert found.key == exact.key


@pytest.mark.parametrize("bits", range(2, 9))
def test_stand_ins_are_no_easier_than_real_weights(bits: int) -> None:
    """Uniform values are the hardest to encode; trained ones never came out larger."""
    graph = quantized(LeNet5(), (1, 28, 28), bits)
    real, random = (ETHOS_U.report(graph, U55, exact) for exact in (True, False))
    assert real.flash_bytes <= 1.01 * random.flash_bytes
    filled = stand_in(graph)
    for op in filled.weighted:
        values = np.asarray(op.weight.values)
        assert abs(values).max() > 0.9 * (2 ** (bits - 1) - 1)
        assert op.weight.bits == bits


def test_int16_activations_take_more_sram() -> None:
    target = parse_target("alif_e7_he/ethos-u")
    one, other = (cost(chain((8, 16, 16), dtype=kind), target) for kind in ("int8", "int16"))
    assert (other.value("ram") or 0) > 1.2 * (one.value("ram") or 0)
    assert (other.value("latency") or 0) >= (one.value("latency") or 0)


def test_removed_weights_are_zero_in_the_stand_in() -> None:
    graph = chain((8, 16, 16), 4, 0.25)
    for op, old in zip(stand_in(graph).weighted, graph.weighted, strict=True):
        assert np.count_nonzero(np.asarray(op.weight.values)) == old.weight.kept
    dense = cost(chain((8, 16, 16), 4), parse_target("alif_e7_he/ethos-u"))
    sparse = cost(graph, parse_target("alif_e7_he/ethos-u"))
    assert (sparse.value("flash") or 0) < (dense.value("flash") or 0)


def test_every_operator_of_the_graph_compiles() -> None:
    found = cost(every_operator(), parse_target("corstone300_u55_128/ethos-u"))
    assert found.value("ram")


# --- limits and failures ------------------------------------------------------------------------


def one(function: Any, dtype: Any = "int8") -> Graph:
    tensors = {name: Tensor(name, (4, 4, 2), dtype) for name in "xy"}
    return Graph("one", tensors, (Lookup("l", ("x",), "y", function),), "x", "y")


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (one("hardsigmoid"), "'l' (lookup): The function has an operator in TensorFlow Lite"),
        (one("relu", "float32"), "Activations are int8"),
        (chain((4, 8, 8), dtype="float32"), "Activations are int8"),
    ],
)
def test_what_has_no_form_is_refused_with_the_rule(graph: Graph, words: str) -> None:
    with pytest.raises(TargetError) as error:
        cost(graph, parse_target("alif_e7_he/ethos-u"))
    assert words in str(error.value)


def test_boards_without_an_npu_are_left_out() -> None:
    with pytest.raises(TargetError, match="needs an Ethos-U, which board 'nucleo_f446re' lacks"):
        parse_target("nucleo_f446re/ethos-u")


def test_without_vela_the_rest_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ethosu", None)
    with pytest.raises(TargetError, match=r"pip install 'dse\[vela\]'"):
        parse_target("alif_e7_he/ethos-u")
    legal, left_out = targets_for()
    reasons = {left.key: left.reason for left in left_out}
    assert "pip install" in reasons["alif_e7_he/ethos-u"]
    assert all(target.backend.name != "ethos-u" for target in legal)
    assert {t.board.name for t in legal} == set(load_boards())
    with pytest.raises(TargetError, match=r"pip install 'dse\[vela\]'"):
        compile_report.__wrapped__(b"", U55)


def test_operators_of_the_cpu_leave_latency_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    report = VelaReport(1000, 2000, 3000, 10, 20, 200_000_000, 5, ("Softmax = out",))
    monkeypatch.setattr(vela, "compile_report", lambda content, npu: report)
    target = parse_target("alif_e7_he/ethos-u")
    found = ETHOS_U.compiled_cost(chain((4, 8, 8)), target)
    assert found.value("latency") is found.value("energy") is None
    assert "1 operators fall back to the CPU" in found.metrics["latency"].source
    assert "Softmax = out" in found.metrics["latency"].source
    assert found.value("flash") == 3000 + RUNTIME_FLASH_BYTES


def test_vela_names_operators_of_the_cpu() -> None:
    """A float network is the CPU's altogether."""
    graph = trace(DigitsNet().eval(), (1, 8, 8), "net")
    assert len(compile_report(to_tflite(graph, "net"), U55).cpu_operators) > 1


def test_a_file_that_vela_cannot_read_is_one_sentence() -> None:
    with pytest.raises(TargetError) as error:
        compile_report(b"\x1c\0\0\0TFL3" + bytes(64), U55)
    assert "Vela" in str(error.value)
    assert "\n" not in str(error.value)
    assert compile_report(to_tflite(quantized(DigitsNet(), (1, 8, 8)), "n"), U55).cycles_total


def test_a_crash_is_one_sentence_and_the_next_network_compiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = vela._Worker()
    monkeypatch.setattr(vela, "_WORKER", worker)
    content = to_tflite(quantized(DigitsNet(), (1, 8, 8)), "n")
    before = compile_report.__wrapped__(content + b"1", U55)
    assert worker._process is not None
    worker._process.kill()
    worker._process.wait()
    after = compile_report.__wrapped__(content + b"2", U55)
    assert before == after
    ask = worker._ask
    monkeypatch.setattr(worker, "_ask", lambda p, a: (p.kill(), ask(p, a))[1])
    with pytest.raises(TargetError, match="crashed"):
        compile_report.__wrapped__(content + b"3", U55)


def test_reports_are_kept_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSE_CACHE", str(tmp_path))
    content = to_tflite(quantized(DigitsNet(), (1, 8, 8)), "kept")
    first = compile_report.__wrapped__(content, U55)
    (file,) = (tmp_path / "vela").glob("*.json")
    stored = json.loads(file.read_text())
    assert stored["cycles_total"] == first.cycles_total
    file.write_text(json.dumps({**stored, "cycles_total": 77}))
    assert compile_report.__wrapped__(content, U55).cycles_total == 77
    other = replace(U55, accelerator="ethos-u55-256")
    assert compile_report.__wrapped__(content, other).cycles_total != 77
    file.write_text("{")
    assert compile_report.__wrapped__(content, U55) == first


# --- combinations -------------------------------------------------------------------------------


def test_the_clocks_are_those_of_velas_own_file() -> None:
    config = pytest.importorskip("configparser").ConfigParser()
    folder = Path(pytest.importorskip("ethosu").__path__[0]) / "config_files" / "Arm"
    config.read(folder / "vela.ini")
    sections = {name.partition(".")[2] for name in config if name.startswith("System_Config.")}
    assert sections == set(SYSTEM_CONFIGS)
    for name, system in SYSTEM_CONFIGS.items():
        section = config[f"System_Config.{name}"]
        assert float(section["core_clock"]) == system.clock_hz
        assert (section["axi1_port"] == "Dram") is system.dram


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("ethos-u55-129", "Ethos_U55_Deep_Embedded", "Shared_Sram"), "did you mean"),
        (("ethos-u55-128", "Ethos_U65_Mid_End", "Shared_Sram"), "no system of the ethos-u55-128"),
        (("ethos-u55-128", "Ethos_U55_Deep_Embedded", "Dedicated_Sram"), "has no DRAM"),
        (("ethos-u65-256", "Ethos_U65_Embedded", "Dedicated_Sram_256KB"), "has no DRAM"),
        (("ethos-u65-256", "Ethos_U65_Mid_End", "Sram"), "'npu_memory' is 'Sram'"),
    ],
)
def test_illegal_combinations_are_refused(words: tuple[str, str, str], said: str) -> None:
    with pytest.raises(TargetError) as error:
        Npu(*words)
    assert said in str(error.value)


def test_a_board_file_with_half_an_npu_is_refused(tmp_path: Path) -> None:
    packaged = Path(__file__).parents[1] / "dse" / "targets" / "boards" / "alif_e7_he.toml"
    lines = packaged.read_text().splitlines()
    (tmp_path / "half.toml").write_text(
        "\n".join(line for line in lines if not line.startswith("npu_memory"))
    )
    with pytest.raises(TargetError, match=r"half\.toml.*'npu_memory' is missing"):
        read_board(tmp_path / "half.toml")
    wrong = packaged.read_text().replace("Shared_Sram", "Dedicated_Sram")
    (tmp_path / "wrong.toml").write_text(wrong)
    with pytest.raises(TargetError, match=r"wrong\.toml.*has no DRAM"):
        read_board(tmp_path / "wrong.toml")


def test_nothing_here_needs_torch() -> None:
    import subprocess

    code = "import sys, dse.targets.ethos_u; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_padding_that_tensorflow_lite_lacks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(graph: Graph, name: str) -> bytes:
        raise GraphError("average pooling 'p' pads oddly")

    monkeypatch.setattr("dse.targets.ethos_u.to_tflite", refuse)
    with pytest.raises(TargetError, match="'ethos-u' cannot compile this network: average"):
        ETHOS_U.report(chain((4, 8, 9)), U55)
