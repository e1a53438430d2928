"""Budgeted pruning: one training finds the widths that meet budgets of memory, size and MACs.

After Liberis & Lane, "Differentiable Neural Network Pruning to Enable Smart Applications on
Microcontrollers", arXiv 2110.08350; what its text leaves open is decided in
docs/decisions/0009-budgets.md. Each group of tied layers keeps a learned share of its channels;
what the network needs is a differentiable function of these shares, and only what is over its
budget presses on them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from dse.compress.prune import prune_in_place
from dse.compress.resources import FractionalNeeds, Resources, needs
from dse.errors import CompressionError
from dse.graph.channels import ChannelGroup, channel_groups, narrow, with_encodings
from dse.graph.ir import Array, Graph
from dse.graph.trace import trace
from dse.space import aligned_width
from dse.workloads.dataset import Split
from dse.workloads.training import AfterEpoch, Loss, Progress, Recipe, train

# Shares of the training: nothing is narrowed before the first; after the second, widths are fixed.
WARM_UP, FREEZE = 0.05, 0.5
SHARPNESS = (2.0, 12.0)
PRESSURE = 1.0
RATE = 12.0  # how far the fastest share can go in the search, as a logit
STRIDE = 4  # steps of training for one of the shares
_START = 2.2  # the sigmoid of it keeps 90 %
_BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


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


def prune_to_budgets(
    model: nn.Module,
    split: Split,
    budgets: Budgets,
    recipe: Recipe,
    seed: int,
    *,
    alignment: int = 1,
    progress: Progress | None = None,
    after_epoch: AfterEpoch | None = None,
    loss: Loss | None = None,
) -> nn.Module:
    """A copy of `model` that meets the budgets, fine-tuned on `split` (the training split).

    The training is the recipe's fine-tuning; in its first half the widths are found, then channels
    are removed for good. Widths are multiples of `alignment`, except those of layers that stay
    whole. A model that meets the budgets is itself returned. Every budget is met, also when
    `after_epoch` ends the training early. The same for the same seed. Raises CompressionError when
    the narrowest network is over a budget, GraphError for a model that cannot be traced.
    """
    graph = trace(model, split.inputs.shape[1:])
    if budgets.met(needs(graph)):
        return model
    search = Search(graph, budgets, alignment)
    search.check_possible()
    pruned = copy.deepcopy(model)
    search.attach(pruned, split.inputs[:1])
    train(
        pruned,
        split.take(recipe.fine_tune_samples),
        recipe,
        epochs=recipe.fine_tune_epochs,
        learning_rate=recipe.fine_tune_learning_rate,
        seed=seed,
        after_step=search,
        progress=progress,
        after_epoch=after_epoch,
        loss=loss,
    )
    search.freeze(pruned)
    return pruned.eval()


class Search:
    """The kept shares of all groups: a hook of training that moves, sharpens and freezes them."""

    def __init__(self, graph: Graph, budgets: Budgets, alignment: int) -> None:
        self.graph, self.budgets, self.alignment = graph, budgets, alignment
        self.groups = channel_groups(graph)
        self.fractional = FractionalNeeds(graph, self.groups)
        self.rho = torch.full((len(self.groups),), _START, requires_grad=True)
        self.optimizer: torch.optim.Optimizer | None = None
        self.masks: dict[str, tuple[Tensor, Tensor]] = {}
        self.handles: list[Any] = []
        self.frozen = False

    def check_possible(self) -> None:
        """Raise CompressionError when the narrowest network is over a budget."""
        found = self._needs(self._widths(-math.inf))
        for name, limit in self.budgets.limits.items():
            if getattr(found, name) > limit:
                raise CompressionError(
                    f"budget {name} of {limit:,} cannot be met: the narrowest network needs "
                    f"{getattr(found, name):,}"
                )

    def attach(self, model: nn.Module, example: Tensor) -> None:
        """Mask the outputs of every group's layers, behind their batch normalization."""
        self.example = example
        self.points = mask_points(model)
        for index, group in enumerate(self.groups):
            for name in group.producers:
                point = model.get_submodule(self.points[name])
                self.handles.append(point.register_forward_hook(self._masking(index, group.name)))

    def _masking(self, index: int, name: str) -> Any:
        def masked(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            if name not in self.masks:
                return output
            hard, slope = self.masks[name]
            share = torch.sigmoid(self.rho[index])
            mask = hard + (share - share.detach()) * slope
            return output * mask.view(1, -1, *[1] * (output.dim() - 2))

        return masked

    def __call__(self, model: nn.Module, step: int, total: int) -> bool:
        """After optimiser step `step`: move the shares, or freeze them."""
        begin, end = round(WARM_UP * total), round(FREEZE * total)
        if self.frozen or step < begin:
            return False
        if step >= end:
            return self.freeze(model)
        if (step - begin) % STRIDE == 0:
            self._move(max(1, (end - begin) // STRIDE))
            done = (step - begin) / (end - begin)
            self._renew(model, SHARPNESS[0] + done * (SHARPNESS[1] - SHARPNESS[0]))
        return False

    def _move(self, moves: int) -> None:
        """One step of the shares, by the gradients of the task since the last, and the pressure."""
        task = torch.zeros_like(self.rho) if self.rho.grad is None else self.rho.grad / STRIDE
        (pressure,) = torch.autograd.grad(self._over(), self.rho)
        if self.optimizer is None:
            # Adam moves by about its rate, however large gradients are. It forgets slowly how
            # strong the pressure was, so that noise of the task moves little where there is none.
            self.optimizer = torch.optim.Adam([self.rho], RATE / moves, betas=(0.5, 0.999))
        self.rho.grad = task + PRESSURE * pressure
        self.optimizer.step()
        self.rho.grad = None

    def _over(self) -> Tensor:
        """How far the network is over its budgets, in budgets; 0 when all are met."""
        found = self.fractional.at(torch.sigmoid(self.rho))
        over = [F.relu(found[name] / limit - 1) for name, limit in self.budgets.limits.items()]
        return torch.stack(over).sum()

    @torch.no_grad()
    def _renew(self, model: nn.Module, sharpness: float) -> None:
        for group, share in zip(self.groups, torch.sigmoid(self.rho).tolist(), strict=True):
            self.masks[group.name] = keep_share(self._importance(model, group), share, sharpness)

    def _importance(self, model: nn.Module, group: ChannelGroup) -> Tensor:
        """|BatchNorm scale| or the L1 norm (C,), over its mean, summed over the group's layers."""
        total = torch.zeros(group.channels)
        for name in group.producers:
            point = model.get_submodule(self.points[name])
            weight = point.get_parameter("weight").detach().abs()
            found = weight.flatten(1).sum(1) if weight.dim() > 1 else weight
            total += found / found.mean().clamp(min=1e-12)
        return total

    @torch.no_grad()
    def freeze(self, model: nn.Module) -> bool:
        """Round the shares to widths that just meet the budgets, and remove all other channels."""
        if self.frozen:
            return False
        low, high = -40.0, 40.0
        for _ in range(40):
            middle = (low + high) / 2
            met = self.budgets.met(self._needs(self._widths(middle)))
            low, high = (middle, high) if met else (low, middle)
        widths = self._filled(self._widths(low))
        scores = {group.name: self._importance(model, group) for group in self.groups}
        for handle in self.handles:
            handle.remove()
        self.frozen = True
        return prune_in_place(model, self.example, widths, scores)

    def _filled(self, widths: Mapping[str, int]) -> dict[str, int]:
        """Wider where budgets leave room: the group that was narrowed most goes first."""
        whole = {group.name: group.channels for group in self.groups}
        found, open_groups = {**whole, **widths}, set(widths)
        while open_groups:
            name = min(open_groups, key=lambda one: (found[one] / whole[one], one))
            wider = found | {name: min(whole[name], found[name] + self.alignment)}
            if self.budgets.met(self._needs(wider)):
                found = wider
            else:
                open_groups.remove(name)
            if found[name] == whole[name]:
                open_groups.discard(name)
        return found

    def _widths(self, shift: float) -> dict[str, int]:
        """Widths by group with every rho moved by `shift`; what stays whole is left out."""
        shares = torch.sigmoid(self.rho.detach() + shift).tolist()
        found = {
            group.name: aligned_width(group.channels, 1 - share, self.alignment)
            for group, share in zip(self.groups, shares, strict=True)
        }
        return {g.name: found[g.name] for g in self.groups if found[g.name] < g.channels}

    def _needs(self, widths: Mapping[str, int]) -> Resources:
        return needs(with_encodings(narrow(self.graph, widths), {}, {}))


def mask_points(model: nn.Module) -> dict[str, str]:
    """Convolution and linear layers by name, each with the module whose output is to be masked.

    That is the batch normalization behind it, if it alone reads the layer: a mask before it would
    be shifted away, and its statistics would be those of zeros.
    """
    traced = fx.symbolic_trace(copy.deepcopy(model).eval())
    modules = dict(traced.named_modules())
    found = {}
    for node in traced.graph.nodes:
        if node.op != "call_module" or not isinstance(
            modules[str(node.target)], nn.Conv1d | nn.Conv2d | nn.Linear
        ):
            continue
        readers = [reader for reader in node.users if reader.op == "call_module"]
        behind = str(readers[0].target) if len(node.users) == len(readers) == 1 else ""
        normalized = isinstance(modules.get(behind), _BatchNorm)
        found[str(node.target)] = behind if normalized else str(node.target)
    return found


@torch.no_grad()
def keep_share(importance: Tensor, share: float, sharpness: float) -> tuple[Tensor, Tensor]:
    """A mask (C,) that keeps the `share` of channels of largest `importance` (C,), and its slope.

    The mask is 0 or 1, with at least one 1. The slope (C,) by which a change of the share changes
    it is that of p = 1 / (1 + (b / B1)^-sharpness) of the importances b, whose mean is `share`: B1
    is the root, found by bisection, and dp / dshare follows from the implicit function theorem as
    p (1 - p) over its mean. Importances are constants here.
    """
    count = len(importance)
    kept = min(count, max(1, round(count * share)))
    hard = torch.zeros(count)
    hard[torch.argsort(importance, descending=True, stable=True)[:kept]] = 1
    logs = importance.double().clamp(min=1e-12).log().numpy()
    soft = soft_mask(logs, share, sharpness)
    slope = soft * (1 - soft)
    return hard, torch.from_numpy(slope / max(float(slope.mean()), 1e-12)).float()


def soft_mask(logs: Array, share: float, sharpness: float) -> Array:
    """p (C,) of ln importances, with a mean of `share`."""
    reach = 40 / sharpness
    low, high = float(logs.min()) - reach, float(logs.max()) + reach
    for _ in range(40):
        middle = (low + high) / 2
        soft = 1 / (1 + np.exp(-sharpness * (logs - middle)))
        low, high = (middle, high) if float(soft.mean()) > share else (low, middle)
    return soft
