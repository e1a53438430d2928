"""The page in a real browser: every view has data, what is selected in one is selected in all."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dse.artifacts import CONFUSION
from dse.firmware.build import compilers
from dse.storage import Storage
from dse.trial import State, Trial
from tests.browse_in_chromium import (
    first_of_front,
    opened,
    settled,
    shown,
    wait_points,
    wait_rows,
)
from tests.browse_samples import stored
from tests.report_samples import sample_trials

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra 'dev')")
pytest.importorskip("dash", reason="needs Dash (extra 'browse')")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None, reason="needs Chromium: apt-get install chromium (Debian, Ubuntu)"
    ),
]
PATIENCE_MS = 60_000  # of a machine with other work; nothing here waits for long by itself


@dataclass
class Served:
    """A page being served, and the folder of its database."""

    address: str
    url: str
    folder: Path


def serve(url: str, folder: Path) -> Iterator[Served]:
    from dse.browse.library import Library
    from dse.browse.server import make_app, start

    server = start(make_app(Library(url)), "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Served(f"http://127.0.0.1:{server.port}", url, folder)
    server.shutdown()
    thread.join()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("browse")
    stored(folder, 60, name="earlier", seed=1)
    yield from serve(stored(folder, 200), folder)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A tab that fails the test for an error in its scripts or an answer that is one."""
    tab = chromium.new_page(viewport={"width": 1280, "height": 900})
    tab.set_default_timeout(PATIENCE_MS)
    troubles: list[str] = []
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.on(
        "response", lambda r: troubles.append(f"{r.status} {r.url}") if r.status >= 500 else None
    )
    tab.on("request", lambda asked: troubles.append(asked.url) if outside(asked.url) else None)
    yield tab
    tab.close()
    assert not troubles


def outside(address: str) -> bool:
    return "127.0.0.1" not in address and not address.startswith(("data:", "blob:"))


def test_every_view_has_data(page: Any, served: Served) -> None:
    opened(page, served.address)
    wait_points(page, "p => p.data.some(t => t.name.startsWith('dominated'))")
    names = page.evaluate(
        "() => document.querySelector('#scatter .js-plotly-plot').data.map(t => t.name)"
    )
    for wanted in (
        "Pareto front",
        "dominated",
        "verified",
        "float32 baseline",
        "best in these two",
    ):
        assert any(wanted in name for name in names), names
    page.wait_for_function(
        "() => document.querySelector('#parallel .js-plotly-plot')?.data?.[0]?.type === 'parcoords'"
    )
    page.wait_for_function(
        "() => document.querySelector('#progress .js-plotly-plot')?.data?.[0]?.x?.length > 1"
    )
    page.wait_for_selector("#importance .heatmaplayer")
    page.wait_for_selector("#timeline .barlayer")
    for card in ("knee", "closest", "cheapest"):
        assert "Trial" in str(page.text_content(f"#choice-{card}"))
    assert "hypervolume" in str(page.text_content("#lead"))


def test_filter_narrows_and_refuses_code(page: Any, served: Served) -> None:
    opened(page, served.address)
    page.fill("#filter", 'flash < 8 KiB and board == "rpi-pico"')
    page.wait_for_function("() => !document.querySelector('#shown').textContent.startsWith('200')")
    count = int(shown(page).split()[0])
    assert 0 < count < 200
    wait_rows(page, count)
    boards = page.eval_on_selector_all(
        "#table tbody tr", "rows => rows.map(r => r.textContent.includes('rpi-pico'))"
    )
    assert all(boards)
    page.fill("#filter", "__import__('os').system('true')")
    page.wait_for_selector("#filter-problem:not([hidden])")
    assert int(shown(page).split()[0]) == count  # what was shown stays


def test_brush_selects_in_every_view(page: Any, served: Served) -> None:
    opened(page, served.address)
    plot = page.wait_for_selector("#parallel .js-plotly-plot .main-svg")
    page.wait_for_selector("#parallel .parcoords .axis-brush .background")
    plot.scroll_into_view_if_needed()
    axis = page.locator("#parallel .axis-brush .background").first.bounding_box()
    middle = axis["x"] + axis["width"] / 2
    page.mouse.move(middle, axis["y"] + 0.15 * axis["height"])
    page.mouse.down()
    page.mouse.move(middle, axis["y"] + 0.5 * axis["height"], steps=6)
    page.mouse.up()
    page.wait_for_function(
        "() => document.querySelector('#shown').textContent.includes('selected')"
    )
    wait_points(page, "p => p.data.some(t => Array.isArray(t.selectedpoints))")
    chosen = int(shown(page).split(", ")[-1].split()[0])
    wait_rows(page, chosen)
    page.click("#clear")
    page.wait_for_function(
        "() => !document.querySelector('#shown').textContent.includes('selected')"
    )


def test_a_row_selects_and_columns_sort(page: Any, served: Served) -> None:
    opened(page, served.address)
    page.click("#table tbody tr:nth-child(3) .pick")
    page.wait_for_function(
        "() => document.querySelector('#shown').textContent.includes(', 1 selected')"
    )
    page.click("#clear")
    page.wait_for_function("() => document.querySelectorAll('#table tbody tr').length > 5")
    page.click("#table th:has-text('Flash') button")
    page.wait_for_selector("#table th[aria-sort=ascending]")
    texts = page.eval_on_selector_all(
        "#table tbody tr", "rows => rows.map(r => parseFloat(r.cells[3].textContent))"
    )
    assert texts == sorted(texts)
    page.click(".pager button:has-text('Next')")
    page.wait_for_function("() => document.querySelector('.pager').textContent.includes('Page 2')")


def test_axes_colours_and_third_dimension(page: Any, served: Served) -> None:
    opened(page, served.address + "/?study=digits&x=latency&y=ram&colour=board&symbol=backend")
    wait_points(page, "p => p.layout.xaxis.title.text.startsWith('Latency (')")
    wait_points(page, "p => p.data.some(t => t.name === 'rpi-pico')")
    opened(page, served.address + "/?study=digits&x=latency&y=ram&z=accuracy")
    wait_points(page, "p => p.data.some(t => t.type === 'scatter3d')")


def test_several_studies_in_one_view(page: Any, served: Served) -> None:
    opened(page, served.address + "/?study=digits&study=earlier&colour=study")
    wait_points(page, "p => ['digits', 'earlier'].every(n => p.data.some(t => t.name === n))")
    assert "260 of 260" in shown(page)
    page.wait_for_function(
        "() => document.querySelector('#progress .js-plotly-plot')?.data?.length === 2"
    )


def test_what_comes_later_moves_nothing(page: Any, served: Served) -> None:
    where = "() => document.querySelector('#scatter').getBoundingClientRect().y"
    page.goto(served.address)
    page.wait_for_selector("#scatter .js-plotly-plot")
    before = page.evaluate(where)
    settled(page)
    assert page.evaluate(where) == before


def test_a_point_tells_and_is_chosen(page: Any, served: Served) -> None:
    opened(page, served.address)
    settled(page)
    x, y, uid = first_of_front(page)
    page.mouse.move(x - 4, y)
    page.mouse.move(x, y, steps=3)
    page.wait_for_function(f"() => document.querySelector('#hover').textContent.includes({uid})")
    page.mouse.click(x, y)
    page.wait_for_selector("#side h3")
    assert f"Trial {uid}" in str(page.text_content("#hover"))
    assert f"Trial {uid}" in str(page.text_content("#side"))


def test_a_box_selects_in_every_view(page: Any, served: Served) -> None:
    opened(page, served.address)
    settled(page)  # a redraw would end the box
    page.hover("#scatter .nsewdrag")
    page.click('#scatter .modebar-btn[data-val="select"]')
    box = page.locator("#scatter .nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.6 * box["height"], steps=6)
    page.mouse.up()
    page.wait_for_function(
        "() => document.querySelector('#shown').textContent.includes('selected')"
    )
    chosen = int(shown(page).split(", ")[-1].split()[0])
    assert 0 < chosen < 200
    wait_rows(page, chosen)


def test_a_point_and_a_row_lead_to_the_design(page: Any, served: Served) -> None:
    opened(page, served.address)
    page.click("#choice-knee button.link")
    page.wait_for_selector("#side h3")
    wait_points(page, "p => p.data.some(t => t.name.startsWith('chosen design'))")
    page.click("#side a.button")
    page.wait_for_selector("#figures-box")
    assert "/design/digits/" in page.url
    page.click("a.back")
    page.wait_for_selector("#table tbody tr")
    number = page.text_content("#table tbody tr:first-child .trial a")
    page.click("#table tbody tr:first-child .trial a")
    page.wait_for_selector("#figures-box")
    assert str(page.text_content("h1")) == f"Trial {number}"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/design/digits/9999", "has no trial 9999"),
        ("/design/digit/1", "did you mean 'digits'"),
        ("/design/digits/x", "ends with its number"),
        ("/?study=nothing", "no study 'nothing'"),
    ],
)
def test_a_wrong_address_gets_a_sentence(page: Any, served: Served, path: str, said: str) -> None:
    page.goto(served.address + path)
    page.wait_for_selector("main [role=alert]")
    text = str(page.text_content("#page"))
    assert said.lower() in text.lower()
    assert str(served.folder) not in page.content()


def test_new_trials_appear_by_themselves(page: Any, served: Served, tmp_path: Path) -> None:
    url = stored(tmp_path, 40)
    for live in serve(url, tmp_path):
        opened(page, live.address)
        assert "40 of 40" in shown(page)
        newer = sample_trials(41)[40]
        begun = time.monotonic()
        with Storage(url) as storage:
            storage.finish("digits", replace(newer, state=State.FAILED, metrics={}))
        page.wait_for_function(
            "() => document.querySelector('#shown').textContent.startsWith('41')"
        )
        # Five seconds on an idle machine; a poll every two and a redraw. Others share this one.
        assert time.monotonic() - begun < 30
        assert page.evaluate("() => performance.getEntriesByType('navigation').length") == 1


@pytest.mark.parametrize(
    ("trials", "objectives", "said"),
    [
        ([], ("accuracy", "flash"), "No trial has finished yet"),
        ("infeasible", ("accuracy", "flash"), "there is no front yet"),
        ("some", ("accuracy",), "on the Pareto front"),
    ],
)
def test_odd_studies(page: Any, tmp_path: Path, trials: Any, objectives: Any, said: str) -> None:
    found: list[Trial] = sample_trials(30) if trials else []
    if trials == "infeasible":
        found = [
            replace(t, number=i, baseline="")
            for i, t in enumerate(t for t in sample_trials(90) if t.state is State.INFEASIBLE)
        ]
    url = stored(tmp_path, trials=found, objectives=objectives)
    for live in serve(url, tmp_path):
        page.goto(live.address)
        page.wait_for_function(
            f"() => document.querySelector('#lead')?.textContent.includes({said!r})"
        )
        page.wait_for_selector("#table :is(tbody tr, .empty)")
        assert "Traceback" not in page.content()


def test_a_deleted_database_is_a_sentence(page: Any, tmp_path: Path) -> None:
    url = stored(tmp_path, 30)
    for live in serve(url, tmp_path):
        opened(page, live.address)
        for file in tmp_path.glob("browse.db*"):
            file.unlink()
        page.wait_for_selector("#problem:not([hidden])")
        text = str(page.text_content("#problem"))
        assert "no database at browse.db" in text.lower()
        assert str(tmp_path) not in page.content()


def test_a_phone_needs_no_sideways_scrolling(chromium: Any, served: Served) -> None:
    tab = chromium.new_page(viewport={"width": 390, "height": 844})
    tab.set_default_timeout(PATIENCE_MS)
    opened(tab, served.address)
    assert tab.evaluate("() => document.documentElement.scrollWidth") <= 390
    tab.close()


def test_dark_and_light(page: Any, served: Served) -> None:
    opened(page, served.address)
    ground = "() => getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    page.click("#theme")
    assert page.evaluate(ground) != before


def test_the_keyboard_reaches_filter_table_and_design(page: Any, served: Served) -> None:
    opened(page, served.address)
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.className") == "skip"
    page.focus("#table tbody tr:first-child .trial a")
    page.keyboard.press("Enter")
    page.wait_for_selector("#figures-box")


def test_table_as_csv(page: Any, served: Served) -> None:
    opened(page, served.address)
    page.fill("#filter", "front")
    page.wait_for_function("() => !document.querySelector('#shown').textContent.startsWith('200')")
    with page.expect_download() as download:
        page.click("#csv")
    lines = Path(download.value.path()).read_text().splitlines()
    assert "flash_bytes" in lines[0]
    assert len(lines) - 1 == int(shown(page).split()[0])


STUDY = """
name: tiny
workload: digits
training: {epochs: 2, fine_tune_epochs: 1, threads: 1}
space:
  pruning: {ratio: [0, 0.5, 0.75]}
  quantization: {weight_bits: [4, 8]}
  boards: [nucleo_f446re, rpi_pico]
  backends: [native]
objectives: [accuracy, flash, latency]
n_trials: 6
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A real study, being served."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(STUDY)
    url = f"sqlite:///{folder / 'tiny.db'}"
    command = [sys.executable, "-m", "dse.cli", "run", "tiny.yaml", "--storage", url, "-q"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=500)
    yield from serve(url, folder)


def test_the_design_page_of_a_trained_network(page: Any, trained: Served) -> None:
    opened(page, trained.address)
    page.click("#choice-knee button.link")
    page.click("#side a.button")
    for part in ("figures", "layers", "memory", "flash", "proof", "fits", "confusion", "knobs"):
        page.wait_for_selector(f"#{part}-box")
    page.wait_for_selector("#memory-box .main-svg")
    layers = str(page.text_content("#layers-box"))
    assert "conv1" in layers
    assert "dense" in layers
    assert "rpi_pico" in str(page.text_content("#fits-box"))
    assert page.locator("#fits-box td.own").count() == 1
    assert "dse verify" in str(page.text_content("#take-home-box"))
    assert str(trained.folder) not in page.content()


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc to build the bundle")
def test_the_bundle_downloads_and_builds(page: Any, trained: Served, tmp_path: Path) -> None:
    opened(page, trained.address)
    page.click("#choice-knee button.link")
    page.click("#side a.button")
    page.wait_for_selector("#bundle")
    with page.expect_download(timeout=3 * PATIENCE_MS) as download:
        page.click("#bundle")
    with zipfile.ZipFile(download.value.path()) as archive:
        archive.extractall(tmp_path)
    made = next(tmp_path.rglob("Makefile")).parent
    done = subprocess.run(
        ["make", "test"], cwd=made, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("elftools", "unicorn", "capstone"))
    or not compilers(),
    reason="needs a cross compiler and pip install 'dse[firmware]'",
)
def test_a_queued_verification_ends_on_the_page(page: Any, trained: Served) -> None:
    opened(page, trained.address)
    page.click("#choice-knee button.link")
    page.click("#side a.button")
    page.click("button:has-text('Queue a verification')")
    page.wait_for_function(
        "() => /done|failed/.test(document.querySelector('#verify-status').textContent)",
        timeout=4 * PATIENCE_MS,
    )
    assert "20 of 20 outputs match" in str(page.text_content("#verify-status"))
    page.reload()
    page.wait_for_selector("#proof-box")
    assert "exact to the byte" in str(page.text_content("#proof-box"))


def test_the_confusion_matrix_counts_the_test_data(page: Any, trained: Served) -> None:
    opened(page, trained.address)
    page.click("#choice-knee button.link")
    page.click("#side a.button")
    page.click("button:has-text('Classify the test data')")
    page.wait_for_selector("#confusion-plot .main-svg", timeout=4 * PATIENCE_MS)
    said = str(page.text_content("#confusion-body"))
    with Storage.open_readonly(trained.url) as storage:
        number = int(page.url.rsplit("/", 1)[1])
        trial = storage.trial("tiny", number)
        blob = storage.artifact("tiny", number, CONFUSION)
    assert blob is not None
    counts = np.array(json.loads(blob)["counts"])
    assert counts.shape == (10, 10)
    assert counts.sum() == trial.test_samples
    assert trial.test_accuracy is not None
    assert np.trace(counts) / counts.sum() == pytest.approx(trial.test_accuracy.value)
    assert f"{np.trace(counts)} of {counts.sum()} test samples are right" in said
