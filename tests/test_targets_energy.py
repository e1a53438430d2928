"""Energy of an inference, of a day, and the life of a battery."""

from __future__ import annotations

from pathlib import Path

import pytest

from dse.targets import Board, load_boards, read_board
from dse.targets.energy import Duty, battery_life, daily_energy, inference_energy
from dse.trial import Metric
from tests.test_targets_board import GOOD

BOARD = load_boards()["nucleo_l4r5zi"]
LATENCY = Metric(0.1, 0.09, 0.12, "modelled", "a table")


def duty(board: Board, rate_hz: float, clock_hz: int = 120_000_000) -> Duty:
    return Duty(board, rate_hz, LATENCY, inference_energy(board, clock_hz, LATENCY))


def test_energy_is_power_times_latency_and_keeps_both_intervals() -> None:
    power = BOARD.active_power_w(120_000_000)
    energy = inference_energy(BOARD, 120_000_000, LATENCY)
    assert power is not None
    assert energy.value == pytest.approx(power.value * 0.1)
    assert (energy.low, energy.high) == pytest.approx((power.low * 0.09, power.high * 0.12))


def test_a_day_without_inferences_is_sleep_alone() -> None:
    assert daily_energy(duty(BOARD, 0.0)).value == pytest.approx(0.13e-6 * 1.8 * 86_400)


def test_a_day_adds_up_and_a_full_day_never_sleeps() -> None:
    half, full = daily_energy(duty(BOARD, 5.0)), daily_energy(duty(BOARD, 10.0))
    power = BOARD.active_power_w(120_000_000)
    assert power is not None
    assert half.value is not None
    assert full.value == pytest.approx(power.value * 86_400)
    assert half.value == pytest.approx(power.value * 43_200 + 0.13e-6 * 1.8 * 43_200)


def test_more_inferences_than_fit_into_a_day_are_unavailable() -> None:
    found = daily_energy(duty(BOARD, 11.0))
    assert found.value is None
    assert "11 inferences a second of 0.1 s each do not fit" in found.source


def test_a_battery_lasts_its_charge_over_the_average_current() -> None:
    life, day = battery_life(duty(BOARD, 1.0), 230.0), daily_energy(duty(BOARD, 1.0))
    assert life.value is not None
    assert life.low is not None
    assert life.high is not None
    assert day.value is not None
    assert life.value == pytest.approx(230 * 3.6 * 1.8 / (day.value / 86_400))
    assert life.low < life.value < life.high


def test_a_slower_clock_can_win_or_lose_a_day() -> None:
    """Power follows the clock here, so only sleep between the inferences decides."""
    slow = Metric(0.3, 0.27, 0.36, "modelled", "a table")
    at_80 = inference_energy(BOARD, 80_000_000, slow)
    at_120 = inference_energy(BOARD, 120_000_000, LATENCY)
    fast, late = Duty(BOARD, 1.0, LATENCY, at_120), Duty(BOARD, 1.0, slow, at_80)
    assert (daily_energy(late).value or 0) > (daily_energy(fast).value or 0)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(GOOD)
    bare = read_board(file)
    energy = inference_energy(bare, 100_000_000, LATENCY)
    assert energy.source == "board 'mine' gives no power while active"
    current = 'active_current = { value = 2, unit = "uA/MHz", status = "read", source = "x" }\n'
    supply = 'supply = { value = 3, unit = "V", status = "read", source = "x" }\n'
    file.write_text(GOOD + current + supply)
    assert daily_energy(duty(read_board(file), 1.0, 100_000_000)).source == (
        "board 'mine' gives no sleep_current"
    )
    unknown = Metric.unavailable("no table")
    assert inference_energy(BOARD, 120_000_000, unknown).source == "no table"
