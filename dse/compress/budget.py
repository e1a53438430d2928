"""Budgeted pruning: one training finds the widths that meet budgets of memory, size and MACs.

After Liberis & Lane, "Differentiable Neural Network Pruning to Enable Smart Applications on
Microcontrollers", arXiv 2110.08350; what its text leaves open is decided in
docs/decisions/0009-budgets.md. Each group of tied layers keeps a learned share of its channels;
what the network needs is a differentiable function of these shares, and only what is over its
budget presses on them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dse.compress.widths import Masked, Resources, needs, shares_of, widths_of
from dse.errors import CompressionError
from dse.graph.channels import channel_groups, narrow, with_encodings
from dse.graph.ir import Graph
from dse.workloads.dataset import Split
from dse.workloads.training import AfterEpoch, Loss, Progress, Recipe, train

# Shares of the training: nothing is narrowed before the first; after the second, widths are fixed.
WARM_UP, FREEZE = 0.1, 0.7
SHARPNESS = (2.0, 12.0)
PRESSURE = 1.0
_START = 4.0  # the sigmoid of it keeps 98 %


@dataclass(frozen=True)
class Budgets:
    """What the int8 network may need; None is no limit.

    `peak_memory_bytes` of activations, `size_bytes` of weights and biases, `macs` of one inference.
    Raises CompressionError for a budget below 1, or when there is none.
    """

    peak_memory_bytes: int | None = None
    size_bytes: int | None = None
    macs: int | None = None

    def __post_init__(self) -> None:
        for name, limit in self.limits.items():
            if limit < 1:
                raise CompressionError(f"budget {name} is {limit}; at least 1 is needed")
        if not self.limits:
            names = ", ".join(item.name for item in fields(self))
            raise CompressionError(f"there is no budget; give one or more of {names}")

    @property
    def limits(self) -> dict[str, int]:
        """The budgets that are given, by name."""
        found = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: limit for name, limit in found.items() if limit is not None}

    def met(self, found: Resources) -> bool:
        """Whether nothing is over its budget."""
        return all(getattr(found, name) <= limit for name, limit in self.limits.items())


@dataclass(frozen=True, eq=False)
class Budgeted:
    """What the training found: the float graph with channels removed, and the widths by group."""

    graph: Graph
    widths: Mapping[str, int]


def prune_to_budgets(
    graph: Graph,
    split: Split,
    budgets: Budgets,
    recipe: Recipe,
    seed: int,
    *,
    alignment: int = 1,
    progress: Progress | None = None,
    after_epoch: AfterEpoch | None = None,
    loss: Loss | None = None,
) -> Budgeted:
    """Fine-tune a float `graph` on `split` (the training split) while its widths are found.

    The training is the recipe's fine-tuning. Widths are multiples of `alignment`, except those of
    layers that stay whole. A graph that meets the budgets is returned as it is. Every budget is met
    by what is returned, also when `after_epoch` ends the training early. The same for the same
    seed. Raises CompressionError when the narrowest network is over a budget.
    """
    if budgets.met(needs(graph)):
        return Budgeted(graph, {})
    search = _Search(graph, budgets, alignment)
    search.check_possible()
    network = Masked(graph, search.masks)
    train(
        network,
        split.take(recipe.fine_tune_samples),
        recipe,
        epochs=recipe.fine_tune_epochs,
        learning_rate=recipe.fine_tune_learning_rate,
        seed=seed,
        after_step=search,
        progress=progress,
        after_epoch=after_epoch,
        loss=_Pressed(search, loss),
    )
    search.freeze(network)
    return Budgeted(network.narrowed(search.kept), search.widths)


class _Search:
    """The shares of all groups: a hook of training that steps, sharpens and freezes them."""

    def __init__(self, graph: Graph, budgets: Budgets, alignment: int) -> None:
        self.graph, self.budgets, self.alignment = graph, budgets, alignment
        self.groups = channel_groups(graph)
        self.rho = torch.full((len(self.groups),), _START, requires_grad=True)
        self.optimizer: torch.optim.Optimizer | None = None
        self.sharpness = SHARPNESS[0]
        self.searching = False
        self.kept: dict[str, Tensor] = {}
        self.widths: dict[str, int] = {}

    def check_possible(self) -> None:
        """Raise CompressionError when the narrowest network is over a budget."""
        found = self._needs(self._widths(-math.inf))
        for name, limit in self.budgets.limits.items():
            if getattr(found, name) > limit:
                raise CompressionError(
                    f"budget {name} of {limit:,} cannot be met: the narrowest network needs "
                    f"{getattr(found, name):,}"
                )

    def __call__(self, model: nn.Module, step: int, total: int) -> bool:
        """After optimiser step `step`: move the shares, or freeze them."""
        assert isinstance(model, Masked)
        begin, end = round(WARM_UP * total), round(FREEZE * total)
        if self.kept:
            return False
        if step >= end:
            self.freeze(model)
            return False
        if self.searching and self.optimizer is not None:
            self.optimizer.step()
        self.searching = step >= begin
        if self.optimizer is None:
            # Adam moves by about its rate: a share can go from whole to nothing in half the search.
            rate = 4 * _START / max(1, end - begin)
            self.optimizer = torch.optim.Adam([self.rho], rate, betas=(0.5, 0.9))
        self.optimizer.zero_grad(set_to_none=True)
        done = max(0.0, (step - begin) / max(1, end - begin))
        self.sharpness = SHARPNESS[0] + done * (SHARPNESS[1] - SHARPNESS[0])
        return False

    def masks(self, network: Masked) -> dict[str, Tensor]:
        """The mask of every group's channels, (C,): 0 and 1 with the gradient of the share."""
        if self.kept or not self.searching:
            return self.kept
        shares = torch.sigmoid(self.rho)
        return {
            group.name: keep_share(network.importance(group), share, self.sharpness)
            for group, share in zip(self.groups, shares, strict=True)
        }

    def pressure(self) -> Tensor:
        """How far the network is over its budgets, in budgets; 0 when all are met."""
        if self.kept or not self.searching:
            return torch.zeros(())
        found = shares_of(self.graph, self.groups, torch.sigmoid(self.rho))
        over = [F.relu(found[name] / limit - 1) for name, limit in self.budgets.limits.items()]
        return torch.stack(over).sum()

    @torch.no_grad()
    def freeze(self, network: Masked) -> None:
        """Round the shares to widths that just meet the budgets, and keep the best channels."""
        if self.kept:
            return
        low, high = -40.0, 40.0
        for _ in range(40):
            middle = (low + high) / 2
            met = self.budgets.met(self._needs(self._widths(middle)))
            low, high = (middle, high) if met else (low, middle)
        self.widths = self._widths(low)
        for group in self.groups:
            order = torch.argsort(network.importance(group), descending=True, stable=True)
            kept = torch.zeros(group.channels)
            kept[order[: self.widths.get(group.name, group.channels)]] = 1
            self.kept[group.name] = kept

    def _widths(self, shift: float) -> dict[str, int]:
        """Widths by group with every rho moved by `shift`; what stays whole is left out."""
        shares = torch.sigmoid(self.rho.detach() + shift).tolist()
        return widths_of(self.groups, shares, self.alignment)

    def _needs(self, widths: Mapping[str, int]) -> Resources:
        return needs(with_encodings(narrow(self.graph, widths), {}, {}))


@dataclass(frozen=True, eq=False)
class _Pressed:
    """The loss of the task, and the pressure of what is over its budget."""

    search: _Search
    task: Loss | None

    def __call__(self, scores: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
        if self.task is None:
            task = F.cross_entropy(scores, labels)
        else:
            task = self.task(scores, inputs, labels)
        return task + PRESSURE * self.search.pressure()


def keep_share(importance: Tensor, share: Tensor, sharpness: float) -> Tensor:
    """A mask (C,) that keeps the `share` (0 to 1) of channels with the largest `importance` (C,).

    Forward it is 0 or 1, with at least one 1. Backward it is p = 1 / (1 + (b / B1)^-sharpness) of
    the importances b, whose mean is `share`: B1 is the root, found by bisection, and dp / dshare
    follows from the implicit function theorem as p (1 - p) over its mean. Importances are
    constants here.
    """
    count = len(importance)
    kept = min(count, max(1, round(count * float(share.detach()))))
    hard = torch.zeros(count)
    hard[torch.argsort(importance, descending=True, stable=True)[:kept]] = 1
    logs = importance.detach().clamp(min=1e-12).log()
    soft = torch.sigmoid(sharpness * (logs - _root(logs, float(share.detach()), sharpness)))
    slope = soft * (1 - soft)
    slope = slope / slope.mean().clamp(min=1e-12)
    return hard + (share - share.detach()) * slope


def _root(logs: Tensor, share: float, sharpness: float) -> float:
    """ln B1, where the mean of p is `share`."""
    reach = 40 / sharpness
    low, high = float(logs.min()) - reach, float(logs.max()) + reach
    for _ in range(40):
        middle = (low + high) / 2
        if float(torch.sigmoid(sharpness * (logs - middle)).mean()) > share:
            low = middle
        else:
            high = middle
    return (low + high) / 2
