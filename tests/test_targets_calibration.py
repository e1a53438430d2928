"""The stored cycle tables are what the fit gives, and the fit is better than counting MACs."""

from __future__ import annotations

import json

import pytest

from dse.targets import calibration
from dse.targets.calibration import Error
from dse.targets.calibration_report import mean
from dse.targets.fitting import EMULATED, Row, fit


def test_stored_tables_are_what_the_fit_gives() -> None:
    stored = json.loads(calibration.stored_file().read_text("utf-8"))
    found = json.loads(json.dumps(calibration.tables()))
    assert found["command"] == stored["command"]
    assert set(found["tables"]) == set(stored["tables"])
    for name, table in found["tables"].items():
        for key, value in table.items():
            expected = stored["tables"][name][key]
            if isinstance(value, dict | float):
                assert value == pytest.approx(expected, rel=1e-4), (name, key)
            else:
                assert value == expected, (name, key)


def errors(found: list[Error]) -> tuple[float, float]:
    return mean([e.relative for e in found]), mean([e.mac_only_relative for e in found])


def test_a_left_out_system_is_predicted_clearly_better_than_by_macs() -> None:
    ours, macs = errors(calibration.leave_one_system_out())
    assert ours < 0.09
    assert ours < 0.6 * macs


def test_a_left_out_network_is_predicted_clearly_better_than_by_macs() -> None:
    ours, macs = errors(calibration.leave_one_network_out())
    assert ours < 0.11
    assert ours < 0.6 * macs


def test_left_out_layers_of_the_pico_are_predicted() -> None:
    ours, macs = errors(calibration.leave_one_layer_out())
    assert ours < 0.08
    assert ours < 0.3 * macs


def test_intervals_hold_nine_of_ten_left_out_rows() -> None:
    found = calibration.leave_one_system_out()
    width = calibration.half_width(found)
    inside = [abs(e.relative) <= width for e in found]
    assert sum(inside) / len(inside) >= 0.9


def test_only_cmsis_nn_runtimes_are_fitted() -> None:
    systems = {row.system for row in calibration.measured_rows()}
    assert systems == {"NUCLEO-L4R5ZI", "nRF5340 DK", "EK-RA6M4"}
    assert len(calibration.measured_rows()) == 12


def test_the_fit_finds_what_made_the_rows() -> None:
    """Rows made with known coefficients and a known factor give them back."""
    truth = {"conv.mac": 2.0, "add": 50.0}
    rows = [
        Row(system, str(i), "all", {"conv.mac": a, "add": b}, 1, factor * (2.0 * a + 50.0 * b))
        for system, factor in ((EMULATED, 1.0), ("board", 1.3))
        for i, (a, b) in enumerate(((100.0, 1.0), (100.0, 9.0), (300.0, 2.0)))
    ]
    found = fit(rows, tuple(truth), {})
    assert found.coefficients == pytest.approx(truth, rel=1e-6)
    assert found.scales["board"] == pytest.approx(1.3, rel=1e-6)
