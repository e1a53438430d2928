"""Low-rank factors of layers: singular value decompositions, torch module -> torch module.

Each layer becomes an `nn.Sequential` of `reduce` and `expand`; which shapes those have is said in
`dse.graph.factor`. The purpose is that of ALF (arXiv 2007.13384).
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dse.errors import CompressionError
from dse.graph.factor import FIRST, LAST, check_method, check_ranks, matrix_shape

_Layer = nn.Conv1d | nn.Conv2d | nn.Linear
M = TypeVar("M", bound=nn.Module)


def factorize(model: nn.Module, ranks: Mapping[str, int], method: str = "channel") -> nn.Module:
    """A copy of `model` whose named layers are two layers of rank `ranks[name]`.

    The product of their weights is the nearest of that rank (Eckart & Young, 1936). Raises
    CompressionError for an unknown layer or method, a grouped convolution, or a rank that no
    weights of the layer's size have.
    """
    factorized = copy.deepcopy(model)
    factorize_in_place(factorized, ranks, method)
    return factorized


def factorize_in_place(model: nn.Module, ranks: Mapping[str, int], method: str) -> bool:
    """As `factorize`, on `model` itself; whether anything was replaced.

    Parameters are replaced by new ones, so an optimiser must be rebuilt afterwards.
    """
    check_method(method)
    layers = {n: m for n, m in model.named_modules() if n and isinstance(m, _Layer)}
    plain = {n: m for n, m in layers.items() if getattr(m, "groups", 1) == 1}
    check_ranks({name: _graph_shape(layer) for name, layer in plain.items()}, ranks)
    for name, rank in ranks.items():
        most = min(matrix_shape(_graph_shape(layers[name]), method))
        if rank > most:
            raise CompressionError(f"layer '{name}' cannot have rank {rank}; allowed: 1 to {most}")
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _factors(layers[name], rank, method))
    return bool(ranks)


def _graph_shape(layer: _Layer) -> tuple[int, ...]:
    """Shape of the weights as the graph holds them: (O, I) or (O, H, W, I)."""
    shape = tuple(layer.weight.shape)
    if len(shape) == 2:
        return shape
    height = shape[2] if len(shape) == 4 else 1
    return shape[0], height, shape[-1], shape[1]


@torch.no_grad()
def _factors(layer: _Layer, rank: int, method: str) -> nn.Sequential:
    if isinstance(layer, nn.Linear):
        one: _Layer = _undrawn(nn.Linear, layer.in_features, rank, bias=False)
        biased = layer.bias is not None
        other: _Layer = _undrawn(nn.Linear, rank, layer.out_features, bias=biased)
        left, right = _halves(layer.weight, rank)
    elif method == "spatial":
        one, other = _along(layer, rank, rows=True), _along(layer, rank, rows=False)
        left, right = _spatial_halves(layer.weight, rank)
    else:
        one, other = _whole(layer, rank), _pointwise(layer, rank)
        left, right = _halves(layer.weight.flatten(1), rank)
    one.weight.copy_(right.reshape(one.weight.shape))
    other.weight.copy_(left.reshape(other.weight.shape))
    if layer.bias is not None:
        other.get_parameter("bias").copy_(layer.bias)
    found = nn.Sequential(OrderedDict(((FIRST, one), (LAST, other))))
    return found.to(layer.weight.device, layer.weight.dtype).train(layer.training)


def _spatial_halves(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Weights (O, rank, 1, W) or (O, rank, W) of the row, and (rank, I, H, 1) of the column."""
    taps = weight if weight.dim() == 4 else weight[:, :, None]
    outputs, inputs, height, width = taps.shape
    matrix = taps.permute(1, 2, 0, 3).reshape(inputs * height, outputs * width)
    column, row = _halves(matrix, rank)
    return row.reshape(rank, outputs, width).transpose(0, 1), column.T


def _whole(layer: nn.Conv1d | nn.Conv2d, rank: int) -> nn.Conv1d | nn.Conv2d:
    """A convolution with all the taps of `layer` and `rank` outputs."""
    return _convolution(
        layer,
        layer.in_channels,
        rank,
        kernel_size=layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        bias=False,
    )


def _pointwise(layer: nn.Conv1d | nn.Conv2d, rank: int) -> nn.Conv1d | nn.Conv2d:
    return _convolution(layer, rank, layer.out_channels, kernel_size=1, bias=layer.bias is not None)


def _along(layer: nn.Conv1d | nn.Conv2d, rank: int, *, rows: bool) -> nn.Conv1d | nn.Conv2d:
    """The column of taps with `rank` outputs, or the row of taps with `rank` inputs."""
    inputs, outputs = (layer.in_channels, rank) if rows else (rank, layer.out_channels)

    def only(pair: Any, other: int) -> Any:
        if isinstance(pair, str):  # 'same' and 'valid' hold along each axis
            return pair
        if len(pair) == 1:
            return (other,) if rows else pair
        return (pair[0], other) if rows else (other, pair[1])

    return _convolution(
        layer,
        inputs,
        outputs,
        kernel_size=only(layer.kernel_size, 1),
        stride=only(layer.stride, 1),
        padding=only(layer.padding, 0),
        dilation=only(layer.dilation, 1),
        bias=not rows and layer.bias is not None,
    )


def _convolution(
    like: nn.Conv1d | nn.Conv2d, inputs: int, outputs: int, **geometry: Any
) -> nn.Conv1d | nn.Conv2d:
    if isinstance(like, nn.Conv1d):
        return _undrawn(nn.Conv1d, inputs, outputs, padding_mode=like.padding_mode, **geometry)
    return _undrawn(nn.Conv2d, inputs, outputs, padding_mode=like.padding_mode, **geometry)


def _undrawn(kind: type[M], *arguments: Any, **more: Any) -> M:
    """A layer whose weights are yet to be set: torch's random state stays as it was."""
    made: M = nn.utils.skip_init(kind, *arguments, **more)  # type: ignore[no-untyped-call]
    return made


def _halves(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(rows, rank) and (rank, columns), alike in size; signs are fixed, so that they are unique."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    u, v, root = u[:, :rank], v[:rank], s[:rank].sqrt()
    sign = torch.sign(u.gather(0, u.abs().argmax(0, keepdim=True))).squeeze(0)
    return u * (sign * root), v * (sign * root)[:, None]
