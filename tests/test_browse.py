"""What the page is made of, without a browser: reading, guarding, figures, table, secrets."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("dash", reason="needs Dash (extra 'browse')")

from dse.browse import charts
from dse.browse.design import _own_cost, design_page, read_design
from dse.browse.library import Library, place_of, uid_of
from dse.browse.listing import PAGE, Order, csv_text, listing, ordered
from dse.browse.scatter import Options, limits_of, scatter
from dse.browse.server import COOKIE, make_app
from dse.browse.thinning import DRAWN, inside, thinned
from dse.browse.view import View
from dse.errors import DseError, StorageError, StudyError
from dse.storage import Storage
from dse.trial import METRICS, State
from tests.browse_samples import OBJECTIVES, record, stored
from tests.command_line import Dse
from tests.report_samples import sample_trials


def view_of(url: str, *names: str, where: str = "", selected: Any = None) -> View:
    library = Library(url)
    overviews = library.overviews(names or ("digits",))
    return View.of(overviews, library.joined(overviews), where, selected)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("browse")
    stored(folder, 60, name="earlier", seed=1)
    return stored(folder, 200)


def unpacked(values: dict[str, str]) -> list[float]:
    import base64

    kind = f"<{values['dtype']}"
    return list(np.frombuffer(base64.b64decode(values["bdata"]), dtype=kind).tolist())


# ------------------------------------------------------------------ reading


def test_only_what_is_newer_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, trials = stored(tmp_path, 50), sample_trials(60)
    library, since = Library(url), []
    read = Storage.table

    def watched(self: Storage, name: str, **options: Any) -> Any:
        since.append(options.get("since", 0))
        return read(self, name, **options)

    monkeypatch.setattr(Storage, "table", watched)
    first = library.overview("digits")
    assert library.overview("digits") is first  # nothing changed, nothing is read
    with Storage(url) as storage:
        storage.finish("digits", trials[50])
    assert len(library.overview("digits").table) == 51
    assert since == [0, 50]


def test_a_running_trial_is_read_again(tmp_path: Path) -> None:
    url, trials = stored(tmp_path, 40), sample_trials(42)
    library = Library(url)
    with Storage(url) as storage:
        storage.begin("digits", replace(trials[40], state=State.RUNNING, metrics={}))
        storage.finish("digits", replace(trials[41], state=State.FAILED, metrics={}))
    assert library.overview("digits").table["state"].iloc[40] == "running"
    with Storage(url) as storage:
        storage.finish("digits", trials[40])
    assert library.overview("digits").table["state"].iloc[40] == trials[40].state.value


def test_messages_hide_paths_and_passwords(tmp_path: Path) -> None:
    library = Library(f"sqlite:///{tmp_path / 'gone.db'}")
    with pytest.raises(StorageError) as error:
        library.mark()
    assert library.public(str(error.value)).startswith("there is no database at gone.db")
    server = Library("postgresql://ann:secret@host.example/studies")
    for text in (server.shown_name, server.storage_option, server.public(f"at {server.url}")):
        assert not {"secret", "ann", "host.example"} & set(re.findall(r"[\w.]+", text))


def test_places_of_trials_in_a_view() -> None:
    assert place_of(uid_of(1, 7), ["a", "b"]) == ("b", 7)
    assert place_of(uid_of(2, 7), ["a", "b"]) is None


def test_a_newer_schema_is_a_sentence(tmp_path: Path) -> None:
    import sqlite3

    url = stored(tmp_path, 10)
    with sqlite3.connect(tmp_path / "browse.db") as connection:
        connection.execute("update dse_schema_version set version_num = '9999'")
    with pytest.raises(StorageError, match="a newer dse wrote it"):
        Library(url).overview("digits")


@pytest.mark.slow
def test_a_watched_study_loses_no_trial(tmp_path: Path) -> None:
    """A hundred reloads by two readers while a study writes."""
    url, trials = stored(tmp_path, 30), sample_trials(230)
    failures: list[Exception] = []
    done = threading.Event()

    def reload() -> None:
        for _ in range(50):
            try:
                view = view_of(url)
                scatter(view, Options("flash", "accuracy"))
                listing(view, Order())
            except DseError as error:
                failures.append(error)
        done.wait(60)

    readers = [threading.Thread(target=reload) for _ in range(2)]
    for reader in readers:
        reader.start()
    with Storage(url) as storage:
        for trial in trials[30:]:
            storage.begin("digits", replace(trial, state=State.RUNNING, metrics={}))
            storage.finish("digits", trial)
    done.set()
    for reader in readers:
        reader.join()
    assert not failures
    with Storage.open_readonly(url) as storage:
        assert [trial.number for trial in storage.trials("digits")] == list(range(230))


# ------------------------------------------------------------------ views


def test_the_scatter_draws_every_design_once(url: str) -> None:
    view = view_of(url)
    figure = scatter(view, Options("flash", "accuracy"))
    marks = [t for t in figure["data"] if t.get("hoverinfo") == "none"]
    drawn = [uid for trace in marks for uid in trace["customdata"]]
    known = np.isfinite(view.values("flash"))
    assert sorted(drawn) == view.table["uid"][known].tolist()
    assert any(shape["type"] == "line" for shape in figure["layout"]["shapes"])
    json.dumps(figure)  # plain values: nothing of numpy is left


def test_of_many_points_an_even_part_is_drawn() -> None:
    source = np.random.default_rng(0)
    x, y = 10 ** source.normal(1, 0.3, 9000), source.random(9000)
    rows = np.arange(9000)[x > 3]
    drawn = thinned(rows, (x, y), (True, False))
    assert len(drawn) <= DRAWN
    assert len(set(drawn.tolist())) == len(drawn)
    assert set(drawn.tolist()) <= set(rows.tolist())
    # No large part of the plane with points is empty now.
    for low in np.quantile(y, np.arange(0, 1, 0.05)):
        band = (y >= low) & (y < low + 0.06)
        assert band[drawn].sum() > 0.3 * DRAWN * band[rows].mean()
    assert (thinned(rows[:DRAWN], (x, y), (True, False)) == rows[:DRAWN]).all()


def test_a_box_and_a_lasso_take_all_points_inside() -> None:
    x, y = np.meshgrid(np.arange(10.0), np.arange(10.0))
    box = inside({"range": {"x": [7.5, 1.5], "y": [2.5, 4.5]}}, x.ravel(), y.ravel())
    assert box.sum() == 6 * 2
    triangle = {"lassoPoints": {"x": [-0.5, 9.5, -0.5], "y": [-0.5, -0.5, 9.5]}}
    found = inside(triangle, x.ravel(), y.ravel())
    assert (found == (x.ravel() + y.ravel() < 9)).all()
    assert not inside({}, x.ravel(), y.ravel()).any()


@pytest.mark.parametrize("colour", ["", "board", "weight_bits", "provenance", "knob:width"])
@pytest.mark.parametrize("z", [None, "latency"])
def test_every_colour_and_three_axes(url: str, colour: str, z: Any) -> None:
    options = Options("flash", "accuracy", z, ("flash",), colour, "board")
    figure = scatter(view_of(url), options)
    kinds = {trace["type"] for trace in figure["data"]}
    assert kinds == ({"scatter3d"} if z else {"scatter"})
    json.dumps(figure)


def test_limits_are_those_of_the_study(url: str) -> None:
    found = dict(limits_of(Library(url).overview("digits")))
    assert found["ram"] == 24 * 1024
    first = sample_trials(1)[0].value("accuracy")
    assert first is not None
    assert found["accuracy"] == pytest.approx(first - 0.1)


def test_a_selection_is_the_same_everywhere(url: str) -> None:
    whole = view_of(url)
    chosen = whole.table["uid"][whole.flag("front")].tolist()[:4]
    view = view_of(url, selected=chosen)
    assert set(view.table["uid"].iloc[ordered(view, Order())]) == set(chosen)
    bright = unpacked(charts.parallel(view)["data"][0]["line"]["color"])
    assert sum(bright) == len([u for u in chosen if not view.is_baseline[u]])
    found = scatter(view, Options("flash", "accuracy"))["data"]
    picked = [trace["customdata"][i] for trace in found for i in trace.get("selectedpoints", [])]
    assert sorted(picked) == sorted(chosen)
    assert len(csv_text(view).splitlines()) == 1 + len(chosen)


def test_a_brush_is_a_range_of_the_axis_drawn(url: str) -> None:
    view = view_of(url)
    found = charts.brushed(view, {"accuracy": [85.0, 100.0]})
    assert found
    rows = view.table[view.table["uid"].isin(found)]
    assert rows["accuracy"].min() >= 0.85
    assert len(rows) == int((view.table["accuracy"][charts.shown_lines(view)] >= 0.85).sum())
    both = charts.brushed(view, {"accuracy": [85.0, 100.0], "flash_bytes": [[0.0, 0.9]]})
    assert both is not None
    assert set(both) < set(found)
    assert charts.brushed(view, {}) is None


@pytest.mark.parametrize("column", ["number", "flash_bytes", "accuracy", "board", "reason"])
@pytest.mark.parametrize("down", [False, True])
def test_sorting_puts_the_unknown_last(url: str, column: str, down: bool) -> None:
    view = view_of(url)
    values = view.table[column].iloc[ordered(view, Order(column, down))]
    known = [value for value in values.tolist() if value == value and value is not None]
    assert known == sorted(known, reverse=down)
    assert values.tolist()[: len(known)] == known
    assert len(values) == 200


def test_pages_of_the_table(url: str) -> None:
    view = view_of(url)
    texts = [str(listing(view, Order("number", False, page))) for page in (0, 9, 99)]
    assert f"Page 1 of {200 // PAGE}" in texts[0]
    assert texts[1] == texts[2]  # past the end is the end
    filtered = listing(view_of(url, where="feasible"), Order("number", False, 3))
    assert "Page 1 of" in filtered  # another filter starts at its first page
    assert "&quot;where&quot;: &quot;feasible&quot;" in filtered  # and its pager stays there


def test_a_rejected_design_within_budgets_says_why_it_has_no_layers(url: str) -> None:
    found = read_design(Library(url), "digits", 5)
    open_ = replace(found.trial, candidate={"budgets": {"memory": 0.5}, "widths": {}})
    text = str(_own_cost(replace(found, trial=open_, graph=None)))
    assert "only a training finds the widths" in text
    assert "--why rebuilds them" in str(_own_cost(replace(found, graph=None)))


def test_importance_finds_the_knob_that_decides(url: str) -> None:
    found = charts.importances(Library(url).overview("digits"))
    assert max(found["ram"], key=found["ram"].__getitem__) == "width"
    assert sum(found["ram"].values()) == pytest.approx(1)


def test_lanes_never_overlap() -> None:
    starts, ends = np.array([0.0, 1, 2, 3, 4]), np.array([2.5, 2, 4, 5, 6])
    lanes = charts.lanes_of(starts, ends)
    assert lanes.tolist() == [1, 2, 2, 1, 2]


def test_progress_ends_at_the_hypervolume(url: str) -> None:
    view = view_of(url, "digits", "earlier")
    for against in ("trials", "hours"):
        found = charts.progress(view, against)["data"]
        assert [trace["y"][-1] for trace in found] == pytest.approx(
            [overview.hypervolume for overview in view.overviews]
        )
        assert all(np.diff(trace["x"]).min() >= 0 for trace in found)


def test_a_design_that_was_never_trained_has_a_page(url: str) -> None:
    text = str(design_page(Library(url), "digits", 5))
    assert "never trained" in text
    assert "dse show 5" in text
    with pytest.raises(StorageError, match="has no trial 999"):
        design_page(Library(url), "digits", 999)


# ------------------------------------------------------------------ the server


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    with make_app(Library(url)).server.test_client() as found:
        yield found


def test_loopback_refuses_other_names_and_other_pages(client: Any) -> None:
    assert client.get("/", base_url="http://localhost:8050").status_code == 200
    assert client.get("/", base_url="http://evil.example").status_code == 403
    cross = {"Origin": "http://evil.example"}
    assert client.get("/", base_url="http://localhost", headers=cross).status_code == 403
    policy = client.get("/", base_url="http://localhost").headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self'")


def test_elsewhere_a_token_is_needed(url: str) -> None:
    app = make_app(Library(url), host="0.0.0.0", token="open-sesame")
    with app.server.test_client() as client:
        assert client.get("/").status_code == 403
        assert client.get("/?token=wrong").status_code == 403
        assert client.get("/_dash-layout").status_code == 403
        answer = client.get("/?token=open-sesame")
        assert answer.status_code == 302
        cookie = answer.headers["Set-Cookie"]
        assert COOKIE in cookie
        assert "HttpOnly" in cookie
        assert client.get("/_dash-layout").status_code == 200


@pytest.mark.slow
def test_a_bundle_that_cannot_be_made_is_a_sentence(client: Any, url: str) -> None:
    answer = client.get("/bundle/digits/5.zip", base_url="http://localhost")
    assert answer.status_code == 422
    assert "has no network" in answer.text
    assert url not in answer.text


def test_the_command_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dse = Dse(tmp_path, monkeypatch, capsys)
    dse("browse", "--storage", "sqlite:///gone.db").refused("there is no database at")
    assert dse("browse", "--port", "70000").code == 2
    missing = ModuleNotFoundError("No module named 'dash'", name="dash")
    monkeypatch.setattr("builtins.__import__", _failing("dse.browse.server", missing))
    dse("browse").refused('pip install "dse[browse]"')


def _failing(module: str, error: Exception) -> Any:
    real = __import__

    def found(name: str, *rest: Any) -> Any:
        if name == module:
            raise error
        return real(name, *rest)

    return found


def test_front_by_choice_on_the_command_line(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dse = Dse(tmp_path, monkeypatch, capsys)
    place = ("digits", "--storage", url)
    knee = dse("front", *place, "--knee")
    assert "Knee of digits" in knee.out
    assert "At the knee" in knee.out
    rows = json.loads(dse("front", *place, "--where", "flash < 8 KiB", "--json").out)
    assert rows
    assert all(row["flash_bytes"] < 8192 for row in rows)
    rows = json.loads(dse("front", *place, "--cheapest", "accuracy >= 85 %", "--json").out)
    assert rows[0]["board"] == "rpi-pico"
    assert "USD" in rows[0]["why"]
    dse("front", *place, "--where", "flush < 1").refused("did you mean 'flash'")
    found = json.loads(dse("compare", "digits", "earlier", "--storage", url, "--json").out)
    assert [side["name"] for side in found["studies"]] == ["digits", "earlier"]
    assert "is ahead" in dse("compare", "digits", "earlier", "--storage", url).out
    dse("compare", "digits", "later", "--storage", url).refused("no study 'later'")


def test_samples_cover_what_the_tests_need(url: str) -> None:
    view = view_of(url)
    assert set(METRICS) >= set(OBJECTIVES)
    assert {"complete", "infeasible", "failed"} <= set(view.table["state"].astype(str))
    assert record().box.metrics == OBJECTIVES
    with pytest.raises(StudyError):
        view_of(url, where="flush < 1")
