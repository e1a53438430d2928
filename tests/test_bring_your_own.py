"""A user's own networks, from file to front: one on signals, one on features."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from dse.graph import archive, execute
from dse.storage import Storage
from dse.trial import State
from dse.workloads import bring_your_own
from tests.test_cli import dse

NETS = """
    import numpy as np
    import torch
    from torch import nn
    from sklearn.datasets import load_digits


    def rows():
        # The rows of a digit, one after the other, as a signal of 64 samples.
        images, labels = load_digits(return_X_y=True)
        return images / 16.0, labels


    def signals():
        x, y = rows()
        x = x[:, None, :]
        return {"x_train": x[:1400], "y_train": y[:1400], "x_test": x[1400:], "y_test": y[1400:]}


    def features():
        x, y = rows()
        return {"x_train": x[:1400], "y_train": y[:1400], "x_test": x[1400:], "y_test": y[1400:]}


    def signal_net():
        return nn.Sequential(
            nn.Conv1d(1, 16, 9, stride=2, padding=4), nn.BatchNorm1d(16), nn.ReLU(),
            nn.Conv1d(16, 16, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2),
            nn.Flatten(), nn.Linear(16 * 16, 10),
        )


    def perceptron():
        return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
"""
STUDY = """
name: own
workload: {{model: "nets:{model}", data: "nets:{data}"}}
training: {{epochs: 8, fine_tune_epochs: 3, threads: 1}}
space:
  pruning: {{ratio: [0, 0.25, 0.5]}}
  quantization: {{weight_bits: [4, 8]}}
  boards: [nano33ble]
  backends: [native, cmsis-nn]
objectives: [accuracy, flash]
n_trials: 6
"""


@pytest.mark.slow
@pytest.mark.parametrize(("model", "data"), [("signal_net", "signals"), ("perceptron", "features")])
def test_signals_and_features_run_from_file_to_front(tmp_path: Path, model: str, data: str) -> None:
    (tmp_path / "nets.py").write_text(dedent(NETS))
    (tmp_path / "own.yaml").write_text(STUDY.format(model=model, data=data))
    done = dse(tmp_path, "run", "own.yaml", "-q")
    assert done.returncode == 0, done.stderr
    with Storage.open_readonly(f"sqlite:///{tmp_path}/dse.db") as storage:
        trials = storage.trials("own")
        blob = storage.artifact("own", 1, "graph")
    assert [trial.state for trial in trials] == [State.COMPLETE] * 6
    assert (trials[1].value("accuracy") or 0) > 0.6
    assert blob is not None
    split = bring_your_own(f"nets:{model}", f"nets:{data}", tmp_path).load().validation
    found = execute.accuracy(archive.from_bytes(blob), split.inputs, split.labels)
    assert found == pytest.approx(trials[1].value("accuracy"))
