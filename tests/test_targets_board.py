"""Board files: every figure has a source, and what is wrong is told in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from dse.errors import TargetError
from dse.targets import Board, find_board, load_boards, read_board

BOARDS = load_boards()
GOOD = """
name = "mine"
title = "My board"
core = { value = "cortex-m4f", status = "read", source = "data sheet, page 1" }
clocks = [
  { value = 100, unit = "MHz", status = "read", source = "data sheet, page 2" },
  { value = 50, unit = "MHz", status = "read", source = "data sheet, page 2" },
]
flash = { value = 256, unit = "KiB", status = "read", source = "data sheet, page 1" }
ram = { value = 64, unit = "KiB", status = "read", source = "data sheet, page 1" }
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "mine.toml"
    file.write_text(text)
    return file


def test_the_seven_boards_are_there() -> None:
    assert set(BOARDS) == {
        "rpi_pico",
        "nucleo_f446re",
        "nucleo_l4r5zi",
        "disco_f746ng",
        "nucleo_h743zi",
        "nano33ble",
        "b_u585i_iot02a",
    }


@pytest.mark.parametrize("board", BOARDS.values(), ids=lambda board: board.name)
def test_every_figure_has_a_source_and_power_is_known(board: Board) -> None:
    assert all(fact.source for _, fact in board.facts)
    assert board.reserved_flash_bytes == board.reserved_ram_bytes == 0
    power = board.active_power_w(board.max_clock_hz)
    assert power is not None
    assert 0.005 < power.low <= power.value <= power.high < 1.5


def test_power_matches_what_mlperf_tiny_measured() -> None:
    # NUCLEO-L4R5ZI at 1.8 V: 38.7 to 55.2 mW over all runtimes; NUCLEO-U575ZI-Q: 22.6 to 27.0 mW.
    for name, least, most in (
        ("nucleo_l4r5zi", 0.0387, 0.0552),
        ("b_u585i_iot02a", 0.0226, 0.0270),
    ):
        power = BOARDS[name].active_power_w(BOARDS[name].max_clock_hz)
        assert power is not None
        assert power.low <= least * 1.02
        assert power.high >= most * 0.98
        assert least < power.value < most


def test_a_slower_clock_takes_less_power_and_is_less_certain() -> None:
    board = BOARDS["nucleo_l4r5zi"]
    fast, slow = (board.active_power_w(clock) for clock in (120_000_000, 80_000_000))
    assert fast is not None
    assert slow is not None
    assert slow.value == pytest.approx(fast.value * 80 / 120)
    assert (slow.high - slow.low) / slow.value > (fast.high - fast.low) / fast.value


def test_a_users_board_is_added_and_wins(tmp_path: Path) -> None:
    write(
        tmp_path, GOOD + 'reserved_ram = { value = 8, unit = "KiB", status = "read", source = "x" }'
    )
    (tmp_path / "pico.toml").write_text(GOOD.replace('"mine"', '"rpi_pico"'))
    boards = load_boards(tmp_path)
    assert boards["mine"].clocks_hz == (100_000_000, 50_000_000)
    assert boards["mine"].reserved_ram_bytes == 8192
    assert boards["rpi_pico"].title == "My board"
    assert boards["mine"].active_power_w(100_000_000) is None


def test_power_in_watts_scales_with_the_clock(tmp_path: Path) -> None:
    power = 'active_power = { value = 40, unit = "mW", status = "read", source = "x" }'
    board = read_board(write(tmp_path, GOOD + power))
    fast, slow = board.active_power_w(100_000_000), board.active_power_w(50_000_000)
    assert fast is not None
    assert slow is not None
    assert (fast.value, slow.value) == pytest.approx((0.040, 0.020))


BAD = {
    "unknown key": (
        GOOD + 'flsh = { value = 1, unit = "B", status = "read", source = "x" }',
        r"'mine.toml': unknown key 'flsh'; did you mean 'flash'\?",
    ),
    "missing key": (
        GOOD.replace("ram =", "# ram ="),
        "'mine.toml': key 'ram' is missing",
    ),
    "wrong unit": (
        GOOD.replace('64, unit = "KiB"', '64, unit = "KB"'),
        "key 'ram' has unit 'KB'; allowed: B, KiB, MiB",
    ),
    "no unit": (
        GOOD.replace('64, unit = "KiB",', "64,"),
        "key 'ram' has unit 'None'; allowed: B, KiB, MiB",
    ),
    "no source": (
        GOOD.replace(', source = "data sheet, page 2"', ""),
        "key 'clocks' has no source",
    ),
    "wrong status": (
        GOOD.replace('64, unit = "KiB", status = "read"', '64, unit = "KiB", status = "sure"'),
        "key 'ram' has status 'sure'; allowed: read, derived, unverified",
    ),
    "not a number": (
        GOOD.replace("value = 64", 'value = "64"'),
        "key 'ram' has value '64'; it must be a number",
    ),
    "zero memory": (GOOD.replace("value = 64", "value = 0"), "key 'ram' is 0 in 0 to 0 KiB"),
    "bare number": (
        GOOD.replace(
            '{ value = 64, unit = "KiB", status = "read", source = "data sheet, page 1" }', "64"
        ),
        "key 'ram' is 64; write it as",
    ),
    "outside its interval": (
        GOOD + 'supply = { value = 3.3, low = 3.4, unit = "V", status = "read", source = "x" }',
        "key 'supply' is 3.3 in 3.4 to 3.3 V",
    ),
    "reserved more than there is": (
        GOOD + 'reserved_ram = { value = 64, unit = "KiB", status = "read", source = "x" }',
        "key 'reserved_ram' is 65536 B; it must be below the 65536 B of 'ram'",
    ),
    "clocks out of order": (
        GOOD.replace("value = 100", "value = 10"),
        r"key 'clocks' is \[10000000, 50000000\] Hz; list each clock once, the fastest first",
    ),
    "no clocks": (
        GOOD[: GOOD.index("clocks")] + "clocks = []\n" + GOOD[GOOD.index("flash") :],
        r"key 'clocks' is \[\]; give a list",
    ),
    "unknown core": (
        GOOD.replace("cortex-m4f", "cortex-m4g"),
        "key 'core' is 'cortex-m4g'; did you mean 'cortex-m4'",
    ),
    "not TOML": (GOOD + "flash = [", "'mine.toml' is not readable TOML"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_a_wrong_file_gives_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TargetError, match=message) as error:
        read_board(write(tmp_path, text))
    assert "mine.toml" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_good_file_is_good(tmp_path: Path) -> None:
    assert read_board(write(tmp_path, GOOD)).name == "mine"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="nowhere' does not exist"):
        load_boards(tmp_path / "nowhere")


def test_an_unknown_board_names_the_nearest() -> None:
    with pytest.raises(
        TargetError, match="unknown board 'nucleo_f446'; did you mean 'nucleo_f446re'"
    ):
        find_board("nucleo_f446", BOARDS)
