"""The page beside Optuna's dashboard on the same database: 20,000 trials with four objectives.

Both servers run and read one SQLite file, and one Chromium looks at them: first at dse's page, with
its changes, while nobody has asked the other server anything, then at the other's, so that neither
works while the other is measured. `first page` ends when the Pareto front is drawn (and, of dse,
the table has its rows); the first look has a cold server, the next ones a warm one. A filter or an
axis is seen when the number of trials, the points and the rows of the table are those of the change
(dse.browse draws all three anew). Writes reports/browse.md.

    python benchmarks/browse.py                # makes the database first, some minutes
    python benchmarks/browse.py --trials 2000
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from playwright.sync_api import TimeoutError, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))

from dse.filter import filter_mask
from dse.front import Front
from dse.overview import read_overview
from dse.storage import Storage
from dse.trial import Trial
from tests.browse_samples import record
from tests.report_samples import sample_trials

REPORT = Path(__file__).parents[1] / "reports" / "browse.md"
PATIENCE_MS = 45_000
REST_MS = 3000  # between two changes, as a person would
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PART, PAUSE_S = 60, 0.1  # trials a turn of the watched study, and between two of them
DRAWN = (
    "() => {const p = document.querySelector('#scatter .js-plotly-plot');"
    "return p && p.data && p.data.length && document.querySelector('#table tbody tr')}"
)
WHOLE = (
    "() => document.querySelector('#scatter .js-plotly-plot').data"
    ".some(t => t.name.startsWith('dominated'))"
)
REMEMBER = """() => {
  const plot = document.querySelector('#scatter .js-plotly-plot');
  window.before = {
    shown: document.querySelector('#shown').textContent,
    rows: document.querySelector('#table tbody'),
    drawn: false,
  };
  plot.once('plotly_afterplot', () => { window.before.drawn = true; });
}"""
CHANGED = """() => window.before.drawn
  && document.querySelector('#shown').textContent !== window.before.shown
  && document.querySelector('#table tbody') !== window.before.rows"""
PEER_DRAWN = (
    "() => (document.querySelector('#graph-pareto-front')?.data || [])"
    ".reduce((n, t) => n + (t.x?.length || 0), 0) > 10"
)


def make(url: str, count: int) -> None:
    """The study, every trial in a transaction of its own with the front it changes."""
    study = record(name="bench", n_trials=count)
    front = Front(study)
    with Storage(url) as storage:
        storage.create(study)
        for trial in sample_trials(count):
            storage.finish(study.name, trial, *front.after(trial))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@contextmanager
def server(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server that answers on a port, and is ended afterwards."""
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(1200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield running
    finally:
        running.terminate()
        running.wait(20)


def peak_mib(process: subprocess.Popen[bytes]) -> float:
    """The most memory a process has had, in MiB."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else float("nan")


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def look(browser: Any, address: str, drawn: str) -> tuple[Any, float]:
    """A new tab at an address, and the seconds until it has drawn; infinite without patience."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.set_default_timeout(PATIENCE_MS)
    begun = time.perf_counter()
    tab.goto(address)
    try:
        tab.wait_for_function(drawn)
    except TimeoutError:
        return tab, math.inf
    return tab, time.perf_counter() - begun


def change_filter(tab: Any, text: str) -> float:
    """Seconds from a new filter to its number of trials, its points and its rows."""
    tab.wait_for_timeout(REST_MS)
    tab.evaluate(REMEMBER)
    begun = time.perf_counter()
    tab.fill("#filter", text)
    tab.wait_for_function(CHANGED)
    return time.perf_counter() - begun


def change_axis(tab: Any, name: str) -> float:
    """Seconds from choosing an axis to its points."""
    tab.wait_for_timeout(REST_MS)
    tab.click("#x")
    option = tab.get_by_role("option", name=name, exact=True)
    option.wait_for()
    begun = time.perf_counter()
    option.click()
    title = name[0].upper() + name[1:]
    tab.wait_for_function(
        "title => document.querySelector('#scatter .g-xtitle').textContent.startsWith(title)",
        arg=title,
    )
    return time.perf_counter() - begun


def changes(tab: Any) -> dict[str, list[float]]:
    filters = ["flash < 16 KiB", "board == rpi-pico", "latency < 2 ms and bits <= 4", "front"]
    found = {"filter": [change_filter(tab, text) for text in filters]}
    change_filter(tab, "trial >= 0")
    found["axis"] = [change_axis(tab, name) for name in ("latency", "RAM", "flash", "latency")]
    return found


def reading(url: str) -> dict[str, float]:
    """Seconds without a browser: read, front, filter, and the same front by Optuna."""
    with Storage.open_readonly(url) as storage:
        read_overview(storage, "bench")
        found = {"read all trials": seconds(lambda: read_overview(storage, "bench"))}
        overview = read_overview(storage, "bench")
    rows = overview.flag("eligible") & np.isfinite(overview.values()).all(axis=1)
    values = overview.values(rows)
    found["front of four objectives"] = statistics.median(
        seconds(lambda: overview.record.box.front(values)) for _ in range(5)
    )
    text = "flash < 16 KiB and board == rpi-pico and not verified"
    found["filter"] = statistics.median(
        seconds(lambda: filter_mask(text, overview.table)) for _ in range(5)
    )
    begun = time.perf_counter()
    study = optuna.load_study(study_name="bench", storage=url)
    study.get_trials(deepcopy=False)
    found["Optuna: read all trials"] = time.perf_counter() - begun
    found["Optuna: front (best_trials)"] = seconds(lambda: study.best_trials)
    return found


def browse(url: str, looks: int) -> dict[str, Any]:
    ours, theirs = free_port(), free_port()
    page = [sys.executable, "-m", "dse.cli", "browse", "--storage", url, "--port", str(ours)]
    peer = [str(Path(sys.executable).with_name("optuna-dashboard")), url, "--port", str(theirs)]
    found: dict[str, Any] = {"ours": [], "whole": [], "theirs": []}
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        with server(page, ours) as mine, server(peer, theirs) as other:
            for turn in range(looks):
                tab, took = look(browser, f"http://127.0.0.1:{ours}/", DRAWN)
                found["ours"].append(took)
                found["whole"].append(took + seconds(partial(tab.wait_for_function, WHOLE)))
                if turn == looks - 1:
                    found["changes"] = changes(tab)
                tab.close()
            found["memory"], found["load"] = [peak_mib(mine)], os.getloadavg()[0]
            for _ in range(looks):
                address = f"http://127.0.0.1:{theirs}/dashboard/studies/1"
                tab, took = look(browser, address, PEER_DRAWN)
                found["theirs"].append(took)
                tab.close()
            found["memory"].append(peak_mib(other))
        browser.close()
    return found


def write(storage: Storage, trials: Sequence[Trial]) -> list[float]:
    """Seconds that storing each trial takes, with a pause as if it were being trained."""
    found = []
    for trial in trials:
        time.sleep(PAUSE_S)
        found.append(seconds(partial(storage.finish, "watched", trial)))
    return found


def watched(folder: Path) -> dict[str, list[float]]:
    """Seconds to store a trial, in turns with nobody looking and with an open page that reloads."""
    url, port = f"sqlite:///{folder / 'watched.db'}", free_port()
    trials = sample_trials(8 * PART)
    page = [sys.executable, "-m", "dse.cli", "browse", "--storage", url, "--port", str(port)]
    found: dict[str, list[float]] = {"alone": [], "watched": []}
    with Storage(url) as storage, sync_playwright() as started:
        storage.create(record(name="watched", n_trials=len(trials)))
        found["first"] = write(storage, trials[:PART])
        with server(page, port):
            browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            for turn in range(1, 7):
                tab = browser.new_page()
                if turn % 2:
                    tab.goto(f"http://127.0.0.1:{port}/")
                part = trials[turn * PART : (turn + 1) * PART]
                found["watched" if turn % 2 else "alone"] += write(storage, part)
                tab.close()
            browser.close()
        stored = [trial.number for trial in storage.trials("watched")]
    assert stored == list(range(7 * PART)), "a trial was lost"
    return found


def report(
    count: int, read: dict[str, float], seen: dict[str, Any], stored: dict[str, list[float]]
) -> str:
    ours, theirs, memory = seen["ours"], seen["theirs"], seen["memory"]
    filters, axes = seen["changes"]["filter"], seen["changes"]["axis"]
    lines = [
        "# The page beside Optuna's dashboard",
        "",
        f"`python benchmarks/browse.py --trials {count}`: {count:,} trials, four objectives, one "
        "SQLite file, one Chromium, both servers in the same run; dse's page is looked at "
        "first, the other server idle, then the other's. Load average after dse's looks: "
        f"{seen['load']:.1f} on {os.cpu_count()} cores.",
        "",
        "| what | dse browse | Optuna's dashboard | ratio |",
        "| --- | --- | --- | --- |",
        _row("first page, cold", ours[0], theirs[0], "s"),
        _row("first page, warm", min(ours[1:]), min(theirs[1:]), "s"),
        _row("every design drawn, warm", min(seen["whole"][1:]), min(theirs[1:]), "s"),
        _row("memory, most", memory[0], memory[1], "MiB"),
        _row("read all trials", read["read all trials"], read["Optuna: read all trials"], "s"),
        _row(
            "front of four objectives",
            read["front of four objectives"],
            read["Optuna: front (best_trials)"],
            "s",
        ),
        "",
        f"A filter is seen in the number of trials, the points and the table after "
        f"{statistics.median(filters):.2f} s ({_range(filters)}, 0.2 s of it waiting for the last "
        f"key), another axis after {statistics.median(axes):.2f} s ({_range(axes)}). The filter "
        f"itself takes {1000 * read['filter']:.1f} ms, the front "
        f"{1000 * read['front of four objectives']:.1f} ms.",
        "",
        f"A study that is watched: {len(stored['watched'])} trials stored while a page was open "
        f"and redrew with each, {len(stored['alone'])} with nobody looking, in turns. One took "
        f"{1000 * statistics.median(stored['watched']):.1f} ms and "
        f"{1000 * statistics.median(stored['alone']):.1f} ms (medians); the slowest "
        f"{1000 * max(stored['watched']):.0f} ms and {1000 * max(stored['alone']):.0f} ms. No lock "
        "error, no trial lost. On this machine the browser itself takes part of the same cores.",
        "",
    ]
    return "\n".join(lines)


def _range(found: list[float]) -> str:
    return f"{min(found):.2f} to {max(found):.2f} s"


def _row(what: str, ours: float, theirs: float, unit: str) -> str:
    if math.isinf(theirs):
        theirs = PATIENCE_MS / 1000
        return f"| {what} | {ours:.3g} {unit} | over {theirs:.3g} s | over {theirs / ours:.3g}x |"
    return f"| {what} | {ours:.3g} {unit} | {theirs:.3g} {unit} | {theirs / ours:.3g}x |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20_000)
    parser.add_argument("--looks", type=int, default=2)
    parser.add_argument("--database", help="a file that an earlier run made", default="")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(given.database or Path(folder) / "bench.db").resolve()
        url = f"sqlite:///{path}"
        if not path.exists():
            make(url, given.trials)
        text = report(given.trials, reading(url), browse(url, given.looks), watched(Path(folder)))
    REPORT.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
