"""How often a channel is active: the share of its values behind the ReLU that are not zero.

The complement of APoZ, the average percentage of zeros (Hu et al., "Network Trimming",
arXiv 1607.03250).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

_Layer = nn.Conv1d | nn.Conv2d | nn.Linear
_RELU_MODULES = (nn.ReLU, nn.ReLU6)
_RELU_FUNCTIONS = (F.relu, F.relu6, torch.relu, torch.relu_)
_RELU_METHODS = ("relu", "relu_")


@torch.no_grad()
def active_shares(model: nn.Module, inputs: Tensor) -> Mapping[str, Tensor]:
    """Active shares (C,) by convolution or linear layer, 0 to 1, on `inputs` (N, ...).

    Measured behind the first ReLU on every way from the layer, before another layer; the mean where
    there are several. A layer without a ReLU behind it is left out. The mode of the model is kept.
    """
    traced = fx.symbolic_trace(model)
    recorder = _Recorder(traced)
    recorder.run(inputs)
    modules = dict(traced.named_modules())
    found: dict[str, Tensor] = {}
    for node in traced.graph.nodes:
        if node.op != "call_module" or not isinstance(modules[str(node.target)], _Layer):
            continue
        width = modules[str(node.target)].get_parameter("weight").shape[0]
        seen = [recorder.shares[relu] for relu in _relus_behind(node, modules)]
        seen = [shares for shares in seen if len(shares) == width]
        if seen:
            found[str(node.target)] = torch.stack(seen).mean(0)
    return found


class _Recorder(fx.Interpreter):
    """Runs a traced network and keeps the active share of every ReLU's channels."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.modules = dict(traced.named_modules())
        self.shares: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """The node's value; noted where it is a ReLU."""
        result = super().run_node(n)
        if _is_relu(n, self.modules):
            other = [axis for axis in range(result.dim()) if axis != 1]
            self.shares[n] = (result > 0).float().mean(other)
        return result


def _is_relu(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], _RELU_MODULES)
    if node.op == "call_function":
        return node.target in _RELU_FUNCTIONS
    return node.op == "call_method" and node.target in _RELU_METHODS


def _relus_behind(node: fx.Node, modules: Mapping[str, nn.Module]) -> list[fx.Node]:
    """The ReLUs that read a layer's channels before another layer does."""
    found: list[fx.Node] = []
    waiting, seen = list(node.users), set()
    while waiting:
        reader = waiting.pop(0)
        if reader in seen:
            continue
        seen.add(reader)
        if _is_relu(reader, modules):
            found.append(reader)
        elif reader.op != "call_module" or not isinstance(modules[str(reader.target)], _Layer):
            waiting += list(reader.users)
    return found
