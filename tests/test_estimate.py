"""`dse estimate`: the fit matrix without a study and without torch; JSON, cheapest, bad input."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dse import cli
from dse.battery import Use, battery_life_s, parse_use
from dse.constraints import parse_constraint
from dse.errors import StudyError
from dse.estimate import Model, cheapest, estimate, parse_limits, read_model, select_targets
from dse.firmware.tflite import to_tflite
from dse.fit_matrix import SCHEMA
from dse.graph.execute import observe
from dse.graph.ir import Graph, without_values
from dse.graph.quantize import quantize
from dse.graph.trace import trace
from dse.targets import NOMINAL_MACS, cost, load_boards, parse_target
from dse.trial import Metric
from dse.workloads.networks import DigitsNet
from tests.calibration_models import FILES, model_path

pytest.importorskip("tflite", reason="needs the extra tflite")
BOARDS = load_boards()


@dataclass(frozen=True)
class Done:
    """What the command printed, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def dse(*arguments: str) -> Done:
    """The command in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    before, sys.argv = sys.argv, ["dse", *arguments]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            cli.main()
    except SystemExit as ending:
        code = int(ending.code or 0)
    finally:
        sys.argv = before
    return Done(code, out.getvalue(), err.getvalue())


def digits() -> Graph:
    torch.manual_seed(0)
    inputs = torch.rand(32, 1, 8, 8)
    graph = trace(DigitsNet().eval(), (1, 8, 8), "digits")
    return quantize(graph, observe(graph, inputs))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "digits.tflite"
    path.write_bytes(to_tflite(digits(), "digits"))
    return path


def as_json(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(dse("estimate", *arguments, "--json").stdout)
    return found


# --- the matrix ---------------------------------------------------------------------------------


def test_every_target_is_told_with_its_cost(file: Path) -> None:
    found = as_json(str(file))
    told = {(row["board"], row["backend"]) for row in found["targets"]}
    left = {tuple(row["target"].split("/")) for row in found["left_out"]}
    assert not told & left
    assert {board for board, _ in told | left} == set(BOARDS)
    for row in found["targets"]:
        if not row["metrics"]:
            assert row["misses"]
            continue
        target = parse_target(f"{row['board']}/{row['backend']}")
        if target.board.npu is not None and row["backend"] == "ethos-u":
            continue
        expected = cost(read_model(file).graph, target).metrics
        for name, metric in row["metrics"].items():
            assert metric["value"] == expected[name].value
            assert metric["value"] is None or metric["low"] <= metric["value"] <= metric["high"]
            assert metric["provenance"] in ("modelled", "estimated", "emulated", "measured")


# docs/estimate.md lists these keys; a change of them is a new version of the schema.
KEYS: Mapping[str, set[str]] = {
    "": {"schema", "model", "battery", "targets", "left_out", "cheapest"},
    "model": {
        "name",
        "sha256",
        "operators",
        "parameters",
        "precision",
        "macs",
        "nominal_macs",
        "dead_channels",
        "rescaled_operators",
    },
    "targets": {
        "board",
        "title",
        "backend",
        "backend_version",
        "clock_hz",
        "fits",
        "misses",
        "limits",
        "metrics",
        "battery_life_s",
        "unverified",
    },
    "metrics": {"value", "low", "high", "unit", "provenance", "source"},
}


def test_the_json_is_that_of_its_documentation(file: Path) -> None:
    found = as_json(
        str(file), "--battery", "1000mAh", "--rate", "1/min", "--cheapest", "ram <= 1 MiB"
    )
    assert found["schema"] == SCHEMA == "dse.estimate/1"
    assert set(found) == KEYS[""]
    assert set(found["model"]) == KEYS["model"]
    for row in found["targets"]:
        assert set(row) == KEYS["targets"]
        for metric in (*row["metrics"].values(), row["battery_life_s"] or row["metrics"]["ram"]):
            assert set(metric) == KEYS["metrics"]
    assert found["battery"] == {"capacity_mah": 1000.0, "rate_hz": pytest.approx(1 / 60)}
    assert set(found["cheapest"]) == {"target", "meets", "sentence"}
    text = (Path(__file__).parents[1] / "docs" / "estimate.md").read_text(encoding="utf-8")
    for keys in KEYS.values():
        for key in keys:
            assert f"`{key}`" in text, key


def test_the_table_says_what_is_missed(file: Path, tmp_path: Path) -> None:
    packaged = (
        Path(__file__).parents[1] / "dse" / "targets" / "boards" / "rpi_pico.toml"
    ).read_text()
    small = packaged.replace('name = "rpi_pico"', 'name = "tiny"')
    lines = [
        'ram = { value = 2, unit = "KiB", status = "read", source = "test" }'
        if line.startswith("ram =")
        else line
        for line in small.splitlines()
    ]
    (tmp_path / "tiny.toml").write_text("\n".join(lines), encoding="utf-8")
    shown = dse("estimate", str(file), "--boards", str(tmp_path), "--board", "tiny").stdout
    assert "no: RAM" in shown
    assert "over 2 KiB" in shown
    plain = dse("estimate", str(file), "--board", "nucleo_f446re", "--backend", "native").stdout
    assert "yes" in plain
    assert "180 MHz" in plain
    assert "modelled" in plain


def test_clocks_boards_and_backends_can_be_picked(file: Path) -> None:
    every = as_json(
        str(file), "--board", "nucleo_f446re", "--backend", "cmsis-nn", "--clock", "all"
    )
    assert [row["clock_hz"] for row in every["targets"]] == [180e6, 84e6, 16e6]
    one = as_json(str(file), "--clock", "16 MHz", "--backend", "native")
    assert {row["clock_hz"] for row in one["targets"]} == {16e6}
    slow, fast = (
        as_json(str(file), "--board", "nucleo_f446re", "--backend", "native", "--clock", clock)
        for clock in ("16 MHz", "max")
    )
    assert (
        slow["targets"][0]["metrics"]["latency"]["value"]
        > 5 * fast["targets"][0]["metrics"]["latency"]["value"]
    )


def test_csv_has_one_line_a_target(file: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(dse("estimate", str(file), "--format", "csv").stdout)))
    assert len(rows) == len(as_json(str(file))["targets"])
    assert all(float(row["flash_bytes"]) > 0 for row in rows if row["flash_bytes"])


@pytest.mark.parametrize("name", sorted(FILES))
def test_calibration_models_without_torch(name: str) -> None:
    """Nominal MACs exactly, VWW compacted, no torch; the seconds are benchmarks/cost.py's."""
    code = (
        "import sys; from dse.cli import app; "
        f"app(['estimate', {str(model_path(name))!r}, '--json'], standalone_mode=False); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["model"]
    assert found["nominal_macs"] == NOMINAL_MACS[name]
    assert found["macs"] == (3_742_091 if name == "vww" else NOMINAL_MACS[name])


def test_dead_channels_are_costed_when_asked() -> None:
    path = model_path("vww")
    compacted, whole = read_model(path), read_model(path, as_is=True)
    assert whole.graph.macs == 7_489_664
    assert (whole.dead_channels, compacted.dead_channels > 971) == (0, True)
    targets, _ = select_targets(boards=["nucleo_l4r5zi"], backends=["cmsis-nn"])
    (less,), (more,) = (estimate(model, targets).rows for model in (compacted, whole))
    for metric in ("flash", "latency", "energy"):
        assert less.value(metric) < more.value(metric)


def test_torch_models_are_costed_by_their_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small_net.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    found = as_json("small_net:build", "--shape", "1x8x8", "--board", "rpi_pico")
    assert found["model"]["macs"] == 6 * 6 * 4 * 9 + 144 * 3
    assert found["model"]["sha256"] == ""
    assert as_json("digits", "--board", "rpi_pico")["model"]["precision"] == "int8"


# --- the cheapest -------------------------------------------------------------------------------


def model(graph: Graph) -> Model:
    return Model("net", "", graph, graph.macs, sum(op.weight.shape[0] for op in graph.weighted))


@given(st.floats(1e-5, 1e-1))
def test_the_cheapest_meets_the_limit_and_nothing_cheaper_does(limit_s: float) -> None:
    found = estimate(model(without_values(digits())), SHAPES)
    limits = [parse_constraint(f"latency <= {limit_s} s")]
    answer = cheapest(found, limits)

    def price(name: str) -> float:
        fact = BOARDS[name].fact("price")
        return float("inf") if fact is None else fact.value

    able = [row for row in found.rows if row.fits and row.value("latency") <= limit_s]
    assert answer.meets is bool(able)
    if able:
        assert answer.row in able
        best = price(answer.row.target.board.name)
        assert best == min(price(row.target.board.name) for row in able)
        assert answer.row.target.key in answer.sentence
    else:
        assert "no board meets it" in answer.sentence
        assert answer.row.value("latency") == min(row.value("latency") for row in found.rows)


SHAPES = tuple(
    target for target in select_targets()[0] if target.backend.name in ("native", "cmsis-nn")
)


def test_the_cheapest_is_one_sentence_and_its_exit_code(file: Path) -> None:
    easy = dse("estimate", str(file), "--cheapest", "latency <= 1 s")
    assert easy.returncode == 0
    assert easy.stdout.count("\n") == 1
    assert "is the cheapest that meets it: latency" in easy.stdout
    hard = dse("estimate", str(file), "--cheapest", "latency <= 1 us")
    assert hard.returncode == 1
    assert "no board meets it; the nearest is" in hard.stdout
    assert "'latency <= 1 us'" in hard.stdout


# --- batteries ----------------------------------------------------------------------------------


def test_battery_life_is_charge_over_current() -> None:
    board = BOARDS["nucleo_l4r5zi"]
    supply, sleep = board.fact("supply"), board.fact("sleep_current")
    assert supply is not None
    assert sleep is not None
    joules, rate = 1e-3, 0.1
    energy = Metric(joules, joules / 2, joules * 2, "modelled")
    latency = Metric(0.01, 0.01, 0.01, "modelled")
    life = battery_life_s(Use(1000.0, rate), latency, energy, board)
    assert life.value == pytest.approx(
        3600 / (rate * joules / supply.value + sleep.value * (1 - rate * 0.01))
    )
    assert life.value is not None
    assert life.low is not None
    assert life.high is not None
    assert life.low < life.value < life.high
    twice = battery_life_s(Use(2000.0, rate), latency, energy, board)
    assert twice.value == pytest.approx(2 * life.value)


def test_what_cannot_be_said_of_a_battery_is_unavailable() -> None:
    board = BOARDS["nucleo_l4r5zi"]
    one = Metric(1.0, 1.0, 1.0, "modelled")
    assert "do not fit" in battery_life_s(Use(1000.0, 2.0), one, one, board).source
    bare = replace(board, facts=tuple(f for f in board.facts if f[0] != "sleep_current"))
    assert "sleep_current" in battery_life_s(Use(1000.0, 0.1), one, one, bare).source
    unknown = battery_life_s(Use(1000.0, 0.1), one, Metric.unavailable("no power"), board)
    assert (unknown.value, unknown.source) == (None, "no power")


@pytest.mark.parametrize(
    ("battery", "rate", "words"),
    [
        ("1000mAh", None, "--battery needs --rate"),
        (None, "1/min", "--rate needs --battery"),
        ("1000", "1/min", "--battery is '1000'"),
        ("0mAh", "1/min", "above 0 mAh"),
        ("1Ah", "1", "--rate is '1'"),
        ("1Ah", "0/s", "above 0"),
        ("1Ah", "1/fortnight", "allowed: day, h, min, s"),
        ("1Ah", "nan/s", "above 0"),
    ],
)
def test_bad_batteries(battery: str | None, rate: str | None, words: str) -> None:
    with pytest.raises(StudyError) as error:
        parse_use(battery, rate)
    assert words in str(error.value)


def test_good_batteries() -> None:
    assert parse_use("2.5 Ah", "24/day") == Use(2500.0, 24 / 86400)
    assert parse_use(None, None) is None


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.tflite"], "cannot be read"),
        (["notes.tflite"], "notes.tflite: this is not a .tflite file"),
        (["digits.tflite", "--board", "nucleo_f446r"], "did you mean 'nucleo_f446re'"),
        (["digits.tflite", "--backend", "cmsis"], "did you mean 'cmsis-nn'"),
        (["digits.tflite", "--clock", "7 MHz"], "--clock is '7 MHz'"),
        (["digits.tflite", "--clock", "fast"], "'fast' is not a number"),
        (["digits.tflite", "--cheapest", "accuracy >= 90 %"], "needs a study"),
        (["digits.tflite", "--cheapest", "ram <= 50 % of baseline"], "needs a study"),
        (["digits.tflite", "--cheapest", "speed <= 1 s"], "allowed: accuracy, energy"),
        (["digits.tflite", "--battery", "1Ah"], "needs --rate"),
        (["digits.tflite", "--boards", "nowhere"], "does not exist"),
        (["nothing_here:build", "--shape", "1x8x8"], "there is no module 'nothing_here'"),
        (["nothing_here:build"], "needs --shape"),
        (["digits", "--shape", "0x8"], "--shape is '0x8'"),
        (["digitz"], "did you mean 'digits'"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_two(
    arguments: list[str], words: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "digits.tflite").write_bytes(file.read_bytes())
    (tmp_path / "notes.tflite").write_text("just some notes")
    monkeypatch.chdir(tmp_path)
    done = dse("estimate", *arguments)
    assert done.returncode == 2, done.stdout
    assert words in done.stderr
    assert done.stderr.strip().count("\n") == 0
    assert "Traceback" not in done.stderr


def test_floats_run_where_a_backend_has_them(tmp_path: Path) -> None:
    graph = trace(DigitsNet().eval(), (1, 8, 8), "digits")
    path = tmp_path / "float.tflite"
    path.write_bytes(to_tflite(graph, "digits"))
    found = as_json(str(path), "--board", "nucleo_f446re")
    by_backend = {row["backend"]: row for row in found["targets"]}
    assert found["model"]["precision"] == "float32"
    assert by_backend["native"]["metrics"]["latency"]["value"] > 0
    assert "Activations are int8" in by_backend["cmsis-nn"]["misses"][0]


def test_limits_are_those_of_study_files() -> None:
    (limit,) = parse_limits(["latency<=50 ms"])
    assert (limit.metric, limit.value) == ("latency", 0.05)
