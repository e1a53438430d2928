"""Structured pruning: output channels are really removed, and everything that depends on them.

The dependency graph and the group-aware criteria are torch-pruning's (Fang et al., "DepGraph:
Towards Any Structural Pruning", arXiv 2301.12900): a channel's score sums over every layer that
loses weights with it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional as F
from torch_pruning.dependency.shape_infer import infer_out_channels_recursively

from dse.compress.activity import active_shares
from dse.errors import CompressionError, nearest
from dse.workloads.dataset import Split

CRITERIA = ("l1", "l2", "bn", "taylor", "apoz", "random")
FROM_DATA = ("taylor", "apoz")
SCORED_SAMPLES = 256

_Layer = nn.Conv1d | nn.Conv2d | nn.Linear
_Scorer = Callable[[Any], Tensor | None]
_RANKED_BY = {"bn": "BatchNorm scales", "apoz": "ReLU follows"}


@dataclass(frozen=True, eq=False)
class Importance:
    """Which channels go first: those of the lowest score.

    `l1`, `l2`: norms of the weights (Li et al., arXiv 1608.08710). `bn`: |BatchNorm scale|
    (Liu et al., arXiv 1708.06519). `taylor`: |weight x gradient| on a batch of `samples`, drawn by
    `seed` (Molchanov et al., CVPR 2019). `apoz`: how often a channel is active behind its ReLU, on
    such a batch (Hu et al., arXiv 1607.03250). `random`: drawn by `seed`.
    Raises CompressionError for an unknown criterion, or one of FROM_DATA without samples.
    """

    criterion: str
    seed: int = 0
    samples: Split | None = None

    def __post_init__(self) -> None:
        check_criterion(self.criterion)
        if self.criterion in FROM_DATA and self.samples is None:
            raise CompressionError(f"criterion '{self.criterion}' needs training samples")

    def batch(self) -> Split:
        """The samples that are scored on."""
        assert self.samples is not None  # checked at birth
        generator = torch.Generator().manual_seed(self.seed)
        index = torch.randperm(len(self.samples), generator=generator)[:SCORED_SAMPLES]
        return Split(self.samples.inputs[index], self.samples.labels[index])


def check_criterion(criterion: str) -> None:
    """Raises CompressionError for a criterion that does not exist."""
    if criterion not in CRITERIA:
        raise CompressionError(f"unknown criterion '{criterion}'; {nearest(criterion, CRITERIA)}")


def prune_channels(
    model: nn.Module, example_input: Tensor, widths: Mapping[str, int], importance: Importance
) -> nn.Module:
    """A copy of `model` whose named layers keep exactly `widths[name]` output channels.

    `example_input` is (1, C, H, W). `widths` names the first convolution or linear layer of a group
    of tied layers; the others follow (residual sums, depthwise convolutions, flatten).
    Raises CompressionError for an unknown or last layer, a width out of range, or a network that no
    longer runs.
    """
    pruned = copy.deepcopy(model)
    prune_in_place(pruned, example_input, widths, importance)
    return pruned


def prune_in_place(
    model: nn.Module,
    example_input: Tensor,
    widths: Mapping[str, int],
    importance: Importance | Mapping[str, Tensor],
) -> bool:
    """As prune_channels, on `model` itself; whether anything was removed.

    `importance` may also be the scores themselves, (channels,) of each named layer.
    Parameters are replaced by new ones, so an optimiser must be rebuilt afterwards. The mode
    (training or evaluation) stays as it is.
    """
    layers = _named_layers(model, widths)
    wanted = {name: widths[name] for name in layers if widths[name] != _channels(layers[name])}
    if not wanted:
        return False
    training = model.training
    shape = _output_shape(model, example_input)
    try:
        _prune(model, example_input, layers, wanted, importance)
    finally:
        model.zero_grad(set_to_none=True)
    _check_result(model, example_input, shape, layers, widths)
    model.train(training)
    return True


def layer_width(model: nn.Module, name: str) -> int:
    """Output channels of the convolution or linear layer `name`; CompressionError if none is."""
    return _channels(_named_layers(model, {name: 1})[name])


def _named_layers(model: nn.Module, widths: Mapping[str, int]) -> dict[str, _Layer]:
    """The layers of `widths` in the order of the network, each width in range."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, _Layer)}
    for name, width in widths.items():
        if name not in layers:
            raise CompressionError(
                f"the network has no convolution or linear layer '{name}'; {nearest(name, layers)}"
            )
        channels = _channels(layers[name])
        if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= channels:
            raise CompressionError(
                f"layer '{name}' cannot keep {width!r} channels; allowed: 1 to {channels}"
            )
    return {name: layer for name, layer in layers.items() if name in widths}


def channel_scores(
    model: nn.Module, example_input: Tensor, names: Iterable[str], importance: Importance
) -> dict[str, Tensor]:
    """Scores (channels,) of the named layers, lower goes first; the model stays as it is."""
    layers = _named_layers(model, dict.fromkeys(names, 1))
    training = model.training
    model.eval()
    try:
        return _all_scores(_dependencies(model, example_input), model, layers, importance)
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)


def _all_scores(
    graph: Any, model: nn.Module, layers: Mapping[str, _Layer], importance: Importance
) -> dict[str, Tensor]:
    scorer = _scorer(model, importance)
    found = {}
    for name, layer in layers.items():
        group = _group(graph, layer, range(_channels(layer)))
        _check_group(graph, model, name, group)
        found[name] = _scores(name, group, scorer, importance.criterion, _channels(layer))
    return found


def _prune(
    model: nn.Module,
    example_input: Tensor,
    layers: Mapping[str, _Layer],
    wanted: Mapping[str, int],
    importance: Importance | Mapping[str, Tensor],
) -> None:
    """All scores come from the unpruned network, so the order of the layers does not matter."""
    graph = _dependencies(model, example_input)
    named = {name: layers[name] for name in wanted}
    if isinstance(importance, Importance):
        scores: Mapping[str, Tensor] = _all_scores(graph, model, named, importance)
    else:
        scores = importance
        for name, layer in named.items():
            _check_group(graph, model, name, _group(graph, layer, range(_channels(layer))))
    for name, width in wanted.items():
        layer = layers[name]
        if _channels(layer) == width:
            continue  # tied to a layer that was named before, with the same width
        if _channels(layer) != len(scores[name]):
            raise CompressionError(
                f"layer '{name}' is asked for {width} channels but is tied to a layer that was "
                f"asked for {_channels(layer)}; name one layer of a group"
            )
        order = torch.argsort(scores[name], descending=True, stable=True)
        _group(graph, layer, sorted(order[width:].tolist())).prune()


def _dependencies(model: nn.Module, example_input: Tensor) -> Any:
    """The library's graph, taught how many channels enter a flatten.

    torch-pruning 1.6.1 follows a concatenation only when its consumer has as many inputs as it has
    channels, so it loses the offsets of one that is flattened into a linear layer.
    """
    with torch.enable_grad():
        graph = torch_pruning.DependencyGraph().build_dependency(
            model, [example_input], verbose=False
        )
    kind = torch_pruning.ops.OPTYPE.RESHAPE
    inputs = {m: node.inputs[0] for m, node in graph.module2node.items() if node.type == kind}

    def channels_in(module: Any) -> int | None:
        found: int | None = infer_out_channels_recursively(graph, inputs[module], [0])
        return found

    graph.REGISTERED_PRUNERS[kind].get_in_channels = channels_in
    return graph


def _group(graph: Any, layer: _Layer, channels: range | list[int]) -> Any:
    prune = (
        torch_pruning.prune_linear_out_channels
        if isinstance(layer, nn.Linear)
        else torch_pruning.prune_conv_out_channels
    )
    try:
        return graph.get_pruning_group(layer, prune, list(channels))
    except ValueError as error:
        raise CompressionError(
            f"layer '{graph._module2name.get(layer)}' takes no part in the network's output"
        ) from error


def _check_group(graph: Any, model: nn.Module, name: str, group: Any) -> None:
    names = {module: n for n, module in model.named_modules()}
    for dependency, _ in group:
        target = dependency.target
        if not target.outputs and graph.is_out_channel_pruning_fn(dependency.handler):
            raise CompressionError(
                f"layer '{name}' cannot be pruned: it makes the network's output, or is tied to "
                "the layer that does"
            )
        layer = target.module
        if isinstance(layer, nn.Conv1d | nn.Conv2d) and layer.groups > 1 and not _depthwise(layer):
            raise CompressionError(
                f"layer '{name}' cannot be pruned: it is tied to '{names[layer]}', a grouped "
                f"convolution ({layer.groups} groups) that is not depthwise"
            )


def _depthwise(layer: nn.Conv1d | nn.Conv2d) -> bool:
    return layer.groups == layer.in_channels == layer.out_channels


def _scorer(model: nn.Module, importance: Importance) -> _Scorer:
    """Scores of a whole group; not normalised, as only their order within the group is used."""
    if importance.criterion == "random":
        generator = torch.Generator().manual_seed(importance.seed)
        return lambda group: torch.rand(len(group[0].idxs), generator=generator)
    if importance.criterion == "taylor":
        _set_gradients(model, importance.batch())
        return _library(torch_pruning.importance.GroupTaylorImportance(normalizer=None))
    if importance.criterion == "apoz":
        return _activity(model, importance.batch().inputs)
    if importance.criterion == "bn":
        return _library(torch_pruning.importance.BNScaleImportance(normalizer=None))
    power = 1 if importance.criterion == "l1" else 2
    return _library(torch_pruning.importance.GroupMagnitudeImportance(p=power, normalizer=None))


def _library(scorer: Any) -> _Scorer:
    """The library's criterion; None when it finds nothing to go by."""

    def score(group: Any) -> Tensor | None:
        for item in group:
            # The Taylor criterion sorts the channels of an item but not the roots they belong to.
            pairs = sorted(zip(item.idxs, item.root_idxs, strict=True))
            item.idxs[:] = [channel for channel, _ in pairs]
            item.root_idxs[:] = [root for _, root in pairs]
        scores: Tensor | None = scorer(group)
        return scores

    return score


def _scores(name: str, group: Any, scorer: _Scorer, criterion: str, channels: int) -> Tensor:
    scores = scorer(group)
    if scores is None:
        raise CompressionError(
            f"layer '{name}' cannot be ranked by criterion '{criterion}': "
            f"no {_RANKED_BY[criterion]} its channels; use l1, l2, taylor or random"
        )
    # A BatchNorm behind a flatten makes the library's vector longer; roots come first.
    scores = scores[:channels]
    if not bool(torch.isfinite(scores).all()):
        raise CompressionError(f"the weights of layer '{name}' give scores that are not finite")
    return scores


def _set_gradients(model: nn.Module, batch: Split) -> None:
    model.zero_grad(set_to_none=True)
    with torch.enable_grad():
        loss = F.cross_entropy(model(batch.inputs), batch.labels)
        loss.backward()  # type: ignore[no-untyped-call]


def _activity(model: nn.Module, inputs: Tensor) -> _Scorer:
    """Active shares, summed over the group's layers that have a ReLU behind them."""
    shares = active_shares(model, inputs)
    names = {module: name for name, module in model.named_modules()}

    def score(group: Any) -> Tensor | None:
        total, found = torch.zeros(len(group[0].idxs)), False
        for item in group:
            known = shares.get(names.get(item.dep.target.module, ""))
            if known is not None and _makes_channels(item.dep):
                total[item.root_idxs] += known[item.idxs]
                found = True
        return total if found else None

    return score


def _makes_channels(dependency: Any) -> bool:
    return dependency.handler in (
        torch_pruning.prune_conv_out_channels,
        torch_pruning.prune_linear_out_channels,
        torch_pruning.prune_depthwise_conv_out_channels,
    )


def _channels(layer: _Layer) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


@torch.no_grad()
def _output_shape(model: nn.Module, example_input: Tensor) -> tuple[int, ...]:
    return tuple(model.eval()(example_input).shape)


def _check_result(
    model: nn.Module,
    example_input: Tensor,
    shape: tuple[int, ...],
    layers: Mapping[str, _Layer],
    widths: Mapping[str, int],
) -> None:
    """What the dependency graph cannot see (sizes written into forward) shows here."""
    try:
        found = _output_shape(model, example_input)
    except Exception as error:
        raise CompressionError(
            f"the network does not run with channels removed from {', '.join(layers)} "
            f"({' '.join(str(error).split())}); its forward may hold fixed sizes, "
            "or add the network's input to a pruned layer"
        ) from error
    if found != shape:
        raise CompressionError(
            f"pruning {', '.join(layers)} changes the output from {shape} to {found}"
        )
    for name, layer in layers.items():
        if _channels(layer) != widths[name]:
            raise CompressionError(
                f"layer '{name}' keeps {_channels(layer)} channels instead of {widths[name]}: "
                "it is tied to another layer that was asked for a different width"
            )
