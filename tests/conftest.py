"""Settings of every test: reproducible hypothesis, two threads at most; the databases."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.postgresql import Server

os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile(
    "dse",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("dse")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    """One server for all tests of this process that ask for it; stop it, and start it again."""
    from tests.postgresql import running

    with running() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def any_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a new database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/study.db"
        return
    server: Server = request.getfixturevalue("postgresql")
    database = server.new_database()
    yield server.url(database)
    server.drop(database)
