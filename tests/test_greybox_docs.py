"""The usage that docs/grey-box.md shows is run, and it says what every argument does."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import optuna
import pytest

from dse.greybox import GreyBoxSampler

PAGE = (Path(__file__).parents[1] / "docs" / "grey-box.md").read_text(encoding="utf-8")


def test_the_snippet_runs(capsys: pytest.CaptureFixture[str]) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/grey-box.md", "exec"), names)
    assert len(names["study"].trials) == 20
    front = names["sampler"].front(names["study"])
    assert {design.params["board"] for design in front} == {"m4", "m7"}
    assert len(capsys.readouterr().out.splitlines()) == len(front) > 5


def test_every_argument_is_described() -> None:
    table = "\n".join(line for line in PAGE.splitlines() if line.startswith("|"))
    for name in list(inspect.signature(GreyBoxSampler.__init__).parameters)[1:]:
        assert f"`{name}" in table, name
