"""What `dse show` says was done to each layer."""

from __future__ import annotations

from dse.candidate import Candidate
from dse.explain import applied

TARGET = "nucleo_f446re/native/180MHz"


def test_every_layer_says_what_was_applied_in_the_order_of_the_network() -> None:
    candidate = Candidate(
        TARGET, widths={"fc": 9}, kept={"conv2": 0.25}, bits={"conv1": 8, "conv2": 4, "fc": 2}
    )
    rows = applied(candidate.to_json())
    assert [row["layer"] for row in rows] == ["conv1", "conv2", "fc"]
    assert [row["channels"] for row in rows] == [None, None, 9]
    assert [row["weights_kept"] for row in rows] == [None, 0.25, None]
    assert [row["weight_bits"] for row in rows] == [8, 4, 2]
    assert all("rank" not in row for row in rows)


def test_code_books_are_listed_by_layer() -> None:
    books = Candidate(TARGET, bits={"conv1": 8, "fc": 4}, code_books={"conv1": 16}, vector=2)
    rows = applied(books.to_json())
    assert [row["code_book"] for row in rows] == ["16 x 2", None]
    assert [row["weight_bits"] for row in rows] == [8, 4]


def test_blocks_are_listed_by_layer() -> None:
    blocks = Candidate(TARGET, kept={"fc": 0.2}, bits={"conv1": 8, "fc": 4}, pattern="4x4-shared")
    rows = applied(blocks.to_json())
    assert [row["blocks"] for row in rows] == [None, "4x4-shared"]
    assert [row["weights_kept"] for row in rows] == [None, 0.2]


def test_where_nothing_was_applied_there_is_no_row() -> None:
    assert applied(Candidate(TARGET, precision="float32").to_json()) == []
