"""What one suggestion costs when so many trials are stored: seconds, and the process's memory.

    python benchmarks/search/suggestion.py "grey box" 1000     # one line of JSON

On `syn`: 25 knobs, 4 objectives. The stored trials are cost-spread draws, so that a thousand of
them need not be proposed first. A process of its own each, as memory is never given back.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import optuna
from methods import Ledger, grey_sampler, peers, spread
from optuna.trial import create_trial
from synthetic import synthetic

SAMPLERS = ("grey box", "TPE", "NSGA-II", "GPSampler")
TRIALS = (50, 200, 1000)
# GPSampler takes minutes a suggestion beyond.
MOST_TRIALS = {"GPSampler": 50}
SUGGESTIONS = 5


def measure(name: str, trials: int) -> dict[str, float]:
    """Median CPU seconds of a few suggestions, the first one's, and the peak resident bytes."""
    problem = synthetic()
    ours = name == "grey box"
    sampler = grey_sampler(problem, 0) if ours else peers()[name](problem, 0)
    study = optuna.create_study(directions=["minimize"] * 4, sampler=sampler)
    ledger, space = Ledger(problem, "memo"), dict(problem.distributions)
    for params in spread(problem, 0, trials):
        costs = ledger.costs(params)[ledger.target(params)]
        values = [ledger.train(params), *costs.tolist()]
        study.add_trial(create_trial(params=params, distributions=space, values=values))
    seconds = []
    for _ in range(SUGGESTIONS):
        began = time.process_time()
        trial = study.ask(space)
        seconds.append(time.process_time() - began)
        costs = ledger.costs(trial.params)[ledger.target(trial.params)]
        study.tell(trial, [ledger.train(trial.params), *costs.tolist()])
    return {
        "median_s": statistics.median(seconds),
        "first_s": seconds[0],
        "peak_bytes": _peak_bytes(),
    }


def _peak_bytes() -> int:
    """Of this program alone (Linux): `ru_maxrss` would begin with what the parent had."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def measure_all() -> dict[str, Any]:
    """Every sampler, each number of stored trials in a process of its own."""
    found: dict[str, Any] = {}
    for name in SAMPLERS:
        for trials in TRIALS:
            if trials <= MOST_TRIALS.get(name, trials):
                command = [sys.executable, __file__, name, str(trials)]
                line = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                found.setdefault(name, {})[str(trials)] = json.loads(line)
                print(f"{name}, {trials} trials: {line.strip()}", flush=True)
    return found


def table(found: dict[str, Any]) -> list[str]:
    """Markdown: CPU seconds a suggestion by stored trials, and the peak of memory."""
    lines = [
        "| sampler | 50 trials | 200 | 1,000 | first at 1,000 | peak memory |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, by_trials in found.items():
        cells = [f"{row['median_s']:.3f}" if row else "" for row in map(by_trials.get, _KEYS)]
        last = by_trials.get(_KEYS[-1])
        cells.append(f"{last['first_s']:.3f}" if last else "")
        peak = max(row["peak_bytes"] for row in by_trials.values())
        lines.append(f"| {name} | {' | '.join(cells)} | {peak / 1e6:.0f} MB |")
    return lines


_KEYS = tuple(map(str, TRIALS))

if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
