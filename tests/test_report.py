"""The report: its files, what it chooses to say, and that nothing in it is loaded or executed."""

from __future__ import annotations

import base64
import csv
import gzip
import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from plotly.offline import get_plotlyjs

from dse.errors import StorageError
from dse.report import ReportFiles, write_report
from dse.report.designs import Designs, describe, interval, unverified
from dse.report.figures import parallel, scatter, scatter_data
from dse.report.page import packed
from dse.rows import StudyRecord
from dse.trial import METRICS, Metric, State, Trial
from dse.units import format_value
from tests.report_samples import MADE_WITH, judged, sample_fronts, sample_record, sample_trials

HOSTILE = "</script><script>alert(1)</script><!--'\"&<b>"


def written(folder: Path, record: StudyRecord, trials: list[Trial]) -> ReportFiles:
    return write_report(record, trials, sample_fronts(record, trials), folder, MADE_WITH)


@pytest.fixture(scope="module")
def trials() -> list[Trial]:
    return sample_trials(200)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, trials: list[Trial]) -> ReportFiles:
    return written(tmp_path_factory.mktemp("report"), sample_record(), trials)


def page_of(files: ReportFiles) -> str:
    """The page without plotly's own code."""
    text = files.html.read_text(encoding="utf-8")
    code = packed(get_plotlyjs())
    assert text.count(code) == 1
    return text.replace(code, "")


class Elements(HTMLParser):
    """Every start tag with its attributes, and the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] == "script":
            self.scripts[-1] += data


def figures_of(files: ReportFiles) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(unpacked(Elements(page_of(files)).scripts[0]))
    return found


def unpacked(text: str) -> str:
    return gzip.decompress(base64.b64decode(text)).decode()


# ------------------------------------------------------------------ one offline file


def test_the_page_loads_nothing(files: ReportFiles) -> None:
    elements = Elements(page_of(files)).found
    links = [value for _, attrs in elements for key in ("src", "href") if (value := attrs.get(key))]
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in elements}
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|https?://", page_of(files))
    policy = next(attrs["content"] for tag, attrs in elements if "http-equiv" in attrs) or ""
    assert policy.startswith("default-src 'none'")
    assert "connect-src" not in policy
    assert "http" not in policy


@pytest.mark.slow
def test_twenty_thousand_trials_stay_under_six_megabytes(tmp_path: Path) -> None:
    record, many = sample_record(), sample_trials(20_000)
    files = write_report(record, many, [], tmp_path, MADE_WITH)
    assert files.html.stat().st_size < 6_000_000
    assert len(figures_of(files)["scatter_data"]["traces"]) >= 4


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    """Wherever a name can come from: the study, a board, a reason, a source, a fact, a knob."""
    record = replace(
        sample_record(),
        name=HOSTILE,
        workload=HOSTILE,
        constraints=(HOSTILE,),
        study_file=HOSTILE,
        sampler=HOSTILE,
        versions={HOSTILE: HOSTILE},
    )
    evil = []
    for trial in sample_trials(40):
        candidate = {**trial.candidate, "criterion": f"{HOSTILE}{trial.number % 2}"}
        candidate["target"] = {"board": f"{HOSTILE}{trial.number % 3}", "backend": HOSTILE}
        metrics = {name: replace(m, source=HOSTILE) for name, m in trial.metrics.items()}
        changes = {"violations": {HOSTILE: 0.5}, "reason": HOSTILE}
        rejected = trial.state is not State.COMPLETE
        evil.append(
            replace(
                trial,
                candidate=candidate,
                metrics=metrics,
                baseline=f"{trial.baseline}{HOSTILE}" if trial.baseline else "",
                params={HOSTILE: 1},
                **(changes if rejected else {}),  # type: ignore[arg-type]
            )
        )
    made_with = {HOSTILE: HOSTILE}
    fronts = sample_fronts(record, evil)
    files = write_report(record, evil, fronts, tmp_path, made_with)
    elements = Elements(page_of(files))
    assert sum(tag == "script" for tag, _ in elements.found) == 3
    assert len(elements.scripts) == 3
    assert not any("alert(1)" in script for script in elements.scripts[1:])
    json.loads(unpacked(elements.scripts[0]))
    assert not any(tag == "b" for tag, _ in elements.found)
    assert html.escape(HOSTILE) in page_of(files)
    hovers = [
        text
        for trace in figures_of(files)["scatter"]["data"]
        for text in trace.get("hovertext", [])
    ]
    assert hovers
    assert not any("<script" in text for text in hovers)


def test_the_page_says_what_it_was_made_with(files: ReportFiles) -> None:
    text = html.unescape(page_of(files))
    record = sample_record()
    for said in (*MADE_WITH.values(), record.study_file, record.space_hash, "tpe", "optuna 5.0.0"):
        assert said in text
    for name in record.constraints:
        assert name in text


def test_unverified_figures_are_marked(files: ReportFiles, tmp_path: Path) -> None:
    assert page_of(files).count("unverified</") >= 3  # the column's head and both boards' sources
    clean = [
        replace(t, metrics={n: replace(m, source="bench") for n, m in t.metrics.items()})
        for t in sample_trials(20)
    ]
    assert "unverified</" not in page_of(written(tmp_path, sample_record(), clean))
    assert unverified("active power, Unverified")
    assert not unverified("active power, measured")


# ------------------------------------------------------------------ the front, as CSV and JSON


def front_numbers(record: StudyRecord, trials: list[Trial]) -> set[int]:
    """By the definition, without the module under test."""
    signs = [METRICS[name].sign for name in record.objectives]
    points = {
        t.number: np.array(
            [s * (t.value(n) or 0) for s, n in zip(signs, record.objectives, strict=True)]
        )
        for t in trials
        if t.state is State.COMPLETE
    }
    return {
        number
        for number, point in points.items()
        if not any((o <= point).all() and (o < point).any() for o in points.values())
    }


@pytest.mark.parametrize(
    "objectives",
    [
        ("accuracy", "flash"),
        ("accuracy", "flash", "latency"),
        ("flash", "ram", "energy", "accuracy"),
    ],
)
def test_every_form_of_the_front_is_the_front(tmp_path: Path, objectives: Any) -> None:
    record, trials = sample_record(objectives), sample_trials(150, seed=5)
    expected = front_numbers(record, trials)
    assert len(expected) > 3
    files = written(tmp_path, record, trials)
    with files.csv.open(newline="") as stream:
        assert {int(row["trial"]) for row in csv.DictReader(stream)} == expected
    stored = json.loads(files.json.read_text())
    assert {found["trial"] for found in stored["designs"]} == expected
    table = page_of(files).split('id="front-table"')[1].split("</table>")[0]
    rows = re.findall(r'<tr><td class="number" data-sort="(\d+)"', table)
    assert {int(number) for number in rows} == expected
    download = Elements(page_of(files)).found
    link = next(attrs["href"] or "" for _, attrs in download if "download" in attrs)
    assert unquote(link.split(",", 1)[1]) == files.csv.read_text()


def test_csv_brings_every_trial_back(files: ReportFiles, trials: list[Trial]) -> None:
    with files.trials_csv.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(trials)
    for row, trial in zip(rows, trials, strict=True):
        assert int(row["trial"]) == trial.number
        assert row["state"] == trial.state.value
        assert row["reason"] == trial.reason
        for name, kind in METRICS.items():
            found = float(row[kind.column]) if row[kind.column] else None
            assert found == trial.value(name)  # exactly
            low = trial.metrics[name].low if name in trial.metrics else None
            assert (float(row[f"{kind.column}_low"]) if found is not None else None) == low
        for knob, value in trial.params.items():
            assert row[f"knob:{knob}"] == str(value)


def test_json_has_a_version_and_every_interval(files: ReportFiles, trials: list[Trial]) -> None:
    stored = json.loads(files.json.read_text())
    assert stored["schema"] == "dse.front/1"
    assert stored["made_with"] == MADE_WITH
    record = sample_record()
    assert stored["hypervolume"] == pytest.approx(
        record.box.hypervolume(Designs(record, trials).values([t for t in trials if t.feasible]))
    )
    for found in stored["designs"]:
        trial = trials[found["trial"]]
        for name, metric in trial.metrics.items():
            column = found["metrics"][METRICS[name].column]
            assert Metric(**column) == metric
        assert found["candidate"] == trial.candidate


# ------------------------------------------------------------------ what it chooses to say


def test_the_best_designs_are_what_their_titles_say(trials: list[Trial]) -> None:
    designs = Designs(sample_record(), trials)
    titled = {title: pick.trial for pick in designs.picks for title in pick.titles}
    base = designs.baseline
    assert base is not None
    least = (base.value("accuracy") or 0) - 0.01
    close = [
        t for t in trials if t.feasible and not t.baseline and (t.value("accuracy") or 0) >= least
    ]
    for title, name in (("Smallest flash", "flash"), ("Fastest", "latency")):
        best = min(t.value(name) or 0 for t in close)
        assert titled[f"{title} within 1 point of float32"].value(name) == best
    plain = [t for t in trials if t.feasible and not t.baseline]
    top = max(t.value("accuracy") or 0 for t in plain)
    assert titled["Most accurate"].value("accuracy") == top
    assert titled["Knee of the front"].number in designs.front_numbers


def test_without_a_baseline_near_the_best_of_all_is_shown() -> None:
    designs = Designs(sample_record(), sample_trials(60)[2:])
    titles = [title for pick in designs.picks for title in pick.titles]
    assert "Smallest flash" in titles
    assert all("float32" not in text for text in (*titles, *(p.why for p in designs.picks)))


def test_reasons_are_counted_once_a_trial() -> None:
    trials = [judged(t, 0.86) if t.feasible else t for t in sample_trials(200)]
    designs = Designs(sample_record(), trials)
    lost = [t for t in trials if t.state in (State.INFEASIBLE, State.FAILED)]
    assert sum(miss.count for miss in designs.misses) == len(lost)
    causes = {miss.cause: miss for miss in designs.misses}
    assert set(causes) == {
        "ram <= 24 KiB",
        "accuracy >= baseline - 10 %",
        "training diverged: nan",
    }
    over = [t for t in trials if t.violations.get("ram <= 24 KiB", 0) > 0]
    nearest = min(over, key=lambda t: t.violations["ram <= 24 KiB"])
    assert causes["ram <= 24 KiB"].example == nearest.reason
    assert causes["training diverged: nan"].failed


def test_sources_count_every_feasible_design(trials: list[Trial]) -> None:
    designs = Designs(sample_record(), trials)
    for name in designs.metrics:
        counted = sum(source.count for source in designs.sources if source.metric == name)
        assert counted == len(designs.feasible)


def test_words_for_designs_and_intervals() -> None:
    trial = sample_trials(3)[2]
    assert "int8" in describe(trial)
    kept = {**trial.candidate, "kept": {"conv1": 0.25, "fc": 1.0}}
    assert "weights kept 25-100 %" in describe(replace(trial, candidate=kept))
    deep = {**trial.candidate, "bits": {f"conv{i}": 2 + i % 7 for i in range(30)}}
    assert "(30 layers)" in describe(replace(trial, candidate=deep))
    assert describe(replace(trial, candidate={})) == ""
    assert interval("latency", Metric(2e-3, 1e-3, 3e-3, "modelled")) == "1 to 3 ms"
    assert interval("latency", Metric(2e-3, 9e-4, 3e-3, "modelled")) == "900 µs to 3 ms"
    assert interval("flash", Metric(8, 8, 8, "measured")) == ""
    assert interval("flash", Metric.unavailable("no")) == ""


# ------------------------------------------------------------------ figures


def test_every_trial_with_both_metrics_is_drawn_once(trials: list[Trial]) -> None:
    designs = Designs(sample_record(), trials)
    figure = scatter(designs, "flash", "accuracy")
    traces = {trace.meta: trace for trace in figure.data}
    drawn: list[int] = []
    for key in ("infeasible", "dominated", "front", "float-baseline", "int8-baseline"):
        trace = traces[key]
        drawn += [n for n, y in zip(trace.customdata, trace.y, strict=True) if y is not None]
    both = [t.number for t in trials if t.value("flash") and t.value("accuracy")]
    assert sorted(drawn) == both
    assert set(traces["front"].customdata) == designs.front_numbers - {0, 1}
    only_cost = [t for t in trials if t.value("flash") and t.value("accuracy") is None]
    assert len(traces["untried"].x) == len(only_cost) > 0
    assert traces["infeasible"].marker.color == "#CCCCCC"
    assert traces["float-baseline"].marker.symbol != traces["int8-baseline"].marker.symbol
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == ("log", "linear")
    assert figure.layout.xaxis.title.text == "Flash (KiB)"


def test_points_and_bars_are_the_stored_intervals(trials: list[Trial]) -> None:
    designs = Designs(sample_record(), trials)
    figure = scatter(designs, "latency", "accuracy")
    front = next(trace for trace in figure.data if trace.meta == "front")
    for at, number in enumerate(front.customdata):
        metric = trials[number].metrics["latency"]
        assert metric.value is not None
        assert metric.low is not None
        assert metric.high is not None
        x, down, up = front.x[at], front.error_x.arrayminus[at], front.error_x.array[at]
        assert [1e-3 * x, 1e-3 * (x - down), 1e-3 * (x + up)] == pytest.approx(
            [metric.value, metric.low, metric.high]
        )
        assert format_value("accuracy", trials[number].value("accuracy")) in front.hovertext[at]
        assert f"Trial {number}<" in front.hovertext[at]


@pytest.mark.parametrize(
    "axes", [("flash", "accuracy"), ("latency", "ram"), ("accuracy", "energy")]
)
def test_the_dotted_line_is_the_front_of_the_two_metrics(trials: list[Trial], axes: Any) -> None:
    record = sample_record(axes)
    figure = scatter(Designs(sample_record(), trials), *axes)
    line = next(trace for trace in figure.data if trace.meta == "staircase")
    expected = {
        tuple(trials[number].value(name) for name in axes)
        for number in front_numbers(record, trials)
    }
    assert len(line.x) == len(expected)


def test_the_pickers_know_every_metric_of_every_trace(trials: list[Trial]) -> None:
    designs = Designs(sample_record(), trials)
    data = scatter_data(designs)
    figure = scatter(designs, "flash", "accuracy")
    assert set(data["axes"]) == set(designs.metrics) == set(METRICS)
    # The script counts on this order: the staircase, a trace a group, the untried.
    assert len(figure.data) == len(data["traces"]) + 2
    for found, trace in zip(data["traces"], figure.data[1:-1], strict=True):
        assert list(trace.x) == found["points"]["flash"]["value"]
        assert len(found["feasible"]) == len(trace.hovertext)


def test_parallel_coordinates_show_the_feasible_designs(trials: list[Trial]) -> None:
    designs = Designs(sample_record(), trials)
    lines = parallel(designs).data[0]
    shown = [t for t in trials if t.feasible and not t.baseline]
    assert sum(lines.line.color) == len(designs.front_numbers - {0, 1})
    assert [dimension.label for dimension in lines.dimensions][:3] == [
        "Accuracy (%)",
        "Flash (KiB)",
        "Latency (ms)",
    ]
    assert all(len(dimension["values"]) == len(shown) for dimension in lines.dimensions)


# ------------------------------------------------------------------ studies at the edge


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_small_studies(tmp_path: Path, count: int) -> None:
    files = written(tmp_path, sample_record(), sample_trials(count))
    with files.trials_csv.open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == count
    said = {0: "No trial has finished yet", 1: "One design was tried", 2: "Of 2 designs tried"}
    assert said.get(count, "Of 3 designs tried") in page_of(files)


def test_a_study_without_a_feasible_design_shows_the_nearest_misses(tmp_path: Path) -> None:
    trials = [judged(t, 0.999) if t.feasible else t for t in sample_trials(60)]
    assert not any(trial.feasible for trial in trials)
    files = written(tmp_path, sample_record(), trials)
    designs = Designs(sample_record(), trials)
    assert "No design meets every constraint" in page_of(files)
    assert html.escape(designs.rejected[0].reason) in page_of(files)
    assert json.loads(files.json.read_text())["designs"] == []
    assert len(files.csv.read_text().splitlines()) == 1


def test_unknown_metrics_and_infinite_intervals(tmp_path: Path) -> None:
    trials = []
    for trial in sample_trials(30):
        metrics = {**trial.metrics, "energy": Metric.unavailable("no power for this board")}
        if "latency" in metrics:
            value = trial.value("latency")
            metrics["latency"] = Metric(value, 0.0, float("inf"), "estimated", "another tool")
        trials.append(replace(trial, metrics=metrics if trial.metrics else {}))
    files = written(tmp_path, sample_record(), trials)
    assert "NaN" not in json.dumps(figures_of(files))
    assert "Infinity" not in json.dumps(figures_of(files))
    assert '<option value="energy"' not in page_of(files)
    text = files.json.read_text()
    assert "Infinity" not in text
    assert json.loads(text)["designs"][0]["metrics"]["latency_s"]["high"] is None


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write the report into"):
        written(tmp_path / "file", sample_record(), sample_trials(5))
