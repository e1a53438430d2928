"""`dse calibrate`: a user's rows refit their board, and bad rows are told with line and value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dse.calibrate import Measurement, read_measurements, refit, write_profile
from dse.errors import StudyError
from dse.targets import cost, load_boards, parse_target, reference_graph
from tests.command_line import Dse

BOARDS = load_boards()
HEAD = "board,backend,clock_mhz,model,latency_ms,current_ma\n"
TARGET = parse_target("nucleo_l4r5zi/x-cube-ai-9")


def modelled_ms(network: str) -> float:
    from dse.targets.networks import live_graph

    return 1e3 * (cost(live_graph(network), TARGET).value("latency") or 0)


def measured(factor: float, networks: tuple[str, ...] = ("ad", "ic", "kws", "vww")) -> str:
    lines = [
        f"nucleo_l4r5zi,x-cube-ai-9,120,{name},{factor * modelled_ms(name):.9g},25"
        for name in networks
    ]
    return HEAD + "\n".join(lines) + "\n"


def rows(folder: Path, text: str) -> tuple[Measurement, ...]:
    file = folder / "measured.csv"
    file.write_text(text)
    return read_measurements(file, BOARDS)


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.3])
def test_the_factor_is_found_and_the_error_falls(tmp_path: Path, factor: float) -> None:
    (profile,) = refit(rows(tmp_path, measured(factor)))
    (fit,) = profile.latency
    assert abs(fit.scale - 1) <= abs(factor - 1) + 1e-9
    assert (fit.scale - 1) * (factor - 1) >= 0
    assert fit.error_before == pytest.approx(abs(1 / factor - 1), abs=1e-6)
    assert fit.error_after <= fit.error_before * 0.35 + 1e-9
    assert fit.error_left_out is not None
    assert fit.error_after - 1e-9 <= fit.error_left_out <= fit.error_before + 1e-9


@given(factor=st.floats(0.5, 2.0))
def test_more_rows_say_more(factor: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One row moves the factor part of the way, four rows further, none past it."""
    folder = tmp_path_factory.mktemp("rows")
    one = refit(rows(folder, measured(factor, ("kws",))))[0].latency[0]
    four = refit(rows(folder, measured(factor)))[0].latency[0]
    assert abs(one.scale - 1) <= abs(four.scale - 1) + 1e-9 <= abs(factor - 1) + 2e-9
    assert four.error <= one.error
    assert one.error_left_out is None


def test_the_profile_is_a_board_file_that_costs_follow(tmp_path: Path) -> None:
    (profile,) = refit(rows(tmp_path, measured(1.2)))
    file = write_profile(profile, "measured.csv", tmp_path / "own", None)
    boards = load_boards(file.parent)
    mine = parse_target(TARGET.key, boards)
    graph = reference_graph("kws")
    before, after = (cost(graph, target).metrics for target in (TARGET, mine))
    scale = profile.latency[0].scale
    assert after["latency"].value == pytest.approx((before["latency"].value or 0) * scale)
    assert "measured.csv" in after["latency"].source
    power = mine.board.active_power_w(120_000_000)
    assert power is not None
    assert power.value == pytest.approx(0.025 * 1.8)
    assert after["energy"].value == pytest.approx((after["latency"].value or 0) * power.value)
    other = parse_target("nucleo_l4r5zi/tflm", boards)
    plain = cost(graph, parse_target("nucleo_l4r5zi/tflm")).value("latency")
    assert cost(graph, other).value("latency") == plain
    assert load_boards()["nucleo_l4r5zi"].own.scales == ()


def test_a_profile_refits_from_the_packaged_figures_again(tmp_path: Path) -> None:
    """Calibrating with one's own board file gives the same factor, not one on top of it."""
    found = rows(tmp_path, measured(1.2))
    first = refit(found)[0]
    write_profile(first, "a", tmp_path / "own", None)
    again = read_measurements(tmp_path / "measured.csv", load_boards(tmp_path / "own"))
    second = refit(again)[0]
    assert second.latency[0].scale == pytest.approx(first.latency[0].scale)
    file = write_profile(second, 'b "quoted"', tmp_path / "own", tmp_path / "own")
    assert file.read_text().count("[calibration]") == 1
    assert load_boards(tmp_path / "own")["nucleo_l4r5zi"].own.scales[0].source == 'b "quoted"'


BAD = {
    "no rows": (HEAD, "has no rows"),
    "missing column": ("board,backend\n", "column 'clock_mhz' is missing"),
    "unknown column": (HEAD.strip() + ",latencies\n", "unknown column 'latencies'"),
    "unknown board": (
        HEAD + "nucleo_l4r5z,tflm,120,ad,1,\n",
        "line 2: unknown board 'nucleo_l4r5z'",
    ),
    "unknown backend": (HEAD + "rpi_pico,tfml,133,ad,1,\n", "line 2: unknown backend 'tfml'"),
    "wrong clock": (
        HEAD + "rpi_pico,tflm,1,ad,1,\n",
        "line 2: board 'rpi_pico' has no clock of 1MHz",
    ),
    "no number": (HEAD + "rpi_pico,tflm,133,ad,fast,\n", "line 2: latency_ms is 'fast'"),
    "negative": (HEAD + "rpi_pico,tflm,133,ad,-3,\n", "line 2: latency_ms is '-3'"),
    "infinite": (HEAD + "rpi_pico,tflm,133,ad,inf,\n", "line 2: latency_ms is 'inf'"),
    "unknown model": (HEAD + "rpi_pico,tflm,133,net.tflite,1,\n", "line 2: model is 'net.tflite'"),
    "second line": (
        HEAD + "rpi_pico,tflm,133,ad,50,\nrpi_pico,tflm,133,ad,50,much\n",
        "line 3: current_ma is 'much'",
    ),
    "not modelled": (
        HEAD + "stm32n6,native,800,ad,1,\n",
        "line 2: latency of 'stm32n6/native/800MHz' is not modelled",
    ),
    "illegal": (
        HEAD + "rpi_pico,x-cube-ai-9,133,ad,1,\n",
        "line 2: backend 'x-cube-ai-9' runs on STM32 only",
    ),
    "no supply": (
        HEAD + "corstone300_u55_128,tflm,32,ad,50,3\n",
        "line 2: current_ma is 3, but board 'corstone300_u55_128' gives no supply voltage",
    ),
    "both": (
        HEAD.strip() + ",energy_uj\nrpi_pico,tflm,133,ad,50,3,3\n",
        "line 2: give energy_uj or current_ma, not both",
    ),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD.keys())
def test_bad_rows_are_one_sentence_with_line_and_value(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(StudyError, match=message):
        rows(tmp_path, text)


def test_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dse = Dse(tmp_path, monkeypatch, capsys)
    dse.write(measured(1.2), "measured.csv")
    found = json.loads(dse("calibrate", "measured.csv", "--out", "own", "--json").out)
    assert [row["what"] for row in found] == ["latency, x-cube-ai-9", "power, 120 MHz"]
    assert found[0]["new_error"] < found[0]["old_error"]
    shown = json.loads(dse("boards", "show", "nucleo_l4r5zi", "--boards", "own", "--json").out)
    calibration = next(row for row in shown if row["key"] == "calibration x-cube-ai-9")
    assert calibration["source"] == "measured.csv"
    assert all(row["source"] and row["status"] for row in shown)
    assert len(json.loads(dse("boards", "--json").out)) == len(BOARDS)
    assert "unverified" in dse("boards", "show", "rpi_pico").out
    dse("boards", "show", "rpi_pic").refused("did you mean 'rpi_pico'?")
    dse.write(HEAD + "rpi_pico,tflm,133,ad,0,\n", "measured.csv")
    dse("calibrate", "measured.csv").refused("line 2: latency_ms is '0'")
