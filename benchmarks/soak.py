"""A long storm: workers killed every few seconds on SQLite and PostgreSQL, the server restarted.

    python benchmarks/soak.py --trials 2000 --minutes 30

Ends with exit code 1 and what went wrong, unless each study has exactly the trials that were asked
for: none lost, none doubled, no network trained twice. Needs PostgreSQL's server binaries.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.faults import Storm
from tests.postgresql import Server, running


def storm(url: str, given: argparse.Namespace, server: Server | None) -> str:
    """One study through a storm; a line about it."""
    with tempfile.TemporaryDirectory() as name:
        found = Storm(url or f"sqlite:///{name}/soak.db", Path(name), given.workers, given.sleep)
        found.create(given.trials)
        restarts = [] if server is None else [restart(server), crash(server), restart(server)]
        step = given.trials // (len(restarts) + 1)
        began = time.monotonic()
        try:
            at = [(step * (place + 1), act) for place, act in enumerate(restarts)]
            found.run(given.every, 60.0 * given.minutes, at)
        finally:
            found.end()
        found.check(given.trials)
        kind = "SQLite" if server is None else "PostgreSQL"
        return (
            f"{kind}: {given.trials} trials by {given.workers} workers in "
            f"{time.monotonic() - began:.0f} s, {found.kills} of them killed, "
            f"{len(restarts)} restarts of the server: nothing lost, nothing twice"
        )


def restart(server: Server) -> Callable[[], None]:
    def act() -> None:
        server.stop()
        time.sleep(2.0)
        server.start()

    return act


def crash(server: Server) -> Callable[[], None]:
    def act() -> None:
        server.kill()
        server.start()

    return act


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--sleep", type=float, default=0.5, help="seconds a trial")
    parser.add_argument("--every", type=float, default=4.0, help="seconds between two kills")
    parser.add_argument("--minutes", type=float, default=60.0, help="at most, for each database")
    given = parser.parse_args()
    print(storm("", given, None), flush=True)
    with running() as server:
        print(storm(server.url(server.new_database()), given, server), flush=True)


if __name__ == "__main__":
    main()
