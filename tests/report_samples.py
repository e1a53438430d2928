"""Studies that look like real ones, for the tests of the report and for looking at it."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from dse.pareto import Box
from dse.report.designs import Designs
from dse.rows import FrontChange, StudyRecord
from dse.trial import Metric, MetricName, State, Trial

BOARDS = {"rpi-pico": (125e6, 1.6, 0.079), "nucleo-f446re": (180e6, 0.9, 0.146)}
LAYERS = {"conv1": (1, 16, 28 * 28, 9), "conv2": (16, 32, 14 * 14, 9), "fc": (32, 10, 1, 49)}
RAM_LIMIT = "ram <= 24 KiB"
LOSS_LIMIT = "accuracy >= baseline - 10 %"
ENDS: dict[MetricName, tuple[float, float]] = {
    "accuracy": (0.0, 0.9),
    "flash": (6e3, 1e5),
    "ram": (2e3, 6e4),
    "latency": (1e-4, 1.0),
    "energy": (1e-5, 1e-1),
}


def design(number: int, widths: list[int], bits: list[int], board: str, noise: float) -> Trial:
    """A LeNet-like network with costs from its shapes and an accuracy that follows its size."""
    clock_hz, cycles_a_mac, watts = BOARDS[board]
    channels = [1, *widths]
    weights = [
        channels[i] * channels[i + 1] * kernel
        for i, (_, _, _, kernel) in enumerate(LAYERS.values())
    ]
    macs = sum(w * size for w, (_, _, size, _) in zip(weights, LAYERS.values(), strict=True))
    flash = 5200 + sum(w * b / 8 for w, b in zip(weights, bits, strict=True))
    ram = 28 * 28 * (1 + widths[0]) + 14 * 14 * widths[1] / 4 + 1200
    latency = macs * cycles_a_mac / clock_hz
    accuracy = 0.915 - 0.35 / math.sqrt(sum(weights) / 60) - 0.05 * sum(b < 4 for b in bits) / 3
    accuracy = round(min(0.99, accuracy + noise), 4)
    exact = "section sizes of the emitted C"
    return Trial(
        number,
        State.COMPLETE,
        params={"width": widths[0] / 16, "bits": bits[0], "board": board},
        candidate={
            "widths": dict(zip(LAYERS, widths, strict=True)),
            "kept": dict.fromkeys(LAYERS, 1.0),
            "bits": dict(zip(LAYERS, bits, strict=True)),
            "precision": "int8",
            "criterion": "l1",
            "schedule": "one-shot",
            "target": {"board": board, "backend": "native", "clock_hz": int(clock_hz)},
        },
        candidate_key=f"{number:08x}",
        metrics={
            "accuracy": Metric(accuracy, accuracy - 0.006, accuracy + 0.006, "measured", "10 000"),
            "flash": Metric(flash, flash, flash, "measured", exact),
            "ram": Metric(ram, ram, ram, "measured", exact),
            "latency": Metric(latency, 0.9 * latency, 1.1 * latency, "modelled", "cycles 2026-11"),
            "energy": Metric(
                latency * watts,
                0.7 * latency * watts,
                1.4 * latency * watts,
                "modelled",
                f"active power of {board}, data sheet, unverified",
            ),
        },
        validation_samples=5000,
        parameters=sum(weights),
        macs=int(macs),
        trained=True,
        stage_s={"train": 4.2},
        started=1.79e9 + number,
        finished=1.79e9 + number + 5,
    )


def judged(trial: Trial, least: float) -> Trial:
    """The trial with its state: over the RAM limit it is never trained."""
    ram, accuracy = trial.value("ram") or 0, trial.value("accuracy") or 0
    over, lost = ram / 24576 - 1, least - accuracy
    if over > 0:
        metrics = {name: m for name, m in trial.metrics.items() if name != "accuracy"}
        reason = f"ram is {ram / 1024:.1f} KiB, {100 * over:.0f} % over the limit of 24 KiB"
        return replace(
            trial,
            state=State.INFEASIBLE,
            metrics=metrics,
            violations={RAM_LIMIT: over},
            reason=reason,
            trained=False,
            parameters=trial.parameters,
        )
    if lost > 0:
        reason = f"accuracy is {100 * accuracy:.1f} %, {100 * lost:.1f} points under the limit"
        violations = {RAM_LIMIT: over, LOSS_LIMIT: lost}
        return replace(trial, state=State.INFEASIBLE, violations=violations, reason=reason)
    return replace(trial, violations={RAM_LIMIT: over, LOSS_LIMIT: lost})


def sample_trials(count: int, seed: int = 0, least: float = 0.79) -> list[Trial]:
    """Two baselines, then `count` - 2 designs; one in forty fails."""
    draw = random.Random(seed)
    widths, bits = [16, 32, 10], [8, 8, 8]
    floating = design(0, widths, [32] * 3, "nucleo-f446re", 0.01)
    candidate = {**floating.candidate, "precision": "float32"}
    trials = [replace(floating, baseline="float32", candidate=candidate)]
    trials.append(replace(design(1, widths, bits, "nucleo-f446re", 0.008), baseline="int8"))
    for number in range(2, count):
        widths = [draw.randint(1, 8) * 4, draw.randint(1, 12) * 4, 10]
        bits = [draw.choice([2, 3, 4, 6, 8]) for _ in LAYERS]
        trial = design(number, widths, bits, draw.choice(list(BOARDS)), draw.gauss(0, 0.006))
        if draw.random() < 0.025:
            trial = replace(trial, state=State.FAILED, metrics={}, reason="training diverged: nan")
        trials.append(trial if trial.state is State.FAILED else judged(trial, least))
    return trials[:count]


def sample_record(
    objectives: tuple[MetricName, ...] = ("accuracy", "flash", "latency"), name: str = "digits-mcu"
) -> StudyRecord:
    box = Box(
        objectives,
        tuple(ENDS[metric][0] for metric in objectives),
        tuple(ENDS[metric][1] for metric in objectives),
        tuple(metric != "accuracy" for metric in objectives),
    )
    return StudyRecord(
        name=name,
        created=1.79e9,
        study_file="study: digits-mcu\nworkload: digits\nobjectives: [accuracy, flash]\n",
        definition={"study": name},
        space_hash="9f2c41d07a",
        space=[{"name": "width"}, {"name": "bits"}, {"name": "board"}],
        distributions={},
        sampler="tpe",
        sampler_settings={"multivariate": False},
        seed=7,
        objectives=objectives,
        constraints=(RAM_LIMIT, LOSS_LIMIT),
        box=box,
        n_trials=200,
        versions={"dse": "0.1.0", "optuna": "5.0.0"},
        workload="fashion-mnist / lenet5",
    )


def sample_fronts(record: StudyRecord, trials: list[Trial]) -> list[FrontChange]:
    """The front after each trial that changed it, as the explorer would store it."""
    changes: list[FrontChange] = []
    members: list[Trial] = []
    for trial in trials:
        if trial.feasible:
            found = Designs(record, [*members, trial])
            numbers = tuple(sorted(found.front_numbers))
            if trial.number in numbers:
                members = found.front
                changes.append(FrontChange(trial.number, found.hypervolume, numbers))
    return changes


MADE_WITH = {
    "commit": "c0a1929",
    "command": "dse run studies/fashion-mnist-lenet5.yaml",
    "date": "2026-11-20 10:00 UTC",
    "machine": "Linux x86_64, 2 cores",
}
