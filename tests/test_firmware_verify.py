"""A design built and emulated beside its model: what verify finds, and the commands around it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dse.errors import TargetError
from dse.firmware.build import build, compilers
from dse.firmware.emit import Sources, emit
from dse.firmware.verify import Comparison, Verification, verify
from dse.graph import execute
from dse.graph.ir import DType, Graph, WeightedOp
from dse.graph.numerics import ROUNDINGS, Rounding
from dse.graph.quantize import quantize
from dse.graph.trace import trace
from dse.storage import Storage
from dse.targets import Target, parse_target
from dse.trial import State
from tests.networks import Recipe, network

MISSING = [
    name for name in ("elftools", "unicorn", "capstone") if importlib.util.find_spec(name) is None
]
needs_firmware = pytest.mark.skipif(
    bool(MISSING) or not compilers(),
    reason=f"needs a cross compiler and pip install 'dse[firmware]' (missing: {MISSING})",
)
RECIPE = Recipe(5, 2, (6, 6), (("conv", 6, "relu"), ("residual", 4, "none")), "flatten", False)
M4 = "nucleo_f446re/native/180MHz"


def sample(
    bits: int = 8, seed: int = RECIPE.seed, activations: DType = "int8"
) -> tuple[Graph, torch.Tensor]:
    """A small network (32: float) and 30 inputs for it."""
    recipe = replace(RECIPE, seed=seed)
    model, _ = network(recipe)
    inputs = torch.randn(30, *recipe.shape, generator=torch.Generator().manual_seed(1))
    graph = trace(model, recipe.shape, "small")
    if bits != 32:
        widths = {op.name: bits for op in graph.weighted}
        graph = quantize(graph, execute.observe(graph, inputs), widths, None, activations)
    return graph, inputs


def figures(found: Verification) -> dict[str, float]:
    """What was emulated, by name."""
    return {one.name: one.emulated for one in found.figures if one.emulated is not None}


def with_a_changed_weight(graph: Graph) -> Graph:
    """The same network, but for one large step in one weight of its last layer."""
    last: WeightedOp = graph.weighted[-1]
    assert last.weight.values is not None
    values = np.array(last.weight.values)
    values.flat[0] += 60 if values.flat[0] < 0 else -60
    changed = replace(last, weight=replace(last.weight, values=values))
    return replace(graph, ops=tuple(changed if op is last else op for op in graph.ops))


@needs_firmware
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(
    ("target", "activations"),
    [
        (M4, "int8"),
        ("nucleo_f446re/native-dsp", "int8"),
        ("rpi_pico/native", "int8"),
        ("nucleo_f446re/native-dsp", "int16"),
    ],
)
def test_a_design_is_exact_and_has_every_figure(
    target: str, activations: DType, rounding: Rounding
) -> None:
    graph, inputs = sample(4, activations=activations)
    where = parse_target(target)
    found = verify(graph, where, rounding, inputs)
    assert found.exact
    assert (found.matching, found.samples) == (30, 30)
    assert found.target == where.key
    assert [one.name for one in found.figures] == ["flash", "ram", "latency", "energy"]
    known = {one.name for one in found.figures if one.modelled is not None}
    assert {"flash", "ram", "latency"} <= known & set(figures(found))
    assert found.instructions > graph.macs
    assert found.stack_bytes is not None
    assert found.stack_bytes > 0


@needs_firmware
def test_every_operator_has_its_cycles_and_they_add_up() -> None:
    graph, inputs = sample()
    where = parse_target(M4)
    found = verify(graph, where, "double", inputs)
    *operators, rest = found.operators
    names = [op.name for op in graph.ops]
    assert rest.name == "calls between operators"
    assert [one.name for one in operators] == [n for n in names if n in {o.name for o in operators}]
    assert {op.name for op in graph.weighted} <= {one.name for one in operators}
    total = sum(one.emulated for one in found.operators if one.emulated is not None)
    assert figures(found)["latency"] * where.clock_hz == pytest.approx(total)


@needs_firmware
def test_flash_is_that_of_the_image_and_ram_holds_arena_and_stack(tmp_path: Path) -> None:
    graph, inputs = sample(4)
    where = parse_target(M4)
    found = verify(graph, where, "double", inputs[:1])
    sources = emit(graph, "network", "native", "double")
    image = build(sources, where.board.core.name, found.compiler.split()[0], folder=tmp_path)
    assert figures(found)["flash"] == image.flash_bytes
    assert found.stack_bytes is not None
    assert figures(found)["ram"] == image.ram_bytes + found.stack_bytes
    assert figures(found)["ram"] > sources.arena_bytes


@needs_firmware
def test_float_networks_are_compared_with_a_tolerance() -> None:
    graph, inputs = sample(32)
    assert verify(graph, parse_target(M4), "double", inputs).exact


@needs_firmware
@pytest.mark.parametrize("bits", [4, 8])
def test_one_changed_weight_in_the_image_is_noticed(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, inputs = sample(8)
    changed = with_a_changed_weight(graph) if bits == 8 else sample(bits)[0]

    def emit_another(_: Graph, name: str, backend: str, rounding: Rounding) -> Sources:
        return emit(changed, name, backend, rounding)

    monkeypatch.setattr("dse.firmware.verify.emit", emit_another)
    found = verify(graph, parse_target(M4), "double", inputs)
    assert found.samples == 30
    assert found.matching < 30
    assert not found.exact


@needs_firmware
def test_another_contract_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The contracts differ in a few outputs in a hundred; more inputs meet one."""
    graph, _ = sample()
    inputs = torch.randn(200, *RECIPE.shape, generator=torch.Generator().manual_seed(2))

    def emit_single(graph: Graph, name: str, backend: str, _: Rounding) -> Sources:
        return emit(graph, name, backend, "single")

    monkeypatch.setattr("dse.firmware.verify.emit", emit_single)
    assert 0 < verify(graph, parse_target(M4), "double", inputs).matching < 200


@needs_firmware
def test_wait_states_make_it_slower_and_change_nothing_else() -> None:
    graph, inputs = sample()
    board = parse_target(M4).board
    found = []
    for wait_states in (0, 1, 5):
        where = replace(parse_target(M4), board=replace(board, wait_states=wait_states))
        found.append(verify(graph, where, "double", inputs[:2]))
    latencies = [figures(one)["latency"] for one in found]
    assert latencies[0] < latencies[1] < latencies[2]
    assert len({one.instructions for one in found}) == 1
    assert len({figures(one)["flash"] for one in found}) == 1


def test_a_difference_is_relative_to_what_was_emulated() -> None:
    assert Comparison("flash", 150, 100).difference == pytest.approx(0.5)
    assert Comparison("flash", 50, 100).difference == pytest.approx(-0.5)
    for pair in ((None, 100), (100, None), (100, 0)):
        assert Comparison("flash", *pair).difference is None


# --- bad input ----------------------------------------------------------------------------------


def refused(where: Target, **options: Any) -> str:
    """The one sentence with which verify refuses the sample."""
    graph, inputs = sample()
    with pytest.raises(TargetError) as caught:
        verify(graph, where, "double", inputs, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_backend_of_another_project_has_no_c() -> None:
    text = refused(parse_target("nucleo_f446re/cmsis-nn"))
    assert text.startswith("no C can be written for 'cmsis-nn'; ")
    assert "native" in text


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("compiler", "clang", "unknown compiler 'clang'; "),
        ("optimize", "-O9", "unknown optimization '-O9'; "),
    ],
)
@needs_firmware
def test_an_unknown_compiler_or_optimization_is_named(option: str, value: str, said: str) -> None:
    assert refused(parse_target(M4), **{option: value}).startswith(said)


def test_without_a_compiler_the_install_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("build", "verify"):
        monkeypatch.setattr(f"dse.firmware.{module}.compilers", dict)
    text = refused(parse_target(M4))
    assert "no cross compiler" in text
    assert "pip install 'dse[firmware]'" in text


@needs_firmware
@pytest.mark.parametrize(
    ("kind", "small"),
    [
        ("flash", {"flash_bytes": 2048, "reserved_flash_bytes": 0}),
        ("RAM", {"ram_bytes": 256, "reserved_ram_bytes": 0}),
    ],
)
def test_an_image_larger_than_the_board_is_refused(kind: str, small: Mapping[str, int]) -> None:
    where = parse_target(M4)
    where = replace(where, board=replace(where.board, **small))  # type: ignore[arg-type]
    text = refused(where)
    limit = next(iter(small.values()))
    assert f"B of {kind}" in text
    assert f"more than the {limit} B there are" in text


# --- commands -----------------------------------------------------------------------------------

STUDY = """
name: tiny
workload: digits
training: {epochs: 1, fine_tune_epochs: 1, threads: 1}
space:
  pruning: {ratio: [0, 0.5, 0.75]}
  quantization: {weight_bits: [4, 8]}
  boards: [nucleo_f446re]
  backends: [native]
objectives: [accuracy, flash]
constraints:
  - ram <= 2.5 KiB
sampler: random
n_trials: 8
"""


def dse(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dse.cli", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "DSE_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"},
        timeout=300,
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a tiny study has run."""
    folder = tmp_path_factory.mktemp("verify")
    (folder / "tiny.yaml").write_text(STUDY)
    done = dse(folder, "run", "tiny.yaml", "-q")
    assert done.returncode == 0, done.stderr
    return folder


def numbers(folder: Path) -> tuple[int, int]:
    """(A trial with a network, one that was rejected by its cost and has none)."""
    with Storage.open_readonly(f"sqlite:///{folder}/dse.db") as storage:
        trials = storage.trials("tiny")
    complete = [trial for trial in trials if trial.state is State.COMPLETE]
    known = {trial.network_key for trial in complete}
    rejected = [
        trial
        for trial in trials
        if trial.state is State.INFEASIBLE
        and trial.value("accuracy") is None
        and trial.network_key not in known
    ]
    assert complete
    assert rejected, "the RAM limit must reject some of these candidates"
    return complete[-1].number, rejected[0].number


@pytest.mark.slow
@needs_firmware
def test_verify_prints_an_exact_design_beside_its_model(study: Path) -> None:
    number, _ = numbers(study)
    done = dse(study, "verify", str(number), "--samples", "5")
    assert done.returncode == 0, done.stderr
    assert "5 of 5 outputs match, every byte is exact" in done.stdout
    for word in ("flash", "ram", "latency", "energy", "cycles by operator", "conv1"):
        assert word in done.stdout


@pytest.mark.slow
@needs_firmware
def test_a_verified_trial_says_so_everywhere(study: Path) -> None:
    number, _ = numbers(study)
    assert dse(study, "verify", str(number), "--samples", "2").returncode == 0
    shown = json.loads(dse(study, "show", str(number), "--json").stdout)
    assert shown["provenance"] == "emulated"
    emulated = {row["metric"]: row["value"] for row in shown["metrics"]}
    front = json.loads(dse(study, "front", "--format", "json").stdout)
    for row in front:
        assert row["provenance"] == ("emulated" if row["trial"] == number else "modelled")
    dse(study, "report", "-o", "report")
    files = {path.name: path.read_text() for path in (study / "report").iterdir()}
    design = next(d for d in json.loads(files["front.json"])["designs"] if d["trial"] == number)
    assert design["emulated"]["metrics"]["flash"] == emulated["emulated flash"]
    assert "2 of 2 outputs exact" in files["report.html"]


@pytest.mark.slow
@needs_firmware
def test_another_target_is_not_stored(study: Path) -> None:
    with Storage.open_readonly(f"sqlite:///{study}/dse.db") as storage:
        before = storage.trials("tiny")[0].proof
    done = dse(study, "verify", "0", "--samples", "2", "--target", "disco_f746ng/native")
    assert done.returncode == 0, done.stderr
    with Storage.open_readonly(f"sqlite:///{study}/dse.db") as storage:
        assert storage.trials("tiny")[0].proof == before


@pytest.mark.slow
@needs_firmware
@pytest.mark.parametrize("which", ["front", "always"])
def test_designs_are_verified_while_the_study_runs(which: str, tmp_path: Path) -> None:
    text = STUDY.replace("[native]", "[native, cmsis-nn]") + f"verify: {which}\n"
    (tmp_path / "tiny.yaml").write_text(text)
    done = dse(tmp_path, "run", "tiny.yaml", "-q", "--n-trials", "5")
    assert done.returncode == 0, done.stderr
    # A crash before the verification leaves a front design without one; resume makes up for it.
    with Storage(f"sqlite:///{tmp_path}/dse.db") as storage, storage._write() as connection:
        connection.exec_driver_sql("update dse_evaluations set proof_json = null where number < 3")
    done = dse(tmp_path, "resume", "tiny.yaml", "-q", "--n-trials", "8")
    assert done.returncode == 0, done.stderr
    with Storage.open_readonly(f"sqlite:///{tmp_path}/dse.db") as storage:
        trials, front = storage.trials("tiny"), set(storage.fronts("tiny")[-1].members)
    due = {
        trial.number
        for trial in trials
        if trial.eligible
        and trial.candidate["target"]["backend"] == "native"
        and (which == "always" or trial.number in front)
    }
    proven = {trial.number for trial in trials if trial.proof is not None}
    assert due, "some design of this study must be on the front"
    assert due <= proven
    assert all(trial.proof.exact for trial in trials if trial.proof is not None)
    assert not any(
        trial.proof for trial in trials if trial.candidate["target"]["backend"] == "cmsis-nn"
    )


@pytest.mark.slow
def test_a_study_that_cannot_verify_is_refused_before_it_trains(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(STUDY.replace("native", "cmsis-nn") + "verify: front\n")
    done = dse(tmp_path, "run", "tiny.yaml", "-q")
    assert done.returncode == 2
    assert "no backend of the study emits C" in done.stderr


@pytest.mark.slow
@needs_firmware
def test_verify_as_json_and_on_another_target(study: Path) -> None:
    number, _ = numbers(study)
    options = ("--json", "--samples", "3", "--target", "rpi_pico/native", "--optimize=-Os")
    done = dse(study, "verify", str(number), *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["schema"] == "dse.verify/1"
    assert found["target"].startswith("rpi_pico/native/")
    assert (found["matching"], found["samples"]) == (3, 3)
    assert found["flags"].endswith("-Os")
    assert [row["name"] for row in found["figures"]] == ["flash", "ram", "latency", "energy"]
    assert all(row["emulated"] > 0 for row in found["figures"] if row["emulated"] is not None)


@pytest.mark.slow
def test_export_as_c(study: Path, tmp_path: Path) -> None:
    number, _ = numbers(study)
    done = dse(study, "export", str(number), "--format", "c", "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    header, source = ((tmp_path / "out" / f"digits.{end}").read_text() for end in "hc")
    assert "void digits_run(void *arena);" in header
    assert '#include "digits.h"' in source


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("tflite") is None, reason="needs pip install 'dse[tflite]'"
)
def test_export_as_tflite(study: Path, tmp_path: Path) -> None:
    number, _ = numbers(study)
    done = dse(study, "export", str(number), "--format", "tflite", "-o", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "digits.tflite").read_bytes()[4:8] == b"TFL3"


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("make") and shutil.which("cc")), reason="needs make and a C compiler (cc)"
)
def test_the_exported_bundle_passes_its_own_test(study: Path, tmp_path: Path) -> None:
    number, _ = numbers(study)
    done = dse(study, "export", str(number), "-o", str(tmp_path / "bundle"))
    assert done.returncode == 0, done.stderr
    command = ["make", "-C", str(tmp_path / "bundle"), "test"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert "pass: 20 of 20 vectors" in made.stdout
    assert json.loads((tmp_path / "bundle" / "dse.json").read_text())["trial"] == number


@pytest.mark.slow
@pytest.mark.parametrize("command", ["verify", "export"])
def test_a_trial_that_is_not_there_or_has_no_network_is_one_sentence(
    command: str, study: Path
) -> None:
    _, rejected = numbers(study)
    for number, said in (("99", "has no trial 99"), (str(rejected), "has no network")):
        done = dse(study, command, number)
        assert done.returncode == 2
        assert said in done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_verify_refuses_a_backend_without_c_and_an_unknown_compiler(study: Path) -> None:
    number, _ = numbers(study)
    for options, said in (
        (("--target", "nucleo_f446re/cmsis-nn"), "no C can be written for 'cmsis-nn'"),
        (("--compiler", "icc"), "unknown compiler 'icc'"),
        (("--target", "nucleo/native"), "unknown board 'nucleo'"),
    ):
        done = dse(study, "verify", str(number), *options)
        assert done.returncode == 2
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
