"""The grey-box sampler: costs are known, accuracy is learned, one training serves every target.

    sampler = GreyBoxSampler(costs, learned=0, deployment=["board"], distributions=space, seed=0)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    study.optimize(objective, n_trials=50)
    sampler.front(study)        # every feasible deployment of every trained network

docs/grey-box.md explains the idea. Nothing here imports torch.
"""

from dse.greybox.costs import BatchCosts, DesignCosts, Region
from dse.greybox.features import Features
from dse.greybox.history import NetworkKey
from dse.greybox.sampler import Design, GreyBoxSampler
from dse.greybox.surrogate import Scale

__all__ = [
    "BatchCosts",
    "Design",
    "DesignCosts",
    "Features",
    "GreyBoxSampler",
    "NetworkKey",
    "Region",
    "Scale",
]
