"""What the page starts on request: `dse verify` and `dse export`, each in a process of its own.

The page itself never writes; a verification opens the database as the command line would.
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
VERIFY_LIMIT_S = 900


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


class Verifications:
    """A queue of designs to verify, one at a time; threads share it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._waiting: deque[tuple[str, int]] = deque()
        self._states: dict[tuple[str, int], str] = {}
        self._lock = threading.Lock()
        self._worker: threading.Thread | None = None

    def add(self, study: str, number: int) -> None:
        """Queue a design, unless it waits or runs already."""
        key = (study, number)
        with self._lock:
            if self._states.get(key, "").startswith(("waiting", "running")):
                return
            self._states[key] = "waiting for its turn"
            self._waiting.append(key)
            if self._worker is None or not self._worker.is_alive():
                self._worker = threading.Thread(target=self._work, daemon=True)
                self._worker.start()

    def state(self, study: str, number: int) -> str:
        """A sentence on a design; empty when nobody asked for it."""
        return self._states.get((study, number), "")

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._worker = None
                    return
                key = self._waiting.popleft()
                self._states[key] = "running: building and emulating"
            study, number = key
            try:
                arguments = ["verify", str(number), study]
                said = "done: " + run_dse(self.url, *arguments, limit_s=VERIFY_LIMIT_S)
            except DseError as error:
                said = f"failed: {' '.join(str(error).split())}"
            self._states[key] = said
