"""When pruning happens: at once, along a ramp in training, or there with a way back."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dse.compress.factorize import factorize_in_place
from dse.compress.mask_points import mask_points
from dse.compress.prune import (
    FROM_DATA,
    Importance,
    channel_scores,
    check_criterion,
    layer_width,
    prune_in_place,
)
from dse.compress.sparsify import Masks, check_densities, magnitude_masks
from dse.errors import CompressionError, nearest
from dse.graph.blocks import ELEMENT, check_pattern
from dse.graph.channels import channel_groups
from dse.graph.factor import check_method, spread
from dse.graph.trace import column_orders, trace
from dse.workloads.dataset import Split
from dse.workloads.training import AfterEpoch, Loss, Progress, Recipe, train

SCHEDULES = ("one-shot", "agp", "dynamic")


@dataclass(frozen=True)
class Ramp:
    """Automated gradual pruning (Zhu & Gupta, arXiv 1710.01878): `updates` prunings, evenly spaced.

    `start` and `end` are shares of the fine-tuning's steps, 0 to 1; after `end` the network
    recovers. Raises CompressionError when they are out of order or range.
    """

    start: float = 0.0
    end: float = 0.5
    updates: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1:
            raise CompressionError(
                f"a pruning ramp from {self.start} to {self.end} of the fine-tuning; "
                "0 <= start <= end <= 1 is needed"
            )
        if self.updates < 1:
            raise CompressionError(
                f"a pruning ramp of {self.updates} updates; at least 1 is needed"
            )

    def steps(self, total: int) -> tuple[int, ...]:
        """The steps (0 to total) after which the network is pruned; the last reaches the goal."""
        first, last = round(self.start * total), round(self.end * total)
        span = max(1, self.updates - 1)
        return tuple(first + round((last - first) * k / span) for k in range(self.updates))

    def share(self, update: int) -> float:
        """Share of the whole removal that is done at update 0, 1, ...: rises from > 0 to 1."""
        return 1 - (1 - (update + 1) / self.updates) ** 3


ONE_SHOT = Ramp(0.0, 0.0, 1)
# Not zero, so that a ReLU behind a hidden channel still knows on which side of zero it is.
HIDDEN = 1e-6


@dataclass(frozen=True)
class Compression:
    """What is removed: channels kept by group name, density by layer name, criterion and schedule.

    `widths` names the first producer of each group of tied layers; `ranks` are those of the layers
    that become two once all channels are gone, by `factors` (see dse.graph.factor); `densities` are
    kept shares of the weights that are left then, of both factors of a layer, in blocks of
    `pattern` (see dse.graph.blocks). Layers that are not named stay whole.
    Raises CompressionError for an unknown word or a number out of range.
    """

    widths: Mapping[str, int] = field(default_factory=dict)
    densities: Mapping[str, float] = field(default_factory=dict)
    criterion: str = "l1"
    schedule: str = "one-shot"
    ramp: Ramp = Ramp()
    ranks: Mapping[str, int] = field(default_factory=dict)
    factors: str = "channel"
    pattern: str = ELEMENT

    def __post_init__(self) -> None:
        check_criterion(self.criterion)
        check_pattern(self.pattern)
        if self.schedule not in SCHEDULES:
            raise CompressionError(
                f"unknown schedule '{self.schedule}'; {nearest(self.schedule, SCHEDULES)}"
            )
        for name, width in self.widths.items():
            if isinstance(width, bool) or not isinstance(width, int) or width < 1:
                raise CompressionError(
                    f"layer '{name}' cannot keep {width!r} channels; at least 1 is needed"
                )
        check_densities(self.densities)
        check_method(self.factors)
        object.__setattr__(self, "ranks", dict(self.ranks))
        object.__setattr__(self, "widths", dict(self.widths))
        object.__setattr__(self, "densities", dict(self.densities))

    def changes(self, model: nn.Module) -> bool:
        """Whether anything is removed from `model`. CompressionError names an unknown layer."""
        narrower = any(layer_width(model, name) != width for name, width in self.widths.items())
        return bool(self.ranks) or narrower or any(d < 1 for d in self.densities.values())


def compress(
    model: nn.Module,
    split: Split,
    plan: Compression,
    recipe: Recipe,
    seed: int,
    *,
    progress: Progress | None = None,
    after_epoch: AfterEpoch | None = None,
    loss: Loss | None = None,
) -> nn.Module:
    """A pruned and fine-tuned copy of `model`, in evaluation mode; the same for the same seed.

    `split` is the training split. Removed channels are gone, removed weights exactly zero. Without
    anything to remove, `model` itself is returned and nothing is trained. When `after_epoch` ends
    the fine-tuning early, the network still has the widths and densities that were asked for.
    `loss` replaces cross-entropy (see Distillation).
    Raises CompressionError (see prune_channels, magnitude_masks) or WorkloadError (training).
    """
    if not plan.changes(model):
        return model
    pruned = copy.deepcopy(model)
    kind = _Returning if plan.schedule == "dynamic" else _Pruning
    pruning = kind(pruned, split, plan, seed)
    train(
        pruned,
        split.take(recipe.fine_tune_samples),
        recipe,
        epochs=recipe.fine_tune_epochs,
        learning_rate=recipe.fine_tune_learning_rate,
        seed=seed,
        after_step=pruning,
        progress=progress,
        after_epoch=after_epoch,
        loss=loss,
    )
    pruning.finish(pruned)
    return pruned


class _Pruning:
    """The hook inside training: prunes at the ramp's steps and holds the masks in between.

    Channels are removed for good at every update, so later steps train a smaller network; the
    optimiser is rebuilt then (its moments belong to shapes that are gone).
    """

    def __init__(self, model: nn.Module, split: Split, plan: Compression, seed: int) -> None:
        self.plan = plan
        self.ramp = ONE_SHOT if plan.schedule == "one-shot" else plan.ramp
        self.example = split.inputs[:1]
        samples = split if plan.criterion in FROM_DATA else None
        self.importance = Importance(plan.criterion, seed, samples)
        self.full = {name: layer_width(model, name) for name in plan.widths}
        self.masks = Masks({})
        self.done = 0

    def __call__(self, model: nn.Module, step: int, total: int) -> bool:
        replaced = False
        for due in self.ramp.steps(total)[self.done :]:
            if step < due:
                break
            replaced |= self._update(model)
        self.masks.apply(model)
        return replaced

    def finish(self, model: nn.Module) -> None:
        """Whatever the ramp has not reached (training was stopped), then the masks."""
        while self.done < self.ramp.updates:
            self._update(model)
        self.masks.apply(model)

    def _update(self, model: nn.Module) -> bool:
        widths, densities = self._next()
        replaced = prune_in_place(model, self.example, widths, self.importance)
        # A layer is split when it is as narrow as it gets; what its factors keep is decided then.
        ranks = self.plan.ranks
        if self.done == self.ramp.updates:
            replaced |= factorize_in_place(model, ranks, self.plan.factors)
            densities = spread(densities, ranks)
        else:
            densities = {name: d for name, d in densities.items() if name not in ranks}
        self.masks = self._chosen(model, densities)
        self.masks.apply(model)
        return replaced

    def _chosen(self, model: nn.Module, densities: Mapping[str, float]) -> Masks:
        """The masks of the weights as they are; blocks are cut as weights lie in flash."""
        pattern = self.plan.pattern
        blocks = densities and pattern != ELEMENT
        orders = column_orders(model, tuple(self.example.shape[1:])) if blocks else {}
        return magnitude_masks(model, densities, pattern, orders)

    def _next(self) -> tuple[dict[str, int], dict[str, float]]:
        """Widths and densities of the next update."""
        share = self.ramp.share(self.done)
        self.done += 1
        densities = {name: 1 - (1 - d) * share for name, d in self.plan.densities.items()}
        return {name: self._width(name, share) for name in self.full}, densities

    def _width(self, name: str, share: float) -> int:
        """Never below the goal; exactly the goal at share 1."""
        full, goal = self.full[name], self.plan.widths[name]
        return goal + math.ceil((full - goal) * (1 - share))


class _Returning(_Pruning):
    """Prunes along the ramp, but only for good at its end: until then, what is removed may return.

    Dynamic pruning with feedback (Lin et al., arXiv 2006.07253): gradients of the pruned network go
    to the weights of the whole one, from which every update chooses anew.
    """

    def __init__(self, model: nn.Module, split: Split, plan: Compression, seed: int) -> None:
        super().__init__(model, split, plan, seed)
        self.kept: dict[str, Tensor] = {}
        self.whole: dict[str, Tensor] = {}
        self.shown: dict[str, Tensor] = {}
        self.handles: list[Any] = []
        if plan.widths:
            points = mask_points(model)
            for group in channel_groups(trace(model, tuple(split.inputs.shape[1:]))):
                if group.name in plan.widths:
                    for layer in group.producers:
                        point = model.get_submodule(points[layer])
                        hook = point.register_forward_hook(self._hiding(group.name))
                        self.handles.append(hook)

    def _hiding(self, name: str) -> Any:
        def hide(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            if name not in self.kept:
                return output
            factors = self.kept[name].view(1, -1, *[1] * (output.dim() - 2))
            return output + (output * factors - output).detach()

        return hide

    @torch.no_grad()
    def __call__(self, model: nn.Module, step: int, total: int) -> bool:
        for name, shown in self.shown.items():
            self.whole[name] += model.get_submodule(name).get_parameter("weight") - shown
        replaced = super().__call__(model, step, total)
        self.shown = {
            name: model.get_submodule(name).get_parameter("weight").clone() for name in self.whole
        }
        return replaced

    def _update(self, model: nn.Module) -> bool:
        for name, whole in self.whole.items():
            model.get_submodule(name).get_parameter("weight").data.copy_(whole)
        self.whole, self.shown, self.kept = {}, {}, {}  # channels are scored as they are
        if self.done == self.ramp.updates - 1:
            for handle in self.handles:
                handle.remove()
            return super()._update(model)
        widths, densities = self._next()
        scores = channel_scores(model, self.example, widths, self.importance) if widths else {}
        self.kept = {name: _hidden(scores[name], width) for name, width in widths.items()}
        densities = {name: d for name, d in densities.items() if name not in self.plan.ranks}
        self.masks = self._chosen(model, densities)
        self.whole = {
            name: model.get_submodule(name).get_parameter("weight").detach().clone()
            for name in densities
        }
        return False


def _hidden(scores: Tensor, width: int) -> Tensor:
    """1 for the `width` highest scores (C,), HIDDEN for the others."""
    factors = torch.full((len(scores),), HIDDEN)
    factors[torch.argsort(scores, descending=True, stable=True)[:width]] = 1
    return factors
