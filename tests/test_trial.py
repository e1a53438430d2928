"""What a trial says of where its figures come from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dse.trial import Metric, Proof, State, Trial


def trial(*provenances: str) -> Trial:
    names = ("flash", "ram", "latency", "energy")
    return Trial(
        0,
        State.COMPLETE,
        metrics={
            name: Metric(100.0, 100.0, 100.0, kind)  # type: ignore[arg-type]
            for name, kind in zip(names, provenances, strict=False)
        }
        | {"accuracy": Metric(0.9, 0.8, 1.0, "measured")},
    )


PROOF = Proof("board/native", "gcc", "unicorn", 20, 20, {"flash": 80.0, "ram": 100.0})


def test_costs_are_as_far_to_be_trusted_as_the_worst_of_them() -> None:
    assert trial("measured", "estimated").provenance == "estimated"
    assert trial("estimated", "modelled", "measured").provenance == "modelled"
    assert trial("measured").provenance == "measured"


def test_firmware_that_ran_exactly_raises_the_provenance() -> None:
    proven = replace(trial("modelled", "modelled"), proof=PROOF)
    assert proven.provenance == "emulated"
    assert proven.model_errors == pytest.approx({"flash": 0.25, "ram": 0.0})
    assert proven.provenance_text == "emulated (model: flash +25.0 %, ram +0.0 %)"


@pytest.mark.parametrize(
    ("proof", "said"),
    [
        (replace(PROOF, matching=17), "emulated: 3 of 20 outputs differ"),
        (Proof("board/native", reason="no compiler"), "modelled"),
        (None, "modelled"),
    ],
)
def test_what_did_not_run_exactly_does_not(proof: Proof | None, said: str) -> None:
    found = replace(trial("modelled"), proof=proof)
    assert found.provenance == "modelled"
    assert found.provenance_text == said
