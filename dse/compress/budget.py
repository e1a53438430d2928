"""Budgeted pruning: one training finds the widths that meet budgets of memory, size and MACs.

After Liberis & Lane, "Differentiable Neural Network Pruning to Enable Smart Applications on
Microcontrollers", arXiv 2110.08350; docs/decisions/0009-budgets.md says where we do otherwise, and
why. Gradients tell what each group of tied layers is worth; what the network needs is a
differentiable function of the widths; and in a few steps the widths become those that lose least
within what may be needed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dse.compress.mask_points import mask_points
from dse.compress.prune import prune_in_place
from dse.compress.schedule import Ramp
from dse.graph.allocate import POWER
from dse.graph.channels import ChannelGroup
from dse.graph.resources import Budgets, needs
from dse.graph.trace import trace
from dse.widths import Narrowing
from dse.workloads.dataset import Split
from dse.workloads.training import AfterEpoch, Loss, Progress, Recipe, train

# Nothing is narrowed before values say something; behind the ramp the network recovers.
RAMP = Ramp(0.05, 0.5, 8)


def prune_to_budgets(
    model: nn.Module,
    split: Split,
    budgets: Budgets,
    recipe: Recipe,
    seed: int,
    *,
    alignment: int = 1,
    kept: Sequence[str] = (),
    progress: Progress | None = None,
    after_epoch: AfterEpoch | None = None,
    loss: Loss | None = None,
) -> nn.Module:
    """A copy of `model` that meets the budgets, fine-tuned on `split` (the training split).

    The training is the recipe's fine-tuning; in its first half channels are removed step by step.
    Widths are multiples of `alignment`, except those of groups that stay whole, and those named in
    `kept` do. A model that meets the budgets is itself returned. Every budget is met, also when
    `after_epoch` ends the training early. The same for the same seed. Raises CompressionError when
    the narrowest network is over a budget, GraphError for a model that cannot be traced.
    """
    graph = trace(model, split.inputs.shape[1:])
    if budgets.met(needs(graph)):
        return model
    narrowing = Narrowing(graph, alignment, tuple(kept))
    narrowing.check_possible(budgets)
    search = Search(narrowing, budgets)
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
    search.finish(pruned)
    return pruned.eval()


class Search:
    """A hook of training: measures what groups of channels are worth, and narrows them in steps."""

    def __init__(self, narrowing: Narrowing, budgets: Budgets) -> None:
        self.narrowing, self.budgets = narrowing, budgets
        self.groups, self.whole = narrowing.groups, narrowing.whole
        self.widths = dict(self.whole)
        self.needed = needs(narrowing.graph)
        self.done = 0
        # Multipliers of every channel of every sample in the step under way, and what they gave.
        self.marks: dict[str, list[Tensor]] = {}
        self.worth: dict[str, float] = {}
        self.handles: list[Any] = []

    def attach(self, model: nn.Module, example: Tensor) -> None:
        """Watch the outputs of every group's layers, behind their batch normalization."""
        self.example = example
        self.points = mask_points(model)
        for group in self.groups:
            for name in group.producers:
                point = model.get_submodule(self.points[name])
                self.handles.append(point.register_forward_hook(self._watching(group.name)))

    def _watching(self, name: str) -> Any:
        def watched(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            if not (module.training and torch.is_grad_enabled()):
                return output
            ones = torch.ones(output.shape[:2], requires_grad=True)
            self.marks.setdefault(name, []).append(ones)
            return output * ones.view(*output.shape[:2], *[1] * (output.dim() - 2))

        return watched

    def __call__(self, model: nn.Module, step: int, total: int) -> bool:
        """After optimiser step `step`: measure, and narrow where the ramp is due."""
        self._measure()
        replaced = False
        for due in RAMP.steps(total)[self.done :]:
            if step < due:
                break
            replaced |= self._narrow(model)
        return replaced

    def _measure(self) -> None:
        """The squared gradients of the multipliers, summed over channels and samples."""
        for name, marks in self.marks.items():
            gradients = [mark.grad for mark in marks if mark.grad is not None]
            if gradients:  # tied layers lose a channel together
                worth = float(torch.stack(gradients).sum(0).square().sum())
                self.worth[name] = self.worth.get(name, 0.0) + worth
        self.marks = {}

    def finish(self, model: nn.Module) -> None:
        """Whatever the ramp has not reached, when training was stopped."""
        while self.done < RAMP.updates:
            self._narrow(model)

    @torch.no_grad()
    def _narrow(self, model: nn.Module) -> bool:
        """One step of the ramp; whether channels were removed."""
        share = RAMP.share(self.done)
        self.done += 1
        limits = {}
        for name, limit in self.budgets.limits.items():
            whole = getattr(self.needed, name)
            limits[name] = limit + max(0, whole - limit) * (1 - share)
        weights = self._weights()
        shares = self.narrowing.shares(limits, weights, self.widths)
        widths = self._fitting(shares, limits, weights)
        removed = {name: width for name, width in widths.items() if width < self.widths[name]}
        scores = {g.name: self._importance(model, g) for g in self.groups if g.name in removed}
        self.widths, self.worth = widths, {}
        if self.done == RAMP.updates:
            for handle in self.handles:
                handle.remove()
        return prune_in_place(model, self.example, removed, scores)

    def _weights(self) -> dict[str, float]:
        """How much each group matters: the root of its Fisher information, at least a hundredth."""
        roots = {name: math.sqrt(self.worth.get(name, 0.0)) for name in self.whole}
        mean = sum(roots.values()) / len(roots)
        return {name: max(root / mean, 0.01) if mean else 1.0 for name, root in roots.items()}

    def _fitting(
        self,
        shares: Mapping[str, float],
        limits: Mapping[str, float],
        weights: Mapping[str, float],
    ) -> dict[str, int]:
        """Whole widths within the limits: rounded down, then wider where that saves most."""

        def lower(scale: float) -> dict[str, int]:
            found = self.narrowing.rounded({name: s * scale for name, s in shares.items()})
            return {name: min(width, self.widths[name]) for name, width in found.items()}

        # The exact peak may be over the limit by rounding, so all shares shrink until it is met.
        scales = (1.0, 0.98, 0.95, 0.9, 0.8, 0.65, 0.5)
        found = lower(next((s for s in scales if self.narrowing.met(lower(s), limits)), 0.0))
        waiting = set(self.whole)
        while waiting:
            name = max(waiting, key=lambda one: (weights[one] * self._gain(found, one), one))
            # A group that is whole may lie between two steps.
            wider = min(found[name] + self.narrowing.alignment, self.widths[name])
            if wider > found[name] and self.narrowing.met(found | {name: wider}, limits):
                found[name] = wider
            else:
                waiting.remove(name)
        return found

    def _gain(self, widths: Mapping[str, int], name: str) -> float:
        """By how much 1 / share^POWER falls when a group gets one step wider."""
        whole, width = self.whole[name], widths[name]
        return float(
            (whole / width) ** POWER - (whole / (width + self.narrowing.alignment)) ** POWER
        )

    def _importance(self, model: nn.Module, group: ChannelGroup) -> Tensor:
        """|BatchNorm scale| or the L1 norm (C,), over its mean, summed over the group's layers."""
        total = torch.zeros(self.widths[group.name])
        for name in group.producers:
            point = model.get_submodule(self.points[name])
            weight = point.get_parameter("weight").detach().abs()
            found = weight.flatten(1).sum(1) if weight.dim() > 1 else weight
            total += found / found.mean().clamp(min=1e-12)
        return total
