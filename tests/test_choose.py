"""Help to choose, and two studies compared, on studies whose answers are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dse.choose import best_rows, cheapest_choice, closest_choice, knee_choice
from dse.compare import compare
from dse.errors import StudyError
from dse.overview import Overview, read_overview, refreshed
from dse.storage import Storage
from dse.targets import load_boards
from dse.trial import METRICS
from tests.browse_samples import record, stored
from tests.report_samples import sample_fronts, sample_trials


def overview(url: str, name: str = "digits") -> Overview:
    with Storage.open_readonly(url) as storage:
        return read_overview(storage, name)


@pytest.fixture(scope="module")
def sixty(tmp_path_factory: pytest.TempPathFactory) -> Overview:
    return overview(stored(tmp_path_factory.mktemp("sixty")))


def test_the_overview_has_the_explorers_front(sixty: Overview) -> None:
    assert set(np.flatnonzero(sixty.flag("front"))) == set(sixty.changes[-1].members)
    assert sixty.hypervolume == pytest.approx(sixty.changes[-1].hypervolume)
    assert sixty.flag("verified").sum() == 1
    assert (sixty.table["provenance"] == "emulated").sum() == 1


def test_every_choice_is_on_the_front_of_what_matches(sixty: Overview) -> None:
    where = "flash < 12 KiB"
    rows = set(best_rows(sixty, where).tolist())
    for choice in (knee_choice(sixty, where), closest_choice(sixty, None, where)):
        assert choice.number in rows
        assert "flash" in choice.why


def test_a_weight_alone_finds_the_best_of_that_objective(sixty: Overview) -> None:
    table, rows = sixty.table, best_rows(sixty)
    for name in sixty.record.objectives:
        weights: dict[str, float] = {
            other: float(other == name) for other in sixty.record.objectives
        }
        found = closest_choice(sixty, weights).number
        values = METRICS[name].sign * table[METRICS[name].column].to_numpy()
        assert values[found] == values[rows].min()


def test_the_cheapest_board_that_is_enough(sixty: Overview) -> None:
    found = cheapest_choice(sixty, "accuracy >= 85 %", load_boards())
    row = sixty.table.iloc[found.number]
    assert row["board"] == "rpi-pico"
    assert row["accuracy"] >= 0.85
    assert "USD" in found.why
    assert "nucleo-f446re" in found.why
    dearer = cheapest_choice(sixty, "board == nucleo-f446re", load_boards())
    assert sixty.table.iloc[dearer.number]["board"] == "nucleo-f446re"


def test_one_sentence_when_there_is_nothing_to_choose(sixty: Overview, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"none of .* feasible designs matches"):
        knee_choice(sixty, "flash < 1 B")
    with pytest.raises(StudyError, match="did you mean 'flash'"):
        closest_choice(sixty, {"flush": 1.0})
    with pytest.raises(StudyError, match="every weight is 0"):
        closest_choice(sixty, dict.fromkeys(sixty.record.objectives, 0.0))
    with pytest.raises(StudyError, match="no price is known"):
        cheapest_choice(sixty, "feasible", {})
    empty = overview(stored(tmp_path, trials=[]))
    with pytest.raises(StudyError, match="no feasible design"):
        knee_choice(empty)


def test_a_refreshed_overview_equals_one_read_anew(tmp_path: Path) -> None:
    trials = sample_trials(80)
    url = stored(tmp_path, trials=trials[:50])
    before = overview(url)
    changes = {c.number: c for c in sample_fronts(record(), trials)}
    with Storage(url) as storage:
        for trial in trials[50:]:
            change = changes.get(trial.number)
            storage.finish(
                "digits", trial, *((change.members, change.hypervolume) if change else ())
            )
    with Storage.open_readonly(url) as storage:
        after, anew = refreshed(storage, before), read_overview(storage, "digits")
    assert len(after.table) == 80
    assert list(after.table) == list(anew.table)
    for column in anew.table:
        assert after.table[column].astype(object).equals(anew.table[column].astype(object)), column


def test_compare_measures_both_in_one_box(sixty: Overview, tmp_path: Path) -> None:
    more = overview(stored(tmp_path, 200, name="longer"), "longer")
    found = compare(sixty, more)
    first, second = found.sides
    assert second.hypervolume >= first.hypervolume  # the same draws, and more of them
    assert second.covered >= first.covered
    assert first.caught_up_trials is None or first.hypervolume == second.hypervolume
    assert second.caught_up_trials is not None
    assert second.caught_up_trials <= 60
    assert "longer is ahead" in found.sentence()
    assert len(found.rows()[0]) == 3
    turned = compare(more, sixty)
    assert [side.hypervolume for side in turned.sides] == [second.hypervolume, first.hypervolume]


def test_compare_of_a_study_with_itself(sixty: Overview) -> None:
    found = compare(sixty, sixty)
    assert found.sides[0].covered == 1.0
    assert "the same share" in found.sentence()


def test_compare_needs_the_same_objectives(sixty: Overview, tmp_path: Path) -> None:
    other = overview(stored(tmp_path, objectives=("accuracy", "flash")))
    with pytest.raises(StudyError, match="can be compared"):
        compare(sixty, other)


def test_a_larger_box_holds_both(sixty: Overview) -> None:
    box = sixty.record.box
    wide = replace(box, reference=tuple(2 * end for end in box.reference))
    other = replace(sixty, record=replace(sixty.record, box=wide))
    found = compare(sixty, other)
    assert found.box.reference == wide.reference
    assert found.sides[0].hypervolume == found.sides[1].hypervolume
