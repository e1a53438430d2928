"""The bundle: the same bytes every time, a host test that passes and can fail, a hash that ties."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dse.errors import DseError
from dse.firmware.bundle import BundleFiles, check_bundle, write_bundle
from dse.firmware.emit import emit
from dse.graph.archive import from_bytes, to_bytes
from dse.graph.execute import observe, run
from dse.graph.ir import DType, Graph
from dse.graph.numerics import Rounding
from dse.graph.quantize import quantize
from dse.graph.trace import trace
from dse.trial import Metric, Trial
from dse.workloads.networks import DigitsNet
from tests.networks import Recipe, network
from tests.report_samples import design, sample_record

CHECKS = "-O1 -Wconversion"
needs_make = pytest.mark.skipif(
    not (shutil.which("make") and shutil.which("cc")), reason="needs make and a C compiler (cc)"
)


@dataclass(frozen=True, eq=False)
class Sample:
    """A small network with inputs, labels and the trial it is said to come from."""

    graph: Graph
    inputs: torch.Tensor
    labels: np.ndarray[Any, Any]
    trial: Trial

    @property
    def archive(self) -> bytes:
        return to_bytes(self.graph)

    def write(
        self, folder: Path, rounding: Rounding = "double", labelled: bool = True
    ) -> BundleFiles:
        return write_bundle(
            folder,
            self.trial,
            sample_record(),
            self.archive,
            emit(self.graph, "digits", "native", rounding),
            self.inputs.numpy(),
            self.labels if labelled else None,
            rounding,
        )


def sample(bits: int = 8, seed: int = 0, activations: DType = "int8") -> Sample:
    torch.manual_seed(seed)
    inputs = torch.rand(20, 1, 8, 8)
    graph = trace(DigitsNet().eval(), (1, 8, 8), "digits")
    if bits < 32:
        widths = {op.name: bits for op in graph.weighted}
        graph = quantize(graph, observe(graph, inputs), widths, None, activations)
    trial = design(7, [16, 32, 10], [bits] * 3, "rpi-pico", 0.0)
    trial = replace(trial, test_accuracy=Metric(0.89, 0.88, 0.9, "measured", "a | b"))
    return Sample(graph, inputs, run(graph, inputs).numpy().argmax(axis=1), trial)


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@needs_make
@pytest.mark.parametrize("rounding", ["double", "single"])
@pytest.mark.parametrize("bits", [8, 4, 3, 2, 32])
def test_the_host_test_passes(bits: int, rounding: Rounding, tmp_path: Path) -> None:
    sample(bits).write(tmp_path, rounding)
    done = make(tmp_path, "test", f"CFLAGS={CHECKS}")
    assert done.returncode == 0, done.stderr
    assert "pass: 20 of 20 vectors" in done.stdout
    assert "20 of 20 are classified as labelled" in done.stdout


@needs_make
@pytest.mark.parametrize("rounding", ["double", "single"])
def test_int16_values_are_exact_and_described(rounding: Rounding, tmp_path: Path) -> None:
    one = sample(4, activations="int16")
    files = one.write(tmp_path, rounding)
    done = make(tmp_path, "test", f"CFLAGS={CHECKS}")
    assert "pass: 20 of 20 vectors" in done.stdout, done.stderr
    readme = files.readme.read_text()
    assert "int16_t *input = digits_input(&arena);" in readme
    assert f"q = clip(round(x / {one.graph.tensors['input'].scale!r}) + 0, -32768, 32767)" in readme
    assert "typedef int16_t vector_element;" in files.vectors.read_text()


@needs_make
@pytest.mark.parametrize("bits", [8, 2])
def test_a_changed_weight_byte_makes_the_host_test_fail(bits: int, tmp_path: Path) -> None:
    files = sample(bits).write(tmp_path)
    text = files.source.read_text()
    table = re.search(r"static const u?int8_t op_\d+_conv1_weight\w*\[\d+\] = \{\s*(-?\d+)", text)
    assert table is not None
    start, end = table.span(1)
    files.source.write_text(text[:start] + str(int(table[1]) ^ 128) + text[end:])
    done = make(tmp_path, "test")
    assert done.returncode != 0
    assert "FAIL" in done.stdout
    assert re.search(r"vector \d+: output \d+ is -?\d+, expected -?\d+", done.stdout)
    assert check_bundle(tmp_path, sample(bits).archive) == (
        "digits.c was changed after it was written",
    )


@needs_make
def test_float_outputs_that_are_not_numbers_fail(tmp_path: Path) -> None:
    files = sample(32).write(tmp_path)
    text = files.vectors.read_text()
    files.vectors.write_text(
        re.sub(r"(vector_outputs.*\n    \{\n\s+)[^,]+", r"\1(0.0f / 0.0f)", text)
    )
    assert make(tmp_path, "test").returncode != 0


@needs_make
def test_networks_with_every_operator_pass(tmp_path: Path) -> None:
    blocks = (
        ("gate", 2, "hardswish"),
        ("concat", 3, "tanh"),
        ("pool", 1, "none"),
        ("pad", 1, "relu"),
    )
    model, inputs = network(Recipe(3, 2, (6, 5), blocks, "average", True))
    floating = trace(model, (2, 6, 5), "net")
    graph = quantize(floating, observe(floating, inputs), {})
    labels = np.zeros(len(inputs))
    Sample(graph, inputs, labels, sample().trial).write(tmp_path)
    done = make(tmp_path, "test", f"CFLAGS={CHECKS}")
    assert done.returncode == 0, done.stderr + done.stdout


@needs_make
def test_without_labels_nothing_is_said_of_classes(tmp_path: Path) -> None:
    sample().write(tmp_path, labelled=False)
    done = make(tmp_path, "test")
    assert done.returncode == 0
    assert "classified" not in done.stdout


@pytest.mark.skipif(
    not (shutil.which("arm-none-eabi-gcc") and shutil.which("make")),
    reason="needs arm-none-eabi-gcc and make",
)
@pytest.mark.parametrize("core", ["cortex-m0plus", "cortex-m4", "cortex-m33"])
def test_it_builds_for_a_cortex_m(core: str, tmp_path: Path) -> None:
    sample(4).write(tmp_path)
    done = make(tmp_path, "arm", "CC=arm-none-eabi-gcc", f"CORE={core}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"digits-{core}.o").stat().st_size > 1000
    assert make(tmp_path, "clean").returncode == 0
    assert not (tmp_path / f"digits-{core}.o").exists()


@pytest.mark.skipif(not shutil.which("cmake"), reason="needs cmake")
def test_cmake_builds_and_tests_it(tmp_path: Path) -> None:
    sample().write(tmp_path)
    for command in (["-B", "build"], ["--build", "build"]):
        done = subprocess.run(["cmake", *command], cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
    done = subprocess.run(["ctest"], cwd=tmp_path / "build", capture_output=True, check=False)
    assert b"100% tests passed" in done.stdout


# --- bytes and the tie --------------------------------------------------------------------------


def test_the_same_trial_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = sample().write(tmp_path / "one"), sample().write(tmp_path / "two")
    names = sorted(path.name for path in one.folder.iterdir())
    assert len(names) == 8
    for name in names:
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes(), name


def test_a_bundle_matches_its_own_network_only(tmp_path: Path) -> None:
    written = sample()
    written.write(tmp_path)
    assert check_bundle(tmp_path, written.archive) == ()
    assert check_bundle(tmp_path, to_bytes(from_bytes(written.archive))) == ()
    (problem,) = check_bundle(tmp_path, sample(seed=1).archive)
    assert "was written for the network" in problem


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    files = sample().write(tmp_path)
    files.vectors.unlink()
    assert check_bundle(tmp_path, sample().archive) == ("test_vectors.h is missing",)


def test_the_manifest_names_the_trial_and_its_figures(tmp_path: Path) -> None:
    written = sample()
    manifest = json.loads(written.write(tmp_path).manifest.read_text())
    trial = written.trial
    assert manifest["trial"] == trial.number
    assert manifest["candidate"] == trial.candidate
    assert manifest["candidate_key"] == trial.candidate_key
    assert set(manifest["metrics"]) == {*trial.metrics, "test accuracy"}
    latency = trial.metrics["latency"]
    assert manifest["metrics"]["latency"]["value"] == latency.value
    assert manifest["metrics"]["latency"]["provenance"] == latency.provenance
    assert set(manifest["files"]) == {p.name for p in tmp_path.iterdir()} - {"dse.json"}


def test_the_readme_says_how_to_call_it_and_what_to_expect(tmp_path: Path) -> None:
    written = sample()
    files = written.write(tmp_path)
    text = files.readme.read_text()
    entry = written.graph.tensors[written.graph.input]
    for words in (
        '#include "digits.h"',
        "int8_t *input = digits_input(&arena);",
        repr(entry.scale),
        "rpi-pico at 125 MHz",
        "| latency |",
        "modelled",
        "89.00 %",
        "a \\| b",
        "`digits_op_0_conv1`",
        "class i, 0 to 9",
    ):
        assert words in text, words
    assert "@{" not in text
    sources = emit(written.graph, "digits")
    rows = re.findall(r"^\| (\d+) \| (\d+) \|", text, re.MULTILINE)
    assert max(int(offset) + int(size) for offset, size in rows) == sources.arena_bytes


def test_the_vectors_are_what_the_executor_computes(tmp_path: Path) -> None:
    written = sample()
    text = written.write(tmp_path).vectors.read_text()
    block = text[text.index("vector_outputs") :].split("};")[0].split("= {")[1]
    found = np.array([int(v) for v in re.findall(r"-?\d+", block)]).reshape(20, 10)
    assert (found == run(written.graph, written.inputs).numpy()).all()


def test_figures_of_another_backend_are_marked(tmp_path: Path) -> None:
    written = sample()
    target = {**written.trial.candidate["target"], "backend": "cmsis-nn"}
    trial = replace(written.trial, candidate={**written.trial.candidate, "target": target})
    text = replace(written, trial=trial).write(tmp_path).readme.read_text()
    assert "kernels of dse's own" in text
    assert "kernels of dse's own" not in written.write(tmp_path).readme.read_text()


# --- bad input ----------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DseError, match="cannot be written"):
        sample().write(tmp_path / "file")


def test_the_c_of_another_network_is_refused(tmp_path: Path) -> None:
    written = sample()
    other = sample(32)
    with pytest.raises(DseError, match="emit it from this network"):
        write_bundle(
            tmp_path,
            written.trial,
            sample_record(),
            written.archive,
            emit(other.graph, "digits"),
            written.inputs.numpy(),
            None,
            "double",
        )


def test_no_vectors_is_one_sentence(tmp_path: Path) -> None:
    written = sample()
    with pytest.raises(DseError, match="at least one test vector"):
        replace(written, inputs=written.inputs[:0]).write(tmp_path)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"schema": 1}'])
def test_a_folder_without_a_bundle_is_one_sentence(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "dse.json").write_text(text)
    with pytest.raises(DseError, match="holds no bundle"):
        check_bundle(tmp_path, b"")


def test_a_newer_bundle_is_refused(tmp_path: Path) -> None:
    files = sample().write(tmp_path)
    files.manifest.write_text(files.manifest.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(DseError, match="schema 2; this dse reads 1"):
        check_bundle(tmp_path, sample().archive)
