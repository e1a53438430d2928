"""Two hosts share a study through PostgreSQL, and the link between them is cut for a while.

The second host is a network namespace with a cable of its own (ip-netns(8)). The cut takes 3 s;
DSE_CUT_S=45 makes it as long as a switch that restarts, and longer than a turn may be held.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dse.storage import Storage
from tests.faults import Storm
from tests.postgresql import running

CUT_S = float(os.environ.get("DSE_CUT_S", "3"))
HERE, THERE = "10.213.77.1", "10.213.77.2"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def host() -> Iterator[str]:
    """A namespace that is reached by the interface `dse<number>`; its name."""
    name = f"dse{os.getpid()}"
    try:
        ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', error)}")
    try:
        ip("link", "add", name, "type", "veth", "peer", "name", "host", "netns", name)
        ip("addr", "add", f"{HERE}/30", "dev", name)
        ip("link", "set", name, "up")
        inside = ("netns", "exec", name, "ip")
        ip(*inside, "addr", "add", f"{THERE}/30", "dev", "host")
        ip(*inside, "link", "set", "host", "up")
        yield name
    finally:
        ip("netns", "del", name)
        with suppress(subprocess.CalledProcessError):
            ip("link", "del", name)


@pytest.mark.slow
def test_a_link_that_is_cut_loses_nothing(host: str, tmp_path: Path) -> None:
    with running(HERE) as server:
        url = server.url(server.new_database())
        storm = Storm(url, tmp_path, workers=1, sleep_s=0.3, lease_s=60.0)
        storm.create(60)
        go = tmp_path / "go"
        command = [sys.executable, "-m", "tests.toy", "--storage", url, "--go", str(go)]
        command += ["--graph", str(storm.graph), "--sleep", "0.3", "--log", str(storm.log)]
        both = [
            subprocess.Popen([*before, *command], stdout=subprocess.PIPE)
            for before in ([], ["ip", "netns", "exec", host])
        ]
        for process in both:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        go.touch()
        try:
            with Storage(url) as storage:
                deadline = time.monotonic() + 240
                while [w.finished > 2 for w in storage.workers("small")] != [True, True]:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
                ip("link", "set", host, "down")
                before = storm.finished()
                time.sleep(CUT_S)
                meanwhile = storm.finished()
                ip("link", "set", host, "up")
            # A turn that was cut off with its host is given up by the server after 30 s.
            assert meanwhile > before or CUT_S <= 30
            assert [process.wait(240) for process in both] == [0, 0]
        finally:
            storm.processes = both
            storm.end()
        storm.check(60)
        with Storage(url) as storage:
            assert min(worker.finished for worker in storage.workers("small")) > 2
