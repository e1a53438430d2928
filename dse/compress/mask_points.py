"""Where the outputs of a layer are masked: behind its batch normalization."""

from __future__ import annotations

import copy

from torch import fx, nn

_BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


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
