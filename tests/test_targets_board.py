"""Board files: every figure has a source, and what is wrong is told in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from dse.errors import TargetError
from dse.targets import Board, find_board, load_boards, read_board
from dse.targets.power import power_rows

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


def test_the_boards_are_there() -> None:
    assert set(BOARDS) >= {
        "apollo4p",
        "b_u585i_iot02a",
        "corstone300_u55_128",
        "disco_f746ng",
        "nano33ble",
        "nrf5340",
        "nucleo_f446re",
        "nucleo_g0b1re",
        "nucleo_h743zi",
        "nucleo_h7a3zi",
        "nucleo_l452re_p",
        "nucleo_l4r5zi",
        "nucleo_l4r5zi_p",
        "nucleo_u385rg",
        "nucleo_u575zi",
        "rpi_pico",
        "rpi_pico2",
        "sparkfun_edge",
        "stm32n6",
        "teensy40",
    }


@pytest.mark.parametrize("board", BOARDS.values(), ids=lambda board: board.name)
def test_every_figure_has_a_source_and_power_is_known(board: Board) -> None:
    assert all(fact.source for _, fact in board.facts)
    assert all(word.source for _, word in board.words)
    assert board.reserved_flash_bytes == board.reserved_ram_bytes == 0
    regions = [fact.value for key, fact in board.facts if key.startswith("ram_regions.")]
    assert board.ram_bytes <= sum(regions) or not regions
    power = board.active_power_w(board.max_clock_hz)
    if power is None:  # FPGA platforms, and parts of which nobody gives a figure
        assert board.core.family in ("m55", "m85")
        return
    assert 0.002 < power.low <= power.value <= power.high < 1.5


@pytest.mark.parametrize(
    ("name", "measured"),
    [
        ("nucleo_l4r5zi", "NUCLEO-L4R5ZI"),
        ("nucleo_h7a3zi", "NUCLEO-H7A3ZI-Q"),
        ("nucleo_u575zi", "NUCLEO-U575ZI-Q"),
        ("b_u585i_iot02a", "NUCLEO-U575ZI-Q"),
    ],
)
def test_power_holds_what_mlperf_tiny_measured(name: str, measured: str) -> None:
    """Nine of ten energy runs at the board's supply lie in its interval, and the middle does."""
    board = BOARDS[name]
    supply, power = board.fact("supply"), board.active_power_w(board.max_clock_hz)
    assert supply is not None
    assert power is not None
    runs = [
        row.power_w
        for row in power_rows()
        if row.profile.board == measured and row.profile.supply_v == supply.value
    ]
    assert sum(power.low <= run <= power.high for run in runs) >= 0.9 * len(runs) > 10
    assert power.value == pytest.approx(sorted(runs)[len(runs) // 2], rel=0.07)


def test_vendors_say_where_vendor_runtimes_may_run() -> None:
    stm32 = {name for name, board in BOARDS.items() if board.vendor == "STMicroelectronics"}
    assert stm32 == {name for name, board in BOARDS.items() if "STM32" in board.title}


def test_a_package_adds_boards_by_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dse.targets import board as module

    write(tmp_path, GOOD)

    class Entry:
        name = "lab"
        found: object = str(tmp_path)

        def load(self) -> object:
            return self.found

    entry = Entry()
    monkeypatch.setattr(module, "entry_points", lambda group: [entry])
    found = module._packaged.__wrapped__()
    assert found["mine"].clocks_hz == (100_000_000, 50_000_000)
    assert set(found) == {*BOARDS, "mine"}
    entry.found = 3
    with pytest.raises(TargetError, match=r"'lab' of 'dse\.boards' gives 3; it must be a package"):
        module._packaged.__wrapped__()


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


FACT = 'status = "read", source = "x" }'
BAD = {
    "clock above its range": (
        GOOD + f'clock_max = {{ value = 80, unit = "MHz", {FACT}',
        "key 'clocks' has 100 MHz; allowed: 0.032 to 80 MHz",
    ),
    "clock below its range": (
        GOOD + f'clock_min = {{ value = 60, unit = "MHz", {FACT}',
        "key 'clocks' has 50 MHz; allowed: 60 to 2000 MHz",
    ),
    "clock with a slip of the unit": (
        GOOD.replace('50, unit = "MHz"', '50, unit = "Hz"'),
        "key 'clocks' has 5e-05 MHz; allowed: 0.032 to 2000 MHz",
    ),
    "flash smaller than reserved": (
        GOOD + f'reserved_flash = {{ value = 300, unit = "KiB", {FACT}',
        "key 'reserved_flash' is 307200 B; it must be below the 262144 B of 'flash'",
    ),
    "region without a name": (
        GOOD + f'ram_regions = [{{ value = 3, unit = "KiB", {FACT}]',
        "key 'ram_regions' has a region of 3072 B without a name",
    ),
    "calibration without a source": (
        GOOD + "[calibration]\nlatency = []",
        "key 'calibration' has no source",
    ),
    "calibration with an unknown key": (
        GOOD + '[calibration]\nsource = "x"\npowr = []',
        r"unknown key 'calibration.powr'; did you mean 'power'\?",
    ),
    "calibration with a factor of zero": (
        GOOD + '[calibration]\nsource = "x"\n[[calibration.latency]]\nbackend = "tflm"\n'
        "scale = 0\nerror = 0.1\nrows = 1\nerror_before = 0.1\nerror_after = 0.1",
        "key 'calibration.latency.scale' is 0; it must be a number above 0",
    ),
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
