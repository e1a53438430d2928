"""The page in a real browser, from file://: figures are drawn, table and pickers work."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dse.report import ReportFiles, write_report
from dse.rows import StudyRecord
from dse.trial import Trial
from tests.report_samples import MADE_WITH, judged, sample_fronts, sample_record, sample_trials

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None, reason="needs Chromium: apt-get install chromium (Debian, Ubuntu)"
    ),
]

# A person at the page, in script: other axes, a filter, a sorted column, intervals off.
PERSON = """<script>
const wait = setInterval(() => {
  if (document.body.dataset.ready !== "yes") return;
  clearInterval(wait);
  const set = (id, value) => {
    const element = document.getElementById(id);
    if (typeof value === "boolean") element.checked = value; else element.value = value;
    element.dispatchEvent(new Event("change"));
    element.dispatchEvent(new Event("input"));
  };
  set("x-metric", "latency");
  set("y-metric", "ram");
  set("y-log", true);
  set("bars", false);
  set("filter", "RPI-PICO native");
  const heads = [...document.querySelectorAll("#front-table th button")];
  heads.find((head) => head.textContent === "Accuracy").click();
  heads.find((head) => head.textContent === "Accuracy").click();
  const plot = document.getElementById("scatter");
  document.body.dataset.person = JSON.stringify({
    xtitle: plot.layout.xaxis.title.text,
    ytitle: plot.layout.yaxis.title.text,
    ytype: plot.layout.yaxis.type,
    bars: plot.data.some((trace) => trace.error_x && trace.error_x.visible),
    shown: document.getElementById("shown").textContent,
    rows: [...document.querySelectorAll("#front-table tbody tr")]
      .filter((row) => !row.hidden)
      .map((row) => [Number(row.cells[0].dataset.sort), Number(row.cells[1].dataset.sort)]),
    steps: plot.data[0].x.length,
  });
}, 20);
</script>
"""


@pytest.fixture
def dump(tmp_path: Path) -> Callable[[Path], str]:
    """The document after its scripts ran, as Chromium sees it without any network."""

    def browse(page: Path) -> str:
        profile = tmp_path / "profile"
        command = [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--proxy-server=http://127.0.0.1:9",  # nothing answers there
            f"--user-data-dir={profile}",
            "--window-size=1280,1600",
            "--virtual-time-budget=15000",
            "--enable-logging=stderr",
            "--dump-dom",
            page.as_uri(),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
        shutil.rmtree(profile, ignore_errors=True)
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        assert not [line for line in console if "rror" in line or "efused" in line], console
        return done.stdout

    return browse


def written(folder: Path, record: StudyRecord, trials: list[Trial]) -> ReportFiles:
    return write_report(record, trials, sample_fronts(record, trials), folder, MADE_WITH)


def check_drawn(text: str, figures: tuple[str, ...]) -> None:
    body = re.search(r"<body[^>]*>", text)
    assert body is not None
    assert 'data-ready="yes"' in body[0]
    assert "data-error" not in body[0]
    for name in figures:
        element = text.split(f'id="{name}"')[1][:4000]
        assert 'class="main-svg"' in element, name


def test_every_figure_is_drawn(tmp_path: Path, dump: Callable[[Path], str]) -> None:
    text = dump(written(tmp_path, sample_record(), sample_trials(200)).html)
    check_drawn(text, ("scatter", "hypervolume", "parallel"))
    points = text.split('id="scatter"')[1].split('id="front-box"')[0]
    assert len(re.findall(r'<path class="point[ "]', points)) > 190  # all but the failed ones
    assert "Flash (KiB)" in points


def test_pickers_filter_and_sorting(tmp_path: Path, dump: Callable[[Path], str]) -> None:
    trials = sample_trials(200)
    files = written(tmp_path, sample_record(), trials)
    page = files.html.read_text(encoding="utf-8")
    files.html.write_text(page.replace("</body>", PERSON + "</body>"), encoding="utf-8")
    text = dump(files.html)
    check_drawn(text, ("scatter",))
    found = re.search(r'data-person="([^"]*)"', text)
    assert found is not None
    seen = json.loads(html.unescape(found[1]))
    assert (seen["xtitle"], seen["ytitle"], seen["ytype"]) == ("Latency (ms)", "RAM (KiB)", "log")
    assert seen["bars"] is False
    pico = [number for number, _ in seen["rows"]]
    front = json.loads(files.json.read_text())["designs"]
    expected = {d["trial"] for d in front if d["candidate"]["target"]["board"] == "rpi-pico"}
    assert set(pico) == expected
    assert seen["shown"] == f"{len(expected)} of {len(front)} designs"
    accuracies = [accuracy for _, accuracy in seen["rows"]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies == [trials[number].value("accuracy") for number in pico]
    pairs = [(t.value("latency") or 0, t.value("ram") or 0) for t in trials if t.feasible]
    steps = {p for p in pairs if not any(o <= p and o[1] <= p[1] and o != p for o in pairs)}
    assert seen["steps"] == len(steps)


@pytest.mark.parametrize("case", ["one trial", "nothing feasible", "hostile"])
def test_odd_studies_have_no_script_error(
    tmp_path: Path, dump: Callable[[Path], str], case: str
) -> None:
    record, trials = sample_record(), sample_trials(40)
    if case == "one trial":
        trials = trials[:1]
    elif case == "nothing feasible":
        trials = [judged(t, 0.999) if t.feasible else t for t in trials]
    else:
        evil = "</script><img src=x onerror=\"document.body.dataset.error='ran'\">"
        trials = [
            replace(t, reason=evil, baseline=t.baseline and t.baseline + evil) for t in trials
        ]
        record = replace(record, name=evil)
    check_drawn(dump(written(tmp_path, record, trials).html), ("scatter",))
