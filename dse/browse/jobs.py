"""What the page starts on request: `dse verify`, `dse confusion`, `dse export`, in processes.

The page itself never writes; those commands open the database as from the command line.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from dse.errors import DseError

EXPORT_LIMIT_S = 300
VERB_LIMIT_S = 900


def run_dse(url: str, *arguments: str, limit_s: float) -> str:
    """The last line of a `dse` command over this database; DseError with its sentence.

    The URL goes through the environment: a list of processes shows no password.
    """
    environment: Mapping[str, str] = {**os.environ, "DSE_STORAGE": url, "NO_COLOR": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dse.cli", *arguments],
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise DseError(f"dse {arguments[0]} took more than {limit_s:g} s and was ended") from error
    lines = [line for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
    if done.returncode == 2 or (done.returncode and not done.stdout.strip()):
        said = lines[-1] if lines else f"it ended with code {done.returncode}"
        raise DseError(said.removeprefix("dse: "))
    return lines[0] if lines else ""


def bundle(url: str, study: str, number: int) -> bytes:
    """The bundle of a design as a .zip (`dse export`); DseError when it cannot be made."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"{study}-{number}".replace("/", "_")
        arguments = ["export", str(number), study, "--output", str(out)]
        run_dse(url, *arguments, limit_s=EXPORT_LIMIT_S)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(out.rglob("*")):
                if path.is_file():
                    archive.write(path, str(path.relative_to(out.parent)))
        return buffer.getvalue()


# What is said of a design while its turn has come.
DOING: Mapping[str, str] = {
    "verify": "building and emulating",
    "confusion": "classifying the test data",
}


class Jobs:
    """A queue of commands on designs, one at a time; threads share it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._waiting: deque[tuple[str, str, int]] = deque()
        self._states: dict[tuple[str, str, int], str] = {}
        self._lock = threading.Lock()
        self._worker: threading.Thread | None = None

    def add(self, verb: str, study: str, number: int) -> None:
        """Queue a verb of DOING for a design, unless it waits or runs already."""
        key = (verb, study, number)
        with self._lock:
            if self._states.get(key, "").startswith(("waiting", "running")):
                return
            self._states[key] = "waiting for its turn"
            self._waiting.append(key)
            if self._worker is None or not self._worker.is_alive():
                self._worker = threading.Thread(target=self._work, daemon=True)
                self._worker.start()

    def state(self, verb: str, study: str, number: int) -> str:
        """A sentence on a design; empty when nobody asked for it."""
        return self._states.get((verb, study, number), "")

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._worker = None
                    return
                key = self._waiting.popleft()
                verb, study, number = key
                self._states[key] = f"running: {DOING[verb]}"
            try:
                said = "done: " + run_dse(self.url, verb, str(number), study, limit_s=VERB_LIMIT_S)
            except DseError as error:
                said = f"failed: {' '.join(str(error).split())}"
            self._states[key] = said
