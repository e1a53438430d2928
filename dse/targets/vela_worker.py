"""The process in which Vela runs, started by `dse.targets.vela` as a plain script.

One line of JSON in (Vela's arguments), one line out (`output` or `error`). It imports nothing of
dse, so that it starts fast; Vela is loaded once and then takes some ten milliseconds a network. It
ends when its input does.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys
from typing import Any

MEMORY_LIMIT_BYTES = 8 * 2**30


def limit_memory() -> None:
    """Bound this process, where the system can."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))


def compiled(main: Any, arguments: list[str]) -> dict[str, str]:
    """What Vela printed, or the last line of what went wrong."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = main(arguments)
    except BaseException as error:  # SystemExit of its argument parser, too
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    if status:
        return {"error": (said.getvalue().strip().splitlines() or [f"exit status {status}"])[-1]}
    return {"output": said.getvalue()}


def serve() -> None:
    """Answer line by line. The compiler's own prints must not reach the answers' pipe."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    limit_memory()
    main = importlib.import_module("ethosu.vela.vela").main
    for line in sys.stdin:
        answers.write(json.dumps(compiled(main, json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
