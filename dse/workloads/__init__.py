"""Workloads: data sets, reference networks and how they are trained; or a user's own."""

from dse.workloads.bring_your_own import bring_your_own, workload_of
from dse.workloads.dataset import Dataset, Split, dataset_from_arrays
from dse.workloads.training import Recipe, TrainingLog, float_accuracy, train
from dse.workloads.workload import (
    WORKLOADS,
    Workload,
    check_workload,
    find_workload,
    train_baseline,
    workload_names,
)

__all__ = [
    "WORKLOADS",
    "Dataset",
    "Recipe",
    "Split",
    "TrainingLog",
    "Workload",
    "bring_your_own",
    "check_workload",
    "dataset_from_arrays",
    "find_workload",
    "float_accuracy",
    "train",
    "train_baseline",
    "workload_names",
    "workload_of",
]
